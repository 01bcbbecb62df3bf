/* The check of stored chunk files, without an engine: the header, and the checksum of every page. */
#ifndef DISK_VERIFY_H
#define DISK_VERIFY_H

#include "base/err.h"
#include "base/hash.h"
#include "kvcache/geometry.h"

/* Reads the chunk and checks it: 0; KM_EFORMAT and what is wrong with the file; KM_ENOENT if it is gone; KM_EIO,
 * KM_ENOMEM. g: of the fingerprint (disk_about_read). */
int disk_verify(const char *root, const struct km_digest *fingerprint, const struct km_digest *key,
                const struct kvc_geometry *g, struct km_err *err);

#endif
