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

static void bench_open(struct bench *b, enum pln_mode mode, int budget, double gb)
{
    struct eng_opts o = fake_rig_opts(3000, budget, 16);
    o.kv_planner = mode;
    fake_port_init(&b->p, 256);
    b->p.rate = bytes_per_s(gb);
    b->p.depth = 3;
    b->g = (struct fake_rig){.m = fake_model(997, 40000), .port = &b->p};
    b->g.stall_ns = gb < 1 ? 1000000 : 50000;
    struct km_err err;
    if (eng_open(&b->g.e, &o, &b->g.m, &be_fake_clock, &b->p.port, &err))
        fail_msg("%s", err.msg);
    b->g.m.row_ns = ROW_NS;
    b->g.m.floor_ns = (int64_t)FLOOR_NS;
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

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(auto_is_never_much_slower_than_the_better_mode),
        cmocka_unit_test(wrong_estimates_cost_little),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
