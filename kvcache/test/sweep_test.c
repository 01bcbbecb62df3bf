/* The sweep: an answer with the cache equals the answer without it bit for bit, whatever the length of the prompt, the
 * part of it that is cached, the tier, the budget of a step, the batch, what happened before, the planner and the
 * configuration. The CPU engine computes equal bits whatever the batch.
 *
 * Cases are drawn with a seed. In every tier each pair of prompt length and hit length occurs. Every case asserts how
 * many tokens were loaded, so that no case passes because nothing was loaded.
 *
 *     kvc_sweep_test             some hundred cases
 *     kvc_sweep_test ROUNDS [SEED]  ROUNDS times as many, from another seed */
#include "kvcache/test/engine_rig.h"

#include "base/random.h"
#include "engine/planner.h"
#include "kvcache/internal.h"
#include "kvcache/tiers/disk_config.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { LONG = 2000, TEXTS = 3, BLOCKS = 224, JOBS = 8, WHOLE = 4096 };
static const int lengths[] = {1, 2, 15, 16, 17, 255, 256, 257, 511, 512, 513, 767, 1024, LONG};
enum { N_LENGTHS = sizeof lengths / sizeof *lengths };
enum hit { HIT_NONE, HIT_BLOCK, HIT_CHUNK, HIT_CHUNK_LESS, HIT_CHUNK_MORE, HIT_ALL_BUT_ONE, HIT_ALL, N_HITS };
enum tier { DRAM, DISK, BOTH, TINY, N_TIERS }; /* TINY: a disk with host memory for 4 chunks */
static const char *const tier_names[] = {"DRAM", "disk", "DRAM and disk", "disk with tiny staging"};
enum crowd { ONE, TWO, EIGHT, MIXED, N_BATCHES };
enum after { FRESH, EVICTED, PREEMPTED, CANCELLED, RESTARTED, RESET };
static const enum after afters[] = {FRESH,   EVICTED,   CANCELLED, RESTARTED, FRESH,
                                    EVICTED, PREEMPTED, RESTARTED, RESET};
enum { N_AFTERS = sizeof afters / sizeof *afters };
static const int budgets[] = {1, 7, 64, 256, WHOLE};

static struct mdl *model;
static int rounds = 1;
static uint64_t rng = 20261125;
static int32_t text[TEXTS][LONG];
static struct er_job reference[2][TEXTS][N_LENGTHS]; /* [f32, bf16]; got 0: not computed yet */
static struct eng *plain[2];
static int64_t cases[N_TIERS], runs[N_TIERS], warm_runs[N_TIERS], overlapped, loaded_by_auto, preemptions, fewer;

static int rnd(int n)
{
    return (int)(km_random_next(&rng) % (uint64_t)n);
}

/* A cache and an engine that uses it. */
struct bed {
    enum tier tier;
    int chunk, slots, budget, planner, dtype; /* dtype: 0 f32, 1 bf16 */
    bool unfull, prefix, throttle;
    char dir[256];
    struct kvc *k;
    struct kv_port port;
    struct eng *e;
};

static const enum km_dtype dtypes[] = {KM_F32, KM_BF16};

static struct er_opts engine_opts(const struct bed *b)
{
    return (struct er_opts){.blocks = BLOCKS, .batched = b->budget, .max_len = LONG + 64, .seqs = JOBS,
                            .prefix = b->prefix, .dtype = dtypes[b->dtype], .planner = b->planner, .threads = 1};
}

static void bed_open(struct bed *b)
{
    struct kvc_config c = kvc_defaults();
    b->slots = b->tier == TINY ? 4 : b->chunk == 16 ? 192 : 13;
    c.chunk_size = b->chunk;
    c.save_unfull = b->unfull;
    c.local_cpu = b->tier == DRAM || b->tier == BOTH;
    c.max_local_cpu = er_host_bytes(model, dtypes[b->dtype], b->chunk, b->slots);
    c.throttle = b->throttle ? 20 << 20 : 0; /* about as fast as this model's steps, so that the two meet */
    if (b->tier != DRAM) {
        struct disk_config disk = {.size = 1 << 30};
        snprintf(disk.dir, sizeof disk.dir, "%s", b->dir);
        c.tier[0].ops = &kvc_tier_disk;
        memcpy(c.tier[0].config, &disk, sizeof disk);
        c.n_tiers = 1;
    }
    struct km_err err = {0};
    if (kvc_open(&b->k, &c, &err) || kvc_port(b->k, &b->port, &err))
        fail_msg("%s", err.msg);
    b->e = er_engine(model, &b->port, engine_opts(b));
    assert_true(kvc_settle(b->k, 60));
    assert_int_equal(b->k->chunks.n_usable, b->slots);
}

static void bed_close(struct bed *b)
{
    assert_true(kvc_settle(b->k, 60));
    er_stats(b->k, &b->port);
    eng_close(b->e);
    kvc_free(b->k);
}

static void reset(struct bed *b, bool external)
{
    struct km_err err = {0};
    int rc;
    for (int i = 0; (rc = eng_reset_cache(b->e, external, &err)) == 1; i++) {
        assert_true(i < 200000);
        usleep(50);
    }
    if (rc)
        fail_msg("%s", err.msg);
}

/* The answer of the engine without a cache to the first lengths[len] tokens of a text. */
static const struct er_job *answer(int dtype, int v, int len)
{
    struct er_job *a = &reference[dtype][v][len];
    if (a->got)
        return a;
    if (!plain[dtype]) {
        struct bed b = {.dtype = dtype, .budget = WHOLE};
        plain[dtype] = er_engine(model, NULL, engine_opts(&b));
    }
    *a = (struct er_job){.prompt = text[v], .n = lengths[len], .n_out = ER_OUT};
    er_run_one(plain[dtype], a);
    assert_int_equal(a->cached, 0);
    return a;
}

static void run_checked(struct bed *b, struct er_job *jobs, int n, int v, const int *len)
{
    struct er_job *at[JOBS] = {NULL};
    for (int i = 0; i < n; i++)
        at[i] = &jobs[i];
    er_run(b->e, at, n, NULL, NULL);
    for (int i = 0; i < n; i++)
        er_check_same(answer(b->dtype, v, len[i]), &jobs[i]);
}

static int hit_tokens(enum hit h, int n, int chunk)
{
    const int t[] = {0, ER_BLOCK, chunk, chunk - 1, chunk + 1, n - 1, n};
    return t[h] < 0 ? 0 : t[h] < n ? t[h] : n;
}

/* What of a prompt of n tokens a cache keeps that has room. */
static int kept(const struct bed *b, int n)
{
    return b->unfull ? n : n / b->chunk * b->chunk;
}

/* Stores the first n tokens of text v. A cache without room for all declines some, and stores more the next time. If
 * the engine asks for nothing (PLN_COMPUTE), it offers everything each time, and the queue of PUTs may have room for
 * the same chunks only. */
static void warm(struct bed *b, const char *salt, int v, int n)
{
    if (!n)
        return;
    int held = -1, now;
    for (int i = 0; (now = er_held(b->k, salt, text[v], n, true)) < kept(b, n) && i < 12; i++, held = now) {
        struct er_job a = {.prompt = text[v], .n = n, .n_out = 1, .salt = salt};
        reset(b, false);
        er_run_one(b->e, &a);
        assert_true(kvc_settle(b->k, 60));
        assert_true(a.cached <= (held < 0 ? 0 : now));
    }
    const bool some = b->tier == TINY || (b->tier != DRAM && b->planner == PLN_COMPUTE);
    if (some ? kept(b, n) && !now : now != kept(b, n))
        fail_msg("the cache keeps %d of %d tokens; %s, chunk %d, budget %d, planner %d", now, kept(b, n),
                 tier_names[b->tier], b->chunk, b->budget, b->planner);
}

/* Stores other prompts until host memory has no chunk of the first n tokens of text v. */
static void evict(struct bed *b, const char *salt, int v, int n)
{
    struct km_digest key[LONG / ER_BLOCK + 1];
    const int chunks = (n + b->chunk - 1) / b->chunk;
    for (int i = 0; i < chunks; i++)
        key[i] = er_key(b->k, salt, text[v], n, i);
    for (int left = chunks, flood = 0; left && flood < 12; flood++) {
        char other[64];
        snprintf(other, sizeof other, "%s flood %d", salt, flood);
        struct er_job a = {.prompt = text[(v + 1) % TEXTS], .n = LONG, .n_out = 1, .salt = other};
        er_run_one(b->e, &a);
        assert_true(kvc_settle(b->k, 60));
        pthread_mutex_lock(&b->k->lock);
        left = 0;
        for (int i = 0; i < chunks; i++)
            left += kvc_chunks_find(&b->k->chunks, &key[i]) >= 0;
        pthread_mutex_unlock(&b->k->lock);
        assert_true(!left || flood < 11);
    }
}

/* Seven requests that fill the pool and grow beyond it, unless the budget is so small that the first ones end before;
 * some of them have their prefix in the cache. */
static void preempt(struct bed *b, const char *salt, int v)
{
    enum { N = 7, L511 = 8, L512 = 9 };
    struct er_job jobs[N];
    char salts[N][64];
    int len[N];
    for (int i = 0; i < N; i++) {
        snprintf(salts[i], sizeof salts[i], "%s storm %d", salt, i);
        len[i] = i % 2 ? L511 : L512;
        jobs[i] = (struct er_job){.prompt = text[v], .n = lengths[len[i]], .n_out = 20,
                                  .salt = i < 2 ? salt : salts[i]};
    }
    warm(b, salts[2], v, 300);
    reset(b, false);
    run_checked(b, jobs, N, v, len);
    for (int i = 0; i < N; i++)
        preemptions += jobs[i].preempted;
}

/* Cancels two requests somewhere between their arrival and their end. */
static void cancel(struct bed *b, const char *salt, int v, int n)
{
    char other[64];
    snprintf(other, sizeof other, "%s other", salt);
    struct er_job a = {.prompt = text[v], .n = n, .n_out = 20, .salt = salt, .cancel_at = 1 + rnd(12)},
                  o = {.prompt = text[v], .n = 700, .n_out = 20, .salt = other, .cancel_at = 1 + rnd(12)};
    struct er_job *at[] = {&o, &a};
    er_run(b->e, at, n ? 2 : 1, NULL, NULL);
}

static void disturb(struct bed *b, enum after after, const char *salt, int v, int n)
{
    if (after == EVICTED)
        evict(b, salt, v, n);
    else if (after == PREEMPTED)
        preempt(b, salt, v);
    else if (after == CANCELLED)
        cancel(b, salt, v, n);
    else if (after == RESTARTED) {
        bed_close(b);
        bed_open(b);
    } else if (after == RESET)
        reset(b, true);
    assert_true(kvc_settle(b->k, 60));
}

/* Tokens that a load of a prompt of n brings if the cache holds `held`: the last one is computed for its logits, and
 * less than a block is not loaded. */
static int to_load(const struct bed *b, int held, int n)
{
    const int most = held < n - 1 ? held : n - 1;
    return most < ER_BLOCK || b->planner == PLN_COMPUTE ? 0 : most;
}

/* The jobs of a batch; the first one is the case. */
static int make_batch(struct er_job *jobs, int *len, enum crowd crowd, int v, int first, const char *salt)
{
    static const int n_jobs[] = {1, 2, 8, 5};
    for (int i = 0; i < n_jobs[crowd]; i++) {
        len[i] = i == 0 || crowd == TWO ? first : rnd(N_LENGTHS - (i > 3 ? 6 : 2));
        jobs[i] = (struct er_job){.prompt = text[v], .n = lengths[len[i]], .n_out = 3, .salt = salt};
        if (crowd == MIXED) {
            jobs[i].submit_at = rnd(8);
            jobs[i].n_out = 1 + rnd(ER_OUT);
        }
    }
    return n_jobs[crowd];
}

static bool in_cache_for_sure(const struct bed *b, const struct er_job *jobs, int n)
{
    int chunks = 0;
    for (int i = 0; i < n; i++)
        chunks += (jobs[i].n + b->chunk - 1) / b->chunk;
    return b->tier != TINY && chunks < b->slots / 2;
}

/* The loads of the case were what the contents of the cache say. */
static void check_loads(const struct bed *b, const struct er_job *jobs, int n, const int *want,
                        const struct kv_port_stats *s0, const struct kv_port_stats *s1)
{
    const int64_t loaded = s1->loaded_tokens - s0->loaded_tokens;
    int64_t from_cache = 0;
    for (int i = 0; i < n; i++) {
        const int got = jobs[i].cached - jobs[i].cached_pool;
        from_cache += got;
        assert_true(jobs[i].cached < jobs[i].n || !jobs[i].cached);
        if (b->planner == PLN_COMPUTE)
            assert_int_equal(got, 0);
        if (n == 1 && b->planner == PLN_LOAD)
            assert_int_equal(got, want[i]);
        if (n == 1)
            assert_true(got <= want[i]);
        if (b->planner != PLN_LOAD || jobs[i].cached >= want[i])
            continue;
        if (jobs[i].cached_pool && want[i] - jobs[i].cached < ER_BLOCK)
            continue; /* less than a block is not loaded */
        fewer++;
        if (in_cache_for_sure(b, jobs, n))
            fail_msg("job %d of %d, a prompt of %d tokens, got %d tokens (%d from the pool) of the %d that the cache "
                     "held; %s, chunk %d, budget %d, prefix %d, %d preemptions",
                     i, n, jobs[i].n, jobs[i].cached, jobs[i].cached_pool, want[i], tier_names[b->tier], b->chunk,
                     b->budget, b->prefix, jobs[i].preempted);
    }
    if (n == 1)
        assert_int_equal(loaded, from_cache);
    assert_true(loaded >= from_cache || b->planner == PLN_AUTO || b->prefix);
    if (b->tier != TINY)
        assert_int_equal(s1->failed_loads, 0);
    assert_int_equal(s1->corrupt_chunks, 0);
}

/* Runs the case's requests; counts what they loaded. */
static void run_batch(struct bed *b, const char *salt, int v, int len, enum crowd crowd)
{
    struct er_job jobs[JOBS];
    int lens[JOBS] = {0}, want[JOBS];
    const int n_jobs = make_batch(jobs, lens, crowd, v, len, salt);
    for (int i = 0; i < n_jobs; i++)
        want[i] = to_load(b, er_held(b->k, salt, text[v], jobs[i].n, true), jobs[i].n);
    struct kv_port_stats s0 = er_stats(b->k, &b->port), s1;
    struct eng_stats e0, e1;
    eng_stats(b->e, &e0);
    run_checked(b, jobs, n_jobs, v, lens);
    s1 = er_stats(b->k, &b->port);
    eng_stats(b->e, &e1);
    check_loads(b, jobs, n_jobs, want, &s0, &s1);
    overlapped += e1.overlapped_rows - e0.overlapped_rows;
    if (b->planner == PLN_AUTO)
        loaded_by_auto += s1.loaded_tokens - s0.loaded_tokens;
    warm_runs[b->tier] += s1.loaded_tokens > s0.loaded_tokens;
    runs[b->tier]++;
}

static void run_case(struct bed *b, int len, enum hit hit, enum crowd crowd, enum after after)
{
    static int number;
    char salt[32];
    const int v = number % TEXTS, n = lengths[len], h = hit_tokens(hit, n, b->chunk);
    snprintf(salt, sizeof salt, "case %d", number++);
    warm(b, salt, v, h);
    if (after == EVICTED && (b->budget < 64 || !h))
        after = CANCELLED; /* the flood would need some thousand steps */
    if (after == PREEMPTED && b->budget < 7)
        after = RESTARTED;
    const int below = er_held(b->k, salt, text[v], n, false); /* less than DRAM has, if the queue of PUTs was full */
    disturb(b, after, salt, v, h);
    if (crowd != MIXED || rnd(2))
        reset(b, false);
    const int held = er_held(b->k, salt, text[v], n, true);
    if (after == RESET)
        assert_int_equal(held, 0);
    else if (after == RESTARTED || after == EVICTED)
        assert_int_equal(held, below);
    else if (b->tier != TINY && b->planner != PLN_COMPUTE && after != PREEMPTED) /* it stores more of this salt */
        assert_int_equal(held, h == n ? kept(b, n) : h / b->chunk * b->chunk);
    run_batch(b, salt, v, len, crowd);
    if (!held && h >= ER_BLOCK) { /* what the disturbance took was stored again */
        reset(b, false);
        assert_true(kvc_settle(b->k, 60));
        const bool may_decline = b->tier == TINY && crowd != ONE; /* other requests may have used all slots */
        assert_true(!kept(b, n) || may_decline || er_held(b->k, salt, text[v], n, true) > 0);
        run_batch(b, salt, v, len, ONE);
    }
    cases[b->tier]++;
}

/* The pairs of prompt length and hit length of one tier, shuffled; the next one is at `next`. */
struct deck {
    int card[N_LENGTHS * N_HITS], next;
};

static void shuffle(struct deck *d)
{
    for (int i = 0; i < N_LENGTHS * N_HITS; i++) {
        const int j = rnd(i + 1);
        d->card[i] = d->card[j];
        d->card[j] = i;
    }
    d->next = 0;
}

static void sweep(void **state)
{
    (void)state;
    static struct deck deck[N_TIERS];
    int turn = 0;
    for (int t = 0; t < N_TIERS; t++)
        shuffle(&deck[t]);
    for (int round = 0; round < rounds * 3; round++)
        for (int shape = 0; shape < N_TIERS * 4; shape++) {
            struct bed b = {.tier = (enum tier)(shape % N_TIERS), .chunk = shape / N_TIERS % 2 ? 256 : 16,
                            .unfull = shape / N_TIERS / 2};
            b.planner = (const int[]){PLN_LOAD, PLN_AUTO, PLN_LOAD, PLN_AUTO, PLN_LOAD, PLN_AUTO, PLN_COMPUTE}[rnd(7)];
            b.budget = budgets[rnd(5)];
            b.prefix = rnd(2);
            b.dtype = rnd(2);
            b.throttle = b.planner == PLN_AUTO && rnd(2);
            er_folder(b.dir);
            bed_open(&b);
            for (int i = 0; i < 9; i++, turn++) {
                struct deck *d = &deck[b.tier];
                const int card = d->card[d->next++];
                if (d->next == N_LENGTHS * N_HITS)
                    shuffle(d);
                run_case(&b, card / N_HITS, (enum hit)(card % N_HITS), (enum crowd)(turn % N_BATCHES),
                         afters[rnd(N_AFTERS)]);
            }
            bed_close(&b);
            er_remove(b.dir);
        }
    for (int t = 0; t < N_TIERS; t++)
        printf("%-22s  %lld cases; %lld runs, %lld of them with loads\n", tier_names[t], (long long)cases[t],
               (long long)runs[t], (long long)warm_runs[t]);
    printf("the planner auto loaded %lld tokens; %lld rows were computed beside loads; %lld preemptions; %lld requests "
           "of batches found less than there was before\n",
           (long long)loaded_by_auto, (long long)overlapped, (long long)preemptions, (long long)fewer);
    for (int t = 0; t < N_TIERS; t++)
        assert_true(cases[t] >= N_LENGTHS * N_HITS && warm_runs[t] * 5 > runs[t]);
    assert_true(loaded_by_auto > 0 && overlapped > 0 && preemptions > 0);
}

int main(int argc, char **argv)
{
    if (argc > 1)
        rounds = atoi(argv[1]);
    if (argc > 2)
        rng = strtoull(argv[2], NULL, 0);
    if (rounds < 1) {
        fprintf(stderr, "usage: kvc_sweep_test [ROUNDS [SEED]]\n");
        return 2;
    }
    printf("seed %llu\n", (unsigned long long)rng);
    model = er_dummy_model(7);
    for (int v = 0; v < TEXTS; v++)
        for (int i = 0; i < LONG; i++)
            text[v][i] = rnd(500);
    const struct CMUnitTest tests[] = {cmocka_unit_test(sweep)};
    int rc = cmocka_run_group_tests(tests, NULL, NULL);
    for (int d = 0; d < 2; d++)
        if (plain[d])
            eng_close(plain[d]);
    mdl_free(model);
    return rc;
}
