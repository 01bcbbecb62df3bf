/* What status lines and help need to know of a terminal. */
#ifndef TERM_H
#define TERM_H

#include <stdbool.h>
#include <stddef.h>

bool term_is(int fd);
/* Columns of the terminal behind fd; 80 if fd is no terminal or does not say. */
int term_width(int fd);
/* Seconds as "1:05" or "1:02:03"; "-:--" if s is negative (not known yet). */
void term_clock(double s, char *out, size_t size);

#endif
