/* The option table of the cache layer, and how its options combine. */
#include "harness/cli/kv_options.h"

#include "base/log.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const struct km_option rows[] = {
    {.name = "kv-cache",
     KM_FIELD(struct kvo_opts, cache),
     .arg = "SPEC",
     .fallback = "none",
     .help = "cache layer: none, or a list of host memory and tiers below it, such as dram=50GiB,disk=/data:200GiB "
             "(kvmark info lists the tiers); without dram=, 2 GiB of host memory are used, for staging only"},
    {.name = "kv-config",
     KM_FIELD(struct kvo_opts, config),
     .arg = "FILE.yaml",
     .help = "configuration file of the cache layer, in LMCache's format, instead of --kv-cache"},
    {.name = "chunk-size",
     KM_FIELD(struct kvo_opts, chunk_size),
     .arg = "N",
     .lo = 1,
     .hi = KVC_CHUNK_MOST,
     .help = "tokens of a chunk, a multiple of --block-size (default: 256, or what --kv-config says)"},
    {.name = "kv-throttle",
     KM_FIELD(struct kvo_opts, throttle),
     .arg = "RATE",
     .help = "most bytes per second of all loads from host memory, to measure what a slower link would save: 25GB/s is "
             "25 x 10^9 bytes, 25GiB/s is 25 x 2^30 (default: no limit)"},
    {.name = "kv-role",
     KM_FIELD(struct kvo_opts, role),
     .values = "kv_both|kv_producer|kv_consumer",
     .fallback = "kv_both",
     .help = "role in a disaggregated deployment; this version has only kv_both"},
};

_Static_assert(KVC_STAGING == (int64_t)2 << 30, "as the help of --kv-cache says");

struct km_option_group kvo_option_group(struct kvo_opts *o)
{
    return KM_OPTION_GROUP("KV-cache layer", rows, o);
}

/* Parses "25GB/s" or "25GiB/s", also without "/s". Units of rates are exact, unlike those of sizes (km_parse_size),
 * because the rates of links are stated in powers of ten. */
static int parse_rate(const char *text, int64_t *out, struct km_err *err)
{
    static const struct {
        const char *unit;
        double factor;
    } units[] = {{"B", 1},        {"KB", 1e3},      {"MB", 1e6},      {"GB", 1e9},
                 {"KiB", 0x1p10}, {"MiB", 0x1p20}, {"GiB", 0x1p30}};
    char *end;
    errno = 0;
    double v = strtod(text, &end);
    size_t n = strcspn(end, "/");
    bool good = end != text && !errno && isfinite(v) && (!end[n] || !strcmp(end + n, "/s"));
    for (size_t i = 0; good && i < sizeof units / sizeof *units; i++)
        if (strlen(units[i].unit) == n && !strncmp(units[i].unit, end, n)) {
            v *= units[i].factor;
            if (v < 1 || v > 9e18)
                break;
            *out = (int64_t)v;
            return 0;
        }
    return km_fail(err, KM_EINVAL,
                   "--kv-throttle is \"%.40s\", which is not a rate; write for example 25GB/s (25 x 10^9 bytes per "
                   "second) or 25GiB/s (25 x 2^30)",
                   text);
}

static int read_file(const char *path, struct kvc_config *c, bool warn, struct km_err *err)
{
    struct km_buf warnings = {0};
    int rc = kvc_config_yaml(path, c, &warnings, err);
    for (char *w = warnings.data, *next; !rc && warn && w && *w; w = next) {
        next = w + strcspn(w, "\n");
        if (*next)
            *next++ = 0;
        km_log(KM_LOG_WARN, "%s: %s", path, w);
    }
    km_buf_free(&warnings);
    return rc;
}

int kvo_choose(const struct kvo_opts *o, int block_size, bool warn, struct kvo_choice *out, struct km_err *err)
{
    struct kvc_config *c = &out->config;
    bool off = false;
    int rc;
    *out = (struct kvo_choice){.config = kvc_defaults(), .text = "none"};
    if (strcmp(o->role, "kv_both"))
        return km_fail(err, KM_EINVAL, "--kv-role %s is not available in this version; leave it at kv_both", o->role);
    if (o->config && strcmp(o->cache, "none"))
        return km_fail(err, KM_EINVAL, "--kv-config and --kv-cache both describe the cache layer; give one of them");
    if (o->config) {
        rc = read_file(o->config, c, warn, err);
        off = !kvc_config_on(c);
    } else if ((rc = kvc_config_spec(o->cache, c, &off, err))) {
        km_context(err, "--kv-cache");
    }
    if (!rc && o->throttle)
        rc = parse_rate(o->throttle, &c->throttle, err);
    if (rc)
        return rc;
    if (o->chunk_size)
        c->chunk_size = o->chunk_size;
    if (off)
        return 0;
    if (c->chunk_size % block_size)
        return km_fail(err, KM_EINVAL, "--chunk-size is %d; it must be a multiple of --block-size, which is %d",
                       c->chunk_size, block_size);
    struct km_buf text = {0};
    kvc_describe(c, &text);
    snprintf(out->text, sizeof out->text, "%s", km_buf_str(&text));
    km_buf_free(&text);
    out->on = true;
    return 0;
}
