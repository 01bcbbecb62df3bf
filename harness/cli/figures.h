/* The figures of one run, for a terminal. */
#ifndef FIGURES_H
#define FIGURES_H

#include "harness/run/summary.h"

/* Prints the summary under its profile on stdout, and the run folder. metrics: the change of the server's counters, or
 * NULL. */
void figures_print(const struct hz_summary *s, const struct hz_trace *t, const cJSON *metrics, const char *dir);

#endif
