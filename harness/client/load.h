/* The load client: sends a workload to any OpenAI-compatible server and records when each response event arrives.
 *
 * A `load` says how to send (harness/client/load_opts.h); load_run sends, and its result is a hz_trace. The client is
 * one thread with libcurl's multi interface. Once the clock runs it does not tokenize, print, or touch files. */
#ifndef LOAD_H
#define LOAD_H

#include "base/err.h"
#include "harness/client/client.h"
#include "harness/client/load_opts.h"
#include "harness/client/target.h"
#include "harness/run/trace.h"
#include "workloads/workload.h"

/* Runs a whole load: warm-up if asked for, then the measured phase. Failed requests are records of *out and no error.
 * An error means that there was no run: no server (KM_ENET), an unknown model or senseless options (KM_EINVAL). */
int load_run(const struct target *target, const struct load *load, const struct wl_set *set,
             client_progress_fn progress, void *arg, struct hz_trace *out, struct km_err *err);

#endif
