/* What the three writers of a report share: the runs of a result folder, sorted into their tables. Internal. */
#ifndef HZ_REPORT_DATA_H
#define HZ_REPORT_DATA_H

#include "harness/report/compare.h"
#include "harness/report/plot.h"
#include "harness/report/report.h"
#include "harness/suite/suite.h"

struct rp_run {
    const char *dir; /* relative to the result folder; "." for a single run */
    struct run_folder run;
    bool there;
    char why[200]; /* when it is not */
};

struct rp_plot {
    char *name; /* file stem in plots/ */
    char *caption;
    bool drawn;
};

/* B against A in one table: a row against the baseline, or the second arm against the first. */
struct rp_contrast {
    int row, arm, base_row, base_arm;
    struct hz_comparison cmp;
};

struct rp_table {
    const struct hz_suite_table *t;
    int reps;                      /* most repeats of a row */
    int *slot;                     /* [n_rows][n_arms][reps]: index of the run, -1: none planned */
    struct rp_contrast *contrasts; /* [n_contrasts] */
    int n_contrasts;
    struct hz_grid grid, evidence, tokens;
    struct km_buf notes;    /* a line each */
    struct km_buf headline; /* one sentence; empty without a contrast */
    struct rp_plot *plots;
    int n_plots;
};

struct rp {
    const char *dir;
    struct hz_suite *suite;
    struct rp_run *runs; /* [n_runs], each folder once */
    int n_runs;
    struct rp_table *tables; /* [suite->n_tables] */
    bool no_gnuplot;
};

/* The run of a place; NULL when it is missing. */
const struct run_folder *rp_run(const struct rp *r, const struct rp_table *t, int row, int arm, int rep);
/* A figure of a run under the suite's definitions; NAN without a run. */
double rp_value(const struct rp *r, const struct run_folder *run, const struct hz_metric *m);
/* A run's string at section.key of run.json; "" when there is none. */
const char *rp_str(const struct run_folder *run, const char *section, const char *key);
bool rp_flag(const struct run_folder *run, const char *section, const char *key);
/* What a place is called where row and arm matter: "Redis, Cache hit". */
void rp_put_label(struct km_buf *out, const struct hz_suite_table *t, int row, int arm);

int rp_load(struct rp *r, const char *dir, struct km_err *err);
void rp_free(struct rp *r);
int rp_make_tables(struct rp *r, struct km_err *err);      /* report_tables.c: grids, notes, headlines */
int rp_make_plots(struct rp *r, struct km_err *err);       /* report_plots.c */
int rp_write_html(const struct rp *r, struct km_err *err); /* report_html.c */

#endif
