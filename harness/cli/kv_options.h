/* The options of the cache layer, and the layer that they choose.
 *
 * `kvo_opts` holds the options, which serve, run and info --plan share. kvo_choose reads them into a `kvo_choice`.
 * --kv-config and --kv-cache exclude each other. --chunk-size and --kv-throttle take precedence over both. */
#ifndef KV_OPTIONS_H
#define KV_OPTIONS_H

#include "base/err.h"
#include "base/option.h"
#include "kvcache/kvcache.h"

#include <stdbool.h>

struct kvo_opts {
    const char *cache, *config, *role;
    const char *throttle; /* a rate; NULL: not given */
    int chunk_size;       /* 0: not given */
};
struct km_option_group kvo_option_group(struct kvo_opts *o);

enum { KVO_TEXT = 512 };
struct kvo_choice {
    bool on;                  /* false: no cache layer */
    struct kvc_config config; /* the layer's defaults, with --chunk-size, if `on` is false */
    char text[KVO_TEXT];      /* for results: "none", or what kvc_describe writes, such as "dram=5GiB, chunk 256" */
};
/* block_size: the engine's, of which the chunk size must be a multiple. warn: log the keys of the configuration file
 * that have no effect. KM_EINVAL: wrong options. */
int kvo_choose(const struct kvo_opts *o, int block_size, bool warn, struct kvo_choice *out, struct km_err *err);

#endif
