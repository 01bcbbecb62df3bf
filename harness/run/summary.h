/* Figures from a trace, under one of two named sets of definitions.
 *
 * `seed`: the rules of the write-up's own tools (benchmark_serving_multi_turn.py for conversations, `vllm bench
 * serve` for prompts), so that rows compare with it. `strict`: ours: latency ends at the last token, rates over
 * first start to last token, ITL weighted by tokens. Every result names its profile. A figure that
 * cannot be computed is NAN here and null with a reason in files, never 0. */
#ifndef HZ_SUMMARY_H
#define HZ_SUMMARY_H

#include "base/err.h"
#include "base/json.h"
#include "harness/client/load.h"

enum hz_profile { HZ_SEED, HZ_STRICT };

struct hz_stat {
    int n;
    double mean, std, min, p50, p90, p95, p99, max; /* NAN when n does not support it: p99 needs n >= 100 */
};

struct hz_summary {
    enum hz_profile profile;
    int requests_ok, requests_failed;
    double duration_s;
    double input_tps, output_tps, total_tps, request_rate;
    struct hz_stat ttft_ms, tpot_ms, itl_ms, e2e_ms;   /* milliseconds */
    struct hz_stat response_ttft_ms;                   /* from the planned send */
    double prompt_tokens, cached_tokens, output_tokens; /* sums; cached NAN when the server does not say */
    double mean_input, mean_output;
    double hit_rate;                                   /* cached / prompt */
    bool by_usage;      /* the seed profile counts with the client's tokenizer; true: there was none, so these are the server's */
};

/* One request's figures under a profile; all NAN for one that failed. The one place where they are defined. */
struct hz_row {
    double ttft_ms, tpot_ms, e2e_ms; /* tpot NAN: left out of its statistics */
    double input, output;            /* tokens */
};
struct hz_row hz_row_of(const struct hz_trace *t, const struct hz_rec *r, enum wl_kind kind, enum hz_profile profile);

void hz_summarize(const struct hz_trace *t, enum wl_kind kind, enum hz_profile profile, struct hz_summary *out);

/* v is sorted in place. */
struct hz_stat hz_stat_of(double *v, int n);

cJSON *hz_summary_json(const struct hz_summary *s); /* the "summary" of run.json; nulls for NAN, with "reasons" */
int hz_summary_from_json(const cJSON *v, struct hz_summary *out, struct km_err *err);

#endif
