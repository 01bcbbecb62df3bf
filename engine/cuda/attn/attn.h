/* Attention over the paged KV pool: prefill tiles (requests with several query tokens) and decode splits (requests with
 * one). All kernels read qkv[T][(H + 2G) * d], of which they use q, and write o[T][H * d]; keys and values, the step's
 * own included, come from the pool. */
#ifndef CU_ATTN_H
#define CU_ATTN_H

#include "engine/cuda/step/arrays.h"

enum { CU_TILE_Q = 128 }; /* query rows of a prefill tile */

/* prefill.cu: mma.sync, for every GPU from sm_80 on. */
void cu_attn_prefill(const cu_dims &m, const bf16 *qkv, const cu_step_arrays &in, int n_tiles, int layer,
                     const bf16 *pool, bf16 *o, cudaStream_t s);

/* prefill_sm90.cu: wgmma and TMA, for Hopper and heads of 128. */
bool cu_attn_prefill_sm90_usable(const cu_dims &m);
/* Made once: tensor maps of the KV pool and of qkv[max_tokens], both borrowed, and two counters in device memory. The
 * counters are zero before the first launch, and every launch leaves them at zero. */
struct cu_prefill_plan {
    alignas(64) char pool[128], queries[128];
    int *job_counters; /* [2] jobs taken from the queue; thread blocks that found it empty */
};
int cu_attn_prefill_sm90_plan(cu_prefill_plan *p, const cu_dims &m, const bf16 *pool, int n_pages, const bf16 *qkv,
                              int max_tokens, int *job_counters, struct km_err *err);
void cu_attn_prefill_sm90(const cu_dims &m, const cu_prefill_plan &p, const cu_step_arrays &in, int n_tiles, int layer,
                          bf16 *o, cudaStream_t s);

/* decode.cu: split-KV attention. */
int cu_attn_splits_max(const cu_dims &m, int reqs); /* most splits of a step with `reqs` decoding requests */
/* Splits the KV of the n requests reqs[] of a step whose host arrays are filled. Returns the number of splits. */
int cu_attn_splits(const cu_dims &m, const cu_step_arrays &host, const int32_t *reqs, int n, struct cu_split *out);
size_t cu_attn_decode_workspace(const cu_dims &m); /* bytes, zeroed once by the caller */
void cu_attn_decode(const cu_dims &m, const bf16 *qkv, const cu_step_arrays &in, int n_splits, int layer,
                    const bf16 *pool, bf16 *o, void *workspace, cudaStream_t s);

#endif
