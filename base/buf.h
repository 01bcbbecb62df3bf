/* A growable byte buffer that is also a string builder.
 *
 * `data` is always followed by a NUL once anything was written, so that a buffer of text can be used
 * as a C string. A failed allocation sets `oom` and every later write is dropped: build first, then
 * check once with km_buf_ok. */
#ifndef KM_BUF_H
#define KM_BUF_H

#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct km_buf {
    char *data; /* [len], then a NUL */
    size_t len, cap;
    bool oom;
};

void km_buf_put(struct km_buf *b, const void *p, size_t n);
void km_buf_puts(struct km_buf *b, const char *s);
void km_buf_putc(struct km_buf *b, char c);
void km_buf_printf(struct km_buf *b, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void km_buf_vprintf(struct km_buf *b, const char *fmt, va_list ap);
/* s as the inside of a JSON string (no quotes): escapes controls, quote, backslash; bytes that are not
 * UTF-8 become U+FFFD. */
void km_buf_put_json(struct km_buf *b, const char *s, size_t n);
/* Text safe inside HTML and SVG elements and attributes. */
void km_buf_put_html(struct km_buf *b, const char *s, size_t n);
/* s as one word of a POSIX shell's command line, quoted when it needs to be. */
void km_buf_put_shell(struct km_buf *b, const char *s);

void km_buf_clear(struct km_buf *b);     /* length 0, memory kept */
void km_buf_free(struct km_buf *b);      /* memory released, struct ready for reuse */
char *km_buf_take(struct km_buf *b);     /* the string, now the caller's (km_free); NULL after a failure */
static inline bool km_buf_ok(const struct km_buf *b)
{
    return !b->oom;
}
static inline const char *km_buf_str(const struct km_buf *b)
{
    return b->data ? b->data : "";
}

/* Length of the valid UTF-8 sequence at s (1..4), or 0 when the bytes at s are not one; *need is set
 * (when not NULL) to the bytes missing if s is a valid but cut-off beginning of one, else 0. */
int km_utf8_len(const char *s, size_t n, int *need);

#endif
