/* Attention over the paged KV pool. Requests with several query tokens are divided into prefill tiles of query rows.
 * Requests with one query token are divided into splits of their KV. All kernels read q from qkv[T][(H + 2G) * d] and
 * write o[T][H * d]. They read keys and values from the pool, those of the step's own tokens included. */
#ifndef CU_ATTN_H
#define CU_ATTN_H

#include "engine/cuda/step/arrays.h"

enum { CU_TILE_Q = 128 }; /* query rows of a prefill tile */

/* prefill.cu: mma.sync, for every GPU from sm_80 on. */
void cu_attn_prefill(const cu_dims &m, const bf16 *qkv, const cu_step_arrays &in, int n_tiles, int layer,
                     const bf16 *pool, bf16 *o, cudaStream_t s);

/* prefill_sm90.cu: wgmma and TMA, for Hopper and head_dim 128. */
bool cu_attn_prefill_sm90_usable(const cu_dims &m);
/* What all launches share: tensor maps of the KV pool and of qkv[max_tokens], and two counters in device memory. Pool,
 * qkv and counters are borrowed. The counters are zero before the first launch, and every launch resets them. */
struct cu_prefill_plan {
    alignas(64) char pool[128], queries[128];
    int *job_counters; /* [2] jobs taken from the queue; thread blocks that have found the queue empty */
};
int cu_attn_prefill_sm90_plan(cu_prefill_plan *p, const cu_dims &m, const bf16 *pool, int n_pages, const bf16 *qkv,
                              int max_tokens, int *job_counters, struct km_err *err);
void cu_attn_prefill_sm90(const cu_dims &m, const cu_prefill_plan &p, const cu_step_arrays &in, int n_tiles, int layer,
                          bf16 *o, cudaStream_t s);

/* decode.cu: split-KV attention. */
int cu_attn_splits_max(const cu_dims &m, int reqs); /* most splits of a step with `reqs` decoding requests */
/* Splits the KV of the n requests reqs[], and writes the splits to out. q_start, kv_len and table_start of the host
 * arrays must be filled. Returns the number of splits. */
int cu_attn_splits(const cu_dims &m, const cu_step_arrays &host, const int32_t *reqs, int n, struct cu_split *out);
size_t cu_attn_decode_workspace(const cu_dims &m); /* bytes; the caller zeroes the workspace once */
void cu_attn_decode(const cu_dims &m, const bf16 *qkv, const cu_step_arrays &in, int n_splits, int layer,
                    const bf16 *pool, bf16 *o, void *workspace, cudaStream_t s);

#endif
