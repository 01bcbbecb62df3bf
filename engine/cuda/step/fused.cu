/* The fused kernels (fused.h). Memory bandwidth limits all of them. Each kernel reads and writes every element once, in
 * accesses of 16 bytes where the layout allows it. */
#include "engine/cuda/ptx.cuh"
#include "engine/cuda/step/fused.h"

namespace {

union bf16x8 {
    uint4 raw;
    __nv_bfloat162 v[4];
};

/* Copies the step's arrays from pinned memory. A kernel is faster than cudaMemcpyAsync, which would be one more call
 * for the host and a wait for a copy engine. A thread reads its first piece, below `fixed`, without knowing the size of
 * the arrays. So this read and the read of the size, the first word, cross the bus at the same time. fixed: in units of
 * 16 bytes. */
__global__ void __launch_bounds__(256) fetch_kernel(const uint4 *src, int fixed, uint4 *dst)
{
    int first = blockIdx.x * blockDim.x + threadIdx.x, n = (*reinterpret_cast<const int32_t *>(src) + 15) / 16;
    if (first < fixed)
        dst[first] = src[first];
    for (int i = fixed + first; i < n; i += gridDim.x * blockDim.x)
        dst[i] = src[i];
}

/* A thread block per token copies the token's row of the embedding, and computes cosine and sine of its rotary angles,
 * once for all layers. half: d / 2, at most the number of threads. */
__global__ void embed_kernel(const bf16 *embed, const int32_t *tokens, const int32_t *sampled_ids,
                             const int32_t *positions, const float *inv_freq, int D, int half, bf16 *x, float2 *angles)
{
    griddep_wait();
    griddep_launch(); /* after the wait, so that later kernels may read the step's arrays without waiting */
    int id = tokens[blockIdx.x];
    if (id < 0) /* max: the id is -1 if the host must sample the row; the engine then discards this step's result */
        id = max(sampled_ids[-(id + 1)], 0);
    const uint4 *src = reinterpret_cast<const uint4 *>(embed + (size_t)id * D);
    uint4 *dst = reinterpret_cast<uint4 *>(x + (size_t)blockIdx.x * D);
    for (int i = threadIdx.x; i < D / 8; i += blockDim.x)
        dst[i] = src[i];
    if ((int)threadIdx.x < half) {
        float2 a;
        sincosf((float)positions[blockIdx.x] * inv_freq[threadIdx.x], &a.y, &a.x);
        angles[(size_t)blockIdx.x * half + threadIdx.x] = a;
    }
}

/* A thread block per row. The row stays in registers between its two uses: D <= 8 * 128 * PER. */
template <int PER>
__global__ void __launch_bounds__(128)
    rmsnorm_kernel(const bf16 *x, const bf16 *w, const int32_t *rows, int D, float eps, bf16 *out)
{
    griddep_launch(); /* the next GEMM may start to load its weights */
    griddep_wait();
    size_t row = rows ? (size_t)rows[blockIdx.x] : blockIdx.x;
    const uint4 *src = reinterpret_cast<const uint4 *>(x + row * D);
    bf16x8 v[PER];
    float sum = 0;
#pragma unroll
    for (int i = 0; i < PER; i++) {
        int c = threadIdx.x + i * 128;
        if (c >= D / 8)
            continue;
        v[i].raw = src[c];
#pragma unroll
        for (int k = 0; k < 4; k++) {
            float2 f = __bfloat1622float2(v[i].v[k]);
            sum += f.x * f.x + f.y * f.y;
        }
    }
    __shared__ float part[4];
    sum = warp_sum(sum);
    if (threadIdx.x % 32 == 0)
        part[threadIdx.x / 32] = sum;
    __syncthreads();
    float scale = rsqrtf((part[0] + part[1] + part[2] + part[3]) / D + eps);
    uint4 *dst = reinterpret_cast<uint4 *>(out + (size_t)blockIdx.x * D);
#pragma unroll
    for (int i = 0; i < PER; i++) {
        int c = threadIdx.x + i * 128;
        if (c >= D / 8)
            continue;
        bf16x8 ww, o;
        ww.raw = reinterpret_cast<const uint4 *>(w)[c];
#pragma unroll
        for (int k = 0; k < 4; k++) {
            float2 f = __bfloat1622float2(v[i].v[k]), g = __bfloat1622float2(ww.v[k]);
            o.v[k] = __floats2bfloat162_rn(f.x * scale * g.x, f.y * scale * g.y);
        }
        dst[c] = o.raw;
    }
}

/* Grid: tokens by gridDim.y thread blocks, which divide the heads of the token among them. A warp processes one head at
 * a time, and reads the token's angles once for all of its heads. Lane i has DH / 32 neighbouring elements. RoPE pairs
 * each with the element DH / 2 further on, which lane i ^ 16 has. Heads 0 to H - 1 are q, then G heads of k, then G
 * heads of v. slots: page * B + offset of each token. layer_at: elements from the start of a page to the layer. */
template <int DH>
__global__ void __launch_bounds__(256)
    qk_rope_store_kernel(bf16 *qkv, const bf16 *q_norm, const bf16 *k_norm, const float2 *angles, const int32_t *slots,
                         int H, int G, int B_log2, size_t page_elems, size_t layer_at, float eps, bf16 *pool)
{
    constexpr int N = DH / 32;
    struct alignas(2 * N) piece {
        bf16 v[N];
    };
    griddep_launch();
    griddep_wait();
    int token = blockIdx.x, heads = H + 2 * G, lane = threadIdx.x % 32;
    int slot = slots[token], off = slot & ((1 << B_log2) - 1);
    bf16 *page = pool + (size_t)(slot >> B_log2) * page_elems + layer_at;
    float sn[N], cs[N], wq[N], wk[N];
#pragma unroll
    for (int i = 0; i < N; i++) {
        float2 a = angles[(size_t)token * (DH / 2) + N * (lane % 16) + i];
        cs[i] = a.x;
        sn[i] = lane < 16 ? -a.y : a.y;
        wq[i] = __bfloat162float(q_norm[N * lane + i]);
        wk[i] = __bfloat162float(k_norm[N * lane + i]);
    }
    for (int head = blockIdx.y * 8 + threadIdx.x / 32; head < heads; head += 8 * gridDim.y) {
        bf16 *p = qkv + ((size_t)token * heads + head) * DH;
        piece x = reinterpret_cast<const piece *>(p)[lane];
        if (head < H + G) {
            float v[N], sum = 0;
#pragma unroll
            for (int i = 0; i < N; i++) {
                v[i] = __bfloat162float(x.v[i]);
                sum += v[i] * v[i];
            }
            float scale = rsqrtf(warp_sum(sum) / DH + eps);
#pragma unroll
            for (int i = 0; i < N; i++) {
                v[i] *= scale * (head < H ? wq[i] : wk[i]);
                x.v[i] = __float2bfloat16(v[i] * cs[i] + __shfl_xor_sync(~0u, v[i], 16) * sn[i]);
            }
        }
        bf16 *dst = p;
        if (head >= H) {
            int kv = head >= H + G, g = kv ? head - H - G : head - H;
            dst = page + ((((size_t)kv * G + g) << B_log2) + off) * DH;
        }
        reinterpret_cast<piece *>(dst)[lane] = x;
    }
}

/* Each thread computes 8 elements of act. F8 = F / 8; total8: elements of act / 8. */
__global__ void swiglu_kernel(const bf16 *gu, int F8, size_t total8, bf16 *act)
{
    griddep_wait();
    griddep_launch();
    size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= total8)
        return;
    size_t row = i / F8, col = i % F8;
    bf16x8 g, u, o;
    g.raw = reinterpret_cast<const uint4 *>(gu)[row * 2 * F8 + col];
    u.raw = reinterpret_cast<const uint4 *>(gu)[row * 2 * F8 + F8 + col];
#pragma unroll
    for (int k = 0; k < 4; k++) {
        float2 a = __bfloat1622float2(g.v[k]), b = __bfloat1622float2(u.v[k]);
        o.v[k] = __floats2bfloat162_rn(a.x / (1 + __expf(-a.x)) * b.x, a.y / (1 + __expf(-a.y)) * b.y);
    }
    reinterpret_cast<uint4 *>(act)[i] = o.raw;
}

} // namespace

void cu_fetch(const char *host, size_t fixed, char *dev, cudaStream_t s)
{
    unsigned pieces = (unsigned)(fixed / 16), blocks = (pieces + 255) / 256;
    if (blocks < 32)
        blocks = 32; /* enough threads for a long block table, which is beyond `fixed` */
    fetch_kernel<<<blocks, 256, 0, s>>>(reinterpret_cast<const uint4 *>(host), (int)pieces,
                                        reinterpret_cast<uint4 *>(dev));
}

void cu_embed(const cu_dims &m, const bf16 *embed, const float *inv_freq, const cu_step_arrays &in,
              const int32_t *sampled_ids, int T, bf16 *x, float2 *angles, cudaStream_t s)
{
    cu_launch(embed_kernel, dim3((unsigned)T), 128, 0, s, embed, in.tokens, sampled_ids, in.positions, inv_freq, m.D,
              m.d / 2, x, angles);
}

void cu_rmsnorm(const cu_dims &m, const bf16 *x, const bf16 *w, const int32_t *rows, int T, bf16 *out, cudaStream_t s)
{
    auto kernel = m.D <= 1024 ? rmsnorm_kernel<1> : m.D <= 4096 ? rmsnorm_kernel<4> : rmsnorm_kernel<8>;
    cu_launch(kernel, dim3((unsigned)T), 128, 0, s, x, w, rows, m.D, m.eps, out);
}

void cu_qk_rope_store(const cu_dims &m, bf16 *qkv, const bf16 *q_norm, const bf16 *k_norm, const float2 *angles,
                      const cu_step_arrays &in, int T, int layer, bf16 *pool, cudaStream_t s)
{
    size_t layer_at = (size_t)layer * 2 * m.G * m.B * m.d;
    auto kernel = m.d == 128  ? qk_rope_store_kernel<128>
                  : m.d == 64 ? qk_rope_store_kernel<64>
                              : qk_rope_store_kernel<32>;
    unsigned blocks_per_token = T < 512 ? (unsigned)(m.H + 2 * m.G + 7) / 8 : 1; /* with few tokens, a warp per head */
    cu_launch(kernel, dim3((unsigned)T, blocks_per_token), 256, 0, s, qkv, q_norm, k_norm, angles, in.slots, m.H, m.G,
              m.B_log2, m.page_elems, layer_at, m.eps, pool);
}

void cu_swiglu(const cu_dims &m, const bf16 *gu, int T, bf16 *act, cudaStream_t s)
{
    size_t total8 = (size_t)T * m.F / 8;
    cu_launch(swiglu_kernel, dim3((unsigned)((total8 + 255) / 256)), 256, 0, s, gu, m.F / 8, total8, act);
}
