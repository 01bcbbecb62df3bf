/* The options of a comparison: one row per field of `struct compare_opts`. */
#include "harness/report/compare.h"

static const struct km_option rows[] = {
    {.name = "profile",
     KM_FIELD_CHOICE(struct compare_opts, profile),
     .values = "seed|strict",
     .fallback = "seed",
     .help = "definitions of the figures: seed as in vLLM's benchmark scripts, strict as kvmark defines them"},
    {.name = "average",
     KM_FIELD_CHOICE(struct compare_opts, median),
     .values = "mean|median",
     .fallback = "mean",
     .help = "how the figure of a side is computed from its runs"},
    {.name = "force", KM_FIELD(struct compare_opts, force), .help = "compare runs of different workloads"},
    {.name = "draws",
     KM_FIELD(struct compare_opts, draws),
     .arg = "N",
     .fallback = "10000",
     .lo = 100,
     .hi = 1e7,
     .help = "resamples of the bootstrap"},
    {.name = "seed",
     KM_FIELD(struct compare_opts, seed),
     .arg = "N",
     .fallback = "1",
     .lo = 0,
     .hi = 9e15,
     .help = "seed of the bootstrap"},
    {.name = "noise-limit", KM_FIELD(struct compare_opts, noise), .fallback = "0.05", .internal = true},
};

struct km_option_group compare_option_group(struct compare_opts *o)
{
    return KM_OPTION_GROUP("Comparison", rows, o);
}

struct compare_opts compare_defaults(void)
{
    struct compare_opts o = {0};
    struct km_option_group group = compare_option_group(&o);
    km_options_default(&group, 1);
    return o;
}
