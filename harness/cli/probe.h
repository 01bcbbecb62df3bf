/* Probes measure limits of this machine, such as the rate of memcpy, which bound every result on it. */
#ifndef PROBE_H
#define PROBE_H

enum { PROBE_REPEATS = 5 };

struct probe {
    const char *key, *what, *unit; /* "memcpy_gbps", "memcpy, one thread", "GB/s" */
    double (*measure)(void);       /* one rate; < 0: the probe cannot run here */
};
extern const struct probe probes[];
extern const int n_probes;

/* The median rate of PROBE_REPEATS measurements; < 0 if one of them could not run. */
double probe_median(const struct probe *p);

#endif
