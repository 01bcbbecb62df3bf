/* The functions of the engine's port: sequences, lookups, and the choice of what to load and to store.
 *
 * Two decisions keep the cache simple. All state changes on the engine's thread, inside a call of the port; checksum
 * threads only read bytes. And a store inserts the chunks of its sequence in order and stops at the first one that it
 * cannot insert, because a lookup stops at the first chunk that it misses and would not find the chunks after it. */
#include "kvcache/kvcache.h"

#include "base/machine.h"
#include "base/mem.h"
#include "kvcache/internal.h"
#include "kvcache/transfer.h"

#include <string.h>

static struct kv_seq *port_open(void *self, const char *salt)
{
    struct kvc *k = self;
    struct kv_seq *s = km_calloc(1, sizeof *s);
    if (!s)
        return NULL;
    s->kvc = k;
    s->detached = !k->attached;
    if (k->active)
        s->root = kvc_keys_root(&k->keys, salt);
    s->next = k->seqs;
    if (s->next)
        s->next->prev = s;
    k->seqs = s;
    return s;
}

static void port_close(struct kv_seq *s)
{
    if (!s)
        return;
    struct kvc *k = s->kvc;
    kvc_transfer_forget_seq(s);
    kvc_seq_unpin(s);
    *(s->prev ? &s->prev->next : &k->seqs) = s->next;
    if (s->next)
        s->next->prev = s->prev;
    km_free(s->key);
    km_free(s->pin);
    km_free(s);
}

static int port_lookup(struct kv_seq *s, const int32_t *tokens, int n)
{
    struct kvc *k = s->kvc;
    k->stats.lookups++;
    k->stats.lookup_tokens += n > 0 ? n : 0;
    kvc_transfer_forget_seq(s);
    kvc_seq_unpin(s);
    s->n_offered = 0;
    if (s->detached || !k->active || !k->chunks.n_ready)
        return 0;
    const int C = k->geometry.chunk_size, whole = n / C;
    if (whole < 1 || !kvc_seq_reserve(s, whole))
        return 0;
    for (int i = 0; i < whole; i++) {
        int slot = kvc_chunks_find(&k->chunks, kvc_seq_key(s, i, tokens));
        if (slot < 0 || k->chunks.slot[slot].state != KVC_READY ||
            !kvc_chunks_match(&k->chunks, slot, tokens + (size_t)i * (size_t)C, i))
            break;
        kvc_chunks_ref(&k->chunks, slot);
        s->pin[s->n_pins++] = slot;
    }
    for (int i = s->n_pins - 1; i >= 0; i--) /* the first chunk becomes the newest and is evicted last */
        kvc_chunks_touch(&k->chunks, s->pin[i]);
    k->stats.hit_tokens += (int64_t)s->n_pins * C;
    return s->n_pins * C;
}

static int port_load(struct kv_seq *s, int from, int to, const int32_t *block_table, uint64_t *ticket, int *good)
{
    struct kvc *k = s->kvc;
    const int B = k->geometry.pool.block_size, C = k->geometry.chunk_size;
    *ticket = 0;
    *good = from;
    if (from < 0 || from > to || to > s->n_pins * C || (to && (from % B || to % B)))
        return KM_EINVAL;
    if (from == to) {
        kvc_seq_unpin(s);
        return 0;
    }
    int first = from / C, last = (to - 1) / C;
    struct kvc_transfer *t = kvc_transfer_new(s, KV_TO_PAGE, last - first + 1, (to - from) / B);
    if (!t)
        return KM_ENOMEM;
    for (int i = first; i <= last; i++) {
        int lo = i * C > from ? i * C : from, hi = (i + 1) * C < to ? (i + 1) * C : to;
        kvc_transfer_add(t, s->pin[i], i * C, (lo - i * C) / B, (hi - lo) / B, block_table + lo / B);
    }
    kvc_transfer_start(t, from, to, ticket, good); /* the engine learns of a failure from *good */
    return 0;
}

static int port_store(struct kv_seq *s, const int32_t *tokens, int n, int n_prompt, const int32_t *block_table,
                      uint64_t *ticket)
{
    struct kvc *k = s->kvc;
    *ticket = 0;
    /* All pinned tokens are in the pages, so the engine will not load them. */
    if (n >= s->n_pins * k->geometry.chunk_size)
        kvc_seq_unpin(s);
    if (s->detached || !k->active)
        return 0;
    if (!k->cfg.save_decode && n > n_prompt)
        n = n_prompt;
    const int C = k->geometry.chunk_size, per_chunk = k->geometry.chunk_pages, whole = n / C;
    if (whole <= s->n_offered)
        return 0;
    struct kvc_transfer *t = NULL;
    if (kvc_seq_reserve(s, whole))
        t = kvc_transfer_new(s, KV_TO_HOST, whole, (whole - s->n_offered) * per_chunk);
    if (!t)
        return KM_ENOMEM;
    int i;
    for (i = 0; i < whole; i++) {
        const struct km_digest *key = kvc_seq_key(s, i, tokens);
        const int32_t *ids = tokens + (size_t)i * (size_t)C;
        int slot = kvc_chunks_find(&k->chunks, key);
        if (slot >= 0) {
            if (!kvc_chunks_match(&k->chunks, slot, ids, i))
                break; /* another chunk has this key: a lookup would stop here */
            if (k->chunks.slot[slot].state == KVC_READY)
                kvc_transfer_add(t, slot, i * C, 0, 0, NULL);
            continue;
        }
        if (i < s->n_offered) /* evicted after it was offered: storing it again would only evict others */
            break;
        slot = kvc_chunks_insert(&k->chunks, key, ids, i);
        if (slot < 0)
            break;
        kvc_transfer_add(t, slot, i * C, 0, per_chunk, block_table + (size_t)i * (size_t)per_chunk);
    }
    s->n_offered = i > s->n_offered ? i : s->n_offered;
    return kvc_transfer_start(t, 0, i * C, ticket, NULL);
}

static int port_poll(void *self, uint64_t ticket, int *good)
{
    return kvc_transfer_poll(self, ticket, good);
}

static int port_reset(void *self)
{
    struct kvc *k = self;
    return kvc_chunks_clear(&k->chunks) ? KM_ELIMIT : 0;
}

static void port_stats(void *self, struct kv_port_stats *out)
{
    const struct kvc *k = self;
    const int64_t chunk = (int64_t)k->geometry.chunk_bytes;
    *out = k->stats;
    out->evicted_chunks = k->chunks.evicted;
    out->chunks = k->chunks.n_ready;
    out->bytes = (int64_t)(k->chunks.n - k->chunks.n_free) * chunk;
    out->capacity = (int64_t)k->chunks.n * chunk;
}

static void close_parts(struct kvc *k)
{
    kvc_chunks_close(&k->chunks);
    kvc_dram_close(&k->dram);
    kvc_keys_close(&k->keys);
    k->attached = k->active = k->async_copies = false;
}

static int open_parts(struct kvc *k, struct km_err *err)
{
    const struct kvc_geometry *g = &k->geometry;
    int rc = kvc_keys_open(&k->keys, g, err);
    if (!rc)
        rc = kvc_dram_open(&k->dram, g, &k->copier, k->cfg.max_local_cpu, km_available_memory(""), k->slab_bytes, err);
    if (!rc)
        rc = kvc_chunks_open(&k->chunks, k->dram.n_slots, g, k->cfg.policy, err);
    if (rc) {
        close_parts(k);
        return rc;
    }
    kvc_checksum_pool_open(&k->checksums);
    k->active = true;
    return 0;
}

static int port_attach(void *self, const struct kv_geom *geom, const struct kv_copier *copier, struct km_err *err)
{
    struct kvc *k = self;
    if (k->attached)
        return km_fail(err, KM_EINVAL, "this cache is attached to an engine already; open one cache for each engine");
    int rc = kvc_geometry_init(&k->geometry, geom, k->cfg.chunk_size, err);
    if (rc)
        return rc;
    k->copier = *copier;
    if (k->cfg.local_cpu)
        rc = open_parts(k, err);
    k->attached = !rc;
    return rc;
}

static void port_detach(void *self)
{
    struct kvc *k = self;
    if (!k->attached)
        return;
    bool drained = kvc_transfer_drain(k);
    for (struct kv_seq *s = k->seqs; s; s = s->next) {
        kvc_seq_unpin(s);
        s->detached = true;
    }
    if (k->active)
        kvc_checksum_pool_close(&k->checksums);
    if (!drained) { /* copies may still write to the slabs, so their memory must not be freed: it leaks */
        k->dram = (struct kvc_dram){0};
        memset(k->transfers, 0, (size_t)k->cap_transfers * sizeof *k->transfers);
        k->n_transfers = 0;
    }
    close_parts(k);
}

int kvc_open(struct kvc **out, const struct kvc_config *c, struct km_err *err)
{
    if (c->chunk_size < 1)
        return km_fail(err, KM_EINVAL, "chunk_size is %d; it must be 1 or more (256 is usual)", c->chunk_size);
    if (c->local_cpu && c->max_local_cpu < 1)
        return km_fail(err, KM_EINVAL, "max_local_cpu_size is %lld bytes; set it to at least the size of one chunk",
                       (long long)c->max_local_cpu);
    struct kvc *k = km_calloc(1, sizeof *k);
    if (!k)
        return km_fail(err, KM_ENOMEM, "out of memory for the cache layer");
    k->cfg = *c;
    k->slab_bytes = KVC_SLAB;
    kvc_chunks_close(&k->chunks); /* an empty store until an engine attaches */
    *out = k;
    return 0;
}

void kvc_free(struct kvc *k)
{
    if (!k)
        return;
    port_detach(k);
    while (k->seqs)
        port_close(k->seqs);
    km_free(k->transfers);
    km_free(k);
}

void kvc_port(struct kvc *k, struct kv_port *out)
{
    *out = (struct kv_port){.self = k,
                            .chunk_size = k->cfg.chunk_size,
                            .attach = port_attach,
                            .detach = port_detach,
                            .open = port_open,
                            .lookup = port_lookup,
                            .load = port_load,
                            .store = port_store,
                            .poll = port_poll,
                            .close = port_close,
                            .reset = port_reset,
                            .stats = port_stats};
}

int64_t kvc_checksum_ns(const struct kvc *k)
{
    return k->checksum_ns;
}

int kvc_check(const struct kvc *k, struct km_err *err)
{
    int32_t *refs = km_calloc((size_t)k->chunks.n, sizeof *refs);
    if (!refs)
        return km_fail(err, KM_ENOMEM, "out of memory for the reference counts of %d slots", k->chunks.n);
    for (const struct kv_seq *s = k->seqs; s; s = s->next)
        for (int i = 0; i < s->n_pins; i++)
            refs[s->pin[i]]++;
    kvc_transfer_count_refs(k, refs);
    int rc = kvc_chunks_check(&k->chunks, refs, err);
    km_free(refs);
    int open = 0;
    for (int i = 0; i < k->cap_transfers; i++)
        open += k->transfers[i] != NULL;
    if (!rc && open != k->n_transfers)
        return km_fail(err, KM_EINVAL, "%d tickets are open, but %d are counted", open, k->n_transfers);
    int64_t budget = k->active ? k->cfg.max_local_cpu : 0;
    if (!rc && (int64_t)k->chunks.n * (int64_t)k->geometry.chunk_bytes > budget)
        return km_fail(err, KM_EINVAL, "%d slots of %zu bytes exceed the budget of %lld bytes", k->chunks.n,
                       k->geometry.chunk_bytes, (long long)budget);
    return rc;
}
