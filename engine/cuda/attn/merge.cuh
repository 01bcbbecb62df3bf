/* Merging of the partial results of KV splits, for decode.cu and tails.cu. A partial row is an unnormalised output row,
 * and the maximum (base 2) and the sum of its softmax. */
#ifndef CU_MERGE_CUH
#define CU_MERGE_CUH

#include "engine/cuda/ptx.cuh"

#include <math.h>

/* The DH / 32 neighbouring elements that a lane has of an output row of its warp. */
template <int DH> struct alignas(DH / 8) row_piece {
    float v[DH / 32];

    __device__ __forceinline__ static const row_piece &at(const float *row, int lane)
    {
        return reinterpret_cast<const row_piece *>(row)[lane];
    }
    __device__ __forceinline__ static row_piece &at(float *row, int lane)
    {
        return reinterpret_cast<row_piece *>(row)[lane];
    }
    __device__ __forceinline__ void add(float f, const row_piece &o)
    {
#pragma unroll
        for (int i = 0; i < DH / 32; i++)
            v[i] += f * o.v[i];
    }
    __device__ __forceinline__ void scale(float f)
    {
#pragma unroll
        for (int i = 0; i < DH / 32; i++)
            v[i] *= f;
    }
    /* Stores the piece, multiplied by f. */
    __device__ __forceinline__ void store(bf16 *row, int lane, float f) const
    {
        struct alignas(DH / 16) {
            bf16 v[DH / 32];
        } out;
#pragma unroll
        for (int i = 0; i < DH / 32; i++)
            out.v[i] = __float2bfloat16(v[i] * f);
        reinterpret_cast<decltype(out) *>(row)[lane] = out;
    }
};

/* Merges a row's n partials into out[DH]. A warp merges one row. Partial k is from_o[k * o_step] and
 * from_ml[k * ml_step]. Up to AT_ONCE partials are loaded at the same time, so that the merge waits for memory once. */
template <int DH>
__device__ __forceinline__ void merge_row(const float *from_o, size_t o_step, const float2 *from_ml, size_t ml_step,
                                          int n, int lane, bf16 *out)
{
    enum { AT_ONCE = 16 };
    float m = -INFINITY, l = 0;
    row_piece<DH> v = {};
    for (int left = n; left > 0; left -= AT_ONCE, from_o += AT_ONCE * o_step, from_ml += AT_ONCE * ml_step) {
        float2 ml = lane < left && lane < AT_ONCE ? from_ml[lane * ml_step] : make_float2(-INFINITY, 0);
        row_piece<DH> p[AT_ONCE] = {};
#pragma unroll
        for (int k = 0; k < AT_ONCE; k++)
            if (k < left)
                p[k] = row_piece<DH>::at(from_o + k * o_step, lane);
        float top = fmaxf(m, warp_max(ml.x)), fix = exp2_fast(m - top), weight = exp2_fast(ml.x - top);
        l = l * fix + warp_sum(weight * ml.y);
        v.scale(fix);
#pragma unroll
        for (int k = 0; k < AT_ONCE; k++)
            v.add(__shfl_sync(~0u, weight, k), p[k]);
        m = top;
    }
    v.store(out, lane, 1 / l);
}

#endif
