/* Files that matter: read whole, written whole or not at all. */
#ifndef KM_FILE_H
#define KM_FILE_H

#include "base/buf.h"
#include "base/err.h"

#include <stdbool.h>
#include <stddef.h>

/* The whole file into out (appended). Refuses files over max bytes (0: no limit) before reading. */
int km_file_read(const char *path, size_t max, struct km_buf *out, struct km_err *err);

/* Writes path by way of a temporary file in the same folder, fsync and rename: a reader sees the old
 * bytes or the new ones, never a part. */
int km_file_write(const char *path, const void *data, size_t len, struct km_err *err);

bool km_file_exists(const char *path);
bool km_dir_exists(const char *path);
int km_mkdirs(const char *path, struct km_err *err); /* as mkdir -p */

/* "dir/name" into a new string (km_free); NULL without memory. */
char *km_path(const char *dir, const char *name);

#endif
