/* The tier interface: a place below host memory where chunks are kept, such as a disk or a server.
 *
 * A tier moves whole chunks, each a header and a payload in host memory, and finds them by key. It has its files in
 * kvcache/tiers/, its name in kvcache/tiers.c, and a test. The layer owns everything else: host memory, checksums,
 * deadlines, the order of loads and stores, and the answers of lookups. DRAM is not a tier behind this interface: it is
 * the host memory (pool.h) through which the bytes of every tier pass.
 *
 * `struct kvc_tier_ops` is the table of functions of one kind of tier, `struct kvc_tier` one open instance, and `struct
 * kvc_io` one chunk in an operation.
 *
 * Rules:
 * - `submit`, `poll` and `clear` are called by the layer's transfer thread, or by one thread at a time if there is
 *   none. `submit` and `poll` never block. `lookup` and `stats` may be called by any thread at any time.
 * - A submitted kvc_io and its buffers belong to the tier until `poll` returns the kvc_io. A tier may return it late,
 *   or never: after its deadline (tier_io.h) the layer treats the operation as failed, and does not reuse the buffers
 *   before the tier has returned them.
 * - A tier may lose, delay, shorten or damage a chunk without harm: the layer compares the header with what was asked
 *   for, and each page's checksum after the copy to the KV pool.
 * - A failed PUT leaves no chunk under its key that GET would return in part. */
#ifndef KVC_TIER_H
#define KVC_TIER_H

#include "base/err.h"
#include "base/hash.h"
#include "kvcache/geometry.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum kvc_io_kind {
    KVC_GET,    /* reads the chunk; rc KM_ENOENT: the tier does not have it */
    KVC_PUT,    /* stores the chunk under its key; a chunk that exists already is success */
    KVC_EXISTS, /* rc 0 or KM_ENOENT; only for tiers without `lookup` */
    KVC_REMOVE  /* rc 0 if the chunk is gone */
};

struct kvc_io {
    enum kvc_io_kind kind;
    struct km_digest key;
    void *header;          /* [geometry.header_bytes], aligned to 4096; GET and PUT */
    void *payload;         /* aligned to 4096 if geometry.payload_bytes is a multiple of 4096, else to 64 */
    size_t payload_bytes;  /* PUT: the length. GET: the capacity, and then the length that was read */
    int rc;                /* set by the tier: 0 or < 0 */
    struct kvc_io *next;   /* in the list that poll returns, and in lists of the current owner */
    void *user;            /* for the layer */
};

struct kvc_tier;
struct kv_stat_row;

/* What a tier takes when it is open, for memory plans. */
struct kvc_tier_plan {
    int64_t host_bytes; /* host memory beside the layer's own, such as the index of a disk */
    int64_t capacity;   /* most bytes of headers and payloads that the tier keeps; 0: no limit, or not known */
};

/* One of LMCache's YAML keys. `set` parses the value and writes it to the tier's config. It returns 1 and changes
 * nothing if the value is for another tier that has the same key, such as another scheme of remote_url. */
struct kvc_tier_key {
    const char *key;
    int (*set)(void *config, const char *key, const char *value, struct km_err *err);
};

struct kvc_tier_ops {
    const char *name;        /* label in results and metrics, such as "disk" */
    const char *scheme;      /* how its element of --kv-cache begins, such as "disk=" or "redis://" */
    const char *usage;       /* the element's form, for help and errors, such as "disk=DIR:SIZE" */
    /* config: a plain struct, at most KVC_TIER_CONFIG bytes, which is copied with the configuration. */
    void (*defaults)(void *config);
    const struct kvc_tier_key *keys; /* [n_keys] */
    int n_keys;
    /* Reads the element of --kv-cache, without its scheme. */
    int (*parse)(void *config, const char *text, struct km_err *err);
    /* Sets *on if the config names a tier. KM_EINVAL if it is incomplete. */
    int (*enabled)(const void *config, bool *on, struct km_err *err);
    /* Writes a description for results and logs, such as "disk=/data/kv:200GiB", without passwords. */
    void (*describe)(const void *config, char *out, size_t size);
    /* Fills *out, which is 0, for chunks of this geometry; opens nothing. NULL: the tier has nothing to state. */
    void (*plan)(const void *config, const struct kvc_geometry *g, struct kvc_tier_plan *out);

    /* Opens the tier for chunks of this geometry and fingerprint (keys.h). Chunks stored under another fingerprint are
     * never found. Borrows g until close. May take time to read an index, but waits for a server for at most a
     * second. */
    int (*open)(struct kvc_tier **out, const void *config, const struct kvc_geometry *g,
                const struct km_digest *fingerprint, struct km_err *err);
    /* Frees the tier within a second. False: operations in flight may still use their buffers, so the layer must not
     * free the buffers. */
    bool (*close)(struct kvc_tier *t);

    /* Returns how many of the leading keys the tier has, and makes their chunks the newest, key 0 the newest of all.
     * NULL: the tier has no index of its own, and answers KVC_EXISTS instead. */
    int (*lookup)(struct kvc_tier *t, const struct km_digest *keys, int n);
    /* Submits n operations. The tier owns each of them until poll returns it. */
    void (*submit)(struct kvc_tier *t, struct kvc_io *const *io, int n);
    /* Returns a list of finished operations, in any order, or NULL. */
    struct kvc_io *(*poll)(struct kvc_tier *t);
    /* Removes all chunks of this fingerprint that are not part of an operation. Loads and stores wait meanwhile. */
    int (*clear)(struct kvc_tier *t, struct km_err *err);
    /* Fills rows (name, help, gauge, value) and returns their number, at most `most`. */
    int (*stats)(struct kvc_tier *t, struct kv_stat_row *rows, int most);
};

enum { KVC_TIERS_MOST = 8, KVC_TIER_CONFIG = 2048 };

/* A configured tier. Plain data, so that a configuration can be copied. */
struct kvc_tier_config {
    const struct kvc_tier_ops *ops;
    _Alignas(16) char config[KVC_TIER_CONFIG];
};

/* Kind i of the registry (kvcache/tiers.c); NULL after the last. */
const struct kvc_tier_ops *kvc_tier_at(int i);

extern const struct kvc_tier_ops kvc_tier_disk; /* for tests and benchmarks of the disk tier */

#endif
