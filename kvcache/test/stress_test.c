/* Random operations against a reference. With synchronous copies the reference is exact: a list of prefixes in order of
 * use must predict every lookup and every eviction. With delayed and failing copies the check is one-sided: all tokens
 * that a load reports as good must have the right bytes. The seed is printed; argv[1] sets it. */
#include "base/test/test.h"

#include "base/random.h"
#include "kvcache/test/fake_pages.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { B = FAKE_B, C = 32, CHUNKS = 6, TOK = C * CHUNKS + 9, SEQS = 12, SLOTS = 14, TREE = 3 };

static uint64_t rng;
static unsigned long seed;

static int rnd(int n)
{
    return (int)km_random_below(&rng, (uint32_t)n);
}

/* One open request, and what the reference expects of it. */
struct request {
    struct kv_seq *s;          /* NULL: closed */
    const char *salt;
    int32_t tok[TOK];
    int n;                     /* tokens of the prompt */
    int hit;                   /* tokens that the last lookup found */
    int n_offered;             /* reference: leading chunks that were offered to store since the last lookup */
    int pin[CHUNKS], n_pins;   /* reference: ids of the pinned prefixes */
    uint64_t load, store;      /* open tickets */
    int from, to;              /* tokens of the last load */
    int32_t table[TOK / B + 1];
};

/* The cache under test, its requests, and the reference. */
struct stress {
    struct fake_pages f;
    struct kvc *k;
    struct kv_port p;
    struct request request[SEQS];
    int id[SLOTS];             /* [n_ids] reference: ids of the stored prefixes, newest first */
    int n_ids;
    int pins[100000];          /* reference: number of pins, by id */
    int64_t evicted, hits, loads;
};

/* A prefix (salt and chunks 0 to `chunk`) as a number: the salt has two values, a chunk has TREE. */
static int prefix_id(const struct request *l, int chunk)
{
    int id = l->salt ? 2 : 1;
    for (int i = 0; i <= chunk; i++)
        id = id * (TREE + 1) + l->tok[i * C] + 1;
    return id;
}

static int ref_find(const struct stress *w, int id)
{
    for (int i = 0; i < w->n_ids; i++)
        if (w->id[i] == id)
            return i;
    return -1;
}

static void ref_remove(struct stress *w, int at)
{
    memmove(w->id + at, w->id + at + 1, (size_t)(w->n_ids - at - 1) * sizeof *w->id);
    w->n_ids--;
}

static void ref_front(struct stress *w, int id)
{
    int at = ref_find(w, id);
    if (at >= 0)
        ref_remove(w, at);
    memmove(w->id + 1, w->id, (size_t)w->n_ids * sizeof *w->id);
    w->id[0] = id;
    w->n_ids++;
}

static void ref_unpin(struct stress *w, struct request *l)
{
    while (l->n_pins)
        w->pins[l->pin[--l->n_pins]]--;
}

static int ref_lookup(struct stress *w, struct request *l)
{
    ref_unpin(w, l);
    l->n_offered = 0;
    for (int i = 0; i < l->n / C && ref_find(w, prefix_id(l, i)) >= 0; i++) {
        l->pin[l->n_pins++] = prefix_id(l, i);
        w->pins[l->pin[i]]++;
    }
    for (int i = l->n_pins - 1; i >= 0; i--)
        ref_front(w, l->pin[i]);
    return l->n_pins * C;
}

static void ref_store(struct stress *w, struct request *l, int n)
{
    int whole = n / C, had[CHUNKS], i, filling = 0, fills[CHUNKS] = {0};
    if (n >= l->n_pins * C)
        ref_unpin(w, l);
    if (whole <= l->n_offered)
        return;
    for (i = 0; i < whole; i++) {
        had[i] = ref_find(w, prefix_id(l, i)) >= 0;
        if (had[i]) {
            w->pins[prefix_id(l, i)]++;
            continue;
        }
        if (i < l->n_offered)
            break;
        if (w->n_ids + filling == SLOTS) {
            int victim = w->n_ids - 1;
            while (victim >= 0 && w->pins[w->id[victim]])
                victim--;
            if (victim < 0)
                break;
            ref_remove(w, victim);
            w->evicted++;
        }
        filling++;
        fills[i] = 1;
    }
    for (int j = i - 1; j >= 0; j--) {
        ref_front(w, prefix_id(l, j));
        if (!fills[j])
            w->pins[prefix_id(l, j)]--;
    }
    l->n_offered = i > l->n_offered ? i : l->n_offered;
}

static void open_request(struct stress *w, struct request *l)
{
    l->salt = rnd(4) ? NULL : "s";
    l->n = 1 + rnd(TOK);
    for (int i = 0; i < TOK; i++)
        l->tok[i] = i % C ? l->tok[i - 1] : rnd(TREE);
    l->hit = l->n_offered = l->n_pins = 0;
    l->s = w->p.open(w->k, l->salt);
    assert_non_null(l->s);
}

static int pages_of(struct stress *w, const struct request *l, int block)
{
    int base = (int)(l - w->request) * (TOK / B + 1);
    return base + block;
}

/* Writes the KV of tokens [0, n) to the request's pages. Stores read these pages and loads write them, as with an
 * engine. */
static void compute(struct stress *w, struct request *l, int n)
{
    for (int b = 0; b < n / B; b++)
        fake_pages_fill(&w->f, pages_of(w, l, b), l->salt, l->tok, b);
}

static void check_good(struct stress *w, struct request *l, int good)
{
    assert_true(good >= l->from && good <= l->to);
    for (int b = l->from / B; b < good / B; b++)
        if (!fake_pages_holds(&w->f, pages_of(w, l, b), l->salt, l->tok, b))
            fail_msg("seed %lu: block %d of a load that is good for %d tokens is wrong", seed, b, good);
}

static void check(struct stress *w)
{
    struct km_err err = {0};
    struct kv_port_stats st;
    if (kvc_check(w->k, &err))
        fail_msg("seed %lu: %s", seed, err.msg);
    w->p.stats(w->k, &st);
    assert_true(st.bytes <= st.capacity && st.capacity <= w->k->cfg.max_local_cpu);
}

static void stress_open(struct stress *w)
{
    memset(w, 0, sizeof *w);
    fake_pages_open(&w->f);
    struct kvc_config c = kvc_defaults();
    c.chunk_size = C;
    c.max_local_cpu = SLOTS * (C / B) * (int64_t)w->f.geom.page_bytes;
    assert_int_equal(kvc_open(&w->k, &c, NULL), 0);
    w->k->slab_bytes = 4096;
    kvc_port(w->k, &w->p);
    assert_int_equal(w->p.attach(w->k, &w->f.geom, &w->f.copier, NULL), 0);
    for (int i = 0; i < SEQS; i++)
        for (int b = 0; b <= TOK / B; b++)
            w->request[i].table[b] = pages_of(w, &w->request[i], b);
}

static void stress_close(struct stress *w)
{
    for (int i = 0; i < SEQS; i++)
        w->p.close(w->request[i].s);
    check(w);
    kvc_free(w->k);
    assert_int_equal(w->f.held, 0);
    fake_pages_close(&w->f);
}

static void exact_against_a_list(void **state)
{
    (void)state;
    static struct stress w;
    stress_open(&w);
    struct kv_port_stats st;
    for (int op = 0; op < 30000; op++) {
        struct request *l = &w.request[rnd(SEQS)];
        uint64_t t;
        int good;
        if (!l->s)
            open_request(&w, l);
        switch (rnd(8)) {
        case 0:
        case 1:
        case 2:
            l->hit = ref_lookup(&w, l);
            w.hits += l->hit;
            if (w.p.lookup(l->s, l->tok, l->n) != l->hit)
                fail_msg("seed %lu, operation %d: a lookup of %d tokens does not give %d", seed, op, l->n, l->hit);
            break;
        case 3:
            if (!l->n_pins)
                break;
            l->from = rnd(l->n_pins * C / B) * B;
            l->to = l->from + (1 + rnd(l->n_pins * C / B - l->from / B)) * B;
            for (int b = l->from / B; b < l->to / B; b++)
                fake_pages_wipe(&w.f, pages_of(&w, l, b));
            assert_int_equal(w.p.load(l->s, l->from, l->to, l->table, &t, &good), 0);
            assert_int_equal(t, 0);
            assert_int_equal(good, l->to);
            check_good(&w, l, good);
            ref_unpin(&w, l);
            w.loads += l->to - l->from;
            break;
        case 7:
            if (rnd(2)) {
                ref_unpin(&w, l);
                w.p.close(l->s);
                l->s = NULL;
            } else if (!rnd(20)) {
                w.p.reset(w.k);
                for (int i = w.n_ids - 1; i >= 0; i--)
                    if (!w.pins[w.id[i]])
                        ref_remove(&w, i);
            }
            break;
        default: {
            int n = 1 + rnd(l->n);
            compute(&w, l, n);
            ref_store(&w, l, n);
            assert_int_equal(w.p.store(l->s, l->tok, n, l->n, l->table, &t), 0);
            assert_int_equal(t, 0);
        }
        }
        check(&w);
        w.p.stats(w.k, &st);
        if (st.evicted_chunks != w.evicted || st.hit_tokens != w.hits || st.chunks != w.n_ids ||
            st.loaded_tokens != w.loads)
            fail_msg("seed %lu, operation %d: %lld evicted, %lld held; the reference has %lld and %d", seed, op,
                     (long long)st.evicted_chunks, (long long)st.chunks, (long long)w.evicted, w.n_ids);
    }
    assert_true(w.evicted > 1000 && w.hits > 10000 && w.loads > 10000);
    assert_int_equal(st.failed_loads, 0);
    printf("exact: %lld evictions, %lld tokens hit, %lld loaded\n", (long long)w.evicted, (long long)w.hits,
           (long long)w.loads);
    stress_close(&w);
}

static void poll_tickets(struct stress *w, struct request *l)
{
    int good = -1, rc;
    if (l->load && (rc = w->p.poll(w->k, l->load, &good))) {
        l->load = 0;
        check_good(w, l, good);
        assert_true(rc < 0 ? good < l->to : good == l->to);
    }
    if (l->store && w->p.poll(w->k, l->store, NULL))
        l->store = 0;
}

/* True once enough loads, failures, evictions and damaged chunks have occurred. */
static bool saw_enough(struct stress *w, int faults)
{
    struct kv_port_stats st;
    w->p.stats(w->k, &st);
    return st.loaded_tokens > 10000 && st.failed_loads > 50 && st.evicted_chunks > 500 && faults > 20;
}

/* While a request has an open ticket, it neither computes nor submits another transfer, but it may look up and close.
 * In between, chunks are damaged, copies fail and copies are delayed. */
static void late_and_faulty(void **state)
{
    (void)state;
    static struct stress w;
    stress_open(&w);
    struct kv_port_stats st;
    int faults = 0;
    /* On a slow machine it takes more operations until enough loads are finished. */
    for (int op = 0; op < 30000 || (op < 600000 && !saw_enough(&w, faults)); op++) {
        struct request *l = &w.request[rnd(SEQS)];
        bool busy = l->load || l->store;
        int good;
        w.f.delay = rnd(4);
        if (!rnd(30))
            *(rnd(2) ? &w.f.fail_copy : &w.f.fail_poll) = 1;
        if (!l->s && busy) {
            poll_tickets(&w, l);
            continue;
        }
        if (!l->s)
            open_request(&w, l);
        switch (rnd(9)) {
        case 0:
        case 1:
            l->hit = w.p.lookup(l->s, l->tok, l->n);
            assert_true(l->hit % C == 0 && l->hit <= l->n);
            break;
        case 2:
        case 3:
            if (busy || !l->s->n_pins)
                break;
            l->from = rnd(l->s->n_pins * C / B) * B;
            l->to = l->s->n_pins * C;
            for (int b = l->from / B; b < l->to / B; b++)
                fake_pages_wipe(&w.f, pages_of(&w, l, b));
            if (!rnd(20)) {
                int slot = l->s->pin[rnd(l->s->n_pins)];
                bool read = false; /* bytes do not change while a checksum thread reads them: DRAM has no such fault */
                for (int i = 0; i < SEQS; i++)
                    read |= w.request[i].load != 0;
                if (!read) {
                    kvc_dram_at(&w.k->dram, slot)[rnd((int)w.k->geometry.chunk_bytes)] ^= 4;
                    faults++;
                }
            }
            assert_int_equal(w.p.load(l->s, l->from, l->to, l->table, &l->load, &good), 0);
            if (!l->load)
                check_good(&w, l, good);
            break;
        case 4:
            w.p.close(l->s);
            l->s = NULL;
            break;
        case 5:
        case 6:
            usleep(20); /* lets the checksum threads run */
            for (int i = 0; i < SEQS; i++)
                poll_tickets(&w, &w.request[i]);
            break;
        default:
            if (busy)
                break;
            int n = 1 + rnd(l->n);
            compute(&w, l, n);
            w.p.store(l->s, l->tok, n, l->n, l->table, &l->store);
        }
        check(&w);
    }
    w.f.fail_copy = w.f.fail_poll = 0;
    for (int left = 1; left;) {
        left = 0;
        for (int i = 0; i < SEQS; i++) {
            poll_tickets(&w, &w.request[i]);
            left |= w.request[i].load || w.request[i].store;
        }
    }
    w.p.stats(w.k, &st);
    printf("late: %lld tokens loaded, %lld loads failed, %d flips, %lld evicted\n", (long long)st.loaded_tokens,
           (long long)st.failed_loads, faults, (long long)st.evicted_chunks);
    assert_true(saw_enough(&w, faults));
    for (int i = 0; i < SEQS; i++) {
        w.p.close(w.request[i].s);
        w.request[i].s = NULL;
    }
    check(&w);
    for (int i = 0; i < w.k->chunks.n; i++)
        assert_int_equal(w.k->chunks.slot[i].refs, 0);
    stress_close(&w);
}

int main(int argc, char **argv)
{
    seed = argc > 1 ? strtoul(argv[1], NULL, 10) : (unsigned long)time(NULL);
    printf("seed %lu\n", seed);
    rng = seed;
    const struct CMUnitTest tests[] = {cmocka_unit_test(exact_against_a_list), cmocka_unit_test(late_and_faulty)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
