/* Causal attention of prefill chunks over paged KV, by mma.sync, for every GPU from sm_80 on (FlashAttention-2, Dao
 * 2023).
 *
 * A thread block processes 128 query rows of one head, 32 in each of its four warps. The warps process the keys in
 * tiles of 64 tokens, with an online softmax in registers. cp.async copies the tiles to shared memory, double-buffered,
 * in 16-byte pieces that are swizzled so that ldmatrix has no bank conflicts. Under the causal mask the last rows of a
 * request see the most keys, so the tiles of the last rows start first. */
#include "engine/cuda/attn/attn.h"
#include "engine/cuda/ptx.cuh"

#include <math.h>

namespace {

enum { WARPS = 4, TILE_K = 64, ROWS = CU_TILE_Q };

/* Byte offset of 16-byte piece c of row r in a swizzled tile of DH-element rows. */
template <int DH> __device__ __forceinline__ uint32_t swizzled(int r, int c)
{
    int x = DH >= 64 ? r & 7 : (r >> 1) & 3;
    return (uint32_t)(r * DH * 2 + ((c ^ x) << 4));
}

/* Offsets in shared memory, in bytes. K and V have two buffers each. */
template <int DH> struct smem_layout {
    enum { TILE_BYTES = TILE_K * DH * 2 };
    enum { Q = 0, K = ROWS * DH * 2, V = K + 2 * TILE_BYTES, SIZE = V + 2 * TILE_BYTES };
};

/* The online softmax of a warp's 32 rows, and the output. A lane has rows g and g + 8 (index h) of two mma tiles of 16
 * rows (index m); g = lane / 4, t = lane % 4. */
template <int DH> struct softmax_state {
    float acc[2][DH / 8][4] = {};
    float top[2][2], sum[2][2] = {}; /* maximum of the row's unscaled scores; sum over the lane's keys */
};

/* Starts the copies of K and V of tile j to buffer `buf`. Tokens from `stop` on become zeros. */
template <int DH>
__device__ __forceinline__ void load_kv(const bf16 *kv, const int32_t *table, int B_log2, size_t page_elems,
                                        size_t v_off, int stop, uint32_t base, int j, int buf, int tid)
{
    using lay = smem_layout<DH>;
    constexpr int PIECES = DH / 8;
    int mask = (1 << B_log2) - 1;
    for (int i = tid; i < TILE_K * PIECES; i += WARPS * 32) {
        int r = i / PIECES, c = i % PIECES, tok = j * TILE_K + r;
        bool in = tok < stop;
        int k = in ? tok : 0;
        const bf16 *src = kv + (size_t)table[k >> B_log2] * page_elems + (size_t)(k & mask) * DH + c * 8;
        uint32_t dst = swizzled<DH>(r, c) + buf * lay::TILE_BYTES;
        cp_async16(base + lay::K + dst, src, in);
        cp_async16(base + lay::V + dst, src + v_off, in);
    }
}

/* s = q k^T for a warp's 32 rows and the 64 keys at shared-memory address kb. */
template <int DH>
__device__ __forceinline__ void compute_scores(float (&s)[2][TILE_K / 8][4], uint32_t qb, uint32_t kb, int warp,
                                               int lane)
{
#pragma unroll
    for (int k = 0; k < DH / 16; k++) {
        uint32_t q[2][4];
#pragma unroll
        for (int m = 0; m < 2; m++)
            ldmatrix_x4(q[m], qb + swizzled<DH>(warp * 32 + m * 16 + lane % 16, 2 * k + lane / 16));
#pragma unroll
        for (int n = 0; n < TILE_K / 16; n++) { /* 16 keys are two mma tiles */
            uint32_t b[4];
            ldmatrix_x4(b, kb + swizzled<DH>(n * 16 + lane % 8 + lane / 16 * 8, 2 * k + (lane / 8) % 2));
#pragma unroll
            for (int m = 0; m < 2; m++) {
                mma_bf16(s[m][2 * n], q[m], b[0], b[1]);
                mma_bf16(s[m][2 * n + 1], q[m], b[2], b[3]);
            }
        }
    }
}

/* The online softmax of one tile: turns the scores s into probabilities p, as mma A fragments, and scales the state to
 * the new maximum. edge: some row does not see all keys of the tile. key0, pos0: positions of the tile's first key and
 * of the block's first row. */
template <int DH>
__device__ __forceinline__ void update_softmax(softmax_state<DH> &a, float (&s)[2][TILE_K / 8][4],
                                               uint32_t (&p)[2][TILE_K / 16][4], float scale_log2, bool edge, int key0,
                                               int pos0, int warp, int g, int t)
{
#pragma unroll
    for (int m = 0; m < 2; m++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            int pos = pos0 + warp * 32 + m * 16 + 8 * h + g;
            float mx = a.top[m][h];
#pragma unroll
            for (int n = 0; n < TILE_K / 8; n++)
#pragma unroll
                for (int e = 0; e < 2; e++) {
                    float &x = s[m][n][2 * h + e];
                    if (edge && key0 + n * 8 + 2 * t + e > pos)
                        x = -INFINITY;
                    mx = fmaxf(mx, x);
                }
            mx = fmaxf(mx, __shfl_xor_sync(~0u, mx, 1));
            mx = fmaxf(mx, __shfl_xor_sync(~0u, mx, 2));
            float off = mx == -INFINITY ? 0 : mx * scale_log2; /* rows past the tile's last row see no key */
            float fix = exp2_fast(a.top[m][h] * scale_log2 - off), add = 0;
            a.top[m][h] = mx;
#pragma unroll
            for (int n = 0; n < TILE_K / 8; n++) {
                float x = exp2_fast(s[m][n][2 * h] * scale_log2 - off),
                      y = exp2_fast(s[m][n][2 * h + 1] * scale_log2 - off);
                add += x + y;
                p[m][n / 2][(n % 2) * 2 + h] = pack_bf16(x, y);
            }
            a.sum[m][h] = a.sum[m][h] * fix + add;
#pragma unroll
            for (int c = 0; c < DH / 8; c++) {
                a.acc[m][c][2 * h] *= fix;
                a.acc[m][c][2 * h + 1] *= fix;
            }
        }
}

/* acc += p v for the 64 values at shared-memory address vb. */
template <int DH>
__device__ __forceinline__ void add_values(softmax_state<DH> &a, const uint32_t (&p)[2][TILE_K / 16][4], uint32_t vb,
                                           int lane)
{
#pragma unroll
    for (int k = 0; k < TILE_K / 16; k++)
#pragma unroll
        for (int c = 0; c < DH / 16; c++) { /* 16 columns of v */
            uint32_t b[4];
            ldmatrix_x4_trans(b, vb + swizzled<DH>(k * 16 + lane % 16, 2 * c + lane / 16));
#pragma unroll
            for (int m = 0; m < 2; m++) {
                mma_bf16(a.acc[m][2 * c], p[m][k], b[0], b[1]);
                mma_bf16(a.acc[m][2 * c + 1], p[m][k], b[2], b[3]);
            }
        }
}

/* Writes the first `rows` of the block's rows to o, whose rows are `stride` elements apart. */
template <int DH>
__device__ __forceinline__ void store_rows(const softmax_state<DH> &a, bf16 *o, size_t stride, int rows, int warp,
                                           int g, int t)
{
#pragma unroll
    for (int m = 0; m < 2; m++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            float l = a.sum[m][h];
            l += __shfl_xor_sync(~0u, l, 1);
            l += __shfl_xor_sync(~0u, l, 2);
            int r = warp * 32 + m * 16 + 8 * h + g;
            if (r >= rows)
                continue;
            float inv = 1 / l;
            bf16 *dst = o + r * stride + 2 * t;
#pragma unroll
            for (int c = 0; c < DH / 8; c++)
                *reinterpret_cast<uint32_t *>(dst + c * 8) =
                    pack_bf16(a.acc[m][c][2 * h] * inv, a.acc[m][c][2 * h + 1] * inv);
        }
}

/* Grid: query heads by tiles of query rows. scale_log2: log2(e) / sqrt(DH). layer_at: elements from the start of a page
 * to the layer. */
template <int DH>
__global__ void __launch_bounds__(WARPS * 32, 2)
    attn_prefill_kernel(const bf16 *__restrict__ qkv, const bf16 *__restrict__ pool, cu_step_arrays arrays, int H,
                        int G, int B_log2, size_t page_elems, size_t layer_at, float scale_log2, bf16 *__restrict__ o)
{
    griddep_wait();
    extern __shared__ __align__(128) char smem[];
    using lay = smem_layout<DH>;
    constexpr int PIECES = DH / 8;
    uint32_t base = smem_u32(smem);
    int tid = threadIdx.x, lane = tid % 32, warp = tid / 32, g = lane / 4, t = lane % 4;
    int head = blockIdx.x, tile = gridDim.y - 1 - blockIdx.y, kv_head = head / (H / G);
    int req = arrays.tile_req[tile], row0 = arrays.tile_row[tile];
    int q0 = arrays.q_start[req], q_len = arrays.q_start[req + 1] - q0, len = arrays.kv_len[req];
    int rows = min(ROWS, q_len - row0), pos0 = len - q_len + row0; /* position of the tile's first row */
    int stop = pos0 + rows;                                        /* keys that any row of the tile sees */
    int n_tiles = (stop + TILE_K - 1) / TILE_K;
    const int32_t *table = arrays.table + arrays.table_start[req];
    size_t q_stride = (size_t)(H + 2 * G) * DH;

    for (int i = tid; i < ROWS * PIECES; i += WARPS * 32) {
        int r = i / PIECES, c = i % PIECES;
        cp_async16(base + lay::Q + swizzled<DH>(r, c),
                   qkv + (size_t)(q0 + row0 + min(r, rows - 1)) * q_stride + head * DH + c * 8, r < rows);
    }
    const bf16 *kv = pool + layer_at + ((size_t)kv_head << B_log2) * DH;
    size_t v_off = ((size_t)G << B_log2) * DH;
    load_kv<DH>(kv, table, B_log2, page_elems, v_off, stop, base, 0, 0, tid);
    cp_async_commit();

    softmax_state<DH> a;
    for (int i = 0; i < 4; i++)
        a.top[i / 2][i % 2] = -INFINITY;
    for (int j = 0; j < n_tiles; j++) {
        int buf = j & 1;
        if (j + 1 < n_tiles)
            load_kv<DH>(kv, table, B_log2, page_elems, v_off, stop, base, j + 1, buf ^ 1, tid);
        cp_async_commit();
        cp_async_wait<1>();
        __syncthreads();
        uint32_t kb = base + lay::K + buf * lay::TILE_BYTES, vb = base + lay::V + buf * lay::TILE_BYTES;
        float s[2][TILE_K / 8][4] = {};
        compute_scores<DH>(s, base + lay::Q, kb, warp, lane);
        uint32_t p[2][TILE_K / 16][4];
        update_softmax(a, s, p, scale_log2, (j + 1) * TILE_K > pos0 + 1, j * TILE_K, pos0, warp, g, t);
        add_values(a, p, vb, lane);
        __syncthreads();
    }
    store_rows(a, o + ((size_t)(q0 + row0) * H + head) * DH, (size_t)H * DH, rows, warp, g, t);
}

template <int DH>
void launch(const cu_dims &m, const bf16 *qkv, const cu_step_arrays &in, int n_tiles, int layer, const bf16 *pool,
            bf16 *o, cudaStream_t s)
{
    float scale_log2 = 1.4426950408889634f / sqrtf((float)DH);
    size_t layer_at = (size_t)layer * 2 * m.G * m.B * DH;
    int size = smem_layout<DH>::SIZE;
    cudaFuncSetAttribute(attn_prefill_kernel<DH>, cudaFuncAttributeMaxDynamicSharedMemorySize, size);
    cu_launch(attn_prefill_kernel<DH>, dim3((unsigned)m.H, (unsigned)n_tiles), WARPS * 32, (size_t)size, s, qkv, pool,
              in, m.H, m.G, m.B_log2, m.page_elems, layer_at, scale_log2, o);
}

} // namespace

void cu_attn_prefill(const cu_dims &m, const bf16 *qkv, const cu_step_arrays &in, int n_tiles, int layer,
                     const bf16 *pool, bf16 *o, cudaStream_t s)
{
    auto launch_kernel = m.d == 128 ? launch<128> : m.d == 64 ? launch<64> : launch<32>;
    launch_kernel(m, qkv, in, n_tiles, layer, pool, o, s);
}
