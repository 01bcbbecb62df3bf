/* The tree's random generator: SplitMix64 (Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators",
 * 2014).
 *
 * The state is one 64-bit word. A step adds KM_GOLDEN64 to the state and returns km_mix64 of the sum, so any number of
 * a sequence can be computed without the numbers before it (km_random_at). Dummy weights and sampled ids are defined
 * by km_random_at, on the host and in CUDA kernels alike, so a change of any constant here changes both. The generator
 * must not be used for secrets. Workloads use numpy's generators instead (workloads/rng.h). */
#ifndef KM_RANDOM_H
#define KM_RANDOM_H

#include <stdint.h>

#ifdef __CUDACC__
#define KM_HOST_DEVICE __host__ __device__ static inline
#else
#define KM_HOST_DEVICE static inline
#endif

#define KM_GOLDEN64 0x9E3779B97F4A7C15u /* 2^64 divided by the golden ratio, made odd */

/* SplitMix64's output function: a bijection of 64-bit words in which each input bit reaches every output bit. */
KM_HOST_DEVICE uint64_t km_mix64(uint64_t z)
{
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
    z = (z ^ z >> 27) * 0x94D049BB133111EBu;
    return z ^ z >> 31;
}

/* The i-th number of the sequence that starts at state seed; the first one has i = 1. */
KM_HOST_DEVICE uint64_t km_random_at(uint64_t seed, uint64_t i)
{
    return km_mix64(seed + i * KM_GOLDEN64);
}

/* The next number of the sequence. Every seed is a good first state. */
KM_HOST_DEVICE uint64_t km_random_next(uint64_t *state)
{
    return km_mix64(*state += KM_GOLDEN64);
}

/* A number in [0, n), n > 0, by multiplication (Lemire); some numbers are more likely by at most n / 2^64. */
KM_HOST_DEVICE uint32_t km_random_below(uint64_t *state, uint32_t n)
{
    uint64_t r = km_random_next(state);
    return (uint32_t)(((r >> 32) * n + ((r & 0xFFFFFFFFu) * n >> 32)) >> 32);
}

#endif
