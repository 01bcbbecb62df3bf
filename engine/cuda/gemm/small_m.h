/* Small-M GEMMs by mma.sync, for every GPU from sm_80 on: y[M][N] = h[M][K] w[N][K]^T for M <= CU_SMALL_M_MAX, in the
 * time that reading w takes. h is rmsnorm(x) * norm in functions with a norm, else x. K is a multiple of 32. */
#ifndef CU_SMALL_M_H
#define CU_SMALL_M_H

#include "engine/cuda/cu.h"

enum { CU_SMALL_M_MAX = 16 }; /* most rows */

/* y = h w^T; with add, y += h w^T. */
void cu_small_m(const bf16 *x, const bf16 *w, int M, int N, int K, bool add, bf16 *y, cudaStream_t s);
void cu_small_m_norm(const bf16 *x, const bf16 *norm, float eps, const bf16 *w, int M, int N, int K, bf16 *y,
                     cudaStream_t s);
/* act[M][F] = silu(gate) * up, where w_gate_up is [2F][K], gate first. */
void cu_small_m_swiglu(const bf16 *x, const bf16 *norm, float eps, const bf16 *w_gate_up, int M, int F, int K,
                       bf16 *act, cudaStream_t s);
/* As cu_small_m, with y in f32. */
void cu_small_m_logits(const bf16 *x, const bf16 *w, int M, int N, int K, float *y, cudaStream_t s);

#endif
