/* Makes a report from stored runs: DIR/tables.md, DIR/report.html and DIR/plots/. Nothing is run and no network is
 * needed.
 *
 * DIR is the result folder of a suite (with suite.json) or the folder of one run (with run.json). The tables have the
 * form of the write-up's tables. Below each table are notes on its runs (repeats, dummy weights, simulated devices,
 * limits), the evidence (ratio, 95% confidence interval, verdict), and the token counts that explain the figures.
 * report.html is one file below 1 MB that can be read without network and without JavaScript. Without gnuplot the
 * report has no pictures and says so; the .dat and .gp file of each plot are written nevertheless. */
#ifndef REPORT_H
#define REPORT_H

#include "base/err.h"

#include <stdbool.h>

struct report_result {
    int runs, missing;  /* run folders that were read, and run folders that were planned but could not be read */
    bool no_gnuplot;    /* there are no pictures, because gnuplot is not installed */
    char headline[400]; /* the headline of the first table that has one; "" without a comparison */
};

int report_write(const char *dir, struct report_result *res, struct km_err *err);

#endif
