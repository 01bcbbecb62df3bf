/* Slabs from the copier. The budget is compared with the memory that is available before anything is allocated: an
 * ordinary allocator promises memory that is not there, and the process would be killed in the middle of a run. */
#include "kvcache/dram.h"

#include "base/mem.h"

#include <limits.h>

/* A device without memory of its own kind for copies (a NULL verb) is served from ordinary memory; one that has it
 * and gives none is out of it. */
static void *take(const struct kvc_dram *d, size_t size)
{
    return d->copier.host_alloc ? d->copier.host_alloc(d->copier.self, size) : km_aligned(4096, size);
}

static void give_back(const struct kvc_dram *d, void *p, size_t size)
{
    if (d->copier.host_alloc)
        d->copier.host_free(d->copier.self, p, size);
    else
        km_free(p);
}

static size_t slab_bytes(const struct kvc_dram *d, int i)
{
    int left = d->n_slots - i * d->per_slab;
    return (size_t)(left < d->per_slab ? left : d->per_slab) * d->slot_bytes;
}

int kvc_dram_open(struct kvc_dram *d, const struct kv_copier *copier, size_t slot_bytes, int64_t budget,
                  int64_t available, size_t slab_most, struct km_err *err)
{
    const double gib = 1073741824.0;
    *d = (struct kvc_dram){.copier = *copier, .slot_bytes = slot_bytes};
    int64_t n = budget / (int64_t)slot_bytes;
    if (n < 1)
        return km_fail(err, KM_EINVAL,
                       "the cache may take %.6g MiB (max_local_cpu_size), but one chunk of this model is %.6g "
                       "MiB; raise it or lower chunk_size",
                       (double)budget / 1048576, (double)slot_bytes / 1048576);
    if (n > INT_MAX / 4)
        return km_fail(err, KM_EINVAL, "the cache would hold %lld chunks, more than %d; raise chunk_size",
                       (long long)n, INT_MAX / 4);
    if (budget > available)
        return km_fail(err, KM_ENOMEM,
                       "the DRAM tier is to take %.4g GiB (max_local_cpu_size), but only %.4g GiB of memory are "
                       "available to this process; lower max_local_cpu_size, or free memory",
                       (double)budget / gib, (double)available / gib);
    d->per_slab = slot_bytes >= slab_most ? 1 : (int)(slab_most / slot_bytes);
    d->n_slots = (int)n;
    int n_slabs = (d->n_slots + d->per_slab - 1) / d->per_slab;
    d->slab = km_calloc((size_t)n_slabs, sizeof *d->slab);
    if (!d->slab)
        return km_fail(err, KM_ENOMEM, "out of memory");
    for (; d->n_slabs < n_slabs; d->n_slabs++) {
        d->slab[d->n_slabs] = take(d, slab_bytes(d, d->n_slabs));
        if (!d->slab[d->n_slabs]) {
            double got = (double)d->n_slabs * (double)d->per_slab * (double)slot_bytes;
            kvc_dram_close(d);
            return km_fail(err, KM_ENOMEM,
                           "only %.4g of the cache's %.4g GiB (max_local_cpu_size) could be had from this device's "
                           "host memory; lower it",
                           got / gib, (double)budget / gib);
        }
    }
    return 0;
}

void kvc_dram_close(struct kvc_dram *d)
{
    for (int i = 0; i < d->n_slabs; i++)
        give_back(d, d->slab[i], slab_bytes(d, i));
    km_free(d->slab);
    *d = (struct kvc_dram){0};
}
