/* The checksum is XXH3 (64 bits, seeded). Two things order memory between threads. The queue's lock makes the job's
 * bytes visible to the pool's thread. The done flag makes the job's value visible to the thread that reads the flag. */
#include "kvcache/checksum.h"

#include "base/clock.h"
#include "base/machine.h"

#include <signal.h>
#include <xxhash.h>

void kvc_checksum_run(struct kvc_checksum_job *j)
{
    int64_t t0 = km_now_ns();
    j->value = XXH3_64bits_withSeed(j->data, j->size, j->seed);
    j->ns = km_now_ns() - t0;
    atomic_store_explicit(&j->done, true, memory_order_release);
}

static void *thread_main(void *arg)
{
    struct kvc_checksum_pool *s = arg;
    pthread_mutex_lock(&s->lock);
    for (;;) {
        while (!s->head && !s->stop)
            pthread_cond_wait(&s->more, &s->lock);
        struct kvc_checksum_job *j = s->head;
        if (!j)
            break;
        s->head = j->next;
        if (!s->head)
            s->tail = &s->head;
        pthread_mutex_unlock(&s->lock);
        kvc_checksum_run(j);
        pthread_mutex_lock(&s->lock);
    }
    pthread_mutex_unlock(&s->lock);
    return NULL;
}

void kvc_checksum_pool_open(struct kvc_checksum_pool *s)
{
    *s = (struct kvc_checksum_pool){0};
    s->tail = &s->head;
    pthread_mutex_init(&s->lock, NULL);
    pthread_cond_init(&s->more, NULL);
}

void kvc_checksum_pool_close(struct kvc_checksum_pool *s)
{
    pthread_mutex_lock(&s->lock);
    s->stop = true;
    pthread_cond_broadcast(&s->more);
    pthread_mutex_unlock(&s->lock);
    for (int i = 0; i < s->n_threads; i++)
        pthread_join(s->thread[i], NULL);
    pthread_cond_destroy(&s->more);
    pthread_mutex_destroy(&s->lock);
}

/* Starts one thread for every four cores, because tokenizer, HTTP server and engine need the others. */
static void start_threads(struct kvc_checksum_pool *s)
{
    int want = km_usable_cores() / 4;
    want = want < 1 ? 1 : want > KVC_CHECKSUM_THREADS ? KVC_CHECKSUM_THREADS : want;
    sigset_t all, old; /* the pool's threads block all signals, so that the main thread handles them */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    while (s->n_threads < want && !pthread_create(&s->thread[s->n_threads], NULL, thread_main, s))
        s->n_threads++;
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    s->started = true;
}

void kvc_checksum_pool_submit(struct kvc_checksum_pool *s, struct kvc_checksum_job *j)
{
    if (!s->started)
        start_threads(s);
    if (!s->n_threads) {
        kvc_checksum_run(j);
        return;
    }
    pthread_mutex_lock(&s->lock);
    j->next = NULL;
    *s->tail = j;
    s->tail = &j->next;
    pthread_cond_signal(&s->more);
    pthread_mutex_unlock(&s->lock);
}
