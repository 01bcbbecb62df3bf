/* What the parts of kernels_check share: random arrays that lie on both sides, a judge of results, a stopwatch. */
#ifndef CU_CHECK_H
#define CU_CHECK_H

#include "engine/cuda/cu.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

inline uint64_t rng = 1;
static inline float uniform()
{
    rng = rng * 6364136223846793005u + 1442695040888963407u;
    return (float)(rng >> 40) / (1 << 24);
}
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

/* Of the shapes only what is the card's. */
static inline cu_dims gpu_dims()
{
    cu_dims m = {};
    cudaDeviceProp card;
    OK(cudaGetDeviceProperties(&card, 0));
    m.arch = card.major * 10 + card.minor, m.n_sms = card.multiProcessorCount;
    return m;
}

/* The same array on both sides. */
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
/* n elements on the card: numbers of a normal distribution, since power depends on them, the same few million anew. */
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
/* vLLM's kernel tolerance for bf16: atol 1e-3, rtol 1.6e-2. */
struct judge {
    const char *name;
    double worst = 0, rel2 = 0, ref2 = 0;
    long bad = 0, n = 0;
    explicit judge(const char *what) : name(what)
    {
    }
    /* size: of what was added up to give `want`, where that is more than its own */
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

/* Median milliseconds of one call, over samples of `inner` calls. */
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

/* ffn_check.cu: Hopper's gate and up product with SwiGLU; small: two shapes. Nothing on other cards. */
void check_gate_up_sm90(bool small);
void time_gate_up_sm90();

/* stream_check.cu: Hopper's products of few rows; small: one shape of blocks. Nothing on other cards. */
void check_small_m_sm90(bool small);
void time_small_m_sm90();

#endif
