/* kvmark bench: runs a suite and reports on it. */
#include "base/file.h"
#include "base/log.h"
#include "base/mem.h"
#include "harness/cli/cmd.h"
#include "harness/cli/terminal.h"
#include "harness/report/report.h"
#include "harness/suite/suite.h"

#include <stdio.h>
#include <string.h>

struct bench_opts {
    struct suite_opts suite;
    const char *device, *url; /* short for suite.set */
    bool plan, quiet;
};

static const struct km_option rows[] = {
    {.name = "output",
     .letter = 'o',
     KM_FIELD(struct bench_opts, suite.dir),
     .arg = "DIR",
     .help = "result folder (required); runs that it holds already are not run again"},
    {.name = "device", KM_FIELD(struct bench_opts, device), .arg = "DEV", .help = "short for --set device=DEV"},
    {.name = "url",
     .letter = 'u',
     KM_FIELD(struct bench_opts, url),
     .arg = "URL",
     .help = "short for --set url=URL: measure a server that is running"},
    {.name = "set",
     .letter = 's',
     KM_FIELD(struct bench_opts, suite.set),
     .arg = "OPTION=VALUE",
     .help = "an option of kvmark run, for every row that does not set it; may be given more than once"},
    {.name = "pairs",
     KM_FIELD(struct bench_opts, suite.pairs),
     .arg = "N",
     .lo = 1,
     .hi = 1000,
     .help = "repeats of each row (default: the suite's)"},
    {.name = "table", KM_FIELD(struct bench_opts, suite.only), .arg = "ID", .help = "make only this table"},
    {.name = "plan", KM_FIELD(struct bench_opts, plan), .help = "only print the command of each run"},
    {.name = "program",
     KM_FIELD(struct bench_opts, suite.exe),
     .arg = "FILE",
     .help = "the kvmark program to run (default: this one)"},
    {.name = "quiet", .letter = 'q', KM_FIELD(struct bench_opts, quiet), .help = "print no progress on stderr"},
};

static int groups(void *options, struct km_option_group *out)
{
    out[0] = KM_OPTION_GROUP("Bench", rows, options);
    return 1;
}

/* Progress on stderr. A terminal shows one line, which is redrawn and ends with the run's latest progress line. A file
 * or a pipe gets the runs' own progress lines, one per ten seconds, and a line at the start and the end of each run. */
struct screen {
    bool tty;       /* stderr is a terminal */
    char last[300]; /* the run's latest progress line */
};

static void on_event(void *arg, const struct suite_event *n)
{
    struct screen *s = arg;
    char spent[24], left[24];
    bool progress = n->line && strstr(n->line, " requests, ");
    term_clock(n->cell_s, spent, sizeof spent);
    term_clock(n->left_s, left, sizeof left);
    if (n->what == SUITE_CELL_STARTED)
        s->last[0] = 0;
    if (n->what == SUITE_CELL_OUTPUT && progress)
        snprintf(s->last, sizeof s->last, "%s", n->line);
    const char *wipe = s->tty ? "\r\033[K" : "";
    if (n->what == SUITE_CELL_OUTPUT && (!progress || !s->tty))
        fprintf(stderr, "%s[%d/%d] %s: %s\n", wipe, n->at, n->of, n->cell, n->line);
    else if (n->what == SUITE_CELL_DONE)
        fprintf(stderr, "%s[%d/%d] %s done in %s, about %s left\n", wipe, n->at, n->of, n->cell, spent, left);
    else if (n->what == SUITE_CELL_FAILED)
        fprintf(stderr, "%s[%d/%d] %s FAILED: %s\n", wipe, n->at, n->of, n->cell, n->line);
    else if (n->what == SUITE_CELL_STARTED && !s->tty)
        fprintf(stderr, "[%d/%d] %s starts\n", n->at, n->of, n->cell);
    if (s->tty && (n->what == SUITE_CELL_STARTED || n->what == SUITE_CELL_RUNNING || n->what == SUITE_CELL_OUTPUT)) {
        char line[512];
        snprintf(line, sizeof line, "[%d/%d] %s, %s, about %s left%s%s", n->at, n->of, n->cell, spent, left,
                 *s->last ? ": " : "", s->last);
        fprintf(stderr, "\r\033[K%.*s", term_width(2) - 1, line); /* a wrapped line cannot be redrawn */
    }
}

static int print_plan(const struct suite *s, const struct suite_opts *o, struct km_err *err)
{
    struct suite_plan p;
    struct km_buf b = {0};
    int rc = suite_plan_make(s, o, &p, err);
    if (rc)
        return rc;
    for (int i = 0; i < p.n; i++) {
        km_buf_puts(&b, "kvmark");
        for (int k = 0; k < p.cells[i].argc; k++) {
            km_buf_putc(&b, ' ');
            km_buf_put_shell(&b, p.cells[i].argv[k]);
        }
        km_buf_printf(&b, " -o %s/cells/%s\n", o->dir, p.cells[i].name);
    }
    fputs(km_buf_str(&b), stdout);
    km_buf_free(&b);
    suite_plan_free(&p);
    return 0;
}

/* Writes the report. Prints the tables and the path of report.html. */
static int print_result(const char *dir, struct km_err *err)
{
    struct report_result res;
    int rc = report_write(dir, &res, err);
    if (rc)
        return rc;
    char *path = km_path(dir, "tables.md");
    struct km_buf md = {0};
    rc = path ? km_file_read(path, 64 << 20, &md, err) : km_fail(err, KM_ENOMEM, "out of memory");
    if (!rc)
        printf("%s\n%s/report.html\n", km_buf_str(&md), dir);
    if (res.no_gnuplot)
        km_log(KM_LOG_WARN, "the report has no plots: gnuplot is not installed");
    km_buf_free(&md);
    km_free(path);
    return rc;
}

/* Adds "option=value" to the --set options. The text is kept in b, which must outlive `set`. */
static int add_set(struct km_strs *set, struct km_buf *b, const char *option, const char *value, struct km_err *err)
{
    if (!value)
        return 0;
    km_buf_printf(b, "%s=%s", option, value);
    return km_buf_ok(b) ? km_strs_push(set, b->data, err) : km_fail(err, KM_ENOMEM, "out of memory");
}

/* Runs the suite and prints its tables. Returns the exit status. */
static int bench(const struct suite *s, const struct suite_opts *o)
{
    struct suite_result res;
    struct km_err err;
    int rc = suite_run(s, o, &res, &err);
    if (rc)
        return cmd_error(&err, cmd_status_of(rc));
    if (res.failed)
        km_log(KM_LOG_ERROR,
               "%d of %d runs failed; their messages are in %s/logs, and the same command tries them again", res.failed,
               res.failed + res.ran, o->dir);
    if (res.interrupted)
        km_log(KM_LOG_WARN, "interrupted; the same command continues from here");
    if (!res.done) {
        km_log(KM_LOG_ERROR, "no run finished, so there is nothing to report");
        return CMD_FAILED;
    }
    if (print_result(o->dir, &err))
        return cmd_error(&err, CMD_FAILED);
    return res.failed || res.interrupted ? CMD_FAILED : CMD_OK;
}

static int run_suite(const char *file, const struct bench_opts *o)
{
    struct suite *s = NULL;
    struct km_err err;
    int rc = suite_read(&s, file, &err), status;
    if (rc)
        status = cmd_error(&err, cmd_status_of(rc));
    else if (o->plan)
        status = print_plan(s, &o->suite, &err) ? cmd_error(&err, CMD_USAGE) : CMD_OK;
    else
        status = bench(s, &o->suite);
    suite_free(s);
    return status;
}

static int run(const struct cmd_call *call)
{
    struct bench_opts *o = call->options;
    struct km_buf command = {0}, device = {0}, url = {0};
    struct screen screen = {.tty = term_is(2)};
    struct km_err err;
    int rc = 0, status;
    if (call->args.n != 1)
        rc = km_fail(&err, KM_EINVAL, "bench takes one suite file, not %d; see kvmark help bench", call->args.n);
    else if (!o->suite.dir && !o->plan)
        rc = km_fail(&err, KM_EINVAL, "--output is missing; give the folder for the results");
    if (!rc)
        rc = add_set(&o->suite.set, &device, "device", o->device, &err);
    if (!rc)
        rc = add_set(&o->suite.set, &url, "url", o->url, &err);
    km_buf_puts(&command, "kvmark bench");
    for (int i = 0; i < call->argc; i++) {
        km_buf_putc(&command, ' ');
        km_buf_put_shell(&command, call->argv[i]);
    }
    if (rc) {
        status = cmd_error(&err, CMD_USAGE);
    } else {
        if (!o->suite.dir)
            o->suite.dir = "DIR"; /* for --plan */
        o->suite.command = km_buf_str(&command);
        o->suite.on_event = o->quiet ? NULL : on_event;
        o->suite.arg = &screen;
        status = run_suite(call->args.v[0], o);
    }
    km_buf_free(&command);
    km_buf_free(&device);
    km_buf_free(&url);
    return status;
}

const struct cmd cmd_bench = {
    .name = "bench",
    .usage = "SUITE.json -o DIR [OPTIONS]",
    .summary = "Run a suite of tables, rows and repeats, and report on it",
    .text =
        "A suite says which tables to make. Each row of a table is a set of options of kvmark run, and each run is a "
        "process of its own. The rows take turns, repeat by repeat (AB BA BA AB), so that a slow drift of the "
        "machine affects all of them. A run that several tables need is made once. The folder DIR receives a run "
        "folder per run, tables.md, report.html and plots. The tables are also printed.\n\n"
        "Runs that DIR holds already are not made again, so the same command continues where it stopped. Ctrl-C "
        "ends the current run and reports on the finished ones; a second Ctrl-C kills the run. The exit status is "
        "1 if a run failed or was cut short.\n\n"
        "--set and its short forms replace the defaults of the suite and the options of a table, but not those of "
        "a row, so that the table still compares the same things.",
    .options_size = sizeof(struct bench_opts),
    .groups = groups,
    .run = run,
};
