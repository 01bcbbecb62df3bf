/* The KV-cache layer: chunks of KV, stored by key in host memory outside the engine's KV pool.
 *
 * A `kvc` is one cache, for one engine. It owns the key chain, the index of chunks and the tier that holds their bytes
 * within a budget. The engine uses a cache through its port (engine/kv_port.h); the cache knows no CUDA, HTTP or model.
 *
 * A chunk's key is SHA-256 over the model's fingerprint, dtype, layout, shape, RoPE, chunk size and salt, chained over
 * the tokens. The cache also stores a chunk's token ids and a checksum of its bytes. A lookup compares the ids and a
 * load verifies the checksum, before the engine uses the KV. */
#ifndef KVC_KVCACHE_H
#define KVC_KVCACHE_H

#include "base/buf.h"
#include "base/err.h"
#include "engine/kv_port.h"

#include <stdbool.h>
#include <stdint.h>

/* Which chunk is evicted first: under LRU the one that was not used for the longest time, under FIFO the one that was
 * stored first. */
enum kvc_policy { KVC_LRU, KVC_FIFO };

struct kvc_config {
    int chunk_size;         /* tokens of a chunk; a multiple of the engine's block size. Default 256 */
    bool local_cpu;         /* use the DRAM tier. Default true */
    int64_t max_local_cpu;  /* bytes of the DRAM tier. Default 5 GiB */
    bool save_decode;       /* also store chunks that contain generated tokens. Default false */
    enum kvc_policy policy; /* default KVC_LRU */
};

struct kvc_config kvc_defaults(void);
/* Reads LMCache's YAML file into *c. Members whose key is not in the file do not change. A key that LMCache knows and
 * this version does not serve adds a line to *warnings. An unknown key is an error that names the nearest known one. */
int kvc_config_yaml(const char *path, struct kvc_config *c, struct km_buf *warnings, struct km_err *err);
/* Reads a one-line specification: "none" sets *off; otherwise a list of tiers, such as "dram=50GiB", changes *c. */
int kvc_config_spec(const char *spec, struct kvc_config *c, bool *off, struct km_err *err);
/* Appends a description for results and logs, such as "dram=5GiB, chunk 256". */
void kvc_describe(const struct kvc_config *c, struct km_buf *out);

struct kvc;

/* Allocates no chunk memory yet: that happens when an engine attaches. */
int kvc_open(struct kvc **out, const struct kvc_config *c, struct km_err *err);
void kvc_free(struct kvc *k);
/* The port for eng_open. It borrows k, which must outlive the engine. */
void kvc_port(struct kvc *k, struct kv_port *out);

/* Time spent on checksums so far, in ns, summed over all threads. */
int64_t kvc_checksum_ns(const struct kvc *k);

/* Checks index, order list, reference counts, tickets and budget, for tests: 0, or KM_EINVAL and the first broken
 * invariant. */
int kvc_check(const struct kvc *k, struct km_err *err);

#endif
