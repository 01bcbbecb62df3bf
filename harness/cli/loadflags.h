/* The client's flags, with the names of vLLM's benchmark scripts. */
#ifndef HZ_LOADFLAGS_H
#define HZ_LOADFLAGS_H

#include "harness/client/load.h"

struct lf_opts {
    struct load load;
    const char *sampling, *endpoint, *thinking; /* as typed; lf_resolve turns them into load */
};
struct lf_opts lf_defaults(void);
int lf_flags(struct lf_opts *o, struct km_flag *out, int max);
int lf_resolve(struct lf_opts *o, struct km_err *err);

#endif
