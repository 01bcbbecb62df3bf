/* The generators' values against those of numpy 1.26 and 2.4. */
#include "base/test/test.h"

#include "base/mem.h"
#include "workloads/distribution.h"
#include "workloads/rng.h"

#include <math.h>
#include <string.h>

#define COUNT(a) (sizeof(a) / sizeof *(a))

static void legacy_integers(void **state)
{
    (void)state;
    static const struct {
        uint32_t seed;
        int64_t lo, hi;
        int64_t want[5];
    } t[] = {{0, 0, 9, {5, 0, 3, 3, 7}},
             {42, 0, 99, {51, 92, 14, 71, 60}},
             {0, 0, 151642, {43567, 117952, 95939, 97639, 41993}},
             {40, 0, 151642, {142662, 112859, 30727, 93176, 56760}},
             {7, 0, ((int64_t)1 << 40) - 1, {752595690692, 108744157686, 291964244179, 650496783975, 396459895993}}};
    for (size_t i = 0; i < COUNT(t); i++) {
        struct wl_mt r;
        wl_mt_seed(&r, t[i].seed);
        for (int k = 0; k < 5; k++)
            assert_int_equal(wl_mt_int(&r, t[i].lo, t[i].hi), t[i].want[k]);
    }
    struct wl_mt r;
    wl_mt_seed(&r, UINT32_MAX);
    assert_int_equal(wl_mt_int(&r, 9, 9), 9); /* draws nothing */
    assert_int_equal(wl_mt_int(&r, 0, UINT32_MAX), 419326371);
    assert_int_equal(wl_mt_u32(&r), 479346978);
    assert_int_equal(wl_mt_int(&r, -5, (int64_t)UINT32_MAX - 5), 3918654471);
}

static void legacy_variates(void **state)
{
    (void)state;
    static const double normals[] = {0x1.b0c64ae2deb29p+0, -0x1.dd1eafa1d414dp-2, 0x1.0cdcdf34c3aedp-5,
                                     0x1.a14bf2d03adc9p-2, -0x1.93edb81e0483fp-1};
    static const double exponentials[] = {0x1.9668e7210b08dp-3, 0x1.e4671c5195370p+1, 0x1.7144b56857e76p+0,
                                          0x1.9b557c57f5b8dp+1};
    struct wl_mt r;
    wl_mt_seed(&r, 7);
    for (size_t i = 0; i < COUNT(normals); i++)
        assert_true(fabs(wl_mt_normal(&r) - normals[i]) < 1e-15);
    wl_mt_seed(&r, 7);
    for (size_t i = 0; i < COUNT(exponentials); i++)
        assert_true(fabs(wl_mt_exponential(&r, 2.5) - exponentials[i]) < 1e-14);
    static const struct {
        double alpha;
        int64_t want[8];
    } zipf[] = {{1.05, {1096695, 518, 14633, 121, 187, 4015943463, 97, 11120}},
                {1.2, {1, 193576058, 32, 4, 10, 3, 649004, 3}},
                {2, {1, 1, 2, 1, 1, 1, 1, 14}},
                {2000, {1, 1, 1, 1, 1, 1, 1, 1}}},
      poisson[] = {{0, {0}},
                   {0.5, {0, 1, 2, 0, 0, 0, 0, 1}},
                   {3.5, {2, 4, 4, 1, 4, 5, 4, 4}},
                   {9.9, {9, 9, 12, 13, 8, 9, 12, 13}},
                   {10, {9, 10, 8, 9, 8, 7, 16, 7}},
                   {37.5, {27, 36, 37, 33, 41, 35, 32, 49}},
                   {4000, {3888, 3989, 4000, 3956, 4033, 3978, 3960, 3943}}};
    for (size_t i = 0; i < COUNT(zipf); i++) {
        wl_mt_seed(&r, 7);
        for (int k = 0; k < 8; k++)
            assert_int_equal(wl_mt_zipf(&r, zipf[i].alpha), zipf[i].want[k]);
    }
    for (size_t i = 0; i < COUNT(poisson); i++) {
        wl_mt_seed(&r, 7);
        for (int k = 0; k < 8; k++)
            assert_int_equal(wl_mt_poisson(&r, poisson[i].alpha), poisson[i].want[k]);
    }
}

/* Calls the functions in turn: each later value is numpy's only if the calls before it made exactly numpy's draws. */
static void legacy_draws_line_up(void **state)
{
    (void)state;
    struct wl_mt r;
    wl_mt_seed(&r, 11);
    assert_int_equal(wl_mt_zipf(&r, 1.3), 1);
    assert_int_equal(wl_mt_poisson(&r, 25), 24);
    assert_true(fabs(wl_mt_normal(&r) - -0x1.f031d78eafda2p-2) < 1e-15);
    assert_int_equal(wl_mt_int(&r, 0, 999), 621);
    assert_true(fabs(wl_mt_exponential(&r, 2.5) - 0x1.6aa9d3b3eb650p+2) < 1e-14);
    assert_true(fabs(wl_mt_normal(&r) - -0x1.539ff14af2ee1p+1) < 1e-14); /* the second normal of the first pair */
    assert_true(fabs(wl_mt_normal(&r) - 0x1.51e459ae34b4ep-2) < 1e-15);
    assert_int_equal(wl_mt_poisson(&r, 3), 8);
    assert_true(wl_mt_double(&r) == 0x1.d7b1d8b45e9f9p-1);
}

static void pcg_stream(void **state)
{
    (void)state;
    static const struct {
        uint64_t seed;
        double first[2];
        int64_t digits[6], ids[3], words[3];
        double last;
    } t[] = {{0,
              {0x1.461fd79fb3850p-1, 0x1.1442f7e20b674p-2},
              {3, 0, 0, 0, 1, 8},
              {98479, 138412, 76371},
              {2605480817, 4169308741, 3133163871},
              0x1.165603cf43b8fp-1},
             {42,
              {0x1.8c43f79a2db24p-1, 0x1.c16959869e47ep-2},
              {4, 8, 0, 6, 2, 0},
              {79836, 147946, 111571},
              {3269070127, 3081541440, 3376120483},
              0x1.066070b41b168p-3},
             {4294967301,
              {0x1.8c647d8643bd7p-1, 0x1.e20520871ce80p-2},
              {8, 6, 8, 8, 8, 5},
              {86471, 78444, 89661},
              {902892943, 3835358842, 304074557},
              0x1.eb8916611a1d8p-2},
             {UINT64_MAX,
              {0x1.5c2c74f5188eap-1, 0x1.b0ccb3ebe6704p-1},
              {3, 0, 1, 8, 6, 1},
              {46002, 48349, 122951},
              {2531773043, 167088798, 784637208},
              0x1.d240c36e81e86p-1}};
    for (size_t i = 0; i < COUNT(t); i++) {
        struct wl_pcg r;
        wl_pcg_seed(&r, t[i].seed);
        for (int k = 0; k < 2; k++)
            assert_true(wl_pcg_double(&r) == t[i].first[k]);
        assert_int_equal(wl_pcg_int(&r, 5, 5), 5); /* draws nothing */
        for (int k = 0; k < 6; k++)
            assert_int_equal(wl_pcg_int(&r, 0, 9), t[i].digits[k]);
        for (int k = 0; k < 3; k++)
            assert_int_equal(wl_pcg_int(&r, 0, 151642), t[i].ids[k]);
        for (int k = 0; k < 3; k++)
            assert_int_equal(wl_pcg_int(&r, 0, UINT32_MAX), t[i].words[k]);
        assert_true(wl_pcg_double(&r) == t[i].last);
    }
    static const int64_t rejecting[] = {2434513627, 256947505,  538322207,  710431524,
                                        544094366,  2403823400, 1746486112, 282385931};
    struct wl_pcg r;
    wl_pcg_seed(&r, 3); /* a range of 3e9 values rejects three draws in ten */
    for (size_t i = 0; i < COUNT(rejecting); i++)
        assert_int_equal(wl_pcg_int(&r, 5, 3000000004), rejecting[i]);
    wl_pcg_seed(&r, 0);
    static const int64_t offsets[] = {128991, 96590, 77510, 40911, 46680};
    for (size_t i = 0; i < COUNT(offsets); i++)
        assert_int_equal(wl_pcg_int(&r, 0, 151642), offsets[i]);
}

/* Numbers of samples on both sides of each step of numpy's pairwise summation. */
static void lognormal_samples(void **state)
{
    (void)state;
    static const struct {
        int n;
        int64_t first[3], last, sum;
    } t[] = {{1, {100000}, 100000, 100000},
             {7, {428955, 87300, 58500}, 47370, 700001},
             {8, {473357, 96337, 64555}, 27541, 800000},
             {9, {498432, 101440, 67975}, 57623, 900002},
             {128, {471215, 95901, 64263}, 79393, 12799999},
             {129, {473906, 96449, 64630}, 26886, 12900002},
             {5000, {424336, 86360, 57870}, 100783, 500000008}};
    struct wl_distribution l = {.family = WL_LOGNORMAL_MEAN, .a = log(50000), .b = sqrt(2 * log(2)), .average = 100000};
    int64_t *v = km_malloc(5000 * sizeof *v);
    for (size_t i = 0; i < COUNT(t); i++) {
        struct wl_mt r;
        struct km_err err;
        wl_mt_seed(&r, 3);
        assert_int_equal(wl_distribution_sample(&l, &r, t[i].n, v, &err), 0);
        int64_t sum = 0;
        for (int k = 0; k < t[i].n; k++)
            sum += v[k];
        assert_int_equal(sum, t[i].sum);
        assert_int_equal(v[t[i].n - 1], t[i].last);
        for (int k = 0; k < 3 && k < t[i].n; k++)
            assert_int_equal(v[k], t[i].first[k]);
    }
    km_free(v);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(legacy_integers), cmocka_unit_test(legacy_variates),   cmocka_unit_test(legacy_draws_line_up),
        cmocka_unit_test(pcg_stream),      cmocka_unit_test(lognormal_samples),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
