/* Keys are bytes in a stated order, not C structs, so that every tier and machine computes the same ones: integers
 * are 64-bit little-endian, the salt comes last behind a mark that tells "none" from empty. */
#include "kvcache/keys.h"

#include <string.h>

static void add_u64(struct km_sha *h, uint64_t v)
{
    uint8_t b[8];
    for (int i = 0; i < 8; i++)
        b[i] = (uint8_t)(v >> 8 * i);
    km_sha_add(h, b, sizeof b);
}

int kvc_keys_open(struct kvc_keys *k, const struct kv_geom *g, int chunk_size, struct km_err *err)
{
    static const char name[] = "kvmark chunk key";
    *k = (struct kvc_keys){.chunk_size = chunk_size, .key_bytes = 32};
    int rc = km_sha_new(&k->sha, err);
    if (rc)
        return rc;
    uint64_t theta;
    memcpy(&theta, &g->rope_theta, sizeof theta);
    km_sha_begin(k->sha);
    km_sha_add(k->sha, name, sizeof name);
    add_u64(k->sha, KVC_FORMAT);
    km_sha_add(k->sha, g->model.b, sizeof g->model.b);
    add_u64(k->sha, (uint64_t)g->dtype);
    add_u64(k->sha, (uint64_t)g->layout);
    add_u64(k->sha, (uint64_t)g->block_size); /* the order of bytes within a chunk depends on it */
    add_u64(k->sha, (uint64_t)g->n_layers);
    add_u64(k->sha, (uint64_t)g->n_kv_heads);
    add_u64(k->sha, (uint64_t)g->head_dim);
    add_u64(k->sha, theta);
    add_u64(k->sha, (uint64_t)chunk_size);
    k->base = km_sha_end(k->sha);
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
    km_sha_add(k->sha, k->base.b, sizeof k->base.b);
    km_sha_add(k->sha, salt ? "s" : "-", 1);
    if (salt)
        km_sha_add(k->sha, salt, strlen(salt));
    return km_sha_end(k->sha);
}

struct km_digest kvc_keys_next(struct kvc_keys *k, const struct km_digest *parent, const int32_t *ids)
{
    km_sha_begin(k->sha);
    km_sha_add(k->sha, parent->b, sizeof parent->b);
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
    km_sha_add(k->sha, ids, (size_t)k->chunk_size * sizeof *ids);
#else
    for (int i = 0; i < k->chunk_size; i++) {
        uint32_t v = __builtin_bswap32((uint32_t)ids[i]);
        km_sha_add(k->sha, &v, sizeof v);
    }
#endif
    struct km_digest d = km_sha_end(k->sha);
    memset(d.b + k->key_bytes, 0, sizeof d.b - (size_t)k->key_bytes);
    return d;
}
