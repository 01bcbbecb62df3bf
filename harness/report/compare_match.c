/* Matches the requests of paired runs: sorts both runs by (conversation, turn), then merges them. */
#include "harness/report/compare_match.h"

#include "base/mem.h"

#include <math.h>
#include <stdlib.h>

/* An answered request with its sort key. */
struct keyed {
    int conv, turn;
    const struct hz_rec *rec;
};

static int by_key(const void *x, const void *y)
{
    const struct keyed *a = x, *b = y;
    return a->conv != b->conv ? (a->conv > b->conv) - (a->conv < b->conv) : (a->turn > b->turn) - (a->turn < b->turn);
}

static int by_value(const void *x, const void *y)
{
    double a = ((const struct compare_point *)x)->v, b = ((const struct compare_point *)y)->v;
    return (a > b) - (a < b);
}

static int by_int(const void *x, const void *y)
{
    int a = *(const int *)x, b = *(const int *)y;
    return (a > b) - (a < b);
}

/* The answered requests of a run, sorted by key; [*n], to be freed by the caller. */
static struct keyed *sort_requests(const struct hz_trace *t, int *n)
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

/* The numbers of the conversations with an answered request in any run, sorted; [*n], to be freed by the caller. The
 * index of a conversation is its cluster. */
static int *list_clusters(const struct run_folder *const *a, const struct run_folder *const *b, int pairs, int *n)
{
    size_t total = 1;
    for (int p = 0; p < pairs; p++)
        total += (size_t)a[p]->trace.n + (size_t)b[p]->trace.n;
    int *ids = km_calloc(total, sizeof *ids), m = 0;
    for (int p = 0; ids && p < 2 * pairs; p++) {
        const struct hz_trace *t = p % 2 ? &b[p / 2]->trace : &a[p / 2]->trace;
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

static void add_request(struct compare_pair *p, double a, double b, int cluster)
{
    p->a[p->n] = (struct compare_point){a, cluster};
    p->b[p->n++] = (struct compare_point){b, cluster};
    p->sum_a[cluster] += a;
    p->sum_b[cluster] += b;
}

static int match_pair(struct compare_pair *out, const struct run_folder *a, const struct run_folder *b,
                      enum hz_sample what, enum hz_profile profile, const int *ids, int clusters, int *only_a,
                      int *only_b)
{
    int na, nb, i = 0, j = 0;
    struct keyed *ka = sort_requests(&a->trace, &na), *kb = sort_requests(&b->trace, &nb);
    size_t most = (size_t)(na < nb ? na : nb) + 1;
    out->a = km_calloc(most, sizeof *out->a);
    out->b = km_calloc(most, sizeof *out->b);
    out->sum_a = km_calloc((size_t)clusters + 1, sizeof *out->sum_a);
    out->sum_b = km_calloc((size_t)clusters + 1, sizeof *out->sum_b);
    bool good = ka && kb && out->a && out->b && out->sum_a && out->sum_b;
    while (good && (i < na || j < nb)) {
        int order = i == na ? 1 : j == nb ? -1 : by_key(&ka[i], &kb[j]);
        if (order < 0) {
            ++*only_a, i++;
        } else if (order > 0) {
            ++*only_b, j++;
        } else {
            double va = run_folder_sample(a, ka[i].rec, what, profile);
            double vb = run_folder_sample(b, kb[j].rec, what, profile);
            const int *id = bsearch(&ka[i].conv, ids, (size_t)clusters, sizeof *ids, by_int);
            if (isfinite(va) && isfinite(vb) && id)
                add_request(out, va, vb, (int)(id - ids));
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

int compare_match_make(struct compare_match *out, const struct run_folder *const *a, const struct run_folder *const *b,
                       int pairs, enum hz_sample what, enum hz_profile profile, int *only_a, int *only_b,
                       struct km_err *err)
{
    *out = (struct compare_match){.n_pairs = pairs};
    *only_a = *only_b = 0;
    int *ids = list_clusters(a, b, pairs, &out->clusters);
    out->pairs = km_calloc((size_t)pairs + 1, sizeof *out->pairs);
    int rc = ids && out->pairs ? 0 : KM_ENOMEM;
    for (int p = 0; !rc && p < pairs; p++) {
        rc = match_pair(&out->pairs[p], a[p], b[p], what, profile, ids, out->clusters, only_a, only_b);
        out->requests += out->pairs[p].n;
    }
    km_free(ids);
    if (!rc)
        return 0;
    compare_match_free(out);
    return km_fail(err, KM_ENOMEM, "out of memory matching the requests of %d pairs", pairs);
}

void compare_match_free(struct compare_match *m)
{
    for (int i = 0; m->pairs && i < m->n_pairs; i++) {
        km_free(m->pairs[i].a);
        km_free(m->pairs[i].b);
        km_free(m->pairs[i].sum_a);
        km_free(m->pairs[i].sum_b);
    }
    km_free(m->pairs);
    *m = (struct compare_match){0};
}

int compare_match_fewest(const struct compare_match *m)
{
    int fewest = m->n_pairs ? m->pairs[0].n : 0;
    for (int p = 1; p < m->n_pairs; p++)
        fewest = m->pairs[p].n < fewest ? m->pairs[p].n : fewest;
    return fewest;
}
