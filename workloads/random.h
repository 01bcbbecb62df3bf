/* Parameters of a workload file with "filetype": "random" (random.c). */
#ifndef WL_RANDOM_H
#define WL_RANDOM_H

#include <stdbool.h>
#include <stdint.h>

/* vLLM's versions of the data set; random.c says how they differ. */
enum wl_random_version { WL_RANDOM_V010, WL_RANDOM_V011, WL_RANDOM_NEW };

struct wl_random {
    enum wl_random_version version; /* "generator" in the file */
    int64_t input_len;              /* mean tokens of a prompt after the common prefix */
    int64_t output_len;             /* mean output tokens to request */
    int64_t prefix_len;             /* tokens of the common prefix of all prompts */
    double range_ratio;             /* lengths are uniform in input_len * (1 +- range_ratio), and output_len likewise */
    bool repeat_one;                /* all requests send the first prompt */
};

#endif
