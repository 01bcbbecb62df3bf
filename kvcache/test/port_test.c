/* The cache through its port, with a fake device: what was stored is loaded byte for byte, or not at all. */
#include "kvcache/test/rig.h"

#include "base/mem.h"
#include "kvcache/sequence.h"

#include <limits.h>
#include <string.h>

static void assert_range(struct kv_result r, int from, int to)
{
    assert_int_equal(r.good_from, from);
    assert_int_equal(r.good_to, to);
}

static void a_length(int chunk, int n, bool threads, bool payload)
{
    struct rig r;
    rig_open(&r, (struct rig_opts){.chunk = chunk, .slots = 64, .threads = threads, .no_payload = !payload});
    const int whole = n / chunk * chunk;
    assert_int_equal(rig_hit(&r, NULL, n), 0);
    rig_store(&r, NULL, n);
    rig_check(&r);
    assert_int_equal(r.st.stored_tokens, whole);
    assert_int_equal(r.st.hit_tokens, 0);
    assert_range(rig_load_all(&r, NULL, n), 0, whole);
    rig_check(&r);
    assert_int_equal(r.st.hit_tokens, whole);
    assert_int_equal(r.st.loaded_tokens, whole);
    assert_int_equal(r.st.lookups, 2);
    assert_int_equal(r.st.lookup_tokens, 2 * n);
    assert_int_equal(r.st.chunks, whole / chunk);
    assert_int_equal(r.st.failed_loads, 0);
    assert_int_equal(rig_row(&r, "dram", "hit_tokens"), whole);
    rig_free(&r);
}

static void lengths_around_edges(void **state)
{
    (void)state;
    static const int chunks[] = {16, 64, 256}, n[] = {1, 15, 16, 17, 63, 64, 65, 255, 256, 257, 511, 512, 513};
    for (int c = 0; c < 3; c++)
        for (int i = 0; i < 13; i++)
            for (int mode = 0; mode < 3; mode++)
                a_length(chunks[c], n[i], mode == 1, mode != 2);
}

/* With save_unfull the partial last chunk of a prompt is found by the same prompt, and only by it. */
static void partial_chunks(void **state)
{
    (void)state;
    static const int n[] = {1, 15, 16, 17, 255, 256, 257, 300, 511, 512, 513};
    for (int i = 0; i < 11; i++) {
        struct rig r;
        rig_open(&r, (struct rig_opts){.chunk = 256, .slots = 64, .save_unfull = true, .threads = i % 2});
        rig_store(&r, NULL, n[i]);
        rig_check(&r);
        assert_int_equal(r.st.stored_tokens, n[i]);
        assert_range(rig_load_all(&r, NULL, n[i]), 0, n[i]);
        assert_int_equal(rig_hit(&r, NULL, n[i] + 1), n[i] / 256 * 256);
        rig_check(&r);
        assert_int_equal(r.st.loaded_tokens, n[i]);
        rig_store(&r, NULL, n[i]); /* nothing is stored twice */
        rig_check(&r);
        assert_int_equal(r.st.stored_tokens, n[i]);
        rig_free(&r);
    }
}

static void any_range_of_blocks_is_loaded(void **state)
{
    (void)state;
    struct rig r;
    rig_open(&r, (struct rig_opts){.chunk = 64, .slots = 8});
    rig_store(&r, NULL, 192);
    int n_loads = 0;
    for (int from = 0; from < 192; from += B)
        for (int to = from + 8; to <= 192; to += 8) { /* also ends within a page */
            struct kv_seq *s = r.p.open(r.p.self, NULL, r.tok, 200);
            assert_int_equal(rig_lookup(&r, s, 200), 192);
            int pages = r.f.n_pages;
            assert_range(rig_load(&r, s, NULL, 200, from, to), from, to);
            assert_int_equal(r.f.n_pages - pages, (to + B - 1) / B - from / B); /* no more than were asked for */
            n_loads++;
            uint64_t t;
            assert_int_equal(r.p.load(s, from, to, r.into, 0, &t), KM_EINVAL); /* the load has taken the pins */
            r.p.close(s);
            rig_check(&r);
        }
    assert_int_equal(r.st.failed_loads, 0);
    assert_int_equal(r.st.hit_tokens, 192 * n_loads);
    struct kv_seq *s = r.p.open(r.p.self, NULL, r.tok, 200);
    uint64_t t = 9;
    r.p.lookup(s, r.tok, 128, 0);
    static const int bad[][2] = {{0, 144}, {-16, 16}, {32, 16}, {1, 16}};
    for (int i = 0; i < 4; i++) {
        assert_int_equal(r.p.load(s, bad[i][0], bad[i][1], r.into, 0, &t), KM_EINVAL);
        assert_int_equal(t, 0);
    }
    assert_int_equal(r.p.load(s, 128, 128, r.into, 0, &t), 0); /* the engine needs nothing: the pins are dropped */
    assert_int_equal(t, 0);
    assert_int_equal(r.k->chunks.n_evictable, 3);
    r.p.close(s);
    rig_free(&r);
}

static void salts_do_not_share(void **state)
{
    (void)state;
    struct rig r;
    rig_open(&r, (struct rig_opts){.chunk = 64, .slots = 16});
    static const char *const salts[] = {NULL, "", "a", "b", "aa"};
    for (int i = 0; i < 5; i++) {
        for (int j = i; j < 5; j++)
            assert_int_equal(rig_hit(&r, salts[j], 200), 0);
        rig_store(&r, salts[i], 200);
        for (int j = 0; j <= i; j++)
            assert_range(rig_load_all(&r, salts[j], 200), 0, 192);
    }
    rig_check(&r);
    assert_int_equal(r.st.hit_tokens, 15 * 192);
    assert_int_equal(r.st.chunks, 15);
    rig_free(&r);
}

static void equal_keys_of_different_chunks_miss(void **state)
{
    (void)state;
    struct rig r;
    rig_open(&r, (struct rig_opts){.chunk = 64, .slots = 8});
    ((struct kvc_view *)r.p.self)->keys.key_bytes = 0; /* now every chunk has the same key */
    rig_store(&r, NULL, 64);
    assert_int_equal(rig_hit(&r, NULL, 64), 64);
    r.tok[63]++;
    assert_int_equal(rig_hit(&r, NULL, 64), 0);
    rig_store(&r, NULL, 64); /* the chunk that is there is not replaced */
    assert_int_equal(rig_hit(&r, NULL, 64), 0);
    r.tok[63]--;
    assert_range(rig_load_all(&r, NULL, 64), 0, 64);
    memcpy(r.tok + 64, r.tok, 64 * sizeof *r.tok); /* the same ids at the next position, also with an equal key */
    assert_int_equal(rig_hit(&r, NULL, 128), 64);
    rig_check(&r);
    assert_int_equal(r.st.chunks, 1);
    rig_free(&r);
}

static void eviction_keeps_budget_and_order(void **state)
{
    (void)state;
    for (int fifo = 0; fifo < 2; fifo++) {
        struct rig r;
        rig_open(&r, (struct rig_opts){.chunk = 64, .slots = 7, .fifo = fifo}); /* two sequences and one chunk more */
        for (int i = 0; i < 2; i++) {
            rig_tokens(&r, i);
            rig_store(&r, NULL, 192);
        }
        rig_tokens(&r, 0);
        assert_int_equal(rig_hit(&r, NULL, 192), 192); /* under LRU, sequence 0 is now the newest */
        rig_tokens(&r, 2);
        rig_store(&r, NULL, 192); /* evicts two chunks of another sequence */
        rig_check(&r);
        assert_int_equal(r.st.chunks, 7);
        assert_int_equal(r.st.bytes, r.st.capacity);
        assert_int_equal(r.st.evicted_chunks, 2);
        assert_int_equal(rig_hit(&r, NULL, 192), 192);
        rig_tokens(&r, fifo ? 0 : 1);
        assert_int_equal(rig_hit(&r, NULL, 192), 64); /* the tail was evicted, the head was not */
        rig_tokens(&r, fifo ? 1 : 0);
        assert_int_equal(rig_hit(&r, NULL, 192), 192);
        rig_free(&r);
    }
}

static void a_long_prefill_does_not_evict_its_own_chunks(void **state)
{
    (void)state;
    struct rig r;
    rig_open(&r, (struct rig_opts){.chunk = 64, .slots = 6});
    struct kv_seq *s = r.p.open(r.p.self, NULL, r.tok, 640);
    for (int n = 64; n <= 640; n += 64) /* longer than the cache: its own head must not be evicted */
        rig_store_seq(&r, s, NULL, n);
    r.p.close(s);
    assert_int_equal(rig_hit(&r, NULL, 640), 384);
    rig_check(&r);
    assert_int_equal(r.st.evicted_chunks, 0);
    rig_tokens(&r, 1);
    rig_store(&r, NULL, 128);
    rig_tokens(&r, 0);
    assert_int_equal(rig_hit(&r, NULL, 640), 256);
    rig_free(&r);
}

static void pinned_chunks_are_not_evicted(void **state)
{
    (void)state;
    struct rig r;
    rig_open(&r, (struct rig_opts){.chunk = 64, .slots = 4});
    rig_store(&r, NULL, 192);
    struct kv_seq *s = r.p.open(r.p.self, NULL, r.tok, 192);
    assert_int_equal(rig_lookup(&r, s, 192), 192);
    rig_tokens(&r, 1);
    rig_store(&r, NULL, 192); /* one slot is free, three are pinned */
    assert_int_equal(rig_hit(&r, NULL, 192), 64);
    rig_check(&r);
    assert_int_equal(r.st.evicted_chunks, 0);
    assert_int_equal(r.st.stored_tokens, 256);
    assert_int_equal(r.p.reset(r.p.self), KM_ELIMIT);
    rig_check(&r);
    assert_int_equal(r.st.chunks, 3);
    rig_tokens(&r, 0);
    assert_range(rig_load(&r, s, NULL, 192, 64, 192), 64, 192); /* takes and drops the pins */
    rig_tokens(&r, 1);
    rig_store(&r, NULL, 256);
    assert_int_equal(rig_hit(&r, NULL, 256), 256);
    r.p.close(s);
    assert_int_equal(r.p.reset(r.p.self), 0);
    rig_check(&r);
    assert_int_equal(r.st.chunks, 0);
    assert_int_equal(r.st.bytes, 0);
    assert_int_equal(rig_hit(&r, NULL, 256), 0);

    /* A hit that the engine does not load must not stay pinned while the request decodes. */
    rig_store(&r, NULL, 256);
    s = r.p.open(r.p.self, NULL, r.tok, 256);
    assert_int_equal(rig_lookup(&r, s, 256), 256);
    rig_store_seq(&r, s, NULL, 256);
    assert_int_equal(r.k->chunks.n_evictable, 4);
    r.p.close(s);
    rig_free(&r);
}

static void chunks_are_found_only_after_their_copies(void **state)
{
    (void)state;
    struct rig r;
    rig_open(&r, (struct rig_opts){.chunk = 64, .slots = 8});
    for (int b = 0; b < 12; b++)
        fake_pages_fill(&r.f, r.from[b], NULL, r.tok, 192, b);
    struct kv_seq *a = r.p.open(r.p.self, NULL, r.tok, 192);
    uint64_t t;
    int from;
    assert_int_equal(r.p.store(a, r.tok, 192, 192, r.from, 7, &t, &from), 0); /* the fence is a step still running */
    assert_true(t);
    assert_int_equal(from, 0);
    assert_int_equal(r.f.n_copies, 1); /* one call for all pages */
    assert_int_equal(r.f.n_pages, 12);
    assert_int_equal(rig_hit(&r, NULL, 192), 0);
    assert_int_equal(r.p.reset(r.p.self), KM_ELIMIT);
    r.p.close(a); /* the store goes on */
    rig_check(&r);
    assert_int_equal(r.p.poll(r.p.self, t, NULL), 0);
    r.f.step = 7;
    rig_wait(&r, t);
    struct kv_seq *b = r.p.open(r.p.self, NULL, r.tok, 192);
    assert_int_equal(rig_lookup(&r, b, 192), 192);
    r.f.hold = true;
    t = rig_begin_load(&r, b, 0, 192);
    r.p.close(b); /* the load goes on, too */
    assert_int_equal(r.p.reset(r.p.self), KM_ELIMIT);
    rig_check(&r);
    r.f.hold = false;
    struct kv_result res = rig_wait(&r, t);
    assert_range(res, 0, 192);
    rig_check_pages(&r, NULL, 192, 0, 192, res);
    assert_int_equal(r.p.reset(r.p.self), 0);
    assert_int_equal(r.p.poll(r.p.self, 0, NULL), KM_EINVAL);
    assert_int_equal(r.p.poll(r.p.self, ~0ull, NULL), KM_EINVAL);
    assert_int_equal(r.p.cut(r.p.self, 77, 0), KM_EINVAL);
    rig_free(&r);
}

/* Each cut at each state of a load: the pages before the answer are not written any more, the others are loaded. */
static void cut_at_every_piece(void **state)
{
    (void)state;
    enum { N = 640 };
    int n_open = 0;
    for (int polls = 0; polls < 60; polls += 3)
        for (int upto = 0; upto <= N + 40; upto += 40) { /* the last one: everything, as INT_MAX */
            struct rig r;
            /* Pieces of two pages, which take 5 ms. */
            rig_open(&r, (struct rig_opts){.chunk = 64, .slots = 16, .throttle = 200 * 1024});
            rig_store(&r, NULL, N);
            struct kv_seq *s = r.p.open(r.p.self, NULL, r.tok, N);
            assert_int_equal(rig_lookup(&r, s, N), N);
            const int pages = r.f.n_pages;
            uint64_t t = rig_begin_load(&r, s, 16, N);
            bool finished = false;
            struct kv_result res;
            for (int i = 0; i < polls && !finished; i++) {
                finished = r.p.poll(r.p.self, t, &res);
                r.f.clock += 2000000;
            }
            n_open += !finished;
            if (!finished) {
                const int started = N - (r.f.n_pages - pages) * B, want = (upto + B - 1) / B * B;
                const int owned = r.p.cut(r.p.self, t, upto > N ? INT_MAX : upto);
                assert_int_equal(owned, want < 16 ? 16 : want < started ? want : started);
                assert_int_equal(r.p.cut(r.p.self, t, 0), owned);
                for (int b = 0; b < owned / B; b++)
                    r.f.writable[r.into[b]] = false; /* a later write is a violation */
                while (!r.p.poll(r.p.self, t, &res))
                    r.f.clock += 2000000;
                assert_true(res.good_from == owned || (res.good_from == res.good_to && owned >= N));
            }
            rig_check_pages(&r, NULL, N, 16, N, res);
            if (res.good_from < res.good_to)
                assert_int_equal(res.good_to, N);
            rig_check(&r);
            assert_int_equal(r.st.failed_loads, 0);
            r.p.close(s);
            rig_free(&r);
        }
    assert_true(n_open > 200);
}

/* Loads are submitted before stores, and do not wait for them. */
static void loads_overtake_stores(void **state)
{
    (void)state;
    struct rig r;
    rig_open(&r, (struct rig_opts){.chunk = 64, .slots = 64});
    rig_store(&r, "a", 640);
    struct kv_seq *a = r.p.open(r.p.self, "a", r.tok, 640), *b = r.p.open(r.p.self, "b", r.tok, 640);
    uint64_t store, load;
    int from;
    assert_int_equal(r.p.store(b, r.tok, 640, 640, r.from, 5, &store, &from), 0); /* step 5 has not ended */
    assert_int_equal(rig_lookup(&r, a, 640), 640);
    load = rig_begin_load(&r, a, 0, 640);
    struct kv_result res = rig_wait(&r, load);
    assert_range(res, 0, 640);
    rig_check_pages(&r, "a", 640, 0, 640, res);
    assert_int_equal(r.p.poll(r.p.self, store, NULL), 0);
    r.f.step = 5;
    rig_wait(&r, store);
    r.p.close(a);
    r.p.close(b);
    rig_free(&r);
}

/* More copies than the device takes at a time: nothing blocks, nothing is lost. */
static void many_copies_never_block(void **state)
{
    (void)state;
    for (int threads = 0; threads < 2; threads++) {
        struct rig r;
        rig_open(&r, (struct rig_opts){.chunk = 16, .slots = 256, .threads = threads});
        r.f.limit = 1; /* KM_ELIMIT for any second copy */
        struct kv_seq *s[80];
        uint64_t t[80];
        int from;
        for (int i = 0; i < 80; i++) {
            rig_tokens(&r, i);
            s[i] = r.p.open(r.p.self, NULL, r.tok, 48);
            assert_int_equal(r.p.store(s[i], r.tok, 48, 48, r.from, 3, &t[i], &from), 0);
            assert_true(t[i]);
        }
        rig_end_step(&r, 3);
        for (int i = 0; i < 80; i++) {
            rig_wait(&r, t[i]);
            r.p.close(s[i]);
        }
        rig_check(&r);
        assert_int_equal(r.st.stored_tokens, 80 * 48);
        assert_true(r.f.n_refused > 0);
        for (int i = 0; i < 80; i++) {
            rig_tokens(&r, i);
            assert_int_equal(rig_hit(&r, NULL, 48), 48);
        }
        rig_free(&r);
    }
}

/* With a thread, loads and stores advance although the engine never polls. */
static void nothing_needs_the_engine_to_poll(void **state)
{
    (void)state;
    struct rig r;
    rig_open(&r, (struct rig_opts){.chunk = 64, .slots = 32, .threads = true});
    for (int b = 0; b < 40; b++)
        fake_pages_fill(&r.f, r.from[b], NULL, r.tok, 640, b);
    struct kv_seq *s = r.p.open(r.p.self, NULL, r.tok, 640);
    uint64_t t;
    int from, got;
    assert_int_equal(r.p.store(s, r.tok, 640, 640, r.from, 0, &t, &from), 0);
    for (int i = 0; (got = r.p.lookup(s, r.tok, 640, 0)) < 640; i++) {
        assert_true(i < 20000);
        usleep(100);
    }
    uint64_t load = rig_begin_load(&r, s, 0, 640);
    for (int i = 0; r.st.loaded_tokens < 640; i++) {
        assert_true(i < 20000);
        usleep(100);
        r.p.stats(r.p.self, &r.st);
    }
    assert_int_equal(r.p.poll(r.p.self, t, NULL), 1);
    struct kv_result res;
    assert_int_equal(r.p.poll(r.p.self, load, &res), 1);
    assert_range(res, 0, 640);
    rig_check_pages(&r, NULL, 640, 0, 640, res);
    r.p.close(s);
    rig_free(&r);
}

static void generated_tokens_are_stored_on_request(void **state)
{
    (void)state;
    for (int save = 0; save < 2; save++) {
        struct rig r;
        rig_open(&r, (struct rig_opts){.chunk = 64, .slots = 16, .save_decode = save});
        struct kv_seq *s = r.p.open(r.p.self, NULL, r.tok, 150);
        uint64_t t;
        int from;
        assert_int_equal(rig_lookup(&r, s, 150), 0);
        for (int b = 0; b < 20; b++)
            fake_pages_fill(&r.f, r.from[b], NULL, r.tok, 320, b);
        for (int n = 64; n <= 320; n += 64) {
            assert_int_equal(r.p.store(s, r.tok, n, 150, r.from, 0, &t, &from), 0);
            assert_int_equal(t != 0, save || n <= 128);
            assert_int_equal(from, save || n <= 128 ? n - 64 : n); /* reads only the pages of the new chunk */
            if (t)
                rig_wait(&r, t);
        }
        r.p.close(s);
        assert_int_equal(rig_hit(&r, NULL, 320), save ? 320 : 128);
        rig_free(&r);
    }
}

/* A chunk's key is computed once per sequence, and a miss on an unknown prefix computes one key. */
static void a_miss_computes_one_key(void **state)
{
    (void)state;
    struct rig r;
    rig_open(&r, (struct rig_opts){.chunk = 64, .slots = 16});
    struct kv_seq *s = r.p.open(r.p.self, NULL, r.tok, 640);
    assert_int_equal(rig_lookup(&r, s, 640), 0);
    assert_int_equal(s->n_keys, 0); /* an empty cache computes no key */
    rig_store(&r, "other", 64);
    assert_int_equal(rig_lookup(&r, s, 640), 0);
    assert_int_equal(s->n_keys, 1);
    rig_store_seq(&r, s, NULL, 320);
    assert_int_equal(s->n_keys, 5);
    struct km_digest k4 = s->key[4];
    s->key[0].b[0] ^= 1; /* if it were hashed again, the next keys would differ */
    assert_int_equal(rig_lookup(&r, s, 640), 0);
    s->key[0].b[0] ^= 1;
    assert_int_equal(rig_lookup(&r, s, 640), 320);
    assert_memory_equal(&k4, &s->key[4], sizeof k4);
    r.p.close(s);
    rig_free(&r);
}

static void hits_count_what_the_pool_lacks(void **state)
{
    (void)state;
    struct rig r;
    rig_open(&r, (struct rig_opts){.chunk = 64, .slots = 16});
    rig_store(&r, NULL, 320);
    struct kv_seq *s = r.p.open(r.p.self, NULL, r.tok, 400);
    assert_int_equal(r.p.lookup(s, r.tok, 400, 100), 320);
    rig_check(&r);
    assert_int_equal(r.st.hit_tokens, 220);
    assert_int_equal(r.st.lookup_tokens, 300);
    assert_int_equal(rig_row(&r, "dram", "hit_tokens"), 220);
    assert_int_equal(r.p.lookup(s, r.tok, 400, 390), 320);
    rig_check(&r);
    assert_int_equal(r.st.hit_tokens, 220);
    assert_int_equal(r.st.lookup_tokens, 310);
    r.p.close(s);
    rig_free(&r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(lengths_around_edges),
        cmocka_unit_test(partial_chunks),
        cmocka_unit_test(any_range_of_blocks_is_loaded),
        cmocka_unit_test(salts_do_not_share),
        cmocka_unit_test(equal_keys_of_different_chunks_miss),
        cmocka_unit_test(eviction_keeps_budget_and_order),
        cmocka_unit_test(a_long_prefill_does_not_evict_its_own_chunks),
        cmocka_unit_test(pinned_chunks_are_not_evicted),
        cmocka_unit_test(chunks_are_found_only_after_their_copies),
        cmocka_unit_test(cut_at_every_piece),
        cmocka_unit_test(loads_overtake_stores),
        cmocka_unit_test(many_copies_never_block),
        cmocka_unit_test(nothing_needs_the_engine_to_poll),
        cmocka_unit_test(generated_tokens_are_stored_on_request),
        cmocka_unit_test(a_miss_computes_one_key),
        cmocka_unit_test(hits_count_what_the_pool_lacks),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
