/* Files that are compiled in, so that the program needs no folder beside it: plots/NAME.gp, report.css, report.js. */
#ifndef HZ_ASSET_H
#define HZ_ASSET_H

/* The text of the file of that base name ("ttft-cdf.gp"); NULL when there is none. */
const char *hz_asset(const char *name);

#endif
