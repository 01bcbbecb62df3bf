/* A scripted OpenAI-compatible server for tests: plain sockets, one thread a connection, and a log of what came. */
#ifndef MOCK_H
#define MOCK_H

#include "base/buf.h"

#include <stdbool.h>
#include <stdint.h>

enum mock_mode {
    MOCK_NORMAL,
    MOCK_ROLE_FIRST,  /* an event with only the role before the first token, `delay` earlier */
    MOCK_REASONING,   /* the first half of the tokens as reasoning_content */
    MOCK_COMMENTS,    /* pings and other fields between the events */
    MOCK_CRLF,
    MOCK_NO_DONE,     /* ends in order, but sends no [DONE] */
    MOCK_NO_END,      /* neither finish_reason nor [DONE] */
    MOCK_TRUNCATED,   /* closes in the middle of an event */
    MOCK_HTML,        /* 200, but a page */
    MOCK_500,
    MOCK_ERROR_EVENT, /* after half of the tokens */
    MOCK_BAD_JSON,
    MOCK_EMPTY,       /* role and finish, no token */
    MOCK_SILENT,      /* never answers */
    MOCK_CLOSE        /* well behaved, but closes after each answer */
};

struct mock_opts {
    enum mock_mode mode;
    int from;          /* requests before this one are answered as MOCK_NORMAL */
    int tokens;        /* of an answer; 0: what the request's max_tokens says */
    int per_event;     /* tokens in one event, listed as token_ids when over 1; 0: 1 */
    int ttft_us, gap_us;
    int piece;         /* bytes of each send; 0: whole events */
    int split_at;      /* one answer cut in two sends at this byte; 0: not */
    int cached;        /* cached_tokens; -1: the server does not say */
    bool no_usage;
    const char *metrics; /* body of GET /metrics; NULL: 404 */
    void (*before)(void *arg); /* called before each event of a stream; NULL: not */
    void *arg;
};

struct mock_request {
    char *path, *body, *headers;
    int conn;      /* which connection, in order of accepting */
    int64_t *sent; /* [n_sent] when each event of the stream was handed to the kernel, by CLOCK_MONOTONIC */
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

/* What the mock answers: token i of a request with that many messages. */
void mock_token(int i, int messages, struct km_buf *out);

#endif
