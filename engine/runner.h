/* The runner: an engine on a thread of its own, for servers.
 *
 * `struct run` owns the thread and two queues, one for requests and cancellations and one for events. Its functions may
 * be called from any one thread. The runner's thread steps the engine while there is work, and sleeps otherwise. After
 * a step with events it calls `wake` from its own thread, for example to write to an eventfd. The owner then fetches
 * the events with run_collect. */
#ifndef ENG_RUNNER_H
#define ENG_RUNNER_H

#include "engine/engine.h"

struct run;

/* Starts the thread. The runner borrows e until run_free. wake(arg) must be fast and thread-safe. */
int run_start(struct run **out, struct eng *e, void (*wake)(void *arg), void *arg, struct km_err *err);
void run_free(struct run *r); /* waits for the current step and ends the thread */

/* Queues a request, after the same checks as eng_submit. The id is unique in this process. */
int run_submit(struct run *r, const struct eng_request *q, uint64_t *id, struct km_err *err);
/* Cancels a request before the next step. Events that exist already can still be collected. */
void run_cancel(struct run *r, uint64_t id, enum eng_finish finish);
/* Begins eng_reset_cache, which happens before the next step. The thread calls `wake` when it has ended. One reset at a
 * time: begin the next one only after run_reset_ended. */
void run_reset_begin(struct run *r, bool external);
/* True once, after the reset has ended: *rc and *err are what eng_reset_cache returned. */
bool run_reset_ended(struct run *r, int *rc, struct km_err *err);

/* Moves the events since the last call, oldest first, to `out`. The caller owns out->v, which grows as needed and is
 * freed with km_free. KM_ENOMEM: the events stay for the next call. */
int run_collect(struct run *r, struct eng_events *out, struct km_err *err);
void run_stats(struct run *r, struct eng_stats *out); /* as of the last step */
/* True if the device failed; all requests have then ended. *why is the reason. */
bool run_failed(struct run *r, struct km_err *why);

#endif
