/* Reads /proc and the cgroup; what cannot be read is unknown, not an error. */
#include "engine/cpu/host.h"

#include "base/buf.h"
#include "base/file.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The number behind `key` in a small text file, or -1. An empty key: the file's first word. */
static int64_t number_in(const char *path, const char *key)
{
    struct km_buf b = {0};
    int64_t v = -1;
    if (!km_file_read(path, 1 << 20, &b, NULL)) {
        const char *at = strstr(km_buf_str(&b), key);
        char *end = NULL;
        at = at ? at + strlen(key) : "";
        v = strtoll(at, &end, 10);
        v = end == at ? -1 : v;
    }
    km_buf_free(&b);
    return v;
}

int64_t host_available(void)
{
    int64_t kib = number_in("/proc/meminfo", "MemAvailable:"), best = kib < 0 ? INT64_MAX : kib * 1024;
    int64_t limit = number_in("/sys/fs/cgroup/memory.max", ""), used = number_in("/sys/fs/cgroup/memory.current", "");
    if (limit >= 0 && used >= 0 && limit - used < best)
        best = limit > used ? limit - used : 0;
    return best;
}

void host_cpu_name(char *buf, size_t size)
{
    struct km_buf b = {0};
    snprintf(buf, size, "CPU");
    if (!km_file_read("/proc/cpuinfo", 4 << 20, &b, NULL)) {
        const char *at = strstr(km_buf_str(&b), "model name");
        at = at ? strchr(at, ':') : NULL;
        if (at) {
            at += 1 + strspn(at + 1, " \t");
            snprintf(buf, size, "%.*s", (int)strcspn(at, "\n"), at);
        }
    }
    km_buf_free(&b);
}
