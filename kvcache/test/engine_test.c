/* The cache with the real engine on the CPU. Answers with and without the cache are equal token for token, at every
 * length around an edge, under memory pressure and with damaged chunks; the hit counters show that the cache was
 * used. */
#include "base/test/test.h"

#include "base/mem.h"
#include "engine/engine.h"
#include "engine/planner.h"
#include "kvcache/internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { B = 16, N_OUT = 3, MAX_PROMPT = 640, MAX_RUN = 32 };

static struct mdl *model;
static const char tiny[] = KVM_SOURCE_DIR "/models/qwen3-tiny-lm";

/* A prompt and what the engine reported about it. */
struct job {
    int32_t prompt[MAX_PROMPT];
    int n, n_out;
    int32_t out[40];
    int got, cached, cached_pool, preempted;
};

static uint64_t rng = 42;

static int rnd(int n)
{
    rng = rng * 6364136223846793005u + 1442695040888963407u;
    return (int)((rng >> 33) % (uint64_t)n);
}

static void make(struct job *a, int n)
{
    a->n = n;
    a->n_out = N_OUT;
    for (int i = 0; i < n; i++)
        a->prompt[i] = rnd(4000);
}

static struct eng *engine(const struct kv_port *port, int blocks, bool prefix, int batched, enum pln_mode mode)
{
    struct eng_opts o = eng_defaults();
    struct km_err err = {0};
    struct eng *e;
    o.max_model_len = 700;
    o.max_num_batched_tokens = batched;
    o.block_size = B;
    o.num_blocks = blocks;
    o.prefix_caching = prefix;
    o.dtype = KM_F32;
    o.n_threads = 2;
    o.kv_planner = mode;
    if (eng_open(&e, &o, model, &be_cpu, port, &err))
        fail_msg("%s", err.msg);
    return e;
}

static struct kvc *cache(int chunk, int chunks, bool decode, struct kv_port *port)
{
    struct kvc_config c = kvc_defaults();
    const struct mdl_config *m = mdl_config(model);
    struct kvc *k;
    c.chunk_size = chunk;
    c.save_decode = decode;
    c.max_local_cpu = chunks * ((int64_t)chunk * m->n_layers * 2 * m->n_kv_heads * m->head_dim * 4 +
                                (int64_t)kvc_header_bytes(chunk, chunk / B));
    assert_int_equal(kvc_open(&k, &c, NULL), 0);
    assert_int_equal(kvc_port(k, port, NULL), 0);
    return k;
}

/* Flips one bit of one stored chunk, now and then, while no operation is open. */
static void damage_a_chunk(struct kvc *k)
{
    if (rnd(6) || !kvc_settle(k, 0))
        return;
    pthread_mutex_lock(&k->lock);
    int slot = rnd(k->chunks.n);
    if (k->chunks.chunk[slot].state == KVC_READY)
        kvc_pool_payload(k->pool, slot)[(size_t)rnd(1 << 30) % k->geometry.payload_bytes] ^= (char)(1 << rnd(8));
    pthread_mutex_unlock(&k->lock);
}

/* Submits n requests at once and runs the engine until all are finished. */
static void run(struct eng *e, struct job *const *a, int n, struct kvc *damaged)
{
    struct km_err err = {0};
    struct eng_events ev;
    for (int i = 0; i < n; i++) {
        struct eng_request r = {.prompt = a[i]->prompt, .n_prompt = a[i]->n, .max_tokens = a[i]->n_out,
                                .ignore_eos = true, .sampling = smp_defaults(), .user = a[i]};
        r.sampling.temperature = 0;
        uint64_t id;
        a[i]->got = 0;
        if (eng_submit(e, &r, &id, &err))
            fail_msg("%s", err.msg);
    }
    while (!eng_idle(e)) {
        if (damaged)
            damage_a_chunk(damaged);
        if (eng_step(e, &ev, &err) || eng_check(e, &err))
            fail_msg("%s", err.msg);
        for (int i = 0; i < ev.n; i++) {
            struct job *q = ev.v[i].user;
            assert_true(ev.v[i].has_token && q->got < 40);
            q->out[q->got++] = ev.v[i].token.id;
            q->cached = ev.v[i].n_cached;
            q->cached_pool = ev.v[i].n_cached_pool;
            q->preempted = ev.v[i].n_preempted;
        }
    }
    for (int i = 0; i < n; i++)
        assert_int_equal(a[i]->got, a[i]->n_out);
}

static void run_one(struct eng *e, struct job *a)
{
    run(e, &a, 1, NULL);
}

static struct kv_port_stats stats(struct kvc *k, const struct kv_port *p)
{
    struct km_err err = {0};
    struct kv_port_stats st;
    assert_true(kvc_settle(k, 10));
    if (kvc_check(k, &err))
        fail_msg("%s", err.msg);
    p->stats(p->self, &st);
    return st;
}

static void check_same_answer(const struct job *a, const struct job *b)
{
    assert_int_equal(a->got, b->got);
    for (int i = 0; i < a->got; i++)
        if (a->out[i] != b->out[i])
            fail_msg("a prompt of %d tokens (%d cached) has %d as output token %d, but %d without the cache", b->n,
                     b->cached, b->out[i], i, a->out[i]);
}

static int expected_hit(int n, int chunk)
{
    const int kept = n / chunk * chunk;
    return kept < n ? kept : n - 1; /* the last token is always computed, because its logits are needed */
}

static void lengths_around_edges(void **state)
{
    (void)state;
    static const int chunks[] = {32, 64, 256}, edges[] = {16, 32, 64, 80, 128, 256, 512};
    struct eng *plain = engine(NULL, 160, false, 2048, PLN_LOAD);
    for (int c = 0; c < 3; c++) {
        struct kv_port port;
        struct kvc *k = cache(chunks[c], 64, false, &port);
        struct eng *e = engine(&port, 160, false, c ? 2048 : 48, PLN_LOAD); /* prefill in one step or several */
        assert_true(kvc_settle(k, 10));
        for (int i = 0; i < 7; i++)
            for (int n = edges[i] - 1; n <= edges[i] + 1; n++) {
                struct job want, a;
                make(&want, n);
                a = want;
                run_one(plain, &want);
                struct kv_port_stats s0 = stats(k, &port), s1, s2;
                run_one(e, &a);
                check_same_answer(&want, &a);
                assert_int_equal(a.cached, 0);
                s1 = stats(k, &port);
                assert_int_equal(s1.stored_tokens - s0.stored_tokens, n / chunks[c] * chunks[c]);
                assert_int_equal(s1.hit_tokens, s0.hit_tokens);
                run_one(e, &a);
                check_same_answer(&want, &a);
                s2 = stats(k, &port);
                assert_int_equal(a.cached, expected_hit(n, chunks[c]));
                assert_int_equal(s2.loaded_tokens - s1.loaded_tokens, expected_hit(n, chunks[c]));
                assert_int_equal(s2.stored_tokens, s1.stored_tokens);
                assert_int_equal(s2.failed_loads, 0);
                assert_int_equal(k->chunks.n_evictable, k->chunks.n_ready);
            }
        eng_close(e);
        kvc_free(k);
    }
    eng_close(plain);
}

/* Conversations that grow, in a pool that holds only some of them. There are hits in the pool, in the cache, in both
 * and in neither, and preemptions. In the last three passes bits of stored chunks flip. */
static void a_small_pool_changes_no_answer(void **state)
{
    (void)state;
    enum { USERS = 6, TURNS = 3 };
    int64_t failed = 0, loaded = 0; /* of the passes with damage */
    for (int pass = 0; pass < 6; pass++) {
        bool damaged = pass >= 3;
        static struct job a[USERS], want[USERS];
        struct job *at[USERS];
        struct kv_port port;
        static const int chunk[] = {32, 64, 256}, chunks[] = {56, 28, 7};
        struct kvc *k = cache(chunk[pass % 3], chunks[pass % 3], pass % 2, &port);
        struct eng *e = engine(&port, 52, true, 256, pass % 2 ? PLN_AUTO : PLN_LOAD);
        struct eng *plain = engine(NULL, 160, false, 2048, PLN_LOAD);
        assert_true(kvc_settle(k, 10));
        int64_t cached = 0, pool = 0;
        int preempted = 0;
        for (int u = 0; u < USERS; u++) {
            make(&a[u], 150 + rnd(200));
            if (u % 2) /* a shared prefix */
                memcpy(a[u].prompt, a[0].prompt, 100 * sizeof *a[u].prompt);
            a[u].n_out = 24;
            at[u] = &a[u];
        }
        for (int t = 0; t < TURNS; t++) {
            for (int u = 0; u < USERS; u++) {
                want[u] = a[u];
                run_one(plain, &want[u]);
            }
            run(e, at, USERS, damaged ? k : NULL);
            for (int u = 0; u < USERS; u++) {
                check_same_answer(&want[u], &a[u]);
                cached += a[u].cached;
                pool += a[u].cached_pool;
                preempted += a[u].preempted;
                for (int i = 0; i < a[u].got; i++)
                    a[u].prompt[a[u].n++] = a[u].out[i];
                for (int i = 0; i < 20; i++)
                    a[u].prompt[a[u].n++] = rnd(4000);
            }
        }
        struct kv_port_stats st = stats(k, &port);
        struct eng_stats es;
        eng_stats(e, &es);
        printf("chunk %d%s: %lld of %lld cached tokens from the pool, %lld hit, %lld loaded, %lld loads failed, "
               "%d preempted, %lld evicted\n",
               k->cfg.chunk_size, damaged ? ", damaged" : "", (long long)pool, (long long)cached,
               (long long)st.hit_tokens, (long long)st.loaded_tokens, (long long)st.failed_loads, preempted,
               (long long)st.evicted_chunks);
        assert_true(damaged || (st.loaded_tokens > 0 && cached > pool && st.failed_loads == 0));
        assert_true(st.hit_tokens > 0 && preempted > 0);
        if (damaged) { /* which chunks are damaged when depends on the machine's speed */
            failed += st.failed_loads;
            loaded += st.loaded_tokens;
        }
        assert_int_equal(es.kv.loaded_tokens, st.loaded_tokens);
        assert_int_equal(k->chunks.n_evictable, k->chunks.n_ready); /* no chunk stays pinned */
        eng_close(e);
        eng_close(plain);
        kvc_free(k);
    }
    assert_true(failed > 0 && loaded > 0);
}

static void damaged_chunks_are_computed_again(void **state)
{
    (void)state;
    struct eng *plain = engine(NULL, 160, false, 2048, PLN_LOAD);
    for (int bad = 0; bad < 4; bad++) {
        struct kv_port port;
        struct kvc *k = cache(64, 16, false, &port);
        struct eng *e = engine(&port, 160, false, 2048, PLN_LOAD);
        assert_true(kvc_settle(k, 10));
        struct job want, a;
        make(&want, 260);
        a = want;
        run_one(plain, &want);
        run_one(e, &a);
        stats(k, &port); /* the stores have ended */
        for (int i = 0; i < k->chunks.n; i++)
            if (k->chunks.chunk[i].state == KVC_READY && k->chunks.chunk[i].position == bad)
                kvc_pool_payload(k->pool, i)[k->geometry.payload_bytes / 3] ^= 1;
        run_one(e, &a);
        check_same_answer(&want, &a);
        const int good = bad < 2 ? 192 - bad * 64 : bad * 64; /* the larger side of the bad chunk */
        assert_int_equal(a.cached, good);
        struct kv_port_stats st = stats(k, &port);
        assert_int_equal(st.failed_loads, 1);
        assert_int_equal(st.loaded_tokens, good);
        assert_int_equal(st.corrupt_chunks, 1);
        run_one(e, &a); /* the run that found the damage has stored the chunk again */
        check_same_answer(&want, &a);
        assert_int_equal(a.cached, 256);
        assert_int_equal(stats(k, &port).failed_loads, 1);
        eng_close(e);
        kvc_free(k);
    }
    eng_close(plain);
}

/* One engine prefills, another one goes on from its KV, with a store between them. With save_unfull the second engine
 * computes only the last token of the prompt. */
static void one_engine_goes_on_where_another_ended(void **state)
{
    (void)state;
    static const int n[] = {15, 16, 17, 255, 256, 257, 300, 511, 512, 513};
    struct kv_port first, second;
    struct kvc *k = cache(256, 30, false, &first);
    k->cfg.save_unfull = true;
    assert_int_equal(kvc_port(k, &second, NULL), 0);
    struct eng *plain = engine(NULL, 160, false, 2048, PLN_LOAD);
    struct eng *a = engine(&first, 160, false, 2048, PLN_LOAD), *b = engine(&second, 160, false, 2048, PLN_LOAD);
    assert_true(kvc_settle(k, 10));
    int64_t loaded = 0;
    for (int i = 0; i < 10; i++) {
        struct job want, one, two;
        make(&want, n[i]);
        one = two = want;
        run_one(plain, &want);
        one.n_out = 1;
        run_one(a, &one);
        assert_int_equal(one.out[0], want.out[0]);
        stats(k, &first); /* the stores have ended */
        run_one(b, &two);
        check_same_answer(&want, &two);
        const int cached = n[i] - 1 < B ? 0 : n[i] - 1; /* less than a block is not worth a load */
        assert_int_equal(two.cached, cached);
        loaded += cached;
        assert_int_equal(stats(k, &second).loaded_tokens, loaded);
    }
    assert_int_equal(stats(k, &first).hit_tokens, 0);
    assert_true(stats(k, &second).hit_tokens >= loaded);
    eng_close(a);
    eng_close(b);
    eng_close(plain);
    kvc_free(k);
}

static int setup(void **state)
{
    (void)state;
    struct km_err err = {0};
    if (mdl_open(&model, tiny, false, 0, &err))
        fail_msg("%s", err.msg);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    mdl_free(model);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(lengths_around_edges),
        cmocka_unit_test(a_small_pool_changes_no_answer),
        cmocka_unit_test(damaged_chunks_are_computed_again),
        cmocka_unit_test(one_engine_goes_on_where_another_ended),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
