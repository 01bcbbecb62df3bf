/* Tails: the plan on the host, and the kernel that merges the partials. prefill_sm90.cu computes the partials.
 *
 * After a cache hit of thousands of tokens, a step computes the last few. Prefill attention gives each thread block all
 * keys of a tile of query rows of one head. Few rows then leave most SMs without work. A tail's tile has the query rows
 * of all heads that share a KV head, so that their keys are read once, and split-KV (flash decoding) divides the keys
 * of the tile between thread blocks. */
#include "engine/cuda/attn/attn.h"
#include "engine/cuda/attn/merge.cuh"

#include <limits.h>

namespace {

enum { MERGE_WARPS = 8 };

/* A warp merges one of the CU_TILE_Q rows of a tile and a KV head. Grid: rows by KV heads by tiles. */
__global__ void __launch_bounds__(MERGE_WARPS * 32)
    attn_tail_merge_kernel(cu_tail_partials part, cu_step_arrays arrays, int H, int G, int tail_rows, bf16 *o)
{
    enum { DH = 128 };
    griddep_launch();
    cu_tail_tile tile = arrays.tail_tiles[blockIdx.z];
    int i = blockIdx.x * MERGE_WARPS + threadIdx.x / 32, lane = threadIdx.x % 32, kv_head = blockIdx.y;
    int row = i % tail_rows, head = i / tail_rows, group = H / G;
    griddep_wait();
    if (row >= tile.rows || head >= group || tile.n_splits == 1)
        return;
    size_t at = ((size_t)tile.first * G + kv_head) * CU_TILE_Q + i, step = (size_t)G * CU_TILE_Q;
    merge_row<DH>(part.o + at * DH, step * DH, part.ml + at, step, tile.n_splits, lane,
                  o + ((size_t)(tile.row + row) * H + kv_head * group + head) * DH);
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

/* A tail as the plan sees it. All of its tiles are taken to see all of its keys. */
struct tail_size {
    int q_len, kv_len, tiles, key_tiles;
};

tail_size size_of(const cu_dims &m, const cu_step_arrays &host, int r)
{
    int q_len = host.q_start[r + 1] - host.q_start[r], kv_len = host.kv_len[r];
    return tail_size{q_len, kv_len, div_up(q_len, cu_attn_tail_rows(m)), div_up(kv_len, CU_TAIL_KEYS)};
}

/* Key tiles of each split if no split may exceed `limit`: equal numbers. */
int split_tiles(int key_tiles, int limit)
{
    return div_up(key_tiles, div_up(key_tiles, limit));
}

/* The estimated time of the tails if no split may exceed `limit` key tiles, in times of one key tile; INFINITY if the
 * workspace does not hold the partials. Jobs of equal length run in waves. For jobs of different lengths, the time is
 * at most that of a queue: all work divided by the SMs, and one job. */
double estimate(const cu_dims &m, const cu_step_arrays &host, const int32_t *reqs, int n, int limit)
{
    const double start = 2, merge = 2, merged_per_tile = 50; /* of a job; of the merging kernel; splits it merges */
    long jobs = 0, work = 0, merged = 0;
    int longest = 0;
    for (int i = 0; i < n; i++) {
        tail_size t = size_of(m, host, reqs[i]);
        int each = split_tiles(t.key_tiles, limit), splits = div_up(t.key_tiles, each);
        jobs += (long)t.tiles * splits * m.G;
        work += (long)t.tiles * t.key_tiles * m.G;
        merged += splits > 1 ? t.tiles * splits : 0;
        longest = each > longest ? each : longest;
    }
    if (merged > most_merged(m))
        return INFINITY;
    double waves = (double)((jobs + m.n_sms - 1) / m.n_sms) * (longest + start),
           queue = (work + jobs * start) / m.n_sms + longest + start;
    return fmin(waves, queue) + (merged ? merge + (double)merged * m.G / merged_per_tile : 0);
}

/* Chooses the most key tiles of a split: the longest tail is divided into 1, 2, ... splits, and the number with the
 * lowest estimated time is chosen. */
int choose_limit(const cu_dims &m, const cu_step_arrays &host, const int32_t *reqs, int n)
{
    int longest = 1;
    for (int i = 0; i < n; i++) {
        int key_tiles = size_of(m, host, reqs[i]).key_tiles;
        longest = key_tiles > longest ? key_tiles : longest;
    }
    int best = longest;
    double best_time = estimate(m, host, reqs, n, longest);
    for (int splits = 2; splits <= most_merged(m) && splits <= longest; splits += 1 + splits / 16) {
        double time = estimate(m, host, reqs, n, div_up(longest, splits));
        if (time < best_time)
            best_time = time, best = div_up(longest, splits);
    }
    return best;
}

/* Adds the tiles of request r and their splits of `each` key tiles. */
void add_tiles(const cu_dims &m, const cu_step_arrays &host, int r, int each, cu_step_counts *c)
{
    tail_size t = size_of(m, host, r);
    int old = t.kv_len - t.q_len, tail_rows = cu_attn_tail_rows(m);
    for (int row = 0; row < t.q_len; row += tail_rows) {
        int rows = t.q_len - row < tail_rows ? t.q_len - row : tail_rows, pos = old + row,
            n_splits = div_up(div_up(pos + rows, CU_TAIL_KEYS), each);
        host.tail_tiles[c->n_tail_tiles] =
            cu_tail_tile{host.q_start[r] + row, rows, pos, old, host.table_start[r], c->n_tail_splits, n_splits, each};
        for (int k = 0; k < n_splits; k++)
            host.tail_splits[c->n_tail_splits++] = c->n_tail_tiles;
        c->n_tail_tiles++;
    }
}

} // namespace

bool cu_attn_is_tail(const cu_dims &m, int q_len, int kv_len)
{
    enum { LEAST_KEYS = 8 * CU_TAIL_KEYS };
    return cu_attn_prefill_sm90_usable(m) && q_len > 1 && kv_len >= LEAST_KEYS &&
           div_up(q_len, CU_TILE_Q) * m.H < m.n_sms;
}

int cu_attn_tail_rows(const cu_dims &m)
{
    return CU_TILE_Q / (m.H / m.G);
}

int cu_attn_tail_tiles_max(const cu_dims &m, int T, int R)
{
    int most = T / cu_attn_tail_rows(m) + R; /* whole tiles, and one incomplete tile of each request */
    return most < T / 2 ? most : T / 2;      /* a tail has at least two rows */
}

int cu_attn_tail_splits_max(const cu_dims &m, int T, int R)
{
    return cu_attn_tail_tiles_max(m, T, R) + most_merged(m);
}

void cu_attn_tails(const cu_dims &m, const cu_step_arrays &host, const int32_t *reqs, int n, cu_step_counts *counts)
{
    counts->n_tail_tiles = counts->n_tail_splits = counts->n_tail_merges = 0;
    if (!n)
        return;
    int limit = choose_limit(m, host, reqs, n);
    for (int pass = 0; pass < 2; pass++) { /* first the tails with several splits, then all others */
        for (int i = 0; i < n; i++) {
            int key_tiles = size_of(m, host, reqs[i]).key_tiles, each = split_tiles(key_tiles, limit);
            if ((each == key_tiles) == (pass == 1))
                add_tiles(m, host, reqs[i], each, counts);
        }
        if (pass == 0)
            counts->n_tail_merges = counts->n_tail_tiles;
    }
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
                  MERGE_WARPS * 32, 0, s, part, in, m.H, m.G, cu_attn_tail_rows(m), o);
}
