#include "base/test/test.h"

#include "engine/server/test/test_client.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

int cl_connect(int port)
{
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in a = {
        .sin_family = AF_INET, .sin_port = htons((uint16_t)port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    struct timeval tv = {20, 0}; /* a server that hangs fails the test */
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &tv, sizeof tv);
    if (connect(fd, (struct sockaddr *)&a, sizeof a)) {
        close(fd);
        return -1;
    }
    return fd;
}

void cl_send(int fd, const char *s, size_t n)
{
    while (n) {
        ssize_t k = send(fd, s, n, MSG_NOSIGNAL);
        if (k <= 0)
            return; /* the server has closed: cl_read shows with which answer */
        s += k;
        n -= (size_t)k;
    }
}

static bool receive(int fd, struct km_buf *rest)
{
    char buf[65536];
    ssize_t n = recv(fd, buf, sizeof buf, 0);
    if (n < 0 && errno == EAGAIN)
        fail_msg("no answer within 20 s");
    if (n <= 0)
        return false;
    km_buf_put(rest, buf, (size_t)n);
    return true;
}

static void drop(struct km_buf *b, size_t n)
{
    memmove(b->data, b->data + n, b->len - n + 1);
    b->len -= n;
}

static bool read_line(int fd, struct km_buf *rest, char *out, size_t size)
{
    char *p;
    while (!rest->data || !(p = strstr(rest->data, "\r\n")))
        if (!receive(fd, rest))
            return false;
    snprintf(out, size, "%.*s", (int)(p - rest->data), rest->data);
    drop(rest, (size_t)(p - rest->data) + 2);
    return true;
}

static bool read_bytes(int fd, struct km_buf *rest, size_t n, struct km_buf *out)
{
    while (rest->len < n)
        if (!receive(fd, rest)) {
            km_buf_put(out, km_buf_str(rest), rest->len);
            return false;
        }
    km_buf_put(out, km_buf_str(rest), n);
    if (rest->data)
        drop(rest, n);
    return true;
}

bool cl_read(int fd, struct km_buf *rest, struct answer *a)
{
    memset(a, 0, sizeof *a);
    char l[4096];
    bool chunked = false;
    long length = -1;
    do {
        if (!read_line(fd, rest, l, sizeof l))
            return false;
        if (!strncmp(l, "HTTP/1.1 ", 9)) {
            a->status = atoi(l + 9);
            assert_true(a->status >= 100 && a->status < 600);
        }
        km_buf_printf(&a->head, "%s\n", l);
        if (!strncasecmp(l, "content-length: ", 16))
            length = atol(l + 16);
        chunked |= !strcasecmp(l, "transfer-encoding: chunked");
        a->closed |= !strcasecmp(l, "connection: close");
    } while (*l);
    if (a->status == 100)
        return true;
    if (chunked) {
        for (;;) {
            if (!read_line(fd, rest, l, sizeof l))
                return true;
            size_t n = strtoul(l, NULL, 16);
            if (!read_bytes(fd, rest, n, &a->body) || !read_line(fd, rest, l, sizeof l))
                return true;
            assert_string_equal(l, "");
            if (!n)
                return true;
        }
    }
    if (length >= 0) {
        read_bytes(fd, rest, (size_t)length, &a->body);
        return true;
    }
    while (receive(fd, rest))
        ;
    read_bytes(fd, rest, rest->len, &a->body);
    return true;
}

void cl_free(struct answer *a)
{
    km_buf_free(&a->head);
    km_buf_free(&a->body);
}

int cl_start(int port, const char *path, const char *body)
{
    struct km_buf b = {0};
    if (body)
        km_buf_printf(&b,
                      "POST %s HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\nContent-Length: %zu\r\n\r\n%s",
                      path, strlen(body), body);
    else
        km_buf_printf(&b, "GET %s HTTP/1.1\r\nHost: h\r\n\r\n", path);
    int fd = cl_connect(port);
    cl_send(fd, b.data, b.len);
    km_buf_free(&b);
    return fd;
}

void cl_request(int port, const char *path, const char *body, struct answer *a)
{
    struct km_buf rest = {0};
    int fd = cl_start(port, path, body);
    cl_read(fd, &rest, a);
    close(fd);
    km_buf_free(&rest);
}

cJSON *cl_json(int port, const char *path, const char *body, int status)
{
    struct answer a;
    struct km_err err = {0};
    cJSON *v = NULL;
    cl_request(port, path, body, &a);
    if (a.status != status)
        fail_msg("%s %.200s: status %d instead of %d: %s", path, body ? body : "", a.status, status,
                 km_buf_str(&a.body));
    if (km_json_parse(km_buf_str(&a.body), a.body.len, &v, &err))
        fail_msg("%s: %s in %s", path, err.msg, km_buf_str(&a.body));
    if (status != 200) {
        const cJSON *e = cJSON_GetObjectItem(v, "error");
        assert_true(cJSON_IsString(cJSON_GetObjectItem(e, "message")));
        assert_true(cJSON_IsString(cJSON_GetObjectItem(e, "type")));
        assert_non_null(cJSON_GetObjectItem(e, "param"));
        assert_non_null(cJSON_GetObjectItem(e, "code"));
    }
    cl_free(&a);
    return v;
}

void cl_expect(int port, const char *path, const char *body, int status)
{
    cJSON_Delete(cl_json(port, path, body, status));
}

cJSON *cl_choice(const cJSON *v, int i)
{
    return cJSON_GetArrayItem(cJSON_GetObjectItem(v, "choices"), i);
}

static void count_event(struct streamed *s, const char *json, size_t n)
{
    cJSON *v = NULL;
    struct km_err err = {0};
    if (km_json_parse(json, n, &v, &err))
        fail_msg("%s in event %.*s", err.msg, (int)n, json);
    const cJSON *e = cJSON_GetObjectItem(v, "error"), *choices = cJSON_GetObjectItem(v, "choices"), *c;
    const cJSON *u = cJSON_GetObjectItem(v, "usage");
    if (e) {
        s->errors++;
        snprintf(s->error, sizeof s->error, "%s", cJSON_GetObjectItem(e, "message")->valuestring);
    } else {
        assert_true(cJSON_IsString(cJSON_GetObjectItem(v, "id")) && cJSON_IsString(cJSON_GetObjectItem(v, "object")));
        assert_true(cJSON_IsNumber(cJSON_GetObjectItem(v, "created")) && cJSON_IsArray(choices));
    }
    if (u && !cJSON_GetArraySize(choices)) {
        s->usages++;
        s->completion_tokens = cJSON_GetObjectItem(u, "completion_tokens")->valueint;
        s->prompt_tokens = cJSON_GetObjectItem(u, "prompt_tokens")->valueint;
        s->cached = cJSON_GetObjectItem(cJSON_GetObjectItem(u, "prompt_tokens_details"), "cached_tokens")->valueint;
    }
    cJSON_ArrayForEach(c, choices)
    {
        int i = cJSON_GetObjectItem(c, "index")->valueint;
        assert_true(i >= 0 && i < 8);
        assert_string_equal(s->finish[i], ""); /* nothing follows the finish_reason of a choice */
        const cJSON *delta = cJSON_GetObjectItem(c, "delta");
        const cJSON *text = delta ? cJSON_GetObjectItem(delta, "content") : cJSON_GetObjectItem(c, "text");
        if (delta && cJSON_GetObjectItem(delta, "role")) {
            assert_int_equal(s->text[i].len, 0);
            s->roles++;
        }
        km_buf_puts(&s->text[i], text->valuestring);
        const cJSON *f = cJSON_GetObjectItem(c, "finish_reason");
        if (cJSON_IsString(f))
            snprintf(s->finish[i], sizeof s->finish[i], "%s", f->valuestring);
    }
    s->events++;
    cJSON_Delete(v);
}

void cl_stream_parse(const struct km_buf *body, struct streamed *s)
{
    memset(s, 0, sizeof *s);
    for (const char *p = km_buf_str(body); *p;) {
        const char *end = strstr(p, "\n\n");
        if (!end)
            fail_msg("an event without an end: %s", p);
        assert_memory_equal(p, "data: ", 6);
        assert_int_equal(s->done, 0); /* nothing follows [DONE] */
        if (!strncmp(p + 6, "[DONE]", 6))
            s->done++;
        else
            count_event(s, p + 6, (size_t)(end - p - 6));
        p = end + 2;
    }
}

void cl_stream(int port, const char *path, const char *body, struct streamed *s)
{
    struct answer a;
    cl_request(port, path, body, &a);
    if (a.status != 200)
        fail_msg("%s: status %d: %s", body, a.status, km_buf_str(&a.body));
    assert_non_null(strstr(a.head.data, "text/event-stream"));
    cl_stream_parse(&a.body, s);
    cl_free(&a);
}

void cl_stream_free(struct streamed *s)
{
    for (int i = 0; i < 8; i++)
        km_buf_free(&s->text[i]);
}

double cl_metric(int port, const char *name)
{
    struct answer a;
    cl_request(port, "/metrics", NULL, &a);
    assert_int_equal(a.status, 200);
    double v = -1;
    size_t n = strlen(name);
    for (const char *p = a.body.data; p && *p; p = strchr(p, '\n') ? strchr(p, '\n') + 1 : NULL)
        if (!strncmp(p, name, n) && (p[n] == '{' || p[n] == ' ')) {
            const char *sp = strstr(p, "} ");
            v = atof(sp ? sp + 2 : p + n);
            break;
        }
    cl_free(&a);
    return v;
}
