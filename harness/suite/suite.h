/* A suite: an experiment as data. A suite file names the tables to make; a plan lists the runs that the tables need.
 *
 * A suite (JSON, schema "kvmark.suite.1") holds tables of rows. Each row is a set of command-line options for
 * `kvmark run`, called "flags" in the file. A cell is one run. A place is a position in a table: (table, row, arm,
 * repeat). Places that need the same run share one cell.
 *
 * The result folder DIR holds suite.json (a copy of the suite, its provenance and the list of cells),
 * cells/TABLE/ROW-REPEAT (one run folder per cell) and logs/. A cell is done when its folder holds run.json. The folder
 * alone therefore says where an interrupted suite has to continue.
 *
 * The options of a cell are merged from five layers: the suite's defaults, the table, --set on the command line, the
 * row, the arm. A later layer wins, and null removes an option. The exception is --set, which does not bring back an
 * option that the table removed. String values may hold placeholders: {here} (the folder of the suite file), {dir}
 * (DIR), {table}, {row}, {repeat} and {nonce} (a random word, the same for all cells of a result folder). */
#ifndef SUITE_H
#define SUITE_H

#include "base/args.h"
#include "base/json.h"
#include "harness/run/metric.h"

enum suite_shape {
    SUITE_CONFIGURATIONS, /* one line per row; the change follows the figure: 9426 (+61.2%) */
    SUITE_METRICS,        /* one line per column of the suite, one column per row, and a column of the change */
    SUITE_CHUNKS,         /* like SUITE_CONFIGURATIONS, but the baseline row is not shown */
    SUITE_BACKENDS        /* one line per row, one column per arm, and the first figure divided by the second */
};

struct suite_column {
    const char *title;
    int decimals;
    bool delta; /* the change against the baseline follows the figure */
    bool gain;  /* the column shows only the change, not the figure */
    const struct hz_metric *metric;
    double scale; /* shown value = figure * scale; 0.001 shows milliseconds as seconds */
};

/* A row of a table, or one of its two arms. */
struct suite_row {
    const char *id;       /* part of folder names: [a-z0-9._-] */
    const char *label;    /* as the tables show it */
    const cJSON *options; /* object, or NULL */
};

struct suite_table {
    const char *id, *title;
    const char *head; /* title of the first column */
    enum suite_shape shape;
    char *workload; /* path of the workload file, relative to the working directory or absolute */
    const cJSON *options;
    struct suite_row *rows; /* [n_rows] */
    int n_rows;
    int base;               /* index of the baseline row; -1: there is none */
    struct suite_row *arms; /* [n_arms]; SUITE_BACKENDS: the two runs of a row; other shapes: one without a label */
    int n_arms;
    struct suite_column *cols; /* [n_cols] */
    int n_cols;
    int pairs;          /* repeats of each row; repeat k of two rows is a pair */
    const char **notes; /* [n_notes] lines under the table */
    int n_notes;
};

struct suite {
    cJSON *json;          /* the file; most strings of the suite point into it */
    struct km_strs owned; /* strings that are not in the file, such as ids made from labels */
    char *here;           /* path of the suite file's folder */
    const char *title;
    const cJSON *defaults; /* options of every table, or NULL */
    bool median;           /* a table shows the median over the repeats; false: the mean */
    enum hz_profile profile;
    struct suite_table *tables; /* [n_tables] */
    int n_tables;
    const char **notes; /* [n_notes] paragraphs above the tables */
    int n_notes;
};

/* Reads a suite file, or the suite.json of a result folder. Every key is checked: an unknown key is an error that names
 * the nearest known one. */
int suite_read(struct suite **out, const char *path, struct km_err *err);
/* Reads a suite from JSON in memory, of which the suite becomes the owner; json is also deleted after an error. */
int suite_from_json(struct suite **out, cJSON *json, const char *here, struct km_err *err);
void suite_free(struct suite *s);

struct suite_cell {
    char *name;  /* "20k/with-1": folder below cells/, and the name in progress messages */
    char **argv; /* [argc], then NULL: "run", the workload, the options; without the program and -o */
    int argc;
    char key[65]; /* SHA-256 of the workload file, the options, the arm and the repeat, as hex digits */
};

struct suite_place {
    int table, row, arm, repeat; /* all from 0 */
    int cell;                    /* the cell whose run fills this place */
};

struct suite_plan {
    struct suite_cell *cells; /* [n], in the order in which they run */
    int n;
    struct suite_place *places; /* [n_places] */
    int n_places;
};

/* Something that happened while a suite runs, for a progress display. */
struct suite_event {
    enum {
        SUITE_CELL_STARTED,
        SUITE_CELL_OUTPUT,  /* `line` is a line of the child's stderr */
        SUITE_CELL_RUNNING, /* at least once a second */
        SUITE_CELL_DONE,
        SUITE_CELL_FAILED /* `line` is the reason */
    } what;
    const char *cell; /* name of the cell */
    const char *line; /* see above; else NULL */
    int at, of;       /* the cell is number `at`, from 1, of the `of` cells that have to run */
    double cell_s;    /* seconds spent in this cell */
    double left_s;    /* estimated seconds until the suite ends; negative: not known yet */
};

struct suite_opts {
    const char *dir;     /* the result folder */
    const char *exe;     /* path of the kvmark program that runs the cells; NULL: this program */
    const char *nonce;   /* value of {nonce}; NULL: the one in DIR/suite.json, or a new one */
    struct km_strs set;  /* "OPTION=VALUE", the layer between table and row */
    int pairs;           /* replaces the suite's number of repeats; 0: as the suite says */
    const char *only;    /* id of the only table to make; NULL: all tables */
    const char *command; /* the user's command line, for the provenance */
    void (*on_event)(void *arg, const struct suite_event *e); /* NULL: no progress display */
    void *arg;
};

/* Plans the cells in the order in which they run: repeat by repeat, and within a repeat the rows of each table. The
 * order of the rows changes from repeat to repeat (AB BA BA AB), so that a drift of the machine affects all alike. */
int suite_plan_make(const struct suite *s, const struct suite_opts *o, struct suite_plan *out, struct km_err *err);
void suite_plan_free(struct suite_plan *p);

struct suite_result {
    int done;   /* cells that have a run now */
    int ran;    /* cells that this call ran successfully */
    int failed; /* cells that this call ran without success */
    bool interrupted;
};
/* Runs the cells that are not done, one after another, each in a child process. The first SIGINT or SIGTERM ends the
 * running cell and the suite; the second one kills the cell. The run.json of an interrupted cell is renamed to
 * run-partial.json, so that the cell is not done.
 *
 * Returns 0 even if cells failed; DIR/suite.json lists them under "failed". An error means that the suite could not be
 * run: KM_EINVAL if DIR holds cells that were made with other options. */
int suite_run(const struct suite *s, const struct suite_opts *o, struct suite_result *res, struct km_err *err);

#endif
