/* Checksums of chunks, off the engine's thread where that pays.
 *
 * A chunk of a real model is tens of MiB, and hashing one takes milliseconds that the engine's thread does not
 * have when a DMA moved the bytes for nothing. So a `kvc_sum` is one job, a `kvc_summer` a few threads that take
 * jobs in order; the threads start at the first job and a machine that grants none gets its sums computed in
 * place. A job belongs to whoever put it and must stay until it is done. */
#ifndef KVC_CHECKSUM_H
#define KVC_CHECKSUM_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define KVC_CHECKSUM_THREADS 4

struct kvc_checksum_job {
    const void *p;        /* [n] bytes */
    size_t n;
    uint64_t seed;        /* binds the bytes to their key */
    uint64_t sum;         /* valid once done */
    int64_t ns;           /* what it took */
    struct kvc_checksum_job *next; /* in the queue */
    atomic_bool done;
};

struct kvc_checksum_pool {
    pthread_mutex_t mu;
    pthread_cond_t more;
    struct kvc_checksum_job *head, **tail; /* jobs nobody took yet */
    pthread_t thread[KVC_CHECKSUM_THREADS];
    int n_threads; /* running */
    bool started, stop;
};

void kvc_checksum_pool_open(struct kvc_checksum_pool *s);
void kvc_checksum_pool_close(struct kvc_checksum_pool *s); /* finishes every job first */
void kvc_checksum_pool_submit(struct kvc_checksum_pool *s, struct kvc_checksum_job *j);

void kvc_checksum_run(struct kvc_checksum_job *j);
static inline bool kvc_checksum_done(const struct kvc_checksum_job *j)
{
    return atomic_load_explicit(&j->done, memory_order_acquire);
}

#endif
