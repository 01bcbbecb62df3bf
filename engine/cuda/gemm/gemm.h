/* The five GEMMs of a forward pass, each run by the implementation that is fastest for its number of rows M: the first
 * row of this table that applies.
 *
 *   on Hopper, M <= CU_SMALL_M_SM90_MAX              small_m_sm90.cu: wgmma, at the rate at which weights can be read
 *   M <= CU_SMALL_M_MAX                              small_m.cu: mma.sync, with RMSNorm and SwiGLU in the kernel
 *   on Hopper, gate and up, M >= CU_GATE_UP_SM90_MIN gate_up_sm90.cu: wgmma, with SwiGLU in the epilogue
 *   otherwise                                        gemm_lt.cu: cuBLASLt */
#ifndef CU_GEMM_H
#define CU_GEMM_H

#include "engine/cuda/step/arrays.h"
#include "engine/cuda/weights.h"
#include "engine/cuda/workspace.h"

enum cu_gemm {
    CU_GEMM_QKV,     /* qkv = norm(x) w^T; then RMSNorm and RoPE of each head of q and k, and k and v to their pages */
    CU_GEMM_O,       /* x += o w^T */
    CU_GEMM_GATE_UP, /* act = silu(norm(x) gate^T) * norm(x) up^T */
    CU_GEMM_DOWN,    /* x += act w^T */
    CU_GEMM_HEAD,    /* logits = h_out w^T, in f32 */
    CU_GEMMS
};

struct cu_gemms;
/* Borrows weights and workspace, which must not move. The workspace must be zeroed: every GEMM runs once, on stream s,
 * at every size for which cuBLASLt chooses an algorithm. KM_ENOMEM, KM_EDEVICE. */
int cu_gemms_open(struct cu_gemms **out, const cu_dims &m, const cu_weights *w, const cu_workspace *ws, cudaStream_t s,
                  struct km_err *err);
void cu_gemms_close(struct cu_gemms *g); /* g may be NULL */
/* Enqueues one GEMM for T rows of the step `in`. CU_GEMM_HEAD ignores the layer. */
int cu_gemm_run(struct cu_gemms *g, enum cu_gemm which, int layer, int T, const cu_step_arrays &in, cudaStream_t s,
                struct km_err *err);
/* Enqueues the GEMMs between two attention kernels: O, gate-up and down of `layer`, then QKV of `layer + 1` unless
 * `layer` is the last. */
int cu_gemm_chain(struct cu_gemms *g, int layer, int T, const cu_step_arrays &in, cudaStream_t s, struct km_err *err);

#endif
