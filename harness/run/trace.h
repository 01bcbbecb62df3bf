/* The raw record of a run: the requests sent, the events received, and their times.
 *
 * A `hz_trace` owns one hz_rec per request, in order of completion, and one hz_tick per streamed event with choices.
 * The load client (harness/client) fills it; harness/run/summary.h computes the figures from it.
 *
 * All times are CLOCK_MONOTONIC nanoseconds; 0 means "never". Invariants: the ticks of a request are consecutive in
 * `ticks`, and their times do not decrease. */
#ifndef HZ_TRACE_H
#define HZ_TRACE_H

#include "base/err.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* One streamed event with choices. */
struct hz_tick {
    int64_t ns;     /* arrival: kernel timestamp, or the client's clock (harness/client/stamp.h) */
    int32_t tokens; /* length of the event's token_ids or logprobs, else 1; 0: the event has only a role or a finish */
    int32_t lag_ns; /* client's clock minus kernel timestamp: the bytes' wait for the client; -1: no kernel timestamp */
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
    bool ok;         /* false: the request failed, and no figure includes it */
    char error[160]; /* reason of the failure; "" if ok */
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

    char *text;        /* [text_len + 1] the answer's content and a NUL; NULL: it failed, or hz_trace_count freed it */
    size_t text_len;   /* bytes */
    size_t first_len;  /* bytes of the text in the first event with a token */
    uint64_t text_xxh; /* XXH3 of reasoning and content, or of the token ids; shows if two runs' answers are equal */
};

/* The client's own delays during the measured phase. They show whether the figures measure the client instead of the
 * server. NAN: there are no samples. */
struct hz_health {
    double cpu_s, wall_s;    /* CPU time and wall time of the client's thread */
    double loop_gap_p99_ms;  /* from the event loop's wake-up with ready sockets to its next epoll_wait */
    double loop_gap_max_ms;  /* the longest one */
    double send_lag_p99_ms;  /* start minus planned send, without the wait for a concurrency limit */
    double stamp_lag_p99_ms; /* client's clock minus kernel timestamp, over the events that have one */
    double kernel_stamps;    /* share with a kernel timestamp, of the events that arrived before the client read them */
    int64_t events;          /* streamed events of every kind */
    int64_t reads;           /* reads of a ready socket, each with a peek at its timestamp */
    int64_t coalesced;       /* token events with the arrival time of the one before them: an ITL of 0 */
    int64_t reconnects;      /* requests that had to open a connection */
    int64_t clock_steps;     /* jumps of the wall clock (harness/client/stamp.h) */
};

struct hz_trace {
    struct hz_rec *recs; /* [n], in order of completion */
    int n, cap;
    struct hz_tick *ticks; /* [n_ticks] */
    size_t n_ticks, cap_ticks;

    int64_t begin_ns, end_ns; /* of the measured phase */
    int64_t warmup_ns;        /* duration of the warm-up; 0: none */
    struct hz_rec *warm;      /* [n_warm] requests of the warm-up: in no figure, but later prompts hold their answers */
    int n_warm;

    int abandoned;      /* requests not sent because of early stop */
    int dropped;        /* requests not sent because an earlier turn of their conversation failed */
    bool stopped;       /* the progress callback stopped the run */
    bool fixed_history; /* the prompts hold the workload's answers instead of the model's */

    struct hz_health health;
    char model[128];         /* model name in the requests */
    char server_version[64]; /* "version" of GET /version; "": none */
};

/* Appends a copy of *rec and of its n events. On success the trace owns rec->text. KM_ENOMEM. */
int hz_trace_append(struct hz_trace *t, const struct hz_rec *rec, const struct hz_tick *ticks, int n,
                    struct km_err *err);
void hz_trace_free(struct hz_trace *t);

#endif
