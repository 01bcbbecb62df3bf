/* Faults of copies, of host memory and of other operations: what a load reports is right, and nothing hangs. */
#include "kvcache/test/rig.h"

#include "base/clock.h"
#include "base/mem.h"
#include "kvcache/sequence.h"

#include <string.h>

/* For LeakSanitizer: copies that never end are leaked on purpose, because a device or a tier may still use them. */
const char *__lsan_default_suppressions(void);
const char *__lsan_default_suppressions(void)
{
    return "leak:attach\n";
}

static void assert_range(struct kv_result r, int from, int to)
{
    assert_int_equal(r.good_from, from);
    assert_int_equal(r.good_to, to);
}

/* The larger of [from, bad chunk) and [behind it, to). */
static struct kv_result expected(int from, int to, int chunk, int C)
{
    int a = chunk * C > from ? chunk * C : from, b = (chunk + 1) * C < to ? (chunk + 1) * C : to;
    if (to - b > a - from)
        return (struct kv_result){b, to};
    return a > from ? (struct kv_result){from, a} : (struct kv_result){from, from};
}

/* A bit flips in each page, at each point of a load: the chunk is found, counted, dropped, and not used. */
static void flips_in_loads_are_found(void **state)
{
    (void)state;
    enum { N = 320, C = 64 };
    for (int point = FAKE_FLIP_BEFORE; point <= FAKE_FLIP_AFTER; point++)
        for (int at = 1; at <= N / B; at++) {
            struct rig r;
            rig_open(&r, (struct rig_opts){.chunk = C, .slots = 8, .threads = at % 2});
            rig_store(&r, NULL, N);
            r.f.flip = (enum fake_flip)point;
            r.f.flip_dir = KV_TO_PAGE;
            r.f.flip_at = at;
            struct kv_result res = rig_load_all(&r, NULL, N), want = expected(0, N, (at - 1) * B / C, C);
            assert_range(res, want.good_from, want.good_to);
            rig_check(&r);
            assert_int_equal(r.st.corrupt_chunks, 1);
            assert_int_equal(r.st.failed_loads, 1);
            assert_int_equal(r.st.loaded_tokens, want.good_to - want.good_from);
            assert_int_equal(r.st.chunks, 4);
            assert_int_equal(rig_hit(&r, NULL, N), (at - 1) * B / C * C); /* a lookup stops at the dropped chunk */
            rig_store(&r, NULL, N);                                      /* computed again, and stored */
            assert_range(rig_load_all(&r, NULL, N), 0, N);
            rig_check(&r);
            assert_int_equal(r.st.corrupt_chunks, 1);
            rig_free(&r);
        }
}

/* A bit flips while a page is stored, or in host memory afterwards. A flip in the page before the store is part of what
 * is stored: the cache cannot know. */
static void flips_in_stores_are_found(void **state)
{
    (void)state;
    enum { N = 320, C = 64 };
    for (int at = 1; at <= N / B; at++) {
        struct rig r;
        rig_open(&r, (struct rig_opts){.chunk = C, .slots = 8});
        r.f.flip = at % 2 ? FAKE_FLIP_DURING : FAKE_FLIP_AFTER;
        r.f.flip_dir = KV_TO_HOST;
        r.f.flip_at = at;
        rig_store(&r, NULL, N);
        assert_int_equal(rig_hit(&r, NULL, N), N); /* nobody has looked at the bytes yet */
        const struct kv_result res = rig_load_all(&r, NULL, N);
        assert_true(res.good_to - res.good_from < N && res.good_to - res.good_from >= 128);
        rig_check(&r);
        assert_int_equal(r.st.corrupt_chunks, 1);
        assert_int_equal(r.st.failed_loads, 1);
        rig_free(&r);
    }
}

/* Two loads of the same damaged chunk: both leave it out, and it is counted once. */
static void damage_is_counted_once(void **state)
{
    (void)state;
    struct rig r;
    rig_open(&r, (struct rig_opts){.chunk = 64, .slots = 8});
    rig_store(&r, NULL, 320);
    struct kv_seq *a = r.p.open(r.p.self, NULL, r.tok, 320), *b = r.p.open(r.p.self, NULL, r.tok, 320);
    assert_int_equal(rig_lookup(&r, a, 320), 320);
    assert_int_equal(rig_lookup(&r, b, 320), 320);
    kvc_pool_payload(r.k->pool, rig_slot(&r, NULL, 1))[700] ^= 8;
    assert_range(rig_load(&r, a, NULL, 320, 0, 320), 128, 320);
    assert_range(rig_load(&r, b, NULL, 320, 16, 320), 128, 320);
    rig_check(&r);
    assert_int_equal(r.st.corrupt_chunks, 1);
    assert_int_equal(r.st.failed_loads, 2);
    r.p.close(a);
    r.p.close(b);
    rig_free(&r);
}

/* Each copy fails once, in its call or at its ticket, for stores and for loads. */
static void failed_copies_lose_only_their_chunks(void **state)
{
    (void)state;
    for (int at_poll = 0; at_poll < 2; at_poll++)
        for (int threads = 0; threads < 2; threads++)
            for (int n = 1; n <= 6; n++) {
                struct rig r;
                rig_open(&r, (struct rig_opts){.chunk = 64, .slots = 24, .threads = threads,
                                               .throttle = 1024 * 200 * B}); /* loads: 32 pages a piece */
                int *fail = at_poll ? &r.f.fail_poll : &r.f.fail_copy;
                *fail = n;
                rig_store(&r, NULL, 1024);
                rig_check(&r);
                assert_int_equal(r.st.stored_tokens, n == 1 ? 0 : 1024); /* all pages are in one piece */
                *fail = 0;
                rig_store(&r, NULL, 1024);
                assert_int_equal(rig_hit(&r, NULL, 1024), 1024);
                *fail = n;
                r.f.poll_ns = 1000000;
                const struct kv_result res = rig_load_all(&r, NULL, 1024);
                rig_check(&r);
                const int failed = *fail == 0, lost = 1024 - (res.good_to - res.good_from);
                assert_int_equal(r.st.failed_loads, failed);
                assert_int_equal(lost > 0, failed);
                assert_true(lost <= 512);
                *fail = 0;
                assert_range(rig_load_all(&r, NULL, 1024), 0, 1024); /* the chunks are still good */
                rig_check(&r);
                assert_int_equal(r.st.corrupt_chunks, 0);
                rig_free(&r);
            }
}

/* Chunks that another store fills count as stored. If that store fails, the chunk must not be missing for ever: the
 * chunks behind it could not be reached, and nobody would offer it again. */
static void a_failed_store_leaves_no_hole(void **state)
{
    (void)state;
    for (int at_poll = 0; at_poll < 2; at_poll++) {
        struct rig r;
        rig_open(&r, (struct rig_opts){.chunk = 64, .slots = 24});
        for (int b = 0; b < 40; b++)
            fake_pages_fill(&r.f, r.from[b], NULL, r.tok, 640, b);
        struct kv_seq *a = r.p.open(r.p.self, NULL, r.tok, 640), *b = r.p.open(r.p.self, NULL, r.tok, 640);
        uint64_t ta, tb;
        int from;
        r.f.limit = at_poll ? FAKE_COPIES : 0; /* without room the copy of a is not submitted yet */
        r.f.fail_poll = at_poll;
        assert_int_equal(r.p.store(a, r.tok, 128, 640, r.from, 5, &ta, &from), 0);
        r.f.fail_copy = !at_poll;
        assert_int_equal(r.p.store(b, r.tok, 640, 640, r.from, 5, &tb, &from), 0);
        assert_int_equal(from, 0); /* b needs its pages in case that a fails */
        r.f.limit = FAKE_COPIES;
        r.f.step = 5;
        rig_wait(&r, ta);
        rig_wait(&r, tb);
        rig_check(&r);
        assert_int_equal(r.st.stored_tokens, 640);
        assert_int_equal(rig_hit(&r, NULL, 640), 640);
        assert_range(rig_load_all(&r, NULL, 640), 0, 640);
        r.p.close(a);
        r.p.close(b);
        rig_free(&r);
    }
}

/* A store whose own copies failed may offer its chunks again. */
/* The device registers no host memory: the cache has its full size, and copies go on. */
static void unregistered_memory_serves(void **state)
{
    (void)state;
    for (int refuse = 0; refuse < 2; refuse++) {
        struct rig r;
        struct km_err why;
        rig_open(&r, (struct rig_opts){.chunk = 64, .slots = 24, .threads = true, .refuse_register = refuse});
        assert_true(kvc_memory_ready(r.k, &why));
        assert_int_equal(why.code, refuse ? KM_EDEVICE : 0);
        rig_store(&r, NULL, 1536);
        assert_range(rig_load_all(&r, NULL, 1536), 0, 1536);
        rig_check(&r);
        assert_int_equal(r.st.chunks, 24);
        assert_true(rig_row(&r, "dram", "unregistered_bytes") == (refuse ? (double)r.st.capacity : 0));
        assert_int_equal(r.f.registered > 0, !refuse);
        rig_free(&r);
    }
}

static void failed_chunks_are_offered_again(void **state)
{
    (void)state;
    struct rig r;
    rig_open(&r, (struct rig_opts){.chunk = 64, .slots = 24, .save_unfull = true});
    struct kv_seq *s = r.p.open(r.p.self, NULL, r.tok, 650);
    r.f.fail_poll = 1;
    rig_store_seq(&r, s, NULL, 650);
    assert_int_equal(rig_hit(&r, NULL, 650), 0);
    rig_store_seq(&r, s, NULL, 650);
    assert_int_equal(rig_hit(&r, NULL, 650), 650);
    r.p.close(s);
    rig_free(&r);
}

/* Detaching with operations open: every copy in flight ends first, and the chunks that are complete stay. */
static void detach_ends_what_is_open(void **state)
{
    (void)state;
    for (int threads = 0; threads < 2; threads++) {
        struct rig r;
        rig_open(&r, (struct rig_opts){.chunk = 64, .slots = 24, .threads = threads});
        rig_store(&r, NULL, 640);
        r.f.rate = 200e3; /* 512 bytes take 2.5 ms, or some polls */
        struct kv_seq *a = r.p.open(r.p.self, NULL, r.tok, 640), *b = r.p.open(r.p.self, "b", r.tok, 640);
        assert_int_equal(rig_lookup(&r, a, 640), 640);
        r.f.poll_ns = 100000;
        uint64_t load = rig_begin_load(&r, a, 0, 640), store;
        int from;
        assert_int_equal(r.p.store(b, r.tok, 640, 640, r.from, 0, &store, &from), 0);
        assert_true(load && store);
        const int64_t start = km_now_ns();
        r.p.detach(r.p.self);
        assert_true(km_now_ns() - start < 2000000000);
        assert_int_equal(r.f.in_flight, 0);
        assert_int_equal(r.f.registered, 0);
        struct kv_result res;
        assert_int_equal(r.p.poll(r.p.self, load, &res), KM_EINVAL);
        rig_check(&r);
        assert_int_equal(r.p.lookup(a, r.tok, 640, 0), 0); /* sequences of an earlier attachment find nothing */
        assert_int_equal(r.p.store(a, r.tok, 640, 640, r.from, 0, &store, &from), 0);
        assert_int_equal(store, 0);
        r.f.rate = 0;
        assert_int_equal(r.p.attach(r.p.self, &r.f.geom, &r.f.copier, NULL), 0);
        assert_int_equal(r.p.lookup(a, r.tok, 640, 0), 0);
        r.p.close(a);
        r.p.close(b);
        assert_range(rig_load_all(&r, NULL, 640), 0, 640); /* the chunks have stayed */
        rig_free(&r);
    }
}

/* Copies that never end: detach returns within two seconds, and their slots are never used again. */
static void detach_gives_up_copies_that_hang(void **state)
{
    (void)state;
    for (int threads = 0; threads < 2; threads++) {
        struct rig r;
        rig_open(&r, (struct rig_opts){.chunk = 64, .slots = 12, .threads = threads});
        rig_store(&r, NULL, 192);
        struct kv_seq *a = r.p.open(r.p.self, NULL, r.tok, 640), *b = r.p.open(r.p.self, "b", r.tok, 128);
        assert_int_equal(rig_lookup(&r, a, 640), 192);
        pthread_mutex_lock(&r.f.lock);
        r.f.hold = true;
        pthread_mutex_unlock(&r.f.lock);
        uint64_t store;
        int from;
        rig_begin_load(&r, a, 0, 192);
        assert_int_equal(r.p.store(b, r.tok, 128, 128, r.from, 0, &store, &from), 0);
        int flying = 0;
        for (int i = 0; i < 1000 && flying < 2; i++) {
            usleep(100);
            pthread_mutex_lock(&r.f.lock);
            flying = r.f.in_flight;
            pthread_mutex_unlock(&r.f.lock);
        }
        assert_int_equal(flying, 2);
        const int64_t start = km_now_ns();
        r.p.detach(r.p.self);
        assert_true(km_now_ns() - start < 2000000000);
        rig_check(&r);
        r.p.close(a);
        r.p.close(b);
        assert_int_equal(r.p.attach(r.p.self, &r.f.geom, &r.f.copier, NULL), 0);
        r.f.hold = false;
        r.f.in_flight = r.f.n[0] = r.f.n[1] = 0; /* the engine's device is gone, and its copies with it */
        assert_int_equal(rig_hit(&r, NULL, 192), 192);
        rig_tokens(&r, 1);
        rig_store(&r, NULL, 768); /* 12 slots: 5 of them are not used any more */
        assert_int_equal(rig_hit(&r, NULL, 768), 448);
        rig_free(&r);
    }
}

/* The copier's call itself does not return. */
static int hang(void *self, uint64_t ticket)
{
    (void)self;
    (void)ticket;
    sleep(5);
    return 0;
}

static void detach_survives_a_copier_that_blocks(void **state)
{
    (void)state;
    static struct rig r; /* the thread uses it after the test */
    rig_open(&r, (struct rig_opts){.chunk = 64, .slots = 12, .threads = true});
    r.p.detach(r.p.self);
    r.f.copier.poll = hang;
    assert_int_equal(r.p.attach(r.p.self, &r.f.geom, &r.f.copier, NULL), 0);
    struct kv_seq *s = r.p.open(r.p.self, NULL, r.tok, 128);
    uint64_t t;
    int from;
    assert_int_equal(r.p.store(s, r.tok, 128, 128, r.from, 0, &t, &from), 0);
    usleep(10000);
    const int64_t start = km_now_ns();
    r.p.detach(r.p.self);
    assert_true(km_now_ns() - start < 2000000000);
    kvc_free(r.k); /* returns, although the thread does not end */
    assert_true(km_now_ns() - start < 4000000000);
}

/* Stores and loads with the n-th allocation failing. True if the scenario needed fewer than n allocations. */
static bool scenario(long n)
{
    struct fake_pages f;
    fake_pages_open(&f, false, true);
    struct kvc_config c = kvc_defaults();
    c.chunk_size = 64;
    c.max_local_cpu = 1 << 16;
    c.save_unfull = true;
    struct kvc *k = NULL;
    struct kv_port p;
    bool through = true;
    km_mem_fail_at(n);
    if (kvc_open(&k, &c, NULL))
        through = false;
    else if (kvc_port(k, &p, NULL))
        through = false;
    else {
        if (p.attach(p.self, &f.geom, &f.copier, NULL))
            through = false;
        else if (kvc_pool_wait(k->pool, NULL))
            through = false;
        int32_t tok[256], table[16], into[16];
        for (int i = 0; i < 256; i++)
            tok[i] = i;
        for (int i = 0; i < 16; i++) {
            table[i] = i;
            into[i] = 100 + i;
            f.writable[into[i]] = true;
            fake_pages_fill(&f, i, "s", tok, 250, i);
        }
        for (int round = 0; round < 2; round++) {
            struct kv_seq *s = p.open(p.self, "s", tok, 250);
            if (!s) {
                through = false;
                continue;
            }
            struct kv_result res = {0, 0};
            int got = p.lookup(s, tok, 250, 0), from;
            uint64_t t;
            int rc = p.load(s, 0, got, into, 0, &t);
            through = through && !rc && got == (round ? 250 : 0);
            while (t && !p.poll(p.self, t, &res))
                ;
            assert_true(res.good_to <= got);
            for (int i = res.good_from / 16; i * 16 < res.good_to; i++)
                assert_true(fake_pages_holds(&f, into[i], "s", tok, 250, i));
            rc = p.store(s, tok, 250, 250, table, 0, &t, &from);
            through = through && !rc;
            while (t && !p.poll(p.self, t, NULL))
                ;
            p.close(s);
        }
        km_mem_fail_at(0);
        assert_int_equal(kvc_check(k, NULL), 0);
    }
    km_mem_fail_at(0);
    kvc_free(k);
    assert_int_equal(f.registered, 0);
    fake_pages_close(&f);
    return through;
}

static void failed_allocations_lose_nothing(void **state)
{
    (void)state;
    int64_t before = km_mem_stats(KM_MEM_HOST).current;
    long n = 1;
    while (!scenario(n)) {
        assert_int_equal(km_mem_stats(KM_MEM_HOST).current, before);
        assert_true(++n < 1000);
    }
    assert_true(n > 10);
    assert_int_equal(km_mem_stats(KM_MEM_HOST).current, before);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(failed_allocations_lose_nothing), /* first: the other tests leave memory that hangs */
        cmocka_unit_test(flips_in_loads_are_found),
        cmocka_unit_test(flips_in_stores_are_found),
        cmocka_unit_test(damage_is_counted_once),
        cmocka_unit_test(failed_copies_lose_only_their_chunks),
        cmocka_unit_test(a_failed_store_leaves_no_hole),
        cmocka_unit_test(unregistered_memory_serves),
        cmocka_unit_test(failed_chunks_are_offered_again),
        cmocka_unit_test(detach_ends_what_is_open),
        cmocka_unit_test(detach_gives_up_copies_that_hang),
        cmocka_unit_test(detach_survives_a_copier_that_blocks),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
