/* The greedy choice of each row, and its log-probability under the unmodified distribution, in one pass over the logits.
 * Several blocks share a row, since one alone would read 600 KB for longer than a whole layer takes; the last of them to
 * finish merges their findings. */
#include "engine/cuda/cu.h"
#include "engine/cuda/ptx.cuh"

#include <math.h>

namespace {

enum { THREADS = 256, PARTS = CU_PICK_PARTS };

__device__ __forceinline__ cu_best none()
{
    return cu_best{-INFINITY, -INFINITY, INT32_MAX, 0};
}

__device__ __forceinline__ void merge(cu_best &a, const cu_best &b)
{
    if (b.allowed > a.allowed || (b.allowed == a.allowed && b.id < a.id))
        a.allowed = b.allowed, a.id = b.id;
    float top = fmaxf(a.top, b.top);
    if (top != -INFINITY)
        a.sum = a.sum * __expf(a.top - top) + b.sum * __expf(b.top - top);
    a.top = top;
}

__device__ __forceinline__ void merge_lanes(cu_best &v)
{
#pragma unroll
    for (int o = 16; o; o >>= 1)
        merge(v, cu_best{__shfl_xor_sync(~0u, v.top, o), __shfl_xor_sync(~0u, v.allowed, o), __shfl_xor_sync(~0u, v.id, o),
                         __shfl_xor_sync(~0u, v.sum, o)});
}

__global__ void __launch_bounds__(THREADS) argmax_kernel(const float *logits, int V, const int32_t *ban_start, const int32_t *ban, cu_best *found,
                                                         int *arrived, cu_pick *out)
{
    grid_release();
    grid_wait();
    int row = blockIdx.y, part = blockIdx.x, b0 = ban_start[row], b1 = ban_start[row + 1];
    int per = ((V + PARTS - 1) / PARTS + 3) / 4 * 4, begin = part * per, end = min(V, begin + per);
    const float *x = logits + (size_t)row * V;
    cu_best mine = none();
    for (int i = begin + threadIdx.x; i < end; i += THREADS) {
        float v = x[i];
        bool banned = false;
        for (int k = b0; k < b1; k++)
            banned |= ban[k] == i;
        if (!banned && v > mine.allowed)
            mine.allowed = v, mine.id = i;
        if (v > mine.top) {
            mine.sum = mine.sum * __expf(mine.top - v) + 1;
            mine.top = v;
        } else {
            mine.sum += __expf(v - mine.top);
        }
    }
    merge_lanes(mine);
    __shared__ cu_best of_warp[THREADS / 32];
    __shared__ bool last;
    if (threadIdx.x % 32 == 0)
        of_warp[threadIdx.x / 32] = mine;
    __syncthreads();
    if (threadIdx.x == 0) {
        for (int w = 1; w < THREADS / 32; w++)
            merge(mine, of_warp[w]);
        found[row * PARTS + part] = mine;
        __threadfence();
        last = atomicAdd(&arrived[row], 1) == PARTS - 1;
        __threadfence();
    }
    __syncthreads();
    if (!last || threadIdx.x >= 32)
        return;
    const float4 *from = reinterpret_cast<const float4 *>(found + row * PARTS);
    mine = none();
    for (int i = threadIdx.x; i < PARTS; i += 32) {
        float4 f = __ldcg(&from[i]);
        merge(mine, cu_best{f.x, f.y, __float_as_int(f.z), f.w});
    }
    merge_lanes(mine);
    if (threadIdx.x == 0) {
        out[row] = cu_pick{mine.id == INT32_MAX ? 0 : mine.id, mine.allowed - mine.top - logf(mine.sum)};
        arrived[row] = 0;
    }
}

} // namespace

size_t cu_argmax_work(int rows)
{
    return (size_t)rows * (PARTS * sizeof(cu_best) + sizeof(int));
}

void cu_argmax(const float *logits, int S, int V, const cu_meta &meta, int max_rows, void *work, cu_pick *out, cudaStream_t s)
{
    cu_best *found = static_cast<cu_best *>(work);
    int *arrived = reinterpret_cast<int *>(found + (size_t)max_rows * PARTS);
    cu_launch(argmax_kernel, dim3(PARTS, (unsigned)S), THREADS, 0, s, logits, V, meta.ban_start, meta.ban, found, arrived, out);
}
