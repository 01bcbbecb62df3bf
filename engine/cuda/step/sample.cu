/* Samples the next token of each row as the reference sampler does (engine/sample.h). A greedy row gets the id with the
 * largest logit. Any other row gets the id with the largest score (value plus Gumbel noise) among the ids that pass
 * top_k, top_p and min_p. A value is a logit divided by the temperature.
 *
 * filter_kernel, one thread block per row, turns the row's filters into one threshold: the smallest value that passes.
 * A histogram of the values, by their distance from the largest value, has counts and probability masses. It shows in
 * which bin the threshold of top_k or top_p is. Only that bin is sorted. If the bin has more values than the list holds
 * (nearly flat logits), the reference sampler must sample the row on the host.
 *
 * argmax_kernel, BLOCKS thread blocks per row, finds the best score. One block alone would need longer to read the
 * 600 KB of a row than a layer takes. The last block of a row to finish merges the blocks' results. */
#include "engine/cuda/ptx.cuh"
#include "engine/cuda/step/sample.h"

#include <float.h>
#include <math.h>

namespace {

enum { BLOCKS = 32 /* per row */, ARGMAX_THREADS = 256, LOADS = 4 /* in flight per thread */ };
enum { FILTER_THREADS = 1024, BINS = 1024, BINS_PER_NAT = 32 /* per unit of value */, LIST = 4096 };

/* The best id of some ids. */
struct candidate {
    float score;
    int id; /* the lowest id of equal scores; INT32_MAX: none */
};

/* The ids that pass a row's filters: those with a value above `least`, and those with a value equal to it and an id up
 * to `last`. last < 0: the filters could not be evaluated, and the host must sample the row. */
struct threshold {
    float least;
    int last;
};

__device__ __forceinline__ candidate better(candidate a, candidate b)
{
    return b.score > a.score || (b.score == a.score && b.id < a.id) ? b : a;
}

/* The values of a row. Banned ids have minus infinity. */
struct row_values {
    const float *logits;
    float scale;
    const int32_t *ban;
    int n_ban;

    __device__ __forceinline__ row_values(const float *all, int V, const cu_step_arrays &in, int row)
        : logits(all + (size_t)row * V), scale(in.sampling[row].scale), ban(in.ban + in.ban_start[row]),
          n_ban(in.ban_start[row + 1] - in.ban_start[row])
    {
    }
    __device__ __forceinline__ float at(int i) const
    {
        return of(i, logits[i]);
    }
    /* The value of id i, whose logit is known. */
    __device__ __forceinline__ float of(int i, float logit) const
    {
        float v = __fdiv_rn(logit, scale);
        for (int k = 0; k < n_ban; k++)
            if (ban[k] == i)
                v = -INFINITY;
        return v;
    }
};

/* ---- the filters ---- */

/* Shared memory of filter_kernel. Bin 0 has the largest values. */
struct filter_smem {
    unsigned long long mass[BINS]; /* sum of exp(v - top) in units of 2^-32; cumulative once the histogram is filled */
    int count[BINS];               /* number of values; cumulative like mass */
    float2 list[LIST];             /* [n_list] values and ids of one bin, the best first */
    int n_list;
    float part[32];              /* scratch memory of block_max and block_scan: a value of each warp */
    unsigned long long sums[32]; /* likewise, for masses */
    int found;                   /* result of first_bin and walk_bin */
};

/* The unnormalised probability of a value, in units of 2^-32. Sums of integers do not depend on their order. */
__device__ __forceinline__ unsigned long long mass_of(float v, float top)
{
    return (unsigned long long)((double)expf(v - top) * 4294967296.0);
}

__device__ __forceinline__ int bin_of(float v, float top)
{
    return min(BINS - 1, (int)((top - v) * BINS_PER_NAT));
}

/* The maximum over the thread block, in every thread. */
__device__ float block_max(float v, float *part)
{
    v = warp_max(v);
    if (threadIdx.x % 32 == 0)
        part[threadIdx.x / 32] = v;
    __syncthreads();
    return warp_max(part[threadIdx.x % 32]);
}

/* Inclusive prefix sum: the sum of v over the block's threads up to this one. */
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

/* Collects the values of one bin that are at least `least` in s.list, and sorts them: larger values first, and lower
 * ids first among equal values. False if the list cannot hold them. */
__device__ bool sort_bin(filter_smem &s, const row_values &row, int V, float top, float least, int bin)
{
    __syncthreads();
    if (threadIdx.x == 0)
        s.n_list = 0;
    __syncthreads();
    for (int i = threadIdx.x; i < V; i += FILTER_THREADS) {
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
    for (int i = s.n_list + threadIdx.x; i < n; i += FILTER_THREADS)
        s.list[i] = make_float2(-INFINITY, __int_as_float(INT32_MAX));
    for (int size = 2; size <= n; size *= 2) /* bitonic sort */
        for (int step = size / 2; step; step /= 2) {
            __syncthreads();
            for (int i = threadIdx.x; i < n / 2; i += FILTER_THREADS) {
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

/* The first bin whose cumulative total reaches `want`. */
template <typename T> __device__ int first_bin(filter_smem &s, const T *total, T want)
{
    __syncthreads();
    if (threadIdx.x == 0)
        s.found = BINS - 1;
    __syncthreads();
    if (total[threadIdx.x] >= want)
        atomicMin(&s.found, (int)threadIdx.x);
    __syncthreads();
    return s.found;
}

/* Fills s.count and s.mass, both cumulative, from the values that are at least `least`. masses: s.mass is needed. */
__device__ __forceinline__ void fill_histogram(filter_smem &s, const row_values &row, int V, float top, float least,
                                               bool masses)
{
    s.mass[threadIdx.x] = 0;
    s.count[threadIdx.x] = 0;
    __syncthreads();
    for (int i = threadIdx.x; i < V; i += FILTER_THREADS) {
        float v = row.at(i);
        if (!(v >= least))
            continue;
        int bin = bin_of(v, top);
        atomicAdd(&s.count[bin], 1);
        if (masses)
            atomicAdd(&s.mass[bin], mass_of(v, top));
    }
    __syncthreads();
    int count = block_scan(s.count[threadIdx.x], reinterpret_cast<int *>(s.part));
    unsigned long long mass = block_scan(s.mass[threadIdx.x], s.sums);
    __syncthreads();
    s.count[threadIdx.x] = count;
    s.mass[threadIdx.x] = mass;
    __syncthreads();
}

/* The threshold of top_p: the entry of the sorted bin at which the cumulative mass reaches `want`. Each thread sums
 * EACH neighbouring entries, and a scan over the threads gives the mass before each thread's first entry. c: the
 * threshold of the other filters; it is returned if the mass is never reached. */
__device__ __forceinline__ threshold walk_bin(filter_smem &s, threshold c, int bin, float top, unsigned long long want)
{
    enum { EACH = LIST / FILTER_THREADS };
    unsigned long long sum = 0;
    for (int k = 0; k < EACH; k++) {
        int i = threadIdx.x * EACH + k;
        sum += i < s.n_list && s.list[i].x >= c.least ? mass_of(s.list[i].x, top) : 0;
    }
    unsigned long long upto = block_scan(sum, s.sums) - sum + (bin ? s.mass[bin - 1] : 0);
    __syncthreads();
    if (threadIdx.x == 0)
        s.found = INT32_MAX;
    __syncthreads();
    for (int k = 0; k < EACH; k++) {
        int i = threadIdx.x * EACH + k;
        if (i >= s.n_list || !(s.list[i].x >= c.least))
            break;
        upto += mass_of(s.list[i].x, top);
        if (upto >= want) {
            atomicMin(&s.found, i);
            break;
        }
    }
    __syncthreads();
    return s.found == INT32_MAX ? c : threshold{s.list[s.found].x, __float_as_int(s.list[s.found].y)};
}

/* The threshold of a row's filters: min_p first, then top_k, then top_p of what top_k leaves. */
__device__ threshold find_threshold(filter_smem &s, const row_values &row, int V, const cu_sampling &p)
{
    const threshold unknown = {0, -1};
    float mine = -INFINITY;
    for (int i = threadIdx.x; i < V; i += FILTER_THREADS)
        mine = fmaxf(mine, row.at(i));
    float top = block_max(mine, s.part);
    if (!(top > -INFINITY && top < INFINITY))
        return unknown;
    threshold c = {p.min_p > 0 ? top + logf(p.min_p) : -FLT_MAX, INT32_MAX};
    if (p.top_k <= 0 && p.top_p >= 1)
        return c;

    fill_histogram(s, row, V, top, c.least, p.top_p < 1);
    int sorted = -1; /* the bin in s.list */
    unsigned long long all = s.mass[BINS - 1];
    if (p.top_k > 0 && p.top_k < s.count[BINS - 1]) {
        sorted = first_bin(s, s.count, p.top_k);
        if (!sort_bin(s, row, V, top, c.least, sorted))
            return unknown;
        c.least = s.list[p.top_k - 1 - (sorted ? s.count[sorted - 1] : 0)].x; /* values equal to the k-th pass too */
        all = sorted ? s.mass[sorted - 1] : 0;
        for (int i = 0; i < s.n_list && s.list[i].x >= c.least; i++)
            all += mass_of(s.list[i].x, top);
    }
    if (p.top_p >= 1)
        return c;
    unsigned long long want = (unsigned long long)((double)all * p.top_p);
    int bin = first_bin(s, s.mass, want > 0 ? want : 1ull);
    if (sorted >= 0 && bin > sorted)
        bin = sorted;
    if (bin != sorted && !sort_bin(s, row, V, top, c.least, bin))
        return unknown;
    return walk_bin(s, c, bin, top, want);
}

/* Grid: a thread block per row. out: [rows]. */
__global__ void __launch_bounds__(FILTER_THREADS, 1)
    filter_kernel(const float *logits, int V, cu_step_arrays in, threshold *out)
{
    extern __shared__ __align__(16) char smem[];
    griddep_wait();
    griddep_launch();
    int row = blockIdx.x;
    const cu_sampling p = in.sampling[row];
    threshold c = {-FLT_MAX, INT32_MAX};
    if (p.filtered)
        c = find_threshold(*reinterpret_cast<filter_smem *>(smem), row_values(logits, V, in, row), V, p);
    if (threadIdx.x == 0)
        out[row] = c;
}

/* ---- the argmax ---- */

/* Gumbel noise of an id, at most 22.9: -log(e), where e is the exponential variate of the reference sampler. */
__device__ __forceinline__ float gumbel_noise(uint64_t key, int id)
{
    float u = ((float)smp_bits(key, (uint32_t)id) + 0.5f) * 0x1p-32f;
    return -logf(-log1pf(-fminf(u, 0x1.fffffep-1f)));
}

__device__ __forceinline__ candidate best_of_warp(candidate b)
{
    for (int o = 16; o; o >>= 1)
        b = better(b, candidate{__shfl_xor_sync(~0u, b.score, o), __shfl_xor_sync(~0u, b.id, o)});
    return b;
}

/* Updates `mine`, this thread's best candidate, with every ARGMAX_THREADS-th id of [first, end). */
__device__ __forceinline__ void scan_ids(const row_values &v, const cu_sampling &p, const threshold &c, int first,
                                         int end, candidate &mine)
{
    for (int from = first; from < end; from += LOADS * ARGMAX_THREADS) {
        float logit[LOADS];
#pragma unroll
        for (int k = 0; k < LOADS; k++)
            logit[k] = from + k * ARGMAX_THREADS < end ? v.logits[from + k * ARGMAX_THREADS] : -INFINITY;
#pragma unroll
        for (int k = 0; k < LOADS; k++) {
            int i = from + k * ARGMAX_THREADS;
            float x = v.of(i, logit[k]);
            if (!(x > -INFINITY))
                continue;
            if (!p.greedy) {
                if (!(x >= c.least) || (x == c.least && i > c.last) ||
                    x + 23 <= mine.score) /* cannot win: noise is at most 22.9 */
                    continue;
                x += gumbel_noise(p.key, i);
            }
            mine = better(mine, candidate{x, i});
        }
    }
}

/* Grid: BLOCKS thread blocks by rows. found: [rows][BLOCKS], the candidate of each block. finished: [rows], number of
 * blocks that have stored their candidate; zero between launches. */
__global__ void __launch_bounds__(ARGMAX_THREADS)
    argmax_kernel(const float *logits, int V, cu_step_arrays in, const threshold *thresholds, candidate *found,
                  int *finished, int32_t *ids, int32_t *ids_host)
{
    griddep_wait();
    griddep_launch();
    int row = blockIdx.y, part = blockIdx.x, per = (V + BLOCKS - 1) / BLOCKS, end = min(V, (part + 1) * per);
    const cu_sampling p = in.sampling[row];
    const row_values v(logits, V, in, row);
    const threshold c = thresholds[row];
    candidate mine = {-INFINITY, INT32_MAX};
    scan_ids(v, p, c, part * per + threadIdx.x, end, mine);

    __shared__ candidate of_warp[ARGMAX_THREADS / 32];
    __shared__ bool last;
    mine = best_of_warp(mine);
    if (threadIdx.x % 32 == 0)
        of_warp[threadIdx.x / 32] = mine;
    __syncthreads();
    if (threadIdx.x == 0) {
        for (int w = 1; w < ARGMAX_THREADS / 32; w++)
            mine = better(mine, of_warp[w]);
        found[row * BLOCKS + part] = mine;
        __threadfence();
        last = atomicAdd(&finished[row], 1) == BLOCKS - 1;
        __threadfence();
    }
    __syncthreads();
    if (!last || threadIdx.x >= 32)
        return;
    static_assert(BLOCKS == 32, "each lane reads the candidate of one block");
    float2 f = __ldcg(reinterpret_cast<const float2 *>(found + row * BLOCKS) + threadIdx.x);
    mine = best_of_warp(candidate{f.x, __float_as_int(f.y)});
    if (threadIdx.x == 0) {
        ids[row] = ids_host[row] = c.last < 0 ? -1 : mine.id == INT32_MAX ? 0 : mine.id;
        finished[row] = 0;
    }
}

} // namespace

size_t cu_sample_workspace(int max_rows)
{
    return (size_t)max_rows * (BLOCKS * sizeof(candidate) + sizeof(threshold) + sizeof(int));
}

void cu_sample(const float *logits, int S, int V, const cu_step_arrays &in, int max_rows, void *workspace, int32_t *ids,
               int32_t *ids_host, cudaStream_t s)
{
    candidate *found = static_cast<candidate *>(workspace);
    threshold *thresholds = reinterpret_cast<threshold *>(found + (size_t)max_rows * BLOCKS);
    int *finished = reinterpret_cast<int *>(thresholds + max_rows);
    cudaFuncSetAttribute(filter_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)sizeof(filter_smem));
    cu_launch(filter_kernel, dim3((unsigned)S), FILTER_THREADS, sizeof(filter_smem), s, logits, V, in, thresholds);
    cu_launch(argmax_kernel, dim3(BLOCKS, (unsigned)S), ARGMAX_THREADS, 0, s, logits, V, in, thresholds, found,
              finished, ids, ids_host);
}
