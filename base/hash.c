/* OpenSSL's EVP interface: the algorithm is fetched once per km_sha, and the context is reused. */
#include "base/hash.h"

#include "base/mem.h"

#include <errno.h>
#include <openssl/evp.h>
#include <stdio.h>
#include <string.h>

struct km_sha {
    EVP_MD *md;
    EVP_MD_CTX *ctx;
};

int km_sha_new(struct km_sha **out, struct km_err *err)
{
    struct km_sha *h = km_calloc(1, sizeof *h);
    if (h) {
        h->md = EVP_MD_fetch(NULL, "SHA256", NULL);
        h->ctx = EVP_MD_CTX_new();
    }
    if (!h || !h->md || !h->ctx) {
        km_sha_free(h);
        return km_fail(err, KM_ENOMEM, "cannot set up SHA-256 (out of memory, or OpenSSL offers no SHA256)");
    }
    *out = h;
    km_sha_begin(h);
    return 0;
}

void km_sha_free(struct km_sha *h)
{
    if (!h)
        return;
    EVP_MD_CTX_free(h->ctx);
    EVP_MD_free(h->md);
    km_free(h);
}

void km_sha_begin(struct km_sha *h)
{
    EVP_DigestInit_ex2(h->ctx, h->md, NULL);
}

void km_sha_add(struct km_sha *h, const void *p, size_t n)
{
    EVP_DigestUpdate(h->ctx, p, n);
}

struct km_digest km_sha_end(struct km_sha *h)
{
    struct km_digest d;
    EVP_DigestFinal_ex(h->ctx, d.b, NULL);
    return d;
}

int km_sha_file(const char *path, struct km_digest *out, struct km_err *err)
{
    FILE *f = fopen(path, "rb");
    if (!f)
        return km_fail(err, errno == ENOENT ? KM_ENOENT : KM_EIO, "cannot open %s: %s", path, strerror(errno));
    struct km_sha *h = NULL;
    int rc = km_sha_new(&h, err);
    char block[65536];
    size_t n;
    while (!rc && (n = fread(block, 1, sizeof block, f)) > 0)
        km_sha_add(h, block, n);
    if (!rc && ferror(f))
        rc = km_fail(err, KM_EIO, "cannot read %s: %s", path, strerror(errno));
    if (!rc)
        *out = km_sha_end(h);
    km_sha_free(h);
    fclose(f);
    return rc;
}

void km_hex(const struct km_digest *d, char out[65])
{
    for (int i = 0; i < 32; i++)
        snprintf(out + 2 * i, 3, "%02x", d->b[i]);
}
