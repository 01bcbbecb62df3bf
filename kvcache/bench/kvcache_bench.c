/* kvcache_bench measures the cache layer without an engine, in the KV shapes of three models.
 *
 * The copier is a memcpy, either in the calling thread (synchronous) or on a thread of its own that stands for a DMA
 * engine (asynchronous). The benchmark times stores, loads, checksums, and lookups that hit or miss. Figures are the
 * best of ROUNDS rounds. */
#include "base/clock.h"
#include "base/mem.h"
#include "kvcache/internal.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

enum { B = 16, CHUNK = 256, N = 4096, ROUNDS = 5, RING = 2 * N / CHUNK };

static char *pages; /* [N / B][page_bytes], the KV pool */
static size_t page_bytes;
static int32_t tokens[N], table[N / B];

/* One call of the copier. */
struct job {
    enum kv_dir dir;
    const struct kv_copy *c; /* [n] */
    int n;
};

/* A thread that runs jobs in order. Ticket t is job t - 1. */
struct dma {
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t more;
    struct job job[RING];       /* a ring buffer, longer than the number of jobs that one transfer submits */
    uint64_t submitted;
    atomic_ulong done;
    bool stop;
};

static void run_job(const struct job *j)
{
    for (int i = 0; i < j->n; i++) {
        char *page = pages + (size_t)j->c[i].page * page_bytes, *host = j->c[i].host;
        memcpy(j->dir == KV_TO_HOST ? host : page, j->dir == KV_TO_HOST ? page : host, page_bytes);
    }
}

static void *dma_run(void *self)
{
    struct dma *d = self;
    pthread_mutex_lock(&d->lock);
    for (;;) {
        uint64_t next = atomic_load(&d->done);
        while (next == d->submitted && !d->stop)
            pthread_cond_wait(&d->more, &d->lock);
        if (next == d->submitted)
            break;
        struct job j = d->job[next % RING];
        pthread_mutex_unlock(&d->lock);
        run_job(&j);
        atomic_store(&d->done, next + 1);
        pthread_mutex_lock(&d->lock);
    }
    pthread_mutex_unlock(&d->lock);
    return NULL;
}

static int copy(void *self, enum kv_dir dir, const struct kv_copy *c, int n, uint64_t *ticket, struct km_err *err)
{
    struct dma *d = self;
    struct job j = {dir, c, n};
    (void)err;
    *ticket = 0;
    if (!d) {
        run_job(&j);
        return 0;
    }
    pthread_mutex_lock(&d->lock);
    d->job[d->submitted % RING] = j;
    *ticket = ++d->submitted;
    pthread_cond_signal(&d->more);
    pthread_mutex_unlock(&d->lock);
    return 0;
}

static int poll(void *self, uint64_t ticket)
{
    struct dma *d = self;
    return !d || atomic_load(&d->done) >= ticket;
}

static void *host_alloc(void *self, size_t size)
{
    (void)self;
    char *p = km_malloc(size);
    if (p)
        memset(p, 1, size); /* fault the pages in now, so that copies do not */
    return p;
}

static void host_free(void *self, void *p, size_t size)
{
    (void)self;
    (void)size;
    km_free(p);
}

/* Sets *v to the time since t0 in ns, if *v is larger or 0 (no time yet). */
static void keep_best(int64_t *v, int64_t t0)
{
    int64_t t = km_now_ns() - t0;
    if (!*v || t < *v)
        *v = t;
}

/* A cache that holds N tokens, attached to the pool. NULL with a message after a failure. d NULL: synchronous
 * copies. */
static struct kvc *open_cache(const struct kv_geom *g, struct dma *d, struct kv_port *port)
{
    struct kvc_config c = kvc_defaults();
    struct kv_copier copier = {.self = d, .copy = copy, .poll = poll, .host_alloc = host_alloc, .host_free = host_free};
    struct kvc *k = NULL;
    struct km_err err;
    c.chunk_size = CHUNK;
    c.max_local_cpu = (int64_t)(N / B) * (int64_t)g->page_bytes;
    int rc = kvc_open(&k, &c, &err);
    if (!rc) {
        kvc_port(k, port);
        rc = port->attach(k, g, &copier, &err);
    }
    if (rc) {
        kvc_free(k);
        fprintf(stderr, "kvcache_bench: %s\n", err.msg);
        return NULL;
    }
    return k;
}

static int bench_synchronous(const char *name, const struct kv_geom *g, bool skip_checksums)
{
    struct kv_port p;
    struct kvc *k = open_cache(g, NULL, &p);
    if (!k)
        return 1;
    k->skip_checksums = skip_checksums;
    int64_t store = 0, load = 0, hit = 0, miss = 0, empty = 0, checksum = 0;
    uint64_t t;
    int good = 0, bad = 0;
    for (int r = 0; r < ROUNDS; r++) {
        struct kv_seq *first = p.open(k, NULL), *again = p.open(k, NULL), *other = p.open(k, "x");
        int64_t t0 = km_now_ns();
        p.lookup(other, tokens, N);
        keep_best(&empty, t0);
        t0 = km_now_ns();
        p.store(first, tokens, N, N, table, &t);
        keep_best(&store, t0);
        t0 = km_now_ns();
        bad += p.lookup(again, tokens, N) != N;
        keep_best(&hit, t0);
        t0 = km_now_ns();
        p.lookup(other, tokens, N);
        keep_best(&miss, t0);
        if (!r)
            checksum = kvc_checksum_ns(k);
        t0 = km_now_ns();
        bad += p.load(again, 0, N, table, &t, &good) || good != N;
        keep_best(&load, t0);
        p.close(first);
        p.close(again);
        p.close(other);
        bad += p.reset(k) != 0;
    }
    double bytes = (double)(N / B) * (double)g->page_bytes;
    printf("%-11s %9s %8.2f %8.2f %10.2f %10lld %10lld %9.1f\n", name, skip_checksums ? "without" : "with",
           bytes / (double)store, bytes / (double)load, (double)hit / N, (long long)miss, (long long)empty,
           checksum ? bytes / (double)checksum : 0.0);
    kvc_free(k);
    if (bad)
        fprintf(stderr, "kvcache_bench: %d lookups or loads were not complete\n", bad);
    return bad != 0;
}

/* Polls a ticket until it is finished, as an engine does between its steps. Adds the time inside the port to
 * *inside. */
static int finish(const struct kv_port *p, uint64_t t, int64_t *inside)
{
    int good = N, rc = t ? 0 : 1;
    while (!rc) {
        int64_t t0 = km_now_ns();
        rc = p->poll(p->self, t, &good);
        *inside += km_now_ns() - t0;
        sched_yield();
    }
    return rc < 0 || good != N;
}

static int bench_asynchronous(const char *name, const struct kv_geom *g)
{
    struct dma d = {.submitted = 0};
    struct kv_port p;
    struct kvc *k = open_cache(g, &d, &p);
    if (!k)
        return 1;
    pthread_mutex_init(&d.lock, NULL);
    pthread_cond_init(&d.more, NULL);
    if (pthread_create(&d.thread, NULL, dma_run, &d)) {
        kvc_free(k);
        fprintf(stderr, "kvcache_bench: cannot start a thread\n");
        return 1;
    }
    int64_t store = 0, load = 0, in_store = INT64_MAX, in_load = INT64_MAX;
    int good = 0, bad = 0;
    for (int r = 0; r < ROUNDS; r++) {
        struct kv_seq *s = p.open(k, NULL);
        uint64_t t;
        int64_t t0 = km_now_ns(), inside;
        p.store(s, tokens, N, N, table, &t);
        inside = km_now_ns() - t0;
        bad += finish(&p, t, &inside);
        keep_best(&store, t0);
        in_store = inside < in_store ? inside : in_store;
        bad += p.lookup(s, tokens, N) != N;
        t0 = km_now_ns();
        p.load(s, 0, N, table, &t, &good);
        inside = km_now_ns() - t0;
        bad += finish(&p, t, &inside);
        keep_best(&load, t0);
        in_load = inside < in_load ? inside : in_load;
        p.close(s);
        bad += p.reset(k) != 0;
    }
    double bytes = (double)(N / B) * (double)g->page_bytes;
    printf("%-11s %9s %8.2f %8.2f   time of the engine's thread: store %.3f of %.1f ms, load %.3f of %.1f ms\n", name,
           "async", bytes / (double)store, bytes / (double)load, (double)in_store / 1e6, (double)store / 1e6,
           (double)in_load / 1e6, (double)load / 1e6);
    kvc_free(k);
    pthread_mutex_lock(&d.lock);
    d.stop = true;
    pthread_cond_signal(&d.more);
    pthread_mutex_unlock(&d.lock);
    pthread_join(d.thread, NULL);
    if (bad)
        fprintf(stderr, "kvcache_bench: %d transfers were not complete\n", bad);
    return bad != 0;
}

int main(void)
{
    static const struct {
        const char *name;
        int layers, heads, dim;
    } m[] = {{"qwen3-tiny", 4, 2, 32}, {"qwen3-0.6b", 28, 8, 128}, {"qwen3-8b", 36, 8, 128}};
    for (int i = 0; i < N; i++)
        tokens[i] = i * 31;
    for (int i = 0; i < N / B; i++)
        table[i] = i;
    printf("%d tokens, chunks of %d, bf16. Store, load and checksum in GB/s; a lookup that hits in ns per token;\n"
           "a lookup that misses in ns, in a full and in an empty cache. With and without checksums, copies are "
           "synchronous.\n"
           "%-11s %9s %8s %8s %10s %10s %10s %9s\n",
           N, CHUNK, "shape", "checksums", "store", "load", "hit", "miss", "empty", "checksum");
    int rc = 0;
    for (int i = 0; i < 3; i++) {
        struct kv_geom g = {.n_layers = m[i].layers,
                            .n_kv_heads = m[i].heads,
                            .head_dim = m[i].dim,
                            .block_size = B,
                            .dtype = KM_BF16,
                            .layout = 1,
                            .n_pages = N / B,
                            .rope_theta = 1e6};
        page_bytes = g.page_bytes = (size_t)g.n_layers * 2 * (size_t)g.n_kv_heads * B * (size_t)g.head_dim * 2;
        pages = km_calloc(N / B, page_bytes);
        if (!pages) {
            fprintf(stderr, "kvcache_bench: out of memory for %zu bytes\n", (size_t)(N / B) * page_bytes);
            return 1;
        }
        memset(pages, 3, (size_t)(N / B) * page_bytes);
        rc |= bench_synchronous(m[i].name, &g, false);
        rc |= bench_synchronous(m[i].name, &g, true);
        rc |= bench_asynchronous(m[i].name, &g);
        km_free(pages);
    }
    return rc;
}
