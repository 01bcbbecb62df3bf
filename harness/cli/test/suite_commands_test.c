/* The subcommands bench, report and compare: their output and exit status for a command line. This program takes the
 * place of `kvmark run`. */
#include "base/test/test.h"

#include "base/file.h"
#include "base/log.h"
#include "base/mem.h"
#include "harness/cli/cmd.h"
#include "harness/suite/test/fake_run.h"
#include "harness/suite/test/scratch.h"

#include <fcntl.h>
#include <string.h>

/* Runs a subcommand with words separated by blanks. Its stdout goes to `out`, its stderr to the scratch file "stderr".
 * Returns the exit status. */
static int command(const struct cmd *c, struct km_buf *out, const char *words)
{
    char text[1024], *argv[32];
    int n = 0, keep[2] = {dup(1), dup(2)};
    snprintf(text, sizeof text, "%s", words);
    for (char *w = strtok(text, " "); w; w = strtok(NULL, " "))
        argv[n++] = w;
    fflush(stdout);
    int to = open(scratch_path("stdout"), O_RDWR | O_CREAT | O_TRUNC, 0600),
        err = open(scratch_path("stderr"), O_RDWR | O_CREAT | O_TRUNC, 0600);
    dup2(to, 1);
    dup2(err, 2);
    int rc = cmd_execute(c, n, argv);
    fflush(stdout);
    dup2(keep[0], 1);
    dup2(keep[1], 2);
    close(keep[0]);
    close(keep[1]);
    close(to);
    close(err);
    km_buf_clear(out);
    assert_int_equal(km_file_read(scratch_path("stdout"), 0, out, NULL), 0);
    return rc;
}

static void commands(void **state)
{
    (void)state;
    struct km_buf out = {0};
    char words[1024];
    char home[256];
    snprintf(home, sizeof home, "%s", scratch_path(""));
    scratch_write_suite(scratch_basic_suite);
    snprintf(words, sizeof words, "%s/s.json -o %s/out --pairs 3 --device cpu --program /proc/self/exe", home, home);
    assert_int_equal(command(&cmd_bench, &out, words), CMD_OK);
    assert_non_null(strstr(out.data, "| With | "));
    assert_true(out.len > 20 && !strcmp(out.data + out.len - strlen("/out/report.html\n"), "/out/report.html\n"));
    scratch_assert_holds("stderr", "[6/6] 5k/without-3: 3/72 requests");
    scratch_assert_holds("out/suite.json", "device=cpu");

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
    scratch_assert_holds("stderr", "limit ttft_ms.mean<-5% missed: the change is -");
    strcat(words, " --fail-if nonsense");
    assert_int_equal(command(&cmd_compare, &out, words), CMD_USAGE);
    snprintf(words, sizeof words, "%s/out/cells/5k %s/out/cells/5k/with", home, home); /* 6 runs against 3 */
    assert_int_equal(command(&cmd_compare, &out, words), CMD_USAGE);
    assert_int_equal(command(&cmd_compare, &out, "/nowhere /nowhere"), CMD_USAGE);
    assert_int_equal(command(&cmd_bench, &out, "/nowhere.json -o x"), CMD_USAGE);
    snprintf(words, sizeof words, "%s/s.json --plan", home);
    assert_int_equal(command(&cmd_bench, &out, words), CMD_OK);
    assert_int_equal(scratch_count(out.data, "kvmark run "), 4);
    /* A failed run makes the bench fail, but the tables are printed. */
    snprintf(words, sizeof words, "%s/s.json -o %s/bad --pairs 1 --set fail=true --program /proc/self/exe", home, home);
    assert_int_equal(command(&cmd_bench, &out, words), CMD_FAILED);
    km_buf_free(&out);
}

int main(int argc, char **argv)
{
    if (argc > 1 && !strcmp(argv[1], "run"))
        return fake_run(argc, argv);
    km_log_level(KM_LOG_INFO);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(commands, scratch_set_up, scratch_tear_down),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
