/* Request bodies, ready before the clock needs them.
 *
 * A `req` holds one growing body per conversation: the JSON up to the last message is kept from turn to turn,
 * so that a long history is escaped once and never copied. */
#ifndef REQUEST_H
#define REQUEST_H

#include "base/err.h"
#include "harness/client/load_opts.h"
#include "workloads/workload.h"

struct req;

/* Escapes every message of the set. model: the name to send. Errors: options that cannot go together, an
 * extra_body that is not an object or replaces what the client itself must set. */
int req_new(struct req **out, const struct load *load, const char *extra_body, const char *model,
            const struct wl_set *set, struct km_err *err);
void req_free(struct req *r);

const char *req_path(const struct req *r); /* "/v1/chat/completions" */

/* The body for the next turn of a conversation, valid until req_answer or the next req_build of it. */
struct req_body {
    const char *p;
    size_t n;
    int asked_tokens; /* max_tokens in it; -1: none */
    int messages;
};
int req_build(struct req *r, int conv, int turn, struct req_body *out, struct km_err *err);
/* Adds the answer of that turn to the history: the text received, or the workload's with fixed_history. */
int req_answer(struct req *r, int conv, int turn, const char *text, size_t len, struct km_err *err);
/* Forgets the history of every conversation. */
void req_rewind(struct req *r);

#endif
