/* Causal attention of prefill chunks over paged KV on Hopper: wgmma for the products, TMA for the pages.
 *
 * A block takes 128 query rows of one head of 128 elements: two consumer warpgroups of 64 rows, and a producer warp
 * that keeps two tiles of 128 keys and values in flight. The whole KV pool is one two-dimensional tensor of rows of
 * 128 elements, so a page's keys of one head are one box, whatever page it is; boxes of 64 elements by up to 128
 * tokens land in shared memory in the 128-byte swizzle that wgmma reads. Tiles are walked from the diagonal back to
 * the start, so that only the first ones need masks. While the tensor cores multiply P and V of a tile, the softmax
 * of the next runs (FlashAttention-3, Shah et al. 2024, section 3.2).
 *
 * Values past the last key a tile may see are zeroed in shared memory: 0 * NaN of a stale page must not reach a
 * sum. */
#include "engine/cuda/cu.h"
#include "engine/cuda/ptx.cuh"

#include <cuda.h>
#include <math.h>
#include <string.h>

namespace {

enum { DH = 128, TILE_K = 128, ROWS = CU_TILE_Q, STAGES = 2, THREADS = 384 };
enum { HALF_BYTES = TILE_K * 128, TILE_BYTES = 2 * HALF_BYTES }; /* half: 64 elements of every token */

struct smem_layout {
    enum {
        Q = 0,
        K = Q + ROWS * DH * 2,
        V = K + STAGES * TILE_BYTES,
        BARS = V + STAGES * TILE_BYTES,
        SIZE = BARS + 8 * 16
    };
};

__device__ __forceinline__ void bar_init(uint32_t bar, int count)
{
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(bar), "r"(count));
}
__device__ __forceinline__ void bar_expect(uint32_t bar, int bytes)
{
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(bar), "r"(bytes) : "memory");
}
__device__ __forceinline__ void bar_arrive(uint32_t bar)
{
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(bar) : "memory");
}
__device__ __forceinline__ void bar_wait(uint32_t bar, int phase)
{
    asm volatile("{\n.reg .pred p;\nagain:\nmbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n@p bra "
                 "done;\nbra again;\ndone:\n}" ::"r"(bar),
                 "r"(phase)
                 : "memory");
}
__device__ __forceinline__ void tma_box(uint32_t dst, const void *map, int col, int row, uint32_t bar)
{
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::
            "r"(dst),
        "l"(map), "r"(col), "r"(row), "r"(bar)
        : "memory");
}

/* Shared-memory matrix descriptor, 128-byte swizzle; byte strides (PTX ISA, "matrix descriptor format"). */
__device__ __forceinline__ uint64_t desc(uint32_t addr, int lead, int stride)
{
    return (uint64_t)((addr & 0x3FFFF) >> 4) | (uint64_t)(lead >> 4) << 16 | (uint64_t)(stride >> 4) << 32 |
           (uint64_t)1 << 62;
}

__device__ __forceinline__ void wg_fence()
{
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
__device__ __forceinline__ void wg_commit()
{
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
template <int N> __device__ __forceinline__ void wg_wait()
{
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
}

#define R4(d, i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define R16(d, i) R4(d, i), R4(d, i + 4), R4(d, i + 8), R4(d, i + 12)
#define R64(d) R16(d, 0), R16(d, 16), R16(d, 32), R16(d, 48)
#define D64                                                                                                        \
    "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%" \
    "29,%30,%31,"                                                                                                  \
    "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58," \
    "%59,%60,%61,%62,%63}"

/* d[64 x 128] (+)= q k^T of one k-step of 16: both from shared memory, both K-major. */
__device__ __forceinline__ void wgmma_ss(float (&d)[64], uint64_t a, uint64_t b, int keep)
{
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %66, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 " D64 ", %64, %65, p, 1, 1, 0, 0;\n}"
                 : R64(d)
                 : "l"(a), "l"(b), "r"(keep));
}
/* d[64 x 128] += p v of 16 keys: p from registers, v from shared memory with its columns contiguous. */
__device__ __forceinline__ void wgmma_rs(float (&d)[64], const uint32_t *a, uint64_t b)
{
    asm volatile("wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 " D64
                 ", {%64,%65,%66,%67}, %68, 1, 1, 1, 1;"
                 : R64(d)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

struct params {
    const bf16 *qkv;
    bf16 *o;
    cu_meta meta;
    int H, G, B_log2, box_rows, rows_per_page, layer_row; /* rows of the pool's tensor */
    float scale_log2;
};

__device__ __forceinline__ void produce(const params &P, const CUtensorMap *map, uint32_t base, int lane, int req,
                                        int kvh, int stop, int n_tiles)
{
    const int32_t *table = P.meta.table + P.meta.table_start[req];
    int B = 1 << P.B_log2, boxes = TILE_K / P.box_rows, k_row = P.layer_row + kvh * B, v_row = k_row + P.G * B;
    uint32_t bars = base + smem_layout::BARS;
    for (int i = 0; i < n_tiles; i++) {
        int j = n_tiles - 1 - i, stage = i % STAGES, phase = i / STAGES & 1;
        for (int kv = 0; kv < 2; kv++) {
            uint32_t full = bars + 8 * (kv * STAGES + stage), empty = bars + 8 * (2 * STAGES + kv * STAGES + stage);
            uint32_t dst = base + (kv ? smem_layout::V : smem_layout::K) + stage * TILE_BYTES;
            bar_wait(empty, phase ^ 1);
            if (lane == 0)
                bar_expect(full, TILE_BYTES);
            __syncwarp();
            for (int b = lane; b < 2 * boxes; b += 32) {
                int half = b & 1, at = (b >> 1) * P.box_rows, tok = j * TILE_K + at;
                if (tok >= stop)
                    tok = (stop - 1) / P.box_rows * P.box_rows; /* keeps the byte count; never looked at */
                int row = table[tok >> P.B_log2] * P.rows_per_page + (kv ? v_row : k_row) + (tok & (B - 1));
                tma_box(dst + half * HALF_BYTES + at * 128, map, half * 64, row, full);
            }
        }
    }
}

/* Online softmax of one tile's scores: s becomes probabilities; fix is what the sums so far must be scaled by. */
__device__ __forceinline__ void softmax(float (&s)[64], float (&top)[2], float (&sum)[2], float (&fix)[2],
                                        float scale, bool edge, int key0, int pos, int t)
{
#pragma unroll
    for (int h = 0; h < 2; h++) {
        float mx = top[h];
        if (edge) {
#pragma unroll
            for (int n = 0; n < 16; n++)
#pragma unroll
                for (int e = 0; e < 2; e++)
                    if (key0 + n * 8 + 2 * t + e > pos + 8 * h)
                        s[n * 4 + 2 * h + e] = -INFINITY;
        }
#pragma unroll
        for (int n = 0; n < 16; n++)
            mx = fmaxf(mx, fmaxf(s[n * 4 + 2 * h], s[n * 4 + 2 * h + 1]));
        mx = fmaxf(mx, __shfl_xor_sync(~0u, mx, 1));
        mx = fmaxf(mx, __shfl_xor_sync(~0u, mx, 2));
        float off = mx == -INFINITY ? 0 : mx * scale, add = 0;
        fix[h] = exp2_fast(top[h] * scale - off);
        top[h] = mx;
#pragma unroll
        for (int n = 0; n < 16; n++)
#pragma unroll
            for (int e = 0; e < 2; e++) {
                float &x = s[n * 4 + 2 * h + e];
                x = exp2_fast(fmaf(x, scale, -off));
                add += x;
            }
        sum[h] = sum[h] * fix[h] + add;
    }
}

__device__ __forceinline__ void pack(const float (&s)[64], uint32_t (&p)[32])
{
#pragma unroll
    for (int k = 0; k < 8; k++) { /* 16 keys: accumulator tiles 2k and 2k+1 are the A fragment */
        p[4 * k] = pack_bf16(s[8 * k], s[8 * k + 1]);
        p[4 * k + 1] = pack_bf16(s[8 * k + 2], s[8 * k + 3]);
        p[4 * k + 2] = pack_bf16(s[8 * k + 4], s[8 * k + 5]);
        p[4 * k + 3] = pack_bf16(s[8 * k + 6], s[8 * k + 7]);
    }
}

__device__ __forceinline__ void scores(float (&s)[64], uint32_t q, uint32_t k)
{
    wg_fence();
#pragma unroll
    for (int i = 0; i < DH / 16; i++) {
        int half = i / 4, in = i % 4 * 32;
        wgmma_ss(s, desc(q + half * (ROWS * 128) + in, 16, 1024), desc(k + half * HALF_BYTES + in, 16, 1024),
                 i > 0);
    }
    wg_commit();
}

__device__ __forceinline__ void values(float (&acc)[64], const uint32_t (&p)[32], uint32_t v)
{
    wg_fence();
#pragma unroll
    for (int i = 0; i < TILE_K / 16; i++)
        wgmma_rs(acc, p + 4 * i, desc(v + i * 16 * 128, HALF_BYTES, 1024));
    wg_commit();
}

/* Zeroes the values of tokens [from, TILE_K) of a tile; all 256 consumer threads. */
__device__ __forceinline__ void zero_tail(char *v, int from, int tid)
{
    for (int i = tid; i < (TILE_K - from) * 16; i += 256)
        *reinterpret_cast<uint4 *>(v + (i & 1) * HALF_BYTES + (from + i / 16) * 128 + (i / 2 % 8) * 16) =
            make_uint4(0, 0, 0, 0);
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    asm volatile("bar.sync 1, 256;" ::: "memory");
}

__device__ __forceinline__ void consume(const params &P, char *smem, uint32_t base, int tid, int head, int q0,
                                        int row0, int rows, int pos0, int stop, int n_tiles)
{
    int wg = tid / 128, lane = tid % 32, g = lane / 4, t = lane % 4, warp = tid % 128 / 32;
    size_t q_stride = (size_t)(P.H + 2 * P.G) * DH;
    for (int i = tid; i < ROWS * 16; i += 256) { /* 16-byte pieces of q, swizzled as TMA would */
        int r = i / 16, c = i % 16;
        uint4 v =
            r < rows
                ? *reinterpret_cast<const uint4 *>(P.qkv + (size_t)(q0 + row0 + r) * q_stride + head * DH + c * 8)
                : make_uint4(0, 0, 0, 0);
        *reinterpret_cast<uint4 *>(smem + smem_layout::Q + c / 8 * (ROWS * 128) + r * 128 +
                                   ((c % 8) ^ (r & 7)) * 16) = v;
    }
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    asm volatile("bar.sync 1, 256;" ::: "memory");

    uint32_t q = base + smem_layout::Q + wg * 64 * 128, bars = base + smem_layout::BARS;
    int pos = pos0 + wg * 64 + warp * 16 + g;
    float acc[64], s[64], top[2] = {-INFINITY, -INFINITY}, sum[2] = {0, 0}, fix[2];
    uint32_t p[32];
#pragma unroll
    for (int i = 0; i < 64; i++)
        acc[i] = 0;

    int j = n_tiles - 1;
    bar_wait(bars, 0);
    scores(s, q, base + smem_layout::K);
    wg_wait<0>();
    if (lane == 0)
        bar_arrive(bars + 8 * 2 * STAGES);
    softmax(s, top, sum, fix, P.scale_log2, (j + 1) * TILE_K > pos0 + wg * 64 + 1, j * TILE_K, pos, t);
    pack(s, p);
    bar_wait(bars + 8 * STAGES, 0);
    if (stop - j * TILE_K < TILE_K)
        zero_tail(smem + smem_layout::V, stop - j * TILE_K, tid);

    for (int i = 1; i < n_tiles; i++) {
        j = n_tiles - 1 - i;
        int stage = i % STAGES, phase = i / STAGES & 1, before = (i - 1) % STAGES;
        bar_wait(bars + 8 * stage, phase);
        scores(s, q, base + smem_layout::K + stage * TILE_BYTES);
        if (i > 1)
            bar_wait(bars + 8 * (STAGES + before), (i - 1) / STAGES & 1);
        values(acc, p, base + smem_layout::V + before * TILE_BYTES);
        wg_wait<1>();
        if (lane == 0)
            bar_arrive(bars + 8 * (2 * STAGES + stage));
        softmax(s, top, sum, fix, P.scale_log2, (j + 1) * TILE_K > pos0 + wg * 64 + 1, j * TILE_K, pos, t);
        wg_wait<0>();
        if (lane == 0)
            bar_arrive(bars + 8 * (3 * STAGES + before));
#pragma unroll
        for (int n = 0; n < 16; n++) {
            acc[4 * n] *= fix[0];
            acc[4 * n + 1] *= fix[0];
            acc[4 * n + 2] *= fix[1];
            acc[4 * n + 3] *= fix[1];
        }
        pack(s, p);
    }
    int lastv = (n_tiles - 1) % STAGES;
    if (n_tiles > 1)
        bar_wait(bars + 8 * (STAGES + lastv), (n_tiles - 1) / STAGES & 1);
    values(acc, p, base + smem_layout::V + lastv * TILE_BYTES);
    wg_wait<0>();

#pragma unroll
    for (int h = 0; h < 2; h++) {
        float l = sum[h];
        l += __shfl_xor_sync(~0u, l, 1);
        l += __shfl_xor_sync(~0u, l, 2);
        int r = wg * 64 + warp * 16 + g + 8 * h;
        if (r >= rows)
            continue;
        float inv = 1 / l;
        bf16 *dst = P.o + ((size_t)(q0 + row0 + r) * P.H + head) * DH + 2 * t;
#pragma unroll
        for (int n = 0; n < 16; n++)
            *reinterpret_cast<uint32_t *>(dst + n * 8) =
                pack_bf16(acc[4 * n + 2 * h] * inv, acc[4 * n + 2 * h + 1] * inv);
    }
}

__global__ void __launch_bounds__(THREADS, 1)
    attn_prefill_sm90_kernel(const params P, const __grid_constant__ CUtensorMap map)
{
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    extern __shared__ __align__(1024) char smem[];
    uint32_t base = smem_u32(smem), bars = base + smem_layout::BARS;
    grid_wait();
    int head = blockIdx.x, tile = gridDim.y - 1 - blockIdx.y;
    int req = P.meta.tile_req[tile], row0 = P.meta.tile_row[tile], q0 = P.meta.q_start[req],
        q_len = P.meta.q_start[req + 1] - q0;
    int rows = min((int)ROWS, q_len - row0), pos0 = P.meta.kv_len[req] - q_len + row0, stop = pos0 + rows;
    int n_tiles = (stop + TILE_K - 1) / TILE_K;
    if (threadIdx.x == 0) {
        for (int i = 0; i < 2 * STAGES; i++) {
            bar_init(bars + 8 * i, 1);                /* full: the producer, and its bytes */
            bar_init(bars + 8 * (2 * STAGES + i), 8); /* empty: one lane of each consumer warp */
        }
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    __syncthreads();
    if (threadIdx.x >= 256) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 24;");
        if (threadIdx.x < 288)
            produce(P, &map, base, threadIdx.x % 32, req, head / (P.H / P.G), stop, n_tiles);
    } else {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 240;");
        consume(P, smem, base, threadIdx.x, head, q0, row0, rows, pos0, stop, n_tiles);
    }
#endif
}

} // namespace

bool cu_attn_prefill_sm90_usable(const cu_dims &m)
{
    return m.arch == 90 && m.d == DH && m.B >= 8;
}

int cu_attn_map(const cu_dims &m, const bf16 *pool, int n_pages, void *map128, struct km_err *err)
{
    void *fn = nullptr;
    cudaDriverEntryPointQueryResult found;
    CU_TRY(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &fn, 12000, cudaEnableDefault, &found));
    if (!fn || found != cudaDriverEntryPointSuccess)
        return km_fail(err, KM_EDEVICE,
                       "the driver has no cuTensorMapEncodeTiled; update it to one for CUDA 12 or newer");
    CUtensorMap map;
    cuuint64_t dims[2] = {DH, (cuuint64_t)n_pages * m.L * 2 * m.G * m.B}, strides[1] = {DH * 2};
    cuuint32_t box[2] = {64, (cuuint32_t)(m.B < TILE_K ? m.B : TILE_K)}, ones[2] = {1, 1};
    auto encode = reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(fn);
    CUresult rc = encode(&map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2, const_cast<bf16 *>(pool), dims, strides, box,
                         ones, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                         CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    if (rc != CUDA_SUCCESS)
        return km_fail(err, KM_EDEVICE,
                       "cannot describe the KV pool to the copy engine (cuTensorMapEncodeTiled: %d)", (int)rc);
    static_assert(sizeof map == 128, "tensor map");
    memcpy(map128, &map, sizeof map);
    return 0;
}

void cu_attn_prefill_sm90(const cu_dims &m, const void *map128, const bf16 *qkv, const cu_meta &meta, int n_tiles,
                          int layer, bf16 *o, cudaStream_t s)
{
    CUtensorMap map;
    memcpy(&map, map128, sizeof map);
    params P = {};
    P.qkv = qkv;
    P.o = o;
    P.meta = meta;
    P.H = m.H;
    P.G = m.G;
    P.B_log2 = m.B_log2;
    P.box_rows = m.B < TILE_K ? m.B : TILE_K;
    P.rows_per_page = m.L * 2 * m.G * m.B;
    P.layer_row = layer * 2 * m.G * m.B;
    P.scale_log2 = 1.4426950408889634f / sqrtf((float)DH);
    int size = smem_layout::SIZE;
    cudaFuncSetAttribute(attn_prefill_sm90_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, size);
    cu_launch(attn_prefill_sm90_kernel, dim3((unsigned)m.H, (unsigned)n_tiles), THREADS, (size_t)size, s, P, map);
}
