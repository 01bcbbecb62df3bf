/* Descriptive statistics of a sample. */
#ifndef HZ_STAT_H
#define HZ_STAT_H

/* A member is NAN when the sample is too small for it: std needs 2 values, p99 needs 100, the others 1. */
struct hz_stat {
    int n;                                          /* values in the sample */
    double mean, std, min, p50, p90, p95, p99, max; /* std divides by n - 1 */
};

/* Sorts v[n] in place. n may be 0. */
struct hz_stat hz_stat_of(double *v, int n);

#endif
