/* The reference sampler: the exact set of ids that the filters leave, their order, and the distribution of the
 * draws. */
#include "base/test/test.h"

#include "engine/sample.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { V = 50 };

static float scratch[1 << 18];

static struct smp_result run(const struct smp_row *r, const float *logits, int vocab)
{
    float *copy = malloc(sizeof *copy * (size_t)vocab);
    memcpy(copy, logits, sizeof *copy * (size_t)vocab);
    for (int i = 0; i < vocab; i++)
        scratch[i] = NAN; /* the result must not depend on the content of scratch */
    struct smp_result out;
    memset(&out, 0x7F, sizeof out);
    smp_sample(r, logits, vocab, scratch, &out);
    assert_memory_equal(copy, logits, sizeof *copy * (size_t)vocab);
    free(copy);
    return out;
}

static void some_logits(float *v, int n)
{
    for (int i = 0; i < n; i++)
        v[i] = 3 * sinf((float)i * 1.7f) + (float)(i % 7) * 0.3f;
}

/* The distribution that the filters should leave, computed by sorting. */
struct entry {
    double l;
    int id;
};

static int falling(const void *a, const void *b)
{
    const struct entry *x = a, *y = b;
    return x->l != y->l ? (x->l < y->l ? 1 : -1) : x->id - y->id;
}

static void expected(const float *logits, int n, const struct smp_params *p, double *prob)
{
    struct entry e[V];
    double sum = 0, cum = 0;
    for (int i = 0; i < n; i++)
        e[i] = (struct entry){logits[i] / p->temperature, i};
    qsort(e, (size_t)n, sizeof *e, falling);
    int keep = n;
    if (p->min_p > 0)
        while (exp(e[keep - 1].l - e[0].l) < p->min_p)
            keep--;
    if (p->top_k > 0 && p->top_k < keep) {
        int k = p->top_k;
        while (k < keep && e[k].l == e[p->top_k - 1].l)
            k++;
        keep = k;
    }
    for (int i = 0; i < keep; i++)
        sum += exp(e[i].l - e[0].l);
    for (int i = 0; i < keep; i++) {
        if (i && cum >= p->top_p * sum) {
            keep = i;
            break;
        }
        cum += exp(e[i].l - e[0].l);
    }
    memset(prob, 0, sizeof *prob * (size_t)n);
    for (int i = 0; i < keep; i++)
        prob[e[i].id] = exp(e[i].l - e[0].l) / (keep == n ? sum : cum);
}

/* Upper quantile of chi-square at about 1e-6 by Wilson and Hilferty. */
static double chi_limit(int df)
{
    double k = df, z = 4.75, t = 1 - 2 / (9 * k) + z * sqrt(2 / (9 * k));
    return k * t * t * t;
}

static void check_draw(const float *logits, const struct smp_params *params, bool by_seed)
{
    enum { N = 40000 };
    double prob[V], chi = 0, rest_p = 0;
    int count[V] = {0}, df = -1, rest = 0;
    expected(logits, V, params, prob);
    for (int i = 0; i < N; i++) {
        struct smp_row r = {.p = *params, .step = by_seed ? 3 : (uint64_t)i};
        r.p.seed = by_seed ? (uint64_t)i : 42;
        int id = run(&r, logits, V).id;
        if (prob[id] == 0)
            fail_msg("id %d was drawn but is filtered out", id);
        count[id]++;
    }
    for (int i = 0; i < V; i++) {
        if (prob[i] * N < 10) { /* too rare for a class of its own */
            rest_p += prob[i];
            rest += count[i];
            continue;
        }
        chi += (count[i] - prob[i] * N) * (count[i] - prob[i] * N) / (prob[i] * N);
        df++;
    }
    if (rest_p * N >= 10) {
        chi += (rest - rest_p * N) * (rest - rest_p * N) / (rest_p * N);
        df++;
    }
    assert_true(df > 0);
    if (chi > chi_limit(df))
        fail_msg("chi-square %g at %d degrees is above %g", chi, df, chi_limit(df));
}

static void draws_follow_the_softmax(void **state)
{
    (void)state;
    float l[V];
    some_logits(l, V);
    struct smp_params p = smp_defaults();
    for (int i = 0; i < 2; i++)
        for (p.temperature = 0.5; p.temperature < 3; p.temperature *= 2)
            check_draw(l, &p, i);
    p.temperature = 1;
    p.top_p = 0.7;
    check_draw(l, &p, false);
    p.top_k = 9;
    check_draw(l, &p, false);
    p.min_p = 0.3;
    check_draw(l, &p, true);
    memset(l, 0, sizeof l);
    p = smp_defaults();
    p.temperature = 1;
    check_draw(l, &p, false); /* all equal */
}

/* Compares the ids that are ever sampled with those that should be. */
static void check_set(const float *l, int n, const struct smp_params *p, const char *want)
{
    char got[V + 1] = {0};
    memset(got, '.', (size_t)n);
    for (uint64_t i = 0; i < 3000; i++) {
        struct smp_row r = {.p = *p, .step = i};
        got[run(&r, l, n).id] = 'x';
    }
    assert_string_equal(got, want);
}

static void filters_leave_exact_sets(void **state)
{
    (void)state;
    /* probabilities 0.1 0.4 0.2 0.2 0.1 */
    const float l[] = {logf(0.1f), logf(0.4f), logf(0.2f), logf(0.2f), logf(0.1f)};
    static const struct {
        double top_p, min_p;
        int top_k;
        const char *want;
    } t[] = {{1, 0, 0, "xxxxx"},    {1, 0, -1, "xxxxx"},   {1, 0, 1, ".x..."},
             {1, 0, 2, ".xxx."}, /* ids equal to the k-th stay */
             {1, 0, 3, ".xxx."},    {1, 0, 4, "xxxxx"},    {1, 0, 99, "xxxxx"},
             {0.3, 0, 0, ".x..."},  {0.5, 0, 0, ".xx.."}, /* the lower id of two equal ones */
             {0.7, 0, 0, ".xxx."},  {0.85, 0, 0, "xxxx."}, {0.95, 0, 0, "xxxxx"},
             {1e-9, 0, 0, ".x..."}, {1, 0.4, 0, ".xxx."},  {1, 0.6, 0, ".x..."},
             {1, 1, 0, ".x..."},    {1, 0.2, 0, "xxxxx"},
             {0.6, 0, 3, ".xx.."}, /* top_p applies to what top_k leaves: 0.4 and 0.2 are 0.75 of 0.8 */
             {0.45, 0.45, 0, ".x..."}};
    for (size_t i = 0; i < sizeof t / sizeof *t; i++) {
        struct smp_params p = smp_defaults();
        p.temperature = 1;
        p.top_p = t[i].top_p;
        p.min_p = t[i].min_p;
        p.top_k = t[i].top_k;
        check_set(l, 5, &p, t[i].want);
    }
    struct smp_params p = smp_defaults();
    p.temperature = 2; /* gives 0.147 0.294 0.208 0.208 0.147: filters apply to the scaled logits */
    p.top_p = 0.72;
    check_set(l, 5, &p, "xxxx.");
}

static void greedy_takes_the_lowest_of_equals(void **state)
{
    (void)state;
    const float l[] = {1, 5, 2, 5, -INFINITY, NAN};
    struct smp_row r = {.p = smp_defaults()};
    r.p.n_logprobs = 0;
    struct smp_result out = run(&r, l, 4);
    assert_int_equal(out.id, 1);
    assert_int_equal(out.rank, 2); /* the id of equal probability counts, as in vLLM */
    r.p.n_logprobs = -1;
    out = run(&r, l, 6);
    assert_int_equal(out.id, 1);
    assert_int_equal(out.rank, 0);
    r.p.top_k = 3; /* filters do not matter for greedy sampling */
    r.p.top_p = 0.1;
    assert_int_equal(run(&r, l, 6).id, 1);
    static const int32_t ban[] = {1, 3, 99, -1};
    r.banned = ban;
    r.n_banned = 4;
    assert_int_equal(run(&r, l, 4).id, 2);
    r.p.temperature = 1;
    for (r.step = 0; r.step < 200; r.step++) {
        int id = run(&r, l, 6).id;
        assert_true(id == 0 || id == 2);
    }
    const float hopeless[] = {NAN, -INFINITY, NAN};
    assert_int_equal(run(&r, hopeless, 3).id, 0);
    r.p.temperature = 0;
    assert_int_equal(run(&r, hopeless, 3).id, 0);
}

static void penalties_work_on_the_right_tokens(void **state)
{
    (void)state;
    static const int32_t history[] = {0, 0, 4, /* generated: */ 1, 1, 1, 4};
    static const float l[] = {2, 3, 2.5f, -1, 2.2f, -4};
    struct smp_row r = {.p = smp_defaults(), .history = history, .n_history = 7, .n_prompt = 3};
    r.p.n_logprobs = 0;
    assert_int_equal(run(&r, l, 6).id, 1);
    /* presence: once a generated id; 3 - 0.6 < 2.5 */
    r.p.presence = 0.6;
    assert_int_equal(run(&r, l, 6).id, 2);
    r.p.presence = 0.4;
    assert_int_equal(run(&r, l, 6).id, 1);
    r.p.presence = -2; /* 4.2 by 5 */
    assert_int_equal(run(&r, l, 6).id, 1);
    /* frequency: times the count; 3 - 3 * 0.2 < 2.5, and 2.2 - 0.2 */
    r.p.presence = 0;
    r.p.frequency = 0.2;
    assert_int_equal(run(&r, l, 6).id, 2);
    r.p.frequency = 0.15;
    assert_int_equal(run(&r, l, 6).id, 1);
    /* repetition: prompt and generated alike, once; positive ones are divided, negative ones multiplied */
    r.p.frequency = 0;
    r.p.repetition = 1.3;
    assert_int_equal(run(&r, l, 6).id, 2);
    static const float neg[] = {-1, -1.2f, -1.5f, -9, -1.1f, -4};
    assert_int_equal(run(&r, neg, 6).id, 0); /* 0: -1.3, 1: -1.56, 4: -1.43 */
    r.p.repetition = 2;
    assert_int_equal(run(&r, neg, 6).id, 2);
    /* the log-probability is that of the unmodified logits */
    double sum = 0;
    for (int i = 0; i < 6; i++)
        sum += exp(neg[i]);
    struct smp_result out = run(&r, neg, 6);
    assert_float_equal(out.logprob, -1.5 - log(sum), 1e-5);
    assert_int_equal(out.rank, 4);
    /* all together: repetition, then frequency and presence, then temperature */
    r.p = smp_defaults();
    r.p.repetition = 2;
    r.p.frequency = 0.5;
    r.p.presence = 0.25;
    r.p.temperature = 0.5;
    static const float flat[] = {0, 4, 0, 0, 0, 0}; /* id 1: 4/2 - 1.5 - 0.25 = 0.25; id 4: -0.75; others 0 */
    double want[] = {1, exp(0.5), 1, 1, exp(-1.5), 1}, z = 0;
    int n[6] = {0};
    for (r.step = 0; r.step < 20000; r.step++)
        n[run(&r, flat, 6).id]++;
    for (int i = 0; i < 6; i++)
        z += want[i];
    for (int i = 0; i < 6; i++)
        assert_true(fabs(n[i] / 20000.0 - want[i] / z) < 0.02);
}

static void logprobs_are_sorted(void **state)
{
    (void)state;
    float l[V];
    some_logits(l, V);
    l[40] = l[3] = l[20] = 9;
    struct smp_row r = {.p = smp_defaults()};
    r.p.n_logprobs = SMP_MAX_TOP;
    r.p.temperature = 1;
    struct smp_result out = run(&r, l, V);
    struct entry e[V];
    double sum = 0;
    for (int i = 0; i < V; i++) {
        e[i] = (struct entry){l[i], i};
        sum += exp(l[i]);
    }
    qsort(e, V, sizeof *e, falling);
    assert_int_equal(out.n_top, SMP_MAX_TOP);
    for (int i = 0; i < SMP_MAX_TOP; i++) {
        assert_int_equal(out.top_id[i], e[i].id);
        assert_float_equal(out.top_logprob[i], e[i].l - log(sum), 1e-4);
    }
    assert_float_equal(out.logprob, l[out.id] - log(sum), 1e-4);
    r.p.n_logprobs = 5;
    assert_int_equal(run(&r, l, 3).n_top, 3); /* not more than the vocabulary */
}

static void draws_are_reproducible(void **state)
{
    (void)state;
    float l[V];
    some_logits(l, V);
    struct smp_row a = {.p = smp_defaults()}, b;
    a.p.temperature = 1;
    a.p.seed = 7;
    int same = 0;
    for (a.step = 0; a.step < 500; a.step++) {
        b = a;
        b.row = 12; /* the row's place in a batch must not matter */
        assert_int_equal(run(&a, l, V).id, run(&b, l, V).id);
        b.p.seed = 8;
        same += run(&a, l, V).id == run(&b, l, V).id;
    }
    assert_true(same < 200);
    /* a temperature near zero does not overflow, and samples the most likely id */
    a.p.temperature = 1e-9;
    int hot = 0;
    for (int i = 0; i < V; i++)
        hot = l[i] > l[hot] ? i : hot;
    l[hot] += 1;
    assert_int_equal(run(&a, l, V).id, hot);
}

/* The hash behind the draw: every bit is set half of the time, and neighbouring ids are independent. */
static void noise_is_even(void **state)
{
    (void)state;
    enum { N = 1 << 16 };
    int ones[32] = {0}, flips = 0;
    for (uint32_t i = 0; i < N; i++) {
        uint32_t x = smp_bits(smp_key(i & 255, i >> 8), i * 3), y = smp_bits(smp_key(i & 255, (i >> 8) + 1), i * 3);
        for (int b = 0; b < 32; b++)
            ones[b] += x >> b & 1;
        flips += __builtin_popcount(x ^ y);
    }
    for (int b = 0; b < 32; b++)
        assert_true(abs(ones[b] - N / 2) < 700); /* 5.5 sigma */
    assert_true(abs(flips - 16 * N) < 4000);
}

static void large_vocabularies(void **state)
{
    (void)state;
    enum { BIG = 151936 };
    float *l = malloc(sizeof *l * BIG);
    for (int i = 0; i < BIG; i++)
        l[i] = (float)(smp_bits(1, (uint32_t)i) >> 8) * 0x1p-24f;
    l[1234] = 30;
    l[99999] = 30;
    struct smp_row r = {.p = smp_defaults()};
    r.p.temperature = 1;
    r.p.top_p = 0.95;
    int n[2] = {0};
    for (r.step = 0; r.step < 20; r.step++) {
        int id = run(&r, l, BIG).id;
        assert_true(id == 1234 || id == 99999);
        n[id == 1234]++;
    }
    assert_true(n[0] && n[1]);
    r.p.top_k = 1000; /* an almost flat tail: quickselect over many nearly equal values */
    l[1234] = l[99999] = 0;
    run(&r, l, BIG);
    for (int i = 0; i < BIG; i++)
        l[i] = (float)(i % 3);
    r.p.top_k = 5;
    for (r.step = 0; r.step < 20; r.step++)
        assert_int_equal(run(&r, l, BIG).id % 3, 2);
    free(l);
}

static void bad_parameters_are_named(void **state)
{
    (void)state;
    struct smp_params p[20];
    const char *name[20];
    int n = 0;
#define BAD(field, value) (p[n] = smp_defaults(), p[n].field = (value), name[n++] = #field)
    BAD(temperature, -0.1);
    BAD(temperature, NAN);
    BAD(temperature, INFINITY);
    BAD(top_p, 0);
    BAD(top_p, 1.01);
    BAD(top_p, NAN);
    BAD(top_k, -2);
    BAD(min_p, -0.1);
    BAD(min_p, 1.1);
    BAD(presence, 2.1);
    BAD(presence, NAN);
    BAD(frequency, -2.1);
    BAD(repetition, 0);
    BAD(repetition, -1);
    BAD(repetition, NAN);
#undef BAD
    p[n] = smp_defaults();
    p[n].n_logprobs = SMP_MAX_TOP + 1;
    name[n++] = "logprobs";
    for (int i = 0; i < n; i++) {
        struct km_err err;
        assert_int_equal(smp_check(&p[i], &err), KM_EINVAL);
        assert_ptr_equal(strstr(err.msg, name[i]), err.msg);
    }
    struct smp_params good = smp_defaults();
    assert_int_equal(smp_check(&good, NULL), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(draws_follow_the_softmax),          cmocka_unit_test(filters_leave_exact_sets),
        cmocka_unit_test(greedy_takes_the_lowest_of_equals), cmocka_unit_test(penalties_work_on_the_right_tokens),
        cmocka_unit_test(logprobs_are_sorted),               cmocka_unit_test(draws_are_reproducible),
        cmocka_unit_test(noise_is_even),                     cmocka_unit_test(large_vocabularies),
        cmocka_unit_test(bad_parameters_are_named),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
