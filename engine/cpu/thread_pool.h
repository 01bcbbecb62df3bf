/* A thread pool for parallel loops.
 *
 * thread_pool_run calls fn(ctx, task, thread) for every task of [0, n) and returns when all calls have returned. The
 * calling thread takes part as thread 0. Threads take tasks one by one, so a thread that the operating system suspends
 * delays only its own task. */
#ifndef CPU_THREAD_POOL_H
#define CPU_THREAD_POOL_H

#include "base/err.h"

struct thread_pool;
typedef void thread_pool_fn(void *ctx, int task, int thread);

/* n_threads includes the calling thread; 0: km_usable_cores threads. KM_ENOMEM, KM_ELIMIT. */
int thread_pool_open(struct thread_pool **out, int n_threads, struct km_err *err);
void thread_pool_close(struct thread_pool *p);
int thread_pool_threads(const struct thread_pool *p);
/* Runs a loop. All loops of a pool must be run by the same thread. */
void thread_pool_run(struct thread_pool *p, int n, thread_pool_fn *fn, void *ctx);

#endif
