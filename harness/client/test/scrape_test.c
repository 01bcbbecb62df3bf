/* A server's metrics: Prometheus text in, sums by name out, whatever the server sends and however much of it. */
#include "base/test/test.h"

#include "base/clock.h"
#include "base/mem.h"
#include "harness/client/scrape.h"
#include "mock.h"

#include <stdlib.h>
#include <string.h>

static double value(const cJSON *metrics, const char *name)
{
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(metrics, name);
    assert_non_null(item);
    return item->valuedouble;
}

static cJSON *parse(const char *text)
{
    cJSON *v = scrape_parse(text, strlen(text));
    assert_non_null(v);
    return v;
}

static void values_are_summed_over_labels(void **state)
{
    (void)state;
    cJSON *v = parse("# HELP hits_total Hits.\n# TYPE hits_total counter\nhits_total{tier=\"dram\"} 3\nusage 0.5\n"
                     "hits_total{tier=\"disk} \",x=\"y\"} 4 1700000000\nlatency_bucket{le=\"1\"} 9\nlatency_sum 2.5e0\n"
                     "latency_count 2\nnothing NaN\nendless +Inf\nworded many\nno_value\nlast_total 7");
    assert_int_equal(cJSON_GetArraySize(v), 5);
    assert_string_equal(v->child->string, "hits_total"); /* in the order of the text */
    assert_true(value(v, "hits_total") == 7 && value(v, "usage") == 0.5 && value(v, "latency_sum") == 2.5);
    assert_true(value(v, "latency_count") == 2 && value(v, "last_total") == 7);
    cJSON_Delete(v);
}

static void counters_are_subtracted_and_gauges_are_not(void **state)
{
    (void)state;
    cJSON *before = parse("a_total 2\nb_sum 3\nc_count 4\ngauge 5\ngone_total 1\n");
    cJSON *after = parse("a_total 12\nb_sum 13\nc_count 14\ngauge 15\nnew_total 16\n");
    cJSON *v = scrape_difference(before, after);
    assert_int_equal(cJSON_GetArraySize(v), 5);
    assert_true(value(v, "a_total") == 10 && value(v, "b_sum") == 10 && value(v, "c_count") == 10);
    assert_true(value(v, "gauge") == 15 && value(v, "new_total") == 16);
    cJSON_Delete(v);
    v = scrape_difference(NULL, after);
    assert_true(value(v, "a_total") == 12);
    cJSON_Delete(v);
    assert_null(scrape_difference(before, NULL));
    cJSON_Delete(before);
    cJSON_Delete(after);
}

static void tiers_are_kept_apart(void **state)
{
    (void)state;
    static const char then[] = "kvmark_cache_tier_hits_total{model_name=\"m\",tier=\"dram\"} 3\n"
                               "kvmark_cache_tier_hits_total{model_name=\"m\",tier=\"disk\"} 4\n"
                               "kvmark_cache_tier_bytes{tier=\"dram\",model_name=\"m\"} 9\n"
                               "kvmark_cache_hits_total{model_name=\"m\"} 7\nhits_total{tier=\"dram\"} 8\n"
                               "kvmark_cache_tier_hits_total{model_name=\"m\"} 1\n"
                               "kvmark_cache_tier_hits_total{tier=\"\"} 1\nkvmark_cache_tier_x{tier=\"a} 2\n";
    static const char now[] = "kvmark_cache_tier_hits_total{model_name=\"m\",tier=\"dram\"} 13\n"
                              "kvmark_cache_tier_bytes{tier=\"dram\",model_name=\"m\"} 5\n"
                              "kvmark_cache_tier_hits_total{model_name=\"m\",tier=\"new\"} 2\n";
    cJSON *before = scrape_tiers(then, sizeof then - 1), *after = scrape_tiers(now, sizeof now - 1);
    assert_int_equal(cJSON_GetArraySize(before), 3); /* dram, disk, and the tier of the damaged label */
    assert_int_equal(cJSON_GetArraySize(after), 2);
    const cJSON *dram = cJSON_GetObjectItemCaseSensitive(before, "dram");
    assert_true(cJSON_GetArraySize(dram) == 2 && value(dram, "hits_total") == 3 && value(dram, "bytes") == 9);
    cJSON *d = scrape_difference(before, after);
    dram = cJSON_GetObjectItemCaseSensitive(d, "dram");
    assert_true(value(dram, "hits_total") == 10 && value(dram, "bytes") == 5);
    assert_true(value(cJSON_GetObjectItemCaseSensitive(d, "new"), "hits_total") == 2);
    cJSON_Delete(d);
    cJSON_Delete(before);
    cJSON_Delete(after);
}

static void any_answer_of_a_server_is_survived(void **state)
{
    (void)state;
    static const struct {
        const char *body; /* NULL: HTTP 404 */
        int names;        /* -1: no metrics */
    } t[] = {{NULL, -1},         {"", 0},      {"\n", 0}, {"{", 0},   {"}", 0},  {" ", 0},
             {"{} 1\n", 0},      {"a{ 1", 0},  {"a}", 0}, {"a{}", 0}, {"a ", 0}, {"\r\n\r\na 1\r\n", 1},
             {"a{}1\nb{} 2", 2}, {"<html>", 0}};
    for (size_t i = 0; i < sizeof t / sizeof *t; i++) {
        struct mock *m = mock_start(&(struct mock_opts){.metrics = t[i].body});
        struct target target = {.url = mock_url(m)};
        cJSON *v = scrape_metrics(&target, NULL);
        if ((v ? cJSON_GetArraySize(v) : -1) != t[i].names)
            fail_msg("\"%s\" has %d metrics, not %d", t[i].body, cJSON_GetArraySize(v), t[i].names);
        cJSON_Delete(v);
        mock_stop(m);
    }
    static const char with_nul[] = "a 1\n\0 2\nb 3\n";
    cJSON *v = scrape_parse(with_nul, sizeof with_nul - 1);
    assert_true(value(v, "a") == 1 && value(v, "b") == 3);
    cJSON_Delete(v);

    unsigned seed = 3;
    for (int i = 0; i < 2000; i++) {
        size_t n = (seed = seed * 1103515245 + 12345) >> 8 & 63;
        char *copy = malloc(n ? n : 1); /* of the exact size, so that the sanitizer sees a read beyond it */
        for (size_t k = 0; k < n; k++)
            copy[k] = "a{}\" \n#=1"[(seed = seed * 1103515245 + 12345) >> 16 & 7];
        cJSON_Delete(scrape_parse(copy, n));
        cJSON_Delete(scrape_tiers(copy, n));
        free(copy);
    }
}

static void long_lines_are_left_out(void **state)
{
    (void)state;
    struct km_buf b = {0};
    for (int extra = 0; extra < 2; extra++) { /* a line of SCRAPE_MAX_LINE bytes, and one of a byte more */
        km_buf_printf(&b, "name_%d{label=\"", extra);
        for (int i = 0; i < SCRAPE_MAX_LINE - 18 + extra; i++)
            km_buf_putc(&b, 'x');
        km_buf_puts(&b, "\"} 1\n");
    }
    km_buf_puts(&b, "after 2");
    cJSON *v = scrape_parse(b.data, b.len);
    assert_int_equal(cJSON_GetArraySize(v), 2);
    assert_true(value(v, "name_0") == 1 && value(v, "after") == 2);
    cJSON_Delete(v);
    km_buf_free(&b);
}

static void many_names_take_linear_time(void **state)
{
    (void)state;
    enum { NAMES = 60000 };
    struct km_buf b = {0};
    for (int pass = 0; pass < 2; pass++)
        for (int i = 0; i < NAMES; i++)
            km_buf_printf(&b, "name_%d_total{pass=\"%d\"} %d\n", i, pass, i);
    int64_t start = km_now_ns();
    cJSON *v = scrape_parse(b.data, b.len), *d = scrape_difference(v, v);
    double s = (double)(km_now_ns() - start) / 1e9;
    print_message("%d lines in %.3f s\n", 2 * NAMES, s);
    assert_true(s < 5); /* a search through all names for each line takes a minute */
    assert_int_equal(cJSON_GetArraySize(v), NAMES);
    int i = 0;
    for (const cJSON *item = v->child; item; item = item->next)
        assert_true(item->valuedouble == 2 * i++);
    for (const cJSON *item = d->child; item; item = item->next)
        assert_true(item->valuedouble == 0);
    cJSON_Delete(v);
    cJSON_Delete(d);
    km_buf_free(&b);
}

static void without_memory_there_are_no_metrics(void **state)
{
    (void)state;
    int64_t before = km_mem_stats(KM_MEM_HOST).current;
    for (long n = 1;; n++) {
        km_mem_fail_at(n);
        cJSON *v = scrape_parse("a 1\nb 2\n", 8);
        km_mem_fail_at(0);
        assert_int_equal(km_mem_stats(KM_MEM_HOST).current, before);
        if (v) {
            assert_int_equal(n, 3); /* the line and the index */
            cJSON_Delete(v);
            return;
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(values_are_summed_over_labels),
        cmocka_unit_test(counters_are_subtracted_and_gauges_are_not),
        cmocka_unit_test(tiers_are_kept_apart),
        cmocka_unit_test(any_answer_of_a_server_is_survived),
        cmocka_unit_test(long_lines_are_left_out),
        cmocka_unit_test(many_names_take_linear_time),
        cmocka_unit_test(without_memory_there_are_no_metrics),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
