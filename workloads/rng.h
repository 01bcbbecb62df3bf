/* numpy's two generators, draw for draw, so that a workload made here is the one vLLM's scripts make.
 *
 * `wl_mt` is numpy's legacy global generator (numpy.random.seed: MT19937, polar normals), used by the
 * multi-turn generator and by `vllm bench serve` until 2025; `wl_pcg` is default_rng (PCG64). Formulas: the
 * numpy documentation and the papers named at each function in rng.c. */
#ifndef WL_RNG_H
#define WL_RNG_H

#include <stdbool.h>
#include <stdint.h>

struct wl_mt {
    uint32_t key[624];
    int pos;
    bool has_gauss;
    double gauss;
};

void wl_mt_seed(struct wl_mt *r, uint32_t seed);
uint32_t wl_mt_u32(struct wl_mt *r);
double wl_mt_double(struct wl_mt *r);                             /* [0, 1), 53 bits */
int64_t wl_mt_int(struct wl_mt *r, int64_t lo, int64_t hi);       /* [lo, hi], masked rejection; lo == hi draws nothing */
double wl_mt_normal(struct wl_mt *r);
double wl_mt_exponential(struct wl_mt *r, double scale);
int64_t wl_mt_zipf(struct wl_mt *r, double alpha);
int64_t wl_mt_poisson(struct wl_mt *r, double lambda);

struct wl_pcg {
    unsigned __int128 state, inc;
    bool has_u32;
    uint32_t u32;
};

void wl_pcg_seed(struct wl_pcg *r, uint64_t seed); /* SeedSequence(seed), as default_rng does */
uint64_t wl_pcg_u64(struct wl_pcg *r);
double wl_pcg_double(struct wl_pcg *r);
int64_t wl_pcg_int(struct wl_pcg *r, int64_t lo, int64_t hi);     /* [lo, hi], 32-bit Lemire; lo == hi draws nothing */

#endif
