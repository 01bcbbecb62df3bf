/* An engine on a thread of its own, for servers: a mailbox in, batches of events out.
 *
 * Calls may come from any one thread. The runner steps the engine while it has work and sleeps when it
 * has not; after each step that made events it calls `wake` from its own thread (write to an eventfd there),
 * and the owner collects them with run_collect. */
#ifndef ENG_RUNNER_H
#define ENG_RUNNER_H

#include "engine/engine.h"

struct run;

/* Borrows e until run_free. wake(arg) must be quick and thread-safe. */
int run_start(struct run **out, struct eng *e, void (*wake)(void *arg), void *arg, struct km_err *err);
void run_free(struct run *r); /* stops after the current step; joins */

/* Validates like eng_submit, before queueing. The id is unique for the process. */
int run_submit(struct run *r, const struct eng_request *q, uint64_t *id, struct km_err *err);
/* Takes effect before the next step. Events already made may still be collected. */
void run_cancel(struct run *r, uint64_t id, enum eng_finish finish);
int run_reset_cache(struct run *r, bool external, struct km_err *err); /* waits for the current step */

/* The events made since the last call, oldest first, into out (the caller's; v grows as needed, km_free). */
int run_collect(struct run *r, struct eng_events *out, struct km_err *err);
void run_stats(struct run *r, struct eng_stats *out); /* as of the last step */
bool run_failed(struct run *r, struct km_err *why);   /* the device is gone; every request has ended */

#endif
