/* SHA-256, from OpenSSL, for identities that must not collide. A `km_sha` is reused for many small hashes, so that each
 * of them needs no allocation and no lookup of the algorithm. */
#ifndef KM_HASH_H
#define KM_HASH_H

#include "base/err.h"

#include <stddef.h>
#include <stdint.h>

struct km_digest {
    uint8_t b[32];
};

struct km_sha; /* used by one thread at a time */

int km_sha_new(struct km_sha **out, struct km_err *err);
void km_sha_free(struct km_sha *h);
void km_sha_begin(struct km_sha *h); /* starts a new hash */
void km_sha_add(struct km_sha *h, const void *p, size_t n);
struct km_digest km_sha_end(struct km_sha *h);

/* The digest of a file's bytes. */
int km_sha_file(const char *path, struct km_digest *out, struct km_err *err);
void km_hex(const struct km_digest *d, char out[65]); /* lower case, terminated */

#endif
