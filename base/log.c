/* A line is one call of fprintf, so that lines of several threads do not mix. */
#include "base/log.h"

#include <stdarg.h>
#include <stdio.h>

static enum km_log_level highest_level = KM_LOG_INFO;

void km_log_level(enum km_log_level most)
{
    highest_level = most;
}

void km_log(enum km_log_level level, const char *fmt, ...)
{
    if (level > highest_level)
        return;
    static const char *const tag[] = {"error: ", "warning: ", "", "debug: "};
    char line[1200];
    int n = snprintf(line, sizeof line, "kvmark: %s", tag[level]);
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(line + n, sizeof line - (size_t)n, fmt, ap);
    va_end(ap);
    fprintf(stderr, "%s\n", line);
}
