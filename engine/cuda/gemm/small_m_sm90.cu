/* Small-M GEMMs on Hopper, at the rate at which weights can be read: y[M][N] = x[M][K] w[N][K]^T.
 *
 * The operands are swapped: w is the first operand of wgmma, whose 64 rows are then always full. A warpgroup multiplies
 * 64 rows of w by all rows of x (m64 by n = TN, where TN is M rounded up to 16, 32, 64 or 128). Each weight is read
 * once, and the tensor cores do no more work than M needs. One thread block per SM processes tiles of 64 rows of w in
 * turn. A GEMM with too few tiles for all blocks uses split-K: the two blocks of a cluster process half of K each, and
 * exchange accumulators through shared memory.
 *
 * A producer thread copies the weights by TMA, in steps of 64 along K. It keeps up to 160 KB in flight, because DRAM
 * needs that much to be busy all the time. Weights depend on no other kernel, so their copies start while the kernel
 * that writes x still runs (programmatic dependent launch). A second producer thread copies the rows of x, which are in
 * L2, a few steps in advance.
 *
 * RMSNorm is folded into the GEMM. The kernel that writes x also writes h = x * gamma and per-tile sums of squares;
 * this GEMM multiplies h and scales each output row by 1 / rms, which it computes from the sums while its weights load.
 * The sums are always added in the same order.
 *
 * Some outputs need two rows of w: gate and up, or the two elements of a head that RoPE combines. The tensor map makes
 * the copy engine place the two rows 8 rows apart in a group of 16, so that one thread has both accumulators.
 *
 * Barriers in shared memory, and what completes a phase of each:
 *   W_FULL, X_FULL    of each stage: 1 arrival, by the producer, which also announces the bytes; and the bytes
 *   W_EMPTY, X_EMPTY  of each stage: 4 arrivals, one by each consumer warp
 *   SCALES_READY      used once: an arrival by each scale thread
 *   PARTIAL_FULL      used once: 1 arrival, and the bytes that the other block of the cluster sends */
#include "engine/cuda/gemm/small_m_sm90.h"
#include "engine/cuda/ptx.cuh"
#include "engine/cuda/sm90.cuh"
#include "engine/cuda/tensor_map.h"

#include <cuda.h>
#include <string.h>

namespace {

enum { STEP = 64 /* elements of K */, ROW_BYTES = STEP * 2, TILE = 64 /* rows of w */, TILE_BYTES = TILE * ROW_BYTES };
/* Threads of a block: a consumer warpgroup, a warp for each of the two producers, and two warps that compute the scales
 * of the rows. The names are those of each group's first thread; CONSUMERS is also the number of consumers. */
enum { CONSUMERS = 128, WEIGHTS = CONSUMERS, ROWS = WEIGHTS + 32, SCALERS = ROWS + 32, THREADS = SCALERS + 64 };
enum { CLUSTER = 2 /* thread blocks */, SMEM = 227 << 10 /* bytes */ };

struct params {
    CUtensorMap w, x;
    void *y;
    const bf16 *norm; /* as in cu_small_m_job */
    bf16 *h;          /* [M][N] */
    float *squares;   /* [N / 64 or K / 64][CU_SMALL_M_SM90_MAX] as in cu_small_m_workspace */
    int M, N, steps;  /* rows of x; columns of y; K / STEP */
    int tiles, stack; /* tiles of 64 rows: of w; of one stack in the tensor map of w (cu_small_m_sm90_weights) */
    int split;        /* split-K: thread blocks per tile, 1 or 2 */
    bool scaled;      /* as in cu_small_m_job; `squares` then has a tile for each step of K */
    float eps;
    enum cu_epilogue epilogue;
    cu_small_m_heads heads;
};

/* Offsets in shared memory, in bytes. A stage holds one step of a tile of w, or of TN rows of x. */
template <int TN> struct smem_layout {
    enum {
        X_STAGE = TN * ROW_BYTES,
        X_STAGES = TN <= 32 ? 12 : TN <= 64 ? 10 : 8,
        W_STAGES_MAX = TN <= 16 ? 16 : 20,  /* more loads in flight would slow the end of the previous GEMM */
        PARTIAL = SMEM - TN * TILE * 4 / 2, /* split-K: accumulators from the other block */
        /* CU_EPILOGUE_HEADS, which never uses split-K, has three arrays in the same memory: */
        PEER_SQUARES = PARTIAL,        /* [TN] f32 sums of squares of the other half of the head */
        HEAD_SCALE = PARTIAL + TN * 4, /* [TN] f32 1 / rms of the head in each row */
        SLOTS = PARTIAL + 2 * TN * 4,  /* [TN] int32 KV slots */
        SCALE = PARTIAL - TN * 4,      /* [TN] f32 1 / rms of each row, or 1 */
        SQUARES = SCALE - 4 * TN * 4,  /* [4 consumer warps][TN] f32 sums of squares of the tile */
        W_FULL = SQUARES - 8 * (2 * W_STAGES_MAX + 2 * X_STAGES + 2),
        W_EMPTY = W_FULL + 8 * W_STAGES_MAX,
        X_FULL = W_EMPTY + 8 * W_STAGES_MAX,
        X_EMPTY = X_FULL + 8 * X_STAGES,
        SCALES_READY = X_EMPTY + 8 * X_STAGES,
        PARTIAL_FULL = SCALES_READY + 8,
        FIT = (W_FULL - X_STAGES * X_STAGE) / TILE_BYTES,
        W_STAGES = FIT < W_STAGES_MAX ? FIT : W_STAGES_MAX,
        X = W_STAGES * TILE_BYTES
    };
};

/* wgmma.m64nTNk16: d[64 x TN] = or += w x^T over 16 elements of K. Both operands are in shared memory with K innermost.
 * keep 0: d is overwritten. */
template <int TN> __device__ __forceinline__ void wgmma(float (&d)[TN / 2], uint64_t w, uint64_t x, int keep);
#define DEFINE_WGMMA(TN, NUMBERS, REGISTERS, W, X, KEEP)                                                               \
    template <> __device__ __forceinline__ void wgmma<TN>(float (&d)[TN / 2], uint64_t w, uint64_t x, int keep)        \
    {                                                                                                                  \
        asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " KEEP ", 0;\n"                                                 \
                     "wgmma.mma_async.sync.aligned.m64n" #TN "k16.f32.bf16.bf16 {" NUMBERS "}, " W ", " X              \
                     ", p, 1, 1, 0, 0;\n}"                                                                             \
                     : REGISTERS(d, 0)                                                                                 \
                     : "l"(w), "l"(x), "r"(keep));                                                                     \
    }
DEFINE_WGMMA(16, WG_N8, WG_R8, "%8", "%9", "%10")
DEFINE_WGMMA(32, WG_N16, WG_R16, "%16", "%17", "%18")
DEFINE_WGMMA(64, WG_N32, WG_R32, "%32", "%33", "%34")
DEFINE_WGMMA(128, WG_N64, WG_R64, "%64", "%65", "%66")

/* A thread block's share of the GEMM: `tiles` tiles, every stride-th from `tile` on, and of K `span` steps from step
 * `first` on. rank: with split-K the block's rank in its cluster, else 0. */
struct work_share {
    int rank, first, span, tile, stride, tiles;
    __device__ __forceinline__ work_share(const params &P)
    {
        rank = P.split > 1 ? (int)blockIdx.x % CLUSTER : 0;
        first = P.steps * rank / P.split;
        span = P.steps * (rank + 1) / P.split - first;
        tile = (int)blockIdx.x / P.split;
        stride = (int)gridDim.x / P.split;
        tiles = tile < P.tiles ? (P.tiles - tile + stride - 1) / stride : 0;
    }
};

/* ---- the producers, one thread each ---- */

/* Copies the weights of the block's tiles, step by step. */
template <int TN> __device__ __forceinline__ void produce_weights(const params &P, uint32_t base)
{
    using lay = smem_layout<TN>;
    work_share mine(P);
    pipe_state at;
    for (int t = 0; t < mine.tiles; t++)
        for (int k = 0; k < mine.span; k++, at.next(lay::W_STAGES)) {
            int tile = mine.tile + t * mine.stride;
            uint32_t full = base + lay::W_FULL + 8 * at.stage;
            mbar_wait(base + lay::W_EMPTY + 8 * at.stage, at.parity ^ 1);
            mbar_expect_tx(full, TILE_BYTES);
            tma_load_stack(base + at.stage * TILE_BYTES, &P.w, (mine.first + k) * STEP, tile % P.stack * (TILE / 16),
                           tile / P.stack, full);
        }
    griddep_launch();
}

/* Copies the rows of x, once for each of the block's tiles. */
template <int TN> __device__ __forceinline__ void produce_rows(const params &P, uint32_t base)
{
    using lay = smem_layout<TN>;
    work_share mine(P);
    pipe_state at;
    if (P.split > 1) /* the accumulators of the rows that this block stores: every other 8 rows */
        mbar_expect_tx(base + lay::PARTIAL_FULL, ((P.M + 7) / 8 + 1 - mine.rank) / 2 * 8 * TILE * 4);
    if (P.epilogue == CU_EPILOGUE_HEADS)
        mbar_expect_tx(base + lay::PARTIAL_FULL, TN * 4);
    griddep_wait();
    for (int t = 0; t < mine.tiles; t++)
        for (int k = 0; k < mine.span; k++, at.next(lay::X_STAGES)) {
            uint32_t full = base + lay::X_FULL + 8 * at.stage;
            mbar_wait(base + lay::X_EMPTY + 8 * at.stage, at.parity ^ 1);
            mbar_expect_tx(full, lay::X_STAGE);
            tma_load_box(base + lay::X + at.stage * lay::X_STAGE, &P.x, (mine.first + k) * STEP, 0, full);
        }
}

/* ---- the scale threads ---- */

/* Computes each row's scale from the sums of squares, and copies the KV slots to shared memory. tid: index among the
 * scale threads. AT_ONCE loads are in flight at the same time; the order of the additions is fixed. */
template <int TN> __device__ __forceinline__ void compute_scales(const params &P, char *smem, uint32_t base, int tid)
{
    using lay = smem_layout<TN>;
    enum { AT_ONCE = 32 };
    float *scales = reinterpret_cast<float *>(smem + lay::SCALE);
    int32_t *slots = reinterpret_cast<int32_t *>(smem + lay::SLOTS);
    griddep_wait();
    for (int m = tid; m < TN; m += THREADS - SCALERS) {
        float sum = 0;
        for (int t = 0; P.scaled && m < P.M && t < P.steps; t += AT_ONCE) {
            float v[AT_ONCE];
#pragma unroll
            for (int i = 0; i < AT_ONCE; i++)
                v[i] = t + i < P.steps ? P.squares[(t + i) * CU_SMALL_M_SM90_MAX + m] : 0;
#pragma unroll
            for (int i = 0; i < AT_ONCE; i++)
                sum += v[i];
        }
        scales[m] = P.scaled ? rsqrtf(sum / (float)(P.steps * STEP) + P.eps) : 1;
        if (P.epilogue == CU_EPILOGUE_HEADS && m < P.M)
            slots[m] = P.heads.slots[m];
    }
    mbar_arrive(base + lay::SCALES_READY);
}

/* ---- the epilogue ----
 * A warp stores the outputs of 8 rows of x and its 16 rows of w at a time, as two 8x8 matrices. Of each matrix a lane
 * has two neighbouring elements of row lane / 4. In the accumulators the matrix rows are rows of w, in y they are rows
 * of x. So bf16 outputs are transposed before the store, and the old values of y (CU_EPILOGUE_ADD) after the load. */

/* Index of a lane's pair of bf16 in y: row m + lane / 4, columns column + 2 (lane % 4) and the next. */
__device__ __forceinline__ size_t pair_at(int N, int column, int m, int lane)
{
    return ((size_t)(m + lane / 4) * N + column + lane % 4 * 2) / 2;
}
/* The two bf16 of a pair as f32. */
__device__ __forceinline__ float low(uint32_t pair)
{
    return __uint_as_float(pair << 16);
}
__device__ __forceinline__ float high(uint32_t pair)
{
    return __uint_as_float(pair & 0xFFFF0000u);
}

/* A warp's outputs of a tile. With CU_EPILOGUE_HEADS a tile is half of a head: elements i and i + 64, which RoPE
 * combines, for 32 values of i. The constructor loads what the epilogue needs, so that the GEMM hides the loads. */
template <int TN> struct tile_output {
    const params &P;
    int rank, column, lane;     /* rank: as in work_share; column: the warp's first column in y */
    uint32_t loaded[TN / 8][4]; /* ADD: old values of y; HEADS: the bits of cosine and sine of two rows */
    float norm[2];              /* gamma of the lane's two rows of w */

    __device__ __forceinline__ tile_output(const params &p, int r, int tile, int tid) : P(p), rank(r)
    {
        column = tile * TILE + tid / 32 * 16;
        lane = tid % 32;
        if (P.epilogue == CU_EPILOGUE_SWIGLU)
            column /= 2;
        if (P.epilogue == CU_EPILOGUE_HEADS) {
            column = tile / 2 * 128 + tile % 2 * 32 + tid / 32 * 8;
            load_heads();
        }
        if (P.epilogue == CU_EPILOGUE_ADD)
            load_add();
    }

    __device__ __forceinline__ void load_add()
    {
        const uint32_t *y = static_cast<const uint32_t *>(P.y);
#pragma unroll
        for (int i = 0; i < TN / 8; i++) {
            int m = 8 * (rank + i * P.split);
            bool inside = m + lane / 4 < P.M && column < P.N;
            loaded[i][0] = inside ? y[pair_at(P.N, column, m, lane)] : 0;
            loaded[i][1] = inside ? y[pair_at(P.N, column, m, lane) + 4] : 0;
        }
        for (int h = 0; h < 2; h++)
            norm[h] = P.norm && column < P.N ? __bfloat162float(P.norm[column + lane / 4 + 8 * h]) : 0;
    }
    __device__ __forceinline__ void load_heads()
    {
        int i = column % 128 + lane / 4;
        const bf16 *w = column / 128 < P.heads.H ? P.heads.q_norm : P.heads.k_norm;
#pragma unroll
        for (int k = 0; k < TN / 8; k++)
#pragma unroll
            for (int e = 0; e < 2; e++) {
                int m = 8 * k + lane % 4 * 2 + e;
                float2 a = m < P.M ? P.heads.angles[m * 64 + i] : make_float2(0, 0);
                loaded[k][2 * e] = __float_as_uint(a.x);
                loaded[k][2 * e + 1] = __float_as_uint(a.y);
            }
        for (int h = 0; h < 2; h++)
            norm[h] = __bfloat162float(w[i + 64 * h]);
    }

    __device__ __forceinline__ void store_f32(const float (&v)[4], int m) const
    {
        float *y = static_cast<float *>(P.y) + (size_t)(m + lane % 4 * 2) * P.N + column + lane / 4;
#pragma unroll
        for (int i = 0; i < 4; i++)
            if (m + lane % 4 * 2 + i % 2 < P.M)
                y[(size_t)(i % 2) * P.N + i / 2 * 8] = v[i];
    }

    __device__ __forceinline__ void store_act(const float (&v)[4], int m) const
    {
        uint32_t act = movmatrix_trans(pack_bf16(silu(v[0]) * v[2], silu(v[1]) * v[3]));
        if (m + lane / 4 < P.M)
            static_cast<uint32_t *>(P.y)[pair_at(P.N, column, m, lane)] = act;
    }

    /* Stores two 8x8 matrices, transposed, at columns `column` and column + 8 of rows m to m + 7. */
    __device__ __forceinline__ void store_pairs(uint32_t *y, const uint32_t (&now)[2], int m, bool wanted) const
    {
#pragma unroll
        for (int h = 0; h < 2; h++) {
            uint32_t pair = movmatrix_trans(now[h]);
            if (wanted && m + lane / 4 < P.M)
                y[pair_at(P.N, column, m, lane) + 4 * h] = pair;
        }
    }

    /* y += v. When a norm follows, also h, and the sums of squares over the warp's 16 columns. */
    __device__ __forceinline__ void store_add(const float (&v)[4], const uint32_t (&was)[4], float *squares,
                                              int m) const
    {
        uint32_t now[2], normed[2];
        float sum[2] = {};
#pragma unroll
        for (int h = 0; h < 2; h++) {
            uint32_t before = movmatrix_trans(was[h]);
            now[h] = pack_bf16(v[2 * h] + low(before), v[2 * h + 1] + high(before));
            normed[h] = pack_bf16(low(now[h]) * norm[h], high(now[h]) * norm[h]);
            sum[0] += low(now[h]) * low(now[h]);
            sum[1] += high(now[h]) * high(now[h]);
        }
        store_pairs(static_cast<uint32_t *>(P.y), now, m, true);
        store_pairs(reinterpret_cast<uint32_t *>(P.h), normed, m, P.norm);
        store_squares(sum, squares, m);
    }

    /* Adds up `sum` over the warp's columns and stores it for rows m to m + 7. */
    __device__ __forceinline__ void store_squares(float (&sum)[2], float *squares, int m) const
    {
#pragma unroll
        for (int e = 0; e < 2; e++) {
            for (int o = 4; o < 32; o *= 2)
                sum[e] += __shfl_xor_sync(~0u, sum[e], o);
            if (lane < 4)
                squares[m + 2 * lane + e] = sum[e];
        }
    }

    /* Applies RMSNorm and RoPE to rows 8k to 8k + 7 of a head of q or k, and stores the rows: q in y, k and v in the
     * token's page. scales: 1 / rms of the head in each row. */
    __device__ __forceinline__ void store_heads(const float (&v)[4], const float *scales, const int32_t *slots,
                                                int k) const
    {
        int head = column / 128, kv = head - P.heads.H, m = 8 * k + lane / 4;
        uint32_t now[2] = {pack_bf16(v[0], v[1]), pack_bf16(v[2], v[3])};
        if (kv < P.heads.G) { /* q or k */
            float first[2], second[2];
#pragma unroll
            for (int e = 0; e < 2; e++) {
                float scale = scales[8 * k + lane % 4 * 2 + e], a = v[e] * (scale * norm[0]),
                      b = v[2 + e] * (scale * norm[1]), cosine = __uint_as_float(loaded[k][2 * e]),
                      sine = __uint_as_float(loaded[k][2 * e + 1]);
                first[e] = a * cosine - b * sine;
                second[e] = b * cosine + a * sine;
            }
            now[0] = pack_bf16(first[0], first[1]);
            now[1] = pack_bf16(second[0], second[1]);
        }
        uint32_t lo = movmatrix_trans(now[0]), hi = movmatrix_trans(now[1]);
        if (m >= P.M)
            return;
        bf16 *to = static_cast<bf16 *>(P.y) + (size_t)m * P.N + column;
        if (kv >= 0) {
            int slot = slots[m], off = slot & ((1 << P.heads.B_log2) - 1); /* a page has keys by head, then values */
            to = P.heads.pool + (size_t)(slot >> P.heads.B_log2) * P.heads.page_elems + P.heads.layer_at +
                 (((size_t)kv << P.heads.B_log2) + off) * 128 + column % 128;
        }
        reinterpret_cast<uint32_t *>(to)[lane % 4] = lo;
        reinterpret_cast<uint32_t *>(to)[lane % 4 + 32] = hi;
    }
};

/* bar.sync of the consumer warpgroup. */
__device__ __forceinline__ void consumers_sync()
{
    asm volatile("bar.sync 1, %0;" ::"r"((int)CONSUMERS) : "memory");
}

/* The sum of squares of row m over all columns of the tile: the consumer warps' sums, added up. */
template <int TN> __device__ __forceinline__ float sum_squares(const float *squares, int m)
{
    return (squares[m] + squares[TN + m]) + (squares[2 * TN + m] + squares[3 * TN + m]);
}

/* Stores the warp's 8-row blocks FROM to UNTIL - 1. There is no branch between them: their latencies overlap. */
template <int TN, enum cu_epilogue TO, int FROM, int UNTIL>
__device__ __forceinline__ void store_blocks(const tile_output<TN> &out, const float (&acc)[TN / 2],
                                             const float *scales, float *squares)
{
#pragma unroll
    for (int i = FROM; i < UNTIL; i++) {
        int m = 8 * (out.rank + i * out.P.split);
        float v[4] = {acc[4 * i], acc[4 * i + 1], acc[4 * i + 2], acc[4 * i + 3]};
        if (TO == CU_EPILOGUE_BF16 || TO == CU_EPILOGUE_SWIGLU) { /* the epilogues that allow P.scaled */
            float2 s = *reinterpret_cast<const float2 *>(scales + m + out.lane % 4 * 2);
            v[0] *= s.x, v[1] *= s.y, v[2] *= s.x, v[3] *= s.y;
        }
        if (TO == CU_EPILOGUE_F32) {
            out.store_f32(v, m);
        } else if (TO == CU_EPILOGUE_SWIGLU) {
            out.store_act(v, m);
        } else if (TO == CU_EPILOGUE_ADD) {
            out.store_add(v, out.loaded[i], squares, m);
        } else {
            uint32_t now[2] = {pack_bf16(v[0], v[1]), pack_bf16(v[2], v[3])};
            out.store_pairs(static_cast<uint32_t *>(out.P.y), now, m, true);
        }
    }
}

/* Stores the warp's outputs of a tile: all 8-row blocks, or with split-K the first half of acc. */
template <int TN, enum cu_epilogue TO>
__device__ __forceinline__ void store_tile(const tile_output<TN> &out, const float (&acc)[TN / 2], const float *scales,
                                           float *squares)
{
    if (out.column >= out.P.N)
        return;
    store_blocks<TN, TO, 0, TN / 16>(out, acc, scales, squares);
    if (out.P.split == 1)
        store_blocks<TN, TO, TN / 16, TN / 8>(out, acc, scales, squares);
}

/* Stores half of a head (CU_EPILOGUE_HEADS). The two blocks of the cluster have one half each, and exchange their sums
 * of squares. */
template <int TN>
__device__ __forceinline__ void store_half_head(const tile_output<TN> &out, float (&acc)[TN / 2], char *smem,
                                                uint32_t base, int tid)
{
    using lay = smem_layout<TN>;
    const float *scales = reinterpret_cast<const float *>(smem + lay::SCALE);
    float *squares = reinterpret_cast<float *>(smem + lay::SQUARES),
          *head_scales = reinterpret_cast<float *>(smem + lay::HEAD_SCALE);
#pragma unroll
    for (int k = 0; k < TN / 8; k++) {
        float2 s = *reinterpret_cast<const float2 *>(scales + 8 * k + out.lane % 4 * 2);
        float sum[2] = {};
#pragma unroll
        for (int i = 0; i < 4; i++) {
            float &v = acc[4 * k + i];
            v = __bfloat162float(__float2bfloat16(v * (i % 2 ? s.y : s.x))); /* rounded to bf16 like a stored qkv */
            sum[i % 2] += v * v;
        }
        out.store_squares(sum, squares + tid / 32 * TN, 8 * k);
    }
    consumers_sync();
    float mine = 0;
    int other = (int)blockIdx.x % CLUSTER ^ 1;
    if (tid < TN) {
        mine = sum_squares<TN>(squares, tid);
        st_async(mapa(base + lay::PEER_SQUARES + 4 * tid, other), mine, mapa(base + lay::PARTIAL_FULL, other));
    }
    mbar_wait(base + lay::PARTIAL_FULL, 0);
    if (tid < TN)
        head_scales[tid] =
            rsqrtf((mine + reinterpret_cast<const float *>(smem + lay::PEER_SQUARES)[tid]) / 128 + out.P.eps);
    consumers_sync();
#pragma unroll
    for (int k = 0; k < TN / 8; k++) {
        float v[4] = {acc[4 * k], acc[4 * k + 1], acc[4 * k + 2], acc[4 * k + 3]};
        out.store_heads(v, head_scales, reinterpret_cast<const int32_t *>(smem + lay::SLOTS), k);
    }
}

/* Split-K: sends the accumulators of the 8-row blocks that the other block stores, and adds the accumulators that the
 * other block sends. Afterwards acc[4i .. 4i + 3] are those of the i-th 8-row block that this block stores. */
template <int TN>
__device__ __forceinline__ void exchange_partials(const params &P, float (&acc)[TN / 2], char *smem, uint32_t base,
                                                  int rank, int tid)
{
    using lay = smem_layout<TN>;
    uint32_t part = mapa(base + lay::PARTIAL + tid * 16, rank ^ 1), bar = mapa(base + lay::PARTIAL_FULL, rank ^ 1);
#pragma unroll
    for (int i = 0; i < TN / 16; i++)
        if (8 * (2 * i + 1 - rank) < P.M)
            st_async(part + i * (CONSUMERS * 16), rank ? acc[8 * i] : acc[8 * i + 4],
                     rank ? acc[8 * i + 1] : acc[8 * i + 5], rank ? acc[8 * i + 2] : acc[8 * i + 6],
                     rank ? acc[8 * i + 3] : acc[8 * i + 7], bar);
    mbar_wait(base + lay::PARTIAL_FULL, 0);
    const float4 *theirs = reinterpret_cast<const float4 *>(smem + lay::PARTIAL) + tid;
#pragma unroll
    for (int i = 0; i < TN / 16; i++) {
        float4 p = theirs[i * CONSUMERS];
        acc[4 * i] = (rank ? acc[8 * i + 4] : acc[8 * i]) + p.x;
        acc[4 * i + 1] = (rank ? acc[8 * i + 5] : acc[8 * i + 1]) + p.y;
        acc[4 * i + 2] = (rank ? acc[8 * i + 6] : acc[8 * i + 2]) + p.z;
        acc[4 * i + 3] = (rank ? acc[8 * i + 7] : acc[8 * i + 3]) + p.w;
    }
}

/* The epilogue of one tile: exchanges partials with split-K, stores the outputs, and stores the tile's sums of squares
 * if an RMSNorm follows. */
template <int TN>
__device__ __forceinline__ void run_epilogue(const tile_output<TN> &out, float (&acc)[TN / 2], char *smem,
                                             uint32_t base, int tile, int tid)
{
    using lay = smem_layout<TN>;
    const params &P = out.P;
    const float *scales = reinterpret_cast<const float *>(smem + lay::SCALE);
    float *squares = reinterpret_cast<float *>(smem + lay::SQUARES);
    int split = P.split, rank = out.rank;
    if (split > 1)
        exchange_partials<TN>(P, acc, smem, base, rank, tid);
    mbar_wait(base + lay::SCALES_READY, 0);
    if (P.epilogue == CU_EPILOGUE_BF16)
        store_tile<TN, CU_EPILOGUE_BF16>(out, acc, scales, squares);
    else if (P.epilogue == CU_EPILOGUE_SWIGLU)
        store_tile<TN, CU_EPILOGUE_SWIGLU>(out, acc, scales, squares);
    else if (P.epilogue == CU_EPILOGUE_ADD)
        store_tile<TN, CU_EPILOGUE_ADD>(out, acc, scales, squares + tid / 32 * TN);
    else if (P.epilogue == CU_EPILOGUE_HEADS)
        store_half_head<TN>(out, acc, smem, base, tid);
    else
        store_tile<TN, CU_EPILOGUE_F32>(out, acc, scales, squares);
    if (!P.norm)
        return;
    consumers_sync();
    if (tid < P.M && tid / 8 % split == rank)
        P.squares[tile * CU_SMALL_M_SM90_MAX + tid] = sum_squares<TN>(squares, tid);
    consumers_sync(); /* the sums are read before the next tile overwrites them */
}

/* ---- the consumer warpgroup ---- */

/* Multiplies the block's tiles, and runs the epilogue of each. A stage is released one step later, when the wgmma that
 * reads it has ended. */
template <int TN> __device__ __forceinline__ void consume(const params &P, char *smem, uint32_t base, int tid)
{
    using lay = smem_layout<TN>;
    uint64_t w0 = wgmma_desc(base, 16, 1024), x0 = wgmma_desc(base + lay::X, 16, 1024);
    auto release = [&](int w_stage, int x_stage) {
        if (tid % 32 == 0) {
            mbar_arrive(base + lay::W_EMPTY + 8 * w_stage);
            mbar_arrive(base + lay::X_EMPTY + 8 * x_stage);
        }
    };
    work_share mine(P);
    pipe_state w, x;
    griddep_wait();
    for (int t = 0; t < mine.tiles; t++) {
        int tile = mine.tile + t * mine.stride, w_previous = 0, x_previous = 0;
        tile_output<TN> out(P, mine.rank, tile, tid);
        float acc[TN / 2];
        for (int k = 0; k < mine.span; k++, w.next(lay::W_STAGES), x.next(lay::X_STAGES)) {
            mbar_wait(base + lay::W_FULL + 8 * w.stage, w.parity);
            mbar_wait(base + lay::X_FULL + 8 * x.stage, x.parity);
            wgmma_fence();
#pragma unroll
            for (int s = 0; s < STEP / 16; s++)
                wgmma<TN>(acc, w0 + w.stage * (TILE_BYTES / 16) + 2 * s, x0 + x.stage * (lay::X_STAGE / 16) + 2 * s,
                          s > 0 || k > 0);
            wgmma_commit();
            wgmma_wait<1>();
            if (k > 0)
                release(w_previous, x_previous);
            w_previous = w.stage, x_previous = x.stage;
        }
        wgmma_wait<0>();
#pragma unroll
        for (int i = 0; i < TN / 2; i++)
            asm volatile("" : "+f"(acc[i])::"memory"); /* the compiler must not read acc before this point */
        release(w_previous, x_previous);
        run_epilogue<TN>(out, acc, smem, base, tile, tid);
    }
}

/* Grid: at most cu_small_m_sm90_blocks thread blocks, one per SM, in clusters of two. */
template <int TN>
__global__ void __cluster_dims__(CLUSTER, 1, 1) __launch_bounds__(THREADS, 1)
    small_m_sm90_kernel(const __grid_constant__ params P)
{
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    using lay = smem_layout<TN>;
    extern __shared__ __align__(1024) char smem[];
    uint32_t base = smem_u32(smem);
    int tid = (int)threadIdx.x;
    if (tid == 0) {
        for (int i = 0; i < lay::W_STAGES; i++) {
            mbar_init(base + lay::W_FULL + 8 * i, 1);
            mbar_init(base + lay::W_EMPTY + 8 * i, CONSUMERS / 32);
        }
        for (int i = 0; i < lay::X_STAGES; i++) {
            mbar_init(base + lay::X_FULL + 8 * i, 1);
            mbar_init(base + lay::X_EMPTY + 8 * i, CONSUMERS / 32);
        }
        mbar_init(base + lay::SCALES_READY, THREADS - SCALERS);
        mbar_init(base + lay::PARTIAL_FULL, 1);
        mbar_init_fence();
    }
    cluster_sync(); /* the barriers of both blocks are initialised before either block uses the other's */
    if (tid < CONSUMERS)
        consume<TN>(P, smem, base, tid);
    else if (tid >= SCALERS)
        compute_scales<TN>(P, smem, base, tid - SCALERS);
    else if (tid == WEIGHTS)
        produce_weights<TN>(P, base);
    else if (tid == ROWS)
        produce_rows<TN>(P, base);
#endif
}

/* The kernels, by their most rows of x. */
const struct {
    int rows;
    void (*run)(params);
} classes[CU_SMALL_M_CLASSES] = {{16, small_m_sm90_kernel<16>},
                                 {32, small_m_sm90_kernel<32>},
                                 {64, small_m_sm90_kernel<64>},
                                 {CU_SMALL_M_SM90_MAX, small_m_sm90_kernel<CU_SMALL_M_SM90_MAX>}};

} // namespace

bool cu_small_m_sm90_usable(const cu_dims &m, int rows, int K)
{
    return m.arch == 90 && rows % 16 == 0 && K % STEP == 0;
}

int cu_small_m_sm90_blocks(const cu_dims &m, int *out, struct km_err *err)
{
    int most = m.n_sms / CLUSTER;
    for (auto &c : classes) {
        int n = 0;
        cudaLaunchConfig_t cfg = {};
        cfg.gridDim = dim3(CLUSTER), cfg.blockDim = dim3(THREADS), cfg.dynamicSmemBytes = SMEM;
        CU_TRY(cudaFuncSetAttribute(c.run, cudaFuncAttributeMaxDynamicSharedMemorySize, SMEM));
        CU_TRY(cudaOccupancyMaxActiveClusters(&n, c.run, &cfg));
        most = n < most ? n : most;
    }
    if (most < 1)
        return km_fail(err, KM_EDEVICE,
                       "the GPU cannot run a cluster of %d thread blocks with %d KiB of shared memory each",
                       (int)CLUSTER, SMEM >> 10);
    *out = most * CLUSTER;
    return 0;
}

int cu_small_m_sm90_weights(struct cu_small_m_weights *out, const bf16 *w, int rows, int K, enum cu_epilogue epilogue,
                            struct km_err *err)
{
    /* A group is 8 rows of w and the 8 rows that they are paired with: the next 8 rows, the same rows of up, or the
     * same rows of the head's other half. A stack is a head with CU_EPILOGUE_HEADS, else the whole matrix. `row`,
     * `pair` and `next` are strides in bytes: of a row, from a row to its pair, and from a group to the next group. */
    bool swiglu = epilogue == CU_EPILOGUE_SWIGLU, heads = epilogue == CU_EPILOGUE_HEADS;
    uint64_t row = (uint64_t)K * sizeof(bf16), all = (uint64_t)rows * row;
    uint64_t pair = swiglu ? all / 2 : heads ? 64 * row : 8 * row;
    uint64_t next = swiglu || heads ? 8 * row : 16 * row;
    uint64_t stack = heads ? 128 : (uint64_t)rows;
    uint64_t dims[] = {(uint64_t)K, 8, 2, stack / 16, (uint64_t)rows / stack},
             strides[] = {row, pair, next, stack * row};
    uint32_t box[] = {STEP, 8, 2, TILE / 16, 1};
    out->rows = rows, out->K = K, out->epilogue = epilogue;
    return cu_tensor_map(out->map, w, 5, dims, strides, box, err);
}

int cu_small_m_sm90_rows(struct cu_small_m_rows *out, const bf16 *x, int max_rows, int K, struct km_err *err)
{
    uint64_t dims[] = {(uint64_t)K, (uint64_t)max_rows}, stride = (uint64_t)K * sizeof(bf16);
    int rc = 0;
    for (int i = 0; i < CU_SMALL_M_CLASSES && !rc; i++) {
        uint32_t box[] = {STEP, (uint32_t)classes[i].rows};
        rc = cu_tensor_map(out->map[i], x, 2, dims, &stride, box, err);
    }
    return rc;
}

void cu_small_m_sm90(const struct cu_small_m_workspace &ws, const struct cu_small_m_job &job, int M,
                     const struct cu_small_m_heads *heads, cudaStream_t s)
{
    params P = {};
    int c = 0;
    while (classes[c].rows < M)
        c++;
    static_assert(sizeof P.w == sizeof job.w->map && sizeof P.x == sizeof job.x->map[0], "tensor map");
    memcpy(&P.w, job.w->map, sizeof P.w);
    memcpy(&P.x, job.x->map[c], sizeof P.x);
    P.y = job.y;
    P.norm = job.norm;
    P.h = ws.h;
    P.squares = ws.squares;
    P.epilogue = job.w->epilogue;
    P.M = M;
    P.N = P.epilogue == CU_EPILOGUE_SWIGLU ? job.w->rows / 2 : job.w->rows;
    P.steps = job.w->K / STEP;
    P.tiles = (job.w->rows + TILE - 1) / TILE;
    P.stack = P.epilogue == CU_EPILOGUE_HEADS ? 2 : P.tiles;
    P.split =
        P.epilogue != CU_EPILOGUE_HEADS && P.tiles * CLUSTER <= ws.blocks && P.steps >= CLUSTER ? (int)CLUSTER : 1;
    P.scaled = job.scaled;
    P.eps = ws.eps;
    if (heads)
        P.heads = *heads;
    int blocks = P.tiles * P.split; /* rounded up to whole clusters: a block may have no tile */
    blocks = (blocks + CLUSTER - 1) / CLUSTER * CLUSTER;
    cu_launch(classes[c].run, dim3((unsigned)(blocks < ws.blocks ? blocks : ws.blocks)), THREADS, SMEM, s, P);
}
