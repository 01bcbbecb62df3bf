/* Sorted arrays of numbers and strings, and the percentiles that the tree reports. */
#ifndef KM_SORT_H
#define KM_SORT_H

#include <stddef.h>

void km_sort_doubles(double *v, size_t n);      /* ascending; v holds no NaN */
void km_sort_strings(const char **v, size_t n); /* ascending by bytes */

/* The percentile of sorted[n] at q in [0, 1], interpolated linearly between neighbours as by numpy's default method.
 * NAN if n is 0. */
double km_percentile(const double *sorted, int n, double q);

#endif
