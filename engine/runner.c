/* One thread, one mutex, two directions: requests and cancels go in, events come out.
 *
 * The thread holds the mutex except while it steps or sleeps. With a step in flight it sleeps until that one is about to
 * end, so that what comes in is part of the next. A submitted request is validated and copied on the caller's thread
 * and travels as the object the engine will use, so that the thread allocates nothing but room for events; when there
 * is no memory for those either, it waits until the owner has taken what is there. Only the thread touches the engine
 * after run_start. */
#include "engine/runner.h"

#include "base/clock.h"
#include "base/mem.h"
#include "engine/engine_internal.h"

#include <pthread.h>
#include <string.h>
#include <time.h>

/* How long before the step in flight should end the next one is scheduled: time to wake up, schedule and hand over,
 * several times over. Requests that come later than this miss it. */
enum { HEAD_START_NS = 300000 };

struct cancel {
    uint64_t id;
    enum eng_finish finish;
};

struct run {
    struct eng *e;
    void (*wake)(void *arg);
    void *arg;
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t work, done;      /* something for the thread; the thread got round to it */

    /* All below is under the lock. */
    bool stop;
    struct seq *first, *last;       /* requests not yet in the engine */
    int n_first, n_inside;          /* how many; and an upper bound of those waiting in the engine */
    struct cancel *cancels;         /* [n_cancels], room for one a request that can be alive */
    int n_cancels, cap_cancels;
    bool reset, reset_external, reset_done;
    int reset_rc;
    struct km_err reset_err;
    struct eng_event *events;       /* [n_events] */
    int n_events, cap_events;
    struct eng_stats stats;
    int64_t busy_until_ns;          /* as the last step said */
    bool failed;
    struct km_err why;
};

/* Until there is work, at most ns. Lock held. */
static void sleep_for(struct run *r, long ns)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    t.tv_nsec += ns;
    t.tv_sec += t.tv_nsec / 1000000000;
    t.tv_nsec %= 1000000000;
    pthread_cond_timedwait(&r->work, &r->lock, &t);
}

/* The owner's callback may take its time or call back: not under the lock. */
static void wake(struct run *r)
{
    pthread_mutex_unlock(&r->lock);
    r->wake(r->arg);
    pthread_mutex_lock(&r->lock);
}

/* Room for n more events; waits for the owner when memory is short. The lock is held. */
static void make_room(struct run *r, int n)
{
    while (r->n_events + n > r->cap_events && !r->stop) {
        int cap = r->n_events + n + r->cap_events / 2;
        void *p = km_reallocarray(r->events, (size_t)cap, sizeof *r->events);
        if (p) {
            r->events = p;
            r->cap_events = cap;
            continue;
        }
        wake(r);
        sleep_for(r, 1000000);
    }
}

/* Everything that came in goes into the engine, in order: requests, then cancels, then a reset. True if there was a
 * reset. Lock held. */
static bool drain(struct run *r)
{
    bool reset = r->reset;
    for (struct seq *q; (q = r->first);) {
        r->first = q->next;
        q->next = NULL;
        eng_enqueue(r->e, q);
    }
    r->last = NULL;
    r->n_inside += r->n_first;
    r->n_first = 0;
    for (int i = 0; i < r->n_cancels; i++)
        eng_cancel(r->e, r->cancels[i].id, r->cancels[i].finish);
    r->n_cancels = 0;
    if (r->reset) {
        r->reset_rc = eng_reset_cache(r->e, r->reset_external, &r->reset_err);
        r->reset = false;
        r->reset_done = true;
    }
    eng_stats(r->e, &r->stats);
    r->n_inside = r->stats.waiting;
    pthread_cond_broadcast(&r->done);
    return reset;
}

/* What is left until the next step should be scheduled; not above 0: now. Lock held. */
static int64_t time_left(const struct run *r)
{
    return r->busy_until_ns ? r->busy_until_ns - HEAD_START_NS - km_now_ns() : 0;
}

/* A step outside the lock; its events are the owner's when it returns. */
static void step(struct run *r)
{
    struct eng_events ev;
    struct km_err err;
    pthread_mutex_unlock(&r->lock);
    int rc = eng_step(r->e, &ev, &err);
    pthread_mutex_lock(&r->lock);
    bool news = ev.n || (rc == KM_EDEVICE && !r->failed);
    if (rc == KM_EDEVICE && !r->failed) {
        r->failed = true;
        r->why = err;
    }
    eng_stats(r->e, &r->stats);
    r->n_inside = r->stats.waiting;
    r->busy_until_ns = ev.busy_until_ns;
    if (ev.n) {
        make_room(r, ev.n);
        if (!r->stop) {
            memcpy(r->events + r->n_events, ev.v, (size_t)ev.n * sizeof *ev.v);
            r->n_events += ev.n;
        }
    }
    if (news)
        wake(r);
    else if (ev.stalled && !r->first && !r->n_cancels && !r->reset && !r->stop)
        sleep_for(r, 50000); /* a transfer is under way and nothing else can run: leave it the processor */
}

static void *thread_main(void *arg)
{
    struct run *r = arg;
    pthread_mutex_lock(&r->lock);
    while (!r->stop) {
        if ((r->first || r->n_cancels || r->reset) && drain(r)) {
            wake(r);
            continue; /* wake has released the lock, so more work may be queued */
        }
        int64_t left = time_left(r);
        if (eng_idle(r->e))
            pthread_cond_wait(&r->work, &r->lock);
        else if (left > 0)
            sleep_for(r, (long)left);
        else
            step(r);
    }
    pthread_mutex_unlock(&r->lock);
    return NULL;
}

static int init_sync(struct run *r)
{
    pthread_condattr_t a;
    if (pthread_condattr_init(&a))
        return -1;
    int rc = pthread_condattr_setclock(&a, CLOCK_MONOTONIC) || pthread_cond_init(&r->work, &a);
    pthread_condattr_destroy(&a);
    return rc || pthread_cond_init(&r->done, NULL) || pthread_mutex_init(&r->lock, NULL) ? -1 : 0;
}

int run_start(struct run **out, struct eng *e, void (*wake)(void *arg), void *arg, struct km_err *err)
{
    const struct eng_opts *o = eng_options(e);
    struct run *r = km_calloc(1, sizeof *r);
    if (r) {
        r->cap_cancels = o->max_waiting + o->max_num_seqs;
        r->cancels = km_calloc((size_t)r->cap_cancels, sizeof *r->cancels);
    }
    if (!r || !r->cancels) {
        km_free(r);
        return km_fail(err, KM_ENOMEM, "no memory for the engine's mailbox");
    }
    r->e = e;
    r->wake = wake;
    r->arg = arg;
    eng_stats(e, &r->stats);
    r->n_inside = r->stats.waiting;
    if (init_sync(r) || pthread_create(&r->thread, NULL, thread_main, r)) {
        km_free(r->cancels);
        km_free(r);
        return km_fail(err, KM_EIO, "cannot start a thread for the engine: is a limit on threads reached (ulimit -u)?");
    }
    *out = r;
    return 0;
}

void run_free(struct run *r)
{
    if (!r)
        return;
    pthread_mutex_lock(&r->lock);
    r->stop = true;
    pthread_cond_broadcast(&r->work);
    pthread_mutex_unlock(&r->lock);
    pthread_join(r->thread, NULL);
    for (struct seq *q; (q = r->first);) {
        r->first = q->next;
        seq_free(q);
    }
    pthread_mutex_destroy(&r->lock);
    pthread_cond_destroy(&r->work);
    pthread_cond_destroy(&r->done);
    km_free(r->cancels);
    km_free(r->events);
    km_free(r);
}

int run_submit(struct run *r, const struct eng_request *q, uint64_t *id, struct km_err *err)
{
    struct seq *s;
    int rc = eng_prepare(r->e, q, &s, err), most = eng_options(r->e)->max_waiting;
    if (rc)
        return rc;
    pthread_mutex_lock(&r->lock);
    if (r->failed)
        rc = km_fail(err, KM_EDEVICE, "the engine stopped (%s): start it again", r->why.msg);
    else if (r->n_first + r->n_inside >= most)
        rc = km_fail(err, KM_ELIMIT, "%d requests wait already, and the queue holds %d: try again later",
                     r->n_first + r->n_inside, most);
    else {
        *id = s->id;
        *(r->last ? &r->last->next : &r->first) = s;
        r->last = s;
        r->n_first++;
        pthread_cond_signal(&r->work);
    }
    pthread_mutex_unlock(&r->lock);
    if (rc)
        seq_free(s);
    return rc;
}

void run_cancel(struct run *r, uint64_t id, enum eng_finish finish)
{
    pthread_mutex_lock(&r->lock);
    while (r->n_cancels == r->cap_cancels && !r->failed) { /* full of repeats or of ended requests */
        pthread_cond_signal(&r->work);
        pthread_cond_wait(&r->done, &r->lock);
    }
    if (!r->failed) {
        r->cancels[r->n_cancels++] = (struct cancel){id, finish};
        pthread_cond_signal(&r->work);
    }
    pthread_mutex_unlock(&r->lock);
}

void run_reset_begin(struct run *r, bool external)
{
    pthread_mutex_lock(&r->lock);
    r->reset = true;
    r->reset_external = external;
    r->reset_done = false;
    pthread_cond_signal(&r->work);
    pthread_mutex_unlock(&r->lock);
}

bool run_reset_ended(struct run *r, int *rc, struct km_err *err)
{
    pthread_mutex_lock(&r->lock);
    bool ended = r->reset_done;
    if (ended) {
        *rc = r->reset_rc;
        if (r->reset_rc && err)
            *err = r->reset_err;
        r->reset_done = false;
    }
    pthread_mutex_unlock(&r->lock);
    return ended;
}

int run_collect(struct run *r, struct eng_events *out, struct km_err *err)
{
    pthread_mutex_lock(&r->lock);
    int rc = 0, n = r->n_events;
    if (n > out->cap) {
        void *p = km_reallocarray(out->v, (size_t)n, sizeof *out->v);
        if (p) {
            out->v = p;
            out->cap = n;
        } else
            rc = km_fail(err, KM_ENOMEM, "no memory for %d events: they are kept for the next call", n);
    }
    out->n = 0;
    out->stalled = false;
    if (!rc && n) {
        memcpy(out->v, r->events, (size_t)n * sizeof *out->v);
        out->n = n;
        r->n_events = 0;
        pthread_cond_signal(&r->work);
    }
    pthread_mutex_unlock(&r->lock);
    return rc;
}

void run_stats(struct run *r, struct eng_stats *out)
{
    pthread_mutex_lock(&r->lock);
    *out = r->stats;
    pthread_mutex_unlock(&r->lock);
}

bool run_failed(struct run *r, struct km_err *why)
{
    pthread_mutex_lock(&r->lock);
    bool failed = r->failed;
    if (failed && why)
        *why = r->why;
    pthread_mutex_unlock(&r->lock);
    return failed;
}
