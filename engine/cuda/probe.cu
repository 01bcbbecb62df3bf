/* Is there a card this build can run on, what is it, and how fast? Asked in a child process: initialising CUDA here
 * would forbid the caller to fork its engine later, since a forked process cannot use its parent's CUDA. */
#include "engine/cuda/cu.h"

extern "C" {
#include "engine/dummy.h"
#include "engine/rates.h"
}

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

int cu_card_look(struct cu_card *out, struct km_err *err)
{
    int driver = 0, runtime = 0, n = 0;
    cudaDriverGetVersion(&driver);
    cudaRuntimeGetVersion(&runtime);
    if (!driver)
        return km_fail(err, KM_EDEVICE,
                       "no CUDA device: this machine has no NVIDIA driver; --device cpu runs without");
    if (driver / 1000 < runtime / 1000)
        return km_fail(err, KM_EDEVICE,
                       "the NVIDIA driver knows CUDA %d.%d, but this build needs %d.0 or newer: update the driver",
                       driver / 1000, driver % 1000 / 10, runtime / 1000);
    cudaError_t rc = cudaGetDeviceCount(&n);
    if (rc != cudaSuccess || !n)
        return km_fail(err, KM_EDEVICE, "no CUDA device: %s; --device cpu runs without",
                       n ? "none answers" : cudaGetErrorString(rc));
    cudaDeviceProp p;
    rc = cudaGetDeviceProperties(&p, 0);
    if (rc != cudaSuccess)
        return km_fail(err, KM_EDEVICE, "CUDA device 0 does not answer: %s", cudaGetErrorString(rc));
    if (p.major < 8)
        return km_fail(err, KM_EDEVICE,
                       "%s has compute capability %d.%d; the CUDA engine needs 8.0 or newer: use --device cpu",
                       p.name, p.major, p.minor);
    *out = cu_card{"", p.major * 10 + p.minor, p.multiProcessorCount, p.totalGlobalMem, 0};
    snprintf(out->name, sizeof out->name, "%.60s", p.name);
    return 0;
}

/* What a child has to say: one write, small enough to be whole. */
struct answer {
    struct km_err err;
    cu_card card;
    struct rates rates;
};

static void look(answer *a)
{
    cu_card_look(&a->card, &a->err);
}

static void look_inside(answer *a)
{
    size_t total;
    if (cu_card_look(&a->card, &a->err))
        return;
    cudaError_t rc = cudaMemGetInfo(&a->card.avail, &total);
    if (rc != cudaSuccess)
        km_fail(&a->err, KM_EDEVICE, "CUDA device 0 does not answer: %s", cudaGetErrorString(rc));
}

static int ask_child(void (*ask)(answer *), answer *a, struct km_err *err)
{
    int fd[2];
    if (pipe(fd))
        return km_fail(err, KM_EIO, "cannot make a pipe: %s", strerror(errno));
    pid_t pid = fork();
    if (pid < 0) {
        close(fd[0]);
        close(fd[1]);
        return km_fail(err, KM_EIO, "cannot start a process: %s", strerror(errno));
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
                       "the NVIDIA driver crashed while it was asked for its devices; --device cpu runs without");
    return a->err.code ? km_fail(err, a->err.code, "%s", a->err.msg) : 0;
}

int cu_card_ask(struct cu_card *out, struct km_err *err)
{
    answer a;
    int rc = ask_child(look_inside, &a, err);
    *out = a.card;
    return rc;
}

int cu_probe(struct km_err *err)
{
    answer a;
    return ask_child(look, &a, err);
}

/* ---- rates ---- */

namespace {

enum { RUNS = 5, GEMM_SIDE = 4096, GEMMS = 10 };
const size_t ON_CARD = 512u << 20, ACROSS = 128u << 20; /* bytes of a copy: far more than caches hold */

struct bench {
    cudaStream_t s;
    cudaEvent_t t0, t1;
    char *from, *to, *host; /* [ON_CARD], [ON_CARD], pinned [ACROSS] */
    bf16 *x, *y;            /* [GEMM_SIDE][GEMM_SIDE] */
    struct cu_lt *lt;
};

} // namespace

/* *seconds = the median run; the first is not counted. run enqueues on b->s. */
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
        for (; at > 0 && v[at - 1] > ms; at--) /* kept in order */
            v[at] = v[at - 1];
        if (i >= 0)
            v[at] = ms;
    }
    *seconds = v[RUNS / 2] / 1e3;
    return 0;
}

static int copy_rate(const bench &b, void *to, const void *from, size_t size, double *gbps, struct km_err *err)
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

/* y = x x^T, many times in a row: random numbers, since zeros draw less power and run faster. */
static int gemm_rate(bench *b, double *tflops, struct km_err *err)
{
    const int n = GEMM_SIDE;
    const size_t size = sizeof(bf16) * n * n;
    bf16 *numbers = reinterpret_cast<bf16 *>(b->host);
    static_assert(sizeof(bf16) * GEMM_SIDE * GEMM_SIDE <= ACROSS, "the numbers pass through the pinned buffer");
    for (size_t i = 0; i < (size_t)n * n; i++)
        numbers[i] = __float2bfloat16_rn(dmy_value(1, i, 1e-6f));
    CU_TRY(cudaMemcpyAsync(b->x, numbers, size, cudaMemcpyHostToDevice, b->s));
    double s = 0;
    auto run = [&] {
        int rc = 0;
        for (int i = 0; i < GEMMS && !rc; i++)
            rc = cu_gemm(b->lt, b->x, b->x, n, n, n, false, b->y, false, b->s, err);
        return rc;
    };
    int rc = time_runs(*b, run, &s, err);
    *tflops = rc ? 0 : 2.0 * n * n * n * GEMMS / s / 1e12;
    return rc;
}

static int measure_all(struct rates *out, struct km_err *err)
{
    bench b = {};
    const size_t square = sizeof(bf16) * GEMM_SIDE * GEMM_SIDE;
    CU_TRY(cudaStreamCreateWithFlags(&b.s, cudaStreamNonBlocking));
    CU_TRY(cudaEventCreate(&b.t0));
    CU_TRY(cudaEventCreate(&b.t1));
    CU_TRY(cudaMalloc(&b.from, ON_CARD));
    CU_TRY(cudaMalloc(&b.to, ON_CARD));
    CU_TRY(cudaMalloc(&b.x, square));
    CU_TRY(cudaMalloc(&b.y, square));
    CU_TRY(cudaHostAlloc(&b.host, ACROSS, cudaHostAllocDefault));
    memset(b.host, 1, ACROSS);
    int rc = copy_rate(b, b.to, b.from, ON_CARD, &out->copy_gbps, err);
    out->copy_gbps *= 2; /* read and written */
    rc = rc ? rc : copy_rate(b, b.to, b.host, ACROSS, &out->h2d_gbps, err);
    rc = rc ? rc : copy_rate(b, b.host, b.from, ACROSS, &out->d2h_gbps, err);
    rc = rc ? rc : cu_gemm_open(&b.lt, err);
    return rc ? rc : gemm_rate(&b, &out->gemm_tflops, err);
}

/* In the child: what it takes ends with it. */
static void measure(answer *a)
{
    if (cu_card_look(&a->card, &a->err))
        return;
    snprintf(a->rates.device, sizeof a->rates.device, "%s", a->card.name);
    a->rates.memory = (int64_t)a->card.total;
    measure_all(&a->rates, &a->err);
}

int cu_measure(struct rates *out, struct km_err *err)
{
    answer a;
    int rc = ask_child(measure, &a, err);
    *out = a.rates;
    return rc;
}
