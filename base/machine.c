/* Reads files of /proc and /sys/fs/cgroup into buffers on the stack, because memory may be short. A file that cannot be
 * read means that no limit is known, and is never an error. */
#include "base/machine.h"

#include <sched.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct text {
    char s[16384]; /* the files are shorter, or have the line that is read near their start */
};

/* The whole number at s, or -1 when there is none. */
static int64_t parse_number(const char *s)
{
    char *end;
    long long v = strtoll(s, &end, 10);
    return end == s ? -1 : v;
}

/* The number in the line of text that begins with `key` and a space or a colon, or -1. */
static int64_t find_number(const char *text, const char *key)
{
    size_t n = strlen(key);
    for (const char *line = text; line; line = strchr(line, '\n')) {
        line += *line == '\n';
        if (!strncmp(line, key, n) && (line[n] == ' ' || line[n] == ':'))
            return parse_number(line + n + 1);
    }
    return -1;
}

/* Reads root/dir/name into t, as far as it fits, and returns the text; "" if the file cannot be read. */
static const char *read_text(struct text *t, const char *root, const char *dir, const char *name)
{
    char path[4096];
    size_t n = 0;
    int len = snprintf(path, sizeof path, "%s%s/%s", root, dir, name);
    FILE *f = len > 0 && (size_t)len < sizeof path ? fopen(path, "re") : NULL;
    if (f) {
        n = fread(t->s, 1, sizeof t->s - 1, f);
        fclose(f);
    }
    t->s[n] = 0;
    return t->s;
}

/* Names of the memory controller's files in one version of control groups. */
struct controller {
    const char *mount, *limit, *usage, *inactive, *active;
};

static const struct controller cgroup_v1 = {"/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes",
                                            "total_inactive_file", "total_active_file"};
static const struct controller cgroup_v2 = {"/sys/fs/cgroup", "memory.max", "memory.current", "inactive_file",
                                            "active_file"};

/* Bytes available in one group; INT64_MAX if it has no limit. */
static int64_t available_in_group(const char *root, const struct controller *c, const char *dir)
{
    struct text t;
    int64_t limit = parse_number(read_text(&t, root, dir, c->limit)); /* v2 writes "max" for none */
    int64_t used = parse_number(read_text(&t, root, dir, c->usage));
    const char *stat = read_text(&t, root, dir, "memory.stat");
    int64_t inactive = find_number(stat, c->inactive), active = find_number(stat, c->active);
    if (limit < 0)
        return INT64_MAX;
    used -= (inactive > 0 ? inactive : 0) + (active > 0 ? active / 2 : 0);
    if (used < 0)
        used = 0;
    return used < limit ? limit - used : 0;
}

/* The least that is available in the group at `path` and the groups above it. In a container, its own group is often
 * mounted as the root, while /proc names the path outside. So a folder that does not exist counts as no limit. */
static int64_t available_in_groups(const char *root, const struct controller *c, const char *path, size_t len)
{
    int64_t least = INT64_MAX;
    while (len && path[len - 1] == '/')
        len--;
    for (;;) {
        char dir[4096];
        snprintf(dir, sizeof dir, "%s%.*s", c->mount, (int)len, path);
        int64_t available = available_in_group(root, c, dir);
        least = available < least ? available : least;
        if (!len)
            return least;
        while (len && path[len - 1] != '/')
            len--;
        while (len && path[len - 1] == '/')
            len--;
    }
}

/* True if the comma-separated list [s, end) holds the word "memory". */
static bool lists_memory(const char *s, const char *end)
{
    while (s < end) {
        const char *comma = memchr(s, ',', (size_t)(end - s)), *stop = comma ? comma : end;
        if (stop - s == 6 && !memcmp(s, "memory", 6))
            return true;
        s = stop + 1;
    }
    return false;
}

int64_t km_available_memory(const char *root)
{
    struct text t;
    int64_t kib = find_number(read_text(&t, root, "/proc", "meminfo"), "MemAvailable");
    int64_t least = kib < 0 ? INT64_MAX : kib * 1024;
    /* A line is "id:controllers:path"; the controllers of version 2 are empty. */
    for (const char *line = read_text(&t, root, "/proc/self", "cgroup"); *line;) {
        size_t len = strcspn(line, "\n");
        const char *end = line + len, *list = memchr(line, ':', len);
        const char *path = list ? memchr(list + 1, ':', (size_t)(end - list - 1)) : NULL;
        const struct controller *c = !path                          ? NULL
                                     : path == list + 1             ? &cgroup_v2
                                     : lists_memory(list + 1, path) ? &cgroup_v1
                                                                    : NULL;
        int64_t available = c ? available_in_groups(root, c, path + 1, (size_t)(end - path - 1)) : INT64_MAX;
        least = available < least ? available : least;
        line = *end ? end + 1 : end;
    }
    return least;
}

int km_usable_cores(void)
{
    cpu_set_t set;
    int n = sched_getaffinity(0, sizeof set, &set) ? 1 : CPU_COUNT(&set);
    return n < 1 ? 1 : n;
}

void km_cpu_name(char *buf, size_t size)
{
    struct text t;
    snprintf(buf, size, "CPU");
    const char *at = strstr(read_text(&t, "", "/proc", "cpuinfo"), "model name");
    at = at ? strchr(at, ':') : NULL;
    if (at) {
        at += 1 + strspn(at + 1, " \t");
        snprintf(buf, size, "%.*s", (int)strcspn(at, "\n"), at);
    }
}
