/* Descriptive statistics of a sample. */
#ifndef HZ_STAT_H
#define HZ_STAT_H

/* A member is NAN if the sample is too small for it: std needs 2 values, p99 needs 100, the others need 1. Percentiles
 * are interpolated linearly between neighbouring values, as numpy.percentile does by default. */
struct hz_stat {
    int n;                                          /* number of values */
    double mean, std, min, p50, p90, p95, p99, max; /* std: of the sample, with divisor n - 1 */
};

/* Computes the statistics of v[n], which it sorts in place. n may be 0. */
struct hz_stat hz_stat_of(double *v, int n);

#endif
