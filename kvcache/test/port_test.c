/* The cache through its port, with fake pages: what was stored is loaded byte for byte, or not at all. */
#include "base/test/test.h"

#include "base/mem.h"
#include "kvcache/test/fake_pages.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_TOK = 2048, B = FAKE_B };

/* A cache, its port and its pages. KV is computed into the pages of from[] and loaded into the pages of into[]. */
struct rig {
    struct fake_pages f;
    struct kvc *k;
    struct kv_port p;
    int32_t tok[MAX_TOK];
    int32_t from[MAX_TOK / B], into[MAX_TOK / B];
    struct kv_port_stats st;
};

static void rig_tokens(struct rig *r, int salt)
{
    for (int i = 0; i < MAX_TOK; i++)
        r->tok[i] = i * 7 + salt * 100003;
}

static void rig_make(struct rig *r, int chunk, int slots)
{
    fake_pages_open(&r->f);
    struct kvc_config c = kvc_defaults();
    c.chunk_size = chunk;
    c.max_local_cpu = (int64_t)slots * (chunk / B) * (int64_t)r->f.geom.page_bytes + 100;
    assert_int_equal(kvc_open(&r->k, &c, NULL), 0);
    r->k->slab_bytes = 3 * (size_t)(chunk / B) * r->f.geom.page_bytes;
    kvc_port(r->k, &r->p);
    assert_int_equal(r->p.chunk_size, chunk);
    assert_int_equal(r->p.attach(r->k, &r->f.geom, &r->f.copier, NULL), 0);
    rig_tokens(r, 0);
    for (int i = 0; i < MAX_TOK / B; i++) {
        r->from[i] = i;
        r->into[i] = FAKE_PAGES - 1 - i;
    }
}

static void check(struct rig *r)
{
    struct km_err err = {0};
    if (kvc_check(r->k, &err))
        fail_msg("%s", err.msg);
    r->p.stats(r->k, &r->st);
    assert_true(r->st.bytes <= r->st.capacity && r->st.capacity <= r->k->cfg.max_local_cpu);
}

static void rig_free(struct rig *r)
{
    check(r);
    kvc_free(r->k);
    assert_int_equal(r->f.held, 0);
    assert_int_equal(r->f.in_flight, 0);
    fake_pages_close(&r->f);
}

static int wait_for(struct rig *r, uint64_t ticket, int *good)
{
    int rc;
    for (int i = 0; !(rc = r->p.poll(r->k, ticket, good)); i++)
        assert_true(i < 100000000);
    assert_int_equal(r->p.poll(r->k, ticket, NULL), KM_EINVAL); /* a finished ticket is not valid any more */
    return rc;
}

/* Fills the pages of tokens [0, n) and stores them. 0, or < 0 if the store failed. */
static int compute_and_store(struct rig *r, struct kv_seq *s, const char *salt, int n)
{
    uint64_t ticket;
    for (int b = 0; b < n / B; b++)
        fake_pages_fill(&r->f, r->from[b], salt, r->tok, b);
    int rc = r->p.store(s, r->tok, n, n, r->from, &ticket);
    return ticket ? wait_for(r, ticket, NULL) < 0 ? -1 : 0 : rc;
}

static int store_new(struct rig *r, const char *salt, int n)
{
    struct kv_seq *s = r->p.open(r->k, salt);
    int rc = compute_and_store(r, s, salt, n);
    r->p.close(s);
    return rc;
}

static int hit_tokens(struct rig *r, const char *salt, int n)
{
    struct kv_seq *s = r->p.open(r->k, salt);
    int got = r->p.lookup(s, r->tok, n);
    r->p.close(s);
    return got;
}

/* Loads tokens [from, to) and checks every page: right within the good tokens, untouched outside the range. Returns
 * *good of the load. */
static int load_and_check(struct rig *r, struct kv_seq *s, const char *salt, int from, int to)
{
    uint64_t ticket;
    int good = -1;
    for (int b = 0; b < MAX_TOK / B; b++)
        fake_pages_wipe(&r->f, r->into[b]);
    assert_int_equal(r->p.load(s, from, to, r->into, &ticket, &good), 0);
    if (ticket) {
        int rc = wait_for(r, ticket, &good);
        assert_true(rc == 1 ? good == to : good < to);
    }
    assert_true(good >= from && good <= to);
    for (int b = 0; b < MAX_TOK / B; b++) {
        if (b >= from / B && b < good / B)
            assert_true(fake_pages_holds(&r->f, r->into[b], salt, r->tok, b));
        else if (b < from / B || b >= to / B)
            assert_true(fake_pages_wiped(&r->f, r->into[b]));
    }
    return good;
}

static void lengths_around_edges(void **state)
{
    (void)state;
    static const int chunks[] = {16, 64, 256}, edges[] = {16, 64, 256, 512};
    for (int c = 0; c < 3; c++)
        for (int e = 0; e < 4; e++)
            for (int n = edges[e] - 1; n <= edges[e] + 1; n++)
                for (int delay = 0; delay < 3; delay += 2) {
                    struct rig r;
                    rig_make(&r, chunks[c], 64);
                    r.f.delay = delay;
                    int whole = n / chunks[c] * chunks[c];
                    assert_int_equal(hit_tokens(&r, NULL, n), 0);
                    assert_int_equal(store_new(&r, NULL, n), 0);
                    check(&r);
                    assert_int_equal(r.st.stored_tokens, whole);
                    assert_int_equal(r.st.hit_tokens, 0);
                    struct kv_seq *s = r.p.open(r.k, NULL);
                    assert_int_equal(r.p.lookup(s, r.tok, n), whole);
                    assert_int_equal(load_and_check(&r, s, NULL, 0, whole), whole);
                    check(&r);
                    assert_int_equal(r.st.hit_tokens, whole);
                    assert_int_equal(r.st.loaded_tokens, whole);
                    assert_int_equal(r.st.lookups, 2);
                    assert_int_equal(r.st.lookup_tokens, 2 * n);
                    assert_int_equal(r.st.chunks, whole / chunks[c]);
                    assert_int_equal(r.st.failed_loads, 0);
                    r.p.close(s);
                    rig_free(&r);
                }
}

static void any_range_of_blocks_is_loaded(void **state)
{
    (void)state;
    struct rig r;
    rig_make(&r, 64, 8);
    assert_int_equal(store_new(&r, NULL, 192), 0);
    int n_loads = 0;
    for (int from = 0; from <= 192; from += B)
        for (int to = from; to <= 192; to += B) {
            struct kv_seq *s = r.p.open(r.k, NULL);
            r.f.delay = (from + to) / B % 3;
            assert_int_equal(r.p.lookup(s, r.tok, 200), 192);
            int pages = r.f.n_pages;
            assert_int_equal(load_and_check(&r, s, NULL, from, to), to);
            assert_int_equal(r.f.n_pages - pages, (to - from) / B); /* no more pages than were asked for */
            n_loads++;
            uint64_t t;
            int good;
            if (to > from) /* the load has dropped the pins */
                assert_int_equal(r.p.load(s, from, to, r.into, &t, &good), KM_EINVAL);
            r.p.close(s);
            check(&r);
        }
    assert_int_equal(r.st.failed_loads, 0);
    assert_int_equal(r.st.hit_tokens, 192 * n_loads);
    struct kv_seq *s = r.p.open(r.k, NULL);
    uint64_t t = 9;
    int good = -1;
    r.p.lookup(s, r.tok, 128);
    static const int bad[][2] = {{0, 144}, {-16, 16}, {32, 16}, {1, 16}, {0, 17}};
    for (int i = 0; i < 5; i++) {
        assert_int_equal(r.p.load(s, bad[i][0], bad[i][1], r.into, &t, &good), KM_EINVAL);
        assert_int_equal(t, 0);
        assert_int_equal(good, bad[i][0]);
    }
    r.p.close(s);
    rig_free(&r);
}

static void salts_do_not_share(void **state)
{
    (void)state;
    struct rig r;
    rig_make(&r, 64, 16);
    static const char *const salts[] = {NULL, "", "a", "b", "aa"};
    for (int i = 0; i < 5; i++) {
        for (int j = i; j < 5; j++)
            assert_int_equal(hit_tokens(&r, salts[j], 200), 0);
        assert_int_equal(store_new(&r, salts[i], 200), 0);
        for (int j = 0; j <= i; j++) {
            struct kv_seq *s = r.p.open(r.k, salts[j]);
            assert_int_equal(r.p.lookup(s, r.tok, 200), 192);
            assert_int_equal(load_and_check(&r, s, salts[j], 0, 192), 192);
            r.p.close(s);
        }
    }
    check(&r);
    assert_int_equal(r.st.hit_tokens, 15 * 192);
    assert_int_equal(r.st.chunks, 15);
    rig_free(&r);
}

/* Every field of the identity changes the root key; equal identities give equal roots. */
static void each_field_of_the_identity_changes_the_keys(void **state)
{
    (void)state;
    struct fake_pages f;
    fake_pages_open(&f);
    struct kv_geom g[10];
    int chunk[10];
    for (int i = 0; i < 10; i++) {
        g[i] = f.geom;
        chunk[i] = 256;
    }
    g[1].model.b[31] ^= 1;
    g[2].dtype = KM_F16;
    g[3].layout = 2;
    g[4].n_layers++;
    g[5].n_kv_heads++;
    g[6].head_dim++;
    g[7].rope_theta = nextafter(g[7].rope_theta, 0);
    chunk[8] = 512;
    g[9].block_size = 32;
    struct km_digest root[10];
    for (int i = 0; i < 10; i++) {
        struct kvc_keys k;
        const struct kvc_geometry shape = {.pool = g[i], .chunk_size = chunk[i]};
        assert_int_equal(kvc_keys_open(&k, &shape, NULL), 0);
        root[i] = kvc_keys_root(&k, "s");
        struct km_digest again = kvc_keys_root(&k, "s");
        assert_memory_equal(&root[i], &again, sizeof again);
        for (int j = 0; j < i; j++)
            assert_memory_not_equal(&root[i], &root[j], sizeof root[i]);
        kvc_keys_close(&k);
    }
    fake_pages_close(&f);
}

/* Tiers and machines share keys, so their definition is fixed. The expected key was computed by another implementation:
 * Python's hashlib over the bytes that keys.c states. */
static void keys_have_the_defined_bytes(void **state)
{
    (void)state;
    struct fake_pages f;
    struct kvc_keys k;
    int32_t ids[128];
    char hex[65];
    for (int i = 0; i < 128; i++)
        ids[i] = i;
    fake_pages_open(&f);
    const struct kvc_geometry shape = {.pool = f.geom, .chunk_size = 64};
    assert_int_equal(kvc_keys_open(&k, &shape, NULL), 0);
    struct km_digest d = kvc_keys_root(&k, "salt");
    d = kvc_keys_next(&k, &d, ids);
    d = kvc_keys_next(&k, &d, ids + 64);
    km_hex(&d, hex);
    assert_string_equal(hex, "c085b9408d7c170abd6da04d077055e0190148aeaa25a32df91ce86ed8edf3d4");
    kvc_keys_close(&k);
    fake_pages_close(&f);
}

static void another_shape_is_another_cache(void **state)
{
    (void)state;
    struct rig r;
    rig_make(&r, 64, 8);
    assert_int_equal(store_new(&r, NULL, 128), 0);
    struct kv_seq *old = r.p.open(r.k, NULL);
    assert_int_equal(r.p.lookup(old, r.tok, 128), 128);
    r.p.detach(r.k);
    assert_int_equal(r.f.held, 0);
    r.f.geom.rope_theta = 1e4;
    assert_int_equal(r.p.attach(r.k, &r.f.geom, &r.f.copier, NULL), 0);
    assert_int_equal(hit_tokens(&r, NULL, 128), 0);
    assert_int_equal(store_new(&r, NULL, 128), 0);
    assert_int_equal(hit_tokens(&r, NULL, 128), 128);
    assert_int_equal(r.p.lookup(old, r.tok, 128), 0); /* opened under the previous attachment */
    uint64_t t;
    assert_int_equal(r.p.store(old, r.tok, 128, 128, r.from, &t), 0);
    r.p.close(old);
    rig_free(&r);
}

static void equal_keys_of_different_chunks_miss(void **state)
{
    (void)state;
    struct rig r;
    rig_make(&r, 64, 8);
    r.k->keys.key_bytes = 0; /* now every chunk has the same key */
    assert_int_equal(store_new(&r, NULL, 64), 0);
    assert_int_equal(hit_tokens(&r, NULL, 64), 64);
    r.tok[63]++;
    assert_int_equal(hit_tokens(&r, NULL, 64), 0);
    assert_int_equal(store_new(&r, NULL, 64), 0); /* the chunk that is there is not replaced */
    assert_int_equal(hit_tokens(&r, NULL, 64), 0);
    r.tok[63]--;
    struct kv_seq *s = r.p.open(r.k, NULL);
    assert_int_equal(r.p.lookup(s, r.tok, 64), 64);
    assert_int_equal(load_and_check(&r, s, NULL, 0, 64), 64);
    r.p.close(s);
    memcpy(r.tok + 64, r.tok, 64 * sizeof *r.tok); /* the same ids at the next position, also with an equal key */
    assert_int_equal(hit_tokens(&r, NULL, 128), 64);
    check(&r);
    assert_int_equal(r.st.chunks, 1);
    rig_free(&r);
}

static void damaged_chunks_are_found(void **state)
{
    (void)state;
    srand(11);
    for (int round = 0; round < 200; round++) {
        struct rig r;
        rig_make(&r, 64, 8);
        r.f.delay = round % 3;
        assert_int_equal(store_new(&r, NULL, 320), 0);
        struct kv_seq *s = r.p.open(r.k, NULL), *other = r.p.open(r.k, NULL);
        assert_int_equal(r.p.lookup(s, r.tok, 320), 320);
        assert_int_equal(r.p.lookup(other, r.tok, 320), 320);
        int bad = rand() % 5, from = rand() % 20 * B, to = from + (1 + rand() % (20 - from / B)) * B;
        size_t bytes = r.k->geometry.chunk_bytes;
        kvc_dram_at(&r.k->dram, s->pin[bad])[(size_t)rand() % bytes] ^= (char)(1 << rand() % 8);
        bool in_range = bad >= from / 64 && bad <= (to - 1) / 64;
        int want = !in_range ? to : bad * 64 > from ? bad * 64 : from;
        assert_int_equal(load_and_check(&r, s, NULL, from, to), want);
        check(&r);
        assert_int_equal(r.st.failed_loads, in_range);
        assert_int_equal(r.st.loaded_tokens, want - from);
        assert_int_equal(r.st.chunks, 5 - in_range);
        if (in_range) { /* the chunk is dropped from the cache; a load of another sequence that pinned it ends there */
            assert_int_equal(hit_tokens(&r, NULL, 320), bad * 64);
            assert_int_equal(load_and_check(&r, other, NULL, 0, 320), bad * 64);
            check(&r);
            assert_int_equal(r.st.failed_loads, 2);
            assert_int_equal(compute_and_store(&r, s, NULL, 320), 0); /* computed again, and stored */
            assert_int_equal(hit_tokens(&r, NULL, 320), 320);
        }
        r.p.close(s);
        r.p.close(other);
        rig_free(&r);
    }
}

static void eviction_keeps_budget_and_order(void **state)
{
    (void)state;
    for (int policy = KVC_LRU; policy <= KVC_FIFO; policy++) {
        struct rig r;
        rig_make(&r, 64, 7); /* two sequences of three chunks each, and one chunk more */
        r.k->chunks.policy = (enum kvc_policy)policy;
        for (int i = 0; i < 2; i++) {
            rig_tokens(&r, i);
            assert_int_equal(store_new(&r, NULL, 192), 0);
        }
        rig_tokens(&r, 0);
        assert_int_equal(hit_tokens(&r, NULL, 192), 192); /* under LRU, sequence 0 is now the newest */
        rig_tokens(&r, 2);
        assert_int_equal(store_new(&r, NULL, 192), 0); /* evicts two chunks of another sequence */
        check(&r);
        assert_int_equal(r.st.chunks, 7);
        assert_int_equal(r.st.bytes, r.st.capacity);
        assert_int_equal(r.st.evicted_chunks, 2);
        assert_int_equal(hit_tokens(&r, NULL, 192), 192);
        rig_tokens(&r, policy == KVC_LRU ? 1 : 0);
        assert_int_equal(hit_tokens(&r, NULL, 192), 64); /* the tail was evicted, the head was not */
        rig_tokens(&r, policy == KVC_LRU ? 0 : 1);
        assert_int_equal(hit_tokens(&r, NULL, 192), 192);
        rig_free(&r);
    }
}

static void a_long_prefill_does_not_evict_its_own_chunks(void **state)
{
    (void)state;
    struct rig r;
    rig_make(&r, 64, 6);
    struct kv_seq *s = r.p.open(r.k, NULL);
    for (int n = 64; n <= 640; n += 64) /* longer than the cache: its own head must not be evicted */
        assert_int_equal(compute_and_store(&r, s, NULL, n), 0);
    r.p.close(s);
    assert_int_equal(hit_tokens(&r, NULL, 640), 384);
    check(&r);
    assert_int_equal(r.st.evicted_chunks, 0);
    rig_tokens(&r, 1);
    assert_int_equal(store_new(&r, NULL, 128), 0);
    rig_tokens(&r, 0);
    assert_int_equal(hit_tokens(&r, NULL, 640), 256);
    rig_free(&r);
}

static void pinned_chunks_are_not_evicted(void **state)
{
    (void)state;
    struct rig r;
    rig_make(&r, 64, 4);
    assert_int_equal(store_new(&r, NULL, 192), 0);
    struct kv_seq *s = r.p.open(r.k, NULL);
    assert_int_equal(r.p.lookup(s, r.tok, 192), 192);
    rig_tokens(&r, 1);
    assert_int_equal(store_new(&r, NULL, 192), 0); /* one slot is free, three are pinned */
    assert_int_equal(hit_tokens(&r, NULL, 192), 64);
    check(&r);
    assert_int_equal(r.st.evicted_chunks, 0);
    assert_int_equal(r.st.stored_tokens, 256);
    assert_int_equal(r.p.reset(r.k), KM_ELIMIT);
    check(&r);
    assert_int_equal(r.st.chunks, 3);
    rig_tokens(&r, 0);
    assert_int_equal(load_and_check(&r, s, NULL, 64, 192), 192); /* drops the pins */
    rig_tokens(&r, 1);
    assert_int_equal(store_new(&r, NULL, 256), 0);
    assert_int_equal(hit_tokens(&r, NULL, 256), 256);
    r.p.close(s);
    assert_int_equal(r.p.reset(r.k), 0);
    check(&r);
    assert_int_equal(r.st.chunks, 0);
    assert_int_equal(r.st.bytes, 0);
    assert_int_equal(hit_tokens(&r, NULL, 256), 0);

    /* A hit that the engine does not load must not stay pinned while the request decodes. */
    assert_int_equal(store_new(&r, NULL, 256), 0);
    s = r.p.open(r.k, NULL);
    struct kv_seq *none = r.p.open(r.k, NULL);
    assert_int_equal(r.p.lookup(s, r.tok, 256), 256);
    assert_int_equal(r.p.lookup(none, r.tok, 256), 256);
    assert_int_equal(compute_and_store(&r, s, NULL, 256), 0);
    assert_int_equal(load_and_check(&r, none, NULL, 256, 256), 256);
    assert_int_equal(r.k->chunks.n_evictable, 4);
    r.p.close(s);
    r.p.close(none);
    rig_free(&r);
}

static void chunks_are_found_only_after_their_copies(void **state)
{
    (void)state;
    struct rig r;
    rig_make(&r, 64, 8);
    r.f.delay = 3;
    assert_int_equal(store_new(&r, "first", 64), 0); /* from now on the cache knows that copies are asynchronous */
    r.f.n_copies = r.f.n_pages = 0;
    for (int b = 0; b < 12; b++)
        fake_pages_fill(&r.f, r.from[b], NULL, r.tok, b);
    struct kv_seq *a = r.p.open(r.k, NULL), *b = r.p.open(r.k, NULL);
    uint64_t ta, tb;
    assert_int_equal(r.p.store(a, r.tok, 192, 192, r.from, &ta), 0);
    assert_true(ta);
    assert_int_equal(r.f.n_copies, 1); /* one call for all pages */
    assert_int_equal(r.f.n_pages, 12);
    assert_int_equal(hit_tokens(&r, NULL, 192), 0);
    assert_int_equal(r.p.store(b, r.tok, 192, 192, r.from, &tb), 0); /* all of these chunks are being stored by a */
    assert_int_equal(tb, 0);
    assert_int_equal(r.f.n_copies, 1);
    assert_int_equal(r.p.reset(r.k), KM_ELIMIT);
    r.p.close(a); /* the store goes on */
    check(&r);
    assert_int_equal(r.p.poll(r.k, ta, NULL), 0);
    assert_int_equal(hit_tokens(&r, NULL, 192), 0);
    assert_int_equal(wait_for(&r, ta, NULL), 1);
    assert_int_equal(r.p.lookup(b, r.tok, 192), 192);
    int good;
    uint64_t t;
    for (int i = 0; i < 12; i++)
        fake_pages_wipe(&r.f, r.into[i]);
    assert_int_equal(r.p.load(b, 0, 192, r.into, &t, &good), 0);
    assert_true(t);
    r.p.close(b); /* the load goes on, too */
    assert_int_equal(r.p.reset(r.k), KM_ELIMIT);
    check(&r);
    assert_int_equal(wait_for(&r, t, &good), 1);
    assert_int_equal(good, 192);
    for (int i = 0; i < 12; i++)
        assert_true(fake_pages_holds(&r.f, r.into[i], NULL, r.tok, i));
    assert_int_equal(r.p.reset(r.k), 0);
    /* A new lookup while a load is open: the load must not drop the new pins. */
    assert_int_equal(store_new(&r, NULL, 192), 0);
    a = r.p.open(r.k, NULL);
    assert_int_equal(r.p.lookup(a, r.tok, 192), 192);
    assert_int_equal(r.p.load(a, 0, 64, r.into, &t, &good), 0);
    assert_int_equal(r.p.lookup(a, r.tok, 192), 192);
    assert_int_equal(wait_for(&r, t, &good), 1);
    assert_int_equal(load_and_check(&r, a, NULL, 64, 192), 192);
    assert_int_equal(r.p.poll(r.k, 0, NULL), KM_EINVAL);
    assert_int_equal(r.p.poll(r.k, ~0ull, NULL), KM_EINVAL);
    /* Detaching finishes open tickets. */
    rig_tokens(&r, 5);
    assert_int_equal(r.p.store(a, r.tok, 192, 192, r.from, &t), 0);
    r.p.close(a);
    r.p.detach(r.k);
    assert_int_equal(r.f.in_flight, 0);
    rig_free(&r);
}

/* Each copy fails once, in its call or at its ticket, for stores and for loads. */
static void failed_copies_lose_only_their_chunks(void **state)
{
    (void)state;
    for (int at_poll = 0; at_poll < 2; at_poll++)
        for (int delay = 0; delay < 3; delay++)
            for (int n = 1; n <= 5; n++) {
                struct rig r;
                rig_make(&r, 64, 8);
                r.f.delay = delay;
                *(at_poll ? &r.f.fail_poll : &r.f.fail_copy) = n;
                struct kv_seq *s = r.p.open(r.k, NULL);
                bool failed = compute_and_store(&r, s, NULL, 256) < 0;
                check(&r);
                int got = hit_tokens(&r, NULL, 256);
                assert_int_equal(got, failed ? r.st.stored_tokens : 256);
                assert_true(!failed || got < 256);
                r.p.close(s);
                r.f.fail_copy = r.f.fail_poll = 0;
                assert_int_equal(store_new(&r, NULL, 256), 0);
                s = r.p.open(r.k, NULL);
                assert_int_equal(r.p.lookup(s, r.tok, 256), 256);
                *(at_poll ? &r.f.fail_poll : &r.f.fail_copy) = n;
                int good = load_and_check(&r, s, NULL, 16, 240);
                check(&r);
                assert_int_equal(r.st.failed_loads, good < 240);
                assert_int_equal(r.st.loaded_tokens, good - 16);
                if (n == 1)
                    assert_int_equal(good, 16);
                r.f.fail_copy = r.f.fail_poll = 0;
                assert_int_equal(r.p.lookup(s, r.tok, 256), 256); /* the chunks are still good after a failed copy */
                assert_int_equal(load_and_check(&r, s, NULL, 0, 256), 256);
                r.p.close(s);
                rig_free(&r);
            }
}

static void generated_tokens_are_stored_on_request(void **state)
{
    (void)state;
    for (int save = 0; save < 2; save++) {
        struct rig r;
        rig_make(&r, 64, 16);
        r.k->cfg.save_decode = save;
        struct kv_seq *s = r.p.open(r.k, NULL);
        uint64_t t;
        assert_int_equal(r.p.lookup(s, r.tok, 150), 0);
        for (int b = 0; b < 20; b++)
            fake_pages_fill(&r.f, r.from[b], NULL, r.tok, b);
        for (int n = 64; n <= 320; n += 64)
            assert_int_equal(r.p.store(s, r.tok, n, 150, r.from, &t), 0);
        r.p.close(s);
        assert_int_equal(hit_tokens(&r, NULL, 320), save ? 320 : 128);
        rig_free(&r);
    }
}

/* A chunk's key is computed once per sequence, and a miss on an unknown prefix computes one key. */
static void a_miss_computes_one_key(void **state)
{
    (void)state;
    struct rig r;
    rig_make(&r, 64, 16);
    struct kv_seq *s = r.p.open(r.k, NULL);
    assert_int_equal(r.p.lookup(s, r.tok, 640), 0);
    assert_int_equal(s->n_keys, 0); /* an empty cache computes no key */
    assert_int_equal(store_new(&r, "other", 64), 0);
    assert_int_equal(r.p.lookup(s, r.tok, 640), 0);
    assert_int_equal(s->n_keys, 1);
    assert_int_equal(compute_and_store(&r, s, NULL, 320), 0);
    assert_int_equal(s->n_keys, 5);
    struct km_digest k4 = s->key[4];
    s->key[0].b[0] ^= 1; /* if it were hashed again, the next keys would differ */
    assert_int_equal(r.p.lookup(s, r.tok, 640), 0);
    s->key[0].b[0] ^= 1;
    assert_int_equal(r.p.lookup(s, r.tok, 640), 320);
    assert_memory_equal(&k4, &s->key[4], sizeof k4);
    r.p.close(s);
    rig_free(&r);
}

static void without_a_tier_nothing_is_stored(void **state)
{
    (void)state;
    struct fake_pages f;
    fake_pages_open(&f);
    struct kvc_config c = kvc_defaults();
    c.local_cpu = false;
    struct kvc *k;
    struct kv_port p;
    struct kv_port_stats st;
    assert_int_equal(kvc_open(&k, &c, NULL), 0);
    kvc_port(k, &p);
    assert_int_equal(p.attach(k, &f.geom, &f.copier, NULL), 0);
    int32_t tok[256] = {0}, table[16] = {0};
    struct kv_seq *s = p.open(k, "x");
    uint64_t t;
    assert_int_equal(p.lookup(s, tok, 256), 0);
    assert_int_equal(p.store(s, tok, 256, 256, table, &t), 0);
    assert_int_equal(p.lookup(s, tok, 256), 0);
    p.close(s);
    p.stats(k, &st);
    assert_int_equal(st.capacity, 0);
    assert_int_equal(st.lookups, 2);
    assert_int_equal(f.held, 0);
    assert_int_equal(p.reset(k), 0);
    assert_int_equal(kvc_check(k, NULL), 0);
    kvc_free(k);
    fake_pages_close(&f);
}

static void attach_refuses_what_does_not_fit(void **state)
{
    (void)state;
    struct rig r;
    rig_make(&r, 64, 10);
    struct km_err err;
    assert_int_equal(r.p.attach(r.k, &r.f.geom, &r.f.copier, &err), KM_EINVAL);
    assert_non_null(strstr(err.msg, "already"));
    assert_int_equal(r.f.held, 10 * (int64_t)r.k->geometry.chunk_bytes);
    r.p.detach(r.k);
    struct kv_geom g = r.f.geom;
    g.block_size = 48;
    g.page_bytes *= 3;
    assert_int_equal(r.p.attach(r.k, &g, &r.f.copier, &err), KM_EINVAL);
    assert_non_null(strstr(err.msg, "chunk_size 64 is not a multiple of the engine's block size 48; use 96"));
    g = r.f.geom;
    g.page_bytes--;
    assert_int_equal(r.p.attach(r.k, &g, &r.f.copier, &err), KM_EINVAL);
    assert_non_null(strstr(err.msg, "pages are"));
    g.n_layers = 0;
    assert_int_equal(r.p.attach(r.k, &g, &r.f.copier, &err), KM_EINVAL);
    for (int n = 1; n <= 4; n++) { /* ten slots take four slabs of three slots */
        r.f.fail_alloc = n;
        assert_int_equal(r.p.attach(r.k, &r.f.geom, &r.f.copier, &err), KM_ENOMEM);
        assert_non_null(strstr(err.msg, "max_local_cpu_size"));
        assert_int_equal(r.f.held, 0);
    }
    r.f.fail_alloc = 0;
    r.k->cfg.max_local_cpu = 100;
    assert_int_equal(r.p.attach(r.k, &r.f.geom, &r.f.copier, &err), KM_EINVAL);
    assert_non_null(strstr(err.msg, "one chunk"));
    g = r.f.geom;
    g.n_layers <<= 16;
    g.page_bytes <<= 16;
    r.k->cfg.max_local_cpu = (int64_t)1 << 50;
    assert_int_equal(r.p.attach(r.k, &g, &r.f.copier, &err), KM_ENOMEM);
    assert_non_null(strstr(err.msg, "available"));
    assert_int_equal(r.p.attach(r.k, &r.f.geom, &r.f.copier, &err), KM_EINVAL); /* more chunks than an int may count */
    assert_int_equal(hit_tokens(&r, NULL, 64), 0); /* without an engine the cache finds nothing */
    struct kvc_config c = kvc_defaults();
    c.chunk_size = 0;
    struct kvc *k;
    assert_int_equal(kvc_open(&k, &c, &err), KM_EINVAL);
    c = kvc_defaults();
    c.max_local_cpu = 0;
    assert_int_equal(kvc_open(&k, &c, &err), KM_EINVAL);
    r.k->cfg.max_local_cpu = 1 << 20;
    r.f.copier.host_alloc = NULL; /* a device without host memory of its own: ordinary memory is used */
    r.f.copier.host_free = NULL;
    assert_int_equal(r.p.attach(r.k, &r.f.geom, &r.f.copier, &err), 0);
    assert_int_equal(store_new(&r, NULL, 128), 0);
    assert_int_equal(hit_tokens(&r, NULL, 128), 128);
    rig_free(&r);
}

/* A budget over the available memory is refused before the copier is asked for any. */
static void budget_over_available_is_refused(void **state)
{
    (void)state;
    struct fake_pages f;
    fake_pages_open(&f);
    struct kvc_dram d;
    struct km_err err;
    const int64_t gib = 1 << 30;
    const struct kvc_geometry big = {.chunk_bytes = 1 << 20}, small = {.chunk_bytes = 1 << 12};
    f.fail_alloc = 1;
    assert_int_equal(kvc_dram_open(&d, &big, &f.copier, gib, gib - 1, KVC_SLAB, &err), KM_ENOMEM);
    assert_int_equal(kvc_dram_open(&d, &big, &f.copier, 3 * gib, 3 * gib / 2, KVC_SLAB, &err), KM_ENOMEM);
    assert_string_equal(err.msg,
                        "the DRAM tier is to take 3 GiB (max_local_cpu_size), but only 1.5 GiB of memory are "
                        "available to this process; lower max_local_cpu_size, or free memory");
    assert_int_equal(f.fail_alloc, 1); /* host_alloc was not called */
    f.fail_alloc = 0;
    assert_int_equal(kvc_dram_open(&d, &small, &f.copier, 1 << 20, 1 << 20, KVC_SLAB, &err), 0);
    assert_int_equal(f.held, 1 << 20);
    kvc_dram_close(&d);
    assert_int_equal(f.held, 0);
    fake_pages_close(&f);
}

/* Stores and loads with the n-th allocation failing. True if the scenario needed fewer than n allocations. */
static bool scenario(long n, int delay)
{
    struct fake_pages f;
    fake_pages_open(&f);
    f.delay = delay;
    struct kvc_config c = kvc_defaults();
    c.chunk_size = 64;
    c.max_local_cpu = 1 << 16;
    struct kvc *k = NULL;
    struct kv_port p;
    bool through = true;
    km_mem_fail_at(n);
    if (kvc_open(&k, &c, NULL))
        through = false;
    else {
        kvc_port(k, &p);
        if (p.attach(k, &f.geom, &f.copier, NULL))
            through = false;
        int32_t tok[256], table[16], into[16];
        for (int i = 0; i < 256; i++)
            tok[i] = i;
        for (int i = 0; i < 16; i++) {
            table[i] = i;
            into[i] = 100 + i;
            fake_pages_fill(&f, i, "s", tok, i);
        }
        for (int round = 0; round < 2; round++) {
            struct kv_seq *s = p.open(k, "s");
            if (!s) {
                through = false;
                continue;
            }
            int got = p.lookup(s, tok, 256), good = 0;
            uint64_t t;
            int rc = p.load(s, 0, got, into, &t, &good);
            through = through && !rc && got == (round ? 256 : 0);
            while (t && !p.poll(k, t, &good))
                ;
            assert_true(good <= got);
            for (int i = 0; i < good / 16; i++)
                assert_true(fake_pages_holds(&f, into[i], "s", tok, i));
            rc = p.store(s, tok, 256, 256, table, &t);
            through = through && !rc;
            while (t && !p.poll(k, t, NULL))
                ;
            p.close(s);
        }
        km_mem_fail_at(0);
        assert_int_equal(kvc_check(k, NULL), 0);
    }
    km_mem_fail_at(0);
    kvc_free(k);
    assert_int_equal(f.held, 0);
    fake_pages_close(&f);
    return through;
}

static void failed_allocations_lose_nothing(void **state)
{
    (void)state;
    for (int delay = 0; delay < 2; delay++) {
        int64_t before = km_mem_stats(KM_MEM_HOST).current;
        long n = 1;
        while (!scenario(n, delay)) {
            assert_int_equal(km_mem_stats(KM_MEM_HOST).current, before);
            assert_true(++n < 1000);
        }
        assert_true(n > 10);
        assert_int_equal(km_mem_stats(KM_MEM_HOST).current, before);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(lengths_around_edges),
        cmocka_unit_test(any_range_of_blocks_is_loaded),
        cmocka_unit_test(salts_do_not_share),
        cmocka_unit_test(each_field_of_the_identity_changes_the_keys),
        cmocka_unit_test(keys_have_the_defined_bytes),
        cmocka_unit_test(another_shape_is_another_cache),
        cmocka_unit_test(equal_keys_of_different_chunks_miss),
        cmocka_unit_test(damaged_chunks_are_found),
        cmocka_unit_test(eviction_keeps_budget_and_order),
        cmocka_unit_test(a_long_prefill_does_not_evict_its_own_chunks),
        cmocka_unit_test(pinned_chunks_are_not_evicted),
        cmocka_unit_test(chunks_are_found_only_after_their_copies),
        cmocka_unit_test(failed_copies_lose_only_their_chunks),
        cmocka_unit_test(generated_tokens_are_stored_on_request),
        cmocka_unit_test(a_miss_computes_one_key),
        cmocka_unit_test(without_a_tier_nothing_is_stored),
        cmocka_unit_test(attach_refuses_what_does_not_fit),
        cmocka_unit_test(budget_over_available_is_refused),
        cmocka_unit_test(failed_allocations_lose_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
