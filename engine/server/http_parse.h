/* A parser of HTTP/1.1 requests that accepts bytes in pieces of any size.
 *
 * An `hp` is one request while it arrives. hp_feed consumes bytes. It reports when the head is complete, when the
 * request is complete, and with which status a bad request must be refused. The parser has no socket and reads no
 * clock.
 *
 * It accepts what RFC 9112 allows and nothing else. A request whose length two parsers could understand in two ways
 * (request smuggling) is an error, and the connection must be closed after it. */
#ifndef SRV_HTTP_PARSE_H
#define SRV_HTTP_PARSE_H

#include "base/buf.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { HP_MAX_HEADERS = 100, HP_MAX_LINE = 8192, HP_MAX_HEAD = 32768 };

enum hp_event {
    HP_MORE, /* all bytes were consumed, and more are needed */
    HP_HEAD, /* the head is complete: reported once, before the body */
    HP_DONE, /* the request is complete */
    HP_BAD   /* the request must be refused with `status` and `why` */
};

struct hp {
    /* The request, valid from HP_HEAD on. */
    const char *method, *path;
    const char *query;        /* the part after '?'; "" if there is none */
    int minor;                /* x of HTTP/1.x */
    bool keep_alive;          /* the client allows another request on this connection */
    bool expect_continue;     /* "Expect: 100-continue" */
    bool has_length, chunked; /* framing of the body; neither: no body */
    uint64_t length;          /* Content-Length, bytes */
    struct km_buf body;       /* complete with HP_DONE */
    int status;               /* with HP_BAD: 400, 413 ... */
    const char *why;          /* with HP_BAD: one sentence for the client */
    char limit_message[120];  /* storage of `why` if it states max_body */

    /* The parser's own state. */
    size_t max_body; /* bytes */
    int state, n_headers, blank_lines;
    uint64_t left;              /* bytes of the body or the chunk that have not arrived */
    struct km_buf head;         /* request line and headers, with a NUL after each part */
    size_t line_start;          /* offset in head of the line being read */
    uint32_t path_at, query_at; /* offsets in head */
    struct km_buf line;         /* a chunk size or a trailer being read */
    size_t trailer_bytes;
    struct {
        uint32_t name, value; /* offsets in head; names are in lower case */
    } headers[HP_MAX_HEADERS];
};

void hp_init(struct hp *p, size_t max_body);
void hp_reset(struct hp *p); /* prepares p for the connection's next request; small buffers are kept */
void hp_free(struct hp *p);

/* Consumes up to n bytes and sets *used to the number consumed. After HP_HEAD, call again with the remaining bytes,
 * even if there are none. */
enum hp_event hp_feed(struct hp *p, const char *data, size_t n, size_t *used);
bool hp_started(const struct hp *p); /* true once the first byte of the request was fed */

/* The value of the first header of this name (in lower case); NULL if there is none. */
const char *hp_header(const struct hp *p, const char *name);
/* The flag `key` of the query: true for `key`, `key=`, `key=1` and `key=true`; false for `key=0`, `key=false` and if it
 * is absent. */
bool hp_query_flag(const struct hp *p, const char *key);

#endif
