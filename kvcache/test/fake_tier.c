#include "kvcache/test/fake_tier.h"

#include "kvcache/internal.h"

#include <stdlib.h>
#include <string.h>

/* The open instance; the config has a pointer to the fake_tier. */
struct kvc_tier {
    struct fake_tier *t;
    int due[FAKE_TIER_IOS];
};

static int tier_open(struct kvc_tier **out, const void *config, const struct kvc_geometry *g,
                     const struct km_digest *fingerprint, struct km_err *err)
{
    (void)fingerprint;
    struct kvc_tier *k = calloc(1, sizeof *k);
    if (!k)
        return km_fail(err, KM_ENOMEM, "no memory");
    memcpy(&k->t, config, sizeof k->t);
    k->t->g = g;
    *out = k;
    return 0;
}

static bool tier_close(struct kvc_tier *k)
{
    bool idle = !k->t->n_queue;
    k->t->n_queue = 0;
    free(k);
    return idle;
}

static struct fake_tier_chunk *find(struct fake_tier *t, const struct km_digest *key)
{
    for (int i = 0; i < FAKE_TIER_CHUNKS; i++)
        if (t->chunk[i].bytes && !memcmp(&t->chunk[i].key, key, sizeof *key))
            return &t->chunk[i];
    return NULL;
}

static int tier_lookup(struct kvc_tier *k, const struct km_digest *keys, int n)
{
    pthread_mutex_lock(&k->t->lock);
    int i = 0;
    while (i < n && find(k->t, &keys[i]))
        i++;
    pthread_mutex_unlock(&k->t->lock);
    return i;
}

static void tier_submit(struct kvc_tier *k, struct kvc_io *const *io, int n)
{
    struct fake_tier *t = k->t;
    pthread_mutex_lock(&t->lock);
    for (int i = 0; i < n; i++) {
        t->n_submits[io[i]->kind]++;
        if (t->n_queue == FAKE_TIER_IOS)
            abort();
        k->due[t->n_queue] = t->age + t->polls;
        t->queue[t->n_queue++] = io[i];
    }
    pthread_mutex_unlock(&t->lock);
}

static int do_put(struct fake_tier *t, const struct kvc_io *io)
{
    struct fake_tier_chunk *c = find(t, &io->key);
    for (int i = 0; !c && i < FAKE_TIER_CHUNKS; i++)
        if (!t->chunk[i].bytes)
            c = &t->chunk[i];
    if (!c)
        return KM_ELIMIT;
    if (c->bytes)
        return 0;
    c->bytes = malloc(t->g->header_bytes + io->payload_bytes);
    if (!c->bytes)
        return KM_ENOMEM;
    c->key = io->key;
    c->payload_bytes = io->payload_bytes;
    memcpy(c->bytes, io->header, t->g->header_bytes);
    if (io->payload_bytes)
        memcpy(c->bytes + t->g->header_bytes, io->payload, io->payload_bytes);
    return 0;
}

static int do_get(struct fake_tier *t, struct kvc_io *io)
{
    const struct fake_tier_chunk *own = find(t, &io->key), *c = t->swap ? NULL : own;
    for (int i = 0; !c && t->swap && i < FAKE_TIER_CHUNKS; i++)
        if (t->chunk[i].bytes && &t->chunk[i] != own)
            c = &t->chunk[i];
    if (!c || t->lose)
        return KM_ENOENT;
    io->payload_bytes = t->truncate ? c->payload_bytes / 2 : c->payload_bytes;
    memcpy(io->header, c->bytes, t->g->header_bytes);
    if (io->payload_bytes)
        memcpy(io->payload, c->bytes + t->g->header_bytes, io->payload_bytes);
    if (t->flip_payload && io->payload_bytes)
        ((char *)io->payload)[io->payload_bytes / 3] ^= 1;
    if (t->flip_header)
        ((char *)io->header)[sizeof(struct kvc_header) + 3] ^= 1;
    return 0;
}

static int perform(struct fake_tier *t, struct kvc_io *io)
{
    if (t->fail)
        return KM_EIO;
    if (io->kind == KVC_PUT)
        return do_put(t, io);
    if (io->kind == KVC_GET)
        return do_get(t, io);
    struct fake_tier_chunk *c = find(t, &io->key);
    if (io->kind == KVC_REMOVE && c) {
        free(c->bytes);
        c->bytes = NULL;
    }
    return io->kind == KVC_EXISTS && !c ? KM_ENOENT : 0;
}

static struct kvc_io *tier_poll(struct kvc_tier *k)
{
    struct fake_tier *t = k->t;
    struct kvc_io *list = NULL;
    pthread_mutex_lock(&t->lock);
    t->age++;
    for (int i = 0; i < t->n_queue;) {
        struct kvc_io *io = t->queue[i];
        if (k->due[i] > t->age || (t->silent && (t->silent_kind < 0 || t->silent_kind == (int)io->kind))) {
            i++;
            continue;
        }
        io->rc = perform(t, io);
        io->next = list;
        list = io;
        t->queue[i] = t->queue[--t->n_queue];
        k->due[i] = k->due[t->n_queue];
    }
    pthread_mutex_unlock(&t->lock);
    return list;
}

static int tier_clear(struct kvc_tier *k, struct km_err *err)
{
    struct fake_tier *t = k->t;
    if (t->clear_fails)
        return km_fail(err, KM_EIO, "the test asked for it");
    pthread_mutex_lock(&t->lock);
    for (int i = 0; i < FAKE_TIER_CHUNKS; i++) {
        free(t->chunk[i].bytes);
        t->chunk[i].bytes = NULL;
    }
    pthread_mutex_unlock(&t->lock);
    return 0;
}

static int tier_stats(struct kvc_tier *k, struct kv_stat_row *rows, int most)
{
    if (most < 1)
        return 0;
    rows[0] = (struct kv_stat_row){"", "held", "Chunks in the tier.", true, fake_tier_count(k->t)};
    return 1;
}

static const struct kvc_tier_ops with_index = {
    .name = "fake", .open = tier_open, .close = tier_close,
    .lookup = tier_lookup, .submit = tier_submit, .poll = tier_poll, .clear = tier_clear, .stats = tier_stats};
static const struct kvc_tier_ops without_index = {
    .name = "remote", .open = tier_open, .close = tier_close,
    .submit = tier_submit, .poll = tier_poll, .clear = tier_clear, .stats = tier_stats};

void fake_tier_init(struct fake_tier *t, bool index)
{
    *t = (struct fake_tier){.index = index, .silent_kind = -1};
    pthread_mutex_init(&t->lock, NULL);
}

void fake_tier_free(struct fake_tier *t)
{
    for (int i = 0; i < FAKE_TIER_CHUNKS; i++)
        free(t->chunk[i].bytes);
    pthread_mutex_destroy(&t->lock);
}

void fake_tier_config(struct fake_tier *t, struct kvc_tier_config *out)
{
    out->ops = t->index ? &with_index : &without_index;
    memcpy(out->config, &t, sizeof t);
}

int fake_tier_count(struct fake_tier *t)
{
    int n = 0;
    pthread_mutex_lock(&t->lock);
    for (int i = 0; i < FAKE_TIER_CHUNKS; i++)
        n += t->chunk[i].bytes != NULL;
    pthread_mutex_unlock(&t->lock);
    return n;
}
