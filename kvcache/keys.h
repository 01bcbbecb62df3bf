/* The key chain: which chunk of KV belongs to which tokens.
 *
 * A root stands for everything that shapes KV besides the tokens: format, model, dtype, layout, RoPE, chunk size
 * and the request's salt. Key 0 is SHA-256 of (root, tokens of chunk 0), key i of (key i-1, tokens of chunk i):
 * equal keys mean equal prefixes under the same model. Each chunk is hashed once per sequence. */
#ifndef KVC_KEYS_H
#define KVC_KEYS_H

#include "base/err.h"
#include "base/hash.h"
#include "engine/kv_port.h"

#include <stdint.h>

#define KVC_FORMAT 1 /* of keys and payload; a change of either makes old chunks unreachable */

struct kvc_keys {
    struct km_sha *sha;
    struct km_digest base; /* the root without a salt's part */
    int chunk_size;
    int key_bytes;            /* leading bytes of a key that count: 32; tests lower it to force collisions */
};

int kvc_keys_open(struct kvc_keys *k, const struct kv_geom *g, int chunk_size, struct km_err *err);
void kvc_keys_close(struct kvc_keys *k);

struct km_digest kvc_keys_root(struct kvc_keys *k, const char *salt); /* NULL: none, which is not "" */
/* ids: [chunk_size] */
struct km_digest kvc_keys_next(struct kvc_keys *k, const struct km_digest *parent, const int32_t *ids);

#endif
