/* Metrics: the numbers of a run, and the names by which a suite's column, a comparison or a limit refers to them.
 *
 * A metric is either a figure, one number per run ("input_tps"), or a member of a statistic over the run's requests
 * ("ttft_ms.p99"). The table `rows` in metric.c has one row per metric. The summaries in run.json, comparisons and
 * tables are derived from it. A `hz_summary` holds the value of each metric for one run under one profile (profile.h).
 * NAN: the run has no such value.
 *
 * To add a figure, add a function and a row to metric.c; nothing else changes. The share of requests that failed:
 *
 *     static double failed_share(const struct hz_measured *m)
 *     {
 *         return m->trace->n ? 1 - (double)m->n / m->trace->n : NAN;
 *     }
 *
 *     FIGURE("failed_share", "Failed", "share of failed requests", LOWER, 4, VALUE(failed_share)),
 *
 * Both summaries of run.json then have the key "failed_share". `kvmark compare` shows a row "Failed" with 4 decimals,
 * in which lower is better. A suite can have a column with "metric": "failed_share".
 *
 * To add a statistic over requests, add its per-request value to struct hz_request and compute it in profile.c. Add a
 * struct hz_stat to struct hz_summary, and a STATISTIC and an entry of `statistics` to metric.c. */
#ifndef HZ_METRIC_H
#define HZ_METRIC_H

#include "base/err.h"
#include "harness/run/profile.h"
#include "harness/run/stat.h"
#include "harness/run/trace.h"

#include <stdbool.h>

enum { HZ_MAX_METRICS = 64 };

/* harness/run/summary.h has the definition of each figure and statistic. */
struct hz_summary {
    enum hz_profile profile;
    int requests_ok, requests_failed;
    bool by_usage; /* profile seed: the client had no tokenizer, so the token counts are the server's */

    double duration_s;
    double request_rate; /* 1/s */
    double input_tps, output_tps, total_tps;
    double mean_input, mean_output; /* tokens per request */
    double prompt_tokens, output_tokens, cached_tokens;
    double hit_rate;
    struct hz_stat ttft_ms, tpot_ms, itl_ms, e2e_ms, response_ttft_ms;

    double more[HZ_MAX_METRICS]; /* the figures without a field, by the index of their row in metric.c */
};

/* The per-request value of which a metric is a statistic, if a comparison can resample it (run_folder_sample).
 * HZ_PER_RUN: it cannot, and compares one number per run. */
enum hz_sample { HZ_PER_RUN, HZ_TTFT, HZ_TPOT, HZ_E2E };

struct hz_metric {
    const char *key;   /* path in run.json's summary: "input_tps", "ttft_ms.mean" */
    const char *title; /* of a column or row, with the unit: "Mean TTFT (ms)"; NULL: only run.json has the metric */
    const char *name;  /* within a sentence: "mean TTFT" */
    bool lower_better;
    int decimals; /* in tables */
    enum hz_sample sample;
    double q;  /* of a percentile: its quantile, in [0, 1]; < 0: the mean, or a figure */
    int min_n; /* fewest requests for a 95% confidence interval; 0: no interval, because neither direction is better */
};

/* Metric i in the order of a comparison; NULL past the end. */
const struct hz_metric *hz_metric_at(int i);
/* Finds a metric by its key. NULL: there is none; err is then KM_EINVAL, and its message names the nearest key. */
const struct hz_metric *hz_metric_find(const char *key, struct km_err *err);
double hz_metric_value(const struct hz_metric *m, const struct hz_summary *s);

/* ---- for summary.c ---- */

/* A run under one profile: the input of the functions that compute figures. */
struct hz_measured {
    const struct hz_trace *trace;
    const struct hz_request *requests; /* [n] the requests that succeeded */
    int n;
    double duration_s; /* of the measured phase; NAN: no request succeeded */
};

/* Figure i in the order of run.json; NULL past the end. */
const struct hz_metric *hz_figure_at(int i);
double hz_figure_compute(const struct hz_metric *figure, const struct hz_measured *m);
void hz_figure_set(const struct hz_metric *figure, struct hz_summary *s, double v);
/* True if the figure needs cached_tokens from the server. */
bool hz_figure_needs_cached(const struct hz_metric *figure);

/* A statistic over the requests, or over all inter-token latencies (ITL). */
struct hz_statistic {
    const char *key;     /* in run.json's summary: "ttft_ms" */
    size_t in_summary;   /* offset of its struct hz_stat in struct hz_summary */
    size_t in_request;   /* offset of its per-request value in struct hz_request; HZ_INTERVALS: over all ITLs */
    const char *missing; /* reason in run.json if requests succeeded, but none has a value */
};
#define HZ_INTERVALS ((size_t)-1)
const struct hz_statistic *hz_statistic_at(int i); /* statistic i in the order of run.json; NULL past the end */

#endif
