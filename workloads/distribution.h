/* A distribution of the workload file: what `"num_turns": {"distribution": "uniform", "min": 12, "max": 18}`
 * says, and its samples, draw for draw as vLLM's generator takes them from numpy. */
#ifndef WL_DISTRIBUTION_H
#define WL_DISTRIBUTION_H

#include "base/json.h"
#include "workloads/rng.h"

#include <stdint.h>

enum wl_distribution_kind {
    WL_CONSTANT,       /* a */
    WL_UNIFORM_INT,    /* integers a..b, both included */
    WL_UNIFORM,        /* reals in [a, b), truncated */
    WL_ZIPF,           /* alpha a */
    WL_POISSON,        /* lambda a */
    WL_LOGNORMAL,      /* of the underlying normal: mean a, sigma b */
    WL_LOGNORMAL_MEAN  /* the same, then all samples scaled so that their mean is `average` */
};

struct wl_distribution {
    enum wl_distribution_kind kind;
    double a, b;
    double average;
    double max; /* 0: none */
};

/* Samples are cut off here: far beyond any text, small enough that sums of them fit. */
#define WL_DISTRIBUTION_CAP ((int64_t)1 << 40)

/* Reads section[key]; `where` is the section's name for messages. Absent and not needed: the constant 0. */
int wl_distribution_read(struct wl_distribution *out, const cJSON *section, const char *where, const char *key, bool need,
                struct km_err *err);

/* n samples into out. The only failure is KM_ENOMEM. */
int wl_distribution_sample(const struct wl_distribution *l, struct wl_mt *r, int n, int64_t *out, struct km_err *err);

/* cJSON forgets whether 12 was written 12 or 12.0, and the meaning of `uniform` hangs on it. Walks the text and
 * its tree together and sets valueint of every number to 1 (written as an integer) or 0. */
void wl_note_integers(const char *text, cJSON *root);

#endif
