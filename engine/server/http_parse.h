/* HTTP/1.1 requests out of bytes, however they are cut.
 *
 * An `hp` holds one request: feed it bytes, and it says when the head is complete, when the body is, or which
 * status refuses it. It owns no socket and reads no clock. It accepts what RFC 9112 accepts and nothing else: any
 * framing that two readers could read in two ways is an error, after which the connection cannot go on. */
#ifndef SRV_HTTP_PARSE_H
#define SRV_HTTP_PARSE_H

#include "base/buf.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { HP_MAX_HEADERS = 100, HP_MAX_LINE = 8192, HP_MAX_HEAD = 32768 };

enum hp_event {
    HP_MORE, /* all bytes taken, more wanted */
    HP_HEAD, /* the head is complete: say once, before the body */
    HP_DONE, /* the request is complete */
    HP_BAD   /* status and why say what is wrong */
};

struct hp {
    /* The request, from HP_HEAD on. */
    const char *method, *path, *query; /* query: what follows '?', "" without */
    int minor;                         /* HTTP/1.minor */
    bool keep_alive, expect_continue;
    bool has_length, chunked;          /* a body was announced */
    uint64_t length;                   /* by Content-Length */
    struct km_buf body;                /* from HP_DONE on */
    int status;                        /* with HP_BAD: 400, 413 ... */
    const char *why;

    size_t max_body;
    int state, n_headers, blank_lines;
    uint64_t left;       /* of the body or the chunk */
    size_t line_start;   /* in head, as are: */
    uint32_t path_at, query_at;
    struct km_buf head;  /* request line and headers; NULs where they end */
    struct km_buf line;  /* a chunk size or a trailer, being read */
    size_t trailer_bytes;
    struct {
        uint32_t name, value; /* offsets in head; names in lower case */
    } headers[HP_MAX_HEADERS];
};

void hp_init(struct hp *p, size_t max_body);
void hp_reset(struct hp *p); /* for the next request of the connection; memory kept */
void hp_free(struct hp *p);

/* Takes up to n bytes; *used says how many. Call again with the rest after HP_HEAD (n may be 0 then). */
enum hp_event hp_feed(struct hp *p, const char *data, size_t n, size_t *used);
bool hp_started(const struct hp *p); /* some bytes of the request were seen */

/* A header's value by its lower-case name, the first one when it is there more often; NULL without. */
const char *hp_header(const struct hp *p, const char *name);
/* Looks key=value up in the query; true for `key`, `key=`, 1, true; false for 0 and false and when absent. */
bool hp_query_flag(const struct hp *p, const char *key);

#endif
