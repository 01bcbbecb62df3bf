/* A histogram of durations in fixed memory, for the client's own health. It has 16 bins per octave, so that a
 * percentile is at most 1/16 too large. */
#ifndef HIST_H
#define HIST_H

#include <math.h>
#include <stdint.h>

struct hist {
    uint32_t bin[64 * 16]; /* bins 0 to 15: the values themselves; then 16 bins per octave */
    int64_t n, max;        /* values, and the largest of them in ns */
};

/* Negative durations count as 0. */
static inline void hist_add(struct hist *h, int64_t ns)
{
    uint64_t v = ns > 0 ? (uint64_t)ns : 0;
    int top = v < 16 ? 0 : 63 - __builtin_clzll(v) - 3; /* octaves above the first 16 values */
    h->bin[v < 16 ? v : (uint64_t)top * 16 + ((v >> (top - 1)) & 15)]++;
    h->n++;
    h->max = (int64_t)v > h->max ? (int64_t)v : h->max;
}

/* Quantile q in milliseconds: the upper edge of its bin, at most the maximum. NAN when there are no values. */
static inline double hist_ms(const struct hist *h, double q)
{
    if (!h->n)
        return NAN;
    int64_t want = (int64_t)ceil(q * (double)h->n), seen = 0;
    int i = 0;
    while (i < 64 * 16 - 1 && (seen += h->bin[i]) < want)
        i++;
    double edge = i < 16 ? i : ldexp(16 + i % 16 + 1, i / 16 - 1);
    return fmin(edge, (double)h->max) / 1e6;
}

#endif
