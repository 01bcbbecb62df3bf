/* Connections on libevent's event loop, with plain recv and send.
 *
 * The socket is also read while a request is in progress, so that a disconnect is noticed at once. Bytes of later
 * requests are kept in `in`, at most MAX_PENDING_IN. Answers are appended to `out`. http_flush sends everything that
 * was appended since the last flush with one send.
 *
 * A connection that must end is marked `dead`, and is freed later by its timer on the event loop. So an http_conn stays
 * valid until the handler that uses it returns.
 *
 * Invariant: `user` is set exactly while a request is held. */
#include "engine/server/http.h"

#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"
#include "engine/server/respond.h"

#include <errno.h>
#include <event2/event.h>
#include <event2/listener.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

/* Bytes: buffer of one recv; limit of pipelined requests that wait; unsent bytes above which no request is parsed */
enum { READ_SIZE = 65536, MAX_PENDING_IN = 65536, MAX_PENDING_OUT = 65536 };
enum { LINGER_MS = 1000, ACCEPT_PAUSE_MS = 200 };

enum state {
    C_READ,   /* reads a request, or waits for one */
    C_CALL,   /* inside a handler of the owner */
    C_HELD,   /* the owner answers later */
    C_STREAM, /* the owner answers in pieces */
    C_CLOSE,  /* sends the rest of out, then closes */
    C_LINGER  /* the sending side is shut down, and the client's last bytes are read and dropped. A close with unread
               * bytes would reset the connection, and the client could lose the answer. */
};

struct http_conn {
    struct http *h;
    struct http_conn *next, *prev; /* in http.all */
    struct http_conn *dirty_next;  /* in http.dirty */
    struct http_conn *ready_next;  /* in http.ready */
    bool dirty;                    /* in the list of connections that http_flush must visit */
    bool ready;                    /* in the list of connections whose next request was received */
    bool dead;                     /* to be freed by its timer */
    bool reading;                  /* a request has begun to arrive */
    bool unclean;                  /* bytes of the client may be unread at the close, so linger before it */
    bool chunked;                  /* the stream being sent uses the chunked coding */
    bool head_only;                /* the request is HEAD: its answer has no body */
    bool keep;                     /* the connection stays open after this answer */
    bool answered;                 /* the request whose head was reported last has its answer */
    int fd;
    enum state state;
    struct event *ev_read, *ev_write;
    struct event *timer; /* idle time, read deadline, stalled write, linger, or the end of a dead connection */
    struct hp req;
    struct km_buf in;  /* received, not parsed */
    struct km_buf out; /* to be sent; out[0, out_at) is sent */
    size_t out_at;
    void (*client_gone)(void *user);
    void *user; /* argument of client_gone; NULL: no request is held */
};

struct http {
    struct event_base *base;
    struct http_opts o;
    struct http_handlers handlers;
    void *arg;
    struct evconnlistener *listener;
    struct event *accept_timer;
    struct event *ready_timer; /* visits the list `ready` in the next turn of the event loop */
    struct http_conn *all, *dirty, *ready;
    struct http_stats stats;
    bool draining, paused;
    int port;
};

static struct timeval to_timeval(double s)
{
    struct timeval tv = {(time_t)s, (suseconds_t)((s - (double)(time_t)s) * 1e6)};
    return tv;
}

static void set_timer(struct http_conn *c, double s)
{
    struct timeval tv = to_timeval(s);
    event_add(c->timer, &tv);
}

/* Marks the connection as dead; its timer frees it in this turn of the event loop. */
static void conn_kill(struct http_conn *c)
{
    if (c->dead)
        return;
    c->dead = true;
    event_del(c->ev_read);
    event_del(c->ev_write);
    event_active(c->timer, EV_TIMEOUT, 0);
}

static void accept_resume(struct http *h)
{
    if (h->paused && !h->draining) {
        h->paused = false;
        evconnlistener_enable(h->listener);
    }
}

static void accept_pause(struct http *h)
{
    if (h->paused)
        return;
    h->paused = true;
    h->stats.accept_pauses++;
    evconnlistener_disable(h->listener);
}

static void conn_free(struct http_conn *c)
{
    struct http *h = c->h;
    if (c->user)
        c->client_gone(c->user);
    if (c->dirty)
        for (struct http_conn **p = &h->dirty; *p; p = &(*p)->dirty_next)
            if (*p == c) {
                *p = c->dirty_next;
                break;
            }
    if (c->ready)
        for (struct http_conn **p = &h->ready; *p; p = &(*p)->ready_next)
            if (*p == c) {
                *p = c->ready_next;
                break;
            }
    if (c->prev)
        c->prev->next = c->next;
    else
        h->all = c->next;
    if (c->next)
        c->next->prev = c->prev;
    if (c->ev_read)
        event_free(c->ev_read);
    if (c->ev_write)
        event_free(c->ev_write);
    if (c->timer)
        event_free(c->timer);
    close(c->fd);
    hp_free(&c->req);
    km_buf_free(&c->in);
    km_buf_free(&c->out);
    km_free(c);
    h->stats.connections--;
    accept_resume(h);
}

static size_t unsent_bytes(const struct http_conn *c)
{
    return c->out.len - c->out_at;
}

static void mark_dirty(struct http_conn *c)
{
    if (!c->dirty) {
        c->dirty = true;
        c->dirty_next = c->h->dirty;
        c->h->dirty = c;
    }
}

static void linger_or_close(struct http_conn *c)
{
    if (!c->unclean && !c->reading) {
        conn_kill(c);
        return;
    }
    c->state = C_LINGER;
    shutdown(c->fd, SHUT_WR);
    event_add(c->ev_read, NULL);
    set_timer(c, LINGER_MS / 1000.0);
}

/* Sends as much of out as the socket accepts. Afterwards out is empty, or the write event is pending, or c is dead. */
static void conn_send(struct http_conn *c)
{
    bool progress = false;
    while (!c->dead && unsent_bytes(c)) {
        ssize_t n = send(c->fd, c->out.data + c->out_at, unsent_bytes(c), MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) {
            if (progress || !event_pending(c->ev_write, EV_WRITE, NULL)) {
                event_add(c->ev_write, NULL);
                set_timer(c, c->h->o.read_timeout);
            }
            if (c->out_at > c->out.len / 2) {
                memmove(c->out.data, c->out.data + c->out_at, unsent_bytes(c));
                c->out.len -= c->out_at;
                c->out_at = 0;
            }
            return;
        }
        if (n < 0) {
            conn_kill(c);
            return;
        }
        c->out_at += (size_t)n;
        progress = true;
    }
    if (c->dead)
        return;
    c->out_at = 0;
    if (c->out.cap > 1 << 20)
        km_buf_free(&c->out);
    else
        km_buf_clear(&c->out);
    if (event_pending(c->ev_write, EV_WRITE, NULL)) {
        event_del(c->ev_write);
        event_del(c->timer); /* the deadline of the stalled write */
    }
    if (c->state == C_CLOSE)
        linger_or_close(c);
}

/* The answer is complete: the connection reads the next request, or closes. */
static void finish_answer(struct http_conn *c)
{
    c->answered = true;
    if (c->keep && !c->h->draining) {
        hp_reset(&c->req);
        c->reading = false;
        c->state = C_READ;
    } else {
        c->state = C_CLOSE;
    }
    mark_dirty(c);
}

static const char *reason_phrase(int status)
{
    static const struct {
        int status;
        const char *phrase;
    } rows[] = {{200, "OK"},
                {400, "Bad Request"},
                {401, "Unauthorized"},
                {404, "Not Found"},
                {405, "Method Not Allowed"},
                {408, "Request Timeout"},
                {409, "Conflict"},
                {411, "Length Required"},
                {413, "Content Too Large"},
                {414, "URI Too Long"},
                {415, "Unsupported Media Type"},
                {417, "Expectation Failed"},
                {429, "Too Many Requests"},
                {431, "Request Header Fields Too Large"},
                {500, "Internal Server Error"},
                {503, "Service Unavailable"},
                {505, "HTTP Version Not Supported"}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        if (rows[i].status == status)
            return rows[i].phrase;
    return "Unknown";
}

static void put_head(struct http_conn *c, int status, const char *type)
{
    char date[64];
    time_t now = time(NULL);
    struct tm tm;
    gmtime_r(&now, &tm);
    strftime(date, sizeof date, "%a, %d %b %Y %H:%M:%S GMT", &tm);
    km_buf_printf(&c->out, "HTTP/1.1 %d %s\r\nDate: %s\r\nServer: kvmark\r\n", status, reason_phrase(status), date);
    if (type)
        km_buf_printf(&c->out, "Content-Type: %s\r\n", type);
    if (c->h->draining)
        c->keep = false;
    if (!c->keep)
        km_buf_puts(&c->out, "Connection: close\r\n");
    else if (c->req.minor == 0)
        km_buf_puts(&c->out, "Connection: keep-alive\r\n");
    if (status > 0 && status < 600)
        c->h->stats.replies[status]++;
}

void http_reply(struct http_conn *c, int status, const char *type, const char *headers, const char *body, size_t n)
{
    c->user = NULL;
    if (c->dead)
        return;
    put_head(c, status, type);
    km_buf_printf(&c->out, "%sContent-Length: %zu\r\n\r\n", headers, n);
    if (!c->head_only)
        km_buf_put(&c->out, body, n);
    if (c->out.oom) {
        conn_kill(c);
        return;
    }
    finish_answer(c);
}

void http_reply_error(struct http_conn *c, int status, const char *headers, const char *message, const char *param,
                      const char *code)
{
    struct km_buf b = {0};
    rsp_error(&b, status, message, param && *param ? param : NULL, code);
    http_reply(c, status, "application/json", headers, km_buf_str(&b), b.len);
    km_buf_free(&b);
}

void http_hold(struct http_conn *c, void (*client_gone)(void *user), void *user)
{
    c->client_gone = client_gone;
    c->user = user;
    c->state = C_HELD;
}

void http_stream_begin(struct http_conn *c, const char *type)
{
    if (c->dead)
        return;
    c->chunked = c->req.minor >= 1;
    if (!c->chunked)
        c->keep = false;
    put_head(c, 200, type);
    km_buf_printf(&c->out, "Cache-Control: no-cache\r\nX-Accel-Buffering: no\r\n%s\r\n",
                  c->chunked ? "Transfer-Encoding: chunked\r\n" : "");
    c->state = C_STREAM;
    mark_dirty(c);
}

bool http_stream_put(struct http_conn *c, const char *data, size_t n)
{
    if (c->dead)
        return false;
    if (unsent_bytes(c) > c->h->o.max_unsent) {
        c->h->stats.slow_readers++;
        km_log(KM_LOG_DEBUG, "connection closed: its client left %zu bytes of its stream unread, more than %zu",
               unsent_bytes(c), c->h->o.max_unsent);
        conn_kill(c);
        return false;
    }
    if (!n)
        return true; /* in the chunked coding an empty chunk ends the stream */
    if (c->chunked)
        km_buf_printf(&c->out, "%zx\r\n", n);
    km_buf_put(&c->out, data, n);
    if (c->chunked)
        km_buf_put(&c->out, "\r\n", 2);
    if (c->out.oom) {
        conn_kill(c);
        return false;
    }
    mark_dirty(c);
    return true;
}

void http_stream_end(struct http_conn *c, bool keep)
{
    c->user = NULL; /* client_gone must not be called after an answer, even if the client has disconnected */
    if (c->dead)
        return;
    if (c->chunked)
        km_buf_puts(&c->out, "0\r\n\r\n");
    c->keep &= keep;
    finish_answer(c);
}

/* Answers a request that could not be read to its end, and closes: the start of the next request is unknown. */
static void refuse(struct http_conn *c, int status, const char *why)
{
    c->keep = false;
    c->unclean = true;
    c->head_only = false;
    http_reply_error(c, status, "", why, NULL, NULL);
}

/* Reports the head to the owner, who may refuse the request. The body of a refused request is never read, and the
 * connection closes. all_read: the client has sent no bytes after the head, so it may be waiting for 100 Continue. */
static void handle_head(struct http_conn *c, bool all_read)
{
    /* Read before the handler is called, because an answer resets req. */
    bool body = c->req.chunked || c->req.length;
    bool keep = c->req.keep_alive, expects = c->req.expect_continue;
    c->head_only = !strcmp(c->req.method, "HEAD");
    c->answered = false;
    c->keep = keep && !body;
    c->state = C_CALL;
    c->h->handlers.head(c->h->arg, c, &c->req);
    if (c->answered) {
        c->unclean |= body;
        return;
    }
    c->keep = keep;
    c->state = C_READ;
    if (expects && body && all_read) {
        km_buf_puts(&c->out, "HTTP/1.1 100 Continue\r\n\r\n");
        mark_dirty(c);
    }
}

/* The deadline of a request is set by its first byte; further bytes do not move it. */
static void set_read_deadline(struct http_conn *c)
{
    bool started = hp_started(&c->req);
    if (started == c->reading && event_pending(c->timer, EV_TIMEOUT, NULL))
        return;
    c->reading = started;
    set_timer(c, started ? c->h->o.read_timeout : c->h->o.idle_timeout);
}

/* Parses data[0, n) until it is consumed or one request was reported. Returns the number of bytes consumed. */
static size_t conn_parse(struct http_conn *c, const char *data, size_t n)
{
    size_t at = 0;
    while (!c->dead && c->state == C_READ && unsent_bytes(c) < MAX_PENDING_OUT) {
        size_t used;
        enum hp_event ev = hp_feed(&c->req, data + at, n - at, &used);
        at += used;
        if (ev == HP_MORE) {
            set_read_deadline(c);
            break;
        } else if (ev == HP_BAD) {
            refuse(c, c->req.status, c->req.why);
        } else if (ev == HP_HEAD) {
            handle_head(c, at == n);
            if (c->answered)
                break;
        } else {
            event_del(c->timer);
            c->reading = false;
            c->state = C_CALL;
            c->h->handlers.request(c->h->arg, c, &c->req);
            break;
        }
    }
    return at;
}

/* Parses bytes that were received while a request was in progress, up to the end of the next request. */
static void parse_pending(struct http_conn *c)
{
    if (c->dead || c->state != C_READ)
        return;
    size_t used = conn_parse(c, km_buf_str(&c->in), c->in.len);
    if (used) {
        memmove(c->in.data, c->in.data + used, c->in.len - used);
        c->in.len -= used;
    }
    if (!c->in.len && c->in.cap > MAX_PENDING_IN / 4)
        km_buf_free(&c->in);
    if (!c->dead && c->in.len < MAX_PENDING_IN && c->state != C_CLOSE)
        event_add(c->ev_read, NULL);
}

/* After an answer: sets the idle deadline or, if bytes of the next request have arrived, has them parsed in the next
 * turn of the event loop. A timer starts that turn: libevent would run an event that is made active now before it polls
 * the other sockets. */
static void continue_reading(struct http_conn *c)
{
    struct http *h = c->h;
    if (c->dead || c->state != C_READ)
        return;
    if (!c->in.len) {
        parse_pending(c);
    } else if (!c->ready) {
        c->ready = true;
        c->ready_next = h->ready;
        h->ready = c;
        struct timeval now = {0, 0};
        event_add(h->ready_timer, &now);
    }
}

static void on_ready(evutil_socket_t fd, short what, void *arg)
{
    (void)fd, (void)what;
    struct http *h = arg;
    while (h->ready) {
        struct http_conn *c = h->ready;
        h->ready = c->ready_next;
        c->ready = false;
        parse_pending(c);
    }
    http_flush(h);
}

void http_flush(struct http *h)
{
    while (h->dirty) {
        struct http_conn *c = h->dirty;
        h->dirty = c->dirty_next;
        c->dirty = false;
        if (c->dead)
            continue;
        conn_send(c);
        continue_reading(c);
    }
}

static void on_read(evutil_socket_t fd, short what, void *arg)
{
    (void)what;
    struct http_conn *c = arg;
    char buf[READ_SIZE];
    ssize_t n = recv(fd, buf, sizeof buf, MSG_DONTWAIT);
    if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR))
        return;
    if (n <= 0) {
        /* The client has shut down its sending side. A request in progress is dropped, but a complete answer is still
         * sent. */
        c->unclean = c->reading = false;
        if (n == 0 && unsent_bytes(c) && !c->user) {
            c->state = C_CLOSE;
            event_del(c->ev_read);
        } else {
            conn_kill(c);
        }
        return;
    }
    if (c->state == C_LINGER || c->state == C_CLOSE)
        return;
    size_t used = 0;
    if (c->state == C_READ && !c->in.len)
        used = conn_parse(c, buf, (size_t)n);
    if (!c->dead && used < (size_t)n && c->state != C_CLOSE) {
        km_buf_put(&c->in, buf + used, (size_t)n - used);
        if (c->in.oom)
            conn_kill(c);
        else if (c->in.len >= MAX_PENDING_IN)
            event_del(c->ev_read);
    }
    if (!c->dead && used < (size_t)n)
        c->unclean = true;
    http_flush(c->h);
}

static void on_write(evutil_socket_t fd, short what, void *arg)
{
    (void)fd, (void)what;
    struct http_conn *c = arg;
    conn_send(c);
    continue_reading(c);
    http_flush(c->h);
}

static void on_timer(evutil_socket_t fd, short what, void *arg)
{
    (void)fd, (void)what;
    struct http_conn *c = arg;
    struct http *h = c->h;
    if (!c->dead && unsent_bytes(c)) {
        h->stats.slow_readers++;
        c->dead = true;
    } else if (!c->dead && c->state == C_READ && c->reading) {
        h->stats.timeouts++;
        char why[120];
        snprintf(why, sizeof why, "the request did not arrive within %g s; send it faster or in smaller parts",
                 h->o.read_timeout);
        refuse(c, 408, why);
        http_flush(h);
        return;
    }
    conn_free(c); /* dead, idle for too long, or lingered long enough */
}

static void on_accept(struct evconnlistener *l, evutil_socket_t fd, struct sockaddr *a, int len, void *arg)
{
    (void)l, (void)a, (void)len;
    struct http *h = arg;
    struct http_conn *c = km_calloc(1, sizeof *c);
    if (!c) {
        close(fd);
        return;
    }
    int one = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    c->h = h;
    c->fd = fd;
    hp_init(&c->req, h->o.max_body);
    c->next = h->all;
    if (h->all)
        h->all->prev = c;
    h->all = c;
    h->stats.connections++;
    h->stats.accepted++;
    c->ev_read = event_new(h->base, fd, EV_READ | EV_PERSIST, on_read, c);
    c->ev_write = event_new(h->base, fd, EV_WRITE | EV_PERSIST, on_write, c);
    c->timer = evtimer_new(h->base, on_timer, c);
    if (!c->ev_read || !c->ev_write || !c->timer) {
        conn_free(c);
        return;
    }
    event_add(c->ev_read, NULL);
    set_timer(c, h->o.idle_timeout);
    if (h->stats.connections >= h->o.max_connections)
        accept_pause(h);
}

/* The process has no free file descriptor. The connection stays in the kernel's queue, so accepting at once again would
 * fail in a busy loop. */
static void on_accept_error(struct evconnlistener *l, void *arg)
{
    (void)l;
    struct http *h = arg;
    km_log(KM_LOG_WARN, "cannot accept a connection: %s; the next try is in %d ms (ulimit -n limits open files)",
           strerror(errno), ACCEPT_PAUSE_MS);
    accept_pause(h);
    struct timeval tv = to_timeval(ACCEPT_PAUSE_MS / 1000.0);
    evtimer_add(h->accept_timer, &tv);
}

static void on_accept_timer(evutil_socket_t fd, short what, void *arg)
{
    (void)fd, (void)what;
    accept_resume(arg);
}

static int listen_on(struct http *h, struct km_err *err)
{
    char port[16];
    snprintf(port, sizeof port, "%d", h->o.port);
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE}, *list = NULL;
    int rc = getaddrinfo(h->o.host, port, &hints, &list);
    if (rc)
        return km_fail(err, KM_ENET, "cannot listen on host \"%s\": %s", h->o.host, gai_strerror(rc));
    for (struct addrinfo *a = list; a && !h->listener; a = a->ai_next)
        h->listener = evconnlistener_new_bind(h->base, on_accept, h,
                                              LEV_OPT_CLOSE_ON_FREE | LEV_OPT_CLOSE_ON_EXEC | LEV_OPT_REUSEABLE, 1024,
                                              a->ai_addr, (int)a->ai_addrlen);
    freeaddrinfo(list);
    if (!h->listener)
        return km_fail(err, KM_ENET, "cannot listen on %s port %d: %s; choose another with --port", h->o.host,
                       h->o.port, strerror(errno));
    evconnlistener_set_error_cb(h->listener, on_accept_error);
    struct sockaddr_storage ss;
    socklen_t len = sizeof ss;
    if (getsockname(evconnlistener_get_fd(h->listener), (struct sockaddr *)&ss, &len))
        return km_fail(err, KM_ENET, "cannot read the port that the server listens on: %s", strerror(errno));
    h->port = ntohs(ss.ss_family == AF_INET6 ? ((struct sockaddr_in6 *)&ss)->sin6_port
                                             : ((struct sockaddr_in *)&ss)->sin_port);
    return 0;
}

int http_open(struct http **out, struct event_base *base, const struct http_opts *o,
              const struct http_handlers *handlers, void *arg, struct km_err *err)
{
    struct http *h = km_calloc(1, sizeof *h);
    if (!h)
        return km_fail(err, KM_ENOMEM, "out of memory while opening the server");
    h->base = base;
    h->o = *o;
    h->handlers = *handlers;
    h->arg = arg;
    h->accept_timer = evtimer_new(base, on_accept_timer, h);
    h->ready_timer = evtimer_new(base, on_ready, h);
    int rc = h->accept_timer && h->ready_timer ? listen_on(h, err)
                                               : km_fail(err, KM_ENOMEM, "out of memory while opening the server");
    if (rc) {
        http_free(h);
        return rc;
    }
    *out = h;
    return 0;
}

void http_free(struct http *h)
{
    if (!h)
        return;
    h->draining = true;
    while (h->all)
        conn_free(h->all);
    if (h->listener)
        evconnlistener_free(h->listener);
    if (h->accept_timer)
        event_free(h->accept_timer);
    if (h->ready_timer)
        event_free(h->ready_timer);
    km_free(h);
}

int http_port(const struct http *h)
{
    return h->port;
}

const struct http_stats *http_stats(const struct http *h)
{
    return &h->stats;
}

void http_drain(struct http *h)
{
    h->draining = true;
    if (h->listener)
        evconnlistener_free(h->listener); /* new clients get "connection refused" at once */
    h->listener = NULL;
    for (struct http_conn *c = h->all; c; c = c->next)
        if (c->state == C_READ && !c->reading && !unsent_bytes(c))
            conn_kill(c);
}
