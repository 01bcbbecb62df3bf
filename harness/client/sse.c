/* Splits bytes into lines and lines into events.
 *
 * In the common case, one read holds all of "data: {...}\n\n", and nothing is copied: the value is borrowed, a pointer
 * into the bytes of the read. It is copied to `data` only if the event continues after the read, or has a second data
 * line. */
#include "harness/client/sse.h"

#include <string.h>

/* The value of the current event, while it is a pointer into the bytes of the current sse_feed. */
struct borrowed {
    const char *p; /* NULL: none */
    size_t n;
};

static void copy_borrowed(struct sse *s, struct borrowed *b)
{
    if (b->p)
        km_buf_put(&s->data, b->p, b->n);
    b->p = NULL;
}

static void deliver(struct sse *s, struct borrowed *b, sse_fn fn, void *arg)
{
    bool open = s->open;
    s->open = false;
    if (open && b->p)
        fn(arg, b->p, b->n);
    else if (open && km_buf_ok(&s->data))
        fn(arg, km_buf_str(&s->data), s->data.len);
    else if (open)
        s->failed = true;
    b->p = NULL;
    km_buf_clear(&s->data);
}

/* Handles one line, without its line end. stable: the line lies in the bytes of sse_feed and may be borrowed. */
static void handle_line(struct sse *s, const char *p, size_t n, bool stable, struct borrowed *b, sse_fn fn, void *arg)
{
    if (n == 0) {
        deliver(s, b, fn, arg);
        return;
    }
    if (n < 4 || memcmp(p, "data", 4) || (n > 4 && p[4] != ':'))
        return;
    const char *v = p + (n > 4 ? 5 : 4);
    if (v < p + n && *v == ' ')
        v++;
    size_t len = (size_t)(p + n - v);
    if (s->open) {
        copy_borrowed(s, b);
        km_buf_putc(&s->data, '\n');
        km_buf_put(&s->data, v, len);
    } else if (stable)
        *b = (struct borrowed){v, len};
    else
        km_buf_put(&s->data, v, len);
    s->open = true;
}

void sse_feed(struct sse *s, const char *bytes, size_t n, sse_fn fn, void *arg)
{
    struct borrowed b = {NULL, 0};
    const char *p = bytes, *end = bytes + n;
    if (s->failed)
        return;
    if (s->cr && p < end) {
        p += *p == '\n';
        s->cr = false;
    }
    while (p < end) {
        const char *lf = memchr(p, '\n', (size_t)(end - p));
        const char *cr = memchr(p, '\r', (size_t)((lf ? lf : end) - p));
        const char *stop = cr ? cr : lf;
        if (!stop) {
            km_buf_put(&s->line, p, (size_t)(end - p));
            break;
        }
        if (s->line.len) {
            km_buf_put(&s->line, p, (size_t)(stop - p));
            s->failed = s->failed || !km_buf_ok(&s->line);
            handle_line(s, km_buf_str(&s->line), s->line.len, false, &b, fn, arg);
            km_buf_clear(&s->line);
        } else
            handle_line(s, p, (size_t)(stop - p), true, &b, fn, arg);
        p = stop + 1;
        if (cr && p == end)
            s->cr = true;
        else if (cr && *p == '\n')
            p++;
    }
    copy_borrowed(s, &b);
    if (!km_buf_ok(&s->line) || !km_buf_ok(&s->data) || s->line.len > SSE_MAX_EVENT || s->data.len > SSE_MAX_EVENT)
        s->failed = true;
}

void sse_end(struct sse *s, sse_fn fn, void *arg)
{
    struct borrowed b = {NULL, 0};
    if (s->failed)
        return;
    if (s->line.len)
        handle_line(s, km_buf_str(&s->line), s->line.len, false, &b, fn, arg);
    km_buf_clear(&s->line);
    deliver(s, &b, fn, arg);
}

void sse_reset(struct sse *s)
{
    km_buf_clear(&s->line);
    km_buf_clear(&s->data);
    s->open = s->cr = s->failed = false;
}

void sse_free(struct sse *s)
{
    km_buf_free(&s->line);
    km_buf_free(&s->data);
    *s = (struct sse){0};
}
