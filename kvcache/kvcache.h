/* The KV-cache layer: chunks of KV, kept by key in host memory outside the engine's pool.
 *
 * A `kvc` is one cache. It owns a key chain, an index of chunks and the tiers that hold their bytes within a budget. It
 * sees the engine only through the port (engine/kv_port.h): no CUDA, no HTTP, no model. A cache serves one engine.
 *
 * A chunk's key is SHA-256 over the model's fingerprint, dtype, layout, shape, RoPE, chunk size and salt, chained over
 * the tokens. A stored chunk also keeps its token ids and a checksum of its bytes. A lookup compares the ids and a load
 * verifies the checksum, before the engine uses the KV. */
#ifndef KVC_KVCACHE_H
#define KVC_KVCACHE_H

#include "base/buf.h"
#include "base/err.h"
#include "engine/kv_port.h"

#include <stdbool.h>
#include <stdint.h>

/* Which chunk is evicted first: the one not used for the longest time, or the one stored first. */
enum kvc_policy { KVC_LRU, KVC_FIFO };

struct kvc_config {
    int chunk_size;        /* tokens of a chunk; a multiple of the engine's block size. Default 256 */
    bool local_cpu;        /* the DRAM tier is used. Default true */
    int64_t max_local_cpu; /* bytes of the DRAM tier. Default 5 GiB */
    bool save_decode;      /* chunks that end in generated tokens are stored too. Default false */
    enum kvc_policy policy;
};

struct kvc_config kvc_defaults(void);
/* Reads LMCache's YAML file into *c, which keeps the value of every key that the file leaves out. A key
 * that LMCache knows and this version does not serve is a line of *warnings. An unknown key is an error that names the
 * nearest one. */
int kvc_config_yaml(const char *path, struct kvc_config *c, struct km_buf *warnings, struct km_err *err);
/* Reads a one-line specification: "none" sets *off, a list such as "dram=50GiB" names the tiers. */
int kvc_config_spec(const char *spec, struct kvc_config *c, bool *off, struct km_err *err);
/* "dram=5GiB, chunk 256": for results and logs. */
void kvc_describe(const struct kvc_config *c, struct km_buf *out);

struct kvc;

/* Allocates no chunk memory yet: that happens when an engine attaches. */
int kvc_open(struct kvc **out, const struct kvc_config *c, struct km_err *err);
void kvc_free(struct kvc *k);
/* The port for eng_open. It borrows k, which must outlive the engine. */
void kvc_port(struct kvc *k, struct kv_port *out);

/* Time spent on checksums so far, in ns, summed over the threads that compute them. */
int64_t kvc_checksum_ns(const struct kvc *k);

/* Walks index, order list, references and bytes: 0, or KM_EINVAL with the first broken invariant. For tests. */
int kvc_check(const struct kvc *k, struct km_err *err);

#endif
