/* Progress of a run on stderr: one redrawn line with an ETA on a terminal, one line per 10 s elsewhere. */
#ifndef HZ_PROGRESS_H
#define HZ_PROGRESS_H

#include "harness/client/client.h"

struct progress {
    bool tty, quiet;
    int64_t last_ns; /* of the last line written */
    bool drawn;      /* a terminal line is on screen */
};

void progress_start(struct progress *p, bool quiet);
/* A client_progress_fn whose arg is a struct progress: false once Ctrl-C was pressed. */
bool progress_update(void *arg, const struct client_progress *now);
void progress_end(struct progress *p);

/* Ctrl-C ends the run early and keeps what is complete; a second one kills the program. */
void progress_catch_interrupt(void);
bool progress_interrupted(void);

#endif
