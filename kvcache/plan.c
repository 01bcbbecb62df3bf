/* The memory that the layer takes, from the functions by which pool, index and tiers compute what they allocate. */
#include "kvcache/chunks.h"
#include "kvcache/kvcache.h"
#include "kvcache/pool.h"

#include <limits.h>

int kvc_plan(const struct kvc_config *c, const struct kv_geom *geom, struct kvc_plan *out, struct km_err *err)
{
    struct kvc_geometry g;
    *out = (struct kvc_plan){.slots = 0};
    int rc = kvc_geometry_init(&g, geom, c->chunk_size, true, err);
    if (rc || !kvc_config_on(c))
        return rc;
    out->payload_bytes = g.payload_bytes;
    out->header_bytes = g.header_bytes;
    int64_t slot = (int64_t)kvc_pool_slot_bytes(&g), n = c->max_local_cpu / slot;
    if (n < 1)
        return km_fail(err, KM_EINVAL,
                       "the cache layer may take %s of host memory, but one chunk of %d tokens of this model is %s; "
                       "give it more memory (dram= of --kv-cache, or max_local_cpu_size), or lower --chunk-size",
                       km_size_text(c->max_local_cpu).s, c->chunk_size, km_size_text(slot).s);
    out->slots = n < INT_MAX / 4 ? (int)n : INT_MAX / 4;
    out->index_bytes = kvc_chunks_bytes(out->slots);
    for (int i = 0; i < c->n_tiers; i++)
        if (c->tier[i].ops->plan)
            c->tier[i].ops->plan(c->tier[i].config, &g, &out->tier[i]);
    return 0;
}
