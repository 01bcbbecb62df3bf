/* Loads: which chunks are fetched and copied, and which tokens are verified (op.h has the states). */
#include "base/mem.h"
#include "kvcache/internal.h"
#include "kvcache/op.h"
#include "kvcache/sequence.h"
#include "kvcache/view.h"

#include <string.h>

/* The tokens of a part's chunk within [floor, good_to): [*from, *to), empty if *from >= *to. */
static void chunk_range(const struct kvc_op *op, int part, int *from, int *to)
{
    const int C = op->view->kvc->geometry.chunk_size, start = (op->first_chunk + part) * C;
    *from = start > op->floor ? start : op->floor;
    *to = start + C < op->good_to ? start + C : op->good_to;
}

/* The first block that starts at or after the token. */
static int ceil_block(const struct kvc_op *op, int token)
{
    const int B = op->view->kvc->geometry.pool.block_size;
    return token / B + (token % B > 0); /* a cut may give any token, up to INT_MAX */
}

/* The chunk of this part cannot be loaded: excludes it and the smaller side of the interval from the load. */
static void exclude(struct kvc_op *op, int part)
{
    int a, b;
    chunk_range(op, part, &a, &b);
    op->part[part].bad = true;
    if (a >= b)
        return;
    op->failed = true;
    if (op->seq && op->seq->n_offered > op->first_chunk + part)
        op->seq->n_offered = op->first_chunk + part; /* the engine computes it, and stores it again */
    if (op->good_to - b > a - op->floor)
        op->floor = b;
    else {
        op->good_to = a;
        if (op->next > ceil_block(op, a))
            op->next = ceil_block(op, a);
    }
}

/* Drops the references to chunks of which no more pages will be copied, and ends their parts. */
static void release_unneeded(struct kvc_op *op)
{
    struct kvc *k = op->view->kvc;
    const int pages = k->geometry.chunk_pages, floor = op->floor / k->geometry.pool.block_size;
    for (int i = 0; i < op->n_parts; i++) {
        struct kvc_part *p = &op->part[i];
        const int first = (op->first_chunk + i) * pages;
        if (p->state == KVC_DONE || p->n_in_flight)
            continue;
        if ((first > floor ? first : floor) < op->next && first + pages > floor)
            continue;
        if (p->state == KVC_HOST)
            kvc_unref(k, p->slot);
        p->state = KVC_DONE;
    }
}

/* Takes over the result of the lookup. The pins of the load's chunks become references of the operation; the other pins
 * are dropped. */
static void take_pins(struct kvc_op *op, struct kv_seq *s)
{
    struct kvc *k = op->view->kvc;
    const int C = k->geometry.chunk_size, whole = s->found_tokens / C;
    for (int i = 0; i < op->n_parts; i++) {
        const int chunk = op->first_chunk + i;
        struct kvc_found *f = &s->found[chunk];
        struct kvc_part *p = &op->part[i];
        p->key = chunk < whole ? s->key[chunk] : s->tail_key;
        p->n_tokens = chunk < whole ? C : s->found_tokens % C;
        p->tier = f->tier;
        p->slot = f->slot;
        p->state = f->slot >= 0 ? KVC_HOST : KVC_WAIT;
        f->slot = -1;
    }
    if (op->ids)
        memcpy(op->ids, s->ids + (size_t)op->first_chunk * (size_t)C,
               ((size_t)s->found_tokens - (size_t)op->first_chunk * (size_t)C) * sizeof *op->ids);
    kvc_seq_unpin(s);
}

static bool needs_tier(const struct kv_seq *s, int first, int to, int C)
{
    for (int i = first; i * C < to; i++)
        if (s->found[i].slot < 0)
            return true;
    return false;
}

int kvc_load(struct kv_seq *s, int from, int to, const int32_t *block_table, uint64_t after, uint64_t *ticket)
{
    struct kvc_view *v = s->view;
    struct kvc *k = v->kvc;
    *ticket = 0;
    if (from < 0 || from > to || (from < to && to > s->found_tokens))
        return KM_EINVAL;
    if (from == to) {
        pthread_mutex_lock(&k->lock);
        kvc_seq_unpin(s);
        kvc_driver_wake(k);
        pthread_mutex_unlock(&k->lock);
        return 0;
    }
    const int C = k->geometry.chunk_size;
    if (from % k->geometry.pool.block_size)
        return KM_EINVAL;
    const bool tiers = needs_tier(s, from / C, to, C);
    struct kvc_op *op = kvc_op_new(v, KVC_LOAD, from, to, tiers ? s->found_tokens - from / C * C : 0);
    if (!op)
        return KM_ENOMEM;
    memcpy(op->page, block_table + op->first_block, (size_t)op->n_blocks * sizeof *op->page);
    op->seq = s;
    op->after = after;
    op->floor = from;
    op->good_to = to;
    op->next = op->first_block + op->n_blocks;
    pthread_mutex_lock(&k->lock);
    take_pins(op, s);
    *ticket = kvc_op_start(op);
    kvc_driver_wake(k);
    pthread_mutex_unlock(&k->lock);
    kvc_drive(k, v);
    return 0;
}

int kvc_load_cut(struct kvc_op *op, int upto)
{
    struct kvc_view *v = op->view;
    const int B = v->kvc->geometry.pool.block_size;
    int floor = ceil_block(op, upto);
    floor = (floor < op->next ? floor : op->next) * B;
    if (floor > op->floor)
        op->floor = floor;
    int owned = op->floor;
    for (int i = 0; i < v->lane[KV_TO_PAGE].n; i++) { /* pieces in flight may have tokens before floor */
        const struct kvc_piece *p = &v->lane[KV_TO_PAGE].piece[(v->lane[KV_TO_PAGE].head + i) % KVC_PIECES];
        for (int j = 0; p->op == op && j < p->n; j++)
            if (p->block[j] * B < owned)
                owned = p->block[j] * B;
    }
    return owned;
}

/* The number of chunks that the operation has fetched or is fetching, and has not copied yet. */
static int n_staged(const struct kvc_op *op)
{
    int n = 0;
    for (int i = 0; i < op->n_parts; i++)
        n += op->part[i].fetched && op->part[i].state != KVC_DONE;
    return n;
}

/* Takes a reference to the chunk in this slot, if it is READY and has the part's token ids. True if so. */
static bool take_ready(struct kvc_op *op, int part, int slot)
{
    struct kvc *k = op->view->kvc;
    struct kvc_part *p = &op->part[part];
    if (k->chunks.chunk[slot].state != KVC_READY ||
        !kvc_header_match(kvc_pool_header(k->pool, slot), kvc_op_ids(op, part), p->n_tokens, op->first_chunk + part))
        return false;
    kvc_chunks_ref(&k->chunks, slot);
    p->slot = slot;
    p->state = KVC_HOST;
    return true;
}

/* Advances a part in state WAIT: takes a reference, starts a fetch, or excludes the chunk. Sets *fetching if the
 * chunk's slot is being filled. True if something changed. */
static bool resolve(struct kvc_op *op, int part, bool *fetching)
{
    struct kvc *k = op->view->kvc;
    struct kvc_part *p = &op->part[part];
    int slot = kvc_chunks_find(&k->chunks, &p->key);
    if (slot >= 0 && k->chunks.chunk[slot].state == KVC_FILLING) {
        *fetching = true;
        return false;
    }
    if (slot >= 0) {
        if (!take_ready(op, part, slot)) /* another chunk has this key */
            exclude(op, part);
        return true;
    }
    enum kvc_get got = KVC_GET_FAILED;
    if (!p->fetched && p->tier >= 0) {
        if (n_staged(op) >= KVC_GETS)
            return false;
        got = kvc_tier_get(k, p->tier, &p->key, op->first_chunk + part);
    }
    if (got == KVC_GET_STARTED) {
        p->fetched = *fetching = true;
        return true;
    }
    if (got == KVC_GET_LATER || (got == KVC_GET_NO_SLOT && (*fetching || op->n_in_flight)))
        return false;
    exclude(op, part); /* no tier has it, or every slot is in use and nothing of this operation will free one */
    return true;
}

bool kvc_load_advance(struct kvc_op *op)
{
    const int pages = op->view->kvc->geometry.chunk_pages;
    bool any = false, fetching = false;
    for (int i = op->n_parts - 1; i >= 0; i--) {
        int from, to;
        chunk_range(op, i, &from, &to);
        if (op->part[i].state == KVC_HOST && (op->first_chunk + i) * pages < op->next)
            fetching = true; /* its slot becomes free when it is copied, so a later part can wait for a slot */
        if (op->part[i].state == KVC_WAIT && from < to)
            any |= resolve(op, i, &fetching);
    }
    release_unneeded(op);
    return any;
}

/* A piece that starts late because the driver slept does not delay the pieces after it: the simulated link counts as
 * idle only after this time without a piece. */
enum { THROTTLE_SLACK_NS = 2000000 };

/* True if a piece of this many bytes may start now. With a throttle, each piece first waits for the time that the
 * simulated link needs for its bytes. A load then takes as long as it would on a link of this rate. */
static bool link_free(struct kvc *k, size_t bytes, int64_t now)
{
    if (!k->cfg.throttle)
        return true;
    if (!k->throttle_at)
        k->throttle_at = (now > k->throttle_free + THROTTLE_SLACK_NS ? now : k->throttle_free) +
                         (int64_t)((double)bytes * 1e9 / (double)k->cfg.throttle);
    if (now < k->throttle_at)
        return false;
    k->throttle_free = k->throttle_at;
    k->throttle_at = 0;
    return true;
}

/* Most pages of a piece. With a throttle a piece takes at most about 5 ms, so that a cut takes effect soon. */
static int piece_pages(const struct kvc *k)
{
    size_t bytes = KVC_PIECE_BYTES;
    if (k->cfg.throttle && (size_t)(k->cfg.throttle / 200) < bytes)
        bytes = (size_t)(k->cfg.throttle / 200);
    const size_t n = bytes / k->geometry.pool.page_bytes;
    return n < 1 ? 1 : n > KV_COPY_MOST ? KV_COPY_MOST : (int)n;
}

bool kvc_load_build(struct kvc_op *op, struct kvc_piece *p)
{
    struct kvc *k = op->view->kvc;
    const int floor = op->floor / k->geometry.pool.block_size, most = piece_pages(k);
    int first = op->next;
    while (first > floor && op->next - first < most && kvc_op_part(op, first - 1)->state == KVC_HOST)
        first--;
    if (first == op->next ||
        !link_free(k, (size_t)(op->next - first) * k->geometry.pool.page_bytes, op->view->now))
        return false;
    for (int b = first; b < op->next; b++) /* ascending within the piece, because then host memory is contiguous */
        kvc_op_add(op, p, b);
    op->next = first;
    return true;
}

/* Compares the checksums of a piece whose copies are complete with those of the headers. */
static void verify(struct kvc_op *op, const struct kvc_piece *p)
{
    struct kvc *k = op->view->kvc;
    for (int i = 0; i < p->n; i++) {
        struct kvc_part *part = kvc_op_part(op, p->block[i]);
        const uint64_t *sums = kvc_header_sums(kvc_pool_header(k->pool, part->slot));
        if (p->copy[i].sum == sums[p->block[i] % k->geometry.chunk_pages] || part->bad)
            continue;
        exclude(op, (int)(part - op->part));
        kvc_drop_corrupt(k, part->slot, part->fetched ? part->tier : -1);
    }
}

void kvc_load_retire(struct kvc_op *op, struct kvc_piece *p, int rc)
{
    for (int i = 0; i < p->n; i++) {
        struct kvc_part *part = kvc_op_part(op, p->block[i]);
        part->n_in_flight--;
        if (rc < 0 && !part->bad)
            exclude(op, (int)(part - op->part));
    }
    if (rc > 0)
        verify(op, p);
    release_unneeded(op);
}

/* The load has used its chunks: queues the PUTs of those that a tier lacks again, in the order of their positions. */
static void put_again(struct kvc_op *op)
{
    struct kvc *k = op->view->kvc;
    for (int i = 0; k->cfg.n_tiers && i < op->n_parts; i++) {
        const int slot = op->part[i].bad ? -1 : kvc_chunks_find(&k->chunks, &op->part[i].key);
        if (slot >= 0)
            kvc_tier_put_again(k, slot);
    }
}

bool kvc_load_done(struct kvc_op *op)
{
    struct kvc_view *v = op->view;
    if (op->n_in_flight || op->next > op->floor / v->kvc->geometry.pool.block_size)
        return false;
    release_unneeded(op);
    if (op->good_to < op->floor)
        op->good_to = op->floor; /* nothing was loaded */
    put_again(op);
    v->stats.loaded_tokens += op->good_to - op->floor;
    v->stats.failed_loads += op->failed;
    v->stats.load_ns += kvc_op_ns(op);
    return true;
}

void kvc_loads_take(struct kvc *k, int slot)
{
    for (struct kvc_view *v = k->views; v; v = v->next)
        for (struct kvc_op *op = v->ops; op; op = op->next_op)
            for (int i = 0; op->kind == KVC_LOAD && i < op->n_parts; i++)
                if (op->part[i].state == KVC_WAIT &&
                    !memcmp(&op->part[i].key, &k->chunks.chunk[slot].key, sizeof op->part[i].key))
                    take_ready(op, i, slot);
}
