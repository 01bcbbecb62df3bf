/* The status line. The client calls it at most ten times a second, so it may format freely. */
#include "harness/cli/progress.h"

#include "base/clock.h"

#include <signal.h>
#include <stdio.h>
#include <unistd.h>

static volatile sig_atomic_t interrupted;

static void on_interrupt(int sig)
{
    interrupted = 1;
    signal(sig, SIG_DFL);
}

void progress_catch_interrupt(void)
{
    struct sigaction sa = {.sa_handler = on_interrupt};
    sigaction(SIGINT, &sa, NULL);
}

bool progress_interrupted(void)
{
    return interrupted;
}

void progress_start(struct progress *p, bool quiet)
{
    *p = (struct progress){.tty = isatty(2) == 1, .quiet = quiet, .last_ns = km_now_ns()};
}

/* "1:05" or "-:--" while nothing is known. */
static void clock_text(double s, char *out, size_t size)
{
    if (s < 0 || s > 359999)
        snprintf(out, size, "-:--");
    else
        snprintf(out, size, "%d:%02d", (int)s / 60, (int)s % 60);
}

bool progress_update(void *arg, const struct client_progress *now)
{
    struct progress *p = arg;
    int64_t t = km_now_ns();
    int64_t gap = p->tty ? 200000000 : 10000000000;
    if (!p->quiet && t - p->last_ns >= gap) {
        double s = (double)now->elapsed_ns / 1e9;
        int finished = now->done + now->failed;
        char spent[16], left[16];
        clock_text(s, spent, sizeof spent);
        clock_text(finished ? s * (now->total - finished) / finished : -1, left, sizeof left);
        fprintf(stderr, "%s%d/%d requests, %d active, %d failed, %s, ETA %s, %.0f tok/s in, %.0f out, TTFT %.0f ms%s",
                p->tty ? "\r\033[K" : "kvmark: ", now->done, now->total, now->active, now->failed, spent, left,
                s > 0 ? (double)now->prompt_tokens / s : 0, s > 0 ? (double)now->output_tokens / s : 0,
                now->ttft_mean_ms, p->tty ? "" : "\n");
        p->last_ns = t;
        p->drawn = p->tty;
    }
    return !interrupted;
}

void progress_end(struct progress *p)
{
    if (p->drawn)
        fprintf(stderr, "\r\033[K");
    p->drawn = false;
}
