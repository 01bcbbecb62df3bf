/* The YAML file and the specification of tiers: what is accepted, and the errors for what is not. */
#include "base/test/test.h"

#include "base/file.h"
#include "base/mem.h"
#include "kvcache/kvcache.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define GIB ((int64_t)1 << 30)

static char path[64];

static int read_bytes(const char *text, size_t n, struct kvc_config *c, struct km_buf *w, struct km_err *err)
{
    assert_int_equal(km_file_write(path, text, n, NULL), 0);
    *c = kvc_defaults();
    km_buf_clear(w);
    *err = (struct km_err){0};
    return kvc_config_yaml(path, c, w, err);
}

static void good_files_are_read(void **state)
{
    (void)state;
    static const struct {
        const char *text, *described, *warns;
    } t[] = {
        /* the file of the write-up that kvmark reproduces */
        {"chunk_size: 256\nlocal_cpu: true\nmax_local_cpu_size: 50\n", "dram=50GiB, chunk 256", ""},
        {"# 256 tokens\nchunk_size: 256\nlocal_cpu: True\nmax_local_cpu_size: 5.0 # GB\n", "dram=5GiB, chunk 256", ""},
        {"", "dram=5GiB, chunk 256", ""},
        {"---\n~\n...\n", "dram=5GiB, chunk 256", ""},
        {"{chunk_size: 64, max_local_cpu_size: 0.5}", "dram=512MiB, chunk 64", ""},
        {"chunk_size: \"64\"\nlocal_cpu: 'yes'\n", "dram=5GiB, chunk 64", ""},
        {"chunk_size: &n 64\nmax_local_cpu_size: *n\n", "dram=64GiB, chunk 64", ""},
        {"chunk_size: ~\nlocal_cpu:\nmax_local_cpu_size: null\ncache_policy: ~\n", "dram=5GiB, chunk 256", ""},
        {"cache_policy: FIFO\nsave_decode_cache: on\n", "dram=5GiB, chunk 256, FIFO, decode kept", ""},
        {"cache_policy: lru\nsave_decode_cache: NO\nsave_unfull_chunk: false\n", "dram=5GiB, chunk 256", ""},
        {"save_unfull_chunk: true\n", "dram=5GiB, chunk 256, partial chunks kept", ""},
        {"chunk_size: 16\n", "dram=5GiB, chunk 16", ""},
        {"chunk_size: 4096\n", "dram=5GiB, chunk 4096", ""},
        {"local_cpu: false\n", "no tier, chunk 256", "local_cpu: false leaves no tier, so nothing is cached\n"},
        {"local_cpu: 0\nmax_local_cpu_size: 0\n", "no tier, chunk 256",
         "local_cpu: false leaves no tier, so nothing is cached\n"},
        {"numa_mode: \"auto\"\nextra_config: {a: [1, {b: 2}]}\nblend_thresholds: [1]\n", "dram=5GiB, chunk 256",
         "not supported yet: numa_mode\nnot supported yet: extra_config\nnot supported yet: blend_thresholds\n"},
        {"internal_api_server_port_start: 6999\nnixl_role: sender\nchunk_statistics_auto: 1\n", "dram=5GiB, chunk 256",
         "not supported yet: internal_api_server_port_start\nnot supported yet: nixl_role\n"
         "not supported yet: chunk_statistics_auto\n"}};
    struct kvc_config c;
    struct km_buf w = {0}, d = {0};
    struct km_err err;
    for (size_t i = 0; i < sizeof t / sizeof *t; i++) {
        if (read_bytes(t[i].text, strlen(t[i].text), &c, &w, &err))
            fail_msg("row %zu: %s", i, err.msg);
        km_buf_clear(&d);
        kvc_describe(&c, &d);
        assert_string_equal(km_buf_str(&d), t[i].described);
        assert_string_equal(km_buf_str(&w), t[i].warns);
    }
    km_buf_free(&w);
    km_buf_free(&d);
}

static void bad_files_are_refused(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        int line;
        const char *says;
    } t[] = {
        {"chunk_size: 0\n", 1, "chunk_size is 0"},
        {"\nchunk_size: -256\n", 2, "chunk_size is -256"},
        {"chunk_size: 1.5\n", 1, "whole number"},
        {"chunk_size: 9999999999\n", 1, "whole number"},
        {"chunk_size: 1e400\n", 1, "must be a number"},
        {"chunk_size: lots\n", 1, "chunk_size is \"lots\"; it must be a number"},
        {"chunk_size: 0x10\n", 1, "must be a number"},
        {"chunk_size: [256]\n", 1, "is a list"},
        {"local_cpu: true\nchunk_size: {a: 1}\n", 2, "is a mapping"},
        {"chunk_size: \"2\\056\\0\"\n", 1, "NUL"},
        {"chunk_size: 256 512\n", 1, "must be a number"},
        {"max_local_cpu_size: -1\n", 1, "between 0 and"},
        {"max_local_cpu_size: .inf\n", 1, "must be a number"},
        {"max_local_cpu_size: nan\n", 1, "must be a number"},
        {"max_local_cpu_size: 5GB\n", 1, "must be a number"},
        {"max_local_cpu_size: 1e300\n", 1, "between 0 and"},
        {"max_local_cpu_size: 0\n", 0, "set local_cpu: false"},
        {"local_cpu: maybe\n", 1, "local_cpu is \"maybe\"; it must be true or false"},
        {"local_cpu: 2\n", 1, "true or false"},
        {"save_decode_cache: 0.0\n", 1, "true or false"},
        {"save_unfull_chunk: perhaps\n", 1, "true or false"},
        {"cache_policy: LFU\n", 1, "cache_policy is \"LFU\"; this version has LRU and FIFO"},
        {"cache_policy: MRU\n", 1, "\"MRU\"; this version has LRU and FIFO"},
        {"chunk_size: 256\n\nchunk_sise: 64\n", 3, "did you mean \"chunk_size\"?"},
        {"max_local_cpu: 5\n", 1, "unknown key \"max_local_cpu\""},
        {"remote_uri: x\n", 1, "did you mean \"remote_url\"?"},
        {"qwertyuiop: 1\n", 1, "LMCache has no such key"},
        {"chunk_size: 64\nlocal_cpu: true\nchunk_size: 256\n", 3, "twice (first in line 1)"},
        {"? [a]\n: 1\n", 1, "not a plain word"},
        {"- chunk_size\n", 1, "name: value"},
        {"hello\n", 1, "name: value"},
        {"chunk_size: 256\n---\nchunk_size: 64\n", 3, "second document"},
        {"chunk_size: [\n", 2, "not YAML"},
        {"chunk_size: 256\n\tlocal_cpu: true\n", 0, "not YAML"},
        {"chunk_size: *nowhere\n", 1, "not YAML"},
        {"chunk_size: \"\xff\"\n", 1, "not YAML"}};
    struct kvc_config c, def = kvc_defaults();
    struct km_buf w = {0};
    struct km_err err;
    char line[32];
    for (size_t i = 0; i < sizeof t / sizeof *t; i++) {
        if (!read_bytes(t[i].text, strlen(t[i].text), &c, &w, &err))
            fail_msg("row %zu was accepted: %s", i, t[i].text);
        snprintf(line, sizeof line, ", line %d: ", t[i].line);
        if (!strstr(err.msg, t[i].says) || !strstr(err.msg, path) || (t[i].line && !strstr(err.msg, line)))
            fail_msg("row %zu: %s", i, err.msg);
        assert_int_equal(c.chunk_size, def.chunk_size); /* a file with an error changes nothing */
        assert_int_equal(c.local_cpu, def.local_cpu);
    }
    assert_int_equal(kvc_config_yaml("/nonexistent/x.yaml", &c, &w, &err), KM_ENOENT);
    size_t n = 1 << 21;
    char *big = malloc(n);
    memset(big, '\n', n);
    assert_true(read_bytes(big, n, &c, &w, &err) < 0);
    n = 100000;
    memset(big, '[', n); /* in a key that is not served, too */
    memcpy(big, "extra_config: ", 14);
    assert_true(read_bytes(big, n, &c, &w, &err) < 0);
    free(big);
    km_buf_free(&w);
}

static void specifications_are_read(void **state)
{
    (void)state;
    struct kvc_config c = kvc_defaults();
    struct km_err err;
    bool off = true;
    assert_int_equal(kvc_config_spec("dram=50GiB", &c, &off, &err), 0);
    assert_false(off);
    assert_int_equal(c.max_local_cpu, 50 * GIB);
    c.local_cpu = false;
    assert_int_equal(kvc_config_spec("dram=512MiB", &c, &off, &err), 0);
    assert_true(c.local_cpu);
    assert_int_equal(c.max_local_cpu, GIB / 2);
    assert_int_equal(kvc_config_spec("none", &c, &off, &err), 0);
    assert_true(off);
    static const char *const bad[][2] = {{"", "not a cache tier"},
                                         {"dram", "not a cache tier"},
                                         {"dram=", "is not a size"},
                                         {"dram=0", "leaves no memory"},
                                         {"dram=-5GiB", "is not a size"},
                                         {"dram=5GiB,", "not a cache tier"},
                                         {"dram=5GiB,dram=6GiB", "twice"},
                                         {"none,dram=5GiB", "not a cache tier"},
                                         {"ram=5GiB", "not a cache tier"},
                                         {"DRAM=5GiB", "or a list of: dram=SIZE"},
                                         {"tape=/dev/st0", "or a list of: dram=SIZE"},
                                         {"dram=5GiB,tape=/dev/st0", "\"tape=/dev/st0\" is not a cache tier"}};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        c = kvc_defaults();
        assert_int_equal(kvc_config_spec(bad[i][0], &c, &off, &err), KM_EINVAL);
        if (!strstr(err.msg, bad[i][1]))
            fail_msg("\"%s\": %s", bad[i][0], err.msg);
        assert_int_equal(c.max_local_cpu, 5 * GIB);
    }
}

/* What every registered tier must keep for the code that reads configurations. */
static void registered_tiers_can_be_named(void **state)
{
    (void)state;
    const struct kvc_tier_ops *t;
    struct kvc_config c;
    struct km_buf text = {0}, w = {0};
    struct km_err err;
    char line[128], message[256];
    int n = 0;
    for (; (t = kvc_tier_at(n)); n++) {
        assert_true(!strncmp(t->usage, t->scheme, strlen(t->scheme)));
        for (int i = 0; i < n; i++) { /* no scheme may hide another one */
            const char *other = kvc_tier_at(i)->scheme;
            size_t len = strlen(other) < strlen(t->scheme) ? strlen(other) : strlen(t->scheme);
            assert_int_not_equal(strncmp(other, t->scheme, len), 0);
        }
        km_buf_clear(&text);
        kvc_config_usage(&text);
        assert_non_null(strstr(km_buf_str(&text), t->usage));
        /* A key of the tier is served: a null value is accepted without a warning, and a list is refused by name. */
        for (int k = 0; k < t->n_keys; k++) {
            snprintf(line, sizeof line, "%s: null\n", t->keys[k].key);
            if (read_bytes(line, strlen(line), &c, &w, &err) || w.len || c.n_tiers)
                fail_msg("%s: %s%s", line, err.msg, km_buf_str(&w));
            snprintf(line, sizeof line, "%s: [1]\n", t->keys[k].key);
            snprintf(message, sizeof message, "%s is a list; it must be one plain value", t->keys[k].key);
            assert_int_equal(read_bytes(line, strlen(line), &c, &w, &err), KM_EINVAL);
            assert_non_null(strstr(err.msg, message));
        }
    }
    assert_true(n <= KVC_TIERS_MOST);
    km_buf_free(&text);
    km_buf_free(&w);
}

static void failed_allocations_change_nothing(void **state)
{
    (void)state;
    static const char text[] = "chunk_size: 64\nnuma_mode: x\n";
    assert_int_equal(km_file_write(path, text, sizeof text - 1, NULL), 0);
    int64_t before = km_mem_stats(KM_MEM_HOST).current;
    int rc = -1;
    for (long n = 1; rc; n++) {
        struct kvc_config c = kvc_defaults();
        struct km_buf w = {0};
        struct km_err err;
        km_mem_fail_at(n);
        rc = kvc_config_yaml(path, &c, &w, &err);
        km_mem_fail_at(0);
        assert_true(!rc || rc == KM_ENOMEM);
        assert_int_equal(c.chunk_size, rc ? 256 : 64);
        km_buf_free(&w);
        assert_int_equal(km_mem_stats(KM_MEM_HOST).current, before);
    }
}

static int setup(void **state)
{
    (void)state;
    snprintf(path, sizeof path, "/tmp/kvc_config_test.%d.yaml", (int)getpid());
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    return unlink(path);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(good_files_are_read),
        cmocka_unit_test(bad_files_are_refused),
        cmocka_unit_test(specifications_are_read),
        cmocka_unit_test(registered_tiers_can_be_named),
        cmocka_unit_test(failed_allocations_change_nothing),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
