/* The GPU: whether there is one that this build can use, what it is, and how fast its memory, its bus and its tensor
 * cores are.
 *
 * Queries run in a child process. Initialising CUDA in this process would forbid the caller to fork a process that uses
 * CUDA, because a forked process cannot use its parent's CUDA context. */
#include "engine/cuda/gemm/gemm_lt.h"
#include "engine/cuda/gpu.h"

extern "C" {
#include "engine/dummy.h"
#include "engine/rates.h"
}

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

int cu_gpu_get(struct cu_gpu *out, struct km_err *err)
{
    int driver = 0, runtime = 0, n = 0;
    cudaDriverGetVersion(&driver);
    cudaRuntimeGetVersion(&runtime);
    if (!driver)
        return km_fail(err, KM_EDEVICE,
                       "no CUDA device: this machine has no NVIDIA driver; install it, or use --device cpu");
    if (driver / 1000 < runtime / 1000)
        return km_fail(err, KM_EDEVICE,
                       "the NVIDIA driver supports CUDA %d.%d, but this build needs %d.0 or newer: update the driver",
                       driver / 1000, driver % 1000 / 10, runtime / 1000);
    cudaError_t rc = cudaGetDeviceCount(&n);
    if (rc != cudaSuccess || !n)
        return km_fail(err, KM_EDEVICE, "no CUDA device: %s; use --device cpu, or check nvidia-smi",
                       rc != cudaSuccess ? cudaGetErrorString(rc) : "the driver lists none");
    cudaDeviceProp p;
    rc = cudaGetDeviceProperties(&p, 0);
    if (rc != cudaSuccess)
        return km_fail(err, KM_EDEVICE, "CUDA device 0 does not answer: %s", cudaGetErrorString(rc));
    if (p.major < 8)
        return km_fail(err, KM_EDEVICE,
                       "%s has compute capability %d.%d; the CUDA engine needs 8.0 or newer: use --device cpu", p.name,
                       p.major, p.minor);
    *out = cu_gpu{"", p.major * 10 + p.minor, p.multiProcessorCount, p.totalGlobalMem, 0};
    snprintf(out->name, sizeof out->name, "%.60s", p.name);
    return 0;
}

/* ---- queries in a child process ---- */

/* What the child process reports. The struct is smaller than PIPE_BUF, so that one write to the pipe is atomic. */
struct answer {
    struct km_err err;
    cu_gpu gpu;
    struct rates rates;
};

static void query_gpu(answer *a)
{
    cu_gpu_get(&a->gpu, &a->err);
}

static void query_gpu_and_memory(answer *a)
{
    size_t total;
    if (cu_gpu_get(&a->gpu, &a->err))
        return;
    cudaError_t rc = cudaMemGetInfo(&a->gpu.avail, &total);
    if (rc != cudaSuccess)
        km_fail(&a->err, KM_EDEVICE, "CUDA device 0 does not answer: %s", cudaGetErrorString(rc));
}

/* Runs `ask` in a child process and copies its answer to *a. Returns the error in the answer, or KM_EDEVICE if the
 * child process crashed. */
static int ask_child(void (*ask)(answer *), answer *a, struct km_err *err)
{
    int fd[2];
    if (pipe(fd))
        return km_fail(err, KM_EIO, "cannot make a pipe to a child process: %s", strerror(errno));
    pid_t pid = fork();
    if (pid < 0) {
        close(fd[0]);
        close(fd[1]);
        return km_fail(err, KM_EIO, "cannot start a child process to query the GPU: %s", strerror(errno));
    }
    memset(a, 0, sizeof *a);
    if (pid == 0) {
        ask(a);
        _exit(write(fd[1], a, sizeof *a) == (ssize_t)sizeof *a ? 0 : 1);
    }
    close(fd[1]);
    ssize_t n;
    while ((n = read(fd[0], a, sizeof *a)) < 0 && errno == EINTR)
        ;
    close(fd[0]);
    while (waitpid(pid, nullptr, 0) < 0 && errno == EINTR)
        ;
    if (n != (ssize_t)sizeof *a)
        return km_fail(err, KM_EDEVICE,
                       "the child process that queried the GPU crashed in the NVIDIA driver; check nvidia-smi, or use "
                       "--device cpu");
    return a->err.code ? km_fail(err, a->err.code, "%s", a->err.msg) : 0;
}

int cu_gpu_query(struct cu_gpu *out, struct km_err *err)
{
    answer a;
    int rc = ask_child(query_gpu_and_memory, &a, err);
    *out = a.gpu;
    return rc;
}

int cu_probe(struct km_err *err)
{
    answer a;
    return ask_child(query_gpu, &a, err);
}

/* ---- rates (engine/rates.h) ---- */

namespace {

enum { RUNS = 5, GEMM_SIZE = 4096 /* M, N and K */, GEMMS = 10 /* back to back in a run */ };
/* Bytes of a copy within device memory, and of a copy between host and device: far more than caches hold. */
const size_t DEVICE_COPY = 512u << 20, HOST_COPY = 128u << 20;

/* What the measurements use; allocated once for all of them. */
struct bench {
    cudaStream_t s;
    cudaEvent_t t0, t1;     /* start and end of a run */
    char *from, *to, *host; /* [DEVICE_COPY] each; pinned [HOST_COPY] */
    bf16 *x, *y;            /* [GEMM_SIZE][GEMM_SIZE] each */
    struct cu_lt *lt;
};

} // namespace

/* *seconds: the median duration of RUNS runs, after a warm-up run. `run` enqueues the work of one run on stream b.s. */
template <typename F> static int time_runs(const bench &b, F run, double *seconds, struct km_err *err)
{
    float v[RUNS];
    for (int i = -1; i < RUNS; i++) {
        CU_TRY(cudaEventRecord(b.t0, b.s));
        int rc = run();
        if (rc)
            return rc;
        CU_TRY(cudaEventRecord(b.t1, b.s));
        CU_TRY(cudaEventSynchronize(b.t1));
        float ms;
        CU_TRY(cudaEventElapsedTime(&ms, b.t0, b.t1));
        int at = i;
        for (; at > 0 && v[at - 1] > ms; at--) /* insertion sort */
            v[at] = v[at - 1];
        if (i >= 0)
            v[at] = ms;
    }
    *seconds = v[RUNS / 2] / 1e3;
    return 0;
}

static int measure_copy_rate(const bench &b, void *to, const void *from, size_t size, double *gbps, struct km_err *err)
{
    double s = 0;
    auto run = [&] {
        CU_TRY(cudaMemcpyAsync(to, from, size, cudaMemcpyDefault, b.s));
        return 0;
    };
    int rc = time_runs(b, run, &s, err);
    *gbps = rc ? 0 : (double)size / s / 1e9;
    return rc;
}

/* Times y = x x^T. x holds random numbers: zeros would draw less power, and the GPU would run at a higher clock. */
static int measure_gemm_rate(bench *b, double *tflops, struct km_err *err)
{
    const int n = GEMM_SIZE;
    const size_t size = sizeof(bf16) * n * n;
    bf16 *numbers = reinterpret_cast<bf16 *>(b->host);
    static_assert(sizeof(bf16) * GEMM_SIZE * GEMM_SIZE <= HOST_COPY, "the numbers pass through the pinned buffer");
    for (size_t i = 0; i < (size_t)n * n; i++)
        numbers[i] = __float2bfloat16_rn(dmy_value(1, i, 1e-6f));
    CU_TRY(cudaMemcpyAsync(b->x, numbers, size, cudaMemcpyHostToDevice, b->s));
    double s = 0;
    auto run = [&] {
        int rc = 0;
        for (int i = 0; i < GEMMS && !rc; i++)
            rc = cu_lt_gemm(b->lt, b->x, b->x, n, n, n, false, b->y, false, b->s, err);
        return rc;
    };
    int rc = time_runs(*b, run, &s, err);
    *tflops = rc ? 0 : 2.0 * n * n * n * GEMMS / s / 1e12;
    return rc;
}

static int measure_all(struct rates *out, struct km_err *err)
{
    bench b = {};
    const size_t square = sizeof(bf16) * GEMM_SIZE * GEMM_SIZE;
    CU_TRY(cudaStreamCreateWithFlags(&b.s, cudaStreamNonBlocking));
    CU_TRY(cudaEventCreate(&b.t0));
    CU_TRY(cudaEventCreate(&b.t1));
    CU_TRY(cudaMalloc(&b.from, DEVICE_COPY));
    CU_TRY(cudaMalloc(&b.to, DEVICE_COPY));
    CU_TRY(cudaMalloc(&b.x, square));
    CU_TRY(cudaMalloc(&b.y, square));
    CU_TRY(cudaHostAlloc(&b.host, HOST_COPY, cudaHostAllocDefault));
    memset(b.host, 1, HOST_COPY);
    int rc = measure_copy_rate(b, b.to, b.from, DEVICE_COPY, &out->copy_gbps, err);
    out->copy_gbps *= 2; /* each byte is read and written */
    rc = rc ? rc : measure_copy_rate(b, b.to, b.host, HOST_COPY, &out->h2d_gbps, err);
    rc = rc ? rc : measure_copy_rate(b, b.host, b.from, HOST_COPY, &out->d2h_gbps, err);
    rc = rc ? rc : cu_lt_open(&b.lt, err);
    return rc ? rc : measure_gemm_rate(&b, &out->gemm_tflops, err);
}

/* Runs in the child process. Nothing is freed: the process ends after the answer. */
static void measure_rates(answer *a)
{
    if (cu_gpu_get(&a->gpu, &a->err))
        return;
    snprintf(a->rates.device, sizeof a->rates.device, "%s", a->gpu.name);
    a->rates.memory = (int64_t)a->gpu.total;
    measure_all(&a->rates, &a->err);
}

int cu_measure(struct rates *out, struct km_err *err)
{
    answer a;
    int rc = ask_child(measure_rates, &a, err);
    *out = a.rates;
    return rc;
}
