/* Threads that share loops: pool_for runs fn(ctx, task, thread) for every task of [0, n) and returns when
 * all are done. The caller works too, as thread 0. Tasks are handed out one by one, so that a thread which
 * lost its core does not hold up the rest; a thread that wakes late finds nothing left and touches nothing. */
#ifndef CPU_POOL_H
#define CPU_POOL_H

#include "base/err.h"

struct pool;
typedef void pool_fn(void *ctx, int task, int thread);

int pool_open(struct pool **out, int n_threads, struct km_err *err); /* 0: one a usable core */
void pool_close(struct pool *p);
int pool_threads(const struct pool *p);
/* One loop at a time, from one thread. */
void pool_for(struct pool *p, int n, pool_fn *fn, void *ctx);

#endif
