/* Starts the child process of a cell and reads its output. */
#include "harness/suite/suite_child.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

/* Runs in the child after fork, so it makes only async-signal-safe calls and does not allocate. Does not return. */
static void exec_cell(const char *exe, const struct suite_cell *cell, const char *dir, int err, int log,
                      const sigset_t *mask, pid_t parent)
{
    static const char failure[] = "cannot start the program for this cell\n";
    char *argv[SUITE_MAX_ARGS + 4];
    int n = 0;
    argv[n++] = (char *)(uintptr_t)exe;
    for (int i = 0; i < cell->argc && i < SUITE_MAX_ARGS; i++)
        argv[n++] = cell->argv[i];
    argv[n++] = (char *)(uintptr_t) "-o";
    argv[n++] = (char *)(uintptr_t)dir;
    argv[n] = NULL;
    prctl(PR_SET_PDEATHSIG, SIGTERM); /* the run must not outlive the suite */
    if (getppid() != parent)          /* the suite ended before prctl took effect */
        _exit(1);
    setpgid(0, 0);
    sigprocmask(SIG_SETMASK, mask, NULL);
    int null = open("/dev/null", O_RDONLY);
    if (null >= 0)
        dup2(null, 0);
    dup2(log, 1);
    dup2(err, 2);
    execv(exe, argv);
    ssize_t ignored = write(2, failure, sizeof failure - 1);
    (void)ignored;
    _exit(127);
}

int suite_child_start(struct suite_child *ch, const char *exe, const struct suite_cell *cell, const char *dir,
                      const char *log_path, const sigset_t *mask, struct km_err *err)
{
    int pipes[2];
    pid_t parent = getpid();
    *ch = (struct suite_child){.err = -1, .log = -1};
    ch->log = open(log_path, O_WRONLY | O_CREAT | O_TRUNC | O_APPEND | O_CLOEXEC, 0666);
    if (ch->log < 0)
        return km_fail(err, KM_EIO, "cannot open %s: %s", log_path, strerror(errno));
    if (pipe2(pipes, O_CLOEXEC))
        return km_fail(err, KM_EIO, "cannot make a pipe for cell %s: %s", cell->name, strerror(errno));
    ch->err = pipes[0];
    ch->pid = fork();
    if (!ch->pid)
        exec_cell(exe, cell, dir, pipes[1], ch->log, mask, parent);
    int why = errno;
    close(pipes[1]);
    return ch->pid < 0 ? km_fail(err, KM_EIO, "cannot start a process for cell %s: %s", cell->name, strerror(why)) : 0;
}

static void split_lines(struct suite_child *ch, const char *data, size_t n,
                        void (*on_line)(void *arg, const char *line), void *arg)
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
            on_line(arg, ch->last);
        }
        km_buf_clear(&ch->line);
    }
}

bool suite_child_read(struct suite_child *ch, void (*on_line)(void *arg, const char *line), void *arg)
{
    char buf[4096];
    ssize_t n = read(ch->err, buf, sizeof buf);
    if (n <= 0)
        return n < 0 && (errno == EINTR || errno == EAGAIN);
    ssize_t ignored = write(ch->log, buf, (size_t)n); /* on a full disk the run itself fails */
    (void)ignored;
    split_lines(ch, buf, (size_t)n, on_line, arg);
    return true;
}

void suite_child_deinit(struct suite_child *ch)
{
    if (ch->err >= 0)
        close(ch->err);
    if (ch->log >= 0)
        close(ch->log);
    km_buf_free(&ch->line);
    *ch = (struct suite_child){.err = -1, .log = -1};
}
