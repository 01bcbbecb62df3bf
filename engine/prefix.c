/* A hash table with one node per page: the keys are an array indexed by page, and each bucket is a chain of page ids.
 * It never grows, and allocates nothing after px_new. SHA-256 is uniform, so the first bytes of a key select its
 * bucket. */
#include "engine/prefix.h"

#include "base/mem.h"

#include <string.h>

struct px {
    int n_pages, block_size, n_keyed;
    uint32_t mask;
    int32_t *bucket;        /* [mask + 1], the first page or -1 */
    int32_t *next;          /* [n_pages], the next page of the bucket or -1 */
    bool *keyed;            /* [n_pages] */
    struct km_digest *key;  /* [n_pages] */
    struct km_sha *sha;
};

static int32_t *bucket_of(const struct px *x, const struct km_digest *key)
{
    uint32_t h;
    memcpy(&h, key->b, sizeof h);
    return &x->bucket[h & x->mask];
}

int px_new(struct px **out, int n_pages, int block_size, struct km_err *err)
{
    struct px *x = km_calloc(1, sizeof *x);
    if (!x)
        return km_fail(err, KM_ENOMEM, "no memory for the prefix index");
    uint32_t n = 16;
    while (n < (uint32_t)n_pages)
        n *= 2;
    x->n_pages = n_pages;
    x->block_size = block_size;
    x->mask = n - 1;
    x->bucket = km_calloc(n, sizeof *x->bucket);
    x->next = km_calloc((size_t)n_pages, sizeof *x->next);
    x->keyed = km_calloc((size_t)n_pages, sizeof *x->keyed);
    x->key = km_calloc((size_t)n_pages, sizeof *x->key);
    int rc = x->bucket && x->next && x->keyed && x->key
                 ? km_sha_new(&x->sha, err)
                 : km_fail(err, KM_ENOMEM,
                           "no memory for the prefix index of %d pages: lower --num-gpu-blocks-override, or turn "
                           "prefix caching off",
                           n_pages);
    if (rc) {
        px_free(x);
        return rc;
    }
    memset(x->bucket, 0xff, n * sizeof *x->bucket);
    *out = x;
    return 0;
}

void px_free(struct px *x)
{
    if (!x)
        return;
    km_sha_free(x->sha);
    km_free(x->bucket);
    km_free(x->next);
    km_free(x->keyed);
    km_free(x->key);
    km_free(x);
}

struct km_digest px_root_key(struct px *x, const char *salt)
{
    km_sha_begin(x->sha);
    km_sha_add(x->sha, salt ? "salt" : "none", 4);
    if (salt)
        km_sha_add(x->sha, salt, strlen(salt));
    return km_sha_end(x->sha);
}

struct km_digest px_child_key(struct px *x, const struct km_digest *parent, const int32_t *tokens)
{
    km_sha_begin(x->sha);
    km_sha_add(x->sha, parent->b, sizeof parent->b);
    km_sha_add(x->sha, tokens, (size_t)x->block_size * sizeof *tokens);
    return km_sha_end(x->sha);
}

int32_t px_find(const struct px *x, const struct km_digest *key)
{
    int32_t i = *bucket_of(x, key);
    while (i >= 0 && memcmp(&x->key[i], key, sizeof *key))
        i = x->next[i];
    return i;
}

bool px_publish(struct px *x, const struct km_digest *key, int32_t page)
{
    if (x->keyed[page] || px_find(x, key) >= 0)
        return false;
    int32_t *b = bucket_of(x, key);
    x->key[page] = *key;
    x->keyed[page] = true;
    x->next[page] = *b;
    *b = page;
    x->n_keyed++;
    return true;
}

void px_forget(struct px *x, int32_t page)
{
    if (!x->keyed[page])
        return;
    int32_t *at = bucket_of(x, &x->key[page]);
    while (*at != page)
        at = &x->next[*at];
    *at = x->next[page];
    x->keyed[page] = false;
    x->n_keyed--;
}

bool px_has(const struct px *x, int32_t page)
{
    return x->keyed[page];
}

int px_check(const struct px *x, struct km_err *err)
{
    int n = 0;
    for (uint32_t b = 0; b <= x->mask; b++)
        for (int32_t i = x->bucket[b]; i >= 0; i = x->next[i]) {
            if (n++ > x->n_pages)
                return km_fail(err, KM_EINVAL, "bucket %u of the prefix index has a loop", b);
            if (!x->keyed[i] || bucket_of(x, &x->key[i]) != &x->bucket[b])
                return km_fail(err, KM_EINVAL,
                               "page %d is in bucket %u of the prefix index, which is not that of its key", i, b);
            if (px_find(x, &x->key[i]) != i)
                return km_fail(err, KM_EINVAL, "page %d of the prefix index has the same key as another page", i);
        }
    int keyed = 0;
    for (int i = 0; i < x->n_pages; i++)
        keyed += x->keyed[i];
    if (n != keyed || n != x->n_keyed)
        return km_fail(err, KM_EINVAL, "the prefix index has %d pages in buckets, %d marked as keyed and %d recorded",
                       n, keyed, x->n_keyed);
    return 0;
}
