/* Distributions of lengths in a workload file, such as
 * `"num_turns": {"distribution": "uniform", "min": 12, "max": 18}`.
 *
 * A `wl_distribution` is checked when the file is read, so that sampling fails only for lack of memory. Its samples are
 * those of vLLM's generator: the same draws from numpy's legacy generator (rng.h), in the same order, rounded alike. */
#ifndef WL_DISTRIBUTION_H
#define WL_DISTRIBUTION_H

#include "base/json.h"
#include "workloads/rng.h"

#include <stdint.h>

enum wl_distribution_family {
    WL_CONSTANT,      /* a */
    WL_UNIFORM_INT,   /* integers in [a, b] */
    WL_UNIFORM,       /* reals in [a, b), truncated to integers */
    WL_ZIPF,          /* exponent a */
    WL_POISSON,       /* mean a */
    WL_LOGNORMAL,     /* the underlying normal distribution has mean a and standard deviation b */
    WL_LOGNORMAL_MEAN /* WL_LOGNORMAL, with all samples of a call scaled so that their mean is `average` */
};

struct wl_distribution {
    enum wl_distribution_family family;
    double a, b;    /* parameters of the family */
    double average; /* WL_LOGNORMAL_MEAN only */
    double max;     /* larger samples become max; 0: no maximum */
};

/* Larger samples become this one. It is longer than any text, and a sum of 2^22 of them still fits an int64_t. */
#define WL_DISTRIBUTION_CAP ((int64_t)1 << 40)

/* Reads section[key]. `where` is the section's name, for error messages. If the key is absent and not needed, the
 * distribution is the constant 0. */
int wl_distribution_read(struct wl_distribution *out, const cJSON *section, const char *where, const char *key,
                         bool need, struct km_err *err);

/* Writes n samples to out. The only error is KM_ENOMEM. */
int wl_distribution_sample(const struct wl_distribution *d, struct wl_mt *r, int n, int64_t *out, struct km_err *err);

/* Records in valueint of every number in the tree whether `text` writes it as an integer: 1 for 12, 0 for 12.0. cJSON
 * does not keep that difference, and "uniform" depends on it, as in Python. text: what root was parsed from. */
void wl_note_integers(const char *text, cJSON *root);

#endif
