/* Stores. A store reserves slots for the chunks of its sequence in order, and ends at the first chunk for which there
 * is no slot, because a lookup stops at the first chunk that is missing. The chunks are copied from the last one to the
 * first. The first one is therefore published last, and is evicted last under both policies. */
#include "base/mem.h"
#include "kvcache/internal.h"
#include "kvcache/op.h"
#include "kvcache/sequence.h"
#include "kvcache/view.h"

#include <string.h>

static int part_pages(const struct kvc_op *op, const struct kvc_part *p)
{
    const int B = op->view->kvc->geometry.pool.block_size;
    return (p->n_tokens + B - 1) / B;
}

/* Reserves a slot for a part whose chunk is not in the index. False: there is none. */
static bool fill(struct kvc_op *op, int part)
{
    struct kvc *k = op->view->kvc;
    struct kvc_part *p = &op->part[part];
    const int position = op->first_chunk + part;
    p->slot = kvc_chunks_insert(&k->chunks, &p->key, position);
    if (p->slot < 0)
        return false;
    kvc_header_init(kvc_pool_header(k->pool, p->slot), &k->geometry, &k->keys.fingerprint, &p->key, position,
                    kvc_op_ids(op, part), p->n_tokens);
    p->state = KVC_FILL;
    return true;
}

/* Decides what to do with one chunk. offered: the sequence has offered the chunk before. False: the store ends here. */
static bool choose(struct kvc_op *op, int part, const int32_t *ids, bool offered)
{
    struct kvc *k = op->view->kvc;
    struct kvc_part *p = &op->part[part];
    const int slot = kvc_chunks_find(&k->chunks, &p->key);
    if (slot < 0 && offered) { /* it was evicted after it was offered; storing it again would evict other chunks */
        p->state = KVC_DONE;
        return k->cfg.n_tiers > 0; /* a lookup can pass this chunk only if a tier has it */
    }
    if (slot < 0)
        return fill(op, part);
    if (k->chunks.chunk[slot].state == KVC_FILLING) {
        p->state = offered ? KVC_DONE : KVC_WAIT;
        return true;
    }
    if (!kvc_header_match(kvc_pool_header(k->pool, slot), ids, p->n_tokens, op->first_chunk + part))
        return false; /* another chunk has this key: a lookup would stop here */
    kvc_tier_put_again(k, slot);
    kvc_chunks_ref(&k->chunks, slot);
    p->slot = slot;
    p->state = KVC_HOST;
    return true;
}

/* Reserves what the store needs; the lock is held. Returns the first token that the operation reads, or op->to. */
static int reserve(struct kvc_op *op, const int32_t *tokens)
{
    struct kv_seq *s = op->seq;
    const int C = op->view->kvc->geometry.chunk_size;
    int i, from = op->to;
    for (i = 0; i < op->n_parts; i++) {
        const bool tail = op->part[i].n_tokens < C;
        if (!choose(op, i, tokens + (size_t)i * (size_t)C, tail ? s->tail_offered == op->to : i < s->n_offered))
            break;
        if (from == op->to && (op->part[i].state == KVC_FILL || op->part[i].state == KVC_WAIT))
            from = i * C;
        if (tail)
            s->tail_offered = op->to;
    }
    const int whole = i < op->to / C ? i : op->to / C;
    s->n_offered = whole > s->n_offered ? whole : s->n_offered;
    return from;
}

/* The tokens to store: whole chunks, and the partial last chunk of a prompt that is complete. */
static int storable(const struct kv_seq *s, int n, int n_prompt)
{
    const struct kvc *k = s->view->kvc;
    const int C = k->geometry.chunk_size, most = k->cfg.save_decode || n < n_prompt ? n : n_prompt;
    const int whole = most / C;
    if (k->cfg.save_unfull && n >= n_prompt && n_prompt % C && n_prompt / C == whole)
        return s->tail_offered == n_prompt ? 0 : n_prompt;
    return whole <= s->n_offered ? 0 : whole * C;
}

static struct kvc_op *new_store(struct kv_seq *s, const int32_t *tokens, int to, int n_offered,
                                const int32_t *block_table)
{
    const int C = s->view->kvc->geometry.chunk_size;
    if (!kvc_seq_reserve(s, to / C + 1))
        return NULL;
    kvc_seq_keys(s, to / C, tokens);
    const int kept = n_offered < to / C ? n_offered : to / C;
    struct kvc_op *op = kvc_op_new(s->view, KVC_STORE, 0, to, to - kept * C);
    if (!op)
        return NULL;
    op->seq = s;
    op->ids_chunk = kept;
    memcpy(op->ids, tokens + (size_t)kept * (size_t)C, (size_t)(to - kept * C) * sizeof *op->ids);
    memcpy(op->page, block_table, (size_t)op->n_blocks * sizeof *op->page);
    for (int i = 0; i < to / C; i++)
        op->part[i].key = s->key[i];
    if (to % C) {
        op->part[to / C].key = kvc_seq_tail_key(s, to / C, tokens, to % C);
        op->part[to / C].n_tokens = to % C;
    }
    return op;
}

int kvc_store(struct kv_seq *s, const int32_t *tokens, int n, int n_prompt, const int32_t *block_table, uint64_t after,
              uint64_t *ticket, int *from)
{
    struct kvc *k = s->view->kvc;
    *ticket = 0;
    *from = n;
    pthread_mutex_lock(&k->lock);
    if (n >= s->found_tokens)
        kvc_seq_unpin(s); /* all pinned tokens are in the pages, so the engine will not load them */
    const bool off = kvc_seq_detached(s) || !k->active;
    const int to = off ? 0 : storable(s, n, n_prompt), n_offered = s->n_offered;
    pthread_mutex_unlock(&k->lock);
    if (!to)
        return 0;
    struct kvc_op *op = new_store(s, tokens, to, n_offered, block_table);
    if (!op)
        return KM_ENOMEM;
    op->after = after;
    pthread_mutex_lock(&k->lock);
    kvc_grow(k);
    const int first = reserve(op, tokens);
    const bool nothing = first == op->to;
    if (nothing)
        kvc_store_done(op);
    else {
        *from = first;
        *ticket = kvc_op_start(op);
    }
    kvc_driver_wake(k); /* also if nothing is copied: PUTs may have been queued again */
    pthread_mutex_unlock(&k->lock);
    if (nothing)
        kvc_op_free(op);
    kvc_drive(k, s->view);
    return 0;
}

/* The chunk was not stored, so the next store of the sequence includes it again. */
static void offer_again(struct kvc_op *op, int part)
{
    struct kv_seq *s = op->seq;
    if (!s)
        return;
    if (op->part[part].n_tokens < op->view->kvc->geometry.chunk_size)
        s->tail_offered = 0;
    else if (s->n_offered > op->first_chunk + part)
        s->n_offered = op->first_chunk + part;
}

bool kvc_store_advance(struct kvc_op *op)
{
    struct kvc *k = op->view->kvc;
    bool any = false;
    for (int i = 0; i < op->n_parts; i++) {
        struct kvc_part *p = &op->part[i];
        if (p->state != KVC_WAIT)
            continue;
        const int slot = kvc_chunks_find(&k->chunks, &p->key);
        if (slot >= 0 && k->chunks.chunk[slot].state == KVC_FILLING)
            continue;
        any = true;
        if (!choose(op, i, kvc_op_ids(op, i), false)) {
            p->state = KVC_DONE;
            offer_again(op, i);
        }
    }
    return any;
}

bool kvc_store_build(struct kvc_op *op, struct kvc_piece *p)
{
    const struct kvc *k = op->view->kvc;
    size_t bytes = 0;
    for (int i = op->n_parts - 1; i >= 0; i--) {
        struct kvc_part *part = &op->part[i];
        const int pages = part_pages(op, part);
        while (part->state == KVC_FILL && !part->bad && part->n_submitted < pages) {
            if (p->n == KV_COPY_MOST || (p->n && bytes + k->geometry.pool.page_bytes > KVC_PIECE_BYTES))
                return true;
            kvc_op_add(op, p, (op->first_chunk + i) * k->geometry.chunk_pages + pages - 1 - part->n_submitted++);
            bytes += k->geometry.pool.page_bytes;
        }
    }
    return p->n > 0;
}

/* All copies of the part have ended: publishes the chunk, or drops it. */
static void end_part(struct kvc_op *op, int part)
{
    struct kvc *k = op->view->kvc;
    struct kvc_part *p = &op->part[part];
    if (p->bad) {
        kvc_chunks_drop(&k->chunks, p->slot);
        p->state = KVC_DONE;
        offer_again(op, part);
        return;
    }
    kvc_header_seal(kvc_pool_header(k->pool, p->slot));
    kvc_chunks_publish(&k->chunks, p->slot);
    kvc_chunks_ref(&k->chunks, p->slot);
    p->state = KVC_HOST;
    op->view->stats.stored_tokens += p->n_tokens;
    kvc_loads_take(k, p->slot);
    kvc_tier_put(k, p->slot);
}

void kvc_store_retire(struct kvc_op *op, struct kvc_piece *p, int rc)
{
    struct kvc *k = op->view->kvc;
    for (int i = 0; i < p->n; i++) {
        struct kvc_part *part = kvc_op_part(op, p->block[i]);
        if (rc < 0)
            part->bad = true;
        else
            kvc_header_sums(kvc_pool_header(k->pool, part->slot))[p->block[i] % k->geometry.chunk_pages] =
                p->copy[i].sum;
        part->n_in_flight--;
        if (!part->n_in_flight && (part->bad || part->n_submitted == part_pages(op, part)))
            end_part(op, (int)(part - op->part));
    }
}

bool kvc_store_done(struct kvc_op *op)
{
    struct kvc *k = op->view->kvc;
    for (int i = 0; i < op->n_parts; i++)
        if (op->part[i].state == KVC_WAIT || op->part[i].state == KVC_FILL)
            return false;
    for (int i = op->n_parts - 1; i >= 0; i--)
        if (op->part[i].state == KVC_HOST)
            kvc_chunks_touch(&k->chunks, op->part[i].slot);
    kvc_op_release(op);
    op->view->stats.store_ns += kvc_op_ns(op);
    return true;
}
