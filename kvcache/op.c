#include "kvcache/op.h"

#include "base/mem.h"
#include "base/page_sum.h"
#include "kvcache/internal.h"
#include "kvcache/sequence.h"
#include "kvcache/view.h"

#include <string.h>

struct kvc_op *kvc_op_new(struct kvc_view *v, enum kvc_op_kind kind, int from, int to, int n_ids)
{
    const struct kvc_geometry *g = &v->kvc->geometry;
    const int C = g->chunk_size, B = g->pool.block_size;
    const int first_chunk = from / C, parts = (to + C - 1) / C - first_chunk;
    struct kvc_op *op = km_calloc(1, sizeof *op + (size_t)parts * sizeof *op->part);
    if (!op)
        return NULL;
    op->view = v;
    op->kind = kind;
    op->from = from;
    op->to = to;
    op->first_chunk = op->ids_chunk = first_chunk;
    op->n_parts = parts;
    op->first_block = from / B;
    op->n_blocks = (to + B - 1) / B - op->first_block;
    op->page = km_calloc((size_t)op->n_blocks, sizeof *op->page);
    op->ids = n_ids ? km_calloc((size_t)n_ids, sizeof *op->ids) : NULL;
    for (int i = 0; i < parts; i++)
        op->part[i] = (struct kvc_part){.state = KVC_DONE, .slot = -1, .tier = -1, .n_tokens = C};
    if (!op->page || (n_ids && !op->ids)) {
        kvc_op_free(op);
        return NULL;
    }
    op->start_ns = kvc_view_now(v);
    return op;
}

void kvc_op_free(struct kvc_op *op)
{
    if (!op)
        return;
    km_free(op->page);
    km_free(op->ids);
    km_free(op);
}

uint64_t kvc_op_start(struct kvc_op *op)
{
    struct kvc_view *v = op->view;
    op->ticket = ++v->n_tickets;
    op->next_op = NULL;
    *v->ops_end = op;
    v->ops_end = &op->next_op;
    return op->ticket;
}

struct kvc_op *kvc_op_find(const struct kvc_view *v, uint64_t ticket, bool *done)
{
    *done = true;
    for (struct kvc_op *op = v->done; op; op = op->next_op)
        if (op->ticket == ticket)
            return op;
    *done = false;
    for (struct kvc_op *op = v->ops; op; op = op->next_op)
        if (op->ticket == ticket)
            return op;
    return NULL;
}

void kvc_op_finish(struct kvc_op *op)
{
    struct kvc_view *v = op->view;
    struct kvc_op **at = &v->ops;
    while (*at != op)
        at = &(*at)->next_op;
    *at = op->next_op;
    if (v->ops_end == &op->next_op)
        v->ops_end = at;
    op->next_op = v->done;
    v->done = op;
}

void kvc_op_cancel(struct kvc_op *op)
{
    if (op->kind == KVC_LOAD)
        op->floor = op->next * op->view->kvc->geometry.pool.block_size;
    for (int i = 0; i < op->n_parts; i++)
        if (op->part[i].state == KVC_WAIT)
            op->part[i].state = KVC_DONE;
}

void kvc_op_release(struct kvc_op *op)
{
    struct kvc *k = op->view->kvc;
    for (int i = 0; i < op->n_parts; i++) {
        struct kvc_part *p = &op->part[i];
        if (p->state == KVC_HOST)
            kvc_unref(k, p->slot);
        else if (p->state == KVC_FILL)
            kvc_chunks_drop(&k->chunks, p->slot);
        p->state = KVC_DONE;
    }
}

struct kvc_part *kvc_op_part(struct kvc_op *op, int block)
{
    return &op->part[block / op->view->kvc->geometry.chunk_pages - op->first_chunk];
}

const int32_t *kvc_op_ids(const struct kvc_op *op, int part)
{
    const int chunk = op->first_chunk + part - op->ids_chunk;
    return op->ids + (size_t)chunk * (size_t)op->view->kvc->geometry.chunk_size;
}

int64_t kvc_op_ns(const struct kvc_op *op)
{
    /* The operation may have started after the copier's clock was last read. */
    return op->view->now > op->start_ns ? op->view->now - op->start_ns : 0;
}

void kvc_op_count_refs(const struct kvc_op *op, int32_t *refs)
{
    for (int i = 0; i < op->n_parts; i++)
        if (op->part[i].state == KVC_HOST)
            refs[op->part[i].slot]++;
}

void kvc_op_add(struct kvc_op *op, struct kvc_piece *p, int block)
{
    const struct kvc *k = op->view->kvc;
    const struct kvc_geometry *g = &k->geometry;
    struct kvc_part *part = kvc_op_part(op, block);
    const int page = block % g->chunk_pages, left = part->n_tokens - page * g->pool.block_size;
    uint64_t key_word;
    memcpy(&key_word, part->key.b, sizeof key_word);
    char *payload = kvc_pool_payload(k->pool, part->slot);
    p->copy[p->n] = (struct kv_copy){
        .page = op->page[block - op->first_block],
        .n_tokens = left < g->pool.block_size ? left : g->pool.block_size,
        .host = payload ? payload + (size_t)page * g->pool.page_bytes : NULL,
        .seed = km_page_sum_seed(key_word, (uint32_t)page),
    };
    p->block[p->n++] = block;
    part->n_in_flight++;
}
