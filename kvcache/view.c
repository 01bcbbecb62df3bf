/* The port of one engine: attach, detach, and the functions that need little more than the view. */
#include "kvcache/view.h"

#include "base/clock.h"
#include "base/mem.h"
#include "kvcache/internal.h"
#include "kvcache/op.h"
#include "kvcache/sequence.h"

#include <string.h>
#include <unistd.h>

#define DRAIN_NS 1400000000LL /* a detach waits this long for pieces in flight */
#define CALL_NS 300000000LL   /* and then this long for a call of the copier to return */

int64_t kvc_view_now(const struct kvc_view *v)
{
    return v->copier.now ? v->copier.now(v->copier.self) : km_now_ns();
}

static int attach(struct kvc_view *v, const struct kv_geom *geom, const struct kv_copier *copier, struct km_err *err)
{
    struct kvc *k = v->kvc;
    int rc = kvc_join(k, geom, copier, err);
    if (rc)
        return rc;
    rc = kvc_keys_open(&v->keys, &k->geometry, err);
    if (rc)
        return rc;
    struct kvc_lane *lane = km_calloc(2, sizeof *lane);
    if (!lane) {
        kvc_keys_close(&v->keys);
        return km_fail(err, KM_ENOMEM, "out of memory for the cache layer's copies");
    }
    for (int dir = 0; dir < 2; dir++)
        kvc_rate_init(&lane[dir].rate, KVC_HOST_RATE);
    pthread_mutex_lock(&k->lock);
    v->lane = lane;
    v->copier = *copier;
    v->attached = true;
    v->epoch++;
    pthread_mutex_unlock(&k->lock);
    if (k->active)
        kvc_pool_attach(k->pool, copier);
    return 0;
}

static int port_attach(void *self, const struct kv_geom *geom, const struct kv_copier *copier, struct km_err *err)
{
    struct kvc_view *v = self;
    if (v->attached)
        return km_fail(err, KM_EINVAL, "this port is attached to an engine already; make one port for each engine");
    pthread_mutex_lock(&v->kvc->attach_lock);
    int rc = attach(v, geom, copier, err);
    pthread_mutex_unlock(&v->kvc->attach_lock);
    return rc;
}

/* Waits, at most most_ns, until no call of the copier is under way and, unless the view is abandoned, no piece is in
 * flight. Returns false if the time did not suffice. */
static bool drain(struct kvc_view *v, int64_t most_ns)
{
    struct kvc *k = v->kvc;
    const int64_t until = km_now_ns() + most_ns;
    while (v->calling || (!v->abandoned && (v->lane[0].n || v->lane[1].n))) {
        const int64_t now = km_now_ns();
        if (now >= until)
            return false;
        if (!k->threaded) {
            pthread_mutex_unlock(&k->lock);
            kvc_drive(k, v);
            usleep(20);
            pthread_mutex_lock(&k->lock);
            continue;
        }
        const struct timespec ts = {until / 1000000000, until % 1000000000};
        pthread_cond_timedwait(&k->returned, &k->lock, &ts);
    }
    return true;
}

/* Gives up the pieces that did not end. The copier may still use their slots and the pieces themselves, so the slots
 * get a reference that is never dropped, and the lanes are not freed. */
static void abandon_pieces(struct kvc_view *v)
{
    struct kvc *k = v->kvc;
    for (int dir = 0; dir < 2; dir++)
        for (int i = 0; i < v->lane[dir].n; i++) {
            const struct kvc_piece *p = &v->lane[dir].piece[(v->lane[dir].head + i) % KVC_PIECES];
            for (int j = 0; j < p->n; j++) {
                const int slot = kvc_op_part(p->op, p->block[j])->slot;
                if (!k->abandoned[slot]) {
                    k->abandoned[slot] = 1;
                    kvc_chunks_ref(&k->chunks, slot);
                    kvc_pool_quarantine(k->pool, slot);
                }
                if (dir == KV_TO_HOST)
                    kvc_chunks_drop(&k->chunks, slot);
            }
        }
    v->lane = NULL;
    v->calling = false;
}

static void free_ops(struct kvc_op **list)
{
    while (*list) {
        struct kvc_op *op = *list;
        *list = op->next_op;
        kvc_op_free(op);
    }
}

void kvc_view_detach(struct kvc_view *v)
{
    struct kvc *k = v->kvc;
    if (!v->attached)
        return;
    pthread_mutex_lock(&k->attach_lock);
    pthread_mutex_lock(&k->lock);
    v->detaching = true;
    for (struct kvc_op *op = v->ops; op; op = op->next_op)
        kvc_op_cancel(op);
    kvc_driver_wake(k);
    if (!drain(v, DRAIN_NS)) {
        v->abandoned = true;
        drain(v, CALL_NS);
        abandon_pieces(v);
    }
    for (struct kvc_op *op = v->ops; op; op = op->next_op)
        kvc_op_release(op);
    for (struct kv_seq *s = v->seqs; s; s = s->next) {
        kvc_seq_unpin(s);
        kvc_tier_forget(k, s);
    }
    free_ops(&v->ops);
    free_ops(&v->done);
    v->ops_end = &v->ops;
    km_free(v->lane);
    v->lane = NULL;
    v->attached = v->detaching = v->abandoned = false;
    v->epoch++;
    pthread_mutex_unlock(&k->lock);
    kvc_keys_close(&v->keys);
    if (k->active)
        kvc_pool_detach(k->pool, &v->copier);
    pthread_mutex_unlock(&k->attach_lock);
}

static void port_detach(void *self)
{
    kvc_view_detach(self);
}

static struct kv_seq *port_open(void *self, const char *salt, const int32_t *tokens, int n)
{
    return kvc_seq_open(self, salt, tokens, n);
}

static int port_cut(void *self, uint64_t ticket, int upto)
{
    struct kvc_view *v = self;
    struct kvc *k = v->kvc;
    bool done;
    pthread_mutex_lock(&k->lock);
    struct kvc_op *op = kvc_op_find(v, ticket, &done);
    int owned = KM_EINVAL;
    if (op && op->kind == KVC_LOAD)
        owned = done ? op->floor : kvc_load_cut(op, upto);
    kvc_driver_wake(k);
    pthread_mutex_unlock(&k->lock);
    return owned;
}

static int port_poll(void *self, uint64_t ticket, struct kv_result *out)
{
    struct kvc_view *v = self;
    struct kvc *k = v->kvc;
    bool done;
    kvc_drive(k, v);
    pthread_mutex_lock(&k->lock);
    struct kvc_op *op = kvc_op_find(v, ticket, &done);
    int rc = !op ? KM_EINVAL : done;
    if (op && done) {
        struct kvc_op **at = &v->done;
        while (*at != op)
            at = &(*at)->next_op;
        *at = op->next_op;
        if (out)
            *out = op->floor < op->good_to ? (struct kv_result){op->floor, op->good_to}
                                           : (struct kv_result){op->from, op->from};
    }
    pthread_mutex_unlock(&k->lock);
    if (rc == 1)
        kvc_op_free(op);
    return rc;
}

static int port_reset(void *self)
{
    return kvc_reset(self);
}

static void port_stats(void *self, struct kv_port_stats *out)
{
    struct kvc_view *v = self;
    pthread_mutex_lock(&v->kvc->lock);
    *out = v->stats;
    pthread_mutex_unlock(&v->kvc->lock);
    kvc_stats(v->kvc, out);
}

void kvc_view_port(struct kvc_view *v, struct kv_port *out)
{
    *out = (struct kv_port){.self = v,
                            .chunk_size = v->kvc->cfg.chunk_size,
                            .attach = port_attach,
                            .detach = port_detach,
                            .open = port_open,
                            .lookup = kvc_seq_lookup,
                            .load_ns = kvc_seq_load_ns,
                            .load = kvc_load,
                            .cut = port_cut,
                            .store = kvc_store,
                            .poll = port_poll,
                            .close = kvc_seq_close,
                            .reset = port_reset,
                            .stats = port_stats};
}

void kvc_view_free(struct kvc_view *v)
{
    kvc_view_detach(v);
    while (v->seqs)
        kvc_seq_close(v->seqs);
    km_free(v);
}
