/* The base library: buffers, UTF-8, random numbers, sorting, JSON, files, hashes and failing allocations. */
#include "base/test/test.h"

#include "base/buf.h"
#include "base/file.h"
#include "base/hash.h"
#include "base/json.h"
#include "base/mem.h"
#include "base/random.h"
#include "base/sort.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void buffers_grow_and_escape(void **state)
{
    (void)state;
    struct km_buf b = {0};
    for (int i = 0; i < 1000; i++)
        km_buf_printf(&b, "%d,", i);
    assert_int_equal(b.len, 3890);
    assert_string_equal(b.data + b.len - 4, "999,");
    km_buf_clear(&b);
    km_buf_put_json(&b, "a\"\\\n\x01\xff\xc3\xa9z", 9);
    assert_string_equal(b.data, "a\\\"\\\\\\n\\u0001\xEF\xBF\xBD\xC3\xA9z");
    km_buf_clear(&b);
    km_buf_put_html(&b, "<a&\">", 5);
    assert_string_equal(b.data, "&lt;a&amp;&quot;&gt;");
    km_buf_clear(&b);
    static const char *const words[] = {"a/b-c:1,2", "two words", "it's", "", "$x"};
    for (size_t i = 0; i < sizeof words / sizeof *words; i++) {
        km_buf_puts(&b, i ? " " : "");
        km_buf_put_shell(&b, words[i]);
    }
    assert_string_equal(b.data, "a/b-c:1,2 'two words' 'it'\\''s' '' '$x'");
    km_buf_free(&b);
}

static void sizes_are_readable(void **state)
{
    (void)state;
    static const struct {
        int64_t bytes;
        const char *text;
    } t[] = {{0, "0 B"},          {1023, "1023 B"},       {20 << 20, "20 MiB"}, {32749125632, "30.5 GiB"},
             {-1536, "-1.5 KiB"}, {INT64_MAX, "8192 PiB"}};
    for (size_t i = 0; i < sizeof t / sizeof *t; i++)
        assert_string_equal(km_size_text(t[i].bytes).s, t[i].text);
}

static void utf8_lengths(void **state)
{
    (void)state;
    static const struct {
        const char *s;
        int len, need;
    } t[] = {{"a", 1, 0},
             {"\xC3\xA9", 2, 0},
             {"\xE2\x82\xAC", 3, 0},
             {"\xF0\x9F\x98\x80", 4, 0},
             {"\xF0\x9F\x98", 0, 1},
             {"\xE2", 0, 2},
             {"\xC0\x80", 0, 0},         /* overlong */
             {"\xED\xA0\x80", 0, 0},     /* surrogate */
             {"\xF4\x90\x80\x80", 0, 0}, /* past the last code point */
             {"\x80", 0, 0}};
    for (size_t i = 0; i < sizeof t / sizeof *t; i++) {
        int need;
        assert_int_equal(km_utf8_len(t[i].s, strlen(t[i].s), &need), t[i].len);
        assert_int_equal(need, t[i].need);
    }
}

/* The reference sequence of SplitMix64 from seed 0, and the same numbers by index. */
static void random_numbers_are_splitmix64(void **state)
{
    (void)state;
    static const uint64_t want[] = {0xE220A8397B1DCDAFu, 0x6E789E6AA1B965F4u, 0x06C45D188009454Fu, 0xF88BB8A8724C81ECu};
    uint64_t s = 0;
    for (uint64_t i = 0; i < 4; i++) {
        assert_true(km_random_next(&s) == want[i]);
        assert_true(km_random_at(0, i + 1) == want[i]);
    }
    s = 0;
    assert_int_equal(km_random_below(&s, 1000), 883); /* 0xE220A839... / 2^64 = 0.88331 */
    for (int i = 0; i < 10000; i++) {
        uint64_t before = s;
        uint32_t n = (uint32_t)i * 429497u + 1, r = km_random_below(&s, n);
        assert_true(r == (uint32_t)((unsigned __int128)km_random_next(&before) * n >> 64));
    }
}

static void sorted_values_and_percentiles(void **state)
{
    (void)state;
    double v[] = {3, -1, INFINITY, 2, 2};
    km_sort_doubles(v, 5);
    assert_true(v[0] == -1 && v[1] == 2 && v[2] == 2 && v[3] == 3 && v[4] == INFINITY);
    const char *s[] = {"b", "", "ab"};
    km_sort_strings(s, 3);
    assert_string_equal(s[0], "");
    assert_string_equal(s[2], "b");
    km_sort_doubles(NULL, 0);
    assert_true(km_percentile(v, 4, 0) == -1 && km_percentile(v, 4, 1) == 3 && km_percentile(v, 4, 0.75) == 2.25);
    assert_true(km_percentile(v, 1, 0.99) == -1 && isnan(km_percentile(v, 0, 0.5)));
}

static void json_is_checked(void **state)
{
    (void)state;
    struct km_err err;
    cJSON *v;
    static const char *const bad[] = {"{\"a\":1", "{} x", "\"\xff\"", "", "[1,]", "\"\x01\""};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        assert_int_equal(km_json_parse(bad[i], strlen(bad[i]), &v, &err), KM_EFORMAT);
    char deep[2 * 65 + 1];
    memset(deep, '[', 65);
    memset(deep + 65, ']', 65);
    deep[130] = 0;
    assert_int_equal(km_json_parse(deep, 130, &v, &err), KM_EFORMAT);
    assert_non_null(strstr(err.msg, "deeper than 64"));
    assert_int_equal(km_json_parse(deep + 1, 128, &v, &err), 0);
    cJSON_Delete(v);

    /* A NUL survives; an escaped backslash before u0000 is not one. */
    const char *nul = "[\"a\\u0000b\\\\u0000\"]";
    assert_int_equal(km_json_parse(nul, strlen(nul), &v, &err), 0);
    const char *inside = v->child->valuestring;
    assert_string_equal(inside, "a\xC0\x80"
                                "b\\u0000");
    struct km_buf tmp = {0};
    size_t len = strlen(inside);
    const char *whole = km_json_nuls(inside, &len, &tmp);
    assert_int_equal(len, 9);
    assert_memory_equal(whole, "a\0b\\u0000", 9);
    km_buf_free(&tmp);
    cJSON_Delete(v);

    const char *text = "{\"s\":\"x\",\"i\":7,\"f\":1.5,\"b\":true,\"n\":null}";
    assert_int_equal(km_json_parse(text, strlen(text), &v, &err), 0);
    int64_t i = 3;
    double f = 0;
    bool b = false;
    const char *s = NULL;
    assert_int_equal(km_json_int(v, "i", true, 0, 10, &i, &err), 0);
    assert_int_equal(i, 7);
    assert_int_equal(km_json_int(v, "i", true, 8, 10, &i, &err), KM_EINVAL);
    assert_string_equal(err.msg, "\"i\" is 7; it must be between 8 and 10");
    assert_int_equal(km_json_int(v, "f", true, 0, 10, &i, &err), KM_EINVAL);
    assert_int_equal(km_json_int(v, "none", false, 0, 10, &i, &err), 0);
    assert_int_equal(i, 7);
    assert_int_equal(km_json_int(v, "none", true, 0, 10, &i, &err), KM_EINVAL);
    assert_int_equal(km_json_num(v, "f", true, 0, 2, &f, &err), 0);
    assert_int_equal(km_json_bool(v, "b", true, &b, &err), 0);
    assert_true(b && f == 1.5);
    assert_int_equal(km_json_str(v, "s", true, &s, &err), 0);
    assert_string_equal(s, "x");
    assert_int_equal(km_json_str(v, "n", false, &s, &err), 0);
    assert_int_equal(km_json_str(v, "i", true, &s, &err), KM_EINVAL);
    cJSON_Delete(v);
}

static void files_are_whole_or_absent(void **state)
{
    (void)state;
    char dir[] = "/tmp/kvm_base_XXXXXX";
    assert_non_null(mkdtemp(dir));
    char *sub = km_path(dir, "a/b");
    char *path = km_path(sub, "f");
    struct km_err err;
    assert_int_equal(km_mkdirs(sub, &err), 0);
    assert_int_equal(km_file_write(path, "hello", 5, &err), 0);
    struct km_buf b = {0};
    assert_int_equal(km_file_read(path, 0, &b, &err), 0);
    assert_string_equal(b.data, "hello");
    assert_int_equal(km_file_read(path, 4, &b, &err), KM_ELIMIT);
    assert_int_equal(km_file_write("/proc/no/such", "x", 1, &err), KM_EIO);
    assert_int_equal(km_file_read("/proc/no/such", 0, &b, &err), KM_ENOENT);
    struct km_digest d;
    char hex[65];
    assert_int_equal(km_sha_file(path, &d, &err), 0);
    km_hex(&d, hex);
    assert_string_equal(hex, "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824");
    unlink(path);
    rmdir(sub);
    char *mid = km_path(dir, "a");
    rmdir(mid);
    rmdir(dir);
    km_free(mid);
    km_free(sub);
    km_free(path);
    km_buf_free(&b);
}

static void memory_is_counted_and_can_fail(void **state)
{
    (void)state;
    int64_t before = km_mem_stats(KM_MEM_HOST).current;
    void *p = km_malloc(1000);
    assert_true(km_mem_stats(KM_MEM_HOST).current >= before + 1000);
    km_free(p);
    assert_int_equal(km_mem_stats(KM_MEM_HOST).current, before);
    km_mem_fail_at(2);
    void *one = km_malloc(1), *two = km_malloc(1), *three = km_malloc(1);
    assert_true(one && !two && three);
    km_free(one);
    km_free(three);
    assert_null(km_reallocarray(NULL, SIZE_MAX / 2, 4));
    km_mem_fail_at(1);
    struct km_buf b = {0};
    km_buf_puts(&b, "x");
    assert_false(km_buf_ok(&b));
    assert_null(km_buf_take(&b));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(buffers_grow_and_escape),
        cmocka_unit_test(utf8_lengths),
        cmocka_unit_test(sizes_are_readable),
        cmocka_unit_test(random_numbers_are_splitmix64),
        cmocka_unit_test(sorted_values_and_percentiles),
        cmocka_unit_test(json_is_checked),
        cmocka_unit_test(files_are_whole_or_absent),
        cmocka_unit_test(memory_is_counted_and_can_fail),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
