/* Option tables and command lines: defaults, parsing, range checks, JSON and help, all from the same rows. */
#include "base/test/test.h"

#include "base/args.h"
#include "base/mem.h"

#include <limits.h>
#include <math.h>
#include <string.h>

enum color { RED, GREEN, BLUE };

struct load_opts {
    bool early_stop;
    int64_t num_clients;
    double request_rate;
    struct km_strs headers;
    const char *device;
};
struct pool_opts {
    int block_size, max_len, dtype;
    int64_t memory_limit;
    uint64_t seed;
    enum color color;
    bool random;
    const char *key;
    int queue;
};

static const struct km_option load_rows[] = {
    {.name = "early-stop", KM_FIELD(struct load_opts, early_stop), .fallback = "true", .help = "stop early"},
    {.name = "num-clients",
     .letter = 'p',
     KM_FIELD(struct load_opts, num_clients),
     .arg = "N",
     .fallback = "1",
     .lo = 1,
     .hi = 100,
     .help = "clients"},
    {.name = "request-rate",
     KM_FIELD(struct load_opts, request_rate),
     .arg = "R",
     .fallback = "0.5",
     .lo = 0,
     .hi = INFINITY,
     .help = "requests per second"},
    {.name = "header", KM_FIELD(struct load_opts, headers), .arg = "K=V", .secret = true, .help = "a header"},
    {.name = "device",
     KM_FIELD(struct load_opts, device),
     .values = "auto|cpu|cuda",
     .fallback = "auto",
     .help = "a device"},
};
static const struct km_option pool_rows[] = {
    {.name = "block-size",
     KM_FIELD(struct pool_opts, block_size),
     .arg = "N",
     .fallback = "16",
     .lo = 1,
     .hi = 1024,
     .help = "tokens of a block"},
    {.name = "max-len",
     KM_FIELD(struct pool_opts, max_len),
     .arg = "N",
     .lo = 2,
     .hi = 4096,
     .help = "tokens (default: the model's)"},
    {.name = "dtype",
     KM_FIELD_CHOICE(struct pool_opts, dtype),
     .values = "auto|float32|bfloat16",
     .fallback = "auto",
     .lo = -1,
     .help = "number format"},
    {.name = "memory-limit",
     KM_FIELD_SIZE(struct pool_opts, memory_limit),
     .arg = "SIZE",
     .fallback = "1GiB",
     .help = "a limit"},
    {.name = "seed", KM_FIELD(struct pool_opts, seed), .arg = "N", .lo = 0, .hi = 9e15, .help = "a seed"},
    {.name = "color",
     KM_FIELD_CHOICE(struct pool_opts, color),
     .values = "red|green|blue",
     .fallback = "green",
     .help = "a color"},
    {.name = "sampling",
     KM_FIELD_CHOICE(struct pool_opts, random),
     .values = "round_robin|random",
     .fallback = "round_robin",
     .help = "an order"},
    {.name = "api_key", KM_FIELD(struct pool_opts, key), .arg = "KEY", .secret = true, .help = "a key"},
    {.name = "queue-length", KM_FIELD(struct pool_opts, queue), .fallback = "64", .lo = 1, .hi = 128, .internal = true},
};

struct both {
    struct load_opts load;
    struct pool_opts pool;
    struct km_option_group groups[2];
};

/* Both structs with their defaults, from memory that held something else. */
static void set_up(struct both *b)
{
    memset(b, 0xa5, sizeof *b);
    b->groups[0] = KM_OPTION_GROUP("Load", load_rows, &b->load);
    b->groups[1] = KM_OPTION_GROUP("Pool", pool_rows, &b->pool);
    km_options_default(b->groups, 2);
}

static int parse(struct both *b, int argc, char **argv, struct km_strs *pos, struct km_err *err)
{
    bool help;
    return km_args_parse(b->groups, 2, argc, argv, pos, &help, err);
}

static void defaults_come_from_the_rows(void **state)
{
    (void)state;
    struct both b;
    struct km_err err;
    set_up(&b);
    assert_true(b.load.early_stop && b.load.num_clients == 1 && b.load.request_rate == 0.5 && b.load.headers.n == 0);
    assert_string_equal(b.load.device, "auto");
    assert_true(b.pool.block_size == 16 && b.pool.max_len == 0 && b.pool.dtype == -1 && b.pool.seed == 0);
    assert_true(b.pool.memory_limit == 1 << 30 && b.pool.color == GREEN && !b.pool.random && !b.pool.key);
    assert_int_equal(b.pool.queue, 64);
    assert_int_equal(km_options_check(b.groups, 2, &err), 0);
}

static void command_lines_fill_the_fields(void **state)
{
    (void)state;
    struct both b;
    struct km_strs pos = {0};
    struct km_err err;
    char words[] = "w.json --early-stop -p 10 --memory-limit=24GiB --request-rate inf --device cpu --header a=b "
                   "--header c=d --dtype bfloat16 --color blue --sampling random --seed 9000000000 --api-key k -- "
                   "--no-such";
    char *argv[32];
    int argc = 0;
    for (char *w = strtok(words, " "); w; w = strtok(NULL, " "))
        argv[argc++] = w;
    set_up(&b);
    assert_int_equal(parse(&b, argc, argv, &pos, &err), 0);
    assert_true(b.load.early_stop && b.load.num_clients == 10 && isinf(b.load.request_rate) && b.load.headers.n == 2);
    assert_string_equal(b.load.device, "cpu");
    assert_true(b.pool.memory_limit == 24LL << 30 && b.pool.dtype == 1 && b.pool.color == BLUE && b.pool.random);
    assert_true(b.pool.seed == 9000000000);
    assert_string_equal(b.pool.key, "k"); /* api_key: '-' and '_' are the same */
    assert_int_equal(pos.n, 2);
    assert_string_equal(pos.v[1], "--no-such");
    char *off[] = {"--no-early-stop"};
    assert_int_equal(parse(&b, 1, off, &pos, &err), 0);
    assert_false(b.load.early_stop);
    km_options_free(b.groups, 2);
    assert_null(b.load.headers.v);
    km_free(pos.v);
}

static void bad_command_lines_say_what_is_right(void **state)
{
    (void)state;
    static const struct {
        char *a, *b;
        const char *say;
    } bad[] = {{"--num-client", "3", "unknown option --num-client; did you mean --num-clients?"},
               {"--no-device", "3", "unknown option --no-device; did you mean --device?"},
               {"--xxxxxxxxx", "3", "unknown option --xxxxxxxxx; --help lists the options"},
               {"-z", "3", "unknown option -z; --help lists the options"},
               {"-p", "0", "--num-clients is 0; it must be between 1 and 100"},
               {"-p", "x", "--num-clients is \"x\"; it must be a whole number"},
               {"-p", "1.5", "--num-clients is \"1.5\"; it must be a whole number"},
               {"--request-rate", "-1", "--request-rate is -1; it must be between 0 and inf"},
               {"--request-rate", "nan", "--request-rate is \"nan\"; it must be a number"},
               {"--max-len", "0", "--max-len is 0; it must be between 2 and 4096"},
               {"--device", "tpu", "--device is \"tpu\"; it must be one of auto|cpu|cuda"},
               {"--color", "re", "--color is \"re\"; it must be one of red|green|blue"},
               {"--memory-limit", "24Q", "--memory-limit: \"24Q\" is not a size; write for example 24GiB or 512MiB"},
               {"--early-stop=x", "", "--early-stop takes no value; write --early-stop or --no-early-stop"},
               {"x", "--color", "--color needs a value (red|green|blue)"},
               {"--queue-length", "3", "unknown option --queue-length; --help lists the options"}};
    struct both b;
    struct km_strs pos = {0};
    struct km_err err;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        char *argv[] = {bad[i].a, bad[i].b};
        set_up(&b);
        assert_int_equal(parse(&b, 2, argv, &pos, &err), KM_EINVAL);
        assert_string_equal(err.msg, bad[i].say);
    }
    km_free(pos.v);
}

static void structs_filled_by_hand_are_checked(void **state)
{
    (void)state;
    struct both b;
    struct km_err err;
#define REFUSED(field, value, says)                                                                                    \
    do {                                                                                                               \
        set_up(&b);                                                                                                    \
        b.field = value;                                                                                               \
        assert_int_equal(km_options_check(b.groups, 2, &err), KM_EINVAL);                                              \
        assert_string_equal(err.msg, says);                                                                            \
    } while (0)
    REFUSED(pool.block_size, 0, "--block-size is 0; it must be between 1 and 1024");
    REFUSED(pool.block_size, INT_MIN, "--block-size is -2147483648; it must be between 1 and 1024");
    REFUSED(pool.max_len, 1, "--max-len is 1; it must be between 2 and 4096");
    REFUSED(pool.dtype, 2, "--dtype is 2, which stands for none of auto|float32|bfloat16");
    REFUSED(pool.memory_limit, -1, "--memory-limit is -1 bytes; it cannot be negative");
    REFUSED(pool.queue, 0, "queue-length is 0; it must be between 1 and 128");
    REFUSED(load.request_rate, NAN, "--request-rate is nan; it must be between 0 and inf");
    REFUSED(load.device, "tpu", "--device is \"tpu\"; it must be one of auto|cpu|cuda");
#undef REFUSED
    set_up(&b);
    b.pool.dtype = 0, b.load.device = NULL, b.pool.memory_limit = 0, b.pool.max_len = 0;
    assert_int_equal(km_options_check(b.groups, 2, &err), 0);
}

/* A reader of another format finds the row by its name and passes the value as text. */
static void other_readers_set_rows_by_name(void **state)
{
    (void)state;
    struct both b;
    struct km_err err;
    void *object;
    set_up(&b);
    const struct km_option *o = km_option_find(b.groups, 2, "early_stop", strlen("early_stop"), &object);
    assert_non_null(o);
    assert_int_equal(km_option_set(o, object, "False", &err), 0);
    assert_false(b.load.early_stop);
    assert_int_equal(km_option_set(o, object, "maybe", &err), KM_EINVAL);
    assert_string_equal(err.msg, "--early-stop is \"maybe\"; it must be true or false");
    assert_null(km_option_find(b.groups, 2, "early", strlen("early"), &object));
    assert_string_equal(km_option_nearest(b.groups, 2, "earlystop"), "early-stop");
}

static void options_become_json(void **state)
{
    (void)state;
    struct both b;
    struct km_strs pos = {0};
    struct km_err err;
    char *argv[] = {"--request-rate", "inf", "--header", "secret=1", "--api_key", "secret", "--color", "red"};
    set_up(&b);
    assert_int_equal(parse(&b, 8, argv, &pos, &err), 0);
    cJSON *v = cJSON_CreateObject();
    km_options_json(b.groups, 2, v);
    char *text = cJSON_PrintUnformatted(v);
    assert_string_equal(text, "{\"early-stop\":true,\"num-clients\":1,\"request-rate\":\"inf\",\"header\":1,"
                              "\"device\":\"auto\",\"block-size\":16,\"max-len\":0,\"dtype\":\"auto\","
                              "\"memory-limit\":1073741824,\"seed\":0,\"color\":\"red\",\"sampling\":\"round_robin\"}");
    cJSON_free(text);
    cJSON_Delete(v);
    km_options_free(b.groups, 2);
    km_free(pos.v);
}

static void help_states_the_defaults(void **state)
{
    (void)state;
    struct both b;
    struct km_buf out = {0};
    set_up(&b);
    km_args_help(b.groups, 1, 60, &out);
    assert_string_equal(km_buf_str(&out), "      --early-stop                stop early (default on;\n"
                                          "                                  --no-early-stop)\n"
                                          "  -p, --num-clients N             clients (default 1)\n"
                                          "      --request-rate R            requests per second\n"
                                          "                                  (default 0.5)\n"
                                          "      --header K=V                a header\n"
                                          "      --device auto|cpu|cuda      a device (default auto)\n");
    km_buf_clear(&out);
    km_args_help(b.groups, 2, 60, &out);
    assert_non_null(strstr(km_buf_str(&out), "\n\nPool:\n      --block-size N"));
    assert_non_null(strstr(km_buf_str(&out), "\n      --sampling round_robin|random\n"
                                             "                                  an order (default\n"));
    assert_null(strstr(km_buf_str(&out), "queue"));
    km_buf_clear(&out);
    km_args_man(b.groups, 1, &out);
    assert_non_null(strstr(km_buf_str(&out), ".TP\n.B \\-p, \\-\\-num\\-clients \\fIN\\fR\nclients (default 1)\n"));
    km_buf_free(&out);
}

static void text_is_wrapped(void **state)
{
    (void)state;
    struct km_buf out = {0};
    km_args_wrap(&out, "one two  three\nfour\n\nfive sixsixsix", 2, 10);
    assert_string_equal(km_buf_str(&out), "one two\n  three\n  four\n\n  five\n  sixsixsix");
    km_buf_clear(&out);
    km_args_roff(&out, "a-b\\c\n.d\n\n'e");
    assert_string_equal(km_buf_str(&out), "a\\-b\\ec\n\\&.d\n.PP\n\\&'e");
    km_buf_free(&out);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(defaults_come_from_the_rows),
        cmocka_unit_test(command_lines_fill_the_fields),
        cmocka_unit_test(bad_command_lines_say_what_is_right),
        cmocka_unit_test(structs_filled_by_hand_are_checked),
        cmocka_unit_test(other_readers_set_rows_by_name),
        cmocka_unit_test(options_become_json),
        cmocka_unit_test(help_states_the_defaults),
        cmocka_unit_test(text_is_wrapped),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
