/* The files of the disk tier: names, folders, the scan of a root folder, and the description of a fingerprint.
 *
 *     ROOT/FINGERPRINT/about.json       what the folder's chunks are: model, shape, dtype, chunk size
 *     ROOT/FINGERPRINT/HH/KEY.kv        a chunk: header and payload, padded to 4096 bytes
 *     ROOT/FINGERPRINT/HH/KEY.PID-START-N.tmp   a chunk that process PID is writing
 *     ROOT/kvmark.lock                  open processes hold a shared lock (flock)
 *
 * FINGERPRINT and KEY are 64 hexadecimal digits, HH the first two digits of KEY. START is the start time of process
 * PID, so that a new process with an old number does not pass for its owner. Files with other names are never touched,
 * and no symbolic link below ROOT is followed. No function here keeps state. Functions without `err` return -errno. */
#ifndef DISK_FILES_H
#define DISK_FILES_H

#include "base/err.h"
#include "base/hash.h"
#include "kvcache/geometry.h"

#include <stdbool.h>
#include <stdint.h>

enum { DISK_PATH = 1280, DISK_NAME = 128 }; /* longest path of a folder, longest name of a file */

/* Opens ROOT/FINGERPRINT/HH, and creates it if `create` is set: a file descriptor, or -errno. */
int disk_dir_open(const char *root, const struct km_digest *fingerprint, const struct km_digest *key, bool create);
void disk_name_final(const struct km_digest *key, char out[DISK_NAME]);
/* n: a number that this process uses once. */
void disk_name_temporary(const struct km_digest *key, uint64_t n, char out[DISK_NAME]);
/* Opens a chunk for reading: a file descriptor, or -errno (-EBADMSG: it is not a regular file). *bytes: its size.
 * direct: with O_DIRECT if the file system allows it. */
int disk_file_open(const char *root, const struct km_digest *fingerprint, const struct km_digest *key,
                   bool direct, int64_t *bytes);
/* Deletes a chunk's file: 0, or -errno (-ENOENT: there was none). */
int disk_file_remove(const char *root, const struct km_digest *fingerprint, const struct km_digest *key);

struct disk_file {
    struct km_digest fingerprint, key;
    int64_t bytes, mtime; /* mtime: ns since 1970 */
};
/* Calls each(arg, file) for every chunk below root, in no order, until it returns < 0, which is then the result.
 * sweep: also removes temporary files whose process has ended. KM_EIO if root cannot be read; folders below it that
 * cannot be read are left out. */
int disk_scan(const char *root, bool sweep, int (*each)(void *arg, const struct disk_file *f), void *arg,
              struct km_err *err);

/* True if files in the folder can be written and read with O_DIRECT; tries it with a temporary file. */
bool disk_probe_direct(const char *dir);

/* Creates root and ROOT/FINGERPRINT with its about.json, which is written if it does not exist. */
int disk_about_write(const char *root, const struct km_digest *fingerprint, const struct kvc_geometry *g,
                     struct km_err *err);
/* Reads about.json back. KM_ENOENT, KM_EFORMAT. */
int disk_about_read(const char *root, const struct km_digest *fingerprint, struct kvc_geometry *g, struct km_err *err);
/* Removes the fingerprint's folder with about.json, if no other file is left in it: 0 or -errno. */
int disk_folder_remove(const char *root, const struct km_digest *fingerprint);

/* Opens the lock file and takes the shared lock: a file descriptor, or -errno. */
int disk_lock(const char *root);
/* True if another process, or another tier of this process, has the folder open. */
bool disk_lock_shared(int fd);

#endif
