/* Figures into tables, and under each the evidence, the tokens that explain it and what a reader must know
 * about the runs. Ratios rest on pairs of runs and matched requests; the cells above them are means (or
 * medians) over all runs of a row. */
#include "harness/report/report_data.h"

#include "base/mem.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static int by_double(const void *x, const void *y)
{
    double a = *(const double *)x, b = *(const double *)y;
    return (a > b) - (a < b);
}

/* The figure of a place over its runs; *n says over how many. NAN as soon as one run lacks it. */
static double over_runs(const struct report *r, const struct report_table *t, const struct hz_metric *m, int row,
                        int arm, int *n)
{
    double v[1000], sum = 0;
    *n = 0;
    for (int k = 0; k < t->reps && k < 1000; k++) {
        const struct hz_run *run = report_run_at(r, t, row, arm, k);
        if (run)
            sum += v[(*n)++] = report_value(r, run, m);
    }
    if (!*n || isnan(sum) || !r->suite->median)
        return *n ? sum / *n : NAN;
    qsort(v, (size_t)*n, sizeof *v, by_double);
    return hz_percentile(v, *n, 0.5);
}

/* The figures that the evidence judges: those whose change the table shows, or all that can be judged. */
static int judged_metrics(const struct suite_table *t, const struct hz_metric **out)
{
    int n = 0;
    for (int pass = 0; pass < 2 && !n; pass++)
        for (int c = 0; c < t->n_cols; c++) {
            const struct hz_metric *m = t->cols[c].metric;
            bool wanted = pass || t->cols[c].delta || t->cols[c].gain, seen = false;
            for (int i = 0; i < n; i++)
                seen = seen || out[i] == m;
            if (wanted && !seen && m->min_n)
                out[n++] = m;
        }
    return n;
}

static int contrast(const struct report *r, struct report_table *t, struct report_contrast *c, bool *made,
                    struct km_err *err)
{
    const struct hz_metric *metrics[32];
    const struct hz_run *a[1000], *b[1000];
    struct compare_opts o = compare_defaults();
    int pairs = 0;
    for (int k = 0; k < t->reps && k < 1000; k++) {
        a[pairs] = report_run_at(r, t, c->base_row, c->base_arm, k);
        b[pairs] = report_run_at(r, t, c->row, c->arm, k);
        pairs += a[pairs] && b[pairs];
    }
    *made = pairs > 0;
    o.profile = r->suite->profile;
    o.median = r->suite->median;
    o.force = true; /* unlike workloads are named in the notes */
    o.metrics = metrics;
    o.n_metrics = judged_metrics(t->t, metrics);
    return pairs ? compare_runs(&c->cmp, a, b, pairs, &o, err) : 0;
}

/* Every row against the baseline, or arm against arm, then one family of verdicts for the table. */
static int make_contrasts(const struct report *r, struct report_table *t, struct km_err *err)
{
    const struct suite_table *s = t->t;
    int rc = 0, n = 0;
    t->contrasts = km_calloc((size_t)s->n_rows + 1, sizeof *t->contrasts);
    if (!t->contrasts)
        return km_fail(err, KM_ENOMEM, "out of memory making a report");
    for (int row = 0; row < s->n_rows && !rc; row++) {
        struct report_contrast *c = &t->contrasts[t->n_contrasts];
        bool made = false, arms = s->shape == SUITE_BACKENDS;
        if (!arms && (s->base < 0 || row == s->base))
            continue;
        *c = (struct report_contrast){.row = row, .arm = arms, .base_row = arms ? row : s->base};
        rc = contrast(r, t, c, &made, err);
        t->n_contrasts += made && !rc;
        n += made && !rc ? c->cmp.n : 0;
    }
    struct compare_delta **family = rc ? NULL : km_calloc((size_t)n + 1, sizeof *family);
    if (!rc && !family)
        rc = km_fail(err, KM_ENOMEM, "out of memory making a report");
    n = 0;
    for (int i = 0; family && i < t->n_contrasts; i++)
        for (int k = 0; k < t->contrasts[i].cmp.n; k++)
            family[n++] = &t->contrasts[i].cmp.deltas[k];
    if (family)
        compare_judge(family, n, compare_defaults().noise);
    km_free(family);
    return rc;
}

static const struct compare_delta *delta_of(const struct report_contrast *c, const struct hz_metric *m)
{
    for (int i = 0; i < c->cmp.n; i++)
        if (c->cmp.deltas[i].metric == m)
            return &c->cmp.deltas[i];
    return NULL;
}

static int make_grid(const struct report *r, struct report_table *t, struct km_err *err)
{
    const struct suite_table *s = t->t;
    bool arms = s->shape == SUITE_BACKENDS;
    int cols = arms ? s->n_arms : s->n_cols, ignored;
    size_t n = (size_t)s->n_rows * (size_t)cols;
    double *v = km_calloc(n, sizeof *v);
    bool *unsure = km_calloc(n, sizeof *unsure);
    const char **labels = km_calloc((size_t)s->n_rows, sizeof *labels);
    struct table_column *col = km_calloc((size_t)cols, sizeof *col);
    int rc = v && unsure && labels && col ? 0 : km_fail(err, KM_ENOMEM, "out of memory making a report");
    for (int i = 0; i < cols && !rc; i++) {
        const struct suite_column *c = &s->cols[arms ? 0 : i];
        col[i] = (struct table_column){arms ? s->arms[i].label : c->title, c->decimals, c->delta, c->gain};
    }
    for (int row = 0; row < s->n_rows && !rc; row++) {
        labels[row] = s->rows[row].label;
        for (int i = 0; i < cols; i++) {
            const struct suite_column *c = &s->cols[arms ? 0 : i];
            v[row * cols + i] = c->scale * over_runs(r, t, c->metric, row, arms ? i : 0, &ignored);
        }
    }
    for (int k = 0; k < t->n_contrasts && !rc; k++)
        for (int i = 0; i < cols; i++) {
            const struct compare_delta *d = delta_of(&t->contrasts[k], s->cols[arms ? 0 : i].metric);
            bool undecided = d && (d->verdict == COMPARE_NO_DIFFERENCE || d->verdict == COMPARE_UNDECIDED);
            unsure[t->contrasts[k].row * cols + i] = undecided;
        }
    struct table table = {s->shape, s->head, col, cols, labels, s->n_rows, s->base, v, unsure};
    if (!rc)
        rc = table_to_grid(&t->grid, &table, err);
    km_free(v);
    km_free(unsure);
    km_free(labels);
    km_free(col);
    return rc;
}

static void put_spread(struct km_buf *out, double lo, double hi, int runs, int decimals)
{
    table_put_number(out, lo, decimals);
    if (runs > 1) {
        km_buf_puts(out, "..");
        table_put_number(out, hi, decimals);
    }
}

/* As the table prints the figure; in the figure's own unit where the table scales it. */
static int decimals_of(const struct suite_table *s, const struct hz_metric *m)
{
    for (int c = 0; c < s->n_cols; c++)
        if (s->cols[c].metric == m && !s->cols[c].gain && s->cols[c].scale == 1)
            return s->cols[c].decimals;
    return m->decimals;
}

static int make_evidence(struct report_table *t, struct km_err *err)
{
    const char *const head[] = {t->t->head, "Figure",  "Ratio",   "95% interval", "Pairs",
                                "Requests", "Runs, A", "Runs, B", "Verdict"};
    enum { COLS = sizeof head / sizeof *head };
    int rows = 1, at = 1;
    for (int i = 0; i < t->n_contrasts; i++)
        rows += t->contrasts[i].cmp.n;
    struct table_grid *g = &t->evidence;
    int rc = table_grid_new(g, rows, COLS, err);
    struct km_buf b = {0};
    for (int i = 0; i < COLS && !rc; i++)
        table_grid_set(g, 0, i, "%s", t->t->shape == SUITE_METRICS && !i ? "Configuration" : head[i]);
    for (int i = 0; i < t->n_contrasts && !rc; i++)
        for (int k = 0; k < t->contrasts[i].cmp.n; k++, at++) {
            const struct compare_delta *d = &t->contrasts[i].cmp.deltas[k];
            int dec = decimals_of(t->t, d->metric), runs = t->contrasts[i].cmp.pairs;
            table_grid_set(g, at, 0, "%s", t->t->rows[t->contrasts[i].row].label);
            table_grid_set(g, at, 1, "%s", d->metric->title);
            for (int c = 2; c < 8; c++) {
                km_buf_clear(&b);
                if (c == 2)
                    table_put_number(&b, d->ratio, 3);
                else if (c == 3)
                    compare_put_interval(&b, d->lo, d->hi);
                else if (c == 4 || c == 5)
                    km_buf_printf(&b, "%d", c == 4 ? d->pairs : d->requests);
                else
                    put_spread(&b, c == 6 ? d->a_min : d->b_min, c == 6 ? d->a_max : d->b_max, runs, dec);
                table_grid_set(g, at, c, "%s", km_buf_str(&b));
            }
            table_grid_set(g, at, 8, "%s%s%s%s", compare_verdict_word(d->verdict), *d->why ? " (" : "", d->why,
                        *d->why ? ")" : "");
        }
    g->oom |= b.oom;
    km_buf_free(&b);
    return rc ? rc : table_grid_ok(g, err);
}

/* Why the figures differ: what had to be computed. Means over the runs of a place. */
static int make_tokens(const struct report *r, struct report_table *t, struct km_err *err)
{
    static const char *const head[] = {"Runs",     "Requests", "Failed",     "Prompt tokens", "Cached tokens",
                                       "Computed", "Hit rate", "Mean input", "Mean output"};
    enum { COLS = 1 + sizeof head / sizeof *head };
    const struct suite_table *s = t->t;
    struct table_grid *g = &t->tokens;
    int rc = table_grid_new(g, 1 + s->n_rows * s->n_arms, COLS, err), at = 1, n = 0;
    struct km_buf b = {0};
    table_grid_set(g, 0, 0, "%s", s->shape == SUITE_METRICS ? "Configuration" : s->head);
    for (int c = 1; c < COLS && !rc; c++)
        table_grid_set(g, 0, c, "%s", head[c - 1]);
    for (int row = 0; row < s->n_rows && !rc; row++)
        for (int arm = 0; arm < s->n_arms; arm++, at++) {
            double ok = 0, failed = 0;
            for (int k = 0; k < t->reps; k++) {
                const struct hz_run *run = report_run_at(r, t, row, arm, k);
                ok += run ? run->seed.requests_ok : 0;
                failed += run ? run->seed.requests_failed : 0;
            }
            double prompt = over_runs(r, t, hz_metric_find("prompt_tokens", NULL), row, arm, &n);
            double cached = over_runs(r, t, hz_metric_find("cached_tokens", NULL), row, arm, &n);
            double hit = over_runs(r, t, hz_metric_find("hit_rate", NULL), row, arm, &n);
            const double v[] = {n,
                                n ? ok / n : NAN,
                                n ? failed / n : NAN,
                                prompt,
                                cached,
                                prompt - cached,
                                100 * hit,
                                over_runs(r, t, hz_metric_find("mean_input", NULL), row, arm, &n),
                                over_runs(r, t, hz_metric_find("mean_output", NULL), row, arm, &n)};
            static const int decimals[] = {0, 0, 0, 0, 0, 0, 1, 1, 1};
            km_buf_clear(&b);
            report_put_label(&b, s, row, arm);
            table_grid_set(g, at, 0, "%s", km_buf_str(&b));
            for (int c = 1; c < COLS; c++) {
                km_buf_clear(&b);
                table_put_number(&b, v[c - 1], decimals[c - 1]);
                table_grid_set(g, at, c, "%s%s", km_buf_str(&b), c == 7 && isfinite(hit) ? "%" : "");
            }
        }
    g->oom |= b.oom;
    km_buf_free(&b);
    return rc ? rc : table_grid_ok(g, err);
}

/* Facts about a run, as text; empty: nothing to say. */
typedef void (*fact_fn)(const struct hz_run *run, struct km_buf *out);

static void fact_setup(const struct hz_run *run, struct km_buf *out)
{
    const char *device = report_run_text(run, "target", "device"), *dtype = report_run_text(run, "target", "dtype"),
               *url = report_run_text(run, "target", "url");
    const cJSON *n = cJSON_GetObjectItemCaseSensitive(cJSON_GetObjectItemCaseSensitive(run->json, "workload"),
                                                      "requests");
    if (!strcmp(report_run_text(run, "target", "kind"), "external"))
        km_buf_printf(out, "External server%s%s", *url ? " at " : "", url);
    else
        km_buf_printf(out, "kvmark's engine, device %s", *device ? device : "unknown");
    km_buf_printf(out, "; model %s", report_run_text(run, "target", "model"));
    if (*dtype)
        km_buf_printf(out, ", dtype %s", dtype);
    km_buf_printf(out, "; workload %s", report_run_text(run, "workload", "name"));
    if (cJSON_IsNumber(n))
        km_buf_printf(out, " of %.0f requests", n->valuedouble);
}

static void fact_dummy(const struct hz_run *run, struct km_buf *out)
{
    if (report_run_flag(run, "target", "dummy_weights"))
        km_buf_puts(out, "Dummy weights: random numbers from a seed. The shapes and so the work are the "
                         "model's; the answers are not language");
}

static void fact_simulated(const struct hz_run *run, struct km_buf *out)
{
    const char *device = report_run_text(run, "target", "device");
    if (report_run_flag(run, "target", "simulated") || !strncmp(device, "sim:", 4))
        km_buf_printf(out,
                      "Simulated device %s: steps cost what a roofline model says, on a virtual clock; nothing "
                      "was measured on that hardware",
                      device);
}

static void fact_text(const struct hz_run *run, struct km_buf *out)
{
    if (!strcmp(report_run_text(run, "workload", "text"), "built-in text"))
        km_buf_puts(out, "The prompts are made of the built-in text, not of the workload's own text files");
}

static double option(const struct hz_run *run, const char *key)
{
    const cJSON *v = cJSON_GetObjectItemCaseSensitive(cJSON_GetObjectItemCaseSensitive(run->json, "options"),
                                                      key);
    return cJSON_IsNumber(v) ? v->valuedouble : 0;
}

static void fact_memory(const struct hz_run *run, struct km_buf *out)
{
    double limit = option(run, "gpu-memory-limit"), blocks = option(run, "num-gpu-blocks-override"),
           size = option(run, "block-size");
    if (limit > 0)
        km_buf_printf(out, "Device memory limited to %.4g GiB", limit / 1073741824);
    if (blocks > 0)
        km_buf_printf(out, "%s%.0f blocks of %.0f tokens (%.0f tokens of KV)",
                      out->len ? "; KV pool set to " : "KV pool set to ", blocks, size, blocks * size);
}

static void fact_count(const struct hz_run *run, struct km_buf *out)
{
    if (run->seed.by_usage)
        km_buf_puts(out, "Tokens are the server's count, chat template included: the client had no tokenizer");
}

/* One note for a fact that all runs share, or one a row. */
static void note_fact(const struct report *r, struct report_table *t, fact_fn fact)
{
    struct km_buf first = {0}, other = {0};
    bool same = true, any = false;
    const struct suite_table *s = t->t;
    for (int pass = 0; pass < 2; pass++) {
        for (int row = 0; row < s->n_rows; row++)
            for (int arm = 0; arm < s->n_arms; arm++) {
                const struct hz_run *run = NULL;
                for (int k = 0; k < t->reps && !run; k++)
                    run = report_run_at(r, t, row, arm, k);
                if (!run)
                    continue;
                km_buf_clear(&other);
                fact(run, &other);
                if (!pass && !any)
                    km_buf_puts(&first, km_buf_str(&other));
                same = same && !strcmp(km_buf_str(&first), km_buf_str(&other));
                any = true;
                if (pass && !same && other.len) {
                    report_put_label(&t->notes, s, row, arm);
                    km_buf_printf(&t->notes, ": %s.\n", other.data);
                }
            }
        if (!pass && same && first.len)
            km_buf_printf(&t->notes, "%s.\n", first.data);
    }
    km_buf_free(&first);
    km_buf_free(&other);
}

/* A client that was in its own way has measured itself. */
static void note_health(const struct report *r, struct report_table *t)
{
    int doubtful = 0, runs = 0;
    const char *why = "";
    for (int i = 0; i < t->t->n_rows * t->t->n_arms * t->reps; i++) {
        const struct hz_run *run = t->slot[i] >= 0 && r->runs[t->slot[i]].there ? &r->runs[t->slot[i]].run
                                                                                : NULL;
        if (!run)
            continue;
        runs++;
        if (strcmp(report_run_text(run, "health", "verdict"), "doubtful"))
            continue;
        const cJSON *list = cJSON_GetObjectItemCaseSensitive(
            cJSON_GetObjectItemCaseSensitive(run->json, "health"), "doubts");
        const cJSON *first = cJSON_GetArrayItem(list, 0);
        doubtful++;
        why = cJSON_IsString(first) ? first->valuestring : why;
    }
    if (doubtful)
        km_buf_printf(&t->notes, "The client's health was DOUBTFUL in %d of %d runs: %s.\n", doubtful, runs,
                      why);
}

/* Runs that are not there, requests that failed, workloads and programs that differ: what would mislead if
 * unsaid. */
static void note_troubles(const struct report *r, struct report_table *t)
{
    const struct suite_table *s = t->t;
    const char *sha = NULL, *binary = NULL;
    bool unlike = false, binaries = false;
    for (int row = 0; row < s->n_rows; row++)
        for (int arm = 0; arm < s->n_arms; arm++) {
            int missing = 0, failed = 0, asked = 0;
            const char *why = "";
            for (int k = 0; k < t->reps; k++) {
                const struct hz_run *run = report_run_at(r, t, row, arm, k);
                int i = t->slot[(row * s->n_arms + arm) * t->reps + k];
                if (!run) {
                    missing += i >= 0;
                    why = i >= 0 ? r->runs[i].why : why;
                    continue;
                }
                failed += run->seed.requests_failed;
                asked += run->seed.requests_failed + run->seed.requests_ok;
                const char *w = report_run_text(run, "workload", "sha256"),
                           *b = report_run_text(run, "provenance", "binary_sha256");
                unlike = unlike || (sha && strcmp(sha, w));
                binaries = binaries || (binary && strcmp(binary, b));
                sha = w;
                binary = b;
            }
            if (missing) {
                report_put_label(&t->notes, s, row, arm);
                km_buf_printf(&t->notes, ": %d of %d runs missing (%s).\n", missing, t->reps, why);
            }
            if (failed) {
                report_put_label(&t->notes, s, row, arm);
                km_buf_printf(&t->notes, ": %d of %d requests FAILED and are in no latency.\n", failed, asked);
            }
        }
    if (unlike)
        km_buf_puts(&t->notes, "The runs did NOT all send the same requests: their workloads differ.\n");
    if (binaries)
        km_buf_puts(&t->notes, "Not all runs were made by the same build of the program.\n");
}

static void make_notes(const struct report *r, struct report_table *t)
{
    static const fact_fn facts[] = {fact_setup, fact_simulated, fact_dummy, fact_text, fact_memory, fact_count};
    int only_a = 0, only_b = 0;
    for (int i = 0; i < t->t->n_notes; i++)
        km_buf_printf(&t->notes, "%s\n", t->t->notes[i]);
    for (size_t i = 0; i < sizeof facts / sizeof *facts; i++)
        note_fact(r, t, facts[i]);
    if (t->reps > 1)
        km_buf_printf(&t->notes,
                      "Each cell is the %s of %d runs, rows in turn; definitions of the figures: profile %s.\n",
                      r->suite->median ? "median" : "mean", t->reps,
                      r->suite->profile == HZ_SEED ? "seed" : "strict");
    else
        km_buf_printf(&t->notes,
                      "One run a row: the intervals cover the spread between conversations, not between runs; "
                      "definitions of the figures: profile %s.\n",
                      r->suite->profile == HZ_SEED ? "seed" : "strict");
    for (int i = 0; i < t->n_contrasts; i++) {
        only_a += t->contrasts[i].cmp.only_a;
        only_b += t->contrasts[i].cmp.only_b;
    }
    if (only_a || only_b)
        km_buf_printf(&t->notes,
                      "Requests that only one side of a pair answered (%d of A, %d of B) are in the cells but "
                      "not in the ratios.\n",
                      only_a, only_b);
    note_troubles(r, t);
    note_health(r, t);
}

/* "With X against Without X: input tokens per second +61.2% (95% interval ...), better; mean TTFT ..." */
static void make_headline(struct report_table *t)
{
    if (!t->n_contrasts)
        return;
    const struct suite_table *s = t->t;
    const struct report_contrast *c = &t->contrasts[0]; /* the best of several, by the first figure */
    for (int i = 1; i < t->n_contrasts; i++) {
        const struct compare_delta *a = &c->cmp.deltas[0], *b = &t->contrasts[i].cmp.deltas[0];
        if (t->contrasts[i].cmp.n && isfinite(b->ratio) &&
            (!isfinite(a->ratio) || (b->ratio < a->ratio) == b->metric->lower_better))
            c = &t->contrasts[i];
    }
    struct km_buf *b = &t->headline;
    report_put_label(b, s, c->row, c->arm);
    if (c->base_row == c->row)
        km_buf_printf(b, " against %s:", s->arms[c->base_arm].label);
    else
        km_buf_printf(b, " against %s:", s->rows[c->base_row].label);
    int said = 0;
    for (int i = 0; i < c->cmp.n; i++) {
        const struct compare_delta *d = &c->cmp.deltas[i];
        if (said == 2 || !isfinite(d->ratio))
            continue;
        km_buf_printf(b, "%s %s ", said++ ? ";" : "", d->metric->name);
        table_put_change(b, 1, d->ratio);
        if (isfinite(d->lo)) {
            km_buf_puts(b, " (95% interval ");
            table_put_change(b, 1, d->lo);
            km_buf_puts(b, " to ");
            table_put_change(b, 1, d->hi);
            km_buf_puts(b, ")");
        }
        if (d->verdict == COMPARE_NOT_JUDGED)
            km_buf_puts(b, " (one run each, no interval)");
        else
            km_buf_printf(b, ", %s%s", compare_verdict_word(d->verdict), d->pairs == 1 ? " (on one pair)" : "");
    }
    km_buf_puts(b, said ? "." : " nothing to compare yet.");
}

int report_make_tables(struct report *r, struct km_err *err)
{
    for (int i = 0; i < r->suite->n_tables; i++) {
        struct report_table *t = &r->tables[i];
        if (!t->reps) /* no cell of it was ever planned here */
            continue;
        int rc = make_contrasts(r, t, err);
        if (!rc)
            rc = make_grid(r, t, err);
        if (!rc)
            rc = make_evidence(t, err);
        if (!rc)
            rc = make_tokens(r, t, err);
        if (rc)
            return rc;
        make_notes(r, t);
        make_headline(t);
        if (!km_buf_ok(&t->notes) || !km_buf_ok(&t->headline))
            return km_fail(err, KM_ENOMEM, "out of memory making a report");
    }
    return 0;
}
