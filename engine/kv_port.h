/* The port: the interface between the engine and a KV-cache layer, and the only header that the two share.
 *
 * `struct kv_port` is a table of functions that a cache layer (below: the cache) implements and the engine calls. The
 * engine owns the KV pool, its pages and the block tables. The cache owns host memory, keys and chunks. A `kv_seq` is
 * the cache's record of one request, from its arrival to its end: the request's salt, the keys computed so far, and the
 * chunks that the last lookup pinned. A pinned chunk is not evicted.
 *
 * A block is block_size tokens; its KV is stored in one page of the pool. A chunk is chunk_size tokens, a whole number
 * of blocks, and is the unit that the cache stores. A load copies chunks to pages, a store copies pages to chunks. A
 * fence is the ticket of a step that must have ended before copies start. Positions count tokens from the start of the
 * sequence.
 *
 * Rules:
 * - A lookup is a hint. A load reports which tokens have verified KV in the pages, and the engine computes the KV of
 *   the others. A cache can therefore save time, but never change an answer.
 * - No call between attach and detach blocks on I/O or on a copy. Loads and stores are operations. A ticket is the
 *   number of an operation until the engine has polled it as finished. Every operation finishes, whatever fails. Until
 *   then the pages that it owns stay allocated, and the engine does not write to them.
 * - Calls never overlap: all of them come from the thread that runs the engine. Only `stats` may be called by any
 *   thread at any time. Another thread may call the copier's functions at the same time (kv_copier.threads).
 * - If the port is NULL, the engine runs without a cache. That costs one branch per request and per step. */
#ifndef ENG_KV_PORT_H
#define ENG_KV_PORT_H

#include "base/dtype.h"
#include "base/err.h"
#include "base/hash.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Geometry of the KV pool, published by the backend; the engine adds `model` before it attaches a cache. A page holds K
 * and V of one block for all layers, in the order [layer][K, V][kv head][token][head_dim]. All members but n_pages are
 * part of a chunk's identity: a cache never loads KV that was stored under another geometry or model. */
struct kv_geom {
    int n_layers, n_kv_heads, head_dim; /* head_dim elements are a multiple of 8 bytes */
    int block_size;           /* tokens of a block, and so of a page */
    enum km_dtype dtype;      /* of every element */
    int layout;               /* number of the order within a page: 1 is the order above; every other order needs a
                                 number of its own */
    size_t page_bytes;        /* n_layers * 2 * n_kv_heads * block_size * head_dim * sizeof(dtype) */
    int n_pages;              /* pages of the pool */
    double rope_theta;
    struct km_digest model;   /* fingerprint of the weights (mdl_fingerprint); 0 until a cache is attached */
    char numerics[24];        /* name of the kernels that compute KV, such as "cpu-avx2" or "cuda-sm90". Kernels that
                                 may round differently have different names */
};

/* One page of a copy between the KV pool and host memory. */
struct kv_copy {
    int32_t page;             /* in the pool, [0, n_pages) */
    int32_t n_tokens;         /* leading tokens of the page that are valid, 1 to block_size. A copy writes all bytes of
                                 its destination; in host memory, those of the other tokens are the page's, or 0 */
    void *host;               /* [page_bytes]; not used if the copier has no payload */
    uint64_t seed;            /* of the page's checksum (base/page_sum.h) */
    uint64_t sum;             /* out: the checksum of the page in the pool, set when poll returns 1. It is computed
                                 before a copy to the host, and after a copy to the page */
};
enum kv_dir { KV_TO_HOST /* D2H: a store */, KV_TO_PAGE /* H2D: a load */ };
enum { KV_COPY_MOST = 256 }; /* most pages of one call of copy */

/* The backend's copy functions, which the cache may call between attach and detach. Copies in the two directions do not
 * wait for each other; copies in one direction run in the order of submission. */
struct kv_copier {
    void *self;
    /* Submits the copies of n pages, at most KV_COPY_MOST, which get one ticket. `after`: a fence; 0: none. The caller
     * keeps c[n] and the host memory valid until the copies have ended. KM_ELIMIT: too many copies are in flight, and
     * nothing was submitted; try again after a poll. Any other value < 0: the copies failed, and none of them is in
     * flight; their destination may be overwritten in part. Never blocks. */
    int (*copy)(void *self, enum kv_dir dir, struct kv_copy *c, int n, uint64_t after, uint64_t *ticket,
                struct km_err *err);
    /* 1: complete, and c[n].sum is set; 0: pending; < 0: failed. After 1 and < 0 the ticket must not be polled again.
     * Tickets may be polled in any order. */
    int (*poll)(void *self, uint64_t ticket);
    /* Registers (pins) the host memory [size] at p, which is a multiple of the machine's page size, so that copies run
     * at full speed. Copies of memory that is not registered work, but may be slow. May be called by any thread. After
     * a failure, host_unregister must not be called. Both NULL: the device has no registration. */
    int (*host_register)(void *self, void *p, size_t size, struct km_err *err);
    void (*host_unregister)(void *self, void *p, size_t size);
    int64_t (*now)(void *self); /* the backend's clock, in ns */
    bool threads; /* copy, poll and now may be called by another thread while the engine's thread runs steps. False:
                     they may be called only within calls of the port, as a backend with a simulated clock needs */
    bool payload; /* false: the backend simulates a device. Copies move no bytes and have sum 0 */
};

struct kv_seq;

/* The result of a load. */
struct kv_result {
    int good_from, good_to;   /* tokens [good_from, good_to) have verified KV in their pages; equal if nothing was
                                 loaded. The engine computes the tokens before and after them */
};

/* Counters and gauges. The members are sums over all tiers; each row belongs to one tier. */
enum { KV_STAT_ROWS = 64 };
struct kv_stat_row {
    const char *tier;         /* such as "dram" or "disk"; a string literal */
    const char *name;         /* such as "hit_tokens"; a string literal, [a-z_] */
    const char *help;         /* one sentence, for /metrics; a string literal */
    bool gauge;               /* false: a counter, which never falls */
    double value;
};
struct kv_port_stats {
    int64_t lookups;                   /* lookups that gave an answer */
    int64_t lookup_tokens, hit_tokens; /* sums over these lookups: tokens that the KV pool did not have, and tokens
                                          that the cache found among them */
    int64_t loaded_tokens;             /* tokens that loads have verified in pages */
    int64_t stored_tokens;             /* tokens of chunks whose store succeeded, so that lookups find them */
    int64_t failed_loads;              /* loads of which at least one chunk was missing, wrong or late */
    int64_t corrupt_chunks;            /* chunks dropped because a checksum did not match */
    int64_t evicted_chunks;            /* chunks dropped from host memory to free a slot */
    int64_t chunks, bytes, capacity;   /* now: chunks in host memory, host bytes in use, host bytes in all */
    int64_t load_ns, store_ns;         /* ns from the call to the end of the ticket, summed over loads or stores */
    int n_rows;
    struct kv_stat_row rows[KV_STAT_ROWS];
};

enum { KV_NOT_YET = -100 }; /* lookup: ask again later */

struct kv_port {
    void *self;
    int chunk_size; /* tokens of a chunk; a multiple of the engine's block size */

    /* Binds the cache to an engine's pool. The cache copies *geom and *copier, and returns before its memory is
     * allocated: it allocates in the background, and stores chunks as memory becomes available. Fails if the chunk size
     * does not fit the geometry, or more memory is asked for than the machine has. */
    int (*attach)(void *self, const struct kv_geom *geom, const struct kv_copier *copier, struct km_err *err);
    /* Unbinds the cache. Ends every operation: no copy reads or writes pages any more, and no ticket is valid.
     * The engine closes its sequences before. Returns within two seconds, even if a tier does not answer. */
    void (*detach)(void *self);

    /* Opens a sequence for a request that has just arrived. tokens[0, n) is the prompt, which is read during the call
     * only. A cache whose lookups need time starts the search here. The salt (NULL: none, which differs from "") enters
     * the root of the key chain, so requests with different salts share no chunks. Returns NULL if there is no memory;
     * the engine then computes the request without the cache. */
    struct kv_seq *(*open)(void *self, const char *salt, const int32_t *tokens, int n);

    /* Returns the length of the longest prefix of tokens[0, n) that the cache can load, 0 for none, and pins its
     * chunks. The length may be any number of tokens: the last chunk may be a partial one. KV_NOT_YET: the answer is
     * not known yet, and nothing is pinned. `have`: leading tokens that the KV pool has already, for the statistics.
     * The pins last until a load takes them over, a store offers all the pinned tokens, or the sequence is looked up
     * again or closed. tokens is read during the call only. */
    int (*lookup)(struct kv_seq *s, const int32_t *tokens, int n, int have);

    /* The estimated time, in ns, until a load of tokens [from, to) of the last lookup would be finished if it were
     * submitted now, behind the loads that are open. */
    int64_t (*load_ns)(struct kv_seq *s, int from, int to);

    /* Submits the load of tokens [from, to) into their pages, from the last one to the first. `from` is a multiple of
     * the block size; `to` is not more than the last lookup returned, and may end within a page, of which all bytes are
     * then written. block_table[i] is the page of tokens [i * block_size, (i + 1) * block_size); the table is copied.
     * `after`: a fence, the ticket of the last submitted step, because steps in flight may still use the pages. < 0:
     * the load failed and has no ticket.
     * If `from` equals `to`, the engine needs no token of the lookup: nothing is loaded, the pins are dropped, and
     * *ticket is 0. */
    int (*load)(struct kv_seq *s, int from, int to, const int32_t *block_table, uint64_t after, uint64_t *ticket);

    /* Tells an open load to start no copy of tokens before `upto`. Returns the first token that the load still owns, a
     * multiple of the block size. It is less than `upto` if copies of earlier tokens are in flight, or at the end of
     * the load. The pages of the tokens before it belong to the engine again at once; no copy writes to them. The load
     * finishes when the copies of its tokens have ended. With `upto` 0 nothing changes. */
    int (*cut)(void *self, uint64_t ticket, int upto);

    /* Offers tokens [0, n), whose KV is in their pages. The cache stores the chunks among them that it does not hold
     * yet, and may decline any of them. The first n_prompt tokens are the request's prompt and the others were
     * generated. tokens and block_table are read during the call only. `after`: a fence, the ticket of the last step
     * that wrote to the pages. *from: the store reads only pages of tokens [*from, n), and only until it is finished,
     * which is when its copies have ended. If n is within a page, the engine may write the page's other tokens
     * meanwhile. Ticket 0: the store reads no page. < 0: the store failed and has no ticket. */
    int (*store)(struct kv_seq *s, const int32_t *tokens, int n, int n_prompt, const int32_t *block_table,
                 uint64_t after, uint64_t *ticket, int *from);

    /* Returns 0 while the operation is pending, and 1 when it is finished. The ticket must not be used again after 1.
     * *out: the result of a load; out is NULL for a store. */
    int (*poll)(void *self, uint64_t ticket, struct kv_result *out);

    /* Drops the pins and frees the sequence. Its operations go on, and their tickets remain valid. */
    void (*close)(struct kv_seq *s);

    /* Drops every chunk, in all tiers, that is neither pinned nor part of an operation. Returns 0 when this is done, 1
     * if a tier has not done it yet (call again later), and < 0 if chunks remain because they are in use or a tier
     * failed. */
    int (*reset)(void *self);
    void (*stats)(void *self, struct kv_port_stats *out);
};

#endif
