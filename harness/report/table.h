/* Tables as the write-up prints them: figures in, Markdown, HTML or CSV out.
 *
 * A `table` holds figures under titles, one row per configuration, in one of the four shapes of a suite. A `table_grid`
 * holds the same table as text, cell by cell. The caller owns both.
 *
 * A change is computed from the figures, not from rounded cells. It has one decimal and a sign (an ASCII minus), and is
 * rounded half away from zero. A missing figure (NAN) is shown as "n/a". */
#ifndef TABLE_H
#define TABLE_H

#include "base/buf.h"
#include "base/err.h"
#include "harness/suite/suite.h"

#include <stdbool.h>

struct table_column {
    const char *title;
    int decimals;
    bool delta; /* the change against the baseline follows the figure */
    bool gain;  /* the column shows only the change */
};

struct table {
    enum suite_shape shape;
    const char *head;                /* title of the first column */
    const struct table_column *cols; /* [n_cols] */
    int n_cols;
    const char *const *labels; /* [n_rows] */
    int n_rows;
    int base;              /* index of the baseline row; negative: there is none */
    const double *v;       /* [n_rows][n_cols] figures; NAN: missing */
    const bool *undecided; /* [n_rows][n_cols] the change could not be told apart from noise; NULL: no verdicts */
};

struct table_grid {
    int n_rows, n_cols; /* row 0 holds the titles */
    char **text;        /* [n_rows][n_cols] owned strings; NULL reads as "" */
    bool *dim;          /* [n_rows][n_cols] cells that HTML shows dimmed */
    bool oom;           /* there was no memory for a cell; see table_grid_ok */
};

int table_grid_new(struct table_grid *g, int n_rows, int n_cols, struct km_err *err);
void table_grid_set(struct table_grid *g, int row, int col, const char *fmt, ...) __attribute__((format(printf, 4, 5)));
/* KM_ENOMEM if there was no memory for a cell. Callers fill the whole grid, then check once. */
int table_grid_ok(const struct table_grid *g, struct km_err *err);
void table_grid_free(struct table_grid *g);

int table_to_grid(struct table_grid *out, const struct table *t, struct km_err *err);

void table_grid_md(const struct table_grid *g, struct km_buf *out);
void table_grid_html(const struct table_grid *g, struct km_buf *out);
void table_grid_csv(const struct table_grid *g, struct km_buf *out);

/* v with `decimals` decimals, rounded half away from zero; "n/a" when it is not finite. */
void table_put_number(struct km_buf *out, double v, int decimals);
/* The change from a to b: "+61.2%"; "n/a" when a is 0 or a figure is missing. */
void table_put_change(struct km_buf *out, double a, double b);

#endif
