/* Request bodies, built before the clock needs them.
 *
 * A `req` owns one growing body per conversation. The JSON up to the last message is kept from turn to turn, so a long
 * history is escaped once and never copied. */
#ifndef REQUEST_H
#define REQUEST_H

#include "base/err.h"
#include "harness/client/load_opts.h"
#include "workloads/workload.h"

struct req;

/* Escapes every message of the set; load and set must outlive the req. extra_body: a JSON object merged into each body,
 * or NULL. KM_EINVAL: options that exclude each other, or an extra_body that replaces what the client must set. */
int req_new(struct req **out, const struct load *load, const char *extra_body, const char *model,
            const struct wl_set *set, struct km_err *err);
void req_free(struct req *r);

const char *req_path(const struct req *r); /* "/v1/chat/completions" or "/v1/completions" */

struct req_body {
    const char *p; /* [n] */
    size_t n;
    int asked_tokens; /* its max_tokens; -1: none */
    int messages;     /* its messages, the new one included */
};
/* The body for a turn of a conversation. Turns are built in order. The body is valid until the next req_answer or
 * req_build of the same conversation. */
int req_build(struct req *r, int conv, int turn, struct req_body *out, struct km_err *err);
/* Adds the answer of that turn to the history: the text received, or the workload's with fixed_history. */
int req_answer(struct req *r, int conv, int turn, const char *text, size_t len, struct km_err *err);
/* Empties the history of every conversation. */
void req_rewind(struct req *r);

#endif
