/* The DRAM tier's memory: equal slots, one chunk each, in memory that copies are fastest to.
 *
 * All of it is taken when the engine attaches, in slabs of bounded size: pinning is slow (about 0.6 s per GiB on a
 * GPU), so it belongs to start-up and not to some request's latency, and one huge block is refused where several
 * are not. The budget is a ceiling that slots never pass. */
#ifndef KVC_DRAM_H
#define KVC_DRAM_H

#include "base/err.h"
#include "engine/kv_port.h"

#include <stddef.h>
#include <stdint.h>

#define KVC_SLAB ((size_t)1 << 30) /* usual size of a slab: at most this, or one slot */

struct kvc_dram {
    struct kv_copier copier;
    char **slab;   /* [n_slabs], per_slab slots each, the last one maybe fewer */
    int n_slabs, per_slab, n_slots;
    size_t slot_bytes;
};

/* available: what km_available_memory says. A larger budget is KM_ENOMEM, before anything is allocated. */
int kvc_dram_open(struct kvc_dram *d, const struct kv_copier *copier, size_t slot_bytes, int64_t budget,
                  int64_t available, size_t slab_most, struct km_err *err);
void kvc_dram_close(struct kvc_dram *d);
static inline char *kvc_dram_at(const struct kvc_dram *d, int slot)
{
    return d->slab[slot / d->per_slab] + (size_t)(slot % d->per_slab) * d->slot_bytes;
}

#endif
