/* The sockets of a run: libcurl's multi interface on one epoll loop, one thread.
 *
 * A `cli` owns a pool of connections and plays a schedule (harness/client/schedule.h) with bodies (harness/client/request.h)
 * into a trace. Connections are opened before the clock starts. While it plays: no tokenising, no printing,
 * no file, and memory only where a buffer grows. */
#ifndef CLI_CLIENT_H
#define CLI_CLIENT_H

#include "harness/client/load.h"
#include "harness/client/request.h"
#include "harness/client/schedule.h"

struct cli;

struct cli_opts {
    const struct hz_target *target;
    const char *path;   /* of every request */
    bool stream;
    bool prompts;       /* time-outs and `last` stamps as bench serve has them */
    bool completions;
    bool by_ids;        /* answers are compared by token ids */
    double timeout_s;   /* as in struct hz_load */
};
int cli_new(struct cli **out, const struct cli_opts *o, struct km_err *err);
void cli_free(struct cli *c);

/* Opens n connections with a GET /health on each. KM_ENET when nothing listens. */
int cli_connect(struct cli *c, int n, struct km_err *err);

/* Plays the whole schedule and appends to trace: recs, ticks, begin_ns, end_ns, stopped, health. */
int cli_play(struct cli *c, struct turns *s, struct req *r, hz_progress_fn progress, void *arg, struct hz_trace *trace,
             struct km_err *err);

#endif
