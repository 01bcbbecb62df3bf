/* The hashed bytes are a defined sequence, not C structs, so that every tier and machine computes the same keys:
 * integers are 64-bit little-endian, token ids are 32-bit little-endian. The salt is hashed last, after a byte that
 * distinguishes "no salt" from an empty salt. */
#include "kvcache/keys.h"

#include <string.h>

static void add_u64(struct km_sha *h, uint64_t v)
{
    uint8_t b[8];
    for (int i = 0; i < 8; i++)
        b[i] = (uint8_t)(v >> 8 * i);
    km_sha_add(h, b, sizeof b);
}

int kvc_keys_open(struct kvc_keys *k, const struct kvc_geometry *g, struct km_err *err)
{
    static const char name[] = "kvmark chunk key";
    *k = (struct kvc_keys){.geometry = g, .key_bytes = 32};
    int rc = km_sha_new(&k->sha, err);
    if (rc)
        return rc;
    const struct kv_geom *pool = &g->pool;
    uint64_t theta;
    memcpy(&theta, &pool->rope_theta, sizeof theta);
    km_sha_begin(k->sha);
    km_sha_add(k->sha, name, sizeof name);
    add_u64(k->sha, KVC_FORMAT);
    km_sha_add(k->sha, pool->model.b, sizeof pool->model.b);
    add_u64(k->sha, (uint64_t)pool->dtype);
    add_u64(k->sha, (uint64_t)pool->layout);
    add_u64(k->sha, (uint64_t)pool->block_size); /* a chunk is stored page by page */
    add_u64(k->sha, (uint64_t)pool->n_layers);
    add_u64(k->sha, (uint64_t)pool->n_kv_heads);
    add_u64(k->sha, (uint64_t)pool->head_dim);
    add_u64(k->sha, theta);
    const size_t n_numerics = strnlen(pool->numerics, sizeof pool->numerics);
    add_u64(k->sha, n_numerics); /* kernels that round differently share no chunks */
    km_sha_add(k->sha, pool->numerics, n_numerics);
    add_u64(k->sha, (uint64_t)g->chunk_size);
    k->fingerprint = km_sha_end(k->sha);
    return 0;
}

void kvc_keys_close(struct kvc_keys *k)
{
    km_sha_free(k->sha);
    k->sha = NULL;
}

struct km_digest kvc_keys_root(struct kvc_keys *k, const char *salt)
{
    km_sha_begin(k->sha);
    km_sha_add(k->sha, k->fingerprint.b, sizeof k->fingerprint.b);
    km_sha_add(k->sha, salt ? "s" : "-", 1);
    if (salt)
        km_sha_add(k->sha, salt, strlen(salt));
    return km_sha_end(k->sha);
}

struct km_digest kvc_keys_next(struct kvc_keys *k, const struct km_digest *parent, const int32_t *ids, int n)
{
    km_sha_begin(k->sha);
    km_sha_add(k->sha, parent->b, sizeof parent->b);
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
    km_sha_add(k->sha, ids, (size_t)n * sizeof *ids);
#else
    for (int i = 0; i < n; i++) {
        uint32_t v = __builtin_bswap32((uint32_t)ids[i]);
        km_sha_add(k->sha, &v, sizeof v);
    }
#endif
    struct km_digest d = km_sha_end(k->sha);
    memset(d.b + k->key_bytes, 0, sizeof d.b - (size_t)k->key_bytes);
    return d;
}
