/* Number formats of weights and KV, and their conversion to and from float32. */
#ifndef KM_DTYPE_H
#define KM_DTYPE_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

enum km_dtype { KM_F32, KM_BF16, KM_F16 };

static inline size_t km_dtype_size(enum km_dtype t)
{
    return t == KM_F32 ? 4 : 2;
}

/* "float32", "bfloat16" or "float16", as vLLM's --dtype and LMCache's keys spell them. */
static inline const char *km_dtype_name(enum km_dtype t)
{
    return t == KM_F32 ? "float32" : t == KM_BF16 ? "bfloat16" : "float16";
}

static inline float km_bf16_to_f32(uint16_t h)
{
    uint32_t u = (uint32_t)h << 16;
    float f;
    memcpy(&f, &u, 4);
    return f;
}

/* Rounds to nearest, ties to even; a NaN stays a NaN. */
static inline uint16_t km_f32_to_bf16(float f)
{
    uint32_t u;
    memcpy(&u, &f, 4);
    if ((u & 0x7FFFFFFF) > 0x7F800000)
        return (uint16_t)(u >> 16 | 0x40);
    return (uint16_t)((u + 0x7FFF + (u >> 16 & 1)) >> 16);
}

static inline float km_f16_to_f32(uint16_t h)
{
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, exp = h >> 10 & 31, man = h & 1023, u;
    if (exp == 31)
        u = sign | 0x7F800000 | man << 13;
    else if (exp)
        u = sign | (exp + 112) << 23 | man << 13;
    else {
        float f = (float)man * 0x1p-24f; /* subnormal, exact */
        return sign ? -f : f;
    }
    float f;
    memcpy(&f, &u, 4);
    return f;
}

#endif
