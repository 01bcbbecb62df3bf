/* The flags that choose and scale a workload, shared by `gen` and `run`. */
#ifndef HZ_WLFLAGS_H
#define HZ_WLFLAGS_H

#include "base/args.h"
#include "workloads/workload.h"

struct wlf_opts {
    const char *tokenizer, *text, *text_dir;
    int64_t seed, num_conversations, num_prompts;
};
struct wlf_opts wlf_defaults(void);
int wlf_flags(struct wlf_opts *o, struct km_flag *out, int max); /* without tokenizer and seed */

/* Reads and generates. With --text auto, a missing text file is replaced by the built-in text and a line on stderr says
 * so. */
int wlf_generate(const struct wlf_opts *o, const char *path, const struct tok *tok, struct wl_set **out,
                 struct km_err *err);

#endif
