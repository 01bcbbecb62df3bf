/* The first half of a feed-forward layer for many rows on Hopper: gate and up products with SwiGLU, one kernel.
 *
 * A block makes 128 rows by 128 columns of act: 128 rows of h by two boxes of 128 rows of w, the gate rows and the up
 * rows of those columns, so that a thread holds both numbers of an output. A producer warp keeps four steps of 64 along
 * D in flight (TMA); two consumer warpgroups multiply 64 x 256 each (wgmma). Blocks stay and walk over tiles, and the
 * producer is already in the next tile while the consumers finish one. They come in clusters of two, which take two row
 * tiles of the same columns: each block loads one of the two boxes of w for both, a third less to read from L2.
 *
 * Barriers of a stage, used for the n-th time (n = step / STAGES, steps counted over all tiles of the block):
 *   full   1 arrival, the block's own producer's, which also announces the stage's 48 KB: 16 of h, 16 of w that this
 *          block's producer sent, and 16 of w that its peer's did. A peer's bytes may come before the announcement: the
 *          missing arrival keeps the phase open. Its n-th phase has parity n & 1.
 *   empty  8 arrivals, one of each consumer warp, from both blocks of the cluster, since the producer writes to both.
 *          The producer's n-th use waits for phase n - 1; for n = 0 that is the phase before the first.
 * No barrier is more than one phase ahead of any thread that waits for it: a stage's next bytes come after all
 * consumers have left it, and they leave it once for every time that it was full, also where a warpgroup has no rows.
 *
 * The gain is the round trip of gate and up through memory. On an H100, at the shapes of Qwen3-8B and 512 to 8192 rows,
 * back to back as in a prefill, it takes 0.85 to 0.98 of the time of cuBLASLt and a SwiGLU kernel; with plain or added
 * output the same design took 0.99 to 1.09 of cuBLASLt's time from 2048 rows on and up to 2.3 below, so cuBLASLt keeps
 * the other products.
 */
#include "engine/cuda/cu.h"
#include "engine/cuda/ptx.cuh"
#include "engine/cuda/sm90.cuh"

#include <cuda.h>
#include <string.h>

namespace {

enum { CLUSTER = 2, ROWS = 128, COLS = 128, STEP = 64, STAGES = 4, THREADS = 384, CONSUMERS = 2 };
enum { GROUP = 8 }; /* most units walked together, column by column, while their h stays in L2: 2048 rows */
enum { LAG = 2 };   /* steps that the second warpgroup starts behind the first */
enum { BOX_BYTES = 128 * STEP * 2, STAGE_BYTES = 3 * BOX_BYTES };
enum { OUT_BYTES = 16 * COLS * 2 }; /* a consumer warp's 16 rows on their way out */

struct smem_layout {
    enum {
        H = 0,
        W = BOX_BYTES, /* of a stage: two boxes, one behind the other, are 256 rows to wgmma */
        OUT = STAGES * STAGE_BYTES,
        FULL = OUT + 4 * CONSUMERS * OUT_BYTES,
        EMPTY = FULL + 8 * STAGES,
        SIZE = EMPTY + 8 * STAGES
    };
};

struct params {
    bf16 *act;         /* [M][F] */
    int M, F, steps;   /* D / STEP */
    int units, across; /* a cluster's row tiles, tiles of columns */
    int group;         /* units walked together: GROUP, or fewer so that groups are of one size */
};

/* d[64 x 256] (+)= h w^T of 16 along D: both from shared memory, both with D innermost. */
__device__ __forceinline__ void wgmma(float (&d)[128], uint64_t h, uint64_t w, int keep)
{
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %130, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 {" WG_N128 "}, %128, %129, p, 1, 1, 0, 0;\n}"
                 : WG_R128(d, 0)
                 : "l"(h), "l"(w), "r"(keep));
}

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

__device__ __forceinline__ void stmatrix_x4(uint32_t addr, const uint32_t (&r)[4])
{
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1,%2,%3,%4};" ::"r"(addr), "r"(r[0]), "r"(r[1]),
                 "r"(r[2]), "r"(r[3])
                 : "memory");
}

/* A warp's 16 rows: through shared memory, so that 16 lanes write a row's 256 bytes together. Pieces of 16 bytes lie at
 * their number ^ (row & 7), which keeps both ways free of bank conflicts. Accumulators 4n + 2h and the next are columns
 * 8n + 2 (lane % 4) of row lane / 4 + 8h, gate in the first 64 and up in the others: a matrix as stmatrix takes it. */
__device__ __forceinline__ void finish(const params &P, const float (&acc)[128], char *out, int row, int col, int lane)
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

__device__ __forceinline__ void consume(const params &P, char *smem, uint32_t base, int wg)
{
    int lane = (int)threadIdx.x % 32, warp = (int)threadIdx.x % 128 / 32, rank = (int)blockIdx.x % CLUSTER;
    uint32_t full = base + smem_layout::FULL;
    uint32_t empty = mapa(base + smem_layout::EMPTY, lane % CLUSTER); /* lane r tells the block of rank r */
    auto release = [&](int stage) {
        if (lane < CLUSTER)
            mbar_arrive_cluster(empty + 8 * stage);
    };
    uint64_t h0 = wgmma_desc(base + smem_layout::H + wg * (BOX_BYTES / 2), 16, 1024);
    uint64_t w0 = wgmma_desc(base + smem_layout::W, 16, 1024);
    char *out = smem + smem_layout::OUT + (4 * wg + warp) * OUT_BYTES;
    float acc[128];
    pipe_state at;
    if (wg == 1) /* a little behind the other: then one multiplies while the other finishes its tile */
        mbar_wait(full + 8 * (LAG - 1), 0);
    for (int i = (int)blockIdx.x / CLUSTER; i < P.units * P.across; i += (int)gridDim.x / CLUSTER) {
        tile t(P, i);
        int row = (t.unit * CLUSTER + rank) * ROWS + wg * 64;
        if (row >= P.M) { /* no rows: stages must still be released */
            for (int k = 0; k < P.steps; k++, at.next(STAGES)) {
                mbar_wait(full + 8 * at.stage, at.parity);
                __syncwarp(); /* as wgmma would: no lane may miss a phase */
                release(at.stage);
            }
            continue;
        }
        int before = 0;
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
                release(before);
            before = at.stage;
        }
        wgmma_wait<0>();
        asm volatile("" : WG_R128(acc, 0)::"memory"); /* complete only now */
        release(before);
        finish(P, acc, out, row + warp * 16, t.column * COLS, lane);
    }
}

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
    cluster_sync(); /* no bytes and no arrivals to a block whose barriers are not there yet */
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
    cluster_sync(); /* nor to one that is gone */
#endif
}

/* A matrix [rows][D] in boxes of 128 rows and one step. */
int map_rows(char (&map)[128], const bf16 *base, int rows, int D, struct km_err *err)
{
    uint64_t dims[] = {(uint64_t)D, (uint64_t)rows}, stride = (uint64_t)D * sizeof(bf16);
    uint32_t box[] = {STEP, ROWS};
    return cu_tensor_map(map, base, 2, dims, &stride, box, err);
}

} // namespace

bool cu_gate_up_sm90_usable(const cu_dims &m)
{
    /* D: whole steps, and as many in one tile as the second warpgroup waits for. F: act is written by 16 bytes. */
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
