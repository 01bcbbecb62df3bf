/* Products of few rows on Hopper, at the rate at which their weights can be read: y[M][N] of x[M][K] w[N][K]^T.
 *
 * The weights take the place of the tall operand: a warpgroup multiplies 64 rows of w by all rows of x (wgmma, m64 by
 * n = TN, M's class), so that every weight is read once and the tensor cores do no more than M asks for. A block an SM
 * walks over tiles of 64 rows of w; where there are too few for all blocks, two of them, a cluster, share the K of a
 * tile. A producer warp keeps steps of 64 along K of the weights in flight (TMA), up to 160 KB of them: that is what
 * DRAM needs to be busy all the time, and, since weights depend on nothing, it begins before the kernel that
 * makes x has ended (programmatic dependent launch). The rows of x come from L2, a few steps ahead, by a producer of
 * their own.
 *
 * A norm before a product costs nothing of its own: rmsnorm(x) w^T is (x * norm) w^T, its rows scaled. Who makes x also
 * writes h = x * norm and, for every tile, the sum of the squares of its columns; who multiplies h adds the sums up,
 * always in the same order, while its weights arrive.
 *
 * Rows of w that an output needs together, gate and up, or the halves of a head that a rotation mixes, are 8 and 8 of a
 * group of 16, so that a thread holds both: the copy engine puts them so, from a map of another shape.
 *
 * Barriers of shared memory, used for the n-th time:
 *   FULL   of a stage, of weights or of rows: 1 arrival, its producer's, which announces the bytes; parity n & 1.
 *   EMPTY  of the same: 4 arrivals, one of each consumer warp; the producer's n-th use waits for phase n - 1.
 *   READY  once: an arrival of every helper.
 *   PARTED once, where the cluster's other block has a part of a tile: 1 arrival, and the part's bytes.
 */
#include "engine/cuda/ptx.cuh"
#include "engine/cuda/sm90.cuh"
#include "engine/cuda/gemm/small_m_sm90.h"

#include <cuda.h>
#include <string.h>

namespace {

enum { STEP = 64, ROW_BYTES = STEP * 2, TILE = 64, TILE_BYTES = TILE * ROW_BYTES };
enum { CONSUMERS = 128, WEIGHTS = CONSUMERS, ROWS = WEIGHTS + 32, HELPERS = ROWS + 32, THREADS = HELPERS + 64 };
enum { CLUSTER = 2, SMEM = 227 << 10 };

struct params {
    CUtensorMap w, x;
    void *y;
    const bf16 *norm; /* of ADD, or NULL: h = y * norm and sums of y's squares are wanted too */
    bf16 *h;          /* [M][N] */
    float *sums;      /* [tiles][CU_SMALL_M_SM90] */
    int M, N, steps;  /* rows; columns of y; K / STEP */
    int tiles, stack; /* of 64 rows of w; that lie together in w's map */
    int split;        /* blocks to a tile: 1, or 2 with half of K each */
    bool scaled;      /* x is an h: its rows are scaled by the sums, a tile of which is a step here */
    float eps;
    enum cu_epilogue to;
    cu_small_m_heads heads;
};

/* Where things lie in shared memory. A stage holds a step of a tile, or of TN rows of x. */
template <int TN> struct layout {
    enum {
        X_STAGE = TN * ROW_BYTES,
        X_STAGES = TN <= 32 ? 12 : TN <= 64 ? 10 : 8,
        W_STAGES_MAX = TN <= 16 ? 16 : 20, /* more would take from the end of the product before */
        PART = SMEM - TN * TILE * 4 / 2, /* the other block's part of half of a tile's outputs; or, of heads: */
        THEIR_SQUARES = PART,            /* [TN] of the other half of the head */
        HEAD_SCALE = PART + TN * 4,      /* [TN] */
        SLOTS = PART + 2 * TN * 4,       /* [TN] */
        SCALE = PART - TN * 4,           /* [TN] */
        SQUARES = SCALE - 4 * TN * 4,    /* [consumer warp][TN] */
        W_FULL = SQUARES - 8 * (2 * W_STAGES_MAX + 2 * X_STAGES + 2),
        W_EMPTY = W_FULL + 8 * W_STAGES_MAX,
        X_FULL = W_EMPTY + 8 * W_STAGES_MAX,
        X_EMPTY = X_FULL + 8 * X_STAGES,
        READY = X_EMPTY + 8 * X_STAGES,
        PARTED = READY + 8,
        FIT = (W_FULL - X_STAGES * X_STAGE) / TILE_BYTES,
        W_STAGES = FIT < W_STAGES_MAX ? FIT : W_STAGES_MAX,
        X = W_STAGES * TILE_BYTES
    };
};

/* d[64 x TN] (+)= w x^T of 16 along K: both from shared memory, both with K innermost. */
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

/* A block's part: its tiles, and of their K its steps. */
struct share {
    int rank, first, span, tile, stride, tiles;
    __device__ __forceinline__ share(const params &P)
    {
        rank = P.split > 1 ? (int)blockIdx.x % CLUSTER : 0;
        first = P.steps * rank / P.split;
        span = P.steps * (rank + 1) / P.split - first;
        tile = (int)blockIdx.x / P.split;
        stride = (int)gridDim.x / P.split;
        tiles = tile < P.tiles ? (P.tiles - tile + stride - 1) / stride : 0;
    }
};

/* ---- the producers, a thread each ---- */

template <int TN> __device__ __forceinline__ void produce_weights(const params &P, uint32_t base)
{
    typedef layout<TN> in;
    share mine(P);
    pipe_state at;
    for (int t = 0; t < mine.tiles; t++)
        for (int k = 0; k < mine.span; k++, at.next(in::W_STAGES)) {
            int tile = mine.tile + t * mine.stride;
            uint32_t full = base + in::W_FULL + 8 * at.stage;
            mbar_wait(base + in::W_EMPTY + 8 * at.stage, at.parity ^ 1);
            mbar_expect_tx(full, TILE_BYTES);
            tma_load_stack(base + at.stage * TILE_BYTES, &P.w, (mine.first + k) * STEP, tile % P.stack * (TILE / 16),
                      tile / P.stack, full);
        }
    griddep_launch();
}

template <int TN> __device__ __forceinline__ void produce_rows(const params &P, uint32_t base)
{
    typedef layout<TN> in;
    share mine(P);
    pipe_state at;
    if (P.split > 1) /* the blocks of 8 rows that are this block's */
        mbar_expect_tx(base + in::PARTED, ((P.M + 7) / 8 + 1 - mine.rank) / 2 * 8 * TILE * 4);
    if (P.to == CU_EPILOGUE_HEADS)
        mbar_expect_tx(base + in::PARTED, TN * 4);
    griddep_wait();
    for (int t = 0; t < mine.tiles; t++)
        for (int k = 0; k < mine.span; k++, at.next(in::X_STAGES)) {
            uint32_t full = base + in::X_FULL + 8 * at.stage;
            mbar_wait(base + in::X_EMPTY + 8 * at.stage, at.parity ^ 1);
            mbar_expect_tx(full, in::X_STAGE);
            tma_load_box(base + in::X + at.stage * in::X_STAGE, &P.x, (mine.first + k) * STEP, 0, full);
        }
}

/* ---- the helpers: what outputs will need of each row ---- */

template <int TN> __device__ __forceinline__ void help(const params &P, char *smem, uint32_t base, int tid)
{
    typedef layout<TN> in;
    enum { AT_ONCE = 32 };
    float *scales = reinterpret_cast<float *>(smem + in::SCALE);
    int32_t *slots = reinterpret_cast<int32_t *>(smem + in::SLOTS);
    griddep_wait();
    for (int m = tid; m < TN; m += THREADS - HELPERS) {
        float sum = 0;
        for (int t = 0; P.scaled && m < P.M && t < P.steps; t += AT_ONCE) {
            float v[AT_ONCE];
#pragma unroll
            for (int i = 0; i < AT_ONCE; i++)
                v[i] = t + i < P.steps ? P.sums[(t + i) * CU_SMALL_M_SM90 + m] : 0;
#pragma unroll
            for (int i = 0; i < AT_ONCE; i++)
                sum += v[i];
        }
        scales[m] = P.scaled ? rsqrtf(sum / (float)(P.steps * STEP) + P.eps) : 1;
        if (P.to == CU_EPILOGUE_HEADS && m < P.M)
            slots[m] = P.heads.slots[m];
    }
    mbar_arrive(base + in::READY);
}

/* ---- outputs: 8 rows of x by the 16 rows of w of a warp at a time ----
 * Of 8 x 8 numbers a lane holds two neighbours of row lane / 4. The rows are w's in the accumulators and x's in y, so
 * that bf16 outputs are turned on their way out, and what they are added to on its way in. */

__device__ __forceinline__ size_t pair_at(int N, int column, int m, int lane)
{
    return ((size_t)(m + lane / 4) * N + column + lane % 4 * 2) / 2;
}
__device__ __forceinline__ float low(uint32_t pair)
{
    return __uint_as_float(pair << 16);
}
__device__ __forceinline__ float high(uint32_t pair)
{
    return __uint_as_float(pair & 0xFFFF0000u);
}

/* A warp's outputs of a tile. Of HEADS a tile is half of a head's pairs: rows i and i + 64 with i from 0 or from 32. */
template <int TN> struct outputs {
    const params &P;
    int rank, column, lane;
    uint32_t held[TN / 8][4]; /* of ADD what there was; of HEADS the bits of two rows' cosine and sine */
    float norm[2];

    __device__ __forceinline__ outputs(const params &p, int r, int tile, int tid) : P(p), rank(r)
    {
        column = tile * TILE + tid / 32 * 16;
        lane = tid % 32;
        if (P.to == CU_EPILOGUE_SWIGLU)
            column /= 2;
        if (P.to == CU_EPILOGUE_HEADS) {
            column = tile / 2 * 128 + tile % 2 * 32 + tid / 32 * 8;
            begin_heads();
        }
        if (P.to == CU_EPILOGUE_ADD)
            begin_add();
    }

    /* Reads what will be needed at the end, long before. */
    __device__ __forceinline__ void begin_add()
    {
        const uint32_t *y = static_cast<const uint32_t *>(P.y);
#pragma unroll
        for (int i = 0; i < TN / 8; i++) {
            int m = 8 * (rank + i * P.split);
            bool inside = m + lane / 4 < P.M && column < P.N;
            held[i][0] = inside ? y[pair_at(P.N, column, m, lane)] : 0;
            held[i][1] = inside ? y[pair_at(P.N, column, m, lane) + 4] : 0;
        }
        for (int h = 0; h < 2; h++)
            norm[h] = P.norm && column < P.N ? __bfloat162float(P.norm[column + lane / 4 + 8 * h]) : 0;
    }
    __device__ __forceinline__ void begin_heads()
    {
        int i = column % 128 + lane / 4;
        const bf16 *w = column / 128 < P.heads.H ? P.heads.q_norm : P.heads.k_norm;
#pragma unroll
        for (int k = 0; k < TN / 8; k++)
#pragma unroll
            for (int e = 0; e < 2; e++) {
                int m = 8 * k + lane % 4 * 2 + e;
                float2 a = m < P.M ? P.heads.angles[m * 64 + i] : make_float2(0, 0);
                held[k][2 * e] = __float_as_uint(a.x);
                held[k][2 * e + 1] = __float_as_uint(a.y);
            }
        for (int h = 0; h < 2; h++)
            norm[h] = __bfloat162float(w[i + 64 * h]);
    }

    __device__ __forceinline__ void put_f32(const float (&v)[4], int m) const
    {
        float *y = static_cast<float *>(P.y) + (size_t)(m + lane % 4 * 2) * P.N + column + lane / 4;
#pragma unroll
        for (int i = 0; i < 4; i++)
            if (m + lane % 4 * 2 + i % 2 < P.M)
                y[(size_t)(i % 2) * P.N + i / 2 * 8] = v[i];
    }

    __device__ __forceinline__ void put_act(const float (&v)[4], int m) const
    {
        uint32_t act = movmatrix_trans(pack_bf16(silu(v[0]) * v[2], silu(v[1]) * v[3]));
        if (m + lane / 4 < P.M)
            static_cast<uint32_t *>(P.y)[pair_at(P.N, column, m, lane)] = act;
    }

    __device__ __forceinline__ void put(uint32_t *y, const uint32_t (&now)[2], int m, bool wanted) const
    {
#pragma unroll
        for (int h = 0; h < 2; h++) {
            uint32_t pair = movmatrix_trans(now[h]);
            if (wanted && m + lane / 4 < P.M)
                y[pair_at(P.N, column, m, lane) + 4 * h] = pair;
        }
    }

    /* y += v; and where a norm follows h, and the squares of the warp's 16 columns. */
    __device__ __forceinline__ void add(const float (&v)[4], const uint32_t (&was)[4], float *squares, int m) const
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
        put(static_cast<uint32_t *>(P.y), now, m, true);
        put(reinterpret_cast<uint32_t *>(P.h), normed, m, P.norm);
        put_squares(sum, squares, m);
    }

    /* The sums over the warp's columns, of its rows m to m + 8. */
    __device__ __forceinline__ void put_squares(float (&sum)[2], float *squares, int m) const
    {
#pragma unroll
        for (int e = 0; e < 2; e++) {
            for (int o = 4; o < 32; o *= 2)
                sum[e] += __shfl_xor_sync(~0u, sum[e], o);
            if (lane < 4)
                squares[m + 2 * lane + e] = sum[e];
        }
    }

    /* Rows m to m + 8 of a head, as they leave the product, by their scales: to q's place, or a token's in a page. */
    __device__ __forceinline__ void put_heads(const float (&v)[4], const float *scales, const int32_t *slots,
                                              int k) const
    {
        int head = column / 128, kv = head - P.heads.H, m = 8 * k + lane / 4;
        uint32_t now[2] = {pack_bf16(v[0], v[1]), pack_bf16(v[2], v[3])};
        if (kv < P.heads.G) { /* not a value */
            float first[2], second[2];
#pragma unroll
            for (int e = 0; e < 2; e++) {
                float scale = scales[8 * k + lane % 4 * 2 + e], a = v[e] * (scale * norm[0]),
                      b = v[2 + e] * (scale * norm[1]), cosine = __uint_as_float(held[k][2 * e]),
                      sine = __uint_as_float(held[k][2 * e + 1]);
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
            int slot = slots[m], off = slot & ((1 << P.heads.B_log2) - 1); /* a page's keys by heads, then its values */
            to = P.heads.pool + (size_t)(slot >> P.heads.B_log2) * P.heads.page_elems + P.heads.layer_at +
                 (((size_t)kv << P.heads.B_log2) + off) * 128 + column % 128;
        }
        reinterpret_cast<uint32_t *>(to)[lane % 4] = lo;
        reinterpret_cast<uint32_t *>(to)[lane % 4 + 32] = hi;
    }
};

__device__ __forceinline__ void consumers_sync()
{
    asm volatile("bar.sync 1, %0;" ::"r"((int)CONSUMERS) : "memory");
}

/* Row m's squares of all of the tile's columns, which the consumer warps have put down. */
template <int TN> __device__ __forceinline__ float all_squares(const float *squares, int m)
{
    return (squares[m] + squares[TN + m]) + (squares[2 * TN + m] + squares[3 * TN + m]);
}

/* Blocks FROM to UNTIL of a warp's: without a branch between them, so that each hides the latencies of the others. */
template <int TN, enum cu_epilogue TO, int FROM, int UNTIL>
__device__ __forceinline__ void put_blocks(const outputs<TN> &out, const float (&acc)[TN / 2], const float *scales,
                                           float *squares)
{
#pragma unroll
    for (int i = FROM; i < UNTIL; i++) {
        int m = 8 * (out.rank + i * out.P.split);
        float v[4] = {acc[4 * i], acc[4 * i + 1], acc[4 * i + 2], acc[4 * i + 3]};
        if (TO == CU_EPILOGUE_BF16 || TO == CU_EPILOGUE_SWIGLU) { /* rows that a norm may come before */
            float2 s = *reinterpret_cast<const float2 *>(scales + m + out.lane % 4 * 2);
            v[0] *= s.x, v[1] *= s.y, v[2] *= s.x, v[3] *= s.y;
        }
        if (TO == CU_EPILOGUE_F32) {
            out.put_f32(v, m);
        } else if (TO == CU_EPILOGUE_SWIGLU) {
            out.put_act(v, m);
        } else if (TO == CU_EPILOGUE_ADD) {
            out.add(v, out.held[i], squares, m);
        } else {
            uint32_t now[2] = {pack_bf16(v[0], v[1]), pack_bf16(v[2], v[3])};
            out.put(static_cast<uint32_t *>(out.P.y), now, m, true);
        }
    }
}

template <int TN, enum cu_epilogue TO>
__device__ __forceinline__ void put_tile(const outputs<TN> &out, const float (&acc)[TN / 2], const float *scales,
                                         float *squares)
{
    if (out.column >= out.P.N)
        return;
    put_blocks<TN, TO, 0, TN / 16>(out, acc, scales, squares);
    if (out.P.split == 1)
        put_blocks<TN, TO, TN / 16, TN / 8>(out, acc, scales, squares);
}

/* Half of a head's pairs: their squares go to the block that has the others, which come here. */
template <int TN>
__device__ __forceinline__ void put_half_head(const outputs<TN> &out, float (&acc)[TN / 2], char *smem, uint32_t base,
                                              int tid)
{
    typedef layout<TN> in;
    const float *scales = reinterpret_cast<const float *>(smem + in::SCALE);
    float *squares = reinterpret_cast<float *>(smem + in::SQUARES),
          *own = reinterpret_cast<float *>(smem + in::HEAD_SCALE);
#pragma unroll
    for (int k = 0; k < TN / 8; k++) {
        float2 s = *reinterpret_cast<const float2 *>(scales + 8 * k + out.lane % 4 * 2);
        float sum[2] = {};
#pragma unroll
        for (int i = 0; i < 4; i++) {
            float &v = acc[4 * k + i];
            v = __bfloat162float(__float2bfloat16(v * (i % 2 ? s.y : s.x))); /* a product is a bf16 number */
            sum[i % 2] += v * v;
        }
        out.put_squares(sum, squares + tid / 32 * TN, 8 * k);
    }
    consumers_sync();
    float mine = 0;
    int other = (int)blockIdx.x % CLUSTER ^ 1;
    if (tid < TN) {
        mine = all_squares<TN>(squares, tid);
        st_async(mapa(base + in::THEIR_SQUARES + 4 * tid, other), mine, mapa(base + in::PARTED, other));
    }
    mbar_wait(base + in::PARTED, 0);
    if (tid < TN)
        own[tid] = rsqrtf((mine + reinterpret_cast<const float *>(smem + in::THEIR_SQUARES)[tid]) / 128 + out.P.eps);
    consumers_sync();
#pragma unroll
    for (int k = 0; k < TN / 8; k++) {
        float v[4] = {acc[4 * k], acc[4 * k + 1], acc[4 * k + 2], acc[4 * k + 3]};
        out.put_heads(v, own, reinterpret_cast<const int32_t *>(smem + in::SLOTS), k);
    }
}

template <int TN>
__device__ __forceinline__ void finish(const outputs<TN> &out, float (&acc)[TN / 2], char *smem, uint32_t base,
                                       int tile, int tid)
{
    typedef layout<TN> in;
    const params &P = out.P;
    const float *scales = reinterpret_cast<const float *>(smem + in::SCALE);
    float *squares = reinterpret_cast<float *>(smem + in::SQUARES);
    int split = P.split, rank = out.rank;
    if (split > 1) { /* what the other block is to put out goes there, what this one is comes here */
        uint32_t part = mapa(base + in::PART + tid * 16, rank ^ 1), bar = mapa(base + in::PARTED, rank ^ 1);
#pragma unroll
        for (int i = 0; i < TN / 16; i++)
            if (8 * (2 * i + 1 - rank) < P.M)
                st_async(part + i * (CONSUMERS * 16), rank ? acc[8 * i] : acc[8 * i + 4],
                         rank ? acc[8 * i + 1] : acc[8 * i + 5], rank ? acc[8 * i + 2] : acc[8 * i + 6],
                         rank ? acc[8 * i + 3] : acc[8 * i + 7], bar);
        mbar_wait(base + in::PARTED, 0);
        const float4 *theirs = reinterpret_cast<const float4 *>(smem + in::PART) + tid;
#pragma unroll
        for (int i = 0; i < TN / 16; i++) { /* ours, as if there were no other rows */
            float4 p = theirs[i * CONSUMERS];
            acc[4 * i] = (rank ? acc[8 * i + 4] : acc[8 * i]) + p.x;
            acc[4 * i + 1] = (rank ? acc[8 * i + 5] : acc[8 * i + 1]) + p.y;
            acc[4 * i + 2] = (rank ? acc[8 * i + 6] : acc[8 * i + 2]) + p.z;
            acc[4 * i + 3] = (rank ? acc[8 * i + 7] : acc[8 * i + 3]) + p.w;
        }
    }
    mbar_wait(base + in::READY, 0);
    if (P.to == CU_EPILOGUE_BF16)
        put_tile<TN, CU_EPILOGUE_BF16>(out, acc, scales, squares);
    else if (P.to == CU_EPILOGUE_SWIGLU)
        put_tile<TN, CU_EPILOGUE_SWIGLU>(out, acc, scales, squares);
    else if (P.to == CU_EPILOGUE_ADD)
        put_tile<TN, CU_EPILOGUE_ADD>(out, acc, scales, squares + tid / 32 * TN);
    else if (P.to == CU_EPILOGUE_HEADS)
        put_half_head<TN>(out, acc, smem, base, tid);
    else
        put_tile<TN, CU_EPILOGUE_F32>(out, acc, scales, squares);
    if (!P.norm)
        return;
    consumers_sync();
    if (tid < P.M && tid / 8 % split == rank)
        P.sums[tile * CU_SMALL_M_SM90 + tid] = all_squares<TN>(squares, tid);
    consumers_sync(); /* before the next tile's squares */
}

/* ---- the consumer warpgroup ---- */

template <int TN> __device__ __forceinline__ void consume(const params &P, char *smem, uint32_t base, int tid)
{
    typedef layout<TN> in;
    uint64_t w0 = wgmma_desc(base, 16, 1024), x0 = wgmma_desc(base + in::X, 16, 1024);
    auto release = [&](int w_stage, int x_stage) {
        if (tid % 32 == 0) {
            mbar_arrive(base + in::W_EMPTY + 8 * w_stage);
            mbar_arrive(base + in::X_EMPTY + 8 * x_stage);
        }
    };
    share mine(P);
    pipe_state w, x;
    griddep_wait();
    for (int t = 0; t < mine.tiles; t++) {
        int tile = mine.tile + t * mine.stride, w_before = 0, x_before = 0;
        outputs<TN> out(P, mine.rank, tile, tid);
        float acc[TN / 2];
        for (int k = 0; k < mine.span; k++, w.next(in::W_STAGES), x.next(in::X_STAGES)) {
            mbar_wait(base + in::W_FULL + 8 * w.stage, w.parity);
            mbar_wait(base + in::X_FULL + 8 * x.stage, x.parity);
            wgmma_fence();
#pragma unroll
            for (int s = 0; s < STEP / 16; s++)
                wgmma<TN>(acc, w0 + w.stage * (TILE_BYTES / 16) + 2 * s, x0 + x.stage * (in::X_STAGE / 16) + 2 * s,
                          s > 0 || k > 0);
            wgmma_commit();
            wgmma_wait<1>();
            if (k > 0)
                release(w_before, x_before);
            w_before = w.stage, x_before = x.stage;
        }
        wgmma_wait<0>();
#pragma unroll
        for (int i = 0; i < TN / 2; i++)
            asm volatile("" : "+f"(acc[i])::"memory"); /* complete only now */
        release(w_before, x_before);
        finish<TN>(out, acc, smem, base, tile, tid);
    }
}

template <int TN>
__global__ void __cluster_dims__(CLUSTER, 1, 1) __launch_bounds__(THREADS, 1)
    small_m_sm90_kernel(const __grid_constant__ params P)
{
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    typedef layout<TN> in;
    extern __shared__ __align__(1024) char smem[];
    uint32_t base = smem_u32(smem);
    int tid = (int)threadIdx.x;
    if (tid == 0) {
        for (int i = 0; i < in::W_STAGES; i++) {
            mbar_init(base + in::W_FULL + 8 * i, 1);
            mbar_init(base + in::W_EMPTY + 8 * i, CONSUMERS / 32);
        }
        for (int i = 0; i < in::X_STAGES; i++) {
            mbar_init(base + in::X_FULL + 8 * i, 1);
            mbar_init(base + in::X_EMPTY + 8 * i, CONSUMERS / 32);
        }
        mbar_init(base + in::READY, THREADS - HELPERS);
        mbar_init(base + in::PARTED, 1);
        mbar_init_fence();
    }
    cluster_sync(); /* no parts to a block whose barriers are not there yet */
    if (tid < CONSUMERS)
        consume<TN>(P, smem, base, tid);
    else if (tid >= HELPERS)
        help<TN>(P, smem, base, tid - HELPERS);
    else if (tid == WEIGHTS)
        produce_weights<TN>(P, base);
    else if (tid == ROWS)
        produce_rows<TN>(P, base);
#endif
}

const struct {
    int rows;
    void (*run)(params);
} classes[CU_SMALL_M_CLASSES] = {{16, small_m_sm90_kernel<16>},
                                {32, small_m_sm90_kernel<32>},
                                {64, small_m_sm90_kernel<64>},
                                {CU_SMALL_M_SM90, small_m_sm90_kernel<CU_SMALL_M_SM90>}};

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
                       "the card has no room for a cluster of %d blocks with %d KiB of shared memory each",
                       (int)CLUSTER, SMEM >> 10);
    *out = most * CLUSTER;
    return 0;
}

int cu_small_m_sm90_weights(struct cu_small_m_weights *out, const bf16 *w, int rows, int K, enum cu_epilogue to,
                           struct km_err *err)
{
    /* Groups of 8 rows and the 8 that belong to them: the next ones, or those of up, or those half a head on. */
    uint64_t row = (uint64_t)K * sizeof(bf16), all = (uint64_t)rows * row;
    uint64_t pair = to == CU_EPILOGUE_SWIGLU ? all / 2 : to == CU_EPILOGUE_HEADS ? 64 * row : 8 * row;
    uint64_t next = to == CU_EPILOGUE_SWIGLU || to == CU_EPILOGUE_HEADS ? 8 * row : 16 * row;
    uint64_t stack = to == CU_EPILOGUE_HEADS ? 128 : (uint64_t)rows;
    uint64_t dims[] = {(uint64_t)K, 8, 2, stack / 16, (uint64_t)rows / stack},
             strides[] = {row, pair, next, stack * row};
    uint32_t box[] = {STEP, 8, 2, TILE / 16, 1};
    out->rows = rows, out->K = K, out->to = to;
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

void cu_small_m_sm90(const struct cu_small_m_workspace &r, const struct cu_small_m_job &job, int M,
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
    P.h = r.h;
    P.sums = r.sums;
    P.to = job.w->to;
    P.M = M;
    P.N = P.to == CU_EPILOGUE_SWIGLU ? job.w->rows / 2 : job.w->rows;
    P.steps = job.w->K / STEP;
    P.tiles = (job.w->rows + TILE - 1) / TILE;
    P.stack = P.to == CU_EPILOGUE_HEADS ? 2 : P.tiles;
    P.split = P.to != CU_EPILOGUE_HEADS && P.tiles * CLUSTER <= r.blocks && P.steps >= CLUSTER ? (int)CLUSTER : 1;
    P.scaled = job.scaled;
    P.eps = r.eps;
    if (heads)
        P.heads = *heads;
    int blocks = P.tiles * P.split; /* whole clusters: a block without a tile leaves at once */
    blocks = (blocks + CLUSTER - 1) / CLUSTER * CLUSTER;
    cu_launch(classes[c].run, dim3((unsigned)(blocks < r.blocks ? blocks : r.blocks)), THREADS, SMEM, s, P);
}
