/* Which pictures a table gets, and their numbers. A table's rows keep their colours in all of them; the
 * baseline's is the first. */
#include "harness/report/report_data.h"

#include "base/file.h"
#include "base/mem.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_POINTS = 250 }; /* of a distribution's curve: beyond, its quantiles */

/* Values of one kind, growing. */
struct values {
    double *v;
    int n, cap;
};

static void add(struct values *l, double x, bool *oom)
{
    if (l->n == l->cap) {
        int cap = l->cap ? 2 * l->cap : 256;
        double *v = km_reallocarray(l->v, (size_t)cap, sizeof *v);
        if (!v) {
            *oom = true;
            return;
        }
        l->v = v;
        l->cap = cap;
    }
    l->v[l->n++] = x;
}

static int by_double(const void *x, const void *y)
{
    double a = *(const double *)x, b = *(const double *)y;
    return (a > b) - (a < b);
}

/* TTFTs of a place over all its runs, sorted; of one turn, or of all (turn < 0). */
static void ttfts(const struct report *r, const struct report_table *t, int row, int arm, int turn, struct values *out,
                  bool *oom)
{
    out->n = 0;
    for (int k = 0; k < t->reps; k++) {
        const struct hz_run *run = report_run_at(r, t, row, arm, k);
        for (int i = 0; run && i < run->trace.n; i++) {
            const struct hz_rec *rec = &run->trace.recs[i];
            double v = rec->ok && (turn < 0 || rec->turn == turn)
                           ? hz_metric_sample(HZ_TTFT, rec, run, r->suite->profile)
                           : NAN;
            if (isfinite(v))
                add(out, v, oom);
        }
    }
    if (out->n)
        qsort(out->v, (size_t)out->n, sizeof *out->v, by_double);
}

/* Rows in the order of their colours: the baseline first. */
static int row_order(const struct suite_table *s, int i)
{
    return s->base < 0 ? i : i == 0 ? s->base : i <= s->base ? i - 1 : i;
}

/* Series of a picture: places (row, arm), at most as many as there are colours. */
struct place {
    int row, arm;
};

static int places(const struct suite_table *s, struct place *out)
{
    int n = 0;
    for (int i = 0; i < s->n_rows; i++)
        for (int arm = 0; arm < s->n_arms && n < PLOT_MAX_SERIES; arm++)
            out[n++] = (struct place){row_order(s, i), arm};
    return n;
}

/* Draws p and puts it on the table's list. A picture that cannot be drawn is not an error of the report. */
static int finish(struct report *r, struct report_table *t, struct plot *p, struct km_buf *labels,
                  struct km_buf *caption, struct km_err *err)
{
    struct km_buf name = {0};
    struct km_err why = {0};
    char *dir = km_path(r->dir, "plots");
    struct report_plot *v = km_reallocarray(t->plots, (size_t)t->n_plots + 1, sizeof *v);
    int rc = dir && v ? 0 : km_fail(err, KM_ENOMEM, "out of memory making a report");
    if (v)
        t->plots = v;
    for (int i = 0; i < p->n; i++)
        p->series[i].label = km_buf_str(&labels[i]);
    km_buf_printf(&name, "%s-%s", t->t->id, p->script);
    p->name = km_buf_str(&name);
    if (!rc) {
        rc = plot_write(p, dir, &why);
        bool drawn = !rc;
        r->no_gnuplot |= rc == KM_ENOENT;
        if (rc == KM_ENOENT)
            rc = 0;
        else if (rc == KM_EIO && !drawn) {
            km_buf_printf(&t->notes, "A picture is missing: %s.\n", why.msg);
            rc = 0;
        } else if (rc) {
            rc = km_fail(err, rc, "%s", why.msg);
        }
        if (!rc) {
            t->plots[t->n_plots] = (struct report_plot){
                .name = km_buf_take(&name), .caption = km_buf_take(caption), .drawn = drawn};
            rc = t->plots[t->n_plots].name && t->plots[t->n_plots].caption
                     ? 0
                     : km_fail(err, KM_ENOMEM, "out of memory making a report");
            t->n_plots++;
        }
    }
    for (int i = 0; i < PLOT_MAX_SERIES; i++)
        km_buf_free(&labels[i]);
    km_buf_free(&name);
    km_buf_free(caption);
    km_free(dir);
    plot_free(p);
    return rc;
}

static int plot_cdf(struct report *r, struct report_table *t, struct km_err *err)
{
    struct plot p = {.script = "ttft-cdf"};
    struct km_buf labels[PLOT_MAX_SERIES] = {{0}}, caption = {0};
    struct place at[PLOT_MAX_SERIES];
    struct values v = {0};
    bool oom = false;
    p.n = places(t->t, at);
    km_buf_puts(
        &caption,
        "Time to first token, all runs together: the share of requests that had theirs by then. Requests: ");
    for (int s = 0; s < p.n; s++) {
        ttfts(r, t, at[s].row, at[s].arm, -1, &v, &oom);
        report_put_label(&labels[s], t->t, at[s].row, at[s].arm);
        km_buf_printf(&caption, "%s%s %d", s ? ", " : "", km_buf_str(&labels[s]), v.n);
        int points = v.n < MAX_POINTS ? v.n : MAX_POINTS;
        for (int i = 0; i < points; i++) {
            int k = (int)((int64_t)(i + 1) * v.n / points) - 1;
            km_buf_printf(&p.series[s].data, "%.6g %.6g\n", v.v[k], (double)(k + 1) / v.n);
        }
    }
    km_buf_puts(&caption, ".");
    km_free(v.v);
    p.series[0].data.oom |= oom;
    return finish(r, t, &p, labels, &caption, err);
}

static int plot_turns(struct report *r, struct report_table *t, int turns, struct km_err *err)
{
    struct plot p = {.script = "ttft-turn"};
    struct km_buf labels[PLOT_MAX_SERIES] = {{0}}, caption = {0};
    struct place at[PLOT_MAX_SERIES];
    struct values v = {0};
    bool oom = false;
    p.n = places(t->t, at);
    km_buf_puts(&caption, "Time to first token by turn: median, and the band from the 10th to the 90th "
                          "percentile. Requests in the first "
                          "and the last turn: ");
    for (int s = 0; s < p.n; s++) {
        int first = 0, last = 0;
        report_put_label(&labels[s], t->t, at[s].row, at[s].arm);
        for (int turn = 0; turn < turns; turn++) {
            ttfts(r, t, at[s].row, at[s].arm, turn, &v, &oom);
            if (!v.n)
                continue;
            first = turn ? first : v.n;
            last = v.n;
            km_buf_printf(&p.series[s].data, "%d %.6g %.6g %.6g\n", turn + 1, hz_percentile(v.v, v.n, 0.5),
                          hz_percentile(v.v, v.n, 0.1), hz_percentile(v.v, v.n, 0.9));
        }
        km_buf_printf(&caption, "%s%s %d and %d", s ? ", " : "", km_buf_str(&labels[s]), first, last);
    }
    km_buf_puts(&caption, ".");
    km_free(v.v);
    p.series[0].data.oom |= oom;
    return finish(r, t, &p, labels, &caption, err);
}

/* The figure that stands for the table: its first. */
static int plot_repeats(struct report *r, struct report_table *t, struct km_err *err)
{
    const struct suite_column *c = &t->t->cols[0];
    struct plot p = {.script = "repeats", .last = t->reps};
    struct km_buf labels[PLOT_MAX_SERIES] = {{0}}, caption = {0}, unit = {0};
    struct place at[PLOT_MAX_SERIES];
    p.n = places(t->t, at);
    km_buf_puts(&unit, c->metric->title);
    p.unit = km_buf_str(&unit);
    km_buf_printf(&caption, "%s of each run; the dashed line is the row's mean over %d runs.", c->metric->title,
                  t->reps);
    for (int s = 0; s < p.n; s++) {
        report_put_label(&labels[s], t->t, at[s].row, at[s].arm);
        for (int k = 0; k < t->reps; k++) {
            const struct hz_run *run = report_run_at(r, t, at[s].row, at[s].arm, k);
            double v = report_value(r, run, c->metric);
            if (isfinite(v))
                km_buf_printf(&p.series[s].data, "%d %.9g\n", k + 1, v);
        }
    }
    int rc = finish(r, t, &p, labels, &caption, err);
    km_buf_free(&unit);
    return rc;
}

/* Bars: a chunk size each, or a backend each with a bar an arm. */
static int plot_bars(struct report *r, struct report_table *t, struct km_err *err)
{
    const struct suite_table *s = t->t;
    const struct suite_column *c = &s->cols[0];
    struct plot p = {.script = "bars", .n = s->n_arms < PLOT_MAX_SERIES ? s->n_arms : PLOT_MAX_SERIES};
    struct km_buf labels[PLOT_MAX_SERIES] = {{0}}, caption = {0};
    p.unit = c->gain ? c->metric->title : c->title;
    km_buf_printf(&caption,
                  "%s, from zero: the mean over up to %d runs; the line spans the least and the greatest run.",
                  p.unit, t->reps);
    for (int arm = 0; arm < p.n; arm++) {
        km_buf_puts(&labels[arm], s->arms[arm].label ? s->arms[arm].label : p.unit);
        for (int i = 0; i < s->n_rows; i++) {
            double sum = 0, lo = INFINITY, hi = -INFINITY;
            int n = 0;
            for (int k = 0; k < t->reps; k++) {
                const struct hz_run *run = report_run_at(r, t, i, arm, k);
                double v = c->scale * report_value(r, run, c->metric);
                if (!isfinite(v))
                    continue;
                sum += v, n++;
                lo = fmin(lo, v);
                hi = fmax(hi, v);
            }
            struct km_buf *b = &p.series[arm].data;
            km_buf_putc(b, '"');
            for (const char *x = s->rows[i].label; *x; x++)
                km_buf_putc(b, *x == '"' || *x == '\\' || (unsigned char)*x < 0x20 ? ' ' : *x);
            if (n)
                km_buf_printf(b, "\" %.9g %.9g %.9g\n", sum / n, lo, hi);
            else
                km_buf_puts(b, "\" NaN NaN NaN\n");
        }
    }
    return finish(r, t, &p, labels, &caption, err);
}

int report_make_plots(struct report *r, struct km_err *err)
{
    char *dir = km_path(r->dir, "plots");
    int rc = dir ? km_mkdirs(dir, err) : km_fail(err, KM_ENOMEM, "out of memory making a report");
    km_free(dir);
    for (int i = 0; i < r->suite->n_tables && !rc; i++) {
        struct report_table *t = &r->tables[i];
        int turns = 0;
        for (int k = 0; k < t->t->n_rows * t->t->n_arms * t->reps; k++) {
            const struct report_run *run = t->slot[k] >= 0 ? &r->runs[t->slot[k]] : NULL;
            for (int q = 0; run && run->there && q < run->run.trace.n; q++) {
                int turn = run->run.trace.recs[q].turn;
                turns = turn >= turns && turn < 1000 ? turn + 1 : turns;
            }
        }
        if (!turns)
            continue;
        rc = plot_cdf(r, t, err);
        if (!rc && turns > 1)
            rc = plot_turns(r, t, turns, err);
        if (!rc && t->reps > 1)
            rc = plot_repeats(r, t, err);
        if (!rc && (t->t->shape == SUITE_CHUNKS || t->t->shape == SUITE_BACKENDS))
            rc = plot_bars(r, t, err);
    }
    return rc;
}
