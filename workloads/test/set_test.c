/* Generated sets: expected SHA-256 values, the structure of messages, files, statistics, failures.
 *
 * The SHA-256 values come from an independent generator in Python, on numpy and Hugging Face's tokenizers. Those of
 * Qwen3's tokenizer and the novel are checked only where $KVM_DATA has both; those of the tiny model's tokenizer and
 * the built-in text always are. */
#include "base/test/test.h"

#include "base/file.h"
#include "base/mem.h"
#include "base/sort.h"
#include "workloads/builtin_text.h"
#include "workloads/workload.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define COUNT(a) (sizeof(a) / sizeof *(a))
#define WORKLOADS KVM_SOURCE_DIR "/workloads/"

static struct tok *tiny;
static char dir[] = "/tmp/kvm_set_XXXXXX";

static char *in_dir(const char *name)
{
    static char path[200];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    return path;
}

static const char *put(const char *name, const char *text)
{
    assert_int_equal(km_file_write(in_dir(name), text, strlen(text), NULL), 0);
    return in_dir(name);
}

static struct wl_set *generate(const char *path, struct wl_gen_opts o, const struct tok *t)
{
    struct wl_spec *s = NULL;
    struct wl_set *set = NULL;
    struct km_err err = {0};
    if (wl_spec_read(&s, path, &err) || wl_generate(&set, s, &o, t, &err))
        print_message("%s\n", err.msg);
    wl_spec_free(s);
    assert_non_null(set);
    return set;
}

static void expect_failure(const char *path, struct wl_gen_opts o, const struct tok *t, int code, const char *say)
{
    struct wl_spec *s = NULL;
    struct wl_set *set;
    struct km_err err = {0};
    assert_int_equal(wl_spec_read(&s, path, &err), 0);
    assert_int_equal(wl_generate(&set, s, &o, t, &err), code);
    if (!strstr(err.msg, say))
        print_message("error message: %s\nexpected in it: %s\n", err.msg, say);
    assert_non_null(strstr(err.msg, say));
    assert_null(set);
    wl_spec_free(s);
}

/* A small workload that uses every distribution but "constant". */
static const char MIX[] =
    "{\"filetype\": \"generate_conversations\", \"num_conversations\": 9, \"text_files\": [\"x\"],"
    "\"prompt_input\": {\"num_turns\": {\"distribution\": \"zipf\", \"alpha\": 1.4, \"max\": 9},"
    "\"common_prefix_num_tokens\": {\"distribution\": \"uniform\", \"min\": 2, \"max\": 2},"
    "\"prefix_num_tokens\": {\"distribution\": \"poisson\", \"alpha\": 30.5, \"max\": 33},"
    "\"num_tokens\": {\"distribution\": \"uniform\", \"min\": 8.5, \"max\": 90}},"
    "\"prompt_output\": {\"num_tokens\": {\"distribution\": \"lognormal\", \"mean\": 3, \"sigma\": 1.5, "
    "\"max\": 70}}}";
#define RANDOM(generator)                                                                                              \
    "{\"filetype\": \"random\", \"generator\": \"" generator "\", \"num_prompts\": 20, \"input_len\": 300,"            \
    "\"output_len\": 50, \"range_ratio\": 0.35, \"prefix_len\": 40}"

static void sha256_with_the_tiny_tokenizer(void **state)
{
    (void)state;
    static const struct {
        const char *path, *text;
        uint64_t seed;
        int requests;
        const char *sha;
    } t[] = {
        {WORKLOADS "generate_multi_turn.json", NULL, 0, 185,
         "dbaac9e65ff6ed8e42ab8983fe8a03376367688166dea7802fad0c360488e99d"},
        {WORKLOADS "generate_multi_turn.json", NULL, 1, 186,
         "2e96dc836fbd3c4a6906c2982d9a43737529bfdcd26b31688d06901444166db8"},
        {NULL, MIX, 5, 21, "ab6364a4ab354bb545ebccfb930c7e11143ba685b170fa13ef060b92471031b8"},
        {NULL, RANDOM("v0.10"), 40, 20, "2e30a52817f4586b23be7135f064e46b8fc2d0613e4b71faad72e9f22a0136e3"},
        {NULL, RANDOM("v0.11"), 40, 20, "384282457e38936a14961d5f41263907ee10430a7ba35364d524984c49833421"},
    };
    for (size_t i = 0; i < COUNT(t); i++) {
        const char *path = t[i].path ? t[i].path : put("w.json", t[i].text);
        struct wl_set *s = generate(path, (struct wl_gen_opts){.seed = t[i].seed, .text = WL_TEXT_BUILTIN}, tiny);
        assert_string_equal(s->sha256, t[i].sha);
        assert_int_equal(s->n_requests, t[i].requests);
        assert_string_equal(s->text, s->kind == WL_MULTI_TURN ? "built-in text" : "");
        wl_set_free(s);
    }
}

static void sha256_with_qwen3_and_the_novel(void **state)
{
    (void)state;
    const char *tokenizer = km_test_data("qwen3-tokenizer.json"), *text_dir = km_test_data(".");
    if (!tokenizer || !km_test_data("pg1184.txt"))
        skip();
    static const struct {
        const char *path, *text;
        uint64_t seed;
        double mean_input;
        const char *sha;
    } t[] = {
        {WORKLOADS "generate_multi_turn.json", NULL, 0, 5328.25,
         "f9b0a9c0cb313522d73c9ad21a16c6bd89b58a13d7cdba97356b332e3170959f"},
        {WORKLOADS "generate_multi_turn.json", NULL, 1, 0,
         "3d5be0e2ca7878bef2ef5788e84665ccfdec3e69bcfd8da9aaa1335d792e2427"},
        {WORKLOADS "multi_turn_20k.json", NULL, 0, 18269.57,
         "6a1d249d117665b2cb3528c8913a2f35102c5f96a0f0ac2139e0b74c3258f972"},
        {WORKLOADS "random_1k.json", NULL, 40, 1022.58,
         "5d694a08ac375f4555980f020324edde6e30163ef136c938cedb404bb5903c24"},
        {WORKLOADS "random_8k.json", NULL, 40, 8190.46,
         "7d37465429f584f2a6f749e9fd357cbb37da69d41a37f23a73d388dd7c52f4ed"},
        {WORKLOADS "allhit_1k.json", NULL, 40, 1024,
         "c0f1112d62323f11aa51ece6a8e6e8e9ecca90c79e06925347b4df4f9f7908e8"},
        {WORKLOADS "allhit_8k.json", NULL, 40, 8192,
         "20bf3d432a0275c88615af9c6cf0016bcbafd4fa5f1086efd0eca6c7907af88f"},
        {WORKLOADS "allhit_20k.json", NULL, 40, 20480,
         "a4433c1b52985051062c4a9079a063477e2809b1dc7764c63975f7abd69cd237"},
        {NULL, RANDOM("v0.10"), 40, 339.60, "2f1b8ad6178d0074e2d9bbee364e1b1fe861f701201cdc8d6031ab99e0b4ed9c"},
        {NULL, RANDOM("v0.11"), 40, 339.65, "0ca565a908acb4546ccc50703496a096aaed23f070988303ce95f98fe284c221"},
        {NULL, RANDOM("new"), 40, 339.65, "bfea38515c8c12603384ee1c4d26729e92e41676514fdf1c0184f865e995b629"},
    };
    struct tok *qwen;
    assert_int_equal(tok_open(&qwen, tokenizer, NULL), 0);
    for (size_t i = 0; i < COUNT(t); i++) {
        const char *path = t[i].path ? t[i].path : put("w.json", t[i].text);
        struct wl_set *s = generate(path, (struct wl_gen_opts){.seed = t[i].seed, .text_dir = text_dir}, qwen);
        struct wl_stats st;
        wl_statistics(s, &st);
        if (t[i].mean_input > 0)
            assert_true(fabs(st.request_input.mean - t[i].mean_input) < 0.006);
        assert_string_equal(s->sha256, t[i].sha);
        if (s->kind == WL_MULTI_TURN)
            assert_string_equal(s->text, "pg1184.txt");
        wl_set_free(s);
    }
    tok_free(qwen);
}

static void messages_of_a_conversation(void **state)
{
    (void)state;
    const struct wl_gen_opts opts = {.text = WL_TEXT_BUILTIN};
    struct wl_set *s = generate(WORKLOADS "generate_multi_turn.json", opts, tiny);
    static const char instruction[] = "Please rewrite the following text and add more content: ";
    assert_string_equal(s->name, "generate_multi_turn");
    assert_int_equal(s->n, 24);
    for (int c = 0; c < s->n; c++) {
        struct wl_conv *v = &s->convs[c];
        char id[40], tag[40];
        snprintf(id, sizeof id, "CONV_ID_%d", c);
        snprintf(tag, sizeof tag, "%d is a nice number... ", c);
        assert_string_equal(v->id, id);
        assert_int_equal(v->n % 2, 0);
        for (int i = 0; i < v->n; i++) {
            struct wl_msg *m = &v->msgs[i];
            assert_int_equal(m->assistant, i % 2);
            assert_int_equal(m->len, strlen(m->text));
            assert_null(m->ids);
            assert_int_equal(tok_count(tiny, m->text, m->len, NULL), m->n_tokens);
            if (i % 2)
                continue;
            assert_non_null(strstr(m->text, tag));
            /* In the first message, the common prefix precedes the tag. */
            assert_int_equal(strstr(m->text, tag) == m->text, i > 0);
            assert_non_null(strstr(m->text, instruction));
        }
        /* The common prefix leaves no tokens for a body in a first message. All first messages begin with it. */
        const char *first = v->msgs[0].text, *zero = s->convs[0].msgs[0].text;
        assert_string_equal(strstr(first, instruction), instruction);
        size_t shared = (size_t)(strstr(zero, "0 is a nice") - zero);
        assert_memory_equal(first, zero, shared);
        assert_int_equal(first[shared - 1], '.');
    }
    wl_set_free(s);
}

static void repeat_one_sends_the_first_prompt(void **state)
{
    (void)state;
    const char *path =
        put("one.json", "{\"filetype\":\"random\",\"generator\":\"new\",\"num_prompts\":4,\"input_len\":200,"
                        "\"output_len\":7,\"range_ratio\":0.5,\"repeat_one\":true}");
    struct wl_set *s = generate(path, (struct wl_gen_opts){.seed = 2, .num_prompts = 6}, tiny);
    assert_int_equal(s->n, 6);
    assert_string_equal(s->convs[5].id, "PROMPT_5");
    for (int c = 0; c < s->n; c++) {
        struct wl_msg *m = &s->convs[c].msgs[0], *zero = &s->convs[0].msgs[0];
        assert_int_equal(m->n_tokens, zero->n_tokens);
        assert_int_equal(m->len, zero->len);
        assert_memory_equal(m->text, zero->text, m->len + 1);
        assert_memory_equal(m->ids, zero->ids, (size_t)m->n_tokens * sizeof *m->ids);
        assert_in_range(s->convs[c].msgs[1].n_tokens, 3, 11);
    }
    wl_set_free(s);
}

static void random_prompts_have_their_token_ids(void **state)
{
    (void)state;
    struct wl_set *s = generate(put("r.json", RANDOM("v0.10")), (struct wl_gen_opts){.seed = 1}, tiny);
    for (int c = 0; c < s->n; c++) {
        struct wl_msg *m = &s->convs[c].msgs[0];
        struct km_buf text = {0};
        assert_int_equal(tok_decode(tiny, m->ids, (size_t)m->n_tokens, false, &text, NULL), 0);
        assert_int_equal(text.len, m->len);
        assert_memory_equal(text.data, m->text, m->len);
        assert_in_range(m->n_tokens, 1, 40 + 405);
        assert_in_range(s->convs[c].msgs[1].n_tokens, 32, 67);
        km_buf_free(&text);
    }
    wl_set_free(s);
}

/* A set that was written to a file and read back is the same workload. */
static void a_written_set_reads_back(void **state)
{
    (void)state;
    static const char *const texts[] = {
        MIX, "{\"filetype\":\"random\",\"num_prompts\":5,\"input_len\":60,\"output_len\":9,\"range_ratio\":0.5}"};
    for (int i = 0; i < 2; i++) {
        struct wl_set *a =
            generate(put("w.json", texts[i]), (struct wl_gen_opts){.seed = 9, .text = WL_TEXT_BUILTIN}, tiny);
        assert_int_equal(wl_set_write(a, in_dir("out.json"), NULL), 0);
        struct wl_set *b = generate(in_dir("out.json"), (struct wl_gen_opts){.seed = 3}, tiny);
        assert_int_equal(b->kind, WL_CONVERSATIONS);
        assert_string_equal(b->name, "out");
        assert_int_equal(b->n_requests, a->n_requests);
        if (i == 0) /* the text of random ids may encode to other ids, whose number the SHA-256 covers */
            assert_string_equal(a->sha256, b->sha256);
        for (int c = 0; c < a->n; c++) {
            assert_null(memchr(a->convs[c].msgs[0].text, 0, a->convs[c].msgs[0].len));
            assert_string_equal(a->convs[c].msgs[0].text, b->convs[c].msgs[0].text);
            assert_int_equal(a->convs[c].msgs[1].n_tokens, b->convs[c].msgs[1].n_tokens);
        }
        struct wl_set *few = generate(in_dir("out.json"), (struct wl_gen_opts){.num_conversations = 2}, NULL);
        assert_int_equal(few->n, 2);
        assert_int_equal(few->convs[1].msgs[0].n_tokens, -1);
        wl_set_free(few);
        wl_set_free(a);
        wl_set_free(b);
    }
    expect_failure(in_dir("out.json"), (struct wl_gen_opts){.num_conversations = 6}, tiny, KM_EINVAL,
                   "--num-conversations is 6; out has only 5 conversations");
}

static void text_files_are_found_and_checked(void **state)
{
    (void)state;
    char spec[2000];
    snprintf(spec, sizeof spec, "%s", MIX);
    memcpy(strstr(spec, "\"x\""), "\"y\"", 3);
    const char *path = put("w.json", spec);
    char w[200];
    snprintf(w, sizeof w, "%s", path);
    expect_failure(w, (struct wl_gen_opts){.text_dir = "/no/such"}, tiny, KM_ENOENT,
                   "there is no text file y in /no/such, /tmp/kvm_set_");
    expect_failure(w, (struct wl_gen_opts){0}, tiny, KM_ENOENT, "`make data` fetches the novel");
    put("y", "too short a text");
    expect_failure(w, (struct wl_gen_opts){.seed = 5}, tiny, KM_EINVAL,
                   "the text (y) has 7 tokens and the workload needs ");
    put("y", "bad \xff byte");
    expect_failure(w, (struct wl_gen_opts){.seed = 5}, tiny, KM_EFORMAT, "is not UTF-8 at byte 4");

    /* Line ends become \n: the built-in text with other line ends, read from a file, gives the same workload. */
    struct km_buf text = {0}, crlf = {0};
    assert_int_equal(wl_builtin_text(1, 524288, &text, NULL), 0);
    for (size_t i = 0; i < text.len; i++)
        km_buf_puts(&crlf, text.data[i] == '\n' ? (i % 2 ? "\r\n" : "\r") : (char[]){text.data[i], 0});
    assert_int_equal(km_file_write(in_dir("y"), crlf.data, crlf.len, NULL), 0);
    struct wl_set *s = generate(w, (struct wl_gen_opts){.seed = 5}, tiny);
    assert_string_equal(s->sha256, "ab6364a4ab354bb545ebccfb930c7e11143ba685b170fa13ef060b92471031b8");
    assert_string_equal(s->text, "y");
    wl_set_free(s);
    km_buf_free(&text);
    km_buf_free(&crlf);
}

/* vLLM demands one token more than the end of the furthest slice, which is 863 for this workload and text. */
static void a_text_of_just_enough_tokens(void **state)
{
    (void)state;
    struct km_buf text = {0};
    struct tok_ids ids = {0};
    assert_int_equal(wl_builtin_text(1, 20000, &text, NULL), 0);
    assert_int_equal(tok_encode(tiny, text.data, text.len, false, &ids, NULL), 0);
    char w[200];
    snprintf(w, sizeof w, "%s", put("w.json", MIX));
    for (size_t n = 863; n <= 864; n++) {
        km_buf_clear(&text);
        assert_int_equal(tok_decode(tiny, ids.v, n, false, &text, NULL), 0);
        assert_int_equal(tok_count(tiny, text.data, text.len, NULL), n);
        assert_int_equal(km_file_write(in_dir("x"), text.data, text.len, NULL), 0);
        if (n == 863) {
            expect_failure(w, (struct wl_gen_opts){.seed = 5}, tiny, KM_EINVAL,
                           "the text (x) has 863 tokens and the workload needs 864");
        } else {
            struct wl_set *s = generate(w, (struct wl_gen_opts){.seed = 5}, tiny);
            assert_string_equal(s->sha256, "ab6364a4ab354bb545ebccfb930c7e11143ba685b170fa13ef060b92471031b8");
            wl_set_free(s);
        }
    }
    unlink(in_dir("x"));
    km_free(ids.v);
    km_buf_free(&text);
}

static void options_are_checked(void **state)
{
    (void)state;
    char w[200];
    snprintf(w, sizeof w, "%s", put("w.json", MIX));
    expect_failure(w, (struct wl_gen_opts){0}, NULL, KM_EINVAL, "pass --tokenizer DIR");
    expect_failure(w, (struct wl_gen_opts){.seed = 1ULL << 32}, tiny, KM_EINVAL, "the seed is 4294967296");
    expect_failure(w, (struct wl_gen_opts){.num_conversations = 2000000}, tiny, KM_ELIMIT, "at most 1000000");
    char wide[2000];
    snprintf(wide, sizeof wide, "%s", MIX);
    char *max = strstr(wide, ", \"max\": 9}");
    memset(max, ' ', strlen(", \"max\": 9"));
    expect_failure(put("wide.json", wide), (struct wl_gen_opts){.seed = 1, .num_conversations = 1000}, tiny, KM_ELIMIT,
                   "give \"num_turns\" a \"max\"");
    struct wl_set *s = generate(put("n.json", RANDOM("new")), (struct wl_gen_opts){.seed = UINT64_MAX}, tiny);
    wl_set_free(s);
}

static void statistics(void **state)
{
    (void)state;
    struct wl_msg a[] = {
        {.n_tokens = 10}, {.assistant = true, .n_tokens = 2}, {.n_tokens = 8}, {.assistant = true, .n_tokens = 4}};
    struct wl_msg b[] = {{.n_tokens = 30}, {.assistant = true, .n_tokens = 6}};
    struct wl_conv convs[] = {{.id = "a", .msgs = a, .n = 4}, {.id = "b", .msgs = b, .n = 2}};
    struct wl_set s = {.name = "w", .kind = WL_CONVERSATIONS, .convs = convs, .n = 2, .n_requests = 3, .text = "t"};
    struct wl_stats st;
    wl_statistics(&s, &st);
    assert_true(st.messages.n == 2 && st.messages.mean == 3 && st.messages.max == 4);
    assert_true(st.first_prompt.n == 2 && st.first_prompt.mean == 20 && st.first_prompt.min == 10);
    assert_true(st.user_tokens.n == 3 && st.user_tokens.mean == 16 && st.user_tokens.p50 == 10);
    assert_true(st.answer_tokens.n == 3 && st.answer_tokens.mean == 4 && st.answer_tokens.std == 2);
    /* The inputs of the three requests have 10, 10 + 2 + 8 and 30 tokens. */
    assert_true(st.request_input.n == 3 && st.request_input.mean == 20 && st.request_input.std == 10);
    assert_true(st.request_input.p25 == 15 && st.request_input.p75 == 25 && fabs(st.request_input.p99 - 29.8) < 1e-9);
    struct km_buf out = {0};
    wl_statistics_print(&s, &out);
    assert_non_null(strstr(out.data, "w: 2 conversations, 3 requests\nsource text: t\n"));
    assert_non_null(
        strstr(out.data, "tokens, request input              3     20.00     10.00        10        15        20"));
    assert_non_null(strstr(out.data, "tokens, answer to request          3      4.00      2.00"));
    a[2].n_tokens = -1;
    wl_statistics(&s, &st);
    assert_true(st.request_input.n == 2 && st.user_tokens.n == 2);
    km_buf_clear(&out);
    a[0].n_tokens = b[0].n_tokens = -1;
    wl_statistics_print(&s, &out); /* columns without a number show dashes */
    assert_null(strstr(out.data, "nan"));
    km_buf_free(&out);
}

static void built_in_text_is_varied(void **state)
{
    (void)state;
    struct km_buf a = {0}, b = {0};
    assert_int_equal(wl_builtin_text(1, 2000000, &a, NULL), 0);
    assert_int_equal(wl_builtin_text(1, 500000, &b, NULL), 0);
    assert_in_range(a.len, 2000000, 2010000);
    assert_memory_equal(a.data, b.data, 500000); /* the shorter text is a prefix of the longer one */
    km_buf_clear(&b);
    assert_int_equal(wl_builtin_text(2, 500000, &b, NULL), 0);
    assert_int_not_equal(memcmp(a.data, b.data, 500000), 0);
    km_buf_free(&b);
    int64_t tokens = tok_count(tiny, a.data, a.len, NULL);
    assert_in_range(tokens, a.len / 5, a.len / 2);
    size_t lines = 0, repeated = 0, cap = a.len / 20;
    char **line = km_reallocarray(NULL, cap, sizeof *line), *save = NULL;
    for (char *p = strtok_r(a.data, "\n", &save); p && lines < cap; p = strtok_r(NULL, "\n", &save)) {
        assert_in_range(strlen(p), 1, 100); /* curly quotes and dashes are three bytes each */
        if (strlen(p) > 55)
            line[lines++] = p;
    }
    assert_in_range(lines, 20000, cap);
    km_sort_strings((const char **)line, lines);
    for (size_t i = 1; i < lines; i++)
        repeated += !strcmp(line[i - 1], line[i]);
    assert_in_range(repeated, 0, lines / 200);
    km_free(line);
    km_buf_free(&a);
}

/* Fails each allocation in turn: the result must be KM_ENOMEM and no memory left, until no allocation fails. */
static void every_allocation_may_fail(void **state)
{
    (void)state;
    static const char *const texts[] = {
        "{\"filetype\":\"random\",\"generator\":\"new\",\"num_prompts\":2,\"input_len\":9,\"output_len\":2,"
        "\"prefix_len\":3,"
        "\"repeat_one\":true}",
        "{\"filetype\":\"random\",\"generator\":\"v0.10\",\"num_prompts\":2,\"input_len\":9,\"output_len\":2,"
        "\"prefix_len\":3}",
        "{\"filetype\": \"generate_conversations\", \"num_conversations\": 2, \"text_files\": [\"small\"],"
        "\"prompt_input\": {\"num_turns\": {\"distribution\": \"constant\", \"value\": 2},"
        "\"common_prefix_num_tokens\": {\"distribution\": \"constant\", \"value\": 4},"
        "\"prefix_num_tokens\": {\"distribution\": \"lognormal\", \"average\": 5},"
        "\"num_tokens\": {\"distribution\": \"constant\", \"value\": 60}},"
        "\"prompt_output\": {\"num_tokens\": {\"distribution\": \"constant\", \"value\": 2}}}",
        "[{\"id\":\"x\",\"messages\":[{\"role\":\"user\",\"content\":\"a\"},{\"role\":\"assistant\","
        "\"content\":\"b\"}]}]"};
    struct km_buf text = {0};
    wl_builtin_text(3, 2000, &text, NULL);
    put("small", text.data);
    km_buf_free(&text);
    for (size_t i = 0; i < COUNT(texts); i++) {
        char path[200];
        snprintf(path, sizeof path, "%s", put("m.json", texts[i]));
        struct wl_set *done = NULL;
        int failures = 0;
        for (long n = 1; !done; n++, failures++) {
            int64_t before = km_mem_stats(KM_MEM_HOST).current;
            struct wl_spec *s = NULL;
            struct km_err err = {0};
            assert_true(n < 20000);
            km_mem_fail_at(n);
            int rc = wl_spec_read(&s, path, &err);
            if (!rc)
                rc = wl_generate(&done, s, &(struct wl_gen_opts){.seed = 4}, tiny, &err);
            km_mem_fail_at(0);
            wl_spec_free(s);
            if (rc) {
                assert_int_equal(rc, KM_ENOMEM);
                assert_null(done);
                assert_int_equal(km_mem_stats(KM_MEM_HOST).current, before);
            }
        }
        assert_true(failures > 10);
        wl_set_free(done);
    }
}

static int setup(void **state)
{
    (void)state;
    return !mkdtemp(dir) || tok_open(&tiny, KVM_SOURCE_DIR "/models/qwen3-tiny-lm", NULL) ? -1 : 0;
}

static int teardown(void **state)
{
    (void)state;
    static const char *const names[] = {"w.json", "one.json",  "r.json", "out.json", "y",
                                        "x",      "wide.json", "n.json", "m.json",   "small"};
    for (size_t i = 0; i < COUNT(names); i++)
        unlink(in_dir(names[i]));
    tok_free(tiny);
    return rmdir(dir);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sha256_with_the_tiny_tokenizer),
        cmocka_unit_test(sha256_with_qwen3_and_the_novel),
        cmocka_unit_test(messages_of_a_conversation),
        cmocka_unit_test(repeat_one_sends_the_first_prompt),
        cmocka_unit_test(random_prompts_have_their_token_ids),
        cmocka_unit_test(a_written_set_reads_back),
        cmocka_unit_test(text_files_are_found_and_checked),
        cmocka_unit_test(a_text_of_just_enough_tokens),
        cmocka_unit_test(options_are_checked),
        cmocka_unit_test(statistics),
        cmocka_unit_test(built_in_text_is_varied),
        cmocka_unit_test(every_allocation_may_fail),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
