/* Gate and up GEMMs with SwiGLU in one kernel, for many rows on Hopper: act[M][F] = silu(h gate^T) * (h up^T). */
#ifndef CU_GATE_UP_SM90_H
#define CU_GATE_UP_SM90_H

#include "engine/cuda/cu.h"

/* Fewest rows at which this kernel is faster than cu_lt_gemm and cu_swiglu, at the shapes of Qwen3-8B on an H100. */
enum { CU_GATE_UP_SM90_MIN = 512 };

/* Tensor maps of h[max_tokens][D] and of one layer's weights w_gate_up[2F][D], gate first. Both are borrowed. */
struct cu_gate_up_plan {
    char h_map[128], w_map[128];
};
bool cu_gate_up_sm90_usable(const cu_dims &m); /* depends only on the shape and the GPU's generation */
int cu_gate_up_sm90_plan(struct cu_gate_up_plan *out, const cu_dims &m, const bf16 *h, const bf16 *w_gate_up,
                         struct km_err *err);
/* Enqueues the kernel for M rows of h. */
void cu_gate_up_sm90(const cu_dims &m, const struct cu_gate_up_plan &p, int M, bf16 *act, cudaStream_t s);

#endif
