#include "kvcache/tiers/disk_config.h"

#include "base/option.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#define GIB ((int64_t)1 << 30)
#define MAX_GIB 1048576 /* 1 PiB */

void disk_config_defaults(void *config)
{
    *(struct disk_config *)config = (struct disk_config){0};
}

static int set_dir(struct disk_config *c, const char *dir, size_t n, const char *what, struct km_err *err)
{
    if (n >= sizeof c->dir)
        return km_fail(err, KM_EINVAL, "%s has %zu characters; at most %zu are possible", what, n, sizeof c->dir - 1);
    memcpy(c->dir, dir, n);
    c->dir[n] = 0;
    return 0;
}

/* LMCache accepts a path or file:///path. It has no default folder, so "true" names none. */
static int set_local_disk(void *config, const char *key, const char *value, struct km_err *err)
{
    static const char *const no[] = {"", "~", "null", "none", "false", "no", "off", "0"};
    static const char *const yes[] = {"true", "yes", "on", "1"};
    for (size_t i = 0; i < sizeof no / sizeof *no; i++)
        if (!strcasecmp(value, no[i]))
            return set_dir(config, "", 0, key, err);
    for (size_t i = 0; i < sizeof yes / sizeof *yes; i++)
        if (!strcasecmp(value, yes[i]))
            return km_fail(err, KM_EINVAL, "%s is \"%s\"; it must name a folder, such as /data/kv", key, value);
    const char *dir = value;
    if (!strncasecmp(value, "file://", 7)) {
        dir = value + 7;
        if (*dir != '/')
            return km_fail(err, KM_EINVAL, "%s is \"%.200s\"; a URL needs an absolute path, such as file:///data/kv",
                           key, value);
    } else if (strstr(value, "://")) {
        return km_fail(err, KM_EINVAL, "%s is \"%.200s\"; it must be a folder or file:///FOLDER", key, value);
    }
    return set_dir(config, dir, strlen(dir), key, err);
}

static int set_max_size(void *config, const char *key, const char *value, struct km_err *err)
{
    char *end;
    errno = 0;
    double gib = strtod(value, &end);
    if (end == value || *end || errno || !isfinite(gib) || strpbrk(value, "xX"))
        return km_fail(err, KM_EINVAL, "%s is \"%.80s\"; it must be a number of GiB", key, value);
    if (gib < 0 || gib > MAX_GIB)
        return km_fail(err, KM_EINVAL, "%s is %.80s; it must be between 0 and %d (GiB)", key, value, MAX_GIB);
    ((struct disk_config *)config)->size = (int64_t)(gib * (double)GIB);
    return 0;
}

const struct kvc_tier_key disk_keys[DISK_N_KEYS] = {{"local_disk", set_local_disk},
                                                    {"max_local_disk_size", set_max_size}};

int disk_config_parse(void *config, const char *text, struct km_err *err)
{
    struct disk_config *c = config;
    const char *colon = strrchr(text, ':'); /* the folder's name may contain colons */
    if (!colon || !colon[1] || colon == text || strchr(colon, '/'))
        return km_fail(err, KM_EINVAL, "\"disk=%.200s\" needs a folder and a size, such as disk=/data/kv:200GiB", text);
    int rc = km_parse_size(colon + 1, &c->size, err);
    if (rc)
        return km_context(err, "disk="), rc;
    if (c->size < 1 || c->size > MAX_GIB * GIB)
        return km_fail(err, KM_EINVAL, "\"disk=%.200s\": the size must be between 1 byte and %dTiB", text,
                       MAX_GIB / 1024);
    return set_dir(c, text, (size_t)(colon - text), "the folder of disk=", err);
}

int disk_config_enabled(const void *config, bool *on, struct km_err *err)
{
    const struct disk_config *c = config;
    *on = *c->dir != 0;
    if (*on && c->size < 1)
        return km_fail(err, KM_EINVAL,
                       "local_disk is %.200s, but max_local_disk_size is 0, so nothing fits; set it to the GiB that "
                       "the cache may use there, or remove local_disk",
                       c->dir);
    return 0;
}

void disk_config_describe(const void *config, char *out, size_t size)
{
    static const char *const unit[] = {"B", "KiB", "MiB", "GiB", "TiB"};
    const struct disk_config *c = config;
    int64_t n = c->size;
    int u = 0;
    while (u < 4 && n && n % 1024 == 0)
        n /= 1024, u++;
    snprintf(out, size, "disk=%s:%lld%s", c->dir, (long long)n, unit[u]);
}
