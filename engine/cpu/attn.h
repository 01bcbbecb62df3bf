/* Attention over the paged KV pool.
 *
 * A job has up to 96 query rows of one request: a block of its query tokens, times the query heads that share one KV
 * head (GQA). A job processes the request's KV in tiles of KV_TILE tokens. The KV is divided into splits of 512 tokens
 * at fixed positions. Each split has a softmax of its own, and the partials of the splits are merged in order.
 *
 * One task of the thread pool computes all heads of a job, one after the other, or one head if there are few jobs.
 *
 * A job with few rows, such as a decoded token of one request, reads K and V where they lie. A job with many rows first
 * packs each tile into panels, once for all rows.
 *
 * A job processes all splits of its query rows. If that gives too few jobs for the threads, every split is a job of its
 * own, and the partials are merged when all jobs are done. The arithmetic and its order are the same in all cases, and
 * so are the bits. */
#ifndef CPU_ATTN_H
#define CPU_ATTN_H

#include "engine/batch.h"
#include "engine/cpu/arena.h"
#include "engine/cpu/kernels.h"
#include "engine/cpu/thread_pool.h"
#include "engine/kv_port.h"
#include "engine/model.h"

/* The KV pool. The backend owns its memory. */
struct kv_pool {
    char *pages; /* [n_pages][page_bytes] */
    struct kv_geom g;
};

/* K (which = 0) or V (which = 1) of one token and KV head: head_dim elements. off: the token's offset in its page. */
static inline void *kv_row(const struct kv_pool *kv, int32_t page, int layer, int which, int head, int off)
{
    const struct kv_geom *g = &kv->g;
    size_t row = (((size_t)layer * 2 + (size_t)which) * (size_t)g->n_kv_heads + (size_t)head) * (size_t)g->block_size;
    return kv->pages + (size_t)page * g->page_bytes +
           (row + (size_t)off) * (size_t)g->head_dim * km_dtype_size(g->dtype);
}

struct attn;

/* Allocates an attn for these limits from the arena. Returns NULL while the arena only counts. */
struct attn *attn_layout(struct arena *a, const struct mdl_config *c, const struct kernels *k, int threads,
                         int max_tokens, int max_reqs, int max_model_len);
/* Completes an attn of attn_layout. Borrows all arguments. */
void attn_open(struct attn *at, const struct mdl_config *c, const struct kernels *k, struct thread_pool *pool,
               const struct kv_pool *kv);

/* Divides a batch into jobs, for all layers until the next plan. Returns the floating-point operations of one layer. */
double attn_plan(struct attn *at, const struct batch *b);
/* Runs attention of `layer`. q: [T][ldq], n_heads heads of head_dim elements; out: [T][ldo], heads in the same order.
 */
void attn_run(struct attn *at, int layer, const float *q, size_t ldq, float *out, size_t ldo);

#endif
