/* The runs of a suite: one child process a cell, its folder, its log, and suite.json around them.
 *
 * A cell is done when its folder holds run.json, and only a run that was left to finish leaves one there; so a
 * suite can be stopped and started at any point. suite.json is written before the first cell and after each. */
#include "harness/suite/suite.h"

#include "base/clock.h"
#include "base/file.h"
#include "base/hash.h"
#include "base/mem.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

struct runner {
    const struct suite *s;
    struct suite_opts o;
    struct suite_plan plan;
    char *exe, *file; /* DIR/suite.json */
    char nonce[17];
    char started[32];
    cJSON *before;     /* DIR/suite.json as it was; NULL: a new folder */
    cJSON *failed;     /* array */
    char **dirs;       /* [plan.n] run folders */
    int lock, signals; /* file descriptors */
    sigset_t old_mask;
    int missing, at; /* cells to run, and which of them is on */
    double spent;    /* seconds in cells run so far */
    bool interrupted;
};

static const char *str(const cJSON *o, const char *key)
{
    const cJSON *v = cJSON_GetObjectItemCaseSensitive(o, key);
    return cJSON_IsString(v) ? v->valuestring : "";
}

static bool is_done(const char *dir)
{
    char *p = km_path(dir, "run.json");
    bool there = p && km_file_exists(p);
    km_free(p);
    return there;
}

/* Two runs of a suite into one folder would take each other's cells. */
static int open_folder(struct runner *r, struct km_err *err)
{
    int rc = km_mkdirs(r->o.dir, err);
    if (rc)
        return rc;
    r->file = km_path(r->o.dir, "suite.json");
    if (!r->file)
        return km_fail(err, KM_ENOMEM, "out of memory");
    r->lock = open(r->o.dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (r->lock < 0)
        return km_fail(err, KM_EIO, "cannot open %s: %s", r->o.dir, strerror(errno));
    if (flock(r->lock, LOCK_EX | LOCK_NB))
        return km_fail(err, KM_EINVAL, "another bench is writing to %s; wait for it or choose another folder",
                       r->o.dir);
    if (km_file_exists(r->file))
        rc = km_json_file(r->file, 64 << 20, &r->before, err);
    const char *old = str(cJSON_GetObjectItemCaseSensitive(r->before, "provenance"), "nonce");
    uint64_t fresh = 0;
    if (getrandom(&fresh, sizeof fresh, 0) != sizeof fresh)
        fresh = (uint64_t)km_wall_ns();
    if (r->o.nonce || *old)
        snprintf(r->nonce, sizeof r->nonce, "%s", r->o.nonce ? r->o.nonce : old);
    else
        snprintf(r->nonce, sizeof r->nonce, "%08llx", (unsigned long long)(fresh & 0xFFFFFFFF));
    r->o.nonce = r->nonce;
    return rc;
}

/* A done cell stands only for the flags that made it. */
static int check_resume(const struct runner *r, struct km_err *err)
{
    const cJSON *old = cJSON_GetObjectItemCaseSensitive(r->before, "cells");
    for (const cJSON *c = old ? old->child : NULL; c; c = c->next)
        for (int i = 0; i < r->plan.n; i++) {
            const char *dir = str(c, "dir");
            if (strncmp(dir, "cells/", 6) || strcmp(dir + 6, r->plan.cells[i].name) ||
                !strcmp(str(c, "key"), r->plan.cells[i].key))
                continue;
            if (is_done(r->dirs[i]))
                return km_fail(
                    err, KM_EINVAL,
                    "%s was run with other flags or another workload; give -o a new folder, or remove this one",
                    r->dirs[i]);
        }
    return 0;
}

static bool planned(const struct runner *r, const cJSON *cell)
{
    for (int i = 0; i < r->plan.n_places; i++) {
        const struct suite_place *u = &r->plan.places[i];
        const struct suite_table *t = &r->s->tables[u->table];
        const cJSON *repeat = cJSON_GetObjectItemCaseSensitive(cell, "repeat");
        if (!strcmp(str(cell, "table"), t->id) && !strcmp(str(cell, "row"), t->rows[u->row].id) &&
            !strcmp(str(cell, "arm"), t->arms[u->arm].id ? t->arms[u->arm].id : "") && cJSON_IsNumber(repeat) &&
            repeat->valuedouble == u->repeat + 1)
            return true;
    }
    return false;
}

static cJSON *cells_json(const struct runner *r)
{
    cJSON *list = cJSON_CreateArray();
    for (int i = 0; i < r->plan.n_places; i++) {
        const struct suite_place *u = &r->plan.places[i];
        const struct suite_table *t = &r->s->tables[u->table];
        const struct suite_cell *c = &r->plan.cells[u->cell];
        struct km_buf dir = {0};
        km_buf_printf(&dir, "cells/%s", c->name);
        cJSON *o = cJSON_CreateObject();
        cJSON_AddStringToObject(o, "table", t->id);
        cJSON_AddStringToObject(o, "row", t->rows[u->row].id);
        cJSON_AddStringToObject(o, "arm", t->arms[u->arm].id ? t->arms[u->arm].id : "");
        cJSON_AddNumberToObject(o, "repeat", u->repeat + 1);
        cJSON_AddStringToObject(o, "dir", km_buf_str(&dir));
        cJSON_AddStringToObject(o, "key", c->key);
        cJSON_AddItemToArray(list, o);
        km_buf_free(&dir);
    }
    /* Cells of an earlier session that this one leaves alone (--table, fewer pairs) stay part of the report. */
    const cJSON *old = cJSON_GetObjectItemCaseSensitive(r->before, "cells");
    for (const cJSON *c = old ? old->child : NULL; c; c = c->next)
        if (!planned(r, c))
            cJSON_AddItemToArray(list, cJSON_Duplicate(c, true));
    return list;
}

static int write_suite(const struct runner *r, struct km_err *err)
{
    static const char *const ours[] = {"provenance", "cells", "failed", "set"};
    cJSON *v = cJSON_Duplicate(r->s->json, true), *p = cJSON_CreateObject();
    for (int i = 0; v && i < 4; i++)
        cJSON_DeleteItemFromObjectCaseSensitive(v, ours[i]);
    const cJSON *old =
        cJSON_GetObjectItemCaseSensitive(cJSON_GetObjectItemCaseSensitive(r->before, "provenance"), "sessions");
    cJSON *sessions = old ? cJSON_Duplicate(old, true) : cJSON_CreateArray(), *now = cJSON_CreateObject();
    cJSON_AddStringToObject(now, "started", r->started);
    cJSON_AddStringToObject(now, "command", r->o.command ? r->o.command : "");
    cJSON_AddItemToArray(sessions, now);
    cJSON_AddStringToObject(p, "nonce", r->nonce);
    cJSON_AddItemToObject(p, "sessions", sessions);
    cJSON_AddItemToObject(v, "provenance", p);
    cJSON *set = cJSON_AddArrayToObject(v, "set");
    for (int i = 0; i < r->o.set.n; i++)
        cJSON_AddItemToArray(set, cJSON_CreateString(r->o.set.v[i]));
    cJSON_AddItemToObject(v, "cells", cells_json(r));
    cJSON_AddItemToObject(v, "failed", cJSON_Duplicate(r->failed, true));
    int rc = km_json_write(r->file, v, err);
    cJSON_Delete(v);
    return rc;
}

static void tell(const struct runner *r, int what, const char *cell, const char *line, double cell_s)
{
    if (!r->o.on_event)
        return;
    bool over = what == SUITE_CELL_DONE || what == SUITE_CELL_FAILED;
    int finished = over ? r->at : r->at - 1;
    double left = finished > 0 ? r->spent / finished * (r->missing - finished) - (over ? 0 : cell_s) : -1;
    struct suite_event n = {.what = what,
                            .cell = cell,
                            .line = line,
                            .at = r->at,
                            .of = r->missing,
                            .cell_s = cell_s,
                            .left_s = finished > 0 && left < 0 ? 0 : left};
    r->o.on_event(r->o.arg, &n);
}

/* One child and what comes out of it. */
struct child {
    pid_t pid;
    int err; /* its stderr */
    int log;
    struct km_buf line; /* begun, not ended */
    char last[300];     /* its last line: the reason when it fails */
};

static void child_exec(const struct runner *r, const struct suite_cell *c, const char *dir, int err, int log,
                       pid_t parent)
{
    /* Only async-signal-safe calls: nothing here allocates. */
    char *argv[4 + 512];
    int n = 0;
    argv[n++] = r->exe;
    for (int i = 0; i < c->argc && n < 512; i++)
        argv[n++] = c->argv[i];
    argv[n++] = (char *)"-o";
    argv[n++] = (char *)(uintptr_t)dir;
    argv[n] = NULL;
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    if (getppid() != parent)
        _exit(1);
    setpgid(0, 0); /* the terminal's Ctrl-C is ours to pass on */
    sigprocmask(SIG_SETMASK, &r->old_mask, NULL);
    int null = open("/dev/null", O_RDONLY);
    if (null >= 0)
        dup2(null, 0);
    dup2(log, 1);
    dup2(err, 2);
    execv(r->exe, argv);
    static const char text[] = "cannot start the program for this cell\n";
    ssize_t ignored = write(2, text, sizeof text - 1);
    (void)ignored;
    _exit(127);
}

static void split_lines(const struct runner *r, struct child *ch, const char *cell, const char *data, size_t n,
                        double spent)
{
    for (size_t i = 0; i < n; i++) {
        if (data[i] != '\n' && data[i] != '\r') {
            if (ch->line.len < sizeof ch->last)
                km_buf_putc(&ch->line, data[i]);
            continue;
        }
        const char *text = km_buf_str(&ch->line);
        if (!strncmp(text, "kvmark: ", 8))
            text += 8;
        if (*text) {
            snprintf(ch->last, sizeof ch->last, "%s", text);
            tell(r, SUITE_CELL_OUTPUT, cell, ch->last, spent);
        }
        km_buf_clear(&ch->line);
    }
}

/* Reads what there is; false at the end. */
static bool drain(const struct runner *r, struct child *ch, const char *cell, double spent)
{
    char buf[4096];
    ssize_t n = read(ch->err, buf, sizeof buf);
    if (n <= 0)
        return n < 0 && (errno == EINTR || errno == EAGAIN);
    ssize_t kept = write(ch->log, buf, (size_t)n); /* a full disk shows up when the run writes its folder */
    (void)kept;
    split_lines(r, ch, cell, buf, (size_t)n, spent);
    return true;
}

static bool pressed(const struct runner *r)
{
    struct signalfd_siginfo si;
    return read(r->signals, &si, sizeof si) == sizeof si;
}

/* Waits for the child and passes on what it says and what the user presses. Its wait status. */
static int attend(struct runner *r, struct child *ch, const char *cell, double *seconds)
{
    int64_t begin = km_now_ns();
    int status = 0;
    bool open = true;
    for (;;) {
        struct pollfd p[2] = {{.fd = open ? ch->err : -1, .events = POLLIN}, {.fd = r->signals, .events = POLLIN}};
        poll(p, 2, 1000);
        double spent = (double)(km_now_ns() - begin) / 1e9;
        if (p[0].revents)
            open = drain(r, ch, cell, spent);
        if (pressed(r)) {
            kill(r->interrupted ? -ch->pid : ch->pid, r->interrupted ? SIGKILL : SIGINT);
            r->interrupted = true;
        }
        tell(r, SUITE_CELL_RUNNING, cell, NULL, spent);
        if (waitpid(ch->pid, &status, open ? WNOHANG : 0) == ch->pid)
            break;
    }
    /* What was written just before the end; a grandchild that keeps the pipe open is not waited for. */
    fcntl(ch->err, F_SETFL, O_NONBLOCK);
    struct pollfd p = {.fd = ch->err, .events = POLLIN};
    while (open && poll(&p, 1, 0) > 0 && drain(r, ch, cell, 0))
        ;
    kill(-ch->pid, SIGTERM); /* whatever the run left behind */
    *seconds = (double)(km_now_ns() - begin) / 1e9;
    r->spent += *seconds;
    return status;
}

/* A name for a file from a cell's name. */
static char *log_path(const char *dir, const char *name)
{
    struct km_buf b = {0};
    km_buf_printf(&b, "%s/logs/", dir);
    for (const char *s = name; *s; s++)
        km_buf_putc(&b, *s == '/' ? '_' : *s);
    km_buf_puts(&b, ".log");
    return km_buf_take(&b);
}

/* A run that was cut short has figures, but not those of the workload. */
static void set_aside(const char *dir)
{
    char *from = km_path(dir, "run.json"), *to = km_path(dir, "run-partial.json");
    if (from && to)
        rename(from, to);
    km_free(from);
    km_free(to);
}

static void add_failed(struct runner *r, const char *cell, const char *why)
{
    cJSON *o = cJSON_CreateObject();
    cJSON_AddStringToObject(o, "cell", cell);
    cJSON_AddStringToObject(o, "message", why);
    cJSON_AddItemToArray(r->failed, o);
}

/* Runs one cell. 0 when it ran, well or not (*good says); <0 when nothing can be run here. */
static int run_cell(struct runner *r, int i, bool *good, struct km_err *err)
{
    const struct suite_cell *c = &r->plan.cells[i];
    struct child ch = {0};
    int pipes[2] = {-1, -1}, rc = km_mkdirs(r->dirs[i], err);
    char *log = log_path(r->o.dir, c->name);
    *good = false;
    if (rc || !log) {
        km_free(log);
        return rc ? rc : km_fail(err, KM_ENOMEM, "out of memory");
    }
    ch.log = open(log, O_WRONLY | O_CREAT | O_TRUNC | O_APPEND | O_CLOEXEC, 0666);
    if (ch.log < 0 || pipe2(pipes, O_CLOEXEC)) {
        rc = km_fail(err, KM_EIO, "cannot open %s: %s", log, strerror(errno));
    } else {
        pid_t parent = getpid();
        tell(r, SUITE_CELL_STARTED, c->name, NULL, 0);
        ch.err = pipes[0];
        ch.pid = fork();
        if (!ch.pid)
            child_exec(r, c, r->dirs[i], pipes[1], ch.log, parent);
        close(pipes[1]);
        pipes[1] = -1;
        if (ch.pid < 0)
            rc = km_fail(err, KM_EIO, "cannot start a process: %s", strerror(errno));
    }
    if (!rc) {
        double seconds;
        int status = attend(r, &ch, c->name, &seconds), code = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
        struct km_buf why = {0};
        if (r->interrupted)
            set_aside(r->dirs[i]);
        *good = (code == 0 || code == 3) && is_done(r->dirs[i]);
        if (r->interrupted)
            km_buf_puts(&why, "interrupted");
        else if (WIFSIGNALED(status))
            km_buf_printf(&why, "ended by signal %d (%s)", WTERMSIG(status), strsignal(WTERMSIG(status)));
        else if (!*good)
            km_buf_printf(&why, "exit %d%s%s", code, *ch.last ? ": " : "", ch.last);
        if (!*good)
            add_failed(r, c->name, km_buf_str(&why));
        tell(r, *good ? SUITE_CELL_DONE : SUITE_CELL_FAILED, c->name, *good ? NULL : km_buf_str(&why), seconds);
        km_buf_free(&why);
    }
    if (pipes[0] >= 0)
        close(pipes[0]);
    if (pipes[1] >= 0)
        close(pipes[1]);
    if (ch.log >= 0)
        close(ch.log);
    km_buf_free(&ch.line);
    km_free(log);
    return rc;
}

static int prepare(struct runner *r, struct km_err *err)
{
    char exe[4096];
    ssize_t n = r->o.exe ? 0 : readlink("/proc/self/exe", exe, sizeof exe - 1);
    int rc = n < 0 ? km_fail(err, KM_EIO, "cannot find this program's own file: %s", strerror(errno)) : 0;
    exe[n > 0 ? n : 0] = 0;
    r->exe = km_strdup(r->o.exe ? r->o.exe : exe);
    if (!rc)
        rc = open_folder(r, err);
    if (!rc)
        rc = suite_plan_make(r->s, &r->o, &r->plan, err);
    if (rc)
        return rc;
    char *logs = km_path(r->o.dir, "logs");
    r->failed = cJSON_CreateArray();
    r->dirs = km_calloc((size_t)r->plan.n + 1, sizeof *r->dirs);
    rc = logs ? km_mkdirs(logs, err) : 0;
    km_free(logs);
    bool full = logs && r->failed && r->dirs && r->exe;
    for (int i = 0; full && i < r->plan.n; i++) {
        struct km_buf b = {0};
        km_buf_printf(&b, "%s/cells/%s", r->o.dir, r->plan.cells[i].name);
        r->dirs[i] = km_buf_take(&b);
        full = r->dirs[i] != NULL;
        r->missing += full && !is_done(r->dirs[i]);
        if (r->plan.cells[i].argc > 500)
            rc = km_fail(err, KM_EINVAL, "cell %s has %d arguments; 500 is the most", r->plan.cells[i].name,
                         r->plan.cells[i].argc);
    }
    if (!full)
        return km_fail(err, KM_ENOMEM, "out of memory preparing a suite");
    if (!rc)
        rc = check_resume(r, err);
    return rc ? rc : write_suite(r, err);
}

static int run_all(struct runner *r, struct suite_result *res, struct km_err *err)
{
    sigset_t mask;
    int rc = 0;
    sigemptyset(&mask);
    sigaddset(&mask, SIGINT);
    sigaddset(&mask, SIGTERM);
    sigprocmask(SIG_BLOCK, &mask, &r->old_mask);
    r->signals = signalfd(-1, &mask, SFD_CLOEXEC | SFD_NONBLOCK);
    if (r->signals < 0)
        rc = km_fail(err, KM_EIO, "cannot watch for Ctrl-C: %s", strerror(errno));
    for (int i = 0; i < r->plan.n && !rc && !r->interrupted; i++) {
        bool good;
        if (is_done(r->dirs[i]))
            continue;
        if ((r->interrupted = pressed(r)))
            break;
        r->at++;
        if ((rc = run_cell(r, i, &good, err)))
            break;
        res->ran += good;
        res->failed += !good;
        rc = write_suite(r, err);
    }
    for (int i = 0; i < r->plan.n; i++)
        res->done += is_done(r->dirs[i]);
    res->interrupted = r->interrupted;
    if (r->signals >= 0)
        close(r->signals);
    sigprocmask(SIG_SETMASK, &r->old_mask, NULL);
    return rc;
}

int suite_run(const struct suite *s, const struct suite_opts *o, struct suite_result *res, struct km_err *err)
{
    struct runner r = {.s = s, .o = *o, .lock = -1, .signals = -1};
    *res = (struct suite_result){0};
    km_wall_iso(r.started, sizeof r.started);
    int rc = prepare(&r, err);
    if (!rc)
        rc = run_all(&r, res, err);
    for (int i = 0; r.dirs && i < r.plan.n; i++)
        km_free(r.dirs[i]);
    suite_plan_free(&r.plan);
    cJSON_Delete(r.before);
    cJSON_Delete(r.failed);
    if (r.lock >= 0)
        close(r.lock);
    km_free(r.dirs);
    km_free(r.exe);
    km_free(r.file);
    return rc;
}
