/* An op advances whenever it is polled. Parts pass through it strictly in order, so one number each says how far
 * sending, copying and hashing have come, and one more (limit) from which part on it has failed: parts before it
 * count, parts after it do not, and the op is over only when no copy and no checksum is under way any more. */
#include "kvcache/transfer.h"

#include "base/clock.h"
#include "base/mem.h"

#include <string.h>
#include <unistd.h>

struct part {
    int32_t slot, tok;
    int32_t copy0, n_copy; /* its pages in op->copy */
    int32_t batch;         /* parts sent together with this one, when it is the first of them */
    uint64_t ticket;       /* the copier's, likewise */
    struct kvc_checksum_job sum;
};

struct kvc_transfer {
    struct kvc *kvc;
    struct kv_seq *seq;    /* NULL once that no longer concerns this op */
    enum kv_dir dir;
    int slot;              /* in kvc->transfers */
    uint32_t gen;
    int from, to, rc;
    int64_t t0;
    int n_parts, limit;
    int n_sent, n_copied;  /* parts handed to the copier, and back from it */
    int n_summing, n_summed;
    int n_copies;
    struct kv_copy *copy;  /* [n_copies] */
    struct part part[];    /* [n_parts] */
};

static bool is_load(const struct kvc_transfer *op)
{
    return op->dir == KV_TO_PAGE;
}

struct kvc_transfer *kvc_transfer_new(struct kv_seq *s, enum kv_dir dir, int parts, int copies)
{
    struct kvc *k = s->kvc;
    if (k->n_transfers == k->cap_transfers) { /* the place for its ticket, before anything moves */
        struct kvc_transfer **v = km_reallocarray(k->transfers, 2 * (size_t)k->cap_transfers + 8, sizeof *v);
        if (!v)
            return NULL;
        memset(v + k->cap_transfers, 0, ((size_t)k->cap_transfers + 8) * sizeof *v);
        k->transfers = v;
        k->cap_transfers = 2 * k->cap_transfers + 8;
    }
    struct kvc_transfer *op = km_calloc(1, sizeof *op + (size_t)parts * sizeof *op->part);
    struct kv_copy *copy = km_calloc((size_t)copies, sizeof *copy);
    if (!op || !copy) {
        km_free(op);
        km_free(copy);
        return NULL;
    }
    op->kvc = k;
    op->seq = s;
    op->dir = dir;
    op->copy = copy;
    op->t0 = km_now_ns();
    return op;
}

void kvc_transfer_add(struct kvc_transfer *op, int slot, int tok, int first, int pages, const int32_t *block_table)
{
    struct kvc *k = op->kvc;
    struct part *p = &op->part[op->n_parts++];
    char *base = kvc_dram_at(&k->dram, slot);
    p->slot = slot;
    p->tok = tok;
    p->copy0 = op->n_copies;
    p->n_copy = pages;
    p->sum.p = base;
    p->sum.n = k->dram.slot_bytes;
    memcpy(&p->sum.seed, k->chunks.slot[slot].key.b, sizeof p->sum.seed);
    for (int i = 0; i < pages; i++)
        op->copy[op->n_copies++] =
            (struct kv_copy){.page = block_table[i], .host = base + (size_t)(first + i) * k->geom.page_bytes};
    if (is_load(op) || !pages)
        kvc_chunks_ref(&k->chunks, slot);
}

static void fail_from(struct kvc_transfer *op, int part, int rc)
{
    if (part < op->limit) {
        op->limit = part;
        op->rc = rc;
    }
}

/* Hands parts [n_sent, end) to the copier in one call. */
static void send(struct kvc_transfer *op, int end)
{
    struct kvc *k = op->kvc;
    struct part *p = &op->part[op->n_sent], *last = &op->part[end - 1];
    int n = last->copy0 + last->n_copy - p->copy0;
    int rc = n ? k->copier.copy(k->copier.self, op->dir, op->copy + p->copy0, n, &p->ticket, NULL) : 0;
    if (rc < 0) {
        fail_from(op, op->n_sent, rc);
        return;
    }
    k->async_copies |= p->ticket != 0;
    p->batch = end - op->n_sent;
    op->n_sent = end;
}

static void sum(struct kvc_transfer *op, struct part *p)
{
    struct kvc *k = op->kvc;
    op->n_summing++;
    if (k->skip_checksums || !p->n_copy) {
        p->sum.sum = k->chunks.slot[p->slot].sum;
        atomic_store_explicit(&p->sum.done, true, memory_order_relaxed);
    } else if (k->async_copies)
        kvc_checksum_pool_submit(&k->checksums, &p->sum);
    else
        kvc_checksum_run(&p->sum);
}

/* What the copier finished. A copy that failed does not end those behind it: the op waits for them, because
 * bytes are still moving. */
static void collect_copies(struct kvc_transfer *op)
{
    struct kvc *k = op->kvc;
    while (op->n_copied < op->n_sent) {
        struct part *p = &op->part[op->n_copied];
        int rc = p->ticket ? k->copier.poll(k->copier.self, p->ticket) : 1;
        if (!rc)
            return;
        if (rc < 0)
            fail_from(op, op->n_copied, rc);
        op->n_copied += p->batch;
        for (int i = 0; !is_load(op) && i < p->batch && op->n_summing < op->limit; i++)
            sum(op, p + i);
    }
}

static void collect_sums(struct kvc_transfer *op)
{
    struct kvc *k = op->kvc;
    for (; op->n_summed < op->n_summing; op->n_summed++) {
        struct part *p = &op->part[op->n_summed];
        if (!kvc_checksum_done(&p->sum))
            return;
        k->checksum_ns += p->sum.ns;
        if (!is_load(op) || op->n_summed >= op->limit || p->sum.sum == k->chunks.slot[p->slot].sum)
            continue;
        fail_from(op, op->n_summed, KM_EFORMAT);
        kvc_chunks_drop(&k->chunks, p->slot); /* bytes that changed are of no use to anybody */
    }
}

/* True when the op is over. */
static bool advance(struct kvc_transfer *op)
{
    if (is_load(op)) {
        collect_sums(op);
        int ready = op->n_summed < op->limit ? op->n_summed : op->limit;
        if (ready > op->n_sent)
            send(op, ready);
        collect_copies(op);
    } else {
        collect_copies(op);
        collect_sums(op);
    }
    return op->n_copied == op->n_sent && op->n_summed == op->n_summing;
}

static int finish_load(struct kvc_transfer *op)
{
    struct kvc *k = op->kvc;
    int good = op->to;
    if (op->limit < op->n_parts)
        good = op->part[op->limit].tok > op->from ? op->part[op->limit].tok : op->from;
    k->st.loaded_tokens += good - op->from;
    k->st.failed_loads += good < op->to;
    k->st.load_ns += km_now_ns() - op->t0;
    for (int i = 0; i < op->n_parts; i++)
        kvc_chunks_unref(&k->chunks, op->part[i].slot);
    if (op->seq)
        kvc_unpin(op->seq);
    return good;
}

/* The last chunk first, so that the first is the newest: what runs out of room loses its tail. */
static int finish_store(struct kvc_transfer *op)
{
    struct kvc *k = op->kvc;
    for (int i = op->n_parts - 1; i >= 0; i--) {
        struct part *p = &op->part[i];
        if (!p->n_copy) {
            kvc_chunks_touch(&k->chunks, p->slot);
            kvc_chunks_unref(&k->chunks, p->slot);
        } else if (i < op->limit) {
            kvc_chunks_publish(&k->chunks, p->slot, p->sum.sum);
            k->st.stored_tokens += k->cfg.chunk_size;
        } else
            kvc_chunks_drop(&k->chunks, p->slot);
    }
    k->st.store_ns += km_now_ns() - op->t0;
    return op->to;
}

static int finish(struct kvc_transfer *op, int *good)
{
    int rc = op->rc, n = is_load(op) ? finish_load(op) : finish_store(op);
    if (good)
        *good = n;
    km_free(op->copy);
    km_free(op);
    return rc;
}

static uint64_t enter(struct kvc_transfer *op)
{
    struct kvc *k = op->kvc;
    while (k->transfers[op->slot])
        op->slot++;
    k->transfers[op->slot] = op;
    k->n_transfers++;
    op->gen = ++k->transfer_gen;
    return (uint64_t)op->gen << 32 | ((uint32_t)op->slot + 1);
}

static int leave(struct kvc_transfer *op, int *good)
{
    op->kvc->transfers[op->slot] = NULL;
    op->kvc->n_transfers--;
    return finish(op, good);
}

int kvc_transfer_start(struct kvc_transfer *op, int from, int to, uint64_t *ticket, int *good)
{
    op->from = from;
    op->to = to;
    op->limit = op->n_parts;
    bool over = false;
    for (int i = 0; i < op->n_parts && op->limit == op->n_parts; i++) {
        if (is_load(op))
            sum(op, &op->part[i]);
        else if (i >= op->n_sent)
            send(op, op->kvc->async_copies ? op->n_parts : i + 1);
        if (!op->kvc->async_copies) /* copy this chunk while it is at hand */
            advance(op);
    }
    over = advance(op);
    *ticket = over ? 0 : enter(op);
    return over ? finish(op, good) : 0;
}

int kvc_transfer_poll(struct kvc *k, uint64_t ticket, int *good)
{
    uint32_t slot = (uint32_t)ticket - 1;
    struct kvc_transfer *op = slot < (uint32_t)k->cap_transfers ? k->transfers[slot] : NULL;
    if (!op || op->gen != ticket >> 32) {
        if (good)
            *good = 0;
        return KM_EINVAL;
    }
    if (!advance(op))
        return 0;
    int rc = leave(op, good);
    return rc < 0 ? rc : 1;
}

void kvc_transfer_forget_seq(struct kv_seq *s)
{
    const struct kvc *k = s->kvc;
    for (int i = 0, left = k->n_transfers; left > 0; i++)
        if (k->transfers[i]) {
            left--;
            if (k->transfers[i]->seq == s)
                k->transfers[i]->seq = NULL;
        }
}

bool kvc_transfer_drain(struct kvc *k)
{
    int64_t deadline = km_now_ns() + 10 * 1000000000LL;
    for (;;) {
        for (int i = 0; i < k->cap_transfers; i++)
            if (k->transfers[i] && advance(k->transfers[i]))
                leave(k->transfers[i], NULL);
        if (!k->n_transfers)
            return true;
        if (km_now_ns() > deadline)
            return false;
        usleep(50);
    }
}

void kvc_transfer_count_refs(const struct kvc *k, int32_t *refs)
{
    for (int i = 0; i < k->cap_transfers; i++)
        for (int j = 0; k->transfers[i] && j < k->transfers[i]->n_parts; j++)
            if (is_load(k->transfers[i]) || !k->transfers[i]->part[j].n_copy)
                refs[k->transfers[i]->part[j].slot]++;
}
