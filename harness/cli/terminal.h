/* The facts about a terminal that progress lines and help texts depend on. */
#ifndef TERMINAL_H
#define TERMINAL_H

#include <stdbool.h>
#include <stddef.h>

bool term_is(int fd); /* true if fd is a terminal */
/* The width of the terminal fd in columns; 80 if fd is no terminal or its width is not known. */
int term_width(int fd);
/* Seconds as "1:05" or "1:02:03"; "-:--" if s is negative (not known yet). */
void term_clock(double s, char *out, size_t size);

#endif
