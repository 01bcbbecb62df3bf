/* kvmark bench: a suite from its file to its tables and report. */
#include "base/file.h"
#include "base/log.h"
#include "base/mem.h"
#include "harness/cli/cmd.h"
#include "harness/report/report.h"
#include "harness/suite/suite.h"

#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

struct bench_opts {
    const char *out, *device, *url, *table, *program;
    struct km_strs set;
    int64_t pairs;
    bool plan, quiet;
};

enum { MAX_FLAGS = 16 };

static int bench_flags(struct bench_opts *o, struct km_flag *out, int max)
{
    const struct km_flag table[] = {
        {"output", 'o', KM_STR, &o->out, "DIR",
         "result folder (needed); what it holds already is not run again", 0, 0},
        {"device", 0, KM_STR, &o->device, "DEV", "short for --set device=DEV", 0, 0},
        {"url", 'u', KM_STR, &o->url, "URL", "short for --set url=URL: measure a server that is there", 0, 0},
        {"set", 's', KM_LIST, &o->set, "FLAG=VALUE",
         "a flag of kvmark run for every row that does not set it itself; may be given again", 0, 0},
        {"pairs", 0, KM_INT, &o->pairs, "N", "repeats of each row (default: as the suite says)", 1, 1000},
        {"table", 0, KM_STR, &o->table, "ID", "make this table only", 0, 0},
        {"plan", 0, KM_BOOL, &o->plan, NULL, "print the runs that would be made, and make none", 0, 0},
        {"program", 0, KM_STR, &o->program, "FILE", "the kvmark to run (default: this one)", 0, 0},
        {"quiet", 'q', KM_BOOL, &o->quiet, NULL, "no progress on stderr", 0, 0},
    };
    int n = (int)(sizeof table / sizeof *table);
    n = n < max ? n : max;
    memcpy(out, table, (size_t)n * sizeof *out);
    return n;
}

static int flags(struct km_flag *out, int max)
{
    struct bench_opts o;
    int n = bench_flags(&o, out, max);
    for (int i = 0; i < n; i++)
        out[i].dst = NULL;
    return n;
}

static void clock_text(double s, char *out, size_t size)
{
    if (s < 0)
        snprintf(out, size, "-:--");
    else if (s < 3600)
        snprintf(out, size, "%d:%02d", (int)s / 60, (int)s % 60);
    else
        snprintf(out, size, "%d:%02d:%02d", (int)s / 3600, (int)s / 60 % 60, (int)s % 60);
}

/* The status line on a terminal; elsewhere the runs' own lines, which come every ten seconds, and one an end. */
struct screen {
    bool tty;
    char last[300]; /* what the run said last */
};

static void on_event(void *arg, const struct suite_event *n)
{
    struct screen *s = arg;
    char spent[24], left[24];
    bool progress = n->line && strstr(n->line, " requests, ");
    clock_text(n->cell_s, spent, sizeof spent);
    clock_text(n->left_s, left, sizeof left);
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
        struct winsize w = {0};
        bool known = ioctl(2, TIOCGWINSZ, &w) == 0 && w.ws_col > 20;
        int width = known ? w.ws_col - 1 : 79; /* a wrapped line cannot be redrawn */
        snprintf(line, sizeof line, "[%d/%d] %s, %s, about %s left%s%s", n->at, n->of, n->cell, spent, left,
                 *s->last ? ": " : "", s->last);
        fprintf(stderr, "\r\033[K%.*s", width, line);
    }
}

/* A word as the shell reads it back. */
static void put_word(struct km_buf *b, const char *s)
{
    bool plain = *s && strspn(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_./:=,+@%") ==
                           strlen(s);
    km_buf_puts(b, plain ? " " : " '");
    for (; *s; s++)
        km_buf_printf(b, *s == '\'' ? "'\\''" : "%c", *s);
    km_buf_puts(b, plain ? "" : "'");
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
        for (int k = 0; k < p.cells[i].argc; k++)
            put_word(&b, p.cells[i].argv[k]);
        km_buf_printf(&b, " -o");
        km_buf_printf(&b, " %s/cells/%s\n", o->dir, p.cells[i].name);
    }
    fputs(km_buf_str(&b), stdout);
    km_buf_free(&b);
    suite_plan_free(&p);
    return 0;
}

/* The tables, and where the report is. */
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
        km_log(KM_LOG_WARN, "gnuplot is not installed: the report has no pictures");
    km_buf_free(&md);
    km_free(path);
    return rc;
}

static int add_set(struct km_strs *set, struct km_buf *b, const char *flag, const char *value,
                   struct km_err *err)
{
    if (!value)
        return 0;
    const char **v = km_reallocarray(set->v, (size_t)set->n + 1, sizeof *v);
    km_buf_printf(b, "%s=%s", flag, value);
    if (!v || !km_buf_ok(b))
        return km_fail(err, KM_ENOMEM, "out of memory");
    set->v = v;
    set->v[set->n++] = b->data;
    return 0;
}

static int work(const char *file, struct bench_opts *o, const char *command, struct km_err *err)
{
    struct suite *s = NULL;
    struct suite_result res;
    struct screen screen = {.tty = isatty(2) == 1};
    struct suite_opts so = {.dir = o->out,
                               .exe = o->program,
                               .set = o->set,
                               .pairs = (int)o->pairs,
                               .only = o->table,
                               .command = command,
                               .on_event = o->quiet ? NULL : on_event,
                               .arg = &screen};
    int rc = suite_read(&s, file, err), status = CMD_USAGE;
    if (!rc && o->plan) {
        rc = print_plan(s, &so, err);
        status = rc ? CMD_USAGE : CMD_OK;
    } else if (!rc && !(rc = suite_run(s, &so, &res, err))) {
        status = CMD_FAILED;
        if (res.failed)
            km_log(KM_LOG_ERROR,
                   "%d of %d runs failed; %s/logs has what they said, and the same command tries them again",
                   res.failed, res.failed + res.ran, o->out);
        if (res.interrupted)
            km_log(KM_LOG_WARN, "interrupted; the same command goes on from here");
        if (res.done)
            rc = print_result(o->out, err);
        else
            km_log(KM_LOG_ERROR, "no run finished, so there is nothing to report");
        if (!rc && res.done && !res.failed && !res.interrupted)
            status = CMD_OK;
    } else if (rc == KM_EIO || rc == KM_ENOMEM) {
        status = CMD_FAILED;
    }
    suite_free(s);
    if (rc)
        km_log(KM_LOG_ERROR, "%s", err->msg);
    return status;
}

static int run(int argc, char **argv)
{
    struct bench_opts o = {0};
    struct km_flag table[MAX_FLAGS];
    struct km_strs pos = {0};
    struct km_buf command = {0}, device = {0}, url = {0};
    struct km_err err = {0};
    bool help;
    int n = bench_flags(&o, table, MAX_FLAGS), status = CMD_USAGE;
    int rc = km_args_parse(table, n, argc, argv, &pos, &help, &err);
    if (!rc && pos.n != 1)
        rc = km_fail(&err, KM_EINVAL, "bench takes one suite file, not %d; see kvmark help bench", pos.n);
    if (!rc && !o.out && !o.plan)
        rc = km_fail(&err, KM_EINVAL, "--output is missing; give the folder for the results");
    if (!rc && !o.out)
        o.out = "DIR";
    if (!rc)
        rc = add_set(&o.set, &device, "device", o.device, &err);
    if (!rc)
        rc = add_set(&o.set, &url, "url", o.url, &err);
    km_buf_puts(&command, "kvmark bench");
    for (int i = 0; i < argc; i++)
        put_word(&command, argv[i]);
    if (rc)
        km_log(KM_LOG_ERROR, "%s", err.msg);
    else
        status = work(pos.v[0], &o, km_buf_str(&command), &err);
    km_buf_free(&command);
    km_buf_free(&device);
    km_buf_free(&url);
    km_free(o.set.v);
    km_free(pos.v);
    return status;
}

const struct cmd cmd_bench = {
    .name = "bench",
    .usage = "SUITE.json -o DIR [FLAGS]",
    .summary = "Run a whole matrix of tables, rows and repeats, and report on it",
    .text = "A suite says which tables to make; each row is a set of flags for kvmark run, and each run a\n"
            "process of its own. Rows take turns, repeat by repeat (AB BA BA AB), so that what drifts hits\n"
            "all of them; runs that several tables ask for are made once. DIR gets a run folder per cell,\n"
            "tables.md, report.html and plots; stdout the tables.\n\n"
            "A run that DIR holds already is not made again: the same command goes on where it stopped.\n"
            "Ctrl-C ends the running cell and reports on what there is; a second one kills it. The exit\n"
            "status is 1 when a run failed or was cut short.\n\n"
            "--set and its short forms replace the suite's defaults and a table's flags, never those of a\n"
            "row: what a table compares stays as it is.",
    .run = run,
    .flags = flags,
};
