#include "kvcache/tiers/disk_index.h"

#include "base/mem.h"
#include "base/random.h"

#include <string.h>

enum { FIRST_CAP = 1024 };

static uint32_t bucket_of(const struct disk_index *x, int folder, const struct km_digest *key)
{
    uint64_t w;
    memcpy(&w, key->b, sizeof w);
    return (uint32_t)km_mix64(w + (uint64_t)folder * KM_GOLDEN64) & x->mask;
}

static void chain(struct disk_index *x, int32_t i)
{
    int32_t *b = &x->bucket[bucket_of(x, x->entry[i].folder, &x->entry[i].key)];
    x->entry[i].next = *b;
    *b = i;
}

static void unchain(struct disk_index *x, int32_t i)
{
    int32_t *p = &x->bucket[bucket_of(x, x->entry[i].folder, &x->entry[i].key)];
    while (*p != i)
        p = &x->entry[*p].next;
    *p = x->entry[i].next;
}

/* Doubles the arrays. false: no memory, and nothing has changed that matters. */
static bool grow(struct disk_index *x)
{
    int cap = x->cap ? 2 * x->cap : FIRST_CAP;
    if (x->cap > INT32_MAX / 2)
        return false;
    struct disk_entry *entry = km_reallocarray(x->entry, (size_t)cap, sizeof *entry);
    if (entry)
        x->entry = entry;
    int32_t *heap = km_reallocarray(x->heap, (size_t)cap, sizeof *heap);
    if (heap)
        x->heap = heap;
    int32_t *bucket = km_reallocarray(NULL, (size_t)cap, sizeof *bucket);
    if (!entry || !heap || !bucket) {
        km_free(bucket);
        return false;
    }
    km_free(x->bucket);
    x->bucket = bucket;
    x->mask = (uint32_t)cap - 1;
    memset(bucket, 0xFF, (size_t)cap * sizeof *bucket);
    for (int i = 0; i < x->cap; i++)
        chain(x, i); /* the list of unused entries is empty, or there would be no need to grow */
    for (int i = cap - 1; i >= x->cap; i--) {
        entry[i] = (struct disk_entry){.next = x->free, .heap = -1};
        x->free = i;
    }
    x->cap = cap;
    return true;
}

int disk_index_open(struct disk_index *x, const struct km_digest *fingerprint, struct km_err *err)
{
    *x = (struct disk_index){.free = -1};
    if (!grow(x) || disk_index_folder(x, fingerprint) < 0) {
        disk_index_close(x);
        return km_fail(err, KM_ENOMEM, "out of memory for the index of the disk tier");
    }
    return 0;
}

void disk_index_close(struct disk_index *x)
{
    km_free(x->entry);
    km_free(x->bucket);
    km_free(x->heap);
    km_free(x->folder);
    *x = (struct disk_index){.free = -1};
}

int disk_index_folder(struct disk_index *x, const struct km_digest *fingerprint)
{
    for (int i = 0; i < x->n_folders; i++)
        if (!memcmp(&x->folder[i], fingerprint, sizeof *fingerprint))
            return i;
    if (x->n_folders == DISK_FOLDERS_MOST)
        return -1;
    struct km_digest *folder = km_reallocarray(x->folder, (size_t)x->n_folders + 1, sizeof *folder);
    if (!folder)
        return -1;
    x->folder = folder;
    folder[x->n_folders] = *fingerprint;
    return x->n_folders++;
}

int32_t disk_index_find(const struct disk_index *x, int folder, const struct km_digest *key)
{
    int32_t i = x->bucket[bucket_of(x, folder, key)];
    while (i >= 0 && (x->entry[i].folder != folder || memcmp(&x->entry[i].key, key, sizeof *key)))
        i = x->entry[i].next;
    return i;
}

static void heap_put(struct disk_index *x, int at, int32_t i)
{
    x->heap[at] = i;
    x->entry[i].heap = at;
}

/* Moves entry i from position `at` of the heap to where its stamp belongs. */
static void sift(struct disk_index *x, int at, int32_t i)
{
    const int64_t stamp = x->entry[i].stamp;
    while (at > 0 && x->entry[x->heap[(at - 1) / 2]].stamp > stamp) {
        heap_put(x, at, x->heap[(at - 1) / 2]);
        at = (at - 1) / 2;
    }
    for (;;) {
        int child = 2 * at + 1;
        if (child >= x->n_heap)
            break;
        if (child + 1 < x->n_heap && x->entry[x->heap[child + 1]].stamp < x->entry[x->heap[child]].stamp)
            child++;
        if (x->entry[x->heap[child]].stamp >= stamp)
            break;
        heap_put(x, at, x->heap[child]);
        at = child;
    }
    heap_put(x, at, i);
}

static void heap_remove(struct disk_index *x, int32_t i)
{
    int at = x->entry[i].heap;
    if (at < 0)
        return;
    x->entry[i].heap = -1;
    int32_t last = x->heap[--x->n_heap];
    if (last != i)
        sift(x, at, last);
}

static bool own_ready(const struct disk_entry *e)
{
    return e->state == DISK_READY && e->folder == DISK_OWN;
}

void disk_index_set(struct disk_index *x, int32_t i, enum disk_state state, int64_t stamp)
{
    struct disk_entry *e = &x->entry[i];
    bool heaped = state == DISK_READY || state == DISK_DOOMED;
    x->own_ready -= own_ready(e);
    e->state = (uint8_t)state;
    x->own_ready += own_ready(e);
    e->stamp = stamp;
    if (!heaped)
        heap_remove(x, i);
    else
        sift(x, e->heap >= 0 ? e->heap : x->n_heap++, i);
}

int32_t disk_index_add(struct disk_index *x, int folder, const struct km_digest *key, int64_t bytes,
                       enum disk_state state, int64_t stamp)
{
    int64_t blocks = (bytes + 4095) / 4096;
    if (blocks > UINT32_MAX || (x->free < 0 && !grow(x)))
        return -1;
    int32_t i = x->free;
    x->free = x->entry[i].next;
    x->entry[i] = (struct disk_entry){
        .key = *key, .blocks = (uint32_t)blocks, .heap = -1, .seen = x->scan, .folder = (uint16_t)folder};
    chain(x, i);
    disk_index_set(x, i, state, stamp);
    x->used++;
    x->bytes += disk_entry_bytes(&x->entry[i]);
    return i;
}

void disk_index_erase(struct disk_index *x, int32_t i)
{
    disk_index_set(x, i, DISK_UNUSED, 0);
    unchain(x, i);
    x->used--;
    x->bytes -= disk_entry_bytes(&x->entry[i]);
    x->entry[i].next = x->free;
    x->free = i;
}

void disk_index_doom_folder(struct disk_index *x, int folder)
{
    for (int i = 0; i < x->cap; i++)
        if (x->entry[i].state == DISK_READY && x->entry[i].folder == folder)
            disk_index_set(x, i, DISK_DOOMED, DISK_STAMP_DOOMED);
}

int32_t disk_index_oldest(const struct disk_index *x)
{
    return x->n_heap ? x->heap[0] : -1;
}

int64_t disk_index_memory(int64_t n)
{
    int64_t cap = FIRST_CAP;
    while (cap < n)
        cap *= 2;
    return cap * (int64_t)(sizeof(struct disk_entry) + 2 * sizeof(int32_t)); /* entries, heap and buckets */
}

const char *disk_index_check(const struct disk_index *x)
{
    int used = 0, heaped = 0, own = 0;
    int64_t bytes = 0;
    for (int i = 0; i < x->cap; i++) {
        const struct disk_entry *e = &x->entry[i];
        if (e->state == DISK_UNUSED)
            continue;
        used++;
        bytes += disk_entry_bytes(e);
        own += own_ready(e);
        bool in_heap = e->state == DISK_READY || e->state == DISK_DOOMED;
        heaped += in_heap;
        if (in_heap != (e->heap >= 0) || (in_heap && (e->heap >= x->n_heap || x->heap[e->heap] != i)))
            return "an entry's position in the heap is wrong";
        if (in_heap && e->heap > 0 && x->entry[x->heap[(e->heap - 1) / 2]].stamp > e->stamp)
            return "the heap is out of order";
        if (disk_index_find(x, e->folder, &e->key) != i)
            return "an entry is not found by its key";
    }
    return used != x->used        ? "the number of entries is wrong"
           : heaped != x->n_heap  ? "the length of the heap is wrong"
           : own != x->own_ready  ? "the number of ready chunks is wrong"
           : bytes != x->bytes    ? "the number of bytes is wrong"
                                  : NULL;
}
