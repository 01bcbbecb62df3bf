/* The event loop. A round asks the schedule, starts the requests that are due, waits in epoll, reads the receive
 * timestamp of each ready socket, and lets libcurl read the socket and deliver the bytes to the parser.
 *
 * A slot is a libcurl easy handle and the answer that it is receiving. The timestamp is read before libcurl reads
 * (harness/client/stamp.h). So an event's time is its arrival at this machine, not the time at which this thread
 * processed it; the difference is recorded as the client's own lag.
 *
 * Invariant: a slot is in `idle`, or its easy handle is in the multi handle; never both. */
#include "harness/client/client.h"

#include "base/clock.h"
#include "base/mem.h"
#include "harness/client/answer.h"
#include "harness/client/hist.h"
#include "harness/client/request.h"
#include "harness/client/schedule.h"
#include "harness/client/stamp.h"

#include <curl/curl.h>
#include <errno.h>
#include <math.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/timerfd.h>
#include <unistd.h>

enum { PERIOD_NS = 100000000 }; /* shortest time between two progress calls, and longest sleep in epoll_wait */

/* Default time-outs of vLLM's clients. */
static const double PROMPT_TIMEOUT_S = 6 * 3600, CONVERSATION_TIMEOUT_S = 120;

struct slot {
    struct client *client;
    CURL *easy;
    char errbuf[CURL_ERROR_SIZE];
    struct schedule_item item; /* the request in flight */
    struct ans ans;
};

struct sock {
    struct slot *slot;     /* the slot that receives from this socket; NULL: none */
    uint32_t out_of_order; /* stamp_out_of_order of this socket before the current answer */
};

struct client {
    struct client_opts o;
    CURLM *multi;
    struct curl_slist *headers;
    char *url;
    int epfd, timer;     /* the epoll instance, and the timerfd in it */
    int64_t curl_due;    /* when libcurl's next timer expires; INT64_MAX: none */
    struct slot **slots; /* [n_slots] every slot; owned */
    struct slot **idle;  /* [n_idle] a stack of the slots without a request */
    int n_slots, n_idle, cap_slots;
    struct sock *socks; /* [cap_fd] indexed by file descriptor */
    int cap_fd;

    struct stamp_reader stamps;
    struct slot *peeked; /* the slot whose socket the last stamp_peek was for; NULL: none */

    /* Health counters of the schedule that is playing; struct hz_health explains them. */
    int64_t reconnects;
    struct hist loop_gap, send_lag;
    struct ans_tally tally;
    bool oom; /* on_socket found no memory */
};

/* ---- receive timestamps ---- */

/* Reads the receive timestamp of a ready socket, before libcurl reads the socket. */
static void peek(struct client *c, int fd)
{
    struct sock *k = fd < c->cap_fd ? &c->socks[fd] : NULL;
    c->peeked = k ? k->slot : NULL;
    if (c->peeked)
        stamp_peek(&c->stamps, fd, c->peeked->ans.rec.start_ns, k->out_of_order);
}

/* Arrival of the bytes that libcurl is delivering to slot s. libcurl also reads sockets when one of its timers expires,
 * and then there was no peek before. */
static struct stamp arrival(const struct slot *s)
{
    return s->client->peeked == s ? stamp_arrival(&s->client->stamps) : stamp_now();
}

/* ---- callbacks of libcurl ---- */

static size_t on_body(char *p, size_t size, size_t n, void *arg)
{
    struct slot *s = arg;
    (void)size;                                         /* always 1 */
    return ans_body(&s->ans, p, n, arrival(s)) ? n : 0; /* 0 ends the transfer */
}

static size_t on_header(char *p, size_t size, size_t n, void *arg)
{
    struct slot *s = arg;
    (void)size;
    if (n > 5 && !memcmp(p, "HTTP/", 5)) {
        long status = 0;
        curl_easy_getinfo(s->easy, CURLINFO_RESPONSE_CODE, &status);
        ans_status(&s->ans, (int)status);
    } else if (n <= 2) /* the empty line */
        ans_headers_done(&s->ans, arrival(s));
    return n;
}

static size_t discard(char *p, size_t size, size_t n, void *arg)
{
    (void)p, (void)arg;
    return size * n;
}

static int on_socket(CURL *easy, curl_socket_t fd, int what, void *arg, void *unused)
{
    struct client *c = arg;
    struct slot *s = NULL;
    (void)unused;
    if (fd >= c->cap_fd) {
        int cap = fd + 64;
        struct sock *p = km_reallocarray(c->socks, (size_t)cap, sizeof *p);
        if (!p) {
            c->oom = true;
            return -1;
        }
        memset(p + c->cap_fd, 0, (size_t)(cap - c->cap_fd) * sizeof *p);
        c->socks = p;
        c->cap_fd = cap;
    }
    if (what == CURL_POLL_REMOVE) { /* the answer is over */
        epoll_ctl(c->epfd, EPOLL_CTL_DEL, fd, NULL);
        c->socks[fd] = (struct sock){.out_of_order = stamp_out_of_order(fd)};
        if (fd == c->stamps.fd)
            c->peeked = NULL; /* libcurl may close the socket, and another connection may get its number */
        return 0;
    }
    curl_easy_getinfo(easy, CURLINFO_PRIVATE, (char **)&s);
    c->socks[fd].slot = s;
    struct epoll_event e = {.events = (what & CURL_POLL_IN ? EPOLLIN : 0u) | (what & CURL_POLL_OUT ? EPOLLOUT : 0u),
                            .data.fd = fd};
    if (epoll_ctl(c->epfd, EPOLL_CTL_MOD, fd, &e) && epoll_ctl(c->epfd, EPOLL_CTL_ADD, fd, &e))
        return -1;
    return 0;
}

static int on_timer(CURLM *multi, long ms, void *arg)
{
    struct client *c = arg;
    (void)multi;
    c->curl_due = ms < 0 ? INT64_MAX : km_now_ns() + ms * 1000000;
    return 0;
}

static int on_sockopt(void *arg, curl_socket_t fd, curlsocktype purpose)
{
    struct client *c = arg;
    if (fd < c->cap_fd)
        c->socks[fd] = (struct sock){0};
    if (purpose == CURLSOCKTYPE_IPCXN)
        stamp_enable(fd);
    return CURL_SOCKOPT_OK;
}

static void slot_free(struct slot *s)
{
    if (!s)
        return;
    curl_easy_cleanup(s->easy);
    ans_free(&s->ans);
    km_free(s);
}

static struct slot *slot_new(struct client *c)
{
    struct slot *s = km_calloc(1, sizeof *s);
    if (!s)
        return NULL;
    s->client = c;
    s->easy = curl_easy_init();
    if (!s->easy || ans_init(&s->ans, c->o.stream, c->o.completions, c->o.by_ids, &c->tally, NULL)) {
        slot_free(s);
        return NULL;
    }
    CURL *e = s->easy;
    curl_easy_setopt(e, CURLOPT_PRIVATE, s);
    curl_easy_setopt(e, CURLOPT_ERRORBUFFER, s->errbuf);
    curl_easy_setopt(e, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(e, CURLOPT_PROXY, "");
    curl_easy_setopt(e, CURLOPT_HTTP_VERSION, (long)CURL_HTTP_VERSION_1_1);
    curl_easy_setopt(e, CURLOPT_HTTPHEADER, c->headers);
    curl_easy_setopt(e, CURLOPT_USERAGENT, "kvmark");
    curl_easy_setopt(e, CURLOPT_UPLOAD_BUFFERSIZE, 256L * 1024);
    curl_easy_setopt(e, CURLOPT_SOCKOPTFUNCTION, on_sockopt);
    curl_easy_setopt(e, CURLOPT_SOCKOPTDATA, c);
    curl_easy_setopt(e, CURLOPT_HEADERDATA, s);
    curl_easy_setopt(e, CURLOPT_WRITEDATA, s);
    return s;
}

/* Removes a slot from the idle ones, or creates one if none is idle. NULL: no memory. */
static struct slot *acquire_slot(struct client *c)
{
    if (c->n_idle)
        return c->idle[--c->n_idle];
    if (c->n_slots == c->cap_slots) {
        int cap = c->cap_slots ? 2 * c->cap_slots : 16;
        struct slot **a = km_reallocarray(c->slots, (size_t)cap, sizeof *a);
        if (!a)
            return NULL;
        c->slots = a;
        struct slot **b = km_reallocarray(c->idle, (size_t)cap, sizeof *b);
        if (!b)
            return NULL;
        c->idle = b;
        c->cap_slots = cap;
    }
    struct slot *s = slot_new(c);
    if (s)
        c->slots[c->n_slots++] = s;
    return s;
}

/* One round of the event loop: sleeps until a socket is ready or until `due`, then lets libcurl read and write.
 * *busy_since: the wake-up of the last round, if that round had ready sockets, else 0. The time from that wake-up to
 * the next sleep is the loop gap: a socket that becomes ready in between has to wait. NULL: the gap is not recorded. */
static int run_loop_once(struct client *c, int64_t due, int64_t *busy_since, struct km_err *err)
{
    struct epoll_event ev[256];
    int running;
    due = c->curl_due < due ? c->curl_due : due;
    if (due < 1)
        due = 1; /* 0 would disarm the timer */
    struct itimerspec when = {.it_value = {due / 1000000000, due % 1000000000}};
    if (due != INT64_MAX)
        timerfd_settime(c->timer, TFD_TIMER_ABSTIME, &when, NULL);
    if (busy_since && *busy_since)
        hist_add(&c->loop_gap, km_now_ns() - *busy_since);
    int n = epoll_wait(c->epfd, ev, 256, -1);
    if (n < 0 && errno != EINTR)
        return km_fail(err, KM_EIO, "epoll_wait failed: %s", strerror(errno));
    int64_t now = km_now_ns();
    if (busy_since)
        *busy_since = n > 1 || (n == 1 && ev[0].data.fd != c->timer) ? now : 0;
    stamp_read_clocks(&c->stamps);
    for (int i = 0; i < n; i++) {
        int fd = ev[i].data.fd;
        uint64_t expired;
        if (fd == c->timer) {
            if (read(c->timer, &expired, sizeof expired) < 0)
                expired = 0; /* EAGAIN: the timer was set again after epoll had reported it */
            continue;
        }
        int bits = (ev[i].events & EPOLLIN ? CURL_CSELECT_IN : 0) | (ev[i].events & EPOLLOUT ? CURL_CSELECT_OUT : 0) |
                   (ev[i].events & (EPOLLERR | EPOLLHUP) ? CURL_CSELECT_ERR | CURL_CSELECT_IN : 0);
        peek(c, fd);
        curl_multi_socket_action(c->multi, fd, bits, &running);
        c->peeked = NULL;
    }
    if (c->curl_due <= now) {
        c->curl_due = INT64_MAX;
        curl_multi_socket_action(c->multi, CURL_SOCKET_TIMEOUT, 0, &running);
    }
    return c->oom ? km_fail(err, KM_ENOMEM, "no memory for the client's sockets") : 0;
}

/* Starts the slot's transfer at once. On an open connection, the request's first bytes are sent during this call. */
static int start_transfer(struct client *c, struct slot *s, struct km_err *err)
{
    int running;
    CURLMcode rc = curl_multi_add_handle(c->multi, s->easy);
    if (!rc) {
        c->curl_due = INT64_MAX;
        rc = curl_multi_socket_action(c->multi, CURL_SOCKET_TIMEOUT, 0, &running);
    }
    return rc ? km_fail(err, KM_ENOMEM, "libcurl cannot start a request: %s", curl_multi_strerror(rc)) : 0;
}

/* A slot whose transfer has ended, and libcurl's result; NULL: there is none. */
static struct slot *next_finished(struct client *c, CURLcode *result)
{
    int remaining;
    CURLMsg *m;
    while ((m = curl_multi_info_read(c->multi, &remaining))) {
        struct slot *s = NULL;
        if (m->msg != CURLMSG_DONE)
            continue;
        *result = m->data.result;
        curl_easy_getinfo(m->easy_handle, CURLINFO_PRIVATE, (char **)&s);
        return s;
    }
    return NULL;
}

static void release_slot(struct client *c, struct slot *s)
{
    curl_multi_remove_handle(c->multi, s->easy);
    c->idle[c->n_idle++] = s;
}

/* ---- open and close ---- */

int client_new(struct client **out, const struct client_opts *o, struct km_err *err)
{
    *out = NULL;
    struct client *c = km_calloc(1, sizeof *c);
    if (!c)
        return km_fail(err, KM_ENOMEM, "no memory for the client");
    c->o = *o;
    c->epfd = c->timer = -1;
    c->curl_due = INT64_MAX;
    struct km_buf url = {0};
    int rc = target_url(o->target, o->path, &url, err);
    c->url = km_buf_take(&url);
    if (!rc)
        rc = target_headers(o->target, &c->headers, err);
    if (!rc && (!c->url || curl_global_init(CURL_GLOBAL_DEFAULT) || !(c->multi = curl_multi_init())))
        rc = km_fail(err, KM_ENOMEM, "no memory for the client");
    if (!rc && ((c->epfd = epoll_create1(EPOLL_CLOEXEC)) < 0 ||
                (c->timer = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK)) < 0))
        rc = km_fail(err, KM_EIO, "epoll or timerfd failed: %s", strerror(errno));
    struct epoll_event e = {.events = EPOLLIN, .data.fd = c->timer};
    if (!rc && epoll_ctl(c->epfd, EPOLL_CTL_ADD, c->timer, &e))
        rc = km_fail(err, KM_EIO, "epoll_ctl failed for the timer: %s", strerror(errno));
    if (rc) {
        client_free(c);
        return rc;
    }
    curl_multi_setopt(c->multi, CURLMOPT_SOCKETFUNCTION, on_socket);
    curl_multi_setopt(c->multi, CURLMOPT_SOCKETDATA, c);
    curl_multi_setopt(c->multi, CURLMOPT_TIMERFUNCTION, on_timer);
    curl_multi_setopt(c->multi, CURLMOPT_TIMERDATA, c);
    *out = c;
    return 0;
}

void client_free(struct client *c)
{
    if (!c)
        return;
    for (int i = 0; i < c->n_slots; i++) {
        curl_multi_remove_handle(c->multi, c->slots[i]->easy);
        slot_free(c->slots[i]);
    }
    if (c->multi)
        curl_multi_cleanup(c->multi);
    curl_slist_free_all(c->headers);
    if (c->epfd >= 0)
        close(c->epfd);
    if (c->timer >= 0)
        close(c->timer);
    km_free(c->url);
    km_free(c->slots);
    km_free(c->idle);
    km_free(c->socks);
    km_free(c);
}

/* Raises the soft limit of open files, up to the hard one, so that n sockets fit. */
static int allow_files(int n, struct km_err *err)
{
    struct rlimit r;
    rlim_t need = (rlim_t)n + 64;
    if (getrlimit(RLIMIT_NOFILE, &r) || r.rlim_cur >= need)
        return 0;
    if (r.rlim_max != RLIM_INFINITY && r.rlim_max < need)
        return km_fail(err, KM_ELIMIT,
                       "%d connections need %d open files and the limit is %d; raise it (ulimit -n) or use a lower "
                       "--max-concurrency",
                       n, (int)need, (int)r.rlim_max);
    r.rlim_cur = need;
    return setrlimit(RLIMIT_NOFILE, &r)
               ? km_fail(err, KM_ELIMIT, "cannot raise the limit of open files to %d; raise it with ulimit -n",
                         (int)need)
               : 0;
}

int client_connect(struct client *c, int n, struct km_err *err)
{
    int rc = allow_files(n, err), open = 0;
    struct km_buf url = {0};
    if (!rc)
        rc = target_url(c->o.target, "/health", &url, err);
    curl_multi_setopt(c->multi, CURLMOPT_MAXCONNECTS, (long)n + 64);
    while (!rc && open < n) {
        struct slot *s = acquire_slot(c);
        if (!s) {
            rc = km_fail(err, KM_ENOMEM, "no memory for %d connections", n);
            break;
        }
        curl_easy_setopt(s->easy, CURLOPT_URL, url.data);
        curl_easy_setopt(s->easy, CURLOPT_HTTPGET, 1L);
        /* Each slot opens a connection of its own. Without this, libcurl would reuse one whose answer has arrived. */
        curl_easy_setopt(s->easy, CURLOPT_FRESH_CONNECT, 1L);
        curl_easy_setopt(s->easy, CURLOPT_WRITEFUNCTION, discard);
        curl_easy_setopt(s->easy, CURLOPT_HEADERFUNCTION, discard);
        curl_easy_setopt(s->easy, CURLOPT_TIMEOUT_MS, 30000L);
        rc = start_transfer(c, s, err);
        open += !rc;
    }
    while (open > 0) {
        struct slot *s;
        CURLcode result;
        while ((s = next_finished(c, &result))) {
            /* It is an error if the server cannot be reached. A health check that is slow or fails is none. */
            if (!rc && (result == CURLE_COULDNT_CONNECT || result == CURLE_COULDNT_RESOLVE_HOST ||
                        result == CURLE_URL_MALFORMAT || result == CURLE_UNSUPPORTED_PROTOCOL ||
                        result == CURLE_SSL_CONNECT_ERROR))
                rc = km_fail(err, KM_ENET, "cannot reach %s: %s; is the server running?", c->o.target->url,
                             s->errbuf[0] ? s->errbuf : curl_easy_strerror(result));
            release_slot(c, s);
            open--;
        }
        int fault = open > 0 ? run_loop_once(c, km_now_ns() + PERIOD_NS, NULL, err) : 0;
        if (fault) {
            rc = fault;
            break;
        }
    }
    km_buf_free(&url);
    return rc;
}

/* ---- the measured phase ---- */

static int send_request(struct client *c, struct req *r, const struct schedule_item *it, struct km_err *err)
{
    struct req_body body;
    struct slot *s = acquire_slot(c);
    if (!s)
        return km_fail(err, KM_ENOMEM, "no memory for one more connection");
    int rc = req_build(r, it->conv, it->turn, &body, err);
    if (rc) {
        c->idle[c->n_idle++] = s;
        return rc;
    }
    s->item = *it;
    s->errbuf[0] = 0;
    struct hz_rec rec = {.conv = it->conv,
                         .turn = it->turn,
                         .client = it->client,
                         .sched_ns = it->due_ns,
                         .asked_tokens = body.asked_tokens,
                         .messages = body.messages,
                         .prompt_tokens = -1,
                         .cached_tokens = -1,
                         .output_tokens = -1,
                         .local_prompt_tokens = -1,
                         .local_output_tokens = -1,
                         .local_first_tokens = -1};
    ans_begin(&s->ans, &rec);

    double base = c->o.timeout_s > 0 ? c->o.timeout_s : c->o.prompts ? PROMPT_TIMEOUT_S : CONVERSATION_TIMEOUT_S;
    double limit = fmax(base, 0.2 * body.asked_tokens);
    CURL *e = s->easy;
    curl_easy_setopt(e, CURLOPT_URL, c->url);
    curl_easy_setopt(e, CURLOPT_FRESH_CONNECT, 0L);
    curl_easy_setopt(e, CURLOPT_POST, 1L);
    curl_easy_setopt(e, CURLOPT_POSTFIELDS, body.p);
    curl_easy_setopt(e, CURLOPT_POSTFIELDSIZE_LARGE, (curl_off_t)body.n);
    curl_easy_setopt(e, CURLOPT_WRITEFUNCTION, on_body);
    curl_easy_setopt(e, CURLOPT_HEADERFUNCTION, on_header);
    curl_easy_setopt(e, CURLOPT_TIMEOUT_MS, (long)(limit * 1e3));

    int64_t now = km_now_ns();
    s->ans.rec.start_ns = now;
    hist_add(&c->send_lag, now - it->ready_ns);
    return start_transfer(c, s, err);
}

/* The state of client_play. */
struct play {
    struct schedule *schedule;
    struct req *req;
    struct hz_trace *trace;
    struct client_progress progress;
    double ttft_sum_ms; /* over the requests that succeeded */
};

/* Ends a request: decides whether it succeeded, records it, adds its answer to the history, informs the schedule. */
static int finish_request(struct client *c, struct slot *s, CURLcode result, struct play *play, struct km_err *err)
{
    struct client_progress *p = &play->progress;
    long opened = 0;
    struct ans_close end = {.timed_out = result == CURLE_OPERATION_TIMEDOUT, .now_ns = km_now_ns()};
    curl_easy_getinfo(s->easy, CURLINFO_CONTENT_TYPE, &end.type);
    curl_easy_getinfo(s->easy, CURLINFO_NUM_CONNECTS, &opened);
    if (result && !end.timed_out)
        end.lost = s->errbuf[0] ? s->errbuf : curl_easy_strerror(result);
    ans_end(&s->ans, &end);
    c->reconnects += opened > 0;
    const struct hz_rec *rec = &s->ans.rec;
    int rc = 0;
    bool ok = rec->ok;
    if (ok)
        rc = req_answer(play->req, s->item.conv, s->item.turn, km_buf_str(&s->ans.text), s->ans.text.len, err);
    if (ok) {
        p->done++;
        p->prompt_tokens += rec->prompt_tokens > 0 ? rec->prompt_tokens : 0;
        play->ttft_sum_ms += (double)(rec->first_ns - rec->start_ns) / 1e6;
        p->ttft_mean_ms = play->ttft_sum_ms / p->done;
    } else
        p->failed++;
    p->active--;
    if (!rc)
        rc = ans_record(&s->ans, play->trace, err);
    struct schedule_item it = s->item;
    release_slot(c, s);
    schedule_done(play->schedule, &it, ok, end.now_ns);
    return rc;
}

static double cpu_seconds(void)
{
    struct rusage u;
    getrusage(RUSAGE_THREAD, &u);
    return (double)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) + (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec) / 1e6;
}

static void reset_health(struct client *c)
{
    c->stamps.peeks = c->stamps.clock_steps = c->reconnects = 0;
    memset(&c->loop_gap, 0, sizeof c->loop_gap);
    memset(&c->send_lag, 0, sizeof c->send_lag);
    memset(&c->tally, 0, sizeof c->tally);
}

/* The client's health while it played a schedule. cpu_s: CPU time of the thread; wall_s: duration. */
static struct hz_health health_of(const struct client *c, double cpu_s, double wall_s)
{
    int64_t waited = c->tally.events - c->tally.while_reading;
    return (struct hz_health){.cpu_s = cpu_s,
                              .wall_s = wall_s,
                              .loop_gap_p99_ms = hist_ms(&c->loop_gap, 0.99),
                              .loop_gap_max_ms = c->loop_gap.n ? (double)c->loop_gap.max / 1e6 : NAN,
                              .send_lag_p99_ms = hist_ms(&c->send_lag, 0.99),
                              .events = c->tally.events,
                              .reads = c->stamps.peeks,
                              .kernel_stamps = waited ? (double)c->tally.stamped / (double)waited : NAN,
                              .stamp_lag_p99_ms = hist_ms(&c->tally.lag, 0.99),
                              .coalesced = c->tally.coalesced,
                              .reconnects = c->reconnects,
                              .clock_steps = c->stamps.clock_steps};
}

static void cancel_requests_in_flight(struct client *c)
{
    for (int i = 0; i < c->n_slots; i++) {
        bool idle = false;
        for (int k = 0; k < c->n_idle; k++)
            idle = idle || c->idle[k] == c->slots[i];
        if (!idle)
            release_slot(c, c->slots[i]);
    }
}

/* Records the requests that have ended, and starts those that are due. *active: there was one of either kind.
 * *next: the schedule's last answer; *wake: when to ask it again. */
static int advance(struct client *c, struct play *play, bool *active, enum schedule_answer *next, int64_t *wake,
                   struct km_err *err)
{
    struct schedule_item it;
    struct slot *slot;
    CURLcode result;
    int rc = 0;
    *active = false;
    for (; !rc && (slot = next_finished(c, &result)); *active = true)
        rc = finish_request(c, slot, result, play, err);
    for (; !rc && (*next = schedule_next(play->schedule, km_now_ns(), &it, wake)) == SCHEDULE_SEND; *active = true) {
        play->progress.active++;
        rc = send_request(c, play->req, &it, err);
    }
    return rc;
}

int client_play(struct client *c, struct schedule *s, struct req *r, client_progress_fn progress, void *arg,
                struct hz_trace *t, struct km_err *err)
{
    struct play play = {.schedule = s, .req = r, .trace = t, .progress.total = schedule_planned(s)};
    double cpu_before_s = cpu_seconds();
    int64_t busy_since = 0, reported = 0, wake;
    int rc = 0;
    reset_health(c);
    /* By default the kernel may fire a thread's timers up to 50 us late (the timer slack). */
    int slack = prctl(PR_GET_TIMERSLACK, 0, 0, 0, 0);
    prctl(PR_SET_TIMERSLACK, 1, 0, 0, 0);
    stamp_read_clocks(&c->stamps);
    t->begin_ns = km_now_ns();
    schedule_begin(s, t->begin_ns);
    while (!rc) {
        enum schedule_answer next;
        bool active;
        if ((rc = advance(c, &play, &active, &next, &wake, err)) || next == SCHEDULE_END)
            break;
        /* A refused connection ends its request during send_request, and no event would wake the loop for it. */
        if (active)
            continue;
        int64_t now = km_now_ns();
        if (progress && now - reported >= PERIOD_NS) {
            reported = now;
            play.progress.elapsed_ns = now - t->begin_ns;
            play.progress.output_tokens = c->tally.tokens;
            if (!progress(arg, &play.progress)) {
                t->stopped = true;
                break;
            }
        }
        rc = run_loop_once(c, wake < now + PERIOD_NS ? wake : now + PERIOD_NS, &busy_since, err);
    }
    t->end_ns = km_now_ns();
    prctl(PR_SET_TIMERSLACK, slack > 0 ? slack : 0, 0, 0, 0);
    if (rc || t->stopped)
        cancel_requests_in_flight(c);
    t->health = health_of(c, cpu_seconds() - cpu_before_s, (double)(t->end_ns - t->begin_ns) / 1e9);
    return rc;
}
