/* The planner: its estimates, and the time to the first token with all three modes, on a simulated clock. The fake
 * device has the rates of an H100 with an 8B model: 43,000 rows a second, and at least 5.5 ms a step. The fake cache
 * layer has a link of a given rate; a token has 147,456 bytes there. */
#include "base/test/test.h"

#include "engine/planner.h"
#include "fake_rig.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { HIT = 19968, PROMPT = 20032 }; /* 78 chunks of 256 tokens, and a tail of 64 */
static const double ROW_NS = 1e9 / 43000, FLOOR_NS = 5.5e6;

/* A rate in GB/s of 147,456 bytes a token, for the fake device's 8 bytes a token. */
static double bytes_per_s(double gb)
{
    return gb * 1e9 / 147456 * 8;
}

struct bench {
    struct fake_port p;
    struct fake_rig g;
};

static void bench_open_with(struct bench *b, const struct eng_opts *o, double gb)
{
    fake_port_init(&b->p, 256);
    b->p.rate = bytes_per_s(gb);
    b->p.depth = 3;
    b->g = (struct fake_rig){.m = fake_model(997, 40000), .port = &b->p};
    b->g.stall_ns = gb < 1 ? 1000000 : 50000;
    struct km_err err;
    if (eng_open(&b->g.e, o, &b->g.m, &be_fake_clock, &b->p.port, &err))
        fail_msg("%s", err.msg);
    b->g.m.row_ns = ROW_NS;
    b->g.m.floor_ns = (int64_t)FLOOR_NS;
}

static void bench_open(struct bench *b, enum pln_mode mode, int budget, double gb)
{
    struct eng_opts o = fake_rig_opts(3000, budget, 16);
    o.kv_planner = mode;
    bench_open_with(b, &o, gb);
}

static void bench_close(struct bench *b)
{
    fake_rig_close(&b->g);
    fake_port_free(&b->p);
}

static void drop_pool(struct bench *b)
{
    struct km_err err;
    while (eng_reset_cache(b->g.e, false, &err) == 1)
        ;
}

/* Runs the prompt twice, the second time with an empty pool, and returns the second time to the first token in ms. */
static double ttft_ms(enum pln_mode mode, int budget, double gb, double told, struct eng_stats *st)
{
    struct bench b;
    bench_open(&b, mode, budget, gb);
    fake_rig_run_job(&b.g, PROMPT, 1, 8, NULL);
    drop_pool(&b);
    b.p.told_rate = b.p.rate * told;
    struct job j;
    job_init(&j, PROMPT, 0, 0, 1, 1);
    fake_rig_one(&b.g, &j);
    *st = fake_rig_stats(&b.g);
    if (mode == PLN_COMPUTE)
        assert_int_equal(j.last.n_cached + b.p.lookups, 0);
    else if (mode == PLN_LOAD)
        assert_int_equal(j.last.n_cached, HIT);
    assert_int_equal(j.last.n_cached, b.p.loaded_tokens);
    double ms = (double)(j.last.now_ns - j.last.arrived_ns) / 1e6;
    job_free(&j);
    bench_close(&b);
    return ms;
}

static void auto_is_never_much_slower_than_the_better_mode(void **state)
{
    (void)state;
    static const double rates[] = {0.05, 0.2, 1, 5, 6.34, 20, 50};
    struct eng_stats st;
    for (int budget = 2048; budget <= 8192; budget *= 4) {
        print_message("budget %d\n%8s %10s %10s %10s %8s %9s\n", budget, "GB/s", "compute ms", "load ms", "auto ms",
                      "speedup", "overlap");
        for (size_t i = 0; i < sizeof rates / sizeof *rates; i++) {
            double compute = ttft_ms(PLN_COMPUTE, budget, rates[i], 1, &st);
            double load = ttft_ms(PLN_LOAD, budget, rates[i], 1, &st);
            assert_int_equal(st.overlapped_rows, 0);
            double both = ttft_ms(PLN_AUTO, budget, rates[i], 1, &st), better = fmin(compute, load);
            print_message("%8.2f %10.1f %10.1f %10.1f %8.2f %9lld\n", rates[i], compute, load, both, better / both,
                          (long long)st.overlapped_rows);
            assert_int_equal(st.abandoned_loads, 0);
            assert_true(both < 1.02 * compute);
            assert_true(both < 1.05 * load);
            if (rates[i] == 6.34) /* the rate at which both take the same time */
                assert_true(better / both > 1.7);
        }
    }
}

/* The cache layer's own estimate is wrong by the given factor. */
static void wrong_estimates_cost_little(void **state)
{
    (void)state;
    static const double rates[] = {0.2, 1, 5, 6.34, 20, 50}, told[] = {0.7, 0.9, 1.1, 1.4};
    struct eng_stats st;
    print_message("%8s", "GB/s");
    for (int k = 0; k < 4; k++)
        print_message("   told %.1f", told[k]);
    print_message("   (time, relative to the better of load and compute)\n");
    for (size_t i = 0; i < sizeof rates / sizeof *rates; i++) {
        double compute = ttft_ms(PLN_COMPUTE, 2048, rates[i], 1, &st);
        double load = ttft_ms(PLN_LOAD, 2048, rates[i], 1, &st), better = fmin(compute, load);
        print_message("%8.2f", rates[i]);
        for (int k = 0; k < 4; k++) {
            double both = ttft_ms(PLN_AUTO, 2048, rates[i], told[k], &st);
            print_message("%11.2f", both / better);
            assert_true(both < 1.25 * better);
        }
        print_message("\n");
    }
}

/* Four requests arrive together. Returns the mean time to the first token, and the time to the last one. */
static double crowd_ms(enum pln_mode mode, double gb, int n_decodes, double *last_ms)
{
    enum { N = 4 };
    struct bench b;
    struct job j[N], d[8];
    bench_open(&b, mode, 2048, gb);
    for (int i = 0; i < N; i++)
        fake_rig_run_job(&b.g, 10048, (uint64_t)i, 8, NULL);
    drop_pool(&b);
    for (int i = 0; i < n_decodes; i++) {
        job_init(&d[i], 20, 0, 0, 100 + (uint64_t)i, FAKE_RIG_OUT);
        fake_rig_submit(&b.g, &d[i]);
    }
    fake_rig_step(&b.g);
    for (int i = 0; i < N; i++) {
        job_init(&j[i], 10048, 0, 0, (uint64_t)i, 1);
        fake_rig_submit(&b.g, &j[i]);
    }
    fake_rig_run(&b.g);
    double sum = 0;
    *last_ms = 0;
    for (int i = 0; i < N; i++) {
        double ms = (double)(j[i].last.now_ns - j[i].last.arrived_ns) / 1e6;
        fake_rig_verify(&b.g, &j[i]);
        sum += ms / N;
        *last_ms = fmax(*last_ms, ms);
        job_free(&j[i]);
    }
    for (int i = 0; i < n_decodes; i++) {
        fake_rig_verify(&b.g, &d[i]);
        job_free(&d[i]);
    }
    bench_close(&b);
    return sum;
}

/* A step with rows of one request's front must not delay other requests whose loads end. */
static void several_loads_do_not_delay_each_other(void **state)
{
    (void)state;
    static const double rates[] = {0.2, 1, 5, 6.34, 20, 50};
    for (int decodes = 0; decodes < 9; decodes += 8) {
        print_message("four requests of 10,048 tokens, %d decodes: mean and last time to the first token in ms\n",
                      decodes);
        print_message("%8s %19s %19s %19s\n", "GB/s", "compute", "load", "auto");
        for (size_t i = 0; i < sizeof rates / sizeof *rates; i++) {
            double mean[3], last[3];
            for (int m = 0; m < 3; m++)
                mean[m] = crowd_ms((enum pln_mode)m, rates[i], decodes, &last[m]);
            print_message("%8.2f %9.1f %9.1f %9.1f %9.1f %9.1f %9.1f\n", rates[i], mean[PLN_COMPUTE],
                          last[PLN_COMPUTE], mean[PLN_LOAD], last[PLN_LOAD], mean[PLN_AUTO], last[PLN_AUTO]);
            assert_true(mean[PLN_AUTO] < 1.02 * mean[PLN_COMPUTE] && last[PLN_AUTO] < 1.02 * last[PLN_COMPUTE]);
            /* The mean may be a little worse than that of loads alone, because the last request may choose to be
             * computed, and its steps make those before it wait. */
            assert_true(mean[PLN_AUTO] < 1.15 * mean[PLN_LOAD] && last[PLN_AUTO] < 1.05 * last[PLN_LOAD]);
        }
    }
}

/* A tier turns slow after its load began. The load is cut and in the end given up, and its pages stay with it until it
 * ends. In a pool without spare pages it cannot be given up. */
static void a_late_load_is_given_up(void **state)
{
    (void)state;
    for (int small = 0; small < 2; small++) {
        struct bench b;
        struct job j;
        struct eng_opts o = fake_rig_opts(small ? (PROMPT + 1) / 16 + 10 : 3000, 2048, 16);
        o.kv_planner = PLN_AUTO;
        bench_open_with(&b, &o, 20);
        fake_rig_run_job(&b.g, PROMPT, 1, 8, NULL);
        drop_pool(&b);
        b.p.told_rate = b.p.rate;
        b.p.rate /= 200;
        b.g.stall_ns = 1000000;
        job_init(&j, PROMPT, 0, 0, 1, 1);
        fake_rig_submit(&b.g, &j);
        while (j.finish == ENG_RUNNING)
            fake_rig_step(&b.g);
        double ms = (double)(j.last.now_ns - j.last.arrived_ns) / 1e6;
        struct eng_stats st = fake_rig_stats(&b.g);
        print_message("%.0f ms; %lld rows overlapped, %d loaded\n", ms, (long long)st.overlapped_rows, j.last.n_cached);
        assert_int_equal(st.abandoned_loads, !small);
        assert_true(small || ms < 1.25 * PROMPT * ROW_NS / 1e6);
        assert_int_equal(st.pages_used, small ? 0 : 4 * 16); /* of the chunks whose copies have started */
        assert_int_equal(j.last.n_cached, small ? 4 * 256 : 0);
        fake_rig_run(&b.g);
        fake_rig_verify(&b.g, &j);
        job_free(&j);
        bench_close(&b);
    }
}

/* The estimates themselves. */
static void rates_are_measured(void **state)
{
    (void)state;
    struct pln p;
    pln_init(&p, PLN_AUTO, 16, 256, 2048);
    assert_true(pln_step_ns(&p, 100) == 0);
    pln_add_step(&p, 1, 6000000);
    pln_add_step(&p, 8, 9000000); /* late by a delay */
    assert_true(p.floor_ns > 6e6 && p.floor_ns < 6.2e6);
    pln_add_step(&p, 2, 5000000);
    assert_true(p.floor_ns > 5e6 && p.floor_ns < 5.6e6);
    pln_add_step(&p, 2048, 2048 * 30000);
    assert_true(p.row_ns == 30000);
    pln_add_step(&p, 256, 256 * 20000);
    assert_true(p.row_ns == 27500);
    assert_true(pln_step_ns(&p, 1) == p.floor_ns);
    assert_true(pln_step_ns(&p, 1000) == 27500000);
    assert_true(pln_compute_ns(&p, 5000) == 5000 * 27500.0);
    assert_true(pln_compute_ns(&p, 2049) == 2048 * 27500.0 + p.floor_ns);
    pln_init(&p, PLN_AUTO, 16, 256, 64); /* a small budget: its full steps are the large ones */
    pln_add_step(&p, 64, 64000);
    assert_true(p.row_ns == 1000);

    struct pln_load l = {.began_ns = 1000, .from = 0, .to = 1000, .all_ns = 10000, .token_ns = 8};
    assert_true(pln_left_ns(&l, 0, 3000) == 8000);
    assert_true(pln_left_ns(&l, 500, 3000) == 4000); /* half of its tokens were given up */
    assert_true(pln_left_ns(&l, 0, 12000) == 0);
    assert_true(pln_left_ns(&l, 0, 14000) == 13000 * 0.25); /* overdue: its rate is not known */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rates_are_measured),
        cmocka_unit_test(auto_is_never_much_slower_than_the_better_mode),
        cmocka_unit_test(wrong_estimates_cost_little),
        cmocka_unit_test(several_loads_do_not_delay_each_other),
        cmocka_unit_test(a_late_load_is_given_up),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
