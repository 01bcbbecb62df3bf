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
#ifndef SUITE_H
#define SUITE_H

#include "base/args.h"
#include "harness/run/metric.h"
#include "harness/report/table.h"

struct suite_row {
    const char *id; /* in folder names: [a-z0-9.-] */
    const char *label;
    const cJSON *flags; /* object or NULL */
};

struct suite_column {
    struct table_column col;
    const struct hz_metric *metric;
    double scale; /* printed = figure * scale: 0.001 shows milliseconds as seconds */
};

struct suite_table {
    const char *id, *title, *head;
    enum suite_shape shape;
    char *workload; /* path, resolved */
    const cJSON *flags;
    struct suite_row *rows; /* [n_rows] */
    int n_rows;
    int base; /* row that changes refer to; -1 none */
    struct suite_row *arms; /* [n_arms]: the two runs of a backend's row; one without flags for other shapes */
    int n_arms;
    struct suite_column *cols; /* [n_cols] */
    int n_cols;
    int pairs;          /* repeats of each row */
    const char **notes; /* [n_notes] */
    int n_notes;
};

struct suite {
    cJSON *json;          /* the file; strings above point into it */
    struct km_strs owned; /* strings made here */
    char *here;           /* folder of the file */
    const char *title;
    const cJSON *defaults; /* flags, or NULL */
    bool median;           /* over repeats; else the mean */
    enum hz_profile profile;
    struct suite_table *tables; /* [n_tables] */
    int n_tables;
    const char **notes; /* [n_notes] */
    int n_notes;
};

/* Every key is checked; an unknown one is an error with the nearest known name. A stored suite.json reads too. */
int suite_read(struct suite **out, const char *path, struct km_err *err);
/* The same from JSON that is in memory; json is the suite's from here on, also after an error. */
int suite_from_json(struct suite **out, cJSON *json, const char *here, struct km_err *err);
void suite_free(struct suite *s);

struct suite_cell {
    char *name;  /* "20k/with-1": below cells/, and what progress calls it */
    char **argv; /* of the run: "run", workload, flags ...; NULL-terminated, without the program and -o */
    int argc;
    char key[65]; /* SHA-256 of workload and flags */
};

/* A place in a table and the cell that fills it. */
struct suite_place {
    int table, row, arm, repeat, cell;
};

struct suite_plan {
    struct suite_cell *cells; /* [n], in the order they run: repeat by repeat, rows in turn ABBA BAAB */
    int n;
    struct suite_place *uses; /* [n_uses] */
    int n_uses;
};

/* What happens while a suite runs; for a status line. */
struct suite_event {
    enum { SUITE_CELL_STARTS, SUITE_CELL_SAYS, SUITE_CELL_RUNS, SUITE_CELL_DONE, SUITE_CELL_FAILED } what;
    const char *cell; /* its name */
    const char *line; /* SAYS: a line of the child's stderr; FAILED: why; else NULL */
    int at, of;       /* this is cell at (1-based) of so many that must run */
    double cell_s;    /* spent in this cell */
    double left_s;    /* guess for the rest of the suite; <0: not known yet */
};

struct suite_opts {
    const char *dir;     /* where results go */
    const char *exe;     /* the program to run; NULL: this one, /proc/self/exe */
    const char *nonce;   /* what {nonce} stands for; NULL: as DIR has it, or a new one */
    struct km_strs set;  /* "flag=value", see above */
    int pairs;           /* instead of the suite's; 0: as it says */
    const char *only;    /* id of the one table to make; NULL: all */
    const char *command; /* how this was asked for, for provenance */
    void (*news)(void *arg, const struct suite_event *n); /* NULL: silence */
    void *arg;
};

int suite_plan_make(const struct suite *s, const struct suite_opts *o, struct suite_plan *out,
                  struct km_err *err);
void suite_plan_free(struct suite_plan *p);

struct suite_result {
    int done, ran, failed; /* cells with a run now; run this time; failed */
    bool interrupted;
};
/* Runs what is missing, one cell after another. SIGINT or SIGTERM ends the running cell and the suite; a second
 * one kills it. A cell cut short is not done: its run.json becomes run-partial.json. 0 also when cells failed
 * (DIR/suite.json lists them under "failed"); <0 when the suite could not be run: KM_EINVAL when DIR holds
 * cells made with other flags. */
int suite_run(const struct suite *s, const struct suite_opts *o, struct suite_result *res,
                 struct km_err *err);

#endif
