/* Measured limits of this machine, such as the rate of memcpy, which bound every result on it. */
#ifndef MACHINE_LIMITS_H
#define MACHINE_LIMITS_H

enum { MACHINE_LIMIT_REPEATS = 5 };

struct machine_limit {
    const char *key, *what, *unit; /* "memcpy_gbps", "memcpy, one thread", "GB/s" */
    double (*measure)(void);       /* one rate; < 0: it cannot be measured here */
};
extern const struct machine_limit machine_limits[];
extern const int n_machine_limits;

/* The median rate of MACHINE_LIMIT_REPEATS measurements; < 0 if one of them could not run. */
double machine_limit_measure(const struct machine_limit *limit);

#endif
