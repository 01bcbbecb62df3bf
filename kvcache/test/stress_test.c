/* Random operations against a reference. With copies that complete at once the reference is exact: a list of prefixes
 * in order of use must predict every lookup and every eviction. With engines on threads of their own, one store, tiers,
 * slow and failing copies and flipped bits the check is one-sided: all tokens that a load reports as good must have the
 * right bytes, and pages that a cut returned are not written. The seed is printed; argv[1] sets it. */
#include "kvcache/test/rig.h"

#include "base/clock.h"
#include "base/random.h"
#include "kvcache/sequence.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { C = 32, CHUNKS = 6, TOK = C * CHUNKS + 9, SEQS = 12, SLOTS = 14, TREE = 3, PAGES = TOK / B + 1 };

static unsigned long seed;

#define CHECK(cond) check_that(cond, #cond, __LINE__)

/* Asserts of cmocka work on the main thread only. */
static void check_that(bool ok, const char *text, int line)
{
    if (ok)
        return;
    fprintf(stderr, "seed %lu, line %d: %s is false\n", seed, line, text);
    abort();
}

/* One open request, and what the reference expects of it. */
struct request {
    struct kv_seq *s;          /* NULL: closed */
    const char *salt;
    int32_t tok[TOK];
    int n;                     /* tokens of the prompt */
    int hit;                   /* tokens that the last lookup found, until a load or store takes them */
    int n_offered;             /* reference: leading chunks that were offered to store since the last lookup */
    int pin[CHUNKS], n_pins;   /* reference: ids of the pinned prefixes */
    uint64_t load, store;      /* open tickets */
    int from, to;              /* tokens of the last load */
    int owned;                 /* of the open load: its last cut; the engine has computed the blocks before it */
    int32_t table[PAGES];
};

/* An engine: its device, its port and its requests. */
struct user {
    struct fake_pages f;
    struct kvc *k;
    struct kv_port p;
    struct request request[SEQS];
    uint64_t rng;
    int64_t loads, cuts, n_ops;
};

/* The reference. */
struct list {
    int id[SLOTS];             /* [n_ids] ids of the stored prefixes, newest first */
    int n_ids;
    int pins[100000];          /* number of pins, by id */
    int64_t evicted, hits, loads;
};

static int rnd(struct user *w, int n)
{
    return (int)km_random_below(&w->rng, (uint32_t)n);
}

/* A prefix (salt and chunks 0 to `chunk`) as a number: the salt has two values, a chunk has TREE. */
static int prefix_id(const struct request *l, int chunk)
{
    int id = l->salt ? 2 : 1;
    for (int i = 0; i <= chunk; i++)
        id = id * (TREE + 1) + l->tok[i * C] + 1;
    return id;
}

static int ref_find(const struct list *w, int id)
{
    for (int i = 0; i < w->n_ids; i++)
        if (w->id[i] == id)
            return i;
    return -1;
}

static void ref_remove(struct list *w, int at)
{
    memmove(w->id + at, w->id + at + 1, (size_t)(w->n_ids - at - 1) * sizeof *w->id);
    w->n_ids--;
}

static void ref_front(struct list *w, int id)
{
    int at = ref_find(w, id);
    if (at >= 0)
        ref_remove(w, at);
    memmove(w->id + 1, w->id, (size_t)w->n_ids * sizeof *w->id);
    w->id[0] = id;
    w->n_ids++;
}

static void ref_unpin(struct list *w, struct request *l)
{
    while (l->n_pins)
        w->pins[l->pin[--l->n_pins]]--;
}

static int ref_lookup(struct list *w, struct request *l)
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

static void ref_store(struct list *w, struct request *l, int n)
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

static void open_request(struct user *w, struct request *l)
{
    l->salt = rnd(w, 4) ? NULL : "s";
    l->n = 1 + rnd(w, TOK);
    for (int i = 0; i < TOK; i++)
        l->tok[i] = i % C ? l->tok[i - 1] : rnd(w, TREE);
    l->hit = l->n_offered = l->n_pins = 0;
    l->s = w->p.open(w->p.self, l->salt, l->tok, l->n);
    CHECK(l->s);
}

/* Writes the KV of blocks [from, to) to the request's pages. Stores read these pages and loads write them, as with an
 * engine. */
static void compute(struct user *w, struct request *l, int from, int to)
{
    for (int b = from; b < to; b++)
        fake_pages_fill(&w->f, l->table[b], l->salt, l->tok, l->n, b);
}

static void set_writable(struct user *w, struct request *l, int from, int to, bool writable)
{
    pthread_mutex_lock(&w->f.lock);
    for (int b = from; b < to; b++)
        w->f.writable[l->table[b]] = writable;
    pthread_mutex_unlock(&w->f.lock);
}

static void begin_load(struct user *w, struct request *l)
{
    for (int b = l->from / B; b * B < l->to; b++)
        fake_pages_wipe(&w->f, l->table[b]);
    set_writable(w, l, l->from / B, (l->to + B - 1) / B, true);
    l->owned = l->from;
    CHECK(!w->p.load(l->s, l->from, l->to, l->table, 0, &l->load) && l->load);
    l->hit = 0;
}

/* The result is right in its interval, and what the engine has computed before the cut is still there. */
static void end_load(struct user *w, struct request *l, struct kv_result res)
{
    l->load = 0;
    w->loads += res.good_to - res.good_from;
    CHECK(res.good_from >= l->from && res.good_from <= res.good_to && res.good_to <= l->to);
    CHECK(res.good_from == res.good_to || res.good_from >= l->owned);
    for (int b = l->from / B; b * B < l->to; b++)
        if (b * B < l->owned || (b * B >= res.good_from && b * B < res.good_to))
            CHECK(fake_pages_holds(&w->f, l->table[b], l->salt, l->tok, b * B < l->owned ? l->n : l->to, b));
    set_writable(w, l, 0, PAGES, false);
    CHECK(!w->f.violations);
}

static void cut(struct user *w, struct request *l)
{
    const int owned = w->p.cut(w->p.self, l->load, rnd(w, l->to + 1));
    CHECK(owned >= l->owned && owned % B == 0);
    const int blocks = owned < l->to ? owned / B : (l->to + B - 1) / B;
    set_writable(w, l, 0, blocks, false);
    compute(w, l, l->owned / B, blocks);
    l->owned = blocks * B;
    w->cuts++;
}

static void check(struct user *w)
{
    struct km_err err = {0};
    struct kv_port_stats st;
    if (kvc_check(w->k, &err)) {
        fprintf(stderr, "%s\n", err.msg);
        CHECK(false);
    }
    w->p.stats(w->p.self, &st);
    CHECK(st.bytes <= st.capacity && st.capacity <= w->k->cfg.max_local_cpu);
}

static void user_open(struct user *w, struct kvc *k, bool threads, int number)
{
    memset(w, 0, sizeof *w);
    fake_pages_open(&w->f, threads, true);
    w->k = k;
    w->rng = seed + (unsigned long)number;
    CHECK(!kvc_port(k, &w->p, NULL));
    CHECK(!w->p.attach(w->p.self, &w->f.geom, &w->f.copier, NULL));
    for (int i = 0; i < SEQS; i++)
        for (int b = 0; b < PAGES; b++)
            w->request[i].table[b] = i * PAGES + b;
}

static struct kvc *store_open(struct fake_tier *tier)
{
    struct kvc_config c = kvc_defaults();
    struct kvc *k;
    c.chunk_size = C;
    c.save_unfull = tier != NULL;
    c.max_local_cpu = SLOTS * (int64_t)(C / B * 512 + kvc_header_bytes(C, C / B));
    if (tier)
        fake_tier_config(tier, &c.tier[c.n_tiers++]);
    CHECK(!kvc_open(&k, &c, NULL));
    k->slab_bytes = 16384;
    return k;
}

/* Ends an operation of a device that completes all copies at once. */
static struct kv_result finished(struct user *w, uint64_t ticket)
{
    struct kv_result res = {0, 0};
    CHECK(!ticket || w->p.poll(w->p.self, ticket, &res) == 1);
    return res;
}

static void exact_step(struct user *w, struct list *ref, struct request *l)
{
    int from;
    uint64_t t;
    switch (rnd(w, 8)) {
    case 0:
    case 1:
    case 2:
        l->hit = ref_lookup(ref, l);
        ref->hits += l->hit;
        CHECK(w->p.lookup(l->s, l->tok, l->n, 0) == l->hit);
        break;
    case 3:
        if (!l->n_pins)
            break;
        l->from = rnd(w, l->n_pins * C / B) * B;
        l->to = l->from + (1 + rnd(w, l->n_pins * C / B - l->from / B)) * B;
        begin_load(w, l);
        struct kv_result res = finished(w, l->load);
        CHECK(res.good_from == l->from && res.good_to == l->to);
        end_load(w, l, res);
        ref_unpin(ref, l);
        ref->loads += l->to - l->from;
        break;
    case 7:
        if (rnd(w, 2)) {
            ref_unpin(ref, l);
            w->p.close(l->s);
            l->s = NULL;
        } else if (!rnd(w, 20)) {
            w->p.reset(w->p.self);
            for (int i = ref->n_ids - 1; i >= 0; i--)
                if (!ref->pins[ref->id[i]])
                    ref_remove(ref, i);
        }
        break;
    default: {
        int n = 1 + rnd(w, l->n);
        compute(w, l, 0, (n + B - 1) / B);
        ref_store(ref, l, n);
        CHECK(!w->p.store(l->s, l->tok, n, l->n, l->table, 0, &t, &from));
        finished(w, t);
    }
    }
}

static void exact_against_a_list(void **state)
{
    (void)state;
    static struct user w;
    static struct list ref;
    struct kvc *k = store_open(NULL);
    user_open(&w, k, false, 0);
    CHECK(kvc_settle(k, 10));
    struct kv_port_stats st;
    for (int op = 0; op < 30000; op++) {
        struct request *l = &w.request[rnd(&w, SEQS)];
        if (!l->s)
            open_request(&w, l);
        exact_step(&w, &ref, l);
        check(&w);
        w.p.stats(w.p.self, &st);
        if (st.evicted_chunks != ref.evicted || st.hit_tokens != ref.hits || st.chunks != ref.n_ids ||
            st.loaded_tokens != ref.loads)
            fail_msg("seed %lu, operation %d: %lld evicted, %lld held; the reference has %lld and %d", seed, op,
                     (long long)st.evicted_chunks, (long long)st.chunks, (long long)ref.evicted, ref.n_ids);
    }
    assert_true(ref.evicted > 1000 && ref.hits > 10000 && ref.loads > 10000);
    assert_int_equal(st.failed_loads, 0);
    printf("exact: %lld evictions, %lld tokens hit, %lld loaded\n", (long long)ref.evicted, (long long)ref.hits,
           (long long)ref.loads);
    for (int i = 0; i < SEQS; i++)
        w.p.close(w.request[i].s);
    kvc_free(k);
    fake_pages_close(&w.f);
}

static void poll_tickets(struct user *w, struct request *l)
{
    struct kv_result res;
    if (l->load && w->p.poll(w->p.self, l->load, &res))
        end_load(w, l, res);
    if (l->store && w->p.poll(w->p.self, l->store, NULL))
        l->store = 0;
}

/* Damages the device's next copies. */
static void faults(struct user *w)
{
    pthread_mutex_lock(&w->f.lock);
    if (!rnd(w, 30))
        *(rnd(w, 2) ? &w->f.fail_copy : &w->f.fail_poll) = 1;
    if (!rnd(w, 30)) {
        w->f.flip = (enum fake_flip)(FAKE_FLIP_BEFORE + rnd(w, 3));
        w->f.flip_dir = rnd(w, 2) ? KV_TO_PAGE : KV_TO_HOST;
        /* A flip in a page before its store is a fault of the engine's memory, which no cache can find. */
        if (w->f.flip_dir == KV_TO_HOST && w->f.flip == FAKE_FLIP_BEFORE)
            w->f.flip = FAKE_FLIP_AFTER;
        w->f.flip_at = 1 + rnd(w, 8);
    }
    w->f.rate = rnd(w, 3) ? 0 : 50e6;
    w->f.limit = rnd(w, 4) ? FAKE_COPIES : rnd(w, 3);
    pthread_mutex_unlock(&w->f.lock);
}

/* While a request has an open ticket, it neither computes nor submits another operation, but it may look up, cut and
 * close. */
static void random_step(struct user *w, struct request *l)
{
    const bool busy = l->load || l->store;
    int from;
    if (!l->s) {
        if (busy)
            poll_tickets(w, l);
        else
            open_request(w, l);
        return;
    }
    switch (rnd(w, 9)) {
    case 0:
    case 1:
        l->hit = w->p.lookup(l->s, l->tok, l->n, 0);
        l->hit = l->hit == KV_NOT_YET ? 0 : l->hit;
        CHECK(l->hit >= 0 && (l->hit % C == 0 || l->hit == l->n) && l->hit <= l->n);
        break;
    case 2:
    case 3:
        if (busy || !l->hit)
            break;
        CHECK(w->p.load_ns(l->s, 0, l->hit) >= 0);
        l->from = rnd(w, (l->hit + B - 1) / B) * B;
        l->to = l->hit;
        begin_load(w, l);
        break;
    case 4:
        if (l->load)
            cut(w, l);
        break;
    case 5:
        if (rnd(w, 3))
            break;
        w->p.close(l->s);
        l->s = NULL;
        break;
    case 6:
        usleep(20); /* lets the transfer thread run */
        w->f.copier.now(&w->f);
        for (int i = 0; i < SEQS; i++)
            poll_tickets(w, &w->request[i]);
        break;
    default:
        if (busy)
            break;
        int n = rnd(w, 2) ? l->n : 1 + rnd(w, l->n);
        compute(w, l, 0, (n + B - 1) / B);
        CHECK(!w->p.store(l->s, l->tok, n, l->n, l->table, 0, &l->store, &from));
        if (n >= l->hit)
            l->hit = 0;
    }
}

/* Ends all operations and closes all requests. */
static void user_finish(struct user *w)
{
    pthread_mutex_lock(&w->f.lock);
    w->f.fail_copy = w->f.fail_poll = w->f.flip_at = 0;
    w->f.limit = FAKE_COPIES;
    pthread_mutex_unlock(&w->f.lock);
    const int64_t until = km_now_ns() + 30000000000LL;
    for (int left = 1; left;) {
        left = 0;
        for (int i = 0; i < SEQS; i++) {
            poll_tickets(w, &w->request[i]);
            left |= w->request[i].load || w->request[i].store;
        }
        CHECK(km_now_ns() < until);
    }
    for (int i = 0; i < SEQS; i++) {
        w->p.close(w->request[i].s);
        w->request[i].s = NULL;
    }
}

static void *user_run(void *arg)
{
    struct user *w = arg;
    for (int op = 0; op < w->n_ops; op++) {
        faults(w);
        random_step(w, &w->request[rnd(w, SEQS)]);
        if (op % 16 == 0)
            check(w);
        if (op % 2000 == 1999) { /* the engine is replaced */
            user_finish(w);
            w->p.detach(w->p.self);
            CHECK(!w->p.attach(w->p.self, &w->f.geom, &w->f.copier, NULL));
        } else if (op % 500 == 0)
            w->p.reset(w->p.self);
    }
    user_finish(w);
    return NULL;
}

/* Engines on one store, whose tier loses, damages and delays chunks. */
static void late_and_faulty(bool threads, bool index)
{
    static struct user w[2];
    static struct fake_tier tier;
    fake_tier_init(&tier, index);
    struct kvc *k = store_open(&tier);
    pthread_t thread[2];
    for (int i = 0; i < 2; i++)
        user_open(&w[i], k, threads, i);
    for (int i = 0; i < 2; i++) {
        w[i].n_ops = 20000;
        CHECK(!pthread_create(&thread[i], NULL, user_run, &w[i]));
    }
    for (int i = 0; i < 400; i++) {
        usleep(2000);
        pthread_mutex_lock(&tier.lock);
        tier.polls = i % 5;
        tier.lose = i % 11 == 1;
        tier.truncate = i % 11 == 3;
        tier.flip_payload = i % 11 == 5;
        tier.flip_header = i % 11 == 7;
        tier.fail = i % 11 == 9;
        pthread_mutex_unlock(&tier.lock);
    }
    for (int i = 0; i < 2; i++)
        CHECK(!pthread_join(thread[i], NULL));
    CHECK(kvc_settle(k, 10));
    struct kv_port_stats st;
    int64_t failed = 0;
    for (int i = 0; i < 2; i++) {
        check(&w[i]);
        w[i].p.stats(w[i].p.self, &st);
        failed += st.failed_loads;
    }
    printf("%s, tier %s: %lld + %lld tokens loaded, %lld + %lld cuts, %lld loads failed, %lld corrupt, %lld evicted\n",
           threads ? "threads" : "no threads", index ? "with index" : "without index", (long long)w[0].loads,
           (long long)w[1].loads, (long long)w[0].cuts, (long long)w[1].cuts, (long long)failed,
           (long long)st.corrupt_chunks, (long long)st.evicted_chunks);
    assert_true(w[0].loads > 1000 && w[1].loads > 1000 && failed > 20 && st.corrupt_chunks > 20);
    assert_true(st.evicted_chunks > 500 && w[0].cuts > 20);
    for (int i = 0; i < k->chunks.n; i++)
        assert_int_equal(k->chunks.chunk[i].refs, 0);
    kvc_free(k);
    for (int i = 0; i < 2; i++)
        fake_pages_close(&w[i].f);
    fake_tier_free(&tier);
}

static void engines_with_a_transfer_thread(void **state)
{
    (void)state;
    late_and_faulty(true, true);
    late_and_faulty(true, false);
}

static void engines_that_drive_the_store(void **state)
{
    (void)state;
    late_and_faulty(false, true);
    late_and_faulty(false, false);
}

int main(int argc, char **argv)
{
    seed = argc > 1 ? strtoul(argv[1], NULL, 10) : (unsigned long)time(NULL);
    printf("seed %lu\n", seed);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(exact_against_a_list),
        cmocka_unit_test(engines_with_a_transfer_thread),
        cmocka_unit_test(engines_that_drive_the_store),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
