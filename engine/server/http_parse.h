/* A parser of HTTP/1.1 requests that takes bytes in pieces of any size.
 *
 * An `hp` is one request on its way in. hp_feed takes bytes and reports when the head is complete, when the body is,
 * or with which status the request must be refused. The parser owns no socket and reads no clock.
 *
 * It accepts what RFC 9112 allows a server to accept and nothing else. A request whose length two readers could
 * understand in two ways (request smuggling) is an error, and the connection must be closed after it. */
#ifndef SRV_HTTP_PARSE_H
#define SRV_HTTP_PARSE_H

#include "base/buf.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { HP_MAX_HEADERS = 100, HP_MAX_LINE = 8192, HP_MAX_HEAD = 32768 };

enum hp_event {
    HP_MORE, /* all bytes were taken and more are needed */
    HP_HEAD, /* the head is complete: reported once, before the body */
    HP_DONE, /* the request is complete */
    HP_BAD   /* the request must be refused: see status and why */
};

struct hp {
    /* The request, valid from HP_HEAD on. */
    const char *method, *path;
    const char *query;         /* the part behind '?'; "" without one */
    int minor;                 /* x of HTTP/1.x */
    bool keep_alive;           /* the client allows another request on this connection */
    bool expect_continue;      /* "Expect: 100-continue" */
    bool has_length, chunked;  /* how the body is announced; neither: there is none */
    uint64_t length;           /* Content-Length, bytes */
    struct km_buf body;        /* complete with HP_DONE */
    int status;                /* with HP_BAD: 400, 413 ... */
    const char *why;           /* with HP_BAD: one sentence for the client */
    char too_long[120];        /* why, when it names the limit of the body */

    /* The parser's own state. */
    size_t max_body;           /* bytes */
    int state, n_headers, blank_lines;
    uint64_t left;             /* bytes still to come of the body, or of the chunk */
    struct km_buf head;        /* request line and headers, with NULs where each part ends */
    size_t line_start;         /* offset in head of the line being read */
    uint32_t path_at, query_at; /* offsets in head */
    struct km_buf line;        /* a chunk size or a trailer being read */
    size_t trailer_bytes;
    struct {
        uint32_t name, value;  /* offsets in head; names are in lower case */
    } headers[HP_MAX_HEADERS];
};

void hp_init(struct hp *p, size_t max_body);
void hp_reset(struct hp *p); /* ready for the connection's next request; small buffers are kept */
void hp_free(struct hp *p);

/* Takes up to n bytes and sets *used to their number. After HP_HEAD call again with the rest, which may be empty. */
enum hp_event hp_feed(struct hp *p, const char *data, size_t n, size_t *used);
bool hp_started(const struct hp *p); /* true once the first byte of the request was fed */

/* The value of the first header of this name (in lower case); NULL if there is none. */
const char *hp_header(const struct hp *p, const char *name);
/* The query's flag `key`: true for `key`, `key=`, `key=1` and `key=true`; false for 0, false, and when it is absent. */
bool hp_query_flag(const struct hp *p, const char *key);

#endif
