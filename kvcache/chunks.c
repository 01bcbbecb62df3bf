/* Index, order list and counts of the chunks in host memory. The index has at least twice as many entries as there are
 * slots, so probes are short and always end at an empty entry. Deletion moves later entries back, so no deletion marks
 * are needed. */
#include "kvcache/chunks.h"

#include "base/mem.h"

#include <string.h>
#include <sys/mman.h>

_Static_assert(sizeof(struct kvc_chunk) == 64, "an entry is one cache line");

/* Entries of the hash table for n slots, less 1: a power of two less 1. */
static uint32_t index_mask(int n)
{
    uint32_t mask = 1;
    while (mask + 1 < 2 * (uint32_t)n)
        mask = 2 * mask + 1;
    return mask;
}

int64_t kvc_chunks_bytes(int n)
{
    return n * (int64_t)sizeof(struct kvc_chunk) + ((int64_t)index_mask(n) + 1) * (int64_t)sizeof(int32_t);
}

/* Memory for a table: on huge pages if it is large, because lookups read it at random places and would otherwise wait
 * for page tables as well. */
static void *alloc_table(size_t bytes)
{
    const size_t huge = (size_t)2 << 20;
    if (bytes < huge)
        return km_aligned(_Alignof(struct kvc_chunk), bytes);
    void *p = km_aligned(huge, bytes);
    if (p)
        madvise(p, bytes, MADV_HUGEPAGE); /* a hint */
    return p;
}

int kvc_chunks_open(struct kvc_chunks *s, int n, enum kvc_policy policy, struct km_err *err)
{
    *s = (struct kvc_chunks){.n = n, .policy = policy, .newest = -1, .oldest = -1, .free = -1,
                             .mask = index_mask(n)};
    const size_t chunk_bytes = (size_t)n * sizeof *s->chunk, index_bytes = ((size_t)s->mask + 1) * sizeof *s->index;
    s->chunk = alloc_table(chunk_bytes);
    s->index = alloc_table(index_bytes);
    if (!s->chunk || !s->index) {
        kvc_chunks_close(s);
        return km_fail(err, KM_ENOMEM,
                       "out of memory for the index of %d chunks; lower max_local_cpu_size, or raise chunk_size", n);
    }
    memset(s->chunk, 0, chunk_bytes);
    memset(s->index, 0xFF, index_bytes);
    return 0;
}

void kvc_chunks_close(struct kvc_chunks *s)
{
    km_free(s->chunk);
    km_free(s->index);
    *s = (struct kvc_chunks){.newest = -1, .oldest = -1, .free = -1};
}

void kvc_chunks_grow(struct kvc_chunks *s, int usable)
{
    for (int i = usable - 1; i >= s->n_usable; i--) { /* so that the lowest new slot is used first */
        s->chunk[i].older = s->free;
        s->free = i;
        s->n_free++;
    }
    s->n_usable = usable > s->n_usable ? usable : s->n_usable;
}

static uint32_t home(const struct kvc_chunks *s, const struct km_digest *key)
{
    uint32_t h; /* a digest is uniformly distributed: any four bytes serve as its hash */
    memcpy(&h, key->b, sizeof h);
    return h & s->mask;
}

/* The position of the key in the index, or the empty position where it would be inserted. */
static uint32_t probe(const struct kvc_chunks *s, const struct km_digest *key)
{
    uint32_t i = home(s, key);
    while (s->index[i] >= 0 && memcmp(&s->chunk[s->index[i]].key, key, sizeof *key))
        i = (i + 1) & s->mask;
    return i;
}

static void index_remove(struct kvc_chunks *s, const struct km_digest *key)
{
    uint32_t hole = probe(s, key), i = hole;
    for (;;) {
        i = (i + 1) & s->mask;
        if (s->index[i] < 0)
            break;
        uint32_t want = home(s, &s->chunk[s->index[i]].key);
        if (((i - want) & s->mask) >= ((i - hole) & s->mask)) {
            s->index[hole] = s->index[i];
            hole = i;
        }
    }
    s->index[hole] = -1;
}

static void list_remove(struct kvc_chunks *s, int slot)
{
    struct kvc_chunk *c = &s->chunk[slot];
    *(c->newer < 0 ? &s->newest : &s->chunk[c->newer].older) = c->older;
    *(c->older < 0 ? &s->oldest : &s->chunk[c->older].newer) = c->newer;
}

static void list_add(struct kvc_chunks *s, int slot)
{
    struct kvc_chunk *c = &s->chunk[slot];
    c->newer = -1;
    c->older = s->newest;
    *(s->newest < 0 ? &s->oldest : &s->chunk[s->newest].newer) = slot;
    s->newest = slot;
}

static void release(struct kvc_chunks *s, int slot)
{
    s->chunk[slot].state = KVC_FREE;
    s->chunk[slot].older = s->free;
    s->free = slot;
    s->n_free++;
}

int kvc_chunks_find(const struct kvc_chunks *s, const struct km_digest *key)
{
    return s->n ? s->index[probe(s, key)] : -1;
}

/* Three stages, so that the memory accesses of several keys overlap: fetch the line of the index, then the chunk that
 * the index names, then compare the keys. Each stage runs AHEAD keys before the next one. */
int kvc_chunks_find_leading(const struct kvc_chunks *s, const struct km_digest *keys, int n, int32_t *slots)
{
    enum { AHEAD = 16 };
    if (!s->n)
        return 0;
    for (int i = -2 * AHEAD; i < n; i++) {
        if (i + 2 * AHEAD < n)
            __builtin_prefetch(&s->index[home(s, &keys[i + 2 * AHEAD])]);
        if (i + AHEAD >= 0 && i + AHEAD < n) {
            const int32_t slot = s->index[home(s, &keys[i + AHEAD])];
            if (slot >= 0)
                __builtin_prefetch(&s->chunk[slot]);
        }
        if (i < 0)
            continue;
        slots[i] = s->index[probe(s, &keys[i])];
        if (slots[i] < 0)
            return i;
    }
    return n;
}

int kvc_chunks_insert(struct kvc_chunks *s, const struct km_digest *key, int position)
{
    if (s->free < 0 && s->n_evictable) { /* under LRU, referenced chunks are near the newest end, so few are skipped */
        int32_t victim = s->oldest;
        while (s->chunk[victim].refs)
            victim = s->chunk[victim].newer;
        kvc_chunks_leave(s, victim);
        s->evicted++;
    }
    int32_t slot = s->free;
    if (slot < 0)
        return -1;
    struct kvc_chunk *c = &s->chunk[slot];
    s->free = c->older;
    s->n_free--;
    s->n_filling++;
    *c = (struct kvc_chunk){.key = *key, .position = position, .newer = -1, .older = -1,
                            .state = KVC_FILLING};
    s->index[probe(s, key)] = slot;
    return slot;
}

void kvc_chunks_publish(struct kvc_chunks *s, int slot)
{
    struct kvc_chunk *c = &s->chunk[slot];
    c->state = KVC_READY;
    s->n_filling--;
    s->n_ready++;
    s->n_evictable += !c->refs;
    list_add(s, slot);
}

void kvc_chunks_drop(struct kvc_chunks *s, int slot)
{
    struct kvc_chunk *c = &s->chunk[slot];
    if (c->state != KVC_FILLING && c->state != KVC_READY)
        return;
    index_remove(s, &c->key);
    if (c->state == KVC_READY) {
        list_remove(s, slot);
        s->n_ready--;
        s->n_evictable -= !c->refs;
    } else
        s->n_filling--;
    if (!c->refs) {
        release(s, slot);
        return;
    }
    c->state = KVC_DROPPED;
    s->n_dropped++;
}

void kvc_chunks_leave(struct kvc_chunks *s, int slot)
{
    s->lost += s->tiers && s->chunk[slot].lacking == s->tiers;
    kvc_chunks_drop(s, slot);
}

void kvc_chunks_ref(struct kvc_chunks *s, int slot)
{
    struct kvc_chunk *c = &s->chunk[slot];
    s->n_evictable -= c->state == KVC_READY && !c->refs;
    c->refs++;
}

void kvc_chunks_unref(struct kvc_chunks *s, int slot)
{
    struct kvc_chunk *c = &s->chunk[slot];
    if (--c->refs)
        return;
    s->n_evictable += c->state == KVC_READY;
    if (c->state == KVC_DROPPED) {
        s->n_dropped--;
        release(s, slot);
    }
}

void kvc_chunks_touch(struct kvc_chunks *s, int slot)
{
    if (s->policy != KVC_LRU || s->chunk[slot].state != KVC_READY || s->newest == slot)
        return;
    list_remove(s, slot);
    list_add(s, slot);
}

int kvc_chunks_clear(struct kvc_chunks *s)
{
    for (int32_t i = s->oldest, next; i >= 0; i = next) {
        next = s->chunk[i].newer;
        if (!s->chunk[i].refs)
            kvc_chunks_drop(s, i);
    }
    return s->n_usable - s->n_free;
}

/* The invariants of one slot. */
static int check_slot(const struct kvc_chunks *s, int i, int refs, struct km_err *err)
{
    const struct kvc_chunk *c = &s->chunk[i];
    if (c->refs != refs)
        return km_fail(err, KM_EINVAL, "slot %d records %d references, but %d exist", i, c->refs, refs);
    if (c->refs && c->state == KVC_FREE)
        return km_fail(err, KM_EINVAL, "slot %d is free but has %d references", i, c->refs);
    if (i >= s->n_usable && c->state != KVC_FREE)
        return km_fail(err, KM_EINVAL, "slot %d (state %d) is in use, but only %d slots are usable", i, c->state,
                       s->n_usable);
    if ((c->state == KVC_FILLING || c->state == KVC_READY) && kvc_chunks_find(s, &c->key) != i)
        return km_fail(err, KM_EINVAL, "slot %d (state %d) is not found under its key", i, c->state);
    if (c->state == KVC_DROPPED && !c->refs)
        return km_fail(err, KM_EINVAL, "slot %d is dropped but not free, and has no references", i);
    return 0;
}

int kvc_chunks_check(const struct kvc_chunks *s, const int32_t *refs, struct km_err *err)
{
    int count[4] = {0}, evictable = 0, listed = 0, indexed = 0, free = 0;
    for (int i = 0; i < s->n; i++) {
        int rc = check_slot(s, i, refs[i], err);
        if (rc)
            return rc;
        count[s->chunk[i].state] += i < s->n_usable;
        evictable += s->chunk[i].state == KVC_READY && !s->chunk[i].refs;
    }
    for (uint32_t i = 0; s->n && i <= s->mask; i++)
        indexed += s->index[i] >= 0;
    for (int32_t i = s->newest, prev = -1; i >= 0; prev = i, i = s->chunk[i].older)
        if (++listed > s->n || s->chunk[i].state != KVC_READY || s->chunk[i].newer != prev)
            return km_fail(err, KM_EINVAL, "the order list is broken at slot %d (state %d)", i, s->chunk[i].state);
    for (int32_t i = s->free; i >= 0; i = s->chunk[i].older)
        if (++free > s->n || s->chunk[i].state != KVC_FREE || i >= s->n_usable)
            return km_fail(err, KM_EINVAL, "the free list is broken at slot %d (state %d)", i, s->chunk[i].state);
    if (count[KVC_FREE] != s->n_free || free != s->n_free || count[KVC_FILLING] != s->n_filling ||
        count[KVC_READY] != s->n_ready || count[KVC_DROPPED] != s->n_dropped || listed != s->n_ready ||
        indexed != s->n_ready + s->n_filling || evictable != s->n_evictable)
        return km_fail(err, KM_EINVAL,
                       "recorded and found counts differ: free %d/%d/%d, filling %d/%d, ready %d/%d, listed %d, "
                       "indexed %d, dropped %d/%d, evictable %d/%d",
                       s->n_free, count[KVC_FREE], free, s->n_filling, count[KVC_FILLING], s->n_ready,
                       count[KVC_READY], listed, indexed, s->n_dropped, count[KVC_DROPPED], s->n_evictable, evictable);
    return 0;
}
