/* One algorithm for every length: a list of symbols and a heap of the pairs that may merge, least rank
 * first, then leftmost. Entries are not removed when a neighbour changes: a pair that changed makes a longer
 * token or none, so that an entry which no longer makes what its rank makes is passed over. n log n.
 *
 * Most pieces are one token. Whether the merges make a token of its own bytes is found out the first time
 * and kept, so that such a piece costs one lookup. */
#include "tokenizer/bpe.h"

#include "base/mem.h"
#include "base/random.h"

#include <stdatomic.h>

enum { NONE = -1 };
enum { WHOLE_UNKNOWN, WHOLE_YES, WHOLE_NO };

struct bpe_merge {
    int32_t left, right, rank, made;
};

struct bpe_sym {
    int32_t id;         /* NONE: merged into the one before */
    int32_t prev, next; /* positions, NONE at the ends */
    int32_t made;       /* what this and the next would make, NONE when they do not merge */
};

int bpe_open(struct bpe *b, const struct voc *voc, int32_t n, struct km_err *err)
{
    size_t slots = 16;
    while (slots < (size_t)n * 2)
        slots *= 2;
    *b = (struct bpe){.voc = voc, .mask = (uint32_t)(slots - 1), .n = n};
    b->slot = km_reallocarray(NULL, slots, sizeof *b->slot);
    b->made = km_calloc((size_t)n, sizeof *b->made);
    b->whole = km_calloc((size_t)voc->n, sizeof *b->whole);
    if (!b->slot || !b->made || !b->whole)
        return km_fail(err, KM_ENOMEM, "out of memory for %d merges", (int)n);
    for (size_t i = 0; i < slots; i++)
        b->slot[i].rank = NONE;
    for (int i = 0; i < 256; i++) {
        b->byte_id[i] = voc_find(voc, &(char){(char)i}, 1);
        if (b->byte_id[i] < 0)
            return km_fail(
                err, KM_EFORMAT,
                "the vocabulary has no token for the byte 0x%02X; a byte-level vocabulary holds all 256", i);
    }
    return 0;
}

void bpe_free(struct bpe *b)
{
    km_free(b->slot);
    km_free(b->made);
    km_free((void *)b->whole);
    *b = (struct bpe){0};
}

/* The slot of the pair, or the free one where it would go. */
static struct bpe_merge *find(const struct bpe *b, int32_t left, int32_t right)
{
    uint64_t h = ((uint64_t)(uint32_t)left << 32 | (uint32_t)right) * KM_GOLDEN64;
    for (uint32_t i = (uint32_t)(h >> 32) & b->mask;; i = (i + 1) & b->mask) {
        struct bpe_merge *m = &b->slot[i];
        if (m->rank < 0 || (m->left == left && m->right == right))
            return m;
    }
}

bool bpe_put(struct bpe *b, int32_t rank, int32_t left, int32_t right, int32_t made)
{
    struct bpe_merge *m = find(b, left, right);
    if (m->rank >= 0)
        return false;
    *m = (struct bpe_merge){left, right, rank, made};
    b->made[rank] = made;
    return true;
}

int bpe_emit(struct bpe_run *r, int32_t id)
{
    r->n++;
    struct tok_ids *o = r->ids;
    if (!o)
        return 0;
    if (o->n == o->cap) {
        size_t cap = o->cap + o->cap / 2 + 64;
        int32_t *v = km_reallocarray(o->v, cap, sizeof *v);
        if (!v)
            return KM_ENOMEM;
        o->v = v;
        o->cap = cap;
    }
    o->v[o->n++] = id;
    return 0;
}

static int reserve(struct bpe_run *r, size_t n)
{
    if (n <= r->cap)
        return 0;
    size_t cap = n + n / 2 + 64;
    struct bpe_sym *sym = km_reallocarray(r->sym, cap, sizeof *sym);
    if (!sym)
        return KM_ENOMEM;
    r->sym = sym;
    uint64_t *heap = km_reallocarray(r->heap, cap, 2 * sizeof *heap);
    if (!heap)
        return KM_ENOMEM;
    r->heap = heap;
    r->cap = cap;
    return 0;
}

/* The heap's entries are rank << 32 | position: whole numbers in the order that merges are made. */
static void heap_push(uint64_t *heap, size_t *n, uint64_t e)
{
    size_t i = (*n)++;
    for (; i && heap[(i - 1) / 2] > e; i = (i - 1) / 2)
        heap[i] = heap[(i - 1) / 2];
    heap[i] = e;
}

static uint64_t heap_pop(uint64_t *heap, size_t *n)
{
    uint64_t top = heap[0], e = heap[--*n];
    size_t i = 0;
    for (size_t c; (c = 2 * i + 1) < *n; i = c) {
        if (c + 1 < *n && heap[c + 1] < heap[c])
            c++;
        if (heap[c] >= e)
            break;
        heap[i] = heap[c];
    }
    heap[i] = e;
    return top;
}

/* Looks up what the symbol at `at` makes with the next one, and queues it. */
static void consider(const struct bpe *b, struct bpe_run *r, size_t *queued, int32_t at)
{
    struct bpe_sym *s = &r->sym[at];
    s->made = NONE;
    if (s->next == NONE)
        return;
    const struct bpe_merge *m = find(b, s->id, r->sym[s->next].id);
    if (m->rank < 0)
        return;
    s->made = m->made;
    heap_push(r->heap, queued, (uint64_t)(uint32_t)m->rank << 32 | (uint32_t)at);
}

/* Merges s[0..n) in r->sym: position 0 is the first symbol, the rest follow by `next`. The heap holds at
 * most n - 1 pairs at first and one more after each of at most n - 1 merges: 2n. */
static int merge(const struct bpe *b, struct bpe_run *r, const char *s, size_t n)
{
    if (n > INT32_MAX - 1)
        return KM_ELIMIT;
    if (reserve(r, n))
        return KM_ENOMEM;
    size_t queued = 0;
    for (size_t i = 0; i < n; i++)
        r->sym[i] = (struct bpe_sym){.id = b->byte_id[(unsigned char)s[i]],
                                     .prev = (int32_t)i - 1,
                                     .next = i + 1 < n ? (int32_t)i + 1 : NONE};
    for (size_t i = 0; i < n; i++)
        consider(b, r, &queued, (int32_t)i);
    while (queued) {
        uint64_t e = heap_pop(r->heap, &queued);
        int32_t at = (int32_t)(uint32_t)e, made = b->made[e >> 32];
        struct bpe_sym *left = &r->sym[at];
        if (left->id == NONE || left->made != made)
            continue;
        struct bpe_sym *right = &r->sym[left->next];
        left->id = made;
        right->id = NONE;
        left->next = right->next;
        if (left->next != NONE)
            r->sym[left->next].prev = at;
        if (left->prev != NONE)
            consider(b, r, &queued, left->prev);
        consider(b, r, &queued, at);
    }
    return 0;
}

int bpe_piece(const struct bpe *b, struct bpe_run *r, const char *s, size_t n)
{
    if (n == 1)
        return bpe_emit(r, b->byte_id[(unsigned char)s[0]]);
    int32_t id = voc_find(b->voc, s, n);
    uint8_t whole = id < 0 ? WHOLE_NO : atomic_load_explicit(&b->whole[id], memory_order_relaxed);
    if (whole == WHOLE_YES)
        return bpe_emit(r, id);
    int rc = merge(b, r, s, n);
    if (rc)
        return rc;
    if (whole == WHOLE_UNKNOWN)
        atomic_store_explicit(&b->whole[id], r->sym[0].id == id ? WHOLE_YES : WHOLE_NO, memory_order_relaxed);
    for (int32_t i = 0; i != NONE && !rc; i = r->sym[i].next)
        rc = bpe_emit(r, r->sym[i].id);
    return rc;
}

void bpe_run_free(struct bpe_run *r)
{
    km_free(r->sym);
    km_free(r->heap);
}
