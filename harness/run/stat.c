#include "harness/run/stat.h"

#include <math.h>
#include <stdlib.h>

double hz_percentile(const double *sorted, int n, double q)
{
    if (n < 1)
        return NAN;
    double at = q * (n - 1);
    int i = (int)at;
    return i + 1 < n ? sorted[i] + (at - i) * (sorted[i + 1] - sorted[i]) : sorted[n - 1];
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

struct hz_stat hz_stat_of(double *v, int n)
{
    struct hz_stat s = {n, NAN, NAN, NAN, NAN, NAN, NAN, NAN, NAN};
    if (n < 1)
        return s;
    double sum = 0, squares = 0;
    qsort(v, (size_t)n, sizeof *v, by_value);
    for (int i = 0; i < n; i++)
        sum += v[i];
    s.mean = sum / n;
    for (int i = 0; i < n; i++)
        squares += (v[i] - s.mean) * (v[i] - s.mean);
    s.std = n > 1 ? sqrt(squares / (n - 1)) : NAN;
    s.min = v[0];
    s.p50 = hz_percentile(v, n, 0.5);
    s.p90 = hz_percentile(v, n, 0.9);
    s.p95 = hz_percentile(v, n, 0.95);
    s.p99 = n >= 100 ? hz_percentile(v, n, 0.99) : NAN;
    s.max = v[n - 1];
    return s;
}
