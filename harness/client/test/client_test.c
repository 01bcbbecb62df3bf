/* The whole client against a scripted server: request bodies, order, counts and failures. */
#include "base/test/test.h"

#include "base/clock.h"
#include "base/json.h"
#include "base/mem.h"
#include "harness/client/load.h"
#include "harness/client/request.h"
#include "harness/run/count.h"
#include "harness/run/summary.h"
#include "mock.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { MAX_CONVS = 32, MAX_MSGS = 40 };

/* A workload, a scripted server and a run. User message m of conversation c is: say "c.m", and a line end. */
struct bench {
    struct wl_set set;
    struct wl_conv convs[MAX_CONVS];
    struct wl_msg msgs[MAX_CONVS][MAX_MSGS];
    char texts[MAX_CONVS][MAX_MSGS][48];
    int32_t ids[3];
    struct mock *mock;
    struct target target;
    struct load_opts load;
    struct hz_trace trace;
    struct km_err err;
};

static void make_workload(struct bench *b, const int *lengths, int n, int answer_tokens, enum wl_kind kind)
{
    memset(b, 0, sizeof *b);
    b->set = (struct wl_set){.name = "made by hand", .kind = kind, .convs = b->convs, .n = n};
    b->ids[0] = 11, b->ids[1] = 22, b->ids[2] = 33;
    for (int c = 0; c < n; c++) {
        b->convs[c] = (struct wl_conv){.id = "CONV", .msgs = b->msgs[c], .n = lengths[c]};
        for (int m = 0; m < lengths[c]; m++) {
            snprintf(b->texts[c][m], sizeof b->texts[c][m], m % 2 ? "placeholder %d.%d" : "say \"%d.%d\"\n", c, m);
            b->msgs[c][m] = (struct wl_msg){.assistant = m % 2,
                                            .text = b->texts[c][m],
                                            .len = strlen(b->texts[c][m]),
                                            .n_tokens = m % 2 ? answer_tokens : 3,
                                            .ids = kind == WL_RANDOM && m == 0 ? b->ids : NULL};
        }
        b->set.n_requests += lengths[c] / 2;
    }
    b->load = load_defaults();
}

static void start_server(struct bench *b, struct mock_opts o)
{
    b->mock = mock_start(&o);
    b->target = (struct target){.url = mock_url(b->mock)};
}

static int run_load(struct bench *b)
{
    hz_trace_free(&b->trace);
    int rc = load_run(&b->target, &b->load, &b->set, NULL, NULL, &b->trace, &b->err);
    if (rc)
        print_message("load_run: %s\n", b->err.msg);
    return rc;
}

static void finish(struct bench *b)
{
    mock_stop(b->mock);
    hz_trace_free(&b->trace);
}

/* Checks the text against what the mock answers to a request with that many messages. */
static void expect_answer(const struct hz_rec *r, int tokens, int messages)
{
    struct km_buf b = {0};
    for (int i = 0; i < tokens; i++)
        mock_token(i, messages, &b);
    assert_non_null(r->text);
    assert_int_equal(r->text_len, b.len);
    assert_memory_equal(r->text, km_buf_str(&b), b.len);
    km_buf_free(&b);
}

static int count_tokens(const struct hz_trace *t, const struct hz_rec *r)
{
    int n = 0;
    for (int i = 0; i < r->n_ticks; i++)
        n += t->ticks[r->tick0 + (size_t)i].tokens;
    return n;
}

/* Checks the order of the times of a record. */
static void expect_times_in_order(const struct hz_trace *t, const struct hz_rec *r)
{
    assert_true(t->begin_ns <= r->sched_ns && r->sched_ns <= r->start_ns);
    assert_true(r->start_ns < r->header_ns && r->header_ns <= r->first_any_ns);
    assert_true(r->first_any_ns <= r->first_ns && r->first_ns <= r->last_ns);
    assert_true(r->last_ns <= r->last_any_ns && r->last_any_ns <= r->done_ns && r->done_ns <= t->end_ns);
    for (int i = 1; i < r->n_ticks; i++)
        assert_true(t->ticks[r->tick0 + (size_t)i - 1].ns <= t->ticks[r->tick0 + (size_t)i].ns);
}

static void conversations_with_real_answers(void **state)
{
    (void)state;
    static struct bench b;
    make_workload(&b, (int[]){6, 4}, 2, 5, WL_MULTI_TURN);
    start_server(&b, (struct mock_opts){.cached = 64, .ttft_us = 3000, .gap_us = 500});
    b.load.early_stop = false;
    assert_int_equal(run_load(&b), 0);
    assert_int_equal(b.trace.n, 5);
    assert_string_equal(b.trace.model, "mock");
    assert_string_equal(b.trace.server_version, "mock-1");
    for (int i = 0; i < 5; i++) {
        const struct hz_rec *r = &b.trace.recs[i];
        static const int conv[] = {0, 0, 0, 1, 1}, turn[] = {0, 1, 2, 0, 1};
        assert_true(r->ok);
        assert_string_equal(r->error, "");
        assert_int_equal(r->status, 200);
        assert_int_equal(r->conv, conv[i]);
        assert_int_equal(r->turn, turn[i]);
        assert_int_equal(r->messages, 2 * turn[i] + 1);
        assert_int_equal(r->asked_tokens, 5);
        assert_int_equal(r->prompt_tokens, 101 + 2 * turn[i]);
        assert_int_equal(r->cached_tokens, 64);
        assert_int_equal(r->output_tokens, 5);
        assert_int_equal(count_tokens(&b.trace, r), 5);
        assert_int_equal(r->n_ticks, 6); /* five tokens and the finish */
        assert_string_equal(r->finish, "length");
        expect_answer(r, 5, r->messages);
        expect_times_in_order(&b.trace, r);
        assert_true(r->first_ns - r->start_ns >= 3000000);
        /* From the start, because a delay of the first token's event brings it closer to the second. */
        assert_true(r->last_ns - r->start_ns >= 3000000 + 4 * 500000);
        assert_true(r->last_ns - r->first_ns < 5000000000);
    }
    assert_int_equal(b.trace.abandoned, 0);

    /* The bodies are those of vLLM's client, byte for byte, and the history has the answers that were received. */
    const struct mock_request *q;
    assert_int_equal(mock_requests(b.mock, &q), 5);
    assert_string_equal(q[0].path, "/v1/chat/completions");
    assert_string_equal(
        q[0].body,
        "{\"model\":\"mock\",\"messages\":[{\"role\":\"user\",\"content\":\"say \\\"0.0\\\"\\n\"}],\"seed\":0,"
        "\"temperature\":0.0,\"stream\":true,\"stream_options\":{\"include_usage\":true},\"min_tokens\":5,"
        "\"max_tokens\":5}");
    assert_string_equal(
        q[2].body, "{\"model\":\"mock\",\"messages\":[{\"role\":\"user\",\"content\":\"say \\\"0.0\\\"\\n\"},"
                   "{\"role\":\"assistant\",\"content\":\" w1.0 w1.1 w1.2 w1.3\xC3\xA9\"},"
                   "{\"role\":\"user\",\"content\":\"say \\\"0.2\\\"\\n\"},"
                   "{\"role\":\"assistant\",\"content\":\" w3.0 w3.1 w3.2 w3.3\xC3\xA9\"},"
                   "{\"role\":\"user\",\"content\":\"say \\\"0.4\\\"\\n\"}],\"seed\":0,"
                   "\"temperature\":0.0,\"stream\":true,\"stream_options\":{\"include_usage\":true},\"min_tokens\":5,"
                   "\"max_tokens\":5}");
    for (int i = 1; i < 5; i++)
        assert_int_equal(q[i].conn, q[0].conn); /* one client has one connection, opened before the clock starts */
    assert_int_equal(b.trace.health.reconnects, 0);
    assert_int_equal(b.trace.health.events, 5 * 8);
    assert_true(b.trace.health.reads > 0 && b.trace.health.cpu_s > 0);
    print_message("kernel stamps %.2f, p99 lag %.3f ms, send lag p99 %.3f ms, loop gap p99 %.3f ms\n",
                  b.trace.health.kernel_stamps, b.trace.health.stamp_lag_p99_ms, b.trace.health.send_lag_p99_ms,
                  b.trace.health.loop_gap_p99_ms);
    finish(&b);
}

static void every_option_in_the_body(void **state)
{
    (void)state;
    static struct bench b;
    make_workload(&b, (int[]){4}, 1, 5, WL_CONVERSATIONS);
    start_server(&b, (struct mock_opts){.cached = -1});
    b.target.model = "other";
    b.target.api_key = "secret";
    const char *extra_headers[] = {"X-One: 1", "X-Two=b=c"};
    b.target.headers = (struct km_strs){extra_headers, 2};
    b.target.extra_body = "{\"temperature\":0.7,\"top_k\":1,\"nested\":{\"a\":[1,2]}}";
    b.load.ignore_eos = true;
    b.load.cache_salt = "s\"1";
    b.load.thinking = LOAD_THINKING_OFF;
    b.load.fixed_history = true;
    b.load.limit_min_tokens = 2;
    b.load.limit_max_tokens = 7;
    assert_int_equal(run_load(&b), 0);
    const struct mock_request *q;
    assert_int_equal(mock_requests(b.mock, &q), 2);
    assert_string_equal(
        q[1].body,
        "{\"model\":\"other\",\"messages\":[{\"role\":\"user\",\"content\":\"say \\\"0.0\\\"\\n\"},"
        "{\"role\":\"assistant\",\"content\":\"placeholder 0.1\"},"
        "{\"role\":\"user\",\"content\":\"say \\\"0.2\\\"\\n\"}],\"seed\":0,\"stream\":true,"
        "\"stream_options\":{\"include_usage\":true},\"min_tokens\":2,\"max_tokens\":7,\"ignore_eos\":true,"
        "\"cache_salt\":\"s\\\"1\",\"chat_template_kwargs\":{\"enable_thinking\":false},\"temperature\":0.7,\"top_"
        "k\":1,"
        "\"nested\":{\"a\":[1,2]}}");
    assert_non_null(strstr(q[1].headers, "Authorization: Bearer secret\r\n"));
    assert_non_null(strstr(q[1].headers, "X-One: 1\r\n"));
    assert_non_null(strstr(q[1].headers, "X-Two: b=c\r\n"));
    assert_null(strstr(q[1].headers, "Expect"));
    assert_int_equal(b.trace.recs[0].cached_tokens, -1);
    assert_int_equal(b.trace.recs[0].asked_tokens, 7);
    mock_forget(b.mock);

    b.load.limit_min_tokens = b.load.limit_max_tokens = -1; /* not sent at all */
    b.load.stream = false;
    assert_int_equal(run_load(&b), 0);
    mock_requests(b.mock, &q);
    assert_null(strstr(q[0].body, "_tokens"));
    assert_null(strstr(q[0].body, "stream"));
    const struct hz_rec *r = &b.trace.recs[0];
    assert_true(r->ok);
    assert_int_equal(r->asked_tokens, -1);
    assert_true(r->first_ns == r->done_ns && r->last_ns == r->done_ns);
    assert_int_equal(count_tokens(&b.trace, r), 8);
    expect_answer(r, 8, 1);
    finish(&b);
}

static void prompts_as_bench_serve_sends_them(void **state)
{
    (void)state;
    static struct bench b;
    make_workload(&b, (int[]){2, 2, 2}, 3, 4, WL_RANDOM);
    start_server(&b, (struct mock_opts){.cached = 0});
    const struct mock_request *q;
    b.load.ignore_eos = true;
    b.load.max_concurrency = 1;
    assert_int_equal(run_load(&b), 0);
    assert_int_equal(mock_requests(b.mock, &q), 3);
    assert_string_equal(q[0].body,
                        "{\"model\":\"mock\",\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"text\",\"text\":"
                        "\"say \\\"0.0\\\"\\n\"}]}],\"temperature\":0.0,\"stream\":true,\"stream_options\":"
                        "{\"include_usage\":true},\"max_completion_tokens\":4,\"ignore_eos\":true}");
    assert_non_null(strstr(q[2].body, "2.0"));
    mock_forget(b.mock);

    b.load.endpoint = LOAD_COMPLETIONS;
    b.load.max_num_requests = 2;
    assert_int_equal(run_load(&b), 0);
    assert_int_equal(mock_requests(b.mock, &q), 2);
    assert_string_equal(q[1].path, "/v1/completions");
    assert_string_equal(
        q[1].body,
        "{\"model\":\"mock\",\"prompt\":\"say \\\"1.0\\\"\\n\",\"temperature\":0.0,\"repetition_penalty\":1.0,"
        "\"logprobs\":null,\"stream\":true,\"stream_options\":{\"include_usage\":true},\"max_tokens\":4,"
        "\"ignore_eos\":true}");
    assert_int_equal(b.trace.recs[0].cached_tokens, 0);
    mock_forget(b.mock);

    b.load.send_token_ids = true;
    b.load.warmup_step = true; /* each prompt is sent once before: four requests, two of them measured */
    assert_int_equal(run_load(&b), 0);
    assert_int_equal(mock_requests(b.mock, &q), 4);
    assert_non_null(strstr(q[0].body, "\"prompt\":[11,22,33],"));
    assert_non_null(strstr(q[0].body, "\"return_token_ids\":true"));
    assert_string_equal(q[0].body, q[2].body);
    assert_int_equal(b.trace.n, 2);
    assert_int_equal(b.trace.n_warm, 2);
    finish(&b);

    /* The hash is over the token ids, however they are spread over events. */
    uint64_t seen[2];
    for (int per = 2; per <= 4; per += 2) {
        make_workload(&b, (int[]){2}, 1, 4, WL_RANDOM);
        start_server(&b, (struct mock_opts){.per_event = per, .cached = 0});
        b.load.endpoint = LOAD_COMPLETIONS;
        b.load.send_token_ids = true;
        assert_int_equal(run_load(&b), 0);
        assert_int_equal(count_tokens(&b.trace, &b.trace.recs[0]), 4);
        seen[per / 4] = b.trace.recs[0].text_xxh;
        finish(&b);
    }
    assert_true(seen[0] == seen[1]);
}

/* Appends all requests as "client:conversation.turn", in the order of their starts. */
static void list_starts(const struct hz_trace *t, struct km_buf *out)
{
    int64_t after = 0;
    for (int i = 0; i < t->n; i++) {
        const struct hz_rec *next = NULL;
        for (int k = 0; k < t->n; k++)
            if (t->recs[k].start_ns > after && (!next || t->recs[k].start_ns < next->start_ns))
                next = &t->recs[k];
        after = next->start_ns;
        km_buf_printf(out, "%d:%d.%d ", next->client, next->conv, next->turn);
    }
}

static void the_closed_loop_over_sockets(void **state)
{
    (void)state;
    static struct bench b;
    struct km_buf order = {0};
    make_workload(&b, (int[]){4, 4, 4}, 3, 2, WL_MULTI_TURN);
    start_server(&b, (struct mock_opts){.cached = 0});
    b.load.max_active_conversations = 2;
    assert_int_equal(run_load(&b), 0);
    list_starts(&b.trace, &order);
    assert_string_equal(order.data, "0:1.0 0:0.0 0:1.1 0:2.0 0:0.1 ");
    assert_int_equal(b.trace.abandoned, 1);
    km_buf_free(&order);

    /* Two clients: the first runs out of work while the second is in one of its 20 turns. That turn is the last one. */
    finish(&b);
    make_workload(&b, (int[]){2, 40}, 2, 2, WL_MULTI_TURN);
    start_server(&b, (struct mock_opts){.cached = 0});
    b.load.num_clients = 2;
    assert_int_equal(run_load(&b), 0);
    int of[2] = {0, 0};
    for (int i = 0; i < b.trace.n; i++) {
        assert_true(b.trace.recs[i].ok);
        of[b.trace.recs[i].client]++;
    }
    assert_int_equal(of[0], 1);
    assert_in_range(of[1], 1, 19); /* how far depends on the machine's load */
    assert_int_equal(b.trace.abandoned, 21 - b.trace.n);
    b.load.early_stop = false;
    assert_int_equal(run_load(&b), 0);
    assert_int_equal(b.trace.n, 21);
    finish(&b);
}

static void a_warm_up_feeds_the_measured_pass(void **state)
{
    (void)state;
    static struct bench b;
    make_workload(&b, (int[]){4, 2, 6}, 3, 3, WL_MULTI_TURN);
    start_server(&b, (struct mock_opts){.cached = 0});
    b.load.warmup_step = true;
    b.load.early_stop = false;
    assert_int_equal(run_load(&b), 0);
    assert_int_equal(b.trace.n_warm, 3);
    assert_int_equal(b.trace.n, 3); /* 0.1, 2.1, 2.2 */
    assert_true(b.trace.warmup_ns > 0);
    for (int i = 0; i < 3; i++) {
        assert_int_equal(b.trace.warm[i].turn, 0);
        assert_true(b.trace.recs[i].turn > 0);
        assert_true(b.trace.recs[i].start_ns >= b.trace.begin_ns && b.trace.warm[i].done_ns <= b.trace.begin_ns);
    }
    const struct mock_request *q;
    assert_int_equal(mock_requests(b.mock, &q), 6);
    /* The history has the answer that the warm-up received. */
    assert_non_null(strstr(q[3].body, "{\"role\":\"assistant\",\"content\":\" w1.0 w1.1 w1.2\"}"));
    finish(&b);
}

static void every_kind_of_failure(void **state)
{
    (void)state;
    static const struct {
        struct mock_opts o;
        const char *why;
        int tokens; /* received before the failure */
    } t[] = {
        {{.mode = MOCK_NO_END, .cached = 0}, "the stream ended without a finish_reason or [DONE] after 6 tokens", 6},
        {{.mode = MOCK_TRUNCATED, .cached = 0}, "connection lost after 3 tokens: ", 3},
        {{.mode = MOCK_HTML, .cached = 0}, "HTTP 200 but no event stream (text/html): <html><body>Please log in", 0},
        {{.mode = MOCK_500, .cached = 0}, "HTTP 500: no pages left", 0},
        {{.mode = MOCK_ERROR_EVENT, .cached = 0}, "error event after 3 tokens: the engine fell over", 3},
        {{.mode = MOCK_BAD_JSON, .cached = 0}, "an event after 3 tokens is not JSON", 3},
        {{.mode = MOCK_EMPTY, .cached = 0}, "no token in the answer", 0},
        {{.mode = MOCK_SILENT, .cached = 0}, "timed out after ", 0},
    };
    static struct bench b;
    for (size_t i = 0; i < sizeof t / sizeof *t; i++) {
        struct mock_opts o = t[i].o;
        make_workload(&b, (int[]){6, 4}, 2, 6, WL_MULTI_TURN);
        o.from = 1; /* the first request goes well */
        start_server(&b, o);
        if (o.mode == MOCK_SILENT) {
            b.load.timeout_s = 0.15;
            b.load.limit_min_tokens = b.load.limit_max_tokens = -1;
        }
        assert_int_equal(run_load(&b), 0);
        /* 0.0 succeeds, 0.1 fails, so 0.2 is dropped. The client continues with 1.0, which fails too, so 1.1 is
         * dropped. */
        assert_int_equal(b.trace.n, 3);
        assert_true(b.trace.recs[0].ok);
        assert_int_equal(b.trace.dropped, 2);
        assert_int_equal(b.trace.abandoned, 0);
        for (int k = 1; k < 3; k++) {
            const struct hz_rec *r = &b.trace.recs[k];
            assert_false(r->ok);
            if (strncmp(r->error, t[i].why, strlen(t[i].why)))
                fail_msg("the error is \"%s\", not \"%s\"", r->error, t[i].why);
            assert_int_equal(count_tokens(&b.trace, r), t[i].tokens);
            assert_null(r->text);
        }
        struct hz_summary s;
        hz_summarize(&b.trace, WL_MULTI_TURN, HZ_SEED, &s);
        assert_int_equal(s.requests_ok, 1);
        assert_int_equal(s.requests_failed, 2);
        assert_int_equal(s.ttft_ms.n, 1);
        finish(&b);
    }
}

static void shapes_of_good_streams(void **state)
{
    (void)state;
    static const struct mock_opts t[] = {
        {.mode = MOCK_COMMENTS, .cached = 0},
        {.mode = MOCK_CRLF, .cached = 0},
        {.mode = MOCK_NORMAL, .piece = 1, .cached = 0},
        {.mode = MOCK_CRLF, .piece = 3, .cached = 0},
        {.mode = MOCK_CLOSE, .cached = 0},
        {.mode = MOCK_NO_DONE, .cached = 0},
    };
    static struct bench b;
    for (size_t i = 0; i < sizeof t / sizeof *t; i++) {
        make_workload(&b, (int[]){4}, 1, 9, WL_MULTI_TURN);
        start_server(&b, t[i]);
        assert_int_equal(run_load(&b), 0);
        assert_int_equal(b.trace.n, 2);
        for (int k = 0; k < 2; k++) {
            assert_string_equal(b.trace.recs[k].error, "");
            expect_answer(&b.trace.recs[k], 9, b.trace.recs[k].messages);
            assert_int_equal(count_tokens(&b.trace, &b.trace.recs[k]), 9);
            assert_int_equal(b.trace.recs[k].output_tokens, 9);
            expect_times_in_order(&b.trace, &b.trace.recs[k]);
        }
        assert_int_equal(b.trace.recs[0].n_ticks, 10);
        assert_int_equal(b.trace.health.reconnects, t[i].mode == MOCK_CLOSE ? 1 : 0);
        finish(&b);
    }
}

static void a_role_is_not_a_token(void **state)
{
    (void)state;
    static struct bench b;
    make_workload(&b, (int[]){2}, 1, 3, WL_MULTI_TURN);
    start_server(&b, (struct mock_opts){.mode = MOCK_ROLE_FIRST, .ttft_us = 30000, .cached = 0});
    assert_int_equal(run_load(&b), 0);
    const struct hz_rec *r = &b.trace.recs[0];
    expect_times_in_order(&b.trace, r);
    assert_true(r->first_ns - r->first_any_ns >= 15000000); /* 30 ms apart when sent */
    assert_int_equal(b.trace.ticks[r->tick0].tokens, 0);
    assert_int_equal(r->n_ticks, 5);
    assert_int_equal(count_tokens(&b.trace, r), 3);
    finish(&b);
}

static void reasoning_counts_and_stays_out_of_the_history(void **state)
{
    (void)state;
    static struct bench b;
    make_workload(&b, (int[]){4}, 1, 4, WL_MULTI_TURN);
    start_server(&b, (struct mock_opts){.mode = MOCK_REASONING, .cached = 0});
    assert_int_equal(run_load(&b), 0);
    const struct hz_rec *r = &b.trace.recs[0];
    assert_true(r->ok);
    assert_int_equal(count_tokens(&b.trace, r), 4);
    assert_int_equal(r->first_len, 0);
    assert_string_equal(r->text, " w1.2 w1.3");
    const struct mock_request *q;
    mock_requests(b.mock, &q);
    assert_non_null(strstr(q[1].body, "{\"role\":\"assistant\",\"content\":\" w1.2 w1.3\"}"));
    /* The hash is over reasoning and content: it does not depend on where the server separates them. */
    uint64_t with = r->text_xxh;
    finish(&b);
    make_workload(&b, (int[]){2}, 1, 4, WL_MULTI_TURN);
    start_server(&b, (struct mock_opts){.cached = 0});
    assert_int_equal(run_load(&b), 0);
    assert_true(b.trace.recs[0].text_xxh == with);
    finish(&b);
}

static void several_tokens_per_event(void **state)
{
    (void)state;
    static struct bench b;
    make_workload(&b, (int[]){2}, 1, 10, WL_MULTI_TURN);
    start_server(&b, (struct mock_opts){.per_event = 4, .cached = 0});
    assert_int_equal(run_load(&b), 0);
    const struct hz_rec *r = &b.trace.recs[0];
    static const int want[] = {4, 4, 2, 0};
    assert_int_equal(r->n_ticks, 4);
    for (int i = 0; i < 4; i++)
        assert_int_equal(b.trace.ticks[r->tick0 + (size_t)i].tokens, want[i]);
    assert_int_equal(r->first_len, strlen(" w1.0 w1.1 w1.2 w1.3"));
    finish(&b);
}

static void a_response_cut_anywhere(void **state)
{
    (void)state;
    static struct bench b;
    for (int cut = 1; cut < 1400; cut += cut < 200 ? 7 : 13) {
        make_workload(&b, (int[]){2}, 1, 5, WL_MULTI_TURN);
        start_server(&b, (struct mock_opts){.split_at = cut, .cached = 1});
        assert_int_equal(run_load(&b), 0);
        assert_string_equal(b.trace.recs[0].error, "");
        expect_answer(&b.trace.recs[0], 5, 1);
        assert_int_equal(count_tokens(&b.trace, &b.trace.recs[0]), 5);
        assert_int_equal(b.trace.recs[0].cached_tokens, 1);
        finish(&b);
    }
}

static bool kill_after_three(void *arg, const struct client_progress *p)
{
    struct bench *b = arg;
    if (p->done >= 3)
        mock_die(b->mock);
    return true;
}

static void the_server_dies(void **state)
{
    (void)state;
    static struct bench b;
    int lengths[20];
    for (int i = 0; i < 20; i++)
        lengths[i] = 8;
    make_workload(&b, lengths, 20, 4, WL_MULTI_TURN);
    start_server(&b, (struct mock_opts){.ttft_us = 20000, .gap_us = 20000, .cached = 0});
    b.load.num_clients = 2;
    assert_int_equal(load_run(&b.target, &b.load, &b.set, kill_after_three, &b, &b.trace, &b.err), 0);
    int ok = 0, refused = 0, lost = 0;
    for (int i = 0; i < b.trace.n; i++) {
        ok += b.trace.recs[i].ok;
        refused += !strncmp(b.trace.recs[i].error, "no answer after 0 tokens: ", 26);
        /* during an answer, or between its headers and its first token */
        lost += !strncmp(b.trace.recs[i].error, "connection lost", 15) ||
                !strcmp(b.trace.recs[i].error, "no token in the answer");
    }
    assert_true(ok >= 3 && ok < 20);
    assert_int_equal(ok + refused + lost, b.trace.n);
    assert_true(refused >= 16);
    assert_int_equal(b.trace.n + b.trace.dropped, 80); /* every request of the workload is accounted for */
    finish(&b);
}

static bool stop_soon(void *arg, const struct client_progress *p)
{
    int64_t *calls = arg;
    ++*calls;
    return p->elapsed_ns < 250000000;
}

static void progress_and_an_early_end(void **state)
{
    (void)state;
    static struct bench b;
    int64_t calls = 0;
    make_workload(&b, (int[]){12, 12}, 2, 10, WL_MULTI_TURN);
    start_server(&b, (struct mock_opts){.ttft_us = 10000, .gap_us = 5000, .cached = 0});
    b.load.num_clients = 2;
    assert_int_equal(load_run(&b.target, &b.load, &b.set, stop_soon, &calls, &b.trace, &b.err), 0);
    assert_true(b.trace.stopped);
    assert_in_range(calls, 2, 5);
    assert_true(b.trace.n < 12 && b.trace.abandoned == 12 - b.trace.n);
    for (int i = 0; i < b.trace.n; i++)
        assert_true(b.trace.recs[i].ok);
    finish(&b);
}

static void prompts_at_a_rate(void **state)
{
    (void)state;
    static struct bench b;
    int lengths[20];
    for (int i = 0; i < 20; i++)
        lengths[i] = 2;
    make_workload(&b, lengths, 20, 3, WL_RANDOM);
    start_server(&b, (struct mock_opts){.ttft_us = 2000, .cached = 0});
    b.load.request_rate = 50;
    assert_int_equal(run_load(&b), 0);
    assert_int_equal(b.trace.n, 20);
    int64_t last = 0;
    for (int i = 0; i < 20; i++) {
        expect_times_in_order(&b.trace, &b.trace.recs[i]);
        assert_true(b.trace.recs[i].start_ns - b.trace.recs[i].sched_ns < 3000000000);
        last = b.trace.recs[i].sched_ns > last ? b.trace.recs[i].sched_ns : last;
    }
    assert_int_equal(last - b.trace.begin_ns, 400000000);

    /* All at once with a concurrency limit: the wait is between sched and start. It is in no latency, and not in the
     * send lag. */
    b.load.request_rate = 0;
    b.load.max_concurrency = 4;
    assert_int_equal(run_load(&b), 0);
    int late = 0;
    for (int i = 0; i < 20; i++) {
        assert_int_equal(b.trace.recs[i].sched_ns, b.trace.begin_ns);
        late += b.trace.recs[i].start_ns - b.trace.recs[i].sched_ns > 2000000;
    }
    assert_true(late >= 12);
    assert_true(b.trace.health.send_lag_p99_ms < 50);
    finish(&b);
}

static void many_connections_before_the_clock(void **state)
{
    (void)state;
    static struct bench b;
    int lengths[MAX_CONVS];
    for (int i = 0; i < MAX_CONVS; i++)
        lengths[i] = 2;
    make_workload(&b, lengths, MAX_CONVS, 3, WL_RANDOM);
    start_server(&b, (struct mock_opts){.ttft_us = 20000, .cached = 0});
    assert_int_equal(run_load(&b), 0);
    assert_int_equal(b.trace.health.reconnects, 0);
    const struct mock_request *q;
    assert_int_equal(mock_requests(b.mock, &q), MAX_CONVS);
    bool seen[512] = {false};
    for (int i = 0; i < MAX_CONVS; i++) {
        assert_false(seen[q[i].conn]);
        seen[q[i].conn] = true;
    }
    finish(&b);
}

static void counts_by_the_clients_tokenizer(void **state)
{
    (void)state;
    static struct bench b;
    struct tok *tok;
    struct km_err err;
    if (tok_open(&tok, KVM_SOURCE_DIR "/models/qwen3-tiny-lm", &err)) {
        print_message("skipped: %s\n", err.msg);
        skip();
    }
    make_workload(&b, (int[]){6}, 1, 5, WL_MULTI_TURN);
    start_server(&b, (struct mock_opts){.cached = 0});
    b.load.warmup_step = true;
    assert_int_equal(run_load(&b), 0);
    assert_int_equal(hz_trace_count(&b.trace, &b.set, tok, true, &err), 0);
    int answers[3];
    for (int i = 0; i < 3; i++) {
        const struct hz_rec *r = i ? &b.trace.recs[i - 1] : &b.trace.warm[0];
        answers[i] = (int)tok_count(tok, r->text, r->text_len, &err);
        assert_true(answers[i] > 0);
        assert_int_equal(r->local_output_tokens, answers[i]);
        assert_int_equal(r->local_first_tokens, tok_count(tok, " w1.0", 5, &err));
    }
    assert_int_equal(b.trace.recs[0].local_prompt_tokens, 3 + answers[0] + 3);
    assert_int_equal(b.trace.recs[1].local_prompt_tokens, 3 + answers[0] + 3 + answers[1] + 3);
    assert_int_equal(hz_trace_count(&b.trace, &b.set, tok, false, &err), 0);
    assert_null(b.trace.recs[0].text);
    b.load.fixed_history = true;
    assert_int_equal(run_load(&b), 0);
    assert_int_equal(hz_trace_count(&b.trace, &b.set, tok, false, &err), 0);
    assert_int_equal(b.trace.recs[1].local_prompt_tokens, 3 + 5 + 3 + 5 + 3);
    tok_free(tok);
    finish(&b);
}

static void expect_error(struct bench *b, int code, const char *part)
{
    hz_trace_free(&b->trace);
    assert_int_equal(load_run(&b->target, &b->load, &b->set, NULL, NULL, &b->trace, &b->err), code);
    if (!strstr(b->err.msg, part))
        fail_msg("the message \"%s\" does not contain \"%s\"", b->err.msg, part);
    b->load = load_defaults();
    b->target = (struct target){.url = mock_url(b->mock)};
}

static void bad_options_are_errors(void **state)
{
    (void)state;
    static struct bench b;
    make_workload(&b, (int[]){4, 4}, 2, 5, WL_MULTI_TURN);
    start_server(&b, (struct mock_opts){.cached = 0});
    b.load.num_clients = 3;
    expect_error(&b, KM_EINVAL, "--num-clients is 3");
    b.load.max_active_conversations = 5;
    expect_error(&b, KM_EINVAL, "--max-active-conversations is 5");
    b.load.num_clients = 2, b.load.max_num_requests = 1;
    expect_error(&b, KM_EINVAL, "--max-num-requests is 1");
    b.load.limit_max_tokens = 5;
    expect_error(&b, KM_EINVAL, "--limit-min-tokens is missing");
    b.load.endpoint = LOAD_COMPLETIONS;
    expect_error(&b, KM_EINVAL, "chat endpoint");
    b.target.extra_body = "{\"stream\":false}";
    expect_error(&b, KM_EINVAL, "\"stream\"");
    b.target.extra_body = "[1]";
    expect_error(&b, KM_EINVAL, "must be a JSON object");
    b.target.extra_body = "{";
    expect_error(&b, KM_EFORMAT, "extra body: ");
    b.target.model = "absent";
    expect_error(&b, KM_EINVAL, "does not serve model absent; it serves mock, other");
    const char *h[] = {"nonsense"};
    b.target.headers = (struct km_strs){h, 1};
    expect_error(&b, KM_EINVAL, "nonsense");
    b.target.url = "127.0.0.1:80";
    expect_error(&b, KM_EINVAL, "not the address");
    b.target.url = "http://127.0.0.1:1";
    expect_error(&b, KM_ENET, "127.0.0.1");
    b.msgs[0][1].n_tokens = -1;
    expect_error(&b, KM_EINVAL, "not counted");
    b.target.url = "http://127.0.0.1:1";
    assert_int_equal(target_wait_ready(&b.target, 0.2, &b.err), KM_ENET);
    b.target.url = mock_url(b.mock);
    assert_int_equal(target_wait_ready(&b.target, 5, &b.err), 0);
    struct km_buf body = {0};
    assert_int_equal(target_get(&b.target, "/nothing", 5, &body, &b.err), 404);
    assert_non_null(strstr(body.data, "Not Found"));
    km_buf_clear(&body);
    assert_int_equal(target_post(&b.target, "/version", "{}", 5, &body, &b.err), 200);
    km_buf_free(&body);
    finish(&b);
}

/* The target's model is looked up, or the first one that the server lists if the target names none. */
static void the_root_of_the_model(void **state)
{
    (void)state;
    static struct bench b;
    make_workload(&b, (int[]){2}, 1, 3, WL_MULTI_TURN);
    start_server(&b, (struct mock_opts){.cached = 0});
    const char *const asked[] = {NULL, "mock", "other", "absent"};
    for (int i = 0; i < 4; i++) {
        struct km_buf root = {0};
        b.target.model = asked[i];
        assert_int_equal(target_model_root(&b.target, &root, &b.err), i < 2 ? 0 : KM_ENOENT);
        assert_string_equal(km_buf_str(&root), i < 2 ? "/models/mock" : "");
        km_buf_free(&root);
    }
    struct km_buf root = {0};
    b.target.url = "http://127.0.0.1:1";
    assert_int_equal(target_model_root(&b.target, &root, &b.err), KM_ENET);
    km_buf_free(&root);
    finish(&b);
}

static void without_memory_nothing_leaks(void **state)
{
    (void)state;
    static struct bench b;
    make_workload(&b, (int[]){4}, 1, 3, WL_MULTI_TURN);
    struct km_err err;
    int64_t before = km_mem_stats(KM_MEM_HOST).current;
    bool reached = false;
    for (long n = 1; n < 200 && !reached; n++) {
        struct req *r = NULL;
        struct req_body body;
        km_mem_fail_at(n);
        int rc = req_new(&r, &b.load, "{\"a\":1}", "m", &b.set, &err);
        if (!rc)
            rc = req_build(r, 0, 0, &body, &err);
        if (!rc)
            rc = req_answer(r, 0, 0, "x", 1, &err);
        if (!rc)
            rc = req_build(r, 0, 1, &body, &err);
        reached = rc == 0;
        km_mem_fail_at(0);
        assert_true(rc == 0 || rc == KM_ENOMEM);
        req_free(r);
        assert_int_equal(km_mem_stats(KM_MEM_HOST).current, before);
    }
    assert_true(reached);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(conversations_with_real_answers),
        cmocka_unit_test(every_option_in_the_body),
        cmocka_unit_test(prompts_as_bench_serve_sends_them),
        cmocka_unit_test(the_closed_loop_over_sockets),
        cmocka_unit_test(a_warm_up_feeds_the_measured_pass),
        cmocka_unit_test(every_kind_of_failure),
        cmocka_unit_test(shapes_of_good_streams),
        cmocka_unit_test(a_role_is_not_a_token),
        cmocka_unit_test(reasoning_counts_and_stays_out_of_the_history),
        cmocka_unit_test(several_tokens_per_event),
        cmocka_unit_test(a_response_cut_anywhere),
        cmocka_unit_test(the_server_dies),
        cmocka_unit_test(progress_and_an_early_end),
        cmocka_unit_test(prompts_at_a_rate),
        cmocka_unit_test(many_connections_before_the_clock),
        cmocka_unit_test(counts_by_the_clients_tokenizer),
        cmocka_unit_test(bad_options_are_errors),
        cmocka_unit_test(the_root_of_the_model),
        cmocka_unit_test(without_memory_nothing_leaks),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
