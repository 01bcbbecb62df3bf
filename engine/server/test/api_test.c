/* Parsing of request bodies: which are accepted, which are refused and which field the error names, and the values of
 * the parsed fields. */
#include "base/test/test.h"

#include "base/mem.h"
#include "engine/server/api.h"
#include "engine/server/test/fake_tokenizer.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Members of request bodies: the served model, and one message. */
#define MODEL "\"model\":\"m\""
#define MESSAGES "\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}]"

/* Kinds of the requests that a row is about. */
enum { COMPLETION = API_COMPLETION, CHAT = API_CHAT, BOTH = COMPLETION | CHAT };

static struct api_env env(void)
{
    return (struct api_env){.model = "m",
                            .tok = fake_tok,
                            .vocab = FAKE_VOCAB,
                            .max_model_len = 100,
                            .temperature = -1,
                            .top_p = -1,
                            .top_k = -1};
}

static int parse(struct api_request *a, enum api_kind k, const char *json, struct api_error *e)
{
    struct api_env v = env();
    return api_parse(a, k, json, strlen(json), &v, e);
}

/* Parses a body and checks the status: 200, or an error whose param must be this one. */
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

/* Checks a completion or a chat with one more field. */
static void check_field(enum api_kind k, const char *name, const char *value, int status, const char *param)
{
    char body[2048];
    snprintf(body, sizeof body, "{\"model\":\"m\",%s,\"%s\":%s}", k == API_CHAT ? MESSAGES : "\"prompt\":\"hi\"", name,
             value);
    check(k, body, status, param);
}

struct field_row {
    const char *name, *value;
    int kinds;
    int status;
};

/* Checks each row for each of its kinds. An error must name the row's field. */
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
    {"max_tokens", COMPLETION, {"0", "1", "98", "16.0", "null"}, {"99", "-1", "1.5", "2147483648", "-9e18"}},
    {"max_tokens", CHAT, {"1", "20", "null"}, {"0", "-1", "1.5", "100", "2147483648"}},
    {"max_completion_tokens", COMPLETION, {"0", "98"}, {"99", "-1", "0.5"}},
    {"max_completion_tokens", CHAT, {"1", "20"}, {"0", "-1", "0.5", "4294967297"}},
    {"min_tokens", BOTH, {"0", "1", "16"}, {"-1", "0.5", "99", "2147483648"}},
    {"n", BOTH, {"1", "2", "128", "1e2"}, {"0", "-1", "129", "1.5"}},
    {"best_of", COMPLETION, {"0", "1"}, {"2", "20", "21", "-1"}},
    {"seed",
     BOTH,
     {"0", "-1", "9007199254740993", "9223372036854774784", "-9223372036854774784"},
     {"9223372036854775808", "1e30", "0.5"}},
    {"temperature", BOTH, {"0", "0.0", "1", "2", "-0"}, {"-0.1", "2.0001", "1e308"}},
    {"top_p", BOTH, {"0", "0.5", "1", "1e-5"}, {"-0.1", "1.1"}},
    {"top_k", BOTH, {"-1", "0", "1", "1000000"}, {"-2", "1.5", "2147483648"}},
    {"min_p", BOTH, {"0", "1", "0.1"}, {"-0.1", "1.1"}},
    {"presence_penalty", BOTH, {"-2", "0", "2"}, {"-2.1", "2.1"}},
    {"frequency_penalty", BOTH, {"-2", "0", "2"}, {"-2.1", "2.1"}},
    {"repetition_penalty", BOTH, {"1", "0.5", "2"}, {"0", "-1", "1e4"}},
    {"logprobs", COMPLETION, {"0", "20", "null"}, {"-1", "21", "1.5"}},
    {"priority", BOTH, {"0", "-5", "2147483647"}, {"2147483648", "0.5"}},
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
                /* A number of tokens that is valid but does not fit the context is an error of the prompt. */
                bool context = strstr(n->name, "max_") && atof(n->bad[j]) >= 99 && atof(n->bad[j]) < 2147483648.0;
                const char *prompt = k == API_CHAT ? "messages" : "prompt";
                check_field((enum api_kind)k, n->name, n->bad[j], 400, context ? prompt : n->name);
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
    } flags[] = {{"stream", BOTH},
                 {"ignore_eos", BOTH},
                 {"echo", COMPLETION},
                 {"skip_special_tokens", BOTH},
                 {"logprobs", CHAT},
                 {"return_token_ids", BOTH},
                 {"include_stop_str_in_output", BOTH},
                 {"add_generation_prompt", CHAT},
                 {"return_tokens_as_token_ids", BOTH}};
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
        {"tools", "[{\"type\":\"function\"}]", CHAT, 400},
        {"tools", "[]", CHAT, 200},
        {"tools", "null", CHAT, 200},
        {"tool_choice", "\"required\"", CHAT, 400},
        {"tool_choice", "\"none\"", CHAT, 200},
        {"tool_choice", "\"auto\"", CHAT, 200},
        {"tool_choice", "{\"type\":\"function\"}", CHAT, 400},
        {"functions", "[{}]", CHAT, 400},
        {"function_call", "\"auto\"", CHAT, 200},
        {"audio", "{\"voice\":\"x\"}", CHAT, 400},
        {"web_search_options", "{\"a\":1}", CHAT, 400},
        {"documents", "[{}]", CHAT, 400},
        {"chat_template", "\"x\"", CHAT, 400},
        {"continue_final_message", "true", CHAT, 400},
        {"continue_final_message", "false", CHAT, 200},
        {"echo", "true", CHAT, 400},
        {"suffix", "\"x\"", COMPLETION, 400},
        {"suffix", "\"\"", COMPLETION, 200},
        {"prompt_embeds", "\"x\"", COMPLETION, 400},
        {"logit_bias", "{\"5\":1}", BOTH, 400},
        {"logit_bias", "{}", BOTH, 200},
        {"prompt_logprobs", "1", BOTH, 400},
        {"prompt_logprobs", "0", BOTH, 200},
        {"truncate_prompt_tokens", "5", BOTH, 400},
        {"allowed_token_ids", "[1]", BOTH, 400},
        {"bad_words", "[\"x\"]", BOTH, 400},
        {"use_beam_search", "true", BOTH, 400},
        {"use_beam_search", "false", BOTH, 200},
        {"logits_processors", "[\"x\"]", BOTH, 400},
        {"structured_outputs", "{\"json\":{}}", BOTH, 400},
        {"guided_json", "{\"a\":1}", BOTH, 400},
        {"guided_regex", "\"a+\"", BOTH, 400},
        {"guided_choice", "[\"a\"]", BOTH, 400},
        {"guided_grammar", "\"g\"", BOTH, 400},
        {"structural_tag", "\"g\"", BOTH, 400},
        {"kv_transfer_params", "{\"a\":1}", BOTH, 400},
        {"response_format", "{\"type\":\"json_object\"}", BOTH, 400},
        {"response_format", "{\"type\":\"json_schema\"}", BOTH, 400},
        {"response_format", "{}", BOTH, 400},
        {"response_format", "{\"type\":\"text\"}", BOTH, 200},
        {"response_format", "null", BOTH, 200},
        /* Fields that cannot change the answer, and unknown ones. */
        {"user", "\"u\"", BOTH, 200},
        {"metadata", "{\"a\":\"b\"}", BOTH, 200},
        {"store", "true", BOTH, 200},
        {"service_tier", "\"auto\"", BOTH, 200},
        {"parallel_tool_calls", "true", BOTH, 200},
        {"reasoning_effort", "\"low\"", BOTH, 200},
        {"spaces_between_special_tokens", "true", BOTH, 200},
        {"never_heard_of", "{\"a\":[1,2,{\"b\":null}]}", BOTH, 200},
        {"length_penalty", "1.0", BOTH, 200},
    };
    check_fields(rows, sizeof rows / sizeof *rows);
}

static void lists_are_checked(void **state)
{
    (void)state;
    static const struct field_row rows[] = {
        {"stop", "\"x\"", BOTH, 200},
        {"stop", "[\"a\",\"b\",\"c\",\"d\"]", BOTH, 200},
        {"stop", "[]", BOTH, 200},
        {"stop", "null", BOTH, 200},
        {"stop", "[\"a\",\"b\",\"c\",\"d\",\"e\"]", BOTH, 400},
        {"stop", "\"\"", BOTH, 400},
        {"stop", "[\"\"]", BOTH, 400},
        {"stop", "\"a\\u0000\"", BOTH, 400},
        {"stop", "[1]", BOTH, 400},
        {"stop", "5", BOTH, 400},
        {"stop", "{\"a\":1}", BOTH, 400},
        {"stop_token_ids", "[0,299]", BOTH, 200},
        {"stop_token_ids", "[]", BOTH, 200},
        {"stop_token_ids", "[300]", BOTH, 400},
        {"stop_token_ids", "[-1]", BOTH, 400},
        {"stop_token_ids", "[1.5]", BOTH, 400},
        {"stop_token_ids", "[\"1\"]", BOTH, 400},
        {"stop_token_ids", "1", BOTH, 400},
        {"stream_options", "{\"include_usage\":true}", BOTH, 400}, /* without stream */
        {"stream_options", "null", BOTH, 200},
        {"chat_template_kwargs", "{\"enable_thinking\":false}", CHAT, 200},
        {"chat_template_kwargs", "{\"other\":1}", CHAT, 200},
        {"chat_template_kwargs", "{\"enable_thinking\":0}", CHAT, 400},
        {"chat_template_kwargs", "[]", CHAT, 400},
        {"top_logprobs", "2", CHAT, 400}, /* without logprobs */
        {"top_logprobs", "0", CHAT, 200},
        {"top_logprobs", "21", CHAT, 400},
        {"cache_salt", "\"s\"", BOTH, 200},
        {"cache_salt", "\"\"", BOTH, 400},
        {"cache_salt", "5", BOTH, 400},
    };
    check_fields(rows, sizeof rows / sizeof *rows);
}

static void whole_bodies(void **state)
{
    (void)state;
    static const struct {
        enum api_kind kind;
        const char *body;
        int status;
        const char *param;
    } rows[] = {
        {API_COMPLETION, "{" MODEL ",\"prompt\":\"hi\"}", 200, ""},
        {API_COMPLETION, "{" MODEL ",\"prompt\":[\"hi\",\"ho\"]}", 200, ""},
        {API_COMPLETION, "{" MODEL ",\"prompt\":[1,2,3]}", 200, ""},
        {API_COMPLETION, "{" MODEL ",\"prompt\":[[1,2],[3]]}", 200, ""},
        {API_COMPLETION, "{" MODEL ",\"prompt\":[\"hi\",[3]]}", 200, ""},
        {API_COMPLETION, " \r\n\t{" MODEL ",\"prompt\":\"hi\"} \n", 200, ""},
        {API_COMPLETION, "{" MODEL "}", 400, "prompt"},
        {API_COMPLETION, "{" MODEL ",\"prompt\":null}", 400, "prompt"},
        {API_COMPLETION, "{" MODEL ",\"prompt\":\"\"}", 400, "prompt"},
        {API_COMPLETION, "{" MODEL ",\"prompt\":[]}", 400, "prompt"},
        {API_COMPLETION, "{" MODEL ",\"prompt\":[\"\"]}", 400, "prompt"},
        {API_COMPLETION, "{" MODEL ",\"prompt\":[[]]}", 400, "prompt"},
        {API_COMPLETION, "{" MODEL ",\"prompt\":5}", 400, "prompt"},
        {API_COMPLETION, "{" MODEL ",\"prompt\":{}}", 400, "prompt"},
        {API_COMPLETION, "{" MODEL ",\"prompt\":[1,\"a\"]}", 400, "prompt"},
        {API_COMPLETION, "{" MODEL ",\"prompt\":[\"a\",1]}", 400, "prompt"},
        {API_COMPLETION, "{" MODEL ",\"prompt\":[[1],2]}", 400, "prompt"},
        {API_COMPLETION, "{" MODEL ",\"prompt\":[true]}", 400, "prompt"},
        {API_COMPLETION, "{" MODEL ",\"prompt\":[-1]}", 400, "prompt"},
        {API_COMPLETION, "{" MODEL ",\"prompt\":[299]}", 200, ""},
        {API_COMPLETION, "{" MODEL ",\"prompt\":[300]}", 400, "prompt"},
        {API_COMPLETION, "{" MODEL ",\"prompt\":[4294967297]}", 400, "prompt"},
        {API_COMPLETION, "{" MODEL ",\"prompt\":[1.5]}", 400, "prompt"},
        {API_COMPLETION, "{" MODEL ",\"prompt\":[1e999]}", 400, "prompt"},
        {API_COMPLETION, "{\"prompt\":\"hi\"}", 200, ""}, /* means the served model */
        {API_COMPLETION, "{\"model\":null,\"prompt\":\"hi\"}", 200, ""},
        {API_COMPLETION, "{\"model\":\"\",\"prompt\":\"hi\"}", 200, ""},
        {API_CHAT, "{" MESSAGES "}", 200, ""},
        {API_COMPLETION, "{\"model\":5,\"prompt\":\"hi\"}", 400, "model"},
        {API_COMPLETION, "{\"model\":\"other\",\"prompt\":\"hi\"}", 404, "model"},
        {API_COMPLETION, "{" MODEL "," MODEL ",\"prompt\":\"hi\"}", 400, "model"},
        {API_COMPLETION, "{" MODEL ",\"prompt\":\"hi\",\"n\":1,\"n\":2}", 400, "n"},
        {API_COMPLETION, "{" MODEL ",\"prompt\":\"hi\",\"n\":null,\"n\":2}", 400, "n"},
        {API_COMPLETION, "{" MODEL ",\"prompt\":\"hi\",\"max_tokens\":5,\"max_completion_tokens\":5}", 200, ""},
        {API_COMPLETION, "{" MODEL ",\"prompt\":\"hi\",\"max_tokens\":5,\"max_completion_tokens\":6}", 400,
         "max_tokens"},
        {API_COMPLETION, "{" MODEL ",\"prompt\":\"hi\",\"echo\":true}", 200, ""},
        {API_COMPLETION, "{" MODEL ",\"prompt\":\"hi\",\"echo\":true,\"logprobs\":1}", 400, "echo"},
        {API_COMPLETION, "{" MODEL ",\"prompt\":[290],\"echo\":true}", 400, "prompt"}, /* an id without a token */
        {API_COMPLETION, "{" MODEL ",\"prompt\":\"hi\",\"min_tokens\":6,\"max_tokens\":5}", 400, "min_tokens"},
        {API_COMPLETION, "{" MODEL ",\"prompt\":\"hi\",\"stream\":true,\"stream_options\":{}}", 200, ""},
        {API_COMPLETION, "{" MODEL ",\"prompt\":\"hi\",\"stream\":true,\"stream_options\":{\"include_usage\":1}}", 400,
         "stream_options"},
        {API_COMPLETION, "{" MODEL ",\"prompt\":\"hi\",\"stream\":true,\"stream_options\":5}", 400, "stream_options"},
        {API_CHAT, "{" MODEL "," MESSAGES "}", 200, ""},
        {API_CHAT, "{" MODEL "}", 400, "messages"},
        {API_CHAT, "{" MODEL ",\"messages\":[]}", 400, "messages"},
        {API_CHAT, "{" MODEL ",\"messages\":\"hi\"}", 400, "messages"},
        {API_CHAT, "{" MODEL ",\"messages\":[{\"role\":\"user\",\"content\":7}]}", 400, "messages[0].content"},
        {API_CHAT, "{" MODEL "," MESSAGES ",\"logprobs\":true,\"top_logprobs\":20}", 200, ""},
        {API_CHAT, "{" MODEL "," MESSAGES ",\"logprobs\":true}", 200, ""},
        {API_CHAT, "{" MODEL "," MESSAGES ",\"prompt\":5}", 200,
         ""}, /* a field of another endpoint is an unknown field */
        {API_TOKENIZE, "{\"prompt\":\"hi\"}", 200, ""},
        {API_TOKENIZE, "{\"prompt\":\"\"}", 200, ""},
        {API_TOKENIZE, "{" MESSAGES "}", 200, ""},
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
    /* Values of a field that is ignored. Broken JSON must be refused there, too. \302\240 is a no-break space and
     * \357\273\277 a byte order mark; a hexadecimal escape would include the digit after it. */
    /* clang-format off */
    static const char *const bad[] = {
        "01", "-01", "1.", ".5", "+1", "1e", "1e+", "1.e5", "0x10", "1_000", "-", "--1", "NaN", "Infinity", "-Infinity",
        "nan", "tru", "True", "nul", "undefined", "'a'", "\"a", "\"\\x\"", "\"\\u12\"", "\"\\u12G4\"", "\"\\uD800\"",
        "\"\\uD800a\"", "\"\\uDC00\"", "\"\\uD800\\uD800\"", "\"\x01\"", "\"\n\"", "\"\t\"", "\"\xff\"", "\"\xc0\xaf\"",
        "\"\xed\xa0\x80\"", "\"\xf4\x90\x80\x80\"", "\"\xe4\xb8\"", "[1,]", "[,1]", "[1 2]", "[1,,2]", "[", "]", "{",
        "{\"a\"}", "{\"a\":}", "{\"a\":1,}", "{a:1}", "{1:2}", "{\"a\" 1}", "{\"a\":1 \"b\":2}", "1,", "1 2", "/*c*/1",
        "1//c", "\f1", "\v1", "\302\2401", "\357\273\2771", "[1}", "{\"a\":[}", ""
    };
    /* clang-format on */
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        char body[200];
        snprintf(body, sizeof body, "{\"model\":\"m\",\"prompt\":\"hi\",\"ignored\":%s}", bad[i]);
        struct api_request a;
        struct api_error e;
        if (!parse(&a, API_COMPLETION, body, &e))
            fail_msg("accepted: %s", body);
        assert_int_equal(e.status, 400);
    }
    static const char *const good[] = {"0",
                                       "-0",
                                       "1.5e-3",
                                       "1E+2",
                                       "1e5",
                                       "\"\\u00e9\\ud83c\\udf0d\"",
                                       "\"\\\\u0000\"",
                                       "\"a\\u0000b\"",
                                       "[ ]",
                                       "{ }",
                                       "\"\x7f\"",
                                       "true",
                                       "[[[]]]",
                                       "\"/\\/\"",
                                       "123456789012345678901234567890"};
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
    assert_int_equal(parse(&a, API_COMPLETION, "{" MODEL ",\"prompt\":\"hi<|im_end|>\"}", &e), 0);
    assert_int_equal(a.prompts[0].n, 3); /* a bare prompt may hold control tokens */
    assert_int_equal(a.prompts[0].v[2], FAKE_EOS);
    assert_int_equal(a.max_tokens, 16);
    assert_int_equal(a.n, 1);
    assert_true(a.sampling.temperature == 1 && a.sampling.top_p == 1 && a.sampling.top_k == -1);
    assert_int_equal(a.sampling.n_logprobs, -1);
    assert_true(a.skip_special && !a.stream && !a.seeded && !a.cache_salt);
    api_free(&a);

    assert_int_equal(parse(&a, API_CHAT,
                           "{" MODEL "," MESSAGES ",\"chat_template_kwargs\":{\"enable_thinking\":false},\"seed\":-7,"
                           "\"logprobs\":true,\"top_logprobs\":3,\"stop\":[\"x\",\"yy\"],\"temperature\":0}",
                           &e),
                     0);
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
    const char *body = "{" MODEL "," MESSAGES "}";
    assert_int_equal(api_parse(&a, API_CHAT, body, strlen(body), &v, &e), 0);
    assert_true(a.sampling.temperature == 0.6 && a.sampling.top_p == 0.95 && a.sampling.top_k == 20);
    api_free(&a);
    body = "{" MODEL "," MESSAGES ",\"temperature\":0,\"top_p\":0,\"top_k\":-1}";
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
            km_buf_puts(&b, "{" MODEL ",\"prompt\":[1");
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

/* Checks the body {"model":"m","prompt":OPEN PIECE PIECE ... CLOSE} with n pieces. */
static void check_long(const char *open, const char *piece, int n, const char *close, int status, const char *param)
{
    struct km_buf b = {0};
    km_buf_printf(&b, "{" MODEL ",\"prompt\":%s", open);
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
    check_long("[", "1,", API_MAX_VALUES - 100, "1]", 400, "prompt");      /* too long for the context */
    check_long("\"", ",[{\\\",", API_MAX_VALUES / 2, "\"", 400, "prompt"); /* characters of a string are no values */
}

static void without_a_tokenizer_only_token_ids_are_accepted(void **state)
{
    (void)state;
    static const struct {
        enum api_kind kind;
        const char *body, *param;
    } rows[] = {
        {API_COMPLETION, "{" MODEL ",\"prompt\":[1,2],\"return_tokens_as_token_ids\":true}", NULL},
        {API_COMPLETION, "{" MODEL ",\"prompt\":[1,2],\"return_token_ids\":true}", NULL},
        {API_COMPLETION, "{" MODEL ",\"prompt\":[1,2]}", "return_tokens_as_token_ids"},
        {API_COMPLETION, "{" MODEL ",\"prompt\":\"hi\",\"return_tokens_as_token_ids\":true}", "prompt"},
        {API_COMPLETION, "{" MODEL ",\"prompt\":[1],\"stop\":\"x\",\"return_token_ids\":true}", "stop"},
        {API_COMPLETION, "{" MODEL ",\"prompt\":[1],\"echo\":true,\"return_token_ids\":true}", "echo"},
        {API_CHAT, "{" MODEL "," MESSAGES "}", "messages"},
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
    const char *body = "{" MODEL ",\"prompt\":[[1,2],[3]],\"echo\":true,\"stop\":\"x\"}";
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
        cmocka_unit_test(numbers_have_bounds),
        cmocka_unit_test(bools_are_checked),
        cmocka_unit_test(unsupported_fields_are_refused),
        cmocka_unit_test(lists_are_checked),
        cmocka_unit_test(whole_bodies),
        cmocka_unit_test(broken_json_is_refused),
        cmocka_unit_test(fields_become_values),
        cmocka_unit_test(prompt_and_answer_must_fit_the_context),
        cmocka_unit_test(the_number_of_values_is_limited),
        cmocka_unit_test(without_a_tokenizer_only_token_ids_are_accepted),
        cmocka_unit_test(failed_allocations_are_503),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
