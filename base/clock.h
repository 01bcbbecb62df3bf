/* Clocks, in nanoseconds. Durations use the monotonic clock; the wall clock is for labels only. */
#ifndef KM_CLOCK_H
#define KM_CLOCK_H

#include <stddef.h>
#include <stdint.h>

int64_t km_now_ns(void);                  /* CLOCK_MONOTONIC */
int64_t km_wall_ns(void);                 /* CLOCK_REALTIME  */
void km_wall_iso(char *buf, size_t size); /* now in UTC, as 2026-11-24T03:49:49Z; needs 21 bytes */

#endif
