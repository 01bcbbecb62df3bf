/* Causal attention of prefill chunks over paged KV on Hopper: wgmma multiplies, TMA copies the pages.
 *
 * A job is 128 query rows of one head of 128 elements. One persistent thread block per SM takes jobs from a queue, the
 * longest jobs first. The queue is a counter in global memory. In a block, a producer warp copies queries, keys and
 * values for two consumer warpgroups of 64 rows each. Keys and values each have a ring of three tiles of 128 tokens.
 * The producer starts the next job while the consumers finish the current one.
 *
 * The tensor map describes the KV pool as a sequence of groups. A group is 8 tokens by the two halves of a head. The
 * keys of one head in a page (or 128 tokens of a larger page) are then one box. A box arrives in shared memory in the
 * order that wgmma reads: 128-byte swizzle, 8 tokens of one half of the head, then 8 tokens of the other half.
 *
 * A job's tiles are processed from the diagonal back to the first token. Only the first tiles need the causal mask, and
 * the running maximum rarely changes after them. While the tensor cores multiply P and V of one tile, the softmax of
 * the next tile runs (FlashAttention-3, Shah et al. 2024, section 3.2).
 *
 * Tails (attn.h) have jobs of their own, and a launch of their own: TAIL is true in it. A tail's job is one split of
 * one tile and one KV head. The 128 rows of the job are then (128 / group) query rows of each of the `group` heads that
 * share the KV head: row i of the job is query row i % tail_rows of head i / tail_rows. All of these rows read the keys
 * once. A job writes its output to o if the tile has one split, and otherwise a partial, which tails.cu merges.
 *
 * Values after the last key that a job may see are set to zero in shared memory. A page may hold NaN there, and 0 * NaN
 * would reach the output.
 *
 * Barriers in shared memory, and what completes a phase of each:
 *   K_FULL, V_FULL    of each stage: the producer's arrival and the tile's bytes
 *   K_EMPTY, V_EMPTY  of each stage: an arrival by each consumer warp, once its warpgroup has multiplied the tile
 *   Q_FULL            of each job: the producer's arrival, once it has described the job, and the queries' bytes
 *   Q_EMPTY           of each job: an arrival by each consumer warp, after its last multiplication with the queries */
#include "engine/cuda/attn/attn.h"
#include "engine/cuda/ptx.cuh"
#include "engine/cuda/sm90.cuh"
#include "engine/cuda/tensor_map.h"

#include <cuda.h>
#include <math.h>
#include <string.h>

namespace {

enum { DH = 128, TILE_K = 128, ROWS = CU_TILE_Q, STAGES = 3, THREADS = 384, WARPS = 8 /* consumer warps */ };
enum { TILE_BYTES = TILE_K * DH * 2, GROUP_BYTES = 8 * DH * 2, HALF_GROUP = GROUP_BYTES / 2, Q_HALF = ROWS * 128 };

/* Description of a job. */
template <bool TAIL> struct job_desc {
    int row, rows; /* first row in qkv and o; number of rows, at most ROWS */
    int pos, stop; /* position of the first row; number of keys that the last row sees */
    int req, head; /* request and query head */
    int n_tiles;   /* tiles of keys; 0: the queue is empty, and the consumers end */
};
template <> struct job_desc<true> {
    int row, rows, pos, stop, n_tiles; /* as above; rows: query rows of each head, at most tail_rows */
    int head, begin;                   /* KV head; first tile of keys */
    int table_start, old;              /* as in cu_tail */
    int cell;                          /* as in cu_tail_partials; -1: the job writes to o */
};

/* Offsets in shared memory, in bytes. */
struct smem_layout {
    enum {
        Q = 0, /* [half of the head][row][64 elements] */
        K = Q + ROWS * DH * 2,
        V = K + STAGES * TILE_BYTES,
        K_FULL = V + STAGES * TILE_BYTES,
        V_FULL = K_FULL + 8 * STAGES,
        K_EMPTY = V_FULL + 8 * STAGES,
        V_EMPTY = K_EMPTY + 8 * STAGES,
        Q_FULL = V_EMPTY + 8 * STAGES,
        Q_EMPTY = Q_FULL + 8,
        JOB = Q_EMPTY + 8,
        SIZE = JOB + sizeof(job_desc<true>)
    };
};

/* cp.async.bulk.tensor.3d: ROWS query rows of one head, from `row` on. */
__device__ __forceinline__ void tma_load_queries(uint32_t dst, const CUtensorMap *map, int row, int head, uint32_t bar)
{
    asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], "
                 "[%1, {%2, %3, %4}], [%5];" ::"r"(dst),
                 "l"(map), "r"(0), "r"(row), "r"(2 * head), "r"(bar)
                 : "memory");
}

/* cp.async.bulk.tensor.4d: one half of the elements of tail_rows query rows of each head from `head` on, which share a
 * KV head. */
__device__ __forceinline__ void tma_load_tail_queries(uint32_t dst, const CUtensorMap *map, int row, int head, int half,
                                                      uint32_t bar)
{
    asm volatile("cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], "
                 "[%1, {%2, %3, %4, %5}], [%6];" ::"r"(dst),
                 "l"(map), "r"(0), "r"(row), "r"(head), "r"(half), "r"(bar)
                 : "memory");
}

/* wgmma.m64n128k16: d[64 x 128] = or += q k^T over 16 elements of the head. Both operands are in shared memory with the
 * head's elements contiguous. keep 0: d is overwritten. */
__device__ __forceinline__ void wgmma_ss(float (&d)[64], uint64_t a, uint64_t b, int keep)
{
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %66, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {" WG_N64 "}, %64, %65, p, 1, 1, 0, 0;\n}"
                 : WG_R64(d, 0)
                 : "l"(a), "l"(b), "r"(keep));
}
/* wgmma.m64n128k16: d[64 x 128] += p v over 16 keys. p is in registers, v in shared memory with the head's elements
 * contiguous. */
__device__ __forceinline__ void wgmma_rs(float (&d)[64], const uint32_t *a, uint64_t b)
{
    asm volatile("wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {" WG_N64
                 "}, {%64,%65,%66,%67}, %68, 1, 1, 1, 1;"
                 : WG_R64(d, 0)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

struct params {
    bf16 *o;
    cu_step_arrays arrays;
    int H, G, B_log2, n_tiles;        /* n_tiles: tiles of query rows in the step; of tails: splits */
    int tail_rows;                    /* cu_attn_tail_rows */
    int groups_per_page, layer_group; /* groups in a page; groups from the start of a page to the layer */
    int *job_counters;                /* as in cu_prefill_plan */
    float scale_log2;                 /* log2(e) / sqrt(DH) */
    cu_tail_partials part;
    bool merged; /* tails: a merging kernel follows */
};

/* The description of a job, given its number. Jobs are numbered from the last tile of query rows to the first. */
__device__ __forceinline__ void describe_job(const params &P, int job, job_desc<false> &w)
{
    int tile = P.n_tiles - 1 - job / P.H, row0 = P.arrays.tile_row[tile];
    w.req = P.arrays.tile_req[tile];
    w.head = job % P.H;
    int q0 = P.arrays.q_start[w.req], q_len = P.arrays.q_start[w.req + 1] - q0;
    w.row = q0 + row0;
    w.rows = min((int)ROWS, q_len - row0);
    w.pos = P.arrays.kv_len[w.req] - q_len + row0;
    w.stop = w.pos + w.rows;
    w.n_tiles = (w.stop + TILE_K - 1) / TILE_K;
}
/* The same for tails. The jobs of a tail are numbered by split, KV head and tile: jobs that read the same keys are
 * neighbours. */
__device__ __forceinline__ void describe_job(const params &P, int job, job_desc<true> &w)
{
    cu_tail tail = P.arrays.tails[job / P.G];
    int i = job - tail.first * P.G, row0 = i % tail.n_tiles * P.tail_rows, split = i / tail.n_tiles / P.G;
    w.head = i / tail.n_tiles % P.G;
    w.row = tail.row + row0;
    w.rows = min(P.tail_rows, tail.rows - row0);
    w.pos = tail.old + row0;
    w.stop = w.pos + w.rows;
    int key_tiles = (w.stop + TILE_K - 1) / TILE_K;
    w.begin = split * key_tiles / tail.n_splits;
    w.n_tiles = (split + 1) * key_tiles / tail.n_splits - w.begin;
    w.table_start = tail.table_start, w.old = tail.old;
    w.cell = tail.n_splits > 1 ? job : -1;
}

/* Copies the description of a job and its queries to shared memory, in lane 0. */
__device__ __forceinline__ void send_job(const job_desc<false> &w, const params &, const CUtensorMap *queries,
                                         job_desc<false> *shared, uint32_t base)
{
    *shared = w;
    mbar_expect_tx(base + smem_layout::Q_FULL, ROWS * DH * 2);
    tma_load_queries(base + smem_layout::Q, queries, w.row, w.head, base + smem_layout::Q_FULL);
}
__device__ __forceinline__ void send_job(const job_desc<true> &w, const params &P, const CUtensorMap *queries,
                                         job_desc<true> *shared, uint32_t base)
{
    int group = P.H / P.G;
    *shared = w;
    mbar_expect_tx(base + smem_layout::Q_FULL, group * P.tail_rows * DH * 2);
    for (int half = 0; half < 2; half++)
        tma_load_tail_queries(base + smem_layout::Q + half * Q_HALF, queries, w.row, w.head * group, half,
                              base + smem_layout::Q_FULL);
}

/* The producer warp. Lane i copies the i-th box of each tile, and reads the box's page id one tile in advance. The
 * first job of block b is job b. The producer describes this job before griddep_wait, while the kernel that computes
 * queries and keys still runs, because the step's arrays may be read without waiting (cu_fetch). A tail's keys that
 * earlier steps wrote are copied before griddep_wait, too, until the rings are full. */
template <bool TAIL>
__device__ __forceinline__ void produce(const params &P, const CUtensorMap *pool, const CUtensorMap *queries,
                                        job_desc<TAIL> *shared, uint32_t base, int lane)
{
    int B = 1 << P.B_log2, box = min(B, (int)TILE_K), boxes = TILE_K / box, total = P.n_tiles * (TAIL ? P.G : P.H),
        n = 0;
    pipe_state t;
    if (TAIL && lane == 0)
        tma_prefetch_map(pool), tma_prefetch_map(queries);
    for (int job = blockIdx.x; job < total; n++) {
        job_desc<TAIL> w;
        describe_job(P, job, w);
        int kv_head, begin = 0, table_start;
        if constexpr (TAIL)
            kv_head = w.head, begin = w.begin, table_start = w.table_start;
        else
            kv_head = w.head / (P.H / P.G), table_start = P.arrays.table_start[w.req];
        const int32_t *table = P.arrays.table + table_start;
        int k_group = P.layer_group + kv_head * (B / 8), v_group = k_group + P.G * (B / 8);
        auto find_group = [&](int j) { /* after the last key, the last page again: a tile always has TILE_BYTES */
            int tok = min(j * TILE_K + lane * box, (w.stop - 1) / box * box);
            return lane < boxes ? table[tok >> P.B_log2] * P.groups_per_page + (tok & (B - 1)) / 8 : 0;
        };
        /* The next job's number. It is not needed before the end of this job, which hides the latency of the atomic. */
        auto take_job = [&] { return lane == 0 ? (int)gridDim.x + atomicAdd(P.job_counters, 1) : 0; };
        int last = begin + w.n_tiles - 1, next = find_group(last), q_tile = last;
        bool early = false; /* keys are copied before griddep_wait */
        if constexpr (TAIL)
            if (n == 0 && (last + 1) * TILE_K <= w.old)
                early = true, q_tile = max(begin, last - STAGES + 1);
        if (n == 0 && !early)
            griddep_wait();
        if (!early)
            job = take_job();
        for (int j = last; j >= begin; j--, t.next(STAGES)) {
            int group = next;
            if (j > begin)
                next = find_group(j - 1);
            for (int kv = 0; kv < 2; kv++) {
                uint32_t at = base + kv * (smem_layout::V - smem_layout::K) + t.stage * TILE_BYTES,
                         bar = base + kv * (smem_layout::V_FULL - smem_layout::K_FULL) + 8 * t.stage;
                mbar_wait(bar + smem_layout::K_EMPTY, t.parity ^ 1);
                if (lane == 0)
                    mbar_expect_tx(bar + smem_layout::K_FULL, TILE_BYTES);
                __syncwarp();
                if (lane < boxes)
                    tma_load_groups(at + smem_layout::K + lane * (box / 8) * GROUP_BYTES, pool,
                                    group + (kv ? v_group : k_group), bar + smem_layout::K_FULL);
                if (kv || j != q_tile)
                    continue;
                if (early) {
                    griddep_wait();
                    job = take_job();
                }
                /* The queries are copied after the first keys: the copy of the keys can start while the consumers still
                 * use the queries of the previous job. */
                mbar_wait(base + smem_layout::Q_EMPTY, (n & 1) ^ 1);
                if (lane == 0)
                    send_job(w, P, queries, shared, base);
                __syncwarp();
            }
        }
        job = __shfl_sync(~0u, job, 0);
    }
    mbar_wait(base + smem_layout::Q_EMPTY, (n & 1) ^ 1);
    if (lane)
        return;
    shared->n_tiles = 0;
    mbar_arrive(base + smem_layout::Q_FULL);
    if (atomicAdd(P.job_counters + 1, 1) == (int)gridDim.x - 1) /* the last block to finish resets the counters */
        P.job_counters[0] = P.job_counters[1] = 0;
}

/* The online softmax of one tile: replaces the scores s by probabilities, and updates maximum and sum of the rows. fix:
 * the factor by which the caller must scale the output so far. edge: some row does not see all keys. key0, pos:
 * positions of the tile's first key and of the lane's rows. */
__device__ __forceinline__ void update_softmax(float (&s)[64], float (&top)[2], float (&sum)[2], float (&fix)[2],
                                               float scale, bool edge, int key0, const int (&pos)[2], int t)
{
#pragma unroll
    for (int h = 0; h < 2; h++) {
        float mx = top[h];
        if (edge) {
#pragma unroll
            for (int n = 0; n < 16; n++)
#pragma unroll
                for (int e = 0; e < 2; e++)
                    if (key0 + n * 8 + 2 * t + e > pos[h])
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

/* Packs the probabilities of a tile into A fragments of wgmma_rs. */
__device__ __forceinline__ void pack_fragments(const float (&s)[64], uint32_t (&p)[32])
{
#pragma unroll
    for (int k = 0; k < 8; k++) { /* the accumulators of 16 keys are one fragment */
        p[4 * k] = pack_bf16(s[8 * k], s[8 * k + 1]);
        p[4 * k + 1] = pack_bf16(s[8 * k + 2], s[8 * k + 3]);
        p[4 * k + 2] = pack_bf16(s[8 * k + 4], s[8 * k + 5]);
        p[4 * k + 3] = pack_bf16(s[8 * k + 6], s[8 * k + 7]);
    }
}

/* Starts s = q k^T of 64 rows and 128 keys; q and k are shared-memory addresses. */
__device__ __forceinline__ void multiply_keys(float (&s)[64], uint32_t q, uint32_t k)
{
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < DH / 16; i++) {
        int half = i / 4, offset = i % 4 * 32;
        wgmma_ss(s, wgmma_desc(q + half * Q_HALF + offset, 16, 1024),
                 wgmma_desc(k + half * HALF_GROUP + offset, 16, GROUP_BYTES), i > 0);
    }
    wgmma_commit();
}

/* Starts acc += p v of 64 rows and 128 keys; v is a shared-memory address. */
__device__ __forceinline__ void multiply_values(float (&acc)[64], const uint32_t (&p)[32], uint32_t v)
{
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < TILE_K / 16; i++)
        wgmma_rs(acc, p + 4 * i, wgmma_desc(v + i * 2 * GROUP_BYTES, HALF_GROUP, GROUP_BYTES));
    wgmma_commit();
}

/* Sets the values of tokens [from, TILE_K) of a tile to zero. All consumer threads take part and wait for each
 * other. */
__device__ __forceinline__ void zero_tail(char *v, int from, int tid)
{
    for (int i = tid; i < (TILE_K - from) * 16; i += 32 * WARPS) {
        int token = from + i / 16, half = i / 8 % 2;
        *reinterpret_cast<uint4 *>(v + token / 8 * GROUP_BYTES + half * HALF_GROUP + token % 8 * 128 + i % 8 * 16) =
            make_uint4(0, 0, 0, 0);
    }
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    asm volatile("bar.sync 1, %0;" ::"n"(32 * WARPS) : "memory");
}

/* The output of a lane's two rows, unnormalised, and maximum and sum of their online softmax. The rows are lane / 4 and
 * lane / 4 + 8 of the warp's 16 rows. */
struct softmax_state {
    float acc[64], top[2], sum[2];
};

/* Writes row h (0 or 1) of a lane's two rows to o, whose row is `row` of a query head. l: sum of the softmax. */
__device__ __forceinline__ void store_row(const params &P, const softmax_state &a, int h, float l, int row, int head,
                                          int t)
{
    float inv = 1 / l;
    bf16 *dst = P.o + ((size_t)row * P.H + head) * DH + 2 * t;
#pragma unroll
    for (int n = 0; n < 16; n++)
        *reinterpret_cast<uint32_t *>(dst + n * 8) =
            pack_bf16(a.acc[4 * n + 2 * h] * inv, a.acc[4 * n + 2 * h + 1] * inv);
}

/* Writes row h of a lane's two rows to a partial: row i of a cell. */
__device__ __forceinline__ void store_partial(const params &P, const softmax_state &a, int h, float l, int cell, int i,
                                              int t)
{
    size_t at = (size_t)cell * ROWS + i;
    float *dst = P.part.o + at * DH + 2 * t;
#pragma unroll
    for (int n = 0; n < 16; n++)
        *reinterpret_cast<float2 *>(dst + n * 8) = make_float2(a.acc[4 * n + 2 * h], a.acc[4 * n + 2 * h + 1]);
    if (t == 0)
        P.part.ml[at] = make_float2(a.top[h] * P.scale_log2, l);
}

/* Writes a lane's rows. first: the lane's first row within the job. */
template <bool TAIL>
__device__ __forceinline__ void store_rows(const params &P, const job_desc<TAIL> &w, const softmax_state &a, int first,
                                           int t)
{
#pragma unroll
    for (int h = 0; h < 2; h++) {
        float l = a.sum[h];
        l += __shfl_xor_sync(~0u, l, 1);
        l += __shfl_xor_sync(~0u, l, 2);
        int i = first + 8 * h;
        if constexpr (TAIL) {
            int head = i / P.tail_rows, row = i % P.tail_rows, group = P.H / P.G;
            if (row >= w.rows || head >= group)
                continue;
            if (w.cell < 0)
                store_row(P, a, h, l, w.row + row, w.head * group + head, t);
            else
                store_partial(P, a, h, l, w.cell, i, t);
        } else if (i < w.rows)
            store_row(P, a, h, l, w.row + i, w.head, t);
    }
}

/* Reads the job's description in lane 0 and passes it to the other lanes. Lane 0 is also the lane that arrives at
 * Q_EMPTY: so it has read the description before the producer may overwrite it. */
template <bool TAIL> __device__ __forceinline__ job_desc<TAIL> read_job(const job_desc<TAIL> *shared, int lane)
{
    enum { N = sizeof(job_desc<TAIL>) / sizeof(int) };
    union {
        job_desc<TAIL> job;
        int32_t word[N];
    } w;
    if (lane == 0)
        w.job = *shared;
#pragma unroll
    for (int i = 0; i < N; i++)
        w.word[i] = __shfl_sync(~0u, w.word[i], 0);
    return w.job;
}

/* The functions below are the steps of `consume`. `at` is a position in the rings. */

/* Waits for the keys at `at` and starts s = q k^T. */
__device__ __forceinline__ void start_scores(float (&s)[64], uint32_t q, uint32_t base, pipe_state at)
{
    mbar_wait(base + smem_layout::K_FULL + 8 * at.stage, at.parity);
    multiply_keys(s, q, base + smem_layout::K + at.stage * TILE_BYTES);
}

/* Starts acc += p v. The values at `at` have arrived. */
__device__ __forceinline__ void start_values(float (&acc)[64], const uint32_t (&p)[32], uint32_t base, pipe_state at)
{
    multiply_values(acc, p, base + smem_layout::V + at.stage * TILE_BYTES);
}

__device__ __forceinline__ void wait_for_values(uint32_t base, pipe_state at)
{
    mbar_wait(base + smem_layout::V_FULL + 8 * at.stage, at.parity);
}

/* The warp's arrival, by one lane. */
__device__ __forceinline__ void arrive(uint32_t bar, int lane)
{
    if (lane == 0)
        mbar_arrive(bar);
}

/* Releases the keys at `at`, and after the last multiplication with the queries also the queries. */
__device__ __forceinline__ void release_keys(uint32_t base, pipe_state at, bool last, int lane)
{
    arrive(base + smem_layout::K_EMPTY + 8 * at.stage, lane);
    if (last)
        arrive(base + smem_layout::Q_EMPTY, lane);
}

/* Scales the output to the new maximum. Skipped if the maximum of no row of the warp has changed. */
__device__ __forceinline__ void scale_output(float (&acc)[64], const float (&fix)[2])
{
    if (__any_sync(~0u, fix[0] != 1 || fix[1] != 1)) {
#pragma unroll
        for (int i = 0; i < 64; i++)
            acc[i] *= fix[i / 2 % 2];
    }
}

/* A consumer thread: processes jobs until a job has no tiles. tid in [0, 32 * WARPS). */
template <bool TAIL>
__device__ __forceinline__ void consume(const params &P, const job_desc<TAIL> *shared, char *smem, uint32_t base,
                                        int tid)
{
    int wg = tid / 128, lane = tid % 32, t = lane % 4, first = tid / 32 * 16 + lane / 4; /* first: of the lane's rows */
    uint32_t q = base + smem_layout::Q + wg * 64 * 128;
    pipe_state now;
    for (int n = 0;; n++) {
        mbar_wait(base + smem_layout::Q_FULL, n & 1);
        const job_desc<TAIL> w = read_job(shared, lane);
        if (!w.n_tiles)
            return;
        int pos[2] = {w.pos + first, w.pos + first + 8}, sees = w.pos + wg * 64 + 1, begin = 0;
        if constexpr (TAIL)
            pos[0] = w.pos + first % P.tail_rows, pos[1] = w.pos + (first + 8) % P.tail_rows, sees = w.pos + 1,
            begin = w.begin;
        float s[64], fix[2];
        uint32_t p[32];
        softmax_state a;
#pragma unroll
        for (int i = 0; i < 64; i++)
            a.acc[i] = 0;
        a.top[0] = a.top[1] = -INFINITY;
        a.sum[0] = a.sum[1] = 0;

        int j = begin + w.n_tiles - 1;
        start_scores(s, q, base, now);
        wgmma_wait<0>();
        release_keys(base, now, j == begin, lane);
        update_softmax(s, a.top, a.sum, fix, P.scale_log2, (j + 1) * TILE_K > sees, j * TILE_K, pos, t);
        pack_fragments(s, p);
        wait_for_values(base, now);
        if (w.stop - j * TILE_K < TILE_K)
            zero_tail(smem + smem_layout::V + now.stage * TILE_BYTES, w.stop - j * TILE_K, tid);

        while (--j >= begin) { /* scores of tile j; output of tile j + 1, which is at `previous` */
            pipe_state previous = now;
            now.next(STAGES);
            start_scores(s, q, base, now);
            wait_for_values(base, previous);
            start_values(a.acc, p, base, previous);
            wgmma_wait<1>(); /* the scores */
            release_keys(base, now, j == begin, lane);
            update_softmax(s, a.top, a.sum, fix, P.scale_log2, (j + 1) * TILE_K > sees, j * TILE_K, pos, t);
            wgmma_wait<0>(); /* the output */
            arrive(base + smem_layout::V_EMPTY + 8 * previous.stage, lane);
            scale_output(a.acc, fix);
            pack_fragments(s, p);
        }
        wait_for_values(base, now);
        start_values(a.acc, p, base, now);
        wgmma_wait<0>();
        arrive(base + smem_layout::V_EMPTY + 8 * now.stage, lane);
        now.next(STAGES);
        store_rows(P, w, a, first, t);
    }
}

/* Grid: one thread block per SM, or fewer. setmaxnreg moves registers from the producer's warps to the consumers. */
template <bool TAIL>
__global__ void __launch_bounds__(THREADS, 1)
    attn_prefill_sm90_kernel(const params P, const __grid_constant__ CUtensorMap pool,
                             const __grid_constant__ CUtensorMap queries)
{
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    extern __shared__ __align__(1024) char smem[];
    uint32_t base = smem_u32(smem);
    job_desc<TAIL> *shared = reinterpret_cast<job_desc<TAIL> *>(smem + smem_layout::JOB);
    if (threadIdx.x == 0) {
        for (int i = 0; i < 2 * STAGES; i++) {
            mbar_init(base + smem_layout::K_FULL + 8 * i, 1);
            mbar_init(base + smem_layout::K_EMPTY + 8 * i, WARPS);
        }
        mbar_init(base + smem_layout::Q_FULL, 1);
        mbar_init(base + smem_layout::Q_EMPTY, WARPS);
        mbar_init_fence();
    }
    __syncthreads();
    /* All thread blocks are running: the next GEMM may start to load its weights. A merging kernel starts when all
     * blocks have ended, because its blocks would otherwise gather on the SMs that become free first. An early start
     * gained nothing (results/SPEED.md, T3). */
    if (!TAIL || !P.merged)
        griddep_launch();
    if (threadIdx.x >= 32 * WARPS) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
        if (threadIdx.x < 32 * (WARPS + 1))
            produce(P, &pool, &queries, shared, base, threadIdx.x % 32);
    } else {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
        consume(P, shared, smem, base, threadIdx.x);
    }
#endif
}

} // namespace

bool cu_attn_prefill_sm90_usable(const cu_dims &m)
{
    return m.arch == 90 && m.d == DH && m.B >= 8;
}

int cu_attn_prefill_sm90_plan(cu_prefill_plan *p, const cu_dims &m, const bf16 *pool, int n_pages, const bf16 *qkv,
                              int max_tokens, int *job_counters, struct km_err *err)
{
    uint64_t heads = (uint64_t)(m.H + 2 * m.G), columns = heads * DH,
             groups = (uint64_t)n_pages * m.L * 2 * m.G * m.B / 8, T = (uint64_t)max_tokens;
    uint64_t kv[4] = {64, 8, 2, groups}, kv_strides[3] = {DH * 2, 128, GROUP_BYTES};
    uint64_t q[3] = {64, T, columns / 64}, q_strides[2] = {columns * 2, 128};
    uint64_t tail[4] = {64, T, heads, 2}, tail_strides[3] = {columns * 2, DH * 2, 128};
    uint32_t kv_box[4] = {64, 8, 2, (uint32_t)(m.B < TILE_K ? m.B : TILE_K) / 8}, q_box[3] = {64, ROWS, 2},
             tail_box[4] = {64, (uint32_t)cu_attn_tail_rows(m), (uint32_t)(m.H / m.G), 1};
    p->job_counters = job_counters;
    int rc = cu_tensor_map(p->pool, pool, 4, kv, kv_strides, kv_box, err);
    rc = rc ? rc : cu_tensor_map(p->queries, qkv, 3, q, q_strides, q_box, err);
    return rc ? rc : cu_tensor_map(p->tail_queries, qkv, 4, tail, tail_strides, tail_box, err);
}

/* Launches the kernel. P: o, n_tiles and the members for tails are set. */
template <bool TAIL>
static void launch(const cu_dims &m, const cu_prefill_plan &p, const cu_step_arrays &in, int layer, params P,
                   cudaStream_t s)
{
    CUtensorMap pool, queries;
    static_assert(sizeof pool == sizeof p.pool, "tensor map");
    memcpy(&pool, p.pool, sizeof pool);
    memcpy(&queries, TAIL ? p.tail_queries : p.queries, sizeof queries);
    P.arrays = in;
    P.H = m.H;
    P.G = m.G;
    P.B_log2 = m.B_log2;
    P.groups_per_page = m.L * 2 * m.G * m.B / 8;
    P.layer_group = layer * 2 * m.G * m.B / 8;
    P.job_counters = p.job_counters;
    P.scale_log2 = 1.4426950408889634f / sqrtf((float)DH);
    int size = smem_layout::SIZE, jobs = P.n_tiles * (TAIL ? m.G : m.H);
    cudaFuncSetAttribute(attn_prefill_sm90_kernel<TAIL>, cudaFuncAttributeMaxDynamicSharedMemorySize, size);
    cu_launch(attn_prefill_sm90_kernel<TAIL>, dim3((unsigned)(jobs < m.n_sms ? jobs : m.n_sms)), THREADS, (size_t)size,
              s, P, pool, queries);
}

void cu_attn_prefill_sm90(const cu_dims &m, const cu_prefill_plan &p, const cu_step_arrays &in, int n_tiles, int layer,
                          bf16 *o, cudaStream_t s)
{
    params P = {};
    P.o = o;
    P.n_tiles = n_tiles;
    launch<false>(m, p, in, layer, P, s);
}

void cu_attn_tails_split(const cu_dims &m, const cu_prefill_plan &p, const cu_step_arrays &in,
                         const cu_step_counts &counts, int layer, const cu_tail_partials &part, bf16 *o, cudaStream_t s)
{
    static_assert((int)TILE_K == (int)CU_TAIL_KEYS, "key tiles");
    params P = {};
    P.o = o;
    P.n_tiles = counts.n_tail_splits;
    P.tail_rows = cu_attn_tail_rows(m);
    P.part = part;
    P.merged = counts.n_tail_merges > 0;
    launch<true>(m, p, in, layer, P, s);
}
