/* The runner: an engine on a thread of its own, for servers.
 *
 * `struct runner` owns the thread and two queues, one for requests and cancellations and one for events. Its functions
 * may be called from any thread; runner_free must be the last call. The runner's thread steps the engine while there is
 * work, and sleeps otherwise. After a step with events it calls `wake` from its own thread, for example to write to an
 * eventfd. The owner then fetches the events with runner_collect. */
#ifndef ENG_RUNNER_H
#define ENG_RUNNER_H

#include "engine/engine.h"

struct runner;

/* Starts the thread. The runner borrows e until runner_free. wake(arg) must be fast and thread-safe. */
int runner_start(struct runner **out, struct eng *e, void (*wake)(void *arg), void *arg, struct km_err *err);
void runner_free(struct runner *r); /* waits for the current step and ends the thread */

/* Queues a request, after the same checks as eng_submit. The id is unique within the engine. */
int runner_submit(struct runner *r, const struct eng_request *q, uint64_t *id, struct km_err *err);
/* Cancels a request before the next step. Events that exist already can still be collected. */
void runner_cancel(struct runner *r, uint64_t id, enum eng_finish finish);
/* Begins a reset: the runner's thread calls eng_reset_cache between steps until it has succeeded or failed, for at most
 * ten seconds, and then calls `wake`. Begin the next reset only after runner_reset_ended has returned true. */
void runner_reset_begin(struct runner *r, bool external);
/* True once, after the reset has ended: *rc and *err are what eng_reset_cache returned. */
bool runner_reset_ended(struct runner *r, int *rc, struct km_err *err);

/* Moves the events since the last call, oldest first, to `out`. The caller owns out->v, which grows as needed and is
 * freed with km_free. KM_ENOMEM: the events remain for the next call. */
int runner_collect(struct runner *r, struct eng_events *out, struct km_err *err);
void runner_stats(struct runner *r, struct eng_stats *out); /* as of the last step; those of the cache layer: now */
/* True if the device failed; all requests have then ended. *why is the reason. */
bool runner_failed(struct runner *r, struct km_err *why);

#endif
