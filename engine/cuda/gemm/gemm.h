/* The five products of a forward pass, each by the kernel that is fastest for its number of rows.
 *
 * A few rows go by mma.sync straight from memory with the norm inside (skinny.cu), on Hopper up to CU_STREAM_M by wgmma
 * at the rate at which weights can be read (stream_sm90.cu), many by cuBLASLt (gemm.cu), and on Hopper gate and up of
 * many rows by one kernel with SwiGLU (ffn_sm90.cu). */
#ifndef CU_PRODUCT_H
#define CU_PRODUCT_H

#include "engine/cuda/workspace.h"
#include "engine/cuda/weights.h"

enum cu_product {
    CU_QKV,     /* qkv = norm(x) w^T, then q and k normalised by head and rotated, k and v put into their pages */
    CU_O,       /* x += o w^T */
    CU_GATE_UP, /* act = silu(norm(x) gate^T) * norm(x) up^T */
    CU_DOWN,    /* x += act w^T */
    CU_HEAD,    /* logits = h_out w^T, in f32 */
    CU_PRODUCTS
};

struct cu_products;
/* Names the room's arrays and the weights, both borrowed, and times cuBLASLt's algorithms at every size on `s`: the
 * room must be zero. KM_ENOMEM, KM_EDEVICE. */
int cu_products_open(struct cu_products **out, const cu_dims &m, const cu_weights *w, const cu_room *r, cudaStream_t s,
                     struct km_err *err);
void cu_products_close(struct cu_products *p); /* NULL: nothing */
/* Enqueues one for T rows of the step `in`; of CU_HEAD the layer does not matter. */
int cu_product(struct cu_products *p, enum cu_product which, int layer, int T, const cu_meta &in, cudaStream_t s,
               struct km_err *err);
/* Those from one attention to the next: CU_O, CU_GATE_UP and CU_DOWN of a layer, and CU_QKV of the one behind it. */
int cu_product_chain(struct cu_products *p, int layer, int T, const cu_meta &in, cudaStream_t s, struct km_err *err);

#endif
