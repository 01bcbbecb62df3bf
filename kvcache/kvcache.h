/* The KV-cache layer: chunks of KV, stored by key outside the engine's KV pool.
 *
 * A `kvc` is one store of chunks: the key chain, host memory with its index, and the tiers below it. Several engines of
 * one process may share a store; each uses it through a port of its own (engine/kv_port.h), behind which a `kvc_view`
 * (view.h) keeps what belongs to one engine. The layer knows no CUDA, HTTP or model.
 *
 * A chunk's key is SHA-256 over the model's fingerprint, dtype, layout, shape, RoPE, numerics, chunk size and salt,
 * chained over the tokens. A chunk's header has its token ids and a checksum of each page. A lookup compares the ids,
 * and a load verifies the checksum of every page where it lands, before the engine uses the KV. */
#ifndef KVC_KVCACHE_H
#define KVC_KVCACHE_H

#include "base/buf.h"
#include "base/err.h"
#include "engine/kv_port.h"
#include "kvcache/tier.h"

#include <stdbool.h>
#include <stdint.h>

/* Which chunk is evicted first: under LRU the one that was not used for the longest time, under FIFO the one that was
 * stored first. */
enum kvc_policy { KVC_LRU, KVC_FIFO };

struct kvc_config {
    int chunk_size;         /* tokens of a chunk; a multiple of the engine's block size. Default 256 */
    bool local_cpu;         /* keep chunks in host memory (the DRAM tier). False: it is used for staging only.
                               Default true */
    int64_t max_local_cpu;  /* bytes of host memory. Default 5 GiB */
    bool save_decode;       /* also store chunks that contain generated tokens. Default false */
    bool save_unfull;       /* also store the partial last chunk of a prompt. Default false */
    enum kvc_policy policy; /* default KVC_LRU */
    int64_t throttle;       /* bytes per second of all loads from host memory; 0: no limit. For experiments that ask
                               what a slower link would save */
    int n_tiers;            /* tiers below host memory, in the order in which a lookup asks them */
    struct kvc_tier_config tier[KVC_TIERS_MOST];
};

struct kvc_config kvc_defaults(void);
/* Reads LMCache's YAML file into *c. Members whose key is not in the file do not change. A key that LMCache knows and
 * this version does not serve adds a line to *warnings. An unknown key is an error that names the nearest known one. */
int kvc_config_yaml(const char *path, struct kvc_config *c, struct km_buf *warnings, struct km_err *err);
/* Reads a one-line specification: "none" sets *off; otherwise a list of tiers, such as "dram=50GiB,disk=/data:200GiB",
 * changes *c. Without a dram= element, KVC_STAGING bytes of host memory are used, for staging only. */
int kvc_config_spec(const char *spec, struct kvc_config *c, bool *off, struct km_err *err);
#define KVC_STAGING ((int64_t)2 << 30)
/* Appends the forms that an element of the specification may have, such as "dram=SIZE, disk=DIR:SIZE". */
void kvc_config_usage(struct km_buf *out);
/* True if the layer would keep chunks anywhere. */
static inline bool kvc_config_on(const struct kvc_config *c)
{
    return c->local_cpu || c->n_tiers;
}
/* Appends a description for results and logs, such as "dram=5GiB, disk=/data/kv:200GiB, chunk 256". */
void kvc_describe(const struct kvc_config *c, struct km_buf *out);

/* The memory that the layer takes for an engine with a KV pool of this geometry. */
struct kvc_plan {
    size_t payload_bytes, header_bytes;        /* of one whole chunk */
    int slots;                                 /* chunks that host memory has room for */
    int64_t index_bytes;                       /* host memory of the chunk index */
    struct kvc_tier_plan tier[KVC_TIERS_MOST]; /* [c->n_tiers] */
};
/* Plans without allocating. KM_EINVAL: the chunk size does not fit the geometry, or not one chunk fits in host
 * memory. */
int kvc_plan(const struct kvc_config *c, const struct kv_geom *geom, struct kvc_plan *out, struct km_err *err);

struct kvc;

/* Allocates no chunk memory yet: that happens when an engine attaches. */
int kvc_open(struct kvc **out, const struct kvc_config *c, struct km_err *err);
/* Every engine that has a port of k must be closed. */
void kvc_free(struct kvc *k);
/* Makes a port for one engine. k owns what is behind the port, and must outlive the engine. */
int kvc_port(struct kvc *k, struct kv_port *out, struct km_err *err);

/* Waits until host memory has its final size, no operation of an engine is open, and no chunk is on its way to a tier,
 * at most `seconds`: true if so. Operations of simulated devices are not waited for. For benchmarks and tests. */
bool kvc_settle(struct kvc *k, double seconds);

/* False while host memory grows. True: it has its final size; *why is the reason if it is smaller than configured or
 * not all registered with the device, else why->code is 0. Any thread. */
bool kvc_memory_ready(struct kvc *k, struct km_err *why);

/* Checks index, order list, reference counts, tickets and budget, for tests: 0, or KM_EINVAL and the first broken
 * invariant. */
int kvc_check(struct kvc *k, struct km_err *err);

#endif
