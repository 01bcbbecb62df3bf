/* The port between the engine and a KV-cache layer: the only interface that the two share.
 *
 * The engine calls, the cache answers. The engine owns the KV pool, its pages and the block tables; the cache owns host
 * memory, keys and chunks. A `kv_seq` is the cache's record of one admitted request: the request's salt, the keys
 * computed for it so far, and the chunks that its last lookup pinned. A pinned chunk is not evicted.
 *
 * A block is the KV of block_size tokens and lies in one page of the pool. A chunk is the KV of chunk_size tokens, a
 * whole number of blocks, and is the unit that the cache keeps. Every position is a number of tokens from the start of
 * the sequence.
 *
 * Rules:
 * - A lookup is a hint. A load ends with the number of tokens that are verified in the pages, and the engine computes
 *   the others. A cache can therefore save time, but never change an answer.
 * - No call blocks on I/O. load and store return a ticket, and poll tells when it is finished. Until then the engine
 *   keeps the ticket's pages allocated. It does not write to them, nor read what a load has not reported as good.
 * - All calls come from the engine's thread.
 * - The engine runs without a cache when the port is NULL. That costs one branch per request and per step. */
#ifndef ENG_KV_PORT_H
#define ENG_KV_PORT_H

#include "base/dtype.h"
#include "base/err.h"
#include "base/hash.h"

#include <stddef.h>
#include <stdint.h>

/* Geometry of the KV pool, published by the backend. A page holds K and V of one block for all layers, in the order
 * [layer][K, V][kv head][token][head_dim]. A cache never loads KV that was stored under another geometry or model. */
struct kv_geom {
    int n_layers, n_kv_heads, head_dim;
    int block_size;           /* tokens of a block */
    enum km_dtype dtype;      /* of every element */
    int layout;               /* 1: the order stated above; a backend with another order publishes another number */
    size_t page_bytes;        /* n_layers * 2 * n_kv_heads * block_size * head_dim * sizeof(dtype) */
    int n_pages;              /* of the pool; not part of a chunk's identity */
    double rope_theta;
    struct km_digest model;   /* fingerprint of the weights (mdl_fingerprint) */
};

/* One page of a copy between the KV pool and host memory. */
struct kv_copy {
    int32_t page;             /* in the pool, [0, n_pages) */
    void *host;               /* [page_bytes] */
};
enum kv_dir { KV_TO_HOST, KV_TO_PAGE };

/* The backend's copy functions, lent to the cache from attach to detach. engine/backend.h states how copies are ordered
 * with steps. */
struct kv_copier {
    void *self;
    /* Submits the copy of n pages. c[n] stays valid until the ticket is finished. Ticket 0: already complete. */
    int (*copy)(void *self, enum kv_dir dir, const struct kv_copy *c, int n, uint64_t *ticket, struct km_err *err);
    int (*poll)(void *self, uint64_t ticket);     /* 1 complete, 0 pending, < 0 failed */
    /* Host memory from which the device copies fastest (pinned memory on a GPU). host_alloc NULL: the device has no
     * such memory, and the cache uses ordinary memory. */
    void *(*host_alloc)(void *self, size_t size);
    void (*host_free)(void *self, void *p, size_t size);
};

struct kv_seq;

struct kv_port_stats {
    int64_t lookups;                   /* calls of lookup */
    int64_t lookup_tokens, hit_tokens; /* tokens that lookups asked for, and that they found */
    int64_t loaded_tokens;             /* verified in pages, by loads */
    int64_t stored_tokens;             /* of chunks that became ready to be found */
    int64_t failed_loads;              /* loads that gave fewer tokens than were asked for */
    int64_t evicted_chunks;
    int64_t chunks, bytes, capacity;   /* held now: chunks ready, host bytes in use, host bytes at most */
    int64_t load_ns, store_ns;         /* ns from call to completion, summed over loads and over stores */
};

struct kv_port {
    void *self;
    int chunk_size; /* tokens; a multiple of the engine's block size */

    /* Binds the cache to an engine's pool and takes the cache's memory. The cache copies *geom and *copier. */
    int (*attach)(void *self, const struct kv_geom *geom, const struct kv_copier *copier, struct km_err *err);
    void (*detach)(void *self); /* the engine has no open ticket */

    /* Opens a sequence for a new request. The salt (NULL: none) enters the root of the key chain, so requests with
     * different salts share nothing. NULL without memory. */
    struct kv_seq *(*open)(void *self, const char *salt);

    /* Returns how many of tokens[0, n) the cache can give, counted from the first. Pins their chunks until a load of
     * this sequence completes or the sequence closes. A later lookup, after a preemption, replaces the pins. */
    int (*lookup)(struct kv_seq *s, const int32_t *tokens, int n);

    /* Submits the load of tokens [from, to) into their pages; both are multiples of the block size and within the last
     * lookup. block_table[i] is the page of tokens [i * block_size, (i + 1) * block_size); the table stays unchanged
     * until the ticket is finished. Ticket 0: the load is already complete, and *good is set as poll sets it.
     * An empty range (from equal to `to`) means that the engine needs nothing of the lookup: its pins are dropped. */
    int (*load)(struct kv_seq *s, int from, int to, const int32_t *block_table, uint64_t *ticket, int *good);

    /* Offers tokens [0, n), all computed and in their pages. The cache stores the whole chunks among them that it does
     * not hold yet. The first n_prompt tokens came with the request's prompt and the others were generated; the cache
     * may leave generated tokens out. tokens is only read during the call, block_table is as in load.
     * Ticket 0: nothing is in flight. */
    int (*store)(struct kv_seq *s, const int32_t *tokens, int n, int n_prompt, const int32_t *block_table,
                 uint64_t *ticket);

    /* 1 complete, 0 pending, < 0 failed. Once a load's ticket is not pending, *good is the number of tokens from 0
     * whose KV is right in the pages: at least `from`, and less than `to` if the load failed. good may be NULL for a
     * store. A ticket that is not pending any more is forgotten. */
    int (*poll)(void *self, uint64_t ticket, int *good);

    void (*close)(struct kv_seq *s); /* drops the pins; open tickets of the sequence go on */

    /* Evicts everything that is neither pinned nor part of an open ticket. < 0 if anything was kept for that reason. */
    int (*reset)(void *self);
    void (*stats)(void *self, struct kv_port_stats *out);
};

#endif
