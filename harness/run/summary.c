/* The two sets of definitions, side by side.
 *
 * Both reduce a request to a `row` of the same few numbers and share everything after that, so that what
 * differs between `seed` and `strict` can be read in three short functions. Only requests that succeeded have
 * rows; failures are counted and nothing else. */
#include "harness/run/summary.h"

#include "base/mem.h"
#include "base/sort.h"

#include <math.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* A request that succeeded, on the run's time axis. */
struct row {
    struct hz_row f;
    double response;   /* TTFT from the planned send */
    double start, end; /* s from the trace's beginning */
};

static double ms(int64_t ns)
{
    return (double)ns / 1e6;
}

static double count_or(int n, int other)
{
    return n >= 0 ? n : other >= 0 ? other : NAN;
}

/* benchmark_serving_multi_turn.py: latency to [DONE]; the first chunk may hold several tokens, whose time is taken out
 * of the TTFT again; a TPOT of 0 where there is none, and it is averaged in. */
static struct hz_row seed_turn(const struct hz_trace *t, const struct hz_rec *r)
{
    double raw = ms(r->first_ns - r->start_ns), latency = ms(r->done_ns - r->start_ns);
    /* An answer that is all reasoning has no content to count: the server's number stands in. */
    double out = count_or(r->local_output_tokens > 0 ? r->local_output_tokens : -1, r->output_tokens);
    double first = r->local_first_tokens;
    for (int i = 0; first < 0 && i < r->n_ticks; i++)
        if (t->ticks[r->tick0 + (size_t)i].tokens > 0)
            first = t->ticks[r->tick0 + (size_t)i].tokens;
    double tpot = out > 1 && out > first ? (latency - raw) / (out - first) : 0;
    return (struct hz_row){.ttft_ms = first <= 1 ? raw : fmax(0.1, raw - (first - 1) * tpot),
                           .tpot_ms = tpot,
                           .e2e_ms = latency,
                           .input = count_or(r->local_prompt_tokens, r->prompt_tokens),
                           .output = out};
}

/* `vllm bench serve`: the first event with choices is the first token, role-only or not; output by the server's
 * count, input by the data set's. It always streams; an answer that came in one piece has no TPOT. */
static struct hz_row seed_prompt(const struct hz_rec *r)
{
    double ttft = ms(r->first_any_ns - r->start_ns), latency = ms(r->last_any_ns - r->start_ns);
    double out = count_or(r->output_tokens, r->local_output_tokens);
    return (struct hz_row){.ttft_ms = ttft,
                           .tpot_ms = out > 1 && latency > ttft ? (latency - ttft) / (out - 1) : NAN,
                           .e2e_ms = latency,
                           .input = count_or(r->local_prompt_tokens, r->prompt_tokens),
                           .output = out};
}

/* Ours: from the first event that bears a token to the last; the tokens of the first event are no intervals. */
static struct hz_row strict_row(const struct hz_trace *t, const struct hz_rec *r)
{
    double out = count_or(r->output_tokens, r->local_output_tokens), first = 0;
    for (int i = 0; first == 0 && i < r->n_ticks; i++)
        first = t->ticks[r->tick0 + (size_t)i].tokens;
    if (first == 1 && r->local_first_tokens > 1)
        first = r->local_first_tokens;
    return (struct hz_row){.ttft_ms = ms(r->first_ns - r->start_ns),
                           .tpot_ms = out > first ? ms(r->last_ns - r->first_ns) / (out - first) : NAN,
                           .e2e_ms = ms(r->last_ns - r->start_ns),
                           .input = count_or(r->prompt_tokens, r->local_prompt_tokens),
                           .output = out};
}

struct hz_row hz_row_of(const struct hz_trace *t, const struct hz_rec *r, enum wl_kind kind,
                        enum hz_profile profile)
{
    if (!r->ok)
        return (struct hz_row){NAN, NAN, NAN, NAN, NAN};
    if (profile == HZ_STRICT)
        return strict_row(t, r);
    return wl_kind_ops(kind)->seed_rules == WL_RULES_BENCH_SERVE ? seed_prompt(r) : seed_turn(t, r);
}

struct hz_stat hz_stat_of(double *v, int n)
{
    struct hz_stat s = {n, NAN, NAN, NAN, NAN, NAN, NAN, NAN, NAN};
    if (n < 1)
        return s;
    double sum = 0, squares = 0;
    km_sort_doubles(v, (size_t)n);
    for (int i = 0; i < n; i++)
        sum += v[i];
    s.mean = sum / n;
    for (int i = 0; i < n; i++)
        squares += (v[i] - s.mean) * (v[i] - s.mean);
    s.std = n > 1 ? sqrt(squares / (n - 1)) : NAN;
    s.min = v[0];
    s.p50 = km_percentile(v, n, 0.5);
    s.p90 = km_percentile(v, n, 0.9);
    s.p95 = km_percentile(v, n, 0.95);
    s.p99 = n >= 100 ? km_percentile(v, n, 0.99) : NAN;
    s.max = v[n - 1];
    return s;
}

/* The statistics of one column of the rows, NANs left out. */
static struct hz_stat column(const struct row *rows, int n, size_t offset, double *scratch)
{
    int m = 0;
    for (int i = 0; i < n; i++) {
        double v = *(const double *)((const char *)&rows[i] + offset);
        if (!isnan(v))
            scratch[m++] = v;
    }
    return hz_stat_of(scratch, m);
}

/* Gaps between events, pooled over the requests: seed per event with choices; strict per token, an event of k
 * tokens giving k gaps of a k-th each. Returns their number, -1 without memory. */
static int pool_gaps(const struct hz_trace *t, bool by_token, double **out)
{
    size_t n = 0, cap = 0;
    for (int i = 0; i < t->n; i++)
        for (int k = 0; t->recs[i].ok && k < t->recs[i].n_ticks; k++) {
            int32_t tokens = t->ticks[t->recs[i].tick0 + (size_t)k].tokens;
            cap += by_token ? (size_t)(tokens > 0 ? tokens : 0) : 1;
        }
    if (cap > INT32_MAX || !(*out = km_calloc(cap, sizeof **out)))
        return -1;
    for (int i = 0; i < t->n; i++) {
        const struct hz_rec *r = &t->recs[i];
        const struct hz_tick *last = NULL;
        for (int k = 0; r->ok && k < r->n_ticks; k++) {
            const struct hz_tick *now = &t->ticks[r->tick0 + (size_t)k];
            if (by_token && now->tokens <= 0)
                continue;
            int times = by_token ? now->tokens : 1;
            for (int j = 0; last && j < times; j++)
                (*out)[n++] = ms(now->ns - last->ns) / times;
            last = now;
        }
    }
    return (int)n;
}

static struct hz_stat no_stat(void)
{
    return hz_stat_of(NULL, 0);
}

/* The run's length: seed conversations end with the end of the request that started last, which can be short of the
 * real end by one request; seed prompts by the client's own clock; strict from the first start to the last token. */
static double duration(const struct hz_trace *t, enum wl_kind kind, enum hz_profile profile,
                       const struct row *rows, int n)
{
    double first = INFINITY, latest = -INFINITY, end = 0, last = -INFINITY;
    if (profile == HZ_SEED && wl_kind_ops(kind)->seed_rules == WL_RULES_BENCH_SERVE)
        return (double)(t->end_ns - t->begin_ns) / 1e9;
    for (int i = 0; i < n; i++) {
        first = fmin(first, rows[i].start);
        last = fmax(last, rows[i].end);
        if (rows[i].start > latest) {
            latest = rows[i].start;
            end = rows[i].end;
        }
    }
    return n ? (profile == HZ_SEED ? end : last) - first : NAN;
}

/* Sums by the server's count, the client's where it has none. Cached: servers leave the field out when it is 0, so one
 * that gives it anywhere means 0 elsewhere. */
static void sum_tokens(const struct hz_trace *t, struct hz_summary *o)
{
    double asked = 0; /* prompt tokens of the server's own count: what the hit rate is a share of */
    bool said = false;
    o->prompt_tokens = o->cached_tokens = o->output_tokens = 0;
    for (int i = 0; i < t->n; i++) {
        const struct hz_rec *r = &t->recs[i];
        if (!r->ok)
            continue;
        o->prompt_tokens += count_or(r->prompt_tokens, r->local_prompt_tokens);
        o->output_tokens += count_or(r->output_tokens, r->local_output_tokens);
        o->cached_tokens += r->cached_tokens > 0 ? r->cached_tokens : 0;
        asked += r->prompt_tokens >= 0 ? r->prompt_tokens : NAN;
        said = said || r->cached_tokens >= 0;
    }
    if (!o->requests_ok)
        o->prompt_tokens = o->output_tokens = NAN;
    if (!said)
        o->cached_tokens = NAN;
    o->hit_rate = asked > 0 ? o->cached_tokens / asked : NAN;
}

void hz_summarize(const struct hz_trace *t, enum wl_kind kind, enum hz_profile profile, struct hz_summary *out)
{
    bool seed = profile == HZ_SEED, bench_serve = wl_kind_ops(kind)->seed_rules == WL_RULES_BENCH_SERVE;
    *out = (struct hz_summary){.profile = profile};
    struct row *rows = km_calloc((size_t)t->n, sizeof *rows);
    double *scratch = km_calloc((size_t)t->n, sizeof *scratch), *gaps = NULL;
    int n = 0, n_gaps = pool_gaps(t, !seed, &gaps);
    bool fits = rows && scratch && n_gaps >= 0; /* else every figure stays "not there" */
    bool counted = false, usage = false;
    double input = 0, output = 0;
    for (int i = 0; i < t->n; i++) {
        const struct hz_rec *r = &t->recs[i];
        out->requests_ok += r->ok;
        out->requests_failed += !r->ok;
        if (!r->ok || !fits)
            continue;
        struct row *w = &rows[n++];
        w->f = hz_row_of(t, r, kind, profile);
        w->response = w->f.ttft_ms + ms(r->start_ns - r->sched_ns);
        w->start = (double)(r->start_ns - t->begin_ns) / 1e9;
        w->end = w->start + w->f.e2e_ms / 1e3;
        input += w->f.input;
        output += w->f.output;
        counted = counted || r->local_prompt_tokens >= 0;
        usage = usage || r->prompt_tokens >= 0;
    }
    out->by_usage = seed && usage && !counted;
    out->duration_s = fits ? duration(t, kind, profile, rows, n) : NAN;
    out->mean_input = n ? input / n : NAN;
    out->mean_output = n ? output / n : NAN;
    out->request_rate = n && out->duration_s > 0 ? n / out->duration_s : NAN;
    out->input_tps = out->request_rate * out->mean_input;
    out->output_tps = out->request_rate * out->mean_output;
    out->total_tps = out->input_tps + out->output_tps;
    out->ttft_ms = fits ? column(rows, n, offsetof(struct row, f.ttft_ms), scratch) : no_stat();
    out->tpot_ms = fits ? column(rows, n, offsetof(struct row, f.tpot_ms), scratch) : no_stat();
    out->e2e_ms = fits ? column(rows, n, offsetof(struct row, f.e2e_ms), scratch) : no_stat();
    out->response_ttft_ms = fits ? column(rows, n, offsetof(struct row, response), scratch) : no_stat();
    out->itl_ms = fits ? hz_stat_of(gaps, n_gaps) : no_stat();
    sum_tokens(t, out);
    if (seed && bench_serve) {
        /* numpy's std is the population's, pandas' is the sample's; each tool has its own. */
        struct hz_stat *all[] = {&out->ttft_ms, &out->tpot_ms, &out->itl_ms, &out->e2e_ms, &out->response_ttft_ms};
        for (size_t i = 0; i < sizeof all / sizeof *all; i++)
            all[i]->std = all[i]->n == 1 ? 0 : all[i]->std * sqrt((all[i]->n - 1.0) / all[i]->n);
    }
    km_free(rows);
    km_free(scratch);
    km_free(gaps);
}

/* ---- the "summary" of run.json ---- */

/* Every figure by its key. Reading and writing walk the same tables. */
static const struct {
    const char *key;
    size_t at;
} stats[] = {{"ttft_ms", offsetof(struct hz_summary, ttft_ms)},
             {"tpot_ms", offsetof(struct hz_summary, tpot_ms)},
             {"itl_ms", offsetof(struct hz_summary, itl_ms)},
             {"e2e_ms", offsetof(struct hz_summary, e2e_ms)},
             {"response_ttft_ms", offsetof(struct hz_summary, response_ttft_ms)}},
  figures[] = {{"duration_s", offsetof(struct hz_summary, duration_s)},
               {"request_rate", offsetof(struct hz_summary, request_rate)},
               {"input_tps", offsetof(struct hz_summary, input_tps)},
               {"output_tps", offsetof(struct hz_summary, output_tps)},
               {"total_tps", offsetof(struct hz_summary, total_tps)},
               {"mean_input", offsetof(struct hz_summary, mean_input)},
               {"mean_output", offsetof(struct hz_summary, mean_output)},
               {"prompt_tokens", offsetof(struct hz_summary, prompt_tokens)},
               {"output_tokens", offsetof(struct hz_summary, output_tokens)},
               {"cached_tokens", offsetof(struct hz_summary, cached_tokens)},
               {"hit_rate", offsetof(struct hz_summary, hit_rate)}},
  parts[] = {{"mean", offsetof(struct hz_stat, mean)}, {"std", offsetof(struct hz_stat, std)},
             {"min", offsetof(struct hz_stat, min)},   {"p50", offsetof(struct hz_stat, p50)},
             {"p90", offsetof(struct hz_stat, p90)},   {"p95", offsetof(struct hz_stat, p95)},
             {"p99", offsetof(struct hz_stat, p99)},   {"max", offsetof(struct hz_stat, max)}};
enum {
    N_STATS = sizeof stats / sizeof *stats,
    N_FIGURES = sizeof figures / sizeof *figures,
    N_PARTS = sizeof parts / sizeof *parts
};

static double value(const void *base, size_t at)
{
    return *(const double *)((const char *)base + at);
}

static void add_number(cJSON *to, const char *key, double v)
{
    if (isfinite(v))
        cJSON_AddNumberToObject(to, key, v);
    else
        cJSON_AddNullToObject(to, key);
}

static void add_stat(cJSON *to, cJSON *reasons, const char *key, const struct hz_stat *s, int requests)
{
    cJSON *v = cJSON_AddObjectToObject(to, key);
    char name[64], why[160];
    cJSON_AddNumberToObject(v, "n", s->n);
    for (int i = 0; i < N_PARTS; i++) {
        double x = value(s, parts[i].at);
        add_number(v, parts[i].key, x);
        if (isfinite(x) || s->n == 0)
            continue;
        snprintf(name, sizeof name, "%s.%s", key, parts[i].key);
        snprintf(why, sizeof why, "%d samples; %s", s->n,
                 strcmp(parts[i].key, "p99") ? "it needs two" : "a 99th percentile needs 100");
        cJSON_AddStringToObject(reasons, name, why);
    }
    if (s->n == 0)
        cJSON_AddStringToObject(reasons, key,
                                !requests                ? "no request succeeded"
                                : !strcmp(key, "itl_ms") ? "no request had two events"
                                                         : "no request had two tokens or its count");
}

cJSON *hz_summary_json(const struct hz_summary *s)
{
    cJSON *v = cJSON_CreateObject(), *reasons = cJSON_CreateObject();
    cJSON_AddStringToObject(v, "profile", s->profile == HZ_SEED ? "seed" : "strict");
    cJSON_AddNumberToObject(v, "requests_ok", s->requests_ok);
    cJSON_AddNumberToObject(v, "requests_failed", s->requests_failed);
    for (int i = 0; i < N_FIGURES; i++) {
        double x = value(s, figures[i].at);
        bool cached = !strcmp(figures[i].key, "cached_tokens") || !strcmp(figures[i].key, "hit_rate");
        add_number(v, figures[i].key, x);
        if (!isfinite(x))
            cJSON_AddStringToObject(reasons, figures[i].key,
                                    !s->requests_ok ? "no request succeeded"
                                    : cached && isnan(s->cached_tokens)
                                        ? "the server reports no prompt_tokens_details.cached_tokens"
                                    : isnan(s->duration_s) || s->duration_s <= 0
                                        ? "the run has no length"
                                        : "no usage from the server, or not for every request");
    }
    for (int i = 0; i < N_STATS; i++)
        add_stat(v, reasons, stats[i].key, (const struct hz_stat *)((const char *)s + stats[i].at),
                 s->requests_ok);
    cJSON_AddBoolToObject(v, "counted_by_usage", s->by_usage);
    if (s->by_usage)
        cJSON_AddStringToObject(reasons, "counted_by_usage",
                                "no tokenizer here: tokens are the server's own count, chat template included");
    cJSON_AddItemToObject(v, "reasons", reasons);
    return v;
}

static int read_number(const cJSON *v, const char *key, double *out, struct km_err *err)
{
    *out = NAN;
    return km_json_num(v, key, false, -INFINITY, INFINITY, out, err);
}

int hz_summary_from_json(const cJSON *v, struct hz_summary *out, struct km_err *err)
{
    const char *profile = NULL;
    int64_t ok = 0, failed = 0;
    *out = (struct hz_summary){0};
    int rc = km_json_str(v, "profile", true, &profile, err);
    if (!rc && strcmp(profile, "seed") && strcmp(profile, "strict"))
        rc = km_fail(err, KM_EINVAL, "\"profile\" is \"%.40s\"; it must be seed or strict", profile);
    if (!rc)
        rc = km_json_int(v, "requests_ok", true, 0, INT32_MAX, &ok, err);
    if (!rc)
        rc = km_json_int(v, "requests_failed", true, 0, INT32_MAX, &failed, err);
    if (!rc)
        rc = km_json_bool(v, "counted_by_usage", false, &out->by_usage, err);
    for (int i = 0; !rc && i < N_FIGURES; i++)
        rc = read_number(v, figures[i].key, (double *)((char *)out + figures[i].at), err);
    for (int i = 0; !rc && i < N_STATS; i++) {
        const cJSON *o = NULL;
        int64_t n = 0;
        struct hz_stat *s = (struct hz_stat *)((char *)out + stats[i].at);
        *s = no_stat();
        if ((rc = km_json_item(v, stats[i].key, false, cJSON_Object, &o, err)) || !o)
            continue;
        rc = km_json_int(o, "n", false, 0, INT32_MAX, &n, err);
        s->n = (int)n;
        for (int k = 0; !rc && k < N_PARTS; k++)
            rc = read_number(o, parts[k].key, (double *)((char *)s + parts[k].at), err);
    }
    if (rc)
        return rc;
    out->profile = strcmp(profile, "seed") ? HZ_STRICT : HZ_SEED;
    out->requests_ok = (int)ok;
    out->requests_failed = (int)failed;
    return 0;
}
