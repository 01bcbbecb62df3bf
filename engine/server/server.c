/* The event loop that joins connections, jobs and the engine, and its shutdown.
 *
 * The engine runs on a thread of its own and writes to an eventfd when it has events. Everything else runs on the
 * thread of the event loop, without locks. All events of a step are handled before anything is sent, so that each
 * connection gets one write for each step. */
#include "engine/server/server.h"

#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"
#include "engine/server/endpoints.h"
#include "engine/server/http.h"
#include "engine/server/jobs.h"
#include "engine/server/metrics.h"
#include "engine/server/reset.h"

#include <errno.h>
#include <event2/event.h>
#include <signal.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

/* In a shutdown, requests in progress may run for GRACE_S. Then they fail, and their clients have LAST_SEND_MS to read
 * the error. Every DRAIN_TICK_MS the server checks whether all connections have closed. */
enum { GRACE_S = 10, LAST_SEND_MS = 1500, DRAIN_TICK_MS = 10 };
enum { MAX_UNSENT = 4 << 20 }; /* bytes of a stream that its client may leave unread */

struct srv {
    struct srv_opts o;
    char *model, *device, *kv; /* owned copies of options */
    struct eng *eng;
    const struct tok *tok;
    struct runner *runner;
    struct event_base *base;
    struct event *wake_event, *drain_timer;
    int wake_fd; /* an eventfd: the engine has events, or srv_stop was called */
    struct http *http;
    struct jobs *jobs;
    struct resets *resets;
    struct met met;
    struct eng_events events; /* scratch */
    struct endpoints endpoints;
    bool forced;         /* the shutdown has ended the requests in progress */
    int64_t drain_until; /* km_now_ns at which the shutdown ends the requests in progress */
    atomic_bool stop;
};

/* Wakes the event loop, from any thread. */
static void wake(void *arg)
{
    struct srv *s = arg;
    uint64_t one = 1;
    ssize_t n = write(s->wake_fd, &one, sizeof one);
    (void)n; /* fails only if the counter is full, and then the loop is about to wake anyway */
}

/* Begins the shutdown, or ends its wait for the requests in progress if it has begun before. */
static void begin_drain(struct srv *s)
{
    if (s->endpoints.draining) {
        s->drain_until = km_now_ns(); /* a second signal ends the wait */
        return;
    }
    s->endpoints.draining = true;
    s->drain_until = km_now_ns() + (int64_t)GRACE_S * 1000000000;
    if (jobs_live(s->jobs))
        km_log(KM_LOG_INFO, "shutting down: %d requests in progress have %d s to finish", jobs_live(s->jobs), GRACE_S);
    http_drain(s->http);
    event_active(s->drain_timer, EV_TIMEOUT, 0);
}

/* A tick of the shutdown: ends requests at the deadline, and the event loop once all connections have closed. */
static void on_drain(evutil_socket_t fd, short what, void *arg)
{
    (void)fd, (void)what;
    struct srv *s = arg;
    int64_t over = km_now_ns() - s->drain_until;
    if (over >= 0 && !s->forced) {
        s->forced = true;
        s->drain_until += over;
        jobs_fail_all(s->jobs, 503, EP_SHUTTING_DOWN);
        rst_fail_all(s->resets, 503, EP_SHUTTING_DOWN);
        http_flush(s->http);
    }
    if (!http_stats(s->http)->connections || (s->forced && over > (int64_t)LAST_SEND_MS * 1000000)) {
        event_base_loopbreak(s->base);
        return;
    }
    struct timeval tv = {0, DRAIN_TICK_MS * 1000};
    event_add(s->drain_timer, &tv);
}

/* Handles all events of the engine, then sends once for each connection. */
static void on_wake(evutil_socket_t fd, short what, void *arg)
{
    (void)fd, (void)what;
    struct srv *s = arg;
    uint64_t n;
    if (read(s->wake_fd, &n, sizeof n) < 0 && errno != EAGAIN)
        km_log(KM_LOG_ERROR, "cannot read the eventfd of the engine's thread: %s", strerror(errno));
    struct km_err err = {0};
    if (runner_collect(s->runner, &s->events, &err)) {
        struct timeval soon = {0, 1000}; /* out of memory: the runner keeps the events for the next try */
        event_base_once(s->base, -1, EV_TIMEOUT, on_wake, s, &soon);
    }
    for (int i = 0; i < s->events.n; i++)
        jobs_handle(s->jobs, &s->events.v[i]);
    rst_poll(s->resets);
    http_flush(s->http);
    if (atomic_load(&s->stop) && !s->endpoints.draining)
        begin_drain(s);
}

static void on_signal(evutil_socket_t sig, short what, void *arg)
{
    (void)sig, (void)what;
    begin_drain(arg);
}

/* Opens the parts of the server. After a failure, srv_free closes the parts that were opened. */
static int open_parts(struct srv *s, struct km_err *err)
{
    const struct srv_opts *o = &s->o;
    if ((s->wake_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)) < 0)
        return km_fail(err, KM_EIO, "cannot create an eventfd: %s", strerror(errno));
    s->base = event_base_new();
    s->wake_event = s->base ? event_new(s->base, s->wake_fd, EV_READ | EV_PERSIST, on_wake, s) : NULL;
    s->drain_timer = s->base ? evtimer_new(s->base, on_drain, s) : NULL;
    if (!s->wake_event || !s->drain_timer || !s->model || !s->device || !s->kv)
        return km_fail(err, KM_ENOMEM, "out of memory while opening the server");
    event_add(s->wake_event, NULL);
    int rc = ep_init(&s->endpoints, o->api_key, err);
    struct http_opts h = {.host = o->host,
                          .port = o->port,
                          .max_connections = o->max_connections,
                          .max_body = o->max_body,
                          .max_unsent = MAX_UNSENT,
                          .idle_timeout = o->idle_timeout,
                          .read_timeout = o->read_timeout};
    if (!rc)
        rc = http_open(&s->http, s->base, &h, &ep_handlers, &s->endpoints, err);
    if (!rc)
        rc = runner_start(&s->runner, s->eng, wake, s, err);
    if (!rc)
        rc = rst_open(&s->resets, s->runner, err);
    struct jobs_env env = {.runner = s->runner, .tok = s->tok, .model = s->model, .seed = o->seed, .met = &s->met};
    if (!rc)
        rc = jobs_open(&s->jobs, &env, err);
    struct endpoints *p = &s->endpoints;
    p->eng = s->eng, p->tok = s->tok, p->runner = s->runner, p->http = s->http, p->jobs = s->jobs;
    p->resets = s->resets, p->met = &s->met, p->model = s->model, p->device = s->device, p->kv = s->kv;
    p->created = time(NULL);
    return rc;
}

int srv_open(struct srv **out, const struct srv_opts *o, struct eng *e, const struct tok *t, struct km_err *err)
{
    struct srv *s = km_calloc(1, sizeof *s);
    if (!s)
        return km_fail(err, KM_ENOMEM, "out of memory while opening the server");
    s->o = *o;
    s->wake_fd = -1;
    s->eng = e;
    s->tok = t;
    s->model = km_strdup(o->served_name ? o->served_name : mdl_name(eng_model(e)));
    s->device = km_strdup(o->device ? o->device : "");
    s->kv = km_strdup(o->kv ? o->kv : "none");
    int rc = open_parts(s, err);
    if (rc) {
        srv_free(s);
        return rc;
    }
    *out = s;
    return 0;
}

int srv_port(const struct srv *s)
{
    return http_port(s->http);
}

int srv_run(struct srv *s, bool handle_signals, struct km_err *err)
{
    struct event *sig[2] = {NULL, NULL};
    if (handle_signals) {
        sig[0] = evsignal_new(s->base, SIGTERM, on_signal, s);
        sig[1] = evsignal_new(s->base, SIGINT, on_signal, s);
        for (int i = 0; i < 2; i++)
            if (sig[i])
                event_add(sig[i], NULL);
    }
    int rc = 0;
    if (event_base_dispatch(s->base) < 0)
        rc = km_fail(err, KM_EIO, "the event loop of the server failed: %s", strerror(errno));
    for (int i = 0; i < 2; i++)
        if (sig[i])
            event_free(sig[i]);
    return rc;
}

void srv_stop(struct srv *s)
{
    atomic_store(&s->stop, true);
    wake(s);
}

void srv_free(struct srv *s)
{
    if (!s)
        return;
    http_free(s->http); /* first, because it cancels the requests of its clients, which needs the runner */
    jobs_free(s->jobs);
    rst_free(s->resets);
    runner_free(s->runner);
    km_free(s->events.v);
    if (s->wake_event)
        event_free(s->wake_event);
    if (s->drain_timer)
        event_free(s->drain_timer);
    if (s->base)
        event_base_free(s->base);
    if (s->wake_fd >= 0)
        close(s->wake_fd);
    ep_deinit(&s->endpoints);
    km_free(s->model);
    km_free(s->device);
    km_free(s->kv);
    km_free(s);
}
