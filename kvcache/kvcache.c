/* The store: opening, sharing among engines, reset, statistics and checks. */
#include "kvcache/kvcache.h"

#include "base/clock.h"
#include "base/mem.h"
#include "kvcache/internal.h"
#include "kvcache/op.h"
#include "kvcache/sequence.h"
#include "kvcache/view.h"

#include <string.h>
#include <unistd.h>

int64_t kvc_now(const struct kvc_view *v)
{
    return v && !v->kvc->threaded ? kvc_view_now(v) : km_now_ns();
}

void kvc_grow(struct kvc *k)
{
    if (k->active && k->chunks.n_usable < k->chunks.n)
        kvc_chunks_grow(&k->chunks, kvc_pool_usable(k->pool));
}

void kvc_unref(struct kvc *k, int slot)
{
    kvc_chunks_unref(&k->chunks, slot);
    const struct kvc_chunk *c = &k->chunks.chunk[slot];
    if (!k->cfg.local_cpu && c->state == KVC_READY && !c->refs)
        kvc_chunks_leave(&k->chunks, slot);
}

void kvc_drop_corrupt(struct kvc *k, int slot, int tier)
{
    struct kvc_chunk *c = &k->chunks.chunk[slot];
    if (c->state != KVC_READY)
        return; /* another load has dropped it already */
    k->corrupt_chunks++;
    if (tier >= 0)
        kvc_tier_remove(k, tier, &c->key);
    kvc_chunks_drop(&k->chunks, slot);
}

static void close_store(struct kvc *k)
{
    kvc_tiers_close(k);
    kvc_chunks_close(&k->chunks);
    kvc_pool_close(k->pool);
    kvc_keys_close(&k->keys);
    km_free(k->lost);
    k->pool = NULL;
    k->lost = NULL;
    k->open = k->active = k->resetting = false;
    k->throttle_at = k->throttle_free = 0;
}

/* Opens pool, index and tiers for k->geometry. */
static int open_parts(struct kvc *k, struct km_err *err)
{
    int rc = kvc_pool_open(&k->pool, &k->geometry, k->cfg.max_local_cpu, "", k->slab_bytes, err);
    if (!rc)
        rc = kvc_chunks_open(&k->chunks, kvc_pool_slots(k->pool), k->cfg.policy, err);
    if (rc)
        return rc;
    k->lost = km_calloc((size_t)k->chunks.n, sizeof *k->lost);
    if (!k->lost)
        return km_fail(err, KM_ENOMEM, "out of memory for the cache layer's index");
    rc = kvc_tiers_open(k, err);
    if (rc)
        return rc;
    k->active = true;
    return k->threaded ? kvc_driver_start(k, err) : 0;
}

static int open_store(struct kvc *k, const struct kvc_geometry *g, bool threaded, struct km_err *err)
{
    k->geometry = *g;
    k->threaded = threaded;
    int rc = kvc_keys_open(&k->keys, &k->geometry, err);
    if (!rc && (k->cfg.local_cpu || k->cfg.n_tiers))
        rc = open_parts(k, err);
    if (rc)
        close_store(k);
    else
        k->open = true;
    return rc;
}

static bool shared(const struct kvc *k)
{
    for (const struct kvc_view *v = k->views; v; v = v->next)
        if (v->attached)
            return true;
    return false;
}

int kvc_join(struct kvc *k, const struct kv_geom *geom, const struct kv_copier *copier, struct km_err *err)
{
    struct kvc_geometry g;
    struct kvc_keys keys;
    int rc = kvc_geometry_init(&g, geom, k->cfg.chunk_size, copier->payload, err);
    if (!rc)
        rc = kvc_keys_open(&keys, &g, err);
    if (rc)
        return rc;
    const bool same = k->open && !memcmp(&keys.fingerprint, &k->keys.fingerprint, sizeof keys.fingerprint) &&
                      g.payload == k->geometry.payload && copier->threads == k->threaded;
    kvc_keys_close(&keys);
    if (same)
        return 0;
    if (shared(k))
        return km_fail(err, KM_EINVAL, "this store is in use by an engine whose model, KV shape or device differs; "
                                       "open a store of its own for this engine");
    if (k->open && !kvc_driver_stop(k))
        return km_fail(err, KM_EDEVICE, "a copy or a tier of the cache layer does not come to an end; restart the "
                                        "server");
    if (k->open)
        close_store(k);
    return open_store(k, &g, copier->threads, err);
}

static void init_locks(struct kvc *k)
{
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_mutex_init(&k->doors, NULL);
    pthread_mutex_init(&k->lock, NULL);
    pthread_cond_init(&k->work, &attr);
    pthread_cond_init(&k->passed, &attr);
    pthread_condattr_destroy(&attr);
}

int kvc_open(struct kvc **out, const struct kvc_config *c, struct km_err *err)
{
    if (c->chunk_size < 1)
        return km_fail(err, KM_EINVAL, "chunk_size is %d; it must be 1 or more (256 is usual)", c->chunk_size);
    if ((c->local_cpu || c->n_tiers) && c->max_local_cpu < 1)
        return km_fail(err, KM_EINVAL, "max_local_cpu_size is %lld bytes; set it to at least the size of one chunk",
                       (long long)c->max_local_cpu);
    struct kvc *k = km_calloc(1, sizeof *k);
    if (!k)
        return km_fail(err, KM_ENOMEM, "out of memory for the cache layer");
    k->cfg = *c;
    k->slab_bytes = KVC_SLAB;
    init_locks(k);
    *out = k;
    return 0;
}

int kvc_port(struct kvc *k, struct kv_port *out, struct km_err *err)
{
    struct kvc_view *v = km_calloc(1, sizeof *v);
    if (!v)
        return km_fail(err, KM_ENOMEM, "out of memory for an engine's view of the cache layer");
    v->kvc = k;
    v->ops_end = &v->ops;
    pthread_mutex_lock(&k->lock);
    v->next = k->views;
    k->views = v;
    pthread_mutex_unlock(&k->lock);
    kvc_view_port(v, out);
    return 0;
}

void kvc_free(struct kvc *k)
{
    if (!k)
        return;
    for (struct kvc_view *v = k->views; v; v = v->next)
        kvc_view_detach(v);
    if (!kvc_driver_stop(k))
        return; /* the thread is in a call that does not return; it may use anything of the store, which leaks */
    while (k->views) {
        struct kvc_view *v = k->views;
        k->views = v->next;
        kvc_view_free(v);
    }
    if (k->open)
        close_store(k);
    pthread_cond_destroy(&k->work);
    pthread_cond_destroy(&k->passed);
    pthread_mutex_destroy(&k->lock);
    pthread_mutex_destroy(&k->doors);
    km_free(k);
}

bool kvc_settle(struct kvc *k, double seconds)
{
    const int64_t until = km_now_ns() + (int64_t)(seconds * 1e9);
    for (;;) {
        kvc_drive(k, NULL);
        pthread_mutex_lock(&k->lock);
        bool busy = k->active && (kvc_pool_growing(k->pool) || kvc_tiers_open_ios(k));
        for (const struct kvc_view *v = k->views; v && k->threaded; v = v->next)
            busy |= v->ops != NULL;
        kvc_grow(k);
        pthread_mutex_unlock(&k->lock);
        if (!busy)
            return true;
        if (km_now_ns() > until)
            return false;
        usleep(200);
    }
}

bool kvc_memory_ready(struct kvc *k, struct km_err *why)
{
    *why = (struct km_err){0};
    pthread_mutex_lock(&k->lock);
    const bool ready = !k->active || !kvc_pool_growing(k->pool);
    if (k->active && ready)
        kvc_pool_wait(k->pool, why);
    pthread_mutex_unlock(&k->lock);
    return ready;
}

/* Asks every tier to drop its chunks: 1 while one of them has not done so, 0, or < 0 if one has failed. */
static int reset_tiers(struct kvc *k)
{
    int rc = 0;
    for (int i = 0; i < k->cfg.n_tiers; i++) {
        struct kvc_tier_io *t = &k->tier[i];
        if (!k->resetting)
            t->clear = KVC_CLEAR_ASKED;
        if (t->clear == KVC_CLEAR_ASKED || t->clear == KVC_CLEAR_RUNS)
            rc = 1;
        else if (t->clear == KVC_CLEAR_FAILED && !rc)
            rc = KM_EIO;
    }
    k->resetting = rc == 1;
    for (int i = 0; i < k->cfg.n_tiers && !k->resetting; i++)
        k->tier[i].clear = KVC_CLEAR_NONE;
    return rc;
}

int kvc_reset(struct kvc_view *v)
{
    struct kvc *k = v->kvc;
    kvc_drive(k, v);
    int rc = 0;
    pthread_mutex_lock(&k->lock);
    if (k->active) {
        rc = reset_tiers(k);
        kvc_chunks_clear(&k->chunks);
        if (!rc && k->chunks.n_ready + k->chunks.n_filling)
            rc = KM_ELIMIT;
        kvc_driver_wake(k);
    }
    pthread_mutex_unlock(&k->lock);
    return rc;
}

static void add_row(struct kv_port_stats *out, const char *tier, const char *name, const char *help, bool gauge,
                    double value)
{
    if (out->n_rows < KV_STAT_ROWS)
        out->rows[out->n_rows++] = (struct kv_stat_row){tier, name, help, gauge, value};
}

static void tier_rows(struct kv_port_stats *out, const struct kvc_tier_io *t)
{
    const char *n = t->ops->name;
    add_row(out, n, "hit_tokens", "Tokens that lookups found in this tier.", false, (double)t->hit_tokens);
    add_row(out, n, "gets", "Chunks fetched from this tier.", false, (double)t->gets);
    add_row(out, n, "get_bytes", "Bytes fetched from this tier.", false, (double)t->get_bytes);
    add_row(out, n, "puts", "Chunks stored in this tier.", false, (double)t->puts);
    add_row(out, n, "put_bytes", "Bytes stored in this tier.", false, (double)t->put_bytes);
    add_row(out, n, "failures", "Chunks that this tier failed to deliver or to store.", false, (double)t->failures);
    add_row(out, n, "late", "Operations that missed their deadline.", false, (double)t->late);
    add_row(out, n, "dropped_puts",
            "Chunks that were not stored because too many were queued; they are queued again when they are used.",
            false, (double)t->dropped_puts);
    add_row(out, n, "queued_puts", "Chunks that wait to be stored in this tier, or are being stored.", true,
            (double)(t->n_queue + t->n_puts));
}

void kvc_stats(struct kvc *k, struct kv_port_stats *out)
{
    pthread_mutex_lock(&k->lock);
    kvc_grow(k);
    const struct kvc_chunks *c = &k->chunks;
    out->corrupt_chunks = k->corrupt_chunks;
    out->n_rows = 0;
    if (k->active) {
        out->evicted_chunks = c->evicted;
        out->chunks = c->n_ready;
        out->capacity = kvc_pool_bytes(k->pool);
        out->bytes = c->n_usable ? out->capacity / c->n_usable * (c->n_usable - c->n_free) : 0;
        add_row(out, "dram", "hit_tokens", "Tokens that lookups found in this tier.", false,
                (double)k->dram_hit_tokens);
        add_row(out, "dram", "chunks", "Chunks in this tier.", true, (double)out->chunks);
        add_row(out, "dram", "bytes", "Bytes in use in this tier.", true, (double)out->bytes);
        add_row(out, "dram", "capacity_bytes", "Most bytes that this tier can use now.", true, (double)out->capacity);
        add_row(out, "dram", "unregistered_bytes",
                "Bytes of this tier that the device refused to register, so that copies of them are slower.", true,
                (double)kvc_pool_unregistered(k->pool));
        add_row(out, "dram", "evicted_chunks", "Chunks removed from this tier to make room.", false,
                (double)c->evicted);
        if (k->cfg.n_tiers)
            add_row(out, "dram", "lost_chunks",
                    "Chunks removed from this tier to make room that no other tier had, because storing them there was "
                    "dropped or failed.",
                    false, (double)c->lost);
        add_row(out, "dram", "growing", "1 while more host memory is being allocated.", true,
                kvc_pool_growing(k->pool));
        for (int i = 0; i < k->cfg.n_tiers; i++)
            tier_rows(out, &k->tier[i]);
    }
    const bool active = k->active;
    pthread_mutex_unlock(&k->lock);
    for (int i = 0; i < k->cfg.n_tiers && active; i++) { /* tiers close only when no engine is attached */
        const struct kvc_tier_io *t = &k->tier[i];
        const int first = out->n_rows,
                  n = t->ops->stats ? t->ops->stats(t->tier, out->rows + first, KV_STAT_ROWS - first) : 0;
        for (int j = 0; j < n; j++)
            out->rows[first + j].tier = t->ops->name;
        out->n_rows += n;
    }
}

/* Counts the references that sequences, operations and tiers hold. */
static void count_refs(const struct kvc *k, int32_t *refs)
{
    memcpy(refs, k->lost, (size_t)k->chunks.n * sizeof *refs);
    kvc_tiers_count_refs(k, refs);
    for (const struct kvc_view *v = k->views; v; v = v->next) {
        for (const struct kv_seq *s = v->seqs; s; s = s->next)
            for (int i = 0; i < s->n_found; i++)
                if (s->found[i].slot >= 0)
                    refs[s->found[i].slot]++;
        for (const struct kvc_op *op = v->ops; op; op = op->next_op)
            kvc_op_count_refs(op, refs);
    }
}

int kvc_check(struct kvc *k, struct km_err *err)
{
    pthread_mutex_lock(&k->lock);
    int rc = 0, n = k->chunks.n;
    if (k->active) {
        int32_t *refs = km_calloc((size_t)n, sizeof *refs);
        if (refs) {
            count_refs(k, refs);
            rc = kvc_chunks_check(&k->chunks, refs, err);
        } else
            rc = km_fail(err, KM_ENOMEM, "out of memory for the reference counts of %d slots", n);
        km_free(refs);
        const int64_t bytes = (int64_t)n * (int64_t)(k->geometry.payload_bytes + k->geometry.header_bytes);
        if (!rc && bytes > k->cfg.max_local_cpu)
            rc = km_fail(err, KM_EINVAL, "%d slots of %zu bytes exceed the budget of %lld bytes", n,
                         k->geometry.payload_bytes + k->geometry.header_bytes, (long long)k->cfg.max_local_cpu);
    }
    for (const struct kvc_view *v = k->views; v; v = v->next) {
        int flying = 0;
        for (const struct kvc_op *op = v->ops; op; op = op->next_op)
            flying += op->n_flying;
        if (!rc && v->lane && flying != v->lane[0].n + v->lane[1].n)
            rc = km_fail(err, KM_EINVAL, "%d pieces are in flight, but operations count %d",
                         v->lane[0].n + v->lane[1].n, flying);
    }
    pthread_mutex_unlock(&k->lock);
    return rc;
}
