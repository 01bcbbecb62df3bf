/* Files that are read whole, and written whole or not at all. */
#ifndef KM_FILE_H
#define KM_FILE_H

#include "base/buf.h"
#include "base/err.h"

#include <stdbool.h>
#include <stddef.h>

/* Appends the whole file to *out. KM_ENOENT if there is no such file; KM_ELIMIT if it has more than max bytes (0: no
 * limit). */
int km_file_read(const char *path, size_t max, struct km_buf *out, struct km_err *err);

/* Writes a temporary file in the same folder, then fsync and rename. A reader sees the old bytes or the new ones, never
 * a mixture. */
int km_file_write(const char *path, const void *data, size_t len, struct km_err *err);

bool km_file_exists(const char *path);
bool km_dir_exists(const char *path);
int km_mkdirs(const char *path, struct km_err *err); /* like mkdir -p */

/* "dir/name" as a new string (km_free); NULL if there is no memory. */
char *km_path(const char *dir, const char *name);

#endif
