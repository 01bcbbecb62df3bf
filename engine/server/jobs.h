/* Requests in work: from a validated request to its answer.
 *
 * A `jobs` is all of them. A job is one HTTP request with its choices; each choice is one request of the engine.
 * An answer is written once: whole, or as a stream whose joined text is the same text. Every job ends in exactly
 * one of three ways: answered, failed with an error that the client sees, or its client gone. */
#ifndef SRV_JOBS_H
#define SRV_JOBS_H

#include "engine/runner.h"
#include "engine/server/api.h"
#include "engine/server/http.h"
#include "engine/server/metrics.h"

struct jobs;

struct jobs_env {
    struct run *run;
    const struct tok *tok; /* NULL: ids only */
    const char *model;
    int64_t seed;
    struct met *met;
};

/* Strings of env are borrowed. */
int jobs_open(struct jobs **out, const struct jobs_env *env, struct km_err *err);
void jobs_free(struct jobs *j);
int jobs_live(const struct jobs *j);

/* Takes a; c is answered now or held. */
void jobs_start(struct jobs *j, struct http_conn *c, struct api *a);
void jobs_event(struct jobs *j, const struct eng_event *ev);
void jobs_gone(void *job); /* the client of a held request left */
void jobs_fail_all(struct jobs *j, int status, const char *why);

/* An error as a whole answer, in OpenAI's shape. headers as in http_reply. */
void jobs_refuse(struct http_conn *c, int status, const char *headers, const char *message, const char *param,
                 const char *code);

#endif
