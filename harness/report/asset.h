/* Files that are compiled in, so that the program needs no folder beside it: plots/NAME.gp, report.css, report.js. */
#ifndef ASSET_H
#define ASSET_H

/* The text of the file of that base name ("ttft-cdf.gp"); NULL when there is none. */
const char *asset_text(const char *name);

#endif
