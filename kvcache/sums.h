/* Checksums of chunks, off the engine's thread where that pays.
 *
 * A chunk of a real model is tens of MiB, and hashing one takes milliseconds that the engine's thread does not
 * have when a DMA moved the bytes for nothing. So a `kvc_sum` is one job, a `kvc_summer` a few threads that take
 * jobs in order; the threads start at the first job and a machine that grants none gets its sums computed in
 * place. A job belongs to whoever put it and must stay until it is done. */
#ifndef KVC_SUMS_H
#define KVC_SUMS_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define KVC_SUM_THREADS 4

struct kvc_sum {
    const void *p;        /* [n] bytes */
    size_t n;
    uint64_t seed;        /* binds the bytes to their key */
    uint64_t sum;         /* valid once done */
    int64_t ns;           /* what it took */
    struct kvc_sum *next; /* in the queue */
    atomic_bool done;
};

struct kvc_summer {
    pthread_mutex_t mu;
    pthread_cond_t more;
    struct kvc_sum *head, **tail; /* jobs nobody took yet */
    pthread_t thread[KVC_SUM_THREADS];
    int n_threads; /* running */
    bool started, stop;
};

void kvc_summer_open(struct kvc_summer *s);
void kvc_summer_close(struct kvc_summer *s); /* finishes every job first */
void kvc_summer_put(struct kvc_summer *s, struct kvc_sum *j);

void kvc_sum_now(struct kvc_sum *j);
static inline bool kvc_sum_done(const struct kvc_sum *j)
{
    return atomic_load_explicit(&j->done, memory_order_acquire);
}

#endif
