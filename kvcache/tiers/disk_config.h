/* The configuration of the disk tier: LMCache's keys local_disk and max_local_disk_size, and the element
 * disk=DIR:SIZE of --kv-cache. */
#ifndef DISK_CONFIG_H
#define DISK_CONFIG_H

#include "kvcache/tier.h"

struct disk_config {
    char dir[1024]; /* the folder; "": none */
    int64_t size;   /* most bytes of all files in the folder, of every model */
    /* Set by tests and the benchmark. */
    bool no_uring;  /* use threads with preadv and pwritev, as on a machine that forbids io_uring */
    bool no_direct; /* use the page cache, as on a file system without O_DIRECT */
};

_Static_assert(sizeof(struct disk_config) <= KVC_TIER_CONFIG, "the layer stores the config");

enum { DISK_N_KEYS = 2 };
extern const struct kvc_tier_key disk_keys[DISK_N_KEYS];

void disk_config_defaults(void *config);
int disk_config_parse(void *config, const char *text, struct km_err *err);
int disk_config_enabled(const void *config, bool *on, struct km_err *err);
void disk_config_describe(const void *config, char *out, size_t size);

#endif
