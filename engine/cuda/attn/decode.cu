/* Attention of requests with one query token: reading the KV once, as fast as memory gives it.
 *
 * The host cuts every request's KV into items of about equal length, so that the card is full whatever the batch
 * looks like (cu_attn_splits). A block takes one item of one kv head; its warps take tiles of 16 tokens in turn, each
 * through a ring of its own in shared memory that cp.async keeps STAGES - 1 tiles ahead.
 *
 * The query heads of the group are the rows of the mma tile (up to 16). A lane's 16-byte pieces are B fragments as
 * they lie: for QK^T the contraction index d is permuted, q alike; for PV the output columns are permuted instead,
 * and two token rows are zipped in registers. So a lane copies of the keys exactly the pieces it will use. Of the
 * values that would be 32 bytes of four rows for every eight lanes, which costs 15% of the bandwidth: they are copied
 * row by row, 512 bytes an instruction, and swizzled so that lanes find theirs without bank conflicts. The parts of a
 * request meet in global memory: the last block to arrive adds them up (flash decoding). */
#include "engine/cuda/cu.h"
#include "engine/cuda/ptx.cuh"

#include <math.h>

namespace {

enum { WARPS = 4, STAGES = 3, TILE = 16, BLOCKS_PER_SM = 2 };

/* Partial results a (item, kv head): DH floats and (max, sum) a query row. */
struct partial {
    float *o;     /* [items][G][group][DH] */
    float2 *ml;   /* [items][G][16]        */
    int *arrived; /* [reqs][G], zero between launches */
};

template <int DH> struct shape {
    enum { KI = DH / 32, VI = DH >= 64 ? DH / 64 : 1 };                /* a lane's pieces of a key row, a value row */
    enum { NT = VI * 8, VC = DH / 16, PIECES = 2 * KI + VC };          /* output tiles of 8 columns; copies of values */
    enum { RING = STAGES * PIECES * 32 * 16, MERGE = 16 * (DH + 4) * 4 }; /* bytes a warp: the merge reuses the ring */
    enum { SMEM = WARPS * ((int)RING > (int)MERGE ? (int)RING : (int)MERGE) };
};

__device__ __forceinline__ uint32_t zip_lo(uint32_t a, uint32_t b) /* low halves of a and b */
{
    return __byte_perm(a, b, 0x5410);
}
__device__ __forceinline__ uint32_t zip_hi(uint32_t a, uint32_t b)
{
    return __byte_perm(a, b, 0x7632);
}
__device__ __forceinline__ uint4 ld_shared16(uint32_t addr)
{
    uint4 v;
    asm volatile("ld.shared.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "r"(addr)
                 : "memory");
    return v;
}

/* One item of one kv head as its lanes see it: where the pieces of a tile lie, and how they travel to the ring. */
template <int DH> struct stream {
    const bf16 *kv; /* keys of this layer and head within a page */
    const int32_t *table;
    size_t page_elems, v_off;
    int B_log2, end; /* tokens from `end` on count as nothing */
    uint32_t ring, ring_values; /* this lane's keys; the warp's values */
    int g, t;

    __device__ __forceinline__ void fetch(int tok, int slot) const
    {
        using S = shape<DH>;
        int mask = (1 << B_log2) - 1, last = (end - 1) >> B_log2;
        const bf16 *half[2] = {kv + (size_t)table[tok >> B_log2] * page_elems,
                               kv + (size_t)table[min((tok + 8) >> B_log2, last)] * page_elems};
        uint32_t dst = ring + slot * S::PIECES * 512;
#pragma unroll
        for (int n = 0; n < 2; n++) { /* tokens past the end give keys that are masked later */
            const bf16 *p = half[n] + (size_t)((tok + 8 * n + g) & mask) * DH + 8 * t;
#pragma unroll
            for (int i = 0; i < S::KI; i++)
                cp_async16(dst + (n * S::KI + i) * 512, p + 32 * i, true);
        }
        constexpr int ROW = DH / 8, ROWS = 32 / ROW; /* 16-byte pieces of a row, rows of a copy */
        int lane = 4 * g + t, piece = lane % ROW;
#pragma unroll
        for (int i = 0; i < S::VC; i++) { /* past the end zeros, since 0 * NaN is NaN */
            int row = i * ROWS + lane / ROW;
            const bf16 *p = half[i * ROWS / 8] + v_off + (size_t)((tok + row) & mask) * DH + 8 * piece;
            cp_async16(ring_values + slot * S::PIECES * 512 + value_at(row, piece), p, tok + row < end);
        }
    }
    /* Where a piece of a row of values lies within its tile. */
    __device__ __forceinline__ static int value_at(int row, int piece)
    {
        return row * DH * 2 + (piece ^ (row & 6 & (DH / 8 - 1))) * 16;
    }
    __device__ __forceinline__ uint4 key(int slot, int n, int i) const
    {
        return ld_shared16(ring + (slot * shape<DH>::PIECES + n * shape<DH>::KI + i) * 512);
    }
    /* Token 2t, 2t+1, 2t+8 or 2t+9, elements 64 j + 8 g on. */
    __device__ __forceinline__ uint4 value(int slot, int r, int j) const
    {
        int row = 2 * t + (r & 1) + 8 * (r >> 1), piece = DH >= 64 || g < DH / 8 ? 8 * j + g : 0;
        return ld_shared16(ring_values + slot * shape<DH>::PIECES * 512 + value_at(row, piece));
    }
};

/* Running sums of one warp: rows g and g + 8 of the mma tile. */
template <int DH> struct sums {
    float acc[shape<DH>::NT][4] = {};
    float top[2] = {-INFINITY, -INFINITY}, sum[2] = {0, 0};

    __device__ __forceinline__ void add_tile(const stream<DH> &in, int slot, int tok,
                                             const uint32_t (&qa)[2 * shape<DH>::KI][4], float scale_log2)
    {
        using S = shape<DH>;
        float s[2][4] = {};
#pragma unroll
        for (int n = 0; n < 2; n++)
#pragma unroll
            for (int i = 0; i < S::KI; i++) {
                uint4 k = in.key(slot, n, i);
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
            float fix = exp2_fast(top[h] - m); /* m is finite: the first token of a tile is in range */
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
        for (int j = 0; j < S::VI; j++) { /* output tile (j, e): column g is element 64 j + 8 g + e */
            uint4 v[4];
#pragma unroll
            for (int r = 0; r < 4; r++)
                v[r] = in.value(slot, r, j);
            const uint32_t *a = &v[0].x, *b = &v[1].x, *c = &v[2].x, *d = &v[3].x;
#pragma unroll
            for (int e = 0; e < 4; e++) {
                mma_bf16(acc[j * 8 + 2 * e], pa, zip_lo(a[e], b[e]), zip_lo(c[e], d[e]));
                mma_bf16(acc[j * 8 + 2 * e + 1], pa, zip_hi(a[e], b[e]), zip_hi(c[e], d[e]));
            }
        }
    }
};

/* What a lane holds of a row that a warp holds: neighbours. */
template <int DH> struct alignas(DH / 8) cols {
    float v[DH / 32];

    __device__ __forceinline__ static const cols &at(const float *row, int lane)
    {
        return reinterpret_cast<const cols *>(row)[lane];
    }
    __device__ __forceinline__ static cols &at(float *row, int lane)
    {
        return reinterpret_cast<cols *>(row)[lane];
    }
    __device__ __forceinline__ void add(float f, const cols &o)
    {
#pragma unroll
        for (int i = 0; i < DH / 32; i++)
            v[i] += f * o.v[i];
    }
    __device__ __forceinline__ void scale(float f)
    {
#pragma unroll
        for (int i = 0; i < DH / 32; i++)
            v[i] *= f;
    }
    __device__ __forceinline__ void put(bf16 *row, int lane, float f) const
    {
        struct alignas(DH / 16) {
            bf16 v[DH / 32];
        } out;
#pragma unroll
        for (int i = 0; i < DH / 32; i++)
            out.v[i] = __float2bfloat16(v[i] * f);
        reinterpret_cast<decltype(out) *>(row)[lane] = out;
    }
};

template <int DH>
__global__ void __launch_bounds__(WARPS * 32, BLOCKS_PER_SM)
    attn_decode_kernel(const bf16 *__restrict__ qkv, const bf16 *__restrict__ pool, cu_step_arrays meta, int H, int G,
                       int B_log2, size_t page_elems, size_t layer_at, float scale_log2, partial part,
                       bf16 *__restrict__ o)
{
    using S = shape<DH>;
    extern __shared__ __align__(128) char smem[];
    __shared__ float2 sml[WARPS][16];
    __shared__ int last;
    int tid = threadIdx.x, lane = tid % 32, warp = tid / 32, g = lane / 4, t = lane % 4;
    int head = blockIdx.x, group = H / G;
    cu_split it = meta.items[blockIdx.y];
    if (it.req < 0) { /* a captured graph has room for more items than this step needs */
        griddep_wait();
        return;
    }

    stream<DH> in;
    in.kv = pool + layer_at + ((size_t)head << B_log2) * DH;
    in.table = meta.table + it.table;
    in.page_elems = page_elems;
    in.v_off = ((size_t)G << B_log2) * DH;
    in.B_log2 = B_log2;
    in.end = it.end;
    in.ring_values = smem_u32(smem) + warp * S::RING + 2 * S::KI * 512;
    in.ring = smem_u32(smem) + warp * S::RING + lane * 16;
    in.g = g, in.t = t;

    /* Everything but the request's newest token was written by steps before this one: it may travel while the
     * kernel that writes the newest one still runs. */
    int first = it.begin + warp * TILE;
#pragma unroll
    for (int i = 0; i < STAGES - 1; i++) {
        int tok = first + i * WARPS * TILE;
        if (tok < it.end && tok + TILE < it.len)
            in.fetch(tok, i);
    }
    griddep_launch();
    griddep_wait();
#pragma unroll
    for (int i = 0; i < STAGES - 1; i++) {
        int tok = first + i * WARPS * TILE;
        if (tok < it.end && tok + TILE >= it.len)
            in.fetch(tok, i);
        cp_async_commit();
    }

    /* q as A fragments: row g (and g + 8) is query head head * group + g; element order as the key pieces give it. */
    uint32_t qa[2 * S::KI][4];
#pragma unroll
    for (int i = 0; i < S::KI; i++) {
        uint4 v[2];
#pragma unroll
        for (int h = 0; h < 2; h++) {
            int r = g + 8 * h;
            v[h] = r < group ? *reinterpret_cast<const uint4 *>(
                                   qkv + ((size_t)it.row * (H + 2 * G) + head * group + r) * DH + 32 * i + 8 * t)
                             : make_uint4(0, 0, 0, 0);
        }
        qa[2 * i][0] = v[0].x, qa[2 * i][1] = v[1].x, qa[2 * i][2] = v[0].y, qa[2 * i][3] = v[1].y;
        qa[2 * i + 1][0] = v[0].z, qa[2 * i + 1][1] = v[1].z, qa[2 * i + 1][2] = v[0].w, qa[2 * i + 1][3] = v[1].w;
    }

    sums<DH> w;
    int slot = 0, next = STAGES - 1;
    for (int tok = first; tok < it.end; tok += WARPS * TILE) {
        int ahead = tok + (STAGES - 1) * WARPS * TILE;
        cp_async_wait<STAGES - 2>();
        __syncwarp(); /* the other lanes' copies are there too, and their reads of the slot that is refilled over */
        if (ahead < it.end)
            in.fetch(ahead, next);
        cp_async_commit();
        w.add_tile(in, slot, tok, qa, scale_log2);
        slot = slot + 1 == STAGES ? 0 : slot + 1;
        next = next + 1 == STAGES ? 0 : next + 1;
    }
    cp_async_wait<0>();
    __syncthreads(); /* the rings are free */

    float(*so)[16][DH + 4] = reinterpret_cast<float(*)[16][DH + 4]>(smem);
#pragma unroll
    for (int h = 0; h < 2; h++) {
        w.sum[h] += __shfl_xor_sync(~0u, w.sum[h], 1);
        w.sum[h] += __shfl_xor_sync(~0u, w.sum[h], 2);
        int r = g + 8 * h;
        if (r >= group)
            continue;
        if (t == 0)
            sml[warp][r] = make_float2(w.top[h], w.sum[h]);
#pragma unroll
        for (int c = 0; c < S::NT; c++)
#pragma unroll
            for (int e = 0; e < 2; e++) {
                int col = (c / 8) * 64 + 8 * (2 * t + e) + c % 8;
                if (col < DH)
                    so[warp][r][col] = w.acc[c][2 * h + e];
            }
    }
    __syncthreads();
    bf16 *out = o + ((size_t)it.row * H + head * group) * DH;
    float *po = part.o + ((size_t)blockIdx.y * G + head) * group * DH;
    float2 *pml = part.ml + ((size_t)blockIdx.y * G + head) * 16;
    for (int r = warp; r < group; r += WARPS) {
        float m = -INFINITY, l = 0;
        cols<DH> v = {};
#pragma unroll
        for (int k = 0; k < WARPS; k++)
            m = fmaxf(m, sml[k][r].x);
#pragma unroll
        for (int k = 0; k < WARPS; k++) {
            float f = exp2_fast(sml[k][r].x - m); /* 0 for a warp that had no tile */
            v.add(f, cols<DH>::at(so[k][r], lane));
            l += f * sml[k][r].y;
        }
        if (it.parts == 1) {
            v.put(out + r * DH, lane, 1 / l);
            continue;
        }
        cols<DH>::at(po + r * DH, lane) = v;
        if (lane == 0)
            pml[r] = make_float2(m, l);
    }
    if (it.parts == 1)
        return;

    __syncthreads(); /* thread 0 speaks for the block's writes, and hears of the others' */
    int *arrived = &part.arrived[(size_t)it.req * G + head];
    if (tid == 0)
        last = atom_add_acq_rel(arrived, 1) == it.parts - 1;
    __syncthreads();
    if (!last)
        return;
    /* A warp a row: all of MANY parts and their weights are asked for at once. */
    enum { MANY = 16 };
    size_t o_step = (size_t)G * group * DH, ml_step = (size_t)G * 16;
    for (int r = warp; r < group; r += WARPS) {
        const float *from_o = part.o + (((size_t)it.first * G + head) * group + r) * DH;
        const float2 *from_ml = part.ml + ((size_t)it.first * G + head) * 16 + r;
        float m = -INFINITY, l = 0;
        cols<DH> v = {};
        for (int left = it.parts; left > 0; left -= MANY, from_o += MANY * o_step, from_ml += MANY * ml_step) {
            float2 ml = lane < left && lane < MANY ? from_ml[lane * ml_step] : make_float2(-INFINITY, 0);
            cols<DH> p[MANY] = {};
#pragma unroll
            for (int k = 0; k < MANY; k++)
                if (k < left)
                    p[k] = cols<DH>::at(from_o + k * o_step, lane);
            float top = fmaxf(m, warp_max(ml.x)), fix = exp2_fast(m - top), weight = exp2_fast(ml.x - top);
            l = l * fix + warp_sum(weight * ml.y);
            v.scale(fix);
#pragma unroll
            for (int k = 0; k < MANY; k++)
                v.add(__shfl_sync(~0u, weight, k), p[k]);
            m = top;
        }
        v.put(out + r * DH, lane, 1 / l);
    }
    if (tid == 0)
        *arrived = 0;
}

/* Arrival counters first, in a place that does not depend on the launch: they must be zero whatever ran before. */
size_t counters(const cu_dims &m)
{
    return ((size_t)m.max_reqs * m.G + 3) / 4 * 4;
}

/* Blocks that the card runs at once, in items: what a small batch is cut into. */
int wave(const cu_dims &m)
{
    return (BLOCKS_PER_SM * m.n_sms + m.G - 1) / m.G;
}

template <int DH>
void launch(const cu_dims &m, const bf16 *qkv, const cu_step_arrays &meta, int n_splits, int layer, const bf16 *pool, bf16 *o,
            const partial &part, cudaStream_t s)
{
    float scale_log2 = 1.4426950408889634f / sqrtf((float)DH);
    size_t layer_at = (size_t)layer * 2 * m.G * m.B * DH;
    int size = shape<DH>::SMEM;
    cudaFuncSetAttribute(attn_decode_kernel<DH>, cudaFuncAttributeMaxDynamicSharedMemorySize, size);
    cu_launch(attn_decode_kernel<DH>, dim3((unsigned)m.G, (unsigned)n_splits), WARPS * 32, (size_t)size, s, qkv, pool,
              meta, m.H, m.G, m.B_log2, m.page_elems, layer_at, scale_log2, part, o);
}

} // namespace

int cu_attn_splits_max(const cu_dims &m, int reqs)
{
    return reqs + wave(m);
}

/* How many times `part` len takes. In most batches once, without the division: this runs for every request and step. */
static int parts_of(int len, int part)
{
    return len <= part ? 1 : (len + part - 1) / part;
}

/* Tokens of an item of a request when none may be longer than `most`: equal parts, whole tiles. */
static int part_len(int len, int most)
{
    int parts = parts_of(len, most), each = parts == 1 ? len : (len + parts - 1) / parts;
    return (each + TILE - 1) / TILE * TILE;
}

/* The longest an item may be: of a few candidates the one that ends first, counted in waves of blocks times their
 * length. The least of them makes at most n + wave items. */
static int longest_item(const cu_dims &m, const cu_step_arrays &h, const int32_t *reqs, int n)
{
    enum { LEAST = WARPS * TILE, START = 64 }; /* what starting a block costs, in tokens */
    long all = 0, slots = (long)BLOCKS_PER_SM * m.n_sms, best_cost = INT64_MAX;
    for (int i = 0; i < n; i++)
        all += h.kv_len[reqs[i]];
    int least = (int)((all / wave(m) + LEAST) / LEAST * LEAST), best = least;
    for (int quarters = 4; quarters <= 16; quarters += quarters < 8 ? 1 : 4) {
        int most = (int)((long)least * quarters / 4), longest = 0;
        long items = 0;
        for (int i = 0; i < n; i++) {
            int len = h.kv_len[reqs[i]], each = part_len(len, most);
            items += parts_of(len, each);
            longest = each > longest ? each : longest;
        }
        long cost = (items * m.G + slots - 1) / slots * (longest + START);
        if (cost < best_cost)
            best_cost = cost, best = most;
    }
    return best;
}

int cu_attn_splits(const cu_dims &m, const cu_step_arrays &h, const int32_t *reqs, int n, struct cu_split *out)
{
    int used = 0, most = n ? longest_item(m, h, reqs, n) : 0;
    for (int i = 0; i < n; i++) {
        int r = reqs[i], len = h.kv_len[r], each = part_len(len, most), first = used, parts = parts_of(len, each);
        for (int k = 0; k < parts; k++) {
            int end = k + 1 < parts ? (k + 1) * each : len;
            out[used++] = cu_split{r, h.q_start[r], len, h.table_start[r], k * each, end, first, parts};
        }
    }
    return used;
}

size_t cu_attn_decode_work(const cu_dims &m)
{
    size_t cells = (size_t)cu_attn_splits_max(m, m.max_reqs) * m.G;
    return counters(m) * sizeof(int) + cells * ((size_t)(m.H / m.G) * m.d * sizeof(float) + 16 * sizeof(float2));
}

void cu_attn_decode(const cu_dims &m, const bf16 *qkv, const cu_step_arrays &meta, int n_splits, int layer, const bf16 *pool,
                    bf16 *o, void *work, cudaStream_t s)
{
    partial part;
    part.arrived = static_cast<int *>(work);
    part.ml = reinterpret_cast<float2 *>(part.arrived + counters(m));
    part.o = reinterpret_cast<float *>(part.ml + (size_t)cu_attn_splits_max(m, m.max_reqs) * m.G * 16);
    auto go = m.d == 128 ? launch<128> : m.d == 64 ? launch<64> : launch<32>;
    go(m, qkv, meta, n_splits, layer, pool, o, part, s);
}
