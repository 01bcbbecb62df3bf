/* Suites: reading the file, planning the cells and running them. This program takes the place of `kvmark run`. */
#include "base/test/test.h"

#include "base/file.h"
#include "base/log.h"
#include "base/mem.h"
#include "harness/suite/suite.h"
#include "harness/suite/test/fake_run.h"
#include "harness/suite/test/scratch.h"

#include <signal.h>
#include <string.h>
#include <sys/wait.h>

/* A suite with an error is refused, and the message names the key or the value that is wrong. */
static void bad_suites(void **state)
{
    (void)state;
    static const char *const cases[][2] = {
        {"[]", "object"},
        {"{'schema':'kvmark.suite.2'}", "kvmark.suite.1"},
        {"{'schema':'kvmark.suite.1','tables':[]}", "\"tables\" has 0 entries"},
        {"{'schema':'kvmark.suite.1','pears':3,'tables':[]}", "did you mean \"pairs\""},
        {"{'schema':'kvmark.suite.1','pairs':0,'tables':[]}", "between 1 and"},
        {"{'schema':'kvmark.suite.1','tables':[{'id':'../x','workload':'w'," SCRATCH_TWO_ROWS "}]}",
         "cannot name a folder"},
        {"{'schema':'kvmark.suite.1','tables':[{'id':'x'," SCRATCH_TWO_ROWS "}]}", "\"workload\" is missing"},
        {"{'schema':'kvmark.suite.1','tables':[{'id':'x','workload':'w','shape':'round'," SCRATCH_TWO_ROWS "}]}",
         "\"round\""},
        {"{'schema':'kvmark.suite.1','tables':[{'id':'x','workload':'w','rows':[{'label':'a'},{'label':'A'}]}]}",
         "have the id \"a\""},
        {"{'schema':'kvmark.suite.1','tables':[{'id':'x','workload':'w','baseline':'None'," SCRATCH_TWO_ROWS "}]}",
         "names no row"},
        {"{'schema':'kvmark.suite.1','tables':[{'id':'x','workload':'w','columns':[{'metric':'ttft'}]," SCRATCH_TWO_ROWS
         "}]}",
         "no figure \"ttft\""},
        {"{'schema':'kvmark.suite.1','tables':[{'id':'x','workload':'w','flags':{'--seed':1}," SCRATCH_TWO_ROWS "}]}",
         "is not an option"},
        {"{'schema':'kvmark.suite.1','tables':[{'id':'x','workload':'w','flags':{'seed':{}}," SCRATCH_TWO_ROWS "}]}",
         "option \"seed\" is an object"},
        {"{'schema':'kvmark.suite.1','defaults':{'output':'x'},'tables':[]}", "set by the suite"},
        {"{'schema':'kvmark.suite.1','tables':[{'id':'x','workload':'w','shape':'backends'," SCRATCH_TWO_ROWS "}]}",
         "\"arms\" is missing"},
        {"{'schema':'kvmark.suite.1','tables':[{'id':'x','workload':'w'," SCRATCH_TWO_ROWS
         "},{'id':'x','workload':'w'," SCRATCH_TWO_ROWS "}]}",
         "two tables have the id"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct suite *s = NULL;
        struct km_err err = {0};
        scratch_write_suite(cases[i][0]);
        assert_int_not_equal(suite_read(&s, scratch_path("s.json"), &err), 0);
        if (!strstr(err.msg, cases[i][1]))
            fail_msg("case %zu: the message is: %s", i, err.msg);
    }
}

static const char *arg(const struct suite_cell *c, const char *start)
{
    for (int i = 0; i < c->argc; i++)
        if (!strncmp(c->argv[i], start, strlen(start)))
            return c->argv[i];
    return NULL;
}

/* The order of the cells, shared cells, merged options and placeholders; nothing runs. */
static void planning(void **state)
{
    (void)state;
    struct suite *s = scratch_suite(
        "{'schema':'kvmark.suite.1','pairs':4,"
        "'defaults':{'seed':1,'model':'{here}/m','early-stop':false,'stream':true,"
        "'extra-body':'{\\\"a\\\":1}','header':['A=1','B=2']},"
        "'tables':["
        "{'id':'5k','workload':'w.json'," SCRATCH_TWO_ROWS "},"
        "{'id':'chunk','shape':'chunks','workload':'w.json','pairs':2,'flags':{'seed':1,'max-turns':null},"
        "'rows':[{'label':'none','flags':{'kv-cache':'none'}},"
        "{'label':'256','flags':{'kv-cache':'dram=1GiB','chunk-size':256}},"
        "{'label':'512','flags':{'kv-cache':'dram=1GiB','chunk-size':512,'model':null,"
        "'cache-salt':'{row}-{repeat}-{nonce}'}}]}]}");
    const char *sets[] = {"device=sim:rtx4090", "chunk-size=999", "seed=7", "max-turns=3"};
    struct suite_opts o = {.dir = "out", .nonce = "n0", .set = {sets, 3}};
    struct suite_plan p;
    assert_int_equal(suite_plan_make(s, &o, &p, NULL), 0);
    /* Table 5k has 2 rows with 4 repeats. Of table chunk only row 512 is new; it has 2 repeats. */
    assert_int_equal(p.n, 10);
    assert_int_equal(p.n_places, 8 + 6);
    static const char *const order[] = {"5k/without-1", "5k/with-1", "chunk/512-1",  "5k/with-2",    "5k/without-2",
                                        "chunk/512-2",  "5k/with-3", "5k/without-3", "5k/without-4", "5k/with-4"};
    for (int i = 0; i < 10; i++)
        assert_string_equal(p.cells[i].name, order[i]);
    /* Row 256 of table chunk has the cell of row With of table 5k. */
    bool shared = false;
    for (int i = 0; i < p.n_places; i++)
        shared = shared ||
                 (p.places[i].table == 1 && p.places[i].row == 1 && p.places[i].repeat == 0 && p.places[i].cell == 1);
    assert_true(shared);
    const struct suite_cell *c = &p.cells[2];
    assert_string_equal(c->argv[0], "run");
    assert_null(arg(c, "--model"));
    assert_string_equal(arg(c, "--cache-salt"), "--cache-salt=512-1-n0");
    assert_string_equal(arg(c, "--chunk-size"), "--chunk-size=512"); /* from the row, not from --set */
    assert_string_equal(arg(c, "--seed"), "--seed=7"); /* from --set, not from the table or the defaults */
    assert_string_equal(arg(c, "--device"), "--device=sim:rtx4090");
    assert_string_equal(arg(c, "--extra-body"), "--extra-body={\"a\":1}");
    assert_non_null(arg(c, "--no-early-stop"));
    assert_non_null(arg(c, "--stream"));
    assert_non_null(arg(c, "--header=A=1"));
    assert_non_null(arg(c, "--header=B=2"));
    char model[128];
    snprintf(model, sizeof model, "--model=%s/m", scratch_path(""));
    assert_string_equal(arg(&p.cells[0], "--model"), model);
    suite_plan_free(&p);

    /* An option that a table removes does not come back from --set. The rows of the two tables then differ. */
    o.set.n = 4;
    assert_int_equal(suite_plan_make(s, &o, &p, NULL), 0);
    assert_int_equal(p.n, 14);
    for (int i = 0; i < p.n; i++)
        assert_true((arg(&p.cells[i], "--max-turns") != NULL) == !strncmp(p.cells[i].name, "5k/", 3));
    suite_plan_free(&p);
    o.set.n = 3;

    struct km_err err = {0};
    o.only = "chunk";
    assert_int_equal(suite_plan_make(s, &o, &p, NULL), 0);
    assert_int_equal(p.n, 6);
    suite_plan_free(&p);
    o.only = "chank";
    assert_int_equal(suite_plan_make(s, &o, &p, &err), KM_EINVAL);
    sets[0] = "device";
    assert_int_equal(suite_plan_make(s, &o, &p, &err), KM_EINVAL);
    assert_non_null(strstr(err.msg, "OPTION=VALUE"));
    suite_free(s);

    /* A miss and its hit are two runs although their options are the same, and the miss comes first also in repeats
     * whose rows run in reverse order. */
    s = scratch_suite("{'schema':'kvmark.suite.1','pairs':2,"
                      "'tables':[{'id':'r','shape':'backends','workload':'w.json',"
                      "'rows':[{'label':'a'},{'label':'b','flags':{'seed':1}}],"
                      "'arms':[{'label':'miss'},{'label':'hit'}]}]}");
    o = (struct suite_opts){.dir = "out"};
    assert_int_equal(suite_plan_make(s, &o, &p, NULL), 0);
    static const char *const arms[] = {"r/a-miss-1", "r/a-hit-1", "r/b-miss-1", "r/b-hit-1",
                                       "r/b-miss-2", "r/b-hit-2", "r/a-miss-2", "r/a-hit-2"};
    assert_int_equal(p.n, 8);
    for (int i = 0; i < 8; i++)
        assert_string_equal(p.cells[i].name, arms[i]);
    suite_plan_free(&p);
    suite_free(s);
}

static void run_and_resume(void **state)
{
    (void)state;
    struct suite *s = scratch_suite(scratch_basic_suite);
    struct suite_opts o = scratch_opts();
    struct suite_result res;
    struct km_err err = {0};
    assert_int_equal(suite_run(s, &o, &res, &err), 0);
    assert_int_equal(res.ran, 4);
    assert_int_equal(res.failed, 0);
    scratch_assert_holds("out/logs/5k_with-1.log", "3/72 requests");

    /* A cell that is done does not run again; a cell that was lost runs alone. */
    assert_int_equal(suite_run(s, &o, &res, &err), 0);
    assert_int_equal(res.ran, 0);
    assert_int_equal(res.done, 4);
    assert_int_equal(remove(scratch_path("out/cells/5k/with-2/run.json")), 0);
    assert_int_equal(suite_run(s, &o, &res, &err), 0);
    assert_int_equal(res.ran, 1);

    /* Other options are refused for the same folder, which stays as it is. */
    const char *set[] = {"num-gpu-blocks-override=9"};
    o.set = (struct km_strs){set, 1};
    assert_int_equal(suite_run(s, &o, &res, &err), KM_EINVAL);
    assert_non_null(strstr(err.msg, "other options"));
    o.set.n = 0;
    /* More pairs: only the new ones run. */
    o.pairs = 3;
    assert_int_equal(suite_run(s, &o, &res, &err), 0);
    assert_int_equal(res.ran, 2);
    assert_int_equal(res.done, 6);

    scratch_assert_holds("out/suite.json", "\"kvmark bench s.json -o out\"");
    suite_free(s);
}

static void failed_cells(void **state)
{
    (void)state;
    struct suite *s = scratch_suite("{'schema':'kvmark.suite.1','tables':[{'id':'t','workload':'w.json',"
                                    "'rows':[{'label':'A'},{'label':'B','flags':{'fail':true}},"
                                    "{'label':'C','flags':{'kv-cache':'dram'}}]}]}");
    struct suite_opts o = scratch_opts();
    struct suite_result res;
    assert_int_equal(suite_run(s, &o, &res, NULL), 0);
    assert_int_equal(res.ran, 2);
    assert_int_equal(res.failed, 1);
    scratch_assert_holds("out/suite.json", "exit 1: error: the fake was told to fail");
    /* A program that does not exist makes the cell fail. */
    o.exe = "/nowhere/kvmark";
    assert_int_equal(suite_run(s, &o, &res, NULL), 0);
    assert_int_equal(res.failed, 1);
    suite_free(s);
}

/* Ctrl-C ends the suite, and the running cell is not done. */
static void interrupted(void **state)
{
    (void)state;
    struct suite *s = scratch_suite("{'schema':'kvmark.suite.1','tables':[{'id':'t','workload':'w.json',"
                                    "'rows':[{'label':'A'},{'label':'B','flags':{'wait':30}},"
                                    "{'label':'C','flags':{'turns':2}}]}]}");
    struct suite_opts o = scratch_opts();
    pid_t pid = fork();
    if (!pid) {
        struct suite_result res;
        struct km_err err;
        bool right = !suite_run(s, &o, &res, &err) && res.interrupted && res.ran == 1 && res.failed == 1;
        _exit(right ? 0 : 1);
    }
    for (int i = 0; i < 1000 && access(scratch_path("out/logs/t_b-1.log"), F_OK); i++)
        usleep(10000);
    usleep(100000); /* so that the cell is in its wait */
    kill(pid, SIGINT);
    int status;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_int_equal(status, 0);
    assert_false(km_file_exists(scratch_path("out/cells/t/b-1/run.json")));
    assert_true(km_file_exists(scratch_path("out/cells/t/b-1/run-partial.json")));
    assert_false(km_file_exists(scratch_path("out/cells/t/c-1/run.json")));
    scratch_assert_holds("out/suite.json", "interrupted");
    suite_free(s);
}

/* The suites of the repository can be read and planned. */
static void our_suites(void **state)
{
    (void)state;
    static const char *const names[] = {"quick", "gpu", "paper"};
    for (int i = 0; i < 3; i++) {
        char path[512];
        struct suite *s = NULL;
        struct suite_plan p;
        struct km_err err = {0};
        struct suite_opts o = {.dir = "out"};
        snprintf(path, sizeof path, KVM_SOURCE_DIR "/workloads/suites/%s.json", names[i]);
        if (suite_read(&s, path, &err) || suite_plan_make(s, &o, &p, &err))
            fail_msg("%s", err.msg);
        print_message("%s: %d tables, %d runs\n", names[i], s->n_tables, p.n);
        assert_true(p.n >= 4);
        suite_plan_free(&p);
        suite_free(s);
    }
}

int main(int argc, char **argv)
{
    if (argc > 1 && !strcmp(argv[1], "run"))
        return fake_run(argc, argv);
    km_log_level(KM_LOG_INFO);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(bad_suites, scratch_set_up, scratch_tear_down),
        cmocka_unit_test_setup_teardown(planning, scratch_set_up, scratch_tear_down),
        cmocka_unit_test_setup_teardown(run_and_resume, scratch_set_up, scratch_tear_down),
        cmocka_unit_test_setup_teardown(failed_cells, scratch_set_up, scratch_tear_down),
        cmocka_unit_test_setup_teardown(interrupted, scratch_set_up, scratch_tear_down),
        cmocka_unit_test(our_suites),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
