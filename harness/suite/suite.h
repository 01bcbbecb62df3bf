/* Experiments as data: a suite file says which tables to make, its plan which runs they need.
 *
 * A suite (SUITE.json, schema "kvmark.suite.1") is tables of rows, each row a set of flags for `kvmark run`; a
 * cell is one run: (table, row, arm, repeat). Cells that ask for the same run share it. The result folder DIR
 * holds suite.json (the suite as it was, with provenance and the list of cells), cells/<table>/<row>-<k> (run
 * folders) and logs/. A cell whose folder has a run.json is done, which is all that resuming needs.
 *
 * Flags merge in this order, the later one winning, null removing: suite defaults, table, --set of the command
 * line (which does not bring back what a table removed), row, arm. Strings may hold {here} (the suite file's
 * folder), {dir} (DIR), {table}, {row}, {repeat} and {nonce} (random, one a result folder). */
#ifndef HZ_SUITE_H
#define HZ_SUITE_H

#include "base/args.h"
#include "base/json.h"
#include "harness/run/metric.h"
#include "harness/report/tables.h"

struct hz_suite_row {
    const char *id; /* in folder names: [a-z0-9.-] */
    const char *label;
    const cJSON *flags; /* object or NULL */
};

struct hz_suite_col {
    struct hz_col col;
    const struct hz_metric *metric;
    double scale; /* printed = figure * scale: 0.001 shows milliseconds as seconds */
};

struct hz_suite_table {
    const char *id, *title, *head;
    enum hz_shape shape;
    char *workload; /* path, resolved */
    const cJSON *flags;
    struct hz_suite_row *rows; /* [n_rows] */
    int n_rows;
    int base; /* row that changes refer to; -1 none */
    struct hz_suite_row *arms; /* [n_arms]: the two runs of a backend's row; one without flags for other shapes */
    int n_arms;
    struct hz_suite_col *cols; /* [n_cols] */
    int n_cols;
    int pairs;          /* repeats of each row */
    const char **notes; /* [n_notes] */
    int n_notes;
};

struct hz_suite {
    cJSON *json;          /* the file; strings above point into it */
    struct km_strs owned; /* strings made here */
    char *here;           /* folder of the file */
    const char *title;
    const cJSON *defaults; /* flags, or NULL */
    bool median;           /* over repeats; else the mean */
    enum hz_profile profile;
    struct hz_suite_table *tables; /* [n_tables] */
    int n_tables;
    const char **notes; /* [n_notes] */
    int n_notes;
};

/* Every key is checked; an unknown one is an error with the nearest known name. A stored suite.json reads too. */
int hz_suite_read(struct hz_suite **out, const char *path, struct km_err *err);
/* The same from JSON that is in memory; json is the suite's from here on, also after an error. */
int hz_suite_take(struct hz_suite **out, cJSON *json, const char *here, struct km_err *err);
void hz_suite_free(struct hz_suite *s);

struct hz_cell {
    char *name;  /* "20k/with-1": below cells/, and what progress calls it */
    char **argv; /* of the run: "run", workload, flags ...; NULL-terminated, without the program and -o */
    int argc;
    char key[65]; /* SHA-256 of workload and flags */
};

/* A place in a table and the cell that fills it. */
struct hz_use {
    int table, row, arm, repeat, cell;
};

struct hz_plan {
    struct hz_cell *cells; /* [n], in the order they run: repeat by repeat, rows in turn ABBA BAAB */
    int n;
    struct hz_use *uses; /* [n_uses] */
    int n_uses;
};

/* What happens while a suite runs; for a status line. */
struct hz_suite_news {
    enum { HZ_CELL_STARTS, HZ_CELL_SAYS, HZ_CELL_RUNS, HZ_CELL_DONE, HZ_CELL_FAILED } what;
    const char *cell; /* its name */
    const char *line; /* SAYS: a line of the child's stderr; FAILED: why; else NULL */
    int at, of;       /* this is cell at (1-based) of so many that must run */
    double cell_s;    /* spent in this cell */
    double left_s;    /* guess for the rest of the suite; <0: not known yet */
};

struct hz_suite_opts {
    const char *dir;     /* where results go */
    const char *exe;     /* the program to run; NULL: this one, /proc/self/exe */
    const char *nonce;   /* what {nonce} stands for; NULL: as DIR has it, or a new one */
    struct km_strs set;  /* "flag=value", see above */
    int pairs;           /* instead of the suite's; 0: as it says */
    const char *only;    /* id of the one table to make; NULL: all */
    const char *command; /* how this was asked for, for provenance */
    void (*news)(void *arg, const struct hz_suite_news *n); /* NULL: silence */
    void *arg;
};

int hz_suite_plan(const struct hz_suite *s, const struct hz_suite_opts *o, struct hz_plan *out,
                  struct km_err *err);
void hz_plan_free(struct hz_plan *p);

struct hz_suite_result {
    int done, ran, failed; /* cells with a run now; run this time; failed */
    bool interrupted;
};
/* Runs what is missing, one cell after another. SIGINT or SIGTERM ends the running cell and the suite; a second
 * one kills it. A cell cut short is not done: its run.json becomes run-partial.json. 0 also when cells failed
 * (DIR/suite.json lists them under "failed"); <0 when the suite could not be run: KM_EINVAL when DIR holds
 * cells made with other flags. */
int hz_suite_run(const struct hz_suite *s, const struct hz_suite_opts *o, struct hz_suite_result *res,
                 struct km_err *err);

#endif
