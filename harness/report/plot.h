/* Plots: numbers to NAME.dat, a script to NAME.gp, and gnuplot to NAME.svg, all three kept in one folder.
 *
 * A `plot` is series of rows of numbers for one of the scripts in plots/ (which are compiled in, so that the
 * program needs no folder beside it). Each .gp stands alone: `gnuplot NAME.gp` in its folder makes the picture
 * again. */
#ifndef PLOT_H
#define PLOT_H

#include "base/buf.h"
#include "base/err.h"

#include <stdbool.h>

enum { PLOT_MAX_SERIES = 7 }; /* as many as there are colours */

struct plot_series {
    const char *label;
    struct km_buf data; /* lines of columns; see the script for what they are */
};

struct plot {
    const char *script; /* "ttft-cdf", "ttft-turn", "repeats", "bars" */
    const char *name;   /* file stem: [a-z0-9._-] */
    const char *unit;   /* the y axis, where the script leaves it open; or NULL */
    int last;           /* repeats: how many; else 0 */
    struct plot_series series[PLOT_MAX_SERIES];
    int n;
};

/* Whether gnuplot can be run at all. */
bool plot_gnuplot_found(void);

/* Writes the three files into dir (which must exist). KM_ENOENT: no gnuplot; the .dat and .gp are there even
 * so. */
int plot_write(const struct plot *p, const char *dir, struct km_err *err);
void plot_free(struct plot *p);

/* The picture as it goes into a page: no prolog, ids made unique by prefix, grey in the page's text colour, alt
 * text. */
int plot_inline(const char *dir, const char *name, const char *alt, struct km_buf *out, struct km_err *err);

#endif
