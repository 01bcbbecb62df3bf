/* Reports of suites and of single runs. This program takes the place of `kvmark run`. */
#include "base/test/test.h"

#include "base/file.h"
#include "base/log.h"
#include "base/mem.h"
#include "harness/report/plot.h"
#include "harness/report/report.h"
#include "harness/suite/suite.h"
#include "harness/suite/test/fake_run.h"
#include "harness/suite/test/scratch.h"

#include <signal.h>
#include <string.h>

/* tables.md, report.html and the plots of a suite whose second row has a cache layer. */
static void report_of_suite(void **state)
{
    (void)state;
    struct suite *s = scratch_suite(scratch_basic_suite);
    struct suite_opts o = scratch_opts();
    struct suite_result res;
    struct report_result rep;
    struct km_err err = {0};
    o.pairs = 3;
    assert_int_equal(suite_run(s, &o, &res, &err), 0);
    assert_int_equal(report_write(scratch_path("out"), &rep, &err), 0);
    assert_int_equal(rep.runs, 6);
    assert_int_equal(rep.missing, 0);
    assert_non_null(strstr(rep.headline, "With against Without: input tokens per second +"));
    scratch_assert_holds("out/tables.md", "| Configuration | Input TPS | Total TPS | Mean TTFT (ms) | Mean TPOT (ms) "
                                          "|\n|---|---|---|---|---|\n| Without | ");
    scratch_assert_holds("out/tables.md", "Dummy weights");
    scratch_assert_holds("out/tables.md", "built-in text");
    scratch_assert_holds("out/tables.md", "KV pool set to 400 blocks of 16 tokens (6400 tokens of KV)");
    scratch_assert_holds("out/tables.md", "Each cell is the mean of 3 runs");
    /* The layer of the fake holds 310784 of 393516 prompt tokens. */
    scratch_assert_holds("out/tables.md", "| With | 3 | 72 | 0 | 393516 | 310784 | 82732 | 79.0% | 5453.5 | 20.0 |");
    suite_free(s);

    char *html = scratch_read("out/report.html");
    assert_true(strlen(html) < 1000000);
    assert_non_null(strstr(html, "A &lt;suite&gt;"));
    assert_null(strstr(html, "<suite>"));
    assert_null(strstr(html, "src="));
    assert_null(strstr(html, "<link"));
    assert_int_equal(scratch_count(html, "<tr><td>5k/"), 6 * 72);
    if (plot_gnuplot_found()) {
        assert_int_equal(scratch_count(html, "<svg role=\"img\""), 3);
        assert_null(strstr(html, "color=\"black\""));
        scratch_assert_holds("out/plots/5k-ttft-cdf.gp", "array label[2] = ['Without', 'With']");
        scratch_assert_holds("out/plots/5k-ttft-cdf.svg", "<svg");
    } else {
        print_message("no gnuplot here: pictures are not checked\n");
        assert_non_null(strstr(html, "gnuplot is not installed"));
    }
    km_free(html);
}

/* Without gnuplot the report is complete but for the pictures, and the data of the plots is written. */
static void no_gnuplot(void **state)
{
    (void)state;
    struct suite *s = scratch_suite(scratch_basic_suite);
    struct suite_opts o = scratch_opts();
    struct suite_result res;
    struct report_result rep;
    char *path = km_strdup(getenv("PATH"));
    assert_int_equal(suite_run(s, &o, &res, NULL), 0);
    setenv("PATH", "/nowhere", 1);
    int rc = report_write(scratch_path("out"), &rep, NULL);
    setenv("PATH", path, 1);
    km_free(path);
    assert_int_equal(rc, 0);
    assert_true(rep.no_gnuplot);
    scratch_assert_holds("out/report.html", "gnuplot is not installed here");
    scratch_assert_holds("out/plots/5k-ttft-turn.dat", "# Without\n1 ");
    suite_free(s);
}

/* A failed cell: its row is n/a, and a warning says why. */
static void missing_runs(void **state)
{
    (void)state;
    struct suite *s = scratch_suite("{'schema':'kvmark.suite.1','tables':[{'id':'t','workload':'w.json',"
                                    "'rows':[{'label':'A'},{'label':'B','flags':{'fail':true}},"
                                    "{'label':'C','flags':{'kv-cache':'dram'}}]}]}");
    struct suite_opts o = scratch_opts();
    struct suite_result res;
    struct report_result rep;
    assert_int_equal(suite_run(s, &o, &res, NULL), 0);
    assert_int_equal(res.failed, 1);
    assert_int_equal(report_write(scratch_path("out"), &rep, NULL), 0);
    assert_int_equal(rep.missing, 1);
    scratch_assert_holds("out/tables.md", "| B | n/a | n/a | n/a | n/a |");
    scratch_assert_holds("out/tables.md", "- B: 1 of 1 runs missing (exit 1: error: the fake was told to fail).");
    suite_free(s);
}

/* Ctrl-C as soon as the second cell has reported its first line, which is before its wait. */
static void interrupt_second_cell(void *arg, const struct suite_event *e)
{
    (void)arg;
    if (e->what == SUITE_CELL_OUTPUT && e->at == 2)
        raise(SIGINT);
}

/* The suite was interrupted in its second row: the report has the first row. */
static void interrupted_suite(void **state)
{
    (void)state;
    struct suite *s = scratch_suite("{'schema':'kvmark.suite.1','tables':[{'id':'t','workload':'w.json',"
                                    "'rows':[{'label':'A'},{'label':'B','flags':{'wait':30}},{'label':'C'}]}]}");
    struct suite_opts o = scratch_opts();
    struct suite_result res;
    struct report_result rep;
    o.on_event = interrupt_second_cell;
    assert_int_equal(suite_run(s, &o, &res, NULL), 0);
    assert_true(res.interrupted);
    assert_int_equal(report_write(scratch_path("out"), &rep, NULL), 0);
    assert_int_equal(rep.runs, 1);
    suite_free(s);
}

/* Tables of the shapes metrics, chunks and backends; medians; notes; a simulated device. */
static void other_shapes(void **state)
{
    (void)state;
    struct suite *s = scratch_suite(
        "{'schema':'kvmark.suite.1','pairs':2,'average':'median','notes':['Said on top.'],"
        "'tables':["
        "{'id':'miss','shape':'metrics','workload':'w.json','flags':{'turns':1},'notes':'Said below.'," SCRATCH_TWO_ROWS
        "},"
        "{'id':'chunk','shape':'chunks','workload':'w.json','baseline':'none',"
        "'rows':[{'label':'none'},{'label':'256','flags':{'kv-cache':'dram'}},"
        "{'label':'1024','flags':{'kv-cache':'dram','chunk-size':1024}}]},"
        "{'id':'remote','shape':'backends','workload':'w.json','flags':{'device':'sim:h200'},"
        "'rows':[{'label':'Redis'}],"
        "'arms':[{'label':'Cache miss'},{'label':'Cache hit','flags':{'kv-cache':'redis'}}]}]}");
    struct suite_opts o = scratch_opts();
    struct suite_result res;
    struct report_result rep;
    assert_int_equal(suite_run(s, &o, &res, NULL), 0);
    assert_int_equal(res.failed, 0);
    assert_int_equal(report_write(scratch_path("out"), &rep, NULL), 0);
    scratch_assert_holds("out/tables.md", "\nSaid on top.\n");
    scratch_assert_holds("out/tables.md", "- Said below.\n");
    scratch_assert_holds("out/tables.md", "| Metric | Without | With | Change |\n|---|---|---|---|\n| Output TPS | ");
    scratch_assert_holds("out/tables.md",
                         "| Chunk Size | Input TPS | Performance Gain | Mean TTFT (ms) |\n|---|---|---|---|\n| 256 | ");
    scratch_assert_holds("out/tables.md",
                         "| Backend | Cache miss | Cache hit | Boost |\n|---|---|---|---|\n| Redis | 0.");
    scratch_assert_holds("out/tables.md", "Each cell is the median of 2 runs");
    scratch_assert_holds("out/tables.md", "Simulated device sim:h200");
    suite_free(s);
}

/* Writes suite.json into the scratch folder. The text has ' in place of JSON's ". */
static void write_result_suite(const char *text)
{
    scratch_write_suite(text);
    assert_int_equal(rename(scratch_path("s.json"), scratch_path("suite.json")), 0);
}

/* The report of one run folder, and the errors for folders without a run. */
static void single_runs(void **state)
{
    (void)state;
    struct report_result rep;
    struct km_err err = {0};
    char *args[] = {
        (char *)"fake", (char *)"run", (char *)"w", (char *)"-o", (char *)(uintptr_t)scratch_path("one"), NULL};
    assert_int_equal(fake_run(5, args), 0);
    assert_int_equal(report_write(scratch_path("one"), &rep, &err), 0);
    assert_int_equal(rep.runs, 1);
    assert_string_equal(rep.headline, "");
    scratch_assert_holds("one/tables.md", "| fake-model, KV cache layer: none | ");
    assert_int_equal(report_write(scratch_path(""), &rep, &err), KM_ENOENT);
    assert_non_null(strstr(err.msg, "neither suite.json nor run.json"));
    write_result_suite("{'schema':'kvmark.suite.1','tables':[{'id':'t','workload':'w','rows':[{'label':'A'}]}],'cells':"
                       "[{'table':'t','row':'a','repeat':1,'dir':'../../etc'}]}");
    assert_int_equal(report_write(scratch_path(""), &rep, &err), KM_EFORMAT);
    write_result_suite("{'schema':'kvmark.suite.1','tables':[{'id':'t','workload':'w','rows':[{'label':'A'}]}],'cells':"
                       "[{'table':'t','row':'a','repeat':1,'dir':'cells/none'}]}");
    assert_int_equal(report_write(scratch_path(""), &rep, &err), KM_ENOENT);
    assert_non_null(strstr(err.msg, "no finished run"));
}

int main(int argc, char **argv)
{
    if (argc > 1 && !strcmp(argv[1], "run"))
        return fake_run(argc, argv);
    km_log_level(KM_LOG_INFO);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(report_of_suite, scratch_set_up, scratch_tear_down),
        cmocka_unit_test_setup_teardown(no_gnuplot, scratch_set_up, scratch_tear_down),
        cmocka_unit_test_setup_teardown(missing_runs, scratch_set_up, scratch_tear_down),
        cmocka_unit_test_setup_teardown(interrupted_suite, scratch_set_up, scratch_tear_down),
        cmocka_unit_test_setup_teardown(other_shapes, scratch_set_up, scratch_tear_down),
        cmocka_unit_test_setup_teardown(single_runs, scratch_set_up, scratch_tear_down),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
