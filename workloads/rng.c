/* numpy's MT19937 and PCG64, and the distributions of its legacy generator.
 *
 * Every function makes exactly the draws that numpy's function makes; otherwise all later values would differ.
 * Sources: Matsumoto and Nishimura 1998 (MT19937), O'Neill 2014 (PCG XSL-RR, seed_seq), Lemire 2019 (bounded integers),
 * Marsaglia and Bray 1964 (polar method for normals), Devroye 1986 chapter X.6 (zipf), Hoermann 1993 (PTRS for
 * Poisson). */
#include "workloads/rng.h"

#include <math.h>

enum { MT_N = 624, MT_M = 397 };

void wl_mt_seed(struct wl_mt *r, uint32_t seed)
{
    for (int i = 0; i < MT_N; i++) {
        r->key[i] = seed;
        seed = 1812433253U * (seed ^ seed >> 30) + (uint32_t)i + 1;
    }
    r->pos = MT_N;
    r->has_gauss = false;
    r->gauss = 0;
}

static uint32_t twist(uint32_t a, uint32_t b)
{
    uint32_t y = (a & 0x80000000U) | (b & 0x7FFFFFFFU);
    return y >> 1 ^ (y & 1 ? 0x9908B0DFU : 0);
}

static void refill(struct wl_mt *r)
{
    uint32_t *k = r->key;
    for (int i = 0; i < MT_N; i++)
        k[i] = k[(i + MT_M) % MT_N] ^ twist(k[i], k[(i + 1) % MT_N]);
    r->pos = 0;
}

uint32_t wl_mt_u32(struct wl_mt *r)
{
    if (r->pos >= MT_N)
        refill(r);
    uint32_t y = r->key[r->pos++];
    y ^= y >> 11;
    y ^= y << 7 & 0x9D2C5680U;
    y ^= y << 15 & 0xEFC60000U;
    return y ^ y >> 18;
}

double wl_mt_double(struct wl_mt *r)
{
    uint32_t hi = wl_mt_u32(r) >> 5, lo = wl_mt_u32(r) >> 6;
    return (hi * 67108864.0 + lo) / 9007199254740992.0;
}

/* Draws the bits that hi - lo has, and rejects values above it, as numpy does (masked rejection). */
int64_t wl_mt_int(struct wl_mt *r, int64_t lo, int64_t hi)
{
    uint64_t span = (uint64_t)hi - (uint64_t)lo;
    if (span == 0)
        return lo;
    uint64_t mask = ~(uint64_t)0 >> __builtin_clzll(span), v;
    do {
        v = wl_mt_u32(r);
        if (span > UINT32_MAX)
            v = v << 32 | wl_mt_u32(r);
        v &= mask;
    } while (v > span);
    return (int64_t)((uint64_t)lo + v);
}

double wl_mt_normal(struct wl_mt *r)
{
    if (r->has_gauss) {
        r->has_gauss = false;
        return r->gauss;
    }
    double x1, x2, r2;
    do {
        x1 = 2.0 * wl_mt_double(r) - 1.0;
        x2 = 2.0 * wl_mt_double(r) - 1.0;
        r2 = x1 * x1 + x2 * x2;
    } while (r2 >= 1.0 || r2 == 0.0);
    double f = sqrt(-2.0 * log(r2) / r2);
    r->gauss = f * x1;
    r->has_gauss = true;
    return f * x2;
}

double wl_mt_exponential(struct wl_mt *r, double scale)
{
    return scale * -log(1.0 - wl_mt_double(r));
}

int64_t wl_mt_zipf(struct wl_mt *r, double alpha)
{
    if (alpha > 1025) /* pow(2, alpha - 1) overflows; any value but 1 has a probability below 2^-1024 */
        return 1;
    double am1 = alpha - 1.0, b = pow(2.0, am1);
    for (;;) {
        double u = 1.0 - wl_mt_double(r), v = wl_mt_double(r);
        double x = floor(pow(u, -1.0 / am1));
        if (x > 0x1p63 || x < 1.0)
            continue;
        double t = pow(1.0 + 1.0 / x, am1);
        if (v * x * (t - 1.0) / (b - 1.0) <= t / b)
            return x >= 0x1p63 ? INT64_MAX : (int64_t)x;
    }
}

static int64_t poisson_by_products(struct wl_mt *r, double lambda)
{
    double limit = exp(-lambda), product = 1.0;
    int64_t k = 0;
    for (;;) {
        product *= wl_mt_double(r);
        if (product <= limit)
            return k;
        k++;
    }
}

static int64_t poisson_ptrs(struct wl_mt *r, double lambda)
{
    double log_lambda = log(lambda), root = sqrt(lambda);
    double b = 0.931 + 2.53 * root, a = -0.059 + 0.02483 * b;
    double inv_alpha = 1.1239 + 1.1328 / (b - 3.4), v_r = 0.9277 - 3.6224 / (b - 2);
    for (;;) {
        double u = wl_mt_double(r) - 0.5, v = wl_mt_double(r), us = 0.5 - fabs(u);
        double k = floor((2 * a / us + b) * u + lambda + 0.43);
        if (us >= 0.07 && v <= v_r)
            return (int64_t)k;
        if (k < 0 || (us < 0.013 && v > us))
            continue;
        if (log(v) + log(inv_alpha) - log(a / (us * us) + b) <= k * log_lambda - lambda - lgamma(k + 1))
            return (int64_t)k;
    }
}

int64_t wl_mt_poisson(struct wl_mt *r, double lambda)
{
    if (lambda == 0)
        return 0;
    return lambda < 10 ? poisson_by_products(r, lambda) : poisson_ptrs(r, lambda);
}

/* The next three functions are numpy's SeedSequence with its default pool of four words, for a seed of one integer. */
static uint32_t hash_in(uint32_t v, uint32_t *mul)
{
    v ^= *mul;
    *mul *= 0x931E8875U;
    v *= *mul;
    return v ^ v >> 16;
}

static uint32_t mix(uint32_t x, uint32_t y)
{
    uint32_t v = 0xCA01F9DDU * x - 0x4973F715U * y;
    return v ^ v >> 16;
}

static void seed_words(uint64_t seed, uint64_t out[4])
{
    uint32_t pool[4], mul = 0x43B0D7E5U;
    for (int i = 0; i < 4; i++)
        pool[i] = hash_in(i < 2 ? (uint32_t)(seed >> 32 * i) : 0, &mul);
    for (int src = 0; src < 4; src++)
        for (int dst = 0; dst < 4; dst++)
            if (src != dst)
                pool[dst] = mix(pool[dst], hash_in(pool[src], &mul));
    mul = 0x8B51F9DDU;
    for (int i = 0; i < 8; i++) {
        uint32_t v = pool[i % 4] ^ mul;
        mul *= 0x58F38DEDU;
        v *= mul;
        v ^= v >> 16;
        out[i / 2] = i % 2 ? out[i / 2] | (uint64_t)v << 32 : v;
    }
}

static void pcg_step(struct wl_pcg *r)
{
    const unsigned __int128 mul = (unsigned __int128)0x2360ED051FC65DA4U << 64 | 0x4385DF649FCCF645U;
    r->state = r->state * mul + r->inc;
}

void wl_pcg_seed(struct wl_pcg *r, uint64_t seed)
{
    uint64_t w[4];
    seed_words(seed, w);
    *r = (struct wl_pcg){.inc = ((unsigned __int128)w[2] << 64 | w[3]) << 1 | 1};
    pcg_step(r);
    r->state += (unsigned __int128)w[0] << 64 | w[1];
    pcg_step(r);
}

uint64_t wl_pcg_u64(struct wl_pcg *r)
{
    pcg_step(r);
    uint64_t hi = (uint64_t)(r->state >> 64), v = hi ^ (uint64_t)r->state;
    unsigned rot = (unsigned)(hi >> 58);
    return v >> rot | v << (-rot & 63);
}

double wl_pcg_double(struct wl_pcg *r)
{
    return (double)(wl_pcg_u64(r) >> 11) / 9007199254740992.0;
}

static uint32_t pcg_u32(struct wl_pcg *r)
{
    if (r->has_u32) {
        r->has_u32 = false;
        return r->u32;
    }
    uint64_t v = wl_pcg_u64(r);
    r->has_u32 = true;
    r->u32 = (uint32_t)(v >> 32);
    return (uint32_t)v;
}

/* Lemire's method on 32-bit draws. */
int64_t wl_pcg_int(struct wl_pcg *r, int64_t lo, int64_t hi)
{
    uint32_t span = (uint32_t)(hi - lo);
    if (span == 0)
        return lo;
    if (span == UINT32_MAX)
        return lo + pcg_u32(r);
    uint32_t n = span + 1, least = (UINT32_MAX - span) % n;
    uint64_t m;
    do {
        m = (uint64_t)pcg_u32(r) * n;
    } while ((uint32_t)m < least);
    return lo + (int64_t)(m >> 32);
}
