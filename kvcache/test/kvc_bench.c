/* What the cache layer costs by itself: hashing, storing, loading, missing; KV shapes of real models, a memcpy
 * for a copier. Figures are the best of several rounds. */
#include "base/clock.h"
#include "base/mem.h"
#include "kvcache/internal.h"

#include <stdio.h>
#include <string.h>

enum { B = 16, CHUNK = 256, N = 4096, ROUNDS = 5 };

static char *pages; /* [N / B][page_bytes] */
static size_t page_bytes;

static int copy(void *self, enum kv_dir dir, const struct kv_copy *c, int n, uint64_t *ticket, struct km_err *err)
{
    (void)self;
    (void)err;
    for (int i = 0; i < n; i++) {
        char *page = pages + (size_t)c[i].page * page_bytes;
        memcpy(dir == KV_TO_HOST ? c[i].host : page, dir == KV_TO_HOST ? page : c[i].host, page_bytes);
    }
    *ticket = 0;
    return 0;
}

static int poll(void *self, uint64_t ticket)
{
    (void)self;
    return ticket ? KM_EINVAL : 1;
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
        return fprintf(stderr, "kvc_bench: %s\n", err.msg), 1;
    kvc_port(k, &p);
    if (p.attach(k, g, &copier, &err)) {
        kvc_free(k);
        return fprintf(stderr, "kvc_bench: %s\n", err.msg), 1;
    }
    k->unchecked = unchecked;
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
        fprintf(stderr, "kvc_bench: %d loads were not complete\n", bad);
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
            return fprintf(stderr, "kvc_bench: out of memory\n"), 1;
        memset(pages, 3, (size_t)(N / B) * page_bytes);
        for (int without = 0; without < 2; without++)
            rc |= bench(m[i].name, &g, tok, table, without);
        km_free(pages);
    }
    return rc;
}
