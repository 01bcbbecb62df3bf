/* Writes the progress line of a run, and catches Ctrl-C. */
#include "harness/cli/progress.h"

#include "base/clock.h"
#include "harness/cli/terminal.h"

#include <signal.h>
#include <stdio.h>

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
    *p = (struct progress){.tty = term_is(2), .quiet = quiet, .last_ns = km_now_ns()};
}

static void format_line(const struct client_progress *now, char *out, size_t size)
{
    double s = (double)now->elapsed_ns / 1e9;
    int finished = now->done + now->failed;
    char spent[16], left[16];
    term_clock(s, spent, sizeof spent);
    term_clock(finished ? s * (now->total - finished) / finished : -1, left, sizeof left);
    snprintf(out, size, "%d/%d requests, %d in flight, %d failed, %s, %s left, %.0f tok/s in, %.0f out, TTFT %.0f ms",
             now->done, now->total, now->active, now->failed, spent, left, s > 0 ? (double)now->prompt_tokens / s : 0,
             s > 0 ? (double)now->output_tokens / s : 0, now->ttft_mean_ms);
}

/* The client calls this at most ten times a second, so the time that it takes does not matter. */
bool progress_update(void *arg, const struct client_progress *now)
{
    struct progress *p = arg;
    int64_t t = km_now_ns(), gap = p->tty ? 200000000 : 10000000000;
    char line[256];
    if (p->quiet || t - p->last_ns < gap)
        return !interrupted;
    format_line(now, line, sizeof line);
    if (p->tty)
        fprintf(stderr, "\r\033[K%.*s", term_width(2) - 1, line); /* a wrapped line cannot be redrawn */
    else
        fprintf(stderr, "kvmark: %s\n", line);
    p->last_ns = t;
    p->drawn = p->tty;
    return !interrupted;
}

void progress_end(struct progress *p)
{
    if (p->drawn)
        fprintf(stderr, "\r\033[K");
    p->drawn = false;
}
