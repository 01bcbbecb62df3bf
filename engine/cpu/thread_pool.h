/* Threads that share loops: thread_pool_run runs fn(ctx, task, thread) for every task of [0, n) and returns when
 * all are done. The caller works too, as thread 0. Tasks are handed out one by one, so that a thread which
 * lost its core does not hold up the rest; a thread that wakes late finds nothing left and touches nothing. */
#ifndef CPU_THREAD_POOL_H
#define CPU_THREAD_POOL_H

#include "base/err.h"

struct thread_pool;
typedef void thread_pool_fn(void *ctx, int task, int thread);

int thread_pool_open(struct thread_pool **out, int n_threads, struct km_err *err); /* 0: one a usable core */
void thread_pool_close(struct thread_pool *p);
int thread_pool_threads(const struct thread_pool *p);
/* One loop at a time, from one thread. */
void thread_pool_run(struct thread_pool *p, int n, thread_pool_fn *fn, void *ctx);

#endif
