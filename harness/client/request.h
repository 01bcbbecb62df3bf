/* Request bodies as vLLM's load clients send them.
 *
 * A `req` owns one growing body per conversation. The JSON of the messages so far stays in the body from turn to turn,
 * so that a long history is escaped once and never copied. The workload's own messages are escaped before the run
 * starts. */
#ifndef REQUEST_H
#define REQUEST_H

#include "base/err.h"
#include "harness/client/load_opts.h"
#include "workloads/workload.h"

struct req;

/* Escapes every message of the set. load and set are borrowed and must outlive the req. extra_body: a JSON object that
 * is merged into each body, or NULL. KM_EINVAL: the options do not suit the set, or extra_body has a key that the
 * client itself must set. */
int req_new(struct req **out, const struct load_opts *load, const char *extra_body, const char *model,
            const struct wl_set *set, struct km_err *err);
void req_free(struct req *r);

const char *req_path(const struct req *r); /* "/v1/chat/completions" or "/v1/completions" */

struct req_body {
    const char *p; /* [n] the JSON */
    size_t n;
    int asked_tokens; /* max_tokens in the body; -1: none */
    int messages;     /* messages in the body, the new one included */
};
/* Builds the body for a turn of a conversation. The turns of a conversation must be built in order. The body is valid
 * until the next req_answer or req_build of the same conversation. */
int req_build(struct req *r, int conv, int turn, struct req_body *out, struct km_err *err);
/* Adds the answer to a turn to the history: `text`, or with fixed_history the workload's answer. */
int req_answer(struct req *r, int conv, int turn, const char *text, size_t len, struct km_err *err);
/* Empties the history of every conversation. */
void req_rewind(struct req *r);

#endif
