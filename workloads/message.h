/* What the generators build a `wl_set` from: conversations and their messages.
 *
 * Both belong to the set from the first call on. wl_set_free frees a set that a generator has filled in part. */
#ifndef WL_MESSAGE_H
#define WL_MESSAGE_H

#include "base/buf.h"
#include "workloads/workload.h"

/* Gives c a copy of id and n messages: roles alternate, user first, and texts are NULL. */
int wl_conv_init(struct wl_conv *c, const char *id, int n, struct km_err *err);
/* Moves the text out of the buffer into m. */
int wl_msg_set_text(struct wl_msg *m, struct km_buf *text, struct km_err *err);
/* Sets m->n_tokens to the tokens of m's text, but to at least 1 for an answer. */
int wl_msg_count_tokens(struct wl_msg *m, const struct tok *t, struct km_err *err);

#endif
