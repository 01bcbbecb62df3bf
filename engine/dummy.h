/* Dummy weights: a recipe for random weights with the magnitudes of a trained model, which need no file.
 *
 * A value depends on (seed, tensor, layer, index) alone, where index is row * cols + col. So any device can make any
 * part of a tensor in any order, and all devices make the same bits. The recipe, for use in other languages:
 *   key   = mix(mix(seed) + tensor * 65536 + layer)            64-bit, wrapping
 *   h     = mix(key + (index + 1) * 0x9E3779B97F4A7C15)
 *   sum   = the four 16-bit fields of h, added, minus 131070    (-131070 .. 131070, nearly normal)
 *   value = float(sum) * scale for matrices, float(2^20 + sum) * 2^-20 for norms, then rounded to bf16
 * Both multiplications are single, correctly rounded float operations, so a compiler cannot contract or reorder them.
 * sum has a standard deviation of 37837.2; mdl_dummy_scale gives the scale. */
#ifndef DMY_DUMMY_H
#define DMY_DUMMY_H

#include "base/random.h"

#include <stdint.h>

KM_HOST_DEVICE uint64_t dmy_key(uint64_t seed, int tensor, int layer)
{
    return km_mix64(km_mix64(seed) + (uint64_t)tensor * 65536 + (uint64_t)layer);
}

/* The value before it is rounded to bf16; scale 0 means a norm weight. */
KM_HOST_DEVICE float dmy_value(uint64_t key, uint64_t index, float scale)
{
    uint64_t h = km_random_at(key, index + 1);
    int32_t sum = (int32_t)((h & 65535) + (h >> 16 & 65535) + (h >> 32 & 65535) + (h >> 48)) - 131070;
    return scale > 0 ? (float)sum * scale : (float)(1048576 + sum) * 0x1p-20f;
}

#endif
