/* The raw record of a run: what was sent, what arrived, and when.
 *
 * A `hz_trace` owns one hz_rec per request, in order of completion, and one hz_tick per streamed event. The load client
 * (harness/client) fills it; harness/run/summary.h computes the figures. Nothing in a trace is averaged.
 *
 * All times are CLOCK_MONOTONIC nanoseconds; 0 means "never". Invariants: the ticks of a request are consecutive, and
 * times within a request do not go back. */
#ifndef HZ_TRACE_H
#define HZ_TRACE_H

#include "base/err.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* One streamed event with choices. */
struct hz_tick {
    int64_t ns;     /* arrival: the kernel's receive timestamp, or the client's clock where that stamp might be early */
    int32_t tokens; /* in the event: the length of its token_ids or logprobs, else 1; 0: a role or a finish only */
    int32_t lag_ns; /* client's clock minus kernel timestamp, the wait for the client; -1: no kernel timestamp */
};

/* One request. */
struct hz_rec {
    int conv, turn, client; /* indices of conversation, turn (0: the first user message) and simulated client */

    int64_t sched_ns;     /* planned send */
    int64_t start_ns;     /* request passed to libcurl, on an open connection */
    int64_t header_ns;    /* end of the response headers */
    int64_t first_any_ns; /* first event with choices, a role-only event included: what `vllm bench serve` calls TTFT */
    int64_t first_ns;     /* first event with a token */
    int64_t last_ns;      /* last event with a token */
    int64_t last_any_ns;  /* last event that `vllm bench serve` counts: chat: any JSON; completions: one with choices */
    int64_t done_ns;      /* [DONE], or the end of the response without it */

    int status;      /* HTTP status; 0: no response */
    bool ok;         /* false: the request failed, and is in no latency */
    char error[160]; /* why it failed; "" when ok */
    char finish[16]; /* finish_reason; "": none */

    int asked_tokens; /* max_tokens of the request; -1: not sent */
    int messages;     /* messages in the request: 1, 3, 5 ... */

    /* Token counts. The server's are its `usage`; -1: not reported. The local ones come from the client's own tokenizer
     * after the run (harness/run/count.h), without the chat template and without reasoning; -1: no tokenizer. */
    int prompt_tokens, cached_tokens, output_tokens;
    int local_prompt_tokens, local_output_tokens;
    int local_first_tokens; /* tokens of the first event's text */

    size_t tick0; /* the request's events are trace.ticks[tick0 .. tick0 + n_ticks) */
    int n_ticks;

    char *text;        /* the answer's content, [text_len] and a NUL; NULL once counted, or when the request failed */
    size_t text_len;   /* bytes */
    size_t first_len;  /* bytes of the text in the first event with a token */
    uint64_t text_xxh; /* XXH3 of the text with its reasoning, or of the token ids; compares two runs' answers */
};

/* The client's own condition during the measured phase: whether the client, and not the server, was measured.
 * A figure without samples is NAN. */
struct hz_health {
    double cpu_s, wall_s;   /* CPU time and wall time of the client's thread */
    double loop_gap_p99_ms; /* time from the wake-up of the event loop with sockets ready to its next wait, ms */
    double loop_gap_max_ms;
    double send_lag_p99_ms;  /* actual minus planned send; the wait for a concurrency limit is not counted */
    double stamp_lag_p99_ms; /* client's clock minus kernel timestamp, over the events that have one */
    double kernel_stamps; /* share of events with a kernel timestamp, among those that arrived before the client read */
    int64_t events;       /* streamed events of every kind */
    int64_t reads;        /* ready sockets whose timestamp was asked for */
    int64_t coalesced;    /* token events with the arrival time of an earlier one of their answer: an ITL of 0 */
    int64_t reconnects;   /* requests that had to open a connection */
    int64_t clock_steps;  /* jumps of the wall clock; reads after one used the client's clock */
};

struct hz_trace {
    struct hz_rec *recs; /* [n], in order of completion */
    int n, cap;
    struct hz_tick *ticks; /* [n_ticks] */
    size_t n_ticks, cap_ticks;

    int64_t begin_ns, end_ns; /* of the measured phase */
    int64_t warmup_ns;        /* duration of the warm-up before it */
    struct hz_rec *warm;      /* [n_warm] requests of the warm-up: in no figure, but their answers are in the prompts */
    int n_warm;

    int abandoned;      /* requests of the workload that were not sent because of early stop */
    int dropped;        /* later turns of conversations that ended with a failure */
    bool stopped;       /* the progress callback asked for an early end */
    bool fixed_history; /* the prompts hold the workload's answers instead of the model's */

    struct hz_health health;
    char model[128];         /* model name in the requests */
    char server_version[64]; /* from GET /version; "": none */
};

/* Appends a copy of *rec and of its n events. On success rec->text belongs to the trace. KM_ENOMEM. */
int hz_trace_append(struct hz_trace *t, const struct hz_rec *rec, const struct hz_tick *ticks, int n,
                    struct km_err *err);
void hz_trace_free(struct hz_trace *t);

#endif
