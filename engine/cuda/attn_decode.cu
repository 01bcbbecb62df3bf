/* Attention of requests with one query token: reading the KV once, as fast as memory gives it.
 *
 * A block takes one (request, kv head, split of the KV); its warps take pages of 16 tokens in turn. The query heads of the
 * group are the rows of the mma tile (up to 16). Keys and values go from global memory straight into B fragments: for QK^T
 * the contraction index d is permuted so that a lane's 16-byte load is its fragment, q permuted alike; for PV the output
 * columns are permuted instead, and two token rows are zipped in registers. Nothing but the merge touches shared memory.
 *
 * Splits of one (request, kv head) meet through global memory: the last block to arrive adds them up (flash decoding). */
#include "engine/cuda/cu.h"
#include "engine/cuda/ptx.cuh"

#include <math_constants.h>

namespace {

enum { WARPS = 4, MIN_SPLIT = 64 };

/* Partial results: per (request slot, kv head, split): DH floats and (max, sum) a query row. */
struct partial {
    float *o;       /* [slots][G][splits][16][DH] */
    float2 *ml;     /* [slots][G][splits][16]     */
    int *arrived;   /* [slots][G], zero between launches */
};

__device__ __forceinline__ uint32_t zip_lo(uint32_t a, uint32_t b) /* low halves of a and b */
{
    return __byte_perm(a, b, 0x5410);
}
__device__ __forceinline__ uint32_t zip_hi(uint32_t a, uint32_t b)
{
    return __byte_perm(a, b, 0x7632);
}

template <int DH>
__global__ void __launch_bounds__(WARPS * 32, 4)
attn_decode_kernel(const bf16 *__restrict__ qkv, const bf16 *__restrict__ pool, cu_meta meta, int H, int G, int B_log2, size_t page_elems,
                   size_t layer_at, float scale_log2, partial part, bf16 *__restrict__ o)
{
    grid_wait();
    constexpr int KI = DH / 32;            /* 16-byte loads of a key row a lane */
    constexpr int VI = DH >= 64 ? DH / 64 : 1; /* likewise of a value row: 8 lanes g share a row, 8 elements each */
    constexpr int NT = VI * 8;             /* 8-column output tiles */
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
    int head = blockIdx.x, slot = blockIdx.y, split = blockIdx.z;
    int req = meta.dec_req[slot], len = meta.kv_len[req], group = H / G;
    int row_q = meta.q_start[req];

    /* Equal whole pages of 16 to as many splits as are worth it. */
    int splits = min((int)gridDim.z, max(1, (len + MIN_SPLIT - 1) / MIN_SPLIT));
    if (split >= splits)
        return;
    int per = ((len + splits - 1) / splits + 15) / 16 * 16;
    int begin = split * per, end = min(len, begin + per);

    /* q as A fragments: row g (and g + 8) is query head head * group + g; element order as the key loads give it. */
    uint32_t qa[2 * KI][4];
#pragma unroll
    for (int i = 0; i < KI; i++) {
        uint4 v[2];
#pragma unroll
        for (int h = 0; h < 2; h++) {
            int r = g + 8 * h;
            v[h] = r < group ? *reinterpret_cast<const uint4 *>(qkv + ((size_t)row_q * (H + 2 * G) + head * group + r) * DH + 32 * i + 8 * t)
                             : make_uint4(0, 0, 0, 0);
        }
        qa[2 * i][0] = v[0].x, qa[2 * i][1] = v[1].x, qa[2 * i][2] = v[0].y, qa[2 * i][3] = v[1].y;
        qa[2 * i + 1][0] = v[0].z, qa[2 * i + 1][1] = v[1].z, qa[2 * i + 1][2] = v[0].w, qa[2 * i + 1][3] = v[1].w;
    }

    float acc[NT][4] = {};
    float top[2] = {-CUDART_INF_F, -CUDART_INF_F}, sum[2] = {0, 0};
    const int32_t *table = meta.table + meta.table_start[req];
    const bf16 *kv = pool + layer_at + (((size_t)head) << B_log2) * DH;
    size_t v_off = ((size_t)G << B_log2) * DH;
    int mask = (1 << B_log2) - 1;

    for (int tok = begin + warp * 16; tok < end; tok += WARPS * 16) {
        /* Row of a token within the pool; tokens past the end read the last one and are masked or zeroed. */
        auto row = [&](int i) {
            int k = min(tok + i, len - 1);
            return kv + (size_t)table[k >> B_log2] * page_elems + (size_t)(k & mask) * DH;
        };
        uint4 kr[2][KI], vr[4][VI];
#pragma unroll
        for (int n = 0; n < 2; n++) {
            const bf16 *p = row(8 * n + g) + 8 * t;
#pragma unroll
            for (int i = 0; i < KI; i++)
                kr[n][i] = ld_stream(p + 32 * i);
        }
#pragma unroll
        for (int r = 0; r < 4; r++) {
            int i = 2 * t + (r & 1) + 8 * (r >> 1); /* tokens 2t, 2t+1, 2t+8, 2t+9 */
            const bf16 *p = row(i) + v_off + 8 * g;
            bool in = tok + i < end && (DH >= 64 || g < DH / 8);
#pragma unroll
            for (int j = 0; j < VI; j++)
                vr[r][j] = in ? ld_stream(p + 64 * j) : make_uint4(0, 0, 0, 0);
        }
        float s[2][4] = {};
#pragma unroll
        for (int n = 0; n < 2; n++)
#pragma unroll
            for (int i = 0; i < KI; i++) {
                mma_bf16(s[n], qa[2 * i], kr[n][i].x, kr[n][i].y);
                mma_bf16(s[n], qa[2 * i + 1], kr[n][i].z, kr[n][i].w);
            }
        uint32_t pa[4];
#pragma unroll
        for (int h = 0; h < 2; h++) { /* rows g and g + 8 */
            float m = top[h];
#pragma unroll
            for (int n = 0; n < 2; n++)
#pragma unroll
                for (int e = 0; e < 2; e++) {
                    float &x = s[n][2 * h + e];
                    x = tok + 8 * n + 2 * t + e < end ? x * scale_log2 : -CUDART_INF_F;
                    m = fmaxf(m, x);
                }
            m = fmaxf(m, __shfl_xor_sync(~0u, m, 1));
            m = fmaxf(m, __shfl_xor_sync(~0u, m, 2));
            float fix = exp2_fast(top[h] - m); /* m is finite: the first token of the page is in range */
            top[h] = m;
            sum[h] *= fix;
#pragma unroll
            for (int c = 0; c < NT; c++) {
                acc[c][2 * h] *= fix;
                acc[c][2 * h + 1] *= fix;
            }
            float p[2][2];
#pragma unroll
            for (int n = 0; n < 2; n++)
#pragma unroll
                for (int e = 0; e < 2; e++) {
                    p[n][e] = exp2_fast(s[n][2 * h + e] - m);
                    sum[h] += p[n][e];
                }
            pa[h] = pack_bf16(p[0][0], p[0][1]);
            pa[2 + h] = pack_bf16(p[1][0], p[1][1]);
        }
        /* Output tile (j, e): column g is element 64 j + 8 g + e. */
#pragma unroll
        for (int j = 0; j < VI; j++) {
            const uint32_t *a = &vr[0][j].x, *b = &vr[1][j].x, *c = &vr[2][j].x, *d = &vr[3][j].x;
#pragma unroll
            for (int e = 0; e < 4; e++) {
                mma_bf16(acc[j * 8 + 2 * e], pa, zip_lo(a[e], b[e]), zip_lo(c[e], d[e]));
                mma_bf16(acc[j * 8 + 2 * e + 1], pa, zip_hi(a[e], b[e]), zip_hi(c[e], d[e]));
            }
        }
    }
#pragma unroll
    for (int h = 0; h < 2; h++) {
        sum[h] += __shfl_xor_sync(~0u, sum[h], 1);
        sum[h] += __shfl_xor_sync(~0u, sum[h], 2);
    }

    /* Merge the warps: rows below `group` only. */
    __shared__ float so[WARPS][16][DH + 4];
    __shared__ float2 sml[WARPS][16];
#pragma unroll
    for (int h = 0; h < 2; h++) {
        int r = g + 8 * h;
        if (r >= group)
            continue;
        if (t == 0)
            sml[warp][r] = make_float2(top[h], sum[h]);
#pragma unroll
        for (int c = 0; c < NT; c++)
#pragma unroll
            for (int e = 0; e < 2; e++) {
                int col = (c / 8) * 64 + 8 * (2 * t + e) + c % 8;
                if (col < DH)
                    so[warp][r][col] = acc[c][2 * h + e];
            }
    }
    __syncthreads();
    size_t cell = (size_t)slot * G + head;
    float *po = part.o + (cell * gridDim.z + split) * 16 * DH;
    float2 *pml = part.ml + (cell * gridDim.z + split) * 16;
    for (int i = threadIdx.x; i < group * DH; i += WARPS * 32) {
        int r = i / DH, col = i % DH;
        float m = -CUDART_INF_F, v = 0, l = 0;
#pragma unroll
        for (int w = 0; w < WARPS; w++)
            m = fmaxf(m, sml[w][r].x);
#pragma unroll
        for (int w = 0; w < WARPS; w++) {
            float f = sml[w][r].y > 0 ? exp2_fast(sml[w][r].x - m) : 0;
            if (f > 0)
                v += f * so[w][r][col], l += f * sml[w][r].y;
        }
        if (splits == 1) {
            o[((size_t)row_q * H + head * group + r) * DH + col] = __float2bfloat16(v / l);
            continue;
        }
        po[i] = v;
        if (col == 0)
            pml[r] = make_float2(m, l);
    }
    if (splits == 1)
        return;

    __shared__ int last;
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0)
        last = atomicAdd(&part.arrived[cell], 1) == splits - 1;
    __syncthreads();
    if (!last)
        return;
    __threadfence();
    for (int i = threadIdx.x; i < group * DH; i += WARPS * 32) {
        int r = i / DH;
        const float2 *ml = part.ml + cell * gridDim.z * 16 + r;
        const float *src = part.o + cell * gridDim.z * 16 * DH + i;
        float m = -CUDART_INF_F, v = 0, l = 0;
        for (int k = 0; k < splits; k++)
            m = fmaxf(m, __ldcg(&ml[k * 16]).x);
        for (int k = 0; k < splits; k++) {
            float2 e = __ldcg(&ml[k * 16]);
            float f = exp2_fast(e.x - m);
            v += f * __ldcg(&src[(size_t)k * 16 * DH]);
            l += f * e.y;
        }
        o[((size_t)row_q * H + head * group + r) * DH + i % DH] = __float2bfloat16(v / l);
    }
    if (threadIdx.x == 0)
        part.arrived[cell] = 0;
}

} // namespace

/* Arrival counters first, in a place that does not depend on the launch: they must be zero whatever ran before. */
static size_t counters(const cu_dims &m)
{
    return ((size_t)m.max_reqs * m.G + 3) / 4 * 4;
}

size_t cu_attn_decode_work(const cu_dims &m)
{
    size_t cells = (size_t)m.max_reqs * m.G;
    return counters(m) * sizeof(int) + cells * CU_MAX_SPLITS * 16 * (m.d * sizeof(float) + sizeof(float2));
}

void cu_attn_decode(const cu_dims &m, const bf16 *qkv, const cu_meta &meta, int n_dec, int splits, int layer, const bf16 *pool, bf16 *o,
                    void *work, cudaStream_t s)
{
    size_t cells = (size_t)n_dec * m.G;
    partial part;
    part.arrived = static_cast<int *>(work);
    part.ml = reinterpret_cast<float2 *>(part.arrived + counters(m));
    part.o = reinterpret_cast<float *>(part.ml + cells * splits * 16);
    float scale_log2 = 1.4426950408889634f / sqrtf((float)m.d);
    size_t layer_at = (size_t)layer * 2 * m.G * m.B * m.d;
    dim3 grid((unsigned)m.G, (unsigned)n_dec, (unsigned)splits);
    auto kernel = m.d == 128 ? attn_decode_kernel<128> : m.d == 64 ? attn_decode_kernel<64> : attn_decode_kernel<32>;
    cu_launch(kernel, grid, WARPS * 32, 0, s, qkv, pool, meta, m.H, m.G, m.B_log2, m.page_elems, layer_at, scale_log2, part, o);
}
