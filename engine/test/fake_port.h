/* A cache layer in a few dozen lines, with every vice the engine must survive. Chunks are kept by a hash over salt and
 * tokens; nothing is ever evicted. */
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
    struct fake_chunk **chunks; /* [n], become ready */
    int n;
    const int32_t *table;       /* must still read the same when the ticket ends */
    int32_t *was;               /* [n_table] */
    int n_table;
};

struct fake_port {
    struct kv_port port;
    struct kv_geom geom;
    const struct kv_copier *copier;
    char *garbage;      /* [page_bytes], what a load leaves where it fails */

    int slow;           /* looks a ticket takes */
    int short_at;       /* loads end at this chunk; -1: never */
    bool fail;          /* such a load also reports failure */
    bool fail_at_once;  /* load itself says no */
    bool keep_nothing;  /* stores are thrown away */
    bool no_open;       /* open has no memory */
    int lossy;          /* of 100 lookups this many are lost, and as many loads come short */
    uint64_t rng;

    struct fake_chunk *bucket[256];
    struct fake_ticket *tickets; /* [n_tickets] */
    int n_tickets;
    uint64_t last_ticket;
    bool attached;
    bool changed;                /* the contract was broken: a block table moved under an open ticket, say */
    int seqs, lookups, loads, dropped, stores, kept;
    int64_t looked_tokens, loaded_tokens;
    int last_n, last_n_prompt;   /* of the last store */
};

/* p->port is what goes to eng_open. */
void fake_port_init(struct fake_port *p, int chunk_size);
void fake_port_free(struct fake_port *p);

#endif
