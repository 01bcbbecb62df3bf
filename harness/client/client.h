/* The connections of a run: libcurl's multi interface on one epoll loop, in one thread.
 *
 * A `client` owns a pool of connections. It plays a schedule (harness/client/schedule.h) with request bodies
 * (harness/client/request.h) into a trace. All connections are opened before the clock starts. While a schedule plays,
 * memory is allocated only where a buffer has to grow. */
#ifndef CLIENT_H
#define CLIENT_H

#include "base/err.h"
#include "harness/client/target.h"
#include "harness/run/trace.h"

#include <stdbool.h>
#include <stdint.h>

struct client;
struct schedule;
struct req;

struct client_opts {
    const struct target *target;
    const char *path; /* of every request, "/v1/chat/completions" */
    bool stream;
    bool prompts;     /* default time-out of prompts instead of conversations */
    bool completions; /* the last event counts as `vllm bench serve` does for completions (hz_rec.last_any_ns) */
    bool by_ids;      /* hash the answer's token ids instead of its text */
    double timeout_s; /* as in struct load */
};
int client_new(struct client **out, const struct client_opts *o, struct km_err *err);
void client_free(struct client *c);

/* Opens n connections with a GET /health on each. KM_ENET when no server listens. */
int client_connect(struct client *c, int n, struct km_err *err);

/* Progress of the measured phase. */
struct client_progress {
    int done, active, failed, total; /* requests */
    int64_t elapsed_ns;
    int64_t prompt_tokens, output_tokens; /* so far; prompt tokens of finished requests only */
    double ttft_mean_ms;
};
/* Called ten times a second from the client's thread. Returns false to stop the run: requests that have finished are
 * kept, and the trace is marked as stopped. */
typedef bool (*client_progress_fn)(void *arg, const struct client_progress *p);

/* Plays the whole schedule. Appends to the trace's records and events, and sets begin_ns, end_ns, stopped and health.
 */
int client_play(struct client *c, struct schedule *s, struct req *r, client_progress_fn progress, void *arg,
                struct hz_trace *trace, struct km_err *err);

#endif
