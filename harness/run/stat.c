#include "harness/run/stat.h"

#include "base/sort.h"

#include <math.h>

struct hz_stat hz_stat_of(double *v, int n)
{
    struct hz_stat s = {n, NAN, NAN, NAN, NAN, NAN, NAN, NAN, NAN};
    if (n < 1)
        return s;
    double sum = 0, squares = 0;
    km_sort_doubles(v, (size_t)n);
    for (int i = 0; i < n; i++)
        sum += v[i];
    s.mean = sum / n;
    for (int i = 0; i < n; i++)
        squares += (v[i] - s.mean) * (v[i] - s.mean);
    s.std = n > 1 ? sqrt(squares / (n - 1)) : NAN;
    s.min = v[0];
    s.p50 = km_percentile(v, n, 0.5);
    s.p90 = km_percentile(v, n, 0.9);
    s.p95 = km_percentile(v, n, 0.95);
    s.p99 = n >= 100 ? km_percentile(v, n, 0.99) : NAN;
    s.max = v[n - 1];
    return s;
}
