/* The state of the pool is one atomic word, `next`. Its upper half is the number of the current loop, its lower half
 * the number of tasks that no thread has taken yet. A thread takes a task by compare-and-swap on this word. So a thread
 * uses fn, ctx and n only while it has a task of the loop, and the loop cannot end before this task is done. A thread
 * that wakes up late finds no task and uses none of them. */
#include "engine/cpu/thread_pool.h"

#include "base/machine.h"
#include "base/mem.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__) || defined(__i386__)
#define cpu_relax() __builtin_ia32_pause()
#elif defined(__aarch64__)
#define cpu_relax() __asm__ volatile("yield")
#else
#define cpu_relax() ((void)0)
#endif

/* Iterations that a thread spins before it sleeps: about 20 us, longer than the time between two loops of a step. */
enum { SPIN = 1000 };

struct worker {
    struct thread_pool *p;
    pthread_t id;
    int index;
};

struct thread_pool {
    _Alignas(64) _Atomic uint64_t next;
    _Alignas(64) _Atomic int pending;  /* tasks that have not ended */
    _Alignas(64) _Atomic int sleepers; /* threads that wait for `wake` */
    atomic_bool stop;
    thread_pool_fn *fn; /* fn, ctx and n: the current loop */
    void *ctx;
    int n;
    int n_threads, n_started;
    struct worker *workers; /* [n_threads - 1] */
    pthread_mutex_t lock;
    pthread_cond_t wake;
};

/* Takes a task of the current loop. False if there is none. */
static bool take_task(struct thread_pool *p, int *task)
{
    uint64_t w = atomic_load_explicit(&p->next, memory_order_acquire);
    while ((uint32_t)w)
        if (atomic_compare_exchange_weak_explicit(&p->next, &w, w - 1, memory_order_acq_rel, memory_order_acquire)) {
            *task = p->n - (int)(uint32_t)w;
            return true;
        }
    return false;
}

/* Runs tasks until there is none. */
static void run_tasks(struct thread_pool *p, int thread)
{
    int task;
    while (take_task(p, &task)) {
        p->fn(p->ctx, task, thread);
        atomic_fetch_sub_explicit(&p->pending, 1, memory_order_acq_rel);
    }
}

static bool has_work(struct thread_pool *p)
{
    return (uint32_t)atomic_load(&p->next) || atomic_load(&p->stop);
}

static void *worker_main(void *arg)
{
    struct worker *w = arg;
    struct thread_pool *p = w->p;
    while (!atomic_load(&p->stop)) {
        run_tasks(p, w->index);
        for (int i = 0; i < SPIN && !has_work(p); i++)
            cpu_relax();
        if (has_work(p))
            continue;
        pthread_mutex_lock(&p->lock);
        /* Counted before the last check: either the caller sees a sleeper, or this thread sees the new loop. */
        atomic_fetch_add(&p->sleepers, 1);
        while (!has_work(p))
            pthread_cond_wait(&p->wake, &p->lock);
        atomic_fetch_sub(&p->sleepers, 1);
        pthread_mutex_unlock(&p->lock);
    }
    return NULL;
}

static void wake_all(struct thread_pool *p)
{
    if (!atomic_load(&p->sleepers))
        return;
    pthread_mutex_lock(&p->lock);
    pthread_cond_broadcast(&p->wake);
    pthread_mutex_unlock(&p->lock);
}

void thread_pool_run(struct thread_pool *p, int n, thread_pool_fn *fn, void *ctx)
{
    if (p->n_threads == 1 || n <= 1) {
        for (int i = 0; i < n; i++)
            fn(ctx, i, 0);
        return;
    }
    p->fn = fn;
    p->ctx = ctx;
    p->n = n;
    atomic_store_explicit(&p->pending, n, memory_order_relaxed);
    uint64_t loop = (atomic_load_explicit(&p->next, memory_order_relaxed) >> 32) + 1;
    atomic_store(&p->next, loop << 32 | (uint32_t)n);
    wake_all(p);
    run_tasks(p, 0);
    for (int i = 0; atomic_load_explicit(&p->pending, memory_order_acquire); i++) {
        if (i < SPIN)
            cpu_relax();
        else
            sched_yield();
    }
}

int thread_pool_open(struct thread_pool **out, int n_threads, struct km_err *err)
{
    if (n_threads <= 0)
        n_threads = km_usable_cores();
    struct thread_pool *p = km_aligned(64, sizeof *p);
    if (!p)
        return km_fail(err, KM_ENOMEM, "out of memory for a pool of %d threads", n_threads);
    memset(p, 0, sizeof *p);
    p->n_threads = n_threads;
    pthread_mutex_init(&p->lock, NULL);
    pthread_cond_init(&p->wake, NULL);
    p->workers = km_calloc((size_t)n_threads, sizeof *p->workers);
    int rc = p->workers ? 0 : km_fail(err, KM_ENOMEM, "out of memory for a pool of %d threads", n_threads);
    for (int i = 0; !rc && i < n_threads - 1; i++) {
        p->workers[i] = (struct worker){.p = p, .index = i + 1};
        int bad = pthread_create(&p->workers[i].id, NULL, worker_main, &p->workers[i]);
        if (bad)
            rc = km_fail(err, KM_ELIMIT, "cannot start thread %d of %d: %s; ask for fewer threads", i + 2, n_threads,
                         strerror(bad));
        else
            p->n_started++;
    }
    if (rc) {
        thread_pool_close(p);
        return rc;
    }
    *out = p;
    return 0;
}

void thread_pool_close(struct thread_pool *p)
{
    if (!p)
        return;
    atomic_store(&p->stop, true);
    pthread_mutex_lock(&p->lock);
    pthread_cond_broadcast(&p->wake);
    pthread_mutex_unlock(&p->lock);
    for (int i = 0; i < p->n_started; i++)
        pthread_join(p->workers[i].id, NULL);
    pthread_mutex_destroy(&p->lock);
    pthread_cond_destroy(&p->wake);
    km_free(p->workers);
    km_free(p);
}

int thread_pool_threads(const struct thread_pool *p)
{
    return p->n_threads;
}
