/* The flows of copies, their measurement, and the thread that makes traffic.
 *
 * A flow copies pages of one direction, with a fixed number of calls in flight. Pages are far apart in the pool and
 * contiguous in host memory, as the pages of a chunk are. */
#include "engine/cuda/bench/copy_bench.h"

#include "base/clock.h"
#include "base/mem.h"
#include "base/random.h"
#include "engine/cuda/bench/figure.h"

#include <cuda_runtime_api.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { LOAD_PAGES = 1310, STORE_PAGES = 640 }; /* the first number is 3.09 GB, 20,960 tokens of qwen3-8b */
#define SLAB ((size_t)256 << 20)               /* bytes of a slab of host memory */
#define SPARE ((size_t)2 << 30)                /* bytes that CPB_REGISTER registers, in pieces of PIECE */
#define PIECE ((size_t)32 << 20)

const char *const cpb_traffic_names[CPB_TRAFFICS] = {"",
                                                     ", with raw H2D copies",
                                                     ", with loads",
                                                     ", with stores",
                                                     ", with loads and stores",
                                                     ", with registration of host memory"};

struct cpb {
    const struct backend *backend;
    struct be *b;
    struct kv_geom g;
    char *host; /* [host_bytes], pages to load and then pages to store; registered slab by slab. No page lies in two
                   slabs, because a copy must not reach across two registrations */
    size_t host_bytes;
    int slab_pages;       /* pages of a slab */
    char *spare;          /* [SPARE], touched; CPB_REGISTER registers it */
    char *raw_host, *raw; /* for CPB_RAW_LOADS: pinned and device memory [LOAD_PAGES * page_bytes] */
    cudaStream_t raw_stream;
    cudaEvent_t raw_done[CPB_IN_FLIGHT];

    enum cpb_traffic traffic;
    pthread_t thread;
    atomic_bool stop;
    double gbps;
    int rc;
    struct km_err err;
};

/* Memory as a cache layer allocates it: anonymous, with huge pages where possible, and filled with arbitrary numbers
 * between 2^-63 and 2 if read as bfloat16. */
static char *map_host(size_t bytes)
{
    enum { WORDS = 1 << 20 };
    char *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED)
        return NULL;
    madvise(p, bytes, MADV_HUGEPAGE);
    uint64_t state = 5, *words = (uint64_t *)p;
    size_t n = bytes / sizeof *words < WORDS ? bytes / sizeof *words : WORDS;
    for (size_t i = 0; i < n; i++)
        words[i] = (km_random_next(&state) & 0xBFFFBFFFBFFFBFFFu) | 0x2000200020002000u;
    for (size_t at = n * sizeof *words; at < bytes; at += n * sizeof *words)
        memcpy(p + at, p, bytes - at < n * sizeof *words ? bytes - at : n * sizeof *words);
    return p;
}

static int cuda_check(cudaError_t rc, const char *what, struct km_err *err)
{
    return rc ? km_fail(err, KM_EDEVICE, "%s failed: %s", what, cudaGetErrorString(rc)) : 0;
}

int cpb_open(struct cpb **out, const struct backend *backend, struct be *b, const struct kv_geom *g, struct km_err *err)
{
    struct cpb *c = km_calloc(1, sizeof *c);
    if (!c)
        return km_fail(err, KM_ENOMEM, "out of memory");
    *out = c;
    c->backend = backend, c->b = b, c->g = *g;
    c->slab_pages = (int)(SLAB / g->page_bytes);
    c->host_bytes = ((LOAD_PAGES + STORE_PAGES) / (size_t)c->slab_pages + 1) * SLAB;
    if (g->n_pages < LOAD_PAGES + STORE_PAGES)
        return km_fail(err, KM_ELIMIT, "the pool has %d pages; the copy bench needs %d", g->n_pages,
                       LOAD_PAGES + STORE_PAGES);
    c->host = map_host(c->host_bytes);
    c->spare = map_host(SPARE);
    if (!c->host || !c->spare)
        return km_fail(err, KM_ENOMEM, "out of memory: the copy bench needs %zu bytes", c->host_bytes + SPARE);
    int rc = cuda_check(cudaMalloc((void **)&c->raw, LOAD_PAGES * g->page_bytes), "cudaMalloc", err);
    rc = rc ? rc : cuda_check(cudaMallocHost((void **)&c->raw_host, LOAD_PAGES * g->page_bytes), "cudaMallocHost", err);
    rc =
        rc ? rc : cuda_check(cudaStreamCreateWithFlags(&c->raw_stream, cudaStreamNonBlocking), "cudaStreamCreate", err);
    for (int i = 0; i < CPB_IN_FLIGHT && !rc; i++)
        rc = cuda_check(cudaEventCreateWithFlags(&c->raw_done[i], cudaEventDisableTiming), "cudaEventCreate", err);
    return rc;
}

void cpb_close(struct cpb *c)
{
    if (!c)
        return;
    for (int i = 0; i < CPB_IN_FLIGHT; i++)
        if (c->raw_done[i])
            cudaEventDestroy(c->raw_done[i]);
    if (c->raw_stream)
        cudaStreamDestroy(c->raw_stream);
    cudaFree(c->raw);
    cudaFreeHost(c->raw_host);
    for (size_t at = 0; c->host && at < c->host_bytes; at += SLAB)
        c->backend->host_unregister(c->b, c->host + at, SLAB);
    for (size_t at = 0; c->spare && at < SPARE; at += PIECE)
        c->backend->host_unregister(c->b, c->spare + at, PIECE);
    if (c->host)
        munmap(c->host, c->host_bytes);
    if (c->spare)
        munmap(c->spare, SPARE);
    km_free(c);
}

/* ---- flows ---- */

struct flow {
    struct cpb *c;
    enum kv_dir dir;
    bool raw;
    int call_pages;       /* pages of a call */
    int left;             /* pages that are not submitted yet */
    int next;             /* number of the next page, modulo the pages of the direction */
    int n_open;           /* calls in flight */
    int64_t done;         /* pages copied */
    int64_t call_ns;      /* host time of all calls of copy */
    int64_t poll_ns;      /* host time of all calls of poll */
    int calls, polls;     /* their numbers */
    int n[CPB_IN_FLIGHT]; /* pages of each call in flight; 0: the place is free */
    uint64_t ticket[CPB_IN_FLIGHT];
    struct kv_copy pages[CPB_IN_FLIGHT][KV_COPY_MOST];
};

/* Page i of a direction: i in host memory, and (7 i) mod the number of pages in the pool. */
static struct kv_copy flow_page(const struct flow *f, int i)
{
    const struct cpb *c = f->c;
    bool load = f->dir == KV_TO_PAGE;
    int n = load ? LOAD_PAGES : STORE_PAGES, first = c->g.n_pages - LOAD_PAGES - (load ? 0 : STORE_PAGES);
    int at = i + (load ? 0 : LOAD_PAGES);
    return (struct kv_copy){.page = first + (int)((int64_t)i * 7 % n),
                            .n_tokens = c->g.block_size,
                            .host = c->host + (size_t)(at / c->slab_pages) * SLAB +
                                    (size_t)(at % c->slab_pages) * c->g.page_bytes,
                            .seed = (uint64_t)i};
}

static int submit_raw(struct flow *f, int place, int n, struct km_err *err)
{
    const struct cpb *c = f->c;
    void *dst[KV_COPY_MOST];
    const void *src[KV_COPY_MOST];
    size_t size[KV_COPY_MOST], first = 0;
    struct cudaMemcpyAttributes how = {.srcAccessOrder = cudaMemcpySrcAccessOrderAny};
    for (int i = 0; i < n; i++) {
        const struct kv_copy *p = &f->pages[place][i];
        dst[i] = c->raw + (size_t)(p->page - (c->g.n_pages - LOAD_PAGES)) * c->g.page_bytes;
        src[i] = c->raw_host + p->seed * c->g.page_bytes; /* the seed is the page's number */
        size[i] = c->g.page_bytes;
    }
#if CUDART_VERSION >= 13000
    cudaError_t rc = cudaMemcpyBatchAsync(dst, src, size, (size_t)n, &how, &first, 1, c->raw_stream);
#else
    size_t failed;
    cudaError_t rc = cudaMemcpyBatchAsync(dst, (void **)src, size, (size_t)n, &how, &first, 1, &failed, c->raw_stream);
#endif
    rc = rc ? rc : cudaEventRecord(c->raw_done[place], c->raw_stream);
    return cuda_check(rc, "a batch copy", err);
}

static int flow_submit(struct flow *f, int place, struct km_err *err)
{
    int n = f->left < f->call_pages ? f->left : f->call_pages, all = f->dir == KV_TO_PAGE ? LOAD_PAGES : STORE_PAGES;
    for (int i = 0; i < n; i++)
        f->pages[place][i] = flow_page(f, (f->next + i) % all);
    int64_t t0 = km_now_ns();
    int rc = f->raw ? submit_raw(f, place, n, err)
                    : f->c->backend->copy(f->c->b, f->dir, f->pages[place], n, 0, &f->ticket[place], err);
    f->call_ns += km_now_ns() - t0;
    f->calls++;
    f->next = (f->next + n) % all;
    f->left -= n;
    f->n[place] = rc ? 0 : n;
    f->n_open += !rc;
    return rc;
}

static int flow_poll(struct flow *f, int place, struct km_err *err)
{
    int64_t t0 = km_now_ns();
    cudaError_t raw = f->raw ? cudaEventQuery(f->c->raw_done[place]) : cudaSuccess;
    int rc = !f->raw                    ? f->c->backend->poll(f->c->b, f->ticket[place])
             : raw == cudaErrorNotReady ? 0
             : raw                      ? KM_EDEVICE
                                        : 1;
    f->poll_ns += km_now_ns() - t0;
    f->polls++;
    if (!rc)
        return 0;
    f->done += rc > 0 ? f->n[place] : 0;
    f->n[place] = 0;
    f->n_open--;
    return rc < 0 ? km_fail(err, rc, "a copy failed") : 0;
}

/* Polls the calls in flight and submits others. */
static int flow_turn(struct flow *f, struct km_err *err)
{
    int rc = 0;
    for (int i = 0; i < CPB_IN_FLIGHT && !rc; i++) {
        if (f->n[i])
            rc = flow_poll(f, i, err);
        if (!rc && !f->n[i] && f->left)
            rc = flow_submit(f, i, err);
    }
    return rc;
}

/* ---- measurement ---- */

enum { REPEATS = 7 };

/* Runs flows to their end REPEATS times and prints their common rate, and the host time of the first one's calls. */
static int measure_flows(struct cpb *c, const char *key, const char *what, const struct flow *kinds, int n_kinds,
                         struct km_err *err)
{
    static struct flow f[2];
    struct figure rate = {0}, ms = {0}, call = {0}, poll = {0};
    char text[160], name[64];
    int rc = 0;
    for (int r = -1; r < REPEATS && !rc; r++) { /* the first run is a warm-up */
        int64_t pages = 0, t0 = km_now_ns();
        for (int i = 0; i < n_kinds; i++)
            f[i] = kinds[i], f[i].c = c, pages += kinds[i].left;
        for (bool open = true; open && !rc;) {
            open = false;
            for (int i = 0; i < n_kinds && !rc; i++) {
                rc = flow_turn(&f[i], err);
                open |= f[i].left || f[i].n_open;
            }
        }
        double ns = (double)(km_now_ns() - t0);
        if (r < 0 || rc)
            continue;
        fig_add(&rate, (double)pages * (double)c->g.page_bytes / ns);
        fig_add(&ms, ns / 1e6);
        fig_add(&call, (double)f[0].call_ns / f[0].calls / 1e3);
        fig_add(&poll, (double)f[0].poll_ns / f[0].polls / 1e3);
    }
    if (rc)
        return rc;
    snprintf(text, sizeof text, "%s, GB/s", what);
    snprintf(name, sizeof name, "%s_gbps", key);
    fig_row(name, text, &rate, 0);
    snprintf(text, sizeof text, "%s, ms", what);
    snprintf(name, sizeof name, "%s_ms", key);
    fig_row(name, text, &ms, 0);
    snprintf(text, sizeof text, "host time of a call of %d pages, us", kinds[0].call_pages);
    snprintf(name, sizeof name, "%s_call_us", key);
    fig_row(name, text, &call, 0);
    snprintf(name, sizeof name, "%s_poll_us", key);
    fig_row(name, "host time of a poll, us", &poll, 0);
    return 0;
}

/* Registers all host memory; prints ms per GiB. */
static int measure_registration(struct cpb *c, struct km_err *err)
{
    struct figure f = {0};
    int rc = 0;
    for (size_t at = 0; at < c->host_bytes && !rc; at += SLAB) {
        int64_t t0 = km_now_ns();
        rc = c->backend->host_register(c->b, c->host + at, SLAB, err);
        fig_add(&f, (double)(km_now_ns() - t0) / 1e6 * ((double)(1 << 30) / (double)SLAB));
    }
    if (!rc)
        fig_row("register_ms_per_gib", "registration of host memory in slabs of 256 MiB, ms per GiB", &f, 0);
    return rc;
}

int cpb_measure(struct cpb *c, struct km_err *err)
{
    static const struct flow raw = {.dir = KV_TO_PAGE, .raw = true, .call_pages = CPB_CALL, .left = LOAD_PAGES},
                             load = {.dir = KV_TO_PAGE, .call_pages = CPB_CALL, .left = LOAD_PAGES},
                             big = {.dir = KV_TO_PAGE, .call_pages = KV_COPY_MOST, .left = LOAD_PAGES},
                             one = {.dir = KV_TO_PAGE, .call_pages = 1, .left = 64},
                             store = {.dir = KV_TO_HOST, .call_pages = CPB_CALL, .left = STORE_PAGES};
    const struct flow both[2] = {load, store};
    int rc = measure_registration(c, err);
    rc = rc ? rc : measure_flows(c, "raw", "raw H2D copy of 1,310 pages in calls of 14", &raw, 1, err);
    rc = rc ? rc : measure_flows(c, "load", "load of 1,310 pages in calls of 14", &load, 1, err);
    rc = rc ? rc : measure_flows(c, "load_256", "load of 1,310 pages in calls of 256", &big, 1, err);
    rc = rc ? rc : measure_flows(c, "load_1", "load of 64 pages in calls of 1", &one, 1, err);
    rc = rc ? rc : measure_flows(c, "store", "store of 640 pages in calls of 14", &store, 1, err);
    return rc ? rc : measure_flows(c, "both", "load of 1,310 pages beside a store of 640", both, 2, err);
}

/* ---- traffic ---- */

static int make_copies(struct cpb *c, int64_t *bytes)
{
    static struct flow f[2];
    int n = c->traffic == CPB_BOTH ? 2 : 1, rc = 0;
    for (int i = 0; i < n; i++)
        f[i] = (struct flow){.c = c,
                             .dir = i || c->traffic == CPB_STORES ? KV_TO_HOST : KV_TO_PAGE,
                             .raw = c->traffic == CPB_RAW_LOADS,
                             .call_pages = CPB_CALL};
    for (bool open = true; open && !rc;) {
        open = false;
        for (int i = 0; i < n && !rc; i++) {
            f[i].left = atomic_load(&c->stop) ? 0 : CPB_CALL * CPB_IN_FLIGHT;
            rc = flow_turn(&f[i], &c->err);
            open |= f[i].left || f[i].n_open;
        }
        usleep(20);
    }
    for (int i = 0; i < n; i++)
        *bytes += f[i].done * (int64_t)c->g.page_bytes;
    return rc;
}

/* Nothing is unregistered meanwhile: that waits until the GPU is idle, and a cache layer does it only at its end. */
static int make_registrations(struct cpb *c, int64_t *bytes)
{
    int rc = 0;
    for (size_t at = 0; at < SPARE && !rc && !atomic_load(&c->stop); at += PIECE) {
        rc = c->backend->host_register(c->b, c->spare + at, PIECE, &c->err);
        *bytes += PIECE;
        usleep(40000); /* a cache layer touches the next memory in this time */
    }
    return rc;
}

static void *traffic_main(void *self)
{
    struct cpb *c = self;
    int64_t t0 = km_now_ns(), bytes = 0;
    if (c->traffic == CPB_REGISTER)
        c->rc = make_registrations(c, &bytes);
    else if (c->traffic != CPB_NONE)
        c->rc = make_copies(c, &bytes);
    c->gbps = (double)bytes / (double)(km_now_ns() - t0);
    return NULL;
}

int cpb_start(struct cpb *c, enum cpb_traffic traffic, struct km_err *err)
{
    c->traffic = traffic;
    c->rc = 0;
    atomic_store(&c->stop, false);
    return pthread_create(&c->thread, NULL, traffic_main, c) ? km_fail(err, KM_ENOMEM, "cannot start a thread") : 0;
}

int cpb_stop(struct cpb *c, double *gbps, struct km_err *err)
{
    atomic_store(&c->stop, true);
    pthread_join(c->thread, NULL);
    *gbps = c->gbps;
    return c->rc ? km_fail(err, c->rc, "%s", c->err.msg) : 0;
}
