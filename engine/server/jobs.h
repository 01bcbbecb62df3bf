/* Completions and chats in progress: from a validated request to its answer.
 *
 * A job is one HTTP request; each of its choices is one request of the engine. A `jobs` owns all jobs, and a job owns
 * its api_request. The connection and the engine's runner are borrowed.
 *
 * Invariant: every job ends in exactly one of three ways: it is answered, it fails with an error that the client gets,
 * or its client disconnects. In each case none of its requests remains in the engine. The pieces of a stream, joined,
 * are the text that the same request gets without "stream". */
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
    int64_t seed;          /* the seeds of requests without "seed" are derived from it */
    struct met *met;       /* histograms to which latencies and sizes of requests are added */
};

int jobs_open(struct jobs **out, const struct jobs_env *env, struct km_err *err);
void jobs_free(struct jobs *j);      /* drops the remaining jobs without an answer and cancels their engine requests */
int jobs_live(const struct jobs *j); /* number of jobs in progress */

/* Starts a job for a completion or a chat. Ownership of *a moves to the job, also if the request is refused. */
void jobs_start(struct jobs *j, struct http_conn *c, struct api_request *a);
/* Handles one event of the engine: adds the token to its choice, streams it, ends the choice or the job. */
void jobs_handle(struct jobs *j, const struct eng_event *ev);
/* Ends every job with this HTTP status and error message. */
void jobs_fail_all(struct jobs *j, int status, const char *why);

#endif
