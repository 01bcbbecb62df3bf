/* The reference sampler. It applies its steps in vLLM's order: bans, repetition, frequency and presence penalties,
 * temperature, min_p, top_k, top_p, draw. Log-probabilities are those of the unmodified logits.
 *
 * The logits are never written. adjust() computes the working values in scratch. The search for the cut-off of top_k
 * and top_p reorders scratch, and a second adjust() restores it, so one array of V floats is enough. All filters
 * together are one cut-off: ids with a higher value pass, and some of the ids with an equal value, lowest ids first. */
#include "engine/sample.h"

#include <float.h>
#include <limits.h>
#include <math.h>
#include <string.h>

struct smp_params smp_defaults(void)
{
    return (struct smp_params){.top_p = 1, .repetition = 1, .n_logprobs = -1};
}

int smp_check(const struct smp_params *p, struct km_err *err)
{
    if (!(p->temperature >= 0 && p->temperature <= 1e6))
        return km_fail(err, KM_EINVAL, "temperature is %g: it must be from 0 (greedy) to 1e6", p->temperature);
    if (!(p->top_p > 0 && p->top_p <= 1))
        return km_fail(err, KM_EINVAL, "top_p is %g: it must be above 0 and at most 1", p->top_p);
    if (p->top_k < -1)
        return km_fail(err, KM_EINVAL, "top_k is %d: it must be -1 or 0 (all), or 1 and above", p->top_k);
    if (!(p->min_p >= 0 && p->min_p <= 1))
        return km_fail(err, KM_EINVAL, "min_p is %g: it must be from 0 to 1", p->min_p);
    if (!(p->presence >= -2 && p->presence <= 2))
        return km_fail(err, KM_EINVAL, "presence_penalty is %g: it must be from -2 to 2", p->presence);
    if (!(p->frequency >= -2 && p->frequency <= 2))
        return km_fail(err, KM_EINVAL, "frequency_penalty is %g: it must be from -2 to 2", p->frequency);
    if (!(p->repetition > 0 && p->repetition <= 1e6))
        return km_fail(err, KM_EINVAL, "repetition_penalty is %g: it must be above 0 and at most 1e6", p->repetition);
    if (p->n_logprobs < -1 || p->n_logprobs > SMP_MAX_TOP)
        return km_fail(err, KM_EINVAL, "logprobs is %d: it must be from 0 to %d", p->n_logprobs, SMP_MAX_TOP);
    return 0;
}

static int32_t argmax(const float *v, int n)
{
    int32_t best = 0;
    float top = -INFINITY;
    for (int32_t i = 0; i < n; i++)
        if (v[i] > top) {
            top = v[i];
            best = i;
        }
    return best;
}

/* Fills v [V] with the logits after bans, penalties and temperature. Before that, v holds how often each id was
 * generated, or -1 for an id that occurs in the prompt only. */
static void adjust(const struct smp_row *r, const float *logits, int vocab, float *v)
{
    const struct smp_params *p = &r->p;
    /* vLLM uses 0.01 for temperatures below 0.01, so that the division cannot overflow. Temperature 0 is greedy. */
    float scale = p->temperature == 0 ? 1 : (float)fmax(p->temperature, 0.01);
    memset(v, 0, (size_t)vocab * sizeof *v);
    for (int i = 0; i < r->n_history; i++) {
        int32_t id = r->history[i];
        if (id < 0 || id >= vocab)
            continue;
        if (i < r->n_prompt)
            v[id] = -1;
        else
            v[id] = v[id] < 0 ? 1 : v[id] + 1;
    }
    for (int i = 0; i < vocab; i++) {
        float x = logits[i], count = v[i];
        if (count != 0)
            x = x > 0 ? x / (float)p->repetition : x * (float)p->repetition;
        if (count > 0)
            x = x - (float)p->frequency * count - (float)p->presence;
        v[i] = x / scale;
    }
    for (int i = 0; i < r->n_banned; i++)
        if (r->banned[i] >= 0 && r->banned[i] < vocab)
            v[r->banned[i]] = -INFINITY;
}

static void swap(float *a, float *b)
{
    float t = *a;
    *a = *b;
    *b = t;
}

/* The k-th largest value of v [n], k from 1; reorders v. Quickselect with three-way partitions, which stays fast if
 * many values are equal. */
static float kth_largest(float *v, int n, int k)
{
    int lo = 0, hi = n - 1;
    while (lo < hi) {
        float a = v[lo], b = v[lo + (hi - lo) / 2], c = v[hi];
        float pivot = fmaxf(fminf(a, b), fminf(fmaxf(a, b), c));
        int above = lo, i = lo, below = hi; /* [lo, above) > pivot, [above, i) == pivot, (below, hi] < pivot */
        while (i <= below)
            if (v[i] > pivot)
                swap(&v[i++], &v[above++]);
            else if (v[i] < pivot)
                swap(&v[i], &v[below--]);
            else
                i++;
        if (k - 1 < above)
            hi = above - 1;
        else if (k - 1 > below)
            lo = below + 1;
        else
            return pivot;
    }
    return v[lo];
}

/* Restores the max-heap v [n] below node i. */
static void sift_down(float *v, int n, int i)
{
    for (int child; (child = 2 * i + 1) < n; i = child) {
        child += child + 1 < n && v[child + 1] > v[child];
        if (v[i] >= v[child])
            return;
        swap(&v[i], &v[child]);
    }
}

struct cut {
    float least; /* ids with a lower value are removed */
    int ties;    /* number of ids with this value that pass, lowest ids first */
};

/* Moves the values of v [n] that are at least `least` to the front, and returns their number. */
static int keep_from(float *v, int n, float least)
{
    int m = 0;
    for (int i = 0; i < n; i++)
        if (v[i] >= least)
            v[m++] = v[i];
    return m;
}

/* The cut-off of min_p, top_k and top_p, applied in this order to v [V]; overwrites v. top is the largest value of
 * v. */
static struct cut find_cut(const struct smp_params *p, float *v, int vocab, float top)
{
    struct cut c = {p->min_p > 0 ? top + logf((float)p->min_p) : -FLT_MAX, INT_MAX};
    int n = keep_from(v, vocab, c.least);
    if (p->top_k > 0 && p->top_k < n) {
        c.least = kth_largest(v, n, p->top_k); /* all ids equal to the k-th stay, as in vLLM */
        n = keep_from(v, n, c.least);
    }
    if (p->top_p >= 1)
        return c;
    double mass = 0, all = 0;
    for (int i = 0; i < n; i++)
        all += expf(v[i] - top);
    for (int i = n / 2; i-- > 0;)
        sift_down(v, n, i);
    for (c.ties = 0; n > 0 && (!c.ties || mass < p->top_p * all); sift_down(v, n, 0)) {
        c.ties = v[0] == c.least && c.ties ? c.ties + 1 : 1;
        c.least = v[0];
        mass += expf(v[0] - top);
        v[0] = v[--n];
    }
    return c;
}

/* The id with the highest score among the ids that pass the cut-off; v: [V] working values. */
static int32_t draw(const struct smp_row *r, const float *v, int vocab, struct cut c)
{
    uint64_t key = smp_key(r->p.seed, r->step);
    int32_t best = -1;
    float top = -INFINITY;
    for (int32_t i = 0; i < vocab; i++) {
        if (!(v[i] >= c.least) || (v[i] == c.least && c.ties-- <= 0))
            continue;
        if (best >= 0 && v[i] + 23 <= top) /* -log(E) is at most 22.9, so this id cannot win */
            continue;
        float u = ((float)smp_bits(key, (uint32_t)i) + 0.5f) * 0x1p-32f;
        float score = v[i] - logf(-log1pf(-fminf(u, 0x1.fffffep-1f)));
        if (best < 0 || score > top) {
            top = score;
            best = i;
        }
    }
    return best < 0 ? 0 : best;
}

/* The n most likely ids; the lower id comes first among equals. */
static void list_top(const float *logits, int vocab, int n, struct smp_result *out)
{
    for (int32_t i = 0; i < vocab; i++) {
        int at = out->n_top;
        if (at == n && !(logits[i] > out->top_logprob[n - 1]))
            continue;
        if (at == n)
            at--;
        else
            out->n_top++;
        for (; at > 0 && logits[i] > out->top_logprob[at - 1]; at--) {
            out->top_logprob[at] = out->top_logprob[at - 1];
            out->top_id[at] = out->top_id[at - 1];
        }
        out->top_logprob[at] = logits[i];
        out->top_id[at] = i;
    }
}

/* Log-probabilities and rank, of the unmodified logits. The rank counts ids of equal probability, as vLLM's does. */
static void add_logprobs(const struct smp_row *r, const float *logits, int vocab, struct smp_result *out)
{
    float top = logits[argmax(logits, vocab)];
    double sum = 0;
    for (int i = 0; i < vocab; i++) {
        sum += expf(logits[i] - top);
        out->rank += logits[i] >= logits[out->id];
    }
    float log_sum = (float)log(sum);
    out->logprob = logits[out->id] - top - log_sum;
    if (r->p.n_logprobs > 0)
        list_top(logits, vocab, r->p.n_logprobs < vocab ? r->p.n_logprobs : vocab, out);
    for (int i = 0; i < out->n_top; i++)
        out->top_logprob[i] = out->top_logprob[i] - top - log_sum;
}

void smp_sample(const struct smp_row *r, const float *logits, int vocab, float *scratch, struct smp_result *out)
{
    const struct smp_params *p = &r->p;
    bool greedy = p->temperature == 0, adjusted = !greedy || r->n_history || r->n_banned;
    out->logprob = 0;
    out->rank = out->n_top = 0;
    out->by_host = false;
    if (adjusted)
        adjust(r, logits, vocab, scratch);
    if (greedy)
        out->id = argmax(adjusted ? scratch : logits, vocab);
    else {
        struct cut all = {-FLT_MAX, INT_MAX};
        if (p->min_p > 0 || p->top_k > 0 || p->top_p < 1) {
            all = find_cut(p, scratch, vocab, scratch[argmax(scratch, vocab)]);
            adjust(r, logits, vocab, scratch);
        }
        out->id = draw(r, scratch, vocab, all);
    }
    if (p->n_logprobs >= 0)
        add_logprobs(r, logits, vocab, out);
}
