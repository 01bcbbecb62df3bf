/* Reading, checking and sampling distributions.
 *
 * Lognormal samples are rounded where vLLM's generator rounds them: last, after scaling and after the maximum, half to
 * even. All other samples are truncated. */
#include "workloads/distribution.h"

#include "base/mem.h"

#include <math.h>
#include <string.h>

#define TOKENS_MAX 1e9 /* largest parameter of a distribution that a file may give, in tokens */

/* Visits v and its children depth-first, which is the order of their literals in the text. p: the text from there on.
 * Returns the text after v's last number. */
static const char *note_integers(const char *p, cJSON *v)
{
    if (cJSON_IsNumber(v)) {
        for (bool in_str = false; in_str || !strchr("-0123456789", *p); p++) {
            if (in_str && *p == '\\')
                p++;
            else if (*p == '"')
                in_str = !in_str;
        }
        size_t n = strspn(p, "+-0123456789.eE");
        v->valueint = memchr(p, '.', n) || memchr(p, 'e', n) || memchr(p, 'E', n) ? 0 : 1;
        return p + n;
    }
    for (cJSON *c = v->child; c; c = c->next)
        p = note_integers(p, c);
    return p;
}

void wl_note_integers(const char *text, cJSON *root)
{
    note_integers(text, root);
}

static int read_uniform(struct wl_distribution *d, const cJSON *v, struct km_err *err)
{
    int rc = km_json_num(v, "min", true, 0, TOKENS_MAX, &d->a, err);
    if (!rc)
        rc = km_json_num(v, "max", true, 0, TOKENS_MAX, &d->b, err);
    if (rc)
        return rc;
    if (d->a <= 0)
        return km_fail(err, KM_EINVAL, "\"min\" is %g; a uniform distribution needs min > 0", d->a);
    if (d->a > d->b)
        return km_fail(err, KM_EINVAL, "\"min\" is %g and \"max\" is %g; make \"max\" at least as large as \"min\"",
                       d->a, d->b);
    bool whole =
        cJSON_GetObjectItemCaseSensitive(v, "min")->valueint && cJSON_GetObjectItemCaseSensitive(v, "max")->valueint;
    d->family = whole ? WL_UNIFORM_INT : WL_UNIFORM;
    return 0;
}

static int read_lognormal(struct wl_distribution *d, const cJSON *v, struct km_err *err)
{
    int rc = km_json_num(v, "average", false, 1, TOKENS_MAX, &d->average, err);
    if (rc)
        return rc;
    if (d->average > 0) {
        double ratio = 0.85;
        if ((rc = km_json_num(v, "median_ratio", false, 0, 1, &ratio, err)))
            return rc;
        if (!(ratio > 1e-9 && ratio < 1))
            return km_fail(err, KM_EINVAL, "\"median_ratio\" is %g; it must lie between 0 and 1, both excluded", ratio);
        double median = d->average * ratio;
        d->family = WL_LOGNORMAL_MEAN;
        d->a = log(median);
        d->b = sqrt(2.0 * log(d->average / median));
        return 0;
    }
    d->family = WL_LOGNORMAL;
    rc = km_json_num(v, "mean", true, 0, 700, &d->a, err);
    if (rc && !cJSON_GetObjectItemCaseSensitive(v, "mean"))
        return km_fail(
            err, KM_EINVAL,
            "\"average\" is missing; give it, or \"mean\" and \"sigma\" of the underlying normal distribution");
    if (!rc)
        rc = km_json_num(v, "sigma", true, 0, 700, &d->b, err);
    if (!rc && d->a <= 0)
        rc = km_fail(err, KM_EINVAL, "\"mean\" is %g; it must be more than 0", d->a);
    return rc;
}

static int read_constant(struct wl_distribution *d, const cJSON *v, struct km_err *err)
{
    d->family = WL_CONSTANT;
    return km_json_num(v, "value", true, 0, TOKENS_MAX, &d->a, err);
}

static int read_zipf(struct wl_distribution *d, const cJSON *v, struct km_err *err)
{
    d->family = WL_ZIPF;
    int rc = km_json_num(v, "alpha", true, 0, TOKENS_MAX, &d->a, err);
    if (!rc && d->a <= 1)
        rc = km_fail(err, KM_EINVAL, "\"alpha\" is %g; a zipf distribution needs alpha > 1", d->a);
    return rc;
}

static int read_poisson(struct wl_distribution *d, const cJSON *v, struct km_err *err)
{
    d->family = WL_POISSON;
    return km_json_num(v, "alpha", true, 0, TOKENS_MAX, &d->a, err);
}

static int read_distribution(struct wl_distribution *d, const cJSON *v, struct km_err *err)
{
    static const struct {
        const char *name;
        int (*read)(struct wl_distribution *d, const cJSON *v, struct km_err *err);
        bool has_max; /* the key "max" is a limit on samples (a parameter of "uniform") */
    } families[] = {{"constant", read_constant, false},
                    {"uniform", read_uniform, false},
                    {"lognormal", read_lognormal, true},
                    {"zipf", read_zipf, true},
                    {"poisson", read_poisson, true}};
    const char *name = NULL;
    int rc = km_json_str(v, "distribution", true, &name, err);
    if (rc)
        return rc;
    for (size_t i = 0; i < sizeof families / sizeof *families; i++) {
        if (strcmp(name, families[i].name))
            continue;
        if (families[i].has_max)
            rc = km_json_num(v, "max", false, 0, TOKENS_MAX, &d->max, err);
        return rc ? rc : families[i].read(d, v, err);
    }
    return km_fail(err, KM_EINVAL,
                   "\"distribution\" is \"%s\"; it must be constant, uniform, lognormal, zipf or poisson", name);
}

int wl_distribution_read(struct wl_distribution *out, const cJSON *section, const char *where, const char *key,
                         bool need, struct km_err *err)
{
    *out = (struct wl_distribution){.family = WL_CONSTANT};
    const cJSON *v;
    int rc = km_json_item(section, key, need, cJSON_Object, &v, err);
    if (rc)
        return km_context(err, "\"%s\"", where);
    if (v && (rc = read_distribution(out, v, err)))
        km_context(err, "\"%s.%s\"", where, key);
    return rc;
}

/* Adds in the order of numpy's pairwise summation, so that the scale factor equals numpy's to the last bit. */
static double pairwise_sum(const double *v, size_t n)
{
    if (n < 8) {
        double s = 0;
        for (size_t i = 0; i < n; i++)
            s += v[i];
        return s;
    }
    if (n > 128) {
        size_t half = n / 2 - n / 2 % 8;
        return pairwise_sum(v, half) + pairwise_sum(v + half, n - half);
    }
    double r[8];
    memcpy(r, v, sizeof r);
    size_t i = 8;
    for (; i + 8 <= n; i += 8)
        for (int k = 0; k < 8; k++)
            r[k] += v[i + (size_t)k];
    double s = ((r[0] + r[1]) + (r[2] + r[3])) + ((r[4] + r[5]) + (r[6] + r[7]));
    for (; i < n; i++)
        s += v[i];
    return s;
}

/* Limits x to max (0: none) and truncates it. */
static int64_t clip(double x, double max)
{
    if (max > 0 && x > max)
        x = max;
    return x < (double)WL_DISTRIBUTION_CAP ? (int64_t)x : WL_DISTRIBUTION_CAP;
}

static double sample_one(const struct wl_distribution *d, struct wl_mt *r)
{
    switch (d->family) {
    case WL_CONSTANT:
        return d->a;
    case WL_UNIFORM_INT:
        return (double)wl_mt_int(r, (int64_t)d->a, (int64_t)d->b);
    case WL_UNIFORM:
        return d->a + (d->b - d->a) * wl_mt_double(r);
    case WL_ZIPF:
        return (double)wl_mt_zipf(r, d->a);
    case WL_POISSON:
        return (double)wl_mt_poisson(r, d->a);
    case WL_LOGNORMAL:
    case WL_LOGNORMAL_MEAN:
        break;
    }
    return exp(d->a + d->b * wl_mt_normal(r));
}

int wl_distribution_sample(const struct wl_distribution *d, struct wl_mt *r, int n, int64_t *out, struct km_err *err)
{
    if (d->family != WL_LOGNORMAL && d->family != WL_LOGNORMAL_MEAN) {
        for (int i = 0; i < n; i++)
            out[i] = clip(sample_one(d, r), d->max);
        return 0;
    }
    double *v = km_reallocarray(NULL, (size_t)n, sizeof *v);
    if (!v)
        return km_fail(err, KM_ENOMEM, "out of memory for %d samples", n);
    for (int i = 0; i < n; i++)
        v[i] = sample_one(d, r);
    double scale = d->family == WL_LOGNORMAL_MEAN ? d->average / (pairwise_sum(v, (size_t)n) / n) : 1;
    for (int i = 0; i < n; i++) {
        double x = v[i] * scale;
        out[i] = clip(rint(d->max > 0 && x > d->max ? d->max : x), 0);
    }
    km_free(v);
    return 0;
}
