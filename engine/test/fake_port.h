/* A fake cache layer for tests of the engine, which can be slow, lose, damage and shorten in every way that the port
 * allows, and which records breaches of the port's rules by the engine.
 *
 * Chunks are found by a hash of the salt and all tokens up to the chunk's end. Nothing is ever evicted. A load copies
 * from its last chunk to its first, with `depth` copies in flight. It makes progress when the engine polls it: by the
 * number of polls, or, with `rate`, as far as the copier's clock says that a link of this rate had come by then. */
#ifndef TEST_FAKE_PORT_H
#define TEST_FAKE_PORT_H

#include "engine/kv_port.h"

#include <stdbool.h>

struct fake_chunk {
    struct fake_chunk *next;
    uint64_t key;
    int n_tokens;
    char *data;     /* [chunk_size / block_size][page_bytes] */
    uint64_t *sums; /* [chunk_size / block_size] */
    bool ready;
};

enum { FAKE_DEPTH = 3 };

/* A chunk of a load or store in flight. */
struct fake_piece {
    int from, to;       /* tokens */
    uint64_t copy;      /* the copier's ticket; 0: the copier refused, try again, or failed */
    bool failed;
    struct kv_copy *c;  /* [n] */
    int n;
    struct fake_chunk *chunk;
    int64_t ends;       /* with `rate`: when the copy is complete */
};

struct fake_ticket {
    uint64_t ticket;
    bool load;
    int polls;                   /* until it may finish */
    uint64_t after;
    int32_t *table;              /* copy of the block table */
    struct fake_chunk **chunks;  /* a load: the chunk at each position; a store: [n_chunks] those to store */
    int n_chunks;
    int from, to, floor, next;   /* a load: pieces of tokens [next, to) have been submitted */
    int next_chunk, n_tokens;    /* a store */
    bool stopped;                /* a load: no more pieces */
    int good_from, good_to;      /* a load: verified so far */
    struct fake_piece piece[FAKE_DEPTH]; /* [n_pieces] in the order of submission */
    int n_pieces;
};

struct fake_port {
    struct kv_port port;
    struct kv_geom geom;
    struct kv_copier copier;

    int slow;           /* polls until a ticket is complete */
    int depth;          /* copies of a load in flight, 1 to FAKE_DEPTH */
    double rate;        /* bytes per second of all loads together; 0: they are as fast as the polls */
    double told_rate;   /* the rate that load_ns assumes; 0: `rate` */
    int not_yet;        /* lookups of each sequence that are not answered yet */
    int vague;          /* percentage of lookups that are not answered yet, and of those that find fewer tokens */
    int short_at;       /* loads fill no page from this chunk on; -1: loads fill all pages */
    int bad_chunk;      /* loads cannot fill this chunk; -1: none */
    bool fail_at_once;  /* `load` itself returns an error */
    bool keep_nothing;  /* stores are ignored */
    bool keep_partial;  /* the partial last chunk of a prompt is stored */
    bool no_open;       /* `open` has no memory */
    _Atomic bool stuck; /* no ticket finishes and no reset succeeds */
    int lossy;          /* percentage of lookups that find nothing, and of chunks that a load cannot fill */
    uint64_t rng;

    struct fake_chunk *bucket[256];
    struct fake_ticket **tickets; /* [n_tickets], oldest first */
    int n_tickets;
    uint64_t last_ticket;
    int64_t link_free;           /* with `rate`: when the last copy ends */
    bool attached;
    bool changed;                /* the engine broke the contract, for example wrote to a page under a ticket */
    int seqs;                    /* open sequences */
    int lookups, loads, stores, cuts, intervals; /* calls; intervals: loads that did not fill a prefix */
    int dropped;                 /* empty loads, which drop the pins of a lookup */
    int kept;                    /* chunks */
    int64_t looked_tokens, had_tokens, loaded_tokens;
    int last_n, last_n_prompt, last_from; /* of the last store */
    int last_load_from, last_load_to;
};

/* Pass p->port to eng_open. */
void fake_port_init(struct fake_port *p, int chunk_size);
void fake_port_free(struct fake_port *p);

#endif
