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
    const struct target *target; /* borrowed */
    const char *path;            /* path of every request, such as "/v1/chat/completions"; borrowed */
    bool stream;                 /* the requests ask for streamed responses */
    bool prompts;                /* the default time-out is that of prompts, not of conversations */
    bool completions;            /* the requests go to the completions endpoint: decides hz_rec.last_any_ns */
    bool by_ids;                 /* hash the answer's token ids instead of its text */
    double timeout_s;            /* as in struct load_opts */
};
int client_new(struct client **out, const struct client_opts *o, struct km_err *err);
void client_free(struct client *c);

/* Opens n connections with a GET /health on each. KM_ENET: the server cannot be reached. KM_ELIMIT: too many open
 * files. */
int client_connect(struct client *c, int n, struct km_err *err);

/* Progress of the measured phase. */
struct client_progress {
    int done, active, failed, total;      /* requests: succeeded, in flight, failed, in the schedule */
    int64_t elapsed_ns;                   /* since the start of the measured phase */
    int64_t prompt_tokens, output_tokens; /* prompt tokens: of the requests that succeeded */
    double ttft_mean_ms;                  /* from the start of a request to its first event with a token */
};
/* Called at most ten times a second, from the client's thread. Returning false stops the run: the requests in flight
 * are cancelled and not recorded, and the trace is marked as stopped. */
typedef bool (*client_progress_fn)(void *arg, const struct client_progress *p);

/* Plays the whole schedule. Appends to the trace's records and events, and sets begin_ns, end_ns, stopped, health. */
int client_play(struct client *c, struct schedule *s, struct req *r, client_progress_fn progress, void *arg,
                struct hz_trace *trace, struct km_err *err);

#endif
