/* The forward pass: computes the sampled ids of a batch.
 *
 * The workspace is one block, allocated when the forward pass is opened; a step allocates nothing. Rows are the tokens
 * of the batch. Row strides have 16 spare floats, so that rows do not map to the same cache sets. In the last layer,
 * only the rows that are sampled are computed after K and V are written, because nothing reads the other rows. */
#ifndef CPU_FORWARD_H
#define CPU_FORWARD_H

#include "engine/backend.h"
#include "engine/cpu/attn.h"
#include "engine/cpu/weights.h"

struct fwd;

/* Limits as in be_opts. */
struct fwd_limits {
    int max_tokens, max_reqs, max_model_len, block_size;
};

/* Bytes of the workspace that fwd_open allocates. Adds rows to the plan `rows`, which may be NULL. */
size_t fwd_bytes(const struct mdl_config *c, const struct kernels *k, int threads, const struct fwd_limits *lim,
                 struct plan *rows);
/* Borrows c, w, pool and kv. KM_ENOMEM. */
int fwd_open(struct fwd **out, const struct mdl_config *c, const struct wts *w, struct thread_pool *pool,
             const struct kv_pool *kv, const struct fwd_limits *lim, struct km_err *err);
void fwd_close(struct fwd *f);

/* Runs a batch, which the caller has checked, and writes its results to out[n_samples]. Adds the number of
 * floating-point operations to *flops. */
void fwd_step(struct fwd *f, const struct batch *b, struct smp_result *out, double *flops);

#endif
