/* Token counts of a trace by the client's own tokenizer, for servers that report no usage and for the seed profile. */
#ifndef HZ_COUNT_H
#define HZ_COUNT_H

#include "harness/run/trace.h"
#include "workloads/workload.h"

/* Fills in the local_* counts of every request. Without a tokenizer (NULL) they stay -1. The answers' texts are freed
 * afterwards unless keep_text is set. Call it after the run: it takes long. */
int hz_trace_count(struct hz_trace *t, const struct wl_set *set, const struct tok *tok, bool keep_text,
                   struct km_err *err);

#endif
