/* Dummy weights: numbers that look like a trained model's and cost no file.
 *
 * A value depends on (seed, tensor, layer, index) alone, index being row * cols + col, so that any device
 * may make any part of a tensor in any order, and all make the same bits. The recipe, for other languages:
 *   key   = mix(mix(seed) + tensor * 65536 + layer)            64-bit, wrapping
 *   h     = mix(key + (index + 1) * 0x9E3779B97F4A7C15)
 *   sum   = the four 16-bit fields of h, added, minus 131070    (-131070 .. 131070, nearly normal)
 *   value = float(sum) * scale for matrices, float(2^20 + sum) * 2^-20 for norms, then rounded to bf16
 * Both products are one correctly rounded float multiplication; there is nothing to contract or reorder.
 * sum has a standard deviation of 37837.2; scale (dmy_scale) makes that 0.02, and less for the two
 * projections that add to the residual stream, so that deep models keep it bounded. */
#ifndef MDL_DUMMY_H
#define MDL_DUMMY_H

#include "base/random.h"
#include "engine/model.h"

#include <math.h>

KM_HOST_DEVICE uint64_t dmy_key(uint64_t seed, int tensor, int layer)
{
    return km_mix64(km_mix64(seed) + (uint64_t)tensor * 65536 + (uint64_t)layer);
}

/* Before rounding to bf16; scale 0 means a norm weight. */
KM_HOST_DEVICE float dmy_value(uint64_t key, uint64_t index, float scale)
{
    uint64_t h = km_random_at(key, index + 1);
    int32_t sum = (int32_t)((h & 65535) + (h >> 16 & 65535) + (h >> 32 & 65535) + (h >> 48)) - 131070;
    return scale > 0 ? (float)sum * scale : (float)(1048576 + sum) * 0x1p-20f;
}

/* Of a tensor, on the host: 0 for norm weights. */
static inline float dmy_scale(const struct mdl_config *c, enum mdl_tensor t)
{
    const float base = 0.02f / 37837.2f;
    int rows, cols;
    mdl_shape(c, t, &rows, &cols);
    if (cols == 1)
        return 0;
    return t == MDL_O || t == MDL_DOWN ? base / sqrtf(2.0f * (float)c->n_layers) : base;
}

#endif
