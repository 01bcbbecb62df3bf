/* Connections: a listener, reading requests, writing replies and event streams.
 *
 * An `http` is the listener and all its connections on one event base; an `http_conn` is one client. One request
 * of a connection is in work at a time; what the client pipelines waits its turn. Everything happens on the
 * thread of the event base. The owner answers each request once, now or later, and is told when the client of an
 * unanswered request has gone. */
#ifndef SRV_HTTP_H
#define SRV_HTTP_H

#include "base/err.h"
#include "engine/server/http_parse.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct event_base;
struct http;
struct http_conn;

struct http_opts {
    const char *host;
    int port;                          /* 0: any free one */
    int max_connections;
    size_t max_body, max_unsent;       /* bytes; unsent: of a stream whose client does not read */
    double idle_timeout, read_timeout; /* s; a whole request, and a stalled write, take at most read_timeout */
};

struct http_calls {
    /* The head is in: answer now to refuse before the body is read, or do nothing. */
    void (*head)(void *arg, struct http_conn *c, const struct hp *r);
    /* The request is in: answer now, or call http_hold and answer later. r is valid until the answer or the
     * return. */
    void (*request)(void *arg, struct http_conn *c, struct hp *r);
    /* The client of a held request is gone: c must not be used again. */
    void (*gone)(void *arg, void *user);
};

struct http_stats {
    int connections;
    int64_t accepted, accept_pauses, timeouts, slow_readers;
    int64_t replies[600]; /* by status */
};

int http_open(struct http **out, struct event_base *base, const struct http_opts *o, const struct http_calls *calls,
              void *arg, struct km_err *err);
void http_free(struct http *h); /* drops every connection, with `gone` where one is owed */
int http_port(const struct http *h);
const struct http_stats *http_stats(const struct http *h);

/* No new connections, idle ones close, busy ones close after their answer. */
void http_drain(struct http *h);

/* A whole answer. headers: more of them, each ending in CR LF, or "". */
void http_reply(struct http_conn *c, int status, const char *type, const char *headers, const char *body, size_t n);
/* The answer comes later; user is handed to gone. */
void http_hold(struct http_conn *c, void *user);

/* An answer in pieces: begin once, any number of puts, end once. Pieces go out with http_flush, which the owner
 * calls once for all connections after a batch of puts. put: false when the client is too slow or gone; then
 * `gone` follows by itself. */
void http_stream_begin(struct http_conn *c, const char *type);
bool http_stream_put(struct http_conn *c, const char *data, size_t n);
void http_stream_end(struct http_conn *c, bool keep);
void http_flush(struct http *h);

#endif
