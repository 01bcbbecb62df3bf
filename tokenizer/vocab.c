/* A hash table with open addressing, at most half full. A slot keeps half of the hash, so that a search skips the slots
 * of other tokens without reading their bytes. */
#include "tokenizer/vocab.h"

#include "base/mem.h"

#include <string.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

int voc_open(struct voc *v, int32_t n, int32_t total, size_t size, struct km_err *err)
{
    size_t slots = 16;
    while (slots < (size_t)n * 2)
        slots *= 2;
    *v = (struct voc){.n = n, .total = total, .mask = (uint32_t)(slots - 1)};
    v->bytes = km_malloc(size);
    v->off = km_calloc((size_t)total + 1, sizeof *v->off);
    v->slot = km_calloc(slots, sizeof *v->slot);
    if (!v->bytes || !v->off || !v->slot)
        return km_fail(err, KM_ENOMEM, "out of memory for a vocabulary of %d tokens", (int)total);
    return 0;
}

void voc_free(struct voc *v)
{
    km_free(v->bytes);
    km_free(v->off);
    km_free(v->slot);
    *v = (struct voc){0};
}

/* The slot of the token s[0..n), or the free slot where it belongs. h: its hash. */
static uint64_t *find_slot(const struct voc *v, const char *s, size_t n, uint64_t h)
{
    for (uint32_t i = (uint32_t)h & v->mask;; i = (i + 1) & v->mask) {
        uint64_t slot = v->slot[i];
        if (!slot)
            return &v->slot[i];
        if (slot >> 32 == h >> 32) {
            size_t len;
            const char *p = voc_bytes(v, (int32_t)((uint32_t)slot - 1), &len);
            if (len == n && !memcmp(p, s, n))
                return &v->slot[i];
        }
    }
}

bool voc_put(struct voc *v, int32_t id, const char *s, size_t n)
{
    memcpy(v->bytes + v->off[id], s, n);
    v->off[id + 1] = v->off[id] + (uint32_t)n;
    if (id >= v->n)
        return true;
    if (n > v->longest)
        v->longest = n;
    uint64_t h = XXH3_64bits(s, n), *slot = find_slot(v, s, n, h);
    if (*slot)
        return false;
    *slot = h >> 32 << 32 | ((uint32_t)id + 1);
    return true;
}

int32_t voc_find(const struct voc *v, const char *s, size_t n)
{
    if (n > v->longest)
        return -1;
    uint64_t h = XXH3_64bits(s, n);
    return (int32_t)((uint32_t)*find_slot(v, s, n, h)) - 1;
}
