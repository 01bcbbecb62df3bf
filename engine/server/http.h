/* HTTP/1.1 connections: a listener, requests in, replies and event streams out.
 *
 * An `http` is a listener with its connections on one event base; an `http_conn` is one connection, owned by its
 * `http`. The owner of the `http` receives requests through its handlers, and must answer each request exactly once: in
 * the handler, or later. Everything runs on the thread of the event base.
 *
 * Invariant: a connection has at most one request in progress. Pipelined requests are read in order, each after the
 * answer to the previous one, and at most one in each turn of the event loop, so that no client delays the others. A
 * connection is freed by the event loop and by http_free, but never during a handler or another call of the owner. */
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
    int max_connections; /* accepting pauses while this many are open */
    size_t max_body;     /* bytes of a request body; a longer one is refused with 413 */
    size_t max_unsent;   /* bytes of a stream that its client has not read; above it the connection is closed */
    double idle_timeout; /* s between requests */
    double read_timeout; /* s within which a whole request must arrive, and a stalled write must go on */
};

struct http_handlers {
    /* The head of a request is complete. To refuse the request before its body is read, answer; else just return. */
    void (*head)(void *arg, struct http_conn *c, const struct hp *r);
    /* A request is complete. Answer now, or call http_hold and answer later. r is valid until the answer, and at most
     * until the handler returns. */
    void (*request)(void *arg, struct http_conn *c, struct hp *r);
};

struct http_stats {
    int connections; /* open now */
    int64_t accepted;
    int64_t accept_pauses; /* times that accepting paused: at max_connections, or out of file descriptors */
    int64_t timeouts;      /* requests that did not arrive within read_timeout */
    int64_t slow_readers;  /* connections dropped because the client did not read */
    int64_t replies[600];  /* by HTTP status */
};

/* Listens on the host and port of o. Copies o and handlers; the handlers are called with arg. KM_ENET: it cannot
 * listen. */
int http_open(struct http **out, struct event_base *base, const struct http_opts *o,
              const struct http_handlers *handlers, void *arg, struct km_err *err);
/* Closes every connection, and calls client_gone of each held request. */
void http_free(struct http *h);
int http_port(const struct http *h);
const struct http_stats *http_stats(const struct http *h);

/* Begins a shutdown: stops listening, closes idle connections, and closes each other connection after its answer. */
void http_drain(struct http *h);

/* Answers with a whole body. type: the Content-Type; NULL: none. headers: more header lines, each ending in CR LF. */
void http_reply(struct http_conn *c, int status, const char *type, const char *headers, const char *body, size_t n);
/* Answers with an error in OpenAI's shape: {"error": {"message", "type", "param", "code"}}. param names the field at
 * fault; param and code may be NULL. headers as in http_reply. */
void http_reply_error(struct http_conn *c, int status, const char *headers, const char *message, const char *param,
                      const char *code);
/* Headers of errors after which a client may retry: SOON for a full queue (429), LATER for a server without memory or
 * in shutdown (503). */
#define HTTP_RETRY_SOON "Retry-After: 1\r\n"
#define HTTP_RETRY_LATER "Retry-After: 5\r\n"

/* Postpones the answer. If the client disconnects before the answer, client_gone(user) is called, and c must not be
 * used afterwards. user must not be NULL. */
void http_hold(struct http_conn *c, void (*client_gone)(void *user), void *user);

/* Answer in pieces: one begin, any number of puts, one end. Nothing is sent before http_flush, so that the owner can
 * put for many connections and then send once for each. http_stream_put returns false if the client has disconnected,
 * or has left more than max_unsent bytes unread. The event loop then calls client_gone. keep false: the connection is
 * closed after the end. */
void http_stream_begin(struct http_conn *c, const char *type);
bool http_stream_put(struct http_conn *c, const char *data, size_t n);
void http_stream_end(struct http_conn *c, bool keep);
void http_flush(struct http *h);

#endif
