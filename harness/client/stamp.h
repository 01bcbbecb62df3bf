/* Arrival times of a response's bytes, from the kernel's receive timestamps (SO_TIMESTAMPING).
 *
 * A `stamp` is the arrival time of some bytes. A `stamp_reader` makes stamps for all connections of a client. Its one
 * guarantee: a stamp is never earlier than the true arrival. Wherever the kernel's timestamp could be earlier, the
 * stamp is the client's own clock, which can only be later.
 *
 * Why kernel timestamps: the kernel stamps a segment (sk_buff) when it enters the network stack, whatever the client
 * does. By its own clock, a client that is descheduled for 5 ms would add up to 5 ms to a TTFT.
 *
 * Two facts about TCP in Linux:
 * - recvmsg returns one timestamp: that of the segment with the highest sequence number among the returned bytes.
 *   Segments that are merged in the queue keep the timestamp of the last one. (RX_SOFTWARE on TCP: Linux 4.14.)
 * - libcurl reads with recv, which returns no timestamp. So the timestamp must be read separately, before libcurl's
 *   read, and more bytes may arrive in between.
 *
 * Procedure, for each socket that epoll reports as readable:
 * 1. stamp_peek reads the connection's received-byte counter C (tcpi_bytes_received). Then it reads the timestamp T
 *    with recvmsg(MSG_PEEK | MSG_TRUNC), which neither removes nor copies bytes. The counter is read first. So the
 *    queue that recvmsg sees has all bytes up to C, and they arrived at T or before.
 * 2. libcurl calls recv and delivers bytes. stamp_arrival computes how many bytes have been read from the connection:
 *    counter - FIONREAD, both read again. At most C: the stamp is T. More than C: some bytes arrived after the counter
 *    was read in step 1, and the delivered bytes get the client's clock.
 *
 * The stamp is the client's clock, too, if T may be wrong or is absent:
 * - A segment of this response arrived out of order (tcpi_rcv_ooopack has risen). The segment with the highest sequence
 *   number need not be the last one to arrive then. This holds until the end of the response.
 * - The queue is longer than one peek (STAMP_PEEK_BYTES), so that T may belong to a segment before its end.
 * - The wall clock, in which the kernel stamps, has jumped: its offset to CLOCK_MONOTONIC has changed, or T is in the
 *   future or before the request was sent.
 * - The kernel has no such counters (before Linux 5.4), or no receive timestamps.
 *
 * Limits. Events that were in the queue together get the stamp of the last one: late, but never early. The guarantee
 * does not cover two kinds of clock adjustment: a jump of the wall clock below 50 us, and a backward jump between
 * stamp_read_clocks and an arrival in the same round of the event loop. */
#ifndef STAMP_H
#define STAMP_H

#include <stdbool.h>
#include <stdint.h>

enum { STAMP_PEEK_BYTES = 262144 };

struct stamp {
    int64_t ns;         /* CLOCK_MONOTONIC */
    int32_t lag_ns;     /* client's clock minus kernel timestamp at the peek; -1: ns is the client's clock */
    bool while_reading; /* the bytes arrived between the peek and libcurl's read, so they did not wait for the client */
};

struct stamp_reader {
    /* Conversion of kernel timestamps, which are in CLOCK_REALTIME: offset_ns = CLOCK_REALTIME - CLOCK_MONOTONIC. */
    int64_t offset_ns;
    int64_t offset_at;   /* CLOCK_MONOTONIC ns at which offset_ns was read; 0: not yet */
    bool offset_good;    /* false: kernel timestamps are not used until the next stamp_read_clocks */
    int64_t clock_steps; /* number of jumps of the wall clock */

    /* The last peek. */
    int fd;             /* its socket */
    uint64_t covered;   /* C: bytes of the connection that had arrived by stamp.ns; 0: the kernel does not count them */
    struct stamp stamp; /* of the bytes up to `covered` */
    int64_t peeks;      /* number of peeks */

    unsigned char unwritten[STAMP_PEEK_BYTES]; /* the buffer of recvmsg, to which MSG_TRUNC copies nothing */
};

/* Turns receive timestamps on for a new socket, before it connects. If the kernel refuses, all stamps of the socket are
 * the client's clock. */
void stamp_enable(int fd);

/* Reads both clocks. Call it in each round of the event loop, before the peeks. */
void stamp_read_clocks(struct stamp_reader *r);

/* Step 1, for a socket that is readable. sent_ns: start of the request; an earlier timestamp comes from a clock that
 * jumped. out_of_order: stamp_out_of_order(fd) before this response. */
void stamp_peek(struct stamp_reader *r, int fd, int64_t sent_ns, uint32_t out_of_order);

/* Step 2: arrival of the bytes that libcurl is delivering from the socket of the last peek. */
struct stamp stamp_arrival(struct stamp_reader *r);

/* The client's clock, for bytes that libcurl read without a peek before. */
struct stamp stamp_now(void);

/* Number of segments that the connection has received out of order; 0 on a kernel that does not count them. */
uint32_t stamp_out_of_order(int fd);

#endif
