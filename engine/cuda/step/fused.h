/* The fused kernels: the operations between GEMMs and attention, fused so that each boundary needs one kernel. */
#ifndef CU_FUSED_H
#define CU_FUSED_H

#include "engine/cuda/step/arrays.h"

/* Copies a step's arrays from pinned memory to the device. The first word of the arrays is their size in bytes; at
 * least `fixed` bytes, a multiple of 16, are copied. The kernel starts when all earlier kernels have ended, because
 * they read the arrays of the previous step. Kernels after cu_embed may read the new arrays before griddep_wait. */
void cu_fetch(const char *host, size_t fixed, char *dev, cudaStream_t s);
/* Writes the embeddings of the tokens to x[T][D], and cosine and sine of their rotary angles to angles[T][d / 2]. A
 * token of -(k + 1) stands for sampled_ids[k], an id that the previous step sampled. A sampled id of -1 counts as 0. */
void cu_embed(const cu_dims &m, const bf16 *embed, const float *inv_freq, const cu_step_arrays &in,
              const int32_t *sampled_ids, int T, bf16 *x, float2 *angles, cudaStream_t s);
/* out[T][D] = rmsnorm(x) * w, for D <= 8192. If rows is not NULL, row i of out is computed from row rows[i] of x. */
void cu_rmsnorm(const cu_dims &m, const bf16 *x, const bf16 *w, const int32_t *rows, int T, bf16 *out, cudaStream_t s);
/* Applies RMSNorm and RoPE to each head of q and k in qkv[T][(H + 2G) * d]. Writes q back to qkv, and k and v to their
 * pages of the KV pool, in `layer`. */
void cu_qk_rope_store(const cu_dims &m, bf16 *qkv, const bf16 *q_norm, const bf16 *k_norm, const float2 *angles,
                      const cu_step_arrays &in, int T, int layer, bf16 *pool, cudaStream_t s);
/* act[T][F] = silu(gate) * up. gu[T][2F]: gate, then up. */
void cu_swiglu(const cu_dims &m, const bf16 *gu, int T, bf16 *act, cudaStream_t s);

#endif
