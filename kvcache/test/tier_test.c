/* Tiers behind the port: chunks come back from a tier byte for byte, or not at all, whatever the tier does. */
#include "kvcache/test/rig.h"

#include "base/clock.h"
#include "kvcache/sequence.h"

#include <string.h>

/* For LeakSanitizer: operations that never end are leaked on purpose, because a device or a tier may still use them. */
const char *__lsan_default_suppressions(void);
const char *__lsan_default_suppressions(void)
{
    return "leak:tio_new\n";
}

static void assert_range(struct kv_result r, int from, int to)
{
    assert_int_equal(r.good_from, from);
    assert_int_equal(r.good_to, to);
}

/* Opens a store over a tier that has n tokens of an earlier store. */
static void over_full_tier(struct rig *r, struct rig_opts o, int n)
{
    struct rig first;
    struct rig_opts plain = o;
    plain.slots = 128;
    plain.no_local_cpu = false;
    plain.throttle = 0;
    rig_open(&first, plain);
    rig_store(&first, NULL, n);
    assert_true(kvc_settle(first.k, 10));
    rig_free(&first);
    for (int i = 0; i < 2 && o.tier[i]; i++)
        memset(o.tier[i]->n_submits, 0, sizeof o.tier[i]->n_submits);
    rig_open(r, o);
}

static const char *name_of(const struct fake_tier *t)
{
    return t->index ? "fake" : "remote";
}

static void chunks_come_back_from_a_tier(void **state)
{
    (void)state;
    static const int n[] = {1, 63, 64, 65, 320, 640, 650};
    for (int mode = 0; mode < 16; mode++)
        for (int i = 0; i < 7; i++) {
            struct fake_tier t;
            struct rig r;
            const bool unfull = mode & 4;
            fake_tier_init(&t, mode & 1);
            t.polls = mode & 1 ? 0 : 3;
            over_full_tier(&r, (struct rig_opts){.chunk = 64, .slots = 24, .threads = mode & 2, .save_unfull = unfull,
                                                 .no_payload = mode & 8, .tier = {&t}}, n[i]);
            const int want = unfull ? n[i] : n[i] / 64 * 64, chunks = (want + 63) / 64;
            assert_int_equal(fake_tier_count(&t), chunks);
            assert_range(rig_load_all(&r, NULL, n[i]), 0, want);
            rig_check(&r);
            assert_int_equal(r.st.hit_tokens, want);
            assert_int_equal(r.st.loaded_tokens, want);
            assert_int_equal(r.st.failed_loads, 0);
            assert_int_equal(rig_row(&r, name_of(&t), "hit_tokens"), want);
            assert_int_equal(rig_row(&r, name_of(&t), "gets"), chunks);
            assert_int_equal(rig_row(&r, name_of(&t), "held"), chunks);
            assert_range(rig_load_all(&r, NULL, n[i]), 0, want); /* promoted: now from host memory */
            assert_int_equal(rig_row(&r, name_of(&t), "gets"), chunks);
            assert_int_equal(rig_row(&r, "dram", "hit_tokens"), want);
            assert_int_equal(t.n_submits[KVC_PUT], 0); /* what came from the tier is not put again */
            rig_free(&r);
            fake_tier_free(&t);
        }
}

/* Host memory of four chunks, and loads of ten: chunks pass through it. */
static void a_load_larger_than_host_memory(void **state)
{
    (void)state;
    for (int mode = 0; mode < 8; mode++) {
        struct fake_tier t;
        struct rig r;
        fake_tier_init(&t, mode & 1);
        over_full_tier(&r, (struct rig_opts){.chunk = 64, .slots = 4, .threads = mode & 2, .no_local_cpu = mode & 4,
                                             .tier = {&t}}, 640);
        assert_range(rig_load_all(&r, NULL, 640), 0, 640);
        rig_check(&r);
        assert_int_equal(r.st.failed_loads, 0);
        /* Now the request's own pins may take all slots. What needs another one is left to the engine. */
        const struct kv_result res = rig_load_all(&r, NULL, 640);
        assert_true(res.good_to - res.good_from >= 256);
        rig_check(&r);
        assert_true(!r.cfg.local_cpu ? r.st.chunks == 0 : r.st.chunks == 4);
        rig_free(&r);
        fake_tier_free(&t);
    }
}

/* Without local_cpu a chunk leaves host memory when the tier has it; if no tier takes it, it is gone. */
static void host_memory_for_staging_only(void **state)
{
    (void)state;
    for (int fails = 0; fails < 2; fails++) {
        struct fake_tier t;
        struct rig r;
        fake_tier_init(&t, true);
        rig_open(&r, (struct rig_opts){.chunk = 64, .slots = 24, .no_local_cpu = true, .tier = {&t}});
        t.fail = fails;
        rig_store(&r, NULL, 320);
        assert_true(kvc_settle(r.k, 10));
        rig_check(&r);
        assert_int_equal(r.st.chunks, 0);
        assert_int_equal(r.st.bytes, 0);
        assert_int_equal(fake_tier_count(&t), fails ? 0 : 5);
        assert_int_equal(rig_row(&r, "fake", "failures"), fails ? 5 : 0);
        assert_int_equal(rig_row(&r, "dram", "lost_chunks"), fails ? 5 : 0);
        t.fail = false;
        assert_range(rig_load_all(&r, NULL, 320), 0, fails ? 0 : 320);
        rig_free(&r);
        fake_tier_free(&t);
    }
}

/* Without local_cpu, a prompt that is offered in parts reaches the tier whole, although its first chunks have left host
 * memory when the last ones are offered. The next request stores nothing again, or what follows the chunk that its load
 * has missed. */
static void a_prompt_in_parts_reaches_the_tier(void **state)
{
    (void)state;
    struct fake_tier t;
    struct rig r;
    fake_tier_init(&t, true);
    rig_open(&r, (struct rig_opts){.chunk = 64, .slots = 24, .no_local_cpu = true, .tier = {&t}});
    struct kv_seq *s = r.p.open(r.p.self, NULL, r.tok, 640);
    assert_int_equal(rig_lookup(&r, s, 640), 0);
    for (int n = 64; n <= 640; n += 64) {
        rig_store_seq(&r, s, NULL, n);
        assert_true(kvc_settle(r.k, 10));
        assert_int_equal(fake_tier_count(&t), n / 64);
    }
    r.p.close(s);
    for (int lost = 0; lost < 2; lost++) {
        s = r.p.open(r.p.self, NULL, r.tok, 640);
        assert_int_equal(rig_lookup(&r, s, 640), 640);
        for (int i = 0; lost && i < FAKE_TIER_CHUNKS; i++)
            if (t.chunk[i].bytes && ((struct kvc_header *)t.chunk[i].bytes)->position == 4)
                memset(&t.chunk[i].key, 0, sizeof t.chunk[i].key);
        assert_range(rig_load(&r, s, NULL, 640, 0, 640), lost ? 320 : 0, 640);
        rig_store_seq(&r, s, NULL, 640);
        r.p.close(s);
        assert_true(kvc_settle(r.k, 10));
        rig_check(&r);
        assert_int_equal(r.st.stored_tokens, lost ? 640 + 384 : 640);
    }
    rig_free(&r);
    fake_tier_free(&t);
}

/* What a GET delivers is lost, cut short, damaged or another chunk's: nothing of it is used. */
static void wrong_bytes_are_not_used(void **state)
{
    (void)state;
    for (int mode = 0; mode < 24; mode++) {
        struct fake_tier t;
        struct rig r;
        const int fault = mode / 4;
        fake_tier_init(&t, mode & 1);
        over_full_tier(&r, (struct rig_opts){.chunk = 64, .slots = 24, .threads = mode & 2, .tier = {&t}}, 320);
        *(bool *[]){&t.lose, &t.truncate, &t.flip_payload, &t.flip_header, &t.swap, &t.fail}[fault] = true;
        if (fault == 5) { /* the questions are answered before the tier fails */
            t.fail = false;
            struct kv_seq *s = r.p.open(r.p.self, NULL, r.tok, 320);
            assert_int_equal(rig_lookup(&r, s, 320), 320);
            t.fail = true;
            assert_range(rig_load(&r, s, NULL, 320, 0, 320), 0, 0);
            r.p.close(s);
        } else
            assert_range(rig_load_all(&r, NULL, 320), 0, 0);
        rig_check(&r);
        assert_int_equal(r.st.failed_loads, 1);
        assert_int_equal(r.st.loaded_tokens, 0);
        assert_int_equal(r.st.corrupt_chunks > 0, fault >= 1 && fault <= 4);
        t.lose = t.truncate = t.flip_payload = t.flip_header = t.swap = t.fail = false;
        assert_true(kvc_settle(r.k, 10));
        assert_int_equal(fake_tier_count(&t) < 5, fault >= 1 && fault <= 4); /* damaged chunks are removed */
        rig_store(&r, NULL, 320);
        assert_true(kvc_settle(r.k, 10));
        assert_range(rig_load_all(&r, NULL, 320), 0, 320);
        rig_free(&r);
        fake_tier_free(&t);
    }
}

/* A tier has another chunk under the same key: the ids in the header tell them apart. */
static void equal_keys_of_different_chunks_miss(void **state)
{
    (void)state;
    struct fake_tier t;
    struct rig r;
    fake_tier_init(&t, true);
    rig_open(&r, (struct rig_opts){.chunk = 64, .slots = 24, .no_local_cpu = true, .tier = {&t}});
    ((struct kvc_view *)r.p.self)->keys.key_bytes = 0; /* now every chunk has the same key */
    rig_store(&r, NULL, 64);
    assert_true(kvc_settle(r.k, 10));
    assert_range(rig_load_all(&r, NULL, 64), 0, 64);
    r.tok[63]++;
    assert_int_equal(rig_hit(&r, NULL, 64), 64); /* a hint, and a wrong one */
    assert_range(rig_load_all(&r, NULL, 64), 0, 0);
    r.tok[63]--;
    assert_range(rig_load_all(&r, NULL, 64), 0, 64);
    assert_int_equal(fake_tier_count(&t), 1);
    rig_free(&r);
    fake_tier_free(&t);
}

/* One chunk is lost between lookup and load: the larger side is loaded. */
static void a_missing_chunk_splits_the_load(void **state)
{
    (void)state;
    for (int mode = 0; mode < 4; mode++)
        for (int bad = 0; bad < 10; bad++) {
            struct fake_tier t;
            struct rig r;
            fake_tier_init(&t, mode & 1);
            t.polls = bad % 3;
            over_full_tier(&r, (struct rig_opts){.chunk = 64, .slots = 24, .threads = mode & 2, .tier = {&t}}, 640);
            struct kv_seq *s = r.p.open(r.p.self, NULL, r.tok, 640);
            assert_int_equal(rig_lookup(&r, s, 640), 640);
            for (int i = 0; i < FAKE_TIER_CHUNKS; i++)
                if (t.chunk[i].bytes && ((struct kvc_header *)t.chunk[i].bytes)->position == (uint32_t)bad)
                    memset(&t.chunk[i].key, 0, sizeof t.chunk[i].key);
            struct kv_result res = rig_load(&r, s, NULL, 640, 0, 640);
            assert_true(bad < 5 ? res.good_from == (bad + 1) * 64 && res.good_to == 640
                                : res.good_from == 0 && res.good_to == bad * 64);
            rig_check(&r);
            assert_int_equal(r.st.failed_loads, 1);
            r.p.close(s);
            rig_free(&r);
            fake_tier_free(&t);
        }
}

/* Two loads of the same chunks: each chunk is fetched once, and both loads get it. */
static void loads_share_fetches(void **state)
{
    (void)state;
    struct fake_tier t;
    struct rig r;
    fake_tier_init(&t, true);
    over_full_tier(&r, (struct rig_opts){.chunk = 64, .slots = 24, .tier = {&t}}, 640);
    t.polls = 5;
    struct kv_seq *a = r.p.open(r.p.self, NULL, r.tok, 640), *b = r.p.open(r.p.self, NULL, r.tok, 640);
    assert_int_equal(rig_lookup(&r, a, 640), 640);
    assert_int_equal(rig_lookup(&r, b, 640), 640);
    uint64_t ta = rig_begin_load(&r, a, 0, 640), tb;
    int32_t other[40];
    for (int i = 0; i < 40; i++) {
        other[i] = FAKE_PAGES / 2 + i;
        r.f.writable[other[i]] = true;
    }
    assert_int_equal(r.p.load(b, 0, 640, other, 0, &tb), 0);
    struct kv_result res = rig_wait(&r, ta);
    assert_range(res, 0, 640);
    rig_check_pages(&r, NULL, 640, 0, 640, res);
    assert_range(rig_wait(&r, tb), 0, 640);
    for (int i = 0; i < 40; i++)
        assert_true(fake_pages_holds(&r.f, other[i], NULL, r.tok, 640, i));
    assert_int_equal(t.n_submits[KVC_GET], 10);
    r.p.close(a);
    r.p.close(b);
    rig_free(&r);
    fake_tier_free(&t);
}

/* A tier without an index: the questions start when the request arrives, and the answer may come later. */
static void lookups_wait_for_answers(void **state)
{
    (void)state;
    struct fake_tier t;
    struct rig r;
    fake_tier_init(&t, false);
    over_full_tier(&r, (struct rig_opts){.chunk = 64, .slots = 24, .tier = {&t}}, 320);
    t.polls = 6;
    struct kv_seq *s = r.p.open(r.p.self, NULL, r.tok, 400);
    assert_int_equal(r.p.lookup(s, r.tok, 400, 0), KV_NOT_YET);
    rig_check(&r);
    assert_int_equal(r.st.lookups, 0);
    assert_int_equal(rig_lookup(&r, s, 400), 320);
    assert_int_equal(t.n_submits[KVC_EXISTS], 6);
    assert_int_equal(rig_lookup(&r, s, 400), 320); /* the answers are kept */
    assert_int_equal(t.n_submits[KVC_EXISTS], 6);
    rig_check(&r);
    assert_int_equal(r.st.lookups, 2);
    assert_int_equal(r.st.hit_tokens, 640);
    r.p.close(s);

    /* A question without an answer counts as a miss after a second, also if the request has gone meanwhile. */
    t.silent = true;
    s = r.p.open(r.p.self, NULL, r.tok, 400);
    struct kv_seq *gone = r.p.open(r.p.self, NULL, r.tok, 400);
    assert_int_equal(r.p.lookup(s, r.tok, 400, 0), KV_NOT_YET);
    r.p.close(gone);
    r.f.clock += 1100000000;
    assert_int_equal(r.p.lookup(s, r.tok, 400, 0), 0);
    assert_int_equal(rig_row(&r, "remote", "late"), 12);
    r.p.close(s);
    assert_true(kvc_settle(r.k, 1)); /* what is late is not waited for */
    t.silent = false;
    assert_range(rig_load_all(&r, NULL, 320), 0, 320);
    rig_free(&r);
    fake_tier_free(&t);
}

/* GETs that are never answered: the load ends at the deadline, their slots are not used again until the tier returns
 * them, and the cache closes. */
static void a_tier_that_never_answers(void **state)
{
    (void)state;
    for (int returns = 0; returns < 2; returns++) {
        struct fake_tier t;
        struct rig r;
        fake_tier_init(&t, true);
        over_full_tier(&r, (struct rig_opts){.chunk = 64, .slots = 12, .tier = {&t}}, 640);
        t.silent = true;
        struct kv_seq *s = r.p.open(r.p.self, NULL, r.tok, 640);
        assert_int_equal(rig_lookup(&r, s, 640), 640);
        uint64_t load = rig_begin_load(&r, s, 0, 640);
        for (int i = 0; i < 100; i++)
            assert_int_equal(r.p.poll(r.p.self, load, NULL), 0);
        r.f.clock += 5100000000;
        struct kv_result res = rig_wait(&r, load);
        assert_int_equal(res.good_from, res.good_to);
        rig_check(&r);
        assert_int_equal(r.st.failed_loads, 1);
        assert_true(rig_row(&r, "fake", "late") >= 4);
        assert_int_equal(rig_hit(&r, NULL, 640), 0); /* the tier is stuck, and not asked */
        rig_tokens(&r, 1);
        rig_store(&r, NULL, 768);
        const int lost = r.k->chunks.n_dropped;
        assert_true(lost > 0);
        assert_int_equal(rig_hit(&r, NULL, 768), (12 - lost) * 64);
        r.p.close(s);
        if (returns) {
            t.silent = false;
            rig_tokens(&r, 0);
            for (int i = 0; i < 3; i++)
                r.p.poll(r.p.self, 1, NULL);
            assert_int_equal(r.k->chunks.n_dropped, 0);
            assert_range(rig_load_all(&r, NULL, 640), 0, 640);
        }
        const int64_t start = km_now_ns();
        rig_free(&r);
        assert_true(km_now_ns() - start < 2000000000);
        fake_tier_free(&t);
    }
}

/* Detaching while a tier is silent: within two seconds, also with loads and stores open. */
static void detach_does_not_wait_for_a_tier(void **state)
{
    (void)state;
    for (int threads = 0; threads < 2; threads++) {
        struct fake_tier t;
        struct rig r;
        fake_tier_init(&t, true);
        over_full_tier(&r, (struct rig_opts){.chunk = 64, .slots = 24, .threads = threads, .tier = {&t}}, 640);
        t.silent = true;
        struct kv_seq *s = r.p.open(r.p.self, NULL, r.tok, 640), *x = r.p.open(r.p.self, "x", r.tok, 640);
        assert_int_equal(rig_lookup(&r, s, 640), 640);
        rig_begin_load(&r, s, 0, 640);
        rig_store_seq(&r, x, "x", 640);
        const int64_t start = km_now_ns();
        r.p.detach(r.p.self);
        assert_true(km_now_ns() - start < 1000000000);
        rig_check(&r);
        r.p.close(s);
        r.p.close(x);
        rig_free(&r);
        assert_true(km_now_ns() - start < 2000000000);
        fake_tier_free(&t);
    }
}

/* A tier that is too slow for what is stored: the first chunks of a sequence go first, the last ones are dropped. */
static void puts_are_bounded(void **state)
{
    (void)state;
    struct fake_tier t;
    struct rig r;
    fake_tier_init(&t, true);
    rig_open(&r, (struct rig_opts){.chunk = 64, .slots = 40, .tier = {&t}}); /* a quota of 20 */
    t.silent = true;
    rig_store(&r, NULL, 1920);
    rig_check(&r);
    assert_int_equal(rig_row(&r, "fake", "dropped_puts"), 10);
    assert_int_equal(rig_row(&r, "fake", "queued_puts"), 20);
    assert_int_equal(r.k->chunks.n_evictable, 10);
    assert_false(kvc_settle(r.k, 0.01));
    t.silent = false;
    assert_true(kvc_settle(r.k, 10));
    assert_int_equal(fake_tier_count(&t), 20);
    for (int i = 0; i < 20; i++) { /* the first twenty chunks are there */
        bool found = false;
        for (int j = 0; j < FAKE_TIER_CHUNKS; j++)
            found |= t.chunk[j].bytes && ((struct kvc_header *)t.chunk[j].bytes)->position == (uint32_t)i;
        assert_true(found);
    }
    rig_check(&r);
    assert_int_equal(r.k->chunks.n_evictable, 30);
    rig_free(&r);
    fake_tier_free(&t);
}

/* Of twelve chunks, the PUTs of six are dropped because the queue is full, or all PUTs fail. A load or a store that
 * uses the chunks has them queued again, as many as there is room for, and without it they are counted when they are
 * evicted. Chunks that the tier has are not queued again. */
static void dropped_puts_are_queued_again(void **state)
{
    (void)state;
    enum { NOTHING, LOAD, STORE };
    for (int mode = 0; mode < 12; mode++) {
        const bool fails = mode & 1, threads = mode & 2;
        const int use = mode / 4;
        struct fake_tier t;
        struct rig r;
        fake_tier_init(&t, threads);
        rig_open(&r, (struct rig_opts){.chunk = 64, .slots = 12, .threads = threads, .tier = {&t}}); /* a quota of 6 */
        t.silent = true;
        t.fail = fails;
        rig_store(&r, NULL, 768);
        assert_int_equal(rig_row(&r, name_of(&t), "dropped_puts"), 6);
        t.silent = false;
        assert_true(kvc_settle(r.k, 10));
        t.fail = false;
        int stored = fails ? 0 : 6;
        assert_int_equal(fake_tier_count(&t), stored);
        for (int i = 0; i < 3; i++) {
            if (use == LOAD)
                assert_range(rig_load_all(&r, NULL, 768), 0, 768);
            else if (use == STORE)
                rig_store(&r, NULL, 768);
            assert_true(kvc_settle(r.k, 10));
            stored = use && stored < 12 ? stored + 6 : stored;
            assert_int_equal(fake_tier_count(&t), stored);
        }
        assert_int_equal(t.n_submits[KVC_PUT], stored + (fails ? 6 : 0));
        assert_int_equal(rig_row(&r, name_of(&t), "dropped_puts"), 6); /* dropped once */
        rig_tokens(&r, 1);
        for (int n = 64; n <= 768; n += 64) { /* twelve others, which the tier can store as they come */
            rig_store(&r, NULL, n);
            assert_true(kvc_settle(r.k, 10));
        }
        rig_check(&r);
        assert_int_equal(r.st.evicted_chunks, 12);
        assert_int_equal(rig_row(&r, "dram", "lost_chunks"), 12 - stored);
        assert_int_equal(fake_tier_count(&t), 12 + stored);
        rig_free(&r);
        fake_tier_free(&t);
    }
}

/* A chunk that one of two tiers has is not lost. */
static void one_tier_of_two_is_enough(void **state)
{
    (void)state;
    for (int fails = 0; fails < 2; fails++) {
        struct fake_tier t[2];
        struct rig r;
        fake_tier_init(&t[0], true);
        fake_tier_init(&t[1], false);
        rig_open(&r, (struct rig_opts){.chunk = 64, .slots = 40, .tier = {&t[0], &t[1]}}); /* a quota of 10 each */
        t[0].fail = true;
        t[1].fail = fails;
        rig_store(&r, NULL, 640);
        assert_true(kvc_settle(r.k, 10));
        rig_store(&r, "x", 1920);
        assert_true(kvc_settle(r.k, 10));
        rig_store(&r, "y", 640);
        rig_check(&r);
        assert_int_equal(r.st.evicted_chunks, 10);
        assert_int_equal(rig_row(&r, "dram", "lost_chunks"), fails ? 10 : 0);
        rig_free(&r);
        fake_tier_free(&t[0]);
        fake_tier_free(&t[1]);
    }
}

static void a_reset_clears_all_tiers(void **state)
{
    (void)state;
    for (int threads = 0; threads < 2; threads++) {
        struct fake_tier t[2];
        struct rig r;
        fake_tier_init(&t[0], true);
        fake_tier_init(&t[1], false);
        rig_open(&r, (struct rig_opts){.chunk = 64, .slots = 96, .threads = threads, .tier = {&t[0], &t[1]}});
        t[0].silent = true;
        rig_store(&r, NULL, 640);
        assert_int_equal(r.p.reset(r.p.self), 1); /* PUTs are in flight */
        usleep(2000);
        assert_int_equal(r.p.reset(r.p.self), 1);
        t[0].silent = false;
        int rc;
        for (int i = 0; (rc = r.p.reset(r.p.self)) == 1; i++) {
            assert_true(i < 10000);
            usleep(100);
        }
        assert_int_equal(rc, 0);
        rig_check(&r);
        assert_int_equal(r.st.chunks, 0);
        assert_int_equal(fake_tier_count(&t[0]) + fake_tier_count(&t[1]), 0);
        assert_int_equal(rig_hit(&r, NULL, 640), 0);
        rig_store(&r, NULL, 640);
        assert_true(kvc_settle(r.k, 10));
        assert_int_equal(fake_tier_count(&t[0]), 10);
        assert_int_equal(fake_tier_count(&t[1]), 10);
        t[1].clear_fails = true;
        while ((rc = r.p.reset(r.p.self)) == 1)
            usleep(100);
        assert_true(rc < 0);
        t[1].clear_fails = false;
        assert_range(rig_load_all(&r, NULL, 640), 0, 640); /* from the tier that kept them */
        rig_free(&r);
        fake_tier_free(&t[0]);
        fake_tier_free(&t[1]);
    }
}

/* All slots are pinned by other requests: a chunk from the tier can get none, and the load goes on without it. */
static void no_slot_is_a_miss(void **state)
{
    (void)state;
    struct fake_tier t;
    struct rig r;
    fake_tier_init(&t, true);
    over_full_tier(&r, (struct rig_opts){.chunk = 64, .slots = 5, .tier = {&t}}, 320);
    rig_store(&r, "x", 320);
    assert_true(kvc_settle(r.k, 10));
    struct kv_seq *x = r.p.open(r.p.self, "x", r.tok, 320), *s = r.p.open(r.p.self, NULL, r.tok, 320);
    assert_int_equal(rig_lookup(&r, x, 320), 320);
    assert_int_equal(rig_lookup(&r, s, 320), 320);
    struct kv_result res = rig_load(&r, s, NULL, 320, 0, 320);
    assert_int_equal(res.good_from, res.good_to);
    rig_check(&r);
    assert_int_equal(r.st.failed_loads, 1);
    r.p.close(x);
    assert_range(rig_load_all(&r, NULL, 320), 0, 320);
    r.p.close(s);
    rig_free(&r);
    fake_tier_free(&t);
}

/* The second tier has what the first one lost; the others come from the first one. */
static void a_second_tier(void **state)
{
    (void)state;
    for (int mode = 0; mode < 4; mode++) {
        struct fake_tier t[2];
        struct rig r;
        fake_tier_init(&t[0], mode & 1);
        fake_tier_init(&t[1], mode & 2);
        over_full_tier(&r, (struct rig_opts){.chunk = 64, .slots = 24, .tier = {&t[0], &t[1]}}, 640);
        for (int i = 0; i < FAKE_TIER_CHUNKS; i++)
            if (t[0].chunk[i].bytes && ((struct kvc_header *)t[0].chunk[i].bytes)->position % 3 == 1)
                memset(&t[0].chunk[i].key, 0, sizeof t[0].chunk[i].key);
        assert_range(rig_load_all(&r, NULL, 640), 0, 640);
        assert_int_equal(t[0].n_submits[KVC_GET] + t[1].n_submits[KVC_GET], 10);
        assert_int_equal(t[1].n_submits[KVC_GET], 3);
        rig_free(&r);
        fake_tier_free(&t[0]);
        fake_tier_free(&t[1]);
    }
}

/* The real disk tier behind the port. */
static void chunks_come_back_from_a_disk(void **state)
{
    (void)state;
    char dir[] = "/tmp/kvc_tier_test_XXXXXX", spec[64], command[64];
    assert_non_null(mkdtemp(dir));
    snprintf(spec, sizeof spec, "disk=%s:64MiB", dir);
    for (int threads = 0; threads < 2; threads++)
        for (int unfull = 0; unfull < 2; unfull++) {
            struct rig r;
            const int want = unfull ? 650 : 640;
            over_full_tier(&r, (struct rig_opts){.chunk = 64, .slots = 24, .threads = threads, .save_unfull = unfull,
                                                 .spec = spec}, 650);
            r.f.poll_ns = 100; /* the disk has the machine's clock */
            assert_range(rig_load_all(&r, NULL, 650), 0, want);
            rig_check(&r);
            assert_int_equal(rig_row(&r, "disk", "hit_tokens"), want);
            assert_int_equal(rig_row(&r, "disk", "gets"), 10 + unfull);
            assert_int_equal(r.st.failed_loads, 0);
            int rc;
            while ((rc = r.p.reset(r.p.self)) == 1)
                usleep(100);
            assert_int_equal(rc, 0);
            assert_int_equal(rig_hit(&r, NULL, 650), 0);
            rig_free(&r);
        }
    snprintf(command, sizeof command, "rm -r %s", dir);
    assert_int_equal(system(command), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(chunks_come_back_from_a_tier),
        cmocka_unit_test(a_load_larger_than_host_memory),
        cmocka_unit_test(host_memory_for_staging_only),
        cmocka_unit_test(a_prompt_in_parts_reaches_the_tier),
        cmocka_unit_test(wrong_bytes_are_not_used),
        cmocka_unit_test(equal_keys_of_different_chunks_miss),
        cmocka_unit_test(a_missing_chunk_splits_the_load),
        cmocka_unit_test(loads_share_fetches),
        cmocka_unit_test(lookups_wait_for_answers),
        cmocka_unit_test(a_tier_that_never_answers),
        cmocka_unit_test(detach_does_not_wait_for_a_tier),
        cmocka_unit_test(puts_are_bounded),
        cmocka_unit_test(dropped_puts_are_queued_again),
        cmocka_unit_test(one_tier_of_two_is_enough),
        cmocka_unit_test(a_reset_clears_all_tiers),
        cmocka_unit_test(no_slot_is_a_miss),
        cmocka_unit_test(a_second_tier),
        cmocka_unit_test(chunks_come_back_from_a_disk),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
