/* From stored runs to what people read: DIR/tables.md, DIR/report.html and DIR/plots/, offline.
 *
 * DIR is a suite's result folder (suite.json) or one run folder (run.json). The tables are the write-up's;
 * under each stand the notes that its runs call for (repeats, dummy weights, simulated devices, limits), the
 * evidence (ratio, interval, verdict) and the tokens that explain it. report.html is one file under 1 MB that
 * needs no network and reads without JavaScript. Without gnuplot there are no pictures and the report says so;
 * their .dat and .gp are written even so. */
#ifndef REPORT_H
#define REPORT_H

#include "base/buf.h"
#include "base/err.h"

#include <stdbool.h>

struct report_result {
    int runs, missing; /* run folders read; places in tables without one */
    bool no_gnuplot;
    char headline[400]; /* the sentence on top */
};

int report_write(const char *dir, struct report_result *res, struct km_err *err);

#endif
