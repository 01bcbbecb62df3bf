/* HTTP/1.1 connections: a listener, requests in, replies and event streams out.
 *
 * An `http` is a listener with its connections on one event base; an `http_conn` is one connection. Both belong to
 * this module. The owner of the `http` gets requests through its handlers and must answer each request once, at once
 * or later. Everything runs on the thread of the event base.
 *
 * Invariant: a connection has at most one request in work. Requests that a client pipelines are read in order, each
 * after the answer to the one before, and at most one in each turn of the event loop, so that no client delays the
 * others. A connection is never freed inside a call of its owner. */
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
    int port;            /* 0: a free port */
    int max_connections; /* accepting pauses while so many are open */
    size_t max_body;     /* bytes of a request body; a longer one is refused with 413 */
    size_t max_unsent;   /* bytes of a stream that its client has not read; above it the connection is closed */
    double idle_timeout; /* s between requests */
    double read_timeout; /* s for a whole request to arrive, and for a stalled write to go on */
};

struct http_handlers {
    /* The head of a request is complete. Answer to refuse it before the body is read, or return without an answer. */
    void (*head)(void *arg, struct http_conn *c, const struct hp *r);
    /* A request is complete. Answer now, or call http_hold and answer later. r is valid until the answer, or without
     * one until the handler returns. */
    void (*request)(void *arg, struct http_conn *c, struct hp *r);
};

struct http_stats {
    int connections;       /* open now */
    int64_t accepted;
    int64_t accept_pauses; /* times that accepting paused: at max_connections, or out of file descriptors */
    int64_t timeouts;      /* requests that did not arrive within read_timeout */
    int64_t slow_readers;  /* connections dropped because the client did not read */
    int64_t replies[600];  /* by HTTP status */
};

int http_open(struct http **out, struct event_base *base, const struct http_opts *o,
              const struct http_handlers *handlers, void *arg, struct km_err *err);
/* Closes every connection; the client_gone of each held request is called. */
void http_free(struct http *h);
int http_port(const struct http *h);
const struct http_stats *http_stats(const struct http *h);

/* Begins a shutdown: stops listening, closes idle connections, and closes each other one after its answer. */
void http_drain(struct http *h);

/* Answers with one body. headers: further header lines, each ending in CR LF, or "". */
void http_reply(struct http_conn *c, int status, const char *type, const char *headers, const char *body, size_t n);
/* Answers with an error in OpenAI's shape: {"error": {"message", "type", "param", "code"}}. param names the field at
 * fault; param and code may be NULL. headers as in http_reply. */
void http_reply_error(struct http_conn *c, int status, const char *headers, const char *message, const char *param,
                      const char *code);
/* Headers of errors after which a client may retry: the queue is full (429); no memory, or shutting down (503). */
#define HTTP_RETRY_SOON "Retry-After: 1\r\n"
#define HTTP_RETRY_LATER "Retry-After: 5\r\n"

/* Postpones the answer. client_gone(user) is called if the client disconnects before it; c must not be used after that.
 * user must not be NULL. */
void http_hold(struct http_conn *c, void (*client_gone)(void *user), void *user);

/* Answers in pieces: one begin, any number of puts, one end. Nothing is sent before http_flush, so that the owner can
 * put for many connections and then send once for each.
 * http_stream_put returns false if the client has disconnected, or has left more than max_unsent bytes unread;
 * client_gone follows from the event loop. keep false: the connection is closed after the end. */
void http_stream_begin(struct http_conn *c, const char *type);
bool http_stream_put(struct http_conn *c, const char *data, size_t n);
void http_stream_end(struct http_conn *c, bool keep);
void http_flush(struct http *h);

#endif
