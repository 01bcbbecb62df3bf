/* Conversations and messages: allocation, text, token counts. */
#include "workloads/message.h"

#include "base/mem.h"

int wl_conv_init(struct wl_conv *c, const char *id, int n, struct km_err *err)
{
    c->id = km_strdup(id);
    c->msgs = km_calloc((size_t)n, sizeof *c->msgs);
    if (!c->id || !c->msgs)
        return km_fail(err, KM_ENOMEM, "out of memory for conversation %.80s of %d messages", id, n);
    c->n = n;
    for (int i = 1; i < n; i += 2)
        c->msgs[i].assistant = true;
    return 0;
}

int wl_msg_set_text(struct wl_msg *m, struct km_buf *text, struct km_err *err)
{
    km_buf_puts(text, ""); /* an empty text is a string too */
    m->len = text->len;
    m->text = km_buf_take(text);
    return m->text ? 0 : km_fail(err, KM_ENOMEM, "out of memory for a message of %zu bytes", m->len);
}

int wl_msg_count_tokens(struct wl_msg *m, const struct tok *t, struct km_err *err)
{
    int64_t n = tok_count(t, m->text, m->len, err);
    if (n < 0)
        return (int)n;
    m->n_tokens = m->assistant && n < 1 ? 1 : (int)n;
    return 0;
}
