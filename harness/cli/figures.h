/* The figures of one run, for a terminal. */
#ifndef FIGURES_H
#define FIGURES_H

#include "harness/run/summary.h"

/* Prints the summary and the path of the run folder on stdout. metrics: the change of the server's counters during the
 * run, or NULL. */
void figures_print(const struct hz_summary *s, const struct hz_trace *t, const cJSON *metrics, const char *dir);

#endif
