/* Building blocks of the generators: filling the conversations and messages of a `wl_set`.
 *
 * The set owns them from the first call on: wl_set_free also frees a set that a generator has filled only in part. */
#ifndef WL_MESSAGE_H
#define WL_MESSAGE_H

#include "base/buf.h"
#include "workloads/workload.h"

/* Sets the id of c to a copy of id, and allocates its n messages: roles alternate, user first; texts are NULL. */
int wl_conv_init(struct wl_conv *c, const char *id, int n, struct km_err *err);
/* Moves the text out of the buffer into m. */
int wl_msg_set_text(struct wl_msg *m, struct km_buf *text, struct km_err *err);
/* Sets m->n_tokens to the tokens of m's text, but to at least 1 for an answer. */
int wl_msg_count_tokens(struct wl_msg *m, const struct tok *t, struct km_err *err);

#endif
