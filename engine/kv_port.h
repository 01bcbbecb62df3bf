/* The port: the interface between the engine and a KV-cache layer, and the only header that the two share.
 *
 * `struct kv_port` is a table of functions that a cache layer (below: the cache) implements and the engine calls. The
 * engine owns the KV pool, its pages and the block tables. The cache owns host memory, keys and chunks. A `kv_seq` is
 * the cache's record of one request, from its first lookup to its end: the request's salt, the keys computed so far,
 * and the chunks that the last lookup pinned. A pinned chunk is not evicted.
 *
 * A block is block_size tokens; its KV is stored in one page of the pool. A chunk is chunk_size tokens, a whole number
 * of blocks, and is the unit that the cache stores. Positions count tokens from the start of the sequence.
 *
 * Rules:
 * - A lookup is a hint. A load reports how many tokens have verified KV in the pages, and the engine computes the KV of
 *   the others. A cache can therefore save time, but never change an answer.
 * - Between attach and detach no call blocks on I/O. load and store return a ticket, and the engine polls the ticket
 *   until it is finished. Every ticket finishes, whatever fails. Until then the ticket's pages stay allocated and the
 *   engine does not write to them. It reads a page that a load fills only after the load has reported the page's tokens
 *   as good.
 * - Calls never overlap: all of them come from the thread that runs the engine.
 * - If the port is NULL, the engine runs without a cache. That costs one branch per request and per step. */
#ifndef ENG_KV_PORT_H
#define ENG_KV_PORT_H

#include "base/dtype.h"
#include "base/err.h"
#include "base/hash.h"

#include <stddef.h>
#include <stdint.h>

/* Geometry of the KV pool, published by the backend. A page holds K and V of one block for all layers, in the order
 * [layer][K, V][kv head][token][head_dim]. All members but n_pages are part of a chunk's identity: a cache never loads
 * KV that was stored under another geometry or model. */
struct kv_geom {
    int n_layers, n_kv_heads, head_dim;
    int block_size;           /* tokens of a block, and so of a page */
    enum km_dtype dtype;      /* of every element */
    int layout;               /* number of the order within a page: 1 is the order above, another order has another */
    size_t page_bytes;        /* n_layers * 2 * n_kv_heads * block_size * head_dim * sizeof(dtype) */
    int n_pages;              /* pages of the pool */
    double rope_theta;
    struct km_digest model;   /* fingerprint of the weights (mdl_fingerprint) */
};

/* One page of a copy between the KV pool and host memory. */
struct kv_copy {
    int32_t page;             /* in the pool, [0, n_pages) */
    void *host;               /* [page_bytes] */
};
enum kv_dir { KV_TO_HOST /* D2H: a store */, KV_TO_PAGE /* H2D: a load */ };

/* The backend's copy functions, which the cache may call between attach and detach. engine/backend.h states how copies
 * are ordered with steps: a copy to the host sees the KV of every step that was submitted before it. */
struct kv_copier {
    void *self;
    /* Submits the copy of n pages. The caller keeps c[n] and the host memory valid until the ticket is finished. Ticket
     * 0: the copy is complete already. < 0: the copy failed and has no ticket; its destination may be overwritten in
     * part. */
    int (*copy)(void *self, enum kv_dir dir, const struct kv_copy *c, int n, uint64_t *ticket, struct km_err *err);
    int (*poll)(void *self, uint64_t ticket);     /* 1 complete, 0 pending, < 0 failed */
    /* Allocate and free host memory that the device copies fastest (pinned memory on a GPU). host_alloc NULL: the
     * device has no such memory, and the cache uses ordinary memory. */
    void *(*host_alloc)(void *self, size_t size);
    void (*host_free)(void *self, void *p, size_t size);
};

struct kv_seq;

struct kv_port_stats {
    int64_t lookups;                   /* calls of lookup */
    int64_t lookup_tokens, hit_tokens; /* sums of the tokens that lookups asked for, and that they found */
    int64_t loaded_tokens;             /* tokens that loads have verified in pages */
    int64_t stored_tokens;             /* tokens of chunks whose store succeeded, so that lookups find them */
    int64_t failed_loads;              /* loads that verified fewer tokens than they were asked for */
    int64_t evicted_chunks;            /* chunks dropped to store others */
    int64_t chunks, bytes, capacity;   /* now: chunks that lookups find, host bytes in use, host bytes in all */
    int64_t load_ns, store_ns;         /* ns from the call to the end of the ticket, summed over loads or stores */
};

struct kv_port {
    void *self;
    int chunk_size; /* tokens of a chunk; a multiple of the engine's block size */

    /* Binds the cache to an engine's pool and allocates the cache's memory. The cache copies *geom and *copier. Fails
     * if the chunk size does not fit the geometry, or the memory is not available. */
    int (*attach)(void *self, const struct kv_geom *geom, const struct kv_copier *copier, struct km_err *err);
    /* Frees the cache's memory. Every sequence is closed and every ticket is finished. */
    void (*detach)(void *self);

    /* Opens a sequence for a request. The salt (NULL: none, which differs from "") enters the root of the key chain, so
     * requests with different salts share nothing. Returns NULL if there is no memory; the engine then computes the
     * request without the cache. */
    struct kv_seq *(*open)(void *self, const char *salt);

    /* Returns the length of the longest prefix of tokens[0, n) that the cache can load, 0 for none, and pins its
     * chunks. The pins last until a load of this sequence is finished or a store offers all the pinned tokens, and at
     * most until the next lookup (after a preemption) or close. tokens is read during the call only. */
    int (*lookup)(struct kv_seq *s, const int32_t *tokens, int n);

    /* Submits the load of tokens [from, to) into their pages; both are multiples of the block size and within the last
     * lookup. block_table[i] is the page of tokens [i * block_size, (i + 1) * block_size); the table does not change
     * until the ticket is finished. Ticket 0: the load is finished already, and *good is set as poll sets it. < 0: no
     * token was loaded, and *good is `from`.
     * If `from` equals `to`, the engine needs no token of the lookup: nothing is loaded, and the pins are dropped. */
    int (*load)(struct kv_seq *s, int from, int to, const int32_t *block_table, uint64_t *ticket, int *good);

    /* Offers tokens [0, n), whose KV is in their pages. The cache stores the full chunks among them that it does not
     * hold yet, and may decline any of them. The first n_prompt tokens are the request's prompt and the others were
     * generated. tokens is read during the call only; block_table is as in load. Ticket 0: nothing is in flight. < 0:
     * the store failed and has no ticket; the engine goes on. */
    int (*store)(struct kv_seq *s, const int32_t *tokens, int n, int n_prompt, const int32_t *block_table,
                 uint64_t *ticket);

    /* Returns 0 while the ticket is pending. It is finished when poll returns 1 (complete) or < 0 (failed), and must
     * not be polled again. For a finished load, *good is the end of the verified tokens: tokens [from, *good) have
     * their KV in the pages. It is at least `from`, and less than `to` if the load failed. good may be NULL for a
     * store. */
    int (*poll)(void *self, uint64_t ticket, int *good);

    /* Drops the pins and frees the sequence. Its open tickets remain valid. */
    void (*close)(struct kv_seq *s);

    /* Drops every chunk that is neither pinned nor part of an open ticket. Returns < 0 if any chunk remains. */
    int (*reset)(void *self);
    void (*stats)(void *self, struct kv_port_stats *out);
};

#endif
