/* A vector of floats as wide as the CPU's registers, and the operations on it that kernels.c uses.
 *
 * kernels.c is compiled once per instruction set: with KERNELS_AVX512 defined, with KERNELS_AVX2, or with neither. The
 * portable version uses GCC's vector extensions, which become NEON on ARM. VL: lanes of a vector. NV: vectors of a
 * panel's width, which has NR = NV * VL columns. MR * NV accumulators fit in the registers. */
#ifndef CPU_VEC_H
#define CPU_VEC_H

#include <stdint.h>
#include <string.h>

#define V_INLINE static inline __attribute__((always_inline))

#if defined(KERNELS_AVX512)
#include <immintrin.h>
enum { VL = 16, NV = 4, MR = 6 };
typedef __m512 vf;

V_INLINE vf v_load(const float *p)
{
    return _mm512_loadu_ps(p);
}
V_INLINE void v_store(float *p, vf a)
{
    _mm512_storeu_ps(p, a);
}
V_INLINE vf v_set(float x)
{
    return _mm512_set1_ps(x);
}
V_INLINE vf v_load_bf16(const uint16_t *p)
{
    __m512i w = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(w, 16));
}
V_INLINE vf v_low_bf16(vf pairs)
{
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_castps_si512(pairs), 16));
}
V_INLINE vf v_high_bf16(vf pairs)
{
    return _mm512_castsi512_ps(_mm512_and_si512(_mm512_castps_si512(pairs), _mm512_set1_epi32(-65536)));
}
V_INLINE vf v_fma(vf a, vf b, vf c)
{
    return _mm512_fmadd_ps(a, b, c);
}
V_INLINE vf v_max(vf a, vf b)
{
    return _mm512_max_ps(a, b);
}
V_INLINE vf v_round(vf x)
{
    return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
/* p * 2^n for whole n, but 0 in lanes with x < lo. */
V_INLINE vf v_scale2(vf p, vf n, vf x, float lo)
{
    return _mm512_maskz_scalef_ps(_mm512_cmp_ps_mask(x, _mm512_set1_ps(lo), _CMP_GE_OQ), p, n);
}
/* Lanes 0 to n - 1 of a, and the other lanes of b. */
V_INLINE vf v_first(int n, vf a, vf b)
{
    return _mm512_mask_blend_ps((__mmask16)((1u << n) - 1), b, a);
}
V_INLINE float v_hmax(vf a)
{
    return _mm512_reduce_max_ps(a);
}
V_INLINE void v_transpose(vf r[VL])
{
    vf t[16];
#pragma GCC unroll 8
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_ps(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_ps(r[i], r[i + 1]);
    }
#define PD(op, a, b) _mm512_castpd_ps(op(_mm512_castps_pd(a), _mm512_castps_pd(b)))
#pragma GCC unroll 4
    for (int i = 0; i < 16; i += 4) {
        r[i] = PD(_mm512_unpacklo_pd, t[i], t[i + 2]);
        r[i + 1] = PD(_mm512_unpackhi_pd, t[i], t[i + 2]);
        r[i + 2] = PD(_mm512_unpacklo_pd, t[i + 1], t[i + 3]);
        r[i + 3] = PD(_mm512_unpackhi_pd, t[i + 1], t[i + 3]);
    }
#undef PD
#pragma GCC unroll 4
    for (int c = 0; c < 4; c++) {
        vf ab0 = _mm512_shuffle_f32x4(r[c], r[4 + c], 0x44), cd0 = _mm512_shuffle_f32x4(r[8 + c], r[12 + c], 0x44);
        vf ab1 = _mm512_shuffle_f32x4(r[c], r[4 + c], 0xEE), cd1 = _mm512_shuffle_f32x4(r[8 + c], r[12 + c], 0xEE);
        t[c] = _mm512_shuffle_f32x4(ab0, cd0, 0x88);
        t[4 + c] = _mm512_shuffle_f32x4(ab0, cd0, 0xDD);
        t[8 + c] = _mm512_shuffle_f32x4(ab1, cd1, 0x88);
        t[12 + c] = _mm512_shuffle_f32x4(ab1, cd1, 0xDD);
    }
#pragma GCC unroll 16
    for (int i = 0; i < 16; i++)
        r[i] = t[i];
}

#elif defined(KERNELS_AVX2)
#include <immintrin.h>
enum { VL = 8, NV = 2, MR = 6 };
typedef __m256 vf;

V_INLINE vf v_load(const float *p)
{
    return _mm256_loadu_ps(p);
}
V_INLINE void v_store(float *p, vf a)
{
    _mm256_storeu_ps(p, a);
}
V_INLINE vf v_set(float x)
{
    return _mm256_set1_ps(x);
}
V_INLINE vf v_load_bf16(const uint16_t *p)
{
    __m256i w = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(w, 16));
}
V_INLINE vf v_low_bf16(vf pairs)
{
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(pairs), 16));
}
V_INLINE vf v_high_bf16(vf pairs)
{
    return _mm256_castsi256_ps(_mm256_and_si256(_mm256_castps_si256(pairs), _mm256_set1_epi32(-65536)));
}
V_INLINE vf v_fma(vf a, vf b, vf c)
{
    return _mm256_fmadd_ps(a, b, c);
}
V_INLINE vf v_max(vf a, vf b)
{
    return _mm256_max_ps(a, b);
}
V_INLINE vf v_round(vf x)
{
    return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
V_INLINE vf v_scale2(vf p, vf n, vf x, float lo)
{
    __m256i e = _mm256_slli_epi32(_mm256_cvtps_epi32(n), 23);
    vf y = _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(p), e));
    return _mm256_and_ps(y, _mm256_cmp_ps(x, _mm256_set1_ps(lo), _CMP_GE_OQ));
}
V_INLINE vf v_first(int n, vf a, vf b)
{
    __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return _mm256_blendv_ps(b, a, _mm256_castsi256_ps(_mm256_cmpgt_epi32(_mm256_set1_epi32(n), lane)));
}
V_INLINE float v_hmax(vf a)
{
    __m128 x = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    x = _mm_max_ps(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(_mm_max_ss(x, _mm_movehdup_ps(x)));
}
V_INLINE void v_transpose(vf r[VL])
{
    vf t[8];
#pragma GCC unroll 4
    for (int i = 0; i < 8; i += 2) {
        t[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
        t[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
    }
#pragma GCC unroll 2
    for (int i = 0; i < 8; i += 4) {
        r[i] = _mm256_shuffle_ps(t[i], t[i + 2], 0x44);
        r[i + 1] = _mm256_shuffle_ps(t[i], t[i + 2], 0xEE);
        r[i + 2] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0x44);
        r[i + 3] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0xEE);
    }
#pragma GCC unroll 4
    for (int c = 0; c < 4; c++) {
        t[c] = _mm256_permute2f128_ps(r[c], r[4 + c], 0x20);
        t[4 + c] = _mm256_permute2f128_ps(r[c], r[4 + c], 0x31);
    }
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++)
        r[i] = t[i];
}

#else
enum { VL = 4, NV = 2, MR = 6 };
typedef float vf __attribute__((vector_size(16)));
typedef int32_t vi __attribute__((vector_size(16)));
typedef uint32_t vu __attribute__((vector_size(16)));

V_INLINE vf v_load(const float *p)
{
    vf a;
    memcpy(&a, p, sizeof a);
    return a;
}
V_INLINE void v_store(float *p, vf a)
{
    memcpy(p, &a, sizeof a);
}
V_INLINE vf v_set(float x)
{
    return (vf){x, x, x, x};
}
V_INLINE vf v_load_bf16(const uint16_t *p)
{
    return (vf)((vu){p[0], p[1], p[2], p[3]} << 16);
}
V_INLINE vf v_low_bf16(vf pairs)
{
    return (vf)((vu)pairs << 16);
}
V_INLINE vf v_high_bf16(vf pairs)
{
    return (vf)((vu)pairs & 0xFFFF0000u);
}
V_INLINE vf v_fma(vf a, vf b, vf c)
{
    return a * b + c;
}
V_INLINE vf v_max(vf a, vf b)
{
    vi m = a > b;
    return (vf)(((vi)a & m) | ((vi)b & ~m));
}
/* Adding and subtracting 1.5 * 2^23 rounds to the nearest whole number, for |x| < 2^22. */
V_INLINE vf v_round(vf x)
{
    return (x + 12582912.0f) - 12582912.0f;
}
V_INLINE vf v_scale2(vf p, vf n, vf x, float lo)
{
    vu e = (vu)(n + 12582912.0f) << 23;
    return (vf)(((vu)p + e) & (vu)(x >= lo));
}
V_INLINE vf v_first(int n, vf a, vf b)
{
    vi m = (vi){n, n, n, n} > (vi){0, 1, 2, 3};
    return (vf)(((vi)a & m) | ((vi)b & ~m));
}
V_INLINE float v_hmax(vf a)
{
    float x = a[0] > a[1] ? a[0] : a[1], y = a[2] > a[3] ? a[2] : a[3];
    return x > y ? x : y;
}
V_INLINE void v_transpose(vf r[VL])
{
    vf a = __builtin_shuffle(r[0], r[1], (vi){0, 4, 1, 5}), b = __builtin_shuffle(r[0], r[1], (vi){2, 6, 3, 7});
    vf c = __builtin_shuffle(r[2], r[3], (vi){0, 4, 1, 5}), d = __builtin_shuffle(r[2], r[3], (vi){2, 6, 3, 7});
    r[0] = __builtin_shuffle(a, c, (vi){0, 1, 4, 5});
    r[1] = __builtin_shuffle(a, c, (vi){2, 3, 6, 7});
    r[2] = __builtin_shuffle(b, d, (vi){0, 1, 4, 5});
    r[3] = __builtin_shuffle(b, d, (vi){2, 3, 6, 7});
}
#endif

enum { NR = NV * VL };

/* Sum of the lanes, in a fixed order: the halves are added to each other, again and again. */
V_INLINE float v_hsum(vf a)
{
    float lane[VL];
    v_store(lane, a);
    for (int n = VL / 2; n; n /= 2)
        for (int i = 0; i < n; i++)
            lane[i] += lane[i + n];
    return lane[0];
}

/* 2^x for x <= 126, 0 below -126; relative error below 2e-7. A minimax polynomial gives 2^f on [-1/2, 1/2]. */
V_INLINE vf v_exp2(vf x)
{
    vf n = v_round(x), f = x - n, p = v_set(0x1.41d334p-13f);
    p = v_fma(p, f, v_set(0x1.5f456ap-10f));
    p = v_fma(p, f, v_set(0x1.3b2dbcp-7f));
    p = v_fma(p, f, v_set(0x1.c6aed4p-5f));
    p = v_fma(p, f, v_set(0x1.ebfbdap-3f));
    p = v_fma(p, f, v_set(0x1.62e430p-1f));
    p = v_fma(p, f, v_set(1.0f));
    return v_scale2(p, n, x, -126.0f);
}

#endif
