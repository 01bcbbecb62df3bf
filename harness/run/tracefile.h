/* A trace in two files: requests.csv, one row per request, for people and spreadsheets; and tokens.bin, the arrival of
 * every event, for programs. Times in both are nanoseconds from the beginning of the measured phase.
 *
 * tokens.bin: "KVMTOK1\n", then varints (7 bits per byte, low bits first), then a checksum:
 *     number of requests, number of events
 *     for each request, in the order of the CSV: its number of events, and for each event
 *         zigzag(time - time of the event before it; the first one: time), tokens, lag_ns + 1 (0: no kernel timestamp)
 *     XXH64 of everything before it, 8 bytes, low byte first */
#ifndef TF_TRACEFILE_H
#define TF_TRACEFILE_H

#include "base/buf.h"
#include "harness/run/trace.h"
#include "workloads/workload.h"

/* begin_ns of a trace that was read from files. It is not 0, because a time of 0 means "never". */
enum { TF_BEGIN_NS = 1000000000 };

/* set: has the conversations' ids; NULL: their column is empty. */
void tf_csv_write(const struct hz_trace *t, const struct wl_set *set, struct km_buf *out);
/* KM_EFORMAT: the file is damaged or from another version. */
int tf_csv_read(const char *text, size_t len, struct hz_trace *t, struct km_err *err);
void tf_ticks_write(const struct hz_trace *t, struct km_buf *out);
/* After tf_csv_read, which has the number of events of each request. */
int tf_ticks_read(const char *bytes, size_t len, struct hz_trace *t, struct km_err *err);

#endif
