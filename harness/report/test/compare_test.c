/* Comparisons of synthetic runs whose true ratio is known. */
#include "base/test/test.h"

#include "base/mem.h"
#include "harness/report/compare.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

static uint64_t rng_state;

static double uniform(void)
{
    rng_state = rng_state * 6364136223846793005u + 1442695040888963407u;
    return (double)(rng_state >> 11) * 0x1p-53;
}

static double normal(void)
{
    double u = uniform();
    return sqrt(-2 * log(u > 0 ? u : 0.5)) * cos(6.283185307179586 * uniform());
}

/* A run of convs * turns requests. The caller sets their times with set_ttft, then calls finish. */
static void make(struct run_folder *r, const char *sha, int convs, int turns)
{
    *r = (struct run_folder){.dir = km_strdup("a run"), .json = cJSON_CreateObject()};
    cJSON *w = cJSON_AddObjectToObject(r->json, "workload");
    cJSON_AddStringToObject(w, "sha256", sha);
    cJSON_AddStringToObject(w, "kind", "multi_turn");
    r->trace.n = r->trace.cap = convs * turns;
    r->trace.recs = km_calloc((size_t)r->trace.n, sizeof *r->trace.recs);
    r->trace.begin_ns = 1000;
    for (int i = 0; i < r->trace.n; i++) {
        struct hz_rec *q = &r->trace.recs[i];
        *q = (struct hz_rec){.conv = i / turns, .turn = i % turns, .start_ns = 1000 + i, .ok = true, .status = 200};
        q->prompt_tokens = q->local_prompt_tokens = 1000;
        q->output_tokens = q->local_output_tokens = 11;
        q->cached_tokens = 0;
        q->local_first_tokens = 1;
    }
}

static void set_ttft(struct hz_rec *q, double ms)
{
    q->first_ns = q->first_any_ns = q->start_ns + (int64_t)(ms * 1e6);
    q->last_ns = q->done_ns = q->first_ns + 100000000; /* TPOT 10 ms */
}

static void finish(struct run_folder *r)
{
    hz_summarize(&r->trace, WL_MULTI_TURN, HZ_SEED, &r->seed);
    hz_summarize(&r->trace, WL_MULTI_TURN, HZ_STRICT, &r->strict);
}

static void drop(struct run_folder *r, int n)
{
    for (int i = 0; i < n; i++)
        run_folder_free(&r[i]);
}

/* Pairs of runs whose TTFT differs by the factor `ratio`. The standard deviations conv_sd, req_sd and run_sd of
 * conversations, requests and whole runs are on the log scale. */
static void make_pairs(struct run_folder *a, struct run_folder *b, int pairs, int convs, int turns, double ratio,
                       double conv_sd, double req_sd, double run_sd)
{
    double level[64], effect[64];
    for (int c = 0; c < convs; c++) {
        level[c] = 100 * exp(0.5 * normal());
        effect[c] = conv_sd * normal();
    }
    for (int p = 0; p < pairs; p++) {
        double drift = run_sd * normal();
        make(&a[p], "same", convs, turns);
        make(&b[p], "same", convs, turns);
        for (int i = 0; i < convs * turns; i++) {
            set_ttft(&a[p].trace.recs[i], level[i / turns] * exp(req_sd * normal()));
            set_ttft(&b[p].trace.recs[i],
                     level[i / turns] * ratio * exp(effect[i / turns] + drift + req_sd * normal()));
        }
        finish(&a[p]);
        finish(&b[p]);
    }
}

static void point_at(const struct run_folder **list, const struct run_folder *r, int n)
{
    for (int i = 0; i < n; i++)
        list[i] = &r[i];
}

static const struct compare_delta *find(const struct compare_result *c, const char *key)
{
    for (int i = 0; i < c->n; i++)
        if (!strcmp(c->deltas[i].metric->key, key))
            return &c->deltas[i];
    return NULL;
}

static void a_clear_gain(void **state)
{
    (void)state;
    struct run_folder a[5], b[5];
    const struct run_folder *la[5], *lb[5];
    struct compare_opts o = compare_defaults();
    struct compare_result c, again;
    rng_state = 7;
    make_pairs(a, b, 5, 24, 8, 0.5, 0.05, 0.05, 0.02);
    point_at(la, a, 5);
    point_at(lb, b, 5);
    assert_int_equal(compare_runs(&c, la, lb, 5, &o, NULL), 0);
    const struct compare_delta *d = find(&c, "ttft_ms.mean");
    assert_true(d->lo < 0.5 * 1.05 && d->hi > 0.5 * 0.95 && d->lo < d->ratio && d->ratio < d->hi);
    assert_true(d->hi / d->lo < 1.2);
    assert_int_equal(d->verdict, COMPARE_BETTER);
    assert_int_equal(d->pairs, 5);
    assert_int_equal(d->requests, 5 * 24 * 8);
    assert_int_equal(d->conversations, 24);
    /* 192 requests per run give p90 and p95 an interval, but not p99, which is left out. */
    assert_int_equal(find(&c, "ttft_ms.p90")->verdict, COMPARE_BETTER);
    assert_non_null(find(&c, "ttft_ms.p95"));
    assert_null(find(&c, "ttft_ms.p99"));
    /* TPOT is exactly 10 ms on both sides. */
    d = find(&c, "tpot_ms.mean");
    assert_true(fabs(d->ratio - 1) < 1e-9);
    assert_int_equal(d->verdict, COMPARE_NO_DIFFERENCE);
    assert_string_equal(d->why, "a change above 0.0% would have been detected");
    /* The same seed gives the same interval. */
    assert_int_equal(compare_runs(&again, la, lb, 5, &o, NULL), 0);
    assert_true(find(&again, "ttft_ms.mean")->lo == find(&c, "ttft_ms.mean")->lo);
    compare_result_free(&again);
    /* Sides exchanged: worse, by the inverse ratio. */
    assert_int_equal(compare_runs(&again, lb, la, 5, &o, NULL), 0);
    assert_int_equal(find(&again, "ttft_ms.mean")->verdict, COMPARE_WORSE);
    assert_true(fabs(find(&again, "ttft_ms.mean")->ratio * find(&c, "ttft_ms.mean")->ratio - 1) < 1e-12);
    compare_result_free(&again);
    compare_result_free(&c);
    drop(a, 5);
    drop(b, 5);
}

static void nothing_and_noise(void **state)
{
    (void)state;
    struct run_folder a[5], b[5];
    const struct run_folder *la[5], *lb[5];
    struct compare_opts o = compare_defaults();
    struct compare_result c;
    point_at(la, a, 5);
    point_at(lb, b, 5);
    rng_state = 11;
    make_pairs(a, b, 5, 24, 8, 1.0, 0.0, 0.03, 0.005);
    assert_int_equal(compare_runs(&c, la, lb, 5, &o, NULL), 0);
    assert_int_equal(find(&c, "ttft_ms.mean")->verdict, COMPARE_NO_DIFFERENCE);
    compare_result_free(&c);
    drop(a, 5);
    drop(b, 5);
    make_pairs(a, b, 2, 24, 8, 1.02, 0.0, 0.03, 0.1);
    assert_int_equal(compare_runs(&c, la, lb, 2, &o, NULL), 0);
    assert_int_equal(find(&c, "ttft_ms.mean")->verdict, COMPARE_UNDECIDED);
    compare_result_free(&c);
    drop(a, 2);
    drop(b, 2);
}

/* With one pair, a latency has an interval from its conversations; a rate has none. */
static void one_pair(void **state)
{
    (void)state;
    struct run_folder a[1], b[1];
    const struct run_folder *la[1] = {a}, *lb[1] = {b};
    struct compare_opts o = compare_defaults();
    struct compare_result c;
    rng_state = 3;
    make_pairs(a, b, 1, 24, 8, 0.8, 0.1, 0.05, 0);
    assert_int_equal(compare_runs(&c, la, lb, 1, &o, NULL), 0);
    const struct compare_delta *d = find(&c, "ttft_ms.mean"), *rate = find(&c, "input_tps");
    assert_int_equal(d->verdict, COMPARE_BETTER);
    assert_string_equal(d->why, "on one pair");
    /* With one pair in which all requests match, the ratio is the ratio of the two means. */
    assert_true(fabs(d->ratio - d->b / d->a) < 1e-9);
    assert_true(isfinite(rate->ratio) && isnan(rate->lo) && isnan(rate->hi));
    assert_int_equal(rate->verdict, COMPARE_NOT_JUDGED);
    assert_string_equal(rate->why, "needs two pairs");
    struct table_grid g;
    struct km_buf md = {0};
    assert_int_equal(compare_result_grid(&g, &c, "A", "B", NULL), 0);
    table_grid_md(&g, &md);
    assert_non_null(
        strstr(md.data, "| Metric | A | B | Change | Ratio | 95% interval | Pairs | Requests | Verdict |\n"));
    assert_non_null(strstr(md.data, "not judged (needs two pairs) |\n"));
    km_buf_free(&md);
    table_grid_free(&g);
    compare_result_free(&c);
    drop(a, 1);
    drop(b, 1);
}

/* Requests are matched by conversation and turn. A request that only one side answered is counted and left out. */
static void matching(void **state)
{
    (void)state;
    struct run_folder a, b;
    const struct run_folder *la[] = {&a}, *lb[] = {&b};
    struct compare_opts o = compare_defaults();
    struct compare_result c;
    make(&a, "same", 10, 4);
    make(&b, "same", 10, 4);
    for (int i = 0; i < 40; i++) {
        set_ttft(&a.trace.recs[i], 100 + i);
        set_ttft(&b.trace.recs[39 - i], 2 * (100 + i)); /* in another order of completion */
        b.trace.recs[39 - i].conv = a.trace.recs[i].conv;
        b.trace.recs[39 - i].turn = a.trace.recs[i].turn;
    }
    a.trace.recs[5].ok = false;
    b.trace.recs[0].ok = b.trace.recs[1].ok = false;
    set_ttft(&a.trace.recs[39], 1e6); /* its partner failed, so this large value must not count */
    finish(&a);
    finish(&b);
    assert_int_equal(compare_runs(&c, la, lb, 1, &o, NULL), 0);
    const struct compare_delta *d = find(&c, "ttft_ms.mean");
    assert_int_equal(c.only_a, 2);
    assert_int_equal(c.only_b, 1);
    assert_int_equal(d->requests, 37);
    assert_true(fabs(d->ratio - 2) < 1e-6 && fabs(d->lo - 2) < 1e-6 && fabs(d->hi - 2) < 1e-6);
    assert_int_equal(d->verdict, COMPARE_WORSE);
    compare_result_free(&c);
    run_folder_free(&a);
    run_folder_free(&b);
}

static void unlike_workloads(void **state)
{
    (void)state;
    struct run_folder a, b;
    const struct run_folder *la[] = {&a}, *lb[] = {&b};
    struct compare_opts o = compare_defaults();
    struct compare_result c;
    struct km_err err = {0};
    make(&a, "aaaa", 4, 2);
    make(&b, "bbbb", 4, 2);
    for (int i = 0; i < 8; i++) {
        set_ttft(&a.trace.recs[i], 100);
        set_ttft(&b.trace.recs[i], 100);
    }
    finish(&a);
    finish(&b);
    assert_int_equal(compare_runs(&c, la, lb, 1, &o, &err), KM_EINVAL);
    assert_non_null(strstr(err.msg, "--force"));
    o.force = true;
    assert_int_equal(compare_runs(&c, la, lb, 1, &o, NULL), 0);
    assert_true(c.unlike);
    compare_result_free(&c);
    run_folder_free(&a);
    run_folder_free(&b);
}

static void limits(void **state)
{
    (void)state;
    struct compare_limit l;
    struct km_err err = {0};
    struct compare_delta d[2] = {{.a = 100, .b = 106}, {.a = 100, .b = 98}};
    struct compare_result c = {.deltas = d, .n = 2};
    double change;
    d[0].metric = hz_metric_find("ttft_ms.mean", NULL);
    d[1].metric = hz_metric_find("input_tps", NULL);
    assert_int_equal(compare_limit_parse("ttft_ms.mean>+5%", &l, NULL), 0);
    assert_true(compare_limit_missed(&l, &c, &change));
    assert_true(fabs(change - 6) < 1e-9);
    assert_int_equal(compare_limit_parse("ttft_ms.mean>7", &l, NULL), 0);
    assert_false(compare_limit_missed(&l, &c, &change));
    assert_int_equal(compare_limit_parse("input_tps<-1%", &l, NULL), 0);
    assert_true(compare_limit_missed(&l, &c, &change));
    assert_int_equal(compare_limit_parse("input_tps<-3%", &l, NULL), 0);
    assert_false(compare_limit_missed(&l, &c, &change));
    /* A figure that was not measured misses its limit. */
    assert_int_equal(compare_limit_parse("e2e_ms.p99>5%", &l, NULL), 0);
    assert_true(compare_limit_missed(&l, &c, &change));
    assert_true(isnan(change));
    static const char *const bad[] = {
        "", "ttft_ms.mean", "ttft_ms.mean>", "ttft_ms.mean>x%", "ttft>5%", "ttft_ms.mean>5%x", ">5%"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        assert_int_equal(compare_limit_parse(bad[i], &l, &err), KM_EINVAL);
}

/* Forty figures of one family, of which one changed: the others are not called better by chance. */
static void many_figures(void **state)
{
    (void)state;
    struct compare_delta d[40], *list[40];
    for (int i = 0; i < 40; i++) {
        d[i] = (struct compare_delta){
            .metric = hz_metric_find("ttft_ms.mean", NULL), .ratio = 0.98, .lo = 0.97, .hi = 0.999, .p = 0.03};
        list[i] = &d[i];
    }
    d[7].p = 0.0002;
    compare_judge(list, 40, 0.05);
    for (int i = 0; i < 40; i++)
        assert_int_equal(d[i].verdict, i == 7 ? COMPARE_BETTER : COMPARE_NO_DIFFERENCE);
    compare_judge(list, 1, 0.05); /* alone, 0.03 is enough */
    assert_int_equal(d[0].verdict, COMPARE_BETTER);
}

/* The interval holds the true ratio in about 95 of 100 experiments, also with few pairs. */
static void coverage(void **state)
{
    (void)state;
    enum { TRIALS = 300 };
    static const struct {
        int pairs, convs;
        double conv_sd, run_sd;
    } cases[] = {{2, 20, 0, 0.05}, {3, 20, 0, 0.05}, {5, 20, 0, 0.05},
                 {1, 4, 0.2, 0},   {1, 20, 0.2, 0},  {3, 10, 0.2, 0.05}};
    const struct hz_metric *m[] = {hz_metric_find("ttft_ms.mean", NULL)};
    for (size_t k = 0; k < sizeof cases / sizeof *cases; k++) {
        int pairs = cases[k].pairs, held = 0;
        double truth = 0.7 * exp(cases[k].conv_sd * cases[k].conv_sd / 2); /* the mean of a lognormal distribution */
        rng_state = 99;
        for (int trial = 0; trial < TRIALS; trial++) {
            struct run_folder a[5], b[5];
            const struct run_folder *la[5], *lb[5];
            struct compare_opts o = compare_defaults();
            struct compare_result c;
            o.draws = 400;
            o.seed = (uint64_t)trial;
            o.metrics = m;
            o.n_metrics = 1;
            make_pairs(a, b, pairs, cases[k].convs, 3, 0.7, cases[k].conv_sd, 0.05, cases[k].run_sd);
            point_at(la, a, pairs);
            point_at(lb, b, pairs);
            assert_int_equal(compare_runs(&c, la, lb, pairs, &o, NULL), 0);
            held += c.deltas[0].lo <= truth && truth <= c.deltas[0].hi;
            compare_result_free(&c);
            drop(a, pairs);
            drop(b, pairs);
        }
        print_message("%d pairs of %d conversations: the interval held the true ratio in %.1f%% of %d experiments\n",
                      pairs, cases[k].convs, 100.0 * held / TRIALS, TRIALS);
        assert_true(held >= TRIALS * 88 / 100);
    }
}

static void allocation_failures(void **state)
{
    (void)state;
    struct run_folder a[2], b[2];
    const struct run_folder *la[2], *lb[2];
    struct compare_opts o = compare_defaults();
    int failed = 0;
    rng_state = 5;
    make_pairs(a, b, 2, 6, 2, 0.5, 0.1, 0.1, 0.1);
    point_at(la, a, 2);
    point_at(lb, b, 2);
    o.draws = 100;
    for (long n = 1; n < 500; n++) {
        struct compare_result c;
        km_mem_fail_at(n);
        int rc = compare_runs(&c, la, lb, 2, &o, NULL);
        km_mem_fail_at(0);
        if (!rc) {
            compare_result_free(&c);
            break;
        }
        assert_int_equal(rc, KM_ENOMEM);
        failed++;
    }
    assert_true(failed > 20 && failed < 499);
    drop(a, 2);
    drop(b, 2);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_clear_gain), cmocka_unit_test(nothing_and_noise), cmocka_unit_test(one_pair),
        cmocka_unit_test(matching),     cmocka_unit_test(unlike_workloads),  cmocka_unit_test(limits),
        cmocka_unit_test(many_figures), cmocka_unit_test(coverage),          cmocka_unit_test(allocation_failures),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
