/* A comparison as a table and as JSON, limits on it, and the runs that a path names. */
#include "harness/report/compare.h"

#include "base/file.h"
#include "base/mem.h"

#include <dirent.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

void compare_put_interval(struct km_buf *out, double lo, double hi)
{
    if (isfinite(lo) && isfinite(hi)) {
        table_put_number(out, lo, 3);
        km_buf_puts(out, " to ");
        table_put_number(out, hi, 3);
    } else {
        km_buf_puts(out, "n/a");
    }
}

int compare_result_grid(struct table_grid *g, const struct compare_result *c, const char *a, const char *b,
                       struct km_err *err)
{
    const char *const head[] = {"Metric",       a,       b,          "Change", "Ratio",
                                "95% interval", "Pairs", "Requests", "Verdict"};
    enum { COLS = sizeof head / sizeof *head };
    int rc = table_grid_new(g, 1 + c->n, COLS, err);
    if (rc)
        return rc;
    for (int i = 0; i < COLS; i++)
        table_grid_set(g, 0, i, "%s", head[i]);
    struct km_buf t = {0};
    for (int i = 0; i < c->n; i++) {
        const struct compare_delta *d = &c->deltas[i];
        bool judged = d->metric->min_n > 0;
        table_grid_set(g, i + 1, 0, "%s", d->metric->title);
        for (int k = 0; k < 5; k++) {
            km_buf_clear(&t);
            if (k < 2)
                table_put_number(&t, k ? d->b : d->a, d->metric->decimals);
            else if (k == 2)
                table_put_change(&t, d->a, d->b);
            else if (k == 3)
                table_put_number(&t, d->ratio, 3);
            else
                compare_put_interval(&t, d->lo, d->hi);
            table_grid_set(g, i + 1, k + 1, "%s", !judged && k > 2 ? "" : km_buf_str(&t));
        }
        if (judged && d->pairs)
            table_grid_set(g, i + 1, 6, "%d", d->pairs);
        if (judged && d->requests)
            table_grid_set(g, i + 1, 7, "%d", d->requests);
        if (judged)
            table_grid_set(g, i + 1, 8, "%s%s%s%s", compare_verdict_word(d->verdict), *d->why ? " (" : "", d->why,
                        *d->why ? ")" : "");
    }
    if (t.oom)
        g->oom = true;
    km_buf_free(&t);
    if ((rc = table_grid_ok(g, err)))
        table_grid_free(g);
    return rc;
}

static void add_num(cJSON *o, const char *key, double v)
{
    if (isfinite(v))
        cJSON_AddNumberToObject(o, key, v);
    else
        cJSON_AddNullToObject(o, key);
}

cJSON *compare_result_json(const struct compare_result *c)
{
    cJSON *v = cJSON_CreateObject(), *list;
    cJSON_AddStringToObject(v, "schema", "kvmark.compare.1");
    cJSON_AddNumberToObject(v, "pairs", c->pairs);
    cJSON_AddBoolToObject(v, "unlike_workloads", c->unlike);
    cJSON_AddNumberToObject(v, "requests_only_a", c->only_a);
    cJSON_AddNumberToObject(v, "requests_only_b", c->only_b);
    list = cJSON_AddArrayToObject(v, "metrics");
    for (int i = 0; i < c->n; i++) {
        const struct compare_delta *d = &c->deltas[i];
        cJSON *o = cJSON_CreateObject();
        cJSON_AddStringToObject(o, "metric", d->metric->key);
        cJSON_AddStringToObject(o, "better",
                                !d->metric->min_n         ? "neither"
                                : d->metric->lower_better ? "lower"
                                                          : "higher");
        add_num(o, "a", d->a);
        add_num(o, "b", d->b);
        add_num(o, "a_min", d->a_min);
        add_num(o, "a_max", d->a_max);
        add_num(o, "b_min", d->b_min);
        add_num(o, "b_max", d->b_max);
        add_num(o, "change_percent", d->a != 0 ? 100 * (d->b / d->a - 1) : NAN);
        add_num(o, "ratio", d->ratio);
        add_num(o, "ratio_low", d->lo);
        add_num(o, "ratio_high", d->hi);
        add_num(o, "p", d->p);
        cJSON_AddNumberToObject(o, "pairs", d->pairs);
        cJSON_AddNumberToObject(o, "requests", d->requests);
        cJSON_AddNumberToObject(o, "conversations", d->conversations);
        cJSON_AddStringToObject(o, "verdict", compare_verdict_word(d->verdict));
        if (*d->why)
            cJSON_AddStringToObject(o, "reason", d->why);
        cJSON_AddItemToArray(list, o);
    }
    return v;
}

int compare_limit_parse(const char *text, struct compare_limit *out, struct km_err *err)
{
    size_t n = strcspn(text, "<>");
    char *key = km_strndup(text, n), *end = NULL;
    if (!key)
        return km_fail(err, KM_ENOMEM, "out of memory");
    int rc = 0;
    out->op = text[n];
    out->percent = text[n] ? strtod(text + n + 1, &end) : 0;
    if (!text[n] || end == text + n + 1 || !isfinite(out->percent) || (strcmp(end, "%") && *end))
        rc = km_fail(err, KM_EINVAL,
                     "\"%s\" is not a limit; write FIGURE>+N%% or FIGURE<-N%%, for example ttft_ms.mean>+5%%",
                     text);
    else if (!(out->metric = hz_metric_find(key, err)))
        rc = km_context(err, "limit \"%s\"", text);
    km_free(key);
    return rc;
}

bool compare_limit_missed(const struct compare_limit *l, const struct compare_result *c, double *change)
{
    *change = NAN;
    for (int i = 0; i < c->n; i++)
        if (c->deltas[i].metric == l->metric && c->deltas[i].a != 0)
            *change = 100 * (c->deltas[i].b / c->deltas[i].a - 1);
    return !isfinite(*change) || (l->op == '>' ? *change > l->percent : *change < l->percent);
}

static int by_name(const void *x, const void *y)
{
    return strcmp(*(char *const *)x, *(char *const *)y);
}

static bool holds_run(const char *dir)
{
    char *p = km_path(dir, "run.json");
    bool there = p && km_file_exists(p);
    km_free(p);
    return there;
}

struct names {
    char **v;
    int n;
};

static void names_free(struct names *l)
{
    for (int i = 0; i < l->n; i++)
        km_free(l->v[i]);
    km_free(l->v);
}

static int names_add(struct names *l, char *take, struct km_err *err)
{
    char **v = take ? km_reallocarray(l->v, (size_t)l->n + 1, sizeof *v) : NULL;
    if (!v) {
        km_free(take);
        return km_fail(err, KM_ENOMEM, "out of memory");
    }
    l->v = v;
    l->v[l->n++] = take;
    return 0;
}

/* The run folders that path stands for. */
static int find_runs(const char *path, struct names *l, struct km_err *err)
{
    if (holds_run(path))
        return names_add(l, km_strdup(path), err);
    for (int k = 1, rc;; k++) {
        struct km_buf b = {0};
        km_buf_printf(&b, "%s-%d", path, k);
        char *p = km_buf_take(&b);
        if (p && !holds_run(p)) {
            km_free(p);
            break;
        }
        if ((rc = names_add(l, p, err)))
            return rc;
    }
    if (l->n)
        return 0;
    DIR *d = opendir(path);
    if (!d)
        return km_fail(err, KM_ENOENT, "there is no run at %s: no folder with a run.json and no %s-1", path,
                       path);
    int rc = 0;
    for (struct dirent *e; !rc && (e = readdir(d));) {
        char *p = e->d_name[0] == '.' ? NULL : km_path(path, e->d_name);
        if (p && holds_run(p))
            rc = names_add(l, p, err);
        else
            km_free(p);
    }
    closedir(d);
    if (l->n)
        qsort(l->v, (size_t)l->n, sizeof *l->v, by_name);
    else if (!rc)
        rc = km_fail(err, KM_ENOENT, "%s holds no run.json and no run folders", path);
    return rc;
}

int compare_side_read(struct compare_side *out, const char *path, struct km_err *err)
{
    struct names l = {0};
    *out = (struct compare_side){0};
    int rc = find_runs(path, &l, err);
    if (!rc) {
        out->runs = km_calloc((size_t)l.n, sizeof *out->runs);
        out->list = km_calloc((size_t)l.n, sizeof *out->list);
        if (!out->runs || !out->list)
            rc = km_fail(err, KM_ENOMEM, "out of memory");
    }
    for (int i = 0; !rc && i < l.n; i++) {
        rc = hz_run_read(&out->runs[i], l.v[i], err);
        out->list[i] = &out->runs[i];
        out->n += !rc;
    }
    names_free(&l);
    if (rc)
        compare_side_free(out);
    return rc;
}

void compare_side_free(struct compare_side *s)
{
    for (int i = 0; i < s->n; i++)
        hz_run_free(&s->runs[i]);
    km_free(s->runs);
    km_free(s->list);
    *s = (struct compare_side){0};
}
