/* Makes a grid of text from a table of any shape, and Markdown, HTML and CSV from a grid. */
#include "harness/report/table.h"

#include "base/mem.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

/* Rounds half away from zero, as if v were the decimal number that people see. printf would round the binary value,
 * half to even. A double beyond 2^53 has no decimals to round. */
static double round_to(double v, int decimals)
{
    double scale = pow(10, decimals), s = v * scale;
    return fabs(s) < 0x1p53 ? round(s) / scale : v;
}

void table_put_number(struct km_buf *out, double v, int decimals)
{
    if (!isfinite(v)) {
        km_buf_puts(out, "n/a");
        return;
    }
    v = round_to(v, decimals);
    km_buf_printf(out, "%.*f", decimals, v == 0 ? 0.0 : v);
}

void table_put_change(struct km_buf *out, double a, double b)
{
    double change = round_to(100 * (b - a) / a, 1);
    if (!isfinite(change) || a == 0)
        km_buf_puts(out, "n/a");
    else
        km_buf_printf(out, "%+.1f%%", change == 0 ? 0.0 : change);
}

int table_grid_new(struct table_grid *g, int n_rows, int n_cols, struct km_err *err)
{
    *g = (struct table_grid){.n_rows = n_rows, .n_cols = n_cols};
    size_t n = (size_t)n_rows * (size_t)n_cols;
    g->text = km_calloc(n, sizeof *g->text);
    g->dim = km_calloc(n, sizeof *g->dim);
    if (g->text && g->dim)
        return 0;
    table_grid_free(g);
    return km_fail(err, KM_ENOMEM, "out of memory for a table of %d rows", n_rows);
}

void table_grid_free(struct table_grid *g)
{
    for (int i = 0; g->text && i < g->n_rows * g->n_cols; i++)
        km_free(g->text[i]);
    km_free(g->text);
    km_free(g->dim);
    *g = (struct table_grid){0};
}

/* Moves the text of b into a cell; b is empty afterwards. */
static void set_cell(struct table_grid *g, int row, int col, struct km_buf *b)
{
    char **cell = &g->text[row * g->n_cols + col];
    km_free(*cell);
    *cell = b->data || b->oom ? km_buf_take(b) : km_strdup("");
    if (!*cell)
        g->oom = true;
}

void table_grid_set(struct table_grid *g, int row, int col, const char *fmt, ...)
{
    struct km_buf b = {0};
    va_list ap;
    va_start(ap, fmt);
    km_buf_vprintf(&b, fmt, ap);
    va_end(ap);
    set_cell(g, row, col, &b);
}

int table_grid_ok(const struct table_grid *g, struct km_err *err)
{
    return g->oom ? km_fail(err, KM_ENOMEM, "out of memory for a table of %d rows", g->n_rows) : 0;
}

/* Sets a cell to a figure, followed by its change against the baseline row if the column shows the change. */
static void put_cell(struct table_grid *g, const struct table *t, int row, int col, int to_row, int to_col)
{
    const struct table_column *c = &t->cols[col];
    double v = t->v[row * t->n_cols + col];
    bool compared = t->base >= 0 && row != t->base;
    double base = compared ? t->v[t->base * t->n_cols + col] : NAN;
    struct km_buf b = {0};
    if (c->gain) {
        table_put_change(&b, base, v);
    } else {
        table_put_number(&b, v, c->decimals);
        if (c->delta && compared && isfinite(v) && isfinite(base) && base != 0) {
            km_buf_puts(&b, " (");
            table_put_change(&b, base, v);
            km_buf_puts(&b, ")");
        }
    }
    set_cell(g, to_row, to_col, &b);
    g->dim[to_row * g->n_cols + to_col] =
        (c->delta || c->gain) && compared && t->undecided && t->undecided[row * t->n_cols + col];
}

static int grid_rows(struct table_grid *g, const struct table *t, struct km_err *err)
{
    bool skip_base = t->shape == SUITE_CHUNKS && t->base >= 0;
    int rc = table_grid_new(g, 1 + t->n_rows - skip_base, 1 + t->n_cols, err);
    if (rc)
        return rc;
    table_grid_set(g, 0, 0, "%s", t->head);
    for (int c = 0; c < t->n_cols; c++)
        table_grid_set(g, 0, c + 1, "%s", t->cols[c].title);
    for (int r = 0, to = 1; r < t->n_rows; r++) {
        if (skip_base && r == t->base)
            continue;
        table_grid_set(g, to, 0, "%s", t->labels[r]);
        for (int c = 0; c < t->n_cols; c++)
            put_cell(g, t, r, c, to, c + 1);
        to++;
    }
    return 0;
}

/* Makes one line per figure. There is a column "Change" if exactly two configurations are compared. */
static int grid_metrics(struct table_grid *g, const struct table *t, struct km_err *err)
{
    bool change = t->n_rows == 2 && t->base >= 0;
    int other = t->base == 0;
    int rc = table_grid_new(g, 1 + t->n_cols, 1 + t->n_rows + change, err);
    if (rc)
        return rc;
    table_grid_set(g, 0, 0, "%s", t->head);
    for (int r = 0; r < t->n_rows; r++)
        table_grid_set(g, 0, r + 1, "%s", t->labels[r]);
    if (change)
        table_grid_set(g, 0, t->n_rows + 1, "Change");
    for (int c = 0; c < t->n_cols; c++) {
        struct km_buf b = {0};
        table_grid_set(g, c + 1, 0, "%s", t->cols[c].title);
        for (int r = 0; r < t->n_rows; r++) {
            table_put_number(&b, t->v[r * t->n_cols + c], t->cols[c].decimals);
            set_cell(g, c + 1, r + 1, &b);
        }
        if (!change)
            continue;
        table_put_change(&b, t->v[t->base * t->n_cols + c], t->v[other * t->n_cols + c]);
        set_cell(g, c + 1, t->n_rows + 1, &b);
        g->dim[(c + 1) * g->n_cols + t->n_rows + 1] = t->undecided && t->undecided[other * t->n_cols + c];
    }
    return 0;
}

static int grid_backends(struct table_grid *g, const struct table *t, struct km_err *err)
{
    int rc = table_grid_new(g, 1 + t->n_rows, 2 + t->n_cols, err);
    if (rc)
        return rc;
    table_grid_set(g, 0, 0, "%s", t->head);
    for (int c = 0; c < t->n_cols; c++)
        table_grid_set(g, 0, c + 1, "%s", t->cols[c].title);
    table_grid_set(g, 0, t->n_cols + 1, "Boost");
    for (int r = 0; r < t->n_rows; r++) {
        const double *v = t->v + (size_t)r * (size_t)t->n_cols;
        struct km_buf b = {0};
        table_grid_set(g, r + 1, 0, "%s", t->labels[r]);
        for (int c = 0; c < t->n_cols; c++)
            put_cell(g, t, r, c, r + 1, c + 1);
        double boost = t->n_cols > 1 ? v[0] / v[1] : NAN;
        table_put_number(&b, boost, 2);
        if (isfinite(boost))
            km_buf_putc(&b, 'x');
        set_cell(g, r + 1, t->n_cols + 1, &b);
        g->dim[(r + 1) * g->n_cols + t->n_cols + 1] = t->n_cols > 1 && t->undecided && t->undecided[r * t->n_cols + 1];
    }
    return 0;
}

int table_to_grid(struct table_grid *out, const struct table *t, struct km_err *err)
{
    *out = (struct table_grid){0};
    int rc = t->shape == SUITE_METRICS    ? grid_metrics(out, t, err)
             : t->shape == SUITE_BACKENDS ? grid_backends(out, t, err)
                                          : grid_rows(out, t, err);
    if (!rc && (rc = table_grid_ok(out, err)))
        table_grid_free(out);
    return rc;
}

static const char *cell(const struct table_grid *g, int row, int col)
{
    const char *s = g->text[row * g->n_cols + col];
    return s ? s : "";
}

void table_grid_md(const struct table_grid *g, struct km_buf *out)
{
    for (int r = 0; r < g->n_rows; r++) {
        for (int c = 0; c < g->n_cols; c++) {
            km_buf_puts(out, c ? " " : "| ");
            for (const char *s = cell(g, r, c); *s; s++) { /* a line break or | would end the cell */
                if (*s == '|')
                    km_buf_putc(out, '\\');
                km_buf_putc(out, *s == '\n' || *s == '\r' ? ' ' : *s);
            }
            km_buf_puts(out, " |");
        }
        km_buf_putc(out, '\n');
        for (int c = 0; !r && c < g->n_cols; c++)
            km_buf_puts(out, c ? "---|" : "|---|");
        if (!r)
            km_buf_putc(out, '\n');
    }
}

void table_grid_html(const struct table_grid *g, struct km_buf *out)
{
    km_buf_puts(out, "<div class=\"scroll\"><table class=\"grid\">\n");
    for (int r = 0; r < g->n_rows; r++) {
        km_buf_puts(out, r ? "<tr>" : "<thead><tr>");
        for (int c = 0; c < g->n_cols; c++) {
            const char *s = cell(g, r, c), *tag = !r || !c ? "th" : "td";
            km_buf_printf(out, "<%s%s%s>", tag,
                          !r   ? " scope=\"col\""
                          : !c ? " scope=\"row\""
                               : "",
                          g->dim[r * g->n_cols + c] ? " class=\"dim\"" : "");
            km_buf_put_html(out, s, strlen(s));
            km_buf_printf(out, "</%s>", tag);
        }
        km_buf_puts(out, r ? "</tr>\n" : "</tr></thead>\n<tbody>\n");
    }
    km_buf_puts(out, "</tbody></table></div>\n");
}

void table_grid_csv(const struct table_grid *g, struct km_buf *out)
{
    for (int r = 0; r < g->n_rows; r++)
        for (int c = 0; c < g->n_cols; c++) {
            const char *s = cell(g, r, c);
            bool quote = strpbrk(s, ",\"\r\n") != NULL;
            if (c)
                km_buf_putc(out, ',');
            if (quote)
                km_buf_putc(out, '"');
            for (; *s; s++)
                km_buf_printf(out, *s == '"' ? "\"\"" : "%c", *s);
            km_buf_puts(out, quote ? "\"" : "");
            if (c == g->n_cols - 1)
                km_buf_putc(out, '\n');
        }
}
