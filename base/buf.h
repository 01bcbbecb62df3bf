/* A growable byte buffer that is also a string builder.
 *
 * From the first write on, data[len] is a NUL, so a buffer of text is also a C string. A failed allocation sets `oom`,
 * and later writes do nothing. So the owner can write everything first, and check once at the end with km_buf_ok. Start
 * with zeros; free with km_buf_free. */
#ifndef KM_BUF_H
#define KM_BUF_H

#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct km_buf {
    char *data;      /* [len] bytes, then a NUL; NULL before the first write */
    size_t len, cap; /* bytes written, bytes allocated */
    bool oom;        /* an allocation has failed */
};

void km_buf_put(struct km_buf *b, const void *p, size_t n);
void km_buf_puts(struct km_buf *b, const char *s);
void km_buf_putc(struct km_buf *b, char c);
void km_buf_printf(struct km_buf *b, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void km_buf_vprintf(struct km_buf *b, const char *fmt, va_list ap);
/* Appends s[n] as the content of a JSON string, without quotes around it. Control characters, quotes and backslashes
 * are escaped; bytes that are not UTF-8 become U+FFFD. */
void km_buf_put_json(struct km_buf *b, const char *s, size_t n);
/* Appends s[n] with <, >, & and " escaped, for text and attributes of HTML and SVG. */
void km_buf_put_html(struct km_buf *b, const char *s, size_t n);
/* Appends s as one word of a POSIX shell's command line, quoted if necessary. */
void km_buf_put_shell(struct km_buf *b, const char *s);

void km_buf_clear(struct km_buf *b); /* sets the length to 0 and clears oom; keeps the memory */
void km_buf_free(struct km_buf *b);  /* frees the memory; the buffer is empty and can be used again */
char *km_buf_take(struct km_buf *b); /* moves the string to the caller (km_free) and empties b; NULL after a failure */
static inline bool km_buf_ok(const struct km_buf *b)
{
    return !b->oom;
}
static inline const char *km_buf_str(const struct km_buf *b)
{
    return b->data ? b->data : "";
}

struct km_size {
    char s[24];
};
/* A number of bytes as text for messages, with up to four significant digits: "30.5 GiB", "20 MiB", "100 B". */
struct km_size km_size_text(int64_t bytes);

/* The length in bytes (1 to 4) of the valid UTF-8 sequence that s[n] begins with, or 0 if there is none. *need (need
 * may be NULL) becomes the number of missing bytes if s[n] is a valid sequence that is cut off, else 0. */
int km_utf8_len(const char *s, size_t n, int *need);

#endif
