/* Growable buffers, and the escaping that JSON and HTML need. */
#include "base/buf.h"

#include "base/mem.h"

#include <stdio.h>
#include <string.h>

/* Makes the buffer large enough for n more bytes and the NUL. False after a failure. */
static bool reserve(struct km_buf *b, size_t n)
{
    if (b->oom)
        return false;
    size_t need;
    if (__builtin_add_overflow(b->len, n, &need) || __builtin_add_overflow(need, 1, &need)) {
        b->oom = true;
        return false;
    }
    if (need <= b->cap)
        return true;
    size_t cap = b->cap ? b->cap : 64;
    while (cap < need)
        cap += cap / 2 + 64;
    char *p = km_realloc(b->data, cap);
    if (!p) {
        b->oom = true;
        return false;
    }
    b->data = p;
    b->cap = cap;
    return true;
}

void km_buf_put(struct km_buf *b, const void *p, size_t n)
{
    if (!reserve(b, n))
        return;
    if (n)
        memcpy(b->data + b->len, p, n);
    b->len += n;
    b->data[b->len] = 0;
}

void km_buf_puts(struct km_buf *b, const char *s)
{
    km_buf_put(b, s, strlen(s));
}

void km_buf_putc(struct km_buf *b, char c)
{
    km_buf_put(b, &c, 1);
}

void km_buf_vprintf(struct km_buf *b, const char *fmt, va_list ap)
{
    va_list again;
    va_copy(again, ap);
    int n = vsnprintf(NULL, 0, fmt, ap);
    if (n > 0 && reserve(b, (size_t)n)) {
        vsnprintf(b->data + b->len, (size_t)n + 1, fmt, again);
        b->len += (size_t)n;
    }
    va_end(again);
}

void km_buf_printf(struct km_buf *b, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    km_buf_vprintf(b, fmt, ap);
    va_end(ap);
}

int km_utf8_len(const char *s, size_t n, int *need)
{
    const unsigned char *u = (const unsigned char *)s;
    if (need)
        *need = 0;
    if (n == 0)
        return 0;
    if (u[0] < 0x80)
        return 1;
    int len = u[0] >= 0xC2 && u[0] <= 0xDF ? 2 : (u[0] & 0xF0) == 0xE0 ? 3 : u[0] >= 0xF0 && u[0] <= 0xF4 ? 4 : 0;
    if (!len)
        return 0;
    /* The second byte's range rules out overlong forms, surrogates and code points past U+10FFFF. */
    unsigned lo = u[0] == 0xE0 ? 0xA0 : u[0] == 0xF0 ? 0x90 : 0x80;
    unsigned hi = u[0] == 0xED ? 0x9F : u[0] == 0xF4 ? 0x8F : 0xBF;
    for (int i = 1; i < len; i++) {
        if ((size_t)i == n) {
            if (need)
                *need = len - i;
            return 0;
        }
        if (u[i] < lo || u[i] > hi)
            return 0;
        lo = 0x80, hi = 0xBF;
    }
    return len;
}

void km_buf_put_json(struct km_buf *b, const char *s, size_t n)
{
    size_t run = 0; /* start of the bytes that are copied as they are */
    for (size_t i = 0; i < n;) {
        unsigned char c = (unsigned char)s[i];
        int len = c < 0x80 ? 1 : km_utf8_len(s + i, n - i, NULL);
        if (len > 1 || (len == 1 && c >= 0x20 && c != '"' && c != '\\' && c != 0x7F)) {
            i += (size_t)len;
            continue;
        }
        km_buf_put(b, s + run, i - run);
        if (len == 0)
            km_buf_puts(b, "\xEF\xBF\xBD");
        else if (c == '"' || c == '\\')
            km_buf_printf(b, "\\%c", c);
        else if (c == '\n')
            km_buf_puts(b, "\\n");
        else if (c == '\t')
            km_buf_puts(b, "\\t");
        else if (c == '\r')
            km_buf_puts(b, "\\r");
        else
            km_buf_printf(b, "\\u%04x", c);
        run = ++i;
    }
    km_buf_put(b, s + run, n - run);
}

void km_buf_put_html(struct km_buf *b, const char *s, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        switch (s[i]) {
        case '<':
            km_buf_puts(b, "&lt;");
            break;
        case '>':
            km_buf_puts(b, "&gt;");
            break;
        case '&':
            km_buf_puts(b, "&amp;");
            break;
        case '"':
            km_buf_puts(b, "&quot;");
            break;
        default:
            km_buf_putc(b, s[i]);
        }
    }
}

void km_buf_put_shell(struct km_buf *b, const char *s)
{
    static const char plain[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_./:=,+@%";
    if (*s && !s[strspn(s, plain)]) {
        km_buf_puts(b, s);
        return;
    }
    km_buf_putc(b, '\'');
    for (; *s; s++)
        km_buf_printf(b, *s == '\'' ? "'\\''" : "%c", *s);
    km_buf_putc(b, '\'');
}

struct km_size km_size_text(int64_t bytes)
{
    struct km_size t;
    static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB"};
    double v = (double)bytes;
    int u = 0;
    for (; (v >= 1024 || v <= -1024) && u < 5; u++)
        v /= 1024;
    snprintf(t.s, sizeof t.s, "%.4g %s", v, units[u]);
    return t;
}

void km_buf_clear(struct km_buf *b)
{
    b->len = 0;
    b->oom = false;
    if (b->data)
        b->data[0] = 0;
}

void km_buf_free(struct km_buf *b)
{
    km_free(b->data);
    *b = (struct km_buf){0};
}

char *km_buf_take(struct km_buf *b)
{
    if (!b->oom && !b->data)
        km_buf_put(b, "", 0);
    char *p = b->oom ? NULL : b->data;
    if (!p)
        km_free(b->data);
    *b = (struct km_buf){0};
    return p;
}
