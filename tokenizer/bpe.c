/* Merging in n log n for a piece of n bytes: a linked list of symbols, at first one per byte, and a heap of the pairs
 * that can merge, lowest rank first, then leftmost.
 *
 * A merge changes the pairs to its left and right. Their old entries stay in the heap. A changed pair makes
 * another token than before, or none. So an entry is out of date, and is skipped, if the merge of its rank makes
 * another token than its pair does now.
 *
 * Most pieces are a token of the vocabulary. Whether the merges really give that token is computed once per token
 * and kept in the memo `whole`, so that such a piece costs one lookup. */
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
    int32_t id;         /* token; NONE: merged into the symbol before it */
    int32_t prev, next; /* positions in bpe_run.sym; NONE at the ends */
    int32_t made;       /* token that this symbol and the next one make; NONE if they cannot merge */
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
            return km_fail(err, KM_EFORMAT,
                           "the vocabulary has no token for the byte 0x%02X; a byte-level vocabulary must have all 256",
                           i);
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

/* The slot of the pair, or the free slot where it belongs. */
static struct bpe_merge *find_slot(const struct bpe *b, int32_t left, int32_t right)
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
    struct bpe_merge *m = find_slot(b, left, right);
    if (m->rank >= 0)
        return false;
    *m = (struct bpe_merge){left, right, rank, made};
    b->made[rank] = made;
    return true;
}

int bpe_emit(struct bpe_run *r, int32_t id)
{
    r->n++;
    return r->ids ? tok_ids_push(r->ids, id, NULL) : 0;
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

/* A heap entry is rank << 32 | position of the pair's first symbol, so that the least entry is the next merge. */
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

/* Looks up the merge of the symbol at `at` with the next symbol, and pushes it. */
static void push_pair(const struct bpe *b, struct bpe_run *r, size_t *queued, int32_t at)
{
    struct bpe_sym *s = &r->sym[at];
    s->made = NONE;
    if (s->next == NONE)
        return;
    const struct bpe_merge *m = find_slot(b, s->id, r->sym[s->next].id);
    if (m->rank < 0)
        return;
    s->made = m->made;
    heap_push(r->heap, queued, (uint64_t)(uint32_t)m->rank << 32 | (uint32_t)at);
}

/* Merges s[0..n) in r->sym. The resulting symbols are position 0 and those that follow it by `next`. The heap never
 * holds more than 2n entries: n - 1 pairs at first, and one more after each of at most n - 1 merges. */
static int merge(const struct bpe *b, struct bpe_run *r, const char *s, size_t n)
{
    if (n > INT32_MAX - 1)
        return KM_ELIMIT;
    if (reserve(r, n))
        return KM_ENOMEM;
    size_t queued = 0;
    for (size_t i = 0; i < n; i++)
        r->sym[i] = (struct bpe_sym){
            .id = b->byte_id[(unsigned char)s[i]], .prev = (int32_t)i - 1, .next = i + 1 < n ? (int32_t)i + 1 : NONE};
    for (size_t i = 0; i < n; i++)
        push_pair(b, r, &queued, (int32_t)i);
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
            push_pair(b, r, &queued, left->prev);
        push_pair(b, r, &queued, at);
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
