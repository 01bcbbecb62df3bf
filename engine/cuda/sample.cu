/* The greedy choice of each row, and its log-probability under the unmodified distribution: one block a row, one pass
 * over the logits. Rows with other parameters go to the reference sampler on the host. */
#include "engine/cuda/cu.h"
#include "engine/cuda/ptx.cuh"

#include <math_constants.h>

namespace {

struct best {
    float top, allowed; /* maximum of all, and of the ids that may come */
    int id;             /* of allowed; the lowest among equals */
    float sum;          /* of exp(logit - top) */
};

__device__ __forceinline__ void merge(best &a, const best &b)
{
    if (b.allowed > a.allowed || (b.allowed == a.allowed && b.id < a.id))
        a.allowed = b.allowed, a.id = b.id;
    float top = fmaxf(a.top, b.top);
    if (top != -CUDART_INF_F)
        a.sum = a.sum * __expf(a.top - top) + b.sum * __expf(b.top - top);
    a.top = top;
}

__global__ void __launch_bounds__(512) argmax_kernel(const float *logits, int V, const int32_t *ban_start, const int32_t *ban, cu_pick *out)
{
    grid_wait();
    const float *row = logits + (size_t)blockIdx.x * V;
    int b0 = ban_start[blockIdx.x], b1 = ban_start[blockIdx.x + 1];
    best mine = {-CUDART_INF_F, -CUDART_INF_F, INT32_MAX, 0};
    for (int i = threadIdx.x; i < V; i += blockDim.x) {
        float x = row[i];
        bool banned = false;
        for (int k = b0; k < b1; k++)
            banned |= ban[k] == i;
        if (!banned && x > mine.allowed)
            mine.allowed = x, mine.id = i;
        if (x > mine.top) {
            mine.sum = mine.sum * __expf(mine.top - x) + 1;
            mine.top = x;
        } else {
            mine.sum += __expf(x - mine.top);
        }
    }
    for (int o = 16; o; o >>= 1) {
        best other = {__shfl_xor_sync(~0u, mine.top, o), __shfl_xor_sync(~0u, mine.allowed, o), __shfl_xor_sync(~0u, mine.id, o),
                      __shfl_xor_sync(~0u, mine.sum, o)};
        merge(mine, other);
    }
    __shared__ best part[16];
    if (threadIdx.x % 32 == 0)
        part[threadIdx.x / 32] = mine;
    __syncthreads();
    if (threadIdx.x)
        return;
    for (int w = 1; w < (int)blockDim.x / 32; w++)
        merge(mine, part[w]);
    out[blockIdx.x] = cu_pick{mine.id, mine.allowed - mine.top - logf(mine.sum)};
}

} // namespace

void cu_argmax(const float *logits, int S, int V, const cu_meta &meta, cu_pick *out, cudaStream_t s)
{
    cu_launch(argmax_kernel, dim3((unsigned)S), 512, 0, s, logits, V, meta.ban_start, meta.ban, out);
}
