/* Progress of a run on stderr. A terminal shows one line, redrawn five times a second; a file or a pipe gets a line
 * every ten seconds. */
#ifndef PROGRESS_H
#define PROGRESS_H

#include "harness/client/client.h"

struct progress {
    bool tty, quiet;
    int64_t last_ns; /* time of the last line written */
    bool drawn;      /* the terminal shows a line that must be erased */
};

void progress_start(struct progress *p, bool quiet);
/* A client_progress_fn whose arg is a struct progress. Returns false after Ctrl-C, which ends the run. */
bool progress_update(void *arg, const struct client_progress *now);
void progress_end(struct progress *p);

/* From here on, the first Ctrl-C ends the run early (progress_update returns false) and the second one kills the
 * program. */
void progress_catch_interrupt(void);
bool progress_interrupted(void);

#endif
