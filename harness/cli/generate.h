/* The workload of a subcommand. */
#ifndef GENERATE_H
#define GENERATE_H

#include "workloads/workload.h"

/* Reads the workload file and generates its requests. Logs a line if --text auto used the built-in text. */
int generate_workload(struct wl_set **out, const char *path, const struct wl_gen_opts *o, const struct tok *tok,
                      struct km_err *err);

#endif
