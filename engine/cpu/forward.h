/* The forward pass: a batch in, sampled tokens out.
 *
 * All work space is one block made when it is opened; a step allocates nothing. Rows are tokens of the
 * batch; row strides carry 16 spare floats so that rows do not share cache sets. In the last layer only
 * the rows that will be sampled go on past the point where their K and V are written: nobody reads the
 * others. */
#ifndef CPU_FORWARD_H
#define CPU_FORWARD_H

#include "engine/backend.h"
#include "engine/cpu/attn.h"
#include "engine/cpu/weights.h"

struct fwd;

/* Limits as in be_opts, all resolved. kv must outlive the fwd; w too. */
struct fwd_limits {
    int max_tokens, max_reqs, max_model_len, block_size;
};

/* Bytes of work space that fwd_open will allocate; rows (may be NULL) gets them by name. */
size_t fwd_bytes(const struct mdl_config *c, const struct kernels *k, int threads, const struct fwd_limits *lim,
                 struct plan *rows);
int fwd_open(struct fwd **out, const struct mdl_config *c, const struct wts *w, struct thread_pool *pool,
             const struct kv_pool *kv, const struct fwd_limits *lim, struct km_err *err);
void fwd_close(struct fwd *f);

/* out[n_samples]. The batch was checked. Adds the arithmetic done to *flops. */
void fwd_step(struct fwd *f, const struct batch *b, struct smp_result *out, double *flops);

#endif
