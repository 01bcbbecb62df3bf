/* Progress of a run on stderr: a terminal gets one line, drawn again five times a second; anything else gets a line
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

/* The first Ctrl-C ends the run early and keeps what is complete. The second one kills the program. */
void progress_catch_interrupt(void);
bool progress_interrupted(void);

#endif
