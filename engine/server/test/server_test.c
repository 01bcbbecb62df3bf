/* The API over real sockets, with the fake engine and the fake tokenizer. The output of a request is its own prompt,
 * repeated (fake_engine.h). */
#include "base/test/test.h"

#include "base/log.h"
#include "engine/server/test/fake_engine.h"
#include "engine/server/test/fake_tokenizer.h"
#include "engine/server/test/test_client.h"
#include "engine/server/test/test_server.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

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

static void assert_json(const cJSON *v, const char *want)
{
    char *got = cJSON_PrintUnformatted(v);
    assert_string_equal(got, want);
    cJSON_free(got);
}

static void health_version_and_models(void **state)
{
    (void)state;
    server_start();
    struct answer a;
    cl_request(server.port, "/health", NULL, &a);
    assert_int_equal(a.status, 200);
    assert_int_equal(a.body.len, 0);
    cl_free(&a);
    cJSON *v = cl_json(server.port, "/version", NULL, 200);
    assert_string_equal(str(v, "version"), "0.1.0");
    assert_string_equal(str(v, "device"), "cpu");
    assert_true(cJSON_IsTrue(cJSON_GetObjectItem(v, "dummy_weights")));
    assert_int_equal(strlen(str(v, "fingerprint")), 64);
    cJSON_Delete(v);
    v = cl_json(server.port, "/v1/models", NULL, 200);
    const cJSON *m = cJSON_GetArrayItem(cJSON_GetObjectItem(v, "data"), 0);
    assert_string_equal(str(m, "id"), "fake-1");
    assert_int_equal(num(m, "max_model_len"), 4000);
    cJSON_Delete(v);
    v = cl_json(server.port, "/v1/models/fake-1", NULL, 200);
    assert_string_equal(str(v, "object"), "model");
    cJSON_Delete(v);
    cl_expect(server.port, "/v1/models/other", NULL, 404);
    cl_expect(server.port, "/nothing", NULL, 404);
    cl_expect(server.port, "/healthy", NULL, 404);
    cl_expect(server.port, "/health/x", NULL, 404);
    cl_expect(server.port, "/health", "{}", 405);
    cl_expect(server.port, COMP, NULL, 405);
    server_stop();
}

static void tokenize_and_detokenize(void **state)
{
    (void)state;
    server_start();
    cJSON *v =
        cl_json(server.port, "/tokenize", "{\"prompt\":\"h\xc3\xa9<|im_end|>\",\"return_token_strs\":true}", 200);
    assert_json(
        v, "{\"count\":4,\"max_model_len\":4000,\"tokens\":[104,195,169,258],\"token_strs\":[\"h\",\"\xef\xbf\xbd\","
           "\"\xef\xbf\xbd\",\"<|im_end|>\"]}");
    cJSON_Delete(v);
    v = cl_json(server.port, "/tokenize", "{\"messages\":[{\"role\":\"user\",\"content\":\"x\"}]}", 200);
    assert_int_equal(num(v, "count"), 20);
    cJSON_Delete(v);
    v = cl_json(server.port, "/detokenize", "{\"tokens\":[104,195,169,34]}", 200);
    assert_string_equal(str(v, "prompt"), "h\xc3\xa9\"");
    cJSON_Delete(v);
    cl_expect(server.port, "/detokenize", "{\"tokens\":[290]}", 400);
    server_stop();
}

static void reset_prefix_cache(void **state)
{
    (void)state;
    server_start();
    cl_expect(server.port, "/reset_prefix_cache", "", 200);
    assert_int_equal(fake.external_resets, 0);
    cl_expect(server.port, "/reset_prefix_cache?reset_external=true", "", 200);
    cl_expect(server.port, "/reset_prefix_cache", "{\"reset_external\":true}", 200);
    assert_int_equal(fake.resets, 3);
    assert_int_equal(fake.external_resets, 2);
    cl_expect(server.port, "/reset_prefix_cache", "{\"reset_external\":1}", 400);
    char padded[6000];
    snprintf(padded, sizeof padded, "{%5000s}", "");
    cl_expect(server.port, "/reset_prefix_cache", padded, 413);
    server_stop();
}

static void resets_do_not_block_other_requests(void **state)
{
    (void)state;
    server_start();
    fake.step_us = 20000; /* the engine resets between two steps */
    struct km_buf many = {0}, rest = {0};
    struct answer a;
    for (int i = 0; i < 50; i++)
        km_buf_puts(&many, "POST /reset_prefix_cache HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n\r\n");
    int pipelining = cl_connect(server.port), leaving = cl_start(server.port, "/reset_prefix_cache", "");
    cl_send(pipelining, many.data, many.len);
    cl_expect(server.port, "/v1/models", NULL, 200);
    assert_true(fake.resets < 50);
    close(leaving);
    for (int i = 0; i < 50; i++) {
        assert_true(cl_read(pipelining, &rest, &a));
        assert_int_equal(a.status, 200);
        cl_free(&a);
    }
    assert_true(fake.resets >= 50);
    km_buf_free(&many);
    km_buf_free(&rest);
    close(pipelining);
    server_stop();
}

static void completions_and_chats(void **state)
{
    (void)state;
    server_start();
    cJSON *v = cl_json(server.port, COMP, "{" MODEL ",\"prompt\":\"hello\",\"max_tokens\":12}", 200);
    assert_string_equal(str(v, "object"), "text_completion");
    assert_string_equal(str(v, "model"), "fake-1");
    assert_true(!strncmp(str(v, "id"), "cmpl-", 5));
    assert_string_equal(str(cl_choice(v, 0), "text"), "hellohellohe");
    assert_string_equal(str(cl_choice(v, 0), "finish_reason"), "length");
    assert_true(cJSON_IsNull(cJSON_GetObjectItem(cl_choice(v, 0), "logprobs")));
    const cJSON *u = cJSON_GetObjectItem(v, "usage");
    assert_int_equal(num(u, "prompt_tokens"), 5);
    assert_int_equal(num(u, "completion_tokens"), 12);
    assert_int_equal(num(u, "total_tokens"), 17);
    assert_int_equal(num(cJSON_GetObjectItem(u, "prompt_tokens_details"), "cached_tokens"), 0);
    cJSON_Delete(v);

    v = cl_json(server.port, CHAT, "{" MODEL ",\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}],\"max_tokens\":7}",
                200);
    assert_string_equal(str(v, "object"), "chat.completion");
    const cJSON *m = cJSON_GetObjectItem(cl_choice(v, 0), "message");
    assert_string_equal(str(m, "role"), "assistant");
    assert_string_equal(str(m, "content"), "user\nh"); /* <|im_start|> is skipped */
    u = cJSON_GetObjectItem(v, "usage");
    assert_int_equal(num(u, "prompt_tokens"), 21);
    assert_int_equal(num(cJSON_GetObjectItem(u, "prompt_tokens_details"), "cached_tokens"), 16);
    cJSON_Delete(v);

    v = cl_json(server.port, COMP, "{" MODEL ",\"prompt\":[\"ab\",[99,100]],\"n\":2,\"max_tokens\":3,\"echo\":true}",
                200);
    static const char *const want[] = {"ababa", "ababa", "cdcdc", "cdcdc"};
    assert_int_equal(cJSON_GetArraySize(cJSON_GetObjectItem(v, "choices")), 4);
    for (int i = 0; i < 4; i++) {
        assert_string_equal(str(cl_choice(v, i), "text"), want[i]);
        assert_int_equal(num(cl_choice(v, i), "index"), i);
    }
    assert_int_equal(num(cJSON_GetObjectItem(v, "usage"), "prompt_tokens"), 4);
    assert_int_equal(num(cJSON_GetObjectItem(v, "usage"), "completion_tokens"), 12);
    cJSON_Delete(v);
    server_stop();
}

static void defaults_of_fields(void **state)
{
    (void)state;
    server_start();
    int before = fake.submitted;
    cJSON *v = cl_json(server.port, COMP, "{" MODEL ",\"prompt\":\"hello\",\"max_tokens\":0,\"echo\":true}", 200);
    assert_string_equal(str(cl_choice(v, 0), "text"), "hello");
    assert_string_equal(str(cl_choice(v, 0), "finish_reason"), "length");
    cJSON_Delete(v);
    assert_int_equal(fake.submitted, before);
    cl_expect(server.port, COMP, "{" MODEL ",\"prompt\":\"hello\"}", 200);
    assert_int_equal(fake.last_max_tokens, 16);
    assert_int_equal(fake.last_top_k, 7); /* of generation_config.json */
    cl_expect(server.port, COMP, "{" MODEL ",\"prompt\":\"x\",\"n\":3,\"seed\":40,\"max_tokens\":1}", 200);
    assert_int_equal(fake.last_seed, 42); /* each choice has a seed of its own */
    assert_int_equal(fake.live, 0);
    server_stop();
}

static void finish_reasons_are_reported(void **state)
{
    (void)state;
    static const struct {
        const char *body, *text, *finish, *reason;
    } rows[] = {
        {"\"prompt\":\"abc<|im_end|>\"", "abc", "stop", "null"},
        {"\"prompt\":\"abc<|im_end|>\",\"ignore_eos\":true,\"max_tokens\":6", "abcab", "length", "null"},
        {"\"prompt\":\"abc<|im_end|>\",\"ignore_eos\":true,\"max_tokens\":6,\"skip_special_tokens\":false",
         "abc<|im_end|>ab", "length", "null"},
        {"\"prompt\":\"abc<|im_end|>\",\"min_tokens\":5", "abc abc", "stop", "null"},
        {"\"prompt\":\"abcd\",\"stop_token_ids\":[99]", "ab", "stop", "99"},
        {"\"prompt\":\"abcd\",\"stop_token_ids\":[99],\"include_stop_str_in_output\":true", "abc", "stop", "99"},
        {"\"prompt\":\"abcd\",\"stop\":\"cd\"", "ab", "stop", "\"cd\""},
        {"\"prompt\":\"abcd\",\"stop\":\"cd\",\"include_stop_str_in_output\":true", "abcd", "stop", "\"cd\""},
        {"\"prompt\":\"abcd\",\"stop\":[\"x\",\"da\",\"bcda\"]", "a", "stop", "\"bcda\""},
        {"\"prompt\":\"abcd\",\"stop\":\"ab\",\"min_tokens\":2,\"max_tokens\":20", "abcd", "stop", "\"ab\""},
        {"\"prompt\":\"abcd\",\"stop\":\"dabcx\",\"max_tokens\":9", "abcdabcda", "length", "null"},
        {"\"prompt\":\"a\xf0\x9f\x8c\x8d\",\"max_tokens\":10",
         "a\xf0\x9f\x8c\x8d"
         "a\xf0\x9f\x8c\x8d",
         "length", "null"},
        {"\"prompt\":\"a\xf0\x9f\x8c\x8d\",\"max_tokens\":3", "a\xef\xbf\xbd", "length", "null"},
        {"\"prompt\":\"a\xf0\x9f\x8c\x8d!\",\"stop\":\"\xf0\x9f\x8c\x8d\"", "a", "stop", "\"\xf0\x9f\x8c\x8d\""},
        {"\"prompt\":[255,97,195],\"max_tokens\":6",
         "\xef\xbf\xbd"
         "a\xef\xbf\xbd\xef\xbf\xbd"
         "a\xef\xbf\xbd",
         "length", "null"},
        {"\"prompt\":\"say \\\"x\\\\y\\\"\\n\\t\\u0001\",\"max_tokens\":12", "say \"x\\y\"\n\t\x01", "length", "null"},
        /* km_json_parse keeps a NUL as C0 80. */
        {"\"prompt\":\"a\\u0000b\",\"max_tokens\":6",
         "a\xC0\x80"
         "ba\xC0\x80"
         "b",
         "length", "null"},
        {"\"prompt\":[299,97],\"max_tokens\":4", "aa", "length", "null"}, /* an id without text */
    };
    server_start();
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        char body[512];
        snprintf(body, sizeof body, "{" MODEL ",%s}", rows[i].body);
        cJSON *v = cl_json(server.port, COMP, body, 200);
        if (strcmp(str(cl_choice(v, 0), "text"), rows[i].text))
            fail_msg("%s: %s", rows[i].body, str(cl_choice(v, 0), "text"));
        assert_string_equal(str(cl_choice(v, 0), "finish_reason"), rows[i].finish);
        assert_json(cJSON_GetObjectItem(cl_choice(v, 0), "stop_reason"), rows[i].reason);
        cJSON_Delete(v);
        /* The pieces of a stream, joined, are the same text. */
        snprintf(body, sizeof body, "{" MODEL ",%s,\"stream\":true,\"stream_options\":{\"include_usage\":true}}",
                 rows[i].body);
        struct streamed s;
        cl_stream(server.port, COMP, body, &s);
        assert_string_equal(km_buf_str(&s.text[0]), rows[i].text);
        assert_string_equal(s.finish[0], rows[i].finish);
        assert_int_equal(s.done, 1);
        assert_int_equal(s.usages, 1);
        assert_int_equal(s.errors, 0);
        assert_int_equal(s.events, s.completion_tokens + 1); /* one for each token, and one with the usage */
        cl_stream_free(&s);
    }
    wait_until_equal(&fake.live, 0);
    assert_int_equal(fake.cancelled_abort, 0);
    server_stop();
}

static void chats_stream(void **state)
{
    (void)state;
    server_start();
    const char *body =
        "{" MODEL ",\"messages\":[{\"role\":\"user\",\"content\":\"caf\xc3\xa9\"}],\"max_tokens\":11,\"n\":3,"
        "\"stream\":true}";
    struct streamed s;
    cl_stream(server.port, CHAT, body, &s);
    assert_int_equal(s.roles, 3);
    assert_int_equal(s.done, 1);
    assert_int_equal(s.usages, 0);
    assert_int_equal(s.events, 3 * 12);
    for (int i = 0; i < 3; i++) {
        assert_string_equal(s.text[i].data, "user\ncaf\xc3\xa9");
        assert_string_equal(s.finish[i], "length");
    }
    cl_stream_free(&s);
    body = "{" MODEL
           ",\"messages\":[{\"role\":\"user\",\"content\":\"x\"}],\"max_tokens\":3,\"stream\":true,\"stream_options\":"
           "{\"include_usage\":true,\"continuous_usage_stats\":true}}";
    struct answer a;
    cl_request(server.port, CHAT, body, &a);
    int usages = 0;
    for (const char *p = a.body.data; (p = strstr(p, "\"usage\":{\"prompt_tokens\":20")); p++)
        usages++;
    assert_int_equal(usages, 4);
    assert_non_null(strstr(a.body.data, "\"completion_tokens\":2,"));
    cl_free(&a);
    server_stop();
}

static void logprobs_have_openais_shape(void **state)
{
    (void)state;
    server_start();
    cJSON *v = cl_json(server.port, COMP, "{" MODEL ",\"prompt\":\"a\xc3\xa9\",\"max_tokens\":3,\"logprobs\":2}", 200);
    assert_json(cJSON_GetObjectItem(cl_choice(v, 0), "logprobs"),
                "{\"tokens\":[\"a\",\"\xef\xbf\xbd\",\"\xef\xbf\xbd\"],\"token_logprobs\":[-0.5,-0.5,-0.5],"
                "\"top_logprobs\":[{\"a\":-0.5,\"b\":-2},{\"\xef\xbf\xbd\":-0.5},{\"\xef\xbf\xbd\":-0.5}],"
                "\"text_offset\":[0,1,2]}");
    cJSON_Delete(v);
    v = cl_json(server.port, COMP,
                "{" MODEL ",\"prompt\":\"ab\",\"max_tokens\":2,\"logprobs\":1,\"return_tokens_as_token_ids\":true}",
                200);
    assert_json(cJSON_GetObjectItem(cl_choice(v, 0), "logprobs"),
                "{\"tokens\":[\"token_id:97\",\"token_id:98\"],\"token_logprobs\":[-0.5,-0.5],\"top_logprobs\":"
                "[{\"token_id:97\":-0.5},{\"token_id:98\":-0.5}],\"text_offset\":[0,11]}");
    cJSON_Delete(v);
    const char *chat =
        "{" MODEL ",\"messages\":[{\"role\":\"user\",\"content\":\"x\"}],\"max_tokens\":2,\"logprobs\":true,"
        "\"top_logprobs\":%d%s}";
    char body[512];
    snprintf(body, sizeof body, chat, 2, "");
    v = cl_json(server.port, CHAT, body, 200);
    assert_json(
        cJSON_GetObjectItem(cl_choice(v, 0), "logprobs"),
        "{\"content\":[{\"token\":\"<|im_start|>\",\"logprob\":-0.5,\"bytes\":[60,124,105,109,95,115,116,97,114,"
        "116,124,62],\"top_logprobs\":[{\"token\":\"<|im_start|>\",\"logprob\":-0.5,\"bytes\":[60,124,105,109,95,"
        "115,116,97,114,116,124,62]},{\"token\":\"<|im_end|>\",\"logprob\":-2,\"bytes\":[60,124,105,109,95,101,"
        "110,100,124,62]}]},{\"token\":\"u\",\"logprob\":-0.5,\"bytes\":[117],\"top_logprobs\":[{\"token\":\"u\","
        "\"logprob\":-0.5,\"bytes\":[117]},{\"token\":\"v\",\"logprob\":-2,\"bytes\":[118]}]}],\"refusal\":null}");
    cJSON_Delete(v);
    snprintf(body, sizeof body, chat, 0, ",\"stream\":true");
    struct answer a;
    cl_request(server.port, CHAT, body, &a);
    assert_non_null(strstr(a.body.data, "\"logprobs\":{\"content\":[{\"token\":\"u\",\"logprob\":-0.5,\"bytes\":[117],"
                                        "\"top_logprobs\":[]}],\"refusal\":null}"));
    cl_free(&a);

    v = cl_json(server.port, COMP, "{" MODEL ",\"prompt\":\"ab\",\"max_tokens\":3,\"return_token_ids\":true}", 200);
    assert_json(cJSON_GetObjectItem(cl_choice(v, 0), "token_ids"), "[97,98,97]");
    assert_json(cJSON_GetObjectItem(cl_choice(v, 0), "prompt_token_ids"), "[97,98]");
    cJSON_Delete(v);
    cl_request(server.port, COMP,
               "{" MODEL ",\"prompt\":\"ab\",\"max_tokens\":3,\"return_token_ids\":true,\"stream\":true}", &a);
    const char *first = strstr(a.body.data, "\"prompt_token_ids\":[97,98]");
    assert_non_null(first);
    assert_null(strstr(first + 5, "prompt_token_ids"));
    assert_non_null(strstr(a.body.data, "\"token_ids\":[98]"));
    cl_free(&a);
    server_stop();
}

static void token_ids_without_a_tokenizer(void **state)
{
    (void)state;
    server_start_with(srv_defaults(), NULL, false);
    const char *body =
        "{" MODEL ",\"prompt\":[5,6],\"max_tokens\":3,\"return_tokens_as_token_ids\":true,\"return_token_ids\":true,"
        "\"logprobs\":0%s}";
    char full[512];
    snprintf(full, sizeof full, body, "");
    cJSON *v = cl_json(server.port, COMP, full, 200);
    assert_string_equal(str(cl_choice(v, 0), "text"), "token_id:5 token_id:6 token_id:5");
    cJSON_Delete(v);
    snprintf(full, sizeof full, body, ",\"stream\":true");
    struct streamed s;
    cl_stream(server.port, COMP, full, &s);
    assert_string_equal(s.text[0].data, "token_id:5 token_id:6 token_id:5");
    cl_stream_free(&s);
    cl_expect(server.port, COMP, "{" MODEL ",\"prompt\":\"text\"}", 400);
    cl_expect(server.port, CHAT, "{" MODEL ",\"messages\":[{\"role\":\"user\",\"content\":\"x\"}]}", 400);
    server_stop();
}

static void engine_errors_reach_the_client(void **state)
{
    (void)state;
    server_start();
    cl_expect(server.port, COMP, "{" MODEL ",\"prompt\":\"DEAD\"}", 500);
    cl_expect(server.port, COMP, "{" MODEL ",\"prompt\":\"FAIL\"}", 500);
    cl_expect(server.port, COMP, "{" MODEL ",\"prompt\":\"DEAD\",\"stream\":true}",
              500); /* no HTTP head was sent before */
    struct streamed s;
    cl_stream(server.port, COMP, "{" MODEL ",\"prompt\":\"FAIL\",\"stream\":true}", &s);
    assert_string_equal(s.text[0].data, "FAI");
    assert_string_equal(s.finish[0], ""); /* a failed request must not look finished */
    assert_int_equal(s.errors, 1);
    assert_int_equal(s.done, 0);
    cl_stream_free(&s);
    /* One choice that fails ends the other choices of its request. */
    cl_expect(server.port, COMP, "{" MODEL ",\"prompt\":[\"good\",\"FAIL\"],\"max_tokens\":1000}", 500);
    wait_until_equal(&fake.live, 0);
    cl_expect(server.port, COMP, "{" MODEL ",\"prompt\":\"fine\"}", 200);

    fake.failed = 1;
    cl_expect(server.port, "/health", NULL, 503);
    cl_expect(server.port, COMP, "{" MODEL ",\"prompt\":\"x\"}", 500);
    server_stop();
}

static void a_full_queue_is_429(void **state)
{
    (void)state;
    server_start();
    fake.max_live = 3;
    fake.paused = 1;
    int fds[3];
    for (int i = 0; i < 3; i++)
        fds[i] = cl_start(server.port, COMP, "{" MODEL ",\"prompt\":\"x\"}");
    wait_until_equal(&fake.live, 3);
    struct answer a;
    cl_request(server.port, COMP, "{" MODEL ",\"prompt\":\"x\"}", &a);
    assert_int_equal(a.status, 429);
    assert_non_null(strstr(a.head.data, "Retry-After: 1"));
    cl_free(&a);
    cl_expect(server.port, "/reset_prefix_cache", "", 409);
    fake.paused = 0;
    for (int i = 0; i < 3; i++) {
        struct km_buf rest = {0};
        cl_read(fds[i], &rest, &a);
        assert_int_equal(a.status, 200);
        cl_free(&a);
        km_buf_free(&rest);
        close(fds[i]);
    }
    fake.max_live = 2; /* the third choice is refused, so the first two are cancelled */
    cl_expect(server.port, COMP, "{" MODEL ",\"prompt\":\"x\",\"n\":3,\"max_tokens\":1000}", 429);
    wait_until_equal(&fake.live, 0);
    server_stop();
}

static void metrics_are_prometheus(void **state)
{
    (void)state;
    struct srv_opts o = srv_defaults();
    o.served_name = "we\"ird\\name";
    server_start_with(o, fake_tok, false);
    cl_expect(server.port, COMP, "{\"model\":\"we\\\"ird\\\\name\",\"prompt\":\"x\",\"max_tokens\":5}", 200);
    cl_expect(server.port, COMP, "{\"model\":\"wrong\",\"prompt\":\"x\"}", 404);
    struct answer a;
    cl_request(server.port, "/metrics", NULL, &a);
    assert_non_null(strstr(a.head.data, "text/plain; version=0.0.4"));
    /* Each line is a comment, or name{labels} and a value. */
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
    assert_true(cl_metric(server.port, "vllm:time_to_first_token_seconds_count") == 1);
    assert_true(cl_metric(server.port, "vllm:inter_token_latency_seconds_count") == 4);
    assert_true(cl_metric(server.port, "vllm:request_generation_tokens_sum") == 5);
    assert_true(cl_metric(server.port, "vllm:e2e_request_latency_seconds_count") == 1);
    assert_true(cl_metric(server.port, "vllm:generation_tokens_total") == 5);
    assert_true(cl_metric(server.port, "kvmark_host_memory_bytes") > 1000);
    cl_request(server.port, "/metrics", NULL, &a);
    assert_non_null(strstr(a.body.data, "kvmark_http_responses_total{code=\"404\"} 1\n"));
    assert_non_null(
        strstr(a.body.data, "vllm:request_generation_tokens_bucket{model_name=\"we\\\"ird\\\\name\",le=\"5\"} 1\n"));
    assert_non_null(
        strstr(a.body.data, "vllm:request_generation_tokens_bucket{model_name=\"we\\\"ird\\\\name\",le=\"2\"} 0\n"));
    cl_free(&a);
    server_stop();
}

int main(void)
{
    km_log_level(KM_LOG_ERROR);
/* Each test begins with a fake engine in its initial state. */
#define TEST(f) cmocka_unit_test_setup(f, server_setup)
    const struct CMUnitTest tests[] = {
        TEST(health_version_and_models),
        TEST(tokenize_and_detokenize),
        TEST(reset_prefix_cache),
        TEST(resets_do_not_block_other_requests),
        TEST(completions_and_chats),
        TEST(defaults_of_fields),
        TEST(finish_reasons_are_reported),
        TEST(chats_stream),
        TEST(logprobs_have_openais_shape),
        TEST(token_ids_without_a_tokenizer),
        TEST(engine_errors_reach_the_client),
        TEST(a_full_queue_is_429),
        TEST(metrics_are_prometheus),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
