/* The client: one code path that drives any OpenAI-compatible server and writes down what came when.
 *
 * A `hz_load` says how to send (closed loop: so many clients, so many conversations in turn each; or all prompts
 * at a rate); a `hz_trace` is the raw record of a run: one hz_rec a request, one hz_tick a streamed event.
 * Nothing is averaged here (harness/run/summary.h does that). All times are CLOCK_MONOTONIC nanoseconds.
 * libcurl's multi interface on one thread; in the timed path no tokenising, no printing, no file. */
#ifndef HZ_LOAD_H
#define HZ_LOAD_H

#include "base/args.h"
#include "base/err.h"
#include "workloads/workload.h"

#include <stdbool.h>
#include <stdint.h>

enum hz_endpoint { HZ_CHAT, HZ_COMPLETIONS };
enum hz_thinking { HZ_THINKING_AUTO, HZ_THINKING_ON, HZ_THINKING_OFF };

struct hz_target {
    const char *url;        /* http://127.0.0.1:8000, without a path */
    const char *model;      /* NULL: the first of /v1/models */
    const char *api_key;    /* NULL: none */
    struct km_strs headers; /* extra, "K: V" or "K=V" */
    const char *extra_body; /* a JSON object merged last into each request; NULL */
};

/* Names and meaning are vLLM's (multi_turn/benchmark_serving_multi_turn.py and bench serve). */
struct hz_load {
    int64_t num_clients;              /* 1 */
    int64_t max_active_conversations; /* 0: num_clients; divided over the clients, rounded down */
    int64_t max_num_requests;         /* 0: all */
    int64_t max_turns;                /* 0: all */
    bool early_stop;                  /* true: the run ends when the first client runs out of work */
    bool warmup_step;                 /* first turn of every conversation, unmeasured; prompts: each one once before */
    bool random_sampling;             /* conversation-sampling random; else round robin */
    double request_rate;              /* multi-turn: pause per client; prompts: arrivals per second; 0 or inf: none */
    double burstiness;                /* 1: Poisson; gamma shape */
    int64_t max_concurrency;          /* prompts only; 0: no cap */
    int64_t limit_min_tokens, limit_max_tokens; /* 0: as the workload says; <0: not sent */
    bool ignore_eos;
    bool stream; /* true */
    enum hz_endpoint endpoint;
    bool send_token_ids; /* completions with prompts as ids; asks for the answer's ids too */
    bool fixed_history;  /* feed back the workload's answers, so that A and B send the same bytes */
    enum hz_thinking thinking; /* chat_template_kwargs; auto: not sent */
    uint64_t seed;
    double timeout_s;       /* a request: at least this, and 0.2 s a token asked for; 0: 120 s, prompts 6 h */
    const char *cache_salt; /* sent with each request; NULL: none */
};
struct hz_load hz_load_defaults(void);
/* The options as a table of base/option.h, for command lines; without the seed, which other parts of a run share. */
struct km_option_group hz_load_option_group(struct hz_load *l);
/* Checks what can be checked without the workload: ranges, and options that need or exclude each other. */
int hz_load_check(const struct hz_load *l, struct km_err *err);

struct hz_tick {
    int64_t ns;     /* when the event arrived: the kernel's receive stamp, or the client's where that might be early */
    int32_t tokens; /* in it, as far as known: 1, or what token ids or logprobs of the event say; 0: an event with
                       choices but no token (the role, the finish) */
    int32_t lag_ns; /* client's stamp - kernel's: how long the event waited for this client; -1: no kernel stamp */
};

struct hz_rec {
    int conv, turn, client;     /* indices; turn 0 is the first user message */
    int64_t sched_ns, start_ns; /* due by plan; handed to libcurl on an open connection */
    int64_t header_ns, first_ns, last_ns,
        done_ns;          /* response headers, first and last token event, [DONE] or end; 0: never */
    int64_t first_any_ns; /* first event with choices, role-only included: what bench serve calls TTFT */
    int64_t last_any_ns;  /* last event that bench serve looks at: chat any JSON, completions with choices */
    int status;           /* HTTP; 0: no answer */
    bool ok;
    char error[160];                                 /* "" when ok */
    int asked_tokens;                                /* max_tokens sent; -1: none */
    int messages;                                    /* sent with this request (1, 3, 5 ...) */
    int prompt_tokens, cached_tokens, output_tokens; /* usage; -1: the server did not say */
    int local_prompt_tokens, local_output_tokens,
        local_first_tokens; /* counted here afterwards, content only; -1: no tokenizer */
    size_t tick0;           /* this request's ticks are trace.ticks[tick0 .. tick0 + n_ticks) */
    int n_ticks;
    char finish[16]; /* finish_reason */
    char *text;      /* the answer, kept until hz_trace_count; then freed unless asked for */
    size_t text_len;
    size_t first_len;  /* bytes of text in the first token event */
    uint64_t text_xxh; /* of the answer, so that two runs can be compared */
};

struct hz_health {
    double cpu_s, wall_s;                    /* of the client's thread */
    double loop_gap_p99_ms, loop_gap_max_ms; /* between two returns to the event loop with work pending */
    double send_lag_p99_ms;                  /* start - sched */
    int64_t events, reads;
    double kernel_stamps;    /* share of the events that waited for the client which the kernel stamped; NAN: none did */
    double stamp_lag_p99_ms; /* client's stamp - kernel's; NAN: no kernel stamps */
    int64_t coalesced;       /* events with tokens that shared a read with an earlier one: their gap reads 0 */
    int64_t reconnects;      /* requests that had to open a connection of their own */
    int64_t clock_steps;     /* jumps of the wall clock, whose reads fell back to the client's stamp */
};

struct hz_trace {
    struct hz_rec *recs; /* [n] in order of completion */
    int n, cap;
    struct hz_tick *ticks; /* [n_ticks] */
    size_t n_ticks, cap_ticks;
    int64_t begin_ns, end_ns; /* of the measured phase */
    int64_t warmup_ns;        /* spent before it */
    int abandoned;            /* requests of the workload that early stop left out */
    int dropped;              /* later turns of conversations that a failure ended */
    bool stopped;             /* the progress callback asked for an early end */
    bool fixed_history;       /* answers sent back were the workload's, not the model's */
    struct hz_rec *warm;      /* [n_warm] the warm-up's requests, in no figure; for counting the history they began */
    int n_warm;
    struct hz_health health;
    char model[128];         /* as the server calls it */
    char server_version[64]; /* GET /version, "" */
};

/* Progress, called about ten times a second from the client's thread. Return false to stop early: what is
 * complete is kept and the trace says so. */
struct hz_progress {
    int done, active, failed, total;
    int64_t elapsed_ns;
    int64_t prompt_tokens, output_tokens;
    double ttft_mean_ms;
};
typedef bool (*hz_progress_fn)(void *arg, const struct hz_progress *p);

/* Runs the whole load. 0 when the run took place, even with failed requests (they are records); <0 when it could
 * not: nothing listens (KM_ENET), wrong model, bad options. */
int hz_run(const struct hz_target *target, const struct hz_load *load, const struct wl_set *set,
           hz_progress_fn progress, void *arg, struct hz_trace *out, struct km_err *err);
/* Token counts by the client's own tokenizer, for records and seed-profile figures; after the run. */
int hz_trace_count(struct hz_trace *t, const struct wl_set *set, const struct tok *tok, bool keep_text,
                   struct km_err *err);
void hz_trace_free(struct hz_trace *t);

/* Waits until GET /health, or /v1/models where there is no /health, answers 200. KM_ENET with the last thing seen. */
int hz_wait_ready(const struct hz_target *target, double timeout_s, struct km_err *err);
/* GET url + path into out; the HTTP status, or <0. For /metrics, /version, /health. */
int hz_get(const struct hz_target *target, const char *path, double timeout_s, struct km_buf *out, struct km_err *err);
/* Where the server read its model (target->model, or the first), as vLLM and ours say in /v1/models: a folder, if
 * the server is on this machine, and its tokenizer is there. KM_ENOENT when the server does not say. */
int hz_model_root(const struct hz_target *target, struct km_buf *out, struct km_err *err);
int hz_post(const struct hz_target *target, const char *path, const char *body, double timeout_s, struct km_buf *out,
            struct km_err *err);

#endif
