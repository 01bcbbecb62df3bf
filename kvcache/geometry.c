#include "kvcache/geometry.h"

#include "kvcache/header.h"

#include <math.h>
#include <stdbool.h>

/* The bytes of a page by its shape; false if they do not fit a size_t. */
static bool page_bytes(const struct kv_geom *p, size_t *out)
{
    const int factor[] = {p->n_layers, p->n_kv_heads, p->head_dim, p->block_size};
    *out = 2 * km_dtype_size(p->dtype); /* one element of K and one of V */
    for (int i = 0; i < 4; i++)
        if (__builtin_mul_overflow(*out, (size_t)factor[i], out))
            return false;
    return true;
}

int kvc_geometry_init(struct kvc_geometry *g, const struct kv_geom *pool, int chunk_size, bool payload,
                      struct km_err *err)
{
    if (pool->n_layers < 1 || pool->n_kv_heads < 1 || pool->head_dim < 1 || pool->block_size < 1 ||
        !isfinite(pool->rope_theta))
        return km_fail(err, KM_EINVAL,
                       "the engine's KV shape is impossible: %d layers, %d KV heads of %d, blocks of %d, RoPE theta %g",
                       pool->n_layers, pool->n_kv_heads, pool->head_dim, pool->block_size, pool->rope_theta);
    if (chunk_size < 1 || chunk_size > KVC_CHUNK_MOST || chunk_size % pool->block_size)
        return km_fail(err, KM_EINVAL,
                       "chunk_size %d is not a multiple of the engine's block size %d from %d to %d; use such a "
                       "chunk_size, or another block size",
                       chunk_size, pool->block_size, pool->block_size, KVC_CHUNK_MOST);
    const size_t row = (size_t)pool->head_dim * km_dtype_size(pool->dtype);
    if (row % 8)
        return km_fail(err, KM_EINVAL,
                       "a row of %d elements in %s has %zu bytes, but checksums need a multiple of 8 bytes; run this "
                       "model without a cache",
                       pool->head_dim, km_dtype_name(pool->dtype), row);
    *g = (struct kvc_geometry){.pool = *pool, .chunk_size = chunk_size, .chunk_pages = chunk_size / pool->block_size,
                               .token_words = (uint32_t)(row / 8), .payload = payload};
    g->header_bytes = kvc_header_bytes(chunk_size, g->chunk_pages);
    size_t need;
    if (!page_bytes(pool, &need) || need != pool->page_bytes ||
        __builtin_mul_overflow(need, (size_t)g->chunk_pages, &g->payload_bytes) || g->payload_bytes > INT64_MAX / 2)
        return km_fail(err, KM_EINVAL,
                       "the engine's pages are %zu bytes, which is not what %d layers, %d KV heads of %d, blocks of %d "
                       "and %s need",
                       pool->page_bytes, pool->n_layers, pool->n_kv_heads, pool->head_dim, pool->block_size,
                       km_dtype_name(pool->dtype));
    return 0;
}
