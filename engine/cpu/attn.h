/* Attention over the paged KV pool.
 *
 * An item is a block of query tokens of one request, with the query heads that share a KV head folded into
 * rows. It walks the request's KV in tiles of KV_TILE tokens, and starts its softmax afresh every SPAN
 * tokens; spans are merged in order. One item may do all its spans, or, when there are fewer items than
 * threads want, every span may be an item of its own and be merged afterwards: the same arithmetic in the
 * same order, so the bits do not depend on which was chosen. */
#ifndef CPU_ATTN_H
#define CPU_ATTN_H

#include "engine/batch.h"
#include "engine/cpu/arena.h"
#include "engine/cpu/kernels.h"
#include "engine/cpu/thread_pool.h"
#include "engine/kv_port.h"
#include "engine/model.h"

struct kv_pool {
    char *pages; /* [n_pages][page_bytes] */
    struct kv_geom g;
};

/* head_dim elements of K (which 0) or V (1) of one token. */
static inline void *kv_row(const struct kv_pool *kv, int32_t page, int layer, int which, int head, int off)
{
    const struct kv_geom *g = &kv->g;
    size_t row =
        (((size_t)layer * 2 + (size_t)which) * (size_t)g->n_kv_heads + (size_t)head) * (size_t)g->block_size;
    return kv->pages + (size_t)page * g->page_bytes +
           (row + (size_t)off) * (size_t)g->head_dim * km_dtype_size(g->dtype);
}

struct attn;

/* Where the arrays of an attn of these limits go; with a->base NULL only their size is counted. */
struct attn *attn_layout(struct arena *a, const struct mdl_config *c, const struct kernels *k, int threads,
                         int max_tokens, int max_reqs, int max_model_len);
void attn_open(struct attn *at, const struct mdl_config *c, const struct kernels *k, struct thread_pool *pool,
               const struct kv_pool *kv);

/* Divides a batch into items; good for every layer until the next plan. Returns the multiply-adds of one
 * layer, times two. */
double attn_plan(struct attn *at, const struct batch *b);
/* q: [T][ldq], H heads of d each; out: [T][ldo] likewise. */
void attn_run(struct attn *at, int layer, const float *q, size_t ldq, float *out, size_t ldo);

#endif
