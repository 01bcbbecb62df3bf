/* SHA-256 (OpenSSL) for identities that must not collide, wrapped so that a chain of small hashes costs
 * no lookup and no allocation each. */
#ifndef KM_HASH_H
#define KM_HASH_H

#include "base/err.h"

#include <stddef.h>
#include <stdint.h>

struct km_digest {
    uint8_t b[32];
};

struct km_sha; /* a reusable hashing context; one thread at a time */

int km_sha_new(struct km_sha **out, struct km_err *err);
void km_sha_free(struct km_sha *h);
void km_sha_begin(struct km_sha *h);
void km_sha_add(struct km_sha *h, const void *p, size_t n);
struct km_digest km_sha_end(struct km_sha *h);

int km_sha_file(const char *path, struct km_digest *out, struct km_err *err);
void km_hex(const struct km_digest *d, char out[65]);

#endif
