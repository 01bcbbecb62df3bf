/* Distributions: reading, checking, sampling.
 *
 * All checks happen when the file is read, so that sampling cannot fail half way. numpy rounds nothing until
 * the end, so neither does this: lognormal samples are scaled, then capped, then rounded half to even. */
#include "workloads/distribution.h"

#include "base/mem.h"

#include <math.h>
#include <string.h>

#define TOKENS_MAX 1e9 /* of a single length that a file may ask for */

/* Depth-first, children in order of appearance: the order of the literals in the text. */
static const char *note(const char *p, cJSON *v)
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
        p = note(p, c);
    return p;
}

void wl_note_integers(const char *text, cJSON *root)
{
    note(text, root);
}

static int read_uniform(struct wl_distribution *l, const cJSON *v, struct km_err *err)
{
    int rc = km_json_num(v, "min", true, 0, TOKENS_MAX, &l->a, err);
    if (!rc)
        rc = km_json_num(v, "max", true, 0, TOKENS_MAX, &l->b, err);
    if (rc)
        return rc;
    if (l->a <= 0)
        return km_fail(err, KM_EINVAL, "\"min\" is %g; a uniform distribution needs min > 0", l->a);
    if (l->a > l->b)
        return km_fail(err, KM_EINVAL, "\"min\" is %g and \"max\" is %g; min must not be larger", l->a, l->b);
    bool whole = cJSON_GetObjectItemCaseSensitive(v, "min")->valueint &&
                 cJSON_GetObjectItemCaseSensitive(v, "max")->valueint;
    l->kind = whole ? WL_UNIFORM_INT : WL_UNIFORM;
    return 0;
}

static int read_lognormal(struct wl_distribution *l, const cJSON *v, struct km_err *err)
{
    int rc = km_json_num(v, "average", false, 1, TOKENS_MAX, &l->average, err);
    if (rc)
        return rc;
    if (l->average > 0) {
        double ratio = 0.85;
        if ((rc = km_json_num(v, "median_ratio", false, 0, 1, &ratio, err)))
            return rc;
        if (!(ratio > 1e-9 && ratio < 1))
            return km_fail(err, KM_EINVAL,
                           "\"median_ratio\" is %g; it must lie between 0 and 1, both excluded", ratio);
        double median = l->average * ratio;
        l->kind = WL_LOGNORMAL_MEAN;
        l->a = log(median);
        l->b = sqrt(2.0 * log(l->average / median));
        return 0;
    }
    l->kind = WL_LOGNORMAL;
    rc = km_json_num(v, "mean", true, 0, 700, &l->a, err);
    if (rc && !cJSON_GetObjectItemCaseSensitive(v, "mean"))
        return km_fail(err, KM_EINVAL,
                       "\"average\" is missing (or \"mean\" and \"sigma\" of the underlying normal)");
    if (!rc)
        rc = km_json_num(v, "sigma", true, 0, 700, &l->b, err);
    if (!rc && l->a <= 0)
        rc = km_fail(err, KM_EINVAL, "\"mean\" is %g; it must be more than 0", l->a);
    return rc;
}

static int read_alpha(struct wl_distribution *l, const cJSON *v, enum wl_distribution_kind kind, struct km_err *err)
{
    l->kind = kind;
    int rc = km_json_num(v, "alpha", true, 0, TOKENS_MAX, &l->a, err);
    if (!rc && kind == WL_ZIPF && l->a <= 1)
        rc = km_fail(err, KM_EINVAL, "\"alpha\" is %g; a zipf distribution needs alpha > 1", l->a);
    return rc;
}

static int read_distribution(struct wl_distribution *l, const cJSON *v, struct km_err *err)
{
    static const char *const names[] = {"constant", "uniform", "lognormal", "zipf", "poisson"};
    const char *name = NULL;
    int rc = km_json_str(v, "distribution", true, &name, err), k = 0;
    if (rc)
        return rc;
    while (k < 5 && strcmp(name, names[k]))
        k++;
    if (k >= 2 && k < 5 && (rc = km_json_num(v, "max", false, 0, TOKENS_MAX, &l->max, err)))
        return rc;
    switch (k) {
    case 0:
        l->kind = WL_CONSTANT;
        return km_json_num(v, "value", true, 0, TOKENS_MAX, &l->a, err);
    case 1:
        return read_uniform(l, v, err);
    case 2:
        return read_lognormal(l, v, err);
    case 3:
        return read_alpha(l, v, WL_ZIPF, err);
    case 4:
        return read_alpha(l, v, WL_POISSON, err);
    default:
        return km_fail(err, KM_EINVAL,
                       "\"distribution\" is \"%s\"; it must be constant, uniform, lognormal, zipf or poisson",
                       name);
    }
}

int wl_distribution_read(struct wl_distribution *out, const cJSON *section, const char *where, const char *key, bool need,
                struct km_err *err)
{
    *out = (struct wl_distribution){.kind = WL_CONSTANT};
    const cJSON *v;
    int rc = km_json_item(section, key, need, cJSON_Object, &v, err);
    if (rc)
        return km_context(err, "\"%s\"", where);
    if (v && (rc = read_distribution(out, v, err)))
        km_context(err, "\"%s.%s\"", where, key);
    return rc;
}

/* numpy's pairwise sum, so that the scale factor has numpy's last bit. */
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

static int64_t clip(double x, double max)
{
    if (max > 0 && x > max)
        x = max;
    return x < (double)WL_DISTRIBUTION_CAP ? (int64_t)x : WL_DISTRIBUTION_CAP; /* truncates */
}

static double draw(const struct wl_distribution *l, struct wl_mt *r)
{
    switch (l->kind) {
    case WL_CONSTANT:
        return l->a;
    case WL_UNIFORM_INT:
        return (double)wl_mt_int(r, (int64_t)l->a, (int64_t)l->b);
    case WL_UNIFORM:
        return l->a + (l->b - l->a) * wl_mt_double(r);
    case WL_ZIPF:
        return (double)wl_mt_zipf(r, l->a);
    case WL_POISSON:
        return (double)wl_mt_poisson(r, l->a);
    case WL_LOGNORMAL:
    case WL_LOGNORMAL_MEAN:
        break;
    }
    return exp(l->a + l->b * wl_mt_normal(r));
}

int wl_distribution_sample(const struct wl_distribution *l, struct wl_mt *r, int n, int64_t *out, struct km_err *err)
{
    if (l->kind != WL_LOGNORMAL && l->kind != WL_LOGNORMAL_MEAN) {
        for (int i = 0; i < n; i++)
            out[i] = clip(draw(l, r), l->max);
        return 0;
    }
    double *v = km_reallocarray(NULL, (size_t)n, sizeof *v);
    if (!v)
        return km_fail(err, KM_ENOMEM, "out of memory for %d samples", n);
    for (int i = 0; i < n; i++)
        v[i] = draw(l, r);
    double scale = l->kind == WL_LOGNORMAL_MEAN ? l->average / (pairwise_sum(v, (size_t)n) / n) : 1;
    for (int i = 0; i < n; i++) {
        double x = v[i] * scale;
        out[i] = clip(rint(l->max > 0 && x > l->max ? l->max : x), 0);
    }
    km_free(v);
    return 0;
}
