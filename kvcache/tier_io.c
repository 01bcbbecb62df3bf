/* Operations are created here, submitted by kvc_tiers_drive, and freed when the tier has returned them. */
#include "kvcache/tier_io.h"

#include "base/mem.h"
#include "kvcache/internal.h"
#include "kvcache/op.h"
#include "kvcache/sequence.h"

int kvc_tiers_open(struct kvc *k, struct km_err *err)
{
    const int share = kvc_pool_slots(k->pool) / (2 * (k->cfg.n_tiers ? k->cfg.n_tiers : 1));
    k->chunks.tiers = (uint8_t)((1u << k->cfg.n_tiers) - 1);
    for (int i = 0; i < k->cfg.n_tiers; i++) {
        struct kvc_tier_io *t = &k->tier[i];
        *t = (struct kvc_tier_io){.ops = k->cfg.tier[i].ops,
                                  .checking = -1,
                                  .quota = share < 1 ? 1 : share > KVC_PUT_QUEUE ? KVC_PUT_QUEUE : share};
        kvc_rate_init(&t->get_rate, KVC_TIER_RATE);
        t->pending_end = &t->pending;
        int rc = t->ops->open(&t->tier, k->cfg.tier[i].config, &k->geometry, &k->keys.fingerprint, err);
        if (rc) {
            t->tier = NULL;
            return rc;
        }
    }
    return 0;
}

void kvc_tiers_close(struct kvc *k)
{
    for (int i = 0; i < k->cfg.n_tiers; i++) {
        struct kvc_tier_io *t = &k->tier[i];
        if (!t->tier)
            continue;
        const bool closed = t->ops->close(t->tier);
        for (struct kvc_tio *o = t->tios, *next; o; o = next) {
            next = o->next;
            if (closed)
                km_free(o);
            else if (o->slot >= 0)
                kvc_pool_quarantine(k->pool, o->slot);
        }
        for (struct kvc_ask *a = t->asks, *next; closed && a; a = next) {
            next = a->next;
            km_free(a);
        }
        *t = (struct kvc_tier_io){.ops = t->ops, .checking = -1};
    }
}

bool kvc_tier_stuck(const struct kvc_tier_io *t)
{
    return t->n_late >= KVC_LATE_MOST;
}

static void enqueue(struct kvc_tier_io *t, struct kvc_io *io)
{
    io->next = NULL;
    *t->pending_end = io;
    t->pending_end = &io->next;
}

static int64_t deadline(int64_t now, size_t bytes)
{
    return now + KVC_IO_NS + (int64_t)((double)bytes * 1e9 / KVC_IO_RATE);
}

/* A new operation on the list of the tier; NULL without memory. */
static struct kvc_tio *tio_new(struct kvc *k, struct kvc_tier_io *t, enum kvc_io_kind kind, const struct km_digest *key,
                               int slot)
{
    struct kvc_tio *o = km_calloc(1, sizeof *o);
    if (!o)
        return NULL;
    o->io = (struct kvc_io){.kind = kind, .key = *key, .user = o};
    o->slot = slot;
    o->deadline = deadline(k->now, k->geometry.payload_bytes);
    if (slot >= 0) {
        o->io.header = kvc_pool_header(k->pool, slot);
        o->io.payload = kvc_pool_payload(k->pool, slot);
    }
    o->next = t->tios;
    if (o->next)
        o->next->prev = o;
    t->tios = o;
    enqueue(t, &o->io);
    return o;
}

enum kvc_get kvc_tier_get(struct kvc *k, int tier, const struct km_digest *key, int position)
{
    struct kvc_tier_io *t = &k->tier[tier];
    if (kvc_tier_stuck(t))
        return KVC_GET_FAILED;
    if (t->n_gets >= KVC_GETS)
        return KVC_GET_LATER;
    const int slot = kvc_chunks_insert(&k->chunks, key, position);
    if (slot < 0)
        return KVC_GET_NO_SLOT;
    struct kvc_tio *o = tio_new(k, t, KVC_GET, key, slot);
    if (!o) {
        kvc_chunks_drop(&k->chunks, slot);
        return KVC_GET_FAILED;
    }
    o->io.payload_bytes = o->io.payload ? k->geometry.payload_bytes : 0;
    t->n_gets++;
    kvc_rate_begin(&t->get_rate, k->now, false);
    return KVC_GET_STARTED;
}

void kvc_tier_remove(struct kvc *k, int tier, const struct km_digest *key)
{
    struct kvc_tier_io *t = &k->tier[tier];
    if (!kvc_tier_stuck(t)) /* without memory the chunk stays, and the next load finds the damage again */
        tio_new(k, t, KVC_REMOVE, key, -1);
}

static uint8_t bit(const struct kvc *k, const struct kvc_tier_io *t)
{
    return (uint8_t)(1u << (t - k->tier));
}

static void unqueue(struct kvc_tier_io *t, int i)
{
    t->queue[i] = t->queue[--t->n_queue];
}

/* The chunk has left the queue, or its PUT has ended: notes whether the tier lacks it, and drops the reference. */
static void end_put(struct kvc *k, const struct kvc_tier_io *t, int slot, bool stored)
{
    if (!stored)
        k->chunks.chunk[slot].lacking |= bit(k, t);
    kvc_unref(k, slot);
}

static void drop_queue(struct kvc *k, struct kvc_tier_io *t)
{
    t->dropped_puts += t->n_queue;
    while (t->n_queue)
        end_put(k, t, t->queue[--t->n_queue].slot, false);
}

static bool full(const struct kvc_tier_io *t)
{
    return t->n_queue + t->n_puts + (t->checking >= 0) >= t->quota;
}

/* Drops the queued chunk with the highest position, because a chunk is of use only with all those before it. False: no
 * chunk in the queue has a higher position than the new one, which is dropped instead. */
static bool displace(struct kvc *k, struct kvc_tier_io *t, int position)
{
    int last = -1;
    for (int i = 0; i < t->n_queue; i++)
        if (last < 0 || t->queue[i].position > t->queue[last].position)
            last = i;
    t->dropped_puts++;
    if (last < 0 || t->queue[last].position <= position)
        return false;
    const int slot = t->queue[last].slot;
    unqueue(t, last);
    end_put(k, t, slot, false);
    return true;
}

/* Queues the chunk's PUT if the tier lacks it. again: only if the quota has room. */
static void offer(struct kvc *k, struct kvc_tier_io *t, int slot, bool again)
{
    struct kvc_chunk *c = &k->chunks.chunk[slot];
    if (!(c->lacking & bit(k, t)) || !t->tier || kvc_tier_stuck(t))
        return;
    if (full(t) && (again || !displace(k, t, c->position)))
        return;
    c->lacking &= (uint8_t)~bit(k, t);
    kvc_chunks_ref(&k->chunks, slot);
    t->queue[t->n_queue++] = (struct kvc_put){slot, c->position};
}

void kvc_tier_put(struct kvc *k, int slot)
{
    k->chunks.chunk[slot].lacking = k->chunks.tiers;
    for (int i = 0; i < k->cfg.n_tiers; i++)
        offer(k, &k->tier[i], slot, false);
}

void kvc_tier_put_again(struct kvc *k, int slot)
{
    for (int i = 0; i < k->cfg.n_tiers && k->chunks.chunk[slot].state == KVC_READY; i++)
        offer(k, &k->tier[i], slot, true);
}

bool kvc_tier_ask(struct kvc *k, int tier, struct kv_seq *s, int first, const struct km_digest *keys, int n, bool tail,
                  int64_t deadline_ns)
{
    struct kvc_tier_io *t = &k->tier[tier];
    struct kvc_ask *a = km_calloc(1, sizeof *a + (size_t)n * sizeof *a->io);
    if (!a)
        return false;
    a->seq = s;
    a->tier = tier;
    a->first = first;
    a->n = a->n_left = n;
    a->tail = tail;
    a->deadline = deadline_ns;
    a->next = t->asks;
    if (a->next)
        a->next->prev = a;
    t->asks = a;
    for (int i = 0; i < n; i++) {
        a->io[i] = (struct kvc_io){.kind = KVC_EXISTS, .key = keys[i], .user = a};
        enqueue(t, &a->io[i]);
    }
    return true;
}

void kvc_tier_forget(struct kvc *k, struct kv_seq *s)
{
    for (int i = 0; i < k->cfg.n_tiers && k->active; i++)
        for (struct kvc_ask *a = k->tier[i].asks; a; a = a->next)
            if (a->seq == s)
                a->seq = NULL;
}

/* The tier has returned one EXISTS. */
static void end_ask(struct kvc_tier_io *t, const struct kvc_io *io)
{
    struct kvc_ask *a = io->user;
    if (a->seq && !a->late) {
        const size_t chunk = (size_t)a->first + (size_t)(io - a->io);
        uint8_t *answer = a->tail ? &a->seq->tail_answer[a->tier]
                                  : &a->seq->answer[chunk * KVC_TIERS_MOST + (size_t)a->tier];
        *answer = io->rc ? KVC_LACKS : KVC_HAS;
    }
    if (--a->n_left)
        return;
    t->n_late -= a->late;
    *(a->prev ? &a->prev->next : &t->asks) = a->next;
    if (a->next)
        a->next->prev = a->prev;
    km_free(a);
}

/* True if a GET succeeded and its header is right. If the header is wrong, the chunk is removed from the tier. */
static bool accept(struct kvc *k, struct kvc_tier_io *t, struct kvc_tio *o)
{
    const struct kvc_header *h = o->io.header;
    if (o->io.rc)
        return false;
    if (kvc_header_check(h, &k->geometry, &k->keys.fingerprint, &o->io.key, o->io.payload_bytes, NULL)) {
        k->corrupt_chunks++;
        kvc_tier_remove(k, (int)(t - k->tier), &o->io.key);
        return false;
    }
    return true;
}

static void end_get(struct kvc *k, struct kvc_tier_io *t, struct kvc_tio *o)
{
    t->n_gets--;
    if (!accept(k, t, o)) {
        t->failures++;
        kvc_rate_end(&t->get_rate, -1);
        kvc_chunks_drop(&k->chunks, o->slot);
        return;
    }
    t->gets++;
    t->get_bytes += (int64_t)o->io.payload_bytes;
    kvc_rate_end(&t->get_rate, (int64_t)k->geometry.payload_bytes);
    kvc_chunks_publish(&k->chunks, o->slot);
    kvc_chunks_ref(&k->chunks, o->slot);
    kvc_loads_take(k, o->slot);
    kvc_unref(k, o->slot);
}

/* The tier has returned a GET, PUT or REMOVE. */
static void end_tio(struct kvc *k, struct kvc_tier_io *t, struct kvc_tio *o)
{
    if (o->late) {
        t->n_late--;
        if (o->io.kind == KVC_PUT)
            end_put(k, t, o->slot, !o->io.rc);
        else if (o->slot >= 0)
            kvc_unref(k, o->slot);
    } else if (o->io.kind == KVC_GET)
        end_get(k, t, o);
    else if (o->io.kind == KVC_PUT) {
        t->n_puts--;
        t->failures += o->io.rc != 0;
        t->puts += !o->io.rc;
        t->put_bytes += o->io.rc ? 0 : (int64_t)o->io.payload_bytes;
        end_put(k, t, o->slot, !o->io.rc);
    }
    *(o->prev ? &o->prev->next : &t->tios) = o->next;
    if (o->next)
        o->next->prev = o->prev;
    km_free(o);
}

/* Marks operations whose deadline has passed as late. A late GET's chunk is dropped; a reference keeps its slot from
 * being reused. */
static bool expire(struct kvc *k, struct kvc_tier_io *t)
{
    bool any = false;
    for (struct kvc_tio *o = t->tios; o; o = o->next) {
        if (o->late || k->now <= o->deadline)
            continue;
        any = o->late = true;
        t->late++;
        t->n_late++;
        t->n_puts -= o->io.kind == KVC_PUT;
        if (o->io.kind != KVC_GET)
            continue;
        t->n_gets--;
        kvc_rate_end(&t->get_rate, -1);
        kvc_chunks_ref(&k->chunks, o->slot);
        kvc_chunks_drop(&k->chunks, o->slot);
    }
    for (struct kvc_ask *a = t->asks; a; a = a->next)
        if (!a->late && k->now > a->deadline) {
            any = a->late = true;
            t->late += a->n_left;
            t->n_late++;
        }
    if (kvc_tier_stuck(t))
        drop_queue(k, t);
    return any;
}

/* Starts PUTs of queued chunks that the tier lacks, in the order of their positions. */
static bool start_puts(struct kvc *k, struct kvc_tier_io *t)
{
    bool any = false;
    const int most = t->quota < KVC_PUTS ? t->quota : KVC_PUTS;
    while (t->n_queue && t->n_puts < most && t->clear != KVC_CLEAR_ASKED) {
        int first = 0;
        for (int i = 1; i < t->n_queue; i++)
            if (t->queue[i].position < t->queue[first].position)
                first = i;
        const int slot = t->checking = t->queue[first].slot;
        const struct km_digest key = k->chunks.chunk[slot].key;
        unqueue(t, first);
        bool has = false;
        if (t->ops->lookup) {
            pthread_mutex_unlock(&k->lock);
            has = t->ops->lookup(t->tier, &key, 1) == 1;
            pthread_mutex_lock(&k->lock);
        }
        any = true;
        t->checking = -1;
        /* The chunk may have been dropped meanwhile because a load has found it damaged. */
        struct kvc_tio *o = has || k->chunks.chunk[slot].state != KVC_READY
                                ? NULL
                                : tio_new(k, t, KVC_PUT, &key, slot);
        if (!o) {
            end_put(k, t, slot, has);
            continue;
        }
        o->io.payload_bytes = kvc_pool_header(k->pool, slot)->payload_bytes;
        t->n_puts++;
    }
    return any;
}

static bool submit(struct kvc *k, struct kvc_tier_io *t)
{
    struct kvc_io *io[64];
    bool any = false;
    while (t->pending) {
        int n = 0;
        for (; n < 64 && t->pending; n++) {
            io[n] = t->pending;
            t->pending = io[n]->next;
            io[n]->next = NULL;
        }
        if (!t->pending)
            t->pending_end = &t->pending;
        pthread_mutex_unlock(&k->lock);
        t->ops->submit(t->tier, io, n);
        pthread_mutex_lock(&k->lock);
        any = true;
    }
    return any;
}

static bool collect(struct kvc *k, struct kvc_tier_io *t)
{
    if (!t->tios && !t->asks)
        return false;
    pthread_mutex_unlock(&k->lock);
    struct kvc_io *list = t->ops->poll(t->tier);
    pthread_mutex_lock(&k->lock);
    const bool any = list != NULL;
    for (struct kvc_io *io = list, *next; io; io = next) {
        next = io->next;
        if (io->kind == KVC_EXISTS)
            end_ask(t, io);
        else
            end_tio(k, t, io->user);
    }
    kvc_rate_sample(&t->get_rate, k->now);
    return any;
}

/* Clears the tier for a reset, when its GETs and PUTs have ended: a PUT in flight would store a chunk after the
 * reset. */
static bool clear(struct kvc *k, struct kvc_tier_io *t)
{
    if (t->clear != KVC_CLEAR_ASKED)
        return false;
    drop_queue(k, t);
    if (t->n_gets || t->n_puts)
        return false;
    t->clear = KVC_CLEAR_RUNS;
    pthread_mutex_unlock(&k->lock);
    const int rc = t->ops->clear(t->tier, NULL);
    pthread_mutex_lock(&k->lock);
    t->clear = rc ? KVC_CLEAR_FAILED : KVC_CLEAR_DONE;
    return true;
}

bool kvc_tiers_drive(struct kvc *k)
{
    bool any = false;
    for (int i = 0; i < k->cfg.n_tiers && k->active; i++) {
        struct kvc_tier_io *t = &k->tier[i];
        any |= start_puts(k, t);
        any |= submit(k, t);
        any |= collect(k, t);
        any |= expire(k, t);
        any |= clear(k, t);
    }
    return any;
}

int kvc_tiers_open_ios(const struct kvc *k)
{
    int n = 0;
    for (int i = 0; i < k->cfg.n_tiers && k->active; i++) {
        const struct kvc_tier_io *t = &k->tier[i];
        n += t->n_queue + (t->checking >= 0) + (t->clear == KVC_CLEAR_ASKED || t->clear == KVC_CLEAR_RUNS);
        for (const struct kvc_tio *o = t->tios; o; o = o->next)
            n += !o->late;
        for (const struct kvc_ask *a = t->asks; a; a = a->next)
            n += !a->late;
    }
    return n;
}

int kvc_tiers_late(const struct kvc *k)
{
    int n = 0;
    for (int i = 0; i < k->cfg.n_tiers && k->active; i++)
        n += k->tier[i].n_late;
    return n;
}

void kvc_tiers_count_refs(const struct kvc *k, int32_t *refs)
{
    for (int i = 0; i < k->cfg.n_tiers; i++) {
        const struct kvc_tier_io *t = &k->tier[i];
        for (const struct kvc_tio *o = t->tios; o; o = o->next)
            if (o->slot >= 0 && (o->late || o->io.kind == KVC_PUT))
                refs[o->slot]++;
        for (int q = 0; q < t->n_queue; q++)
            refs[t->queue[q].slot]++;
        if (t->checking >= 0)
            refs[t->checking]++;
    }
}
