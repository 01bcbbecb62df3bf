/* Gate and up GEMMs with SwiGLU in the epilogue, for many rows on Hopper: the first half of a feed-forward layer in one
 * kernel.
 *
 * Fusing saves writing gate and up to memory and reading them back. On an H100, at the shapes of Qwen3-8B, with 512 to
 * 8192 rows and launches back to back as in a prefill, the kernel takes 0.85 to 0.98 of the time of cuBLASLt and a
 * SwiGLU kernel. For the other GEMMs cuBLASLt is used: with a plain or adding epilogue, this design took 0.99 to 1.09
 * of cuBLASLt's time from 2048 rows on, and up to 2.3 times as long with fewer rows.
 *
 * A tile is 128 rows by 128 columns of act: 128 rows of h by two boxes of 128 rows of w, the gate rows and the up rows
 * of the same columns. A thread therefore has gate and up of each of its outputs. In a thread block, a producer warp
 * keeps four steps of 64 along D in flight (TMA), and two consumer warpgroups multiply 64 x 256 each (wgmma). Blocks
 * are persistent: while the consumers finish one tile, the producer loads the next. The two blocks of a cluster process
 * two row tiles of the same columns. Each block loads one of the two boxes of w for both blocks, which saves a third of
 * the reads from L2.
 *
 * Barriers of each stage, at their n-th use (n = step / STAGES, with steps counted over all tiles of the block):
 *   FULL   1 arrival, by the block's own producer, which also announces 48 KB: 16 of h, 16 of w from this block's
 *          producer, and 16 of w from the other block's. Bytes of the other block may arrive before the announcement:
 *          the phase cannot end before the producer's arrival. The n-th phase has parity n & 1.
 *   EMPTY  8 arrivals, one by each consumer warp of both blocks, because the producer writes into both. At its n-th use
 *          the producer waits for phase n - 1, which for n = 0 counts as ended.
 * A waiting thread never misses a phase: a stage is filled again only after all consumers have released it, and every
 * consumer warp releases it once per filling, even if its warpgroup has no rows. */
#include "engine/cuda/gemm/gate_up_sm90.h"
#include "engine/cuda/ptx.cuh"
#include "engine/cuda/sm90.cuh"
#include "engine/cuda/tensor_map.h"

#include <cuda.h>
#include <string.h>

namespace {

enum { CLUSTER = 2, ROWS = 128, COLS = 128, STEP = 64, STAGES = 4, THREADS = 384, CONSUMERS = 2 };
enum { GROUP = 8 }; /* most units that are processed together, column by column: 2048 rows, whose h stays in L2 */
enum { LAG = 2 };   /* steps by which the second warpgroup starts later than the first */
enum { BOX_BYTES = 128 * STEP * 2, STAGE_BYTES = 3 * BOX_BYTES };
enum { OUT_BYTES = 16 * COLS * 2 }; /* a consumer warp's 16 output rows */

/* Offsets in shared memory, in bytes. */
struct smem_layout {
    enum {
        H = 0,
        W = BOX_BYTES, /* within a stage: two boxes back to back, which wgmma reads as 256 rows */
        OUT = STAGES * STAGE_BYTES,
        FULL = OUT + 4 * CONSUMERS * OUT_BYTES,
        EMPTY = FULL + 8 * STAGES,
        SIZE = EMPTY + 8 * STAGES
    };
};

struct params {
    bf16 *act;         /* [M][F] */
    int M, F, steps;   /* D / STEP */
    int units, across; /* number of units (two row tiles, one for each block of a cluster); number of column tiles */
    int group;         /* units that are processed together: at most GROUP, and about the same number in each group */
};

/* wgmma.m64n256k16: d[64 x 256] = or += h w^T over 16 elements of D. Both operands are in shared memory with D
 * innermost. keep 0: d is overwritten. */
__device__ __forceinline__ void wgmma(float (&d)[128], uint64_t h, uint64_t w, int keep)
{
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %130, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 {" WG_N128 "}, %128, %129, p, 1, 1, 0, 0;\n}"
                 : WG_R128(d, 0)
                 : "l"(h), "l"(w), "r"(keep));
}

/* Tile i, in the order in which the clusters process tiles: its unit and its column tile. The last group may have fewer
 * units. */
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

/* The producer thread: for each step one box of h for this block, and one box of w (gate or up) for both blocks. */
__device__ __forceinline__ void produce(const params &P, const CUtensorMap *h, const CUtensorMap *w, uint32_t base)
{
    int rank = (int)blockIdx.x % CLUSTER;
    pipe_state at;
    for (int i = (int)blockIdx.x / CLUSTER; i < P.units * P.across; i += (int)gridDim.x / CLUSTER) {
        tile t(P, i);
        int h_row = (t.unit * CLUSTER + rank) * ROWS, w_row = t.column * COLS + rank * P.F; /* gate, or up */
        for (int k = 0; k < P.steps; k++, at.next(STAGES)) {
            uint32_t full = base + smem_layout::FULL + 8 * at.stage, dst = base + at.stage * STAGE_BYTES;
            mbar_wait(base + smem_layout::EMPTY + 8 * at.stage, at.parity ^ 1);
            mbar_expect_tx(full, STAGE_BYTES);
            tma_load_box(dst + smem_layout::H, h, k * STEP, h_row, full);
            tma_load_box_multicast(dst + smem_layout::W + rank * BOX_BYTES, w, k * STEP, w_row, full, 3);
        }
    }
}

/* stmatrix.x4: four 8x8 matrices of 16-bit elements; lane l gives the address of row l % 8 of matrix l / 8. */
__device__ __forceinline__ void stmatrix_x4(uint32_t addr, const uint32_t (&r)[4])
{
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1,%2,%3,%4};" ::"r"(addr), "r"(r[0]), "r"(r[1]),
                 "r"(r[2]), "r"(r[3])
                 : "memory");
}

/* The epilogue of a warp's 16 rows from `row` on. It computes SwiGLU and writes the outputs through shared memory, so
 * that 16 lanes together write the 256 bytes of a row. Piece k of a row, 16 bytes, is stored at k ^ (row & 7), so that
 * neither writes nor reads have bank conflicts. Accumulators 4n + 2h and 4n + 2h + 1 are columns 8n + 2 (lane % 4) and
 * the next of row lane / 4 + 8h, as stmatrix expects them. The first 64 accumulators are gate, the others up. */
__device__ __forceinline__ void run_epilogue(const params &P, const float (&acc)[128], char *out, int row, int col,
                                             int lane)
{
    int r8 = lane % 16, far = lane / 16;
    uint32_t matrix_row = smem_u32(out) + r8 * (COLS * 2);
#pragma unroll
    for (int n = 0; n < 16; n += 2) {
        uint32_t v[4];
#pragma unroll
        for (int q = 0; q < 4; q++) {
            int i = 4 * n + 2 * q;
            v[q] = pack_bf16(silu(acc[i]) * acc[i + 64], silu(acc[i + 1]) * acc[i + 65]);
        }
        stmatrix_x4(matrix_row + ((n + far) ^ (r8 & 7)) * 16, v);
    }
    __syncwarp();
    bf16 *act = P.act + (size_t)row * P.F + col + 8 * r8;
    const char *piece = out + far * (COLS * 2);
#pragma unroll
    for (int i = 0; i < 16; i += 2)
        if (row + i + far < P.M && col + 8 * r8 < P.F)
            __stcs(reinterpret_cast<uint4 *>(act + (size_t)(i + far) * P.F),
                   *reinterpret_cast<const uint4 *>(piece + i * (COLS * 2) + (r8 ^ ((i + far) & 7)) * 16));
    __syncwarp();
}

/* A thread of consumer warpgroup wg, 0 or 1: multiplies the block's tiles, and runs the epilogue of each. */
__device__ __forceinline__ void consume(const params &P, char *smem, uint32_t base, int wg)
{
    int lane = (int)threadIdx.x % 32, warp = (int)threadIdx.x % 128 / 32, rank = (int)blockIdx.x % CLUSTER;
    uint32_t full = base + smem_layout::FULL;
    uint32_t empty = mapa(base + smem_layout::EMPTY, lane % CLUSTER); /* lane r arrives in the block of rank r */
    auto release = [&](int stage) {
        if (lane < CLUSTER)
            mbar_arrive_cluster(empty + 8 * stage);
    };
    uint64_t h0 = wgmma_desc(base + smem_layout::H + wg * (BOX_BYTES / 2), 16, 1024);
    uint64_t w0 = wgmma_desc(base + smem_layout::W, 16, 1024);
    char *out = smem + smem_layout::OUT + (4 * wg + warp) * OUT_BYTES;
    float acc[128];
    pipe_state at;
    if (wg == 1) /* starts later, so that one warpgroup multiplies while the other is in its epilogue */
        mbar_wait(full + 8 * (LAG - 1), 0);
    for (int i = (int)blockIdx.x / CLUSTER; i < P.units * P.across; i += (int)gridDim.x / CLUSTER) {
        tile t(P, i);
        int row = (t.unit * CLUSTER + rank) * ROWS + wg * 64;
        if (row >= P.M) { /* a warpgroup without rows must release the stages too */
            for (int k = 0; k < P.steps; k++, at.next(STAGES)) {
                mbar_wait(full + 8 * at.stage, at.parity);
                __syncwarp(); /* wgmma would do it: otherwise a slow lane could miss a phase */
                release(at.stage);
            }
            continue;
        }
        int previous = 0;
        for (int k = 0; k < P.steps; k++, at.next(STAGES)) {
            mbar_wait(full + 8 * at.stage, at.parity);
            wgmma_fence();
#pragma unroll
            for (int s = 0; s < STEP / 16; s++) {
                int in = at.stage * (STAGE_BYTES / 16) + 2 * s;
                wgmma(acc, h0 + in, w0 + in, s > 0 || k > 0);
            }
            wgmma_commit();
            wgmma_wait<1>();
            if (k > 0)
                release(previous);
            previous = at.stage;
        }
        wgmma_wait<0>();
        asm volatile("" : WG_R128(acc, 0)::"memory"); /* the compiler must not read acc before this point */
        release(previous);
        run_epilogue(P, acc, out, row + warp * 16, t.column * COLS, lane);
    }
}

/* Grid: one thread block per SM, or fewer, in clusters of two. setmaxnreg moves registers from the producer's warps to
 * the consumers. */
__global__ void __cluster_dims__(CLUSTER, 1, 1) __launch_bounds__(THREADS, 1)
    gate_up_sm90_kernel(const __grid_constant__ params P, const __grid_constant__ CUtensorMap h,
                        const __grid_constant__ CUtensorMap w)
{
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    extern __shared__ __align__(1024) char smem[];
    uint32_t base = smem_u32(smem);
    if (threadIdx.x == 0) {
        for (int i = 0; i < STAGES; i++) {
            mbar_init(base + smem_layout::FULL + 8 * i, 1);
            mbar_init(base + smem_layout::EMPTY + 8 * i, 4 * CONSUMERS * CLUSTER);
        }
        mbar_init_fence();
    }
    cluster_sync(); /* the barriers of both blocks are initialised before either block uses the other's */
    griddep_wait();
    int wg = __shfl_sync(~0u, (int)threadIdx.x / 128, 0);
    if (wg == CONSUMERS) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
        if (threadIdx.x == 128 * CONSUMERS)
            produce(P, &h, &w, base);
    } else {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
        consume(P, smem, base, wg);
    }
    __syncwarp();
    cluster_sync(); /* a block must not exit while the other may still send bytes or arrivals to it */
#endif
}

/* The tensor map of a matrix [rows][D], in boxes of 128 rows by one step. */
int map_rows(char (&map)[128], const bf16 *base, int rows, int D, struct km_err *err)
{
    uint64_t dims[] = {(uint64_t)D, (uint64_t)rows}, stride = (uint64_t)D * sizeof(bf16);
    uint32_t box[] = {STEP, ROWS};
    return cu_tensor_map(map, base, 2, dims, &stride, box, err);
}

} // namespace

bool cu_gate_up_sm90_usable(const cu_dims &m)
{
    /* D is a multiple of a step, and a tile has at least LAG steps. act is written 16 bytes at a time. */
    return m.arch == 90 && m.D % STEP == 0 && m.D >= LAG * STEP && m.F % 8 == 0;
}

int cu_gate_up_sm90_plan(struct cu_gate_up_plan *out, const cu_dims &m, const bf16 *h, const bf16 *w_gate_up,
                         struct km_err *err)
{
    int rc = map_rows(out->h_map, h, m.max_tokens, m.D, err);
    return rc ? rc : map_rows(out->w_map, w_gate_up, 2 * m.F, m.D, err);
}

void cu_gate_up_sm90(const cu_dims &m, const struct cu_gate_up_plan &p, int M, bf16 *act, cudaStream_t s)
{
    CUtensorMap h, w;
    static_assert(sizeof h == sizeof p.h_map, "tensor map");
    memcpy(&h, p.h_map, sizeof h);
    memcpy(&w, p.w_map, sizeof w);
    params P = {};
    P.act = act;
    P.M = M;
    P.F = m.F;
    P.steps = m.D / STEP;
    P.units = (M + CLUSTER * ROWS - 1) / (CLUSTER * ROWS);
    P.across = (m.F + COLS - 1) / COLS;
    int groups = (P.units + GROUP - 1) / GROUP;
    P.group = (P.units + groups - 1) / groups;
    int clusters = m.n_sms / CLUSTER < P.units * P.across ? m.n_sms / CLUSTER : P.units * P.across;
    cudaFuncSetAttribute(gate_up_sm90_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, smem_layout::SIZE);
    cu_launch(gate_up_sm90_kernel, dim3((unsigned)(clusters * CLUSTER)), THREADS, smem_layout::SIZE, s, P, h, w);
}
