/* A trace as two files: requests.csv, one row a request for people and spreadsheets, and tokens.bin, the arrival of
 * every event for programs. Times are nanoseconds from the beginning of the measured phase.
 *
 * tokens.bin: "KVMTOK1\n", then varints (7 bits a byte, low first): requests; events in all; for each request, in
 * the order of the CSV, its number of events and for each event
 *     zigzag(time - time of the one before, or - 0 for a request's first), tokens, lag_ns + 1 (0: no kernel stamp)
 * and at the end the XXH64 of everything before it, 8 bytes, low first. */
#ifndef TF_TRACEFILE_H
#define TF_TRACEFILE_H

#include "base/buf.h"
#include "harness/run/trace.h"
#include "workloads/workload.h"

enum { TF_BEGIN_NS = 1000000000 }; /* begin_ns of a trace that was read: times of 0 mean "never" */

/* set: for conversation ids; NULL: left empty. */
void tf_csv_write(const struct hz_trace *t, const struct wl_set *set, struct km_buf *out);
int tf_csv_read(const char *text, size_t len, struct hz_trace *t, struct km_err *err);
void tf_ticks_write(const struct hz_trace *t, struct km_buf *out);
/* After tf_csv_read, whose rows say how many events each request has. */
int tf_ticks_read(const char *bytes, size_t len, struct hz_trace *t, struct km_err *err);

#endif
