/* What the cache layer costs by itself: hashing, storing, loading, missing; KV shapes of real models, a memcpy for
 * a copier, in place or on a thread of its own as a DMA engine would. Figures are the best of several rounds. */
#include "base/clock.h"
#include "base/mem.h"
#include "kvcache/internal.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

enum { B = 16, CHUNK = 256, N = 4096, ROUNDS = 5 };

static char *pages; /* [N / B][page_bytes] */
static size_t page_bytes;

struct job {
    enum kv_dir dir;
    const struct kv_copy *c; /* [n] */
    int n;
};

/* Copies in order on a thread; ticket t is job t - 1. */
struct dma {
    pthread_t thread;
    pthread_mutex_t mu;
    pthread_cond_t more;
    struct job job[2 * N / CHUNK]; /* a ring: more than one move can send */
    uint64_t put;
    atomic_ulong done;
    bool stop;
};

static void move(const struct job *j)
{
    for (int i = 0; i < j->n; i++) {
        char *page = pages + (size_t)j->c[i].page * page_bytes, *host = j->c[i].host;
        memcpy(j->dir == KV_TO_HOST ? host : page, j->dir == KV_TO_HOST ? page : host, page_bytes);
    }
}

static void *dma_run(void *self)
{
    struct dma *d = self;
    pthread_mutex_lock(&d->mu);
    for (;;) {
        uint64_t next = atomic_load(&d->done);
        while (next == d->put && !d->stop)
            pthread_cond_wait(&d->more, &d->mu);
        if (next == d->put)
            break;
        struct job j = d->job[next % (2 * N / CHUNK)];
        pthread_mutex_unlock(&d->mu);
        move(&j);
        atomic_store(&d->done, next + 1);
        pthread_mutex_lock(&d->mu);
    }
    pthread_mutex_unlock(&d->mu);
    return NULL;
}

static int copy(void *self, enum kv_dir dir, const struct kv_copy *c, int n, uint64_t *ticket, struct km_err *err)
{
    struct dma *d = self;
    struct job j = {dir, c, n};
    (void)err;
    *ticket = 0;
    if (!d) {
        move(&j);
        return 0;
    }
    pthread_mutex_lock(&d->mu);
    d->job[d->put % (2 * N / CHUNK)] = j;
    *ticket = ++d->put;
    pthread_cond_signal(&d->more);
    pthread_mutex_unlock(&d->mu);
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
        memset(p, 1, size); /* page faults are start-up, not copying */
    return p;
}

static void host_free(void *self, void *p, size_t size)
{
    (void)self;
    (void)size;
    km_free(p);
}

static void best(int64_t *v, int64_t t0)
{
    int64_t t = km_now_ns() - t0;
    if (!*v || t < *v)
        *v = t;
}

static int bench(const char *name, const struct kv_geom *g, int32_t *tok, const int32_t *table, bool unchecked)
{
    struct kvc_config c = kvc_defaults();
    struct kv_copier copier = {.copy = copy, .poll = poll, .host_alloc = host_alloc, .host_free = host_free};
    struct kvc *k;
    struct kv_port p;
    struct km_err err;
    c.max_local_cpu = (int64_t)(N / B) * (int64_t)g->page_bytes;
    if (kvc_open(&k, &c, &err))
        return fprintf(stderr, "kvcache_bench: %s\n", err.msg), 1;
    kvc_port(k, &p);
    if (p.attach(k, g, &copier, &err)) {
        kvc_free(k);
        return fprintf(stderr, "kvcache_bench: %s\n", err.msg), 1;
    }
    k->skip_checksums = unchecked;
    int64_t store = 0, load = 0, hash = 0, miss = 0, empty = 0, sum0 = 0;
    uint64_t t;
    int good = 0, bad = 0;
    for (int r = 0; r < ROUNDS; r++) {
        struct kv_seq *s = p.open(k, NULL), *other = p.open(k, "x"), *third = p.open(k, NULL);
        int64_t t0 = km_now_ns();
        p.lookup(other, tok, N);
        best(&empty, t0);
        t0 = km_now_ns();
        p.store(s, tok, N, N, table, &t);
        best(&store, t0);
        t0 = km_now_ns();
        bad += p.lookup(third, tok, N) != N;
        best(&hash, t0);
        t0 = km_now_ns();
        p.lookup(other, tok, N);
        best(&miss, t0);
        if (!r)
            sum0 = kvc_checksum_ns(k);
        t0 = km_now_ns();
        bad += p.load(third, 0, N, table, &t, &good) || good != N;
        best(&load, t0);
        p.close(s);
        p.close(other);
        p.close(third);
        bad += p.reset(k) != 0;
    }
    double bytes = (double)c.max_local_cpu;
    printf("%-11s %9s %8.2f %8.2f %10.2f %10lld %10lld %9.1f\n", name, unchecked ? "without" : "with",
           bytes / (double)store, bytes / (double)load, (double)hash / N, (long long)miss, (long long)empty,
           sum0 ? bytes / (double)sum0 : 0.0);
    kvc_free(k);
    if (bad)
        fprintf(stderr, "kvcache_bench: %d loads were not complete\n", bad);
    return bad != 0;
}

/* Waits for a ticket as an engine does, between other work; the time inside the port goes to *inside. */
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

static int bench_late(const char *name, const struct kv_geom *g, int32_t *tok, const int32_t *table)
{
    struct dma d = {.put = 0};
    struct kvc_config c = kvc_defaults();
    struct kv_copier copier = {.self = &d, .copy = copy, .poll = poll, .host_alloc = host_alloc, .host_free = host_free};
    struct kvc *k;
    struct kv_port p;
    struct km_err err;
    c.max_local_cpu = (int64_t)(N / B) * (int64_t)g->page_bytes;
    if (kvc_open(&k, &c, &err))
        return fprintf(stderr, "kvcache_bench: %s\n", err.msg), 1;
    kvc_port(k, &p);
    if (p.attach(k, g, &copier, &err)) {
        kvc_free(k);
        return fprintf(stderr, "kvcache_bench: %s\n", err.msg), 1;
    }
    pthread_mutex_init(&d.mu, NULL);
    pthread_cond_init(&d.more, NULL);
    if (pthread_create(&d.thread, NULL, dma_run, &d)) {
        kvc_free(k);
        return fprintf(stderr, "kvcache_bench: no thread\n"), 1;
    }
    int64_t store = 0, load = 0, in_store = INT64_MAX, in_load = INT64_MAX;
    int good = 0, bad = 0;
    for (int r = 0; r < ROUNDS; r++) {
        struct kv_seq *s = p.open(k, NULL);
        uint64_t t;
        int64_t t0 = km_now_ns(), inside;
        p.store(s, tok, N, N, table, &t);
        inside = km_now_ns() - t0;
        bad += finish(&p, t, &inside);
        best(&store, t0);
        in_store = inside < in_store ? inside : in_store;
        bad += p.lookup(s, tok, N) != N;
        t0 = km_now_ns();
        p.load(s, 0, N, table, &t, &good);
        inside = km_now_ns() - t0;
        bad += finish(&p, t, &inside);
        best(&load, t0);
        in_load = inside < in_load ? inside : in_load;
        p.close(s);
        bad += p.reset(k) != 0;
    }
    double bytes = (double)c.max_local_cpu;
    printf("%-11s %9s %8.2f %8.2f   the engine's thread was held %.3f of %.1f ms, %.3f of %.1f ms\n", name, "late",
           bytes / (double)store, bytes / (double)load, (double)in_store / 1e6, (double)store / 1e6,
           (double)in_load / 1e6, (double)load / 1e6);
    kvc_free(k);
    pthread_mutex_lock(&d.mu);
    d.stop = true;
    pthread_cond_signal(&d.more);
    pthread_mutex_unlock(&d.mu);
    pthread_join(d.thread, NULL);
    if (bad)
        fprintf(stderr, "kvcache_bench: %d moves were not complete\n", bad);
    return bad != 0;
}

int main(void)
{
    static const struct {
        const char *name;
        int layers, heads, dim;
    } m[] = {{"qwen3-tiny", 4, 2, 32}, {"qwen3-0.6b", 28, 8, 128}, {"qwen3-8b", 36, 8, 128}};
    static int32_t tok[N], table[N / B];
    for (int i = 0; i < N; i++)
        tok[i] = i * 31;
    for (int i = 0; i < N / B; i++)
        table[i] = i;
    printf("%d tokens, chunks of %d, bf16; GB/s of store, load and checksum; ns a token of a hit's lookup; ns of a "
           "miss,\nand of one in an empty cache\n%-11s %9s %8s %8s %10s %10s %10s %9s\n",
           N, CHUNK, "shape", "checksum", "store", "load", "lookup", "miss", "empty", "sum");
    int rc = 0;
    for (int i = 0; i < 3; i++) {
        struct kv_geom g = {.n_layers = m[i].layers, .n_kv_heads = m[i].heads, .head_dim = m[i].dim, .block_size = B,
                            .dtype = KM_BF16, .layout = 1, .n_pages = N / B, .rope_theta = 1e6};
        page_bytes = g.page_bytes = (size_t)g.n_layers * 2 * (size_t)g.n_kv_heads * B * (size_t)g.head_dim * 2;
        pages = km_calloc(N / B, page_bytes);
        if (!pages)
            return fprintf(stderr, "kvcache_bench: out of memory\n"), 1;
        memset(pages, 3, (size_t)(N / B) * page_bytes);
        for (int without = 0; without < 2; without++)
            rc |= bench(m[i].name, &g, tok, table, without);
        rc |= bench_late(m[i].name, &g, tok, table);
        km_free(pages);
    }
    return rc;
}
