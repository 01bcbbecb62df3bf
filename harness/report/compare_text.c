/* Formats a comparison as a table and as JSON, and checks limits on its changes. */
#include "harness/report/compare.h"

#include "base/mem.h"

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

void compare_put_verdict(struct km_buf *out, const struct compare_delta *d)
{
    km_buf_puts(out, compare_verdict_word(d->verdict));
    bool undetected = d->verdict == COMPARE_NO_DIFFERENCE || d->verdict == COMPARE_UNDECIDED;
    if (*d->why)
        km_buf_printf(out, undetected ? ": %s" : " (%s)", d->why);
}

/* Sets the cells that only a figure with a verdict has: ratio, interval, pairs, requests, verdict. */
static void set_judgement(struct table_grid *g, int row, const struct compare_delta *d)
{
    struct km_buf b = {0};
    table_put_number(&b, d->ratio, 3);
    table_grid_set(g, row, 4, "%s", km_buf_str(&b));
    km_buf_clear(&b);
    compare_put_interval(&b, d->lo, d->hi);
    table_grid_set(g, row, 5, "%s", km_buf_str(&b));
    if (d->pairs)
        table_grid_set(g, row, 6, "%d", d->pairs);
    if (d->requests)
        table_grid_set(g, row, 7, "%d", d->requests);
    km_buf_clear(&b);
    compare_put_verdict(&b, d);
    table_grid_set(g, row, 8, "%s", km_buf_str(&b));
    g->oom |= b.oom;
    km_buf_free(&b);
}

int compare_result_grid(struct table_grid *g, const struct compare_result *c, const char *a, const char *b,
                        struct km_err *err)
{
    const char *const head[] = {"Metric", a, b, "Change", "Ratio", "95% interval", "Pairs", "Requests", "Verdict"};
    enum { COLS = sizeof head / sizeof *head };
    struct km_buf t = {0};
    int rc = table_grid_new(g, 1 + c->n, COLS, err);
    if (rc)
        return rc;
    for (int i = 0; i < COLS; i++)
        table_grid_set(g, 0, i, "%s", head[i]);
    for (int i = 0; i < c->n; i++) {
        const struct compare_delta *d = &c->deltas[i];
        table_grid_set(g, i + 1, 0, "%s", d->metric->title);
        for (int side = 0; side < 2; side++) {
            km_buf_clear(&t);
            table_put_number(&t, side ? d->b : d->a, d->metric->decimals);
            table_grid_set(g, i + 1, 1 + side, "%s", km_buf_str(&t));
        }
        km_buf_clear(&t);
        table_put_change(&t, d->a, d->b);
        table_grid_set(g, i + 1, 3, "%s", km_buf_str(&t));
        if (d->metric->min_n > 0) /* the other figures explain, but no direction of theirs is better */
            set_judgement(g, i + 1, d);
    }
    g->oom |= t.oom;
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
        return km_fail(err, KM_ENOMEM, "out of memory reading a limit");
    int rc = 0;
    out->op = text[n];
    out->percent = text[n] ? strtod(text + n + 1, &end) : 0;
    if (!text[n] || end == text + n + 1 || !isfinite(out->percent) || (strcmp(end, "%") && *end))
        rc = km_fail(err, KM_EINVAL,
                     "\"%s\" is not a limit; write FIGURE>+N%% or FIGURE<-N%%, for example ttft_ms.mean>+5%%", text);
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
