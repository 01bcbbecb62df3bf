/* A run without a server: a trace by formula, written as a run folder. */
#include "harness/suite/test/fake_run.h"

#include "base/clock.h"
#include "base/mem.h"
#include "harness/run/runfolder.h"

#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static volatile sig_atomic_t stop;

static void on_signal(int sig)
{
    (void)sig;
    stop = 1;
}

static double noise(uint64_t *s)
{
    *s = *s * 6364136223846793005u + 1442695040888963407u;
    return (double)(*s >> 11) * 0x1p-53 - 0.5;
}

struct fake {
    const char *dir, *kv, *device;
    int chunk, out, turns, convs;
    bool fail;
    double wait;
};

/* The trace of a server that handles one request at a time. TTFT is 10 ms plus the prefill of the tokens that no cache
 * holds, at 50,000 tokens per second, with noise; TPOT is 3 ms. */
static void make_trace(const struct fake *f, struct hz_trace *t)
{
    bool layer = strcmp(f->kv, "none") != 0;
    uint64_t rng = 1469598103934665603u;
    for (const char *p = f->dir; *p; p++)
        rng = (rng ^ (unsigned char)*p) * 1099511628211u;
    t->n = t->cap = f->convs * f->turns;
    t->recs = km_calloc((size_t)t->n, sizeof *t->recs);
    t->cap_ticks = (size_t)t->n * (size_t)f->out;
    t->ticks = km_calloc(t->cap_ticks, sizeof *t->ticks);
    t->begin_ns = km_now_ns();
    int64_t now = t->begin_ns + 1;
    double drift = 1 + 0.03 * noise(&rng);
    for (int i = 0; i < t->n; i++) {
        struct hz_rec *q = &t->recs[i];
        int turn = i / f->convs, prompt = 4500 + 300 * turn + (i % f->convs) * 37;
        int held = layer && turn ? (prompt - 300) / f->chunk * f->chunk : 0;
        *q = (struct hz_rec){.conv = i % f->convs,
                             .turn = turn,
                             .sched_ns = now,
                             .start_ns = now,
                             .status = 200,
                             .ok = true,
                             .messages = 2 * turn + 1};
        q->asked_tokens = q->output_tokens = q->local_output_tokens = f->out;
        q->prompt_tokens = prompt + 12;
        q->local_prompt_tokens = prompt;
        q->cached_tokens = held;
        q->local_first_tokens = 1;
        q->header_ns = now + 1000;
        q->first_ns = q->first_any_ns =
            now + (int64_t)(drift * (1 + 0.2 * noise(&rng)) * ((prompt - held) / 5e4 + 0.01) * 1e9);
        q->tick0 = t->n_ticks;
        q->n_ticks = f->out;
        for (int k = 0; k < f->out; k++)
            t->ticks[t->n_ticks++] = (struct hz_tick){.ns = q->first_ns + k * 3000000L, .tokens = 1};
        q->last_ns = q->last_any_ns = t->ticks[t->n_ticks - 1].ns;
        q->done_ns = q->last_ns + 10000;
        snprintf(q->finish, sizeof q->finish, "length");
        now = q->done_ns + 1000;
    }
    t->end_ns = now;
    t->health =
        (struct hz_health){.cpu_s = 0.1, .wall_s = 10, .events = t->n_ticks, .reads = t->n_ticks, .kernel_stamps = 1};
    snprintf(t->model, sizeof t->model, "fake-model");
}

int fake_run(int argc, char **argv)
{
    struct fake f = {.dir = "", .kv = "none", .device = "cpu", .chunk = 256, .out = 20, .turns = 6, .convs = 12};
    cJSON *options = cJSON_CreateObject();
    for (int i = 2; i < argc; i++) {
        const char *a = argv[i], *v = strchr(a, '=');
        v = v ? v + 1 : "";
        f.fail |= !strcmp(a, "--fail");
        if (!strcmp(a, "-o") && i + 1 < argc)
            f.dir = argv[++i];
        else if (!strncmp(a, "--kv-cache=", 11))
            f.kv = v;
        else if (!strncmp(a, "--device=", 9))
            f.device = v;
        else if (!strncmp(a, "--chunk-size=", 13))
            f.chunk = atoi(v);
        else if (!strncmp(a, "--output-len=", 13))
            f.out = atoi(v);
        else if (!strncmp(a, "--turns=", 8))
            f.turns = atoi(v);
        else if (!strncmp(a, "--wait=", 7))
            f.wait = atof(v);
        else if (!strncmp(a, "--num-gpu-blocks-override=", 26))
            cJSON_AddNumberToObject(options, "num-gpu-blocks-override", atof(v));
    }
    cJSON_AddNumberToObject(options, "block-size", 16);
    signal(SIGINT, on_signal);
    fprintf(stderr, "kvmark: %d/%d requests, 1 active, 0 failed, 0:00, ETA 0:01, 100 tok/s in, 5 out, TTFT 90 ms\n", 3,
            f.turns * f.convs);
    for (double spent = 0; spent < f.wait && !stop; spent += 0.01)
        usleep(10000);
    if (f.fail) {
        fprintf(stderr, "kvmark: error: the fake was told to fail\n");
        cJSON_Delete(options);
        return 1;
    }
    struct hz_trace t = {0};
    struct hz_summary seed, strict;
    struct km_err err = {0};
    char started[32];
    km_wall_iso(started, sizeof started);
    make_trace(&f, &t);
    hz_summarize(&t, WL_MULTI_TURN, HZ_SEED, &seed);
    hz_summarize(&t, WL_MULTI_TURN, HZ_STRICT, &strict);
    struct run_info info = {.workload = "fake",
                            .workload_sha256 = "feed",
                            .workload_text = "built-in text",
                            .workload_kind = WL_MULTI_TURN,
                            .workload_requests = t.n,
                            .target_kind = "kvmark",
                            .target_url = "",
                            .device = f.device,
                            .model = "fake-model",
                            .kv = f.kv,
                            .dtype = "float32",
                            .dummy_weights = true,
                            .simulated = !strncmp(f.device, "sim:", 4),
                            .command = "kvmark run fake",
                            .commit = "abc",
                            .binary_sha256 = "b1",
                            .started = started,
                            .options = options};
    int rc = run_folder_write(f.dir, &info, &t, &seed, &strict, &err);
    if (rc)
        fprintf(stderr, "kvmark: error: %s\n", err.msg);
    hz_trace_free(&t);
    cJSON_Delete(options);
    return rc || stop ? 1 : 0;
}
