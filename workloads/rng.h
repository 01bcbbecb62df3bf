/* numpy's two random generators, so that a generated workload equals the one that vLLM's scripts generate.
 *
 * `wl_mt` is numpy's legacy global generator (numpy.random.seed: MT19937). vLLM's multi-turn script uses it, and `vllm
 * bench serve` used it until 2025. `wl_pcg` is numpy's default_rng (PCG64). Both return numpy's values in numpy's
 * order. The caller owns a generator, which needs no freeing. */
#ifndef WL_RNG_H
#define WL_RNG_H

#include <stdbool.h>
#include <stdint.h>

struct wl_mt {
    uint32_t key[624];
    int pos;        /* index of the next word of key; 624: all are used */
    bool has_gauss; /* true: `gauss` holds the second normal of the last pair that the polar method made */
    double gauss;
};

void wl_mt_seed(struct wl_mt *r, uint32_t seed);
uint32_t wl_mt_u32(struct wl_mt *r);
double wl_mt_double(struct wl_mt *r);                       /* uniform in [0, 1), 53 bits */
int64_t wl_mt_int(struct wl_mt *r, int64_t lo, int64_t hi); /* uniform in [lo, hi]; draws nothing if lo == hi */
double wl_mt_normal(struct wl_mt *r);                       /* mean 0, standard deviation 1 */
double wl_mt_exponential(struct wl_mt *r, double scale);    /* mean `scale` */
int64_t wl_mt_zipf(struct wl_mt *r, double alpha);          /* exponent alpha > 1 */
int64_t wl_mt_poisson(struct wl_mt *r, double lambda);      /* mean lambda >= 0 */

struct wl_pcg {
    unsigned __int128 state, inc;
    bool has_u32; /* true: u32 holds the unused upper half of the last 64-bit draw that was split */
    uint32_t u32;
};

void wl_pcg_seed(struct wl_pcg *r, uint64_t seed); /* SeedSequence(seed), as default_rng does */
uint64_t wl_pcg_u64(struct wl_pcg *r);
double wl_pcg_double(struct wl_pcg *r); /* uniform in [0, 1), 53 bits */
/* Uniform in [lo, hi], where hi - lo < 2^32; draws nothing if lo == hi. */
int64_t wl_pcg_int(struct wl_pcg *r, int64_t lo, int64_t hi);

#endif
