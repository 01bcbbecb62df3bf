/* The key chain: which chunk of KV belongs to which tokens.
 *
 * The root of a chain identifies everything that determines KV besides the tokens: format, model, dtype, layout, shape,
 * RoPE, numerics, chunk size and the request's salt. Key 0 is SHA-256 of (root, tokens of chunk 0), key i is SHA-256 of
 * (key i - 1, tokens of chunk i). Equal keys therefore mean equal prefixes under the same model.
 *
 * A partial last chunk has fewer than chunk_size tokens. Its key is the hash over its own tokens, so it differs from
 * the keys of all longer and shorter chunks. No chunk follows a partial one. */
#ifndef KVC_KEYS_H
#define KVC_KEYS_H

#include "base/err.h"
#include "base/hash.h"
#include "kvcache/geometry.h"

#include <stdint.h>

#define KVC_FORMAT 2 /* version of keys and stored bytes; it is part of the root, so versions share no chunks */

struct kvc_keys {
    struct km_sha *sha;
    const struct kvc_geometry *geometry;
    struct km_digest fingerprint; /* hash of all of the above except the salt; tiers and headers store it */
    int key_bytes;         /* leading bytes of a key that are used: 32; tests use less, to force collisions */
};

/* Borrows g. */
int kvc_keys_open(struct kvc_keys *k, const struct kvc_geometry *g, struct km_err *err);
void kvc_keys_close(struct kvc_keys *k);

struct km_digest kvc_keys_root(struct kvc_keys *k, const char *salt); /* NULL: no salt, which differs from "" */
/* The key after parent (a key or a root) of a chunk with token ids [n], n from 1 to chunk_size. */
struct km_digest kvc_keys_next(struct kvc_keys *k, const struct km_digest *parent, const int32_t *ids, int n);

#endif
