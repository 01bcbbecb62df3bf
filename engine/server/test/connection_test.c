/* Connections of the server over real sockets, with the fake engine: clients that disconnect, send slowly, do not read,
 * pipeline, or frame their requests ambiguously; many clients at once; and shutdown. */
#include "base/test/test.h"

#include "base/clock.h"
#include "base/log.h"
#include "engine/server/test/fake_engine.h"
#include "engine/server/test/fake_tokenizer.h"
#include "engine/server/test/test_client.h"
#include "engine/server/test/test_server.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

/* Pieces of requests. POST_JSON is a head without its end: headers and an empty line follow. BODY is a valid body, and
 * SMUGGLED a valid request, which a server must not find in the bytes of another request. */
#define POST_JSON "POST /v1/completions HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\n"
#define BODY "{\"model\":\"fake-1\",\"prompt\":\"x\"}" /* 31 bytes */
#define SMUGGLED POST_JSON "Content-Length: 31\r\n\r\n" BODY

/* Sends bytes and returns the status of the answer. *closed: the server then closed and sent nothing else. */
static int send_raw(const char *bytes, size_t n, bool *closed)
{
    struct km_buf rest = {0};
    struct answer a = {0};
    int fd = cl_connect(server.port);
    cl_send(fd, bytes, n);
    cl_read(fd, &rest, &a);
    char c;
    *closed = a.closed && !rest.len && recv(fd, &c, 1, 0) == 0;
    int status = a.status;
    close(fd);
    cl_free(&a);
    km_buf_free(&rest);
    return status;
}

static int open_stream(const char *prompt, int n, int max_tokens)
{
    char body[300];
    snprintf(body, sizeof body, "{" MODEL ",\"prompt\":\"%s\",\"n\":%d,\"max_tokens\":%d,\"stream\":true}", prompt, n,
             max_tokens);
    return cl_start(server.port, COMP, body);
}

static void a_disconnected_client_is_cancelled(void **state)
{
    (void)state;
    server_start();
    for (int i = 0; i < 20; i++) {
        /* Disconnects at different points of the stream, by FIN and by RST, with one choice and with four. */
        int choices = i % 2 ? 4 : 1;
        int fd = open_stream("abcdef", choices, 3000);
        wait_until_equal(&fake.live, choices);
        char buf[200];
        for (int k = 0; k < i; k++)
            assert_true(recv(fd, buf, sizeof buf, 0) > 0);
        int aborts = fake.cancelled_abort;
        if (i % 3 == 0) {
            struct linger l = {1, 0};
            setsockopt(fd, SOL_SOCKET, SO_LINGER, &l, sizeof l);
        }
        close(fd);
        wait_until_equal(&fake.live, 0);
        wait_until_equal(&fake.cancelled_abort, aborts + choices);
    }
    /* Disconnects before the first token. */
    fake.paused = 1;
    int fd = open_stream("abc", 2, 100);
    wait_until_equal(&fake.live, 2);
    close(fd);
    wait_until_equal(&fake.live, 0);
    fake.paused = 0;
    assert_true(cl_metric(server.port, "vllm:num_requests_running") == 0);
    assert_true(cl_metric(server.port, "kvmark_kv_pages_used") == 0);
    assert_true(cl_metric(server.port, "kvmark_http_requests_live") == 0);
    /* A finished request is not cancelled. */
    int aborts = fake.cancelled_abort;
    cl_expect(server.port, COMP, "{" MODEL ",\"prompt\":\"x\"}", 200);
    assert_int_equal(fake.cancelled_abort, aborts);
    server_stop();
}

struct one_of_many {
    pthread_t thread;
    int i, ok;
};

static void *stream_thread(void *arg)
{
    struct one_of_many *o = arg;
    char body[300], want[400] = "";
    snprintf(body, sizeof body, "{" MODEL ",\"prompt\":\"%02d-\xf0\x9f\x8c\x8d.\",\"max_tokens\":%d,\"stream\":true}",
             o->i, 8 * (10 + o->i % 7));
    for (int k = 0; k < 10 + o->i % 7; k++)
        sprintf(want + strlen(want), "%02d-\xf0\x9f\x8c\x8d.", o->i);
    struct streamed s;
    cl_stream(server.port, COMP, body, &s);
    o->ok = !strcmp(km_buf_str(&s.text[0]), want) && s.done == 1 && !strcmp(s.finish[0], "length");
    cl_stream_free(&s);
    return NULL;
}

static void concurrent_streams(void **state)
{
    (void)state;
    server_start();
    struct one_of_many all[64] = {0};
    for (int i = 0; i < 64; i++) {
        all[i].i = i;
        pthread_create(&all[i].thread, NULL, stream_thread, &all[i]);
    }
    for (int i = 0; i < 64; i++) {
        pthread_join(all[i].thread, NULL);
        assert_true(all[i].ok);
    }
    assert_int_equal(fake.submitted, 64);
    assert_int_equal(fake.live, 0);
    server_stop();
}

static void ambiguous_framing_closes_the_connection(void **state)
{
    (void)state;
    struct srv_opts o = srv_defaults();
    o.max_body = 1000;
    server_start_with(o, fake_tok, false);
    static const struct {
        const char *s;
        int status;
    } rows[] = {
        {POST_JSON "Content-Length: 31\r\nContent-Length: 31\r\n\r\n" BODY SMUGGLED, 400},
        {POST_JSON "Content-Length: 31\r\nTransfer-Encoding: chunked\r\n\r\n1F\r\n" BODY "\r\n0\r\n\r\n" SMUGGLED, 400},
        {POST_JSON "Content-Length: +31\r\n\r\n" BODY SMUGGLED, 400},
        {POST_JSON "Content-Length: 0x1f\r\n\r\n" BODY SMUGGLED, 400},
        {POST_JSON "Content-Length : 31\r\n\r\n" BODY SMUGGLED, 400},
        {POST_JSON "Transfer-Encoding: gzip\r\n\r\n" BODY SMUGGLED, 400},
        {POST_JSON "Transfer-Encoding: chunked\r\n\r\n1f\n" BODY "\r\n0\r\n\r\n" SMUGGLED, 400},
        {POST_JSON "Transfer-Encoding: chunked\r\n\r\n+1f\r\n" BODY "\r\n0\r\n\r\n" SMUGGLED, 400},
        {POST_JSON "X: a\r\n b\r\nContent-Length: 31\r\n\r\n" BODY SMUGGLED, 400},
        {"POST /v1/completions HTTP/1.1\r\nContent-Length: 31\r\n\r\n" BODY SMUGGLED, 400},
        {"GET /health HTTP/1.1\nHost: h\n\n", 400},
        {"GET /health HTTP/3.0\r\n\r\n", 505},
        {POST_JSON "Content-Length: 1001\r\n\r\n", 413},
        {POST_JSON "Content-Length: 99999999999999999999\r\n\r\n", 413},
        {POST_JSON "Transfer-Encoding: chunked\r\n\r\n3E9\r\n", 413},
        {POST_JSON "Expect: later\r\nContent-Length: 31\r\n\r\n" BODY, 417},
        {POST_JSON "Content-Type: text/plain\r\nX\r\n\r\n", 400},
        /* Refused before the body: the connection closes, and the body is not read as a request. */
        {"POST /nowhere HTTP/1.1\r\nHost: h\r\nContent-Length: 300\r\n\r\n" SMUGGLED, 404},
        {"POST /health HTTP/1.1\r\nHost: h\r\nContent-Length: 300\r\n\r\n" SMUGGLED, 405},
        {"POST /v1/completions HTTP/1.1\r\nHost: h\r\nContent-Length: 300\r\n\r\n" SMUGGLED, 415},
        {"POST /v1/completions HTTP/1.1\r\nHost: h\r\nContent-Type: text/plain\r\nContent-Length: 300\r\n\r\n" SMUGGLED,
         415},
        {POST_JSON "Content-Encoding: gzip\r\nContent-Length: 300\r\n\r\n" SMUGGLED, 415},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        bool closed;
        int got = send_raw(rows[i].s, strlen(rows[i].s), &closed);
        if (got != rows[i].status || !closed)
            fail_msg("row %zu: %d%s instead of %d", i, got, closed ? "" : " and open", rows[i].status);
    }
    bool closed;
    assert_int_equal(send_raw(POST_JSON "\r\n", strlen(POST_JSON "\r\n"), &closed), 411);
    struct km_buf big = {0};
    km_buf_puts(&big, "GET /");
    for (int i = 0; i < 70000; i++)
        km_buf_putc(&big, 'a');
    assert_int_equal(send_raw(big.data, big.len, &closed), 414);
    km_buf_clear(&big);
    km_buf_puts(&big, "GET /health HTTP/1.1\r\nHost: h\r\n");
    for (int i = 0; i < 10000; i++)
        km_buf_printf(&big, "X-%d: y\r\n", i);
    assert_int_equal(send_raw(big.data, big.len, &closed), 431);
    km_buf_free(&big);
    assert_int_equal(fake.submitted, 0); /* no smuggled request was run */
    cl_expect(server.port, COMP, BODY, 200);
    server_stop();
}

static void pipelined_requests_are_answered_in_order(void **state)
{
    (void)state;
    server_start();
    struct km_buf all = {0};
    for (int i = 0; i < 100; i++) {
        char body[200];
        snprintf(body, sizeof body, "{" MODEL ",\"prompt\":\"%02d\",\"max_tokens\":4%s}", i,
                 i % 3 == 1 ? ",\"stream\":true" : "");
        if (i % 5 == 4)
            km_buf_puts(&all, "GET /v1/models HTTP/1.1\r\nHost: h\r\n\r\n");
        else if (i % 2)
            km_buf_printf(&all,
                          "POST /v1/completions HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\n"
                          "Transfer-Encoding: chunked\r\n\r\n%zx\r\n%s\r\n0\r\n\r\n",
                          strlen(body), body);
        else
            km_buf_printf(&all,
                          "POST /v1/completions HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\n"
                          "Content-Length: %zu\r\n\r\n%s",
                          strlen(body), body);
    }
    for (size_t step = all.len; step; step = step > 1000 ? 997 : step > 100 ? 61 : 0) {
        int fd = cl_connect(server.port);
        for (size_t at = 0; at < all.len; at += step)
            cl_send(fd, all.data + at, all.len - at < step ? all.len - at : step);
        struct km_buf rest = {0};
        for (int i = 0; i < 100; i++) {
            struct answer a;
            char want[64];
            assert_true(cl_read(fd, &rest, &a));
            assert_int_equal(a.status, 200);
            snprintf(want, sizeof want,
                     i % 5 == 4   ? "\"id\":\"fake-1\""
                     : i % 3 == 1 ? "\"text\":\"%d\""
                                  : "\"text\":\"%02d%02d\"",
                     i % 3 == 1 ? i / 10 : i, i);
            if (!strstr(a.body.data, want))
                fail_msg("answer %d lacks %s: %s", i, want, a.body.data);
            cl_free(&a);
        }
        km_buf_free(&rest);
        close(fd);
    }
    km_buf_free(&all);
    server_stop();
}

static void pipelining_delays_no_other_client(void **state)
{
    (void)state;
    /* Both clients have sent everything before the event loop begins. */
    server_open(srv_defaults(), fake_tok);
    struct km_buf many = {0};
    for (int i = 0; i < 1000; i++)
        km_buf_puts(&many, "GET /health HTTP/1.1\r\nHost: h\r\n\r\n");
    int greedy = cl_connect(server.port);
    cl_send(greedy, many.data, many.len);
    int other = cl_start(server.port, "/metrics", NULL);
    server_run(false);
    struct km_buf rest = {0};
    struct answer a;
    assert_true(cl_read(other, &rest, &a));
    const char *replies = strstr(a.body.data, "kvmark_http_responses_total{code=\"200\"} ");
    assert_true(!replies || atoi(strchr(replies, ' ')) < 10);
    cl_free(&a);
    km_buf_clear(&rest);
    for (int i = 0; i < 1000; i++) {
        assert_true(cl_read(greedy, &rest, &a));
        assert_int_equal(a.status, 200);
        cl_free(&a);
    }
    km_buf_free(&rest);
    km_buf_free(&many);
    close(greedy);
    close(other);
    server_stop();
}

static void expect_100_continue_never_stalls(void **state)
{
    (void)state;
    struct srv_opts o = srv_defaults();
    o.api_key = "secret";
    o.max_body = 1000;
    server_start_with(o, fake_tok, false);
    static const struct {
        const char *head;
        int first, last;
    } rows[] = {
        {"Authorization: Bearer secret\r\nContent-Length: 31\r\n", 100, 200},
        {"Authorization: Bearer wrong\r\nContent-Length: 31\r\n", 401, 401},
        {"Authorization: Bearer secret\r\nContent-Length: 5000\r\n", 413, 413},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        char req[500];
        int n = snprintf(req, sizeof req, POST_JSON "Expect: 100-continue\r\n%s\r\n", rows[i].head);
        int fd = cl_connect(server.port);
        cl_send(fd, req, (size_t)n);
        struct km_buf rest = {0};
        struct answer a;
        assert_true(cl_read(fd, &rest, &a));
        assert_int_equal(a.status, rows[i].first);
        if (a.status == 100) {
            cl_free(&a);
            cl_send(fd, BODY, strlen(BODY));
            assert_true(cl_read(fd, &rest, &a));
        }
        assert_int_equal(a.status, rows[i].last);
        cl_free(&a);
        km_buf_free(&rest);
        close(fd);
    }
    server_stop();
}

static void an_api_key_is_required(void **state)
{
    (void)state;
    struct srv_opts o = srv_defaults();
    o.api_key = "sk-right";
    server_start_with(o, fake_tok, false);
    static const struct {
        const char *path, *auth;
        int status;
    } rows[] = {
        {"/v1/models", "Authorization: Bearer sk-right\r\n", 200},
        {"/v1/models", "authorization: bearer  sk-right\r\n", 200},
        {"/v1/models", "Authorization: Bearer sk-righ\r\n", 401},
        {"/v1/models", "Authorization: Bearer sk-rightt\r\n", 401},
        {"/v1/models", "Authorization: Bearer\r\n", 401},
        {"/v1/models", "Authorization: sk-right\r\n", 401},
        {"/v1/models", "Authorization: Basic sk-right\r\n", 401},
        {"/v1/models", "", 401},
        {"/metrics", "", 401},
        {"/nowhere", "", 401},
        {"/health", "", 200},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        char req[300];
        bool closed;
        int n = snprintf(req, sizeof req, "GET %s HTTP/1.1\r\nHost: h\r\nConnection: close\r\n%s\r\n", rows[i].path,
                         rows[i].auth);
        assert_int_equal(send_raw(req, (size_t)n, &closed), rows[i].status);
    }
    server_stop();
}

static void head_requests_and_http_1_0(void **state)
{
    (void)state;
    server_start();
    struct km_buf rest = {0};
    struct answer a;
    /* HEAD has the headers of GET without the body, and the connection stays open. */
    int fd = cl_connect(server.port);
    const char *two = "HEAD /v1/models HTTP/1.1\r\nHost: h\r\n\r\nGET /health HTTP/1.1\r\nHost: h\r\n\r\n";
    cl_send(fd, two, strlen(two));
    while (rest.len < 10 || !strstr(rest.data, "\r\n\r\nHTTP/1.1 200")) {
        char buf[4096];
        ssize_t n = recv(fd, buf, sizeof buf, 0);
        assert_true(n > 0);
        km_buf_put(&rest, buf, (size_t)n);
    }
    assert_non_null(strstr(rest.data, "Content-Length: 1")); /* of the body that GET sends, 100 to 199 bytes */
    km_buf_clear(&rest);
    close(fd);
    /* HTTP/1.0 has no chunked coding: the end of the connection ends the stream. */
    fd = cl_connect(server.port);
    const char *body = "{" MODEL ",\"prompt\":\"abc\",\"stream\":true,\"max_tokens\":4}";
    char old[400];
    int n = snprintf(old, sizeof old,
                     "POST /v1/completions HTTP/1.0\r\nContent-Type: application/json\r\n"
                     "Content-Length: %zu\r\n\r\n%s",
                     strlen(body), body);
    cl_send(fd, old, (size_t)n);
    assert_true(cl_read(fd, &rest, &a));
    assert_int_equal(a.status, 200);
    assert_null(strstr(a.head.data, "chunked"));
    struct streamed s;
    cl_stream_parse(&a.body, &s);
    assert_string_equal(s.text[0].data, "abca");
    assert_int_equal(s.done, 1);
    cl_stream_free(&s);
    cl_free(&a);
    km_buf_free(&rest);
    close(fd);
    server_stop();
}

static void slow_clients_are_disconnected(void **state)
{
    (void)state;
    struct srv_opts o = srv_defaults();
    o.read_timeout = 0.4;
    o.idle_timeout = 0.6;
    server_start_with(o, fake_tok, false);
    /* A head, and then a body, of which one byte is sent every 100 ms. At the deadline the answer is 408, although
     * bytes still arrive. */
    static const char *const starts[] = {"GET /hea", POST_JSON "Content-Length: 31\r\n\r\n{\"mo"};
    for (int i = 0; i < 2; i++) {
        int fd = cl_connect(server.port);
        int64_t t0 = km_now_ns();
        cl_send(fd, starts[i], strlen(starts[i]));
        struct pollfd p = {fd, POLLIN, 0};
        while (!poll(&p, 1, 100))
            cl_send(fd, "a", 1);
        struct km_buf rest = {0};
        struct answer a;
        assert_true(cl_read(fd, &rest, &a));
        assert_int_equal(a.status, 408);
        assert_true(km_now_ns() - t0 < 3000000000);
        cl_free(&a);
        km_buf_free(&rest);
        close(fd);
    }
    /* An idle connection is closed without an answer. */
    int fd = cl_connect(server.port);
    char c;
    assert_int_equal(recv(fd, &c, 1, 0), 0);
    close(fd);
    /* A stream that its client does not read: the connection is closed and its requests are cancelled. */
    fake.step_us = 50;
    fd = open_stream("abcdefgh", 128, 3900);
    wait_until_equal(&fake.live, 128);
    int64_t until = km_now_ns() + 15000000000;
    while (cl_metric(server.port, "kvmark_http_slow_readers_total") < 1 && km_now_ns() < until)
        usleep(20000);
    wait_until_equal(&fake.live, 0);
    assert_true(cl_metric(server.port, "kvmark_http_slow_readers_total") == 1);
    close(fd);
    server_stop();
}

static void connections_above_the_limit_wait(void **state)
{
    (void)state;
    struct srv_opts o = srv_defaults();
    o.max_connections = 4;
    server_start_with(o, fake_tok, false);
    int fds[4];
    for (int i = 0; i < 4; i++)
        fds[i] = cl_connect(server.port);
    usleep(100000);
    const char *get = "GET /health HTTP/1.1\r\nHost: h\r\n\r\n";
    int fifth = cl_connect(server.port); /* in the kernel's queue */
    cl_send(fifth, get, strlen(get));
    struct pollfd p = {fifth, POLLIN, 0};
    assert_int_equal(poll(&p, 1, 200), 0);
    close(fds[0]);
    assert_int_equal(poll(&p, 1, 5000), 1);
    for (int i = 1; i < 4; i++)
        close(fds[i]);
    close(fifth);
    server_stop();
}

static void the_server_waits_for_file_descriptors(void **state)
{
    (void)state;
    struct rlimit was, low = {128, 128};
    getrlimit(RLIMIT_NOFILE, &was);
    low.rlim_max = was.rlim_max;
    server_start();
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &low), 0);
    int clients[8], fill[128], n = 0;
    for (int i = 0; i < 8; i++)
        clients[i] = socket(AF_INET, SOCK_STREAM, 0);
    while ((fill[n] = dup(0)) >= 0)
        n++;
    /* The kernel completes the handshakes, but the server cannot accept. It must wait without using the CPU. */
    const char *get = "GET /health HTTP/1.1\r\nHost: h\r\n\r\n";
    struct sockaddr_in to = {
        .sin_family = AF_INET, .sin_port = htons((uint16_t)server.port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    for (int i = 0; i < 8; i++) {
        assert_int_equal(connect(clients[i], (struct sockaddr *)&to, sizeof to), 0);
        cl_send(clients[i], get, strlen(get));
    }
    fake.step_us = 100000;
    clock_t cpu = clock();
    usleep(500000);
    assert_true((double)(clock() - cpu) / CLOCKS_PER_SEC < 0.1);
    while (n)
        close(fill[--n]);
    for (int i = 0; i < 8; i++) {
        struct km_buf rest = {0};
        struct answer a;
        assert_true(cl_read(clients[i], &rest, &a));
        assert_int_equal(a.status, 200);
        cl_free(&a);
        km_buf_free(&rest);
        close(clients[i]);
    }
    setrlimit(RLIMIT_NOFILE, &was);
    assert_true(cl_metric(server.port, "kvmark_http_accept_pauses_total") >= 1);
    server_stop();
}

static void a_signal_lets_streams_finish(void **state)
{
    (void)state;
    server_start_with(srv_defaults(), fake_tok, true);
    int fd = open_stream("abcd", 1, 400), idle = cl_connect(server.port);
    wait_until_equal(&fake.live, 1);
    kill(getpid(), SIGTERM);
    struct km_buf rest = {0};
    struct answer a;
    assert_true(cl_read(fd, &rest, &a)); /* the stream runs to its end */
    struct streamed s;
    cl_stream_parse(&a.body, &s);
    assert_int_equal(s.text[0].len, 400);
    assert_int_equal(s.done, 1);
    cl_stream_free(&s);
    cl_free(&a);
    close(fd);
    char c;
    assert_int_equal(recv(idle, &c, 1, 0), 0);
    close(idle);
    pthread_join(server.thread, NULL);
    assert_int_equal(server.rc, 0);
    assert_int_equal(cl_connect(server.port), -1);
    srv_free(server.s);
    km_buf_free(&rest);
}

static void a_second_signal_ends_streams(void **state)
{
    (void)state;
    /* A second signal ends the wait: the stream ends with an error event, and without [DONE]. */
    server_start_with(srv_defaults(), fake_tok, true);
    fake.step_us = 20000;
    int fd = open_stream("abcd", 1, 3000);
    struct km_buf rest = {0};
    struct answer a;
    struct streamed s;
    char buf[10];
    assert_true(recv(fd, buf, 1, MSG_PEEK) > 0);
    kill(getpid(), SIGTERM);
    usleep(100000);
    kill(getpid(), SIGTERM);
    assert_true(cl_read(fd, &rest, &a));
    cl_stream_parse(&a.body, &s);
    assert_int_equal(s.errors, 1);
    assert_int_equal(s.done, 0);
    assert_non_null(strstr(s.error, "shutting down"));
    cl_stream_free(&s);
    cl_free(&a);
    close(fd);
    km_buf_free(&rest);
    pthread_join(server.thread, NULL);
    srv_free(server.s);
    assert_int_equal(fake.live, 0);
}

static void a_taken_port_is_named(void **state)
{
    (void)state;
    struct km_err err = {0};
    struct srv_opts o = srv_defaults();
    o.port = 0;
    assert_int_equal(srv_open(&server.s, &o, fake_eng(), fake_tok, &err), 0);
    struct srv *other;
    o.port = srv_port(server.s);
    assert_int_equal(srv_open(&other, &o, fake_eng(), fake_tok, &err), KM_ENET);
    char port[16];
    snprintf(port, sizeof port, "%d", o.port);
    assert_non_null(strstr(err.msg, "127.0.0.1"));
    assert_non_null(strstr(err.msg, port));
    o.host = "no.such.host.invalid";
    assert_int_equal(srv_open(&other, &o, fake_eng(), fake_tok, &err), KM_ENET);
    srv_free(server.s);
}

int main(void)
{
    km_log_level(KM_LOG_ERROR);
/* Each test begins with a fake engine in its initial state. */
#define TEST(f) cmocka_unit_test_setup(f, server_setup)
    const struct CMUnitTest tests[] = {
        TEST(a_disconnected_client_is_cancelled),
        TEST(concurrent_streams),
        TEST(ambiguous_framing_closes_the_connection),
        TEST(pipelined_requests_are_answered_in_order),
        TEST(pipelining_delays_no_other_client),
        TEST(expect_100_continue_never_stalls),
        TEST(an_api_key_is_required),
        TEST(head_requests_and_http_1_0),
        TEST(slow_clients_are_disconnected),
        TEST(connections_above_the_limit_wait),
        TEST(the_server_waits_for_file_descriptors),
        TEST(a_signal_lets_streams_finish),
        TEST(a_second_signal_ends_streams),
        TEST(a_taken_port_is_named),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
