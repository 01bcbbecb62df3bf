/* Safetensors files: the tensor table of a model folder, and reads out of it.
 *
 * `struct st` is one open model folder: model.safetensors, or the shards that model.safetensors.index.json
 * names. Every promise of the format is checked when it is opened (st_open), before anything is allocated
 * by a number from the file; after that a tensor is a checked range of a file. Reads are pread, not mmap: a
 * file cut short while open gives an error, not a SIGBUS. */
#ifndef ST_SAFETENSORS_H
#define ST_SAFETENSORS_H

#include "base/err.h"

#include <stddef.h>
#include <stdint.h>

enum { ST_MAX_DIMS = 8 };

struct st_tensor {
    const char *name;
    const char *dtype;         /* the format's name: "BF16", "F16", "F32", "I64", ... */
    int elem_size;             /* bytes */
    int n_dims;
    int64_t dims[ST_MAX_DIMS]; /* [n_dims] */
    uint64_t begin, end;       /* bytes within the file; end - begin = product(dims) * elem_size */
    int file;
};

struct st;

int st_open(struct st **out, const char *dir, struct km_err *err);
void st_close(struct st *s);

int st_count(const struct st *s);
const struct st_tensor *st_at(const struct st *s, int i); /* by name */
const struct st_tensor *st_find(const struct st *s, const char *name);
const char *st_path(const struct st *s, const struct st_tensor *t); /* of its file, for messages */

/* Bytes [off, off + n) of the tensor into dst. Thread-safe. */
int st_read(const struct st *s, const struct st_tensor *t, uint64_t off, size_t n, void *dst, struct km_err *err);

#endif
