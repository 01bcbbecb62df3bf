/* Arrival times against the send times of the server, on the same machine: no event is recorded before it was sent,
 * however the client is delayed.
 *
 * The linker replaces three functions by wrappers in this file (--wrap):
 * - curl_multi_socket_action runs between stamp_peek and libcurl's read, so its wrapper lets more bytes arrive then.
 * - getsockopt returns the kernel's counters of a connection, which the wrapper changes.
 * - km_wall_ns returns the wall clock, in which the kernel stamps; the wrapper makes it jump. */
#include "base/test/test.h"

#include "base/clock.h"
#include "harness/client/answer.h"
#include "harness/client/load.h"
#include "mock.h"

#include <curl/curl.h>
#include <linux/net_tstamp.h>
#include <linux/tcp.h>
#include <netinet/in.h>
#include <pthread.h>
#include <sched.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { CONVS = 16, TURNS = 2, TAIL = 3 /* events after the tokens: finish, usage, [DONE] */ };

enum how {
    ONE_BY_ONE,    /* each event is read before the next one is sent */
    BEFORE_READ,   /* every other time, one more event arrives between the peek and the read */
    AFTER_COUNTS,  /* as BEFORE_READ, and one more after each time the counters are read */
    BETWEEN_READS, /* every other time, one more event arrives, and libcurl reads twice after one peek */
    QUEUED         /* the socket's queue fills up before the next peek */
};

static struct bench {
    struct wl_set set;
    struct wl_conv convs[CONVS];
    struct wl_msg msgs[CONVS][2 * TURNS];
    char texts[CONVS][16]; /* "say C." for conversation C */
    struct mock *mock;
    struct hz_trace trace;
    enum how how;
    int events;              /* events of the streams that are sent one by one */
    atomic_int allowed;      /* how many of them the server may send */
    int actions;             /* calls of libcurl for a socket with bytes in its queue */
    bool add_event;          /* one more event must arrive during the current call */
    int most_queued;         /* longest queue before a peek, bytes */
    int out_of_order_at;     /* the action before which the counter reports a segment out of order; 0: none */
    int64_t out_of_order_ns; /* when that was; 0: not yet */
    bool old_kernel;         /* the kernel has no such counters */
    int walls;               /* readings of the wall clock */
    int slow_wall;           /* from this reading on, every fourth takes 1 ms; 0: none */
    int jump_wall;           /* from this reading on, it is 1 s ahead; 0: never */
    sem_t go;
} b;

/* ---- the server's next event ---- */

/* Blocks the server until allow_next, but for 50 ms at most: libcurl may have read when one of its timers expired,
 * without a call of the wrapper. */
static void wait_for_go(void *arg)
{
    struct timespec until;
    (void)arg;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_nsec += 50000000;
    until.tv_sec += until.tv_nsec / 1000000000;
    until.tv_nsec %= 1000000000;
    if (sem_timedwait(&b.go, &until))
        atomic_fetch_add(&b.allowed, 1);
}

static bool allow_next(void)
{
    if (atomic_load(&b.allowed) >= b.events)
        return false;
    atomic_fetch_add(&b.allowed, 1);
    sem_post(&b.go);
    return true;
}

static int queued_bytes(int fd)
{
    int n = 0;
    ioctl(fd, FIONREAD, &n);
    return n;
}

/* Lets the server send its next event, and waits until it is in the queue of fd. False: there is none left. */
static bool send_next(int fd)
{
    int was = queued_bytes(fd);
    if (!allow_next())
        return false;
    while (queued_bytes(fd) <= was)
        usleep(100);
    return true;
}

/* ---- the wrappers ---- */

CURLMcode __real_curl_multi_socket_action(CURLM *m, curl_socket_t fd, int ev, int *running);
CURLMcode __wrap_curl_multi_socket_action(CURLM *m, curl_socket_t fd, int ev, int *running);
int __real_getsockopt(int fd, int level, int name, void *value, socklen_t *n);
int __wrap_getsockopt(int fd, int level, int name, void *value, socklen_t *n);

CURLMcode __wrap_curl_multi_socket_action(CURLM *m, curl_socket_t fd, int ev, int *running)
{
    const struct mock_request *q;
    if (fd == CURL_SOCKET_TIMEOUT || !queued_bytes(fd) || !mock_requests(b.mock, &q))
        return __real_curl_multi_socket_action(m, fd, ev, running);
    b.add_event = b.actions++ % 2 == 0;
    if (b.actions == b.out_of_order_at)
        b.out_of_order_ns = km_now_ns();
    if (b.add_event && (b.how == BEFORE_READ || b.how == AFTER_COUNTS))
        send_next(fd);
    CURLMcode rc = __real_curl_multi_socket_action(m, fd, ev, running);
    if (b.add_event && b.how == BETWEEN_READS && send_next(fd))
        rc = __real_curl_multi_socket_action(m, fd, ev, running);
    b.add_event = false;
    for (int was = -1; b.how == QUEUED && was < queued_bytes(fd); usleep(1000))
        was = queued_bytes(fd);
    b.most_queued = queued_bytes(fd) > b.most_queued ? queued_bytes(fd) : b.most_queued;
    allow_next();
    return rc;
}

int __wrap_getsockopt(int fd, int level, int name, void *value, socklen_t *n)
{
    int rc = __real_getsockopt(fd, level, name, value, n);
    if (rc || level != IPPROTO_TCP || name != TCP_INFO)
        return rc;
    struct tcp_info *t = value;
    t->tcpi_rcv_ooopack += b.out_of_order_ns > 0;
    if (b.old_kernel)
        *n = offsetof(struct tcp_info, tcpi_rcv_ooopack);
    if (b.add_event && b.how == AFTER_COUNTS)
        send_next(fd);
    return 0;
}

int64_t __real_km_wall_ns(void);
int64_t __wrap_km_wall_ns(void);

int64_t __wrap_km_wall_ns(void)
{
    int reading = ++b.walls;
    int64_t wall = __real_km_wall_ns();
    if (b.slow_wall && reading >= b.slow_wall && reading % 4 == 0)
        usleep(1000);
    return wall + (b.jump_wall && reading >= b.jump_wall ? 1000000000 : 0);
}

/* ---- runs ---- */

static void make_workload(int convs, int turns, int tokens)
{
    memset(&b, 0, sizeof b);
    b.set = (struct wl_set){.name = "made by hand", .kind = WL_MULTI_TURN, .convs = b.convs, .n = convs};
    for (int c = 0; c < convs; c++) {
        snprintf(b.texts[c], sizeof b.texts[c], "say %d.", c);
        for (int m = 0; m < 2 * turns; m++)
            b.msgs[c][m] = (struct wl_msg){
                .assistant = m % 2, .text = b.texts[c], .len = strlen(b.texts[c]), .n_tokens = m % 2 ? tokens : 3};
        b.convs[c] = (struct wl_conv){.id = "CONV", .msgs = b.msgs[c], .n = 2 * turns};
        b.set.n_requests += turns;
    }
    sem_init(&b.go, 0, 0);
}

static void run_load(const struct mock_opts *o, int clients)
{
    struct km_err err;
    struct load_opts load = load_defaults();
    load.num_clients = clients;
    load.early_stop = false;
    if (!b.mock)
        b.mock = mock_start(o);
    struct target target = {.url = mock_url(b.mock)};
    int rc = load_run(&target, &load, &b.set, NULL, NULL, &b.trace, &err);
    if (rc)
        fail_msg("load_run: %s", err.msg);
    assert_int_equal(b.trace.n, b.set.n_requests);
}

static void finish(void)
{
    mock_stop(b.mock);
    hz_trace_free(&b.trace);
    sem_destroy(&b.go);
}

static const struct hz_tick *ticks_of(const struct hz_rec *r)
{
    return b.trace.ticks + r->tick0;
}

static const struct mock_request *request_of(const struct hz_rec *r)
{
    const struct mock_request *q;
    int n = mock_requests(b.mock, &q);
    for (int i = 0; i < n; i++)
        if (strstr(q[i].body, b.texts[r->conv]) && !r->turn == !strstr(q[i].body, "assistant"))
            return &q[i];
    fail_msg("the server has no request of conversation %d", r->conv);
    return NULL;
}

/* The number of events of r that are recorded before the server sent them. Fails if their times go back. */
static int count_early(const struct hz_rec *r)
{
    const struct hz_tick *t = ticks_of(r);
    const struct mock_request *q = request_of(r);
    assert_string_equal(r->error, "");
    assert_int_equal(q->n_sent, r->n_ticks + TAIL - 1); /* the finish is a tick, usage and [DONE] are not */
    assert_true(r->start_ns < r->header_ns && r->header_ns <= t[0].ns);
    int n = r->last_any_ns < q->sent[r->n_ticks];
    n += r->done_ns < q->sent[r->n_ticks + 1];
    for (int i = 0; i < r->n_ticks; i++) {
        n += t[i].ns < q->sent[i];
        assert_true(i == 0 || t[i - 1].ns <= t[i].ns);
    }
    assert_true(t[r->n_ticks - 1].ns <= r->last_any_ns && r->last_any_ns <= r->done_ns);
    return n;
}

static int count_all_early(void)
{
    int n = 0;
    for (int i = 0; i < b.trace.n; i++)
        n += count_early(&b.trace.recs[i]);
    return n;
}

/* Runs one conversation whose events arrive at chosen moments. */
static void play(enum how how, int turns, int tokens)
{
    b.how = how;
    b.events = turns * (tokens + TAIL);
    run_load(&(struct mock_opts){.cached = 0, .before = wait_for_go}, 1);
}

/* True if this kernel has the counters and stamps segments that arrive over loopback. The client's code is not used.
 * The kernel starts to stamp a moment after the first socket asks for it, so up to 100 bytes are tried. */
static bool kernel_can(void)
{
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t n = sizeof to;
    int flags = SOF_TIMESTAMPING_RX_SOFTWARE | SOF_TIMESTAMPING_SOFTWARE, on = socket(AF_INET, SOCK_STREAM, 0),
        from = socket(AF_INET, SOCK_STREAM, 0);
    assert_int_equal(bind(on, (struct sockaddr *)&to, n) || listen(on, 1), 0);
    assert_int_equal(getsockname(on, (struct sockaddr *)&to, &n), 0);
    setsockopt(from, SOL_SOCKET, SO_TIMESTAMPING, &flags, sizeof flags);
    assert_int_equal(connect(from, (struct sockaddr *)&to, n), 0);
    int server = accept(on, NULL, NULL);
    bool stamped = false;
    for (int i = 0; i < 100 && !stamped; i++) {
        char byte, control[256];
        struct iovec iov = {&byte, 1};
        struct msghdr m = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
        assert_int_equal(write(server, "x", 1), 1);
        assert_int_equal(recvmsg(from, &m, 0), 1);
        stamped = CMSG_FIRSTHDR(&m) != NULL;
        usleep(stamped ? 0 : 1000);
    }
    struct tcp_info t = {0};
    n = sizeof t;
    bool counted = !getsockopt(from, IPPROTO_TCP, TCP_INFO, &t, &n) && n > offsetof(struct tcp_info, tcpi_rcv_ooopack);
    close(from), close(server), close(on);
    return stamped && counted;
}

static void an_idle_client_has_kernel_timestamps(void **state)
{
    (void)state;
    make_workload(1, 1, 40);
    play(ONE_BY_ONE, 1, 40);
    assert_int_equal(count_all_early(), 0);
    double share = b.trace.health.kernel_stamps;
    finish();
    if (!kernel_can()) {
        print_message("skipped: this kernel has no receive timestamps or no received-byte counter\n");
        skip();
    }
    assert_true(share > 0.9);
}

static void bytes_after_the_peek_are_not_early(void **state)
{
    (void)state;
    static const enum how how[] = {BEFORE_READ, AFTER_COUNTS, BETWEEN_READS};
    for (int i = 0; i < 3; i++) {
        make_workload(1, 1, 40);
        play(how[i], 1, 40);
        assert_int_equal(count_all_early(), 0);
        int during_read = 0; /* events with the client's clock */
        for (int k = 0; k < 40; k++)
            during_read += ticks_of(&b.trace.recs[0])[k].lag_ns < 0;
        assert_true(during_read > 0);
        /* Of the events that did not arrive during a read; NAN: there are none. */
        double share = b.trace.health.kernel_stamps;
        assert_false(share > 0 && share <= 0.9);
        finish();
    }
}

static void a_queue_longer_than_the_peek(void **state)
{
    (void)state;
    enum { TOKENS = 240000, PER_EVENT = 1000 };
    make_workload(1, 1, TOKENS);
    b.how = QUEUED;
    run_load(&(struct mock_opts){.per_event = PER_EVENT, .cached = 0}, 1);
    assert_int_equal(count_all_early(), 0);
    const struct hz_rec *r = &b.trace.recs[0];
    struct km_buf want = {0};
    for (int i = 0; i < TOKENS; i++)
        mock_token(i, 1, &want);
    assert_int_equal(r->n_ticks, TOKENS / PER_EVENT + 1);
    assert_int_equal(r->text_len, want.len);
    assert_memory_equal(r->text, want.data, want.len);
    print_message("up to %d bytes in the queue before a peek, kernel stamps %.2f\n", b.most_queued,
                  b.trace.health.kernel_stamps);
    km_buf_free(&want);
    finish();
}

static void segments_out_of_order(void **state)
{
    (void)state;
    enum { TOKENS = 20 };
    make_workload(1, 2, TOKENS);
    b.out_of_order_at = TOKENS / 2;
    play(ONE_BY_ONE, 2, TOKENS);
    assert_int_equal(count_all_early(), 0);
    const struct hz_tick *t = ticks_of(&b.trace.recs[0]), *u = ticks_of(&b.trace.recs[1]);
    int stamped = 0, stamped_again = 0;
    for (int i = 0; i < TOKENS; i++) {
        /* From then until the end of the answer there are no kernel timestamps. */
        assert_true(t[i].ns < b.out_of_order_ns || t[i].lag_ns < 0);
        stamped += t[i].lag_ns >= 0;
        stamped_again += u[i].lag_ns >= 0;
    }
    assert_true(t[TOKENS - 1].ns > b.out_of_order_ns);
    assert_true(!stamped || stamped_again); /* the next answer has them again, on a kernel that stamps */
    finish();
}

static void a_kernel_without_the_counters(void **state)
{
    (void)state;
    make_workload(1, 1, 20);
    b.old_kernel = true;
    play(ONE_BY_ONE, 1, 20);
    assert_int_equal(count_all_early(), 0);
    assert_true(b.trace.health.kernel_stamps == 0);
    finish();
}

/* A clock reading that was interrupted is not a jump of the wall clock: the next reading is compared with the last good
 * one. */
static void an_interrupted_clock_reading(void **state)
{
    (void)state;
    make_workload(1, 1, 40);
    b.slow_wall = 20;
    play(ONE_BY_ONE, 1, 40);
    assert_int_equal(count_all_early(), 0);
    assert_true(b.walls > 40);
    assert_int_equal(b.trace.health.clock_steps, 0);
    const struct hz_tick *t = ticks_of(&b.trace.recs[0]);
    int stamped = 0;
    for (int i = 0; i < 40; i++)
        stamped += t[i].lag_ns >= 0;
    assert_true(b.trace.health.kernel_stamps == 0 || (stamped > 20 && stamped < 40));
    finish();
}

static void a_wall_clock_that_jumps(void **state)
{
    (void)state;
    make_workload(1, 1, 40);
    b.jump_wall = 30;
    play(ONE_BY_ONE, 1, 40);
    assert_int_equal(count_all_early(), 0);
    assert_true(b.walls > 40);
    assert_int_equal(b.trace.health.clock_steps, 1);
    finish();
}

static atomic_bool busy_stop;

static void *busy(void *arg)
{
    while (!atomic_load(&busy_stop))
        ;
    return arg;
}

static void a_client_that_shares_its_cpu(void **state)
{
    (void)state;
    enum { BUSY = 4 };
    pthread_t t[BUSY];
    cpu_set_t were, one;
    make_workload(CONVS, 1, 1000);
    const struct mock_opts o = {.cached = 0, .gap_us = 300};
    b.mock = mock_start(&o); /* before this thread is pinned, so that the server's threads are not */
    assert_int_equal(sched_getaffinity(0, sizeof were, &were), 0);
    int cpu = 0;
    while (!CPU_ISSET(cpu, &were))
        cpu++;
    CPU_ZERO(&one);
    CPU_SET(cpu, &one);
    assert_int_equal(sched_setaffinity(0, sizeof one, &one), 0);
    atomic_store(&busy_stop, false);
    for (int i = 0; i < BUSY; i++)
        assert_int_equal(pthread_create(&t[i], NULL, busy, NULL), 0);
    run_load(&o, CONVS);
    atomic_store(&busy_stop, true);
    for (int i = 0; i < BUSY; i++)
        pthread_join(t[i], NULL);
    assert_int_equal(sched_setaffinity(0, sizeof were, &were), 0);
    print_message("%.1f s, kernel stamps %.2f, p99 lag %.1f ms\n", b.trace.health.wall_s, b.trace.health.kernel_stamps,
                  b.trace.health.stamp_lag_p99_ms);
    assert_int_equal(count_all_early(), 0);
    finish();
}

static void times_within_an_answer_do_not_go_back(void **state)
{
    (void)state;
    static const char event[] = "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"x\"}}]}\n\n";
    static const struct stamp in[] = {{900, 300, false}, {1100, 50, false}, {1090, 70, false},
                                      {1200, -1, true},  {1150, 80, false}, {1250, 20, false}},
                              out[] = {{1000, -1, false}, {1100, 50, false}, {1100, 70, false},
                                       {1200, -1, true},  {1200, -1, true},  {1250, 20, false}};
    struct ans a;
    struct ans_tally tally = {0};
    struct hz_rec rec = {.start_ns = 500};
    assert_int_equal(ans_init(&a, true, false, false, &tally, NULL), 0);
    for (int again = 0; again < 2; again++) { /* the second answer starts afresh */
        ans_begin(&a, &rec);
        ans_status(&a, 200);
        ans_headers_done(&a, (struct stamp){1000, -1, false});
        for (int i = 0; i < 6; i++) {
            assert_true(ans_body(&a, event, sizeof event - 1, in[i]));
            assert_int_equal(a.ticks[i].ns, out[i].ns);
            assert_int_equal(a.ticks[i].lag_ns, out[i].lag_ns);
        }
        assert_int_equal(a.rec.header_ns, 1000);
        assert_int_equal(a.rec.first_ns, 1000);
        assert_int_equal(a.rec.last_ns, 1250);
        assert_int_equal(tally.stamped, 3 * (again + 1));
        assert_int_equal(tally.while_reading, 2 * (again + 1));
    }
    ans_free(&a);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(an_idle_client_has_kernel_timestamps),
        cmocka_unit_test(bytes_after_the_peek_are_not_early),
        cmocka_unit_test(a_queue_longer_than_the_peek),
        cmocka_unit_test(segments_out_of_order),
        cmocka_unit_test(a_kernel_without_the_counters),
        cmocka_unit_test(a_client_that_shares_its_cpu),
        cmocka_unit_test(times_within_an_answer_do_not_go_back),
        cmocka_unit_test(an_interrupted_clock_reading),
        cmocka_unit_test(a_wall_clock_that_jumps),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
