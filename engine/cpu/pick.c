/* Which kernels this machine runs. */
#include "engine/cpu/kern.h"

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

const struct kern *const *kern_all(void)
{
    static const struct kern *const tables[] = {
#if defined(__x86_64__)
        &kern_avx512,
        &kern_avx2,
#endif
        &kern_portable,
        NULL
    };
    int first = 0;
#if defined(__x86_64__)
    first = has_avx512() ? 0 : has_avx2() ? 1 : 2;
#endif
    return tables + first;
}

const struct kern *kern_pick(void)
{
    return kern_all()[0];
}
