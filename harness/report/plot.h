/* A plot: its numbers in NAME.dat, its gnuplot script in NAME.gp and the picture in NAME.svg, all in one folder.
 *
 * A `plot` holds series of rows of numbers for one of the scripts in plots/, which are compiled in. NAME.gp is
 * complete: `gnuplot NAME.gp` in its folder makes the picture again. */
#ifndef PLOT_H
#define PLOT_H

#include "base/buf.h"
#include "base/err.h"

#include <stdbool.h>

enum { PLOT_MAX_SERIES = 7 }; /* the number of colours in plots/common.gp */

struct plot_series {
    struct km_buf label; /* in the legend */
    struct km_buf data;  /* lines of columns; the script says what the columns are */
};

struct plot {
    const char *script;                         /* file name of the script, such as "ttft-cdf.gp" */
    struct km_buf name;                         /* of the three files, without suffix: [a-z0-9._-] */
    const char *unit;                           /* label of the y axis, for scripts that use `unit`; else NULL */
    int last;                                   /* right end of the x axis, for scripts that use `last`; else 0 */
    struct plot_series series[PLOT_MAX_SERIES]; /* [n] */
    int n;
};

bool plot_gnuplot_found(void);

/* Writes the three files into dir, which must exist. KM_ENOENT when there is no gnuplot and KM_EIO when it fails; the
 * .dat and .gp file are then written nevertheless. */
int plot_write(const struct plot *p, const char *dir, struct km_err *err);
void plot_deinit(struct plot *p); /* releases what the plot holds, not p itself */

/* Appends DIR/NAME.svg as an element of an HTML page: without XML prolog, its ids made unique by the name, lines and
 * text in the colour of the page, `alt` as its description. */
int plot_inline(const char *dir, const char *name, const char *alt, struct km_buf *out, struct km_err *err);

#endif
