/* Benchmark of the engine with the CUDA backend, without HTTP: steps at the sizes of the speed goals, with dummy
 * weights and random prompts.
 *
 *   cuda_bench [MODEL] [OUT.json]   all measurements; MODEL is qwen3-8b by default
 *   cuda_bench MODEL small_m        only steps of few rows: prefill of 128 tokens, decodes with batch 1, 64 and 256
 *   cuda_bench MODEL copies         the copier, and the steps' durations while it copies (copy_bench.h)
 *   cuda_bench MODEL tail           only steps that compute the last rows of long prompts, after a hit in the prefix
 *                                   cache
 *   cuda_bench MODEL profile        a prefill of 5,000 tokens and a decode step with batch 64, for a profiler
 *
 * Prints a Markdown table with median, 10th and 90th percentile over repeats, and the goal if there is one. The host
 * time of a step is the duration of eng_step minus the time inside the backend's `wait`. The GPU runs another step
 * during most of the host time. */
#include "base/clock.h"
#include "base/json.h"
#include "base/mem.h"
#include "engine/cuda/bench/copy_bench.h"
#include "engine/cuda/bench/figure.h"
#include "engine/engine.h"

#include <cuda_profiler_api.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_BATCHED_TOKENS = 8192, MAX_SEQS = 256 }; /* options of the engine */
enum { CONTEXT = 640, DECODES = 64 };               /* tokens of a decode's context; timed decodes */

/* ---- the backend with a timed wait, and the engine's instance of it ---- */

static int64_t waited_ns; /* time inside `wait` since the caller last set this to 0 */

static int timed_wait(struct be *b, uint64_t ticket, struct smp_result *out, struct km_err *err)
{
    int64_t t0 = km_now_ns();
    int rc = be_cuda.wait(b, ticket, out, err);
    waited_ns += km_now_ns() - t0;
    return rc;
}

static struct be *opened;          /* by the engine */
static struct kv_geom opened_geom; /* its pool */

static int recorded_open(struct be **out, const struct be_opts *o, const struct mdl *m, struct kv_geom *g,
                         struct km_err *err)
{
    int rc = be_cuda.open(out, o, m, g, err);
    if (!rc)
        opened = *out, opened_geom = *g;
    return rc;
}

/* ---- requests ---- */

/* A prompt of n random ids. The caller frees it. */
static int32_t *random_prompt(int n, int vocab, uint32_t seed)
{
    int32_t *p = km_calloc((size_t)n, sizeof *p);
    if (!p)
        exit(1);
    for (int i = 0; i < n; i++) {
        seed = seed * 1664525u + 1013904223u;
        p[i] = (int32_t)((seed >> 8) % (uint32_t)vocab);
    }
    return p;
}

/* Submits a request with the prompt p[n] and n_out output tokens. temperature 0: greedy. Frees p. */
static void submit_prompt(struct eng *e, int32_t *p, int n, int n_out, double temperature, uint32_t seed)
{
    struct km_err err;
    uint64_t id;
    struct eng_request q = {
        .prompt = p, .n_prompt = n, .max_tokens = n_out, .ignore_eos = true, .sampling = smp_defaults()};
    q.sampling.temperature = temperature;
    q.sampling.top_p = temperature > 0 ? 0.95 : 1;
    q.sampling.top_k = temperature > 0 ? 20 : 0;
    q.sampling.seed = seed;
    fig_exit_on_error(eng_submit(e, &q, &id, &err), &err);
    km_free(p);
}

/* Submits a request of n random prompt tokens. */
static void submit(struct eng *e, int n, int n_out, double temperature, uint32_t seed)
{
    submit_prompt(e, random_prompt(n, mdl_config(eng_model(e))->vocab, seed), n, n_out, temperature, seed);
}

/* Runs steps until no request is left. */
static void run_to_idle(struct eng *e)
{
    struct eng_events v;
    struct km_err err;
    while (!eng_idle(e))
        fig_exit_on_error(eng_step(e, &v, &err), &err);
}

/* What else uses the GPU during the measurement: appended to the text of a figure; "" for nothing. */
static const char *beside = "";

/* Measures the milliseconds from the submission of a prompt of n tokens to its first token, with no other request. */
static void measure_prefill(struct eng *e, const char *key, int n, int repeats, double goal)
{
    struct figure f = {0};
    char what[128];
    for (int i = -1; i < repeats; i++) { /* the first run is a warm-up */
        int64_t t0 = km_now_ns();
        submit(e, n, 1, 0, (uint32_t)(1000 + i));
        run_to_idle(e);
        if (i >= 0)
            fig_add(&f, (double)(km_now_ns() - t0) / 1e6);
    }
    snprintf(what, sizeof what, "prompt of %d tokens%s, time to first token, ms", n, beside);
    fig_row(key, what, &f, goal);
}

/* Measures the milliseconds of a step, and the microseconds of its host time, while n requests decode at a context
 * around CONTEXT. */
static void measure_decode(struct eng *e, int n, double temperature, double goal, double host_goal)
{
    struct figure step = {0}, host = {0};
    struct eng_events v;
    struct eng_stats st;
    struct km_err err;
    char key[48], what[160];
    double slowest = 0;
    int block = eng_defaults().block_size;
    eng_stats(e, &st);
    if (st.pages < n * ((CONTEXT + DECODES / 2 + 32 + block - 1) / block)) {
        printf("| decode, batch %d, context %d: skipped, because %d blocks cannot hold the KV | | | | | |\n", n,
               CONTEXT, st.pages);
        return;
    }
    for (int i = 0; i < n; i++)
        submit(e, CONTEXT - DECODES / 2, DECODES + 32, temperature, (uint32_t)(7 * i + 1));
    for (int n_full = 0; !eng_idle(e);) { /* consecutive steps in which all n requests decode */
        struct eng_stats before, after;
        eng_stats(e, &before);
        waited_ns = 0;
        int64_t t0 = km_now_ns();
        fig_exit_on_error(eng_step(e, &v, &err), &err);
        int64_t t = km_now_ns() - t0;
        eng_stats(e, &after);
        bool all = after.computed_tokens - before.computed_tokens == n && before.running == n && v.n == n;
        n_full = all ? n_full + 1 : 0;
        if (n_full > 2) {
            fig_add(&step, (double)t / 1e6);
            slowest = fmax(slowest, (double)t / 1e6);
            fig_add(&host, (double)(t - waited_ns) / 1e3);
        }
    }
    const char *how = temperature > 0 ? ", temperature 0.6, top-p 0.95, top-k 20" : "";
    snprintf(key, sizeof key, "decode_%d%s_ms", n, temperature > 0 ? "_sampled" : "");
    snprintf(what, sizeof what, "decode, batch %d, context %d%s%s, ms a step", n, CONTEXT, how, beside);
    fig_row(key, what, &step, goal);
    if (*beside) {
        snprintf(key, sizeof key, "decode_%d_slowest_ms", n);
        fig_value(key, "the slowest of these steps, ms", slowest, 0);
    }
    snprintf(key, sizeof key, "host_%d%s_us", n, temperature > 0 ? "_sampled" : "");
    snprintf(what, sizeof what, "host time of this step, us");
    fig_row(key, what, &host, host_goal);
}

/* Brackets one prefill and one decode step for a profiler that starts at cudaProfilerStart (ncu --profile-from-start
 * off). */
static void run_for_profiler(struct eng *e)
{
    struct eng_events v;
    struct km_err err;
    measure_prefill(e, "", 5000, 1, 0);
    cudaProfilerStart();
    submit(e, 5000, 1, 0, 3);
    run_to_idle(e);
    cudaProfilerStop();
    for (int i = 0; i < 64; i++)
        submit(e, CONTEXT, 8, 0, (uint32_t)(7 * i + 1));
    for (int steps = 0; !eng_idle(e);) {
        fig_exit_on_error(eng_step(e, &v, &err), &err);
        steps = v.n == 64 ? steps + 1 : 0;
        if (steps == 2)
            cudaProfilerStart();
        if (steps == 3)
            cudaProfilerStop();
    }
}

static void measure_small_m(struct eng *e)
{
    measure_prefill(e, "first_token_128_ms", 128, 15, 0);
    measure_decode(e, 1, 0, 0, 0);
    measure_decode(e, 64, 0, 0, 0);
    measure_decode(e, 256, 0, 0, 0);
}

/* Measures the copier, and then the steps while it copies. */
static void measure_copies(struct eng *e)
{
    struct cpb *c;
    struct km_err err;
    fig_exit_on_error(cpb_open(&c, &be_cuda, opened, &opened_geom, &err), &err);
    fig_exit_on_error(cpb_measure(c, &err), &err);
    for (int t = 0; t < CPB_TRAFFICS; t++) {
        double gbps;
        beside = cpb_traffic_names[t];
        fig_exit_on_error(cpb_start(c, t, &err), &err);
        measure_decode(e, 64, 0, 0, 0);
        measure_prefill(e, "first_token_5000_ms", 5000, 5, 0);
        fig_exit_on_error(cpb_stop(c, &gbps, &err), &err);
        if (t != CPB_NONE)
            fig_value("traffic_gbps", "rate of this traffic meanwhile, GB/s", gbps, 0);
    }
    cpb_close(c);
}

/* Submits a request whose first n tokens are those of prefix `which`, and whose last `rows` tokens depend on `seed`. */
static void submit_tail(struct eng *e, int which, int n, int rows, uint32_t seed)
{
    int vocab = mdl_config(eng_model(e))->vocab;
    int32_t *p = random_prompt(n + rows, vocab, (uint32_t)(31 * which + 5)), *end = random_prompt(rows, vocab, seed);
    memcpy(p + n, end, sizeof *p * (size_t)rows);
    km_free(end);
    submit_prompt(e, p, n + rows, 1, 0, seed);
}

/* Measures the milliseconds of a step that computes the last `rows` rows of `batch` requests. The n tokens before them
 * are in the prefix cache; n is a multiple of the block size. */
static void measure_tail(struct eng *e, int batch, int n, int rows, double goal)
{
    enum { REPEATS = 11 };
    struct figure step = {0}, all = {0};
    char key[64], what[96];
    for (int i = -1; i < REPEATS; i++) { /* the first run is a warm-up */
        struct eng_stats before, after;
        for (int k = 0; k < batch; k++)
            submit_tail(e, k, n, rows, (uint32_t)(100000 * rows + 10000 * batch + 1000 * k + i + 1));
        eng_stats(e, &before);
        int64_t t0 = km_now_ns();
        run_to_idle(e);
        int64_t t = km_now_ns() - t0;
        eng_stats(e, &after);
        if (after.computed_tokens - before.computed_tokens != (int64_t)batch * rows ||
            after.steps != before.steps + 1) {
            fprintf(stderr, "cuda_bench: %d tails of %d rows took %lld steps and %lld rows; expected one step\n", batch,
                    rows, (long long)(after.steps - before.steps),
                    (long long)(after.computed_tokens - before.computed_tokens));
            exit(1);
        }
        if (i < 0)
            continue;
        fig_add(&step, (double)(after.be.busy_ns - before.be.busy_ns) / 1e6);
        fig_add(&all, (double)t / 1e6);
    }
    snprintf(key, sizeof key, "tail_%dx%d_%d_ms", batch, rows, n);
    snprintf(what, sizeof what, "%d x %d rows after %d tokens, ms a step", batch, rows, n);
    fig_row(key, what, &step, goal);
    snprintf(key, sizeof key, "tail_%dx%d_%d_first_token_ms", batch, rows, n);
    snprintf(what, sizeof what, "time to first token of these requests, ms");
    fig_row(key, what, &all, 0);
}

static void measure_tails(struct eng *e, bool goals)
{
    for (int batch = 1; batch <= 8; batch += 7)
        for (int n = 4992; n <= 20000; n += 20000 - 4992) {
            static const int rows[] = {1, 16, 32, 64, 128, 255};
            for (int k = 0; k < batch; k++)
                submit_tail(e, k, n, 1, 0);
            run_to_idle(e);
            for (int i = 0; i < 6; i++)
                measure_tail(e, batch, n, rows[i], goals && batch == 1 && n == 20000 && rows[i] == 32 ? 6.7 : 0);
        }
}

/* goals: print the speed goals, which are for qwen3-8b. */
static void measure_all(struct eng *e, bool goals)
{
    measure_prefill(e, "first_token_128_ms", 128, 15, 0);
    measure_prefill(e, "first_token_1024_ms", 1024, 9, 0);
    measure_prefill(e, "first_token_5000_ms", 5000, 9, goals ? 130 : 0);
    measure_prefill(e, "first_token_20000_ms", 20000, 5, goals ? 680 : 0);
    measure_decode(e, 1, 0, goals ? 6.0 : 0, 0);
    measure_decode(e, 8, 0, 0, 0);
    measure_decode(e, 64, 0, goals ? 9.0 : 0, goals ? 50 : 0);
    measure_decode(e, 256, 0, goals ? 17 : 0, 0);
    measure_decode(e, 64, 0.6, 0, 0);
}

/* copies: leaves memory for copy_bench.c. tail: the prefix cache is on. */
static struct eng *open_engine(const struct mdl *m, bool copies, bool tail)
{
    static struct backend timed; /* the engine keeps a pointer to it */
    struct eng_opts o = eng_defaults();
    struct eng *e;
    struct km_err err;
    timed = be_cuda;
    timed.open = recorded_open;
    timed.wait = timed_wait;
    o.max_num_batched_tokens = MAX_BATCHED_TOKENS;
    o.max_num_seqs = MAX_SEQS;
    o.dtype = KM_BF16;
    o.prefix_caching = tail;
    o.memory_utilization = copies ? 0.8 : o.memory_utilization;
    fig_exit_on_error(eng_open(&e, &o, m, &timed, NULL, &err), &err);
    return e;
}

/* Writes the figures, the model and the device to a file. */
static void write_json(const char *path, const struct mdl *m, const char *device)
{
    struct km_err err;
    cJSON *top = cJSON_CreateObject();
    cJSON_AddStringToObject(top, "model", mdl_name(m));
    cJSON_AddStringToObject(top, "device", device);
    cJSON_AddItemReferenceToObject(top, "rows", fig_rows());
    fig_exit_on_error(km_json_write(path, top, &err), &err);
    cJSON_Delete(top);
}

int main(int argc, char **argv)
{
    int64_t t0 = km_now_ns();
    const char *model = argc > 1 ? argv[1] : "qwen3-8b", *out = argc > 2 ? argv[2] : NULL;
    bool goals = !strcmp(model, "qwen3-8b"), small_m = out && !strcmp(out, "small_m"),
         copies = out && !strcmp(out, "copies"), tail = out && !strcmp(out, "tail"),
         profile = out && !strcmp(out, "profile");
    struct km_err err;
    struct mdl *m;
    struct figure start = {0};
    struct eng_stats st;
    fig_exit_on_error(mdl_open(&m, model, false, 1, &err), &err);
    struct eng *e = open_engine(m, copies, tail);
    double opened = (double)(km_now_ns() - t0) / 1e9;
    submit(e, 128, 1, 0, 1);
    run_to_idle(e);
    fig_add(&start, (double)(km_now_ns() - t0) / 1e9);
    eng_stats(e, &st);
    printf("%s%s on %s: weights %.2f GiB, workspace %.2f GiB, KV %.2f GiB in %d blocks; opened in %.2f s\n\n",
           mdl_name(m), mdl_is_dummy(m) ? " (dummy weights)" : "", st.be.device, (double)st.be.weight_bytes / (1 << 30),
           (double)st.be.workspace_bytes / (1 << 30), (double)st.be.kv_bytes / (1 << 30), st.pages, opened);
    fig_head();
    if (profile) {
        run_for_profiler(e);
    } else if (small_m) {
        measure_small_m(e);
    } else if (copies) {
        measure_copies(e);
    } else if (tail) {
        measure_tails(e, goals);
    } else {
        fig_row("start_s", "program start to first token, s", &start, goals ? 20 : 0);
        measure_all(e, goals);
        if (out)
            write_json(out, m, st.be.device);
    }
    fig_free();
    eng_close(e);
    mdl_free(m);
    return 0;
}
