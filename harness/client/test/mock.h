/* A scripted OpenAI-compatible server for tests: plain sockets, a thread per connection, and a log of the requests. */
#ifndef MOCK_H
#define MOCK_H

#include "base/buf.h"

#include <stdbool.h>
#include <stdint.h>

enum mock_mode {
    MOCK_NORMAL,
    MOCK_ROLE_FIRST, /* an event with only the role, ttft_us before the first token */
    MOCK_REASONING,  /* the first half of the tokens as reasoning_content */
    MOCK_COMMENTS,   /* comments and other SSE fields between the events */
    MOCK_CRLF,
    MOCK_NO_DONE,   /* no [DONE] at the end */
    MOCK_NO_END,    /* neither finish_reason nor [DONE] */
    MOCK_TRUNCATED, /* closes in the middle of an event */
    MOCK_HTML,      /* status 200 with an HTML page */
    MOCK_500,
    MOCK_ERROR_EVENT, /* after half of the tokens */
    MOCK_BAD_JSON,
    MOCK_EMPTY,  /* role and finish, no token */
    MOCK_SILENT, /* never answers */
    MOCK_CLOSE   /* normal, but closes the connection after each answer */
};

struct mock_opts {
    enum mock_mode mode;
    int from;      /* the requests before this one are answered normally */
    int tokens;    /* tokens of an answer; 0: the request's max_tokens */
    int per_event; /* tokens in one event, listed as token_ids when over 1; 0: 1 */
    int ttft_us, gap_us;
    int piece;    /* bytes per send; 0: whole events */
    int split_at; /* the answer is sent in two parts, cut at this byte; 0: in one */
    int cached;   /* usage.prompt_tokens_details.cached_tokens; -1: not sent */
    bool no_usage;
    const char *metrics;       /* body of GET /metrics; NULL: 404 */
    void (*before)(void *arg); /* called before each event of a stream; NULL: nothing */
    void *arg;
};

struct mock_request {
    char *path, *body, *headers;
    int conn;      /* number of its connection, in the order of accepting */
    int64_t *sent; /* [n_sent] CLOCK_MONOTONIC ns just before each event of the stream was sent */
    int n_sent;
};

struct mock;
struct mock *mock_start(const struct mock_opts *o);
const char *mock_url(const struct mock *m);
/* Chat and completion requests, in order of arrival. Valid until mock_stop. */
int mock_requests(struct mock *m, const struct mock_request **out);
int mock_connections(struct mock *m);
void mock_forget(struct mock *m); /* empties the log */
void mock_die(struct mock *m);    /* closes every socket, the listening one too */
void mock_stop(struct mock *m);

/* Token i of the answer to a request with that many messages. */
void mock_token(int i, int messages, struct km_buf *out);

#endif
