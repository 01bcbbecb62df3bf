/* The steps of a report, in the order in which report.c calls them. Internal to harness/report.
 *
 * Each step reads what report_data_load and the earlier steps put into `struct report`. No step calls another step. */
#ifndef REPORT_STEPS_H
#define REPORT_STEPS_H

#include "harness/report/report_data.h"

/* The text above the token counts of a table, in tables.md and report.html. */
#define REPORT_TOKENS_CAPTION                                                                                          \
    "Means over the runs of a row, in tokens. Cached tokens are the prompt tokens that a cache held; the engine had "  \
    "to compute the others. Mean input and mean output are per request."

int report_make_tables(struct report *r, struct km_err *err);      /* report_tables.c: contrasts and grids */
int report_make_notes(struct report *r, struct km_err *err);       /* report_notes.c: notes and headlines */
int report_write_md(const struct report *r, struct km_err *err);   /* report_md.c: DIR/tables.md */
int report_make_plots(struct report *r, struct km_err *err);       /* report_plots.c: DIR/plots/ */
int report_write_html(const struct report *r, struct km_err *err); /* report_html.c: DIR/report.html */

#endif
