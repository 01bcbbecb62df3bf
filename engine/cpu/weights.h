/* The backend's copy of the weights: matrices as the panels of kernels.h, all in one block.
 *
 * Q, K and V are joined to one matrix. Panels of gate and up alternate, so that one GEMM task computes both and can
 * apply SwiGLU. If the model ties embedding and head, the embedding is read from the panels of the head. */
#ifndef CPU_WEIGHTS_H
#define CPU_WEIGHTS_H

#include "engine/cpu/arena.h"
#include "engine/cpu/kernels.h"
#include "engine/cpu/thread_pool.h"
#include "engine/model.h"

struct wts_mat {
    void *panels;    /* [n_panels][k][nr] elements of the weights' dtype */
    int n_panels, k; /* k: columns of the matrix */
};

struct wts_layer {
    float *norm_attn, *norm_ffn; /* [D] */
    float *q_norm, *k_norm;      /* [d] */
    struct wts_mat qkv, o, gate_up, down;
};

struct wts {
    enum km_dtype dtype; /* KM_F32 or KM_BF16 */
    const struct kernels *kernels;
    struct wts_layer *layers; /* [L] */
    float *norm_out;          /* [D] */
    struct wts_mat embed, head;
    void *block; /* [bytes] the arena of layers, norms and panels */
    size_t bytes;
};

/* Bytes that wts_load allocates. Adds rows to the plan `rows`, which may be NULL. */
size_t wts_bytes(const struct mdl_config *c, enum km_dtype dtype, const struct kernels *kernels, struct plan *rows);
/* Allocates and reads the weights. Borrows kernels; m and pool are only used during the call. KM_ENOMEM, or an error of
 * mdl_read. */
int wts_load(struct wts *w, const struct mdl *m, enum km_dtype dtype, const struct kernels *kernels,
             struct thread_pool *pool, struct km_err *err);
void wts_free(struct wts *w);

/* Writes the embedding of a token to x[D]. */
void wts_embed(const struct wts *w, int32_t token, float *x);

#endif
