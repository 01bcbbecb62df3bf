/* Matching, resampling, judging. Everything random comes from one seeded generator, so the same runs give the
 * same words. */
#include "harness/report/compare.h"

#include "base/mem.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_PAIRS = 1000 };

const char *compare_verdict_word(enum compare_verdict v)
{
    static const char *const words[] = {"not judged", "better", "worse", "no detectable difference",
                                        "too noisy"};
    return words[v];
}

struct compare_opts compare_defaults(void)
{
    return (struct compare_opts){.profile = HZ_SEED, .draws = 10000, .seed = 1, .noise = 0.05};
}

/* splitmix64: enough for resampling, and one word of state. */
static uint64_t next(uint64_t *state)
{
    uint64_t z = *state += 0x9E3779B97F4A7C15u;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
    z = (z ^ z >> 27) * 0x94D049BB133111EBu;
    return z ^ z >> 31;
}

static int below(uint64_t *state, int n)
{
    return (int)((unsigned __int128)next(state) * (unsigned)n >> 64);
}

/* One side's value of one request, with the cluster that it belongs to. */
struct point {
    double v;
    int cluster;
};

/* The requests that both runs of a pair answered, for one kind of sample. */
struct pair {
    struct point *a, *b;   /* [n], each sorted by value */
    double *sum_a, *sum_b; /* [clusters] */
    int *count;            /* [clusters] */
    int n;
};

struct sample {
    struct pair *pairs; /* [n_pairs] */
    int n_pairs, clusters, requests;
};

static void sample_free(struct sample *s)
{
    for (int i = 0; s->pairs && i < s->n_pairs; i++) {
        km_free(s->pairs[i].a);
        km_free(s->pairs[i].b);
        km_free(s->pairs[i].sum_a);
        km_free(s->pairs[i].sum_b);
        km_free(s->pairs[i].count);
    }
    km_free(s->pairs);
    *s = (struct sample){0};
}

/* The answered requests of a run in order of (conversation, turn): both sides of a pair can then be walked
 * together. */
struct keyed {
    int conv, turn;
    const struct hz_rec *rec;
};

static int by_key(const void *x, const void *y)
{
    const struct keyed *a = x, *b = y;
    return a->conv != b->conv ? (a->conv > b->conv) - (a->conv < b->conv)
                              : (a->turn > b->turn) - (a->turn < b->turn);
}

static int by_value(const void *x, const void *y)
{
    double a = ((const struct point *)x)->v, b = ((const struct point *)y)->v;
    return (a > b) - (a < b);
}

static int by_int(const void *x, const void *y)
{
    int a = *(const int *)x, b = *(const int *)y;
    return (a > b) - (a < b);
}

static int by_double(const void *x, const void *y)
{
    double a = *(const double *)x, b = *(const double *)y;
    return (a > b) - (a < b);
}

static struct keyed *keyed_of(const struct hz_trace *t, int *n)
{
    struct keyed *k = km_calloc((size_t)t->n + 1, sizeof *k);
    *n = 0;
    for (int i = 0; k && i < t->n; i++)
        if (t->recs[i].ok)
            k[(*n)++] = (struct keyed){t->recs[i].conv, t->recs[i].turn, &t->recs[i]};
    if (k)
        qsort(k, (size_t)*n, sizeof *k, by_key);
    return k;
}

/* Every conversation that any run answered a request of, sorted: a conversation's place is its cluster. */
static int *clusters_of(const struct hz_run *const *a, const struct hz_run *const *b, int pairs, int *n)
{
    size_t total = 1;
    for (int p = 0; p < pairs; p++)
        total += (size_t)a[p]->trace.n + (size_t)b[p]->trace.n;
    int *ids = km_calloc(total, sizeof *ids), m = 0;
    for (int p = 0; ids && p < pairs; p++)
        for (int side = 0; side < 2; side++) {
            const struct hz_trace *t = side ? &b[p]->trace : &a[p]->trace;
            for (int i = 0; i < t->n; i++)
                if (t->recs[i].ok)
                    ids[m++] = t->recs[i].conv;
        }
    if (ids)
        qsort(ids, (size_t)m, sizeof *ids, by_int);
    *n = 0;
    for (int i = 0; i < m; i++)
        if (!i || ids[i] != ids[i - 1])
            ids[(*n)++] = ids[i];
    return ids;
}

/* Fills one pair; *only_a and *only_b count what has no partner. */
static int match(struct pair *out, const struct hz_run *a, const struct hz_run *b, enum hz_sample what,
                 enum hz_profile profile, const int *ids, int clusters, int *only_a, int *only_b)
{
    int na, nb, i = 0, j = 0;
    struct keyed *ka = keyed_of(&a->trace, &na), *kb = keyed_of(&b->trace, &nb);
    size_t most = (size_t)(na < nb ? na : nb) + 1;
    out->a = km_calloc(most, sizeof *out->a);
    out->b = km_calloc(most, sizeof *out->b);
    out->sum_a = km_calloc((size_t)clusters + 1, sizeof *out->sum_a);
    out->sum_b = km_calloc((size_t)clusters + 1, sizeof *out->sum_b);
    out->count = km_calloc((size_t)clusters + 1, sizeof *out->count);
    bool good = ka && kb && out->a && out->b && out->sum_a && out->sum_b && out->count;
    while (good && (i < na || j < nb)) {
        int side = i == na ? 1 : j == nb ? -1 : by_key(&ka[i], &kb[j]);
        if (side < 0) {
            ++*only_a, i++;
        } else if (side > 0) {
            ++*only_b, j++;
        } else {
            double va = hz_metric_sample(what, ka[i].rec, a, profile),
                   vb = hz_metric_sample(what, kb[j].rec, b, profile);
            const int *id = bsearch(&ka[i].conv, ids, (size_t)clusters, sizeof *ids, by_int);
            if (isfinite(va) && isfinite(vb) && id) {
                int c = (int)(id - ids);
                out->a[out->n] = (struct point){va, c};
                out->b[out->n++] = (struct point){vb, c};
                out->sum_a[c] += va;
                out->sum_b[c] += vb;
                out->count[c]++;
            }
            i++, j++;
        }
    }
    if (good) {
        qsort(out->a, (size_t)out->n, sizeof *out->a, by_value);
        qsort(out->b, (size_t)out->n, sizeof *out->b, by_value);
    }
    km_free(ka);
    km_free(kb);
    return good ? 0 : KM_ENOMEM;
}

static int sample_make(struct sample *s, const struct hz_run *const *a, const struct hz_run *const *b,
                       int pairs, enum hz_sample what, enum hz_profile profile, int *only_a, int *only_b,
                       struct km_err *err)
{
    *s = (struct sample){.n_pairs = pairs};
    *only_a = *only_b = 0;
    int *ids = clusters_of(a, b, pairs, &s->clusters), rc = ids ? 0 : KM_ENOMEM;
    s->pairs = km_calloc((size_t)pairs + 1, sizeof *s->pairs);
    for (int p = 0; !rc && p < pairs; p++) {
        rc = s->pairs ? match(&s->pairs[p], a[p], b[p], what, profile, ids, s->clusters, only_a, only_b)
                      : KM_ENOMEM;
        s->requests += rc ? 0 : s->pairs[p].n;
    }
    km_free(ids);
    if (!rc)
        return 0;
    sample_free(s);
    return km_fail(err, KM_ENOMEM, "out of memory matching the requests of %d pairs", pairs);
}

/* numpy's linear percentile of the multiset in which a point counts as often as its cluster was drawn. */
static double weighted_percentile(const struct point *v, int n, const int *w, double q)
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

/* log of B over A of one pair, each conversation counted w times. */
static double log_ratio(const struct pair *p, int clusters, const int *w, double q)
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

/* A mean of few pairs (or conversations) strays further than the normal distribution says, and their spread is
 * itself a guess: deviations are stretched so that the interval has Student's width. */
static double stretch(int n)
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

/* Centre, interval and p from the draws (log scale); draws are sorted in place. */
static void conclude(struct compare_delta *d, double centre, double *draws, int n)
{
    int low = 0, high = 0;
    d->ratio = exp(centre);
    for (int i = 0; i < n; i++) {
        low += draws[i] <= 0;
        high += draws[i] >= 0;
    }
    qsort(draws, (size_t)n, sizeof *draws, by_double);
    d->lo = exp(hz_percentile(draws, n, 0.025));
    d->hi = exp(hz_percentile(draws, n, 0.975));
    d->p = fmin(1, 2.0 * ((low < high ? low : high) + 1) / (n + 1));
}

/* One figure a run: the pairs' own ratios are all there is. */
static void resample_runs(struct compare_delta *d, const double *log_ratios, int pairs,
                          const struct compare_opts *o, double *draws)
{
    double mean = 0, wide = stretch(pairs);
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
            sum += log_ratios[below(&rng, pairs)];
        draws[i] = mean + wide * (sum / pairs - mean);
    }
    conclude(d, mean, draws, o->draws);
}

/* A statistic over requests: pairs, then conversations. work: ints [clusters], doubles [3 * pairs]. */
static void resample_requests(struct compare_delta *d, const struct sample *s, const struct compare_opts *o,
                              double *draws, int *w, double *work)
{
    double *observed = work, *drawn = work + s->n_pairs, mean = 0, q = d->metric->q;
    double wide = stretch(s->n_pairs), wide_within = stretch(s->clusters);
    uint64_t rng = o->seed;
    int n = 0;
    for (int c = 0; c < s->clusters; c++)
        w[c] = 1;
    for (int p = 0; p < s->n_pairs; p++) {
        observed[p] = log_ratio(&s->pairs[p], s->clusters, w, q);
        mean += observed[p] / s->n_pairs;
    }
    d->requests = s->requests;
    d->conversations = s->clusters;
    if (isnan(mean)) {
        snprintf(d->why, sizeof d->why, "%s",
                 s->requests ? "the figure is 0 on one side" : "no request was answered by both sides");
        return;
    }
    d->ratio = exp(mean);
    d->pairs = s->n_pairs;
    if (s->clusters < 2) {
        snprintf(d->why, sizeof d->why, "one conversation gives no interval");
        return;
    }
    for (int i = 0; i < o->draws; i++) {
        double between = 0, within = 0;
        memset(w, 0, (size_t)s->clusters * sizeof *w);
        for (int c = 0; c < s->clusters; c++)
            w[below(&rng, s->clusters)]++;
        for (int p = 0; p < s->n_pairs; p++)
            drawn[p] = log_ratio(&s->pairs[p], s->clusters, w, q);
        for (int p = 0; p < s->n_pairs; p++) {
            int k = below(&rng, s->n_pairs);
            between += observed[k] / s->n_pairs;
            within += (drawn[k] - observed[k]) / s->n_pairs;
        }
        double v = mean + wide * (between - mean) + wide_within * within;
        if (isfinite(v))
            draws[n++] = v;
    }
    if (n < o->draws - o->draws / 20)
        snprintf(d->why, sizeof d->why, "too few requests to resample");
    else
        conclude(d, mean, draws, n);
}

static bool judgeable(const struct compare_delta *d)
{
    return d->metric->min_n > 0 && isfinite(d->p);
}

/* Holm: the smallest p against 0.05 over all, the next against 0.05 over the rest; the first miss ends it. */
void compare_judge(struct compare_delta *const *d, int n, double noise)
{
    int left = 0;
    bool open = true;
    for (int i = 0; i < n; i++) {
        d[i]->verdict = COMPARE_NOT_JUDGED;
        left += judgeable(d[i]);
    }
    for (; left > 0; left--) {
        struct compare_delta *x = NULL;
        for (int i = 0; i < n; i++)
            if (judgeable(d[i]) && d[i]->verdict == COMPARE_NOT_JUDGED && (!x || d[i]->p < x->p))
                x = d[i];
        double half = sqrt(x->hi / x->lo) - 1;
        open = open && x->p <= 0.05 / left;
        x->why[0] = 0;
        if (open && (x->lo > 1 || x->hi < 1)) {
            x->verdict = (x->ratio < 1) == x->metric->lower_better ? COMPARE_BETTER : COMPARE_WORSE;
            if (x->pairs == 1) /* the interval knows nothing of what changes from run to run */
                snprintf(x->why, sizeof x->why, "on one pair");
        } else {
            x->verdict = half > noise ? COMPARE_TOO_NOISY : COMPARE_NO_DIFFERENCE;
            snprintf(x->why, sizeof x->why, "detectable from %.1f%%", 100 * half);
        }
    }
}

/* Mean or median over the runs of a side, and their spread. */
static double side_value(const struct hz_metric *m, const struct hz_run *const *runs, int n,
                         const struct compare_opts *o, double *v, double *lo, double *hi)
{
    double sum = 0;
    for (int i = 0; i < n; i++) {
        v[i] = hz_metric_value(m, o->profile == HZ_SEED ? &runs[i]->seed : &runs[i]->strict);
        sum += v[i];
        *lo = i ? fmin(*lo, v[i]) : v[i];
        *hi = i ? fmax(*hi, v[i]) : v[i];
    }
    if (isnan(sum) || !o->median)
        return sum / n;
    qsort(v, (size_t)n, sizeof *v, by_double);
    return hz_percentile(v, n, 0.5);
}

static int check_alike(const struct hz_run *const *a, const struct hz_run *const *b, int pairs, bool force,
                       bool *unlike, struct km_err *err)
{
    const char *first = NULL;
    for (int p = 0; p < 2 * pairs; p++) {
        const struct hz_run *r = p < pairs ? a[p] : b[p - pairs];
        const char *sha = NULL;
        if (km_json_str(cJSON_GetObjectItemCaseSensitive(r->json, "workload"), "sha256", false, &sha, NULL) ||
            !sha)
            sha = "";
        if (!first)
            first = sha;
        if (!*sha || strcmp(sha, first))
            *unlike = true;
        if (*unlike && !force)
            return km_fail(err, KM_EINVAL,
                           "%s ran workload %.12s and %s ran %.12s: they did not send the same requests; "
                           "compare runs of one "
                           "workload, or give --force",
                           a[0]->dir, *first ? first : "(unknown)", r->dir, *sha ? sha : "(unknown)");
    }
    return 0;
}

/* The requests behind the percentile in the poorest run. */
static int poorest(const struct sample *s)
{
    int least = s->n_pairs ? s->pairs[0].n : 0;
    for (int p = 1; p < s->n_pairs; p++)
        least = s->pairs[p].n < least ? s->pairs[p].n : least;
    return least;
}

int compare_runs(struct compare_result *out, const struct hz_run *const *a, const struct hz_run *const *b,
               int pairs, const struct compare_opts *o, struct km_err *err)
{
    *out = (struct compare_result){.pairs = pairs};
    if (pairs < 1 || pairs > MAX_PAIRS || o->draws < 100 || o->draws > 10000000)
        return km_fail(
            err, KM_EINVAL,
            "%d pairs and %d draws cannot be compared; there must be 1 to %d pairs and at least 100 draws",
            pairs, o->draws, MAX_PAIRS);
    int rc = check_alike(a, b, pairs, o->force, &out->unlike, err);
    if (rc)
        return rc;
    int most = o->metrics ? o->n_metrics : 0;
    for (int i = 0; !o->metrics && hz_metric_at(i); i++)
        most++;
    struct sample samples[HZ_E2E + 1] = {0};
    for (int k = HZ_TTFT; !rc && k <= HZ_E2E; k++)
        rc = sample_make(&samples[k], a, b, pairs, (enum hz_sample)k, o->profile, &out->only_a, &out->only_b,
                         err);
    int *w = km_calloc((size_t)samples[HZ_TTFT].clusters + 1, sizeof *w);
    double *draws = km_calloc((size_t)o->draws, sizeof *draws),
           *work = km_calloc((size_t)pairs * 4 + 1, sizeof *work);
    out->deltas = km_calloc((size_t)most + 1, sizeof *out->deltas);
    struct compare_delta **family = km_calloc((size_t)most + 1, sizeof *family);
    if (!rc && (!w || !draws || !work || !out->deltas || !family))
        rc = km_fail(err, KM_ENOMEM, "out of memory comparing %d pairs", pairs);
    for (int i = 0; !rc && i < most; i++) {
        const struct hz_metric *m = o->metrics ? o->metrics[i] : hz_metric_at(i);
        const struct sample *s = &samples[m->sample];
        bool per_request = m->sample != HZ_PER_RUN;
        if (!o->metrics && poorest(&samples[per_request ? m->sample : HZ_TTFT]) < m->min_n)
            continue;
        struct compare_delta *d = &out->deltas[out->n];
        *d = (struct compare_delta){.metric = m, .ratio = NAN, .lo = NAN, .hi = NAN, .p = NAN};
        d->a = side_value(m, a, pairs, o, work, &d->a_min, &d->a_max);
        d->b = side_value(m, b, pairs, o, work, &d->b_min, &d->b_max);
        family[out->n++] = d;
        if (isnan(d->a) || isnan(d->b)) {
            snprintf(d->why, sizeof d->why, "not measured on %s",
                     isnan(d->a) ? isnan(d->b) ? "either side" : "side A" : "side B");
        } else if (!m->min_n) {
            d->ratio = d->a > 0 ? d->b / d->a : NAN;
        } else if (per_request && poorest(s) < m->min_n) {
            snprintf(d->why, sizeof d->why, "%d requests give %s no interval; %d do", poorest(s), m->name,
                     m->min_n);
        } else if (per_request) {
            resample_requests(d, s, o, draws, w, work);
        } else {
            bool positive = true;
            for (int p = 0; p < pairs; p++) {
                double va = hz_metric_value(m, o->profile == HZ_SEED ? &a[p]->seed : &a[p]->strict);
                double vb = hz_metric_value(m, o->profile == HZ_SEED ? &b[p]->seed : &b[p]->strict);
                positive = positive && va > 0 && vb > 0;
                work[p] = positive ? log(vb / va) : 0;
            }
            d->requests = samples[HZ_TTFT].requests;
            d->conversations = samples[HZ_TTFT].clusters;
            if (positive)
                resample_runs(d, work, pairs, o, draws);
            else
                snprintf(d->why, sizeof d->why, "the figure is 0 on one side");
        }
    }
    if (!rc)
        compare_judge(family, out->n, o->noise);
    else
        compare_result_free(out);
    for (int k = HZ_TTFT; k <= HZ_E2E; k++)
        sample_free(&samples[k]);
    km_free(w);
    km_free(draws);
    km_free(work);
    km_free(family);
    return rc;
}

void compare_result_free(struct compare_result *c)
{
    km_free(c->deltas);
    *c = (struct compare_result){0};
}
