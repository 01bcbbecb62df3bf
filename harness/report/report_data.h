/* The data of a report: the runs of a result folder, sorted into the tables of its suite. Internal to harness/report.
 *
 * A `report` owns everything below it. report_data_load reads the folder; the steps of report_steps.h then fill in the
 * grids, the notes, the headlines and the plots, and write the files. A result folder that holds one run is read as a
 * suite of one table with one row.
 *
 * Invariant: slot[(row * n_arms + arm) * reps + rep] of a table is the index of the run at that place, or -1 if no run
 * was planned there. A run that was planned but cannot be read has loaded == false, and its reason in `why`. */
#ifndef REPORT_DATA_H
#define REPORT_DATA_H

#include "harness/report/compare.h"
#include "harness/report/table.h"
#include "harness/suite/suite.h"

struct report_run {
    const char *dir;       /* relative to the result folder; "." for the folder of a single run */
    struct run_folder run; /* only when loaded */
    bool loaded;
    char why[200]; /* reason when not loaded */
};

/* One picture of a table. */
struct report_plot {
    char *name; /* file name in plots/, without its suffix */
    char *caption;
    bool drawn; /* plots/NAME.svg exists */
};

/* B compared with A within a table: a row with the baseline row, or the second arm of a row with its first. */
struct report_contrast {
    int base_row, base_arm; /* A */
    int row, arm;           /* B */
    struct compare_result cmp;
};

struct report_table {
    const struct suite_table *spec;    /* borrowed from the suite */
    int reps;                          /* the most repeats that a row has; 0: no run of this table was planned */
    int *slot;                         /* [n_rows][n_arms][reps], see above */
    struct report_contrast *contrasts; /* [n_contrasts] */
    int n_contrasts;
    struct table_grid grid;         /* the table itself */
    struct table_grid evidence;     /* a line per contrast and figure; only the titles when there is no contrast */
    struct km_buf evidence_caption; /* how to read the evidence */
    struct table_grid tokens;       /* a line per row and arm */
    struct km_buf notes;            /* one note per line: what the runs were and how the figures were made */
    struct km_buf warnings;         /* one warning per line: what makes the figures incomplete or doubtful */
    struct km_buf headline;         /* one sentence; empty when there is no contrast */
    struct report_plot *plots;      /* [n_plots] */
    int n_plots;
};

struct report {
    const char *dir; /* the result folder, borrowed */
    struct suite *suite;
    struct report_run *runs; /* [n_runs], each run folder once */
    int n_runs;
    struct report_table *tables; /* [suite->n_tables] */
    bool no_gnuplot;             /* a plot could not be drawn because gnuplot is not installed */
};

/* On error *r holds what was read so far; report_data_free releases it in any case. */
int report_data_load(struct report *r, const char *dir, struct km_err *err);
void report_data_free(struct report *r);

/* The run at a place; NULL if it was not planned or not loaded. */
const struct run_folder *report_run_at(const struct report *r, const struct report_table *t, int row, int arm, int rep);
/* A figure of a run under the suite's profile; NAN without a run. */
double report_value(const struct report *r, const struct run_folder *run, const struct hz_metric *m);
/* The string at section.key of run.json; "" when there is none. */
const char *report_run_text(const struct run_folder *run, const char *section, const char *key);
/* The number at section.key of run.json; 0 when there is none. */
double report_run_number(const struct run_folder *run, const char *section, const char *key);
bool report_run_flag(const struct run_folder *run, const char *section, const char *key);
/* The name of a row and arm in sentences and legends: "Redis, Cache hit". */
void report_put_label(struct km_buf *out, const struct suite_table *t, int row, int arm);

int report_no_memory(struct km_err *err); /* KM_ENOMEM with a message */

#endif
