/* The backend's copy of the weights: matrices as the panels of kernels.h, all in one block.
 *
 * Q, K and V are joined to one matrix. Gate and up are interleaved panel by panel, so that one GEMM task has both and
 * can apply SwiGLU. The embedding is read from the panels of the head when both are tied. */
#ifndef CPU_WEIGHTS_H
#define CPU_WEIGHTS_H

#include "engine/cpu/arena.h"
#include "engine/cpu/kernels.h"
#include "engine/cpu/thread_pool.h"
#include "engine/model.h"

struct wts_mat {
    void *panels; /* [n_panels][k][nr] elements of the weights' dtype */
    int n_panels, k;
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
    void *block;              /* [bytes] holds all of the above */
    size_t bytes;
};

/* Bytes that wts_load allocates; `rows` (may be NULL) gets them by name. */
size_t wts_bytes(const struct mdl_config *c, enum km_dtype dtype, const struct kernels *kernels, struct plan *rows);
int wts_load(struct wts *w, const struct mdl *m, enum km_dtype dtype, const struct kernels *kernels,
             struct thread_pool *pool, struct km_err *err);
void wts_free(struct wts *w);

/* x[D] = the token's embedding. */
void wts_embed(const struct wts *w, int32_t token, float *x);

#endif
