/* The engine's port: sequences, lookups, and what to load and store.
 *
 * Two decisions keep it simple. All state changes happen on the engine's thread, inside a call of the port; the
 * checksum threads see bytes only. And a sequence stores its chunks in order and stops at the first one that it
 * cannot keep, so that whatever is in the store can be reached by a lookup from the start. */
#include "kvcache/kvcache.h"

#include "base/machine.h"
#include "base/mem.h"
#include "kvcache/internal.h"
#include "kvcache/transfer.h"

#include <math.h>
#include <string.h>

void kvc_unpin(struct kv_seq *s)
{
    while (s->n_pins)
        kvc_chunks_unref(&s->kvc->chunks, s->pin[--s->n_pins]);
}

/* Room for n keys and pins; keeps what it has when it fails. */
static bool reserve(struct kv_seq *s, int n)
{
    if (n <= s->cap)
        return true;
    struct km_digest *key = km_reallocarray(s->key, (size_t)n, sizeof *key);
    if (key)
        s->key = key;
    int32_t *pin = key ? km_reallocarray(s->pin, (size_t)n, sizeof *pin) : NULL;
    if (!pin)
        return false;
    s->pin = pin;
    s->cap = n;
    return true;
}

/* The key of chunk i; the keys before it are there. tokens: the whole sequence. */
static const struct km_digest *chunk_key(struct kv_seq *s, int i, const int32_t *tokens)
{
    struct kvc *k = s->kvc;
    if (i == s->n_keys) {
        s->key[i] = kvc_keys_next(&k->keys, i ? &s->key[i - 1] : &s->root, tokens + (size_t)i * k->cfg.chunk_size);
        s->n_keys++;
    }
    return &s->key[i];
}

static struct kv_seq *port_open(void *self, const char *salt)
{
    struct kvc *k = self;
    struct kv_seq *s = km_calloc(1, sizeof *s);
    if (!s)
        return NULL;
    s->kvc = k;
    s->dead = !k->attached;
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
    kvc_unpin(s);
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
    k->st.lookups++;
    k->st.lookup_tokens += n > 0 ? n : 0;
    kvc_transfer_forget_seq(s);
    kvc_unpin(s);
    s->kept = 0;
    int whole = n / k->cfg.chunk_size;
    if (s->dead || !k->active || !k->chunks.n_ready || whole < 1 || !reserve(s, whole))
        return 0;
    for (int i = 0; i < whole; i++) {
        int slot = kvc_chunks_find(&k->chunks, chunk_key(s, i, tokens));
        if (slot < 0 || k->chunks.slot[slot].state != KVC_READY ||
            !kvc_chunks_match(&k->chunks, slot, tokens + (size_t)i * k->cfg.chunk_size, i))
            break;
        kvc_chunks_ref(&k->chunks, slot);
        s->pin[s->n_pins++] = slot;
    }
    for (int i = s->n_pins - 1; i >= 0; i--) /* heads newest: tails are evicted first */
        kvc_chunks_touch(&k->chunks, s->pin[i]);
    k->st.hit_tokens += (int64_t)s->n_pins * k->cfg.chunk_size;
    return s->n_pins * k->cfg.chunk_size;
}

static int port_load(struct kv_seq *s, int from, int to, const int32_t *block_table, uint64_t *ticket, int *good)
{
    struct kvc *k = s->kvc;
    int B = k->geom.block_size, C = k->cfg.chunk_size;
    *ticket = 0;
    *good = from;
    if (from < 0 || from > to || to > s->n_pins * C || (to && (from % B || to % B)))
        return KM_EINVAL;
    if (from == to) { /* nothing wanted after all */
        kvc_unpin(s);
        return 0;
    }
    int first = from / C, last = (to - 1) / C;
    struct kvc_transfer *op = kvc_transfer_new(s, KV_TO_PAGE, last - first + 1, (to - from) / B);
    if (!op)
        return KM_ENOMEM;
    for (int i = first; i <= last; i++) {
        int lo = i * C > from ? i * C : from, hi = (i + 1) * C < to ? (i + 1) * C : to;
        kvc_transfer_add(op, s->pin[i], i * C, (lo - i * C) / B, (hi - lo) / B, block_table + lo / B);
    }
    kvc_transfer_start(op, from, to, ticket, good); /* a failure is told by *good */
    return 0;
}

static int port_store(struct kv_seq *s, const int32_t *tokens, int n, int n_prompt, const int32_t *block_table,
                      uint64_t *ticket)
{
    struct kvc *k = s->kvc;
    int B = k->geom.block_size, C = k->cfg.chunk_size;
    *ticket = 0;
    if (n >= s->n_pins * C) /* what is computed needs no load */
        kvc_unpin(s);
    if (!k->cfg.save_decode && n > n_prompt)
        n = n_prompt;
    int whole = n / C, i;
    if (s->dead || !k->active || whole <= s->kept)
        return 0;
    struct kvc_transfer *op = reserve(s, whole) ? kvc_transfer_new(s, KV_TO_HOST, whole, (whole - s->kept) * (C / B)) : NULL;
    if (!op)
        return KM_ENOMEM;
    for (i = 0; i < whole; i++) {
        const struct km_digest *key = chunk_key(s, i, tokens);
        const int32_t *ids = tokens + (size_t)i * C;
        int slot = kvc_chunks_find(&k->chunks, key);
        if (slot >= 0) {
            if (!kvc_chunks_match(&k->chunks, slot, ids, i))
                break; /* someone else's key: what follows could not be found behind it */
            if (k->chunks.slot[slot].state == KVC_READY)
                kvc_transfer_add(op, slot, i * C, 0, 0, NULL);
            continue;
        }
        if (i < s->kept) /* lost since: storing it again and again would only push out others */
            break;
        slot = kvc_chunks_insert(&k->chunks, key, ids, i);
        if (slot < 0)
            break;
        kvc_transfer_add(op, slot, i * C, 0, C / B, block_table + (size_t)i * (C / B));
    }
    s->kept = i > s->kept ? i : s->kept;
    return kvc_transfer_start(op, 0, i * C, ticket, NULL);
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
    *out = k->st;
    out->evicted_chunks = k->chunks.evicted;
    out->chunks = k->chunks.n_ready;
    out->bytes = (int64_t)(k->chunks.n - k->chunks.n_free) * (int64_t)k->dram.slot_bytes;
    out->capacity = (int64_t)k->chunks.n * (int64_t)k->dram.slot_bytes;
}

/* The page must be what its shape says, and everything must fit the integers used here. */
static int check_geom(const struct kvc *k, const struct kv_geom *g, struct km_err *err)
{
    if (g->n_layers < 1 || g->n_kv_heads < 1 || g->head_dim < 1 || g->block_size < 1 || !isfinite(g->rope_theta))
        return km_fail(err, KM_EINVAL,
                       "the engine's KV shape is impossible: %d layers, %d KV heads of %d, blocks of %d, theta %g",
                       g->n_layers, g->n_kv_heads, g->head_dim, g->block_size, g->rope_theta);
    if (k->cfg.chunk_size % g->block_size)
        return km_fail(err, KM_EINVAL,
                       "chunk_size %d is not a multiple of the engine's block size %d; use %d or another block size",
                       k->cfg.chunk_size, g->block_size,
                       (k->cfg.chunk_size / g->block_size + 1) * g->block_size);
    size_t want = 2 * km_dtype_size(g->dtype), chunk;
    if (__builtin_mul_overflow(want, (size_t)g->n_layers, &want) ||
        __builtin_mul_overflow(want, (size_t)g->n_kv_heads, &want) ||
        __builtin_mul_overflow(want, (size_t)g->head_dim, &want) ||
        __builtin_mul_overflow(want, (size_t)g->block_size, &want) || want != g->page_bytes ||
        __builtin_mul_overflow(want, (size_t)(k->cfg.chunk_size / g->block_size), &chunk) || chunk > INT64_MAX)
        return km_fail(err, KM_EINVAL,
                       "the engine's pages are %zu bytes, which is not what %d layers, %d KV heads of %d, blocks "
                       "of %d and %s need",
                       g->page_bytes, g->n_layers, g->n_kv_heads, g->head_dim, g->block_size,
                       km_dtype_name(g->dtype));
    return 0;
}

static void forget_attachment(struct kvc *k)
{
    kvc_chunks_close(&k->chunks);
    kvc_dram_close(&k->dram);
    kvc_keys_close(&k->keys);
    k->attached = k->active = k->async_copies = false;
}

static int port_attach(void *self, const struct kv_geom *geom, const struct kv_copier *copier, struct km_err *err)
{
    struct kvc *k = self;
    if (k->attached)
        return km_fail(err, KM_EINVAL, "this cache already serves an engine; open one for each");
    int rc = check_geom(k, geom, err);
    if (rc)
        return rc;
    k->geom = *geom;
    k->copier = *copier;
    if (k->cfg.local_cpu) {
        size_t slot = geom->page_bytes * (size_t)(k->cfg.chunk_size / geom->block_size);
        rc = kvc_keys_open(&k->keys, geom, k->cfg.chunk_size, err);
        if (!rc)
            rc = kvc_dram_open(&k->dram, copier, slot, k->cfg.max_local_cpu, km_available_memory(""), k->slab_bytes,
                               err);
        if (!rc)
            rc = kvc_chunks_open(&k->chunks, k->dram.n_slots, k->cfg.chunk_size, k->cfg.policy, err);
        if (rc) {
            forget_attachment(k);
            return rc;
        }
        kvc_checksum_pool_open(&k->checksums);
        k->active = true;
    }
    k->attached = true;
    return 0;
}

static void port_detach(void *self)
{
    struct kvc *k = self;
    if (!k->attached)
        return;
    bool quiet = kvc_transfer_drain(k);
    for (struct kv_seq *s = k->seqs; s; s = s->next) {
        kvc_unpin(s);
        s->dead = true;
    }
    if (k->active)
        kvc_checksum_pool_close(&k->checksums);
    if (!quiet) { /* copies still run into these slabs: memory lost is better than memory overwritten */
        k->dram = (struct kvc_dram){0};
        memset(k->transfers, 0, (size_t)k->cap_transfers * sizeof *k->transfers);
        k->n_transfers = 0;
    }
    forget_attachment(k);
}

int kvc_open(struct kvc **out, const struct kvc_config *c, struct km_err *err)
{
    if (c->chunk_size < 1)
        return km_fail(err, KM_EINVAL, "chunk_size is %d; it must be 1 or more (256 is usual)", c->chunk_size);
    if (c->local_cpu && c->max_local_cpu < 1)
        return km_fail(err, KM_EINVAL, "max_local_cpu_size is %lld bytes; give the cache some memory",
                       (long long)c->max_local_cpu);
    struct kvc *k = km_calloc(1, sizeof *k);
    if (!k)
        return km_fail(err, KM_ENOMEM, "out of memory");
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
    *out = (struct kv_port){.self = k, .chunk_size = k->cfg.chunk_size, .attach = port_attach,
                            .detach = port_detach, .open = port_open, .lookup = port_lookup, .load = port_load,
                            .store = port_store, .poll = port_poll, .close = port_close, .reset = port_reset,
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
        return km_fail(err, KM_ENOMEM, "out of memory");
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
        return km_fail(err, KM_EINVAL, "%d tickets are open, %d are counted", open, k->n_transfers);
    int64_t most = k->active ? k->cfg.max_local_cpu : 0;
    if (!rc && (int64_t)k->chunks.n * (int64_t)k->dram.slot_bytes > most)
        return km_fail(err, KM_EINVAL, "%d slots of %zu bytes pass the budget of %lld", k->chunks.n,
                       k->dram.slot_bytes, (long long)most);
    return rc;
}
