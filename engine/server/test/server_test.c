/* The server over real sockets, on an engine and a tokenizer that do what the tests say: a request's output is its own
 * prompt, over and over. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"
#include "engine/server/server.h"
#include "engine/server/test/client.h"
#include "engine/server/test/fake_engine.h"
#include "engine/server/test/fake_tok.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static struct {
    struct srv *s;
    pthread_t thread;
    int port;
    bool signals;
    int rc;
} up;

static void *serve(void *arg)
{
    (void)arg;
    up.rc = srv_run(up.s, up.signals, NULL);
    return NULL;
}

static void start_with(struct srv_opts o, const struct tok *t, bool signals)
{
    struct km_err err = {0};
    o.port = 0;
    if (srv_open(&up.s, &o, fake_eng(), t, &err))
        fail_msg("%s", err.msg);
    up.port = srv_port(up.s);
    up.signals = signals;
    pthread_create(&up.thread, NULL, serve, NULL);
}

static void start(void)
{
    start_with(srv_defaults(), fake_tok, false);
}

static void stop(void)
{
    srv_stop(up.s);
    pthread_join(up.thread, NULL);
    assert_int_equal(up.rc, 0);
    srv_free(up.s);
    up.s = NULL;
}

static int each(void **state)
{
    (void)state;
    fake_reset();
    return 0;
}

/* Waits until v is reached, at most 5 s. */
static void wait_for(atomic_int *v, int want)
{
    int64_t until = km_now_ns() + 5000000000;
    while (*v != want && km_now_ns() < until)
        usleep(1000);
    assert_int_equal(*v, want);
}

static const char *str(const cJSON *v, const char *key)
{
    const cJSON *s = cJSON_GetObjectItem(v, key);
    return cJSON_IsString(s) ? s->valuestring : "(none)";
}

static int num(const cJSON *v, const char *key)
{
    const cJSON *n = cJSON_GetObjectItem(v, key);
    assert_true(cJSON_IsNumber(n));
    return n->valueint;
}

static cJSON *choice(const cJSON *v, int i)
{
    return cJSON_GetArrayItem(cJSON_GetObjectItem(v, "choices"), i);
}

/* Status of a raw request, and whether the server closed after it. */
static int raw(const char *bytes, size_t n, bool *closed)
{
    struct km_buf rest = {0};
    struct answer a = {0};
    int fd = cl_connect(up.port);
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

#define MODEL "\"model\":\"fake-1\""
#define COMP "/v1/completions"
#define CHAT "/v1/chat/completions"

static void small_endpoints(void **state)
{
    (void)state;
    start();
    struct answer a;
    cl_ask(up.port, "/health", NULL, &a);
    assert_int_equal(a.status, 200);
    assert_int_equal(a.body.len, 0);
    cl_free(&a);
    cJSON *v = cl_json(up.port, "/version", NULL, 200);
    assert_string_equal(str(v, "version"), "0.1.0");
    assert_string_equal(str(v, "device"), "cpu");
    assert_true(cJSON_IsTrue(cJSON_GetObjectItem(v, "dummy_weights")));
    assert_int_equal(strlen(str(v, "fingerprint")), 64);
    cJSON_Delete(v);
    v = cl_json(up.port, "/v1/models", NULL, 200);
    const cJSON *m = cJSON_GetArrayItem(cJSON_GetObjectItem(v, "data"), 0);
    assert_string_equal(str(m, "id"), "fake-1");
    assert_int_equal(num(m, "max_model_len"), 4000);
    cJSON_Delete(v);
    v = cl_json(up.port, "/v1/models/fake-1", NULL, 200);
    assert_string_equal(str(v, "object"), "model");
    cJSON_Delete(v);
    cJSON_Delete(cl_json(up.port, "/v1/models/other", NULL, 404));
    cJSON_Delete(cl_json(up.port, "/nothing", NULL, 404));
    cJSON_Delete(cl_json(up.port, "/healthy", NULL, 404));
    cJSON_Delete(cl_json(up.port, "/health/x", NULL, 404));
    cJSON_Delete(cl_json(up.port, "/health", "{}", 405));
    cJSON_Delete(cl_json(up.port, COMP, NULL, 405));

    v = cl_json(up.port, "/tokenize", "{\"prompt\":\"h\xc3\xa9<|im_end|>\",\"return_token_strs\":true}", 200);
    char *s = cJSON_PrintUnformatted(v);
    assert_string_equal(s, "{\"count\":4,\"max_model_len\":4000,\"tokens\":[104,195,169,258],\"token_strs\":[\"h\",\"\xef\xbf\xbd\","
                           "\"\xef\xbf\xbd\",\"<|im_end|>\"]}");
    cJSON_free(s);
    cJSON_Delete(v);
    v = cl_json(up.port, "/tokenize", "{\"messages\":[{\"role\":\"user\",\"content\":\"x\"}]}", 200);
    assert_int_equal(num(v, "count"), 20);
    cJSON_Delete(v);
    v = cl_json(up.port, "/detokenize", "{\"tokens\":[104,195,169,34]}", 200);
    assert_string_equal(str(v, "prompt"), "h\xc3\xa9\"");
    cJSON_Delete(v);
    cJSON_Delete(cl_json(up.port, "/detokenize", "{\"tokens\":[290]}", 400));

    cJSON_Delete(cl_json(up.port, "/reset_prefix_cache", "", 200));
    assert_int_equal(fake.external_resets, 0);
    cJSON_Delete(cl_json(up.port, "/reset_prefix_cache?reset_external=true", "", 200));
    cJSON_Delete(cl_json(up.port, "/reset_prefix_cache", "{\"reset_external\":true}", 200));
    assert_int_equal(fake.resets, 3);
    assert_int_equal(fake.external_resets, 2);
    cJSON_Delete(cl_json(up.port, "/reset_prefix_cache", "{\"reset_external\":1}", 400));
    stop();
}

static void a_completion_and_a_chat(void **state)
{
    (void)state;
    start();
    cJSON *v = cl_json(up.port, COMP, "{" MODEL ",\"prompt\":\"hello\",\"max_tokens\":12}", 200);
    assert_string_equal(str(v, "object"), "text_completion");
    assert_string_equal(str(v, "model"), "fake-1");
    assert_true(!strncmp(str(v, "id"), "cmpl-", 5));
    assert_string_equal(str(choice(v, 0), "text"), "hellohellohe");
    assert_string_equal(str(choice(v, 0), "finish_reason"), "length");
    assert_true(cJSON_IsNull(cJSON_GetObjectItem(choice(v, 0), "logprobs")));
    const cJSON *u = cJSON_GetObjectItem(v, "usage");
    assert_int_equal(num(u, "prompt_tokens"), 5);
    assert_int_equal(num(u, "completion_tokens"), 12);
    assert_int_equal(num(u, "total_tokens"), 17);
    assert_int_equal(num(cJSON_GetObjectItem(u, "prompt_tokens_details"), "cached_tokens"), 0);
    cJSON_Delete(v);

    v = cl_json(up.port, CHAT, "{" MODEL ",\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}],\"max_tokens\":7}", 200);
    assert_string_equal(str(v, "object"), "chat.completion");
    const cJSON *m = cJSON_GetObjectItem(choice(v, 0), "message");
    assert_string_equal(str(m, "role"), "assistant");
    assert_string_equal(str(m, "content"), "user\nh"); /* <|im_start|> is skipped */
    u = cJSON_GetObjectItem(v, "usage");
    assert_int_equal(num(u, "prompt_tokens"), 21);
    assert_int_equal(num(cJSON_GetObjectItem(u, "prompt_tokens_details"), "cached_tokens"), 16);
    cJSON_Delete(v);

    v = cl_json(up.port, COMP, "{" MODEL ",\"prompt\":[\"ab\",[99,100]],\"n\":2,\"max_tokens\":3,\"echo\":true}", 200);
    static const char *const want[] = {"ababa", "ababa", "cdcdc", "cdcdc"};
    assert_int_equal(cJSON_GetArraySize(cJSON_GetObjectItem(v, "choices")), 4);
    for (int i = 0; i < 4; i++) {
        assert_string_equal(str(choice(v, i), "text"), want[i]);
        assert_int_equal(num(choice(v, i), "index"), i);
    }
    assert_int_equal(num(cJSON_GetObjectItem(v, "usage"), "prompt_tokens"), 4);
    assert_int_equal(num(cJSON_GetObjectItem(v, "usage"), "completion_tokens"), 12);
    cJSON_Delete(v);

    int before = fake.submitted;
    v = cl_json(up.port, COMP, "{" MODEL ",\"prompt\":\"hello\",\"max_tokens\":0,\"echo\":true}", 200);
    assert_string_equal(str(choice(v, 0), "text"), "hello");
    assert_string_equal(str(choice(v, 0), "finish_reason"), "length");
    cJSON_Delete(v);
    assert_int_equal(fake.submitted, before);
    cJSON_Delete(cl_json(up.port, COMP, "{" MODEL ",\"prompt\":\"hello\"}", 200));
    assert_int_equal(fake.last_max_tokens, 16);
    assert_int_equal(fake.last_top_k, 7); /* generation_config's */
    cJSON_Delete(cl_json(up.port, COMP, "{" MODEL ",\"prompt\":\"x\",\"n\":3,\"seed\":40,\"max_tokens\":1}", 200));
    assert_int_equal(fake.last_seed, 42); /* each choice its own */
    assert_int_equal(fake.live, 0);
    stop();
}

static void ends_are_told(void **state)
{
    (void)state;
    static const struct {
        const char *body, *text, *finish, *reason;
    } rows[] = {
        {"\"prompt\":\"abc<|im_end|>\"", "abc", "stop", "null"},
        {"\"prompt\":\"abc<|im_end|>\",\"ignore_eos\":true,\"max_tokens\":6", "abcab", "length", "null"},
        {"\"prompt\":\"abc<|im_end|>\",\"ignore_eos\":true,\"max_tokens\":6,\"skip_special_tokens\":false", "abc<|im_end|>ab",
         "length", "null"},
        {"\"prompt\":\"abc<|im_end|>\",\"min_tokens\":5", "abc abc", "stop", "null"},
        {"\"prompt\":\"abcd\",\"stop_token_ids\":[99]", "ab", "stop", "99"},
        {"\"prompt\":\"abcd\",\"stop_token_ids\":[99],\"include_stop_str_in_output\":true", "abc", "stop", "99"},
        {"\"prompt\":\"abcd\",\"stop\":\"cd\"", "ab", "stop", "\"cd\""},
        {"\"prompt\":\"abcd\",\"stop\":\"cd\",\"include_stop_str_in_output\":true", "abcd", "stop", "\"cd\""},
        {"\"prompt\":\"abcd\",\"stop\":[\"x\",\"da\",\"bcda\"]", "a", "stop", "\"bcda\""},
        {"\"prompt\":\"abcd\",\"stop\":\"ab\",\"min_tokens\":2,\"max_tokens\":20", "abcd", "stop", "\"ab\""},
        {"\"prompt\":\"abcd\",\"stop\":\"dabcx\",\"max_tokens\":9", "abcdabcda", "length", "null"},
        {"\"prompt\":\"a\xf0\x9f\x8c\x8d\",\"max_tokens\":10", "a\xf0\x9f\x8c\x8d""a\xf0\x9f\x8c\x8d", "length", "null"},
        {"\"prompt\":\"a\xf0\x9f\x8c\x8d\",\"max_tokens\":3", "a\xef\xbf\xbd", "length", "null"},
        {"\"prompt\":\"a\xf0\x9f\x8c\x8d!\",\"stop\":\"\xf0\x9f\x8c\x8d\"", "a", "stop", "\"\xf0\x9f\x8c\x8d\""},
        {"\"prompt\":[255,97,195],\"max_tokens\":6", "\xef\xbf\xbd""a\xef\xbf\xbd\xef\xbf\xbd""a\xef\xbf\xbd", "length", "null"},
        {"\"prompt\":\"say \\\"x\\\\y\\\"\\n\\t\\u0001\",\"max_tokens\":12", "say \"x\\y\"\n\t\x01", "length", "null"},
        {"\"prompt\":[299,97],\"max_tokens\":4", "aa", "length", "null"}, /* an id the tokenizer does not know */
    };
    start();
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        char body[512];
        snprintf(body, sizeof body, "{" MODEL ",%s}", rows[i].body);
        cJSON *v = cl_json(up.port, COMP, body, 200);
        if (strcmp(str(choice(v, 0), "text"), rows[i].text))
            fail_msg("%s: %s", rows[i].body, str(choice(v, 0), "text"));
        assert_string_equal(str(choice(v, 0), "finish_reason"), rows[i].finish);
        char *reason = cJSON_PrintUnformatted(cJSON_GetObjectItem(choice(v, 0), "stop_reason"));
        assert_string_equal(reason, rows[i].reason);
        cJSON_free(reason);
        cJSON_Delete(v);
        /* The stream's text joined is the same text. */
        snprintf(body, sizeof body, "{" MODEL ",%s,\"stream\":true,\"stream_options\":{\"include_usage\":true}}", rows[i].body);
        struct streamed s;
        cl_stream(up.port, COMP, body, &s);
        assert_string_equal(km_buf_str(&s.text[0]), rows[i].text);
        assert_string_equal(s.finish[0], rows[i].finish);
        assert_int_equal(s.done, 1);
        assert_int_equal(s.usages, 1);
        assert_int_equal(s.errors, 0);
        assert_int_equal(s.events, s.completion_tokens + 1); /* one a token, and the usage */
        cl_stream_free(&s);
    }
    wait_for(&fake.live, 0);
    assert_int_equal(fake.cancelled_abort, 0);
    stop();
}

static void streams_of_chats(void **state)
{
    (void)state;
    start();
    const char *body = "{" MODEL ",\"messages\":[{\"role\":\"user\",\"content\":\"caf\xc3\xa9\"}],\"max_tokens\":11,\"n\":3,"
                       "\"stream\":true}";
    struct streamed s;
    cl_stream(up.port, CHAT, body, &s);
    assert_int_equal(s.roles, 3);
    assert_int_equal(s.done, 1);
    assert_int_equal(s.usages, 0);
    assert_int_equal(s.events, 3 * 12);
    for (int i = 0; i < 3; i++) {
        assert_string_equal(s.text[i].data, "user\ncaf\xc3\xa9");
        assert_string_equal(s.finish[i], "length");
    }
    cl_stream_free(&s);
    body = "{" MODEL ",\"messages\":[{\"role\":\"user\",\"content\":\"x\"}],\"max_tokens\":3,\"stream\":true,\"stream_options\":"
           "{\"include_usage\":true,\"continuous_usage_stats\":true}}";
    struct answer a;
    cl_ask(up.port, CHAT, body, &a);
    int usages = 0;
    for (const char *p = a.body.data; (p = strstr(p, "\"usage\":{\"prompt_tokens\":20")); p++)
        usages++;
    assert_int_equal(usages, 4);
    assert_non_null(strstr(a.body.data, "\"completion_tokens\":2,"));
    cl_free(&a);
    stop();
}

static void probabilities_have_openais_shape(void **state)
{
    (void)state;
    start();
    cJSON *v = cl_json(up.port, COMP, "{" MODEL ",\"prompt\":\"a\xc3\xa9\",\"max_tokens\":3,\"logprobs\":2}", 200);
    char *s = cJSON_PrintUnformatted(cJSON_GetObjectItem(choice(v, 0), "logprobs"));
    assert_string_equal(s, "{\"tokens\":[\"a\",\"\xef\xbf\xbd\",\"\xef\xbf\xbd\"],\"token_logprobs\":[-0.5,-0.5,-0.5],"
                           "\"top_logprobs\":[{\"a\":-0.5,\"b\":-2},{\"\xef\xbf\xbd\":-0.5},{\"\xef\xbf\xbd\":-0.5}],"
                           "\"text_offset\":[0,1,2]}");
    cJSON_free(s);
    cJSON_Delete(v);
    v = cl_json(up.port, COMP, "{" MODEL ",\"prompt\":\"ab\",\"max_tokens\":2,\"logprobs\":1,\"return_tokens_as_token_ids\":true}",
                200);
    s = cJSON_PrintUnformatted(cJSON_GetObjectItem(choice(v, 0), "logprobs"));
    assert_string_equal(s, "{\"tokens\":[\"token_id:97\",\"token_id:98\"],\"token_logprobs\":[-0.5,-0.5],\"top_logprobs\":"
                           "[{\"token_id:97\":-0.5},{\"token_id:98\":-0.5}],\"text_offset\":[0,11]}");
    cJSON_free(s);
    cJSON_Delete(v);
    const char *chat = "{" MODEL ",\"messages\":[{\"role\":\"user\",\"content\":\"x\"}],\"max_tokens\":2,\"logprobs\":true,"
                       "\"top_logprobs\":%d%s}";
    char body[512];
    snprintf(body, sizeof body, chat, 2, "");
    v = cl_json(up.port, CHAT, body, 200);
    s = cJSON_PrintUnformatted(cJSON_GetObjectItem(choice(v, 0), "logprobs"));
    assert_string_equal(s, "{\"content\":[{\"token\":\"<|im_start|>\",\"logprob\":-0.5,\"bytes\":[60,124,105,109,95,115,116,97,114,"
                           "116,124,62],\"top_logprobs\":[{\"token\":\"<|im_start|>\",\"logprob\":-0.5,\"bytes\":[60,124,105,109,95,"
                           "115,116,97,114,116,124,62]},{\"token\":\"<|im_end|>\",\"logprob\":-2,\"bytes\":[60,124,105,109,95,101,"
                           "110,100,124,62]}]},{\"token\":\"u\",\"logprob\":-0.5,\"bytes\":[117],\"top_logprobs\":[{\"token\":\"u\","
                           "\"logprob\":-0.5,\"bytes\":[117]},{\"token\":\"v\",\"logprob\":-2,\"bytes\":[118]}]}],\"refusal\":null}");
    cJSON_free(s);
    cJSON_Delete(v);
    snprintf(body, sizeof body, chat, 0, ",\"stream\":true");
    struct answer a;
    cl_ask(up.port, CHAT, body, &a);
    assert_non_null(strstr(a.body.data, "\"logprobs\":{\"content\":[{\"token\":\"u\",\"logprob\":-0.5,\"bytes\":[117],"
                                        "\"top_logprobs\":[]}],\"refusal\":null}"));
    cl_free(&a);

    v = cl_json(up.port, COMP, "{" MODEL ",\"prompt\":\"ab\",\"max_tokens\":3,\"return_token_ids\":true}", 200);
    s = cJSON_PrintUnformatted(cJSON_GetObjectItem(choice(v, 0), "token_ids"));
    assert_string_equal(s, "[97,98,97]");
    cJSON_free(s);
    s = cJSON_PrintUnformatted(cJSON_GetObjectItem(choice(v, 0), "prompt_token_ids"));
    assert_string_equal(s, "[97,98]");
    cJSON_free(s);
    cJSON_Delete(v);
    cl_ask(up.port, COMP, "{" MODEL ",\"prompt\":\"ab\",\"max_tokens\":3,\"return_token_ids\":true,\"stream\":true}", &a);
    const char *first = strstr(a.body.data, "\"prompt_token_ids\":[97,98]");
    assert_non_null(first);
    assert_null(strstr(first + 5, "prompt_token_ids"));
    assert_non_null(strstr(a.body.data, "\"token_ids\":[98]"));
    cl_free(&a);
    stop();
}

static void ids_without_a_tokenizer(void **state)
{
    (void)state;
    start_with(srv_defaults(), NULL, false);
    const char *body = "{" MODEL ",\"prompt\":[5,6],\"max_tokens\":3,\"return_tokens_as_token_ids\":true,\"return_token_ids\":true,"
                       "\"logprobs\":0%s}";
    char full[512];
    snprintf(full, sizeof full, body, "");
    cJSON *v = cl_json(up.port, COMP, full, 200);
    assert_string_equal(str(choice(v, 0), "text"), "token_id:5 token_id:6 token_id:5");
    cJSON_Delete(v);
    snprintf(full, sizeof full, body, ",\"stream\":true");
    struct streamed s;
    cl_stream(up.port, COMP, full, &s);
    assert_string_equal(s.text[0].data, "token_id:5 token_id:6 token_id:5");
    cl_stream_free(&s);
    cJSON_Delete(cl_json(up.port, COMP, "{" MODEL ",\"prompt\":\"text\"}", 400));
    cJSON_Delete(cl_json(up.port, CHAT, "{" MODEL ",\"messages\":[{\"role\":\"user\",\"content\":\"x\"}]}", 400));
    stop();
}

static void errors_of_the_engine(void **state)
{
    (void)state;
    start();
    cJSON_Delete(cl_json(up.port, COMP, "{" MODEL ",\"prompt\":\"DEAD\"}", 500));
    cJSON_Delete(cl_json(up.port, COMP, "{" MODEL ",\"prompt\":\"FAIL\"}", 500));
    cJSON_Delete(cl_json(up.port, COMP, "{" MODEL ",\"prompt\":\"DEAD\",\"stream\":true}", 500)); /* nothing was sent yet */
    struct streamed s;
    cl_stream(up.port, COMP, "{" MODEL ",\"prompt\":\"FAIL\",\"stream\":true}", &s);
    assert_string_equal(s.text[0].data, "FAI");
    assert_string_equal(s.finish[0], ""); /* never a false end */
    assert_int_equal(s.errors, 1);
    assert_int_equal(s.done, 0);
    cl_stream_free(&s);
    /* One bad choice ends its siblings. */
    cJSON_Delete(cl_json(up.port, COMP, "{" MODEL ",\"prompt\":[\"good\",\"FAIL\"],\"max_tokens\":1000}", 500));
    wait_for(&fake.live, 0);
    cJSON_Delete(cl_json(up.port, COMP, "{" MODEL ",\"prompt\":\"fine\"}", 200));

    fake.max_live = 3;
    fake.paused = 1;
    int fds[3];
    for (int i = 0; i < 3; i++) {
        const char *body = "{" MODEL ",\"prompt\":\"x\"}";
        char req[300];
        int n = snprintf(req, sizeof req, "POST /v1/completions HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\n"
                                          "Content-Length: %zu\r\n\r\n%s", strlen(body), body);
        fds[i] = cl_connect(up.port);
        cl_send(fds[i], req, (size_t)n);
    }
    wait_for(&fake.live, 3);
    struct answer a;
    cl_ask(up.port, COMP, "{" MODEL ",\"prompt\":\"x\"}", &a);
    assert_int_equal(a.status, 429);
    assert_non_null(strstr(a.head.data, "Retry-After: 1"));
    cl_free(&a);
    cJSON_Delete(cl_json(up.port, "/reset_prefix_cache", "", 409));
    fake.paused = 0;
    for (int i = 0; i < 3; i++) {
        struct km_buf rest = {0};
        cl_read(fds[i], &rest, &a);
        assert_int_equal(a.status, 200);
        cl_free(&a);
        km_buf_free(&rest);
        close(fds[i]);
    }
    fake.max_live = 2; /* the third choice finds no place: the first two must not stay */
    cJSON_Delete(cl_json(up.port, COMP, "{" MODEL ",\"prompt\":\"x\",\"n\":3,\"max_tokens\":1000}", 429));
    wait_for(&fake.live, 0);

    fake.failed = 1;
    cJSON_Delete(cl_json(up.port, "/health", NULL, 503));
    cJSON_Delete(cl_json(up.port, COMP, "{" MODEL ",\"prompt\":\"x\"}", 500));
    stop();
}

static int open_stream(const char *prompt, int n, int max_tokens)
{
    char body[300], req[600];
    snprintf(body, sizeof body, "{" MODEL ",\"prompt\":\"%s\",\"n\":%d,\"max_tokens\":%d,\"stream\":true}", prompt, n, max_tokens);
    int len = snprintf(req, sizeof req, "POST /v1/completions HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\n"
                                        "Content-Length: %zu\r\n\r\n%s", strlen(body), body);
    int fd = cl_connect(up.port);
    cl_send(fd, req, (size_t)len);
    return fd;
}

static void a_vanished_client_is_cancelled(void **state)
{
    (void)state;
    start();
    for (int i = 0; i < 20; i++) {
        /* Leaves at different points of the stream, politely and not, with one choice and with four. */
        int choices = i % 2 ? 4 : 1;
        int fd = open_stream("abcdef", choices, 3000);
        wait_for(&fake.live, choices);
        char buf[200];
        for (int k = 0; k < i; k++)
            assert_true(recv(fd, buf, sizeof buf, 0) > 0);
        int aborts = fake.cancelled_abort;
        if (i % 3 == 0) {
            struct linger l = {1, 0};
            setsockopt(fd, SOL_SOCKET, SO_LINGER, &l, sizeof l);
        }
        close(fd);
        wait_for(&fake.live, 0);
        wait_for(&fake.cancelled_abort, aborts + choices);
    }
    /* Before the first token, and without a stream. */
    fake.paused = 1;
    int fd = open_stream("abc", 2, 100);
    wait_for(&fake.live, 2);
    close(fd);
    wait_for(&fake.live, 0);
    fake.paused = 0;
    assert_true(cl_metric(up.port, "vllm:num_requests_running") == 0);
    assert_true(cl_metric(up.port, "kvmark_kv_pages_used") == 0);
    assert_true(cl_metric(up.port, "kvmark_http_requests_live") == 0);
    /* A finished request is not cancelled. */
    int aborts = fake.cancelled_abort;
    cJSON_Delete(cl_json(up.port, COMP, "{" MODEL ",\"prompt\":\"x\"}", 200));
    assert_int_equal(fake.cancelled_abort, aborts);
    stop();
}

struct one_of_many {
    pthread_t thread;
    int i, ok;
};

static void *stream_thread(void *arg)
{
    struct one_of_many *o = arg;
    char body[300], want[400] = "";
    snprintf(body, sizeof body, "{" MODEL ",\"prompt\":\"%02d-\xf0\x9f\x8c\x8d.\",\"max_tokens\":%d,\"stream\":true}", o->i,
             8 * (10 + o->i % 7));
    for (int k = 0; k < 10 + o->i % 7; k++)
        sprintf(want + strlen(want), "%02d-\xf0\x9f\x8c\x8d.", o->i);
    struct streamed s;
    cl_stream(up.port, COMP, body, &s);
    o->ok = !strcmp(km_buf_str(&s.text[0]), want) && s.done == 1 && !strcmp(s.finish[0], "length");
    cl_stream_free(&s);
    return NULL;
}

static void many_streams_at_once(void **state)
{
    (void)state;
    start();
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
    stop();
}

static void ambiguous_framing_closes(void **state)
{
    (void)state;
    struct srv_opts o = srv_defaults();
    o.max_body = 1000;
    start_with(o, fake_tok, false);
#define J "POST /v1/completions HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\n"
#define B "{\"model\":\"fake-1\",\"prompt\":\"x\"}" /* 31 bytes */
#define SMUGGLED J "Content-Length: 31\r\n\r\n" B
    static const struct {
        const char *s;
        int status;
    } rows[] = {
        {J "Content-Length: 31\r\nContent-Length: 31\r\n\r\n" B SMUGGLED, 400},
        {J "Content-Length: 31\r\nTransfer-Encoding: chunked\r\n\r\n1F\r\n" B "\r\n0\r\n\r\n" SMUGGLED, 400},
        {J "Content-Length: +31\r\n\r\n" B SMUGGLED, 400},
        {J "Content-Length: 0x1f\r\n\r\n" B SMUGGLED, 400},
        {J "Content-Length : 31\r\n\r\n" B SMUGGLED, 400},
        {J "Transfer-Encoding: gzip\r\n\r\n" B SMUGGLED, 400},
        {J "Transfer-Encoding: chunked\r\n\r\n1f\n" B "\r\n0\r\n\r\n" SMUGGLED, 400},
        {J "Transfer-Encoding: chunked\r\n\r\n+1f\r\n" B "\r\n0\r\n\r\n" SMUGGLED, 400},
        {J "X: a\r\n b\r\nContent-Length: 31\r\n\r\n" B SMUGGLED, 400},
        {"POST /v1/completions HTTP/1.1\r\nContent-Length: 31\r\n\r\n" B SMUGGLED, 400},
        {"GET /health HTTP/1.1\nHost: h\n\n", 400},
        {"GET /health HTTP/3.0\r\n\r\n", 505},
        {J "Content-Length: 1001\r\n\r\n", 413},
        {J "Content-Length: 99999999999999999999\r\n\r\n", 413},
        {J "Transfer-Encoding: chunked\r\n\r\n3E9\r\n", 413},
        {J "Expect: later\r\nContent-Length: 31\r\n\r\n" B, 417},
        {J "Content-Type: text/plain\r\nX\r\n\r\n", 400},
        /* Refused with a body to come: closed, and the body is not read as a request. */
        {"POST /nowhere HTTP/1.1\r\nHost: h\r\nContent-Length: 300\r\n\r\n" SMUGGLED, 404},
        {"POST /health HTTP/1.1\r\nHost: h\r\nContent-Length: 300\r\n\r\n" SMUGGLED, 405},
        {"POST /v1/completions HTTP/1.1\r\nHost: h\r\nContent-Length: 300\r\n\r\n" SMUGGLED, 415},
        {"POST /v1/completions HTTP/1.1\r\nHost: h\r\nContent-Type: text/plain\r\nContent-Length: 300\r\n\r\n" SMUGGLED, 415},
        {J "Content-Encoding: gzip\r\nContent-Length: 300\r\n\r\n" SMUGGLED, 415},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        bool closed;
        int got = raw(rows[i].s, strlen(rows[i].s), &closed);
        if (got != rows[i].status || !closed)
            fail_msg("row %zu: %d%s instead of %d", i, got, closed ? "" : " and open", rows[i].status);
    }
    bool closed;
    assert_int_equal(raw(J "\r\n", strlen(J "\r\n"), &closed), 411);
    struct km_buf big = {0};
    km_buf_puts(&big, "GET /");
    for (int i = 0; i < 70000; i++)
        km_buf_putc(&big, 'a');
    assert_int_equal(raw(big.data, big.len, &closed), 414);
    km_buf_clear(&big);
    km_buf_puts(&big, "GET /health HTTP/1.1\r\nHost: h\r\n");
    for (int i = 0; i < 10000; i++)
        km_buf_printf(&big, "X-%d: y\r\n", i);
    assert_int_equal(raw(big.data, big.len, &closed), 431);
    km_buf_free(&big);
    assert_int_equal(fake.submitted, 0); /* no smuggled request ran */
    cJSON_Delete(cl_json(up.port, COMP, B, 200));
    stop();
}

static void pipelined_requests_in_order(void **state)
{
    (void)state;
    start();
    struct km_buf all = {0};
    for (int i = 0; i < 100; i++) {
        char body[200];
        snprintf(body, sizeof body, "{" MODEL ",\"prompt\":\"%02d\",\"max_tokens\":4%s}", i, i % 3 == 1 ? ",\"stream\":true" : "");
        if (i % 5 == 4)
            km_buf_puts(&all, "GET /v1/models HTTP/1.1\r\nHost: h\r\n\r\n");
        else if (i % 2)
            km_buf_printf(&all, "POST /v1/completions HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\n"
                                "Transfer-Encoding: chunked\r\n\r\n%zx\r\n%s\r\n0\r\n\r\n", strlen(body), body);
        else
            km_buf_printf(&all, "POST /v1/completions HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\n"
                                "Content-Length: %zu\r\n\r\n%s", strlen(body), body);
    }
    for (size_t step = all.len; step; step = step > 1000 ? 997 : step > 100 ? 61 : 0) {
        int fd = cl_connect(up.port);
        for (size_t at = 0; at < all.len; at += step)
            cl_send(fd, all.data + at, all.len - at < step ? all.len - at : step);
        struct km_buf rest = {0};
        for (int i = 0; i < 100; i++) {
            struct answer a;
            char want[64];
            assert_true(cl_read(fd, &rest, &a));
            assert_int_equal(a.status, 200);
            snprintf(want, sizeof want, i % 5 == 4 ? "\"id\":\"fake-1\"" : i % 3 == 1 ? "\"text\":\"%d\"" : "\"text\":\"%02d%02d\"",
                     i % 3 == 1 ? i / 10 : i, i);
            if (!strstr(a.body.data, want))
                fail_msg("answer %d lacks %s: %s", i, want, a.body.data);
            cl_free(&a);
        }
        km_buf_free(&rest);
        close(fd);
    }
    km_buf_free(&all);
    stop();
}

static void expectations_never_stall(void **state)
{
    (void)state;
    struct srv_opts o = srv_defaults();
    o.api_key = "secret";
    o.max_body = 1000;
    start_with(o, fake_tok, false);
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
        int n = snprintf(req, sizeof req, J "Expect: 100-continue\r\n%s\r\n", rows[i].head);
        int fd = cl_connect(up.port);
        cl_send(fd, req, (size_t)n);
        struct km_buf rest = {0};
        struct answer a;
        assert_true(cl_read(fd, &rest, &a));
        assert_int_equal(a.status, rows[i].first);
        if (a.status == 100) {
            cl_free(&a);
            cl_send(fd, B, strlen(B));
            assert_true(cl_read(fd, &rest, &a));
        }
        assert_int_equal(a.status, rows[i].last);
        cl_free(&a);
        km_buf_free(&rest);
        close(fd);
    }
    stop();
}

static void keys_are_wanted(void **state)
{
    (void)state;
    struct srv_opts o = srv_defaults();
    o.api_key = "sk-right";
    start_with(o, fake_tok, false);
    static const struct {
        const char *path, *auth;
        int status;
    } rows[] = {
        {"/v1/models", "Authorization: Bearer sk-right\r\n", 200}, {"/v1/models", "authorization: bearer  sk-right\r\n", 200},
        {"/v1/models", "Authorization: Bearer sk-righ\r\n", 401},  {"/v1/models", "Authorization: Bearer sk-rightt\r\n", 401},
        {"/v1/models", "Authorization: Bearer\r\n", 401},          {"/v1/models", "Authorization: sk-right\r\n", 401},
        {"/v1/models", "Authorization: Basic sk-right\r\n", 401},  {"/v1/models", "", 401},
        {"/metrics", "", 401},                                     {"/nowhere", "", 401},
        {"/health", "", 200},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        char req[300];
        bool closed;
        int n = snprintf(req, sizeof req, "GET %s HTTP/1.1\r\nHost: h\r\nConnection: close\r\n%s\r\n", rows[i].path, rows[i].auth);
        assert_int_equal(raw(req, (size_t)n, &closed), rows[i].status);
    }
    stop();
}

static void versions_and_heads(void **state)
{
    (void)state;
    start();
    struct km_buf rest = {0};
    struct answer a;
    /* HEAD has the headers and no body; the connection goes on. */
    int fd = cl_connect(up.port);
    const char *two = "HEAD /v1/models HTTP/1.1\r\nHost: h\r\n\r\nGET /health HTTP/1.1\r\nHost: h\r\n\r\n";
    cl_send(fd, two, strlen(two));
    while (rest.len < 10 || !strstr(rest.data, "\r\n\r\nHTTP/1.1 200")) {
        char buf[4096];
        ssize_t n = recv(fd, buf, sizeof buf, 0);
        assert_true(n > 0);
        km_buf_put(&rest, buf, (size_t)n);
    }
    assert_non_null(strstr(rest.data, "Content-Length: 1")); /* of the body that GET would send: 100 and some */
    km_buf_clear(&rest);
    close(fd);
    /* HTTP/1.0: no chunks, the end is the end of the stream. */
    fd = cl_connect(up.port);
    const char *body = "{" MODEL ",\"prompt\":\"abc\",\"stream\":true,\"max_tokens\":4}";
    char old[400];
    int n = snprintf(old, sizeof old, "POST /v1/completions HTTP/1.0\r\nContent-Type: application/json\r\n"
                                      "Content-Length: %zu\r\n\r\n%s", strlen(body), body);
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
    stop();
}

static void slow_clients_are_cut(void **state)
{
    (void)state;
    struct srv_opts o = srv_defaults();
    o.read_timeout = 0.4;
    o.idle_timeout = 0.6;
    start_with(o, fake_tok, false);
    /* A head, and a body, at a few bytes a second: 408, whatever still trickles in. */
    static const char *const starts[] = {"GET /hea", J "Content-Length: 31\r\n\r\n{\"mo"};
    for (int i = 0; i < 2; i++) {
        int fd = cl_connect(up.port);
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
    /* An idle connection just closes. */
    int fd = cl_connect(up.port);
    char c;
    assert_int_equal(recv(fd, &c, 1, 0), 0);
    close(fd);
    /* A stream that nobody reads: dropped and cancelled, while others go on. */
    fake.step_us = 50;
    fd = cl_connect(up.port);
    int small = 4096;
    setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &small, sizeof small);
    close(fd);
    fd = open_stream("abcdefgh", 128, 3900);
    wait_for(&fake.live, 128);
    int64_t until = km_now_ns() + 15000000000;
    while (cl_metric(up.port, "kvmark_http_slow_readers_total") < 1 && km_now_ns() < until)
        usleep(20000);
    wait_for(&fake.live, 0);
    assert_true(cl_metric(up.port, "kvmark_http_slow_readers_total") == 1);
    close(fd);
    stop();
}

static void too_many_connections_wait(void **state)
{
    (void)state;
    struct srv_opts o = srv_defaults();
    o.max_connections = 4;
    start_with(o, fake_tok, false);
    int fds[4];
    for (int i = 0; i < 4; i++)
        fds[i] = cl_connect(up.port);
    usleep(100000);
    const char *get = "GET /health HTTP/1.1\r\nHost: h\r\n\r\n";
    int fifth = cl_connect(up.port); /* in the kernel's queue */
    cl_send(fifth, get, strlen(get));
    struct pollfd p = {fifth, POLLIN, 0};
    assert_int_equal(poll(&p, 1, 200), 0);
    close(fds[0]);
    assert_int_equal(poll(&p, 1, 5000), 1);
    for (int i = 1; i < 4; i++)
        close(fds[i]);
    close(fifth);
    stop();
}

static void no_descriptors_left(void **state)
{
    (void)state;
    struct rlimit was, low = {128, 128};
    getrlimit(RLIMIT_NOFILE, &was);
    low.rlim_max = was.rlim_max;
    start();
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &low), 0);
    int clients[8], fill[128], n = 0;
    for (int i = 0; i < 8; i++)
        clients[i] = socket(AF_INET, SOCK_STREAM, 0);
    while ((fill[n] = dup(0)) >= 0)
        n++;
    /* The handshake is the kernel's; the server cannot accept. It must wait, and not spin. */
    const char *get = "GET /health HTTP/1.1\r\nHost: h\r\n\r\n";
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons((uint16_t)up.port),
                             .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
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
    assert_true(cl_metric(up.port, "kvmark_http_accept_pauses_total") >= 1);
    stop();
}

static void stops_politely(void **state)
{
    (void)state;
    start_with(srv_defaults(), fake_tok, true);
    int fd = open_stream("abcd", 1, 400), idle = cl_connect(up.port);
    wait_for(&fake.live, 1);
    kill(getpid(), SIGTERM);
    struct km_buf rest = {0};
    struct answer a;
    assert_true(cl_read(fd, &rest, &a)); /* runs to its end */
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
    pthread_join(up.thread, NULL);
    assert_int_equal(up.rc, 0);
    assert_int_equal(cl_connect(up.port), -1);
    srv_free(up.s);

    /* Asked twice, it does not wait: the stream ends in an error, not in a false stop. */
    start_with(srv_defaults(), fake_tok, true);
    fake.step_us = 20000;
    fd = open_stream("abcd", 1, 3000);
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
    pthread_join(up.thread, NULL);
    srv_free(up.s);
    assert_int_equal(fake.live, 0);

    struct km_err err = {0};
    struct srv_opts o = srv_defaults();
    o.port = 0;
    assert_int_equal(srv_open(&up.s, &o, fake_eng(), fake_tok, &err), 0);
    struct srv *other;
    o.port = srv_port(up.s);
    assert_int_equal(srv_open(&other, &o, fake_eng(), fake_tok, &err), KM_ENET);
    char port[16];
    snprintf(port, sizeof port, "%d", o.port);
    assert_non_null(strstr(err.msg, "127.0.0.1"));
    assert_non_null(strstr(err.msg, port));
    o.host = "no.such.host.invalid";
    assert_int_equal(srv_open(&other, &o, fake_eng(), fake_tok, &err), KM_ENET);
    srv_free(up.s);
}

static void metrics_are_prometheus(void **state)
{
    (void)state;
    struct srv_opts o = srv_defaults();
    o.served_name = "we\"ird\\name";
    start_with(o, fake_tok, false);
    cJSON_Delete(cl_json(up.port, COMP, "{\"model\":\"we\\\"ird\\\\name\",\"prompt\":\"x\",\"max_tokens\":5}", 200));
    cJSON_Delete(cl_json(up.port, COMP, "{\"model\":\"wrong\",\"prompt\":\"x\"}", 404));
    struct answer a;
    cl_ask(up.port, "/metrics", NULL, &a);
    assert_non_null(strstr(a.head.data, "text/plain; version=0.0.4"));
    /* Each line is a comment or name{labels} value; every name has a type, once. */
    int lines = 0;
    for (char *save = NULL, *l = strtok_r(a.body.data, "\n", &save); l; l = strtok_r(NULL, "\n", &save), lines++) {
        if (*l == '#')
            continue;
        size_t n = strcspn(l, "{ ");
        assert_true(n > 0 && strspn(l, "abcdefghijklmnopqrstuvwxyz2_:") == n);
        const char *v = strrchr(l, ' ');
        char *end;
        assert_non_null(v);
        strtod(v + 1, &end);
        assert_true(!*end && end > v + 1);
        if (strstr(l, "model_name"))
            assert_non_null(strstr(l, "model_name=\"we\\\"ird\\\\name\""));
    }
    assert_true(lines > 150);
    cl_free(&a);
    assert_true(cl_metric(up.port, "vllm:time_to_first_token_seconds_count") == 1);
    assert_true(cl_metric(up.port, "vllm:inter_token_latency_seconds_count") == 4);
    assert_true(cl_metric(up.port, "vllm:request_generation_tokens_sum") == 5);
    assert_true(cl_metric(up.port, "vllm:e2e_request_latency_seconds_count") == 1);
    assert_true(cl_metric(up.port, "vllm:generation_tokens_total") == 5);
    assert_true(cl_metric(up.port, "kvmark_host_memory_bytes") > 1000);
    cl_ask(up.port, "/metrics", NULL, &a);
    assert_non_null(strstr(a.body.data, "kvmark_http_responses_total{code=\"404\"} 1\n"));
    assert_non_null(strstr(a.body.data, "vllm:request_generation_tokens_bucket{model_name=\"we\\\"ird\\\\name\",le=\"5\"} 1\n"));
    assert_non_null(strstr(a.body.data, "vllm:request_generation_tokens_bucket{model_name=\"we\\\"ird\\\\name\",le=\"2\"} 0\n"));
    cl_free(&a);
    stop();
}

int main(void)
{
    km_log_level(KM_LOG_ERROR);
#define T(f) cmocka_unit_test_setup(f, each)
    const struct CMUnitTest tests[] = {
        T(small_endpoints), T(a_completion_and_a_chat), T(ends_are_told), T(streams_of_chats),
        T(probabilities_have_openais_shape), T(ids_without_a_tokenizer), T(errors_of_the_engine),
        T(a_vanished_client_is_cancelled), T(many_streams_at_once), T(ambiguous_framing_closes),
        T(pipelined_requests_in_order), T(expectations_never_stall), T(keys_are_wanted), T(versions_and_heads),
        T(slow_clients_are_cut), T(too_many_connections_wait), T(no_descriptors_left), T(stops_politely), T(metrics_are_prometheus),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
