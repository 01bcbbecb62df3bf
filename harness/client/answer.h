/* One response, from its first header to a verdict: what its bytes say, and when each event came.
 *
 * An `ans` fills an hz_rec and its ticks. It knows nothing of sockets: whoever reads them hands over bytes with
 * the time of their arrival. Its memory is kept from one response to the next. */
#ifndef ANSWER_H
#define ANSWER_H

#include "harness/client/hist.h"
#include "harness/client/sse.h"
#include "harness/client/stamp.h"
#include "harness/run/trace.h"

/* Sums over all answers of a client. */
struct ans_tally {
    int64_t events, stamped, while_reading, tokens;
    int64_t coalesced; /* events with tokens that shared a read with an earlier one of their answer */
    struct hist lag;
};

enum { ANS_SNIPPET = 120 }; /* bytes of a body kept for an error message */

struct ans {
    bool stream, completions;
    bool by_ids;           /* hash the ids listed and not the text, which a server without a tokenizer has not */
    struct ans_tally *tally;
    struct hz_rec rec;
    struct hz_tick *ticks; /* [n_ticks] */
    int n_ticks, cap_ticks;
    int tokens;            /* in ticks */
    int64_t events;
    struct stamp at;   /* arrival of the bytes in hand; never before that of those before */
    struct km_buf text;    /* content; the whole body when not streaming or not 200 */
    struct km_buf aside;   /* scratch for reasoning, which is hashed and not kept */
    struct sse sse;
    void *hash;            /* over every token's text, reasoning too, or id */
    bool done, broken, oom;
    char said[ANS_SNIPPET + 1];  /* what an error event said */
    char start[ANS_SNIPPET + 1]; /* the body's first bytes, while no event has been seen */
    int n_start;
};

int ans_init(struct ans *a, bool stream, bool completions, bool by_ids, struct ans_tally *tally, struct km_err *err);
void ans_free(struct ans *a);

/* Ready for the response to a request; rec holds what is known of it. */
void ans_begin(struct ans *a, const struct hz_rec *rec);
void ans_status(struct ans *a, int status);
void ans_headers_done(struct ans *a, struct stamp at);
/* False: it cannot become a good answer any more, stop reading. */
bool ans_body(struct ans *a, const char *p, size_t n, struct stamp at);

/* How the transfer ended. */
struct ans_close {
    const char *lost; /* the reason when the connection failed; NULL: it did not */
    bool timed_out;
    const char *type; /* Content-Type; NULL: none */
    int64_t now_ns;
};
/* Fills in what is left of rec: ok, or error and why. */
void ans_end(struct ans *a, const struct ans_close *end);
/* Appends rec and its ticks to the trace; the text goes with it. */
int ans_record(struct ans *a, struct hz_trace *t, struct km_err *err);

#endif
