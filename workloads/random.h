/* The parameters of a file of type "random", as random.c reads and uses them. */
#ifndef WL_RANDOM_H
#define WL_RANDOM_H

#include <stdbool.h>
#include <stdint.h>

/* The data set "random" as vLLM has had it; random.c says how they differ. */
enum wl_random_generator { WL_RANDOM_V010, WL_RANDOM_V011, WL_RANDOM_NEW };

struct wl_random {
    enum wl_random_generator generator;
    bool repeat_one; /* all requests are the first prompt */
    int64_t input_len, output_len, prefix_len; /* tokens */
    double range_ratio;
};

#endif
