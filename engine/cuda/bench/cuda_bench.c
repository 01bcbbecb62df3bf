/* Benchmark of the CUDA engine: engine steps at the sizes of the speed goals, without HTTP. Dummy weights, random
 * prompts.
 *
 *   cuda_bench [MODEL] [OUT.json]   everything; MODEL is qwen3-8b by default
 *   cuda_bench MODEL small_m        steps with few rows only: prefill of 128 tokens, decodes with batch 1, 64 and 256
 *   cuda_bench MODEL profile        a prefill of 5,000 tokens and a decode step with batch 64, for a profiler
 *
 * Prints a Markdown table: median, 10th and 90th percentile over repeats, and the goal where there is one. The host
 * time of a step is the duration of the step minus the time inside the backend's `wait`. Most of the host time overlaps
 * with the step that the GPU is running. */
#include "base/clock.h"
#include "base/json.h"
#include "base/mem.h"
#include "engine/engine.h"

#include <cuda_profiler_api.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { BATCHED = 8192, SEQS = 256, MAX_SAMPLES = 512, CONTEXT = 640, DECODES = 64 };

static void must(int rc, const struct km_err *err)
{
    if (!rc)
        return;
    fprintf(stderr, "cuda_bench: %s\n", err->msg);
    exit(1);
}

/* ---- the backend with a timed wait ---- */

static int64_t waited_ns; /* time inside `wait` since the caller last set this to 0 */

static int timed_wait(struct be *b, uint64_t ticket, struct smp_result *out, struct km_err *err)
{
    int64_t t0 = km_now_ns();
    int rc = be_cuda.wait(b, ticket, out, err);
    waited_ns += km_now_ns() - t0;
    return rc;
}

/* ---- figures ---- */

struct figure {
    double v[MAX_SAMPLES];
    int n;
};

static void add(struct figure *f, double v)
{
    if (f->n < MAX_SAMPLES)
        f->v[f->n++] = v;
}

static int by_value(const void *a, const void *b)
{
    double d = *(const double *)a - *(const double *)b;
    return (d > 0) - (d < 0);
}

/* The quantile of sorted values; NaN without values. */
static double at(const struct figure *f, double share)
{
    return f->n ? f->v[(int)(share * (f->n - 1) + 0.5)] : NAN;
}

static cJSON *rows; /* of OUT.json */

/* Prints a row of the table and adds it to `rows`. goal 0: none. */
static void row(const char *key, const char *what, struct figure *f, double goal)
{
    qsort(f->v, (size_t)f->n, sizeof *f->v, by_value);
    printf("| %s | %.3f | %.3f to %.3f | %d | ", what, at(f, 0.5), at(f, 0.1), at(f, 0.9), f->n);
    if (goal > 0)
        printf("%g | %s |\n", goal, at(f, 0.5) <= goal ? "met" : "missed");
    else
        printf("| |\n");
    fflush(stdout);
    cJSON *o = cJSON_CreateObject();
    cJSON_AddStringToObject(o, "key", key);
    cJSON_AddStringToObject(o, "what", what);
    cJSON_AddNumberToObject(o, "median", at(f, 0.5));
    cJSON_AddNumberToObject(o, "p10", at(f, 0.1));
    cJSON_AddNumberToObject(o, "p90", at(f, 0.9));
    cJSON_AddNumberToObject(o, "samples", f->n);
    if (goal > 0)
        cJSON_AddNumberToObject(o, "goal", goal);
    cJSON_AddItemToArray(rows, o);
}

/* ---- requests ---- */

static int32_t *prompt_of(int n, int vocab, uint32_t seed)
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

static void submit(struct eng *e, int n, int n_out, double temperature, uint32_t seed)
{
    struct km_err err;
    uint64_t id;
    int32_t *p = prompt_of(n, mdl_config(eng_model(e))->vocab, seed);
    struct eng_request q = {
        .prompt = p, .n_prompt = n, .max_tokens = n_out, .ignore_eos = true, .sampling = smp_defaults()};
    q.sampling.temperature = temperature;
    q.sampling.top_p = temperature > 0 ? 0.95 : 1;
    q.sampling.top_k = temperature > 0 ? 20 : 0;
    q.sampling.seed = seed;
    must(eng_submit(e, &q, &id, &err), &err);
    km_free(p);
}

static void drain(struct eng *e)
{
    struct eng_events v;
    struct km_err err;
    while (!eng_idle(e))
        must(eng_step(e, &v, &err), &err);
}

/* Milliseconds from the submission of a single prompt of n tokens to its first token. */
static void prefill(struct eng *e, const char *key, int n, int repeats, double goal)
{
    struct figure f = {0};
    char what[96];
    for (int i = -1; i < repeats; i++) { /* the first run is a warm-up */
        int64_t t0 = km_now_ns();
        submit(e, n, 1, 0, (uint32_t)(1000 + i));
        drain(e);
        if (i >= 0)
            add(&f, (double)(km_now_ns() - t0) / 1e6);
    }
    snprintf(what, sizeof what, "first token of %d tokens alone, ms", n);
    row(key, what, &f, goal);
}

/* Milliseconds per step while n requests decode at a context around CONTEXT, and the host's microseconds per step. */
static void decode(struct eng *e, int n, double temperature, double goal, double host_goal)
{
    struct figure step = {0}, host = {0};
    struct eng_events v;
    struct eng_stats st;
    struct km_err err;
    char key[48], what[96];
    int block = eng_defaults().block_size;
    eng_stats(e, &st);
    if (st.pages < n * ((CONTEXT + DECODES / 2 + 32 + block - 1) / block)) {
        printf("| decode, batch %d, context %d: skipped, the KV does not fit into %d blocks | | | | | |\n", n, CONTEXT,
               st.pages);
        return;
    }
    for (int i = 0; i < n; i++)
        submit(e, CONTEXT - DECODES / 2, DECODES + 32, temperature, (uint32_t)(7 * i + 1));
    for (int full = 0; !eng_idle(e);) {
        struct eng_stats before, after;
        eng_stats(e, &before);
        waited_ns = 0;
        int64_t t0 = km_now_ns();
        must(eng_step(e, &v, &err), &err);
        int64_t t = km_now_ns() - t0;
        eng_stats(e, &after);
        bool all = after.computed_tokens - before.computed_tokens == n && before.running == n && v.n == n;
        full = all ? full + 1 : 0;
        if (full > 2) {
            add(&step, (double)t / 1e6);
            add(&host, (double)(t - waited_ns) / 1e3);
        }
    }
    const char *how = temperature > 0 ? ", temperature 0.6, top-p 0.95, top-k 20" : "";
    snprintf(key, sizeof key, "decode_%d%s_ms", n, temperature > 0 ? "_sampled" : "");
    snprintf(what, sizeof what, "decode, batch %d, context %d%s, ms a step", n, CONTEXT, how);
    row(key, what, &step, goal);
    snprintf(key, sizeof key, "host_%d%s_us", n, temperature > 0 ? "_sampled" : "");
    snprintf(what, sizeof what, "host time of that step, us");
    row(key, what, &host, host_goal);
}

/* Brackets one prefill and one decode step for a profiler that starts at cudaProfilerStart (ncu --profile-from-start
 * off). */
static void profile(struct eng *e)
{
    struct eng_events v;
    struct km_err err;
    prefill(e, "", 5000, 1, 0);
    cudaProfilerStart();
    submit(e, 5000, 1, 0, 3);
    drain(e);
    cudaProfilerStop();
    for (int i = 0; i < 64; i++)
        submit(e, CONTEXT, 8, 0, (uint32_t)(7 * i + 1));
    for (int steps = 0; !eng_idle(e);) {
        must(eng_step(e, &v, &err), &err);
        steps = v.n == 64 ? steps + 1 : 0;
        if (steps == 2)
            cudaProfilerStart();
        if (steps == 3)
            cudaProfilerStop();
    }
}

int main(int argc, char **argv)
{
    int64_t t0 = km_now_ns();
    const char *model = argc > 1 ? argv[1] : "qwen3-8b", *out = argc > 2 ? argv[2] : NULL;
    bool big = !strcmp(model, "qwen3-8b"); /* the model that the goals are for */
    struct km_err err;
    struct mdl *m;
    struct eng *e;
    struct figure start = {0};
    struct backend timed = be_cuda;
    timed.wait = timed_wait;
    must(mdl_open(&m, model, false, 1, &err), &err);
    struct eng_opts o = eng_defaults();
    o.max_num_batched_tokens = BATCHED;
    o.max_num_seqs = SEQS;
    o.dtype = KM_BF16;
    o.prefix_caching = false;
    must(eng_open(&e, &o, m, &timed, NULL, &err), &err);
    double opened = (double)(km_now_ns() - t0) / 1e9;
    submit(e, 128, 1, 0, 1);
    drain(e);
    add(&start, (double)(km_now_ns() - t0) / 1e9);
    struct eng_stats st;
    eng_stats(e, &st);
    printf("%s%s on %s: weights %.2f GiB, workspace %.2f GiB, KV %.2f GiB in %d blocks; opened in %.2f s\n\n",
           mdl_name(m), mdl_is_dummy(m) ? " (dummy weights)" : "", st.be.device,
           (double)st.be.weight_bytes / (1 << 30), (double)st.be.workspace_bytes / (1 << 30),
           (double)st.be.kv_bytes / (1 << 30), st.pages, opened);
    printf("| what | median | 10%% to 90%% | samples | goal | |\n|---|---|---|---|---|---|\n");
    rows = cJSON_CreateArray();
    if (out && !strcmp(out, "profile")) {
        profile(e);
        eng_close(e);
        mdl_free(m);
        return 0;
    }
    if (out && !strcmp(out, "small_m")) {
        prefill(e, "first_token_128_ms", 128, 15, 0);
        decode(e, 1, 0, 0, 0);
        decode(e, 64, 0, 0, 0);
        decode(e, 256, 0, 0, 0);
        eng_close(e);
        mdl_free(m);
        return 0;
    }
    row("start_s", "start to first token, s", &start, big ? 20 : 0);
    prefill(e, "first_token_128_ms", 128, 15, 0);
    prefill(e, "first_token_1024_ms", 1024, 9, 0);
    prefill(e, "first_token_5000_ms", 5000, 9, big ? 130 : 0);
    prefill(e, "first_token_20000_ms", 20000, 5, big ? 680 : 0);
    decode(e, 1, 0, big ? 6.0 : 0, 0);
    decode(e, 8, 0, 0, 0);
    decode(e, 64, 0, big ? 9.0 : 0, big ? 50 : 0);
    decode(e, 256, 0, big ? 17 : 0, 0);
    decode(e, 64, 0.6, 0, 0);
    int rc = 0;
    if (out) {
        cJSON *top = cJSON_CreateObject();
        cJSON_AddStringToObject(top, "model", mdl_name(m));
        cJSON_AddStringToObject(top, "device", st.be.device);
        cJSON_AddItemToObject(top, "rows", rows);
        rc = km_json_write(out, top, &err);
        cJSON_Delete(top);
    } else {
        cJSON_Delete(rows);
    }
    must(rc, &err);
    eng_close(e);
    mdl_free(m);
    return 0;
}
