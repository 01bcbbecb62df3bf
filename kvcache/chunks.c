/* Index, order list and counts of the chunk store. The index has at least twice as many entries as there are slots, so
 * probes are short and always end at an empty entry. Deletion moves later entries back, so no deletion marks are
 * needed. */
#include "kvcache/chunks.h"

#include "base/mem.h"

#include <string.h>

int kvc_chunks_open(struct kvc_chunks *s, int n, const struct kvc_geometry *g, enum kvc_policy policy,
                    struct km_err *err)
{
    *s = (struct kvc_chunks){.n = n, .geometry = g, .policy = policy, .newest = -1, .oldest = -1,
                             .free = n ? 0 : -1, .n_free = n, .mask = 1};
    while (s->mask + 1 < 2 * (uint32_t)n)
        s->mask = 2 * s->mask + 1;
    s->slot = km_calloc((size_t)n, sizeof *s->slot);
    s->ids = km_calloc((size_t)n, (size_t)g->chunk_size * sizeof *s->ids);
    s->index = km_reallocarray(NULL, (size_t)s->mask + 1, sizeof *s->index);
    if (!s->slot || !s->ids || !s->index) {
        kvc_chunks_close(s);
        return km_fail(err, KM_ENOMEM,
                       "out of memory for the index of %d chunks; lower max_local_cpu_size, or raise chunk_size", n);
    }
    memset(s->index, 0xFF, ((size_t)s->mask + 1) * sizeof *s->index);
    for (int i = 0; i < n; i++)
        s->slot[i].older = i + 1 < n ? i + 1 : -1;
    return 0;
}

void kvc_chunks_close(struct kvc_chunks *s)
{
    km_free(s->slot);
    km_free(s->ids);
    km_free(s->index);
    *s = (struct kvc_chunks){.newest = -1, .oldest = -1, .free = -1};
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
    while (s->index[i] >= 0 && memcmp(&s->slot[s->index[i]].key, key, sizeof *key))
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
        uint32_t want = home(s, &s->slot[s->index[i]].key);
        if (((i - want) & s->mask) >= ((i - hole) & s->mask)) {
            s->index[hole] = s->index[i];
            hole = i;
        }
    }
    s->index[hole] = -1;
}

static void list_remove(struct kvc_chunks *s, int slot)
{
    struct kvc_slot *c = &s->slot[slot];
    *(c->newer < 0 ? &s->newest : &s->slot[c->newer].older) = c->older;
    *(c->older < 0 ? &s->oldest : &s->slot[c->older].newer) = c->newer;
}

static void list_add(struct kvc_chunks *s, int slot)
{
    struct kvc_slot *c = &s->slot[slot];
    c->newer = -1;
    c->older = s->newest;
    *(s->newest < 0 ? &s->oldest : &s->slot[s->newest].newer) = slot;
    s->newest = slot;
}

static void release(struct kvc_chunks *s, int slot)
{
    s->slot[slot].state = KVC_FREE;
    s->slot[slot].older = s->free;
    s->free = slot;
    s->n_free++;
}

int kvc_chunks_find(const struct kvc_chunks *s, const struct km_digest *key)
{
    return s->n ? s->index[probe(s, key)] : -1;
}

bool kvc_chunks_match(const struct kvc_chunks *s, int slot, const int32_t *ids, int position)
{
    size_t n = (size_t)s->geometry->chunk_size;
    return s->slot[slot].position == position && !memcmp(s->ids + (size_t)slot * n, ids, n * sizeof *ids);
}

int kvc_chunks_insert(struct kvc_chunks *s, const struct km_digest *key, const int32_t *ids, int position)
{
    if (s->free < 0 && s->n_evictable) { /* under LRU, referenced chunks are near the newest end, so few are skipped */
        int32_t victim = s->oldest;
        while (s->slot[victim].refs)
            victim = s->slot[victim].newer;
        kvc_chunks_drop(s, victim);
        s->evicted++;
    }
    int32_t slot = s->free;
    if (slot < 0)
        return -1;
    struct kvc_slot *c = &s->slot[slot];
    s->free = c->older;
    s->n_free--;
    s->n_filling++;
    *c = (struct kvc_slot){.key = *key, .position = position, .state = KVC_FILLING, .newer = -1, .older = -1};
    size_t n = (size_t)s->geometry->chunk_size;
    memcpy(s->ids + (size_t)slot * n, ids, n * sizeof *ids);
    s->index[probe(s, key)] = slot;
    return slot;
}

void kvc_chunks_publish(struct kvc_chunks *s, int slot, uint64_t checksum)
{
    struct kvc_slot *c = &s->slot[slot];
    c->checksum = checksum;
    c->state = KVC_READY;
    s->n_filling--;
    s->n_ready++;
    s->n_evictable += !c->refs;
    list_add(s, slot);
}

void kvc_chunks_drop(struct kvc_chunks *s, int slot)
{
    struct kvc_slot *c = &s->slot[slot];
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

void kvc_chunks_ref(struct kvc_chunks *s, int slot)
{
    struct kvc_slot *c = &s->slot[slot];
    s->n_evictable -= c->state == KVC_READY && !c->refs;
    c->refs++;
}

void kvc_chunks_unref(struct kvc_chunks *s, int slot)
{
    struct kvc_slot *c = &s->slot[slot];
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
    if (s->policy != KVC_LRU || s->slot[slot].state != KVC_READY || s->newest == slot)
        return;
    list_remove(s, slot);
    list_add(s, slot);
}

int kvc_chunks_clear(struct kvc_chunks *s)
{
    for (int32_t i = s->oldest, next; i >= 0; i = next) {
        next = s->slot[i].newer;
        if (!s->slot[i].refs)
            kvc_chunks_drop(s, i);
    }
    return s->n - s->n_free;
}

int kvc_chunks_check(const struct kvc_chunks *s, const int32_t *refs, struct km_err *err)
{
    int count[4] = {0}, evictable = 0, listed = 0, indexed = 0, free = 0;
    for (int i = 0; i < s->n; i++) {
        const struct kvc_slot *c = &s->slot[i];
        count[c->state]++;
        evictable += c->state == KVC_READY && !c->refs;
        bool in_index = c->state == KVC_FILLING || c->state == KVC_READY;
        if (c->refs != refs[i])
            return km_fail(err, KM_EINVAL, "slot %d records %d references, but %d exist", i, c->refs, refs[i]);
        if (c->refs && c->state == KVC_FREE)
            return km_fail(err, KM_EINVAL, "slot %d is free but has %d references", i, c->refs);
        if (in_index && kvc_chunks_find(s, &c->key) != i)
            return km_fail(err, KM_EINVAL, "slot %d (state %d) is not found under its key", i, c->state);
        if (c->state == KVC_DROPPED && !c->refs)
            return km_fail(err, KM_EINVAL, "slot %d is dropped but not free, and has no references", i);
    }
    for (uint32_t i = 0; s->n && i <= s->mask; i++)
        indexed += s->index[i] >= 0;
    for (int32_t i = s->newest, prev = -1; i >= 0; prev = i, i = s->slot[i].older)
        if (++listed > s->n || s->slot[i].state != KVC_READY || s->slot[i].newer != prev)
            return km_fail(err, KM_EINVAL, "the order list is broken at slot %d (state %d)", i, s->slot[i].state);
    for (int32_t i = s->free; i >= 0; i = s->slot[i].older)
        if (++free > s->n || s->slot[i].state != KVC_FREE)
            return km_fail(err, KM_EINVAL, "the free list is broken at slot %d (state %d)", i, s->slot[i].state);
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
