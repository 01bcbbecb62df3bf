/* Workload files: what is read from valid ones, and the errors for invalid ones. */
#include "base/test/test.h"

#include "base/file.h"
#include "base/mem.h"
#include "workloads/multi_turn.h"
#include "workloads/random.h"
#include "workloads/spec.h"
#include "workloads/workload.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define COUNT(a) (sizeof(a) / sizeof *(a))

static char file[] = "/tmp/kvm_spec_XXXXXX";

static int read_text(const char *text, struct wl_spec **s, struct km_err *err)
{
    assert_int_equal(km_file_write(file, text, strlen(text), err), 0);
    return wl_spec_read(s, file, err);
}

static void expect_error(const char *text, int code, const char *say)
{
    struct wl_spec *s;
    struct km_err err = {0};
    int rc = read_text(text, &s, &err);
    if (rc != code || !strstr(err.msg, say))
        print_message("file: %s\nerror message: %s\nexpected in it: %s\n", text, err.msg, say);
    assert_int_equal(rc, code);
    assert_non_null(strstr(err.msg, say));
    assert_null(s);
}

/* The write-up's workload file: samples with seed 0, in the order in which vLLM's generator takes them. */
static void the_write_ups_file(void **state)
{
    (void)state;
    static const int64_t turns[] = {16, 18, 12, 16, 16, 16, 14, 16, 18, 14, 16, 18,
                                    12, 12, 16, 14, 14, 18, 18, 12, 14, 18, 14, 18};
    static const int64_t prefix[] = {6401, 1487, 4075, 2975, 7149, 2974, 10029, 3639, 4506, 8071, 7922, 3640,
                                     3076, 1837, 4471, 2043, 2478, 2622, 1931,  2480, 2345, 1501, 2993, 5354};
    static const int64_t in[] = {151, 121, 121, 159, 155, 158, 131, 138, 147, 120, 134, 155, 132, 140, 131, 124};
    static const int64_t out[] = {86, 84, 83, 92, 116, 120, 94, 95, 100, 115, 103, 95, 93, 101, 85, 115};
    struct wl_spec *s;
    struct km_err err;
    struct wl_mt r;
    int64_t v[24];
    assert_int_equal(wl_spec_read(&s, KVM_SOURCE_DIR "/workloads/generate_multi_turn.json", &err), 0);
    assert_int_equal(wl_spec_kind(s), WL_MULTI_TURN);
    assert_int_equal(s->n, 24);
    const struct wl_multi_turn *p = s->params;
    wl_mt_seed(&r, 0);
    assert_int_equal(wl_distribution_sample(&p->turns, &r, 24, v, &err), 0);
    int requests = 0;
    for (int i = 0; i < 24; i++) {
        assert_int_equal(v[i] + v[i] % 2, turns[i]);
        requests += (int)turns[i] / 2;
    }
    assert_int_equal(requests, 185);
    wl_distribution_sample(&p->prefix, &r, 24, v, &err);
    assert_memory_equal(v, prefix, sizeof prefix);
    wl_distribution_sample(&p->common, &r, 1, v, &err);
    assert_int_equal(v[0], 500);
    wl_distribution_sample(&p->input, &r, 16, v, &err);
    assert_memory_equal(v, in, sizeof in);
    wl_distribution_sample(&p->output, &r, 16, v, &err);
    assert_memory_equal(v, out, sizeof out);
    wl_spec_free(s);
}

static void every_shipped_file_reads(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        enum wl_kind kind;
        int n;
    } t[] = {{"multi_turn_20k", WL_MULTI_TURN, 24}, {"random_1k", WL_RANDOM, 100}, {"random_8k", WL_RANDOM, 100},
             {"random_20k", WL_RANDOM, 100},        {"allhit_1k", WL_RANDOM, 500}, {"allhit_8k", WL_RANDOM, 500},
             {"allhit_20k", WL_RANDOM, 500}};
    for (size_t i = 0; i < COUNT(t); i++) {
        char path[500];
        struct wl_spec *s;
        struct km_err err = {0};
        snprintf(path, sizeof path, "%s/workloads/%s.json", KVM_SOURCE_DIR, t[i].name);
        assert_int_equal(wl_spec_read(&s, path, &err), 0);
        assert_int_equal(wl_spec_kind(s), t[i].kind);
        assert_int_equal(s->n, t[i].n);
        assert_string_equal(s->name, t[i].name);
        if (t[i].kind == WL_RANDOM) {
            const struct wl_random *p = s->params;
            assert_int_equal(p->version, WL_RANDOM_V011);
            assert_int_equal(p->repeat_one, t[i].n == 500);
        }
        wl_spec_free(s);
    }
}

/* A workload file whose num_turns is the given distribution. */
#define TURNS(distribution)                                                                                            \
    "{\"filetype\":\"generate_conversations\",\"num_conversations\":2,\"text_files\":[\"a\"],\"x\":[1.5],"             \
    "\"prompt_input\":{\"num_turns\":" distribution ",\"num_tokens\":{\"distribution\":\"constant\",\"value\":9},"     \
    "\"prefix_num_tokens\":{\"distribution\":\"constant\",\"value\":0}},"                                              \
    "\"prompt_output\":{\"num_tokens\":{\"distribution\":\"constant\",\"value\":1}}}"

static void distributions(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        uint32_t seed;
        int64_t want[8];
    } t[] = {
        {TURNS("{\"distribution\":\"constant\",\"value\":7.9}"), 5, {7, 7, 7, 7, 7, 7, 7, 7}},
        {TURNS("{\"distribution\":\"uniform\",\"min\":12,\"max\":18}"), 0, {16, 17, 12, 15, 15, 15, 13, 15}},
        {TURNS("{\"distribution\":\"uniform\",\"min\":12.5,\"max\":80}"), 5, {27, 71, 26, 74, 45, 53, 64, 47}},
        {TURNS("{\"distribution\":\"uniform\",\"max\":1e1,\"min\":4}"), 42, {6, 9, 8, 7, 4, 4, 4, 9}},
        {TURNS("{\"distribution\":\"zipf\",\"alpha\":1.1,\"max\":50}"), 5, {50, 50, 33, 2, 50, 50, 50, 50}},
        {TURNS("{\"distribution\":\"poisson\",\"alpha\":10,\"max\":0}"), 7, {9, 10, 8, 9, 8, 7, 16, 7}},
        {TURNS("{\"distribution\":\"poisson\",\"alpha\":10,\"max\":9}"), 7, {9, 9, 8, 9, 8, 7, 9, 7}},
        {TURNS("{\"distribution\":\"lognormal\",\"mean\":6,\"sigma\":4,\"max\":1500}"),
         5,
         {1500, 107, 1500, 147, 625, 1500, 11, 38}},
        {TURNS("{\"distribution\":\"lognormal\",\"average\":100000,\"median_ratio\":0.5,\"max\":100000,"
               "\"mean\":1}"),
         3,
         {100000, 96337, 64555, 6422, 41567, 37948, 52273, 27541}},
    };
    for (size_t i = 0; i < COUNT(t); i++) {
        struct wl_spec *s;
        struct km_err err = {0};
        struct wl_mt r;
        int64_t v[8];
        assert_int_equal(read_text(t[i].text, &s, &err), 0);
        wl_mt_seed(&r, t[i].seed);
        assert_int_equal(wl_distribution_sample(&((const struct wl_multi_turn *)s->params)->turns, &r, 8, v, &err), 0);
        for (int k = 0; k < 8; k++)
            assert_int_equal(v[k], t[i].want[k]);
        wl_spec_free(s);
    }
}

static void wrong_multi_turn_files(void **state)
{
    (void)state;
    static const struct {
        const char *text, *say;
    } t[] = {
        {TURNS("{\"distribution\":\"gamma\"}"),
         "\"prompt_input.num_turns\": \"distribution\" is \"gamma\"; it must be"},
        {TURNS("{\"min\":1}"), "\"prompt_input.num_turns\": \"distribution\" is missing"},
        {TURNS("7"), "\"num_turns\" must be an object, not a number"},
        {TURNS("{\"distribution\":\"constant\"}"), "\"value\" is missing"},
        {TURNS("{\"distribution\":\"constant\",\"value\":-1}"), "\"value\" is -1"},
        {TURNS("{\"distribution\":\"uniform\",\"min\":0,\"max\":4}"),
         "\"min\" is 0; a uniform distribution needs min > 0"},
        {TURNS("{\"distribution\":\"uniform\",\"min\":5,\"max\":4}"), "\"min\" is 5 and \"max\" is 4"},
        {TURNS("{\"distribution\":\"uniform\",\"min\":5}"), "\"max\" is missing"},
        {TURNS("{\"distribution\":\"zipf\",\"alpha\":1}"), "\"alpha\" is 1; a zipf distribution needs alpha > 1"},
        {TURNS("{\"distribution\":\"poisson\",\"alpha\":-2}"), "\"alpha\" is -2"},
        {TURNS("{\"distribution\":\"poisson\",\"alpha\":2,\"max\":-2}"), "\"max\" is -2"},
        {TURNS("{\"distribution\":\"lognormal\",\"average\":0.5}"), "\"average\" is 0.5"},
        {TURNS("{\"distribution\":\"lognormal\"}"), "\"average\" is missing; give it, or \"mean\" and \"sigma\""},
        {TURNS("{\"distribution\":\"lognormal\",\"mean\":6}"), "\"sigma\" is missing"},
        {TURNS("{\"distribution\":\"lognormal\",\"mean\":0,\"sigma\":1}"), "\"mean\" is 0; it must be more than 0"},
        {TURNS("{\"distribution\":\"lognormal\",\"average\":9,\"median_ratio\":1}"), "\"median_ratio\" is 1"},
        {"{\"filetype\":\"generate_conversations\"}", "\"num_conversations\" is missing"},
        {"{\"filetype\":\"generate_conversations\",\"num_conversations\":0}", "\"num_conversations\" is 0"},
        {"{\"filetype\":\"generate_conversations\",\"num_conversations\":1,\"text_files\":[]}",
         "\"text_files\" is empty"},
        {"{\"filetype\":\"generate_conversations\",\"num_conversations\":1,\"text_files\":[3]}", "list of file names"},
        {"{\"filetype\":\"generate_conversations\",\"num_conversations\":1,\"text_files\":[\"a\"],\"print_"
         "stats\":1}",
         "\"print_stats\" must be true or false"},
        {"{\"filetype\":\"generate_conversations\",\"num_conversations\":1,\"text_files\":[\"a\"]}",
         "\"prompt_input\" is missing"},
        {"{\"filetype\":\"sharegpt\"}", "\"filetype\" is \"sharegpt\"; it must be"},
        {"{}", "\"filetype\" is missing"},
        {"7", "a workload file must hold a JSON object with a \"filetype\", or an array"},
    };
    for (size_t i = 0; i < COUNT(t); i++)
        expect_error(t[i].text, KM_EINVAL, t[i].say);
    expect_error("{\"filetype\":", KM_EFORMAT, "JSON is broken");
    struct wl_spec *s;
    struct km_err err;
    assert_int_equal(wl_spec_read(&s, "/no/such.json", &err), KM_ENOENT);
}

static void wrong_random_files(void **state)
{
    (void)state;
#define RANDOM(rest) "{\"filetype\":\"random\",\"num_prompts\":3,\"output_len\":2," rest "}"
    static const char *const t[][2] = {
        {RANDOM("\"input_lenght\":5"),
         "unknown key \"input_lenght\" in a file of type random; did you mean \"input_len\"?"},
        {RANDOM("\"range_ratio\":0.1"), "\"input_len\" is missing"},
        {RANDOM("\"input_len\":5,\"range_ratio\":1"), "\"range_ratio\" is 1; it must be less than 1"},
        {RANDOM("\"input_len\":5,\"generator\":\"v1\""),
         "\"generator\" is \"v1\"; it must be \"v0.10\", \"v0.11\" or \"new\""},
        {RANDOM("\"input_len\":1,\"range_ratio\":0.5"), "\"input_len\" is 1; with this range_ratio"},
        {RANDOM("\"input_len\":-1"), "\"input_len\" is -1"},
        {RANDOM("\"input_len\":5,\"repeat_one\":\"yes\""), "\"repeat_one\" must be true or false"},
    };
    for (size_t i = 0; i < COUNT(t); i++)
        expect_error(t[i][0], KM_EINVAL, t[i][1]);
}

static void wrong_conversations(void **state)
{
    (void)state;
#define U "{\"role\":\"user\",\"content\":\"a\"}"
#define A "{\"role\":\"assistant\",\"content\":\"b\"}"
#define CONV(msgs) "[{\"id\":\"x\",\"messages\":[" msgs "]}]"
    static const char *const t[][2] = {
        {"[]", "the array of conversations is empty"},
        {"[1]", "conversation 0: a conversation must be an object"},
        {"[{\"messages\":[]}]", "conversation 0: \"id\" is missing"},
        {"[{\"id\":4,\"messages\":[]}]", "\"id\" must be a string"},
        {CONV(""), "the number of messages is 0"},
        {CONV(U), "the number of messages is 1; every user message needs an answer"},
        {CONV(A "," U), "message 0: the role is \"assistant\""},
        {CONV(U "," U),
         "message 1: the role is \"user\"; roles alternate, starting with user, so it must be \"assistant\""},
        {CONV(U ",{\"role\":\"assistant\"}"), "message 1: \"content\" is missing"},
        {CONV(U ",{\"role\":\"assistant\",\"content\":\"b\",\"name\":\"n\"}"), "the message has 3 keys"},
        {"[{\"id\":\"x\",\"messages\":[" U "," A "]},{\"id\":\"x\",\"messages\":[" U "," A "]}]",
         "the id \"x\" occurs twice"},
        {"[{\"id\":\"x_0\",\"conversations\":[]}]", "this is ShareGPT's own format"},
    };
    for (size_t i = 0; i < COUNT(t); i++)
        expect_error(t[i][0], KM_EINVAL, t[i][1]);
}

static int setup(void **state)
{
    (void)state;
    int fd = mkstemp(file);
    return fd < 0 ? -1 : close(fd);
}

static int teardown(void **state)
{
    (void)state;
    return unlink(file);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_write_ups_file), cmocka_unit_test(every_shipped_file_reads),
        cmocka_unit_test(distributions),      cmocka_unit_test(wrong_multi_turn_files),
        cmocka_unit_test(wrong_random_files), cmocka_unit_test(wrong_conversations),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
