/* Slabs from the copier, or from ordinary memory. The budget is compared with the available memory before anything is
 * allocated: an ordinary allocator promises memory that is not there, and the process would be killed during a run. */
#include "kvcache/dram.h"

#include "base/buf.h"
#include "base/mem.h"

#include <limits.h>

/* Allocates page-aligned memory if the device has no host memory of its own (host_alloc NULL). */
static void *alloc_slab(const struct kvc_dram *d, size_t size)
{
    return d->copier.host_alloc ? d->copier.host_alloc(d->copier.self, size) : km_aligned(4096, size);
}

static void free_slab(const struct kvc_dram *d, void *p, size_t size)
{
    if (d->copier.host_alloc)
        d->copier.host_free(d->copier.self, p, size);
    else
        km_free(p);
}

static size_t slab_bytes(const struct kvc_dram *d, int i)
{
    int left = d->n_slots - i * d->per_slab;
    return (size_t)(left < d->per_slab ? left : d->per_slab) * d->geometry->chunk_bytes;
}

int kvc_dram_open(struct kvc_dram *d, const struct kvc_geometry *g, const struct kv_copier *copier, int64_t budget,
                  int64_t available, size_t slab_most, struct km_err *err)
{
    const size_t slot_bytes = g->chunk_bytes;
    *d = (struct kvc_dram){.geometry = g, .copier = *copier};
    int64_t n = budget / (int64_t)slot_bytes;
    if (n < 1)
        return km_fail(err, KM_EINVAL,
                       "the DRAM tier has %s (max_local_cpu_size), but one chunk of this model is %s; raise "
                       "max_local_cpu_size, or lower chunk_size",
                       km_size_text(budget).s, km_size_text((int64_t)slot_bytes).s);
    if (n > INT_MAX / 4)
        return km_fail(err, KM_EINVAL, "the DRAM tier would hold %lld chunks, more than %d; raise chunk_size",
                       (long long)n, INT_MAX / 4);
    if (budget > available)
        return km_fail(err, KM_ENOMEM,
                       "the DRAM tier is to take %s (max_local_cpu_size), but only %s of memory are available to this "
                       "process; lower max_local_cpu_size, or free memory",
                       km_size_text(budget).s, km_size_text(available).s);
    d->per_slab = slot_bytes >= slab_most ? 1 : (int)(slab_most / slot_bytes);
    d->n_slots = (int)n;
    int n_slabs = (d->n_slots + d->per_slab - 1) / d->per_slab;
    d->slab = km_calloc((size_t)n_slabs, sizeof *d->slab);
    if (!d->slab)
        return km_fail(err, KM_ENOMEM, "out of memory for the table of %d slabs", n_slabs);
    for (; d->n_slabs < n_slabs; d->n_slabs++) {
        d->slab[d->n_slabs] = alloc_slab(d, slab_bytes(d, d->n_slabs));
        if (!d->slab[d->n_slabs]) {
            int64_t got = (int64_t)d->n_slabs * d->per_slab * (int64_t)slot_bytes;
            kvc_dram_close(d);
            return km_fail(err, KM_ENOMEM,
                           "the device gave only %s of host memory for the DRAM tier's %s (max_local_cpu_size); lower "
                           "max_local_cpu_size",
                           km_size_text(got).s, km_size_text(budget).s);
        }
    }
    return 0;
}

void kvc_dram_close(struct kvc_dram *d)
{
    for (int i = 0; i < d->n_slabs; i++)
        free_slab(d, d->slab[i], slab_bytes(d, i));
    km_free(d->slab);
    *d = (struct kvc_dram){0};
}
