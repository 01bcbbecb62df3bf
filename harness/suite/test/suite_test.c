/* Suites from file to report, with this program standing in for `kvmark run` (fake_run.c). */
#include "base/test/test.h"

#include "base/file.h"
#include "base/log.h"
#include "base/mem.h"
#include "harness/cli/cmd.h"
#include "harness/report/plot.h"
#include "harness/report/report.h"
#include "harness/suite/suite.h"
#include "harness/suite/test/fake_run.h"

#include <fcntl.h>
#include <ftw.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

/* A fresh folder a test, removed at its end. */
static char home[64];

static int forget(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
    (void)st;
    (void)type;
    (void)ftw;
    return remove(path);
}

static int set_up(void **state)
{
    (void)state;
    snprintf(home, sizeof home, "/tmp/kvmark-suite-XXXXXX");
    return mkdtemp(home) ? 0 : -1;
}

static int tear_down(void **state)
{
    (void)state;
    return nftw(home, forget, 16, FTW_DEPTH | FTW_PHYS);
}

/* home/name in a buffer that stays good for four calls. */
static const char *in_home(const char *name)
{
    static char paths[4][256];
    static int turn;
    turn = (turn + 1) % 4;
    snprintf(paths[turn], sizeof paths[turn], "%s/%s", home, name);
    return paths[turn];
}

static void put(const char *name, const char *text)
{
    assert_int_equal(km_file_write(in_home(name), text, strlen(text), NULL), 0);
}

static char *slurp(const char *name)
{
    struct km_buf b = {0};
    assert_int_equal(km_file_read(in_home(name), 0, &b, NULL), 0);
    return km_buf_take(&b);
}

static void assert_holds(const char *name, const char *what)
{
    char *text = slurp(name);
    if (!strstr(text, what))
        fail_msg("%s does not hold: %s", name, what);
    km_free(text);
}

static int count(const char *text, const char *what)
{
    int n = 0;
    for (const char *p = text; (p = strstr(p, what)); p++)
        n++;
    return n;
}

#define TWO_ROWS                                                                                               \
    "\"rows\":[{\"label\":\"Without\",\"flags\":{\"kv-cache\":\"none\"}},"                                     \
    "{\"label\":\"With\",\"flags\":{\"kv-cache\":\"dram=1GiB\",\"chunk-size\":256}}]"

static const char basic[] =
    "{\"schema\":\"kvmark.suite.1\",\"title\":\"A "
    "<suite>\",\"pairs\":2,\"defaults\":{\"num-gpu-blocks-override\":400},"
    "\"tables\":[{\"id\":\"5k\",\"title\":\"Five thousand\",\"workload\":\"w.json\"," TWO_ROWS "}]}";

static struct suite *suite(const char *text)
{
    struct suite *s = NULL;
    struct km_err err = {0};
    put("s.json", text);
    put("w.json", "{}");
    if (suite_read(&s, in_home("s.json"), &err))
        fail_msg("%s", err.msg);
    return s;
}

static void bad_suites(void **state)
{
    (void)state;
    static const char *const cases[][2] = {
        {"[]", "object"},
        {"{\"schema\":\"kvmark.suite.2\"}", "kvmark.suite.1"},
        {"{\"schema\":\"kvmark.suite.1\",\"tables\":[]}", "\"tables\" has 0 entries"},
        {"{\"schema\":\"kvmark.suite.1\",\"pears\":3,\"tables\":[]}", "did you mean \"pairs\""},
        {"{\"schema\":\"kvmark.suite.1\",\"pairs\":0,\"tables\":[]}", "between 1 and"},
        {"{\"schema\":\"kvmark.suite.1\",\"tables\":[{\"id\":\"../x\",\"workload\":\"w\"," TWO_ROWS "}]}",
         "cannot name a folder"},
        {"{\"schema\":\"kvmark.suite.1\",\"tables\":[{\"id\":\"x\"," TWO_ROWS "}]}", "\"workload\" is missing"},
        {"{\"schema\":\"kvmark.suite.1\",\"tables\":[{\"id\":\"x\",\"workload\":\"w\",\"shape\":"
         "\"round\"," TWO_ROWS "}]}",
         "\"round\""},
        {"{\"schema\":\"kvmark.suite.1\",\"tables\":[{\"id\":\"x\",\"workload\":\"w\",\"rows\":[{\"label\":"
         "\"a\"},{\"label\":\"A\"}]}]}",
         "have the id \"a\""},
        {"{\"schema\":\"kvmark.suite.1\",\"tables\":[{\"id\":\"x\",\"workload\":\"w\",\"baseline\":"
         "\"None\"," TWO_ROWS "}]}",
         "names no row"},
        {"{\"schema\":\"kvmark.suite.1\",\"tables\":[{\"id\":\"x\",\"workload\":\"w\",\"columns\":[{\"metric\":"
         "\"ttft\"}]," TWO_ROWS "}]}",
         "no figure \"ttft\""},
        {"{\"schema\":\"kvmark.suite.1\",\"tables\":[{\"id\":\"x\",\"workload\":\"w\",\"flags\":{\"--seed\":1}"
         "," TWO_ROWS "}]}",
         "is not an option"},
        {"{\"schema\":\"kvmark.suite.1\",\"tables\":[{\"id\":\"x\",\"workload\":\"w\",\"flags\":{\"seed\":{}}"
         "," TWO_ROWS "}]}",
         "option \"seed\" is an object"},
        {"{\"schema\":\"kvmark.suite.1\",\"defaults\":{\"output\":\"x\"},\"tables\":[]}", "set by the suite"},
        {"{\"schema\":\"kvmark.suite.1\",\"tables\":[{\"id\":\"x\",\"workload\":\"w\",\"shape\":"
         "\"backends\"," TWO_ROWS "}]}",
         "\"arms\" is missing"},
        {"{\"schema\":\"kvmark.suite.1\",\"tables\":[{\"id\":\"x\",\"workload\":\"w\"," TWO_ROWS
         "},{\"id\":\"x\",\"workload\":\"w\"," TWO_ROWS "}]}",
         "two tables have the id"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct suite *s = NULL;
        struct km_err err = {0};
        put("s.json", cases[i][0]);
        assert_int_not_equal(suite_read(&s, in_home("s.json"), &err), 0);
        if (!strstr(err.msg, cases[i][1]))
            fail_msg("case %zu says: %s", i, err.msg);
    }
}

static const char *arg(const struct suite_cell *c, const char *start)
{
    for (int i = 0; i < c->argc; i++)
        if (!strncmp(c->argv[i], start, strlen(start)))
            return c->argv[i];
    return NULL;
}

/* Order, sharing, merging and placeholders, without running anything. */
static void planning(void **state)
{
    (void)state;
    struct suite *s = suite("{\"schema\":\"kvmark.suite.1\",\"pairs\":4,\"defaults\":{\"seed\":1,\"model\":"
                               "\"{here}/m\",\"early-stop\":false,\"stream\":true,"
                               "\"extra-body\":\"{\\\"a\\\":1}\",\"header\":[\"A=1\",\"B=2\"]},\"tables\":[{"
                               "\"id\":\"5k\",\"workload\":\"w.json\"," TWO_ROWS "},"
                               "{\"id\":\"chunk\",\"shape\":\"chunks\",\"workload\":\"w.json\",\"pairs\":2,"
                               "\"flags\":{\"seed\":1,\"max-turns\":null},\"rows\":["
                               "{\"label\":\"none\",\"flags\":{\"kv-cache\":\"none\"}},{\"label\":\"256\","
                               "\"flags\":{\"kv-cache\":\"dram=1GiB\",\"chunk-size\":256}},"
                               "{\"label\":\"512\",\"flags\":{\"kv-cache\":\"dram=1GiB\",\"chunk-size\":512,"
                               "\"model\":null,\"cache-salt\":\"{row}-{repeat}-{nonce}\"}}]}]}");
    const char *sets[] = {"device=sim:rtx4090", "chunk-size=999", "seed=7", "max-turns=3"};
    struct suite_opts o = {.dir = "out", .nonce = "n0", .set = {sets, 3}};
    struct suite_plan p;
    assert_int_equal(suite_plan_make(s, &o, &p, NULL), 0);
    /* 5k: 2 rows x 4; chunk: only 512 is new, twice. */
    assert_int_equal(p.n, 10);
    assert_int_equal(p.n_places, 8 + 6);
    static const char *const order[] = {"5k/without-1", "5k/with-1",   "chunk/512-1", "5k/with-2",
                                        "5k/without-2", "chunk/512-2", "5k/with-3",   "5k/without-3",
                                        "5k/without-4", "5k/with-4"};
    for (int i = 0; i < 10; i++)
        assert_string_equal(p.cells[i].name, order[i]);
    /* Table chunk, row 256, repeat 1 is the cell of table 5k, row With. */
    bool shared = false;
    for (int i = 0; i < p.n_places; i++)
        shared = shared ||
                 (p.places[i].table == 1 && p.places[i].row == 1 && p.places[i].repeat == 0 && p.places[i].cell == 1);
    assert_true(shared);
    const struct suite_cell *c = &p.cells[2];
    assert_string_equal(c->argv[0], "run");
    assert_null(arg(c, "--model"));
    assert_string_equal(arg(c, "--cache-salt"), "--cache-salt=512-1-n0");
    assert_string_equal(arg(c, "--chunk-size"), "--chunk-size=512"); /* the row's, not --set's */
    assert_string_equal(arg(c, "--seed"), "--seed=7");               /* --set over table and defaults */
    assert_string_equal(arg(c, "--device"), "--device=sim:rtx4090");
    assert_string_equal(arg(c, "--extra-body"), "--extra-body={\"a\":1}");
    assert_non_null(arg(c, "--no-early-stop"));
    assert_non_null(arg(c, "--stream"));
    assert_non_null(arg(c, "--header=A=1"));
    assert_non_null(arg(c, "--header=B=2"));
    char model[128];
    snprintf(model, sizeof model, "--model=%s/m", home);
    assert_string_equal(arg(&p.cells[0], "--model"), model);
    suite_plan_free(&p);

    /* A table that removes a flag does not get it back from --set; the rows of the two tables are then no
     * longer the same. */
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

    /* A miss and its hit are two runs, though their flags are the same, in this order also when rows go
     * backwards. */
    s = suite("{\"schema\":\"kvmark.suite.1\",\"pairs\":2,\"tables\":[{\"id\":\"r\",\"shape\":\"backends\","
              "\"workload\":\"w.json\","
              "\"rows\":[{\"label\":\"a\"},{\"label\":\"b\",\"flags\":{\"seed\":1}}],\"arms\":[{\"label\":"
              "\"miss\"},{\"label\":\"hit\"}]}]}");
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

static struct suite_opts options(void)
{
    static char dir[128];
    snprintf(dir, sizeof dir, "%s/out", home);
    return (struct suite_opts){.dir = dir, .exe = "/proc/self/exe", .command = "kvmark bench s.json -o out"};
}

static void run_resume_report(void **state)
{
    (void)state;
    struct suite *s = suite(basic);
    struct suite_opts o = options();
    struct suite_result res;
    struct report_result rep;
    struct km_err err = {0};
    assert_int_equal(suite_run(s, &o, &res, &err), 0);
    assert_int_equal(res.ran, 4);
    assert_int_equal(res.failed, 0);
    assert_holds("out/logs/5k_with-1.log", "3/72 requests");

    /* Nothing is run twice; one lost cell is run alone. */
    assert_int_equal(suite_run(s, &o, &res, &err), 0);
    assert_int_equal(res.ran, 0);
    assert_int_equal(res.done, 4);
    assert_int_equal(remove(in_home("out/cells/5k/with-2/run.json")), 0);
    assert_int_equal(suite_run(s, &o, &res, &err), 0);
    assert_int_equal(res.ran, 1);

    /* The same folder with other flags is refused and left as it is. */
    const char *set[] = {"num-gpu-blocks-override=9"};
    o.set = (struct km_strs){set, 1};
    assert_int_equal(suite_run(s, &o, &res, &err), KM_EINVAL);
    assert_non_null(strstr(err.msg, "other options"));
    o.set.n = 0;
    /* More pairs go on from what is there. */
    o.pairs = 3;
    assert_int_equal(suite_run(s, &o, &res, &err), 0);
    assert_int_equal(res.ran, 2);
    assert_int_equal(res.done, 6);

    assert_int_equal(report_write(in_home("out"), &rep, &err), 0);
    assert_int_equal(rep.runs, 6);
    assert_int_equal(rep.missing, 0);
    assert_non_null(strstr(rep.headline, "With against Without: input tokens per second +"));
    assert_holds("out/tables.md", "| Configuration | Input TPS | Total TPS | Mean TTFT (ms) | Mean TPOT (ms) "
                                  "|\n|---|---|---|---|---|\n| Without | ");
    assert_holds("out/tables.md", "Dummy weights");
    assert_holds("out/tables.md", "built-in text");
    assert_holds("out/tables.md", "KV pool set to 400 blocks of 16 tokens (6400 tokens of KV)");
    assert_holds("out/tables.md", "Each cell is the mean of 3 runs");
    /* The reason for the gain: the fake's layer holds 310784 of 393516 prompt tokens. */
    assert_holds("out/tables.md", "| With | 3 | 72 | 0 | 393516 | 310784 | 82732 | 79.0% | 5453.5 | 20.0 |");
    assert_holds("out/suite.json", "\"kvmark bench s.json -o out\"");
    suite_free(s);

    char *html = slurp("out/report.html");
    assert_true(strlen(html) < 1000000);
    assert_non_null(strstr(html, "A &lt;suite&gt;"));
    assert_null(strstr(html, "<suite>"));
    assert_null(strstr(html, "src="));
    assert_null(strstr(html, "<link"));
    assert_int_equal(count(html, "<tr><td>5k/"), 6 * 72);
    if (plot_gnuplot_found()) {
        assert_int_equal(count(html, "<svg role=\"img\""), 3);
        assert_null(strstr(html, "color=\"black\""));
        assert_holds("out/plots/5k-ttft-cdf.gp", "array label[2] = ['Without', 'With']");
        assert_holds("out/plots/5k-ttft-cdf.svg", "<svg");
    } else {
        print_message("no gnuplot here: pictures are not checked\n");
        assert_non_null(strstr(html, "gnuplot is not installed"));
    }
    km_free(html);
}

/* Without gnuplot: a whole report that says so, and scripts ready for later. */
static void no_gnuplot(void **state)
{
    (void)state;
    struct suite *s = suite(basic);
    struct suite_opts o = options();
    struct suite_result res;
    struct report_result rep;
    char *path = km_strdup(getenv("PATH"));
    assert_int_equal(suite_run(s, &o, &res, NULL), 0);
    setenv("PATH", "/nowhere", 1);
    int rc = report_write(in_home("out"), &rep, NULL);
    setenv("PATH", path, 1);
    km_free(path);
    assert_int_equal(rc, 0);
    assert_true(rep.no_gnuplot);
    assert_holds("out/report.html", "gnuplot is not installed here");
    assert_holds("out/plots/5k-ttft-turn.dat", "# Without\n1 ");
    suite_free(s);
}

static void failed_cells(void **state)
{
    (void)state;
    struct suite *s = suite(
        "{\"schema\":\"kvmark.suite.1\",\"tables\":[{\"id\":\"t\",\"workload\":\"w.json\",\"rows\":["
        "{\"label\":\"A\"},{\"label\":\"B\",\"flags\":{\"fail\":true}},{\"label\":\"C\",\"flags\":{\"kv-"
        "cache\":\"dram\"}}]}]}");
    struct suite_opts o = options();
    struct suite_result res;
    struct report_result rep;
    assert_int_equal(suite_run(s, &o, &res, NULL), 0);
    assert_int_equal(res.ran, 2);
    assert_int_equal(res.failed, 1);
    assert_holds("out/suite.json", "exit 1: error: the fake was told to fail");
    assert_int_equal(report_write(in_home("out"), &rep, NULL), 0);
    assert_int_equal(rep.missing, 1);
    assert_holds("out/tables.md", "| B | n/a | n/a | n/a | n/a |");
    assert_holds("out/tables.md", "- B: 1 of 1 runs missing (exit 1: error: the fake was told to fail).");
    /* A program that is not there is a failed cell, not a crash. */
    o.exe = "/nowhere/kvmark";
    assert_int_equal(suite_run(s, &o, &res, NULL), 0);
    assert_int_equal(res.failed, 1);
    suite_free(s);
}

/* Ctrl-C: the running cell is not done, the suite ends, and what there is can be reported and gone on with. */
static void interrupted(void **state)
{
    (void)state;
    struct suite *s = suite(
        "{\"schema\":\"kvmark.suite.1\",\"tables\":[{\"id\":\"t\",\"workload\":\"w.json\",\"rows\":["
        "{\"label\":\"A\"},{\"label\":\"B\",\"flags\":{\"wait\":30}},{\"label\":\"C\",\"flags\":{\"turns\":2}}]"
        "}]}");
    struct suite_opts o = options();
    pid_t pid = fork();
    if (!pid) {
        struct suite_result res;
        struct km_err err;
        bool right = !suite_run(s, &o, &res, &err) && res.interrupted && res.ran == 1 && res.failed == 1;
        _exit(right ? 0 : 1);
    }
    for (int i = 0; i < 1000 && access(in_home("out/logs/t_b-1.log"), F_OK); i++)
        usleep(10000);
    usleep(100000); /* into the cell's waiting */
    kill(pid, SIGINT);
    int status;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_int_equal(status, 0);
    assert_false(km_file_exists(in_home("out/cells/t/b-1/run.json")));
    assert_true(km_file_exists(in_home("out/cells/t/b-1/run-partial.json")));
    assert_false(km_file_exists(in_home("out/cells/t/c-1/run.json")));
    assert_holds("out/suite.json", "interrupted");
    struct report_result rep;
    assert_int_equal(report_write(in_home("out"), &rep, NULL), 0);
    assert_int_equal(rep.runs, 1);
    suite_free(s);
}

static void other_shapes(void **state)
{
    (void)state;
    struct suite *s = suite("{\"schema\":\"kvmark.suite.1\",\"pairs\":2,\"average\":\"median\",\"notes\":["
                               "\"Said on top.\"],\"tables\":["
                               "{\"id\":\"miss\",\"shape\":\"metrics\",\"workload\":\"w.json\",\"flags\":{"
                               "\"turns\":1},\"notes\":\"Said below.\"," TWO_ROWS "},"
                               "{\"id\":\"chunk\",\"shape\":\"chunks\",\"workload\":\"w.json\",\"baseline\":"
                               "\"none\",\"rows\":[{\"label\":\"none\"},"
                               "{\"label\":\"256\",\"flags\":{\"kv-cache\":\"dram\"}},{\"label\":\"1024\","
                               "\"flags\":{\"kv-cache\":\"dram\",\"chunk-size\":1024}}]},"
                               "{\"id\":\"remote\",\"shape\":\"backends\",\"workload\":\"w.json\",\"flags\":{"
                               "\"device\":\"sim:h200\"},\"rows\":[{\"label\":\"Redis\"}],"
                               "\"arms\":[{\"label\":\"Cache miss\"},{\"label\":\"Cache "
                               "hit\",\"flags\":{\"kv-cache\":\"redis\"}}]}]}");
    struct suite_opts o = options();
    struct suite_result res;
    struct report_result rep;
    assert_int_equal(suite_run(s, &o, &res, NULL), 0);
    assert_int_equal(res.failed, 0);
    assert_int_equal(report_write(in_home("out"), &rep, NULL), 0);
    assert_holds("out/tables.md", "\nSaid on top.\n");
    assert_holds("out/tables.md", "- Said below.\n");
    assert_holds("out/tables.md", "| Metric | Without | With | Change |\n|---|---|---|---|\n| Output TPS | ");
    assert_holds("out/tables.md",
                 "| Chunk Size | Input TPS | Performance Gain | Mean TTFT (ms) |\n|---|---|---|---|\n| 256 | ");
    assert_holds("out/tables.md",
                 "| Backend | Cache miss | Cache hit | Boost |\n|---|---|---|---|\n| Redis | 0.");
    assert_holds("out/tables.md", "Each cell is the median of 2 runs");
    assert_holds("out/tables.md", "Simulated device sim:h200");
    suite_free(s);
}

/* A report of one run folder, and what is said of folders that hold nothing. */
static void single_runs(void **state)
{
    (void)state;
    struct report_result rep;
    struct km_err err = {0};
    char *args[] = {
        (char *)"fake", (char *)"run", (char *)"w", (char *)"-o", (char *)(uintptr_t)in_home("one"), NULL};
    assert_int_equal(fake_run(5, args), 0);
    assert_int_equal(report_write(in_home("one"), &rep, &err), 0);
    assert_int_equal(rep.runs, 1);
    assert_string_equal(rep.headline, "");
    assert_holds("one/tables.md", "| fake-model, KV cache layer: none | ");
    assert_int_equal(report_write(home, &rep, &err), KM_ENOENT);
    assert_non_null(strstr(err.msg, "neither suite.json nor run.json"));
    put("suite.json", "{\"schema\":\"kvmark.suite.1\",\"tables\":[{\"id\":\"t\",\"workload\":\"w\",\"rows\":[{"
                      "\"label\":\"A\"}]}],"
                      "\"cells\":[{\"table\":\"t\",\"row\":\"a\",\"repeat\":1,\"dir\":\"../../etc\"}]}");
    assert_int_equal(report_write(home, &rep, &err), KM_EFORMAT);
    put("suite.json", "{\"schema\":\"kvmark.suite.1\",\"tables\":[{\"id\":\"t\",\"workload\":\"w\",\"rows\":[{"
                      "\"label\":\"A\"}]}],"
                      "\"cells\":[{\"table\":\"t\",\"row\":\"a\",\"repeat\":1,\"dir\":\"cells/none\"}]}");
    assert_int_equal(report_write(home, &rep, &err), KM_ENOENT);
    assert_non_null(strstr(err.msg, "no finished run"));
}

/* A command with its words, its stdout in out and its stderr dropped; the exit status. */
static int command(const struct cmd *c, struct km_buf *out, const char *words)
{
    char text[1024], *argv[32];
    int n = 0, keep[2] = {dup(1), dup(2)};
    snprintf(text, sizeof text, "%s", words);
    for (char *w = strtok(text, " "); w; w = strtok(NULL, " "))
        argv[n++] = w;
    fflush(stdout);
    int to = open(in_home("stdout"), O_RDWR | O_CREAT | O_TRUNC, 0600),
        err = open(in_home("stderr"), O_RDWR | O_CREAT | O_TRUNC, 0600);
    dup2(to, 1);
    dup2(err, 2);
    int rc = c->run(n, argv);
    fflush(stdout);
    dup2(keep[0], 1);
    dup2(keep[1], 2);
    close(keep[0]);
    close(keep[1]);
    close(to);
    close(err);
    km_buf_clear(out);
    assert_int_equal(km_file_read(in_home("stdout"), 0, out, NULL), 0);
    return rc;
}

static void commands(void **state)
{
    (void)state;
    struct km_buf out = {0};
    char words[1024];
    suite_free(suite(basic));
    snprintf(words, sizeof words, "%s/s.json -o %s/out --pairs 3 --device cpu --program /proc/self/exe", home,
             home);
    assert_int_equal(command(&cmd_bench, &out, words), CMD_OK);
    assert_non_null(strstr(out.data, "| With | "));
    assert_true(out.len > 20 &&
                !strcmp(out.data + out.len - strlen("/out/report.html\n"), "/out/report.html\n"));
    assert_holds("stderr", "[6/6] 5k/without-3: 3/72 requests");
    assert_holds("out/suite.json", "device=cpu");

    snprintf(words, sizeof words, "%s/out", home);
    assert_int_equal(command(&cmd_report, &out, words), CMD_OK);
    assert_int_equal(command(&cmd_report, &out, "/nowhere"), CMD_USAGE);
    assert_int_equal(command(&cmd_report, &out, ""), CMD_USAGE);

    snprintf(words, sizeof words, "%s/out/cells/5k/without %s/out/cells/5k/with", home, home);
    assert_int_equal(command(&cmd_compare, &out, words), CMD_OK);
    assert_non_null(
        strstr(out.data, "| Metric | A | B | Change | Ratio | 95% interval | Pairs | Requests | Verdict |\n"));
    assert_non_null(strstr(out.data, " | 3 | 216 | better |\n"));
    strcat(words, " --format json --fail-if input_tps<-3%");
    assert_int_equal(command(&cmd_compare, &out, words), CMD_OK);
    assert_non_null(strstr(out.data, "\"kvmark.compare.1\""));
    strcat(words, " --fail-if ttft_ms.mean<-5%");
    assert_int_equal(command(&cmd_compare, &out, words), CMD_LIMIT);
    assert_holds("stderr", "limit ttft_ms.mean<-5% missed: the change is -");
    strcat(words, " --fail-if nonsense");
    assert_int_equal(command(&cmd_compare, &out, words), CMD_USAGE);
    snprintf(words, sizeof words, "%s/out/cells/5k %s/out/cells/5k/with", home, home); /* 6 runs against 3 */
    assert_int_equal(command(&cmd_compare, &out, words), CMD_USAGE);
    assert_int_equal(command(&cmd_compare, &out, "/nowhere /nowhere"), CMD_USAGE);
    assert_int_equal(command(&cmd_bench, &out, "/nowhere.json -o x"), CMD_USAGE);
    snprintf(words, sizeof words, "%s/s.json --plan", home);
    assert_int_equal(command(&cmd_bench, &out, words), CMD_OK);
    assert_int_equal(count(out.data, "kvmark run "), 4);
    /* A failed run fails the bench, and the tables come all the same. */
    snprintf(words, sizeof words, "%s/s.json -o %s/bad --pairs 1 --set fail=true --program /proc/self/exe",
             home, home);
    assert_int_equal(command(&cmd_bench, &out, words), CMD_FAILED);
    km_buf_free(&out);
}

/* The suites of the repository can be read and planned. */
static void our_suites(void **state)
{
    (void)state;
    static const char *const names[] = {"quick", "paper"};
    for (int i = 0; i < 2; i++) {
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
        cmocka_unit_test_setup_teardown(bad_suites, set_up, tear_down),
        cmocka_unit_test_setup_teardown(planning, set_up, tear_down),
        cmocka_unit_test_setup_teardown(run_resume_report, set_up, tear_down),
        cmocka_unit_test_setup_teardown(no_gnuplot, set_up, tear_down),
        cmocka_unit_test_setup_teardown(failed_cells, set_up, tear_down),
        cmocka_unit_test_setup_teardown(interrupted, set_up, tear_down),
        cmocka_unit_test_setup_teardown(other_shapes, set_up, tear_down),
        cmocka_unit_test_setup_teardown(single_runs, set_up, tear_down),
        cmocka_unit_test_setup_teardown(commands, set_up, tear_down),
        cmocka_unit_test(our_suites),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
