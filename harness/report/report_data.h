/* What the three writers of a report share: the runs of a result folder, sorted into their tables. Internal. */
#ifndef REPORT_DATA_H
#define REPORT_DATA_H

#include "harness/report/compare.h"
#include "harness/report/plot.h"
#include "harness/report/report.h"
#include "harness/suite/suite.h"

struct report_run {
    const char *dir; /* relative to the result folder; "." for a single run */
    struct hz_run run;
    bool there;
    char why[200]; /* when it is not */
};

struct report_plot {
    char *name; /* file stem in plots/ */
    char *caption;
    bool drawn;
};

/* B against A in one table: a row against the baseline, or the second arm against the first. */
struct report_contrast {
    int row, arm, base_row, base_arm;
    struct compare_result cmp;
};

struct report_table {
    const struct suite_table *t;
    int reps;                      /* most repeats of a row */
    int *slot;                     /* [n_rows][n_arms][reps]: index of the run, -1: none planned */
    struct report_contrast *contrasts; /* [n_contrasts] */
    int n_contrasts;
    struct table_grid grid, evidence, tokens;
    struct km_buf notes;    /* a line each */
    struct km_buf headline; /* one sentence; empty without a contrast */
    struct report_plot *plots;
    int n_plots;
};

struct report {
    const char *dir;
    struct suite *suite;
    struct report_run *runs; /* [n_runs], each folder once */
    int n_runs;
    struct report_table *tables; /* [suite->n_tables] */
    bool no_gnuplot;
};

/* The run of a place; NULL when it is missing. */
const struct hz_run *report_run_at(const struct report *r, const struct report_table *t, int row, int arm, int rep);
/* A figure of a run under the suite's definitions; NAN without a run. */
double report_value(const struct report *r, const struct hz_run *run, const struct hz_metric *m);
/* A run's string at section.key of run.json; "" when there is none. */
const char *report_run_text(const struct hz_run *run, const char *section, const char *key);
bool report_run_flag(const struct hz_run *run, const char *section, const char *key);
/* What a place is called where row and arm matter: "Redis, Cache hit". */
void report_put_label(struct km_buf *out, const struct suite_table *t, int row, int arm);

int report_data_load(struct report *r, const char *dir, struct km_err *err);
void report_data_free(struct report *r);
int report_make_tables(struct report *r, struct km_err *err);      /* report_tables.c: grids, notes, headlines */
int report_make_plots(struct report *r, struct km_err *err);       /* report_plots.c */
int report_write_html(const struct report *r, struct km_err *err); /* report_html.c */

#endif
