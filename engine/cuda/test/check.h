/* Shared by the files of kernels_check: arrays that exist on host and device, random numbers, comparison of results
 * with a reference, and timing of kernels. */
#ifndef CU_CHECK_H
#define CU_CHECK_H

#include "engine/cuda/cu.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

inline uint64_t rng = 1; /* state of the random numbers, and their seed */
/* Uniform over [0, 1). */
static inline float uniform()
{
    rng = rng * 6364136223846793005u + 1442695040888963407u;
    return (float)(rng >> 40) / (1 << 24);
}
/* About normal, with a standard deviation of about 1. */
static inline float normal()
{
    float u = uniform() + uniform() + uniform() + uniform() - 2;
    return u * 1.7f;
}

static inline void die(cudaError_t rc, const char *file, int line)
{
    if (rc == cudaSuccess)
        return;
    printf("CUDA error at %s:%d: %s\n", file, line, cudaGetErrorString(rc));
    exit(1);
}
#define OK(x) die((x), __FILE__, __LINE__)

/* Dimensions with arch and n_sms of the GPU, and zeros otherwise. */
static inline cu_dims gpu_dims()
{
    cu_dims m = {};
    cudaDeviceProp gpu;
    OK(cudaGetDeviceProperties(&gpu, 0));
    m.arch = gpu.major * 10 + gpu.minor, m.n_sms = gpu.multiProcessorCount;
    return m;
}

/* An array of n elements on the host (h, zeroed) and on the device (d). */
template <typename T> struct both {
    T *h, *d;
    size_t n;
    explicit both(size_t count) : n(count)
    {
        h = static_cast<T *>(calloc(n ? n : 1, sizeof(T)));
        OK(cudaMalloc(&d, (n ? n : 1) * sizeof(T)));
    }
    ~both()
    {
        free(h);
        cudaFree(d);
    }
    void up()
    {
        OK(cudaMemcpy(d, h, n * sizeof(T), cudaMemcpyHostToDevice));
    }
    void down()
    {
        OK(cudaDeviceSynchronize());
        OK(cudaMemcpy(h, d, n * sizeof(T), cudaMemcpyDeviceToHost));
    }
    void poison()
    {
        OK(cudaMemset(d, 0xFF, n * sizeof(T))); /* NaN in every float format */
    }
};

static inline void randomize(both<bf16> &b, float scale)
{
    for (size_t i = 0; i < b.n; i++)
        b.h[i] = __float2bfloat16(normal() * scale);
    b.up();
}
/* n elements on the device, for timing: normally distributed, because the GPU's power draw depends on the values. The
 * same 4 million numbers repeat. */
static inline bf16 *numbers(size_t n, float scale)
{
    both<bf16> some((size_t)1 << 22);
    randomize(some, scale);
    bf16 *out;
    OK(cudaMalloc(&out, n * sizeof(bf16)));
    for (size_t at = 0; at < n; at += some.n)
        OK(cudaMemcpy(out + at, some.d, sizeof(bf16) * (n - at < some.n ? n - at : some.n), cudaMemcpyDeviceToDevice));
    return out;
}

static inline double f(bf16 v)
{
    return (double)__bfloat162float(v);
}

inline int failures;
/* Compares results with a reference, and prints one line when it goes out of scope. The tolerance is vLLM's for bf16
 * kernels: 1e-3 absolute, 1.6e-2 relative. */
struct judge {
    const char *name;
    double worst = 0, rel2 = 0, ref2 = 0;
    long bad = 0, n = 0;
    explicit judge(const char *what) : name(what)
    {
    }
    /* size: magnitude of the terms whose sum is `want`, where it is larger than that of `want` itself */
    void add(double got, double want, double size = 0)
    {
        double d = fabs(got - want);
        if (!(d <= 1e-3 + 1.6e-2 * fmax(fabs(want), size)))
            bad++;
        if (!(d <= worst))
            worst = d;
        rel2 += d * d;
        ref2 += want * want;
        n++;
    }
    ~judge()
    {
        bool good = bad == 0 && sqrt(rel2 / (ref2 + 1e-30)) < 1e-2;
        failures += !good;
        printf("%-4s %-46s n %8ld  over tolerance %6ld  worst %.2e  rel %.2e\n", good ? "ok" : "BAD", name, n, bad,
               worst, sqrt(rel2 / (ref2 + 1e-30)));
        fflush(stdout);
    }
};

static inline int by_value(const void *a, const void *b)
{
    float d = *(const float *)a - *(const float *)b;
    return (d > 0) - (d < 0);
}

/* Median milliseconds of one call, over 11 samples of `inner` calls each. */
template <typename F> static float time_ms(F call, int inner)
{
    enum { N = 11 };
    cudaEvent_t a, b;
    float ms[N];
    OK(cudaEventCreate(&a));
    OK(cudaEventCreate(&b));
    for (int i = 0; i < 3; i++)
        call();
    for (int i = 0; i < N; i++) {
        OK(cudaEventRecord(a));
        for (int k = 0; k < inner; k++)
            call();
        OK(cudaEventRecord(b));
        OK(cudaEventSynchronize(b));
        OK(cudaEventElapsedTime(&ms[i], a, b));
        ms[i] /= (float)inner;
    }
    qsort(ms, N, sizeof *ms, by_value);
    cudaEventDestroy(a);
    cudaEventDestroy(b);
    return ms[N / 2];
}

/* gate_up_check.cu: gemm/gate_up_sm90.cu. small: two shapes. Only Hopper has the kernel; other GPUs check nothing. */
void check_gate_up_sm90(bool small);
void time_gate_up_sm90();

/* small_m_check.cu: gemm/small_m_sm90.cu. small: fewer shapes. Only Hopper has the kernel; other GPUs check nothing. */
void check_small_m_sm90(bool small);
void time_small_m_sm90();

#endif
