/* Shared by the files of kernels_check: arrays that exist on host and device, random numbers, comparison of results
 * with a reference, and timing of kernels. */
#ifndef CU_CHECK_H
#define CU_CHECK_H

#include "engine/cuda/cu.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

inline uint64_t rng_state = 1; /* of the random numbers; main sets it to the seed */
/* A number uniformly distributed over [0, 1). */
static inline float uniform()
{
    rng_state = rng_state * 6364136223846793005u + 1442695040888963407u;
    return (float)(rng_state >> 40) / (1 << 24);
}
/* A number that is approximately normally distributed, with a standard deviation of about 1. */
static inline float normal()
{
    float u = uniform() + uniform() + uniform() + uniform() - 2;
    return u * 1.7f;
}

static inline void exit_on_error(cudaError_t rc, const char *file, int line)
{
    if (rc == cudaSuccess)
        return;
    printf("FAIL %s:%d: CUDA error: %s\n", file, line, cudaGetErrorString(rc));
    exit(1);
}
#define CUDA_OK(x) exit_on_error((x), __FILE__, __LINE__)

/* Dimensions with the arch and n_sms of the GPU, and all other members 0. */
static inline cu_dims gpu_dims()
{
    cu_dims m = {};
    cudaDeviceProp gpu;
    CUDA_OK(cudaGetDeviceProperties(&gpu, 0));
    m.arch = gpu.major * 10 + gpu.minor, m.n_sms = gpu.multiProcessorCount;
    return m;
}

/* An array of n elements on the host (h, zeroed) and a copy on the device (d). */
template <typename T> struct mirrored {
    T *h, *d;
    size_t n;
    explicit mirrored(size_t count) : n(count)
    {
        h = static_cast<T *>(calloc(n ? n : 1, sizeof(T)));
        CUDA_OK(cudaMalloc(&d, (n ? n : 1) * sizeof(T)));
    }
    ~mirrored()
    {
        free(h);
        cudaFree(d);
    }
    void upload()
    {
        CUDA_OK(cudaMemcpy(d, h, n * sizeof(T), cudaMemcpyHostToDevice));
    }
    void download()
    {
        CUDA_OK(cudaDeviceSynchronize());
        CUDA_OK(cudaMemcpy(h, d, n * sizeof(T), cudaMemcpyDeviceToHost));
    }
    /* Fills the device's copy with NaN: the bits are all 1. */
    void poison()
    {
        CUDA_OK(cudaMemset(d, 0xFF, n * sizeof(T)));
    }
};

/* Fills an array with normally distributed numbers of standard deviation `scale`, on host and device. */
static inline void randomize(mirrored<bf16> &b, float scale)
{
    for (size_t i = 0; i < b.n; i++)
        b.h[i] = __float2bfloat16(normal() * scale);
    b.upload();
}
/* Allocates n normally distributed numbers on the device, for timing: the GPU's power draw depends on the values. The
 * same 4 million numbers repeat. */
static inline bf16 *random_numbers(size_t n, float scale)
{
    mirrored<bf16> some((size_t)1 << 22);
    randomize(some, scale);
    bf16 *out;
    CUDA_OK(cudaMalloc(&out, n * sizeof(bf16)));
    for (size_t at = 0; at < n; at += some.n)
        CUDA_OK(
            cudaMemcpy(out + at, some.d, sizeof(bf16) * (n - at < some.n ? n - at : some.n), cudaMemcpyDeviceToDevice));
    return out;
}

static inline double to_double(bf16 v)
{
    return (double)__bfloat162float(v);
}

inline int failures; /* failed checks so far */

static inline void report_failure(const char *what)
{
    printf("FAIL %s\n", what);
    failures++;
}

/* A comparison of one kernel's results with a reference. It prints one line when it goes out of scope. Two limits
 * apply: each value has vLLM's tolerance for bf16 kernels, 1e-3 absolute plus 1.6e-2 relative; and the root mean square
 * of the differences may be 1% of the reference's. */
struct comparison {
    const char *name;
    double largest = 0, difference2 = 0, reference2 = 0; /* largest difference; sums of squares */
    long n_bad = 0, n = 0;                               /* values over the tolerance; all values */
    explicit comparison(const char *what) : name(what)
    {
    }
    /* Compares one value. size: magnitude of the terms whose sum is `want`, if it is larger than that of `want`. */
    void add(double got, double want, double size = 0)
    {
        double d = fabs(got - want);
        n_bad += !(d <= 1e-3 + 1.6e-2 * fmax(fabs(want), size)); /* also counts NaN */
        if (!(d <= largest))
            largest = d;
        difference2 += d * d;
        reference2 += want * want;
        n++;
    }
    /* Checks a condition as one more value. */
    void check(bool good)
    {
        add(good ? 0 : 1, 0);
    }
    ~comparison()
    {
        double rms = sqrt(difference2 / (reference2 + 1e-30));
        bool good = n_bad == 0 && rms < 1e-2;
        failures += !good;
        printf("%-4s %-46s %8ld values, %ld over the tolerance; largest difference %.2e, relative RMS %.2e\n",
               good ? "ok" : "FAIL", name, n, n_bad, largest, rms);
        fflush(stdout);
    }
};

/* Compares two floats, for qsort. */
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
    CUDA_OK(cudaEventCreate(&a));
    CUDA_OK(cudaEventCreate(&b));
    for (int i = 0; i < 3; i++)
        call();
    for (int i = 0; i < N; i++) {
        CUDA_OK(cudaEventRecord(a));
        for (int k = 0; k < inner; k++)
            call();
        CUDA_OK(cudaEventRecord(b));
        CUDA_OK(cudaEventSynchronize(b));
        CUDA_OK(cudaEventElapsedTime(&ms[i], a, b));
        ms[i] /= (float)inner;
    }
    qsort(ms, N, sizeof *ms, by_value);
    cudaEventDestroy(a);
    cudaEventDestroy(b);
    return ms[N / 2];
}

/* ---- the groups of checks and timings ----
 * small: the smallest shapes that reach every path of the kernels, for compute-sanitizer. */

/* attention_check.cu: attn/, and cu_qk_rope_store. */
void check_attention(bool small);
void time_attention();
/* Tails alone. Only Hopper has the kernel; on other GPUs both functions return at once. */
void check_tails(bool small);
void time_tails();

/* copy_check.cu: copy.h. */
void check_copies(bool small);

/* gate_up_check.cu: gemm/gate_up_sm90.cu. Only Hopper has the kernel; on other GPUs both functions return at once. */
void check_gate_up_sm90(bool small);
void time_gate_up_sm90();

/* small_m_check.cu: gemm/small_m_sm90.cu. Only Hopper has the kernel; on other GPUs both functions return at once. */
void check_small_m_sm90(bool small);
void time_small_m_sm90();

#endif
