/* The engine's port to a KV-cache layer: the only thing engine and cache know of each other.
 *
 * A `kv_seq` is the cache's view of one admitted request: its salt, how far its key chain was computed,
 * what it has pinned. The engine owns pages and keeps them referenced while a ticket is open; the cache
 * owns host memory and keys. Everything is counted in tokens from the start of the sequence.
 *
 * Rules: a lookup is a hint; a load ends in verified bytes or says how far they are good, and the engine
 * computes the rest, so a cache can save time but never change an answer. No call blocks on I/O: load and
 * store give tickets that poll answers. All calls come from the engine's thread. With a NULL port the
 * engine pays one branch per request and per step. */
#ifndef ENG_KV_PORT_H
#define ENG_KV_PORT_H

#include "base/dtype.h"
#include "base/err.h"
#include "base/hash.h"

#include <stddef.h>
#include <stdint.h>

/* Shape of the KV pool, published by the backend; a cache refuses KV made under another one. A page holds
 * one block of B tokens for all layers: [layer][K, V][kv head][token][d]. */
struct kv_geom {
    int n_layers, n_kv_heads, head_dim, block_size;
    enum km_dtype dtype;
    int layout;               /* 1 for the order above; another order gets another number */
    size_t page_bytes;        /* n_layers * 2 * n_kv_heads * block_size * head_dim * sizeof(dtype) */
    int n_pages;
    double rope_theta;
    struct km_digest model;   /* mdl_fingerprint */
};

/* A piece of a copy between a page and host memory. */
struct kv_copy {
    int32_t page;
    void *host;               /* page_bytes */
};
enum kv_dir { KV_TO_HOST, KV_TO_PAGE };

/* How the cache moves bytes: the backend's copy verbs, bound by the engine. Semantics in engine/backend.h. */
struct kv_copier {
    void *self;
    int (*copy)(void *self, enum kv_dir dir, const struct kv_copy *c, int n, uint64_t *ticket, struct km_err *err);
    int (*poll)(void *self, uint64_t ticket);
    void *(*host_alloc)(void *self, size_t size); /* NULL: the device has none of its own, any memory serves */
    void (*host_free)(void *self, void *p, size_t size);
};

struct kv_seq;

struct kv_port_stats {
    int64_t lookups, lookup_tokens, hit_tokens; /* hit_tokens: answered by lookup */
    int64_t loaded_tokens, stored_tokens, failed_loads;
    int64_t evicted_chunks, bytes, capacity, chunks;
    int64_t load_ns, store_ns;                  /* time from call to completion, summed */
};

struct kv_port {
    void *self;
    int chunk_size; /* tokens; a multiple of the block size */
    int (*attach)(void *self, const struct kv_geom *geom, const struct kv_copier *copier, struct km_err *err);
    void (*detach)(void *self); /* no ticket may be open */

    /* A request arrives. salt may be NULL; it enters the root of the key chain. NULL without memory. */
    struct kv_seq *(*open)(void *self, const char *salt);
    /* Tokens of tokens[0, n) whose KV the cache says it can give, from the start; pins them until the
     * load completes or the sequence closes. Called again after a preemption with a longer prompt. */
    int (*lookup)(struct kv_seq *s, const int32_t *tokens, int n);
    /* Fill the pages of tokens [from, to), multiples of the block size within the last lookup.
     * block_table[i] is the page of tokens [i*B, (i+1)*B), readable until the ticket is finished. ticket 0:
     * already complete, *good is set. from == to: nothing is wanted after all, the lookup's pins may go. */
    int (*load)(struct kv_seq *s, int from, int to, const int32_t *block_table, uint64_t *ticket, int *good);
    /* Tokens [0, n) are computed and lie in the pages: keep the whole chunks among them that are not yet
     * kept. The first n_prompt of the request came as its prompt, the others it generated; the cache decides
     * whether it wants those. Called after steps that passed a chunk's end; tokens are the caller's for the
     * call only, block_table as in load. ticket 0: nothing is in flight. */
    int (*store)(struct kv_seq *s, const int32_t *tokens, int n, int n_prompt, const int32_t *block_table,
                 uint64_t *ticket);
    /* 1 complete, 0 pending, <0 failed. For a load, *good (may be NULL for a store) is the number of tokens,
     * from 0, now right in the pages (>= from); a failed load still sets it. A finished ticket is forgotten. */
    int (*poll)(void *self, uint64_t ticket, int *good);
    void (*close)(struct kv_seq *s); /* drops pins; open tickets of the sequence go on */

    int (*reset)(void *self); /* forget everything that is not pinned; 0, or <0 when pins or tickets kept something*/
    void (*stats)(void *self, struct kv_port_stats *out);
};

#endif
