/* The load client: sends a workload to any OpenAI-compatible server and records when each event of a response arrives.
 *
 * A `load` holds the options of a run (harness/client/load_opts.h). load_run sends the workload and returns a hz_trace,
 * which the caller owns. The client is one thread with libcurl's multi interface. During the measured phase it does not
 * tokenize, and it reads and writes no files. */
#ifndef LOAD_H
#define LOAD_H

#include "base/err.h"
#include "harness/client/client.h"
#include "harness/client/load_opts.h"
#include "harness/client/target.h"
#include "harness/run/trace.h"
#include "workloads/workload.h"

/* Runs the warm-up, if load asks for one, and the measured phase. Requests that fail are records in *out and not
 * errors. An error means that nothing was measured: the server cannot be reached, or the whole warm-up failed
 * (KM_ENET), or the model is unknown or options are invalid (KM_EINVAL). *out is empty then. */
int load_run(const struct target *target, const struct load_opts *load, const struct wl_set *set,
             client_progress_fn progress, void *arg, struct hz_trace *out, struct km_err *err);

#endif
