/* Checksums of chunks, in the calling thread or on a pool of threads.
 *
 * A chunk of a real model is tens of MiB and takes milliseconds to hash. If the device copies chunks without the
 * engine's thread, the pool hashes them, so that the engine's thread can schedule steps in the meantime. A
 * `kvc_checksum_job` is the checksum of one chunk; a `kvc_checksum_pool` is a few threads that start jobs in the order
 * of submission. The threads start with the first job. If no thread can be started, jobs run in the submitting thread.
 *
 * The caller owns a job and must neither move nor free it until kvc_checksum_done returns true. */
#ifndef KVC_CHECKSUM_H
#define KVC_CHECKSUM_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { KVC_CHECKSUM_THREADS = 4 }; /* most threads of a pool */

struct kvc_checksum_job {
    const void *data; /* [size] bytes */
    size_t size;
    uint64_t seed;    /* from the chunk's key, so that the right bytes under a wrong key do not pass */
    uint64_t value;   /* the checksum, once done */
    int64_t ns;       /* time that the job took, once done */
    struct kvc_checksum_job *next; /* in the pool's queue */
    atomic_bool done;
};

struct kvc_checksum_pool {
    pthread_mutex_t lock;
    pthread_cond_t more;
    struct kvc_checksum_job *head, **tail; /* queued jobs; tail points to the link that the next job is stored in */
    pthread_t thread[KVC_CHECKSUM_THREADS];
    int n_threads; /* running */
    bool started, stop;
};

void kvc_checksum_pool_open(struct kvc_checksum_pool *s);
void kvc_checksum_pool_close(struct kvc_checksum_pool *s); /* runs every submitted job first */
void kvc_checksum_pool_submit(struct kvc_checksum_pool *s, struct kvc_checksum_job *j);

void kvc_checksum_run(struct kvc_checksum_job *j); /* in the calling thread */
static inline bool kvc_checksum_done(const struct kvc_checksum_job *j)
{
    return atomic_load_explicit(&j->done, memory_order_acquire);
}

#endif
