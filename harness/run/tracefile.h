/* The two files of a trace: requests.csv has one row per request, for people and spreadsheets; tokens.bin has the
 * arrival of every event, for programs. Times in both are nanoseconds since the start of the measured phase.
 *
 * tokens.bin is the magic "KVMTOK1\n", then varints (7 bits per byte, low bits first), then a checksum:
 * - the number of requests, the number of events
 * - for each request, in the order of the CSV: its number of events, and for each event three varints:
 *   its time minus that of the request's event before (the first event: its time), zigzag-coded; its tokens;
 *   lag_ns + 1, or 0 if it has no kernel timestamp
 * - XXH64 of everything before it, 8 bytes, low byte first */
#ifndef TF_TRACEFILE_H
#define TF_TRACEFILE_H

#include "base/buf.h"
#include "harness/run/trace.h"
#include "workloads/workload.h"

/* begin_ns of a trace that was read from files. It is not 0, because a time of 0 means "never". */
enum { TF_BEGIN_NS = 1000000000 };

/* Appends requests.csv. set has the conversations' ids; if it is NULL, their column is empty. */
void tf_csv_write(const struct hz_trace *t, const struct wl_set *set, struct km_buf *out);
/* Reads requests.csv into *t, which is empty. KM_EFORMAT: the file is damaged or from another version. */
int tf_csv_read(const char *text, size_t len, struct hz_trace *t, struct km_err *err);
/* Appends tokens.bin. */
void tf_ticks_write(const struct hz_trace *t, struct km_buf *out);
/* Reads tokens.bin into *t. tf_csv_read must have read the requests, whose numbers of events are needed. */
int tf_ticks_read(const char *bytes, size_t len, struct hz_trace *t, struct km_err *err);

#endif
