/* Measures the limits: arithmetic, memory, loopback and disk. */
#include "harness/cli/machine_limits.h"

#include "base/clock.h"
#include "base/mem.h"
#include "base/sort.h"
#include "engine/backend.h"

#include <fcntl.h>
#include <netinet/in.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum { MIB = 1 << 20 };

static double seconds_since(int64_t t0)
{
    return (double)(km_now_ns() - t0) / 1e9;
}

/* GFLOP/s of the CPU backend: one prefill step of a small preset, counted by the model's arithmetic. */
static double measure_prefill(void)
{
    enum { T = 1024, BLOCK = 16 };
    struct be_opts o = {
        .dtype = KM_F32, .block_size = BLOCK, .n_pages = T / BLOCK, .max_tokens = T, .max_reqs = 1, .max_model_len = T};
    struct mdl *m = NULL;
    struct be *be = NULL;
    struct kv_geom geom;
    int32_t tokens[T], positions[T], slots[T], blocks[T / BLOCK], q_start[2] = {0, T}, len = T,
                                                                  table_start[2] = {0, T / BLOCK};
    for (int i = 0; i < T; i++) {
        tokens[i] = 1 + i * 7 % 4000;
        positions[i] = slots[i] = i;
        blocks[i / BLOCK] = i / BLOCK;
    }
    struct batch b = {.n_tokens = T,
                      .tokens = tokens,
                      .positions = positions,
                      .slots = slots,
                      .n_reqs = 1,
                      .q_start = q_start,
                      .kv_len = &len,
                      .table_start = table_start,
                      .block_table = blocks};
    double rate = -1;
    uint64_t ticket;
    if (!mdl_open(&m, "qwen3-tiny", true, 0, NULL) && !be_cpu.open(&be, &o, m, &geom, NULL)) {
        struct be_stats st;
        int64_t t0 = km_now_ns();
        if (!be_cpu.step(be, &b, &ticket, NULL) && !be_cpu.wait(be, ticket, NULL, NULL)) {
            double s = seconds_since(t0);
            be_cpu.stats(be, &st);
            rate = st.flops / s / 1e9;
        }
    }
    if (be)
        be_cpu.close(be);
    mdl_free(m);
    return rate;
}

/* GB/s of memcpy on one thread, over buffers far larger than the CPU's caches. Counts the bytes copied, that is half of
 * the bytes read and written. */
static double measure_memcpy(void)
{
    size_t size = 256 * (size_t)MIB;
    char *a = km_malloc(size), *b = km_malloc(size);
    double rate = -1;
    if (a && b) {
        memset(a, 1, size);
        memset(b, 2, size);
        int64_t t0 = km_now_ns();
        memcpy(b, a, size);
        rate = (double)size / seconds_since(t0) / 1e9;
    }
    km_free(a);
    km_free(b);
    return rate;
}

/* GB/s of writing a new file in the working directory, fsync included. */
static double measure_disk(void)
{
    char name[] = "kvmark-info-XXXXXX";
    int fd = mkostemp(name, O_CLOEXEC);
    char *block = km_calloc(4, MIB);
    double rate = -1;
    if (fd >= 0 && block) {
        int64_t t0 = km_now_ns();
        int n = 0;
        while (n < 32 && write(fd, block, 4 * MIB) == 4 * MIB)
            n++;
        if (n == 32 && !fsync(fd))
            rate = 32.0 * 4 * MIB / seconds_since(t0) / 1e9;
    }
    if (fd >= 0) {
        unlink(name);
        close(fd);
    }
    km_free(block);
    return rate;
}

/* Reads until the other end closes. */
static void *drain(void *arg)
{
    int fd = *(int *)arg;
    char *block = km_malloc(MIB);
    while (block && read(fd, block, MIB) > 0)
        ;
    km_free(block);
    return NULL;
}

/* Two ends of a TCP connection. */
static int connect_loopback(int fd[2])
{
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof a;
    int l = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    fd[0] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    fd[1] = -1;
    if (l >= 0 && fd[0] >= 0 && !bind(l, (struct sockaddr *)&a, len) && !listen(l, 1) &&
        !getsockname(l, (struct sockaddr *)&a, &len) && !connect(fd[0], (struct sockaddr *)&a, len))
        fd[1] = accept(l, NULL, NULL);
    close(l);
    return fd[1] >= 0 ? 0 : -1;
}

/* GB/s through one TCP connection on loopback, one thread at each end. */
static double measure_loopback(void)
{
    int fd[2];
    char *block = km_calloc(1, MIB);
    double rate = -1;
    pthread_t t;
    if (block && !connect_loopback(fd) && !pthread_create(&t, NULL, drain, &fd[1])) {
        int64_t t0 = km_now_ns();
        int n = 0;
        while (n < 256 && write(fd[0], block, MIB) == MIB)
            n++;
        shutdown(fd[0], SHUT_WR);
        pthread_join(t, NULL);
        rate = n == 256 ? 256.0 * MIB / seconds_since(t0) / 1e9 : -1;
        close(fd[0]);
        close(fd[1]);
    }
    km_free(block);
    return rate;
}

const struct machine_limit machine_limits[] = {
    {"cpu_prefill_gflops", "prefill on the CPU backend, 1,024 tokens of qwen3-tiny, float32", "GFLOP/s", measure_prefill},
    {"memcpy_gbps", "memcpy, one thread", "GB/s", measure_memcpy},
    {"loopback_gbps", "TCP on loopback, one connection", "GB/s", measure_loopback},
    {"disk_write_gbps", "writing a file in this folder, with fsync", "GB/s", measure_disk},
};
const int n_machine_limits = sizeof machine_limits / sizeof *machine_limits;

double machine_limit_measure(const struct machine_limit *limit)
{
    double v[MACHINE_LIMIT_REPEATS];
    for (int i = 0; i < MACHINE_LIMIT_REPEATS; i++)
        if ((v[i] = limit->measure()) < 0)
            return -1;
    km_sort_doubles(v, MACHINE_LIMIT_REPEATS);
    return km_percentile(v, MACHINE_LIMIT_REPEATS, 0.5);
}
