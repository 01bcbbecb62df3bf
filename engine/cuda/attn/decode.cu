/* Decode attention: requests with one query token. The kernel reads the KV once, at the rate of device memory.
 *
 * Split-KV (flash decoding): the host splits each request's KV into ranges of nearly equal length (cu_attn_splits), so
 * that all SMs have work at any batch size. A thread block processes one split of one KV head. Its warps process tiles
 * of 16 tokens in turn. Each warp has a ring of STAGES tiles in shared memory, which it fills with cp.async, STAGES - 1
 * tiles in advance. Each warp keeps an online softmax, and the warps' results are merged in shared memory. If a request
 * has several splits, each block writes its result, a partial, to global memory. The last block to finish merges the
 * partials.
 *
 * The rows of the mma tile are the query heads that share the KV head, up to 16. To save shuffles and shared-memory
 * traffic, the 16-byte pieces that a lane loads are its mma B fragments without any rearrangement. For QK^T this
 * permutes the contraction index d, and q is loaded in the same order. For PV it permutes the output columns, and two
 * token rows are interleaved in registers.
 *
 * Each lane copies exactly the pieces of the keys that it uses. For values, eight lanes would then read 32 bytes from
 * each of four rows, which costs 15% of the bandwidth. Values are copied row by row instead, 512 bytes per instruction,
 * and swizzled so that the reads from shared memory have no bank conflicts. */
#include "engine/cuda/attn/attn.h"
#include "engine/cuda/attn/merge.cuh"
#include "engine/cuda/ptx.cuh"

#include <math.h>

namespace {

enum { WARPS = 4, STAGES = 3, TILE = 16 /* tokens */, BLOCKS_PER_SM = 2 };

/* The partials of all splits. A partial is the unnormalised output of a split and a KV head, with maximum and sum of
 * its softmax. group = H / G. */
struct partials {
    float *o;      /* [splits][G][group][DH] */
    float2 *ml;    /* [splits][G][16] maximum (base 2) and sum */
    int *finished; /* [reqs][G] number of blocks that have written their partial; zero between launches */
};

template <int DH> struct shape {
    enum { KI = DH / 32, VI = DH >= 64 ? DH / 64 : 1 }; /* 16-byte pieces per lane: of a key row; of a value row */
    enum { NT = VI * 8 };                               /* output tiles of 8 columns */
    enum { VC = DH / 16, PIECES = 2 * KI + VC };        /* copies per lane and tile: of values; of keys and values */
    enum { RING = STAGES * PIECES * 32 * 16, MERGE = 16 * (DH + 4) * 4 }; /* bytes per warp; merging reuses the ring */
    enum { SMEM = WARPS * ((int)RING > (int)MERGE ? (int)RING : (int)MERGE) };
};

/* zip_lo packs the low 16 bits of a and b into one register, zip_hi the high 16 bits. */
__device__ __forceinline__ uint32_t zip_lo(uint32_t a, uint32_t b)
{
    return __byte_perm(a, b, 0x5410);
}
__device__ __forceinline__ uint32_t zip_hi(uint32_t a, uint32_t b)
{
    return __byte_perm(a, b, 0x7632);
}
/* ld.shared.v4 */
__device__ __forceinline__ uint4 ld_shared16(uint32_t addr)
{
    uint4 v;
    asm volatile("ld.shared.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "r"(addr)
                 : "memory");
    return v;
}

/* Copies the KV of one split and one KV head into the warp's ring, and reads it from there. All members are those of
 * one lane; g = lane / 4, t = lane % 4. */
template <int DH> struct kv_reader {
    const bf16 *kv;             /* keys of the layer and the KV head in page 0 */
    const int32_t *table;       /* page ids of the request */
    size_t page_elems, v_off;   /* elements of a page; from a key to its value */
    int B_log2, end;            /* end: end of the split, in tokens */
    uint32_t ring, ring_values; /* shared-memory addresses of this lane's keys, and of the warp's values */
    int g, t;

    /* Starts the copies of the 16 tokens from `tok` on into a stage of the ring. */
    __device__ __forceinline__ void fetch(int tok, int stage) const
    {
        using S = shape<DH>;
        int mask = (1 << B_log2) - 1, last = (end - 1) >> B_log2;
        const bf16 *half[2] = {kv + (size_t)table[tok >> B_log2] * page_elems,
                               kv + (size_t)table[min((tok + 8) >> B_log2, last)] * page_elems};
        uint32_t dst = ring + stage * S::PIECES * 512;
#pragma unroll
        for (int n = 0; n < 2; n++) { /* keys after the end are masked later */
            const bf16 *p = half[n] + (size_t)((tok + 8 * n + g) & mask) * DH + 8 * t;
#pragma unroll
            for (int i = 0; i < S::KI; i++)
                cp_async16(dst + (n * S::KI + i) * 512, p + 32 * i, true);
        }
        constexpr int ROW = DH / 8, ROWS = 32 / ROW; /* 16-byte pieces of a row, rows of a copy */
        int lane = 4 * g + t, piece = lane % ROW;
#pragma unroll
        for (int i = 0; i < S::VC; i++) { /* values after the end become zeros, because 0 * NaN is NaN */
            int row = i * ROWS + lane / ROW;
            const bf16 *p = half[i * ROWS / 8] + v_off + (size_t)((tok + row) & mask) * DH + 8 * piece;
            cp_async16(ring_values + stage * S::PIECES * 512 + value_at(row, piece), p, tok + row < end);
        }
    }
    /* Swizzled offset of a piece of a value row within its tile, in bytes. */
    __device__ __forceinline__ static int value_at(int row, int piece)
    {
        return row * DH * 2 + (piece ^ (row & 6 & (DH / 8 - 1))) * 16;
    }
    /* The key of token 8n + g of the tile, elements 32 i + 8 t to 32 i + 8 t + 7. */
    __device__ __forceinline__ uint4 key(int stage, int n, int i) const
    {
        return ld_shared16(ring + (stage * shape<DH>::PIECES + n * shape<DH>::KI + i) * 512);
    }
    /* The value of token 2t, 2t + 1, 2t + 8 or 2t + 9 (r = 0 to 3), elements 64 j + 8 g to 64 j + 8 g + 7. */
    __device__ __forceinline__ uint4 value(int stage, int r, int j) const
    {
        int row = 2 * t + (r & 1) + 8 * (r >> 1), piece = DH >= 64 || g < DH / 8 ? 8 * j + g : 0;
        return ld_shared16(ring_values + stage * shape<DH>::PIECES * 512 + value_at(row, piece));
    }
};

/* The online softmax of one warp. A lane has rows g and g + 8 of the mma tile (index h = 0 and 1). */
template <int DH> struct softmax_state {
    float acc[shape<DH>::NT][4] = {};
    float top[2] = {-INFINITY, -INFINITY}; /* maximum of the row, base 2 */
    float sum[2] = {0, 0};                 /* sum over the lane's tokens */

    /* Adds the 16 tokens from `tok` on, which are in a stage of the ring. */
    __device__ __forceinline__ void add_tile(const kv_reader<DH> &in, int stage, int tok,
                                             const uint32_t (&qa)[2 * shape<DH>::KI][4], float scale_log2)
    {
        using S = shape<DH>;
        float s[2][4] = {};
#pragma unroll
        for (int n = 0; n < 2; n++)
#pragma unroll
            for (int i = 0; i < S::KI; i++) {
                uint4 k = in.key(stage, n, i);
                mma_bf16(s[n], qa[2 * i], k.x, k.y);
                mma_bf16(s[n], qa[2 * i + 1], k.z, k.w);
            }
        uint32_t pa[4];
#pragma unroll
        for (int h = 0; h < 2; h++) {
            float m = top[h];
#pragma unroll
            for (int n = 0; n < 2; n++)
#pragma unroll
                for (int e = 0; e < 2; e++) {
                    float &x = s[n][2 * h + e];
                    x = tok + 8 * n + 2 * in.t + e < in.end ? x * scale_log2 : -INFINITY;
                    m = fmaxf(m, x);
                }
            m = fmaxf(m, __shfl_xor_sync(~0u, m, 1));
            m = fmaxf(m, __shfl_xor_sync(~0u, m, 2));
            float fix = exp2_fast(top[h] - m); /* m is finite: the first token of a tile is inside the split */
            top[h] = m;
            sum[h] *= fix;
#pragma unroll
            for (int c = 0; c < S::NT; c++) {
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
#pragma unroll
        for (int j = 0; j < S::VI; j++) { /* column g of output tile (j, e) is element 64 j + 8 g + e */
            uint4 v[4];
#pragma unroll
            for (int r = 0; r < 4; r++)
                v[r] = in.value(stage, r, j);
            const uint32_t *a = &v[0].x, *b = &v[1].x, *c = &v[2].x, *d = &v[3].x;
#pragma unroll
            for (int e = 0; e < 4; e++) {
                mma_bf16(acc[j * 8 + 2 * e], pa, zip_lo(a[e], b[e]), zip_lo(c[e], d[e]));
                mma_bf16(acc[j * 8 + 2 * e + 1], pa, zip_hi(a[e], b[e]), zip_hi(c[e], d[e]));
            }
        }
    }
};

/* Loads q[group][DH] as mma A fragments; rows are query heads. The elements are in the order of kv_reader::key. */
template <int DH>
__device__ __forceinline__ void load_q(const bf16 *q, int group, int g, int t, uint32_t (&qa)[2 * shape<DH>::KI][4])
{
#pragma unroll
    for (int i = 0; i < shape<DH>::KI; i++) {
        uint4 v[2];
#pragma unroll
        for (int h = 0; h < 2; h++) {
            int r = g + 8 * h;
            v[h] = r < group ? *reinterpret_cast<const uint4 *>(q + (size_t)r * DH + 32 * i + 8 * t)
                             : make_uint4(0, 0, 0, 0);
        }
        qa[2 * i][0] = v[0].x, qa[2 * i][1] = v[1].x, qa[2 * i][2] = v[0].y, qa[2 * i][3] = v[1].y;
        qa[2 * i + 1][0] = v[0].z, qa[2 * i + 1][1] = v[1].z, qa[2 * i + 1][2] = v[0].w, qa[2 * i + 1][3] = v[1].w;
    }
}

/* Starts the copies of a warp's first tiles. A kernel of this step writes the KV of the request's last token. Earlier
 * steps wrote the KV of all other tokens, so their tiles are copied while the previous kernels still run. */
template <int DH> __device__ __forceinline__ void fetch_first(const kv_reader<DH> &in, const cu_split &split, int first)
{
#pragma unroll
    for (int i = 0; i < STAGES - 1; i++) {
        int tok = first + i * WARPS * TILE;
        if (tok < split.end && tok + TILE < split.len)
            in.fetch(tok, i);
    }
    griddep_launch();
    griddep_wait();
#pragma unroll
    for (int i = 0; i < STAGES - 1; i++) {
        int tok = first + i * WARPS * TILE;
        if (tok < split.end && tok + TILE >= split.len)
            in.fetch(tok, i);
        cp_async_commit();
    }
}

/* Adds a warp's tiles to its state: every WARPS-th tile of the split, from token `first` on. All copies have arrived at
 * the return. */
template <int DH>
__device__ __forceinline__ void add_tiles(const kv_reader<DH> &in, const cu_split &split, int first,
                                          const uint32_t (&qa)[2 * shape<DH>::KI][4], float scale_log2,
                                          softmax_state<DH> &w)
{
    int stage = 0, next = STAGES - 1;
    for (int tok = first; tok < split.end; tok += WARPS * TILE) {
        int ahead = tok + (STAGES - 1) * WARPS * TILE;
        cp_async_wait<STAGES - 2>();
        __syncwarp(); /* the copies of all lanes have arrived, and all lanes have read the stage that is filled next */
        if (ahead < split.end)
            in.fetch(ahead, next);
        cp_async_commit();
        w.add_tile(in, stage, tok, qa, scale_log2);
        stage = stage + 1 == STAGES ? 0 : stage + 1;
        next = next + 1 == STAGES ? 0 : next + 1;
    }
    cp_async_wait<0>();
}

/* Stores a warp's state in shared memory: the output in so[16][DH + 4], maximum and sum of each row in ml[16]. */
template <int DH>
__device__ __forceinline__ void store_state(softmax_state<DH> &w, int group, int g, int t, float (*so)[DH + 4],
                                            float2 *ml)
{
#pragma unroll
    for (int h = 0; h < 2; h++) {
        w.sum[h] += __shfl_xor_sync(~0u, w.sum[h], 1);
        w.sum[h] += __shfl_xor_sync(~0u, w.sum[h], 2);
        int r = g + 8 * h;
        if (r >= group)
            continue;
        if (t == 0)
            ml[r] = make_float2(w.top[h], w.sum[h]);
#pragma unroll
        for (int c = 0; c < shape<DH>::NT; c++)
#pragma unroll
            for (int e = 0; e < 2; e++) {
                int col = (c / 8) * 64 + 8 * (2 * t + e) + c % 8;
                if (col < DH)
                    so[r][col] = w.acc[c][2 * h + e];
            }
    }
}

/* Merges the states of all warps, one row per warp at a time. If the request has one split, the result is its output
 * out[group][DH]. Otherwise it is the split's partial, po[group][DH] and pml[16]. */
template <int DH>
__device__ __forceinline__ void merge_warps(const float (*so)[16][DH + 4], const float2 (*ml)[16], int group,
                                            int n_splits, int warp, int lane, bf16 *out, float *po, float2 *pml)
{
    for (int r = warp; r < group; r += WARPS) {
        float m = -INFINITY, l = 0;
        row_piece<DH> v = {};
#pragma unroll
        for (int k = 0; k < WARPS; k++)
            m = fmaxf(m, ml[k][r].x);
#pragma unroll
        for (int k = 0; k < WARPS; k++) {
            float f = exp2_fast(ml[k][r].x - m); /* 0 for a warp that had no tile */
            v.add(f, row_piece<DH>::at(so[k][r], lane));
            l += f * ml[k][r].y;
        }
        if (n_splits == 1) {
            v.store(out + r * DH, lane, 1 / l);
            continue;
        }
        row_piece<DH>::at(po + r * DH, lane) = v;
        if (lane == 0)
            pml[r] = make_float2(m, l);
    }
}

/* Merges the partials of a request into out[group][DH], one row per warp at a time. */
template <int DH>
__device__ __forceinline__ void merge_splits(const partials &part, const cu_split &split, int G, int head, int group,
                                             int warp, int lane, bf16 *out)
{
    size_t o_step = (size_t)G * group * DH, ml_step = (size_t)G * 16;
    for (int r = warp; r < group; r += WARPS) {
        const float *from_o = part.o + (((size_t)split.first * G + head) * group + r) * DH;
        const float2 *from_ml = part.ml + ((size_t)split.first * G + head) * 16 + r;
        merge_row<DH>(from_o, o_step, from_ml, ml_step, split.n_splits, lane, out + r * DH);
    }
}

/* Grid: KV heads by splits. scale_log2: log2(e) / sqrt(DH). layer_at: elements from the start of a page to the
 * layer. */
template <int DH>
__global__ void __launch_bounds__(WARPS * 32, BLOCKS_PER_SM)
    attn_decode_kernel(const bf16 *__restrict__ qkv, const bf16 *__restrict__ pool, cu_step_arrays arrays, int H, int G,
                       int B_log2, size_t page_elems, size_t layer_at, float scale_log2, partials part,
                       bf16 *__restrict__ o)
{
    using S = shape<DH>;
    extern __shared__ __align__(128) char smem[];
    __shared__ float2 ml[WARPS][16];
    __shared__ int last;
    int tid = threadIdx.x, lane = tid % 32, warp = tid / 32, g = lane / 4, t = lane % 4;
    int head = blockIdx.x, group = H / G;
    cu_split split = arrays.splits[blockIdx.y];
    if (split.req < 0) { /* a CUDA graph has more splits than this step uses */
        griddep_wait();
        return;
    }

    kv_reader<DH> in;
    in.kv = pool + layer_at + ((size_t)head << B_log2) * DH;
    in.table = arrays.table + split.table_start;
    in.page_elems = page_elems;
    in.v_off = ((size_t)G << B_log2) * DH;
    in.B_log2 = B_log2;
    in.end = split.end;
    in.ring_values = smem_u32(smem) + warp * S::RING + 2 * S::KI * 512;
    in.ring = smem_u32(smem) + warp * S::RING + lane * 16;
    in.g = g, in.t = t;

    int first = split.begin + warp * TILE;
    fetch_first(in, split, first);
    uint32_t qa[2 * S::KI][4];
    load_q<DH>(qkv + ((size_t)split.row * (H + 2 * G) + head * group) * DH, group, g, t, qa);
    softmax_state<DH> w;
    add_tiles(in, split, first, qa, scale_log2, w);
    __syncthreads(); /* no warp reads its ring any more: the memory of the rings now holds the warps' states */

    float(*so)[16][DH + 4] = reinterpret_cast<float(*)[16][DH + 4]>(smem);
    store_state(w, group, g, t, so[warp], ml[warp]);
    __syncthreads();
    bf16 *out = o + ((size_t)split.row * H + head * group) * DH;
    float *po = part.o + ((size_t)blockIdx.y * G + head) * group * DH;
    float2 *pml = part.ml + ((size_t)blockIdx.y * G + head) * 16;
    merge_warps<DH>(so, ml, group, split.n_splits, warp, lane, out, po, pml);
    if (split.n_splits == 1)
        return;

    __syncthreads(); /* the atomic add below publishes the partials of the whole block, and makes all others visible */
    int *finished = &part.finished[(size_t)split.req * G + head];
    if (tid == 0)
        last = atom_add_acq_rel(finished, 1) == split.n_splits - 1;
    __syncthreads();
    if (!last)
        return;
    merge_splits<DH>(part, split, G, head, group, warp, lane, out);
    if (tid == 0)
        *finished = 0;
}

/* Elements of partials.finished, which must be zero before each launch. They are at the start of the workspace, so that
 * no other array ever overlaps them. */
size_t n_counters(const cu_dims &m)
{
    return ((size_t)m.max_reqs * m.G + 3) / 4 * 4;
}

/* Number of splits whose thread blocks the GPU runs at the same time. A small batch is divided into about as many. */
int splits_per_wave(const cu_dims &m)
{
    return (BLOCKS_PER_SM * m.n_sms + m.G - 1) / m.G;
}

template <int DH>
void launch(const cu_dims &m, const bf16 *qkv, const cu_step_arrays &in, int n_splits, int layer, const bf16 *pool,
            bf16 *o, const partials &part, cudaStream_t s)
{
    float scale_log2 = 1.4426950408889634f / sqrtf((float)DH);
    size_t layer_at = (size_t)layer * 2 * m.G * m.B * DH;
    int size = shape<DH>::SMEM;
    cudaFuncSetAttribute(attn_decode_kernel<DH>, cudaFuncAttributeMaxDynamicSharedMemorySize, size);
    cu_launch(attn_decode_kernel<DH>, dim3((unsigned)m.G, (unsigned)n_splits), WARPS * 32, (size_t)size, s, qkv, pool,
              in, m.H, m.G, m.B_log2, m.page_elems, layer_at, scale_log2, part, o);
}

} // namespace

/* ---- splits, on the host ---- */

int cu_attn_splits_max(const cu_dims &m, int reqs)
{
    return reqs + splits_per_wave(m);
}

/* Number of splits of `size` tokens that `len` tokens need. Most requests have one split; the shortcut for them saves a
 * division per request and step. */
static int splits_of(int len, int size)
{
    return len <= size ? 1 : (len + size - 1) / size;
}

/* Tokens of each split of a request if no split may exceed `limit`: equal lengths, in whole tiles. */
static int split_len(int len, int limit)
{
    int n = splits_of(len, limit), each = n == 1 ? len : (len + n - 1) / n;
    return (each + TILE - 1) / TILE * TILE;
}

/* Chooses the limit of a split's length in tokens: of a few candidates, the one with the lowest estimated time. That is
 * the number of waves of thread blocks, times the length of the longest split. The shortest candidate makes at most
 * n + splits_per_wave splits. */
static int choose_split_limit(const cu_dims &m, const cu_step_arrays &host, const int32_t *reqs, int n)
{
    enum { UNIT = WARPS * TILE }; /* tokens that a thread block processes at once */
    enum { START_COST = 64 };     /* cost of starting a thread block, in tokens */
    long all = 0, blocks = (long)BLOCKS_PER_SM * m.n_sms, best_cost = INT64_MAX;
    for (int i = 0; i < n; i++)
        all += host.kv_len[reqs[i]];
    int least = (int)((all / splits_per_wave(m) + UNIT) / UNIT * UNIT), best = least;
    for (int quarters = 4; quarters <= 16; quarters += quarters < 8 ? 1 : 4) {
        int limit = (int)((long)least * quarters / 4), longest = 0;
        long splits = 0;
        for (int i = 0; i < n; i++) {
            int len = host.kv_len[reqs[i]], each = split_len(len, limit);
            splits += splits_of(len, each);
            longest = each > longest ? each : longest;
        }
        long cost = (splits * m.G + blocks - 1) / blocks * (longest + START_COST);
        if (cost < best_cost)
            best_cost = cost, best = limit;
    }
    return best;
}

int cu_attn_splits(const cu_dims &m, const cu_step_arrays &host, const int32_t *reqs, int n, struct cu_split *out)
{
    int used = 0, limit = n ? choose_split_limit(m, host, reqs, n) : 0;
    for (int i = 0; i < n; i++) {
        int r = reqs[i], len = host.kv_len[r], each = split_len(len, limit), first = used,
            n_splits = splits_of(len, each);
        for (int k = 0; k < n_splits; k++) {
            int end = k + 1 < n_splits ? (k + 1) * each : len;
            out[used++] = cu_split{r, host.q_start[r], len, host.table_start[r], k * each, end, first, n_splits};
        }
    }
    return used;
}

/* ---- launching ---- */

size_t cu_attn_decode_workspace(const cu_dims &m)
{
    size_t cells = (size_t)cu_attn_splits_max(m, m.max_reqs) * m.G;
    return n_counters(m) * sizeof(int) + cells * ((size_t)(m.H / m.G) * m.d * sizeof(float) + 16 * sizeof(float2));
}

void cu_attn_decode(const cu_dims &m, const bf16 *qkv, const cu_step_arrays &in, int n_splits, int layer,
                    const bf16 *pool, bf16 *o, void *workspace, cudaStream_t s)
{
    partials part;
    part.finished = static_cast<int *>(workspace);
    part.ml = reinterpret_cast<float2 *>(part.finished + n_counters(m));
    part.o = reinterpret_cast<float *>(part.ml + (size_t)cu_attn_splits_max(m, m.max_reqs) * m.G * 16);
    auto launch_kernel = m.d == 128 ? launch<128> : m.d == 64 ? launch<64> : launch<32>;
    launch_kernel(m, qkv, in, n_splits, layer, pool, o, part, s);
}
