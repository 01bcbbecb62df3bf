/* The child process that runs a cell. Internal to the suite.
 *
 * A `suite_child` owns the process, its log file and the pipe from its stderr. stdout goes to the log only; stderr goes
 * to the log and, line by line, to the caller. The child is the leader of its own process group, so that Ctrl-C on the
 * terminal reaches only this program, which passes it on. */
#ifndef SUITE_CHILD_H
#define SUITE_CHILD_H

#include "harness/suite/suite.h"

#include <signal.h>
#include <sys/types.h>

struct suite_child {
    pid_t pid;
    int err;            /* read end of the pipe; -1: none */
    int log;            /* log file; -1: none */
    struct km_buf line; /* the current line, whose end was not read yet */
    char last[300];     /* the last complete line: the reason when the child fails */
};

/* Starts `exe ARGV -o dir` with the signal mask `mask` and the log file at log_path. The caller calls
 * suite_child_deinit also after an error. */
int suite_child_start(struct suite_child *ch, const char *exe, const struct suite_cell *cell, const char *dir,
                      const char *log_path, const sigset_t *mask, struct km_err *err);

/* Reads what the pipe holds and copies it to the log. Calls on_line with each complete line, without a "kvmark: " at
 * its start. False at the end of the pipe. */
bool suite_child_read(struct suite_child *ch, void (*on_line)(void *arg, const char *line), void *arg);

/* Closes the files. The process must have been waited for. */
void suite_child_deinit(struct suite_child *ch);

enum { SUITE_MAX_ARGS = 500 }; /* arguments that a cell may have */

#endif
