/* Metrics: every figure of a run that a suite's column, a comparison or a limit can name.
 *
 * The table in metric.c has one row per metric. A row is either a figure (one number per run, with the function that
 * computes it) or a member of a statistic over requests ("ttft_ms.p99"). Summaries, run.json, comparisons and tables
 * are all derived from the rows, so that a new figure is one row and one function in metric.c.
 *
 * A `hz_summary` holds the value of each metric for one run under one profile. NAN: the run does not have it. */
#ifndef HZ_METRIC_H
#define HZ_METRIC_H

#include "base/err.h"
#include "harness/run/profile.h"
#include "harness/run/stat.h"
#include "harness/run/trace.h"

#include <stdbool.h>

enum { HZ_MAX_METRICS = 64 };

/* harness/run/summary.h defines the figures. */
struct hz_summary {
    enum hz_profile profile;
    int requests_ok, requests_failed;
    bool by_usage; /* seed only: there was no tokenizer, so the token counts are the server's */

    double duration_s;
    double request_rate; /* 1/s */
    double input_tps, output_tps, total_tps;
    double mean_input, mean_output; /* tokens per request */
    double prompt_tokens, output_tokens, cached_tokens;
    double hit_rate;
    struct hz_stat ttft_ms, tpot_ms, itl_ms, e2e_ms, response_ttft_ms;

    double more[HZ_MAX_METRICS]; /* figures without a field of their own, by the index of their row */
};

/* The per-request quantity of which a metric is a statistic. A comparison can resample requests for those that are in
 * struct hz_request by themselves. HZ_PER_RUN: one figure per run. */
enum hz_sample { HZ_PER_RUN, HZ_TTFT, HZ_TPOT, HZ_E2E };

struct hz_metric {
    const char *key;   /* path in run.json's summary: "input_tps", "ttft_ms.mean" */
    const char *title; /* default title of a column, with the unit: "Mean TTFT (ms)"; NULL: in run.json only */
    const char *name;  /* within a sentence: "mean TTFT" */
    bool lower_better;
    int decimals;
    enum hz_sample sample;
    double q;  /* percentile in [0, 1]; < 0: the mean, or no statistic */
    int min_n; /* requests from which its 95% confidence interval exists; 0: neither direction is better */
};

/* The metrics in the order of a comparison; NULL past the end. */
const struct hz_metric *hz_metric_at(int i);
/* NULL when there is none; err is then KM_EINVAL and names the nearest key. */
const struct hz_metric *hz_metric_find(const char *key, struct km_err *err);
double hz_metric_value(const struct hz_metric *m, const struct hz_summary *s);

/* ---- for summary.c ---- */

/* What figures are computed from. */
struct hz_measured {
    const struct hz_trace *trace;
    const struct hz_request *requests; /* [n] those that succeeded */
    int n;
    double duration_s;
};

/* The figures in the order of run.json; NULL past the end. */
const struct hz_metric *hz_figure_at(int i);
double hz_figure_compute(const struct hz_metric *figure, const struct hz_measured *m);
void hz_figure_set(const struct hz_metric *figure, struct hz_summary *s, double v);
/* True for figures that need cached token counts from the server. */
bool hz_figure_needs_cached(const struct hz_metric *figure);

/* A statistic over requests, or over the intervals between tokens. */
struct hz_statistic {
    const char *key;     /* in run.json's summary: "ttft_ms" */
    size_t in_summary;   /* offset of its struct hz_stat in struct hz_summary */
    size_t in_request;   /* offset of the double in struct hz_request; HZ_INTERVALS: over the inter-token latencies */
    const char *missing; /* the reason when no request has it */
};
#define HZ_INTERVALS ((size_t)-1)
const struct hz_statistic *hz_statistic_at(int i); /* in the order of run.json; NULL past the end */

#endif
