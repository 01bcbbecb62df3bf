/* A fake cache layer for tests of the engine, which can fail in every way that the port allows.
 *
 * Chunks are found by a hash of the salt and all tokens up to the chunk's end. Nothing is ever evicted. */
#ifndef TEST_FAKE_PORT_H
#define TEST_FAKE_PORT_H

#include "engine/kv_port.h"

#include <stdbool.h>

struct fake_chunk {
    struct fake_chunk *next;
    uint64_t key;
    char *data; /* [chunk_size / block_size][page_bytes] */
    bool ready;
};

struct fake_ticket {
    uint64_t ticket, copy; /* copy 0: none */
    int polls, good, rc;
    bool load;
    struct fake_chunk **chunks; /* [n] ready when the ticket ends */
    int n;
    const int32_t *table;       /* [n_table] the block table, which must not change while the ticket is open */
    int32_t *was;               /* [n_table] its content when the ticket was opened */
    int n_table;
};

struct fake_port {
    struct kv_port port;
    struct kv_geom geom;
    const struct kv_copier *copier;
    char *garbage;      /* [page_bytes] content of the pages that a load fails to fill */

    int slow;           /* polls until a ticket is complete; 0: no tickets, unless the copies have some */
    int short_at;       /* loads fill no page from this chunk on; -1: loads fill all pages */
    bool fail;          /* a load that does not fill all pages also reports an error */
    bool fail_at_once;  /* `load` itself returns an error */
    bool keep_nothing;  /* stores are ignored */
    bool no_open;       /* `open` has no memory */
    int lossy;          /* percentage of lookups that find nothing, and of loads that fill only half of the pages */
    uint64_t rng;

    struct fake_chunk *bucket[256];
    struct fake_ticket *tickets; /* [n_tickets] */
    int n_tickets;
    uint64_t last_ticket;
    bool attached;
    bool changed;                /* the engine broke the contract, for example a block table changed under a ticket */
    int seqs;                    /* open sequences */
    int lookups, loads, stores;  /* calls */
    int dropped;                 /* empty loads, which drop the pins of a lookup */
    int kept;                    /* chunks */
    int64_t looked_tokens, loaded_tokens;
    int last_n, last_n_prompt;   /* of the last store */
};

/* Pass p->port to eng_open. */
void fake_port_init(struct fake_port *p, int chunk_size);
void fake_port_free(struct fake_port *p);

#endif
