/* From bytes to events: the SSE parser with the bytes cut at every place, the JSON scanner on what servers send and on
 * damaged text. */
#include "base/test/test.h"

#include "base/mem.h"
#include "harness/client/event.h"
#include "harness/client/hist.h"
#include "harness/client/sse.h"

#include <stdlib.h>
#include <string.h>

/* Joins events with '|', so that a whole stream is compared as one string. */
static void collect(void *arg, const char *data, size_t len)
{
    km_buf_put(arg, data, len);
    km_buf_putc(arg, '|');
}

/* Feeds text in three pieces, cut at a and b. They are copies, so that the sanitizer sees a read beyond their end. */
static void feed_cut(const char *text, size_t len, size_t a, size_t b, struct km_buf *out)
{
    struct sse s = {0};
    const size_t at[] = {0, a, b, len};
    for (int i = 0; i < 3; i++) {
        size_t n = at[i + 1] - at[i];
        char *copy = malloc(n ? n : 1);
        memcpy(copy, text + at[i], n);
        sse_feed(&s, copy, n, collect, out);
        free(copy);
    }
    sse_end(&s, collect, out);
    assert_false(s.failed);
    sse_free(&s);
}

static const struct {
    const char *text, *want;
} streams[] = {
    {"data: {\"a\":1}\n\ndata: [DONE]\n\n", "{\"a\":1}|[DONE]|"},
    {"data:x\n\ndata:  y\n\n", "x| y|"}, /* one space after the colon is removed, no more */
    {"data: a\r\n\r\ndata: b\r\n\r\n", "a|b|"},
    {"data: a\r\rdata: b\r\r", "a|b|"},
    {": ping\n\n: ping\ndata: a\n: ping\n\n\n\n", "a|"}, /* comments are skipped, and an empty event is no event */
    {"event: m\nid: 3\nretry: 5\ndata: a\n\ndatax: no\n\n", "a|"},
    {"data: one\ndata: two\ndata:\ndata\n\n", "one\ntwo\n\n|"}, /* data lines are joined, empty ones too */
    {"data: \xC3\xA9\xF0\x9F\x98\x80\n\n", "\xC3\xA9\xF0\x9F\x98\x80|"},
    {"data: no end", "no end|"},
    {"data: a\n\ndata: b\n", "a|b|"},
    {"", ""},
};

static void events_survive_every_cut(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof streams / sizeof *streams; i++) {
        size_t len = strlen(streams[i].text);
        for (size_t a = 0; a <= len; a++)
            for (size_t b = a; b <= len; b++) {
                struct km_buf got = {0};
                feed_cut(streams[i].text, len, a, b, &got);
                assert_string_equal(km_buf_str(&got), streams[i].want);
                km_buf_free(&got);
            }
    }
}

static void a_byte_at_a_time(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof streams / sizeof *streams; i++) {
        struct sse s = {0};
        struct km_buf got = {0};
        for (const char *p = streams[i].text; *p; p++)
            sse_feed(&s, p, 1, collect, &got);
        sse_end(&s, collect, &got);
        assert_string_equal(km_buf_str(&got), streams[i].want);
        sse_reset(&s);
        sse_feed(&s, "data: z\n\n", 9, collect, &got); /* a reset parser has forgotten the stream before */
        assert_int_equal(got.data[got.len - 2], 'z');
        sse_free(&s);
        km_buf_free(&got);
    }
}

static void no_memory_is_a_failed_stream(void **state)
{
    (void)state;
    struct sse s = {0};
    struct km_buf got = {0};
    km_mem_fail_at(1);
    sse_feed(&s, "data: abc", 9, collect, &got);
    km_mem_fail_at(0);
    assert_true(s.failed);
    sse_feed(&s, "\n\n", 2, collect, &got);
    assert_int_equal(got.len, 0);
    sse_free(&s);
}

static void expect_text(struct ev_slice s, const char *want)
{
    struct km_buf b = {0};
    ev_text(s, &b);
    assert_string_equal(km_buf_str(&b), want);
    km_buf_free(&b);
}

static void scan_event(const char *text, struct ev *e)
{
    assert_int_equal(ev_scan(text, strlen(text), e), 0);
}

static void what_servers_send(void **state)
{
    (void)state;
    struct ev e;
    scan_event("{\"id\":\"c\",\"object\":\"chat.completion.chunk\",\"choices\":[{\"index\":0,\"delta\":{\"role\":"
               "\"assistant\",\"content\":\"\"},"
               "\"logprobs\":null,\"finish_reason\":null}]}",
               &e);
    assert_true(e.choices);
    assert_int_equal(e.content.n, 0);
    assert_null(e.finish.p);
    assert_false(e.failed);
    assert_int_equal(e.listed, -1);

    scan_event("{\"choices\":[{\"delta\":{\"content\":\"a\\u00e9\\ud83d\\ude00\\n\\\"\\/"
               "\\ud800x\"},\"finish_reason\":\"stop\"}]}",
               &e);
    expect_text(e.content, "a\xC3\xA9\xF0\x9F\x98\x80\n\"/\xEF\xBF\xBDx");
    expect_text(e.finish, "stop");

    scan_event("{\"choices\":[{\"delta\":{\"reasoning_content\":\"hm\",\"content\":null}}],\"usage\":null}", &e);
    expect_text(e.reasoning, "hm");
    assert_null(e.content.p);
    assert_int_equal(e.prompt_tokens, -1);

    scan_event("{\"choices\":[{\"delta\":{\"tool_calls\":[{\"index\":0}]}}]}", &e);
    assert_true(e.tool_calls);

    scan_event("{\"choices\":[],\"usage\":{\"prompt_tokens\":12,\"total_tokens\":15,\"completion_tokens\":3,"
               "\"prompt_tokens_details\":{\"audio\":null,\"cached_tokens\":8}}}",
               &e);
    assert_false(e.choices);
    assert_int_equal(e.prompt_tokens, 12);
    assert_int_equal(e.output_tokens, 3);
    assert_int_equal(e.cached_tokens, 8);

    scan_event("{\"choices\":[{\"text\":\" b\",\"logprobs\":{\"tokens\":[\" "
               "b\",\"c\"],\"top_logprobs\":[{}]},\"token_ids\":[1,2,3]}],"
               "\"usage\":{\"prompt_tokens\":1,\"prompt_tokens_details\":null}}",
               &e);
    expect_text(e.content, " b");
    assert_int_equal(e.listed, 3);
    assert_int_equal(e.cached_tokens, -1);

    scan_event("{\"choices\":[{\"logprobs\":{\"content\":[{\"token\":\"a\"},{\"token\":\"b\"}]},\"delta\":{\"content\":"
               "\"ab\"}}]}",
               &e);
    assert_int_equal(e.listed, 2);
}

static void errors_in_each_dialect(void **state)
{
    (void)state;
    struct ev e;
    scan_event("{\"error\":{\"message\":\"out of \\\"pages\\\"\",\"type\":\"x\",\"param\":null,\"code\":500}}", &e);
    assert_true(e.failed);
    expect_text(e.message, "out of \"pages\"");
    scan_event("{\"object\":\"error\",\"message\":\"no model\"}", &e);
    assert_true(e.failed);
    expect_text(e.message, "no model");
    scan_event("{\"error\":\"plain\"}", &e);
    assert_true(e.failed);
    expect_text(e.message, "plain");
    scan_event("{\"detail\":\"Not Found\"}", &e);
    expect_text(e.message, "Not Found");
    scan_event("{\"error\":null,\"choices\":[]}", &e);
    assert_false(e.failed);
}

static void damage_is_seen(void **state)
{
    (void)state;
    struct ev e;
    static const char *const bad[] = {"",
                                      "x",
                                      "[]",
                                      "{",
                                      "{}x",
                                      "{\"a\"}",
                                      "{\"a\":}",
                                      "{\"a\":1,}",
                                      "{\"a\":\"\n\"}",
                                      "{\"a\":\"\\x\"}",
                                      "{\"a\":\"\\u12g4\"}",
                                      "{\"choices\":[{}",
                                      "{\"choices\":[1 2]}",
                                      "{a:1}",
                                      "{\"a\":nul}"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        assert_int_equal(ev_scan(bad[i], strlen(bad[i]), &e), -1);
    /* A prefix of an event is an error, and no changed byte makes the scanner read outside of the text. */
    const char *whole =
        "{\"id\":\"c\\u00e9\",\"choices\":[{\"delta\":{\"content\":\"a\\n\"},\"logprobs\":{\"content\":[{}]},"
        "\"finish_reason\":\"stop\"}],\"usage\":{\"prompt_tokens\":12,\"prompt_tokens_details\":{\"cached_"
        "tokens\":1}}}";
    size_t n = strlen(whole);
    for (size_t len = 0; len < n; len++) {
        char *copy = malloc(len ? len : 1);
        memcpy(copy, whole, len);
        assert_int_equal(ev_scan(copy, len, &e), -1);
        free(copy);
    }
    unsigned seed = 7;
    for (int i = 0; i < 20000; i++) {
        char *copy = malloc(n);
        memcpy(copy, whole, n);
        for (int k = 0; k < 3; k++) {
            seed = seed * 1103515245 + 12345;
            copy[(seed >> 8) % n] = (char)(seed >> 3);
        }
        struct km_buf b = {0};
        if (ev_scan(copy, n, &e) == 0) {
            ev_text(e.content, &b);
            ev_text(e.finish, &b);
        }
        km_buf_free(&b);
        free(copy);
    }
    char deep[200];
    memset(deep, '[', sizeof deep);
    memcpy(deep, "{\"a\":", 5);
    assert_int_equal(ev_scan(deep, sizeof deep, &e), -1);
}

static void histogram_percentiles(void **state)
{
    (void)state;
    static struct hist h;
    assert_true(isnan(hist_ms(&h, 0.99)));
    for (int i = 1; i <= 1000; i++)
        hist_add(&h, (int64_t)i * 1000000);
    assert_true(hist_ms(&h, 0.99) >= 990 && hist_ms(&h, 0.99) <= 1000);
    assert_true(hist_ms(&h, 0.5) >= 500 && hist_ms(&h, 0.5) <= 535);
    hist_add(&h, -5);
    hist_add(&h, INT64_MAX);
    assert_int_equal(h.max, INT64_MAX);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(events_survive_every_cut),     cmocka_unit_test(a_byte_at_a_time),
        cmocka_unit_test(no_memory_is_a_failed_stream), cmocka_unit_test(what_servers_send),
        cmocka_unit_test(errors_in_each_dialect),       cmocka_unit_test(damage_is_seen),
        cmocka_unit_test(histogram_percentiles),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
