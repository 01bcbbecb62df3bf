/* Attention over the paged KV pool. A request is processed by one of three kernels:
 *
 *   decode       one query token: the request's KV is divided into splits
 *   prefill      several query tokens: the query rows of each head are divided into tiles
 *   tails        few query tokens after a long prefix (cu_attn_is_tail), Hopper only: a tile has the query rows of all
 *                heads that share a KV head, and the keys of each tile are divided into splits
 *
 * All kernels read q from qkv[T][(H + 2G) * d] and write o[T][H * d]. They read keys and values from the pool, those of
 * the step's own tokens included. */
#ifndef CU_ATTN_H
#define CU_ATTN_H

#include "engine/cuda/step/arrays.h"

enum { CU_TILE_Q = 128 }; /* query rows of a prefill tile; of a tail's tile, all heads counted */

/* prefill.cu: mma.sync, for every GPU from sm_80 on. */
void cu_attn_prefill(const cu_dims &m, const bf16 *qkv, const cu_step_arrays &in, int n_tiles, int layer,
                     const bf16 *pool, bf16 *o, cudaStream_t s);

/* prefill_sm90.cu: wgmma and TMA, for Hopper and head_dim 128. */
bool cu_attn_prefill_sm90_usable(const cu_dims &m);
/* Used by all launches: tensor maps of the KV pool and of qkv[max_tokens], and two counters in device memory. Pool, qkv
 * and counters are borrowed. The counters are 0 before the first launch, and every launch resets them. */
struct cu_prefill_plan {
    alignas(64) char pool[128], queries[128], tail_queries[128];
    int *job_counters; /* [2] jobs taken from the queue; thread blocks that have found the queue empty */
};
int cu_attn_prefill_sm90_plan(cu_prefill_plan *p, const cu_dims &m, const bf16 *pool, int n_pages, const bf16 *qkv,
                              int max_tokens, int *job_counters, struct km_err *err);
void cu_attn_prefill_sm90(const cu_dims &m, const cu_prefill_plan &p, const cu_step_arrays &in, int n_tiles, int layer,
                          bf16 *o, cudaStream_t s);

/* tails.cu: plan of the tails, and merging of their splits. */
enum { CU_TAIL_KEYS = 128 }; /* tokens of a key tile: splits are whole key tiles */
/* True if a request can be a tail: prefill tiles of its rows would not fill the GPU, and its KV is long enough to be
 * split. */
bool cu_attn_is_tail(const cu_dims &m, int q_len, int kv_len);
/* True if the requests reqs[n] take less time as tails than in prefill attention, by an estimate. q_start and kv_len of
 * the host arrays must be filled. Many requests of 128 rows fill the GPU without splits, and prefill is then faster. */
bool cu_attn_tails_pay(const cu_dims &m, const cu_step_arrays &host, const int32_t *reqs, int n);
int cu_attn_tail_rows(const cu_dims &m);               /* query tokens of a tail's tile */
int cu_attn_tails_max(const cu_dims &m, int T, int R); /* most entries of `tails` in a step of T tokens of R requests */
/* Plans the tails reqs[n]: writes `tails` of the host arrays, and sets the tails' counts. q_start, kv_len and
 * table_start of the host arrays must be filled. The number of splits depends on all tails of the step, and with it the
 * rounding of their outputs, but not on the other requests. */
void cu_attn_tails(const cu_dims &m, const cu_step_arrays &host, const int32_t *reqs, int n, cu_step_counts *counts);

/* The partial results of splits. A cell is one split of one tile and one KV head, which is one job. The jobs whose tile
 * has several splits come first, and only they have cells: cell i belongs to job i. */
struct cu_tail_partials {
    float *o;   /* [cells][CU_TILE_Q][d] unnormalised output */
    float2 *ml; /* [cells][CU_TILE_Q] maximum (base 2) and sum of the softmax */
};
size_t cu_attn_tail_workspace(const cu_dims &m); /* bytes; need not be initialised */
/* Enqueues the attention of all tails of a step, merging included. */
void cu_attn_tails_sm90(const cu_dims &m, const cu_prefill_plan &p, const cu_step_arrays &in,
                        const cu_step_counts &counts, int layer, void *workspace, bf16 *o, cudaStream_t s);
/* prefill_sm90.cu: the same without the merging. */
void cu_attn_tails_split(const cu_dims &m, const cu_prefill_plan &p, const cu_step_arrays &in,
                         const cu_step_counts &counts, int layer, const cu_tail_partials &part, bf16 *o,
                         cudaStream_t s);

/* decode.cu: split-KV attention. */
int cu_attn_splits_max(const cu_dims &m, int reqs); /* most splits of a step with `reqs` decoding requests */
/* Splits the KV of the n requests reqs[], and writes the splits to out. q_start, kv_len and table_start of the host
 * arrays must be filled. Returns the number of splits. */
int cu_attn_splits(const cu_dims &m, const cu_step_arrays &host, const int32_t *reqs, int n, struct cu_split *out);
size_t cu_attn_decode_workspace(const cu_dims &m); /* bytes; the caller zeroes the workspace once */
void cu_attn_decode(const cu_dims &m, const bf16 *qkv, const cu_step_arrays &in, int n_splits, int layer,
                    const bf16 *pool, bf16 *o, void *workspace, cudaStream_t s);

#endif
