/* Products of many rows on Hopper, y = x w^T, with what follows them in the same kernel: SwiGLU, or a residual sum.
 *
 * A block takes 128 rows of x by 256 rows of w, as two boxes of 128: for SwiGLU the gate rows and the up rows of the
 * same columns, so that a thread holds both numbers of an output. A producer warp keeps four steps of 64 along K in
 * flight (TMA); two consumer warpgroups multiply 64 x 256 each (wgmma). Blocks stay and walk over tiles, and the
 * producer is already in the next tile while the consumers finish one. In clusters of two, which take two row tiles of
 * the same columns, each block loads one of the two boxes of w for both: a third less to read from L2.
 *
 * Barriers of a stage, used for the n-th time (n = step / STAGES, steps counted over all tiles of the block):
 *   full   1 arrival, the block's own producer's, which also announces the stage's 48 KB: 16 of x and, of either box of
 *          w, 16 that this block's or its peer's producer sent. A peer's bytes may come before the announcement: the
 *          missing arrival keeps the phase open. Its n-th phase has parity n & 1.
 *   empty  8 arrivals, one of each consumer warp, from every block of the cluster, since the producer writes to all of
 *          them. The producer's n-th use waits for phase n - 1; for n = 0 that is the phase before the first.
 * No barrier is more than one phase ahead of any thread that waits for it: a stage's next bytes come after all
 * consumers have left it, and they leave it once for every time that it was full, also where a warpgroup has no rows.
 */
#include "engine/cuda/cu.h"
#include "engine/cuda/ptx.cuh"
#include "engine/cuda/sm90.cuh"

#include <cuda.h>
#include <string.h>

namespace {

enum { ROWS = 128, COLS = 128, STEP = 64, STAGES = 4, THREADS = 384, CONSUMERS = 2 };
enum { BOX_BYTES = 128 * STEP * 2, STAGE_BYTES = 3 * BOX_BYTES };
enum { OUT_BYTES = 16 * COLS * 2 }; /* a consumer warp's 16 rows on their way out */

struct smem_layout {
    enum {
        X = 0,
        W = BOX_BYTES, /* of a stage: two boxes, one behind the other, are 256 rows to wgmma */
        OUT = STAGES * STAGE_BYTES,
        FULL = OUT + 4 * CONSUMERS * OUT_BYTES,
        EMPTY = FULL + 8 * STAGES,
        SIZE = EMPTY + 8 * STAGES
    };
};

enum after { STORE, ADD, SWIGLU };

struct params {
    bf16 *y;           /* [M][N] */
    int M, N, steps;   /* K / STEP */
    int second_box;    /* rows of w from a tile's first box to its second */
    int units, across; /* row tiles / CLUSTER and tiles of columns */
    int group;         /* units walked together, column by column, while their x stays in L2 */
    int lag;           /* stages that the second warpgroup starts behind the first */
    int hint;          /* L2 shall keep x and let go of w */
};

/* d[64 x 256] (+)= x w^T of 16 along K: both from shared memory, both K-major. */
__device__ __forceinline__ void wgmma(float (&d)[128], uint64_t x, uint64_t w, int keep)
{
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %130, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 {" WG_N128 "}, %128, %129, p, 1, 1, 0, 0;\n}"
                 : WG_R64(d, 0), WG_R64(d, 64)
                 : "l"(x), "l"(w), "r"(keep));
}

/* A place among the steps of all of a block's tiles. */
struct cursor {
    int stage = 0, parity = 0;
    __device__ __forceinline__ void next()
    {
        stage = stage + 1 == STAGES ? 0 : stage + 1;
        parity ^= stage == 0;
    }
};

/* The i-th tile of a cluster: its unit of row tiles, and its columns. Groups of equal size, the last may be smaller. */
struct tile {
    int unit, column;
    __device__ __forceinline__ tile(const params &P, int i)
    {
        int whole = P.group * P.across, first = i / whole * P.group, in = i % whole;
        int height = min(P.group, P.units - first);
        unit = first + in % height;
        column = in / height;
    }
};

template <int CLUSTER, after THEN>
__device__ __forceinline__ void produce(const params &P, const CUtensorMap *x, const CUtensorMap *w, uint32_t base)
{
    int rank = (int)blockIdx.x % CLUSTER;
    uint64_t x_policy = P.hint ? l2_keep() : l2_normal(), w_policy = P.hint ? l2_pass() : l2_normal();
    cursor at;
    for (int i = (int)blockIdx.x / CLUSTER; i < P.units * P.across; i += (int)gridDim.x / CLUSTER) {
        tile t(P, i);
        int x_row = (t.unit * CLUSTER + rank) * ROWS, w_row = t.column * (THEN == SWIGLU ? COLS : 2 * COLS);
        for (int k = 0; k < P.steps; k++, at.next()) {
            uint32_t full = base + smem_layout::FULL + 8 * at.stage, dst = base + at.stage * STAGE_BYTES;
            bar_wait(base + smem_layout::EMPTY + 8 * at.stage, at.parity ^ 1);
            bar_expect(full, STAGE_BYTES);
            tma_box(dst + smem_layout::X, x, k * STEP, x_row, full, x_policy);
            if (CLUSTER == 2) {
                tma_box_multicast(dst + smem_layout::W + rank * BOX_BYTES, w, k * STEP, w_row + rank * P.second_box,
                                  full, w_policy, 3);
            } else {
                tma_box(dst + smem_layout::W, w, k * STEP, w_row, full, w_policy);
                tma_box(dst + smem_layout::W + BOX_BYTES, w, k * STEP, w_row + P.second_box, full, w_policy);
            }
        }
    }
}

/* A consumer warp's farewell to a stage: lane r tells the block of rank r. */
template <int CLUSTER> __device__ __forceinline__ void release(uint32_t empty, int lane)
{
    if (lane < CLUSTER) {
        if (CLUSTER > 1)
            bar_arrive_cluster(empty);
        else
            bar_arrive(empty);
    }
}

__device__ __forceinline__ float silu(float x)
{
    float r, e = exp2_fast(-1.4426950408889634f * x);
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(1 + e));
    return x * r;
}

__device__ __forceinline__ void stmatrix_x4(uint32_t addr, const uint32_t (&r)[4])
{
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1,%2,%3,%4};" ::"r"(addr), "r"(r[0]), "r"(r[1]),
                 "r"(r[2]), "r"(r[3])
                 : "memory");
}

/* A warp's 16 rows: through shared memory, so that 16 lanes write a row's 256 bytes together. Pieces of 16 bytes lie at
 * their number ^ (row & 7), which keeps both ways free of bank conflicts. Accumulators 4n + 2h and the next are columns
 * 8n + 2 (lane % 4) of row lane / 4 + 8h: what a matrix of ldmatrix and stmatrix holds too. */
template <after THEN>
__device__ __forceinline__ void finish(const params &P, const float (&acc)[128], char *out, int row, int col, int lane)
{
    int r8 = lane % 16, far = lane / 16;
    uint32_t matrix_row = smem_u32(out) + r8 * (COLS * 2);
    char *piece = out + far * (COLS * 2);
#pragma unroll
    for (int half = 0; half < (THEN == SWIGLU ? 1 : 2); half++, col += COLS) {
        bool inside = col + 8 * r8 < P.N;
        bf16 *y = P.y + (size_t)row * P.N + col + 8 * r8;
        if (THEN == ADD) {
#pragma unroll
            for (int i = 0; i < 16; i += 2)
                if (row + i + far < P.M && inside)
                    *reinterpret_cast<uint4 *>(piece + i * (COLS * 2) + (r8 ^ ((i + far) & 7)) * 16) =
                        *reinterpret_cast<const uint4 *>(y + (size_t)(i + far) * P.N);
            __syncwarp();
        }
#pragma unroll
        for (int n = 0; n < 16; n += 2) {
            uint32_t v[4], addr = matrix_row + ((n + far) ^ (r8 & 7)) * 16;
            float2 before[4] = {};
            if (THEN == ADD) {
                ldmatrix_x4(v, addr);
#pragma unroll
                for (int q = 0; q < 4; q++)
                    before[q] = __bfloat1622float2(*reinterpret_cast<__nv_bfloat162 *>(&v[q]));
            }
#pragma unroll
            for (int q = 0; q < 4; q++) {
                int i = 64 * half + 4 * n + 2 * q;
                v[q] = THEN == SWIGLU
                           ? pack_bf16(silu(acc[i]) * acc[(i + 64) % 128], silu(acc[i + 1]) * acc[(i + 65) % 128])
                           : pack_bf16(acc[i] + before[q].x, acc[i + 1] + before[q].y);
            }
            stmatrix_x4(addr, v);
        }
        __syncwarp();
#pragma unroll
        for (int i = 0; i < 16; i += 2)
            if (row + i + far < P.M && inside)
                __stcs(reinterpret_cast<uint4 *>(y + (size_t)(i + far) * P.N),
                       *reinterpret_cast<const uint4 *>(piece + i * (COLS * 2) + (r8 ^ ((i + far) & 7)) * 16));
        __syncwarp();
    }
}

template <int CLUSTER, after THEN>
__device__ __forceinline__ void consume(const params &P, char *smem, uint32_t base, int wg)
{
    int lane = (int)threadIdx.x % 32, warp = (int)threadIdx.x % 128 / 32, rank = (int)blockIdx.x % CLUSTER;
    uint32_t full = base + smem_layout::FULL, empty = base + smem_layout::EMPTY;
    if (CLUSTER > 1)
        empty = bar_of_rank(empty, lane % CLUSTER);
    uint64_t x0 = desc(base + smem_layout::X + wg * (BOX_BYTES / 2), 16, 1024);
    uint64_t w0 = desc(base + smem_layout::W, 16, 1024);
    char *out = smem + smem_layout::OUT + (4 * wg + warp) * OUT_BYTES;
    int first = (int)blockIdx.x / CLUSTER, stride = (int)gridDim.x / CLUSTER, tiles = P.units * P.across;
    float acc[128];
    cursor at;
    /* One warpgroup a little behind the other: then one multiplies while the other finishes its tile. */
    int lag = wg == 0 ? 0 : min(P.lag, (tiles - first + stride - 1) / stride * P.steps);
    if (lag)
        bar_wait(full + 8 * (lag - 1), 0);
    for (int i = first; i < tiles; i += stride) {
        tile t(P, i);
        int row = (t.unit * CLUSTER + rank) * ROWS + wg * 64;
        if (row >= P.M) { /* no rows: stages must still be released */
            for (int k = 0; k < P.steps; k++, at.next()) {
                bar_wait(full + 8 * at.stage, at.parity);
                __syncwarp(); /* as wgmma would: no lane may miss a phase */
                release<CLUSTER>(empty + 8 * at.stage, lane);
            }
            continue;
        }
        int before = 0;
        for (int k = 0; k < P.steps; k++, at.next()) {
            bar_wait(full + 8 * at.stage, at.parity);
            wg_fence();
#pragma unroll
            for (int s = 0; s < STEP / 16; s++) {
                int in = at.stage * (STAGE_BYTES / 16) + 2 * s;
                wgmma(acc, x0 + in, w0 + in, s > 0 || k > 0);
            }
            wg_commit();
            wg_wait<1>();
            if (k > 0)
                release<CLUSTER>(empty + 8 * before, lane);
            before = at.stage;
        }
        wg_wait<0>();
        asm volatile("" : WG_R64(acc, 0), WG_R64(acc, 64)::"memory"); /* complete only now */
        release<CLUSTER>(empty + 8 * before, lane);
        finish<THEN>(P, acc, out, row + warp * 16, t.column * (THEN == SWIGLU ? COLS : 2 * COLS), lane);
    }
}

template <int CLUSTER, after THEN>
__global__ void __cluster_dims__(CLUSTER, 1, 1) __launch_bounds__(THREADS, 1)
    gemm_sm90_kernel(const __grid_constant__ params P, const __grid_constant__ CUtensorMap x,
                     const __grid_constant__ CUtensorMap w)
{
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    extern __shared__ __align__(1024) char smem[];
    uint32_t base = smem_u32(smem);
    if (threadIdx.x == 0) {
        for (int i = 0; i < STAGES; i++) {
            bar_init(base + smem_layout::FULL + 8 * i, 1);
            bar_init(base + smem_layout::EMPTY + 8 * i, 4 * CONSUMERS * CLUSTER);
        }
        bar_init_done();
    }
    if (CLUSTER > 1) /* no bytes and no arrivals to a block whose barriers are not there yet */
        cluster_sync();
    else
        __syncthreads();
    grid_wait();
    int wg = __shfl_sync(~0u, (int)threadIdx.x / 128, 0);
    if (wg == CONSUMERS) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
        if (threadIdx.x == 128 * CONSUMERS)
            produce<CLUSTER, THEN>(P, &x, &w, base);
    } else {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
        consume<CLUSTER, THEN>(P, smem, base, wg);
    }
    __syncwarp();
    if (CLUSTER > 1) /* nor to one that is gone */
        cluster_sync();
#endif
}

template <int CLUSTER, after THEN> void launch(const cu_gemm_plan &g, int M, bf16 *y, cudaStream_t s)
{
    CUtensorMap x, w;
    static_assert(sizeof x == sizeof g.x_map, "tensor map");
    memcpy(&x, g.x_map, sizeof x);
    memcpy(&w, g.w_map, sizeof w);
    params P = {};
    P.y = y;
    P.M = M;
    P.N = THEN == SWIGLU ? g.N / 2 : g.N;
    P.steps = g.K / STEP;
    P.second_box = THEN == SWIGLU ? g.N / 2 : (int)COLS;
    P.units = (M + CLUSTER * ROWS - 1) / (CLUSTER * ROWS);
    P.across = (g.N + 2 * COLS - 1) / (2 * COLS);
    int most = g.group > CLUSTER ? g.group / CLUSTER : 1, groups = (P.units + most - 1) / most;
    P.group = (P.units + groups - 1) / groups;
    P.lag = g.lag;
    P.hint = g.hint;
    int clusters = g.n_sms / CLUSTER < P.units * P.across ? g.n_sms / CLUSTER : P.units * P.across;
    auto kernel = gemm_sm90_kernel<CLUSTER, THEN>;
    cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, smem_layout::SIZE);
    cu_launch(kernel, dim3((unsigned)(clusters * CLUSTER)), THREADS, smem_layout::SIZE, s, P, x, w);
}

/* A matrix [rows][K] in boxes of 128 rows and one step. */
int map_rows(void *map128, const bf16 *base, int rows, int K, struct km_err *err)
{
    uint64_t dims[] = {(uint64_t)K, (uint64_t)rows}, stride = (uint64_t)K * sizeof(bf16);
    uint32_t box[] = {STEP, ROWS};
    return cu_tensor_map(map128, base, 2, dims, &stride, box, err);
}

} // namespace

bool cu_gemm_sm90_usable(const cu_dims &m, int N, int K)
{
    return m.arch == 90 && N % 128 == 0 && K % STEP == 0;
}

int cu_gemm_sm90_plan(struct cu_gemm_plan *out, const cu_dims &m, const bf16 *x, int rows, const bf16 *w, int N, int K,
                      struct km_err *err)
{
    out->N = N;
    out->K = K;
    out->n_sms = m.n_sms;
    out->cluster = 2;
    out->group = 16;
    out->lag = 2;
    out->hint = 0;
    int rc = map_rows(out->x_map, x, rows, K, err);
    return rc ? rc : map_rows(out->w_map, w, N, K, err);
}

void cu_gemm_sm90_swiglu(const struct cu_gemm_plan &g, int M, bf16 *act, cudaStream_t s)
{
    if (g.cluster == 2)
        launch<2, SWIGLU>(g, M, act, s);
    else
        launch<1, SWIGLU>(g, M, act, s);
}

void cu_gemm_sm90(const struct cu_gemm_plan &g, int M, bool add, bf16 *y, cudaStream_t s)
{
    if (g.cluster == 2 && add)
        launch<2, ADD>(g, M, y, s);
    else if (g.cluster == 2)
        launch<2, STORE>(g, M, y, s);
    else if (add)
        launch<1, ADD>(g, M, y, s);
    else
        launch<1, STORE>(g, M, y, s);
}
