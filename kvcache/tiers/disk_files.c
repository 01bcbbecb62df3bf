#include "kvcache/tiers/disk_files.h"

#include "base/file.h"
#include "base/json.h"
#include "base/mem.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

enum { HEX = 64, ABOUT_MOST = 65536 };
#define ABOUT "about.json"
#define LOCK "kvmark.lock"
#define FINAL ".kv"
#define TEMPORARY ".tmp"

static bool fingerprint_path(const char *root, const struct km_digest *fingerprint, const char *rest,
                             char out[DISK_PATH])
{
    char hex[HEX + 1];
    km_hex(fingerprint, hex);
    return snprintf(out, DISK_PATH, "%s/%s%s", root, hex, rest) < DISK_PATH;
}

int disk_dir_open(const char *root, const struct km_digest *fingerprint, const struct km_digest *key, bool create)
{
    char path[DISK_PATH], rest[8];
    snprintf(rest, sizeof rest, "/%02x", key->b[0]);
    if (!fingerprint_path(root, fingerprint, rest, path))
        return -ENAMETOOLONG;
    const int flags = O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC;
    int fd = open(path, flags);
    if (fd < 0 && errno == ENOENT && create) {
        if (mkdir(path, 0777) && errno == ENOENT) { /* another process has deleted the fingerprint's folder */
            path[strlen(path) - 3] = 0;
            if (mkdir(path, 0777) && errno != EEXIST)
                return -errno;
            path[strlen(path)] = '/';
            mkdir(path, 0777);
        }
        fd = open(path, flags);
    }
    return fd < 0 ? -errno : fd;
}

void disk_name_final(const struct km_digest *key, char out[DISK_NAME])
{
    km_hex(key, out);
    strcpy(out + HEX, FINAL);
}

/* The start time of a process in clock ticks since boot; 0: there is no such process, or /proc does not say. */
static uint64_t start_time(long pid)
{
    char path[64], text[1024];
    snprintf(path, sizeof path, "/proc/%ld/stat", pid);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? -1 : read(fd, text, sizeof text - 1);
    if (fd >= 0)
        close(fd);
    text[n > 0 ? n : 0] = 0;
    char *p = strrchr(text, ')'); /* the program's name may contain anything */
    for (int field = 2; p && field < 22; field++)
        if ((p = strchr(p + 1, ' ')) && field == 21)
            return strtoull(p, NULL, 10);
    return 0;
}

void disk_name_temporary(const struct km_digest *key, uint64_t n, char out[DISK_NAME])
{
    long pid = getpid();
    km_hex(key, out);
    snprintf(out + HEX, DISK_NAME - HEX, ".%ld-%llu-%llu" TEMPORARY, pid, (unsigned long long)start_time(pid),
             (unsigned long long)n);
}

int disk_file_open(const char *root, const struct km_digest *fingerprint, const struct km_digest *key, bool direct,
                   int64_t *bytes)
{
    char name[DISK_NAME];
    struct stat st;
    int dir = disk_dir_open(root, fingerprint, key, false);
    if (dir < 0)
        return dir;
    disk_name_final(key, name);
    /* O_NONBLOCK, because there may be a FIFO in the place of the file. */
    int fd = openat(dir, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC), why = errno;
    close(dir);
    if (fd < 0)
        return -why;
    if (fstat(fd, &st) || !S_ISREG(st.st_mode)) {
        close(fd);
        return -EBADMSG;
    }
    *bytes = st.st_size;
    if (!direct || fcntl(fd, F_SETFL, O_DIRECT))
        fcntl(fd, F_SETFL, 0);
    return fd;
}

int disk_file_remove(const char *root, const struct km_digest *fingerprint, const struct km_digest *key)
{
    char name[DISK_NAME];
    int dir = disk_dir_open(root, fingerprint, key, false);
    if (dir < 0)
        return dir;
    disk_name_final(key, name);
    int rc = unlinkat(dir, name, 0) ? -errno : 0;
    close(dir);
    return rc;
}

static int digit(char c)
{
    return c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* Reads 64 lower-case digits. */
static bool read_digest(const char *s, struct km_digest *out)
{
    for (int i = 0; i < HEX / 2; i++) {
        int hi = digit(s[2 * i]), lo = hi < 0 ? -1 : digit(s[2 * i + 1]);
        if (lo < 0)
            return false;
        out->b[i] = (uint8_t)(hi << 4 | lo);
    }
    return true;
}

/* True if s, the part of a name behind the key, is that of a temporary file whose process has ended. */
static bool is_stale(const char *s)
{
    long pid;
    unsigned long long start, n;
    int used = 0;
    if (sscanf(s, ".%ld-%llu-%llu" TEMPORARY "%n", &pid, &start, &n, &used) != 3 || !used || s[used] || pid < 1)
        return false;
    return start_time(pid) != start;
}

/* A scan in progress. */
struct scan {
    int (*each)(void *arg, const struct disk_file *f);
    void *arg;
    bool sweep;
    struct disk_file file;
};

/* Calls `visit` for every name in the folder `name` of folder `at`, until it returns < 0. A folder that is a symbolic
 * link, or cannot be read, counts as empty. */
static int for_names(int at, const char *name, int (*visit)(struct scan *s, int dir, const char *name), struct scan *s)
{
    int fd = openat(at, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC), rc = 0;
    DIR *d = fd < 0 ? NULL : fdopendir(fd);
    if (!d) {
        if (fd >= 0)
            close(fd);
        return 0;
    }
    for (const struct dirent *e; !rc && (e = readdir(d));)
        rc = visit(s, fd, e->d_name);
    closedir(d);
    return rc;
}

static int visit_file(struct scan *s, int dir, const char *name)
{
    struct stat st;
    const char *rest = name + HEX;
    if (strlen(name) < HEX || !read_digest(name, &s->file.key))
        return 0;
    if (!strcmp(rest, FINAL)) {
        if (fstatat(dir, name, &st, AT_SYMLINK_NOFOLLOW) || !S_ISREG(st.st_mode))
            return 0;
        s->file.bytes = st.st_size;
        s->file.mtime = (int64_t)st.st_mtim.tv_sec * 1000000000 + st.st_mtim.tv_nsec;
        return s->each(s->arg, &s->file);
    }
    if (s->sweep && is_stale(rest))
        unlinkat(dir, name, 0);
    return 0;
}

static int visit_hh(struct scan *s, int dir, const char *name)
{
    return strlen(name) == 2 && digit(name[0]) >= 0 && digit(name[1]) >= 0 ? for_names(dir, name, visit_file, s) : 0;
}

static int visit_fingerprint(struct scan *s, int dir, const char *name)
{
    return strlen(name) == HEX && read_digest(name, &s->file.fingerprint) ? for_names(dir, name, visit_hh, s) : 0;
}

int disk_scan(const char *root, bool sweep, int (*each)(void *arg, const struct disk_file *f), void *arg,
              struct km_err *err)
{
    struct scan s = {.each = each, .arg = arg, .sweep = sweep};
    DIR *d = opendir(root); /* the root itself may be a symbolic link */
    if (!d)
        return km_fail(err, KM_EIO, "cannot read the folder %s: %s", root, strerror(errno));
    int rc = 0;
    for (const struct dirent *e; !rc && (e = readdir(d));)
        rc = visit_fingerprint(&s, dirfd(d), e->d_name);
    closedir(d);
    return rc < 0 ? km_fail(err, rc, "the scan of %s stopped: %s", root, km_err_name(rc)) : 0;
}

bool disk_probe_direct(const char *dir)
{
    char path[DISK_PATH];
    void *block = km_aligned(4096, 4096);
    bool ok = false;
    if (!block || snprintf(path, sizeof path, "%s/.probe.XXXXXX", dir) >= (int)sizeof path) {
        km_free(block);
        return false;
    }
    memset(block, 'k', 4096);
    int fd = mkostemp(path, O_DIRECT | O_CLOEXEC);
    if (fd >= 0) {
        ok = pwrite(fd, block, 4096, 0) == 4096 && pread(fd, block, 4096, 0) == 4096;
        close(fd);
        unlink(path);
    }
    km_free(block);
    return ok;
}

static cJSON *about_json(const struct km_digest *fingerprint, const struct kvc_geometry *g)
{
    char hex[HEX + 1];
    cJSON *v = cJSON_CreateObject();
    cJSON_AddStringToObject(v, "about", "Chunks of KV cache that kvmark stored for one model. May be deleted.");
    km_hex(fingerprint, hex);
    cJSON_AddStringToObject(v, "fingerprint", hex);
    km_hex(&g->pool.model, hex);
    cJSON_AddStringToObject(v, "model", hex);
    cJSON_AddStringToObject(v, "numerics", g->pool.numerics);
    cJSON_AddStringToObject(v, "dtype", km_dtype_name(g->pool.dtype));
    cJSON_AddNumberToObject(v, "layers", g->pool.n_layers);
    cJSON_AddNumberToObject(v, "kv_heads", g->pool.n_kv_heads);
    cJSON_AddNumberToObject(v, "head_dim", g->pool.head_dim);
    cJSON_AddNumberToObject(v, "block_size", g->pool.block_size);
    cJSON_AddNumberToObject(v, "layout", g->pool.layout);
    cJSON_AddNumberToObject(v, "page_bytes", (double)g->pool.page_bytes);
    cJSON_AddNumberToObject(v, "rope_theta", g->pool.rope_theta);
    cJSON_AddNumberToObject(v, "chunk_tokens", g->chunk_size);
    cJSON_AddNumberToObject(v, "chunk_bytes", (double)g->payload_bytes);
    return v;
}

int disk_about_write(const char *root, const struct km_digest *fingerprint, const struct kvc_geometry *g,
                     struct km_err *err)
{
    char dir[DISK_PATH], path[DISK_PATH];
    if (!fingerprint_path(root, fingerprint, "", dir) || !fingerprint_path(root, fingerprint, "/" ABOUT, path))
        return km_fail(err, KM_EINVAL, "the path of the folder %.200s... is too long", root);
    int rc = km_mkdirs(root, err);
    if (rc)
        return rc;
    struct stat st;
    if ((mkdir(dir, 0777) && errno != EEXIST) || lstat(dir, &st))
        return km_fail(err, KM_EIO, "cannot create the folder %s: %s", dir, strerror(errno));
    if (!S_ISDIR(st.st_mode))
        return km_fail(err, KM_EIO, "%s is not a folder, so the disk tier cannot use it; remove it", dir);
    if (km_file_exists(path))
        return 0;
    cJSON *v = about_json(fingerprint, g);
    rc = v ? km_json_write(path, v, err) : km_fail(err, KM_ENOMEM, "out of memory");
    cJSON_Delete(v);
    return rc;
}

static int read_int(const cJSON *v, const char *key, int *out, struct km_err *err)
{
    int64_t n = 0;
    int rc = km_json_int(v, key, true, 1, INT32_MAX, &n, err);
    *out = (int)n;
    return rc;
}

static int read_dtype(const cJSON *v, enum km_dtype *out, struct km_err *err)
{
    const char *name = NULL;
    int rc = km_json_str(v, "dtype", true, &name, err);
    for (int t = KM_F32; !rc && t <= KM_F16; t++)
        if (!strcmp(name, km_dtype_name((enum km_dtype)t)))
            return *out = (enum km_dtype)t, 0;
    return rc ? rc : km_fail(err, KM_EFORMAT, "dtype is \"%.40s\", which is not known", name);
}

static int read_about(const cJSON *v, struct kvc_geometry *g, struct km_err *err)
{
    struct kv_geom p = {.n_pages = 1};
    int chunk = 0;
    int64_t page_bytes = 0;
    int rc = read_int(v, "layers", &p.n_layers, err);
    if (!rc)
        rc = read_int(v, "kv_heads", &p.n_kv_heads, err);
    if (!rc)
        rc = read_int(v, "head_dim", &p.head_dim, err);
    if (!rc)
        rc = read_int(v, "block_size", &p.block_size, err);
    if (!rc)
        rc = read_int(v, "layout", &p.layout, err);
    if (!rc)
        rc = read_int(v, "chunk_tokens", &chunk, err);
    if (!rc)
        rc = read_dtype(v, &p.dtype, err);
    if (!rc)
        rc = km_json_int(v, "page_bytes", true, 1, INT64_MAX / 2, &page_bytes, err);
    p.page_bytes = (size_t)page_bytes;
    return rc ? rc : kvc_geometry_init(g, &p, chunk, true, err);
}

int disk_about_read(const char *root, const struct km_digest *fingerprint, struct kvc_geometry *g, struct km_err *err)
{
    char path[DISK_PATH];
    cJSON *v = NULL;
    if (!fingerprint_path(root, fingerprint, "/" ABOUT, path))
        return km_fail(err, KM_EINVAL, "the path of the folder %.200s... is too long", root);
    int rc = km_json_file(path, ABOUT_MOST, &v, err);
    if (rc)
        return rc;
    rc = read_about(v, g, err);
    cJSON_Delete(v);
    return rc ? km_context(err, "%s", path), KM_EFORMAT : 0;
}

int disk_folder_remove(const char *root, const struct km_digest *fingerprint)
{
    char dir[DISK_PATH], path[DISK_PATH];
    if (!fingerprint_path(root, fingerprint, "", dir) || !fingerprint_path(root, fingerprint, "/" ABOUT, path))
        return -ENAMETOOLONG;
    for (int i = 0; i < 256; i++) {
        char hh[DISK_PATH], rest[8];
        snprintf(rest, sizeof rest, "/%02x", i);
        if (fingerprint_path(root, fingerprint, rest, hh))
            rmdir(hh);
    }
    unlink(path);
    return rmdir(dir) ? -errno : 0;
}

int disk_lock(const char *root)
{
    char path[DISK_PATH];
    if (snprintf(path, sizeof path, "%s/" LOCK, root) >= (int)sizeof path)
        return -ENAMETOOLONG;
    int fd = open(path, O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0666);
    if (fd < 0)
        return -errno;
    flock(fd, LOCK_SH | LOCK_NB);
    return fd;
}

bool disk_lock_shared(int fd)
{
    if (flock(fd, LOCK_EX | LOCK_NB))
        return errno == EWOULDBLOCK && !flock(fd, LOCK_SH | LOCK_NB);
    flock(fd, LOCK_SH | LOCK_NB);
    return false;
}
