/* Causal attention of prefill chunks over paged KV, by mma.sync: every card from sm_80 on.
 *
 * A block takes 128 query rows of one head; four warps of 32 rows walk the keys in tiles of 64 tokens. Tiles come
 * through shared memory by cp.async, two deep, in 16-byte pieces swizzled so that ldmatrix meets no bank conflict;
 * online softmax in registers (FlashAttention-2, Dao 2023). Long tiles are started first: the diagonal makes late
 * rows heavy. */
#include "engine/cuda/cu.h"
#include "engine/cuda/ptx.cuh"

#include <math.h>

namespace {

enum { WARPS = 4, TILE_K = 64, ROWS = CU_TILE_Q };

/* Byte offset of 16-byte piece `c` of row `r` in a swizzled tile of DH-element rows. */
template <int DH> __device__ __forceinline__ uint32_t at(int r, int c)
{
    int x = DH >= 64 ? r & 7 : (r >> 1) & 3;
    return (uint32_t)(r * DH * 2 + ((c ^ x) << 4));
}

template <int DH> struct smem_layout {
    enum { Q = 0, K = ROWS * DH * 2, V = K + 2 * TILE_K * DH * 2, SIZE = V + 2 * TILE_K * DH * 2 };
};

template <int DH>
__global__ void __launch_bounds__(WARPS * 32, 2)
    attn_prefill_kernel(const bf16 *__restrict__ qkv, const bf16 *__restrict__ pool, cu_step_arrays meta, int H, int G,
                        int B_log2, size_t page_elems, size_t layer_at, float scale_log2, bf16 *__restrict__ o)
{
    griddep_wait();
    extern __shared__ __align__(128) char smem[];
    using lay = smem_layout<DH>;
    constexpr int PIECES = DH / 8, KS = DH / 16, NT = DH / 8;
    uint32_t base = smem_u32(smem);
    int tid = threadIdx.x, lane = tid % 32, warp = tid / 32, g = lane / 4, t = lane % 4;
    int head = blockIdx.x, tile = gridDim.y - 1 - blockIdx.y, kvh = head / (H / G);
    int req = meta.tile_req[tile], row0 = meta.tile_row[tile];
    int q0 = meta.q_start[req], q_len = meta.q_start[req + 1] - q0, len = meta.kv_len[req];
    int rows = min(ROWS, q_len - row0), pos0 = len - q_len + row0; /* position of the tile's first row */
    int stop = pos0 + rows;                                        /* keys that any row of the tile sees */
    int n_tiles = (stop + TILE_K - 1) / TILE_K;
    const int32_t *table = meta.table + meta.table_start[req];
    size_t q_stride = (size_t)(H + 2 * G) * DH;

    for (int i = tid; i < ROWS * PIECES; i += WARPS * 32) {
        int r = i / PIECES, c = i % PIECES;
        cp_async16(base + lay::Q + at<DH>(r, c),
                   qkv + (size_t)(q0 + row0 + min(r, rows - 1)) * q_stride + head * DH + c * 8, r < rows);
    }
    const bf16 *kv = pool + layer_at + ((size_t)kvh << B_log2) * DH;
    size_t v_off = ((size_t)G << B_log2) * DH;
    int mask = (1 << B_log2) - 1;
    auto load = [&](int j, int buf) { /* K and V of tile j; tokens past the end become zeros */
                                      for (int i = tid; i < TILE_K * PIECES; i += WARPS * 32) {
                                          int r = i / PIECES, c = i % PIECES, tok = j * TILE_K + r;
                                          bool in = tok < stop;
                                          int k = in ? tok : 0;
                                          const bf16 *src = kv + (size_t)table[k >> B_log2] * page_elems +
                                                            (size_t)(k & mask) * DH + c * 8;
                                          uint32_t dst = at<DH>(r, c) + buf * TILE_K * DH * 2;
                                          cp_async16(base + lay::K + dst, src, in);
                                          cp_async16(base + lay::V + dst, src + v_off, in);
                                      }
    };
    load(0, 0);
    cp_async_commit();

    float acc[2][NT][4] = {};
    float top[2][2], sum[2][2] = {};
    for (int i = 0; i < 4; i++)
        top[i / 2][i % 2] = -INFINITY;

    for (int j = 0; j < n_tiles; j++) {
        int buf = j & 1;
        if (j + 1 < n_tiles)
            load(j + 1, buf ^ 1);
        cp_async_commit();
        cp_async_wait<1>();
        __syncthreads();

        uint32_t kb = base + lay::K + buf * TILE_K * DH * 2, vb = base + lay::V + buf * TILE_K * DH * 2;
        float s[2][TILE_K / 8][4] = {};
#pragma unroll
        for (int k = 0; k < KS; k++) {
            uint32_t q[2][4];
#pragma unroll
            for (int m = 0; m < 2; m++)
                ldmatrix_x4(q[m], base + lay::Q + at<DH>(warp * 32 + m * 16 + lane % 16, 2 * k + lane / 16));
#pragma unroll
            for (int n = 0; n < TILE_K / 16; n++) { /* 16 keys: two n-tiles, both k halves */
                uint32_t b[4];
                ldmatrix_x4(b, kb + at<DH>(n * 16 + lane % 8 + lane / 16 * 8, 2 * k + (lane / 8) % 2));
#pragma unroll
                for (int m = 0; m < 2; m++) {
                    mma_bf16(s[m][2 * n], q[m], b[0], b[1]);
                    mma_bf16(s[m][2 * n + 1], q[m], b[2], b[3]);
                }
            }
        }
        bool edge = (j + 1) * TILE_K > pos0 + 1; /* some row of the tile does not see all of these keys */
        uint32_t p[2][TILE_K / 16][4];
#pragma unroll
        for (int m = 0; m < 2; m++)
#pragma unroll
            for (int h = 0; h < 2; h++) {
                int pos = pos0 + warp * 32 + m * 16 + 8 * h + g;
                float mx = top[m][h];
#pragma unroll
                for (int n = 0; n < TILE_K / 8; n++)
#pragma unroll
                    for (int e = 0; e < 2; e++) {
                        float &x = s[m][n][2 * h + e];
                        if (edge && j * TILE_K + n * 8 + 2 * t + e > pos)
                            x = -INFINITY;
                        mx = fmaxf(mx, x);
                    }
                mx = fmaxf(mx, __shfl_xor_sync(~0u, mx, 1));
                mx = fmaxf(mx, __shfl_xor_sync(~0u, mx, 2));
                float off = mx == -INFINITY ? 0 : mx * scale_log2; /* rows past the tile's last see no key */
                float fix = exp2_fast(top[m][h] * scale_log2 - off), add = 0;
                top[m][h] = mx;
#pragma unroll
                for (int n = 0; n < TILE_K / 8; n++) {
                    float a = exp2_fast(s[m][n][2 * h] * scale_log2 - off),
                          b = exp2_fast(s[m][n][2 * h + 1] * scale_log2 - off);
                    add += a + b;
                    p[m][n / 2][(n % 2) * 2 + h] = pack_bf16(a, b);
                }
                sum[m][h] = sum[m][h] * fix + add;
#pragma unroll
                for (int c = 0; c < NT; c++) {
                    acc[m][c][2 * h] *= fix;
                    acc[m][c][2 * h + 1] *= fix;
                }
            }
#pragma unroll
        for (int k = 0; k < TILE_K / 16; k++)
#pragma unroll
            for (int c = 0; c < NT / 2; c++) { /* 16 columns of v */
                uint32_t b[4];
                ldmatrix_x4_trans(b, vb + at<DH>(k * 16 + lane % 16, 2 * c + lane / 16));
#pragma unroll
                for (int m = 0; m < 2; m++) {
                    mma_bf16(acc[m][2 * c], p[m][k], b[0], b[1]);
                    mma_bf16(acc[m][2 * c + 1], p[m][k], b[2], b[3]);
                }
            }
        __syncthreads();
    }

#pragma unroll
    for (int m = 0; m < 2; m++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            float l = sum[m][h];
            l += __shfl_xor_sync(~0u, l, 1);
            l += __shfl_xor_sync(~0u, l, 2);
            int r = warp * 32 + m * 16 + 8 * h + g;
            if (r >= rows)
                continue;
            float inv = 1 / l;
            bf16 *dst = o + ((size_t)(q0 + row0 + r) * H + head) * DH + 2 * t;
#pragma unroll
            for (int c = 0; c < NT; c++)
                *reinterpret_cast<uint32_t *>(dst + c * 8) =
                    pack_bf16(acc[m][c][2 * h] * inv, acc[m][c][2 * h + 1] * inv);
        }
}

template <int DH>
void launch(const cu_dims &m, const bf16 *qkv, const cu_step_arrays &meta, int n_tiles, int layer, const bf16 *pool,
            bf16 *o, cudaStream_t s)
{
    float scale_log2 = 1.4426950408889634f / sqrtf((float)DH);
    size_t layer_at = (size_t)layer * 2 * m.G * m.B * DH;
    int size = smem_layout<DH>::SIZE;
    cudaFuncSetAttribute(attn_prefill_kernel<DH>, cudaFuncAttributeMaxDynamicSharedMemorySize, size);
    cu_launch(attn_prefill_kernel<DH>, dim3((unsigned)m.H, (unsigned)n_tiles), WARPS * 32, (size_t)size, s, qkv,
              pool, meta, m.H, m.G, m.B_log2, m.page_elems, layer_at, scale_log2, o);
}

} // namespace

void cu_attn_prefill(const cu_dims &m, const bf16 *qkv, const cu_step_arrays &meta, int n_tiles, int layer,
                     const bf16 *pool, bf16 *o, cudaStream_t s)
{
    auto go = m.d == 128 ? launch<128> : m.d == 64 ? launch<64> : launch<32>;
    go(m, qkv, meta, n_tiles, layer, pool, o, s);
}
