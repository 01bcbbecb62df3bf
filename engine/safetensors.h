/* Safetensors files: the tensor table of a model folder, and reads of tensors.
 *
 * `struct st` is one open model folder, with model.safetensors or with the shards that model.safetensors.index.json
 * names. st_open checks every rule of the format before it allocates anything whose size comes from a file. Afterwards
 * a tensor is a checked range of bytes in a file. Reads use pread instead of mmap, so that a file which is truncated
 * while open gives an error instead of a SIGBUS. */
#ifndef ST_SAFETENSORS_H
#define ST_SAFETENSORS_H

#include "base/err.h"

#include <stddef.h>
#include <stdint.h>

enum { ST_MAX_DIMS = 8 };

struct st_tensor {
    const char *name;
    const char *dtype;         /* as in the file: "BF16", "F16", "F32", "I64", ... */
    int elem_size;             /* bytes */
    int n_dims;
    int64_t dims[ST_MAX_DIMS]; /* [n_dims] */
    uint64_t begin, end;       /* bytes within the file; end - begin = product(dims) * elem_size */
    int file;                  /* index of the shard */
};

struct st;

int st_open(struct st **out, const char *dir, struct km_err *err);
void st_close(struct st *s);

int st_count(const struct st *s);
const struct st_tensor *st_at(const struct st *s, int i); /* in the order of the names */
const struct st_tensor *st_find(const struct st *s, const char *name);
const char *st_path(const struct st *s, const struct st_tensor *t); /* the path of the tensor's file, for messages */

/* Reads bytes [off, off + n) of the tensor into dst. Thread-safe. */
int st_read(const struct st *s, const struct st_tensor *t, uint64_t off, size_t n, void *dst, struct km_err *err);

#endif
