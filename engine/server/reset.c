/* The queue is a list in order of arrival. The runner does one reset at a time, the one of the first request. */
#include "engine/server/reset.h"

#include "base/mem.h"

#include <stdio.h>

struct reset {
    struct reset *next;
    struct http_conn *c; /* NULL: answered, or the client has disconnected */
    bool external;
};

struct resets {
    struct runner *runner;
    struct reset *first, *last;
    bool running; /* the first request's reset has begun */
};

int rst_open(struct resets **out, struct runner *runner, struct km_err *err)
{
    struct resets *q = km_calloc(1, sizeof *q);
    if (!q)
        return km_fail(err, KM_ENOMEM, "out of memory while opening the server");
    q->runner = runner;
    *out = q;
    return 0;
}

static void remove_first(struct resets *q)
{
    struct reset *r = q->first;
    q->first = r->next;
    if (!q->first)
        q->last = NULL;
    km_free(r);
}

void rst_free(struct resets *q)
{
    if (!q)
        return;
    while (q->first)
        remove_first(q);
    km_free(q);
}

/* Begins the first reset whose client has not disconnected. */
static void begin_next(struct resets *q)
{
    while (q->first && !q->running) {
        if (q->first->c) {
            q->running = true;
            runner_reset_begin(q->runner, q->first->external);
        } else {
            remove_first(q);
        }
    }
}

static void client_gone(void *user)
{
    struct reset *r = user;
    r->c = NULL;
}

void rst_start(struct resets *q, struct http_conn *c, bool external)
{
    struct reset *r = km_calloc(1, sizeof *r);
    if (!r) {
        http_reply_error(c, 503, HTTP_RETRY_LATER, "the server has no memory for the request; try again later", NULL,
                         NULL);
        return;
    }
    *r = (struct reset){.c = c, .external = external};
    *(q->last ? &q->last->next : &q->first) = r;
    q->last = r;
    http_hold(c, client_gone, r);
    begin_next(q);
}

static void answer(struct reset *r, int rc, const struct km_err *err)
{
    if (!r->c)
        return;
    if (rc) {
        bool in_use = rc == KM_ELIMIT;
        http_reply_error(r->c, in_use ? 409 : 500, "", err->msg, NULL, in_use ? "cache_in_use" : NULL);
    } else {
        const char *ext = r->external ? "true" : "false";
        char body[64];
        int n = snprintf(body, sizeof body, "{\"reset\":true,\"reset_external\":%s}", ext);
        http_reply(r->c, 200, "application/json", "", body, (size_t)n);
    }
    r->c = NULL;
}

void rst_poll(struct resets *q)
{
    struct km_err err = {0};
    int rc;
    if (!q->running || !runner_reset_ended(q->runner, &rc, &err))
        return;
    q->running = false;
    answer(q->first, rc, &err);
    remove_first(q);
    begin_next(q);
}

void rst_fail_all(struct resets *q, int status, const char *why)
{
    for (struct reset *r = q->first; r; r = r->next)
        if (r->c) {
            http_reply_error(r->c, status, status == 503 ? HTTP_RETRY_LATER : "", why, NULL, NULL);
            r->c = NULL;
        }
}
