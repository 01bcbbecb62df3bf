/* The hierarchical bootstrap and the verdicts. All random numbers come from one generator with the seed of the options,
 * so that the same runs always give the same intervals and verdicts. */
#include "harness/report/compare.h"

#include "base/mem.h"
#include "base/random.h"
#include "base/sort.h"
#include "harness/report/compare_match.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

enum { MAX_PAIRS = 1000, MIN_DRAWS = 100, MAX_DRAWS = 10000000 };

const char *compare_verdict_word(enum compare_verdict v)
{
    static const char *const words[] = {"not judged", "better", "worse", "no detectable difference", "undecided"};
    return words[v];
}

/* The data and the working memory that all figures of a comparison share. */
struct comparison {
    const struct run_folder *const *a, *const *b; /* [pairs] */
    int pairs;
    const struct compare_opts *o;
    struct compare_match match[HZ_E2E + 1]; /* by kind of figure; HZ_PER_RUN has none */
    int *weights;                           /* [clusters] how often a draw contains the conversation */
    double *draws;                          /* [o->draws] log ratios */
    double *work;                           /* [2 * pairs] log ratios of the pairs */
};

/* numpy's linear percentile of a sample in which each point counts as often as its cluster was drawn (w). */
static double weighted_percentile(const struct compare_point *v, int n, const int *w, double q)
{
    int64_t total = 0, seen = 0;
    for (int i = 0; i < n; i++)
        total += w[v[i].cluster];
    if (!total)
        return NAN;
    double rank = q * (double)(total - 1), low = NAN;
    int64_t at = (int64_t)rank;
    for (int i = 0; i < n; i++) {
        seen += w[v[i].cluster];
        if (isnan(low) && seen > at)
            low = v[i].v;
        if (seen > at + 1 || (seen > at && at == total - 1))
            return low + (v[i].v - low) * (rank - (double)at);
    }
    return low;
}

/* log(B / A) of one pair, for the percentile q, or for the mean if q is negative. A request counts as often as its
 * conversation was drawn (w). */
static double log_ratio(const struct compare_pair *p, int clusters, const int *w, double q)
{
    double a = 0, b = 0;
    if (q >= 0) {
        a = weighted_percentile(p->a, p->n, w, q);
        b = weighted_percentile(p->b, p->n, w, q);
    } else {
        for (int c = 0; c < clusters; c++) {
            a += w[c] * p->sum_a[c];
            b += w[c] * p->sum_b[c];
        }
    }
    return a > 0 && b > 0 ? log(b / a) : NAN;
}

/* The factor by which deviations from a mean of n pairs (or conversations) are multiplied, so that the interval has the
 * width of Student's t. A bootstrap of few values is too narrow: it estimates their spread too small, by
 * sqrt((n - 1) / n), and it does not account for the error of that estimate. */
static double student_factor(int n)
{
    static const double t975[] = {12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228,
                                  2.201,  2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086,
                                  2.080,  2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042};
    int df = n - 1;
    if (df < 1)
        return 0;
    double t = df <= (int)(sizeof t975 / sizeof *t975) ? t975[df - 1] : 1.96;
    return t / 1.96 * sqrt((double)n / df);
}

/* Sets ratio, interval and p value from the centre and the draws, which are logarithms. Sorts the draws in place. */
static void conclude(struct compare_delta *d, double centre, double *draws, int n)
{
    int low = 0, high = 0;
    d->ratio = exp(centre);
    for (int i = 0; i < n; i++) {
        low += draws[i] <= 0;
        high += draws[i] >= 0;
    }
    km_sort_doubles(draws, (size_t)n);
    d->lo = exp(km_percentile(draws, n, 0.025));
    d->hi = exp(km_percentile(draws, n, 0.975));
    d->p = fmin(1, 2.0 * ((low < high ? low : high) + 1) / (n + 1));
}

/* Compares a figure with one value per run by drawing pairs. log_ratios: [pairs]. */
static void resample_runs(struct compare_delta *d, const double *log_ratios, int pairs, const struct compare_opts *o,
                          double *draws)
{
    double mean = 0, factor = student_factor(pairs);
    uint64_t rng = o->seed;
    for (int p = 0; p < pairs; p++)
        mean += log_ratios[p] / pairs;
    d->ratio = exp(mean);
    d->pairs = pairs;
    if (pairs < 2) {
        snprintf(d->why, sizeof d->why, "needs two pairs");
        return;
    }
    for (int i = 0; i < o->draws; i++) {
        double sum = 0;
        for (int p = 0; p < pairs; p++)
            sum += log_ratios[km_random_below(&rng, (uint32_t)pairs)];
        draws[i] = mean + factor * (sum / pairs - mean);
    }
    conclude(d, mean, draws, o->draws);
}

/* One draw of the bootstrap, as a log ratio: conversations are drawn first, then pairs. observed: [n_pairs] log ratios
 * with every conversation once; mean: their mean; drawn: [n_pairs] working memory. */
static double draw_ratio(const struct compare_match *m, double q, const double *observed, double mean, double *drawn,
                         int *weights, uint64_t *rng)
{
    double between = 0, within = 0;
    memset(weights, 0, (size_t)m->clusters * sizeof *weights);
    for (int c = 0; c < m->clusters; c++)
        weights[km_random_below(rng, (uint32_t)m->clusters)]++;
    for (int p = 0; p < m->n_pairs; p++)
        drawn[p] = log_ratio(&m->pairs[p], m->clusters, weights, q);
    for (int p = 0; p < m->n_pairs; p++) {
        uint32_t k = km_random_below(rng, (uint32_t)m->n_pairs);
        between += observed[k] / m->n_pairs;
        within += (drawn[k] - observed[k]) / m->n_pairs;
    }
    return mean + student_factor(m->n_pairs) * (between - mean) + student_factor(m->clusters) * within;
}

/* Compares a figure over requests by drawing conversations and pairs. */
static void resample_requests(struct compare_delta *d, const struct compare_match *m, const struct comparison *c)
{
    double *observed = c->work, *drawn = c->work + m->n_pairs, mean = 0, q = d->metric->q;
    uint64_t rng = c->o->seed;
    int n = 0;
    for (int k = 0; k < m->clusters; k++)
        c->weights[k] = 1;
    for (int p = 0; p < m->n_pairs; p++) {
        observed[p] = log_ratio(&m->pairs[p], m->clusters, c->weights, q);
        mean += observed[p] / m->n_pairs;
    }
    d->requests = m->requests;
    d->conversations = m->clusters;
    if (isnan(mean)) {
        snprintf(d->why, sizeof d->why, "%s",
                 m->requests ? "the figure is 0 on one side" : "no request was answered by both sides");
        return;
    }
    d->ratio = exp(mean);
    d->pairs = m->n_pairs;
    if (m->clusters < 2) {
        snprintf(d->why, sizeof d->why, "one conversation gives no interval");
        return;
    }
    for (int i = 0; i < c->o->draws; i++) {
        double v = draw_ratio(m, q, observed, mean, drawn, c->weights, &rng);
        if (isfinite(v))
            c->draws[n++] = v;
    }
    if (n < c->o->draws - c->o->draws / 20)
        snprintf(d->why, sizeof d->why, "too few requests to resample");
    else
        conclude(d, mean, c->draws, n);
}

static bool is_judgeable(const struct compare_delta *d)
{
    return d->metric->min_n > 0 && isfinite(d->p);
}

/* The difference between the smallest and the largest run of a side, as a fraction of the smallest; of both sides the
 * larger one. 0: unknown. */
static double run_spread(const struct compare_delta *d)
{
    double a = d->a_min > 0 ? d->a_max / d->a_min - 1 : 0, b = d->b_min > 0 ? d->b_max / d->b_min - 1 : 0;
    return fmax(a, b);
}

/* Sets the reason of a verdict without a difference: the smallest change that would have been detected. */
static void explain_no_difference(struct compare_delta *d, double detectable)
{
    double spread = run_spread(d);
    if (d->verdict == COMPARE_UNDECIDED && d->pairs > 1 && spread > 0)
        snprintf(d->why, sizeof d->why,
                 "runs of the same row differ by up to %.1f%%, and only a change above %.1f%% would have been detected",
                 100 * spread, 100 * detectable);
    else
        snprintf(d->why, sizeof d->why, "%s change above %.1f%% would have been detected",
                 d->verdict == COMPARE_UNDECIDED ? "only a" : "a", 100 * detectable);
}

/* Holm's correction: the smallest p value is compared with 0.05 divided by the number of figures n, the next one with
 * 0.05 / (n - 1), and so on. After the first p value that is too large, no change counts as detected. */
void compare_judge(struct compare_delta *const *d, int n, double noise)
{
    int left = 0;
    bool detected = true;
    for (int i = 0; i < n; i++) {
        d[i]->verdict = COMPARE_NOT_JUDGED;
        left += is_judgeable(d[i]);
    }
    for (; left > 0; left--) {
        struct compare_delta *x = NULL;
        for (int i = 0; i < n; i++)
            if (is_judgeable(d[i]) && d[i]->verdict == COMPARE_NOT_JUDGED && (!x || d[i]->p < x->p))
                x = d[i];
        double half_width = sqrt(x->hi / x->lo) - 1;
        detected = detected && x->p <= 0.05 / left;
        x->why[0] = 0;
        if (detected && (x->lo > 1 || x->hi < 1)) {
            x->verdict = (x->ratio < 1) == x->metric->lower_better ? COMPARE_BETTER : COMPARE_WORSE;
            if (x->pairs == 1) /* the interval does not cover the difference between runs */
                snprintf(x->why, sizeof x->why, "on one pair");
        } else {
            x->verdict = half_width > noise ? COMPARE_UNDECIDED : COMPARE_NO_DIFFERENCE;
            explain_no_difference(x, half_width);
        }
    }
}

static double run_value(const struct hz_metric *m, const struct run_folder *run, enum hz_profile profile)
{
    return hz_metric_value(m, profile == HZ_SEED ? &run->seed : &run->strict);
}

/* The mean or the median over the runs of a side; *lo, *hi: the smallest and the largest run. v: [n] working memory. */
static double side_value(const struct hz_metric *m, const struct run_folder *const *runs, int n,
                         const struct compare_opts *o, double *v, double *lo, double *hi)
{
    double sum = 0;
    for (int i = 0; i < n; i++) {
        v[i] = run_value(m, runs[i], o->profile);
        sum += v[i];
        *lo = i ? fmin(*lo, v[i]) : v[i];
        *hi = i ? fmax(*hi, v[i]) : v[i];
    }
    if (isnan(sum) || !o->median)
        return sum / n;
    km_sort_doubles(v, (size_t)n);
    return km_percentile(v, n, 0.5);
}

static const char *workload_sha(const struct run_folder *run)
{
    const char *sha = "";
    (void)km_json_str(cJSON_GetObjectItemCaseSensitive(run->json, "workload"), "sha256", false, &sha, NULL);
    return sha;
}

/* Checks that all runs sent the same requests. *unlike: they did not, or a run does not state its workload's hash. */
static int check_workloads(const struct comparison *c, bool *unlike, struct km_err *err)
{
    const char *first = workload_sha(c->a[0]);
    for (int p = 0; p < 2 * c->pairs; p++) {
        const struct run_folder *run = p < c->pairs ? c->a[p] : c->b[p - c->pairs];
        const char *sha = workload_sha(run);
        if (*sha && !strcmp(sha, first))
            continue;
        *unlike = true;
        if (!c->o->force)
            return km_fail(err, KM_EINVAL,
                           "%s ran workload %.12s and %s ran workload %.12s, so they did not send the same requests; "
                           "compare runs of one workload, or give --force",
                           c->a[0]->dir, *first ? first : "(unknown)", run->dir, *sha ? sha : "(unknown)");
    }
    return 0;
}

static void compare_per_run(struct compare_delta *d, const struct comparison *c)
{
    const struct hz_metric *m = d->metric;
    d->requests = c->match[HZ_TTFT].requests;
    d->conversations = c->match[HZ_TTFT].clusters;
    for (int p = 0; p < c->pairs; p++) {
        double a = run_value(m, c->a[p], c->o->profile), b = run_value(m, c->b[p], c->o->profile);
        if (!(a > 0 && b > 0)) {
            snprintf(d->why, sizeof d->why, "the figure is 0 on one side");
            return;
        }
        c->work[p] = log(b / a);
    }
    resample_runs(d, c->work, c->pairs, c->o, c->draws);
}

static struct compare_delta compare_metric(const struct comparison *c, const struct hz_metric *m)
{
    struct compare_delta d = {.metric = m, .ratio = NAN, .lo = NAN, .hi = NAN, .p = NAN};
    const struct compare_match *match = &c->match[m->sample];
    d.a = side_value(m, c->a, c->pairs, c->o, c->work, &d.a_min, &d.a_max);
    d.b = side_value(m, c->b, c->pairs, c->o, c->work, &d.b_min, &d.b_max);
    if (isnan(d.a) || isnan(d.b))
        snprintf(d.why, sizeof d.why, "not measured on %s",
                 !isnan(d.b)   ? "side A"
                 : !isnan(d.a) ? "side B"
                               : "either side");
    else if (!m->min_n)
        d.ratio = d.a > 0 ? d.b / d.a : NAN;
    else if (m->sample == HZ_PER_RUN)
        compare_per_run(&d, c);
    else if (compare_match_fewest(match) < m->min_n)
        snprintf(d.why, sizeof d.why, "%d requests give %s no interval; it needs %d", compare_match_fewest(match),
                 m->name, m->min_n);
    else
        resample_requests(&d, match, c);
    return d;
}

/* Compares the metrics that the options name, or all metrics for which there are enough requests. */
static void compare_metrics(const struct comparison *c, struct compare_result *out)
{
    const struct hz_metric *m;
    for (int i = 0; c->o->metrics ? i < c->o->n_metrics : hz_metric_at(i) != NULL; i++) {
        m = c->o->metrics ? c->o->metrics[i] : hz_metric_at(i);
        const struct compare_match *match = &c->match[m->sample == HZ_PER_RUN ? HZ_TTFT : m->sample];
        if (c->o->metrics || compare_match_fewest(match) >= m->min_n)
            out->deltas[out->n++] = compare_metric(c, m);
    }
}

int compare_runs(struct compare_result *out, const struct run_folder *const *a, const struct run_folder *const *b,
                 int pairs, const struct compare_opts *o, struct km_err *err)
{
    struct comparison c = {.a = a, .b = b, .pairs = pairs, .o = o};
    *out = (struct compare_result){.pairs = pairs};
    if (pairs < 1 || pairs > MAX_PAIRS || o->draws < MIN_DRAWS || o->draws > MAX_DRAWS)
        return km_fail(err, KM_EINVAL,
                       "%d pairs with %d draws cannot be compared; there must be 1 to %d pairs and %d to %d draws",
                       pairs, o->draws, MAX_PAIRS, MIN_DRAWS, MAX_DRAWS);
    int rc = check_workloads(&c, &out->unlike, err), most = o->metrics ? o->n_metrics : 0;
    for (int k = HZ_TTFT; !rc && k <= HZ_E2E; k++)
        rc = compare_match_make(&c.match[k], a, b, pairs, (enum hz_sample)k, o->profile, &out->only_a, &out->only_b,
                                err);
    while (!o->metrics && hz_metric_at(most))
        most++;
    c.weights = km_calloc((size_t)c.match[HZ_TTFT].clusters + 1, sizeof *c.weights);
    c.draws = km_calloc((size_t)o->draws, sizeof *c.draws);
    c.work = km_calloc((size_t)pairs * 2, sizeof *c.work);
    out->deltas = km_calloc((size_t)most + 1, sizeof *out->deltas);
    struct compare_delta **family = km_calloc((size_t)most + 1, sizeof *family);
    if (!rc && (!c.weights || !c.draws || !c.work || !out->deltas || !family))
        rc = km_fail(err, KM_ENOMEM, "out of memory comparing %d pairs", pairs);
    if (!rc) {
        compare_metrics(&c, out);
        for (int i = 0; i < out->n; i++)
            family[i] = &out->deltas[i];
        compare_judge(family, out->n, o->noise);
    } else {
        compare_result_free(out);
    }
    for (int k = HZ_TTFT; k <= HZ_E2E; k++)
        compare_match_free(&c.match[k]);
    km_free(c.weights);
    km_free(c.draws);
    km_free(c.work);
    km_free(family);
    return rc;
}

void compare_result_free(struct compare_result *c)
{
    km_free(c->deltas);
    *c = (struct compare_result){0};
}
