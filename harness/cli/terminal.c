/* Asks the kernel about a terminal, and formats times for its lines. */
#include "harness/cli/terminal.h"

#include <stdio.h>
#include <sys/ioctl.h>
#include <unistd.h>

bool term_is(int fd)
{
    return isatty(fd) == 1;
}

int term_width(int fd)
{
    struct winsize w = {0};
    return term_is(fd) && !ioctl(fd, TIOCGWINSZ, &w) && w.ws_col > 20 ? w.ws_col : 80;
}

void term_clock(double s, char *out, size_t size)
{
    if (s < 0 || s > 3.6e6)
        snprintf(out, size, "-:--");
    else if (s < 3600)
        snprintf(out, size, "%d:%02d", (int)s / 60, (int)s % 60);
    else
        snprintf(out, size, "%d:%02d:%02d", (int)s / 3600, (int)s / 60 % 60, (int)s % 60);
}
