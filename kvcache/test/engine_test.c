/* The cache with the real engine on the CPU. Answers with and without the cache are equal token for token, at every
 * length around an edge, under memory pressure and with damaged chunks; the hit counters show that the cache was
 * used. */
#include "kvcache/test/engine_rig.h"

#include "kvcache/internal.h"

#include <stdio.h>
#include <string.h>

enum { B = ER_BLOCK, N_OUT = 3, MAX_PROMPT = 640 };

static struct mdl *model;
static const char tiny[] = KVM_SOURCE_DIR "/models/qwen3-tiny-lm";

/* A request with its own prompt. */
struct talk {
    int32_t text[MAX_PROMPT];
    struct er_job job;
};

static uint64_t rng = 42;

static int rnd(int n)
{
    rng = rng * 6364136223846793005u + 1442695040888963407u;
    return (int)((rng >> 33) % (uint64_t)n);
}

static void make(struct talk *a, int n)
{
    a->job = (struct er_job){.prompt = a->text, .n = n, .n_out = N_OUT};
    for (int i = 0; i < n; i++)
        a->text[i] = rnd(4000);
}

static void copy(struct talk *to, const struct talk *from)
{
    *to = *from;
    to->job.prompt = to->text;
}

static struct eng *engine(const struct kv_port *port, int blocks, bool prefix, int batched)
{
    return er_engine(model, port, (struct er_opts){.blocks = blocks, .batched = batched, .max_len = 700, .seqs = 256,
                                                   .prefix = prefix, .dtype = KM_F32, .threads = 2});
}

static struct kvc *cache(int chunk, int chunks, bool decode, struct kv_port *port)
{
    struct kvc_config c = kvc_defaults();
    struct kvc *k;
    c.chunk_size = chunk;
    c.save_decode = decode;
    c.max_local_cpu = er_host_bytes(model, KM_F32, chunk, chunks);
    assert_int_equal(kvc_open(&k, &c, NULL), 0);
    assert_int_equal(kvc_port(k, port, NULL), 0);
    return k;
}

/* Flips one bit of one stored chunk, now and then, that no operation uses. */
static void damage_a_chunk(void *arg)
{
    struct kvc *k = arg;
    if (rnd(6))
        return;
    pthread_mutex_lock(&k->lock);
    const int slot = rnd(k->chunks.n);
    const struct kvc_chunk *c = &k->chunks.chunk[slot];
    if (c->state == KVC_READY && !c->refs)
        kvc_pool_payload(k->pool, slot)[(size_t)rnd(1 << 30) % k->geometry.payload_bytes] ^= (char)(1 << rnd(8));
    pthread_mutex_unlock(&k->lock);
}

static int expected_hit(int n, int chunk)
{
    /* The last token is always computed, because its logits are needed. */
    const int kept = n / chunk * chunk, hit = kept < n - 1 ? kept : n - 1;
    return hit < B ? 0 : hit; /* less than a block is not loaded */
}

static void lengths_around_edges(void **state)
{
    (void)state;
    static const int chunks[] = {32, 64, 256}, edges[] = {16, 32, 64, 80, 128, 256, 512};
    struct eng *plain = engine(NULL, 160, false, 2048);
    for (int c = 0; c < 3; c++) {
        struct kv_port port;
        struct kvc *k = cache(chunks[c], 64, false, &port);
        struct eng *e = engine(&port, 160, false, c ? 2048 : 48); /* prefill in one step, and in several */
        assert_true(kvc_settle(k, 30));
        for (int i = 0; i < 7; i++)
            for (int n = edges[i] - 1; n <= edges[i] + 1; n++) {
                struct talk want, a;
                make(&want, n);
                copy(&a, &want);
                er_run_one(plain, &want.job);
                struct kv_port_stats s0 = er_stats(k, &port), s1, s2;
                er_run_one(e, &a.job);
                er_check_same(&want.job, &a.job);
                assert_int_equal(a.job.cached, 0);
                s1 = er_stats(k, &port);
                assert_int_equal(s1.stored_tokens - s0.stored_tokens, n / chunks[c] * chunks[c]);
                assert_int_equal(s1.hit_tokens, s0.hit_tokens);
                er_run_one(e, &a.job);
                er_check_same(&want.job, &a.job);
                s2 = er_stats(k, &port);
                assert_int_equal(a.job.cached, expected_hit(n, chunks[c]));
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
    for (int pass = 0; pass < 6; pass++) {
        bool damaged = pass >= 3;
        static struct talk a[USERS], want[USERS];
        struct er_job *at[USERS];
        struct kv_port port;
        static const int chunk[] = {32, 64, 256}, chunks[] = {56, 28, 7};
        struct kvc *k = cache(chunk[pass % 3], chunks[pass % 3], pass % 2, &port);
        struct eng *e = engine(&port, 52, true, 256), *plain = engine(NULL, 160, false, 2048);
        assert_true(kvc_settle(k, 30));
        int64_t cached = 0, pool = 0;
        int preempted = 0;
        for (int u = 0; u < USERS; u++) {
            make(&a[u], 150 + rnd(200));
            if (u % 2) /* a shared prefix */
                memcpy(a[u].text, a[0].text, 100 * sizeof *a[u].text);
            a[u].job.n_out = 24;
            at[u] = &a[u].job;
        }
        for (int t = 0; t < TURNS; t++) {
            for (int u = 0; u < USERS; u++) {
                copy(&want[u], &a[u]);
                er_run_one(plain, &want[u].job);
            }
            er_run(e, at, USERS, damaged ? damage_a_chunk : NULL, k);
            for (int u = 0; u < USERS; u++) {
                struct er_job *j = &a[u].job;
                er_check_same(&want[u].job, j);
                cached += j->cached;
                pool += j->cached_pool;
                preempted += j->preempted;
                for (int i = 0; i < j->got; i++)
                    a[u].text[j->n++] = j->out[i].id;
                for (int i = 0; i < 20; i++)
                    a[u].text[j->n++] = rnd(4000);
            }
        }
        struct kv_port_stats st = er_stats(k, &port);
        struct eng_stats es;
        eng_stats(e, &es);
        printf("chunk %d%s: %lld of %lld cached tokens from the pool, %lld loaded, %lld loads failed, %d preempted, "
               "%lld evicted\n",
               k->cfg.chunk_size, damaged ? ", damaged" : "", (long long)pool, (long long)cached,
               (long long)st.loaded_tokens, (long long)st.failed_loads, preempted, (long long)st.evicted_chunks);
        /* A hit is counted when the engine asks. If the request then waits for pages, the pool may lose a block that it
         * had, and the load includes that block. */
        assert_true(st.loaded_tokens > 0 && st.hit_tokens >= st.loaded_tokens - 4 * B);
        assert_true(cached > pool && preempted > 0);
        assert_true(damaged ? st.failed_loads > 0 : st.failed_loads == 0);
        assert_int_equal(es.kv.loaded_tokens, st.loaded_tokens);
        assert_int_equal(k->chunks.n_evictable, k->chunks.n_ready); /* no chunk stays pinned */
        eng_close(e);
        eng_close(plain);
        kvc_free(k);
    }
}

static void damaged_chunks_are_computed_again(void **state)
{
    (void)state;
    struct eng *plain = engine(NULL, 160, false, 2048);
    for (int bad = 0; bad < 4; bad++) {
        struct kv_port port;
        struct kvc *k = cache(64, 16, false, &port);
        struct eng *e = engine(&port, 160, false, 2048);
        struct talk want, a;
        make(&want, 260);
        copy(&a, &want);
        assert_true(kvc_settle(k, 30));
        er_run_one(plain, &want.job);
        er_run_one(e, &a.job);
        for (int i = 0; i < k->chunks.n; i++)
            if (k->chunks.chunk[i].state == KVC_READY && k->chunks.chunk[i].position == bad)
                kvc_pool_payload(k->pool, i)[k->geometry.payload_bytes / 3] ^= 1;
        er_run_one(e, &a.job);
        er_check_same(&want.job, &a.job);
        /* The larger side of the damaged chunk is loaded. */
        const int good = 64 * (bad > 3 - bad ? bad : 3 - bad);
        assert_int_equal(a.job.cached, good);
        struct kv_port_stats st = er_stats(k, &port);
        assert_int_equal(st.failed_loads, 1);
        assert_int_equal(st.corrupt_chunks, 1);
        assert_int_equal(st.loaded_tokens, good);
        er_run_one(e, &a.job); /* the run that found the damage has stored the chunk again */
        er_check_same(&want.job, &a.job);
        assert_int_equal(a.job.cached, 256);
        assert_int_equal(er_stats(k, &port).failed_loads, 1);
        eng_close(e);
        kvc_free(k);
    }
    eng_close(plain);
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
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
