/* Figures into tables, and under each the evidence, the tokens that explain it and what a reader must know
 * about the runs. Ratios rest on pairs of runs and matched requests; the cells above them are means (or
 * medians) over all runs of a row. */
#include "harness/report/report_data.h"

#include "base/mem.h"
#include "base/sort.h"

#include <math.h>
#include <string.h>

/* The figure of a place over its runs; *n says over how many. NAN as soon as one run lacks it. */
static double over_runs(const struct rp *r, const struct rp_table *t, const struct hz_metric *m, int row,
                        int arm, int *n)
{
    double v[1000], sum = 0;
    *n = 0;
    for (int k = 0; k < t->reps && k < 1000; k++) {
        const struct run_folder *run = rp_run(r, t, row, arm, k);
        if (run)
            sum += v[(*n)++] = rp_value(r, run, m);
    }
    if (!*n || isnan(sum) || !r->suite->median)
        return *n ? sum / *n : NAN;
    km_sort_doubles(v, (size_t)*n);
    return km_percentile(v, *n, 0.5);
}

/* The figures that the evidence judges: those whose change the table shows, or all that can be judged. */
static int judged_metrics(const struct hz_suite_table *t, const struct hz_metric **out)
{
    int n = 0;
    for (int pass = 0; pass < 2 && !n; pass++)
        for (int c = 0; c < t->n_cols; c++) {
            const struct hz_metric *m = t->cols[c].metric;
            bool wanted = pass || t->cols[c].col.delta || t->cols[c].col.gain, seen = false;
            for (int i = 0; i < n; i++)
                seen = seen || out[i] == m;
            if (wanted && !seen && m->min_n)
                out[n++] = m;
        }
    return n;
}

static int contrast(const struct rp *r, struct rp_table *t, struct rp_contrast *c, bool *made,
                    struct km_err *err)
{
    const struct hz_metric *metrics[32];
    const struct run_folder *a[1000], *b[1000];
    struct hz_compare_opts o = hz_compare_defaults();
    int pairs = 0;
    for (int k = 0; k < t->reps && k < 1000; k++) {
        a[pairs] = rp_run(r, t, c->base_row, c->base_arm, k);
        b[pairs] = rp_run(r, t, c->row, c->arm, k);
        pairs += a[pairs] && b[pairs];
    }
    *made = pairs > 0;
    o.profile = r->suite->profile;
    o.median = r->suite->median;
    o.force = true; /* unlike workloads are named in the notes */
    o.metrics = metrics;
    o.n_metrics = judged_metrics(t->t, metrics);
    return pairs ? hz_compare(&c->cmp, a, b, pairs, &o, err) : 0;
}

/* Every row against the baseline, or arm against arm, then one family of verdicts for the table. */
static int make_contrasts(const struct rp *r, struct rp_table *t, struct km_err *err)
{
    const struct hz_suite_table *s = t->t;
    int rc = 0, n = 0;
    t->contrasts = km_calloc((size_t)s->n_rows + 1, sizeof *t->contrasts);
    if (!t->contrasts)
        return km_fail(err, KM_ENOMEM, "out of memory making a report");
    for (int row = 0; row < s->n_rows && !rc; row++) {
        struct rp_contrast *c = &t->contrasts[t->n_contrasts];
        bool made = false, arms = s->shape == HZ_BACKENDS;
        if (!arms && (s->base < 0 || row == s->base))
            continue;
        *c = (struct rp_contrast){.row = row, .arm = arms, .base_row = arms ? row : s->base};
        rc = contrast(r, t, c, &made, err);
        t->n_contrasts += made && !rc;
        n += made && !rc ? c->cmp.n : 0;
    }
    struct hz_delta **family = rc ? NULL : km_calloc((size_t)n + 1, sizeof *family);
    if (!rc && !family)
        rc = km_fail(err, KM_ENOMEM, "out of memory making a report");
    n = 0;
    for (int i = 0; family && i < t->n_contrasts; i++)
        for (int k = 0; k < t->contrasts[i].cmp.n; k++)
            family[n++] = &t->contrasts[i].cmp.deltas[k];
    if (family)
        hz_judge(family, n, hz_compare_defaults().noise);
    km_free(family);
    return rc;
}

static const struct hz_delta *delta_of(const struct rp_contrast *c, const struct hz_metric *m)
{
    for (int i = 0; i < c->cmp.n; i++)
        if (c->cmp.deltas[i].metric == m)
            return &c->cmp.deltas[i];
    return NULL;
}

static int make_grid(const struct rp *r, struct rp_table *t, struct km_err *err)
{
    const struct hz_suite_table *s = t->t;
    bool arms = s->shape == HZ_BACKENDS;
    int cols = arms ? s->n_arms : s->n_cols, ignored;
    size_t n = (size_t)s->n_rows * (size_t)cols;
    double *v = km_calloc(n, sizeof *v);
    bool *unsure = km_calloc(n, sizeof *unsure);
    const char **labels = km_calloc((size_t)s->n_rows, sizeof *labels);
    struct hz_col *col = km_calloc((size_t)cols, sizeof *col);
    int rc = v && unsure && labels && col ? 0 : km_fail(err, KM_ENOMEM, "out of memory making a report");
    for (int i = 0; i < cols && !rc; i++) {
        col[i] = s->cols[arms ? 0 : i].col;
        if (arms)
            col[i].title = s->arms[i].label;
    }
    for (int row = 0; row < s->n_rows && !rc; row++) {
        labels[row] = s->rows[row].label;
        for (int i = 0; i < cols; i++) {
            const struct hz_suite_col *c = &s->cols[arms ? 0 : i];
            v[row * cols + i] = c->scale * over_runs(r, t, c->metric, row, arms ? i : 0, &ignored);
        }
    }
    for (int k = 0; k < t->n_contrasts && !rc; k++)
        for (int i = 0; i < cols; i++) {
            const struct hz_delta *d = delta_of(&t->contrasts[k], s->cols[arms ? 0 : i].metric);
            bool undecided = d && (d->verdict == HZ_NO_DIFFERENCE || d->verdict == HZ_TOO_NOISY);
            unsure[t->contrasts[k].row * cols + i] = undecided;
        }
    struct hz_table table = {s->shape, s->head, col, cols, labels, s->n_rows, s->base, v, unsure};
    if (!rc)
        rc = hz_table_grid(&t->grid, &table, err);
    km_free(v);
    km_free(unsure);
    km_free(labels);
    km_free(col);
    return rc;
}

static void put_spread(struct km_buf *out, double lo, double hi, int runs, int decimals)
{
    hz_put_number(out, lo, decimals);
    if (runs > 1) {
        km_buf_puts(out, "..");
        hz_put_number(out, hi, decimals);
    }
}

/* As the table prints the figure; in the figure's own unit where the table scales it. */
static int decimals_of(const struct hz_suite_table *s, const struct hz_metric *m)
{
    for (int c = 0; c < s->n_cols; c++)
        if (s->cols[c].metric == m && !s->cols[c].col.gain && s->cols[c].scale == 1)
            return s->cols[c].col.decimals;
    return m->decimals;
}

static int make_evidence(struct rp_table *t, struct km_err *err)
{
    const char *const head[] = {t->t->head, "Figure",  "Ratio",   "95% interval", "Pairs",
                                "Requests", "Runs, A", "Runs, B", "Verdict"};
    enum { COLS = sizeof head / sizeof *head };
    int rows = 1, at = 1;
    for (int i = 0; i < t->n_contrasts; i++)
        rows += t->contrasts[i].cmp.n;
    struct hz_grid *g = &t->evidence;
    int rc = hz_grid_new(g, rows, COLS, err);
    struct km_buf b = {0};
    for (int i = 0; i < COLS && !rc; i++)
        hz_grid_set(g, 0, i, "%s", t->t->shape == HZ_METRICS && !i ? "Configuration" : head[i]);
    for (int i = 0; i < t->n_contrasts && !rc; i++)
        for (int k = 0; k < t->contrasts[i].cmp.n; k++, at++) {
            const struct hz_delta *d = &t->contrasts[i].cmp.deltas[k];
            int dec = decimals_of(t->t, d->metric), runs = t->contrasts[i].cmp.pairs;
            hz_grid_set(g, at, 0, "%s", t->t->rows[t->contrasts[i].row].label);
            hz_grid_set(g, at, 1, "%s", d->metric->title);
            for (int c = 2; c < 8; c++) {
                km_buf_clear(&b);
                if (c == 2)
                    hz_put_number(&b, d->ratio, 3);
                else if (c == 3)
                    hz_put_interval(&b, d->lo, d->hi);
                else if (c == 4 || c == 5)
                    km_buf_printf(&b, "%d", c == 4 ? d->pairs : d->requests);
                else
                    put_spread(&b, c == 6 ? d->a_min : d->b_min, c == 6 ? d->a_max : d->b_max, runs, dec);
                hz_grid_set(g, at, c, "%s", km_buf_str(&b));
            }
            hz_grid_set(g, at, 8, "%s%s%s%s", hz_verdict_word(d->verdict), *d->why ? " (" : "", d->why,
                        *d->why ? ")" : "");
        }
    g->oom |= b.oom;
    km_buf_free(&b);
    return rc ? rc : hz_grid_ok(g, err);
}

/* Why the figures differ: what had to be computed. Means over the runs of a place. */
static int make_tokens(const struct rp *r, struct rp_table *t, struct km_err *err)
{
    static const char *const head[] = {"Runs",     "Requests", "Failed",     "Prompt tokens", "Cached tokens",
                                       "Computed", "Hit rate", "Mean input", "Mean output"};
    enum { COLS = 1 + sizeof head / sizeof *head };
    const struct hz_suite_table *s = t->t;
    struct hz_grid *g = &t->tokens;
    int rc = hz_grid_new(g, 1 + s->n_rows * s->n_arms, COLS, err), at = 1, n = 0;
    struct km_buf b = {0};
    hz_grid_set(g, 0, 0, "%s", s->shape == HZ_METRICS ? "Configuration" : s->head);
    for (int c = 1; c < COLS && !rc; c++)
        hz_grid_set(g, 0, c, "%s", head[c - 1]);
    for (int row = 0; row < s->n_rows && !rc; row++)
        for (int arm = 0; arm < s->n_arms; arm++, at++) {
            double ok = 0, failed = 0;
            for (int k = 0; k < t->reps; k++) {
                const struct run_folder *run = rp_run(r, t, row, arm, k);
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
            rp_put_label(&b, s, row, arm);
            hz_grid_set(g, at, 0, "%s", km_buf_str(&b));
            for (int c = 1; c < COLS; c++) {
                km_buf_clear(&b);
                hz_put_number(&b, v[c - 1], decimals[c - 1]);
                hz_grid_set(g, at, c, "%s%s", km_buf_str(&b), c == 7 && isfinite(hit) ? "%" : "");
            }
        }
    g->oom |= b.oom;
    km_buf_free(&b);
    return rc ? rc : hz_grid_ok(g, err);
}

/* Facts about a run, as text; empty: nothing to say. */
typedef void (*fact_fn)(const struct run_folder *run, struct km_buf *out);

static void fact_setup(const struct run_folder *run, struct km_buf *out)
{
    const char *device = rp_str(run, "target", "device"), *dtype = rp_str(run, "target", "dtype"),
               *url = rp_str(run, "target", "url");
    const cJSON *n = cJSON_GetObjectItemCaseSensitive(cJSON_GetObjectItemCaseSensitive(run->json, "workload"),
                                                      "requests");
    if (!strcmp(rp_str(run, "target", "kind"), "external"))
        km_buf_printf(out, "External server%s%s", *url ? " at " : "", url);
    else
        km_buf_printf(out, "kvmark's engine, device %s", *device ? device : "unknown");
    km_buf_printf(out, "; model %s", rp_str(run, "target", "model"));
    if (*dtype)
        km_buf_printf(out, ", dtype %s", dtype);
    km_buf_printf(out, "; workload %s", rp_str(run, "workload", "name"));
    if (cJSON_IsNumber(n))
        km_buf_printf(out, " of %.0f requests", n->valuedouble);
}

static void fact_dummy(const struct run_folder *run, struct km_buf *out)
{
    if (rp_flag(run, "target", "dummy_weights"))
        km_buf_puts(out, "Dummy weights: random numbers from a seed. The shapes and so the work are the "
                         "model's; the answers are not language");
}

static void fact_simulated(const struct run_folder *run, struct km_buf *out)
{
    const char *device = rp_str(run, "target", "device");
    if (rp_flag(run, "target", "simulated") || !strncmp(device, "sim:", 4))
        km_buf_printf(out,
                      "Simulated device %s: steps cost what a roofline model says, on a virtual clock; nothing "
                      "was measured on that hardware",
                      device);
}

static void fact_text(const struct run_folder *run, struct km_buf *out)
{
    if (!strcmp(rp_str(run, "workload", "text"), "built-in text"))
        km_buf_puts(out, "The prompts are made of the built-in text, not of the workload's own text files");
}

static double option(const struct run_folder *run, const char *key)
{
    const cJSON *v = cJSON_GetObjectItemCaseSensitive(cJSON_GetObjectItemCaseSensitive(run->json, "options"),
                                                      key);
    return cJSON_IsNumber(v) ? v->valuedouble : 0;
}

static void fact_memory(const struct run_folder *run, struct km_buf *out)
{
    double limit = option(run, "gpu-memory-limit"), blocks = option(run, "num-gpu-blocks-override"),
           size = option(run, "block-size");
    if (limit > 0)
        km_buf_printf(out, "Device memory limited to %.4g GiB", limit / 1073741824);
    if (blocks > 0)
        km_buf_printf(out, "%s%.0f blocks of %.0f tokens (%.0f tokens of KV)",
                      out->len ? "; KV pool set to " : "KV pool set to ", blocks, size, blocks * size);
}

static void fact_count(const struct run_folder *run, struct km_buf *out)
{
    if (run->seed.by_usage)
        km_buf_puts(out, "Tokens are the server's count, chat template included: the client had no tokenizer");
}

/* One note for a fact that all runs share, or one a row. */
static void note_fact(const struct rp *r, struct rp_table *t, fact_fn fact)
{
    struct km_buf first = {0}, other = {0};
    bool same = true, any = false;
    const struct hz_suite_table *s = t->t;
    for (int pass = 0; pass < 2; pass++) {
        for (int row = 0; row < s->n_rows; row++)
            for (int arm = 0; arm < s->n_arms; arm++) {
                const struct run_folder *run = NULL;
                for (int k = 0; k < t->reps && !run; k++)
                    run = rp_run(r, t, row, arm, k);
                if (!run)
                    continue;
                km_buf_clear(&other);
                fact(run, &other);
                if (!pass && !any)
                    km_buf_puts(&first, km_buf_str(&other));
                same = same && !strcmp(km_buf_str(&first), km_buf_str(&other));
                any = true;
                if (pass && !same && other.len) {
                    rp_put_label(&t->notes, s, row, arm);
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
static void note_health(const struct rp *r, struct rp_table *t)
{
    int doubtful = 0, runs = 0;
    const char *why = "";
    for (int i = 0; i < t->t->n_rows * t->t->n_arms * t->reps; i++) {
        const struct run_folder *run = t->slot[i] >= 0 && r->runs[t->slot[i]].there ? &r->runs[t->slot[i]].run
                                                                                : NULL;
        if (!run)
            continue;
        runs++;
        if (strcmp(rp_str(run, "health", "verdict"), "doubtful"))
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
static void note_troubles(const struct rp *r, struct rp_table *t)
{
    const struct hz_suite_table *s = t->t;
    const char *sha = NULL, *binary = NULL;
    bool unlike = false, binaries = false;
    for (int row = 0; row < s->n_rows; row++)
        for (int arm = 0; arm < s->n_arms; arm++) {
            int missing = 0, failed = 0, asked = 0;
            const char *why = "";
            for (int k = 0; k < t->reps; k++) {
                const struct run_folder *run = rp_run(r, t, row, arm, k);
                int i = t->slot[(row * s->n_arms + arm) * t->reps + k];
                if (!run) {
                    missing += i >= 0;
                    why = i >= 0 ? r->runs[i].why : why;
                    continue;
                }
                failed += run->seed.requests_failed;
                asked += run->seed.requests_failed + run->seed.requests_ok;
                const char *w = rp_str(run, "workload", "sha256"),
                           *b = rp_str(run, "provenance", "binary_sha256");
                unlike = unlike || (sha && strcmp(sha, w));
                binaries = binaries || (binary && strcmp(binary, b));
                sha = w;
                binary = b;
            }
            if (missing) {
                rp_put_label(&t->notes, s, row, arm);
                km_buf_printf(&t->notes, ": %d of %d runs missing (%s).\n", missing, t->reps, why);
            }
            if (failed) {
                rp_put_label(&t->notes, s, row, arm);
                km_buf_printf(&t->notes, ": %d of %d requests FAILED and are in no latency.\n", failed, asked);
            }
        }
    if (unlike)
        km_buf_puts(&t->notes, "The runs did NOT all send the same requests: their workloads differ.\n");
    if (binaries)
        km_buf_puts(&t->notes, "Not all runs were made by the same build of the program.\n");
}

static void make_notes(const struct rp *r, struct rp_table *t)
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
static void make_headline(struct rp_table *t)
{
    if (!t->n_contrasts)
        return;
    const struct hz_suite_table *s = t->t;
    const struct rp_contrast *c = &t->contrasts[0]; /* the best of several, by the first figure */
    for (int i = 1; i < t->n_contrasts; i++) {
        const struct hz_delta *a = &c->cmp.deltas[0], *b = &t->contrasts[i].cmp.deltas[0];
        if (t->contrasts[i].cmp.n && isfinite(b->ratio) &&
            (!isfinite(a->ratio) || (b->ratio < a->ratio) == b->metric->lower_better))
            c = &t->contrasts[i];
    }
    struct km_buf *b = &t->headline;
    rp_put_label(b, s, c->row, c->arm);
    if (c->base_row == c->row)
        km_buf_printf(b, " against %s:", s->arms[c->base_arm].label);
    else
        km_buf_printf(b, " against %s:", s->rows[c->base_row].label);
    int said = 0;
    for (int i = 0; i < c->cmp.n; i++) {
        const struct hz_delta *d = &c->cmp.deltas[i];
        if (said == 2 || !isfinite(d->ratio))
            continue;
        km_buf_printf(b, "%s %s ", said++ ? ";" : "", d->metric->name);
        hz_put_change(b, 1, d->ratio);
        if (isfinite(d->lo)) {
            km_buf_puts(b, " (95% interval ");
            hz_put_change(b, 1, d->lo);
            km_buf_puts(b, " to ");
            hz_put_change(b, 1, d->hi);
            km_buf_puts(b, ")");
        }
        if (d->verdict == HZ_NOT_JUDGED)
            km_buf_puts(b, " (one run each, no interval)");
        else
            km_buf_printf(b, ", %s%s", hz_verdict_word(d->verdict), d->pairs == 1 ? " (on one pair)" : "");
    }
    km_buf_puts(b, said ? "." : " nothing to compare yet.");
}

int rp_make_tables(struct rp *r, struct km_err *err)
{
    for (int i = 0; i < r->suite->n_tables; i++) {
        struct rp_table *t = &r->tables[i];
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
