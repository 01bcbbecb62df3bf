/* The next token of each row, as the reference sampler chooses it (engine/sample.h): the largest logit, or the
 * winner of the race among the ids that the filters leave. Two kernels, four bytes a row come back.
 *
 * cut_kernel, a block a row that has filters, finds the smallest value that may win. A histogram of how far each
 * value is below the largest, counts and masses, tells in which bin top_k and top_p fall; that bin alone is sorted.
 * A bin too full to sort (nearly flat logits) leaves the row to the reference sampler on the host.
 *
 * race_kernel, several blocks a row since one would read 600 KB for longer than a layer takes, finds the best
 * score; the last block of a row merges. */
#include "engine/cuda/cu.h"
#include "engine/cuda/ptx.cuh"

#include <float.h>
#include <math.h>

namespace {

enum { PARTS = 32, RACE_THREADS = 256, AHEAD = 4 };
enum { CUT_THREADS = 1024, BINS = 1024, BINS_A_NAT = 32, LIST = 4096 };

struct best {
    float score;
    int id; /* the lowest among equals; INT32_MAX: none */
};

/* What may win: values above least, and those equal to it with ids up to last. last < 0: the host decides. */
struct cut {
    float least;
    int last;
};

__device__ __forceinline__ best better(best a, best b)
{
    return b.score > a.score || (b.score == a.score && b.id < a.id) ? b : a;
}

/* A row's values as the draw sees them. */
struct values {
    const float *logits;
    float scale;
    const int32_t *ban;
    int n_ban;

    __device__ __forceinline__ values(const float *all, int V, const cu_step_arrays &meta, int row)
        : logits(all + (size_t)row * V), scale(meta.draws[row].scale), ban(meta.ban + meta.ban_start[row]),
          n_ban(meta.ban_start[row + 1] - meta.ban_start[row])
    {
    }
    __device__ __forceinline__ float at(int i) const
    {
        return of(i, logits[i]);
    }
    __device__ __forceinline__ float of(int i, float logit) const
    {
        float v = __fdiv_rn(logit, scale);
        for (int k = 0; k < n_ban; k++)
            if (ban[k] == i)
                v = -INFINITY;
        return v;
    }
};

/* ---- the cut ---- */

struct shared {
    unsigned long long mass[BINS]; /* of exp(v - top), in units of 2^-32; then sums from bin 0 on */
    int count[BINS];
    float2 list[LIST]; /* value, id; best first once sorted */
    int n_list;
    float part[32];
    unsigned long long sums[32];
    int pick;
};

__device__ __forceinline__ unsigned long long mass_of(float v, float top)
{
    return (unsigned long long)((double)expf(v - top) * 4294967296.0);
}

__device__ __forceinline__ int bin_of(float v, float top)
{
    return min(BINS - 1, (int)((top - v) * BINS_A_NAT));
}

__device__ float block_max(float v, float *part)
{
    v = warp_max(v);
    if (threadIdx.x % 32 == 0)
        part[threadIdx.x / 32] = v;
    __syncthreads();
    return warp_max(part[threadIdx.x % 32]);
}

/* The sum over the threads up to and including this one. */
template <typename T> __device__ T block_scan(T v, T *part)
{
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    for (int o = 1; o < 32; o <<= 1) {
        T w = __shfl_up_sync(~0u, v, o);
        if (lane >= o)
            v += w;
    }
    __syncthreads();
    if (lane == 31)
        part[warp] = v;
    __syncthreads();
    for (int w = 0; w < warp; w++)
        v += part[w];
    return v;
}

/* The values of one bin into the list, the largest first, the lower id first among equals; false when they are too
 * many. */
__device__ bool sort_bin(shared &s, const values &row, int V, float top, float least, int bin)
{
    __syncthreads();
    if (threadIdx.x == 0)
        s.n_list = 0;
    __syncthreads();
    for (int i = threadIdx.x; i < V; i += CUT_THREADS) {
        float v = row.at(i);
        if (!(v >= least) || bin_of(v, top) != bin)
            continue;
        int at = atomicAdd(&s.n_list, 1);
        if (at < LIST)
            s.list[at] = make_float2(v, __int_as_float(i));
    }
    __syncthreads();
    if (s.n_list > LIST)
        return false;
    int n = 32;
    while (n < s.n_list)
        n *= 2;
    for (int i = s.n_list + threadIdx.x; i < n; i += CUT_THREADS)
        s.list[i] = make_float2(-INFINITY, __int_as_float(INT32_MAX));
    for (int size = 2; size <= n; size *= 2) /* bitonic */
        for (int step = size / 2; step; step /= 2) {
            __syncthreads();
            for (int i = threadIdx.x; i < n / 2; i += CUT_THREADS) {
                int a = i / step * step * 2 + i % step, b = a + step;
                float2 x = s.list[a], y = s.list[b];
                bool swap = y.x > x.x || (y.x == x.x && __float_as_int(y.y) < __float_as_int(x.y));
                if (swap == !(a & size)) {
                    s.list[a] = y;
                    s.list[b] = x;
                }
            }
        }
    __syncthreads();
    return true;
}

/* The first bin whose running total reaches `want`; of(bin) is that total. */
template <typename T> __device__ int first_bin(shared &s, const T *total, T want)
{
    __syncthreads();
    if (threadIdx.x == 0)
        s.pick = BINS - 1;
    __syncthreads();
    if (total[threadIdx.x] >= want)
        atomicMin(&s.pick, (int)threadIdx.x);
    __syncthreads();
    return s.pick;
}

__device__ cut find_cut(shared &s, const values &row, int V, const cu_sampling &d)
{
    const cut unknown = {0, -1};
    float mine = -INFINITY;
    for (int i = threadIdx.x; i < V; i += CUT_THREADS)
        mine = fmaxf(mine, row.at(i));
    float top = block_max(mine, s.part);
    if (!(top > -INFINITY && top < INFINITY))
        return unknown;
    cut c = {d.min_p > 0 ? top + logf(d.min_p) : -FLT_MAX, INT32_MAX};
    if (d.top_k <= 0 && d.top_p >= 1)
        return c;

    s.mass[threadIdx.x] = 0;
    s.count[threadIdx.x] = 0;
    __syncthreads();
    for (int i = threadIdx.x; i < V; i += CUT_THREADS) {
        float v = row.at(i);
        if (!(v >= c.least))
            continue;
        int bin = bin_of(v, top);
        atomicAdd(&s.count[bin], 1);
        if (d.top_p < 1)
            atomicAdd(&s.mass[bin], mass_of(v, top));
    }
    __syncthreads();
    int count = block_scan(s.count[threadIdx.x], reinterpret_cast<int *>(s.part));
    unsigned long long mass = block_scan(s.mass[threadIdx.x], s.sums);
    __syncthreads();
    s.count[threadIdx.x] = count;
    s.mass[threadIdx.x] = mass;
    __syncthreads();

    int sorted = -1;
    unsigned long long all = s.mass[BINS - 1];
    if (d.top_k > 0 && d.top_k < s.count[BINS - 1]) {
        sorted = first_bin(s, s.count, d.top_k);
        if (!sort_bin(s, row, V, top, c.least, sorted))
            return unknown;
        c.least = s.list[d.top_k - 1 - (sorted ? s.count[sorted - 1] : 0)].x; /* all of its equals stay */
        all = sorted ? s.mass[sorted - 1] : 0;
        for (int i = 0; i < s.n_list && s.list[i].x >= c.least; i++)
            all += mass_of(s.list[i].x, top);
    }
    if (d.top_p >= 1)
        return c;
    unsigned long long want = (unsigned long long)((double)all * d.top_p);
    int bin = first_bin(s, s.mass, want > 0 ? want : 1ull);
    if (sorted >= 0 && bin > sorted)
        bin = sorted;
    if (bin != sorted && !sort_bin(s, row, V, top, c.least, bin))
        return unknown;
    /* Down the sorted bin until the mass is reached: LIST / CUT_THREADS neighbours a thread, then over the threads. */
    enum { EACH = LIST / CUT_THREADS };
    unsigned long long sum = 0;
    for (int k = 0; k < EACH; k++) {
        int i = threadIdx.x * EACH + k;
        sum += i < s.n_list && s.list[i].x >= c.least ? mass_of(s.list[i].x, top) : 0;
    }
    unsigned long long upto = block_scan(sum, s.sums) - sum + (bin ? s.mass[bin - 1] : 0);
    __syncthreads();
    if (threadIdx.x == 0)
        s.pick = INT32_MAX;
    __syncthreads();
    for (int k = 0; k < EACH; k++) {
        int i = threadIdx.x * EACH + k;
        if (i >= s.n_list || !(s.list[i].x >= c.least))
            break;
        upto += mass_of(s.list[i].x, top);
        if (upto >= want) {
            atomicMin(&s.pick, i);
            break;
        }
    }
    __syncthreads();
    return s.pick == INT32_MAX ? c : cut{s.list[s.pick].x, __float_as_int(s.list[s.pick].y)};
}

__global__ void __launch_bounds__(CUT_THREADS, 1) cut_kernel(const float *logits, int V, cu_step_arrays meta, cut *out)
{
    extern __shared__ __align__(16) char smem[];
    griddep_wait();
    griddep_launch();
    int row = blockIdx.x;
    const cu_sampling d = meta.draws[row];
    cut c = {-FLT_MAX, INT32_MAX};
    if (d.filtered)
        c = find_cut(*reinterpret_cast<shared *>(smem), values(logits, V, meta, row), V, d);
    if (threadIdx.x == 0)
        out[row] = c;
}

/* ---- the race ---- */

/* Over 0 .. 1, open: the reference sampler's clock turned into a score. */
__device__ __forceinline__ float noise(uint64_t key, int id)
{
    float u = ((float)smp_bits(key, (uint32_t)id) + 0.5f) * 0x1p-32f;
    return -logf(-log1pf(-fminf(u, 0x1.fffffep-1f)));
}

__global__ void __launch_bounds__(RACE_THREADS)
    race_kernel(const float *logits, int V, cu_step_arrays meta, const cut *cuts, best *found, int *arrived, int32_t *out,
                int32_t *told)
{
    griddep_wait();
    griddep_launch();
    int row = blockIdx.y, part = blockIdx.x, per = (V + PARTS - 1) / PARTS, end = min(V, (part + 1) * per);
    const cu_sampling d = meta.draws[row];
    const values v(logits, V, meta, row);
    const cut c = cuts[row];
    best mine = {-INFINITY, INT32_MAX};
    for (int from = part * per + threadIdx.x; from < end; from += AHEAD * RACE_THREADS) {
        float logit[AHEAD];
#pragma unroll
        for (int k = 0; k < AHEAD; k++)
            logit[k] = from + k * RACE_THREADS < end ? v.logits[from + k * RACE_THREADS] : -INFINITY;
#pragma unroll
        for (int k = 0; k < AHEAD; k++) {
            int i = from + k * RACE_THREADS;
            float x = v.of(i, logit[k]);
            if (!(x > -INFINITY))
                continue;
            if (!d.greedy) {
                if (!(x >= c.least) || (x == c.least && i > c.last) ||
                    x + 23 <= mine.score) /* noise is at most 22.9 */
                    continue;
                x += noise(d.key, i);
            }
            mine = better(mine, best{x, i});
        }
    }
    __shared__ best of_warp[RACE_THREADS / 32];
    __shared__ bool last;
    auto merge_lanes = [](best b) {
        for (int o = 16; o; o >>= 1)
            b = better(b, best{__shfl_xor_sync(~0u, b.score, o), __shfl_xor_sync(~0u, b.id, o)});
        return b;
    };
    mine = merge_lanes(mine);
    if (threadIdx.x % 32 == 0)
        of_warp[threadIdx.x / 32] = mine;
    __syncthreads();
    if (threadIdx.x == 0) {
        for (int w = 1; w < RACE_THREADS / 32; w++)
            mine = better(mine, of_warp[w]);
        found[row * PARTS + part] = mine;
        __threadfence();
        last = atomicAdd(&arrived[row], 1) == PARTS - 1;
        __threadfence();
    }
    __syncthreads();
    if (!last || threadIdx.x >= 32)
        return;
    static_assert(PARTS == 32, "a lane a part");
    float2 f = __ldcg(reinterpret_cast<const float2 *>(found + row * PARTS) + threadIdx.x);
    mine = merge_lanes(best{f.x, __float_as_int(f.y)});
    if (threadIdx.x == 0) {
        out[row] = told[row] = c.last < 0 ? -1 : mine.id == INT32_MAX ? 0 : mine.id;
        arrived[row] = 0;
    }
}

} // namespace

/* found, cuts, arrived */
size_t cu_sample_work(int rows)
{
    return (size_t)rows * (PARTS * sizeof(best) + sizeof(cut) + sizeof(int));
}

void cu_sample(const float *logits, int S, int V, const cu_step_arrays &meta, int max_rows, void *work, int32_t *out,
               int32_t *told, cudaStream_t s)
{
    best *found = static_cast<best *>(work);
    cut *cuts = reinterpret_cast<cut *>(found + (size_t)max_rows * PARTS);
    int *arrived = reinterpret_cast<int *>(cuts + max_rows);
    cudaFuncSetAttribute(cut_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)sizeof(shared));
    cu_launch(cut_kernel, dim3((unsigned)S), CUT_THREADS, sizeof(shared), s, logits, V, meta, cuts);
    cu_launch(race_kernel, dim3(PARTS, (unsigned)S), RACE_THREADS, 0, s, logits, V, meta, cuts, found, arrived,
              out, told);
}
