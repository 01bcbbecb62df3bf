/* Computes every figure and statistic of harness/run/metric.h, and writes and reads them in the order of run.json. */
#include "harness/run/summary.h"

#include "base/mem.h"

#include <math.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

static struct hz_stat *stat_in(struct hz_summary *s, const struct hz_statistic *which)
{
    return (struct hz_stat *)((char *)s + which->in_summary);
}

/* The statistic of one value of the requests, which is at offset `member` of hz_request. NAN values are left out. */
static struct hz_stat stat_of_requests(const struct hz_request *requests, int n, size_t member, double *scratch)
{
    int m = 0;
    for (int i = 0; i < n; i++) {
        double v;
        memcpy(&v, (const char *)&requests[i] + member, sizeof v);
        if (!isnan(v))
            scratch[m++] = v;
    }
    return hz_stat_of(scratch, m);
}

void hz_summarize(const struct hz_trace *t, enum wl_kind kind, enum hz_profile profile, struct hz_summary *out)
{
    *out = (struct hz_summary){.profile = profile};
    struct hz_request *requests = km_calloc((size_t)t->n, sizeof *requests);
    double *scratch = km_calloc((size_t)t->n, sizeof *scratch), *itl = NULL;
    int n = 0, n_itl = hz_profile_itl(t, profile, &itl);
    bool fits = requests && scratch && n_itl >= 0; /* false: no memory, so n stays 0 and all figures are NAN */
    bool counted = false, usage = false;           /* some request has the client's, the server's prompt count */
    for (int i = 0; i < t->n; i++) {
        const struct hz_rec *r = &t->recs[i];
        out->requests_ok += r->ok;
        out->requests_failed += !r->ok;
        if (!r->ok || !fits)
            continue;
        requests[n++] = hz_request_of(t, r, kind, profile);
        counted = counted || r->local_prompt_tokens >= 0;
        usage = usage || r->prompt_tokens >= 0;
    }
    out->by_usage = profile == HZ_SEED && usage && !counted;

    struct hz_measured measured = {t, requests, n, fits ? hz_profile_duration(t, kind, profile, requests, n) : NAN};
    const struct hz_metric *figure;
    for (int i = 0; (figure = hz_figure_at(i)); i++)
        hz_figure_set(figure, out, hz_figure_compute(figure, &measured));
    const struct hz_statistic *which;
    for (int i = 0; (which = hz_statistic_at(i)); i++) {
        struct hz_stat *s = stat_in(out, which);
        *s = !fits                               ? hz_stat_of(NULL, 0)
             : which->in_request == HZ_INTERVALS ? hz_stat_of(itl, n_itl)
                                                 : stat_of_requests(requests, n, which->in_request, scratch);
        if (hz_profile_std_by_n(kind, profile))
            s->std = s->n == 1 ? 0 : s->std * sqrt((s->n - 1.0) / s->n);
    }
    km_free(requests);
    km_free(scratch);
    km_free(itl);
}

/* ---- the "summary" of run.json ---- */

static const struct {
    const char *key;
    size_t at;
} members[] = {{"mean", offsetof(struct hz_stat, mean)}, {"std", offsetof(struct hz_stat, std)},
               {"min", offsetof(struct hz_stat, min)},   {"p50", offsetof(struct hz_stat, p50)},
               {"p90", offsetof(struct hz_stat, p90)},   {"p95", offsetof(struct hz_stat, p95)},
               {"p99", offsetof(struct hz_stat, p99)},   {"max", offsetof(struct hz_stat, max)}};
enum { N_MEMBERS = sizeof members / sizeof *members };

static void add_number(cJSON *to, const char *key, double v)
{
    if (isfinite(v))
        cJSON_AddNumberToObject(to, key, v);
    else
        cJSON_AddNullToObject(to, key);
}

static void add_stat(cJSON *to, cJSON *reasons, const struct hz_statistic *which, const struct hz_stat *s, int requests)
{
    cJSON *v = cJSON_AddObjectToObject(to, which->key);
    char name[64], why[160];
    cJSON_AddNumberToObject(v, "n", s->n);
    for (int i = 0; i < N_MEMBERS; i++) {
        double x = *(const double *)((const char *)s + members[i].at);
        add_number(v, members[i].key, x);
        if (isfinite(x) || s->n == 0)
            continue;
        snprintf(name, sizeof name, "%s.%s", which->key, members[i].key);
        bool p99 = !strcmp(members[i].key, "p99");
        snprintf(why, sizeof why, "%s needs %d values, and there %s %d",
                 p99 ? "a 99th percentile" : "a standard deviation", p99 ? 100 : 2, s->n == 1 ? "is" : "are", s->n);
        cJSON_AddStringToObject(reasons, name, why);
    }
    if (s->n == 0)
        cJSON_AddStringToObject(reasons, which->key, requests ? which->missing : "no request succeeded");
}

static const char *why_missing(const struct hz_summary *s, const struct hz_metric *figure)
{
    if (!s->requests_ok)
        return "no request succeeded";
    if (hz_figure_needs_cached(figure) && isnan(s->cached_tokens))
        return "the server reports no usage.prompt_tokens_details.cached_tokens";
    if (isnan(s->duration_s) || s->duration_s <= 0)
        return "the duration of the run is 0 or not known";
    return "the token count is not known for every request: the server did not report usage for all of them";
}

cJSON *hz_summary_json(const struct hz_summary *s)
{
    cJSON *v = cJSON_CreateObject(), *reasons = cJSON_CreateObject();
    cJSON_AddStringToObject(v, "profile", s->profile == HZ_SEED ? "seed" : "strict");
    cJSON_AddNumberToObject(v, "requests_ok", s->requests_ok);
    cJSON_AddNumberToObject(v, "requests_failed", s->requests_failed);
    const struct hz_metric *figure;
    for (int i = 0; (figure = hz_figure_at(i)); i++) {
        double x = hz_metric_value(figure, s);
        add_number(v, figure->key, x);
        if (!isfinite(x))
            cJSON_AddStringToObject(reasons, figure->key, why_missing(s, figure));
    }
    const struct hz_statistic *which;
    for (int i = 0; (which = hz_statistic_at(i)); i++)
        add_stat(v, reasons, which, (const struct hz_stat *)((const char *)s + which->in_summary), s->requests_ok);
    cJSON_AddBoolToObject(v, "counted_by_usage", s->by_usage);
    if (s->by_usage)
        cJSON_AddStringToObject(reasons, "counted_by_usage",
                                "the client has no tokenizer of this model, so the token counts are the server's, "
                                "which include the chat template");
    cJSON_AddItemToObject(v, "reasons", reasons);
    return v;
}

static int read_number(const cJSON *v, const char *key, double *out, struct km_err *err)
{
    *out = NAN;
    return km_json_num(v, key, false, -INFINITY, INFINITY, out, err);
}

static int read_stat(const cJSON *v, const char *key, struct hz_stat *s, struct km_err *err)
{
    const cJSON *o = NULL;
    int64_t n = 0;
    *s = hz_stat_of(NULL, 0);
    int rc = km_json_item(v, key, false, cJSON_Object, &o, err);
    if (rc || !o)
        return rc;
    rc = km_json_int(o, "n", false, 0, INT32_MAX, &n, err);
    s->n = (int)n;
    for (int k = 0; !rc && k < N_MEMBERS; k++)
        rc = read_number(o, members[k].key, (double *)((char *)s + members[k].at), err);
    return rc;
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
    const struct hz_metric *figure;
    for (int i = 0; !rc && (figure = hz_figure_at(i)); i++) {
        double x;
        rc = read_number(v, figure->key, &x, err);
        hz_figure_set(figure, out, x);
    }
    const struct hz_statistic *which;
    for (int i = 0; !rc && (which = hz_statistic_at(i)); i++)
        rc = read_stat(v, which->key, stat_in(out, which), err);
    if (rc)
        return rc;
    out->profile = strcmp(profile, "seed") ? HZ_STRICT : HZ_SEED;
    out->requests_ok = (int)ok;
    out->requests_failed = (int)failed;
    return 0;
}
