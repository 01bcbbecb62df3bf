/* Is there a card this build can run on, and what is it? Asked in a child process: initialising CUDA here would forbid
 * the caller to fork its engine later, since a forked process cannot use its parent's CUDA. */
#include "engine/cuda/cu.h"

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
    *a = answer{};
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

extern "C" int be_cuda_probe(struct km_err *err)
{
    answer a;
    return ask_child(look, &a, err);
}
