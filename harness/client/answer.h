/* One response: from its first header to a verdict, with the arrival time of every event.
 *
 * An `ans` reads a response's bytes and fills a hz_rec and its ticks. It knows no sockets: the caller delivers bytes
 * together with the stamp of their arrival. An `ans` is used for many responses in turn and keeps its buffers. */
#ifndef ANSWER_H
#define ANSWER_H

#include "harness/client/hist.h"
#include "harness/client/sse.h"
#include "harness/client/stamp.h"
#include "harness/run/trace.h"

/* Counters over all answers of a client. */
struct ans_tally {
    int64_t events;        /* SSE events */
    int64_t stamped;       /* events with a kernel timestamp */
    int64_t while_reading; /* events that arrived during the client's read */
    int64_t tokens;
    int64_t coalesced; /* token events with the arrival time of the token event before them */
    struct hist lag;   /* client's clock minus kernel timestamp, over stamped events */
};

enum { ANS_SNIPPET = 120 }; /* bytes of a body kept for an error message */

struct ans {
    bool stream, completions;
    bool by_ids; /* text_xxh is over the token ids; a server without a tokenizer has no text */
    struct ans_tally *tally;

    struct hz_rec rec;
    struct hz_tick *ticks; /* [n_ticks] */
    int n_ticks, cap_ticks;
    int tokens; /* sum over the ticks */
    int64_t events;
    struct stamp at; /* arrival of the bytes being read; never before that of earlier bytes */

    struct km_buf text;  /* content so far; the whole body when it is no stream or the status is not 200 */
    struct km_buf aside; /* scratch for reasoning text, which is hashed and not kept */
    struct sse sse;
    void *hash; /* XXH3 state */

    bool done;   /* [DONE] has arrived */
    bool broken; /* an event is not JSON, or a body is too long */
    bool oom;
    char said[ANS_SNIPPET + 1];  /* message of an error event; "": none */
    char start[ANS_SNIPPET + 1]; /* first bytes of the body, until there is an event */
    int n_start;
};

int ans_init(struct ans *a, bool stream, bool completions, bool by_ids, struct ans_tally *tally, struct km_err *err);
void ans_free(struct ans *a);

/* Starts the response to a request. *rec holds what is known of the request. */
void ans_begin(struct ans *a, const struct hz_rec *rec);
void ans_status(struct ans *a, int status);
void ans_headers_done(struct ans *a, struct stamp at);
/* False: the response has failed for good, and the rest need not be read. */
bool ans_body(struct ans *a, const char *p, size_t n, struct stamp at);

/* How the transfer ended. */
struct ans_close {
    const char *lost; /* libcurl's reason when the connection failed; NULL: it did not */
    bool timed_out;
    const char *type; /* Content-Type; NULL: none */
    int64_t now_ns;
};
/* Completes rec: ok, or the error. */
void ans_end(struct ans *a, const struct ans_close *end);
/* Appends rec, its text and its ticks to the trace. KM_ENOMEM. */
int ans_record(struct ans *a, struct hz_trace *t, struct km_err *err);

#endif
