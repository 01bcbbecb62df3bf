/* Token counts by the client's own tokenizer: the profile `seed` needs them, and they replace counts that the server
 * does not report. */
#ifndef HZ_COUNT_H
#define HZ_COUNT_H

#include "harness/run/trace.h"
#include "workloads/workload.h"

/* Sets the local_* counts of every request. set: the workload of the trace; its messages that are already counted are
 * not counted again. Without a tokenizer (tok is NULL) the counts stay -1. Frees the answers' texts, unless keep_text
 * is true. Call it after the run, because tokenizing takes long. */
int hz_trace_count(struct hz_trace *t, const struct wl_set *set, const struct tok *tok, bool keep_text,
                   struct km_err *err);

#endif
