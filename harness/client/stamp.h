/* Arrival times of a response's bytes, from the kernel's receive timestamps (SO_TIMESTAMPING).
 *
 * A `stamp` is the arrival time of some bytes. A `stamp_reader` makes stamps for all connections of a client. Its one
 * guarantee: a stamp is never earlier than the true arrival. Where the kernel's timestamp might be, the stamp is the
 * client's own clock, which can only be later.
 *
 * Why the kernel's timestamps: a client that is descheduled for 5 ms would add up to 5 ms to a TTFT. The kernel stamps a
 * segment when it enters the network stack, whatever the client does.
 *
 * How it works, for each ready socket:
 * 1. stamp_look reads the socket's received-byte counter C (tcpi_bytes_received), then peeks at the queue with
 *    recvmsg(MSG_PEEK | MSG_TRUNC), which copies nothing. TCP reports the timestamp T of the last segment in the queue.
 *    The counter is read first, so all bytes up to C arrived at T or before. libcurl then reads with a plain recv.
 * 2. stamp_arrival is called when libcurl delivers bytes. Bytes that arrive after the kernel timestamp was read, but
 *    before libcurl's recv, have no timestamp. The counter identifies them: libcurl has read (counter - FIONREAD)
 *    bytes, and if that is more than C, the delivered bytes get the client's clock.
 *
 * Four cases have no kernel timestamp:
 * - A segment of this response arrived out of order (tcpi_rcv_ooopack rose). The last byte's segment need not be the
 *   newest one then, so the rest of the response gets the client's clock.
 * - The queue holds more than the peek covers (STAMP_PEEK).
 * - The wall clock jumped: its offset to CLOCK_MONOTONIC changed, or T is in the future or before the request.
 * - The kernel has no such counters (before Linux 5.4) or no receive timestamps.
 *
 * Events that were in the queue together get the stamp of the last one of them: late, but never early. */
#ifndef STAMP_H
#define STAMP_H

#include <stdbool.h>
#include <stdint.h>

enum { STAMP_PEEK = 262144 }; /* bytes that a peek covers */

struct stamp {
    int64_t ns;         /* CLOCK_MONOTONIC */
    int32_t lag_ns;     /* client's clock minus kernel timestamp at the look; -1: ns is the client's clock */
    bool while_reading; /* the bytes arrived during the read, so they did not wait for the client, timestamp or not */
};

struct stamp_reader {
    /* Kernel timestamps are wall-clock times. offset_ns = CLOCK_REALTIME - CLOCK_MONOTONIC converts them. */
    int64_t offset_ns, offset_at; /* the last good offset, and when it was read; 0: none yet */
    bool offset_good;             /* false: take no kernel timestamps until the next stamp_read_clocks */
    int64_t clock_steps;          /* jumps of the wall clock so far */

    /* The last look. */
    int fd;
    uint64_t covered;   /* bytes of the connection that had arrived by `stamp`; 0: the kernel does not count them */
    struct stamp stamp; /* of those bytes */
    int64_t looks;      /* so far */

    unsigned char peek[STAMP_PEEK]; /* never written: MSG_TRUNC copies nothing */
};

/* Asks the kernel to stamp what the socket receives. A kernel that refuses leaves the client's clock. */
void stamp_enable(int fd);

/* Reads both clocks; call it once per wake-up of the event loop, before the looks. */
void stamp_read_clocks(struct stamp_reader *r);

/* Before libcurl reads a ready socket. sent_ns: start of the request; an earlier timestamp is an error of the clocks.
 * out_of_order: stamp_out_of_order of the socket before this response. */
void stamp_look(struct stamp_reader *r, int fd, int64_t sent_ns, uint32_t out_of_order);

/* Arrival of the bytes that libcurl is delivering from the socket of the last look. */
struct stamp stamp_arrival(struct stamp_reader *r);

/* The client's clock, for bytes that no look preceded. */
struct stamp stamp_now(void);

/* Segments that the socket has received out of order so far. */
uint32_t stamp_out_of_order(int fd);

#endif
