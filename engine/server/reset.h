/* Requests to reset the prefix cache.
 *
 * A `resets` is a queue of such requests; each holds its HTTP connection until the engine has done its reset between
 * two steps. The event loop never waits for the engine. The runner is borrowed. */
#ifndef SRV_RESET_H
#define SRV_RESET_H

#include "engine/runner.h"
#include "engine/server/http.h"

struct resets;

int rst_open(struct resets **out, struct runner *runner, struct km_err *err);
void rst_free(struct resets *q); /* after http_free, so that no request is left */

/* Queues a reset, whose answer goes to c. external: of the cache layer, too. */
void rst_start(struct resets *q, struct http_conn *c, bool external);
/* Answers the reset that has ended, if one has, and begins the next. To be called when the runner wakes the loop. */
void rst_poll(struct resets *q);
/* Answers every request in the queue with this error. */
void rst_fail_all(struct resets *q, int status, const char *why);

#endif
