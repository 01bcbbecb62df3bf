/* The KV-cache layer: chunks of a fixed number of tokens, kept by key outside the engine's pool.
 *
 * A `kvc` is one cache: a key chain, an index, a byte budget and its tiers. It knows pages only through
 * the engine's port (engine/kv_port.h): no CUDA, no HTTP, no model. A chunk's key is SHA-256 over the
 * model's fingerprint, dtype, layout, RoPE, chunk size and salt, then chained over the tokens; a stored
 * chunk also keeps its token ids and a checksum, and both are compared before a load counts as good. */
#ifndef KVC_KVCACHE_H
#define KVC_KVCACHE_H

#include "base/buf.h"
#include "base/err.h"
#include "engine/kv_port.h"

#include <stdbool.h>
#include <stdint.h>

enum kvc_policy { KVC_LRU, KVC_FIFO };

struct kvc_config {
    int chunk_size;            /* tokens: 256 */
    bool local_cpu;            /* the DRAM tier: true */
    int64_t max_local_cpu;     /* bytes: 5 GiB */
    bool save_decode;          /* keep chunks completed while decoding: false */
    enum kvc_policy policy;
};

struct kvc_config kvc_defaults(void);
/* LMCache's YAML as it is. Keys we do not serve yet are listed in *warnings (one a line); unknown ones are
 * errors with the nearest name. */
int kvc_config_yaml(const char *path, struct kvc_config *c, struct km_buf *warnings, struct km_err *err);
/* "none" sets *off; else a list such as "dram=50GiB". */
int kvc_config_spec(const char *spec, struct kvc_config *c, bool *off, struct km_err *err);
/* "dram=5GiB, chunk 256": for results and logs. */
void kvc_describe(const struct kvc_config *c, struct km_buf *out);

struct kvc;

/* Memory is taken when an engine attaches. */
int kvc_open(struct kvc **out, const struct kvc_config *c, struct km_err *err);
void kvc_free(struct kvc *k);
/* The port to hand to eng_open; it borrows k. */
void kvc_port(struct kvc *k, struct kv_port *out);

/* Time spent on checksums so far, summed over the threads that compute them. */
int64_t kvc_checksum_ns(const struct kvc *k);

/* Walks index, LRU list, pins and bytes: 0, or the first broken invariant. For tests. */
int kvc_check(const struct kvc *k, struct km_err *err);

#endif
