/* The figures of each table as text, with two grids of explanation under it.
 *
 * The cells of a table are means (or medians) over all runs of a row. The evidence compares a row with the baseline:
 * its ratios rest on pairs of runs and on requests that both runs of a pair answered. The token counts say how many
 * prompt tokens had to be computed, which is where a cache layer saves time. */
#include "harness/report/report_steps.h"

#include "base/mem.h"
#include "base/sort.h"

#include <math.h>
#include <string.h>

enum { MAX_REPEATS = 1000, MAX_METRICS = 32 };

/* The mean or the median of a figure over the *n runs of a row and arm. NAN if one of the runs lacks the figure. */
static double average_over_runs(const struct report *r, const struct report_table *t, const struct hz_metric *m,
                                int row, int arm, int *n)
{
    double v[MAX_REPEATS], sum = 0;
    *n = 0;
    for (int k = 0; k < t->reps && k < MAX_REPEATS; k++) {
        const struct run_folder *run = report_run_at(r, t, row, arm, k);
        if (run)
            sum += v[(*n)++] = report_value(r, run, m);
    }
    if (!*n || isnan(sum) || !r->suite->median)
        return *n ? sum / *n : NAN;
    km_sort_doubles(v, (size_t)*n);
    return km_percentile(v, *n, 0.5);
}

/* The figures to compare: the figures whose change the table shows, or all figures of the table if it shows no change.
 * A figure that is neither better nor worse in one direction is left out. Returns their number. */
static int compared_metrics(const struct suite_table *t, const struct hz_metric **out)
{
    int n = 0;
    for (int pass = 0; pass < 2 && !n; pass++)
        for (int c = 0; c < t->n_cols && n < MAX_METRICS; c++) {
            const struct hz_metric *m = t->cols[c].metric;
            bool wanted = pass || t->cols[c].delta || t->cols[c].gain, seen = false;
            for (int i = 0; i < n; i++)
                seen = seen || out[i] == m;
            if (wanted && !seen && m->min_n)
                out[n++] = m;
        }
    return n;
}

/* Compares the runs of a contrast, pair by pair. *made is false when no pair has both of its runs. */
static int compare_contrast(const struct report *r, struct report_table *t, struct report_contrast *c, bool *made,
                            struct km_err *err)
{
    const struct hz_metric *metrics[MAX_METRICS];
    const struct run_folder *a[MAX_REPEATS], *b[MAX_REPEATS];
    struct compare_opts o = compare_defaults();
    int pairs = 0;
    for (int k = 0; k < t->reps && k < MAX_REPEATS; k++) {
        a[pairs] = report_run_at(r, t, c->base_row, c->base_arm, k);
        b[pairs] = report_run_at(r, t, c->row, c->arm, k);
        pairs += a[pairs] && b[pairs];
    }
    *made = pairs > 0;
    o.profile = r->suite->profile;
    o.median = r->suite->median;
    o.force = true; /* a note says when the workloads differ */
    o.metrics = metrics;
    o.n_metrics = compared_metrics(t->spec, metrics);
    return pairs ? compare_runs(&c->cmp, a, b, pairs, &o, err) : 0;
}

/* Corrects the verdicts of a table as one family, so that many figures do not make a chance finding more likely. */
static int judge_table(struct report_table *t, struct km_err *err)
{
    int n = 0;
    for (int i = 0; i < t->n_contrasts; i++)
        n += t->contrasts[i].cmp.n;
    struct compare_delta **family = km_calloc((size_t)n + 1, sizeof *family);
    if (!family)
        return report_no_memory(err);
    n = 0;
    for (int i = 0; i < t->n_contrasts; i++)
        for (int k = 0; k < t->contrasts[i].cmp.n; k++)
            family[n++] = &t->contrasts[i].cmp.deltas[k];
    compare_judge(family, n, compare_defaults().noise);
    km_free(family);
    return 0;
}

/* Compares every row with the baseline row. In a table of backends: the second arm of every row with the first arm. */
static int make_contrasts(const struct report *r, struct report_table *t, struct km_err *err)
{
    const struct suite_table *s = t->spec;
    bool arms = s->shape == SUITE_BACKENDS;
    t->contrasts = km_calloc((size_t)s->n_rows + 1, sizeof *t->contrasts);
    if (!t->contrasts)
        return report_no_memory(err);
    for (int row = 0; row < s->n_rows; row++) {
        struct report_contrast *c = &t->contrasts[t->n_contrasts];
        bool made;
        if (!arms && (s->base < 0 || row == s->base))
            continue;
        *c = (struct report_contrast){.row = row, .arm = arms, .base_row = arms ? row : s->base};
        int rc = compare_contrast(r, t, c, &made, err);
        if (rc)
            return rc;
        t->n_contrasts += made;
    }
    return judge_table(t, err);
}

/* Marks the changes that could not be told apart from noise. undecided: [n_rows][cols], all false before. */
static void mark_undecided(const struct report_table *t, int cols, bool *undecided)
{
    for (int k = 0; k < t->n_contrasts; k++) {
        const struct report_contrast *c = &t->contrasts[k];
        for (int i = 0; i < cols; i++) {
            const struct hz_metric *m = t->spec->cols[t->spec->shape == SUITE_BACKENDS ? 0 : i].metric;
            for (int d = 0; d < c->cmp.n; d++)
                if (c->cmp.deltas[d].metric == m)
                    undecided[c->row * cols + i] = c->cmp.deltas[d].verdict == COMPARE_NO_DIFFERENCE ||
                                                   c->cmp.deltas[d].verdict == COMPARE_UNDECIDED;
        }
    }
}

static int make_grid(const struct report *r, struct report_table *t, struct km_err *err)
{
    const struct suite_table *s = t->spec;
    bool arms = s->shape == SUITE_BACKENDS; /* the columns are the arms, all with the one figure of the table */
    int cols = arms ? s->n_arms : s->n_cols, ignored;
    size_t n = (size_t)s->n_rows * (size_t)cols;
    double *v = km_calloc(n, sizeof *v);
    bool *undecided = km_calloc(n, sizeof *undecided);
    const char **labels = km_calloc((size_t)s->n_rows, sizeof *labels);
    struct table_column *col = km_calloc((size_t)cols, sizeof *col);
    int rc = v && undecided && labels && col ? 0 : report_no_memory(err);
    if (!rc) {
        for (int i = 0; i < cols; i++) {
            const struct suite_column *c = &s->cols[arms ? 0 : i];
            col[i] = (struct table_column){arms ? s->arms[i].label : c->title, c->decimals, c->delta, c->gain};
            for (int row = 0; row < s->n_rows; row++)
                v[row * cols + i] = c->scale * average_over_runs(r, t, c->metric, row, arms ? i : 0, &ignored);
        }
        for (int row = 0; row < s->n_rows; row++)
            labels[row] = s->rows[row].label;
        mark_undecided(t, cols, undecided);
        struct table table = {s->shape, s->head, col, cols, labels, s->n_rows, s->base, v, undecided};
        rc = table_to_grid(&t->grid, &table, err);
    }
    km_free(v);
    km_free(undecided);
    km_free(labels);
    km_free(col);
    return rc;
}

/* The decimals with which the table shows a figure; the figure's own decimals if the table scales it. */
static int decimals_of(const struct suite_table *s, const struct hz_metric *m)
{
    for (int c = 0; c < s->n_cols; c++)
        if (s->cols[c].metric == m && !s->cols[c].gain && s->cols[c].scale == 1)
            return s->cols[c].decimals;
    return m->decimals;
}

/* Sets a cell to the smallest and the largest run of a side, "229..241"; to one number if there is one run. */
static void set_spread(struct table_grid *g, int row, int col, double lo, double hi, int runs, int decimals)
{
    struct km_buf b = {0};
    table_put_number(&b, lo, decimals);
    if (runs > 1) {
        km_buf_puts(&b, "..");
        table_put_number(&b, hi, decimals);
    }
    table_grid_set(g, row, col, "%s", km_buf_str(&b));
    g->oom |= b.oom;
    km_buf_free(&b);
}

static void set_number(struct table_grid *g, int row, int col, double v, int decimals, const char *unit)
{
    struct km_buf b = {0};
    table_put_number(&b, v, decimals);
    table_grid_set(g, row, col, "%s%s", km_buf_str(&b), isfinite(v) ? unit : "");
    g->oom |= b.oom;
    km_buf_free(&b);
}

static void set_evidence(struct table_grid *g, int at, const struct suite_table *s, const struct report_contrast *c,
                         const struct compare_delta *d)
{
    int decimals = decimals_of(s, d->metric);
    struct km_buf b = {0};
    table_grid_set(g, at, 0, "%s", s->rows[c->row].label);
    table_grid_set(g, at, 1, "%s", d->metric->title);
    set_number(g, at, 2, d->ratio, 3, "");
    compare_put_interval(&b, d->lo, d->hi);
    table_grid_set(g, at, 3, "%s", km_buf_str(&b));
    table_grid_set(g, at, 4, "%d", d->pairs);
    table_grid_set(g, at, 5, "%d", d->requests);
    set_spread(g, at, 6, d->a_min, d->a_max, c->cmp.pairs, decimals);
    set_spread(g, at, 7, d->b_min, d->b_max, c->cmp.pairs, decimals);
    km_buf_clear(&b);
    compare_put_verdict(&b, d);
    table_grid_set(g, at, 8, "%s", km_buf_str(&b));
    g->oom |= b.oom;
    km_buf_free(&b);
}

static void put_evidence_caption(struct km_buf *out, const struct suite_table *s)
{
    if (s->shape == SUITE_BACKENDS)
        km_buf_printf(out, "A ratio is %s divided by %s", s->arms[1].label, s->arms[0].label);
    else
        km_buf_printf(out, "A ratio is the row divided by the baseline (%s)",
                      s->base < 0 ? "none" : s->rows[s->base].label);
    km_buf_puts(out, ", on the requests that both answered. The interval is the 95% confidence interval of the ratio. "
                     "The verdicts are corrected for the number of figures in this table (Holm).");
}

static int make_evidence(struct report_table *t, struct km_err *err)
{
    const struct suite_table *s = t->spec;
    bool arms = s->shape == SUITE_BACKENDS;
    const char *const head[] = {s->shape == SUITE_METRICS ? "Configuration" : s->head,
                                "Figure",
                                "Ratio",
                                "95% interval",
                                "Pairs",
                                "Requests",
                                arms ? s->arms[0].label : "Baseline",
                                arms ? s->arms[1].label : "This row",
                                "Verdict"};
    enum { COLS = sizeof head / sizeof *head };
    int rows = 1, at = 1;
    put_evidence_caption(&t->evidence_caption, s);
    for (int i = 0; i < t->n_contrasts; i++)
        rows += t->contrasts[i].cmp.n;
    int rc = table_grid_new(&t->evidence, rows, COLS, err);
    if (rc)
        return rc;
    for (int i = 0; i < COLS; i++)
        table_grid_set(&t->evidence, 0, i, i == 6 || i == 7 ? "%s, all runs" : "%s", head[i]);
    for (int i = 0; i < t->n_contrasts; i++)
        for (int k = 0; k < t->contrasts[i].cmp.n; k++)
            set_evidence(&t->evidence, at++, s, &t->contrasts[i], &t->contrasts[i].cmp.deltas[k]);
    t->evidence.oom |= t->evidence_caption.oom;
    return table_grid_ok(&t->evidence, err);
}

/* The columns of the token grid after the label, and their decimals. */
static const struct {
    const char *title;
    int decimals;
} token_columns[] = {
    {"Runs", 0},     {"Requests", 0}, {"Failed", 0},     {"Prompt tokens", 0}, {"Cached tokens", 0},
    {"Computed", 0}, {"Hit rate", 1}, {"Mean input", 1}, {"Mean output", 1},
};
enum { TOKEN_COLUMNS = sizeof token_columns / sizeof *token_columns, TOKEN_HIT_RATE = 6 };

/* The means over the runs of a row and arm, in the order of token_columns. */
static void token_figures(const struct report *r, const struct report_table *t, int row, int arm,
                          double v[TOKEN_COLUMNS])
{
    static const char *const keys[] = {"prompt_tokens", "cached_tokens", "hit_rate", "mean_input", "mean_output"};
    enum { PROMPT, CACHED, HIT_RATE, MEAN_INPUT, MEAN_OUTPUT, KEYS };
    double mean[KEYS], ok = 0, failed = 0;
    int n = 0;
    for (int i = 0; i < KEYS; i++)
        mean[i] = average_over_runs(r, t, hz_metric_find(keys[i], NULL), row, arm, &n);
    for (int k = 0; k < t->reps; k++) {
        const struct run_folder *run = report_run_at(r, t, row, arm, k);
        ok += run ? run->seed.requests_ok : 0;
        failed += run ? run->seed.requests_failed : 0;
    }
    const double figures[TOKEN_COLUMNS] = {
        n,
        n ? ok / n : NAN,
        n ? failed / n : NAN,
        mean[PROMPT],
        mean[CACHED],
        mean[PROMPT] - mean[CACHED],
        100 * mean[HIT_RATE],
        mean[MEAN_INPUT],
        mean[MEAN_OUTPUT],
    };
    memcpy(v, figures, sizeof figures);
}

static int make_tokens(const struct report *r, struct report_table *t, struct km_err *err)
{
    const struct suite_table *s = t->spec;
    struct table_grid *g = &t->tokens;
    struct km_buf label = {0};
    int rc = table_grid_new(g, 1 + s->n_rows * s->n_arms, 1 + TOKEN_COLUMNS, err);
    if (rc)
        return rc;
    table_grid_set(g, 0, 0, "%s", s->shape == SUITE_METRICS ? "Configuration" : s->head);
    for (int c = 0; c < TOKEN_COLUMNS; c++)
        table_grid_set(g, 0, c + 1, "%s", token_columns[c].title);
    for (int i = 0; i < s->n_rows * s->n_arms; i++) {
        double v[TOKEN_COLUMNS];
        token_figures(r, t, i / s->n_arms, i % s->n_arms, v);
        km_buf_clear(&label);
        report_put_label(&label, s, i / s->n_arms, i % s->n_arms);
        table_grid_set(g, i + 1, 0, "%s", km_buf_str(&label));
        for (int c = 0; c < TOKEN_COLUMNS; c++)
            set_number(g, i + 1, c + 1, v[c], token_columns[c].decimals, c == TOKEN_HIT_RATE ? "%" : "");
    }
    g->oom |= label.oom;
    km_buf_free(&label);
    return table_grid_ok(g, err);
}

int report_make_tables(struct report *r, struct km_err *err)
{
    int rc = 0;
    for (int i = 0; i < r->suite->n_tables && !rc; i++) {
        struct report_table *t = &r->tables[i];
        if (!t->reps) /* no run of the table was planned */
            continue;
        if (!(rc = make_contrasts(r, t, err)) && !(rc = make_grid(r, t, err)) && !(rc = make_evidence(t, err)))
            rc = make_tokens(r, t, err);
    }
    return rc;
}
