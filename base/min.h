/* The smaller and the larger of two numbers. */
#ifndef KM_MIN_H
#define KM_MIN_H

static inline int km_min(int a, int b)
{
    return a < b ? a : b;
}

static inline int km_max(int a, int b)
{
    return a > b ? a : b;
}

#endif
