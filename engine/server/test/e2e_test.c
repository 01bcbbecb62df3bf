/* End to end: HTTP, tokenizer, engine, the CPU backend and a small model. A request gets the same tokens whether or not
 * it streams, whether it runs alone or with others, and whether its prompt is computed or found in the prefix cache. */
#include "base/test/test.h"

#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"
#include "engine/server/server.h"
#include "engine/server/test/test_client.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define COMP "/v1/completions"
#define CHAT "/v1/chat/completions"
#define MODEL "\"model\":\"qwen3-tiny-lm\",\"temperature\":0"

static struct mdl *model;
static struct tok *tok;
static struct eng *eng;
static struct srv *srv;
static pthread_t thread;
static int port;

static void *serve(void *arg)
{
    (void)arg;
    return (void *)(intptr_t)srv_run(srv, false, NULL);
}

static int open_server(void **state)
{
    (void)state;
    struct km_err err = {0};
    const struct backend *be;
    struct eng_opts o = eng_defaults();
    o.num_blocks = 600;
    o.max_num_batched_tokens = 512;
    o.max_num_seqs = 64;
    o.dtype = KM_F32;
    o.n_threads = 2;
    struct srv_opts s = srv_defaults();
    s.port = 0;
    int rc = mdl_open(&model, KVM_SOURCE_DIR "/models/qwen3-tiny-lm", false, 0, &err);
    if (!rc)
        rc = tok_open(&tok, KVM_SOURCE_DIR "/models/qwen3-tiny-lm", &err);
    if (!rc)
        rc = backend_pick("cpu", &be, &err);
    if (!rc)
        rc = eng_open(&eng, &o, model, be, NULL, &err);
    if (!rc)
        rc = srv_open(&srv, &s, eng, tok, &err);
    if (rc) {
        print_error("%s\n", err.msg);
        return -1;
    }
    port = srv_port(srv);
    return pthread_create(&thread, NULL, serve, NULL);
}

static int close_server(void **state)
{
    (void)state;
    void *rc;
    srv_stop(srv);
    pthread_join(thread, &rc);
    srv_free(srv);
    struct km_err err = {0};
    int broken = eng_check(eng, &err); /* the invariants hold after all tests */
    if (broken)
        print_error("%s\n", err.msg);
    eng_close(eng);
    tok_free(tok);
    mdl_free(model);
    return rc || broken ? -1 : 0;
}

static const char *text_of(const cJSON *v)
{
    const cJSON *c = cl_choice(v, 0), *m = cJSON_GetObjectItem(c, "message");
    return cJSON_GetObjectItem(m ? m : c, m ? "content" : "text")->valuestring;
}

static int cached(const cJSON *v)
{
    const cJSON *u = cJSON_GetObjectItem(v, "usage");
    return cJSON_GetObjectItem(cJSON_GetObjectItem(u, "prompt_tokens_details"), "cached_tokens")->valueint;
}

/* Waits up to 5 s until no request runs and no page is held. */
static void wait_until_idle(void)
{
    int64_t until = km_now_ns() + 5000000000;
    while ((cl_metric(port, "vllm:num_requests_running") > 0 || cl_metric(port, "kvmark_kv_pages_used") > 0) &&
           km_now_ns() < until)
        usleep(2000);
    assert_true(cl_metric(port, "vllm:num_requests_running") == 0);
    assert_true(cl_metric(port, "kvmark_kv_pages_used") == 0);
    assert_true(cl_metric(port, "kvmark_steps_total") > 0);
    assert_true(cl_metric(port, "kvmark_async_steps_total") == 0); /* async scheduling is for the GPU */
    assert_true(cl_metric(port, "kvmark_wasted_rows_total") == 0);
}

static void reference_ids_come_back(void **state)
{
    (void)state;
    cJSON *all = NULL;
    struct km_err err = {0};
    assert_int_equal(km_json_file(KVM_SOURCE_DIR "/engine/test/golden-qwen3-tiny-lm.json", 0, &all, &err), 0);
    const cJSON *v;
    int compared = 0;
    cJSON_ArrayForEach(v, cJSON_GetObjectItem(all, "vectors"))
    {
        const cJSON *prompt = cJSON_GetObjectItem(v, "prompt_ids"), *ids = cJSON_GetObjectItem(v, "greedy_ids");
        const cJSON *gap = cJSON_GetObjectItem(v, "greedy_gap");
        int n = 0, size = cJSON_GetArraySize(prompt);
        while (n < 16 && cJSON_GetArrayItem(gap, n)->valuedouble > 0.02) /* up to the first near-tie of the reference */
            n++;
        if (!n || size > 600)
            continue;
        char *list = cJSON_PrintUnformatted(prompt);
        struct km_buf body = {0};
        km_buf_printf(&body,
                      "{" MODEL ",\"prompt\":%s,\"max_tokens\":%d,\"ignore_eos\":true,\"return_token_ids\":true}", list,
                      n);
        for (int warm = 0; warm < 2; warm++) {
            cJSON *a = cl_json(port, COMP, body.data, 200);
            const cJSON *got = cJSON_GetObjectItem(cl_choice(a, 0), "token_ids");
            assert_int_equal(cJSON_GetArraySize(got), n);
            for (int i = 0; i < n; i++)
                assert_int_equal(cJSON_GetArrayItem(got, i)->valueint, cJSON_GetArrayItem(ids, i)->valueint);
            if (warm)
                assert_true(cached(a) >= (size - 1) / 16 * 16 && cached(a) < size);
            cJSON_Delete(a);
            compared++;
        }
        km_buf_free(&body);
        cJSON_free(list);
    }
    assert_true(compared >= 16);
    cJSON_Delete(all);
}

static void the_model_recalls_a_number(void **state)
{
    (void)state;
    cJSON *v = cl_json(port, COMP,
                       "{" MODEL ",\"prompt\":\" The secret number of Edmond is 402913. It was a fine day. The secret "
                       "number of Edmond is\",\"max_tokens\":12,\"stop\":\".\",\"logprobs\":5}",
                       200);
    assert_string_equal(text_of(v), " 402913");
    assert_string_equal(cJSON_GetObjectItem(cl_choice(v, 0), "finish_reason")->valuestring, "stop");
    const cJSON *lp = cJSON_GetObjectItem(cl_choice(v, 0), "logprobs");
    int n = cJSON_GetArraySize(cJSON_GetObjectItem(lp, "tokens"));
    assert_int_equal(n, cJSON_GetObjectItem(cJSON_GetObjectItem(v, "usage"), "completion_tokens")->valueint);
    const cJSON *x;
    cJSON_ArrayForEach(x, cJSON_GetObjectItem(lp, "token_logprobs"))
        assert_true(x->valuedouble <= 0 && x->valuedouble > -5);
    cJSON_ArrayForEach(x, cJSON_GetObjectItem(lp, "top_logprobs")) assert_int_equal(cJSON_GetArraySize(x), 5);
    cJSON_Delete(v);
}

static void streamed_equals_whole(void **state)
{
    (void)state;
    static const struct {
        const char *path, *body;
    } rows[] = {
        {COMP, "\"prompt\":\"On the 24th of February, 1815, the look-out at\",\"max_tokens\":60"},
        {COMP, "\"prompt\":\"On the 24th of February, 1815,\",\"max_tokens\":60,\"stop\":[\" the\",\"zzz\"]"},
        {COMP,
         "\"prompt\":\"\xe4\xb8\x96\xe7\x95\x8c \xf0\x9f\x8c\x8d caf\xc3\xa9 \xe4\xb8\x96\xe7\x95\x8c \xf0\x9f\x8c\x8d "
         "caf\xc3\xa9 \xe4\xb8\x96\",\"max_tokens\":30,\"temperature\":1.5,\"seed\":3"},
        {COMP,
         "\"prompt\":\"Call "
         "me\",\"max_tokens\":40,\"temperature\":1.2,\"top_p\":0.9,\"top_k\":50,\"seed\":11,\"presence_penalty\":1"},
        {COMP, "\"prompt\":\"Call me\",\"max_tokens\":40,\"min_tokens\":40,\"echo\":true"},
        {CHAT, "\"messages\":[{\"role\":\"system\",\"content\":\"s\"},{\"role\":\"user\",\"content\":\"Who is "
               "Edmond?\"}],\"max_tokens\":30"},
        {CHAT,
         "\"messages\":[{\"role\":\"user\",\"content\":\"x\"}],\"max_tokens\":30,\"temperature\":2,\"seed\":5,\"n\":2"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        char body[700];
        bool own = strstr(rows[i].body, "temperature") != NULL;
        const char *model = own ? "\"model\":\"qwen3-tiny-lm\"" : MODEL;
        snprintf(body, sizeof body, "{%s,%s}", model, rows[i].body);
        cJSON *v = cl_json(port, rows[i].path, body, 200);
        snprintf(body, sizeof body, "{%s,%s,\"stream\":true,\"stream_options\":{\"include_usage\":true}}", model,
                 rows[i].body);
        struct streamed s;
        cl_stream(port, rows[i].path, body, &s);
        if (strcmp(text_of(v), km_buf_str(&s.text[0])))
            fail_msg("%s:\n%s\n%s", rows[i].body, text_of(v), km_buf_str(&s.text[0]));
        assert_string_equal(s.finish[0], cJSON_GetObjectItem(cl_choice(v, 0), "finish_reason")->valuestring);
        assert_int_equal(s.completion_tokens,
                         cJSON_GetObjectItem(cJSON_GetObjectItem(v, "usage"), "completion_tokens")->valueint);
        assert_int_equal(s.done, 1);
        cl_stream_free(&s);
        cJSON_Delete(v);
    }
    wait_until_idle();
}

static void cache_salts_separate_prefixes(void **state)
{
    (void)state;
    const char *prompt =
        "\"prompt\":\"It was the best of times, it was the worst of times, it was the age of wisdom, it was the age of "
        "foolishness, it was the epoch of belief\",\"max_tokens\":2";
    char body[500];
    int want[] = {0, 1, 0, 1, 0};
    const char *salt[] = {"\"a\"", "\"a\"", "\"b\"", "\"b\"", "null"};
    for (int i = 0; i < 5; i++) {
        snprintf(body, sizeof body, "{" MODEL ",%s,\"cache_salt\":%s}", prompt, salt[i]);
        cJSON *v = cl_json(port, COMP, body, 200);
        assert_int_equal(cached(v) >= 16, want[i]);
        cJSON_Delete(v);
    }
    snprintf(body, sizeof body, "{" MODEL ",%s}", prompt);
    cl_expect(port, "/reset_prefix_cache", "", 200);
    cJSON *v = cl_json(port, COMP, body, 200);
    assert_int_equal(cached(v), 0);
    cJSON_Delete(v);
}

static void a_disconnected_client_frees_its_pages(void **state)
{
    (void)state;
    const char *body =
        "{" MODEL ",\"prompt\":\"On the 24th of February, 1815, the look-out at Notre-Dame de la Garde signalled the "
        "three-master, the Pharaon\",\"n\":4,\"max_tokens\":2000,\"ignore_eos\":true,\"stream\":true}";
    for (int i = 0; i < 3; i++) {
        int fd = cl_start(port, COMP, body);
        char buf[4096];
        for (int k = 0; k < 1 + 4 * i; k++)
            assert_true(recv(fd, buf, sizeof buf, 0) > 0);
        int64_t until = km_now_ns() + 5000000000; /* choices may start in different steps */
        while (cl_metric(port, "vllm:num_requests_running") != 4 && km_now_ns() < until)
            usleep(1000);
        assert_true(cl_metric(port, "vllm:num_requests_running") == 4);
        assert_true(cl_metric(port, "kvmark_kv_pages_used") > 0);
        int64_t t0 = km_now_ns();
        close(fd);
        wait_until_idle();
        assert_true(km_now_ns() - t0 < 2000000000);
    }
    /* The blocks of the cancelled request's prompt are still in the prefix cache. */
    cJSON *v = cl_json(port, COMP,
                       "{" MODEL ",\"prompt\":\"On the 24th of February, 1815, the look-out at Notre-Dame de la Garde "
                       "signalled the three-master, the Pharaon\",\"max_tokens\":1}",
                       200);
    assert_true(cached(v) >= 16);
    cJSON_Delete(v);
}

struct stream_job {
    pthread_t thread;
    int i;
    char *text;
};

static void *stream_thread(void *arg)
{
    struct stream_job *o = arg;
    char body[300];
    snprintf(body, sizeof body,
             "{" MODEL ",\"prompt\":\"Chapter %d. The secret number of Mina is %06d. The secret number of Mina "
             "is\",\"max_tokens\":8,\"stop\":\".\",\"stream\":true}",
             o->i, 100003 * (1 + o->i % 9));
    struct streamed s;
    cl_stream(port, COMP, body, &s);
    if (s.done == 1 && !s.errors)
        o->text = strdup(km_buf_str(&s.text[0]));
    cl_stream_free(&s);
    return NULL;
}

static void concurrent_requests_change_no_answer(void **state)
{
    (void)state;
    struct stream_job alone[64] = {0}, together[64] = {0};
    for (int i = 0; i < 64; i++) {
        alone[i].i = together[i].i = i;
        if (i % 8 == 0)
            stream_thread(&alone[i]);
    }
    for (int i = 0; i < 64; i++)
        pthread_create(&together[i].thread, NULL, stream_thread, &together[i]);
    for (int i = 0; i < 64; i++) {
        pthread_join(together[i].thread, NULL);
        assert_non_null(together[i].text);
        if (alone[i].text)
            assert_string_equal(alone[i].text, together[i].text);
        free(alone[i].text);
        free(together[i].text);
    }
    wait_until_idle();
    struct answer a;
    cl_request(port, "/metrics", NULL, &a);
    assert_non_null(strstr(a.body.data, "vllm:request_success_total{finished_reason=\"stop\""));
    cl_free(&a);
}

static void tokenize_and_detokenize_are_inverse(void **state)
{
    (void)state;
    cJSON *v = cl_json(port, "/tokenize", "{\"prompt\":\"Hello, \xe4\xb8\x96\xe7\x95\x8c!\"}", 200);
    char *ids = cJSON_PrintUnformatted(cJSON_GetObjectItem(v, "tokens"));
    char body[400];
    snprintf(body, sizeof body, "{\"tokens\":%s}", ids);
    cJSON *w = cl_json(port, "/detokenize", body, 200);
    assert_string_equal(cJSON_GetObjectItem(w, "prompt")->valuestring, "Hello, \xe4\xb8\x96\xe7\x95\x8c!");
    cJSON_free(ids);
    cJSON_Delete(v);
    cJSON_Delete(w);
}

static void limits_and_errors(void **state)
{
    (void)state;
    cJSON *v = cl_json(port, "/v1/models", NULL, 200);
    const cJSON *m = cJSON_GetArrayItem(cJSON_GetObjectItem(v, "data"), 0);
    int max = cJSON_GetObjectItem(m, "max_model_len")->valueint;
    assert_string_equal(cJSON_GetObjectItem(m, "root")->valuestring, KVM_SOURCE_DIR "/models/qwen3-tiny-lm");
    cJSON_Delete(v);
    assert_true(max > 1000 && max <= 600 * 16);
    char body[300];
    snprintf(body, sizeof body, "{" MODEL ",\"prompt\":\"x\",\"max_tokens\":%d}", max);
    v = cl_json(port, COMP, body, 400);
    assert_string_equal(cJSON_GetObjectItem(cJSON_GetObjectItem(v, "error"), "code")->valuestring,
                        "context_length_exceeded");
    cJSON_Delete(v);
    cl_expect(port, COMP, "{" MODEL ",\"prompt\":[4096]}", 400);
    cl_expect(port, COMP, "{" MODEL ",\"prompt\":[-1]}", 400);
    cl_expect(port, COMP, "{" MODEL ",\"prompt\":[4095],\"max_tokens\":2}", 200);
    cl_expect(port, COMP, "{\"model\":\"gpt\",\"prompt\":\"x\"}", 404);
    wait_until_idle();
}

static void any_allocation_may_fail(void **state)
{
    (void)state;
    const char *good =
        "{" MODEL ",\"prompt\":\" The secret number of Edmond is 402913. The secret number of Edmond is\",\"stop\":"
        "\".\",\"max_tokens\":8,\"logprobs\":1%s}";
    char whole[300], streamed[300], req[600], answer[65536];
    snprintf(whole, sizeof whole, good, "");
    snprintf(streamed, sizeof streamed, good, ",\"stream\":true,\"return_token_ids\":true");
    int failed = 0;
    for (int n = 1; n <= 160; n++) {
        const char *body = n % 2 ? whole : streamed;
        int len = snprintf(req, sizeof req,
                           "POST /v1/completions HTTP/1.1\r\nHost: h\r\nConnection: close\r\nContent-Type: "
                           "application/json\r\nContent-Length: %zu\r\n\r\n%s",
                           strlen(body), body);
        int fd = cl_connect(port);
        km_mem_fail_at(n); /* the test itself allocates nothing until km_mem_fail_at(0) */
        cl_send(fd, req, (size_t)len);
        size_t at = 0;
        ssize_t k;
        while ((k = recv(fd, answer + at, sizeof answer - 1 - at, 0)) > 0)
            at += (size_t)k;
        km_mem_fail_at(0);
        close(fd);
        answer[at] = 0;
        if (k < 0 && errno == EAGAIN)
            fail_msg("allocation %d: no answer, only %s", n, answer);
        if (strncmp(answer, "HTTP/1.1 200", 12) || strstr(answer, "\"error\""))
            failed++; /* the request was refused, failed or lost its connection; the server must not hang or crash */
    }
    assert_true(failed > 10);
    wait_until_idle();
    cJSON *v = cl_json(port, COMP, whole, 200);
    assert_string_equal(text_of(v), " 402913");
    cJSON_Delete(v);
}

int main(void)
{
    km_log_level(KM_LOG_ERROR);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(reference_ids_come_back),
        cmocka_unit_test(the_model_recalls_a_number),
        cmocka_unit_test(streamed_equals_whole),
        cmocka_unit_test(cache_salts_separate_prefixes),
        cmocka_unit_test(a_disconnected_client_frees_its_pages),
        cmocka_unit_test(concurrent_requests_change_no_answer),
        cmocka_unit_test(tokenize_and_detokenize_are_inverse),
        cmocka_unit_test(limits_and_errors),
        cmocka_unit_test(any_allocation_may_fail),
    };
    return cmocka_run_group_tests(tests, open_server, close_server);
}
