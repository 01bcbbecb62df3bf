/* The plots of a table. To add one, put a gnuplot script into plots/ and a row into `kinds` at the end of this file.
 *
 * A plot has a series per row and arm of its table, at most as many as there are colours. A row has the same colour in
 * all plots of a table; the baseline has the first one. */
#include "harness/report/report_steps.h"

#include "base/file.h"
#include "base/mem.h"
#include "base/sort.h"
#include "harness/report/plot.h"

#include <math.h>

enum { MAX_POINTS = 250, MAX_TURNS = 1000 };

/* Requirements of a kind of plot on its table. Every kind needs answered requests. */
enum {
    NEEDS_TURNS = 1,   /* conversations with more than one turn */
    NEEDS_REPEATS = 2, /* more than one run per row */
    NEEDS_SWEEP = 4    /* rows that are chunk sizes or backends */
};

struct drawing;

struct kind {
    const char *name;      /* the files are plots/TABLE-NAME.* */
    const char *script;    /* file name in plots/ */
    const char *title;     /* first sentence of the caption */
    int needs;             /* NEEDS_... */
    enum hz_sample sample; /* the value that the plot takes from each request; HZ_PER_RUN: none */
    void (*fill)(struct drawing *d);
};

/* One plot while its data is made. fill() sets the series and appends its explanation to the caption. */
struct drawing {
    const struct report *r;
    const struct report_table *t;
    const struct kind *kind;
    int turns; /* turns of the longest conversation */
    struct plot plot;
    struct km_buf caption;
};

/* A growing array of numbers. */
struct values {
    double *v; /* [n] */
    int n, cap;
    bool oom;
};

static void add_value(struct values *l, double x)
{
    if (l->n == l->cap) {
        int cap = l->cap ? 2 * l->cap : 256;
        double *v = km_reallocarray(l->v, (size_t)cap, sizeof *v);
        if (!v) {
            l->oom = true;
            return;
        }
        l->v = v;
        l->cap = cap;
    }
    l->v[l->n++] = x;
}

/* The row and arm of a series. The baseline row comes first. */
static void place_of(const struct suite_table *s, int series, int *row, int *arm)
{
    int i = series / s->n_arms;
    *arm = series % s->n_arms;
    *row = s->base < 0 ? i : i == 0 ? s->base : i <= s->base ? i - 1 : i;
}

/* A series for each row and arm, with its label. */
static void add_series(struct drawing *d)
{
    const struct suite_table *s = d->t->spec;
    int places = s->n_rows * s->n_arms, row, arm;
    d->plot.n = places < PLOT_MAX_SERIES ? places : PLOT_MAX_SERIES;
    for (int i = 0; i < d->plot.n; i++) {
        place_of(s, i, &row, &arm);
        report_put_label(&d->plot.series[i].label, s, row, arm);
    }
}

/* Collects the values of a series' requests over all its runs, sorted: of one turn, or of all turns if turn < 0. */
static void collect_values(const struct drawing *d, int series, int turn, struct values *out)
{
    int row, arm;
    place_of(d->t->spec, series, &row, &arm);
    out->n = 0;
    for (int k = 0; k < d->t->reps; k++) {
        const struct run_folder *run = report_run_at(d->r, d->t, row, arm, k);
        for (int i = 0; run && i < run->trace.n; i++) {
            const struct hz_rec *rec = &run->trace.recs[i];
            if (!rec->ok || (turn >= 0 && rec->turn != turn))
                continue;
            double v = run_folder_sample(run, rec, d->kind->sample, d->r->suite->profile);
            if (isfinite(v))
                add_value(out, v);
        }
    }
    if (out->n)
        km_sort_doubles(out->v, (size_t)out->n);
}

/* Lines "value share": the cumulative distribution, thinned to MAX_POINTS quantiles. */
static void fill_cdf(struct drawing *d)
{
    struct values v = {0};
    add_series(d);
    km_buf_puts(&d->caption,
                "A curve shows the share of requests that took at most this time, over all runs of its row. "
                "Requests: ");
    for (int s = 0; s < d->plot.n; s++) {
        struct plot_series *series = &d->plot.series[s];
        collect_values(d, s, -1, &v);
        km_buf_printf(&d->caption, "%s%s: %d", s ? ", " : "", km_buf_str(&series->label), v.n);
        int points = v.n < MAX_POINTS ? v.n : MAX_POINTS;
        for (int i = 0; i < points; i++) {
            int k = (int)((int64_t)(i + 1) * v.n / points) - 1;
            km_buf_printf(&series->data, "%.6g %.6g\n", v.v[k], (double)(k + 1) / v.n);
        }
        series->data.oom |= v.oom;
    }
    km_buf_puts(&d->caption, ".");
    km_free(v.v);
}

/* Lines "turn median p10 p90". */
static void fill_turns(struct drawing *d)
{
    struct values v = {0};
    add_series(d);
    km_buf_puts(&d->caption, "The line is the median over the requests of all runs of a row. The band reaches from the "
                             "10th to the 90th percentile. Requests in the first and in the last turn: ");
    for (int s = 0; s < d->plot.n; s++) {
        struct plot_series *series = &d->plot.series[s];
        int first = 0, last = 0;
        for (int turn = 0; turn < d->turns; turn++) {
            collect_values(d, s, turn, &v);
            if (!v.n)
                continue;
            first = turn ? first : v.n;
            last = v.n;
            km_buf_printf(&series->data, "%d %.6g %.6g %.6g\n", turn + 1, km_percentile(v.v, v.n, 0.5),
                          km_percentile(v.v, v.n, 0.1), km_percentile(v.v, v.n, 0.9));
        }
        km_buf_printf(&d->caption, "%s%s: %d and %d", s ? ", " : "", km_buf_str(&series->label), first, last);
        series->data.oom |= v.oom;
    }
    km_buf_puts(&d->caption, ".");
    km_free(v.v);
}

/* Lines "repeat figure", for the first column of the table. */
static void fill_repeats(struct drawing *d)
{
    const struct hz_metric *m = d->t->spec->cols[0].metric;
    add_series(d);
    d->plot.unit = m->title;
    d->plot.last = d->t->reps;
    km_buf_printf(&d->caption, "A point is the %s of one run. The dashed line is the mean over the %d runs of a row.",
                  m->title, d->t->reps);
    for (int s = 0; s < d->plot.n; s++) {
        int row, arm;
        place_of(d->t->spec, s, &row, &arm);
        for (int k = 0; k < d->t->reps; k++) {
            double v = report_value(d->r, report_run_at(d->r, d->t, row, arm, k), m);
            if (isfinite(v))
                km_buf_printf(&d->plot.series[s].data, "%d %.9g\n", k + 1, v);
        }
    }
}

/* Appends the line of one bar: "name" mean smallest largest. */
static void put_bar(struct drawing *d, int row, int arm, struct km_buf *out)
{
    const struct suite_column *c = &d->t->spec->cols[0];
    double sum = 0, lo = INFINITY, hi = -INFINITY;
    int n = 0;
    for (int k = 0; k < d->t->reps; k++) {
        double v = c->scale * report_value(d->r, report_run_at(d->r, d->t, row, arm, k), c->metric);
        if (!isfinite(v))
            continue;
        sum += v, n++;
        lo = fmin(lo, v);
        hi = fmax(hi, v);
    }
    km_buf_putc(out, '"');
    for (const char *x = d->t->spec->rows[row].label; *x; x++)
        km_buf_putc(out, *x == '"' || *x == '\\' || (unsigned char)*x < 0x20 ? ' ' : *x);
    if (n)
        km_buf_printf(out, "\" %.9g %.9g %.9g\n", sum / n, lo, hi);
    else
        km_buf_puts(out, "\" NaN NaN NaN\n");
}

/* A series per arm with a bar per row, for the first column of the table. */
static void fill_bars(struct drawing *d)
{
    const struct suite_table *s = d->t->spec;
    const struct suite_column *c = &s->cols[0];
    d->plot.n = s->n_arms < PLOT_MAX_SERIES ? s->n_arms : PLOT_MAX_SERIES;
    d->plot.unit = c->gain ? c->metric->title : c->title;
    km_buf_printf(&d->caption,
                  "A bar is the mean %s over up to %d runs, on an axis that begins at 0. The line on it spans the "
                  "smallest and the largest run.",
                  d->plot.unit, d->t->reps);
    for (int arm = 0; arm < d->plot.n; arm++) {
        km_buf_puts(&d->plot.series[arm].label, s->arms[arm].label ? s->arms[arm].label : d->plot.unit);
        for (int row = 0; row < s->n_rows; row++)
            put_bar(d, row, arm, &d->plot.series[arm].data);
    }
}

static const struct kind kinds[] = {
    {"ttft-cdf", "ttft-cdf.gp", "TTFT of all requests.", 0, HZ_TTFT, fill_cdf},
    {"ttft-turn", "ttft-turn.gp", "TTFT by turn of the conversation.", NEEDS_TURNS, HZ_TTFT, fill_turns},
    {"repeats", "repeats.gp", "The runs of each row.", NEEDS_REPEATS, HZ_PER_RUN, fill_repeats},
    {"bars", "bars.gp", "The rows side by side.", NEEDS_SWEEP, HZ_PER_RUN, fill_bars},
};

/* The number of turns of the longest conversation; 0 if the table has no request. */
static int count_turns(const struct report *r, const struct report_table *t)
{
    int turns = 0;
    for (int k = 0; k < t->spec->n_rows * t->spec->n_arms * t->reps; k++) {
        const struct report_run *run = t->slot[k] >= 0 ? &r->runs[t->slot[k]] : NULL;
        for (int i = 0; run && run->loaded && i < run->run.trace.n; i++) {
            int turn = run->run.trace.recs[i].turn;
            turns = turn >= turns && turn < MAX_TURNS ? turn + 1 : turns;
        }
    }
    return turns;
}

/* Adds a plot to the list of its table, which becomes the owner of name and caption, also after an error. */
static int list_plot(struct report_table *t, char *name, char *caption, bool drawn, struct km_err *err)
{
    struct report_plot *v = name && caption ? km_reallocarray(t->plots, (size_t)t->n_plots + 1, sizeof *v) : NULL;
    if (!v) {
        km_free(name);
        km_free(caption);
        return report_no_memory(err);
    }
    t->plots = v;
    t->plots[t->n_plots++] = (struct report_plot){name, caption, drawn};
    return 0;
}

/* Makes one plot. A picture that gnuplot cannot draw is a warning in the report, not an error. */
static int make_plot(struct report *r, struct report_table *t, const struct kind *kind, int turns, const char *dir,
                     struct km_err *err)
{
    struct drawing d = {.r = r, .t = t, .kind = kind, .turns = turns, .plot = {.script = kind->script}};
    struct km_err why = {0};
    km_buf_printf(&d.plot.name, "%s-%s", t->spec->id, kind->name);
    km_buf_printf(&d.caption, "%s ", kind->title);
    kind->fill(&d);
    int rc = plot_write(&d.plot, dir, &why);
    bool drawn = !rc;
    if (rc == KM_ENOENT)
        r->no_gnuplot = true;
    else if (rc == KM_EIO)
        km_buf_printf(&t->warnings, "A picture is missing: %s.\n", why.msg);
    else if (rc)
        rc = km_fail(err, rc, "%s", why.msg);
    if (!rc || rc == KM_ENOENT || rc == KM_EIO)
        rc = list_plot(t, km_buf_take(&d.plot.name), km_buf_take(&d.caption), drawn, err);
    km_buf_free(&d.caption);
    plot_deinit(&d.plot);
    return rc;
}

int report_make_plots(struct report *r, struct km_err *err)
{
    char *dir = km_path(r->dir, "plots");
    int rc = dir ? km_mkdirs(dir, err) : report_no_memory(err);
    for (int i = 0; i < r->suite->n_tables && !rc; i++) {
        struct report_table *t = &r->tables[i];
        int turns = count_turns(r, t), has = 0;
        has |= turns > 1 ? NEEDS_TURNS : 0;
        has |= t->reps > 1 ? NEEDS_REPEATS : 0;
        has |= t->spec->shape == SUITE_CHUNKS || t->spec->shape == SUITE_BACKENDS ? NEEDS_SWEEP : 0;
        for (size_t k = 0; k < sizeof kinds / sizeof *kinds && turns && !rc; k++)
            if ((kinds[k].needs & ~has) == 0)
                rc = make_plot(r, t, &kinds[k], turns, dir, err);
    }
    km_free(dir);
    return rc;
}
