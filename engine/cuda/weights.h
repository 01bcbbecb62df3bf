/* The model's weights on the GPU, in one allocation that cu_weights owns. Tensors that one GEMM multiplies (Q, K and V;
 * gate and up) are contiguous, so that they form one matrix. */
#ifndef CU_WEIGHTS_H
#define CU_WEIGHTS_H

#include "engine/cuda/cu.h"

/* Weights of one layer. Each pointer points into the allocation of cu_weights. */
struct cu_layer {
    bf16 *qkv;                  /* [(H + 2G) * d][D] */
    bf16 *o;                    /* [D][H * d] */
    bf16 *gate_up;              /* [2F][D], gate first */
    bf16 *down;                 /* [D][F] */
    bf16 *norm_attn, *norm_ffn; /* [D] */
    bf16 *q_norm, *k_norm;      /* [d] */
};

struct cu_weights {
    char *base;
    size_t bytes;
    bf16 *embed, *norm_out, *lm_head; /* [V][D], [D], [V][D]; lm_head is embed if the model ties both */
    struct cu_layer *layers;          /* [L] */
};

/* Bytes of the weights on the GPU, alignment included. */
struct cu_weights_parts {
    size_t embed, norm_out, lm_head, layers; /* lm_head is 0 if tied; layers counts all layers together */
};
struct cu_weights_parts cu_weights_sizes(const struct mdl_config *c);
size_t cu_weights_size(const struct mdl_config *c); /* the sum of cu_weights_sizes */
/* Allocates the weights and fills them. After a failure, the caller must still call cu_weights_free. KM_ENOMEM,
 * KM_EDEVICE, or an error of mdl_read. */
int cu_weights_load(struct cu_weights *w, const struct mdl *m, struct km_err *err);
void cu_weights_free(struct cu_weights *w);

#endif
