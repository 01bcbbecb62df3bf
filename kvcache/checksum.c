/* XXH3 in place or on threads. The queue's lock orders a job's bytes before the thread that reads them; the done
 * flag orders its sum before the thread that asked. */
#include "kvcache/checksum.h"

#include "base/clock.h"

#include <signal.h>
#include <unistd.h>
#include <xxhash.h>

void kvc_checksum_run(struct kvc_checksum_job *j)
{
    int64_t t0 = km_now_ns();
    j->sum = XXH3_64bits_withSeed(j->p, j->n, j->seed);
    j->ns = km_now_ns() - t0;
    atomic_store_explicit(&j->done, true, memory_order_release);
}

static void *work(void *arg)
{
    struct kvc_checksum_pool *s = arg;
    pthread_mutex_lock(&s->mu);
    for (;;) {
        while (!s->head && !s->stop)
            pthread_cond_wait(&s->more, &s->mu);
        struct kvc_checksum_job *j = s->head;
        if (!j)
            break;
        s->head = j->next;
        if (!s->head)
            s->tail = &s->head;
        pthread_mutex_unlock(&s->mu);
        kvc_checksum_run(j);
        pthread_mutex_lock(&s->mu);
    }
    pthread_mutex_unlock(&s->mu);
    return NULL;
}

void kvc_checksum_pool_open(struct kvc_checksum_pool *s)
{
    *s = (struct kvc_checksum_pool){0};
    s->tail = &s->head;
    pthread_mutex_init(&s->mu, NULL);
    pthread_cond_init(&s->more, NULL);
}

void kvc_checksum_pool_close(struct kvc_checksum_pool *s)
{
    pthread_mutex_lock(&s->mu);
    s->stop = true;
    pthread_cond_broadcast(&s->more);
    pthread_mutex_unlock(&s->mu);
    for (int i = 0; i < s->n_threads; i++)
        pthread_join(s->thread[i], NULL);
    pthread_cond_destroy(&s->more);
    pthread_mutex_destroy(&s->mu);
}

/* A quarter of the cores, so that tokenizing, HTTP and the engine keep theirs. */
static void start(struct kvc_checksum_pool *s)
{
    long want = sysconf(_SC_NPROCESSORS_ONLN) / 4;
    want = want < 1 ? 1 : want > KVC_CHECKSUM_THREADS ? KVC_CHECKSUM_THREADS : want;
    sigset_t all, old; /* signals are the main thread's business */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    while (s->n_threads < want && !pthread_create(&s->thread[s->n_threads], NULL, work, s))
        s->n_threads++;
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    s->started = true;
}

void kvc_checksum_pool_submit(struct kvc_checksum_pool *s, struct kvc_checksum_job *j)
{
    if (!s->started)
        start(s);
    if (!s->n_threads) {
        kvc_checksum_run(j);
        return;
    }
    pthread_mutex_lock(&s->mu);
    j->next = NULL;
    *s->tail = j;
    s->tail = &j->next;
    pthread_cond_signal(&s->more);
    pthread_mutex_unlock(&s->mu);
}
