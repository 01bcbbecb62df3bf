/* The write-up's tables: figures in, Markdown out, byte for byte as it prints them.
 *
 * A `table` is figures under titles, one row a configuration, in one of four shapes; a `table_grid` is the
 * table as text, ready to be written as Markdown, HTML or CSV. Changes are taken from the figures, never from
 * rounded cells; one decimal, sign always, ASCII minus, half away from zero. A figure that is not there prints
 * as "n/a". */
#ifndef TABLE_H
#define TABLE_H

#include "base/buf.h"
#include "base/err.h"

#include <stdbool.h>

enum suite_shape {
    SUITE_CONFIGURATIONS, /* | Configuration | Input TPS | ...: a row each, the change in the cell: 9426 (+61.2%) */
    SUITE_METRICS,        /* | Metric | Without | With | Change |: a line a figure */
    SUITE_CHUNKS,         /* as configurations, the baseline not shown, the change in a column of its own */
    SUITE_BACKENDS        /* two figures a row and how many times the second is smaller: 2.28x */
};

struct table_column {
    const char *title;
    int decimals;
    bool delta; /* the change against the baseline follows the figure */
    bool gain;  /* the change alone: "Performance Gain" */
};

struct table {
    enum suite_shape shape;
    const char *head; /* title of the first column */
    const struct table_column *cols;
    int n_cols;
    const char *const *labels; /* [n_rows] */
    int n_rows;
    int base;           /* the row that changes refer to; <0: none */
    const double *v;    /* [n_rows][n_cols]; NAN: not there */
    const bool *unsure; /* [n_rows][n_cols]: the change may be chance; NULL: nothing is known */
};

struct table_grid {
    int n_rows, n_cols; /* the head is row 0 */
    char **text;        /* [n_rows][n_cols], each owned; NULL reads as "" */
    bool *dim;          /* [n_rows][n_cols]: shown dimmed where that is possible */
    bool oom;           /* checked by the writers' callers through table_grid_ok */
};

int table_grid_new(struct table_grid *g, int n_rows, int n_cols, struct km_err *err);
void table_grid_set(struct table_grid *g, int row, int col, const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));
int table_grid_ok(const struct table_grid *g, struct km_err *err); /* KM_ENOMEM when a cell could not be stored */
void table_grid_free(struct table_grid *g);

int table_to_grid(struct table_grid *out, const struct table *t, struct km_err *err);

void table_grid_md(const struct table_grid *g, struct km_buf *out);
void table_grid_html(const struct table_grid *g, struct km_buf *out);
void table_grid_csv(const struct table_grid *g, struct km_buf *out);

/* v with so many decimals, half away from zero; "n/a" when it is not finite. */
void table_put_number(struct km_buf *out, double v, int decimals);
/* b against a: "+61.2%"; "n/a" when a is 0 or either is missing. */
void table_put_change(struct km_buf *out, double a, double b);

#endif
