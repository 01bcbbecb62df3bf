/* The table of metrics, the functions that compute the figures, and the searches in the table. */
#include "harness/run/metric.h"

#include "base/args.h"

#include <math.h>
#include <stddef.h>
#include <string.h>

/* ---- the functions that compute figures ---- */

/* The sum of a per-request value over the requests that succeeded. */
static double sum_over(const struct hz_trace *t, double (*of)(const struct hz_rec *))
{
    double sum = 0;
    for (int i = 0; i < t->n; i++)
        sum += t->recs[i].ok ? of(&t->recs[i]) : 0;
    return sum;
}

/* The server's count; the client's if the server reported none; NAN if there is neither. */
static double prompt_of(const struct hz_rec *r)
{
    return hz_count_or(r->prompt_tokens, r->local_prompt_tokens);
}

static double output_of(const struct hz_rec *r)
{
    return hz_count_or(r->output_tokens, r->local_output_tokens);
}

static double reported_prompt_of(const struct hz_rec *r)
{
    return hz_count_or(r->prompt_tokens, -1);
}

static double cached_of(const struct hz_rec *r)
{
    return r->cached_tokens > 0 ? r->cached_tokens : 0;
}

static bool any_ok(const struct hz_trace *t)
{
    for (int i = 0; i < t->n; i++)
        if (t->recs[i].ok)
            return true;
    return false;
}

static double prompt_tokens(const struct hz_measured *m)
{
    return any_ok(m->trace) ? sum_over(m->trace, prompt_of) : NAN;
}

static double output_tokens(const struct hz_measured *m)
{
    return any_ok(m->trace) ? sum_over(m->trace, output_of) : NAN;
}

/* Some servers omit cached_tokens when it is 0. So if a server has reported it for any request, a missing one is 0. */
static double cached_tokens(const struct hz_measured *m)
{
    const struct hz_trace *t = m->trace;
    bool reported = false;
    for (int i = 0; i < t->n; i++)
        reported = reported || (t->recs[i].ok && t->recs[i].cached_tokens >= 0);
    return reported ? sum_over(t, cached_of) : NAN;
}

/* Both counts are the server's. NAN if it did not report prompt_tokens for every request. */
static double hit_rate(const struct hz_measured *m)
{
    double prompt = sum_over(m->trace, reported_prompt_of);
    return prompt > 0 ? cached_tokens(m) / prompt : NAN;
}

static double duration_s(const struct hz_measured *m)
{
    return m->duration_s;
}

static double request_rate(const struct hz_measured *m)
{
    return m->n && m->duration_s > 0 ? m->n / m->duration_s : NAN;
}

static double mean_input(const struct hz_measured *m)
{
    double sum = 0;
    for (int i = 0; i < m->n; i++)
        sum += m->requests[i].input;
    return m->n ? sum / m->n : NAN;
}

static double mean_output(const struct hz_measured *m)
{
    double sum = 0;
    for (int i = 0; i < m->n; i++)
        sum += m->requests[i].output;
    return m->n ? sum / m->n : NAN;
}

static double input_tps(const struct hz_measured *m)
{
    return request_rate(m) * mean_input(m);
}

static double output_tps(const struct hz_measured *m)
{
    return request_rate(m) * mean_output(m);
}

static double total_tps(const struct hz_measured *m)
{
    return input_tps(m) + output_tps(m);
}

/* ---- the table ---- */

struct row {
    struct hz_metric m;
    size_t field; /* offset of the value in struct hz_summary; 0: the value is in `more` */
    double (*value)(const struct hz_measured *); /* computes a figure; NULL: the row is a member of a statistic */
    bool needs_cached;                           /* the figure needs the server's cached_tokens */
};

enum better { HIGHER, LOWER, NEITHER };

/* A figure: key, title, name, which direction is better, decimals, and how its value is computed and stored:
 * VALUE(x)   computed by the function x, stored in hz_summary.more
 * FIELD(x)   computed by the function x, stored in the field x of hz_summary, where C code can use it
 * CACHED(x)  as FIELD, for a figure that needs the server's cached_tokens */
#define FIGURE(key, title, name, better, decimals, ...)                                                                \
    {                                                                                                                  \
        {key, title, name, better == LOWER, decimals, HZ_PER_RUN, -1, better != NEITHER}, __VA_ARGS__                  \
    }
#define VALUE(x) 0, x, false
#define FIELD(x) offsetof(struct hz_summary, x), x, false
#define CACHED(x) offsetof(struct hz_summary, x), x, true

/* A statistic: a row for each member that is a metric. The last argument of MEMBER is hz_metric.min_n: a two-sided 95%
 * confidence interval of a percentile, by order statistics, needs 6 (p50), 36 (p90), 72 (p95) or 368 (p99) values. */
#define MEMBER(stat, tag, sample, member, word, what, q, min_n)                                                        \
    {                                                                                                                  \
        {#stat "." #member, word " " tag " (ms)", what " " tag, true, 2, sample, q, min_n},                            \
            offsetof(struct hz_summary, stat.member), NULL, false                                                      \
    }
#define STATISTIC(stat, tag, sample)                                                                                   \
    MEMBER(stat, tag, sample, mean, "Mean", "mean", -1, 2), MEMBER(stat, tag, sample, p50, "P50", "median", 0.50, 6),  \
        MEMBER(stat, tag, sample, p90, "P90", "p90", 0.90, 36),                                                        \
        MEMBER(stat, tag, sample, p95, "P95", "p95", 0.95, 72),                                                        \
        MEMBER(stat, tag, sample, p99, "P99", "p99", 0.99, 368)

/* In the order of a comparison. */
static const struct row rows[] = {
    FIGURE("input_tps", "Input TPS", "input tokens per second", HIGHER, 2, FIELD(input_tps)),
    FIGURE("output_tps", "Output TPS", "output tokens per second", HIGHER, 2, FIELD(output_tps)),
    FIGURE("total_tps", "Total TPS", "total tokens per second", HIGHER, 2, FIELD(total_tps)),
    FIGURE("request_rate", "Requests/s", "requests per second", HIGHER, 3, FIELD(request_rate)),
    FIGURE("duration_s", "Duration (s)", "duration", LOWER, 2, FIELD(duration_s)),
    STATISTIC(ttft_ms, "TTFT", HZ_TTFT),
    STATISTIC(tpot_ms, "TPOT", HZ_TPOT),
    STATISTIC(itl_ms, "ITL", HZ_PER_RUN),
    STATISTIC(e2e_ms, "E2E", HZ_E2E),
    STATISTIC(response_ttft_ms, "response TTFT", HZ_PER_RUN),
    FIGURE("hit_rate", "Hit rate", "hit rate", NEITHER, 4, CACHED(hit_rate)),
    FIGURE("prompt_tokens", "Prompt tokens", "prompt tokens", NEITHER, 0, FIELD(prompt_tokens)),
    FIGURE("cached_tokens", "Cached tokens", "cached tokens", NEITHER, 0, CACHED(cached_tokens)),
    FIGURE("mean_input", "Mean input", "mean input", NEITHER, 1, FIELD(mean_input)),
    FIGURE("mean_output", "Mean output", "mean output", NEITHER, 1, FIELD(mean_output)),
    FIGURE("output_tokens", NULL, "output tokens", NEITHER, 0, FIELD(output_tokens)),
};
enum { N_ROWS = sizeof rows / sizeof *rows };
_Static_assert((int)N_ROWS <= (int)HZ_MAX_METRICS, "hz_summary.more needs an element for each row");

/* Schema kvmark.run.1 fixes the order of these keys in run.json. All other figures follow in the order of the rows. */
static const char *const schema_order[] = {"duration_s",    "request_rate",  "input_tps",   "output_tps",
                                           "total_tps",     "mean_input",    "mean_output", "prompt_tokens",
                                           "output_tokens", "cached_tokens", "hit_rate"};
enum { N_SCHEMA = sizeof schema_order / sizeof *schema_order };

#define OF_REQUESTS(x) offsetof(struct hz_summary, x), offsetof(struct hz_request, x)
static const char no_value[] = "no request has a known number of output tokens above one";
static const struct hz_statistic statistics[] = {
    {"ttft_ms", OF_REQUESTS(ttft_ms), no_value},
    {"tpot_ms", OF_REQUESTS(tpot_ms), no_value},
    {"itl_ms", offsetof(struct hz_summary, itl_ms), HZ_INTERVALS, "no answer has two events with tokens"},
    {"e2e_ms", OF_REQUESTS(e2e_ms), no_value},
    {"response_ttft_ms", OF_REQUESTS(response_ttft_ms), no_value},
};

/* ---- searches ---- */

static const struct row *row_of(const struct hz_metric *m)
{
    return (const struct row *)((const char *)m - offsetof(struct row, m));
}

/* Finds a row, also one that only run.json has. */
static const struct hz_metric *find_row(const char *key)
{
    for (int i = 0; i < N_ROWS; i++)
        if (!strcmp(rows[i].m.key, key))
            return &rows[i].m;
    return NULL;
}

const struct hz_metric *hz_metric_at(int i)
{
    for (int k = 0; k < N_ROWS; k++)
        if (rows[k].m.title && i-- == 0)
            return &rows[k].m;
    return NULL;
}

const struct hz_metric *hz_metric_find(const char *key, struct km_err *err)
{
    const char *names[N_ROWS];
    int n = 0;
    for (const struct hz_metric *m; (m = hz_metric_at(n)); n++) {
        if (!strcmp(m->key, key))
            return m;
        names[n] = m->key;
    }
    const char *near = km_nearest(key, names, n);
    km_fail(err, KM_EINVAL, "there is no figure \"%s\"; %s%s%s", key,
            near ? "did you mean " : "figures are named as in run.json's summary, for example ",
            near ? near : "ttft_ms.mean", near ? "?" : "");
    return NULL;
}

/* The offset of a metric's value in struct hz_summary. */
static size_t value_offset(const struct hz_metric *m)
{
    const struct row *r = row_of(m);
    return r->field ? r->field : offsetof(struct hz_summary, more) + (size_t)(r - rows) * sizeof(double);
}

double hz_metric_value(const struct hz_metric *m, const struct hz_summary *s)
{
    double v;
    memcpy(&v, (const char *)s + value_offset(m), sizeof v);
    return v;
}

static bool in_schema_order(const char *key)
{
    for (int i = 0; i < N_SCHEMA; i++)
        if (!strcmp(schema_order[i], key))
            return true;
    return false;
}

const struct hz_metric *hz_figure_at(int i)
{
    if (i < N_SCHEMA)
        return find_row(schema_order[i]);
    i -= N_SCHEMA;
    for (int k = 0; k < N_ROWS; k++)
        if (rows[k].value && !in_schema_order(rows[k].m.key) && i-- == 0)
            return &rows[k].m;
    return NULL;
}

double hz_figure_compute(const struct hz_metric *figure, const struct hz_measured *m)
{
    return row_of(figure)->value(m);
}

void hz_figure_set(const struct hz_metric *figure, struct hz_summary *s, double v)
{
    memcpy((char *)s + value_offset(figure), &v, sizeof v);
}

bool hz_figure_needs_cached(const struct hz_metric *figure)
{
    return row_of(figure)->needs_cached;
}

const struct hz_statistic *hz_statistic_at(int i)
{
    return i >= 0 && i < (int)(sizeof statistics / sizeof *statistics) ? &statistics[i] : NULL;
}
