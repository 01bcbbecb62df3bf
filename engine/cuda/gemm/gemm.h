/* The five products of a forward pass, each by the kernel that is fastest for its number of rows.
 *
 * A few rows go by mma.sync straight from memory with the norm inside (skinny.cu), on Hopper up to CU_SMALL_M_SM90 by wgmma
 * at the rate at which weights can be read (stream_sm90.cu), many by cuBLASLt (gemm.cu), and on Hopper gate and up of
 * many rows by one kernel with SwiGLU (ffn_sm90.cu). */
#ifndef CU_GEMM_H
#define CU_GEMM_H

#include "engine/cuda/workspace.h"
#include "engine/cuda/weights.h"

enum cu_gemm {
    CU_GEMM_QKV,     /* qkv = norm(x) w^T, then q and k normalised by head and rotated, k and v put into their pages */
    CU_GEMM_O,       /* x += o w^T */
    CU_GEMM_GATE_UP, /* act = silu(norm(x) gate^T) * norm(x) up^T */
    CU_GEMM_DOWN,    /* x += act w^T */
    CU_GEMM_HEAD,    /* logits = h_out w^T, in f32 */
    CU_GEMMS
};

struct cu_gemms;
/* Names the room's arrays and the weights, both borrowed, and times cuBLASLt's algorithms at every size on `s`: the
 * room must be zero. KM_ENOMEM, KM_EDEVICE. */
int cu_gemms_open(struct cu_gemms **out, const cu_dims &m, const cu_weights *w, const cu_workspace *r, cudaStream_t s,
                     struct km_err *err);
void cu_gemms_close(struct cu_gemms *p); /* NULL: nothing */
/* Enqueues one for T rows of the step `in`; of CU_GEMM_HEAD the layer does not matter. */
int cu_gemm_run(struct cu_gemms *p, enum cu_gemm which, int layer, int T, const cu_step_arrays &in, cudaStream_t s,
               struct km_err *err);
/* Those from one attention to the next: CU_GEMM_O, CU_GEMM_GATE_UP and CU_GEMM_DOWN of a layer, and CU_GEMM_QKV of the one behind it. */
int cu_gemm_chain(struct cu_gemms *p, int layer, int T, const cu_step_arrays &in, cudaStream_t s, struct km_err *err);

#endif
