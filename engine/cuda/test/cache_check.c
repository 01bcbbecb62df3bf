/* Every answer with the cache layer is compared with the answer of an engine without it, and the counters must show
 * that the cache was used.
 *
 * The engine's backend is be_cuda behind a probe, which looks at every copy of the cache layer: the checksum of a
 * stored page must be that of its bytes in host memory, and a loaded page, read back from the pool, must have the bytes
 * of host memory. The probe also knows where stored pages are, so that a check can damage them. */
#include "engine/cuda/test/cache_check.h"

#include "base/clock.h"
#include "base/mem.h"
#include "base/page_sum.h"
#include "engine/cuda/test/judge.h"
#include "engine/planner.h"
#include "kvcache/kvcache.h"

#include <cuda_runtime_api.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- the probe ---- */

enum { PROBED_CALLS = 256, PROBED_PAGES = 4096 }; /* most calls of copy that are in flight; most stored pages */

/* The copies of one engine. All but the atomic members belong to the thread that copies, or to the engine's thread
 * while no copy is in flight. */
static struct {
    struct be *b;
    struct kv_geom g;
    bool verify; /* else only stored pages are recorded */
    char *back;  /* [page_bytes] a loaded page, read back */
    struct {
        uint64_t ticket; /* 0: free */
        enum kv_dir dir;
        struct kv_copy *pages;
        int n;
    } call[PROBED_CALLS];
    void *stored[PROBED_PAGES]; /* host memory of the stored pages, in the order of their copies */
    int n_stored;
    atomic_int good_stores, good_loads, wrong; /* pages */
} probe;

static bool host_sum_is(const struct kv_copy *p)
{
    const struct kv_geom *g = &probe.g;
    return p->sum == km_page_sum(p->host, g->page_bytes / 8, (uint32_t)g->head_dim / 4, (uint32_t)g->block_size,
                                 (uint32_t)p->n_tokens, p->seed);
}

/* True if the bytes of the page in the pool are those in host memory. */
static bool page_is_loaded(const struct kv_copy *p)
{
    struct kv_copy back = {.page = p->page, .n_tokens = p->n_tokens, .host = probe.back, .seed = p->seed};
    uint64_t ticket;
    struct km_err err;
    int rc = be_cuda.copy(probe.b, KV_TO_HOST, &back, 1, 0, &ticket, &err);
    while (!rc)
        rc = be_cuda.poll(probe.b, ticket);
    return rc == 1 && !memcmp(probe.back, p->host, probe.g.page_bytes);
}

static void look_at(enum kv_dir dir, const struct kv_copy *p)
{
    if (dir == KV_TO_HOST && probe.n_stored < PROBED_PAGES)
        probe.stored[probe.n_stored++] = p->host;
    if (!probe.verify)
        return;
    if (!host_sum_is(p) || (dir == KV_TO_PAGE && !page_is_loaded(p)))
        atomic_fetch_add(&probe.wrong, 1);
    else
        atomic_fetch_add(dir == KV_TO_HOST ? &probe.good_stores : &probe.good_loads, 1);
}

static int probed_open(struct be **out, const struct be_opts *o, const struct mdl *m, struct kv_geom *g,
                       struct km_err *err)
{
    int rc = be_cuda.open(out, o, m, g, err);
    if (rc)
        return rc;
    memset(&probe, 0, sizeof probe);
    probe.b = *out;
    probe.g = *g;
    probe.verify = true;
    probe.back = km_malloc(g->page_bytes);
    return probe.back ? 0 : km_fail(err, KM_ENOMEM, "out of memory");
}

static void probed_close(struct be *b)
{
    be_cuda.close(b);
    km_free(probe.back);
    probe.back = NULL;
}

static int probed_copy(struct be *b, enum kv_dir dir, struct kv_copy *c, int n, uint64_t after, uint64_t *ticket,
                       struct km_err *err)
{
    int rc = be_cuda.copy(b, dir, c, n, after, ticket, err), i = 0;
    if (rc)
        return rc;
    while (i < PROBED_CALLS && probe.call[i].ticket)
        i++;
    if (i == PROBED_CALLS)
        jdg_exit_on_error(km_fail(err, KM_ELIMIT, "more than %d calls of copy are in flight", PROBED_CALLS), err);
    probe.call[i].ticket = *ticket, probe.call[i].dir = dir, probe.call[i].pages = c, probe.call[i].n = n;
    return 0;
}

static int probed_poll(struct be *b, uint64_t ticket)
{
    int rc = be_cuda.poll(b, ticket), i = 0;
    if (!rc)
        return 0;
    while (i < PROBED_CALLS && probe.call[i].ticket != ticket)
        i++;
    if (i == PROBED_CALLS) {
        atomic_fetch_add(&probe.wrong, 1); /* the ticket is not open */
        return rc;
    }
    for (int k = 0; rc == 1 && k < probe.call[i].n; k++)
        look_at(probe.call[i].dir, &probe.call[i].pages[k]);
    probe.call[i].ticket = 0;
    return rc;
}

/* ---- an engine with a cache, and one without ---- */

enum { CHUNK = 64, N = 1000, HIT = N / CHUNK * CHUNK, N_OUT = 16 }; /* tokens */

static const struct mdl *model;
static double tolerance;
static int32_t ids[40000]; /* prompts are ranges of these random tokens */

struct bed {
    struct kvc *kvc;
    struct kv_port port;
    struct eng *cached, *plain;
    struct kv_port_stats seen; /* as of the last call of since */
    double largest;            /* difference of two log-probabilities */
    int n_asked, n_same;       /* answers compared, and those that are the same */
};

static struct eng_opts bed_options(int n_blocks)
{
    struct eng_opts o = eng_defaults();
    o.max_num_seqs = 32;
    o.dtype = KM_BF16;
    o.num_blocks = n_blocks;
    o.kv_planner = PLN_LOAD;
    return o;
}

/* n_chunks: size of host memory. */
static void bed_open(struct bed *d, const struct eng_opts *o, int chunk, int n_chunks)
{
    static struct backend probed; /* the engine keeps a pointer to it */
    const struct mdl_config *c = mdl_config(model);
    struct kvc_config k = kvc_defaults();
    struct km_err err;
    *d = (struct bed){0};
    k.chunk_size = chunk;
    k.max_local_cpu = (int64_t)n_chunks * ((int64_t)chunk * c->n_layers * 2 * c->n_kv_heads * c->head_dim * 2 + 8192);
    probed = be_cuda;
    probed.open = probed_open, probed.close = probed_close, probed.copy = probed_copy, probed.poll = probed_poll;
    jdg_exit_on_error(kvc_open(&d->kvc, &k, &err), &err);
    jdg_exit_on_error(kvc_port(d->kvc, &d->port, &err), &err);
    jdg_exit_on_error(eng_open(&d->cached, o, model, &probed, &d->port, &err), &err);
    jdg_exit_on_error(eng_open(&d->plain, o, model, &be_cuda, NULL, &err), &err);
    kvc_settle(d->kvc, 30);
}

/* The counters since the last call. */
static struct kv_port_stats since(struct bed *d)
{
    struct eng_stats st;
    eng_stats(d->cached, &st);
    struct kv_port_stats now = st.kv, diff = now;
    diff.lookups -= d->seen.lookups, diff.hit_tokens -= d->seen.hit_tokens;
    diff.loaded_tokens -= d->seen.loaded_tokens, diff.stored_tokens -= d->seen.stored_tokens;
    diff.failed_loads -= d->seen.failed_loads, diff.corrupt_chunks -= d->seen.corrupt_chunks;
    diff.evicted_chunks -= d->seen.evicted_chunks, diff.load_ns -= d->seen.load_ns;
    d->seen = now;
    return diff;
}

/* Drops the cached pages of the pool, so that the next request needs the cache layer. */
static void forget_pool(struct eng *e)
{
    struct km_err err;
    int rc;
    while ((rc = eng_reset_cache(e, false, &err)) == 1) {
        struct eng_events v;
        jdg_exit_on_error(eng_step(e, &v, &err), &err);
    }
    jdg_exit_on_error(rc, &err);
}

/* Checks engine, cache and probe. */
static void check_state(struct bed *d, const char *when)
{
    struct km_err err = {0};
    kvc_settle(d->kvc, 10);
    int rc = eng_check(d->cached, &err);
    rc = rc ? rc : kvc_check(d->kvc, &err);
    jdg_report(
        !rc && !atomic_load(&probe.wrong),
        "%s: the invariants hold (%s); %d stored and %d loaded pages have their bytes and checksums, %d have not", when,
        rc ? err.msg : "none is broken", atomic_load(&probe.good_stores), atomic_load(&probe.good_loads),
        atomic_load(&probe.wrong));
}

static void bed_close(struct bed *d)
{
    eng_close(d->cached);
    eng_close(d->plain);
    kvc_free(d->kvc);
}

/* Compares an answer with that of the engine without a cache. */
static bool judge(struct bed *d, const struct jdg_answer *got, const int32_t *prompt, int n, int n_out)
{
    static struct jdg_answer want;
    int n_equal;
    forget_pool(d->plain);
    want = jdg_ask(d->plain, prompt, n, n_out);
    bool same = want.n == n_out && jdg_same_answer(&want, got, tolerance, &n_equal, &d->largest);
    d->n_asked++;
    d->n_same += same;
    return same;
}

/* Asks the engine with the cache, without what its pool has. */
static bool ask(struct bed *d, const int32_t *prompt, int n, struct jdg_answer *a)
{
    forget_pool(d->cached);
    *a = jdg_ask(d->cached, prompt, n, N_OUT);
    kvc_settle(d->kvc, 10);
    return judge(d, a, prompt, n, N_OUT);
}

/* ---- checks ---- */

static struct jdg_answer answer; /* of the last request; large */

/* Asks the same prompt again. It must hit `hit` tokens, all of which are loaded. */
static void check_hit(struct bed *d, const char *what, const int32_t *prompt, int n, int hit)
{
    since(d);
    bool same = ask(d, prompt, n, &answer);
    struct kv_port_stats s = since(d);
    jdg_report(
        same && s.lookups >= 1 && s.hit_tokens == hit && s.loaded_tokens == hit && answer.n_cached == hit &&
            !answer.n_cached_pool && !s.failed_loads && !s.corrupt_chunks,
        "%s: of %d tokens the cache has %lld and loads %lld, as it should %d; the answer is that without a cache", what,
        n, (long long)s.hit_tokens, (long long)s.loaded_tokens, hit);
}

static void check_hits(struct bed *d)
{
    static int32_t other[N];
    since(d);
    bool same = ask(d, ids, N, &answer);
    struct kv_port_stats s = since(d);
    jdg_report(same && !answer.n_cached && s.lookups >= 1 && !s.hit_tokens && s.stored_tokens == HIT,
               "cold cache: of %d tokens the cache has %lld and stores %lld; the answer is that without a cache", N,
               (long long)s.hit_tokens, (long long)s.stored_tokens);
    check_hit(d, "warm cache", ids, N, HIT);
    memcpy(other, ids, sizeof other);
    for (int i = 500; i < N; i++)
        other[i] = ids[N + i];
    check_hit(d, "partial hit", other, N, 500 / CHUNK * CHUNK);
    check_hit(d, "short prompt", ids, CHUNK + 1, CHUNK);
    check_hit(d, "prompt of less than a chunk", ids, CHUNK - 1, 0);
    check_hit(d, "warm cache again", other, N, HIT);
    check_state(d, "hits");
}

/* Flips one bit of a stored page. The load must find it, and the engine must compute what is missing. */
static void check_damage(struct bed *d)
{
    probe.n_stored = 0;
    ask(d, ids + 5000, N, &answer);
    since(d);
    char *page = probe.n_stored > 25 ? probe.stored[25] : NULL;
    if (page)
        page[probe.g.page_bytes / 3] ^= 0x10;
    bool same = ask(d, ids + 5000, N, &answer);
    struct kv_port_stats s = since(d);
    jdg_report(
        page && same && s.hit_tokens == HIT && s.corrupt_chunks == 1 && s.failed_loads == 1 && s.loaded_tokens < HIT &&
            s.loaded_tokens >= HIT / 2 - CHUNK,
        "a flipped bit in a stored page: %lld chunk is found damaged, %lld tokens are loaded; the answer is that "
        "without a cache",
        (long long)s.corrupt_chunks, (long long)s.loaded_tokens);
    check_hit(d, "after the damage, when the chunk was stored again", ids + 5000, N, HIT);
    check_state(d, "damage");
}

/* Cancels a request in each of its first steps, while its load may be in flight. */
static void check_cancel(struct bed *d)
{
    struct eng_events v;
    struct km_err err;
    int n_loading = 0;
    for (int steps = 0; steps < 6; steps++) {
        struct eng_stats st;
        forget_pool(d->cached);
        uint64_t id = jdg_submit(d->cached, ids, N, N_OUT, &answer);
        for (int i = 0; i < steps; i++) {
            jdg_exit_on_error(eng_step(d->cached, &v, &err), &err);
            jdg_collect(&v);
        }
        eng_stats(d->cached, &st);
        n_loading += st.loading > 0;
        eng_cancel(d->cached, id, ENG_ABORT);
        while (!eng_idle(d->cached))
            jdg_exit_on_error(eng_step(d->cached, &v, &err), &err);
    }
    jdg_report(n_loading > 0, "cancelled requests: %d of 6 were loading", n_loading);
    check_hit(d, "after cancelled requests", ids, N, HIT);
    check_state(d, "cancelled requests");
}

/* The estimates of the planner vary, so only the answers and the hits are certain. */
static void check_planner(void)
{
    struct bed d;
    struct eng_opts o = bed_options(509);
    o.kv_planner = PLN_AUTO;
    bed_open(&d, &o, CHUNK, 100);
    for (int i = 0; i < 4; i++)
        ask(&d, ids, 6000, &answer);
    struct kv_port_stats s = since(&d);
    jdg_report(d.n_same == 4 && s.hit_tokens == 3 * (5999 / CHUNK * CHUNK) && !s.corrupt_chunks,
               "planner auto: %d of 4 answers are those without a cache; %lld tokens hit, %lld loaded", d.n_same,
               (long long)s.hit_tokens, (long long)s.loaded_tokens);
    check_state(&d, "planner auto");
    bed_close(&d);
}

/* More prompts than host memory holds, twice. */
static void check_eviction(void)
{
    enum { PROMPTS = 6, LEN = 500 };
    struct bed d;
    struct eng_opts o = bed_options(509);
    bed_open(&d, &o, CHUNK, 20);
    for (int i = 0; i < 2 * PROMPTS; i++)
        ask(&d, ids + 700 * (i % PROMPTS), LEN, &answer);
    since(&d);
    ask(&d, ids + 700 * (PROMPTS - 1), LEN, &answer); /* the last one is still there */
    struct kv_port_stats s = since(&d);
    jdg_report(d.n_same == d.n_asked && d.seen.evicted_chunks > 0 && s.hit_tokens > 0,
               "small host memory: %lld chunks were evicted; %d of %d answers are those without a cache",
               (long long)d.seen.evicted_chunks, d.n_same, d.n_asked);
    check_state(&d, "eviction");
    bed_close(&d);
}

/* More requests than the pool holds, without its prefix cache: preempted requests need the cache layer. */
static void check_preemption(void)
{
    enum { REQUESTS = 12, OUT = 48 };
    static struct jdg_answer got[REQUESTS];
    struct bed d;
    struct eng_opts o = bed_options(150);
    struct eng_events v;
    struct km_err err;
    int n_preempted = 0;
    o.prefix_caching = false;
    o.max_model_len = 1200;
    bed_open(&d, &o, CHUNK, 100);
    for (int i = 0; i < REQUESTS; i++)
        jdg_submit(d.cached, ids + 300 * i, 170 + 5 * i, OUT, &got[i]);
    while (!eng_idle(d.cached)) {
        jdg_exit_on_error(eng_step(d.cached, &v, &err), &err);
        jdg_exit_on_error(eng_check(d.cached, &err), &err);
        jdg_collect(&v);
    }
    for (int i = 0; i < REQUESTS; i++) {
        n_preempted += got[i].n_preempted > 0;
        judge(&d, &got[i], ids + 300 * i, 170 + 5 * i, OUT);
    }
    struct kv_port_stats s = since(&d);
    jdg_report(d.n_same == REQUESTS && n_preempted && s.hit_tokens > 0 && s.loaded_tokens > 0,
               "preemption: %d of %d requests were preempted, %lld tokens hit; %d answers are those of each request "
               "alone without a cache",
               n_preempted, REQUESTS, (long long)s.hit_tokens, d.n_same);
    check_state(&d, "preemption");
    bed_close(&d);
}

/* ---- the rate of a big load ---- */

/* Nanoseconds of batch copies of n pages from pinned to device memory, in calls of at most 14 pages. */
static int64_t raw_copy_ns(char *device, char *host, size_t n_pages)
{
    enum { CALL = 14 };
    struct cudaMemcpyAttributes how = {.srcAccessOrder = cudaMemcpySrcAccessOrderAny};
    size_t page = probe.g.page_bytes, first = 0, size[CALL];
    void *dst[CALL], *src[CALL];
    cudaStream_t s;
    cudaError_t rc = cudaStreamCreateWithFlags(&s, cudaStreamNonBlocking);
    int64_t t0 = km_now_ns();
    for (size_t at = 0, n; at < n_pages && rc == cudaSuccess; at += n) {
        n = n_pages - at < CALL ? n_pages - at : CALL;
        for (size_t i = 0; i < n; i++)
            dst[i] = device + (at + i) * page, src[i] = host + (at + i) * page, size[i] = page;
#if CUDART_VERSION >= 13000
        rc = cudaMemcpyBatchAsync(dst, (const void *const *)src, size, n, &how, &first, 1, s);
#else
        size_t failed;
        rc = cudaMemcpyBatchAsync(dst, src, size, n, &how, &first, 1, &failed, s);
#endif
    }
    rc = rc == cudaSuccess ? cudaStreamSynchronize(s) : rc;
    int64_t ns = km_now_ns() - t0;
    cudaStreamDestroy(s);
    if (rc != cudaSuccess)
        jdg_report(false, "a batch copy failed: %s", cudaGetErrorString(rc));
    return ns;
}

/* Loads a prompt of up to 20,000 tokens, and copies as many pages in batches. Small models are not measured: their
 * loads take less time than the steps around them. */
static void check_rate(void)
{
    enum { TRIES = 3, CHUNK_BIG = 256 };
    int len = mdl_config(model)->max_pos - 16 < 20000 ? mdl_config(model)->max_pos - 16 : 20000;
    int n_hit = len / CHUNK_BIG * CHUNK_BIG;
    struct bed d;
    struct eng_opts o = bed_options(len / 16 + 64);
    o.max_num_batched_tokens = 8192;
    bed_open(&d, &o, CHUNK_BIG, len / CHUNK_BIG + 4);
    size_t bytes = (size_t)(n_hit / 16) * probe.g.page_bytes;
    char *device = NULL, *host = NULL;
    if (bytes < (size_t)512 << 20 || cudaMalloc((void **)&device, bytes) != cudaSuccess ||
        cudaMallocHost((void **)&host, bytes) != cudaSuccess) {
        printf("     the load of %.2f GB is not measured\n", (double)bytes / 1e9);
        cudaFree(device);
        bed_close(&d);
        return;
    }
    probe.verify = false;
    jdg_ask(d.cached, ids, len, 1);
    kvc_settle(d.kvc, 30);
    int64_t load = INT64_MAX, raw = INT64_MAX, loaded = 0;
    for (int i = 0; i < TRIES; i++) {
        since(&d);
        forget_pool(d.cached);
        jdg_ask(d.cached, ids, len, 1);
        struct kv_port_stats s = since(&d);
        loaded = s.loaded_tokens;
        load = s.load_ns < load ? s.load_ns : load;
        int64_t ns = raw_copy_ns(device, host, bytes / probe.g.page_bytes);
        raw = ns < raw ? ns : raw;
    }
    jdg_report(loaded == n_hit && probe.n_stored == n_hit / 16 && (double)raw / (double)load > 0.8,
               "load of %lld tokens, %.2f GB: %.1f GB/s from the call to its end, %.1f%% of the %.1f GB/s of batch "
               "copies of as many pages",
               (long long)loaded, (double)bytes / 1e9, (double)bytes / (double)load, 100. * (double)raw / (double)load,
               (double)bytes / (double)raw);
    cudaFree(device);
    cudaFreeHost(host);
    bed_close(&d);
}

void cac_check(const struct mdl *m, double tol)
{
    struct bed d;
    struct eng_opts o = bed_options(509);
    model = m;
    tolerance = tol;
    jdg_random_tokens(ids, (int)(sizeof ids / sizeof *ids), mdl_config(m)->vocab, 1);
    bed_open(&d, &o, CHUNK, 200);
    check_hits(&d);
    check_damage(&d);
    check_cancel(&d);
    jdg_report(d.n_same == d.n_asked,
               "%d of %d answers are those without a cache; log-probabilities differ by at most "
               "%.4f",
               d.n_same, d.n_asked, d.largest);
    bed_close(&d);
    check_planner();
    check_eviction();
    check_preemption();
    check_rate();
}
