/* Opening and checking safetensors files.
 *
 * The table of a folder is one array over all its files, sorted by name. Duplicates, within a file or across shards,
 * are therefore neighbours, and a lookup is a binary search. */
#include "engine/safetensors.h"

#include "base/buf.h"
#include "base/file.h"
#include "base/json.h"
#include "base/mem.h"
#include "base/sort.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define HEADER_MAX 100000000 /* the format's own limit */
#define INDEX_MAX (64 << 20)
#define SHARDS_MAX 4096
#define EXACT_MAX 0x1p53 /* a JSON number is a double, which represents whole numbers exactly up to 2^53 */

struct st_file {
    char *path;
    int fd;
    uint64_t size;
};

struct st {
    struct st_file *files; /* [n_files] */
    int n_files;
    struct st_tensor *v; /* [n], sorted by name; owns the names */
    int n, cap;
};

static const struct {
    const char *name;
    int size;
} dtypes[] = {{"BF16", 2}, {"F16", 2}, {"F32", 4},  {"F64", 8},     {"I64", 8},
              {"I32", 4},  {"I16", 2}, {"I8", 1},   {"U64", 8},     {"U32", 4},
              {"U16", 2},  {"U8", 1},  {"BOOL", 1}, {"F8_E4M3", 1}, {"F8_E5M2", 1}};

/* Sets *out if v is a whole number from 0 to 2^53, else returns false. */
static bool whole(const cJSON *v, uint64_t *out)
{
    if (!cJSON_IsNumber(v) || !(v->valuedouble >= 0 && v->valuedouble <= EXACT_MAX))
        return false;
    *out = (uint64_t)v->valuedouble;
    return (double)*out == v->valuedouble;
}

static int parse_shape(const cJSON *shape, struct st_tensor *t, uint64_t *bytes, struct km_err *err)
{
    uint64_t product = (uint64_t)t->elem_size;
    const cJSON *dim;
    cJSON_ArrayForEach (dim, shape) {
        uint64_t d;
        if (t->n_dims == ST_MAX_DIMS)
            return km_fail(err, KM_EFORMAT, "its shape has more than %d dimensions", ST_MAX_DIMS);
        if (!whole(dim, &d))
            return km_fail(err, KM_EFORMAT, "dimension %d of its shape is not a whole number in [0, 2^53]",
                           t->n_dims);
        if (__builtin_mul_overflow(product, d, &product))
            return km_fail(err, KM_EFORMAT, "the product of its shape does not fit 64 bits");
        t->dims[t->n_dims++] = (int64_t)d;
    }
    *bytes = product;
    return 0;
}

/* Reads one entry of the header into *t. Its byte range is still relative to the start of the data. */
static int parse_tensor(const cJSON *item, struct st_tensor *t, uint64_t data_bytes, struct km_err *err)
{
    if (!cJSON_IsObject(item))
        return km_fail(err, KM_EFORMAT, "its entry is not an object");
    int seen[3] = {0};
    const char *const keys[3] = {"dtype", "shape", "data_offsets"};
    const cJSON *val[3] = {NULL}, *kid;
    cJSON_ArrayForEach (kid, item) {
        int k = 0;
        while (k < 3 && strcmp(kid->string, keys[k]))
            k++;
        if (k == 3)
            return km_fail(err, KM_EFORMAT, "its entry holds the unknown key \"%.40s\"", kid->string);
        if (seen[k]++)
            return km_fail(err, KM_EFORMAT, "its entry holds \"%s\" twice", keys[k]);
        val[k] = kid;
    }
    for (int k = 0; k < 3; k++)
        if (!seen[k])
            return km_fail(err, KM_EFORMAT, "its entry lacks \"%s\"", keys[k]);
    if (!cJSON_IsString(val[0]))
        return km_fail(err, KM_EFORMAT, "its dtype is not a string");
    for (size_t i = 0; i < sizeof dtypes / sizeof *dtypes; i++)
        if (!strcmp(val[0]->valuestring, dtypes[i].name))
            t->dtype = dtypes[i].name, t->elem_size = dtypes[i].size;
    if (!t->dtype)
        return km_fail(err, KM_EFORMAT, "its dtype \"%.20s\" is unknown", val[0]->valuestring);
    uint64_t bytes = 0;
    if (!cJSON_IsArray(val[1]))
        return km_fail(err, KM_EFORMAT, "its shape is not an array");
    int rc = parse_shape(val[1], t, &bytes, err);
    if (rc)
        return rc;
    if (!cJSON_IsArray(val[2]) || cJSON_GetArraySize(val[2]) != 2 || !whole(val[2]->child, &t->begin) ||
        !whole(val[2]->child->next, &t->end))
        return km_fail(err, KM_EFORMAT, "its data_offsets are not two whole numbers in [0, 2^53]");
    if (t->begin > t->end || t->end > data_bytes)
        return km_fail(err, KM_EFORMAT, "its data_offsets [%llu, %llu) are outside the file's %llu data bytes",
                       (unsigned long long)t->begin, (unsigned long long)t->end, (unsigned long long)data_bytes);
    if (t->end - t->begin != bytes)
        return km_fail(err, KM_EFORMAT, "its shape needs %llu bytes but its data_offsets give %llu",
                       (unsigned long long)bytes, (unsigned long long)(t->end - t->begin));
    return 0;
}

static int by_range(const void *a, const void *b)
{
    const struct st_tensor *x = a, *y = b;
    if (x->begin != y->begin)
        return x->begin < y->begin ? -1 : 1;
    return x->end < y->end ? -1 : x->end > y->end;
}

static int by_name(const void *a, const void *b)
{
    return strcmp(((const struct st_tensor *)a)->name, ((const struct st_tensor *)b)->name);
}

/* Checks that the tensors of one file cover its data exactly: no gap, no overlap, and no bytes after the last one. */
static int check_tiling(struct st_tensor *v, int n, uint64_t data_bytes, struct km_err *err)
{
    qsort(v, (size_t)n, sizeof *v, by_range);
    uint64_t at = 0;
    for (int i = 0; i < n; i++) {
        if (v[i].begin != at)
            return km_fail(err, KM_EFORMAT,
                           "tensor %.100s begins at data byte %llu, %s (the one before ends at %llu)", v[i].name,
                           (unsigned long long)v[i].begin,
                           v[i].begin > at ? "leaving a hole" : "overlapping another tensor", (unsigned long long)at);
        at = v[i].end;
    }
    if (at != data_bytes)
        return km_fail(err, KM_EFORMAT, "%llu bytes follow the last tensor",
                       (unsigned long long)(data_bytes - at));
    return 0;
}

static int check_metadata(const cJSON *meta, struct km_err *err)
{
    const cJSON *kid;
    if (!cJSON_IsObject(meta))
        return km_fail(err, KM_EFORMAT, "__metadata__ is not an object");
    cJSON_ArrayForEach (kid, meta) {
        if (!cJSON_IsString(kid))
            return km_fail(err, KM_EFORMAT, "__metadata__ holds \"%.40s\", which is not a string", kid->string);
    }
    return 0;
}

/* Appends the tensors of a parsed header to s->v. */
static int add_tensors(struct st *s, int file, const cJSON *header, uint64_t data_at, struct km_err *err)
{
    if (!cJSON_IsObject(header))
        return km_fail(err, KM_EFORMAT, "the header is not a JSON object");
    uint64_t data_bytes = s->files[file].size - data_at;
    int first = s->n, rc = 0, metas = 0;
    const cJSON *item;
    cJSON_ArrayForEach (item, header) {
        if (!strcmp(item->string, "__metadata__")) {
            rc = metas++ ? km_fail(err, KM_EFORMAT, "__metadata__ appears twice") : check_metadata(item, err);
            if (rc)
                return rc;
            continue;
        }
        if (s->n == s->cap) {
            int cap = s->cap ? 2 * s->cap : 64;
            struct st_tensor *v = km_reallocarray(s->v, (size_t)cap, sizeof *v);
            if (!v)
                return km_fail(err, KM_ENOMEM, "no memory for the table of %d tensors", cap);
            s->v = v;
            s->cap = cap;
        }
        struct st_tensor t = {.file = file};
        if ((rc = parse_tensor(item, &t, data_bytes, err))) {
            km_context(err, "tensor %.100s", item->string);
            return rc;
        }
        t.name = km_strdup(item->string);
        if (!t.name)
            return km_fail(err, KM_ENOMEM, "no memory for the name of tensor %.100s", item->string);
        s->v[s->n++] = t;
    }
    if ((rc = check_tiling(s->v + first, s->n - first, data_bytes, err)))
        return rc;
    for (int i = first; i < s->n; i++) {
        s->v[i].begin += data_at;
        s->v[i].end += data_at;
    }
    return 0;
}

/* Reads n bytes at offset `at`. False: the read failed, or with errno 0, the file is shorter than at + n. */
static bool pread_all(int fd, void *dst, size_t n, uint64_t at)
{
    char *p = dst;
    while (n) {
        ssize_t r = pread(fd, p, n, (off_t)at);
        if (r < 0 && errno == EINTR)
            continue;
        if (r <= 0) {
            errno = r ? errno : 0;
            return false;
        }
        p += r;
        n -= (size_t)r;
        at += (uint64_t)r;
    }
    return true;
}

static int read_header(struct st *s, int file, struct km_err *err)
{
    struct st_file *f = &s->files[file];
    uint8_t le[8];
    if (f->size < 8)
        return km_fail(err, KM_EFORMAT, "%llu bytes are too short for a safetensors file",
                       (unsigned long long)f->size);
    if (!pread_all(f->fd, le, 8, 0))
        return km_fail(err, KM_EIO, "cannot be read: %s", errno ? strerror(errno) : "it became shorter");
    uint64_t len = 0;
    for (int i = 7; i >= 0; i--)
        len = len << 8 | le[i];
    if (len < 2 || len > HEADER_MAX)
        return km_fail(err, KM_EFORMAT, "header length %llu is not between 2 and %d", (unsigned long long)len,
                       HEADER_MAX);
    if (len > f->size - 8)
        return km_fail(err, KM_EFORMAT, "header length %llu reaches past the file's %llu bytes",
                       (unsigned long long)len, (unsigned long long)f->size);
    char *text = km_malloc((size_t)len);
    if (!text)
        return km_fail(err, KM_ENOMEM, "no memory for its header of %llu bytes", (unsigned long long)len);
    cJSON *header = NULL;
    int rc = 0;
    if (!pread_all(f->fd, text, (size_t)len, 8))
        rc = km_fail(err, KM_EIO, "cannot be read: %s", errno ? strerror(errno) : "it became shorter");
    else if (text[0] != '{')
        rc = km_fail(err, KM_EFORMAT, "the header does not begin with '{'");
    else if ((rc = km_json_parse(text, (size_t)len, &header, err)))
        km_context(err, "header");
    km_free(text);
    if (!rc)
        rc = add_tensors(s, file, header, 8 + len, err);
    cJSON_Delete(header);
    return rc;
}

/* Opens dir/name as the next file and reads its header. */
static int add_file(struct st *s, const char *dir, const char *name, struct km_err *err)
{
    struct st_file *f = &s->files[s->n_files];
    *f = (struct st_file){.path = km_path(dir, name), .fd = -1};
    if (!f->path)
        return km_fail(err, KM_ENOMEM, "no memory for the path of %s", name);
    s->n_files++;
    struct stat sb;
    f->fd = open(f->path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* O_NONBLOCK: opening a FIFO must not block */
    if (f->fd < 0)
        return km_fail(err, errno == ENOENT ? KM_ENOENT : KM_EIO, "cannot open %s: %s", f->path, strerror(errno));
    if (fstat(f->fd, &sb) || !S_ISREG(sb.st_mode))
        return km_fail(err, KM_EIO, "cannot read %s: it is not a regular file", f->path);
    f->size = (uint64_t)sb.st_size;
    int rc = read_header(s, s->n_files - 1, err);
    if (rc)
        km_context(err, "%s", f->path);
    return rc;
}

/* True if name is a plain file name. An index must not refer to files outside the folder. */
static bool plain_name(const char *name)
{
    size_t n = strlen(name);
    return n > 12 && n < 256 && name[0] != '.' && !strpbrk(name, "/\\") && !strcmp(name + n - 12, ".safetensors");
}

/* Opens every file that the index names, each once. */
static int add_shards(struct st *s, const char *dir, const cJSON *map, struct km_err *err)
{
    int n = cJSON_GetArraySize(map), rc = 0;
    if (n == 0)
        return km_fail(err, KM_EFORMAT, "its weight_map is empty");
    const char **names = km_calloc((size_t)n, sizeof *names);
    if (!names)
        return km_fail(err, KM_ENOMEM, "no memory for the files of %d tensors", n);
    const cJSON *kid;
    int i = 0, distinct = 0;
    cJSON_ArrayForEach (kid, map) {
        if (!cJSON_IsString(kid) || !plain_name(kid->valuestring)) {
            rc = km_fail(
                err, KM_EFORMAT,
                "tensor %.100s is mapped to \"%.60s\"; a shard must be the name of a .safetensors file in the "
                "same folder",
                kid->string, cJSON_IsString(kid) ? kid->valuestring : "(not a string)");
            break;
        }
        names[i++] = kid->valuestring;
    }
    if (!rc) {
        km_sort_strings(names, (size_t)n);
        for (i = 0; i < n; i++)
            if (i == 0 || strcmp(names[i], names[distinct - 1]))
                names[distinct++] = names[i];
        if (distinct > SHARDS_MAX)
            rc = km_fail(err, KM_ELIMIT, "it names %d files, but at most %d are supported", distinct, SHARDS_MAX);
        else if (!(s->files = km_calloc((size_t)distinct, sizeof *s->files)))
            rc = km_fail(err, KM_ENOMEM, "no memory for a table of %d files", distinct);
    }
    for (i = 0; !rc && i < distinct; i++)
        rc = add_file(s, dir, names[i], err);
    km_free(names);
    return rc;
}

/* After sorting: checks that no name occurs twice, and that every tensor is in the file that the index names. */
static int check_names(struct st *s, const cJSON *map, struct km_err *err)
{
    qsort(s->v, (size_t)s->n, sizeof *s->v, by_name);
    for (int i = 1; i < s->n; i++)
        if (!strcmp(s->v[i - 1].name, s->v[i].name)) {
            const char *a = st_path(s, &s->v[i - 1]), *b = st_path(s, &s->v[i]);
            return a == b
                       ? km_fail(err, KM_EFORMAT, "%s: tensor %.100s appears twice", a, s->v[i].name)
                       : km_fail(err, KM_EFORMAT, "tensor %.100s appears in both %s and %s", s->v[i].name, a, b);
        }
    const cJSON *kid;
    cJSON_ArrayForEach (kid, map) {
        const struct st_tensor *t = st_find(s, kid->string);
        const char *path = t ? st_path(s, t) : "", *base = strrchr(path, '/');
        if (!t || strcmp(base ? base + 1 : path, kid->valuestring))
            return km_fail(err, KM_EFORMAT, "tensor %.100s is in %s according to the index, but it is %s%s",
                           kid->string, kid->valuestring, t ? "in " : "in no file", path);
    }
    return 0;
}

static int open_indexed(struct st *s, const char *dir, const char *index_path, struct km_err *err)
{
    cJSON *index = NULL;
    const cJSON *map = NULL;
    int rc = km_json_file(index_path, INDEX_MAX, &index, err);
    if (!rc) {
        rc = km_json_item(index, "weight_map", true, cJSON_Object, &map, err);
        if (!rc)
            rc = add_shards(s, dir, map, err);
        if (!rc)
            rc = check_names(s, map, err);
        if (rc)
            km_context(err, "%s", index_path);
    }
    cJSON_Delete(index);
    return rc;
}

int st_open(struct st **out, const char *dir, struct km_err *err)
{
    char *one = km_path(dir, "model.safetensors"), *index = km_path(dir, "model.safetensors.index.json");
    struct st *s = km_calloc(1, sizeof *s);
    int rc;
    if (!one || !index || !s) {
        rc = km_fail(err, KM_ENOMEM, "no memory to open the weights in %s", dir);
    } else if (km_file_exists(one)) {
        s->files = km_calloc(1, sizeof *s->files);
        rc = s->files ? add_file(s, dir, "model.safetensors", err)
                      : km_fail(err, KM_ENOMEM, "no memory to open the weights in %s", dir);
        if (!rc)
            rc = check_names(s, NULL, err);
    } else if (km_file_exists(index)) {
        rc = open_indexed(s, dir, index, err);
    } else {
        rc = km_fail(err, KM_ENOENT, "there is no model.safetensors and no model.safetensors.index.json in %s", dir);
    }
    km_free(one);
    km_free(index);
    if (rc) {
        st_close(s);
        return rc;
    }
    *out = s;
    return 0;
}

void st_close(struct st *s)
{
    if (!s)
        return;
    for (int i = 0; i < s->n_files; i++) {
        if (s->files[i].fd >= 0)
            close(s->files[i].fd);
        km_free(s->files[i].path);
    }
    for (int i = 0; i < s->n; i++)
        km_free((char *)s->v[i].name);
    km_free(s->files);
    km_free(s->v);
    km_free(s);
}

int st_count(const struct st *s)
{
    return s->n;
}

const struct st_tensor *st_at(const struct st *s, int i)
{
    return &s->v[i];
}

const struct st_tensor *st_find(const struct st *s, const char *name)
{
    struct st_tensor key = {.name = name};
    return s->n ? bsearch(&key, s->v, (size_t)s->n, sizeof *s->v, by_name) : NULL;
}

const char *st_path(const struct st *s, const struct st_tensor *t)
{
    return s->files[t->file].path;
}

int st_read(const struct st *s, const struct st_tensor *t, uint64_t off, size_t n, void *dst, struct km_err *err)
{
    const struct st_file *f = &s->files[t->file];
    if (off > t->end - t->begin || n > t->end - t->begin - off)
        return km_fail(err, KM_EINVAL, "read of %zu bytes at %llu is outside tensor %.100s", n,
                       (unsigned long long)off, t->name);
    if (!pread_all(f->fd, dst, n, t->begin + off))
        return km_fail(err, KM_EIO, "%s: tensor %.100s cannot be read: %s", f->path, t->name,
                       errno ? strerror(errno) : "the file became shorter since it was opened");
    return 0;
}
