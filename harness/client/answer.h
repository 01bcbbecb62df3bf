/* One response: parsed as it arrives, with the arrival time of every event, and judged at its end.
 *
 * An `ans` turns a response's bytes into a hz_rec and its hz_ticks (harness/run/trace.h). It has no sockets: the caller
 * passes bytes together with the stamp of their arrival. An `ans` belongs to one connection slot, which uses it for one
 * response after the other; its buffers are reused. */
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
    int64_t while_reading; /* events that arrived during the client's read (struct stamp) */
    int64_t tokens;        /* sum of the events' tokens (struct hz_tick) */
    int64_t coalesced;     /* token events with the arrival time of the token event before them */
    struct hist lag;       /* client's clock minus kernel timestamp in ns, over stamped events */
};

enum { ANS_SNIPPET = 120 }; /* bytes of a response that an error message quotes */

struct ans {
    bool stream, completions; /* as in struct client_opts */
    bool by_ids;              /* text_xxh is over the token ids; a server without a tokenizer sends no text */
    struct ans_tally *tally;  /* borrowed */

    struct hz_rec rec;
    struct hz_tick *ticks; /* [n_ticks] */
    int n_ticks, cap_ticks;
    int tokens;           /* sum over the ticks */
    int64_t events;       /* SSE events of this response */
    struct stamp arrival; /* of the bytes being parsed; never earlier than that of the bytes before them */

    struct km_buf text;      /* content so far; the whole body if it is not streamed or the status is not 200 */
    struct km_buf reasoning; /* scratch: an event's reasoning text, which is hashed but not stored */
    struct sse sse;
    void *hash; /* XXH3 state of text_xxh */

    bool done;   /* [DONE] has arrived */
    bool broken; /* an event is not JSON, or a body is too long */
    bool oom;
    char server_error[ANS_SNIPPET + 1]; /* message of an error event; "": none */
    char snippet[ANS_SNIPPET + 1];      /* first bytes of the body, before the first event */
    int snippet_len;
};

int ans_init(struct ans *a, bool stream, bool completions, bool by_ids, struct ans_tally *tally, struct km_err *err);
void ans_free(struct ans *a);

/* Prepares for the response to a request. *rec: the record with the fields that are known when the request is sent. */
void ans_begin(struct ans *a, const struct hz_rec *rec);
void ans_status(struct ans *a, int status);
void ans_headers_done(struct ans *a, struct stamp arrival);
/* Parses the next n bytes of the body. False: the request has failed, and the rest of the body need not be read. */
bool ans_body(struct ans *a, const char *p, size_t n, struct stamp arrival);

/* How the transfer ended. */
struct ans_close {
    const char *lost; /* libcurl's message if the connection failed; NULL: it did not fail */
    bool timed_out;
    const char *type; /* Content-Type of the response; NULL: none */
    int64_t now_ns;   /* time of the end, CLOCK_MONOTONIC ns */
};
/* Completes rec: sets ok, or the error. */
void ans_end(struct ans *a, const struct ans_close *end);
/* Appends rec, its ticks and (if ok) its text to the trace. KM_ENOMEM. */
int ans_record(struct ans *a, struct hz_trace *t, struct km_err *err);

#endif
