/* The figures of the write-up, formatted by this code, give the tables of the write-up byte for byte. */
#include "base/test/test.h"

#include "base/file.h"
#include "base/mem.h"
#include "harness/report/table.h"
#include "harness/run/summary.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

static const char *const with_without[] = {"Without LMCache", "With LMCache"};

static void put(struct km_buf *out, enum suite_shape shape, const char *head, const struct table_column *cols,
                int n_cols, const char *const *labels, int n_rows, int base, const double *v)
{
    struct table t = {shape, head, cols, n_cols, labels, n_rows, base, v, NULL};
    struct table_grid g;
    assert_int_equal(table_to_grid(&g, &t, NULL), 0);
    if (out->len)
        km_buf_puts(out, "\n");
    table_grid_md(&g, out);
    table_grid_free(&g);
}

static void put_metrics(struct km_buf *out, const double *v)
{
    static const struct table_column cols[] = {{"Output TPS", 2, true, false},
                                               {"Total TPS", 2, true, false},
                                               {"Mean TTFT (ms)", 2, true, false},
                                               {"Mean TPOT (ms)", 2, true, false}};
    put(out, SUITE_METRICS, "Metric", cols, 4, with_without, 2, 0, v);
}

/* All tables in the order of the write-up. ttft_change: with the change of mean TTFT in the third table, which the
 * write-up leaves out. */
static void write_up(struct km_buf *out, bool ttft_change)
{
    static const struct table_column cols5[] = {{"Input TPS", 0, true, false},
                                                {"Total TPS", 0, false, false},
                                                {"Mean TTFT (ms)", 2, true, false},
                                                {"Mean TPOT (ms)", 2, true, false}};
    static const struct table_column cols20[] = {{"Input TPS", 2, true, false},
                                                 {"Total TPS", 2, false, false},
                                                 {"Mean TTFT (ms)", 2, true, false},
                                                 {"Mean TPOT (ms)", 2, true, false}};
    const struct table_column cols1[] = {
        {"Input TPS", 1, true, false}, {"Total TPS", 1, false, false}, {"Mean TTFT (ms)", 2, ttft_change, false}};
    static const struct table_column chunks[] = {
        {"Input TPS", 1, false, false}, {"Performance Gain", 1, false, true}, {"Mean TTFT (ms)", 2, false, false}};
    static const struct table_column backends[] = {{"Cache miss", 3, false, false}, {"Cache hit", 3, false, false}};
    static const char *const sizes[] = {"none", "64", "256", "1024"};
    static const char *const names[] = {"lmcache_server", "Redis", "Mooncake (TCP)"};
    put(out, SUITE_CONFIGURATIONS, "Configuration", cols5, 4, with_without, 2, 0,
        (double[]){5849, 5957, 4350.48, 48.47, 9426, 9592, 2646.09, 30.60});
    put(out, SUITE_CONFIGURATIONS, "Configuration", cols20, 4, with_without, 2, 0,
        (double[]){4312.17, 4335.71, 5070.52, 33.91, 7750.60, 7792.92, 2091.00, 25.83});
    put(out, SUITE_CONFIGURATIONS, "Configuration", cols1, 3, with_without, 2, 0,
        (double[]){7443.2, 7443.6, 4658.66, 33887.9, 33889.8, 980.87});
    put(out, SUITE_CHUNKS, "Chunk Size", chunks, 3, sizes, 4, 0,
        (double[]){7443.2, 7443.2, 4658.66, 33820.3, 33820.3, 985.28, 33887.9, 33887.9, 980.87, 31634.0, 31634.0,
                   1055.69});
    put_metrics(out, (double[]){579.86, 5212.32, 8886.36, 42.08, 561.44, 5046.72, 9242.72, 43.47});
    put_metrics(out, (double[]){77.87, 5060.79, 80610.70, 43.33, 66.77, 4338.96, 92682.22, 42.27});
    put_metrics(out, (double[]){22.97, 3698.09, 277456.13, 31.68, 21.77, 3504.41, 292811.62, 32.80});
    put_metrics(out, (double[]){5954.33, 53589.01, 3052.08, 38.40, 5752.71, 51802.45, 3247.10, 39.04});
    put_metrics(out, (double[]){3676.71, 238986.41, 5060.41, 54.37, 3656.30, 237659.44, 5326.37, 53.86});
    put_metrics(out, (double[]){2213.12, 356312.70, 9649.76, 87.10, 1972.32, 317543.74, 10109.51, 94.26});
    put(out, SUITE_BACKENDS, "Backend", backends, 2, names, 3, -1,
        (double[]){0.739, 0.324, 0.746, 0.388, 0.759, 0.362});
}

/* Lines in which the write-up's own rounding is off by one in the last digit: as printed, and as its figures give. */
static const char *const slips[][2] = {
    {"| Output TPS | 5954.33 | 5752.71 | -3.3% |", "| Output TPS | 5954.33 | 5752.71 | -3.4% |"},
    {"| Mean TPOT (ms) | 54.37 | 53.86 | -1.0% |", "| Mean TPOT (ms) | 54.37 | 53.86 | -0.9% |"},
};

/* Fails unless our text is the golden one, except for the known slips, each of which must occur once. */
static void assert_tables(const char *ours, const char *golden)
{
    int used[2] = {0, 0};
    while (*ours || *golden) {
        size_t n = strcspn(ours, "\n"), m = strcspn(golden, "\n");
        bool same = n == m && !strncmp(ours, golden, n);
        for (int i = 0; i < 2 && !same; i++)
            if (strlen(slips[i][0]) == m && !strncmp(golden, slips[i][0], m) && strlen(slips[i][1]) == n &&
                !strncmp(ours, slips[i][1], n))
                same = true, used[i]++;
        if (!same)
            fail_msg("ours:   %.*s\ngolden: %.*s", (int)n, ours, (int)m, golden);
        ours += n + (ours[n] == '\n');
        golden += m + (golden[m] == '\n');
    }
    assert_int_equal(used[0], 1);
    assert_int_equal(used[1], 1);
}

static void the_write_up(void **state)
{
    (void)state;
    struct km_buf ours = {0}, golden = {0};
    assert_int_equal(km_file_read(KVM_SOURCE_DIR "/harness/report/test/golden-tables.md", 0, &golden, NULL), 0);
    write_up(&ours, false);
    assert_tables(ours.data, golden.data);
    /* The change that the write-up leaves out follows from its own figures. */
    km_buf_clear(&ours);
    write_up(&ours, true);
    assert_non_null(strstr(ours.data, "| With LMCache | 33887.9 (+355.3%) | 33889.8 | 980.87 (-78.9%) |\n"));
    km_buf_free(&ours);
    km_buf_free(&golden);
}

static void assert_number(double v, int decimals, const char *want)
{
    struct km_buf b = {0};
    table_put_number(&b, v, decimals);
    assert_string_equal(b.data, want);
    km_buf_free(&b);
}

static void assert_change(double a, double b, const char *want)
{
    struct km_buf t = {0};
    table_put_change(&t, a, b);
    assert_string_equal(t.data, want);
    km_buf_free(&t);
}

static void rounding(void **state)
{
    (void)state;
    assert_number(0.125, 2, "0.13"); /* printf would say 0.12 */
    assert_number(-0.125, 2, "-0.13");
    assert_number(2.5, 0, "3");
    assert_number(1.115, 2, "1.12"); /* the decimal number is rounded, not the double next to it */
    assert_number(-0.001, 2, "0.00");
    assert_number(1e17, 2, "100000000000000000.00");
    assert_number(NAN, 2, "n/a");
    assert_number(INFINITY, 2, "n/a");
    assert_change(1000, 1000.4, "+0.0%");
    assert_change(1000, 999.6, "+0.0%"); /* no minus before a zero */
    assert_change(1000, 1002.5, "+0.3%");
    assert_change(1000, 997.5, "-0.3%");
    assert_change(0, 5, "n/a");
    assert_change(5, NAN, "n/a");
    assert_change(4, 1, "-75.0%");
}

static void missing_figures_and_odd_labels(void **state)
{
    (void)state;
    static const struct table_column cols[] = {{"Input TPS", 1, true, false}};
    static const char *const labels[] = {"base", "a|b\nc", "no \"base\" < x"};
    const double v[] = {NAN, 5, 6};
    const bool unsure[] = {false, true, false};
    struct table t = {SUITE_CONFIGURATIONS, "Configuration", cols, 1, labels, 3, 0, v, unsure};
    struct table_grid g;
    struct km_buf b = {0};
    assert_int_equal(table_to_grid(&g, &t, NULL), 0);
    table_grid_md(&g, &b);
    assert_string_equal(b.data, "| Configuration | Input TPS |\n|---|---|\n| base | n/a |\n| a\\|b c | 5.0 "
                                "|\n| no \"base\" < x | 6.0 |\n");
    km_buf_clear(&b);
    table_grid_csv(&g, &b);
    assert_string_equal(b.data, "Configuration,Input TPS\nbase,n/a\n\"a|b\nc\",5.0\n\"no \"\"base\"\" < x\",6.0\n");
    km_buf_clear(&b);
    table_grid_html(&g, &b);
    assert_non_null(strstr(b.data, "<th scope=\"row\">no &quot;base&quot; &lt; x</th><td>6.0</td>"));
    assert_non_null(strstr(b.data, "<td class=\"dim\">5.0</td>"));
    table_grid_free(&g);
    km_buf_free(&b);
}

static void metrics_by_name(void **state)
{
    (void)state;
    struct km_err err = {0};
    struct hz_summary s = {.input_tps = 11, .ttft_ms = {.mean = 22, .p90 = 33}, .hit_rate = 0.5};
    assert_true(hz_metric_value(hz_metric_find("input_tps", NULL), &s) == 11);
    assert_true(hz_metric_value(hz_metric_find("ttft_ms.mean", NULL), &s) == 22);
    assert_true(hz_metric_value(hz_metric_find("ttft_ms.p90", NULL), &s) == 33);
    assert_true(hz_metric_value(hz_metric_find("hit_rate", NULL), &s) == 0.5);
    assert_null(hz_metric_find("ttft_ms.meen", &err));
    assert_string_equal(err.msg, "there is no figure \"ttft_ms.meen\"; did you mean ttft_ms.mean?");
    /* Every key is the path of a number in run.json's summary. */
    cJSON *v = hz_summary_json(&s);
    for (int i = 0; hz_metric_at(i); i++) {
        char key[64];
        snprintf(key, sizeof key, "%s", hz_metric_at(i)->key);
        char *dot = strchr(key, '.');
        if (dot)
            *dot++ = 0;
        const cJSON *at = cJSON_GetObjectItemCaseSensitive(v, key);
        if (dot)
            at = cJSON_GetObjectItemCaseSensitive(at, dot);
        if (!at)
            fail_msg("run.json has no %s", hz_metric_at(i)->key);
    }
    cJSON_Delete(v);
}

static void allocation_failures(void **state)
{
    (void)state;
    static const struct table_column cols[] = {{"Input TPS", 1, true, false}};
    static const char *const labels[] = {"a", "b"};
    struct table t = {SUITE_METRICS, "Metric", cols, 1, labels, 2, 0, (double[]){1, 2}, NULL};
    int failed = 0;
    for (long n = 1; n < 100; n++) {
        struct table_grid g;
        struct km_err err = {0};
        km_mem_fail_at(n);
        int rc = table_to_grid(&g, &t, &err);
        km_mem_fail_at(0);
        if (!rc) {
            table_grid_free(&g);
            break;
        }
        assert_int_equal(rc, KM_ENOMEM);
        failed++;
    }
    assert_true(failed > 3 && failed < 99);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_write_up),
        cmocka_unit_test(rounding),
        cmocka_unit_test(missing_figures_and_odd_labels),
        cmocka_unit_test(metrics_by_name),
        cmocka_unit_test(allocation_failures),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
