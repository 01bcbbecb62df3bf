/* The model's weights on the GPU: one allocation, owned here. Tensors that one GEMM multiplies lie back to back. */
#ifndef CU_WEIGHTS_H
#define CU_WEIGHTS_H

#include "engine/cuda/cu.h"

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
    bf16 *embed, *norm_out, *lm_head; /* [V][D], [D], [V][D]; lm_head is embed when tied */
    struct cu_layer *layers;          /* [L] */
};

/* Bytes on the GPU, alignment included. */
struct cu_weights_parts {
    size_t embed, norm_out, lm_head, layers; /* lm_head is 0 when tied; layers is all of them together */
};
struct cu_weights_parts cu_weights_sizes(const struct mdl_config *c);
size_t cu_weights_size(const struct mdl_config *c); /* the sum of cu_weights_sizes */
/* Allocates and fills. Files are read through pinned staging buffers; dummy weights are computed on the GPU. After a
 * failure cu_weights_free is still to be called. KM_ENOMEM, KM_EDEVICE, or as mdl_read. */
int cu_weights_load(struct cu_weights *w, const struct mdl *m, struct km_err *err);
void cu_weights_free(struct cu_weights *w);

#endif
