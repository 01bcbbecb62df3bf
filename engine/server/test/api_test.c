/* Requests: which are accepted, which are refused and under which field's name, and the values that fields become. */
#include "base/test/test.h"

#include "base/mem.h"
#include "engine/server/api.h"
#include "engine/server/test/fake_tokenizer.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static struct api_env env(void)
{
    return (struct api_env){.model = "m", .tok = fake_tok, .vocab = FAKE_VOCAB, .max_model_len = 100, .temperature = -1,
                            .top_p = -1, .top_k = -1};
}

static int parse(struct api_request *a, enum api_kind k, const char *json, struct api_error *e)
{
    struct api_env v = env();
    return api_parse(a, k, json, strlen(json), &v, e);
}

/* Parses a body, which must give this status, and under an error this param. */
static void check(enum api_kind k, const char *body, int status, const char *param)
{
    struct api_request a;
    struct api_error e;
    int rc = parse(&a, k, body, &e);
    int got = rc ? e.status : 200;
    if (got != status || (rc && strcmp(e.param, param)))
        fail_msg("%s: %d \"%s\" (%s) instead of %d \"%s\"", body, got, rc ? e.param : "", rc ? e.err.msg : "", status,
                 param);
    if (rc)
        assert_true(*e.err.msg != 0);
    else
        api_free(&a);
}

/* A completion or a chat with one field more. */
static void check_field(enum api_kind k, const char *name, const char *value, int status, const char *param)
{
    char body[2048];
    snprintf(body, sizeof body, "{\"model\":\"m\",%s,\"%s\":%s}",
             k == API_CHAT ? "\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}]" : "\"prompt\":\"hi\"", name, value);
    check(k, body, status, param);
}

struct field_row {
    const char *name, *value;
    int kinds; /* API_COMPLETION, API_CHAT, or 3 for both */
    int status;
};

/* An error must name the field of its row. */
static void check_fields(const struct field_row *rows, size_t n)
{
    for (size_t i = 0; i < n; i++)
        for (int k = API_COMPLETION; k <= API_CHAT; k++)
            if (rows[i].kinds & k)
                check_field((enum api_kind)k, rows[i].name, rows[i].value, rows[i].status, rows[i].name);
}

static const struct number {
    const char *name;
    int kinds;
    const char *good[6], *bad[12];
} numbers[] = {
    {"max_tokens", API_COMPLETION, {"0", "1", "98", "16.0", "null"}, {"99", "-1", "1.5", "2147483648", "-9e18"}},
    {"max_tokens", API_CHAT, {"1", "20", "null"}, {"0", "-1", "1.5", "100", "2147483648"}},
    {"max_completion_tokens", API_COMPLETION, {"0", "98"}, {"99", "-1", "0.5"}},
    {"max_completion_tokens", API_CHAT, {"1", "20"}, {"0", "-1", "0.5", "4294967297"}},
    {"min_tokens", 3, {"0", "1", "16"}, {"-1", "0.5", "99", "2147483648"}},
    {"n", 3, {"1", "2", "128", "1e2"}, {"0", "-1", "129", "1.5"}},
    {"best_of", API_COMPLETION, {"0", "1"}, {"2", "20", "21", "-1"}},
    {"seed", 3, {"0", "-1", "9007199254740993", "9223372036854774784", "-9223372036854774784"},
     {"9223372036854775808", "1e30", "0.5"}},
    {"temperature", 3, {"0", "0.0", "1", "2", "-0"}, {"-0.1", "2.0001", "1e308"}},
    {"top_p", 3, {"0", "0.5", "1", "1e-5"}, {"-0.1", "1.1"}},
    {"top_k", 3, {"-1", "0", "1", "1000000"}, {"-2", "1.5", "2147483648"}},
    {"min_p", 3, {"0", "1", "0.1"}, {"-0.1", "1.1"}},
    {"presence_penalty", 3, {"-2", "0", "2"}, {"-2.1", "2.1"}},
    {"frequency_penalty", 3, {"-2", "0", "2"}, {"-2.1", "2.1"}},
    {"repetition_penalty", 3, {"1", "0.5", "2"}, {"0", "-1", "1e4"}},
    {"logprobs", API_COMPLETION, {"0", "20", "null"}, {"-1", "21", "1.5"}},
    {"priority", 3, {"0", "-5", "2147483647"}, {"2147483648", "0.5"}},
};

static void numbers_have_bounds(void **state)
{
    (void)state;
    /* Not numbers, and numbers that no double can hold. */
    static const char *const never[] = {"\"1\"", "true", "false", "[]", "{}", "[1]", "1e999", "-1e999", "\"\""};
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
        for (int k = API_COMPLETION; k <= API_CHAT; k++) {
            const struct number *n = &numbers[i];
            if (!(n->kinds & k))
                continue;
            for (int j = 0; j < 6 && n->good[j]; j++)
                check_field((enum api_kind)k, n->name, n->good[j], 200, "");
            for (int j = 0; j < 12 && n->bad[j]; j++) {
                bool context = strstr(n->name, "max_") && atof(n->bad[j]) >= 99 && atof(n->bad[j]) < 2147483648.0;
                check_field((enum api_kind)k, n->name, n->bad[j], 400, !context ? n->name : k == API_CHAT ? "messages" : "prompt");
            }
            for (size_t j = 0; j < sizeof never / sizeof *never; j++)
                check_field((enum api_kind)k, n->name, never[j], 400, n->name);
        }
}

static void bools_are_checked(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        int kinds;
    } flags[] = {{"stream", 3},       {"ignore_eos", 3},          {"echo", 1},      {"skip_special_tokens", 3},
                 {"logprobs", 2},     {"return_token_ids", 3},    {"include_stop_str_in_output", 3},
                 {"add_generation_prompt", 2}, {"return_tokens_as_token_ids", 3}};
    for (size_t i = 0; i < sizeof flags / sizeof *flags; i++)
        for (int k = API_COMPLETION; k <= API_CHAT; k++) {
            if (!(flags[i].kinds & k))
                continue;
            check_field((enum api_kind)k, flags[i].name, "true", 200, "");
            check_field((enum api_kind)k, flags[i].name, "false", 200, "");
            check_field((enum api_kind)k, flags[i].name, "null", 200, "");
            check_field((enum api_kind)k, flags[i].name, "1", 400, flags[i].name);
            check_field((enum api_kind)k, flags[i].name, "\"true\"", 400, flags[i].name);
            check_field((enum api_kind)k, flags[i].name, "[]", 400, flags[i].name);
        }
}

static void unsupported_fields_are_refused(void **state)
{
    (void)state;
    static const struct field_row rows[] = {
        {"tools", "[{\"type\":\"function\"}]", 2, 400},
        {"tools", "[]", 2, 200},
        {"tools", "null", 2, 200},
        {"tool_choice", "\"required\"", 2, 400},
        {"tool_choice", "\"none\"", 2, 200},
        {"tool_choice", "\"auto\"", 2, 200},
        {"tool_choice", "{\"type\":\"function\"}", 2, 400},
        {"functions", "[{}]", 2, 400},
        {"function_call", "\"auto\"", 2, 200},
        {"audio", "{\"voice\":\"x\"}", 2, 400},
        {"web_search_options", "{\"a\":1}", 2, 400},
        {"documents", "[{}]", 2, 400},
        {"chat_template", "\"x\"", 2, 400},
        {"continue_final_message", "true", 2, 400},
        {"continue_final_message", "false", 2, 200},
        {"echo", "true", 2, 400},
        {"suffix", "\"x\"", 1, 400},
        {"suffix", "\"\"", 1, 200},
        {"prompt_embeds", "\"x\"", 1, 400},
        {"logit_bias", "{\"5\":1}", 3, 400},
        {"logit_bias", "{}", 3, 200},
        {"prompt_logprobs", "1", 3, 400},
        {"prompt_logprobs", "0", 3, 200},
        {"truncate_prompt_tokens", "5", 3, 400},
        {"allowed_token_ids", "[1]", 3, 400},
        {"bad_words", "[\"x\"]", 3, 400},
        {"use_beam_search", "true", 3, 400},
        {"use_beam_search", "false", 3, 200},
        {"logits_processors", "[\"x\"]", 3, 400},
        {"structured_outputs", "{\"json\":{}}", 3, 400},
        {"guided_json", "{\"a\":1}", 3, 400},
        {"guided_regex", "\"a+\"", 3, 400},
        {"guided_choice", "[\"a\"]", 3, 400},
        {"guided_grammar", "\"g\"", 3, 400},
        {"structural_tag", "\"g\"", 3, 400},
        {"kv_transfer_params", "{\"a\":1}", 3, 400},
        {"response_format", "{\"type\":\"json_object\"}", 3, 400},
        {"response_format", "{\"type\":\"json_schema\"}", 3, 400},
        {"response_format", "{}", 3, 400},
        {"response_format", "{\"type\":\"text\"}", 3, 200},
        {"response_format", "null", 3, 200},
        /* Fields that cannot change the answer, and unknown ones. */
        {"user", "\"u\"", 3, 200},
        {"metadata", "{\"a\":\"b\"}", 3, 200},
        {"store", "true", 3, 200},
        {"service_tier", "\"auto\"", 3, 200},
        {"parallel_tool_calls", "true", 3, 200},
        {"reasoning_effort", "\"low\"", 3, 200},
        {"spaces_between_special_tokens", "true", 3, 200},
        {"never_heard_of", "{\"a\":[1,2,{\"b\":null}]}", 3, 200},
        {"length_penalty", "1.0", 3, 200},
    };
    check_fields(rows, sizeof rows / sizeof *rows);
}

static void lists_are_checked(void **state)
{
    (void)state;
    static const struct field_row rows[] = {
        {"stop", "\"x\"", 3, 200},
        {"stop", "[\"a\",\"b\",\"c\",\"d\"]", 3, 200},
        {"stop", "[]", 3, 200},
        {"stop", "null", 3, 200},
        {"stop", "[\"a\",\"b\",\"c\",\"d\",\"e\"]", 3, 400},
        {"stop", "\"\"", 3, 400},
        {"stop", "[\"\"]", 3, 400},
        {"stop", "\"a\\u0000\"", 3, 400},
        {"stop", "[1]", 3, 400},
        {"stop", "5", 3, 400},
        {"stop", "{\"a\":1}", 3, 400},
        {"stop_token_ids", "[0,299]", 3, 200},
        {"stop_token_ids", "[]", 3, 200},
        {"stop_token_ids", "[300]", 3, 400},
        {"stop_token_ids", "[-1]", 3, 400},
        {"stop_token_ids", "[1.5]", 3, 400},
        {"stop_token_ids", "[\"1\"]", 3, 400},
        {"stop_token_ids", "1", 3, 400},
        {"stream_options", "{\"include_usage\":true}", 3, 400}, /* without stream */
        {"stream_options", "null", 3, 200},
        {"chat_template_kwargs", "{\"enable_thinking\":false}", 2, 200},
        {"chat_template_kwargs", "{\"other\":1}", 2, 200},
        {"chat_template_kwargs", "{\"enable_thinking\":0}", 2, 400},
        {"chat_template_kwargs", "[]", 2, 400},
        {"top_logprobs", "2", 2, 400}, /* without logprobs */
        {"top_logprobs", "0", 2, 200},
        {"top_logprobs", "21", 2, 400},
        {"cache_salt", "\"s\"", 3, 200},
        {"cache_salt", "\"\"", 3, 400},
        {"cache_salt", "5", 3, 400},
    };
    check_fields(rows, sizeof rows / sizeof *rows);
}

static void whole_bodies(void **state)
{
    (void)state;
#define M "\"model\":\"m\""
#define MSG "\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}]"
    static const struct {
        enum api_kind kind;
        const char *body;
        int status;
        const char *param;
    } rows[] = {
        {API_COMPLETION, "{" M ",\"prompt\":\"hi\"}", 200, ""},
        {API_COMPLETION, "{" M ",\"prompt\":[\"hi\",\"ho\"]}", 200, ""},
        {API_COMPLETION, "{" M ",\"prompt\":[1,2,3]}", 200, ""},
        {API_COMPLETION, "{" M ",\"prompt\":[[1,2],[3]]}", 200, ""},
        {API_COMPLETION, "{" M ",\"prompt\":[\"hi\",[3]]}", 200, ""},
        {API_COMPLETION, " \r\n\t{" M ",\"prompt\":\"hi\"} \n", 200, ""},
        {API_COMPLETION, "{" M "}", 400, "prompt"},
        {API_COMPLETION, "{" M ",\"prompt\":null}", 400, "prompt"},
        {API_COMPLETION, "{" M ",\"prompt\":\"\"}", 400, "prompt"},
        {API_COMPLETION, "{" M ",\"prompt\":[]}", 400, "prompt"},
        {API_COMPLETION, "{" M ",\"prompt\":[\"\"]}", 400, "prompt"},
        {API_COMPLETION, "{" M ",\"prompt\":[[]]}", 400, "prompt"},
        {API_COMPLETION, "{" M ",\"prompt\":5}", 400, "prompt"},
        {API_COMPLETION, "{" M ",\"prompt\":{}}", 400, "prompt"},
        {API_COMPLETION, "{" M ",\"prompt\":[1,\"a\"]}", 400, "prompt"},
        {API_COMPLETION, "{" M ",\"prompt\":[\"a\",1]}", 400, "prompt"},
        {API_COMPLETION, "{" M ",\"prompt\":[[1],2]}", 400, "prompt"},
        {API_COMPLETION, "{" M ",\"prompt\":[true]}", 400, "prompt"},
        {API_COMPLETION, "{" M ",\"prompt\":[-1]}", 400, "prompt"},
        {API_COMPLETION, "{" M ",\"prompt\":[299]}", 200, ""},
        {API_COMPLETION, "{" M ",\"prompt\":[300]}", 400, "prompt"},
        {API_COMPLETION, "{" M ",\"prompt\":[4294967297]}", 400, "prompt"},
        {API_COMPLETION, "{" M ",\"prompt\":[1.5]}", 400, "prompt"},
        {API_COMPLETION, "{" M ",\"prompt\":[1e999]}", 400, "prompt"},
        {API_COMPLETION, "{\"prompt\":\"hi\"}", 200, ""}, /* means the served model */
        {API_COMPLETION, "{\"model\":null,\"prompt\":\"hi\"}", 200, ""},
        {API_COMPLETION, "{\"model\":\"\",\"prompt\":\"hi\"}", 200, ""},
        {API_CHAT, "{" MSG "}", 200, ""},
        {API_COMPLETION, "{\"model\":5,\"prompt\":\"hi\"}", 400, "model"},
        {API_COMPLETION, "{\"model\":\"other\",\"prompt\":\"hi\"}", 404, "model"},
        {API_COMPLETION, "{" M "," M ",\"prompt\":\"hi\"}", 400, "model"},
        {API_COMPLETION, "{" M ",\"prompt\":\"hi\",\"n\":1,\"n\":2}", 400, "n"},
        {API_COMPLETION, "{" M ",\"prompt\":\"hi\",\"n\":null,\"n\":2}", 400, "n"},
        {API_COMPLETION, "{" M ",\"prompt\":\"hi\",\"max_tokens\":5,\"max_completion_tokens\":5}", 200, ""},
        {API_COMPLETION, "{" M ",\"prompt\":\"hi\",\"max_tokens\":5,\"max_completion_tokens\":6}", 400, "max_tokens"},
        {API_COMPLETION, "{" M ",\"prompt\":\"hi\",\"echo\":true}", 200, ""},
        {API_COMPLETION, "{" M ",\"prompt\":\"hi\",\"echo\":true,\"logprobs\":1}", 400, "echo"},
        {API_COMPLETION, "{" M ",\"prompt\":[290],\"echo\":true}", 400, "prompt"}, /* an id of the model that the tokenizer lacks */
        {API_COMPLETION, "{" M ",\"prompt\":\"hi\",\"min_tokens\":6,\"max_tokens\":5}", 400, "min_tokens"},
        {API_COMPLETION, "{" M ",\"prompt\":\"hi\",\"stream\":true,\"stream_options\":{}}", 200, ""},
        {API_COMPLETION, "{" M ",\"prompt\":\"hi\",\"stream\":true,\"stream_options\":{\"include_usage\":1}}", 400, "stream_options"},
        {API_COMPLETION, "{" M ",\"prompt\":\"hi\",\"stream\":true,\"stream_options\":5}", 400, "stream_options"},
        {API_CHAT, "{" M "," MSG "}", 200, ""},
        {API_CHAT, "{" M "}", 400, "messages"},
        {API_CHAT, "{" M ",\"messages\":[]}", 400, "messages"},
        {API_CHAT, "{" M ",\"messages\":\"hi\"}", 400, "messages"},
        {API_CHAT, "{" M ",\"messages\":[{\"role\":\"user\",\"content\":7}]}", 400, "messages[0].content"},
        {API_CHAT, "{" M "," MSG ",\"logprobs\":true,\"top_logprobs\":20}", 200, ""},
        {API_CHAT, "{" M "," MSG ",\"logprobs\":true}", 200, ""},
        {API_CHAT, "{" M "," MSG ",\"prompt\":5}", 200, ""}, /* a field of another endpoint is an unknown field */
        {API_TOKENIZE, "{\"prompt\":\"hi\"}", 200, ""},
        {API_TOKENIZE, "{\"prompt\":\"\"}", 200, ""},
        {API_TOKENIZE, "{" MSG "}", 200, ""},
        {API_TOKENIZE, "{}", 400, "prompt"},
        {API_TOKENIZE, "{\"model\":\"x\",\"prompt\":\"hi\"}", 404, "model"},
        {API_DETOKENIZE, "{\"tokens\":[104,105]}", 200, ""},
        {API_DETOKENIZE, "{\"tokens\":[]}", 200, ""},
        {API_DETOKENIZE, "{\"tokens\":[300]}", 400, "tokens"},
        {API_DETOKENIZE, "{\"tokens\":\"x\"}", 400, "tokens"},
        {API_DETOKENIZE, "{}", 400, "tokens"},
        {API_COMPLETION, "", 400, ""},
        {API_COMPLETION, "[]", 400, ""},
        {API_COMPLETION, "5", 400, ""},
        {API_COMPLETION, "null", 400, ""},
        {API_COMPLETION, "\"x\"", 400, ""},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        check(rows[i].kind, rows[i].body, rows[i].status, rows[i].param);
}

static void broken_json_is_refused(void **state)
{
    (void)state;
    /* Values of a key that is ignored. Broken JSON must be refused there, too. */
    static const char *const bad[] = {
        "01", "-01", "1.", ".5", "+1", "1e", "1e+", "1.e5", "0x10", "1_000", "-", "--1", "NaN", "Infinity", "-Infinity", "nan",
        "tru", "True", "nul", "undefined", "'a'", "\"a", "\"\\x\"", "\"\\u12\"", "\"\\u12G4\"", "\"\\uD800\"", "\"\\uD800a\"",
        "\"\\uDC00\"", "\"\\uD800\\uD800\"", "\"\x01\"", "\"\n\"", "\"\t\"", "\"\xff\"",
        "\"\xc0\xaf\"", "\"\xed\xa0\x80\"", "\"\xf4\x90\x80\x80\"", "\"\xe4\xb8\"", "[1,]", "[,1]", "[1 2]", "[1,,2]", "[",
        "]", "{", "{\"a\"}", "{\"a\":}", "{\"a\":1,}", "{a:1}", "{1:2}", "{\"a\" 1}", "{\"a\":1 \"b\":2}", "1,", "1 2",
        "/*c*/1", "1//c", "\f1", "\v1", "\xc2\xa0""1", "\xef\xbb\xbf""1", "[1}", "{\"a\":[}", "",
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        char body[200];
        snprintf(body, sizeof body, "{\"model\":\"m\",\"prompt\":\"hi\",\"ignored\":%s}", bad[i]);
        struct api_request a;
        struct api_error e;
        if (!parse(&a, API_COMPLETION, body, &e))
            fail_msg("accepted: %s", body);
        assert_int_equal(e.status, 400);
    }
    static const char *const good[] = {"0", "-0", "1.5e-3", "1E+2", "1e5", "\"\\u00e9\\ud83c\\udf0d\"", "\"\\\\u0000\"", "\"a\\u0000b\"",
                                       "[ ]", "{ }", "\"\x7f\"", "true", "[[[]]]", "\"/\\/\"", "123456789012345678901234567890"};
    for (size_t i = 0; i < sizeof good / sizeof *good; i++)
        check_field(API_COMPLETION, "ignored", good[i], 200, "");
    struct api_request a;
    struct api_error e;
    assert_int_equal(parse(&a, API_COMPLETION, "\xef\xbb\xbf{\"model\":\"m\",\"prompt\":\"hi\"}", &e), -1);
    assert_int_equal(parse(&a, API_COMPLETION, "{\"model\":\"m\",\"prompt\":\"hi\"}x", &e), -1);
    for (int depth = 62; depth < 100000; depth = depth < 66 ? depth + 1 : depth * 30) {
        struct km_buf b = {0};
        km_buf_puts(&b, "{\"model\":\"m\",\"prompt\":\"hi\",\"x\":");
        for (int i = 0; i < depth; i++)
            km_buf_putc(&b, '[');
        for (int i = 0; i < depth; i++)
            km_buf_putc(&b, ']');
        km_buf_putc(&b, '}');
        int rc = parse(&a, API_COMPLETION, b.data, &e);
        assert_int_equal(rc, depth <= 63 ? 0 : -1);
        if (!rc)
            api_free(&a);
        km_buf_free(&b);
    }
}

static void fields_become_values(void **state)
{
    (void)state;
    struct api_request a;
    struct api_error e;
    assert_int_equal(parse(&a, API_COMPLETION, "{" M ",\"prompt\":\"hi<|im_end|>\"}", &e), 0);
    assert_int_equal(a.prompts[0].n, 3); /* a bare prompt may hold control tokens */
    assert_int_equal(a.prompts[0].v[2], FAKE_EOS);
    assert_int_equal(a.max_tokens, 16);
    assert_int_equal(a.n, 1);
    assert_true(a.sampling.temperature == 1 && a.sampling.top_p == 1 && a.sampling.top_k == -1);
    assert_int_equal(a.sampling.n_logprobs, -1);
    assert_true(a.skip_special && !a.stream && !a.seeded && !a.cache_salt);
    api_free(&a);

    assert_int_equal(parse(&a, API_CHAT, "{" M "," MSG ",\"chat_template_kwargs\":{\"enable_thinking\":false},\"seed\":-7,"
                                         "\"logprobs\":true,\"top_logprobs\":3,\"stop\":[\"x\",\"yy\"],\"temperature\":0}", &e), 0);
    struct km_buf b = {0};
    assert_int_equal(tok_decode(fake_tok, a.prompts[0].v, a.prompts[0].n, false, &b, NULL), 0);
    assert_string_equal(b.data, "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n");
    km_buf_free(&b);
    assert_int_equal(a.max_tokens, 100 - (int)a.prompts[0].n); /* the rest of the context */
    assert_true(a.seeded && a.sampling.seed == (uint64_t)-7);
    assert_int_equal(a.sampling.n_logprobs, 3);
    assert_int_equal(a.n_stop, 2);
    assert_string_equal(a.stop[1], "yy");
    assert_true(a.sampling.temperature == 0);
    api_free(&a);

    /* generation_config.json has the defaults, as in vLLM; the request's values override them. */
    struct api_env v = env();
    v.temperature = 0.6, v.top_p = 0.95, v.top_k = 20;
    const char *body = "{" M "," MSG "}";
    assert_int_equal(api_parse(&a, API_CHAT, body, strlen(body), &v, &e), 0);
    assert_true(a.sampling.temperature == 0.6 && a.sampling.top_p == 0.95 && a.sampling.top_k == 20);
    api_free(&a);
    body = "{" M "," MSG ",\"temperature\":0,\"top_p\":0,\"top_k\":-1}";
    assert_int_equal(api_parse(&a, API_CHAT, body, strlen(body), &v, &e), 0);
    assert_true(a.sampling.temperature == 0 && a.sampling.top_p > 0 && a.sampling.top_k == -1);
    api_free(&a);
}

static void prompt_and_answer_must_fit_the_context(void **state)
{
    (void)state;
    for (int prompt = 96; prompt <= 101; prompt++)
        for (int max = -1; max <= 5; max++) {
            struct km_buf b = {0};
            km_buf_puts(&b, "{" M ",\"prompt\":[1");
            for (int i = 1; i < prompt; i++)
                km_buf_puts(&b, ",1");
            km_buf_puts(&b, "]");
            if (max >= 0)
                km_buf_printf(&b, ",\"max_tokens\":%d", max);
            km_buf_puts(&b, "}");
            struct api_request a;
            struct api_error e;
            int rc = parse(&a, API_COMPLETION, b.data, &e);
            bool fits = prompt + (max < 0 ? 1 : max) <= 100;
            assert_int_equal(rc, fits ? 0 : -1);
            if (rc) {
                char asked[32];
                snprintf(asked, sizeof asked, "asks for %d", prompt + (max < 0 ? 1 : max));
                assert_string_equal(e.code, "context_length_exceeded");
                assert_non_null(strstr(e.err.msg, "100 tokens"));
                assert_non_null(strstr(e.err.msg, asked));
            } else {
                assert_int_equal(a.max_tokens, max < 0 ? 100 - prompt : max);
                api_free(&a);
            }
            km_buf_free(&b);
        }
}

/* {"model":"m","prompt":OPEN PIECE PIECE ... CLOSE} with n pieces */
static void check_long(const char *open, const char *piece, int n, const char *close, int status, const char *param)
{
    struct km_buf b = {0};
    km_buf_printf(&b, "{" M ",\"prompt\":%s", open);
    for (int i = 0; i < n; i++)
        km_buf_puts(&b, piece);
    km_buf_printf(&b, "%s}", close);
    check(API_COMPLETION, b.data, status, param);
    km_buf_free(&b);
}

static void the_number_of_values_is_limited(void **state)
{
    (void)state;
    check_long("[", "1,", API_MAX_VALUES + 100, "1]", 413, "");
    check_long("[", "[],", API_MAX_VALUES / 2 + 100, "1]", 413, "");
    check_long("[", "1,", API_MAX_VALUES - 100, "1]", 400, "prompt"); /* too long for the context */
    check_long("\"", ",[{\\\",", API_MAX_VALUES / 2, "\"", 400, "prompt"); /* characters of a string are no values */
}

static void without_a_tokenizer_only_token_ids_are_accepted(void **state)
{
    (void)state;
    static const struct {
        enum api_kind kind;
        const char *body, *param;
    } rows[] = {
        {API_COMPLETION, "{" M ",\"prompt\":[1,2],\"return_tokens_as_token_ids\":true}", NULL},
        {API_COMPLETION, "{" M ",\"prompt\":[1,2],\"return_token_ids\":true}", NULL},
        {API_COMPLETION, "{" M ",\"prompt\":[1,2]}", "return_tokens_as_token_ids"},
        {API_COMPLETION, "{" M ",\"prompt\":\"hi\",\"return_tokens_as_token_ids\":true}", "prompt"},
        {API_COMPLETION, "{" M ",\"prompt\":[1],\"stop\":\"x\",\"return_token_ids\":true}", "stop"},
        {API_COMPLETION, "{" M ",\"prompt\":[1],\"echo\":true,\"return_token_ids\":true}", "echo"},
        {API_CHAT, "{" M "," MSG "}", "messages"},
        {API_TOKENIZE, "{\"prompt\":\"x\"}", "model"},
        {API_DETOKENIZE, "{\"tokens\":[1]}", "model"},
    };
    struct api_env v = env();
    v.tok = NULL;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct api_request a;
        struct api_error e;
        int rc = api_parse(&a, rows[i].kind, rows[i].body, strlen(rows[i].body), &v, &e);
        assert_int_equal(rc, rows[i].param ? -1 : 0);
        if (rc)
            assert_string_equal(e.param, rows[i].param);
        else
            api_free(&a);
    }
}

static void failed_allocations_are_503(void **state)
{
    (void)state;
    /* Token ids only: the fake tokenizer does not check its own allocations. */
    const char *body = "{" M ",\"prompt\":[[1,2],[3]],\"echo\":true,\"stop\":\"x\"}";
    for (int fail = 1;; fail++) {
        struct api_request a;
        struct api_error e;
        struct api_env v = env();
        int64_t before = km_mem_stats(KM_MEM_HOST).current;
        km_mem_fail_at(fail);
        int rc = api_parse(&a, API_COMPLETION, body, strlen(body), &v, &e);
        km_mem_fail_at(0);
        if (rc)
            assert_int_equal(e.status, 503);
        else
            api_free(&a);
        assert_int_equal(km_mem_stats(KM_MEM_HOST).current, before);
        if (!rc) {
            assert_true(fail > 4);
            break;
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(numbers_have_bounds),  cmocka_unit_test(bools_are_checked),
        cmocka_unit_test(unsupported_fields_are_refused), cmocka_unit_test(lists_are_checked),
        cmocka_unit_test(whole_bodies),             cmocka_unit_test(broken_json_is_refused),
        cmocka_unit_test(fields_become_values), cmocka_unit_test(prompt_and_answer_must_fit_the_context),
        cmocka_unit_test(the_number_of_values_is_limited),
        cmocka_unit_test(without_a_tokenizer_only_token_ids_are_accepted), cmocka_unit_test(failed_allocations_are_503),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
