/* The store itself: engines that share it, attaching, growth, the throttle, and estimates of load times. */
#include "kvcache/test/rig.h"

#include "base/clock.h"
#include "kvcache/sequence.h"

#include <string.h>

static void assert_range(struct kv_result r, int from, int to)
{
    assert_int_equal(r.good_from, from);
    assert_int_equal(r.good_to, to);
}

/* A second engine on the cache of r: a device, a view and a port of its own. */
static void second_engine(struct rig *two, struct rig *r)
{
    memset(two, 0, sizeof *two);
    fake_pages_open(&two->f, r->f.copier.threads, r->f.copier.payload);
    two->k = r->k;
    two->cfg = r->cfg;
    memcpy(two->tok, r->tok, sizeof two->tok);
    memcpy(two->from, r->from, sizeof two->from);
    memcpy(two->into, r->into, sizeof two->into);
    assert_int_equal(kvc_port(two->k, &two->p, NULL), 0);
    assert_int_equal(two->p.attach(two->p.self, &two->f.geom, &two->f.copier, NULL), 0);
}

/* Host memory is registered through the first engine's copier, and unregistered through that of the last. */
static void second_engine_leaves(struct rig *two, struct rig *r)
{
    two->p.detach(two->p.self);
    assert_int_equal(two->f.registered + r->f.registered, 0);
    r->f.registered = 0;
    fake_pages_close(&two->f);
}

static void two_engines_share_a_store(void **state)
{
    (void)state;
    for (int threads = 0; threads < 2; threads++) {
        struct rig a, b;
        rig_open(&a, (struct rig_opts){.chunk = 64, .slots = 24, .threads = threads});
        second_engine(&b, &a);
        rig_store(&a, NULL, 640);
        assert_range(rig_load_all(&b, NULL, 640), 0, 640); /* one prefills, the other continues */
        rig_store(&b, "b", 320);
        assert_range(rig_load_all(&a, "b", 320), 0, 320);
        rig_check(&a);
        rig_check(&b);
        assert_int_equal(a.st.stored_tokens, 640);
        assert_int_equal(a.st.loaded_tokens, 320);
        assert_int_equal(b.st.stored_tokens, 320);
        assert_int_equal(b.st.loaded_tokens, 640);
        assert_int_equal(b.st.chunks, 15);

        /* One engine leaves while the other has a store in flight. */
        uint64_t t;
        int from;
        for (int i = 0; i < 40; i++)
            fake_pages_fill(&b.f, b.from[i], "c", b.tok, 640, i);
        struct kv_seq *s = b.p.open(b.p.self, "c", b.tok, 640);
        assert_int_equal(b.p.store(s, b.tok, 320, 320, b.from, 9, &t, &from), 0);
        a.p.detach(a.p.self);
        rig_end_step(&b, 9);
        rig_wait(&b, t);
        b.p.close(s);
        assert_int_equal(rig_hit(&b, "c", 320), 320);
        assert_int_equal(rig_hit(&a, "c", 320), 0);
        second_engine_leaves(&b, &a);
        rig_free(&a);
    }
}

/* An engine that leaves in the midst of a store loses its chunks; another one that waits for them stores them. */
static void an_engine_leaves_no_hole(void **state)
{
    (void)state;
    struct rig a, b;
    rig_open(&a, (struct rig_opts){.chunk = 64, .slots = 24});
    second_engine(&b, &a);
    for (int i = 0; i < 40; i++)
        fake_pages_fill(&b.f, b.from[i], NULL, b.tok, 640, i);
    struct kv_seq *sa = a.p.open(a.p.self, NULL, a.tok, 640), *sb = b.p.open(b.p.self, NULL, b.tok, 640);
    uint64_t ta, tb;
    int from;
    a.f.limit = 0; /* the device of a takes no copy */
    assert_int_equal(a.p.store(sa, a.tok, 320, 640, a.from, 0, &ta, &from), 0);
    assert_int_equal(b.p.store(sb, b.tok, 640, 640, b.from, 0, &tb, &from), 0);
    assert_int_equal(from, 0);
    assert_int_equal(b.p.poll(b.p.self, tb, NULL), 0);
    a.p.detach(a.p.self);
    rig_wait(&b, tb);
    assert_range(rig_load_all(&b, NULL, 640), 0, 640);
    a.p.close(sa);
    b.p.close(sb);
    second_engine_leaves(&b, &a);
    rig_free(&a);
}

static void attach_refuses_what_does_not_fit(void **state)
{
    (void)state;
    struct rig r;
    struct km_err err = {0};
    rig_open(&r, (struct rig_opts){.chunk = 64, .slots = 10});
    assert_int_equal(r.p.attach(r.p.self, &r.f.geom, &r.f.copier, &err), KM_EINVAL);
    assert_non_null(strstr(err.msg, "already"));
    struct kv_port other;
    assert_int_equal(kvc_port(r.k, &other, NULL), 0);
    struct kv_geom g = r.f.geom;
    g.numerics[0] = 'x';
    assert_int_equal(other.attach(other.self, &g, &r.f.copier, &err), KM_EINVAL);
    assert_non_null(strstr(err.msg, "in use"));
    struct kv_copier c = r.f.copier;
    c.payload = false;
    assert_int_equal(other.attach(other.self, &r.f.geom, &c, &err), KM_EINVAL);
    r.p.detach(r.p.self);
    g = r.f.geom;
    g.block_size = 48;
    g.page_bytes *= 3;
    assert_int_equal(r.p.attach(r.p.self, &g, &r.f.copier, &err), KM_EINVAL);
    assert_non_null(strstr(err.msg, "chunk_size 64 is not a multiple"));
    rig_free(&r);
    struct kvc_config bad = kvc_defaults();
    struct kvc *k;
    bad.chunk_size = 0;
    assert_int_equal(kvc_open(&k, &bad, &err), KM_EINVAL);
    bad = kvc_defaults();
    bad.max_local_cpu = 0;
    assert_int_equal(kvc_open(&k, &bad, &err), KM_EINVAL);
    bad.max_local_cpu = (int64_t)1 << 40;
    struct fake_pages f;
    fake_pages_open(&f, true, true);
    assert_int_equal(kvc_open(&k, &bad, &err), 0);
    assert_int_equal(kvc_port(k, &other, NULL), 0);
    assert_int_equal(other.attach(other.self, &f.geom, &f.copier, &err), KM_ENOMEM);
    assert_non_null(strstr(err.msg, "max_local_cpu_size"));
    kvc_free(k);
    fake_pages_close(&f);
}

/* When no engine is attached, an engine of another model may take the cache; it starts empty. */
static void another_shape_is_another_cache(void **state)
{
    (void)state;
    for (int threads = 0; threads < 2; threads++) {
        struct rig r;
        rig_open(&r, (struct rig_opts){.chunk = 64, .slots = 8, .threads = threads});
        rig_store(&r, NULL, 128);
        struct kv_seq *old = r.p.open(r.p.self, NULL, r.tok, 128);
        assert_int_equal(rig_lookup(&r, old, 128), 128);
        r.p.detach(r.p.self);
        assert_int_equal(r.f.registered, 0);
        r.f.geom.rope_theta = 1e4;
        assert_int_equal(r.p.attach(r.p.self, &r.f.geom, &r.f.copier, NULL), 0);
        assert_true(kvc_settle(r.k, 10));
        assert_int_equal(rig_hit(&r, NULL, 128), 0);
        rig_store(&r, NULL, 128);
        assert_range(rig_load_all(&r, NULL, 128), 0, 128);
        assert_int_equal(rig_lookup(&r, old, 128), 0); /* opened under the previous attachment */
        uint64_t t;
        int from;
        assert_int_equal(r.p.store(old, r.tok, 128, 128, r.from, 0, &t, &from), 0);
        assert_int_equal(t, 0);
        r.p.close(old);
        rig_free(&r);
    }
}

static void without_a_place_nothing_is_stored(void **state)
{
    (void)state;
    struct fake_pages f;
    struct kvc_config c = kvc_defaults();
    c.local_cpu = false;
    struct kvc *k;
    struct kv_port p;
    struct kv_port_stats st;
    fake_pages_open(&f, true, true);
    assert_int_equal(kvc_open(&k, &c, NULL), 0);
    assert_int_equal(kvc_port(k, &p, NULL), 0);
    assert_int_equal(p.attach(p.self, &f.geom, &f.copier, NULL), 0);
    int32_t tok[256] = {0}, table[16] = {0};
    struct kv_seq *s = p.open(p.self, "x", tok, 256);
    uint64_t t;
    int from;
    assert_int_equal(p.lookup(s, tok, 256, 0), 0);
    assert_int_equal(p.store(s, tok, 256, 256, table, 0, &t, &from), 0);
    assert_int_equal(t, 0);
    assert_int_equal(p.lookup(s, tok, 256, 0), 0);
    assert_int_equal(p.load_ns(s, 0, 0), 0);
    p.close(s);
    p.stats(p.self, &st);
    assert_int_equal(st.capacity, 0);
    assert_int_equal(st.lookups, 2);
    assert_int_equal(f.registered, 0);
    assert_int_equal(p.reset(p.self), 0);
    assert_int_equal(kvc_check(k, NULL), 0);
    kvc_free(k);
    fake_pages_close(&f);
}

/* A device whose registration waits for the test: host memory grows slab by slab. */
static pthread_mutex_t gate = PTHREAD_MUTEX_INITIALIZER;
static int allowed, asked;

static int slow_register(void *self, void *p, size_t size, struct km_err *err)
{
    (void)self;
    (void)p;
    (void)size;
    (void)err;
    for (bool go = false; !go; usleep(100)) {
        pthread_mutex_lock(&gate);
        go = allowed > asked;
        asked += go;
        pthread_mutex_unlock(&gate);
    }
    return 0;
}

static void slow_unregister(void *self, void *p, size_t size)
{
    (void)self;
    (void)p;
    (void)size;
}

static void let_register(int n)
{
    pthread_mutex_lock(&gate);
    allowed = n;
    pthread_mutex_unlock(&gate);
}

static void stores_use_memory_as_it_grows(void **state)
{
    (void)state;
    struct rig r;
    rig_open(&r, (struct rig_opts){.chunk = 64, .slots = 12, .threads = true});
    r.p.detach(r.p.self);
    r.f.geom.rope_theta = 1e4; /* a new store, which grows again */
    r.f.copier.host_register = slow_register;
    r.f.copier.host_unregister = slow_unregister;
    allowed = asked = 0;
    const int64_t start = km_now_ns();
    assert_int_equal(r.p.attach(r.p.self, &r.f.geom, &r.f.copier, NULL), 0);
    assert_true(km_now_ns() - start < 1000000000); /* attach does not wait for the memory */
    assert_false(kvc_settle(r.k, 0.01));
    rig_store(&r, NULL, 640);
    assert_int_equal(rig_hit(&r, NULL, 640), 0);
    assert_int_equal(rig_row(&r, "dram", "growing"), 1);
    let_register(1);
    while (kvc_pool_usable(r.k->pool) == 0)
        usleep(100);
    const int some = kvc_pool_usable(r.k->pool);
    assert_true(some > 0 && some < 10);
    rig_store(&r, NULL, 640);
    assert_int_equal(rig_hit(&r, NULL, 640), some * 64);
    assert_range(rig_load_all(&r, NULL, 640), 0, some * 64);
    let_register(100);
    assert_true(kvc_settle(r.k, 10));
    rig_store(&r, NULL, 640);
    assert_range(rig_load_all(&r, NULL, 640), 0, 640);
    assert_int_equal(rig_row(&r, "dram", "growing"), 0);
    rig_free(&r);
}

/* A load of 640 tokens (20 KiB) at 2 MB/s takes 10.24 ms, on both kinds of clock. */
static void the_throttle_sets_the_rate(void **state)
{
    (void)state;
    for (int threads = 0; threads < 2; threads++) {
        struct rig r;
        rig_open(&r, (struct rig_opts){.chunk = 64, .slots = 24, .threads = threads, .throttle = 2000000});
        rig_store(&r, NULL, 640);
        struct kv_seq *s = r.p.open(r.p.self, NULL, r.tok, 640);
        assert_int_equal(rig_lookup(&r, s, 640), 640);
        const int64_t guess = r.p.load_ns(s, 0, 640);
        assert_true(guess > 10.2e6 && guess < 10.3e6);
        assert_range(rig_load(&r, s, NULL, 640, 0, 640), 0, 640);
        rig_check(&r);
        assert_true(r.st.load_ns > 10.2e6 && r.st.load_ns < (threads ? 60e6 : 10.4e6));
        r.p.close(s);
        rig_free(&r);
    }
}

static void estimates_follow_measured_rates(void **state)
{
    (void)state;
    struct fake_tier t;
    struct rig r;
    fake_tier_init(&t, true);
    rig_open(&r, (struct rig_opts){.chunk = 64, .slots = 48, .tier = {&t}});
    rig_store(&r, NULL, 640);
    assert_true(kvc_settle(r.k, 10));
    struct kv_seq *s = r.p.open(r.p.self, NULL, r.tok, 640);
    assert_int_equal(rig_lookup(&r, s, 640), 640);
    /* 20480 bytes at 20 GB/s, before any measurement, or a little off by the measured rate of stores */
    const int64_t guess = r.p.load_ns(s, 0, 640);
    assert_in_range(guess, 1000, 1050);
    assert_in_range(2 * r.p.load_ns(s, 320, 640), guess - 2, guess);
    assert_int_equal(r.p.load_ns(s, 640, 640), 0);

    /* The loads before it count. */
    struct kv_seq *first = r.p.open(r.p.self, NULL, r.tok, 640);
    assert_int_equal(rig_lookup(&r, first, 640), 640);
    r.f.hold = true;
    uint64_t ticket = rig_begin_load(&r, first, 0, 640);
    assert_in_range(r.p.load_ns(s, 0, 640), 2 * guess, 2 * guess + 1);
    r.f.hold = false;
    rig_wait(&r, ticket);
    r.p.close(first);

    /* A device of 1 MB/s: the average falls to it. */
    r.f.rate = 1e6;
    r.f.poll_ns = 1000000;
    struct kvc_view *v = r.p.self;
    for (int i = 0; i < 3000; i++) {
        kvc_rate_begin(&v->lane[KV_TO_PAGE].rate, 1 + i * 10000000000, false);
        kvc_rate_end(&v->lane[KV_TO_PAGE].rate, 1000000);
        kvc_rate_sample(&v->lane[KV_TO_PAGE].rate, 1 + i * 10000000000 + 1000000000);
    }
    const int64_t slow = r.p.load_ns(s, 0, 640);
    assert_true(slow > 20e6 && slow < 21e6);
    r.p.close(s);

    /* From a tier: 1 GB/s before any measurement. */
    kvc_free(r.k);
    fake_pages_close(&r.f);
    rig_open(&r, (struct rig_opts){.chunk = 64, .slots = 24, .tier = {&t}});
    s = r.p.open(r.p.self, NULL, r.tok, 640);
    assert_int_equal(rig_lookup(&r, s, 640), 640);
    assert_int_equal(r.p.load_ns(s, 0, 640), 20480);
    assert_int_equal(r.p.load_ns(s, 320, 640), 10240);
    r.p.close(s);
    rig_free(&r);
    fake_tier_free(&t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(two_engines_share_a_store),
        cmocka_unit_test(an_engine_leaves_no_hole),
        cmocka_unit_test(attach_refuses_what_does_not_fit),
        cmocka_unit_test(another_shape_is_another_cache),
        cmocka_unit_test(without_a_place_nothing_is_stored),
        cmocka_unit_test(stores_use_memory_as_it_grows),
        cmocka_unit_test(the_throttle_sets_the_rate),
        cmocka_unit_test(estimates_follow_measured_rates),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
