/* Every definition of summary.h against values computed by hand, and a run folder that is written and read back. */
#include "base/test/test.h"

#include "base/file.h"
#include "base/mem.h"
#include "base/sort.h"
#include "harness/run/env.h"
#include "harness/run/runfolder.h"
#include "harness/run/summary.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { MS = 1000000 };

static void expect_near(double got, double want)
{
    if (!(fabs(got - want) <= 1e-9 * fmax(1, fabs(want))))
        fail_msg("%.12g is not %.12g", got, want);
}

/* A trace of up to 200 requests. It begins at 5 s; times below are milliseconds from there. */
static struct hz_rec recs[200];
static struct hz_tick ticks[2000];
static struct hz_trace trace;

static void reset_trace(void)
{
    memset(recs, 0, sizeof recs);
    trace = (struct hz_trace){.recs = recs, .ticks = ticks, .begin_ns = 5000LL * MS, .end_ns = 5000LL * MS};
}

/* Adds a request that succeeds: planned send, send, n events at t[] with k[] tokens, and [DONE]. */
static struct hz_rec *add_request(double sched, double start, const double *t, const int *k, int n, double done)
{
    struct hz_rec *r = &recs[trace.n++];
    const int64_t base = trace.begin_ns;
    *r = (struct hz_rec){.conv = trace.n - 1,
                         .messages = 1,
                         .ok = true,
                         .status = 200,
                         .asked_tokens = 8,
                         .tick0 = trace.n_ticks,
                         .n_ticks = n,
                         .prompt_tokens = -1,
                         .cached_tokens = -1,
                         .output_tokens = -1,
                         .local_prompt_tokens = -1,
                         .local_output_tokens = -1,
                         .local_first_tokens = -1};
    r->sched_ns = base + llround(sched * MS);
    r->start_ns = base + llround(start * MS);
    r->header_ns = r->start_ns + 1;
    for (int i = 0; i < n; i++) {
        int64_t at = base + llround(t[i] * MS);
        ticks[trace.n_ticks++] = (struct hz_tick){at, k[i], i % 2 ? 1500 : -1};
        r->first_any_ns = r->first_any_ns ? r->first_any_ns : at;
        r->last_any_ns = at + MS; /* the usage event */
        if (k[i]) {
            r->first_ns = r->first_ns ? r->first_ns : at;
            r->last_ns = at;
        }
    }
    r->done_ns = base + llround(done * MS);
    trace.end_ns = r->done_ns > trace.end_ns ? r->done_ns : trace.end_ns;
    return r;
}

static void set_counts(struct hz_rec *r, int prompt, int cached, int out, int local_prompt, int local_out,
                       int local_first)
{
    r->prompt_tokens = prompt;
    r->cached_tokens = cached;
    r->output_tokens = out;
    r->local_prompt_tokens = local_prompt;
    r->local_output_tokens = local_out;
    r->local_first_tokens = local_first;
}

/* Three requests that succeed and one that fails. A: role at 90, tokens at 110 (3 of them), 140 and 170, finish at 175,
 * [DONE] at 180. B starts last and ends before A. C has one token. */
static void make_trace(void)
{
    reset_trace();
    struct hz_rec *a = add_request(0, 10, (double[]){90, 110, 140, 170, 175}, (int[]){0, 1, 1, 1, 0}, 5, 180);
    set_counts(a, 120, 64, 5, 100, 5, 3);
    struct hz_rec *b = add_request(20, 21, (double[]){41, 61}, (int[]){1, 1}, 2, 71);
    set_counts(b, 60, -1, 2, 50, 2, 1);
    struct hz_rec *c = add_request(5, 5, (double[]){15}, (int[]){1}, 1, 25);
    set_counts(c, 20, 0, 1, 10, 1, 1);
    struct hz_rec *f = add_request(6, 6, (double[]){16}, (int[]){1}, 1, 26);
    set_counts(f, 999, 999, 9, 9, 9, 9);
    f->ok = false;
    snprintf(f->error, sizeof f->error, "HTTP 500: a \"bad\" day,\nsaid it");
    f->status = 500;
    f->header_ns = f->first_ns = f->last_ns = f->first_any_ns = f->last_any_ns = 0;
    f->n_ticks = 0;
    trace.n_ticks--;
}

static void seed_conversations(void **state)
{
    (void)state;
    struct hz_summary s;
    make_trace();
    hz_summarize(&trace, WL_MULTI_TURN, HZ_SEED, &s);
    assert_int_equal(s.requests_ok, 3);
    assert_int_equal(s.requests_failed, 1);
    /* A: raw 100, latency 170, tpot 70/(5-3) = 35, ttft 100 - 2*35 = 30. B: raw 20, latency 50, tpot 30, ttft 20.
     * C: one token, tpot 0 and averaged in, ttft 10. */
    expect_near(s.ttft_ms.mean, (30 + 20 + 10) / 3.0);
    expect_near(s.tpot_ms.mean, (35 + 30 + 0) / 3.0);
    assert_int_equal(s.tpot_ms.n, 3);
    expect_near(s.e2e_ms.mean, (170 + 50 + 20) / 3.0);
    expect_near(s.ttft_ms.std, 10); /* the sample's standard deviation */
    expect_near(s.ttft_ms.p50, 20);
    expect_near(s.ttft_ms.p90, 28); /* rank 0.9 * 2 */
    assert_true(isnan(s.ttft_ms.p99));
    /* B starts last, at 21, and takes 50; C starts first, at 5: 66 ms, though A ends at 180. */
    expect_near(s.duration_s, 0.066);
    expect_near(s.request_rate, 3 / 0.066);
    expect_near(s.mean_input, 160 / 3.0);
    expect_near(s.input_tps, 3 / 0.066 * 160 / 3.0);
    expect_near(s.output_tps, 3 / 0.066 * 8 / 3.0);
    expect_near(s.total_tps, s.input_tps + s.output_tps);
    expect_near(s.response_ttft_ms.mean, (30 + 10 + 20 + 1 + 10) / 3.0);
    expect_near(s.prompt_tokens, 200);
    expect_near(s.cached_tokens,
                64); /* B has no cached_tokens: 0, because the server reports them for other requests */
    expect_near(s.hit_rate, 64 / 200.0);
    assert_false(s.by_usage);
    /* A first event with many tokens never makes the TTFT negative. */
    recs[0].local_first_tokens = 4;
    expect_near(hz_request_of(&trace, &recs[0], WL_MULTI_TURN, HZ_SEED).ttft_ms, 0.1);
    assert_true(isnan(hz_request_of(&trace, &recs[3], WL_MULTI_TURN, HZ_SEED).ttft_ms));
}

static void seed_prompts(void **state)
{
    (void)state;
    struct hz_summary s;
    make_trace();
    hz_summarize(&trace, WL_RANDOM, HZ_SEED, &s);
    /* TTFT to the first event with choices: A 80, B 20, C 10. Latency to the last event: A 166, B 41, C 11. */
    expect_near(s.ttft_ms.mean, (80 + 20 + 10) / 3.0);
    expect_near(s.e2e_ms.mean, (166 + 41 + 11) / 3.0);
    expect_near(s.tpot_ms.mean, (86 / 4.0 + 21 / 1.0) / 2); /* C has one token, and so no TPOT */
    assert_int_equal(s.tpot_ms.n, 2);
    /* Gaps: A 20 30 30 5, B 20. */
    assert_int_equal(s.itl_ms.n, 5);
    expect_near(s.itl_ms.mean, 21);
    expect_near(s.itl_ms.std, sqrt((1 + 81 + 81 + 256 + 1) / 5.0)); /* the population's standard deviation */
    expect_near(s.duration_s, 0.180);
    expect_near(s.request_rate, 3 / 0.180);
    expect_near(s.input_tps, 160 / 0.180);
    expect_near(s.output_tps, 8 / 0.180);
    expect_near(s.total_tps, 168 / 0.180);
    recs[0].last_any_ns = recs[0].first_any_ns; /* not streamed */
    assert_true(isnan(hz_request_of(&trace, &recs[0], WL_RANDOM, HZ_SEED).tpot_ms));
}

static void strict_figures(void **state)
{
    (void)state;
    struct hz_summary s;
    make_trace();
    hz_summarize(&trace, WL_MULTI_TURN, HZ_STRICT, &s);
    expect_near(s.ttft_ms.mean, (100 + 20 + 10) / 3.0);
    expect_near(s.e2e_ms.mean, (160 + 40 + 10) / 3.0);
    expect_near(s.tpot_ms.mean, (60 / 2.0 + 20 / 1.0) / 2); /* A: three of five came with the first event */
    assert_int_equal(s.tpot_ms.n, 2);
    expect_near(s.itl_ms.mean, (30 + 30 + 20) / 3.0);
    expect_near(s.duration_s, (170 - 5) / 1e3);
    expect_near(s.input_tps, 200 / 0.165);
    expect_near(s.output_tps, 8 / 0.165);
    expect_near(s.response_ttft_ms.max, 110);
    /* An event of k tokens is k equal intervals. */
    ticks[2].tokens = 3;
    hz_summarize(&trace, WL_MULTI_TURN, HZ_STRICT, &s);
    assert_int_equal(s.itl_ms.n, 5);
    expect_near(s.itl_ms.mean, (10 + 10 + 10 + 30 + 20) / 5.0);
    expect_near(s.itl_ms.p50, 10);
}

static void missing_figures(void **state)
{
    (void)state;
    struct hz_summary s, back;
    struct km_err err;
    make_trace();
    for (int i = 0; i < 3; i++)
        set_counts(&recs[i], i == 1 ? -1 : 10, -1, 4, -1, -1, -1);
    hz_summarize(&trace, WL_MULTI_TURN, HZ_SEED, &s);
    assert_true(s.by_usage);
    assert_true(isnan(s.input_tps) && isnan(s.cached_tokens) && isnan(s.hit_rate) && isnan(s.prompt_tokens));
    expect_near(s.mean_output, 4);
    cJSON *v = hz_summary_json(&s);
    const cJSON *why = cJSON_GetObjectItem(v, "reasons");
    assert_true(cJSON_IsNull(cJSON_GetObjectItem(v, "input_tps")));
    assert_string_equal(
        cJSON_GetObjectItem(why, "input_tps")->valuestring,
        "the token count is not known for every request: the server did not report usage for all of them");
    assert_string_equal(cJSON_GetObjectItem(why, "hit_rate")->valuestring,
                        "the server reports no usage.prompt_tokens_details.cached_tokens");
    assert_string_equal(cJSON_GetObjectItem(why, "ttft_ms.p99")->valuestring,
                        "a 99th percentile needs 100 values, and there are 3");
    assert_non_null(cJSON_GetObjectItem(why, "counted_by_usage"));
    cJSON_Delete(v);

    reset_trace();
    hz_summarize(&trace, WL_RANDOM, HZ_STRICT, &s);
    assert_true(isnan(s.duration_s) && isnan(s.ttft_ms.mean) && isnan(s.output_tps) && isnan(s.prompt_tokens));
    v = hz_summary_json(&s);
    assert_string_equal(cJSON_GetObjectItem(cJSON_GetObjectItem(v, "reasons"), "ttft_ms")->valuestring,
                        "no request succeeded");
    assert_int_equal(hz_summary_from_json(v, &back, &err), 0);
    assert_true(back.profile == HZ_STRICT && isnan(back.duration_s) && back.ttft_ms.n == 0 && isnan(back.ttft_ms.mean));
    cJSON_SetValuestring(cJSON_GetObjectItem(v, "profile"), "other");
    assert_int_equal(hz_summary_from_json(v, &back, &err), KM_EINVAL);
    cJSON_Delete(v);
}

static void percentiles_as_numpy(void **state)
{
    (void)state;
    double v[101];
    expect_near(km_percentile((double[]){1, 2, 3, 4}, 4, 0.5), 2.5);
    expect_near(km_percentile((double[]){1, 2, 3, 4}, 4, 1), 4);
    expect_near(km_percentile((double[]){7}, 1, 0.99), 7);
    for (int i = 0; i < 101; i++)
        v[i] = 100 - i;
    struct hz_stat s = hz_stat_of(v, 99);
    assert_true(isnan(s.p99));
    for (int i = 0; i < 101; i++)
        v[i] = 100 - i;
    s = hz_stat_of(v, 101);
    expect_near(s.p99, 99);
    expect_near(s.p90, 90);
    expect_near(s.p95, 95);
    expect_near(s.min, 0);
    expect_near(s.max, 100);
    expect_near(s.std, sqrt(858.5)); /* of 0..100: n(n+1)/12 */
    s = hz_stat_of(v, 1);
    assert_true(isnan(s.std));
}

/* ---- the folder ---- */

static char dir[] = "/tmp/kvmark-run-XXXXXX";
static char sub[64];

static int make_dir(void **state)
{
    (void)state;
    strcpy(dir, "/tmp/kvmark-run-XXXXXX");
    if (!mkdtemp(dir))
        return -1;
    snprintf(sub, sizeof sub, "%s/a/b", dir);
    return 0;
}

static int drop_dir(void **state)
{
    (void)state;
    char cmd[100];
    snprintf(cmd, sizeof cmd, "rm -r %s", dir);
    return system(cmd);
}

static void expect_equal_summaries(const struct hz_summary *a, const struct hz_summary *b)
{
    cJSON *x = hz_summary_json(a), *y = hz_summary_json(b);
    char *s = cJSON_Print(x), *t = cJSON_Print(y);
    assert_string_equal(s, t);
    cJSON_free(s);
    cJSON_free(t);
    cJSON_Delete(x);
    cJSON_Delete(y);
}

static int write_run(struct hz_summary *seed, struct hz_summary *strict, struct km_err *err)
{
    static struct wl_conv convs[4] = {{.id = "CONV_ID_0"}, {.id = "a,\"b\""}, {.id = "c\nd"}, {.id = "e"}};
    struct wl_set set = {.convs = convs, .n = 4};
    cJSON *options = cJSON_CreateObject();
    cJSON_AddNumberToObject(options, "num-clients", 10);
    cJSON_AddNumberToObject(options, "gpu-memory-limit", 25769803776.0);
    cJSON *tiers = cJSON_CreateObject(), *dram = cJSON_AddObjectToObject(tiers, "dram");
    cJSON_AddNumberToObject(dram, "hit_tokens_total", 768);
    cJSON_AddNumberToObject(dram, "chunks", 3);
    struct run_info info = {.workload = "generate_multi_turn",
                            .workload_sha256 = "ab",
                            .workload_kind = WL_MULTI_TURN,
                            .workload_requests = 4,
                            .target_kind = "kvmark",
                            .device = "cpu",
                            .kv = "none",
                            .model = "m",
                            .command = "kvmark run x",
                            .started = "2026-11-24T00:00:00Z",
                            .options = options,
                            .cache_tiers = tiers,
                            .cache_ready_s = 1.5,
                            .cache_complete = true,
                            .set = &set};
    hz_summarize(&trace, WL_MULTI_TURN, HZ_SEED, seed);
    hz_summarize(&trace, WL_MULTI_TURN, HZ_STRICT, strict);
    int rc = run_folder_write(sub, &info, &trace, seed, strict, err);
    cJSON_Delete(options);
    cJSON_Delete(tiers);
    return rc;
}

static void a_run_is_written_and_read_back(void **state)
{
    (void)state;
    struct hz_summary seed, strict, again;
    struct run_folder r;
    struct km_err err;
    make_trace();
    trace.abandoned = 7;
    trace.dropped = 2;
    trace.warmup_ns = 12345;
    trace.health = (struct hz_health){.cpu_s = 1.5,
                                      .wall_s = 3,
                                      .loop_gap_p99_ms = 0.25,
                                      .loop_gap_max_ms = 2,
                                      .send_lag_p99_ms = 0.5,
                                      .events = 10,
                                      .reads = 9,
                                      .kernel_stamps = NAN,
                                      .stamp_lag_p99_ms = NAN,
                                      .coalesced = 1};
    assert_int_equal(write_run(&seed, &strict, &err), 0);
    assert_int_equal(write_run(&seed, &strict, &err), KM_EINVAL); /* a run is never overwritten */
    assert_non_null(strstr(err.msg, "already holds a run"));
    if (run_folder_read(&r, sub, &err))
        fail_msg("%s", err.msg);

    expect_equal_summaries(&r.seed, &seed);
    expect_equal_summaries(&r.strict, &strict);
    hz_summarize(&r.trace, WL_MULTI_TURN, HZ_SEED, &again);
    expect_equal_summaries(&again, &seed);
    hz_summarize(&r.trace, WL_RANDOM, HZ_SEED, &again);
    hz_summarize(&trace, WL_RANDOM, HZ_SEED, &seed);
    expect_equal_summaries(&again, &seed);
    assert_int_equal(r.trace.n, trace.n);
    assert_int_equal(r.trace.n_ticks, trace.n_ticks);
    int64_t shift = trace.begin_ns - r.trace.begin_ns;
    for (int i = 0; i < trace.n; i++) {
        struct hz_rec a = trace.recs[i], b = r.trace.recs[i];
        assert_string_equal(a.error, b.error);
        assert_true(a.start_ns == b.start_ns + shift && a.sched_ns == b.sched_ns + shift);
        assert_int_equal(a.header_ns == 0, b.header_ns == 0);
        assert_true(a.tick0 == b.tick0 && a.n_ticks == b.n_ticks && a.cached_tokens == b.cached_tokens &&
                    a.text_xxh == b.text_xxh);
    }
    for (size_t i = 0; i < trace.n_ticks; i++) {
        assert_true(ticks[i].ns == r.trace.ticks[i].ns + shift);
        assert_int_equal(ticks[i].tokens, r.trace.ticks[i].tokens);
        assert_int_equal(ticks[i].lag_ns, r.trace.ticks[i].lag_ns);
    }
    assert_true(r.trace.abandoned == 7 && r.trace.dropped == 2 && r.trace.warmup_ns == 12345);
    expect_near(r.trace.health.loop_gap_p99_ms, 0.25);
    assert_true(isnan(r.trace.health.kernel_stamps) && r.trace.health.coalesced == 1);

    /* The keys that every run.json has. */
    static const char *const keys[] = {"schema",  "profile",        "workload", "target", "provenance",
                                       "summary", "summary_strict", "health",   "limits"};
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++)
        assert_non_null(cJSON_GetObjectItem(r.json, keys[i]));
    static const char *const figures[] = {"requests_ok",   "requests_failed", "duration_s", "input_tps", "output_tps",
                                          "total_tps",     "ttft_ms",         "tpot_ms",    "itl_ms",    "e2e_ms",
                                          "cached_tokens", "prompt_tokens",   "hit_rate"};
    const cJSON *s = cJSON_GetObjectItem(r.json, "summary");
    for (size_t i = 0; i < sizeof figures / sizeof *figures; i++)
        assert_non_null(cJSON_GetObjectItem(s, figures[i]));
    static const char *const parts[] = {"mean", "p50", "p90", "p95", "p99"};
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++)
        assert_non_null(cJSON_GetObjectItem(cJSON_GetObjectItem(s, "itl_ms"), parts[i]));
    const cJSON *p = cJSON_GetObjectItem(r.json, "provenance");
    assert_true(cJSON_IsNull(cJSON_GetObjectItem(p, "commit")));
    assert_non_null(cJSON_GetObjectItem(cJSON_GetObjectItem(p, "reasons"), "commit"));
    const cJSON *l = cJSON_GetObjectItem(r.json, "limits");
    expect_near(cJSON_GetObjectItem(l, "gpu_memory_limit")->valuedouble, 25769803776.0);
    assert_true(cJSON_IsNull(cJSON_GetObjectItem(l, "max_num_seqs")));
    assert_string_equal(cJSON_GetObjectItem(cJSON_GetObjectItem(r.json, "health"), "verdict")->valuestring, "good");
    const cJSON *cache = cJSON_GetObjectItem(r.json, "cache");
    const cJSON *dram = cJSON_GetObjectItem(cJSON_GetObjectItem(cache, "tiers"), "dram");
    expect_near(cJSON_GetObjectItem(cache, "ready_s")->valuedouble, 1.5);
    assert_true(cJSON_IsTrue(cJSON_GetObjectItem(cache, "complete")));
    expect_near(cJSON_GetObjectItem(dram, "hit_tokens")->valuedouble, 768);
    expect_near(cJSON_GetObjectItem(dram, "chunks")->valuedouble, 3);
    assert_true(cJSON_IsNull(cJSON_GetObjectItem(r.json, "server_metrics")));
    assert_non_null(cJSON_GetObjectItem(cJSON_GetObjectItem(r.json, "reasons"), "server_metrics"));
    run_folder_free(&r);
}

/* Reads the run with one file replaced, restores the file, and returns the code of the read. */
static int read_with(const char *name, const char *bytes, size_t n, struct km_err *err)
{
    struct run_folder r;
    char path[128];
    snprintf(path, sizeof path, "%s/%s", sub, name);
    struct km_buf was = {0};
    assert_int_equal(km_file_read(path, 0, &was, err), 0);
    assert_int_equal(km_file_write(path, bytes, n, err), 0);
    int rc = run_folder_read(&r, sub, err);
    if (!rc)
        run_folder_free(&r);
    struct km_err ignored;
    assert_int_equal(km_file_write(path, was.data, was.len, &ignored), 0);
    km_buf_free(&was);
    return rc;
}

static void damaged_folders_are_errors(void **state)
{
    (void)state;
    struct hz_summary seed, strict;
    struct run_folder r;
    struct km_err err;
    struct km_buf b = {0};
    char path[128];
    assert_int_equal(run_folder_read(&r, dir, &err), KM_ENOENT);
    make_trace();
    assert_int_equal(write_run(&seed, &strict, &err), 0);
    int64_t before = km_mem_stats(KM_MEM_HOST).current;

    snprintf(path, sizeof path, "%s/tokens.bin", sub);
    assert_int_equal(km_file_read(path, 0, &b, &err), 0);
    for (size_t i = 0; i < b.len; i++) { /* a changed bit, and a file that is cut off */
        b.data[i] ^= 0x10;
        assert_int_equal(read_with("tokens.bin", b.data, b.len, &err), KM_EFORMAT);
        b.data[i] ^= 0x10;
        assert_int_equal(read_with("tokens.bin", b.data, i, &err), KM_EFORMAT);
    }
    assert_non_null(strstr(err.msg, "tokens.bin: "));
    km_buf_clear(&b);

    snprintf(path, sizeof path, "%s/requests.csv", sub);
    assert_int_equal(km_file_read(path, 0, &b, &err), 0);
    for (size_t i = 0; i + 1 < b.len; i += 3)
        assert_int_not_equal(read_with("requests.csv", b.data, i, &err), 0);
    assert_int_not_equal(read_with("requests.csv", "a,b\n", 4, &err), 0);
    km_buf_clear(&b);

    assert_int_equal(read_with("run.json", "{}", 2, &err), KM_EINVAL);
    assert_int_equal(read_with("run.json", "{\"schema\":\"other\"}", 18, &err), KM_EFORMAT);
    assert_int_equal(read_with("run.json", "{\"sch", 5, &err), KM_EFORMAT);
    km_buf_free(&b);
    assert_int_equal(km_mem_stats(KM_MEM_HOST).current, before);
}

static void reading_without_memory(void **state)
{
    (void)state;
    struct hz_summary seed, strict;
    struct run_folder r;
    struct km_err err;
    make_trace();
    assert_int_equal(write_run(&seed, &strict, &err), 0);
    int64_t before = km_mem_stats(KM_MEM_HOST).current;
    bool reached = false;
    for (long n = 1; n < 300 && !reached; n++) {
        km_mem_fail_at(n);
        int rc = run_folder_read(&r, sub, &err);
        km_mem_fail_at(0);
        reached = rc == 0;
        if (reached)
            run_folder_free(&r);
        else
            assert_int_equal(rc, KM_ENOMEM);
        assert_int_equal(km_mem_stats(KM_MEM_HOST).current, before);
    }
    assert_true(reached);
    km_mem_fail_at(1); /* without memory the figures are NAN */
    hz_summarize(&trace, WL_MULTI_TURN, HZ_STRICT, &strict);
    km_mem_fail_at(0);
    assert_true(isnan(strict.ttft_ms.mean) && isnan(strict.input_tps) && strict.requests_ok == 3);
}

static void the_machine_is_described(void **state)
{
    (void)state;
    cJSON *v = hz_environment();
    assert_non_null(cJSON_GetObjectItem(cJSON_GetObjectItem(v, "system"), "kernel"));
    assert_true(cJSON_GetObjectItem(cJSON_GetObjectItem(v, "cpu"), "online")->valuedouble >= 1);
    assert_true(cJSON_GetObjectItem(cJSON_GetObjectItem(v, "memory"), "total_bytes")->valuedouble > 1e6);
    assert_non_null(
        strstr(cJSON_GetObjectItem(cJSON_GetObjectItem(v, "libraries"), "libcurl")->valuestring, "libcurl"));
    cJSON_Delete(v);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(seed_conversations),
        cmocka_unit_test(seed_prompts),
        cmocka_unit_test(strict_figures),
        cmocka_unit_test(missing_figures),
        cmocka_unit_test(percentiles_as_numpy),
        cmocka_unit_test_setup_teardown(a_run_is_written_and_read_back, make_dir, drop_dir),
        cmocka_unit_test_setup_teardown(damaged_folders_are_errors, make_dir, drop_dir),
        cmocka_unit_test_setup_teardown(reading_without_memory, make_dir, drop_dir),
        cmocka_unit_test(the_machine_is_described),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
