/* Files that are compiled into the program, so that it needs no folder beside it: plots/NAME.gp, report.css, report.js.
 * The build makes assets.c from them (embed.cmake). */
#ifndef ASSET_H
#define ASSET_H

/* The text of a file by its name without the folder, such as "ttft-cdf.gp"; NULL when there is no such file. */
const char *asset_text(const char *name);

#endif
