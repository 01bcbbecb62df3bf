/* Requests to reset the prefix cache.
 *
 * A `resets` is a queue of these requests. The engine resets between two steps, and the event loop never waits for it:
 * a request holds its HTTP connection until its reset has ended. The runner is borrowed. */
#ifndef SRV_RESET_H
#define SRV_RESET_H

#include "engine/runner.h"
#include "engine/server/http.h"

struct resets;

int rst_open(struct resets **out, struct runner *runner, struct km_err *err);
void rst_free(struct resets *q); /* to be called after http_free, because a request refers to its connection */

/* Queues a reset and answers c when it has ended. external: the cache layer is cleared, too. */
void rst_start(struct resets *q, struct http_conn *c, bool external);
/* If a reset has ended, answers it and begins the next. To be called whenever the runner wakes the event loop. */
void rst_poll(struct resets *q);
/* Answers every request in the queue with this HTTP status and error message. */
void rst_fail_all(struct resets *q, int status, const char *why);

#endif
