/* Tails: the plan on the host, and the kernel that merges the partials. prefill_sm90.cu computes the partials.
 *
 * After a cache hit of thousands of tokens, a step computes the last few. Prefill attention gives each thread block all
 * keys of a tile of query rows of one head. Few rows then leave most SMs without work. A tail's tile has the query rows
 * of all heads that share a KV head, so that their keys are read once, and split-KV (flash decoding) divides the keys
 * of the tile between thread blocks. */
#include "engine/cuda/attn/attn.h"
#include "engine/cuda/attn/merge.cuh"

#include <math.h>

namespace {

enum { MERGE_WARPS = 8 };

/* A warp merges one of the CU_TILE_Q rows of a tile and a KV head. Grid: rows by KV heads by entries. */
__global__ void __launch_bounds__(MERGE_WARPS * 32)
    attn_tail_merge_kernel(cu_tail_partials part, const cu_tail *entries, int H, int G, int tail_rows, bf16 *o)
{
    enum { DH = 128 };
    griddep_launch();
    cu_tail tail = entries[blockIdx.z];
    int i = blockIdx.x * MERGE_WARPS + threadIdx.x / 32, lane = threadIdx.x % 32, kv_head = blockIdx.y;
    int row = tail.tile * tail_rows + i % tail_rows, head = i / tail_rows, group = H / G;
    griddep_wait();
    if (row >= tail.rows || head >= group)
        return;
    size_t job = ((size_t)tail.first * G + kv_head * tail.n_tiles + tail.tile), at = job * CU_TILE_Q + i,
           step = (size_t)G * tail.n_tiles * CU_TILE_Q;
    merge_row<DH>(part.o + at * DH, step * DH, part.ml + at, step, tail.n_splits, lane,
                  o + ((size_t)(tail.row + row) * H + kv_head * group + head) * DH);
}

/* ---- the plan ---- */

int div_up(int a, int b)
{
    return (a + b - 1) / b;
}

/* Most splits of all tiles with several splits: two for each SM. It bounds the workspace. */
int most_merged(const cu_dims &m)
{
    return 2 * m.n_sms / m.G;
}

/* The number of tiles of a tail's rows, and the key tiles that its first and its last tile attend to. */
struct tail_size {
    int tiles, fewest_keys, most_keys;
};

tail_size size_of(const cu_dims &m, const cu_step_arrays &host, int r)
{
    int rows = host.q_start[r + 1] - host.q_start[r], len = host.kv_len[r], tail_rows = cu_attn_tail_rows(m),
        first = len - rows + (rows < tail_rows ? rows : tail_rows);
    return tail_size{div_up(rows, tail_rows), div_up(first, CU_TAIL_KEYS), div_up(len, CU_TAIL_KEYS)};
}

/* Splits of a tail if no split may exceed `limit` key tiles; fewer if a tile would have a split without keys. */
int splits_of(const tail_size &t, int limit)
{
    int n = div_up(t.most_keys, limit);
    return n < t.fewest_keys ? n : t.fewest_keys;
}

/* ---- estimated times; the unit is the time that a thread block needs for one key tile of prefill attention ---- */

const double start_time = 2;        /* of a job before its first key tile */
const double tail_slowdown = 1.2;   /* time of a key tile of tails: 1.9 us against 1.6 us of prefill, on an H100 */
const double merge_time = 4;        /* fixed time of the merging kernel */
const double merges_in_a_tile = 50; /* jobs whose partials are written and merged in one unit of time */

/* Time of `jobs` jobs with `key_tiles` key tiles in all, the longest with `longest`. Jobs of equal length run in waves.
 * For jobs of different lengths, the time is at most that of a queue: all work divided by the SMs, and one job. */
double time_of_jobs(const cu_dims &m, long jobs, long key_tiles, int longest)
{
    double waves = (double)((jobs + m.n_sms - 1) / m.n_sms) * (longest + start_time),
           queue = ((double)key_tiles + (double)jobs * start_time) / m.n_sms + longest + start_time;
    return fmin(waves, queue);
}

/* Time of the tails if no split may exceed `limit` key tiles; INFINITY if the workspace does not hold the partials. */
double time_as_tails(const cu_dims &m, const cu_step_arrays &host, const int32_t *reqs, int n, int limit)
{
    long jobs = 0, key_tiles = 0, merged = 0;
    int longest = 0;
    for (int i = 0; i < n; i++) {
        tail_size t = size_of(m, host, reqs[i]);
        int splits = splits_of(t, limit), each = div_up(t.most_keys, splits);
        jobs += (long)t.tiles * splits * m.G;
        key_tiles += (long)t.tiles * t.most_keys * m.G;
        merged += splits > 1 ? t.tiles * splits : 0;
        longest = each > longest ? each : longest;
        if (merged > most_merged(m))
            return INFINITY;
    }
    return tail_slowdown * time_of_jobs(m, jobs, key_tiles, longest) +
           (merged ? merge_time + (double)merged * m.G / merges_in_a_tile : 0);
}

/* Time of the tails if prefill attention processes them. */
double time_as_prefill(const cu_dims &m, const cu_step_arrays &host, const int32_t *reqs, int n)
{
    long jobs = 0, key_tiles = 0;
    int longest = 0;
    for (int i = 0; i < n; i++) {
        int keys = size_of(m, host, reqs[i]).most_keys, rows = host.q_start[reqs[i] + 1] - host.q_start[reqs[i]];
        long tiles = (long)div_up(rows, CU_TILE_Q) * m.H;
        jobs += tiles;
        key_tiles += tiles * keys;
        longest = keys > longest ? keys : longest;
    }
    return time_of_jobs(m, jobs, key_tiles, longest);
}

/* Chooses the largest number of key tiles of a split. It tries to divide the longest tail into 1, 2, ... splits, and
 * takes the number with the lowest estimated time, which it writes to *time. */
int choose_limit(const cu_dims &m, const cu_step_arrays &host, const int32_t *reqs, int n, double *time)
{
    int longest = 1;
    for (int i = 0; i < n; i++) {
        int keys = size_of(m, host, reqs[i]).most_keys;
        longest = keys > longest ? keys : longest;
    }
    int best = longest;
    *time = time_as_tails(m, host, reqs, n, longest);
    for (int splits = 2; splits <= most_merged(m) && splits <= longest; splits += 1 + splits / 16) {
        double t = time_as_tails(m, host, reqs, n, div_up(longest, splits));
        if (t < *time)
            *time = t, best = div_up(longest, splits);
    }
    return best;
}

} // namespace

bool cu_attn_is_tail(const cu_dims &m, int q_len, int kv_len)
{
    enum { LEAST_KEYS = 8 * CU_TAIL_KEYS };
    return cu_attn_prefill_sm90_usable(m) && q_len > 1 && kv_len >= LEAST_KEYS &&
           div_up(q_len, CU_TILE_Q) * m.H < m.n_sms;
}

bool cu_attn_tails_pay(const cu_dims &m, const cu_step_arrays &host, const int32_t *reqs, int n)
{
    double time = 0;
    if (n)
        choose_limit(m, host, reqs, n, &time);
    return n && time < time_as_prefill(m, host, reqs, n);
}

int cu_attn_tail_rows(const cu_dims &m)
{
    return CU_TILE_Q / (m.H / m.G);
}

int cu_attn_tails_max(const cu_dims &m, int T, int R)
{
    int tiles = T / cu_attn_tail_rows(m) + R;           /* whole tiles, and one incomplete tile of each request */
    tiles = tiles < T / 2 ? tiles : T / 2;              /* a tail has at least two rows */
    return tiles + most_merged(m) + most_merged(m) / 2; /* a tile that is merged has at least two splits */
}

void cu_attn_tails(const cu_dims &m, const cu_step_arrays &host, const int32_t *reqs, int n, cu_step_counts *counts)
{
    double time;
    int n_splits = 0, n_merges = 0, limit = n ? choose_limit(m, host, reqs, n, &time) : 0;
    for (int merged = 1; merged >= 0; merged--) /* tails with several splits first */
        for (int i = 0; i < n; i++) {
            int r = reqs[i], rows = host.q_start[r + 1] - host.q_start[r];
            tail_size t = size_of(m, host, r);
            int splits = splits_of(t, limit);
            if ((splits > 1) != merged)
                continue;
            cu_tail tail = {host.q_start[r], rows, host.kv_len[r] - rows, host.table_start[r], t.tiles, splits,
                            n_splits,        0};
            for (int k = 0; k < t.tiles * splits; k++)
                host.tails[n_splits++] = tail;
        }
    for (int k = 0; k < n_splits && host.tails[k].n_splits > 1; k += host.tails[k].n_tiles * host.tails[k].n_splits)
        for (int tile = 0; tile < host.tails[k].n_tiles; tile++) {
            cu_tail *entry = &host.tails[n_splits + n_merges++];
            *entry = host.tails[k];
            entry->tile = tile;
        }
    counts->n_tail_splits = n_splits;
    counts->n_tail_merges = n_merges;
}

/* ---- launching ---- */

static size_t n_cells(const cu_dims &m)
{
    return (size_t)most_merged(m) * m.G;
}

size_t cu_attn_tail_workspace(const cu_dims &m)
{
    return n_cells(m) * CU_TILE_Q * ((size_t)m.d * sizeof(float) + sizeof(float2));
}

void cu_attn_tails_sm90(const cu_dims &m, const cu_prefill_plan &p, const cu_step_arrays &in,
                        const cu_step_counts &counts, int layer, void *workspace, bf16 *o, cudaStream_t s)
{
    cu_tail_partials part;
    part.o = static_cast<float *>(workspace);
    part.ml = reinterpret_cast<float2 *>(part.o + n_cells(m) * CU_TILE_Q * m.d);
    cu_attn_tails_split(m, p, in, counts, layer, part, o, s);
    if (counts.n_tail_merges)
        cu_launch(attn_tail_merge_kernel, dim3(CU_TILE_Q / MERGE_WARPS, (unsigned)m.G, (unsigned)counts.n_tail_merges),
                  MERGE_WARPS * 32, 0, s, part, in.tails + counts.n_tail_splits, m.H, m.G, cu_attn_tail_rows(m), o);
}
