/* Figures of cuda_bench: samples of one quantity, printed as a row of a Markdown table and kept for a JSON file. */
#ifndef FIG_FIGURE_H
#define FIG_FIGURE_H

#include "base/err.h"

#include <cjson/cJSON.h>

enum { FIG_SAMPLES = 2048 }; /* most samples of a figure */

struct figure {
    double v[FIG_SAMPLES];
    int n;
};

/* Exits with the message if rc is not 0. */
void fig_exit_on_error(int rc, const struct km_err *err);

void fig_add(struct figure *f, double v); /* further samples than FIG_SAMPLES are dropped */
/* Prints the table's head. */
void fig_head(void);
/* Prints the row of a figure and keeps it: median, 10th and 90th percentile. goal: upper limit of the median; 0: there
 * is none. Sorts the samples. */
void fig_row(const char *key, const char *what, struct figure *f, double goal);
/* The row of a single value. */
void fig_value(const char *key, const char *what, double v, double goal);
/* Returns a reference to the rows so far. The rows are freed by fig_free. */
cJSON *fig_rows(void);
void fig_free(void);

#endif
