/* Reading and atomic writing of whole files. */
#include "base/file.h"

#include "base/mem.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

int km_file_read(const char *path, size_t max, struct km_buf *out, struct km_err *err)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    struct stat st;
    if (fd < 0)
        return km_fail(err, errno == ENOENT ? KM_ENOENT : KM_EIO, "cannot open %s: %s", path, strerror(errno));
    int rc = 0;
    if (fstat(fd, &st) || S_ISDIR(st.st_mode))
        rc = km_fail(err, KM_EIO, "cannot read %s: it is %s", path, S_ISDIR(st.st_mode) ? "a folder" : "unreadable");
    else if (max && (size_t)st.st_size > max)
        rc = km_fail(err, KM_ELIMIT, "%s has %lld bytes; at most %zu are accepted", path, (long long)st.st_size, max);
    char block[65536];
    size_t total = 0;
    while (!rc) {
        ssize_t n = read(fd, block, sizeof block);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            rc = km_fail(err, KM_EIO, "cannot read %s: %s", path, strerror(errno));
        if (n <= 0)
            break;
        total += (size_t)n;
        if (max && total > max)
            rc = km_fail(err, KM_ELIMIT, "%s has more than %zu bytes; at most these are accepted", path, max);
        km_buf_put(out, block, (size_t)n);
    }
    close(fd);
    if (!rc)
        km_buf_put(out, "", 0);
    if (!rc && !km_buf_ok(out))
        rc = km_fail(err, KM_ENOMEM, "out of memory while reading %s", path);
    return rc;
}

static int write_all(int fd, const char *p, size_t n)
{
    while (n) {
        ssize_t w = write(fd, p, n);
        if (w < 0 && errno == EINTR)
            continue;
        if (w < 0)
            return -1;
        p += w;
        n -= (size_t)w;
    }
    return 0;
}

int km_file_write(const char *path, const void *data, size_t len, struct km_err *err)
{
    struct km_buf tmp = {0};
    km_buf_printf(&tmp, "%s.XXXXXX", path);
    if (!km_buf_ok(&tmp))
        return km_fail(err, KM_ENOMEM, "out of memory while writing %s", path);
    int rc = 0;
    int fd = mkostemp(tmp.data, O_CLOEXEC);
    if (fd < 0) {
        rc = km_fail(err, KM_EIO, "cannot create a file beside %s: %s", path, strerror(errno));
    } else {
        mode_t mask = umask(0);
        umask(mask);
        int bad = write_all(fd, data, len) || fchmod(fd, 0666 & ~mask) || fsync(fd);
        int why = errno;
        if (close(fd) && !bad)
            bad = 1, why = errno;
        if (!bad && rename(tmp.data, path))
            bad = 1, why = errno;
        if (bad) {
            unlink(tmp.data);
            rc = km_fail(err, KM_EIO, "cannot write %s: %s", path, strerror(why));
        }
    }
    km_buf_free(&tmp);
    return rc;
}

bool km_file_exists(const char *path)
{
    struct stat st;
    return stat(path, &st) == 0 && !S_ISDIR(st.st_mode);
}

bool km_dir_exists(const char *path)
{
    struct stat st;
    return stat(path, &st) == 0 && S_ISDIR(st.st_mode);
}

int km_mkdirs(const char *path, struct km_err *err)
{
    char *p = km_strdup(path);
    if (!p)
        return km_fail(err, KM_ENOMEM, "out of memory while creating the folder %s", path);
    int rc = 0;
    for (char *s = p + 1; !rc; s++) {
        char was = *s;
        if (was != '/' && was != 0)
            continue;
        *s = 0;
        if (mkdir(p, 0777) && (errno != EEXIST || !km_dir_exists(p)))
            rc = km_fail(err, KM_EIO, "cannot create the folder %s: %s", p, strerror(errno));
        *s = was;
        if (!was)
            break;
    }
    km_free(p);
    return rc;
}

char *km_path(const char *dir, const char *name)
{
    struct km_buf b = {0};
    size_t n = strlen(dir);
    km_buf_printf(&b, "%s%s%s", dir, n && dir[n - 1] == '/' ? "" : "/", name);
    return km_buf_take(&b);
}
