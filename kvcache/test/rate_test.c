/* Tests of the measured rate of transfers (kvcache/rate.h), with a clock of the test's own. */
#include "base/test/test.h"

#include "kvcache/rate.h"

#include <math.h>

enum { MS = 1000000 };

/* The rate in GB/s. */
static double gbps(const struct kvc_rate *r)
{
    return 1e9 / kvc_rate_ns(r, 1e9);
}

/* Transfers of 32 MB, one after the other, of which each takes ns. Three are in flight at a time. */
static int64_t run(struct kvc_rate *r, int64_t now, int n, int64_t ns)
{
    for (int i = 0; i < n && i < 3; i++)
        kvc_rate_begin(r, now, false);
    for (int i = 0; i < n; i++) {
        now += ns;
        kvc_rate_end(r, 32000000);
        kvc_rate_sample(r, now);
        if (i + 3 < n)
            kvc_rate_begin(r, now, false);
    }
    return now;
}

static void test_first_guess(void **state)
{
    (void)state;
    struct kvc_rate r;
    kvc_rate_init(&r, 20e9);
    assert_false(kvc_rate_known(&r));
    assert_true(fabs(gbps(&r) - 20) < 0.01);
    run(&r, 5 * MS, 40, 640000); /* 50 GB/s */
    assert_true(kvc_rate_known(&r));
    assert_true(fabs(gbps(&r) - 50) < 2);
}

/* The time between two bursts is not part of any sample, however a burst ends and whoever asks meanwhile. */
static void test_idle_time_does_not_count(void **state)
{
    (void)state;
    for (int n = 1; n < 9; n++) {
        struct kvc_rate r;
        kvc_rate_init(&r, 20e9);
        int64_t now = 5 * MS;
        for (int burst = 0; burst < 40; burst++) {
            now = run(&r, now, n, 640000);
            for (int i = 0; i < 10; i++)
                kvc_rate_sample(&r, now += 100 * MS);
        }
        assert_true(fabs(gbps(&r) - 50) < 3);
    }
}

/* A transfer that waits for a fence counts from the first end on. */
static void test_fence(void **state)
{
    (void)state;
    struct kvc_rate r;
    kvc_rate_init(&r, 50e9);
    for (int i = 0; i < 3; i++)
        kvc_rate_begin(&r, 0, true);
    int64_t now = 500 * MS;
    for (int i = 0; i < 3; i++) {
        kvc_rate_end(&r, 64000000);
        kvc_rate_sample(&r, now += 1280000);
    }
    assert_true(fabs(gbps(&r) - 50) < 1);
}

/* A failed transfer gives no sample. */
static void test_failure(void **state)
{
    (void)state;
    struct kvc_rate r;
    kvc_rate_init(&r, 20e9);
    kvc_rate_begin(&r, 1, false);
    kvc_rate_end(&r, -1);
    kvc_rate_sample(&r, 900 * MS);
    assert_false(kvc_rate_known(&r));
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_first_guess),
                                       cmocka_unit_test(test_idle_time_does_not_count), cmocka_unit_test(test_fence),
                                       cmocka_unit_test(test_failure)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
