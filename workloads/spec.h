/* A parsed workload file, as the kinds read it and generate from it. */
#ifndef WL_SPEC_H
#define WL_SPEC_H

#include "base/json.h"
#include "workloads/kind.h"

#include <stdint.h>

/* Limits on the conversations or prompts of a workload, and on the messages of a conversation. */
enum { WL_MAX_CONVS = 1000000, WL_MAX_MESSAGES = 100000 };

struct wl_spec {
    enum wl_kind kind;
    char *name;        /* base name of the file without .json */
    char *dir;         /* folder of the file */
    cJSON *json;       /* the whole file */
    int n;             /* conversations or prompts */
    int n_max;         /* the most that can be generated; WL_MAX_CONVS unless the kind says less */
    uint64_t seed_max; /* the largest seed that the generator takes; UINT64_MAX unless the kind says less */
    void *params;      /* parameters of the kind: a struct of wl_kind_ops.params_size bytes; NULL: none */
};

#endif
