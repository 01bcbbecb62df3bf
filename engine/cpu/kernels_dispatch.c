/* Chooses the tables of kernels that this CPU can run. */
#include "engine/cpu/kernels.h"

#if defined(__x86_64__)
static bool has_avx512(void)
{
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
static bool has_avx2(void)
{
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}
#endif

const struct kernels *const *kernels_supported(void)
{
    static const struct kernels *const tables[] = {
#if defined(__x86_64__)
        &kernels_avx512,
        &kernels_avx2,
#endif
        &kernels_portable,
        NULL
    };
    int first = 0;
#if defined(__x86_64__)
    first = has_avx512() ? 0 : has_avx2() ? 1 : 2;
#endif
    return tables + first;
}

const struct kernels *kernels_best(void)
{
    return kernels_supported()[0];
}
