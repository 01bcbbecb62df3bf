/* One thread and one mutex. Requests and cancellations go in, events come out.
 *
 * The thread holds the mutex except while it steps, resets, enqueues a request or sleeps. While a step is in flight, it
 * sleeps until shortly before the estimated end of that step, so that requests which arrive in the meantime are
 * part of the next step.
 *
 * runner_submit validates and copies a request on the caller's thread, into the object that the engine uses. The
 * runner's thread therefore allocates memory for events only. If that memory is not available, the thread waits until
 * the owner has collected some events. After runner_start all other calls of the engine come from the runner's
 * thread. */
#include "engine/runner.h"

#include "base/clock.h"
#include "base/mem.h"
#include "engine/engine_internal.h"

#include <pthread.h>
#include <string.h>
#include <time.h>

/* Time before the estimated end of the step in flight at which the next step is scheduled. It is several times the time
 * that waking up, scheduling and submitting take. Requests that arrive later miss the next step. */
enum { HEAD_START_NS = 300000 };
/* Time to sleep when only the cache layer can make progress. */
enum { NAP_NS = 50000 };
/* A reset fails if it has not succeeded after this time. */
enum { RESET_SECONDS = 10 };

struct cancel {
    uint64_t id;
    enum eng_finish finish;
};

struct runner {
    struct eng *e;
    void (*wake)(void *arg);
    void *arg;
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t work;            /* the thread has something to do */
    pthread_cond_t done;            /* the thread has drained the queues */

    /* `lock` protects all members below. */
    bool stop;
    struct seq *first, *last;       /* requests that are queued for the engine */
    int n_queued;                   /* number of these requests */
    int n_waiting;                  /* upper bound of the requests that wait in the engine */
    struct cancel *cancels;         /* [n_cancels], with capacity for all requests that can be alive */
    int n_cancels, cap_cancels;
    bool reset, reset_external;     /* a reset was begun and is not done; external: of the cache layer, too */
    int64_t reset_until_ns;         /* when it fails */
    bool reset_done;                /* a reset was done and runner_reset_ended has not returned it yet */
    int reset_rc;
    struct km_err reset_err;
    struct eng_event *events;       /* [n_events] */
    int n_events, cap_events;
    struct eng_stats stats;
    int64_t busy_until_ns;          /* from the last step's events */
    bool failed;
    struct km_err why;
};

/* Sleeps until there is work, at most ns. The lock is held on entry and exit. */
static void sleep_for(struct runner *r, long ns)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    t.tv_nsec += ns;
    t.tv_sec += t.tv_nsec / 1000000000;
    t.tv_nsec %= 1000000000;
    pthread_cond_timedwait(&r->work, &r->lock, &t);
}

/* Calls the owner's callback without the lock, because the callback may call the runner. */
static void call_wake(struct runner *r)
{
    pthread_mutex_unlock(&r->lock);
    r->wake(r->arg);
    pthread_mutex_lock(&r->lock);
}

/* Grows the array for n more events. Without memory it waits until the owner has collected some. The lock is held. */
static void reserve_events(struct runner *r, int n)
{
    while (r->n_events + n > r->cap_events && !r->stop) {
        int cap = r->n_events + n + r->cap_events / 2;
        void *p = km_reallocarray(r->events, (size_t)cap, sizeof *r->events);
        if (p) {
            r->events = p;
            r->cap_events = cap;
            continue;
        }
        call_wake(r);
        sleep_for(r, 1000000);
    }
}

/* Passes everything that was queued to the engine: first requests, then cancellations. The lock is held on entry and
 * exit. It is released while a request is enqueued, because the cache layer then hashes its prompt. A request is queued
 * before its cancellations, so when the queue of requests is empty, the engine knows every request that the
 * cancellations name. */
static void drain_queues(struct runner *r)
{
    for (struct seq *q; (q = r->first);) {
        r->first = q->next;
        if (!q->next)
            r->last = NULL;
        q->next = NULL;
        r->n_queued--;
        r->n_waiting++;
        pthread_mutex_unlock(&r->lock);
        eng_enqueue(r->e, q);
        pthread_mutex_lock(&r->lock);
    }
    for (int i = 0; i < r->n_cancels; i++)
        eng_cancel(r->e, r->cancels[i].id, r->cancels[i].finish);
    r->n_cancels = 0;
    eng_step_stats(r->e, &r->stats);
    r->n_waiting = r->stats.waiting;
    pthread_cond_broadcast(&r->done);
}

/* Tries the reset once, without the lock. Returns true if it has ended. */
static bool try_reset(struct runner *r)
{
    int64_t until = r->reset_until_ns;
    bool external = r->reset_external;
    struct km_err err = {0};
    pthread_mutex_unlock(&r->lock);
    int rc = eng_reset_cache(r->e, external, &err);
    if (rc > 0 && km_now_ns() > until)
        rc = km_fail(&err, KM_ELIMIT, "the cache layer's transfers did not end within %d seconds: reset the cache "
                     "again later", RESET_SECONDS);
    pthread_mutex_lock(&r->lock);
    if (rc > 0)
        return false;
    r->reset_rc = rc;
    r->reset_err = err;
    r->reset = false;
    r->reset_done = true;
    eng_step_stats(r->e, &r->stats);
    return true;
}

/* ns until the next step should be scheduled; 0 or less: now. The lock is held. */
static int64_t ns_to_next_step(const struct runner *r)
{
    return r->busy_until_ns ? r->busy_until_ns - HEAD_START_NS - km_now_ns() : 0;
}

/* Runs a step without the lock, and makes its events available to the owner. */
static void step(struct runner *r)
{
    struct eng_events ev;
    struct km_err err;
    pthread_mutex_unlock(&r->lock);
    int rc = eng_step(r->e, &ev, &err);
    pthread_mutex_lock(&r->lock);
    bool wake_owner = ev.n || (rc == KM_EDEVICE && !r->failed);
    if (rc == KM_EDEVICE && !r->failed) {
        r->failed = true;
        r->why = err;
    }
    eng_step_stats(r->e, &r->stats);
    r->n_waiting = r->stats.waiting;
    r->busy_until_ns = ev.busy_until_ns;
    if (ev.n) {
        reserve_events(r, ev.n);
        if (!r->stop) {
            memcpy(r->events + r->n_events, ev.v, (size_t)ev.n * sizeof *ev.v);
            r->n_events += ev.n;
        }
    }
    if (wake_owner)
        call_wake(r);
    else if (ev.stalled && !r->first && !r->n_cancels && !r->stop)
        sleep_for(r, NAP_NS); /* only transfers can make progress: leave the processor to them */
}

static void *thread_main(void *arg)
{
    struct runner *r = arg;
    pthread_mutex_lock(&r->lock);
    while (!r->stop) {
        /* Each `continue` is there because the lock was released, so the queues and `stop` may have changed. */
        if (r->first || r->n_cancels) {
            drain_queues(r);
            continue;
        }
        if (r->reset && try_reset(r)) {
            call_wake(r);
            continue;
        }
        int64_t left = ns_to_next_step(r);
        if (eng_idle(r->e) && r->reset)
            sleep_for(r, NAP_NS); /* a tier needs time for the reset */
        else if (eng_idle(r->e))
            pthread_cond_wait(&r->work, &r->lock);
        else if (left > 0)
            sleep_for(r, (long)left);
        else
            step(r);
    }
    pthread_mutex_unlock(&r->lock);
    return NULL;
}

static int init_sync(struct runner *r)
{
    pthread_condattr_t a;
    if (pthread_condattr_init(&a))
        return -1;
    int rc = pthread_condattr_setclock(&a, CLOCK_MONOTONIC) || pthread_cond_init(&r->work, &a);
    pthread_condattr_destroy(&a);
    return rc || pthread_cond_init(&r->done, NULL) || pthread_mutex_init(&r->lock, NULL) ? -1 : 0;
}

int runner_start(struct runner **out, struct eng *e, void (*wake)(void *arg), void *arg, struct km_err *err)
{
    const struct eng_opts *o = eng_options(e);
    struct runner *r = km_calloc(1, sizeof *r);
    if (r) {
        r->cap_cancels = o->max_waiting + o->max_num_seqs;
        r->cancels = km_calloc((size_t)r->cap_cancels, sizeof *r->cancels);
    }
    if (!r || !r->cancels) {
        km_free(r);
        return km_fail(err, KM_ENOMEM, "no memory for the queues of the engine's thread: lower --max-num-seqs");
    }
    r->e = e;
    r->wake = wake;
    r->arg = arg;
    eng_step_stats(e, &r->stats);
    r->n_waiting = r->stats.waiting;
    if (init_sync(r) || pthread_create(&r->thread, NULL, thread_main, r)) {
        km_free(r->cancels);
        km_free(r);
        return km_fail(err, KM_EIO, "cannot start a thread for the engine: check the limit on threads (ulimit -u)");
    }
    *out = r;
    return 0;
}

void runner_free(struct runner *r)
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

int runner_submit(struct runner *r, const struct eng_request *q, uint64_t *id, struct km_err *err)
{
    struct seq *s;
    int rc = eng_prepare(r->e, q, &s, err), max_waiting = eng_options(r->e)->max_waiting;
    if (rc)
        return rc;
    pthread_mutex_lock(&r->lock);
    if (r->failed)
        rc = km_fail(err, KM_EDEVICE, "the engine stopped (%s): restart it", r->why.msg);
    else if (r->n_queued + r->n_waiting >= max_waiting)
        rc = km_fail(err, KM_ELIMIT, "%d requests are waiting and the queue holds at most %d: try again later",
                     r->n_queued + r->n_waiting, max_waiting);
    else {
        *id = s->id;
        *(r->last ? &r->last->next : &r->first) = s;
        r->last = s;
        r->n_queued++;
        pthread_cond_signal(&r->work);
    }
    pthread_mutex_unlock(&r->lock);
    if (rc)
        seq_free(s);
    return rc;
}

void runner_cancel(struct runner *r, uint64_t id, enum eng_finish finish)
{
    pthread_mutex_lock(&r->lock);
    /* The queue is full only if cancellations were repeated, or named requests that have ended. */
    while (r->n_cancels == r->cap_cancels && !r->failed) {
        pthread_cond_signal(&r->work);
        pthread_cond_wait(&r->done, &r->lock);
    }
    if (!r->failed) {
        r->cancels[r->n_cancels++] = (struct cancel){id, finish};
        pthread_cond_signal(&r->work);
    }
    pthread_mutex_unlock(&r->lock);
}

void runner_reset_begin(struct runner *r, bool external)
{
    pthread_mutex_lock(&r->lock);
    r->reset = true;
    r->reset_external = external;
    r->reset_until_ns = km_now_ns() + RESET_SECONDS * (int64_t)1000000000;
    r->reset_done = false;
    pthread_cond_signal(&r->work);
    pthread_mutex_unlock(&r->lock);
}

bool runner_reset_ended(struct runner *r, int *rc, struct km_err *err)
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

int runner_collect(struct runner *r, struct eng_events *out, struct km_err *err)
{
    pthread_mutex_lock(&r->lock);
    int rc = 0, n = r->n_events;
    if (n > out->cap) {
        void *p = km_reallocarray(out->v, (size_t)n, sizeof *out->v);
        if (p) {
            out->v = p;
            out->cap = n;
        } else
            rc = km_fail(err, KM_ENOMEM, "no memory to collect %d events: they remain for the next call", n);
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

void runner_stats(struct runner *r, struct eng_stats *out)
{
    pthread_mutex_lock(&r->lock);
    memcpy(out, &r->stats, offsetof(struct eng_stats, kv));
    pthread_mutex_unlock(&r->lock);
    eng_port_stats(r->e, &out->kv);
}

bool runner_failed(struct runner *r, struct km_err *why)
{
    pthread_mutex_lock(&r->lock);
    bool failed = r->failed;
    if (failed && why)
        *why = r->why;
    pthread_mutex_unlock(&r->lock);
    return failed;
}
