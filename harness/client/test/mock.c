/* The scripted server. It is part of the tests, so it aborts on its own errors. */
#include "mock.h"

#include "base/clock.h"
#include "base/mem.h"

#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <unistd.h>

enum { MAX_CONNS = 512, MAX_REQUESTS = 4096 };

/* Not assert, because its argument must also be evaluated with NDEBUG. */
static void must(bool ok)
{
    if (!ok)
        abort();
}

struct conn {
    struct mock *m;
    pthread_t thread;
    int fd, number;
};

struct mock {
    struct mock_opts o;
    int listener;
    char url[64];
    pthread_t thread;
    pthread_mutex_t lock;
    struct conn conns[MAX_CONNS];
    int n_conns;
    struct mock_request requests[MAX_REQUESTS];
    int n_requests;
    atomic_bool stop;
};

void mock_token(int i, int messages, struct km_buf *out)
{
    static const char *const odd[] = {"\xC3\xA9", "\xF0\x9F\x98\x80", "\"q\"", "\\n\n"};
    if (i % 8 < 4)
        km_buf_printf(out, " w%d.%d", messages, i);
    else
        km_buf_puts(out, odd[i % 4]);
}

/* Sends at once or in pieces. False: the client has closed the connection. */
static bool send_bytes(struct conn *c, const char *p, size_t n)
{
    size_t piece = c->m->o.piece > 0 ? (size_t)c->m->o.piece : n;
    while (n) {
        size_t take = piece < n ? piece : n;
        ssize_t k = send(c->fd, p, take, MSG_NOSIGNAL);
        if (k <= 0)
            return false;
        p += k;
        n -= (size_t)k;
    }
    return true;
}

static void put_chunk(struct km_buf *out, const char *data, size_t n)
{
    km_buf_printf(out, "%zx\r\n", n);
    km_buf_put(out, data, n);
    km_buf_puts(out, "\r\n");
}

struct answer {
    struct conn *c;
    const struct mock_opts *o;
    struct mock_request *request;
    enum mock_mode mode;
    struct km_buf whole; /* with split_at: collected, and sent at the end */
    bool chat, gone;
};

static void put_bytes(struct answer *a, const char *bytes, size_t n)
{
    if (a->o->split_at)
        km_buf_put(&a->whole, bytes, n);
    else
        a->gone = a->gone || !send_bytes(a->c, bytes, n);
}

static void send_event(struct answer *a, const char *json)
{
    struct km_buf e = {0}, out = {0};
    const char *nl = a->mode == MOCK_CRLF ? "\r\n" : "\n";
    if (a->mode == MOCK_COMMENTS)
        km_buf_puts(&e, ": ping\n\nevent: x\nid: 1\n");
    km_buf_printf(&e, a->mode == MOCK_COMMENTS ? "data:%s%s%s" : "data: %s%s%s", json, nl, nl);
    put_chunk(&out, e.data, e.len);
    if (a->o->before)
        a->o->before(a->o->arg);
    struct mock_request *q = a->request;
    must((q->sent = realloc(q->sent, (size_t)(q->n_sent + 1) * sizeof *q->sent)) != NULL);
    q->sent[q->n_sent++] = km_now_ns();
    put_bytes(a, out.data, out.len);
    km_buf_free(&e);
    km_buf_free(&out);
}

/* The number after the first `key` in text; `other` if there is none. */
static long number_after(const char *text, const char *key, long other)
{
    const char *p = strstr(text, key);
    return p ? strtol(p + strlen(key), NULL, 10) : other;
}

static int count_occurrences(const char *text, const char *what)
{
    int n = 0;
    for (const char *p = text; (p = strstr(p, what)); p += strlen(what))
        n++;
    return n;
}

static void send_token_event(struct answer *a, int first, int n, int messages, bool reasoning)
{
    struct km_buf t = {0}, j = {0};
    for (int i = first; i < first + n; i++)
        mock_token(i, messages, &t);
    km_buf_puts(&j, "{\"id\":\"x\",\"object\":\"chunk\",\"choices\":[{\"index\":0,");
    km_buf_puts(&j, a->chat ? reasoning ? "\"delta\":{\"reasoning_content\":\"" : "\"delta\":{\"content\":\""
                            : "\"text\":\"");
    km_buf_put_json(&j, t.data, t.len);
    km_buf_puts(&j, a->chat ? "\"}" : "\"");
    if (n > 1) {
        km_buf_puts(&j, ",\"token_ids\":[");
        for (int i = 0; i < n; i++)
            km_buf_printf(&j, i ? ", %d" : "%d", first + i);
        km_buf_puts(&j, "]");
    }
    km_buf_puts(&j, ",\"finish_reason\":null}]}");
    send_event(a, j.data);
    km_buf_free(&t);
    km_buf_free(&j);
}

static void send_response(struct answer *a, const char *status, const char *type, const char *body)
{
    struct km_buf b = {0};
    km_buf_printf(&b, "HTTP/1.1 %s\r\nContent-Type: %s\r\nContent-Length: %zu\r\n\r\n%s", status, type, strlen(body),
                  body);
    a->gone = a->gone || !send_bytes(a->c, b.data, b.len);
    km_buf_free(&b);
}

static void send_whole_answer(struct answer *a, int tokens, int messages, const char *usage)
{
    struct km_buf t = {0}, j = {0};
    for (int i = 0; i < tokens; i++)
        mock_token(i, messages, &t);
    km_buf_puts(&j, "{\"object\":\"chat.completion\",\"choices\":[{\"index\":0,\"message\":{\"role\":"
                    "\"assistant\",\"content\":\"");
    km_buf_put_json(&j, t.data, t.len);
    km_buf_printf(&j, "\"},\"finish_reason\":\"length\"}],%s}", usage);
    usleep((useconds_t)a->o->ttft_us);
    send_response(a, "200 OK", "application/json", j.data);
    km_buf_free(&t);
    km_buf_free(&j);
}

static void send_stream(struct answer *a, int tokens, int messages, const char *usage)
{
    const struct mock_opts *o = a->o;
    int per = o->per_event > 0 ? o->per_event : 1;
    const char *head =
        a->mode == MOCK_CLOSE
            ? "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\nTransfer-Encoding: "
              "chunked\r\n\r\n"
            : "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";
    put_bytes(a, head, strlen(head));
    if (a->mode == MOCK_ROLE_FIRST || a->mode == MOCK_EMPTY)
        send_event(a, "{\"choices\":[{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"\"},\"finish_"
                      "reason\":null}]}");
    usleep((useconds_t)o->ttft_us);
    for (int i = 0; a->mode != MOCK_EMPTY && i < tokens && !a->gone && !atomic_load(&a->c->m->stop); i += per) {
        if (i)
            usleep((useconds_t)o->gap_us);
        if (a->mode == MOCK_ERROR_EVENT && i >= tokens / 2) {
            send_event(a, "{\"error\":{\"message\":\"the engine fell "
                          "over\",\"type\":\"server_error\",\"param\":null,\"code\":500}}");
            send_event(a, "[DONE]");
            put_bytes(a, "0\r\n\r\n", 5);
            return;
        }
        if (a->mode == MOCK_BAD_JSON && i >= tokens / 2) {
            send_event(a, "{\"choices\":[{\"delta\":");
            continue;
        }
        if (a->mode == MOCK_TRUNCATED && i >= tokens / 2) {
            put_bytes(a, "40\r\ndata: {\"choices\":[{\"del", 27);
            a->gone = true;
            return;
        }
        send_token_event(a, i, per < tokens - i ? per : tokens - i, messages,
                         a->mode == MOCK_REASONING && i < tokens / 2);
    }
    if (a->mode != MOCK_NO_END)
        send_event(a, a->chat ? "{\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"length\"}]}"
                              : "{\"choices\":[{\"index\":0,\"text\":\"\",\"finish_reason\":\"length\"}]}");
    if (!o->no_usage) {
        struct km_buf j = {0};
        km_buf_printf(&j, "{\"choices\":[],%s}", usage);
        send_event(a, j.data);
        km_buf_free(&j);
    }
    if (a->mode != MOCK_NO_DONE && a->mode != MOCK_NO_END)
        send_event(a, "[DONE]");
    put_bytes(a, "0\r\n\r\n", 5);
    if (o->split_at && !a->gone) {
        size_t cut = (size_t)o->split_at < a->whole.len ? (size_t)o->split_at : a->whole.len;
        a->gone = !send_bytes(a->c, a->whole.data, cut);
        usleep(500);
        a->gone = a->gone || !send_bytes(a->c, a->whole.data + cut, a->whole.len - cut);
    }
    a->gone = a->gone || a->mode == MOCK_CLOSE;
}

/* Logs a request and answers it. False: the connection must be closed. */
static bool answer_request(struct conn *c, const char *path, const char *headers, const char *body)
{
    struct mock *m = c->m;
    struct answer a = {.c = c, .o = &m->o, .chat = strstr(path, "chat") != NULL};
    if (!strcmp(path, "/health"))
        send_response(&a, "200 OK", "text/plain", "");
    else if (!strcmp(path, "/version"))
        send_response(&a, "200 OK", "application/json", "{\"version\":\"mock-1\"}");
    else if (!strcmp(path, "/v1/models"))
        send_response(
            &a, "200 OK", "application/json",
            "{\"object\":\"list\",\"data\":[{\"id\":\"mock\",\"root\":\"/models/mock\"},{\"id\":\"other\"}]}");
    else if (!strcmp(path, "/metrics") && m->o.metrics)
        send_response(&a, "200 OK", "text/plain; version=0.0.4", m->o.metrics);
    else if (!strstr(path, "completions"))
        send_response(&a, "404 Not Found", "application/json", "{\"detail\":\"Not Found\"}");
    else {
        pthread_mutex_lock(&m->lock);
        must(m->n_requests < MAX_REQUESTS);
        int k = m->n_requests++;
        a.request = &m->requests[k];
        *a.request = (struct mock_request){strdup(path), strdup(body), strdup(headers), c->number, NULL, 0};
        pthread_mutex_unlock(&m->lock);
        a.mode = k < m->o.from ? MOCK_NORMAL : m->o.mode;
        int messages = count_occurrences(body, "\"role\":");
        long wanted = number_after(body, "\"max_tokens\":", number_after(body, "\"max_completion_tokens\":", 8));
        int tokens = m->o.tokens ? m->o.tokens : (int)wanted;
        char usage[200];
        int n = snprintf(usage, sizeof usage,
                         "\"usage\":{\"prompt_tokens\":%d,\"completion_tokens\":%d,\"total_tokens\":%d", 100 + messages,
                         tokens, 100 + messages + tokens);
        if (m->o.cached >= 0)
            n += snprintf(usage + n, sizeof usage - (size_t)n, ",\"prompt_tokens_details\":{\"cached_tokens\":%d}",
                          m->o.cached);
        snprintf(usage + n, sizeof usage - (size_t)n, "}");
        if (a.mode == MOCK_HTML)
            send_response(&a, "200 OK", "text/html", "<html><body>Please log in</body></html>");
        else if (a.mode == MOCK_500)
            send_response(&a, "500 Internal Server Error", "application/json",
                          "{\"error\":{\"message\":\"no pages left\",\"code\":500}}");
        else if (a.mode == MOCK_SILENT)
            while (!atomic_load(&m->stop) && recv(c->fd, (char[1]){0}, 1, MSG_PEEK | MSG_DONTWAIT) != 0)
                usleep(2000);
        else if (strstr(body, "\"stream\":true"))
            send_stream(&a, tokens, messages, usage);
        else
            send_whole_answer(&a, tokens, messages, usage);
    }
    km_buf_free(&a.whole);
    return !a.gone && a.mode != MOCK_SILENT;
}

static void *serve(void *arg)
{
    struct conn *c = arg;
    struct km_buf in = {0};
    char part[65536];
    bool open = true;
    while (open) {
        char *end;
        while (!in.len || !(end = strstr(in.data, "\r\n\r\n"))) {
            ssize_t k = recv(c->fd, part, sizeof part, 0);
            if (k <= 0)
                goto out;
            km_buf_put(&in, part, (size_t)k);
        }
        size_t head = (size_t)(end - in.data) + 4;
        char *length = strcasestr(in.data, "content-length:");
        size_t body = length && length < end ? (size_t)atol(length + 15) : 0;
        while (in.len < head + body) {
            ssize_t k = recv(c->fd, part, sizeof part, 0);
            if (k <= 0)
                goto out;
            km_buf_put(&in, part, (size_t)k);
        }
        char *headers = strndup(in.data, head), *text = strndup(in.data + head, body);
        char path[256];
        must(sscanf(headers, "%*s %255s", path) == 1);
        open = answer_request(c, path, headers, text);
        free(headers);
        free(text);
        memmove(in.data, in.data + head + body, in.len - head - body + 1);
        in.len -= head + body;
    }
out:
    km_buf_free(&in);
    shutdown(c->fd, SHUT_RDWR);
    return NULL;
}

static void *accept_loop(void *arg)
{
    struct mock *m = arg;
    while (!atomic_load(&m->stop)) {
        struct pollfd p = {m->listener, POLLIN, 0};
        if (poll(&p, 1, 20) <= 0)
            continue;
        int fd = accept(m->listener, NULL, NULL);
        if (fd < 0)
            continue;
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int));
        pthread_mutex_lock(&m->lock);
        must(m->n_conns < MAX_CONNS);
        struct conn *c = &m->conns[m->n_conns];
        *c = (struct conn){.m = m, .fd = fd, .number = m->n_conns++};
        pthread_create(&c->thread, NULL, serve, c);
        pthread_mutex_unlock(&m->lock);
    }
    return NULL;
}

struct mock *mock_start(const struct mock_opts *o)
{
    struct mock *m = calloc(1, sizeof *m);
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t n = sizeof a;
    m->o = *o;
    m->listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    must(m->listener >= 0);
    must(!bind(m->listener, (struct sockaddr *)&a, n) && !listen(m->listener, 512));
    must(!getsockname(m->listener, (struct sockaddr *)&a, &n));
    snprintf(m->url, sizeof m->url, "http://127.0.0.1:%d", ntohs(a.sin_port));
    pthread_mutex_init(&m->lock, NULL);
    pthread_create(&m->thread, NULL, accept_loop, m);
    return m;
}

const char *mock_url(const struct mock *m)
{
    return m->url;
}

int mock_requests(struct mock *m, const struct mock_request **out)
{
    pthread_mutex_lock(&m->lock);
    int n = m->n_requests;
    pthread_mutex_unlock(&m->lock);
    *out = m->requests;
    return n;
}

int mock_connections(struct mock *m)
{
    pthread_mutex_lock(&m->lock);
    int n = m->n_conns;
    pthread_mutex_unlock(&m->lock);
    return n;
}

void mock_forget(struct mock *m)
{
    for (int i = 0; i < m->n_requests; i++) {
        free(m->requests[i].path);
        free(m->requests[i].body);
        free(m->requests[i].headers);
        free(m->requests[i].sent);
    }
    m->n_requests = 0;
}

void mock_die(struct mock *m)
{
    if (atomic_exchange(&m->stop, true))
        return;
    pthread_join(m->thread, NULL);
    close(m->listener);
    for (int i = 0; i < m->n_conns; i++)
        shutdown(m->conns[i].fd, SHUT_RDWR);
    for (int i = 0; i < m->n_conns; i++) {
        pthread_join(m->conns[i].thread, NULL);
        close(m->conns[i].fd);
    }
}

void mock_stop(struct mock *m)
{
    mock_die(m);
    mock_forget(m);
    pthread_mutex_destroy(&m->lock);
    free(m);
}
