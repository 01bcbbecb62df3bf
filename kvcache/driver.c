/* Drives the operations: the transfer thread, or calls of the port if the copiers must not be called by another thread.
 *
 * One pass polls the copies of every view, submits the next ones, and lets the tiers work. Loads are submitted before
 * stores. After a pass that changed nothing, the thread sleeps: 20 us while copies are in flight, 0.1 to 5 ms while
 * operations wait for a tier, and until kvc_driver_wake if there is nothing to do. */
#include "base/clock.h"
#include "base/mem.h"
#include "kvcache/internal.h"
#include "kvcache/op.h"
#include "kvcache/view.h"

#include <string.h>
#include <sys/prctl.h>
#include <time.h>

/* Piece i of the lane, the oldest one first. */
static struct kvc_piece *lane_at(struct kvc_lane *lane, int i)
{
    return &lane->piece[(lane->head + i) % KVC_PIECES];
}

/* Polls or submits a piece and reads the copier's clock; the lock is released meanwhile. p NULL: reads the clock only.
 * False: the view was detached meanwhile, so the caller must not use its pieces and operations any more. */
static bool call(struct kvc_view *v, struct kvc_piece *p, enum kv_dir dir, int *rc)
{
    struct kvc *k = v->kvc;
    const uint32_t epoch = v->epoch;
    const uint64_t after = p ? p->op->after : 0;
    const struct kv_copier c = v->copier;
    v->calling = true;
    pthread_mutex_unlock(&k->lock);
    if (p)
        *rc = p->submitted ? c.poll(c.self, p->ticket) : c.copy(c.self, dir, p->copy, p->n, after, &p->ticket, NULL);
    const int64_t now = c.now ? c.now(c.self) : km_now_ns();
    pthread_mutex_lock(&k->lock);
    if (epoch != v->epoch)
        return false;
    v->calling = false;
    v->now = now;
    pthread_cond_broadcast(&k->returned);
    return true;
}

/* Removes a piece from the lane, and applies its result to its operation. p: the oldest piece, or the newest one if it
 * was not submitted. */
static void retire(struct kvc_view *v, enum kv_dir dir, struct kvc_piece *p, int rc)
{
    struct kvc_lane *lane = &v->lane[dir];
    struct kvc_op *op = p->op;
    if (p->submitted)
        kvc_rate_end(&lane->rate, rc < 0 ? -1 : (int64_t)p->n * (int64_t)v->kvc->geometry.pool.page_bytes);
    op->n_in_flight--;
    if (dir == KV_TO_PAGE)
        kvc_load_retire(op, p, rc);
    else
        kvc_store_retire(op, p, rc);
    if (p == lane_at(lane, 0))
        lane->head = (lane->head + 1) % KVC_PIECES;
    lane->n--;
}

/* Adds a piece to the lane, from the oldest operation that has pages to copy. False: no operation has. */
static bool build(struct kvc_view *v, enum kv_dir dir)
{
    struct kvc_lane *lane = &v->lane[dir];
    struct kvc_piece *p = lane_at(lane, lane->n);
    for (struct kvc_op *op = v->ops; op && !v->detaching; op = op->next_op) {
        if ((op->kind == KVC_LOAD) != (dir == KV_TO_PAGE))
            continue;
        p->op = op;
        p->n = 0;
        p->submitted = false;
        if (!(op->kind == KVC_LOAD ? kvc_load_build(op, p) : kvc_store_build(op, p)))
            continue;
        op->n_in_flight++;
        lane->n++;
        return true;
    }
    return false;
}

/* Retires the pieces that have ended. Copies of one direction run in the order of submission, so the oldest piece ends
 * first. */
static bool lane_poll(struct kvc_view *v, enum kv_dir dir)
{
    struct kvc_lane *lane = &v->lane[dir];
    bool any = false;
    int rc;
    while (lane->n && !v->abandoned && lane_at(lane, 0)->submitted) {
        struct kvc_piece *p = lane_at(lane, 0);
        if (!call(v, p, dir, &rc))
            return true;
        if (!rc)
            break;
        retire(v, dir, p, rc);
        any = true;
    }
    kvc_rate_sample(&lane->rate, v->now);
    return any;
}

/* Submits pieces until the lane is full, no operation has pages to copy, or the copier refuses one. */
static bool lane_submit(struct kvc_view *v, enum kv_dir dir)
{
    struct kvc_lane *lane = &v->lane[dir];
    bool any = false;
    int rc;
    while (!v->abandoned) {
        const bool waiting = lane->n && !lane_at(lane, lane->n - 1)->submitted;
        if (!waiting && (lane->n == KVC_PIECES || !build(v, dir)))
            return any;
        struct kvc_piece *p = lane_at(lane, lane->n - 1);
        if (v->detaching) { /* the copier has refused the piece so far, and it is not needed any more */
            retire(v, dir, p, KM_ECANCEL);
            any = true;
            continue;
        }
        if (!call(v, p, dir, &rc))
            return true;
        if (rc == KM_ELIMIT)
            break;
        any = true;
        if (rc < 0) {
            retire(v, dir, p, rc);
            continue;
        }
        kvc_rate_begin(&lane->rate, v->now, p->op->after != 0);
        p->submitted = true;
    }
    return any;
}

static bool ops_drive(struct kvc_view *v)
{
    bool any = false;
    for (struct kvc_op *op = v->ops, *next; op; op = next) {
        next = op->next_op;
        any |= op->kind == KVC_LOAD ? kvc_load_advance(op) : kvc_store_advance(op);
        if (op->kind == KVC_LOAD ? kvc_load_done(op) : kvc_store_done(op)) {
            kvc_op_finish(op);
            any = true;
        }
    }
    return any;
}

bool kvc_view_drive(struct kvc_view *v)
{
    if (!v->attached || v->abandoned || (!v->ops && !v->lane[0].n && !v->lane[1].n))
        return false;
    const uint32_t epoch = v->epoch;
    if (!call(v, NULL, KV_TO_PAGE, NULL))
        return true;
    bool any = !v->detaching && ops_drive(v);
    for (int i = 0; i < 2 && epoch == v->epoch; i++) { /* loads before stores */
        const enum kv_dir dir = i ? KV_TO_HOST : KV_TO_PAGE;
        any |= lane_poll(v, dir);
        if (epoch == v->epoch)
            any |= lane_submit(v, dir);
    }
    if (epoch == v->epoch)
        any |= ops_drive(v);
    return any;
}

/* One pass over views and tiers, with the lock held. all: over all views, on the transfer thread; else over the view
 * `one` (NULL: over none). True if something changed. */
static bool pass(struct kvc *k, const struct kvc_view *one, bool all)
{
    bool any = false;
    k->new_work = false;
    pthread_mutex_unlock(&k->lock);
    const int64_t now = all || one ? kvc_now(one) : 0;
    pthread_mutex_lock(&k->lock);
    k->now = now > k->now ? now : k->now;
    kvc_grow(k);
    for (struct kvc_view *v = k->views; v; v = v->next)
        if (all || v == one)
            any |= kvc_view_drive(v);
    if (!k->driving_tiers) {
        k->driving_tiers = true;
        any |= kvc_tiers_drive(k);
        k->driving_tiers = false;
    }
    return any || k->new_work;
}

/* How long the thread may sleep, in ns, after a pass that changed nothing; -1: until kvc_driver_wake. */
static int64_t sleep_ns(const struct kvc *k)
{
    bool ops = false;
    for (const struct kvc_view *v = k->views; v; v = v->next) {
        if (v->attached && !v->abandoned && (v->lane[0].n || v->lane[1].n))
            return 20000;
        ops |= v->attached && v->ops;
    }
    if (ops)
        return 100000;
    if (kvc_tiers_open_ios(k))
        return 200000;
    return kvc_tiers_late(k) ? 5000000 : -1;
}

static void *run(void *arg)
{
    struct kvc *k = arg;
    prctl(PR_SET_TIMERSLACK, 1000UL);
    pthread_mutex_lock(&k->lock);
    while (!k->stop) {
        if (pass(k, NULL, true))
            continue;
        const int64_t ns = k->stop ? 0 : sleep_ns(k);
        if (ns < 0)
            pthread_cond_wait(&k->work, &k->lock);
        else if (ns > 0) {
            const int64_t until = km_now_ns() + ns;
            const struct timespec ts = {until / 1000000000, until % 1000000000};
            pthread_cond_timedwait(&k->work, &k->lock, &ts);
        }
    }
    pthread_mutex_unlock(&k->lock);
    return NULL;
}

int kvc_driver_start(struct kvc *k, struct km_err *err)
{
    k->stop = false;
    if (pthread_create(&k->thread, NULL, run, k))
        return km_fail(err, KM_ENOMEM, "the cache layer's transfer thread cannot be started");
    k->running = true;
    return 0;
}

bool kvc_driver_stop(struct kvc *k)
{
    if (!k->running)
        return true;
    pthread_mutex_lock(&k->lock);
    k->stop = true;
    pthread_cond_signal(&k->work);
    pthread_mutex_unlock(&k->lock);
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    ts.tv_sec += 1;
    if (pthread_clockjoin_np(k->thread, NULL, CLOCK_MONOTONIC, &ts))
        return false;
    k->running = false;
    return true;
}

void kvc_driver_wake(struct kvc *k)
{
    k->new_work = true;
    if (k->threaded)
        pthread_cond_signal(&k->work);
}

void kvc_drive(struct kvc *k, const struct kvc_view *v)
{
    pthread_mutex_lock(&k->lock);
    while (k->active && !k->threaded && pass(k, v, false))
        ;
    pthread_mutex_unlock(&k->lock);
}
