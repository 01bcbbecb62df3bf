#include "harness/client/stamp.h"

#include "base/clock.h"

#include <linux/net_tstamp.h>
#include <linux/tcp.h>
#include <netinet/in.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

/* A wall clock that moves further than this against CLOCK_MONOTONIC between two readings has jumped. */
enum { CLOCK_STEP_NS = 50000 };

void stamp_enable(int fd)
{
    int flags = SOF_TIMESTAMPING_RX_SOFTWARE | SOF_TIMESTAMPING_SOFTWARE;
    setsockopt(fd, SOL_SOCKET, SO_TIMESTAMPING, &flags, sizeof flags);
}

struct stamp stamp_now(void)
{
    return (struct stamp){km_now_ns(), -1, false};
}

/* The wall clock is read between two readings of CLOCK_MONOTONIC. Subtracting the later one makes the offset too small
 * by at most after - before, and a stamp too late by as much. A reading that took longer than CLOCK_STEP_NS was
 * interrupted: its offset is not used, and the next reading is compared with the last good one. The comparison allows
 * 0.1% of the time between two readings, because NTP slews the wall clock. */
void stamp_read_clocks(struct stamp_reader *r)
{
    int64_t before = km_now_ns(), wall = km_wall_ns(), after = km_now_ns();
    int64_t offset = wall - after, moved = llabs(offset - r->offset_ns);
    r->offset_good = after - before < CLOCK_STEP_NS;
    if (!r->offset_good)
        return;
    if (r->offset_at && moved >= CLOCK_STEP_NS + (after - r->offset_at) / 1000) {
        r->offset_good = false;
        r->clock_steps++;
    }
    r->offset_ns = offset;
    r->offset_at = after;
}

/* The kernel's counters of a connection. All are 0 before Linux 5.4, where tcp_info has no tcpi_rcv_ooopack. */
static struct tcp_info read_counters(int fd)
{
    struct tcp_info t = {0};
    socklen_t n = sizeof t;
    bool good = !getsockopt(fd, IPPROTO_TCP, TCP_INFO, &t, &n) &&
                n >= offsetof(struct tcp_info, tcpi_rcv_ooopack) + sizeof t.tcpi_rcv_ooopack;
    return good ? t : (struct tcp_info){0};
}

uint32_t stamp_out_of_order(int fd)
{
    return read_counters(fd).tcpi_rcv_ooopack;
}

/* The kernel timestamp of the last byte in the socket's queue, converted to CLOCK_MONOTONIC; 0: none. */
static int64_t read_kernel_timestamp(struct stamp_reader *r, int fd)
{
    char control[256];
    struct iovec iov = {r->unwritten, sizeof r->unwritten};
    struct msghdr m = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
    if (!r->offset_good)
        return 0;
    ssize_t n = recvmsg(fd, &m, MSG_PEEK | MSG_TRUNC | MSG_DONTWAIT);
    if (n <= 0 || n >= STAMP_PEEK_BYTES)
        return 0; /* the queue is empty, or may be longer than the peek */
    for (struct cmsghdr *h = CMSG_FIRSTHDR(&m); h; h = CMSG_NXTHDR(&m, h)) {
        struct timespec ts;
        if (h->cmsg_level != SOL_SOCKET || h->cmsg_type != SCM_TIMESTAMPING)
            continue;
        memcpy(&ts, CMSG_DATA(h), sizeof ts);
        return ts.tv_sec ? (int64_t)ts.tv_sec * 1000000000 + ts.tv_nsec - r->offset_ns : 0;
    }
    return 0;
}

void stamp_peek(struct stamp_reader *r, int fd, int64_t sent_ns, uint32_t out_of_order)
{
    r->fd = fd;
    struct tcp_info t = read_counters(fd);
    r->covered = t.tcpi_bytes_received;
    bool in_order = r->covered && t.tcpi_rcv_ooopack == out_of_order;
    int64_t kernel = in_order ? read_kernel_timestamp(r, fd) : 0, now = km_now_ns();
    r->peeks++;
    /* A timestamp from the future, or from before the request, comes from a clock that jumped. */
    if (kernel > 0 && kernel <= now && kernel >= sent_ns)
        r->stamp = (struct stamp){kernel, now - kernel < INT32_MAX ? (int32_t)(now - kernel) : INT32_MAX, false};
    else
        r->stamp = (struct stamp){now, -1, false};
}

/* received - queued bytes of the connection have been read. FIONREAD is called before the counter is read: bytes that
 * arrive in between raise only the counter. So the difference can only be too large, and the stamp only too late. */
struct stamp stamp_arrival(struct stamp_reader *r)
{
    int queued = 0;
    uint64_t received = read_counters(r->fd).tcpi_bytes_received;
    if (received != r->covered && !ioctl(r->fd, FIONREAD, &queued))
        received = read_counters(r->fd).tcpi_bytes_received;
    if (!received || received - (uint64_t)queued > r->covered) {
        r->covered = received;
        r->stamp = (struct stamp){km_now_ns(), -1, received > 0};
    }
    return r->stamp;
}
