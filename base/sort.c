#include "base/sort.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static int by_double(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static int by_string(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

void km_sort_doubles(double *v, size_t n)
{
    if (n)
        qsort(v, n, sizeof *v, by_double);
}

void km_sort_strings(const char **v, size_t n)
{
    if (n)
        qsort(v, n, sizeof *v, by_string);
}

double km_percentile(const double *sorted, int n, double q)
{
    if (n < 1)
        return NAN;
    double at = q * (n - 1);
    int i = (int)at;
    return i + 1 < n ? sorted[i] + (at - i) * (sorted[i + 1] - sorted[i]) : sorted[n - 1];
}
