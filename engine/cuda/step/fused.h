/* The fused kernels: everything between GEMMs and attention, one kernel for each boundary. */
#ifndef CU_FUSED_H
#define CU_FUSED_H

#include "engine/cuda/step/arrays.h"

/* Copies a step's arrays from pinned memory to the device: as many bytes as the arrays' first word says, and at least
 * `fixed`, a multiple of 16. The kernel waits for all kernels before it, which may still read the arrays of the step
 * before. Kernels after cu_embed may read the new arrays without griddep_wait. */
void cu_fetch(const char *host, size_t fixed, char *dev, cudaStream_t s);
/* x[T][D]: the tokens' embeddings. A token of -(k + 1) stands for sampled_ids[k], the id that the step before sampled;
 * an id below 0 there counts as 0. angles[T][d / 2]: cosine and sine of the rotary angles. */
void cu_embed(const cu_dims &m, const bf16 *embed, const float *inv_freq, const cu_step_arrays &in,
              const int32_t *sampled_ids, int T, bf16 *x, float2 *angles, cudaStream_t s);
/* out[T][D] = rmsnorm(x) * w. rows: NULL, or row i of out is made from row rows[i] of x. D <= 8192. */
void cu_rmsnorm(const cu_dims &m, const bf16 *x, const bf16 *w, const int32_t *rows, int T, bf16 *out,
                cudaStream_t s);
/* In qkv[T][(H + 2G) * d]: normalises and rotates each head of q and k. q stays in qkv; k and v go to their pages of
 * `layer` in the KV pool. */
void cu_qk_rope_store(const cu_dims &m, bf16 *qkv, const bf16 *q_norm, const bf16 *k_norm, const float2 *angles,
                      const cu_step_arrays &in, int T, int layer, bf16 *pool, cudaStream_t s);
/* act[T][F] = silu(gate) * up of gu[T][2F], gate first. */
void cu_swiglu(const cu_dims &m, const bf16 *gu, int T, bf16 *act, cudaStream_t s);

#endif
