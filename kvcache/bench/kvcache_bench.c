/* kvcache_bench measures the cache layer without an engine.
 *
 * Four parts: lookups in indexes of several sizes, checksums of pages, growth of host memory, and stores and loads
 * through the port in the KV shapes of three models. The port's copier stands for a GPU: a thread of its own runs the
 * copies, and the checksum of a page is computed once and then known, as the GPU's checksums cost the host nothing. The
 * copies are either memcpy, which measures the machine's memory, or nothing, which measures the layer alone.
 *
 * GB/s are 10^9 bytes per second. Times of lookups are medians; rates are the best of ROUNDS rounds. */
#include "base/clock.h"
#include "base/mem.h"
#include "base/page_sum.h"
#include "base/sort.h"
#include "kvcache/chunks.h"
#include "kvcache/keys.h"
#include "kvcache/kvcache.h"
#include "kvcache/pool.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { B = 16, CHUNK = 256, N = 4096, N_PAGES = N / B, ROUNDS = 5, RING = 64, LOOKUP = 78 };

static int32_t tokens[LOOKUP * CHUNK], table[N_PAGES];

static const struct model {
    const char *name;
    int layers, heads, dim;
} models[] = {{"qwen3-tiny", 4, 2, 32}, {"qwen3-0.6b", 28, 8, 128}, {"qwen3-8b", 36, 8, 128}};

static struct kv_geom geom_of(const struct model *m)
{
    struct kv_geom g = {.n_layers = m->layers, .n_kv_heads = m->heads, .head_dim = m->dim, .block_size = B,
                        .dtype = KM_BF16, .layout = 1, .n_pages = N_PAGES, .rope_theta = 1e6, .numerics = "bench"};
    g.page_bytes = (size_t)m->layers * 2 * (size_t)m->heads * B * (size_t)m->dim * 2;
    return g;
}

static void check(bool ok, const char *what)
{
    if (ok)
        return;
    fprintf(stderr, "kvcache_bench: %s\n", what);
    exit(1);
}

static void check_rc(int rc, const struct km_err *err)
{
    check(!rc, err->msg);
}

static double median(double *v, int n)
{
    km_sort_doubles(v, (size_t)n);
    return km_percentile(v, n, 0.5);
}

/* ---- the index ---- */

static struct km_digest random_key(uint64_t id)
{
    struct km_digest d;
    for (uint64_t i = 0; i < 4; i++) {
        const uint64_t word = km_random_at(id, i + 1);
        memcpy(d.b + 8 * i, &word, sizeof word);
    }
    return d;
}

/* Median time, in us, of lookups of LOOKUP chunks at random places. cold: other data fills the CPU's caches before. */
static double time_lookups(const struct kvc_chunks *s, bool cold)
{
    enum { TIMES = 301, OTHER = 64 << 20 };
    static char other[OTHER];
    double us[TIMES];
    uint64_t random = 1;
    for (int r = 0; r < TIMES; r++) {
        struct km_digest key[LOOKUP];
        int32_t slot[LOOKUP];
        for (int i = 0; i < LOOKUP; i++)
            key[i] = random_key(km_random_below(&random, (uint32_t)s->n));
        if (cold)
            memset(other, r, sizeof other);
        const int64_t t0 = km_now_ns();
        const int found = kvc_chunks_find_leading(s, key, LOOKUP, slot);
        us[r] = (double)(km_now_ns() - t0) / 1e3;
        check(found == LOOKUP, "a chunk is missing in the index");
    }
    return median(us, TIMES);
}

static void bench_index(void)
{
    printf("Lookup of %d chunks, us (caches warm, and cold):\n", LOOKUP);
    for (int n = 1000; n <= 1000000; n *= 10) {
        struct kvc_chunks s;
        struct km_err err;
        check_rc(kvc_chunks_open(&s, n, KVC_LRU, &err), &err);
        kvc_chunks_grow(&s, n);
        for (int i = 0; i < n; i++) {
            const struct km_digest key = random_key((uint64_t)i);
            kvc_chunks_publish(&s, kvc_chunks_insert(&s, &key, i));
        }
        const double warm = time_lookups(&s, false);
        printf("  among %7d: %6.2f %6.2f\n", n, warm, time_lookups(&s, true));
        kvc_chunks_close(&s);
    }
}

static void bench_keys(void)
{
    struct kvc_geometry g;
    struct kvc_keys k;
    struct km_err err;
    double us[ROUNDS];
    const struct kv_geom pool = geom_of(&models[2]);
    check_rc(kvc_geometry_init(&g, &pool, CHUNK, true, &err), &err);
    check_rc(kvc_keys_open(&k, &g, &err), &err);
    for (int r = 0; r < ROUNDS; r++) {
        const int64_t t0 = km_now_ns();
        struct km_digest d = kvc_keys_root(&k, NULL);
        for (int i = 0; i < LOOKUP; i++)
            d = kvc_keys_next(&k, &d, tokens + i * CHUNK, CHUNK);
        us[r] = (double)(km_now_ns() - t0) / 1e3;
    }
    printf("Keys of %d chunks of %d tokens: %.1f us\n", LOOKUP, CHUNK, median(us, ROUNDS));
    kvc_keys_close(&k);
}

/* ---- checksums and host memory ---- */

static void bench_sums(void)
{
    const struct kv_geom g = geom_of(&models[2]);
    const size_t words = g.page_bytes / 8;
    enum { PAGES = 64 };
    uint64_t *page = km_malloc(PAGES * g.page_bytes), random = 1;
    double best = 0;
    check(page, "out of memory");
    for (size_t i = 0; i < PAGES * words; i++)
        page[i] = km_random_next(&random);
    for (int r = 0; r < ROUNDS; r++) {
        const int64_t t0 = km_now_ns();
        for (size_t i = 0; i < PAGES; i++)
            random ^= km_page_sum(page + i * words, words, (uint32_t)g.head_dim / 4, B, B, i);
        const double rate = PAGES * (double)g.page_bytes / (double)(km_now_ns() - t0);
        best = rate > best ? rate : best;
    }
    printf("Checksums of pages of %s on one core: %.1f GB/s (%016llx)\n", models[2].name, best,
           (unsigned long long)random);
    km_free(page);
}

static void bench_growth(void)
{
    const struct kv_geom pool = geom_of(&models[2]);
    const struct kv_copier copier = {.payload = true};
    struct kvc_geometry g;
    struct kvc_pool *p;
    struct km_err err;
    check_rc(kvc_geometry_init(&g, &pool, CHUNK, true, &err), &err);
    printf("Growth of host memory, without a device:\n");
    for (int r = 0; r < 2; r++) { /* a virtual machine may get the memory from its host the first time */
        check_rc(kvc_pool_open(&p, &g, (int64_t)2 << 30, "", KVC_SLAB, &err), &err);
        kvc_pool_attach(p, &copier);
        check_rc(kvc_pool_wait(p, &err), &err);
        printf("  2 GiB: %.2f GiB/s\n", (double)kvc_pool_bytes(p) / (1 << 30) / ((double)kvc_pool_grow_ns(p) / 1e9));
        kvc_pool_detach(p, &copier);
        kvc_pool_close(p);
    }
}

/* ---- the port ---- */

/* A page's checksum under one seed, once it is known. Page i always holds the KV of block i. */
struct known {
    uint64_t seed, sum;
    bool valid;
};

/* One call of the copier. */
struct job {
    enum kv_dir dir;
    struct kv_copy *c; /* [n] */
    int n;
};

/* A thread that runs jobs in order. Ticket t is job t - 1. */
struct dma {
    struct kv_geom geom;
    char *pages;        /* [N_PAGES][page_bytes], the KV pool */
    struct known known[N_PAGES];
    bool moves;         /* copies move bytes */
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t more;
    struct job job[RING];
    uint64_t submitted;
    atomic_ulong done;
    bool stop;
};

static void run_job(struct dma *d, const struct job *j)
{
    for (int i = 0; i < j->n; i++) {
        struct kv_copy *c = &j->c[i];
        struct known *known = &d->known[c->page];
        char *page = d->pages + (size_t)c->page * d->geom.page_bytes;
        if (d->moves)
            memcpy(j->dir == KV_TO_HOST ? c->host : page, j->dir == KV_TO_HOST ? page : c->host, d->geom.page_bytes);
        if (!known->valid || known->seed != c->seed)
            *known = (struct known){c->seed,
                                    km_page_sum((const uint64_t *)page, d->geom.page_bytes / 8,
                                                (uint32_t)d->geom.head_dim / 4, B, (uint32_t)c->n_tokens, c->seed),
                                    true};
        c->sum = known->sum;
    }
}

static void *dma_main(void *self)
{
    struct dma *d = self;
    pthread_mutex_lock(&d->lock);
    for (;;) {
        const uint64_t next = atomic_load(&d->done);
        while (next == d->submitted && !d->stop)
            pthread_cond_wait(&d->more, &d->lock);
        if (next == d->submitted)
            break;
        struct job j = d->job[next % RING];
        pthread_mutex_unlock(&d->lock);
        run_job(d, &j);
        atomic_store(&d->done, next + 1);
        pthread_mutex_lock(&d->lock);
    }
    pthread_mutex_unlock(&d->lock);
    return NULL;
}

static int dma_copy(void *self, enum kv_dir dir, struct kv_copy *c, int n, uint64_t after, uint64_t *ticket,
                    struct km_err *err)
{
    struct dma *d = self;
    int rc = 0;
    (void)after;
    pthread_mutex_lock(&d->lock);
    if (d->submitted - atomic_load(&d->done) == RING)
        rc = km_fail(err, KM_ELIMIT, "%d copies are in flight", RING);
    else {
        d->job[d->submitted % RING] = (struct job){dir, c, n};
        *ticket = ++d->submitted;
        pthread_cond_signal(&d->more);
    }
    pthread_mutex_unlock(&d->lock);
    return rc;
}

static int dma_poll(void *self, uint64_t ticket)
{
    struct dma *d = self;
    return atomic_load(&d->done) >= ticket;
}

static int64_t dma_now(void *self)
{
    (void)self;
    return km_now_ns();
}

static void dma_open(struct dma *d, const struct model *m, bool moves)
{
    memset(d, 0, sizeof *d);
    d->geom = geom_of(m);
    d->moves = moves;
    d->pages = km_malloc(N_PAGES * d->geom.page_bytes);
    check(d->pages, "out of memory for the KV pool");
    memset(d->pages, 3, N_PAGES * d->geom.page_bytes);
    pthread_mutex_init(&d->lock, NULL);
    pthread_cond_init(&d->more, NULL);
    check(!pthread_create(&d->thread, NULL, dma_main, d), "cannot start a thread");
}

static void dma_close(struct dma *d)
{
    pthread_mutex_lock(&d->lock);
    d->stop = true;
    pthread_cond_signal(&d->more);
    pthread_mutex_unlock(&d->lock);
    pthread_join(d->thread, NULL);
    km_free(d->pages);
}

/* What is measured, in ns: the whole operation, and the time of the engine's thread inside the port. */
struct times {
    int64_t store, load, hit, miss, in_store, in_load;
};

static void keep_least(int64_t *v, int64_t ns)
{
    if (!*v || ns < *v)
        *v = ns;
}

/* Polls a ticket until it is finished, as an engine does between its steps. Returns the time inside the port. */
static int64_t finish(const struct kv_port *p, uint64_t ticket, struct kv_result *out)
{
    int64_t inside = 0;
    for (int rc = ticket ? 0 : 1; !rc;) {
        const int64_t t0 = km_now_ns();
        rc = p->poll(p->self, ticket, out);
        inside += km_now_ns() - t0;
        sched_yield();
    }
    return inside;
}

static void one_round(const struct kv_port *p, struct times *t)
{
    struct kv_result res = {0, 0};
    uint64_t ticket = 0;
    int from;
    struct kv_seq *first = p->open(p->self, NULL, tokens, N), *again = p->open(p->self, NULL, tokens, N);
    int64_t t0 = km_now_ns();
    check(p->lookup(first, tokens, N, 0) == 0, "an empty cache has a hit");
    keep_least(&t->miss, km_now_ns() - t0);
    t0 = km_now_ns();
    check(!p->store(first, tokens, N, N, table, 0, &ticket, &from) && ticket, "a store failed");
    int64_t inside = km_now_ns() - t0;
    inside += finish(p, ticket, NULL);
    keep_least(&t->store, km_now_ns() - t0);
    keep_least(&t->in_store, inside);
    t0 = km_now_ns();
    check(p->lookup(again, tokens, N, 0) == N, "a lookup did not find what was stored");
    keep_least(&t->hit, km_now_ns() - t0);
    t0 = km_now_ns();
    check(!p->load(again, 0, N, table, 0, &ticket) && ticket, "a load failed");
    inside = km_now_ns() - t0;
    inside += finish(p, ticket, &res);
    keep_least(&t->load, km_now_ns() - t0);
    keep_least(&t->in_load, inside);
    check(res.good_from == 0 && res.good_to == N, "a load was not complete");
    p->close(first);
    p->close(again);
    check(!p->reset(p->self), "chunks are still in use");
}

static void bench_port(const struct model *m, bool moves)
{
    static struct dma d;
    struct kvc_config c = kvc_defaults();
    struct kv_copier copier = {.self = &d, .copy = dma_copy, .poll = dma_poll, .now = dma_now, .threads = true,
                               .payload = true};
    struct kvc *k;
    struct kv_port p;
    struct km_err err;
    struct times t = {0};
    dma_open(&d, m, moves);
    c.chunk_size = CHUNK;
    c.max_local_cpu = (int64_t)N_PAGES * (int64_t)d.geom.page_bytes + N / CHUNK * 8192;
    check_rc(kvc_open(&k, &c, &err), &err);
    check_rc(kvc_port(k, &p, &err), &err);
    check_rc(p.attach(p.self, &d.geom, &copier, &err), &err);
    check(kvc_settle(k, 60), "host memory does not grow");
    for (int r = 0; r < ROUNDS; r++)
        one_round(&p, &t);
    const double bytes = N_PAGES * (double)d.geom.page_bytes, chunks = N / CHUNK;
    printf("  %-11s %-6s ", m->name, moves ? "memcpy" : "none");
    if (moves)
        printf("%8.2f %8.2f", bytes / (double)t.store, bytes / (double)t.load);
    else
        printf("%8s %8s", "-", "-");
    printf(" %9.2f %9.2f %9.2f %9.2f %9.2f %9.2f\n", (double)t.store / 1e3 / chunks, (double)t.load / 1e3 / chunks,
           (double)t.in_store / 1e3, (double)t.in_load / 1e3, (double)t.hit / 1e3, (double)t.miss / 1e3);
    p.detach(p.self);
    kvc_free(k);
    dma_close(&d);
}

int main(void)
{
    for (int i = 0; i < LOOKUP * CHUNK; i++)
        tokens[i] = i * 31;
    for (int i = 0; i < N_PAGES; i++)
        table[i] = i;
    bench_index();
    bench_keys();
    bench_sums();
    bench_growth();
    printf("The port, %d tokens in chunks of %d, bf16: GB/s; us per chunk; us of the engine's thread; us of a lookup\n"
           "  %-11s %-6s %8s %8s %9s %9s %9s %9s %9s %9s\n",
           N, CHUNK, "shape", "copies", "store", "load", "store", "load", "store", "load", "hit", "miss");
    for (size_t i = 0; i < sizeof models / sizeof *models; i++)
        for (int moves = 0; moves < 2; moves++)
            bench_port(&models[i], moves);
    return 0;
}
