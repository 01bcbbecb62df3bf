/* Completions and chats in work: from a validated request to its answer.
 *
 * A job is one HTTP request; each of its choices is one request of the engine. A `jobs` owns all jobs, and a job owns
 * its api_request. The connection and the engine's runner are borrowed.
 *
 * Invariant: every job ends in exactly one of three ways. It is answered, it fails with an error that the client sees,
 * or its client disconnects. Whichever comes, no request of it stays in the engine. The text of a stream, joined, is
 * the text that the same request gets without "stream". */
#ifndef SRV_JOBS_H
#define SRV_JOBS_H

#include "engine/runner.h"
#include "engine/server/api.h"
#include "engine/server/http.h"
#include "engine/server/metrics.h"

struct jobs;

struct jobs_env {
    struct runner *runner;
    const struct tok *tok; /* NULL: token ids only */
    const char *model;     /* the served name, borrowed */
    int64_t seed;          /* for requests without one */
    struct met *met;       /* latencies of requests are counted here */
};

int jobs_open(struct jobs **out, const struct jobs_env *env, struct km_err *err);
void jobs_free(struct jobs *j); /* drops the jobs that remain and cancels their engine requests */
int jobs_live(const struct jobs *j);

/* Starts a job for a completion or a chat. The job owns *a from here on, also if the request is refused. */
void jobs_start(struct jobs *j, struct http_conn *c, struct api_request *a);
/* Handles one event of the engine: adds the token to its choice, streams it, ends the choice or the job. */
void jobs_handle(struct jobs *j, const struct eng_event *ev);
/* Ends every job with this error. */
void jobs_fail_all(struct jobs *j, int status, const char *why);

#endif
