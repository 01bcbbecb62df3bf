/* The smaller and the larger of two numbers. */
#ifndef KM_MIN_H
#define KM_MIN_H

#include <stdint.h>

static inline int km_min(int a, int b)
{
    return a < b ? a : b;
}

static inline int km_max(int a, int b)
{
    return a > b ? a : b;
}

static inline int64_t km_min64(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

static inline int64_t km_max64(int64_t a, int64_t b)
{
    return a > b ? a : b;
}

#endif
