/* The DRAM tier's memory: slots of one chunk each, in host memory from which the device copies fastest.
 *
 * All memory is allocated when the engine attaches, because pinning is slow (about 0.6 s per GiB on a GPU) and would
 * otherwise delay requests. It is allocated in slabs of bounded size, because one huge block may be refused where
 * several smaller ones are not. Slots never exceed the budget. */
#ifndef KVC_DRAM_H
#define KVC_DRAM_H

#include "base/err.h"
#include "engine/kv_port.h"
#include "kvcache/geometry.h"

#include <stddef.h>
#include <stdint.h>

#define KVC_SLAB ((size_t)1 << 30) /* largest size of a slab in bytes; a slab of one slot may be larger */

struct kvc_dram {
    const struct kvc_geometry *geometry; /* borrowed; a slot has chunk_bytes */
    struct kv_copier copier;
    char **slab;       /* [n_slabs] blocks of per_slab slots; the last may have fewer */
    int n_slabs, per_slab, n_slots;
};

/* budget: most bytes of all slots. available: bytes that this process can allocate (km_available_memory); a larger
 * budget fails with KM_ENOMEM before anything is allocated. slab_most: largest size of a slab in bytes, KVC_SLAB. */
int kvc_dram_open(struct kvc_dram *d, const struct kvc_geometry *g, const struct kv_copier *copier, int64_t budget,
                  int64_t available, size_t slab_most, struct km_err *err);
void kvc_dram_close(struct kvc_dram *d);
/* The slot's bytes, [chunk_bytes]. */
static inline char *kvc_dram_at(const struct kvc_dram *d, int slot)
{
    return d->slab[slot / d->per_slab] + (size_t)(slot % d->per_slab) * d->geometry->chunk_bytes;
}

#endif
