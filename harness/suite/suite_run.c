/* Runs the cells of a suite, each in a child process, and writes suite.json.
 *
 * A cell is done when its folder holds run.json. Only a run that was not interrupted has one, so a suite can be
 * interrupted and resumed at any point. suite.json is written before the first cell and after each cell. */
#include "harness/suite/suite.h"

#include "base/clock.h"
#include "base/file.h"
#include "base/mem.h"
#include "harness/run/runfolder.h"
#include "harness/suite/suite_child.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/random.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <unistd.h>

enum { MAX_FILE = 64 << 20 };

struct runner {
    const struct suite *s;
    struct suite_opts o;
    struct suite_plan plan;
    char *exe;  /* the program to run */
    char *file; /* DIR/suite.json */
    char nonce[17];
    char started[32]; /* time of this call, ISO 8601 */
    cJSON *before;    /* DIR/suite.json before this call; NULL: there was none */
    cJSON *failed;    /* array of the failed cells and their reasons */
    char **dirs;      /* [plan.n] run folders */
    int lock;         /* DIR, locked; -1: none */
    int signals;      /* signalfd for SIGINT and SIGTERM; -1: none */
    sigset_t old_mask;
    int missing;  /* number of cells that were not done when this call began */
    int at;       /* the running cell is number `at` of the missing cells, from 1 */
    double spent; /* seconds in the cells that ran */
    bool interrupted;
};

static int no_memory(struct km_err *err)
{
    return km_fail(err, KM_ENOMEM, "out of memory running a suite");
}

static const char *text_of(const cJSON *o, const char *key)
{
    const cJSON *v = cJSON_GetObjectItemCaseSensitive(o, key);
    return cJSON_IsString(v) ? v->valuestring : "";
}

/* Locks DIR, because two suites that run into one folder would overwrite each other's cells. */
static int lock_folder(struct runner *r, struct km_err *err)
{
    int rc = km_mkdirs(r->o.dir, err);
    if (rc)
        return rc;
    r->lock = open(r->o.dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (r->lock < 0)
        return km_fail(err, KM_EIO, "cannot open %s: %s", r->o.dir, strerror(errno));
    if (flock(r->lock, LOCK_EX | LOCK_NB))
        return km_fail(err, KM_EINVAL, "another suite is running into %s; wait until it ends, or choose another folder",
                       r->o.dir);
    return 0;
}

/* Reads the suite.json of an earlier call and sets the nonce: the caller's, else the earlier one, else a random one. */
static int read_before(struct runner *r, struct km_err *err)
{
    uint64_t fresh = 0;
    int rc = km_file_exists(r->file) ? km_json_file(r->file, MAX_FILE, &r->before, err) : 0;
    const char *old = text_of(cJSON_GetObjectItemCaseSensitive(r->before, "provenance"), "nonce");
    if (getrandom(&fresh, sizeof fresh, 0) != sizeof fresh)
        fresh = (uint64_t)km_wall_ns();
    if (r->o.nonce || *old)
        snprintf(r->nonce, sizeof r->nonce, "%s", r->o.nonce ? r->o.nonce : old);
    else
        snprintf(r->nonce, sizeof r->nonce, "%08llx", (unsigned long long)(fresh & 0xFFFFFFFF));
    r->o.nonce = r->nonce;
    return rc;
}

/* Refuses to resume if a cell that is done was made with other options than the plan has for it. */
static int check_resume(const struct runner *r, struct km_err *err)
{
    const cJSON *old = cJSON_GetObjectItemCaseSensitive(r->before, "cells");
    for (const cJSON *c = old ? old->child : NULL; c; c = c->next)
        for (int i = 0; i < r->plan.n; i++) {
            const char *dir = text_of(c, "dir");
            bool same_cell = !strncmp(dir, "cells/", 6) && !strcmp(dir + 6, r->plan.cells[i].name);
            if (same_cell && strcmp(text_of(c, "key"), r->plan.cells[i].key) && run_folder_exists(r->dirs[i]))
                return km_fail(err, KM_EINVAL,
                               "%s was run with other options or another workload; give -o a new folder, or remove "
                               "this one",
                               r->dirs[i]);
        }
    return 0;
}

static const char *arm_id(const struct suite_table *t, int arm)
{
    return t->arms[arm].id ? t->arms[arm].id : "";
}

/* True if the plan has the place of an entry of the list "cells". */
static bool is_planned(const struct runner *r, const cJSON *entry)
{
    const cJSON *repeat = cJSON_GetObjectItemCaseSensitive(entry, "repeat");
    for (int i = 0; i < r->plan.n_places; i++) {
        const struct suite_place *p = &r->plan.places[i];
        const struct suite_table *t = &r->s->tables[p->table];
        if (!strcmp(text_of(entry, "table"), t->id) && !strcmp(text_of(entry, "row"), t->rows[p->row].id) &&
            !strcmp(text_of(entry, "arm"), arm_id(t, p->arm)) && cJSON_IsNumber(repeat) &&
            repeat->valuedouble == p->repeat + 1)
            return true;
    }
    return false;
}

/* The list "cells" of suite.json: the plan's places, then the places of earlier calls that this plan leaves out because
 * of --table or fewer pairs. The places of earlier calls remain part of the report. */
static cJSON *cells_json(const struct runner *r)
{
    cJSON *list = cJSON_CreateArray();
    for (int i = 0; i < r->plan.n_places; i++) {
        const struct suite_place *p = &r->plan.places[i];
        const struct suite_table *t = &r->s->tables[p->table];
        const struct suite_cell *c = &r->plan.cells[p->cell];
        struct km_buf dir = {0};
        km_buf_printf(&dir, "cells/%s", c->name);
        cJSON *o = cJSON_CreateObject();
        cJSON_AddStringToObject(o, "table", t->id);
        cJSON_AddStringToObject(o, "row", t->rows[p->row].id);
        cJSON_AddStringToObject(o, "arm", arm_id(t, p->arm));
        cJSON_AddNumberToObject(o, "repeat", p->repeat + 1);
        cJSON_AddStringToObject(o, "dir", km_buf_str(&dir));
        cJSON_AddStringToObject(o, "key", c->key);
        cJSON_AddItemToArray(list, o);
        km_buf_free(&dir);
    }
    const cJSON *old = cJSON_GetObjectItemCaseSensitive(r->before, "cells");
    for (const cJSON *c = old ? old->child : NULL; c; c = c->next)
        if (!is_planned(r, c))
            cJSON_AddItemToArray(list, cJSON_Duplicate(c, true));
    return list;
}

/* The object "provenance" of suite.json: the nonce, and the start time and the command line of each call. */
static cJSON *provenance_json(const struct runner *r)
{
    cJSON *p = cJSON_CreateObject(), *session = cJSON_CreateObject();
    const cJSON *before = cJSON_GetObjectItemCaseSensitive(r->before, "provenance");
    const cJSON *old = cJSON_GetObjectItemCaseSensitive(before, "sessions");
    cJSON *sessions = old ? cJSON_Duplicate(old, true) : cJSON_CreateArray();
    cJSON_AddStringToObject(session, "started", r->started);
    cJSON_AddStringToObject(session, "command", r->o.command ? r->o.command : "");
    cJSON_AddItemToArray(sessions, session);
    cJSON_AddStringToObject(p, "nonce", r->nonce);
    cJSON_AddItemToObject(p, "sessions", sessions);
    return p;
}

/* Writes DIR/suite.json: the suite as it was read, with the keys that only a result folder has. */
static int write_suite(const struct runner *r, struct km_err *err)
{
    static const char *const added[] = {"provenance", "cells", "failed", "set"};
    cJSON *v = cJSON_Duplicate(r->s->json, true);
    for (int i = 0; v && i < 4; i++)
        cJSON_DeleteItemFromObjectCaseSensitive(v, added[i]);
    cJSON_AddItemToObject(v, "provenance", provenance_json(r));
    cJSON *set = cJSON_AddArrayToObject(v, "set");
    for (int i = 0; i < r->o.set.n; i++)
        cJSON_AddItemToArray(set, cJSON_CreateString(r->o.set.v[i]));
    cJSON_AddItemToObject(v, "cells", cells_json(r));
    cJSON_AddItemToObject(v, "failed", cJSON_Duplicate(r->failed, true));
    int rc = km_json_write(r->file, v, err);
    cJSON_Delete(v);
    return rc;
}

/* Calls the progress display. The remaining time is estimated from the mean duration of the cells that ran. */
static void emit_event(const struct runner *r, int what, const char *cell, const char *line, double cell_s)
{
    if (!r->o.on_event)
        return;
    bool ended = what == SUITE_CELL_DONE || what == SUITE_CELL_FAILED;
    int finished = ended ? r->at : r->at - 1;
    double left = -1;
    if (finished > 0) {
        left = r->spent / finished * (r->missing - finished) - (ended ? 0 : cell_s);
        left = left < 0 ? 0 : left;
    }
    struct suite_event e = {
        .what = what, .cell = cell, .line = line, .at = r->at, .of = r->missing, .cell_s = cell_s, .left_s = left};
    r->o.on_event(r->o.arg, &e);
}

/* The cell whose child is being watched. */
struct watch {
    const struct runner *r;
    const char *cell;
    double seconds; /* since the child started */
};

static void on_line(void *arg, const char *line)
{
    const struct watch *w = arg;
    emit_event(w->r, SUITE_CELL_OUTPUT, w->cell, line, w->seconds);
}

/* True if SIGINT or SIGTERM has arrived since the last call. */
static bool read_signal(const struct runner *r)
{
    struct signalfd_siginfo si;
    return read(r->signals, &si, sizeof si) == sizeof si;
}

/* Waits for the child, passes its lines to the progress display and signals to the child. Returns its wait status. */
static int watch_child(struct runner *r, struct suite_child *ch, const char *cell, double *seconds)
{
    struct watch w = {.r = r, .cell = cell};
    int64_t begin = km_now_ns();
    int status = 0;
    bool open = true;
    for (;;) {
        struct pollfd p[2] = {{.fd = open ? ch->err : -1, .events = POLLIN}, {.fd = r->signals, .events = POLLIN}};
        poll(p, 2, 1000);
        w.seconds = (double)(km_now_ns() - begin) / 1e9;
        if (p[0].revents)
            open = suite_child_read(ch, on_line, &w);
        if (read_signal(r)) {
            kill(r->interrupted ? -ch->pid : ch->pid, r->interrupted ? SIGKILL : SIGINT);
            r->interrupted = true;
        }
        emit_event(r, SUITE_CELL_RUNNING, cell, NULL, w.seconds);
        if (waitpid(ch->pid, &status, open ? WNOHANG : 0) == ch->pid)
            break;
    }
    /* Read what the child wrote just before it ended. Do not wait for the end of the pipe: a grandchild may hold it. */
    w.seconds = 0;
    fcntl(ch->err, F_SETFL, O_NONBLOCK);
    struct pollfd p = {.fd = ch->err, .events = POLLIN};
    while (open && poll(&p, 1, 0) > 0 && suite_child_read(ch, on_line, &w))
        ;
    kill(-ch->pid, SIGTERM); /* ends the processes of the run's group that still exist */
    *seconds = (double)(km_now_ns() - begin) / 1e9;
    r->spent += *seconds;
    return status;
}

/* The path DIR/logs/CELL.log, in which _ replaces the / of the cell's name. */
static char *log_path(const char *dir, const char *cell)
{
    struct km_buf b = {0};
    km_buf_printf(&b, "%s/logs/", dir);
    for (const char *s = cell; *s; s++)
        km_buf_putc(&b, *s == '/' ? '_' : *s);
    km_buf_puts(&b, ".log");
    return km_buf_take(&b);
}

/* Renames the run.json of an interrupted run, because its figures are not those of the whole workload. */
static void rename_partial(const char *dir)
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

/* Records how the child of a cell ended: in "failed", and as an event. False if the cell failed. */
static bool end_cell(struct runner *r, int i, const struct suite_child *ch, int status, double seconds)
{
    const char *cell = r->plan.cells[i].name;
    int code = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
    struct km_buf why = {0};
    if (r->interrupted)
        rename_partial(r->dirs[i]);
    bool good = (code == 0 || code == 3) && run_folder_exists(r->dirs[i]); /* 3: the run is good but missed a limit */
    if (r->interrupted)
        km_buf_puts(&why, "interrupted");
    else if (WIFSIGNALED(status))
        km_buf_printf(&why, "ended by signal %d (%s)", WTERMSIG(status), strsignal(WTERMSIG(status)));
    else if (!good)
        km_buf_printf(&why, "exit %d%s%s", code, *ch->last ? ": " : "", ch->last);
    if (!good)
        add_failed(r, cell, km_buf_str(&why));
    emit_event(r, good ? SUITE_CELL_DONE : SUITE_CELL_FAILED, cell, good ? NULL : km_buf_str(&why), seconds);
    km_buf_free(&why);
    return good;
}

/* Runs one cell. *good is false if the cell failed. Returns an error only if no cell could be run. */
static int run_cell(struct runner *r, int i, bool *good, struct km_err *err)
{
    const struct suite_cell *c = &r->plan.cells[i];
    struct suite_child ch;
    double seconds;
    *good = false;
    int rc = km_mkdirs(r->dirs[i], err);
    if (rc)
        return rc;
    char *log = log_path(r->o.dir, c->name);
    if (!log)
        return no_memory(err);
    emit_event(r, SUITE_CELL_STARTED, c->name, NULL, 0);
    if (!(rc = suite_child_start(&ch, r->exe, c, r->dirs[i], log, &r->old_mask, err))) {
        int status = watch_child(r, &ch, c->name, &seconds);
        *good = end_cell(r, i, &ch, status, seconds);
    }
    suite_child_deinit(&ch);
    km_free(log);
    return rc;
}

static int find_program(struct runner *r, struct km_err *err)
{
    char exe[4096];
    ssize_t n = r->o.exe ? 0 : readlink("/proc/self/exe", exe, sizeof exe - 1);
    if (n < 0)
        return km_fail(err, KM_EIO, "cannot find the file of this program: %s", strerror(errno));
    exe[n] = 0;
    return (r->exe = km_strdup(r->o.exe ? r->o.exe : exe)) ? 0 : no_memory(err);
}

/* Makes the paths of the run folders, and counts the cells that have to run. */
static int list_run_folders(struct runner *r, struct km_err *err)
{
    if (!(r->dirs = km_calloc((size_t)r->plan.n + 1, sizeof *r->dirs)))
        return no_memory(err);
    for (int i = 0; i < r->plan.n; i++) {
        const struct suite_cell *c = &r->plan.cells[i];
        struct km_buf b = {0};
        km_buf_printf(&b, "%s/cells/%s", r->o.dir, c->name);
        if (!(r->dirs[i] = km_buf_take(&b)))
            return no_memory(err);
        r->missing += !run_folder_exists(r->dirs[i]);
        if (c->argc > SUITE_MAX_ARGS)
            return km_fail(err, KM_EINVAL, "cell %s has %d arguments; the limit is %d", c->name, c->argc,
                           SUITE_MAX_ARGS);
    }
    return 0;
}

/* Takes all steps before the first cell: locks DIR, makes the plan, checks it against earlier runs, writes suite.json.
 */
static int prepare(struct runner *r, struct km_err *err)
{
    int rc;
    if ((rc = find_program(r, err)) || (rc = lock_folder(r, err)))
        return rc;
    char *logs = km_path(r->o.dir, "logs");
    r->file = km_path(r->o.dir, "suite.json");
    r->failed = cJSON_CreateArray();
    rc = logs && r->file && r->failed ? 0 : no_memory(err);
    if (!rc)
        rc = read_before(r, err);
    if (!rc)
        rc = suite_plan_make(r->s, &r->o, &r->plan, err);
    if (!rc)
        rc = km_mkdirs(logs, err);
    if (!rc)
        rc = list_run_folders(r, err);
    if (!rc)
        rc = check_resume(r, err);
    if (!rc)
        rc = write_suite(r, err);
    km_free(logs);
    return rc;
}

/* Runs the missing cells. SIGINT and SIGTERM are blocked while it does, and read from a file descriptor. */
static int run_cells(struct runner *r, struct suite_result *res, struct km_err *err)
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
        if (run_folder_exists(r->dirs[i]))
            continue;
        if ((r->interrupted = read_signal(r)))
            break;
        r->at++;
        if ((rc = run_cell(r, i, &good, err)))
            break;
        res->ran += good;
        res->failed += !good;
        rc = write_suite(r, err);
    }
    for (int i = 0; i < r->plan.n; i++)
        res->done += run_folder_exists(r->dirs[i]);
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
        rc = run_cells(&r, res, err);
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
