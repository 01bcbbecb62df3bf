/* The engine with a cache layer: what it looks up, loads and stores, and that no failure of the cache layer changes an
 * answer. */
#include "base/test/test.h"

#include "base/clock.h"
#include "fake_rig.h"

static void reset(struct fake_rig *g, bool external)
{
    struct km_err err;
    int rc = 1;
    for (int i = 0; rc == 1 && i < 1000; i++)
        rc = eng_reset_cache(g->e, external, &err);
    assert_int_equal(rc, 0);
}

/* Resets the pool and runs a job, which can then hit the cache layer only. Returns the job's number of cached
 * tokens. */
static int external_hit(struct fake_rig *g, int n, uint64_t own, int out)
{
    reset(g, false);
    struct job j = fake_rig_run_job(g, n, own, out, NULL);
    assert_int_equal(j.last.n_cached_pool, 0);
    return j.last.n_cached;
}

static void loaded_tokens_are_not_computed(void **state)
{
    (void)state;
    static const int lengths[] = {1, 15, 16, 63, 64, 65, 79, 80, 81, 127, 128, 129, 191, 192, 193, 255, 256, 257};
    for (int slow = 0; slow < 4; slow++)
        for (int caching = 0; caching < 4; caching++) {
            struct eng_opts o = fake_rig_opts(100, 48, 8);
            o.prefix_caching = caching % 2;
            struct fake_port p;
            struct fake_rig g;
            fake_port_init(&p, 64);
            p.slow = slow;
            p.keep_partial = caching / 2;
            fake_rig_open(&g, &o, &p);
            g.m.copy_polls = slow / 2 * 2;
            g.m.copy_limit = slow % 2;
            for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
                int n = lengths[i], kept = p.kept;
                fake_rig_run_job(&g, n, i, 3, NULL);
                /* the prompt and the computed part of the output */
                assert_int_equal(p.kept - kept, (n + 2) / 64 + (p.keep_partial && n % 64));
                /* The last token is always computed. Less than a block is not loaded. */
                int want = p.keep_partial || n % 64 == 0 ? n - 1 : n / 64 * 64;
                want = want < 16 ? 0 : want;
                int64_t loaded = p.loaded_tokens, rows = g.m.rows;
                assert_int_equal(external_hit(&g, n, i, 3), want);
                assert_int_equal(p.loaded_tokens - loaded, want);
                assert_int_equal(g.m.rows - rows, n - want + 2);
            }
            assert_true(p.stores > 0 && p.loads > 0);
            fake_rig_close(&g);
            fake_port_free(&p);
        }
}

/* Tokens that the pool holds are not loaded. If the cache layer could not have more tokens, there is no lookup. */
static void cached_pages_are_not_loaded(void **state)
{
    (void)state;
    struct eng_opts o = fake_rig_opts(40, 512, 8);
    struct fake_port p;
    struct fake_rig g;
    fake_port_init(&p, 64);
    fake_rig_open(&g, &o, &p);
    fake_rig_run_job(&g, 300, 1, 1, NULL); /* 19 pages, 4 chunks */
    assert_int_equal(p.last_n, 300);
    assert_int_equal(p.last_n_prompt, 300);
    assert_int_equal(p.stores, 1); /* one step completed all four chunks and the prompt */
    assert_int_equal(p.had_tokens, 0);
    int lookups = p.lookups;
    struct job j = fake_rig_run_job(&g, 300, 1, 1, NULL); /* all in the pool: no lookup */
    assert_int_equal(j.last.n_cached_pool, 288);
    assert_int_equal(p.lookups, lookups);
    assert_int_equal(p.loads, 0);
    fake_rig_run_job(&g, 420, 2, 1, NULL); /* 27 pages: evicts the end of job 1, of which 13 pages remain */
    int64_t loaded = p.loaded_tokens;
    j = fake_rig_run_job(&g, 300, 1, 1, NULL);
    assert_int_equal(j.last.n_cached_pool, 208);
    assert_int_equal(j.last.n_cached, 256);
    assert_int_equal(p.loaded_tokens - loaded, 48);
    assert_int_equal(p.had_tokens, 208); /* in the pool, so no hit of the cache layer */
    fake_rig_run_job(&g, 450, 3, 1, NULL); /* 29 pages */
    j = fake_rig_run_job(&g, 300, 2, 1, NULL); /* the same tokens as the first 300 of job 2 */
    assert_true(j.last.n_cached_pool < 256);
    assert_int_equal(j.last.n_cached, 256);
    fake_rig_close(&g);
    fake_port_free(&p);
}

static void a_failing_cache_layer_changes_no_answer(void **state)
{
    (void)state;
    for (int failure = 0; failure < 7; failure++)
        for (int at = 0; at < 5; at++)
            for (int slow = 0; slow < 3; slow++) {
                struct eng_opts o = fake_rig_opts(100, 100, 8);
                struct fake_port p;
                struct fake_rig g;
                fake_port_init(&p, 64);
                fake_rig_open(&g, &o, &p);
                p.keep_nothing = failure == 0;
                p.no_open = failure == 1;
                fake_rig_run_job(&g, 300, 1, 10, NULL);
                p.slow = slow;
                g.m.copy_polls = slow;
                if (failure >= 2 && failure <= 3)
                    p.short_at = at;
                p.fail_at_once = failure == 4;
                p.lossy = failure == 5 ? 50 : 0;
                p.rng = (uint64_t)(at * 3 + slow);
                int want = failure < 2 || failure == 4 ? 0 : failure < 4 && at < 4 ? at * 64 : 256;
                int got = external_hit(&g, 300, 1, 10);
                if (failure != 5)
                    assert_int_equal(got, want);
                assert_int_equal(p.loads, failure >= 2 && (failure != 5 || got || p.loads));
                fake_rig_close(&g);
                fake_port_free(&p);
            }
}

/* Other requests run while one loads. If the loading request is cancelled, its pages are free when the ticket is
 * finished. */
static void other_requests_run_while_one_loads(void **state)
{
    (void)state;
    struct eng_opts o = fake_rig_opts(64, 100, 8);
    struct fake_port p;
    struct fake_rig g;
    struct job a, b;
    struct km_err err;
    fake_port_init(&p, 64);
    fake_rig_open(&g, &o, &p);
    fake_rig_run_job(&g, 300, 1, 1, NULL);
    assert_int_equal(eng_reset_cache(g.e, false, &err), 0);
    p.slow = 8;
    job_init(&a, 300, 0, 0, 1, 5);
    job_init(&b, 20, 0, 0, 2, 4);
    fake_rig_submit(&g, &a);
    fake_rig_submit(&g, &b);
    fake_rig_step(&g);
    assert_int_equal(fake_rig_stats(&g).loading, 1);
    assert_int_equal(fake_rig_stats(&g).running, 1);
    assert_int_equal(fake_rig_stats(&g).pages_used, 19 + 2); /* also for the tail of a */
    for (int i = 0; i < 3; i++)
        fake_rig_step(&g);
    assert_int_equal(b.finish, ENG_LENGTH);
    assert_int_equal(a.n_out, 0);
    struct eng_events ev;
    assert_int_equal(eng_step(g.e, &ev, &err), 0);
    assert_true(ev.stalled); /* no rows to run, but a transfer to wait for */
    fake_rig_run(&g);
    fake_rig_verify(&g, &a);
    fake_rig_verify(&g, &b);
    job_free(&a);

    reset(&g, false);
    g.m.copy_polls = 3;
    job_init(&a, 300, 0, 0, 1, 5);
    fake_rig_submit(&g, &a);
    fake_rig_step(&g);
    assert_int_equal(fake_rig_stats(&g).loading, 1);
    int64_t loaded = p.loaded_tokens;
    eng_cancel(g.e, a.id, ENG_ABORT);
    a.cancelled = true;
    assert_int_equal(fake_rig_stats(&g).loading, 0);
    /* The load is cut: two of its four chunks are being copied, and the other pages are free. */
    assert_int_equal(fake_rig_stats(&g).pages_used, 8);
    assert_false(eng_idle(g.e));
    assert_int_equal(eng_check(g.e, &err), 0);
    fake_rig_run(&g);
    assert_int_equal(fake_rig_stats(&g).pages_used, 0);
    assert_int_equal(p.loaded_tokens - loaded, 128);
    job_free(&a);
    job_free(&b);
    fake_rig_close(&g);
    fake_port_free(&p);
}

/* A store continues after its request has ended, and holds the pages that it reads. A reset waits for the store. */
static void stores_outlive_requests(void **state)
{
    (void)state;
    struct eng_opts o = fake_rig_opts(64, 512, 8);
    struct fake_port p;
    struct fake_rig g;
    struct km_err err;
    struct job j;
    fake_port_init(&p, 64);
    p.slow = 5;
    fake_rig_open(&g, &o, &p);
    g.m.copy_polls = 5;
    job_init(&j, 300, 0, 0, 1, 1);
    fake_rig_submit(&g, &j);
    fake_rig_step(&g);
    assert_int_equal(j.finish, ENG_LENGTH);
    assert_int_equal(fake_rig_stats(&g).pages_used, 19); /* the store may read them all */
    assert_int_equal(fake_rig_stats(&g).pages_cached, 0);
    assert_false(eng_idle(g.e));
    assert_int_equal(eng_reset_cache(g.e, true, &err), 1); /* never blocks */
    reset(&g, true);
    assert_int_equal(fake_rig_stats(&g).pages_used, 0);
    assert_int_equal(p.kept, 0);
    job_free(&j);
    assert_int_equal(external_hit(&g, 300, 1, 1), 0);
    /* eng_close waits for stores too. */
    job_init(&j, 300, 0, 0, 2, 50);
    fake_rig_submit(&g, &j);
    fake_rig_step(&g);
    eng_close(g.e);
    assert_int_equal(p.n_tickets + p.seqs, 0);
    assert_string_equal(g.m.complaint, "");
    job_free(&j);
    fake_port_free(&p);
}

/* Chunks are offered when they are complete, not in every step. There is one lookup for a request that waits for pages,
 * and another one after a preemption. */
static void lookups_and_stores_are_not_repeated(void **state)
{
    (void)state;
    struct eng_opts o = fake_rig_opts(20, 48, 8);
    struct fake_port p;
    struct fake_rig g;
    struct job a, b;
    struct km_err err;
    fake_port_init(&p, 64);
    fake_rig_open(&g, &o, &p);
    fake_rig_run_job(&g, 130, 1, 60, NULL); /* 189 computed */
    assert_int_equal(p.stores, 2);
    fake_rig_run_job(&g, 130, 1, 64, NULL); /* 193 computed: one more chunk, of the output */
    assert_int_equal(p.stores, 4); /* and the prompt, whose chunks the pool had */
    assert_int_equal(p.last_n, 192);
    assert_int_equal(p.last_n_prompt, 130);
    assert_int_equal(eng_reset_cache(g.e, false, &err), 0);
    int lookups = p.lookups;
    job_init(&a, 200, 0, 0, 2, 64); /* 13 to 17 pages of 20 */
    job_init(&b, 130, 0, 0, 1, 10); /* needs 9 at once, for its load and its tail */
    fake_rig_submit(&g, &a);
    for (int i = 0; i < 6; i++)
        fake_rig_step(&g);
    fake_rig_submit(&g, &b);
    for (int i = 0; i < 20; i++)
        fake_rig_step(&g);
    assert_int_equal(fake_rig_stats(&g).waiting, 1);
    assert_int_equal(p.lookups, lookups + 2);
    fake_rig_run(&g);
    assert_int_equal(p.lookups, lookups + 2);
    assert_int_equal(b.last.n_cached, 128);
    fake_rig_verify(&g, &a);
    fake_rig_verify(&g, &b);
    job_free(&a);
    job_free(&b);
    fake_rig_close(&g);
    fake_port_free(&p);
}

/* The pool has as many tokens as the cache layer, so the engine needs no load. It makes an empty one, with which the
 * cache layer drops the pins of the lookup. */
static void a_lookup_without_a_load_is_released(void **state)
{
    (void)state;
    struct fake_port p;
    struct fake_rig g;
    struct job a, b;
    fake_port_init(&p, 32);
    struct eng_opts o = fake_rig_opts(64, 512, 8);
    fake_rig_open(&g, &o, &p);
    job_init(&a, 97, 97, 3, 1, 2);
    job_init(&b, 140, 97, 3, 2, 2);
    fake_rig_one(&g, &a);
    fake_rig_one(&g, &b);
    assert_int_equal(b.last.n_cached, 96);
    assert_int_equal(b.last.n_cached_pool, 96);
    assert_int_equal(p.lookups, 2);
    assert_int_equal(p.loads, 0);
    assert_int_equal(p.dropped, 1);
    job_free(&a);
    job_free(&b);
    fake_rig_close(&g);
    fake_port_free(&p);
}

/* A store holds only the pages from the first chunk that the cache layer lacks on. */
static void a_store_holds_only_what_it_reads(void **state)
{
    (void)state;
    struct eng_opts o = fake_rig_opts(64, 512, 8);
    o.prefix_caching = false;
    struct fake_port p;
    struct fake_rig g;
    struct job j;
    fake_port_init(&p, 64);
    fake_rig_open(&g, &o, &p);
    fake_rig_run_job(&g, 130, 1, 1, NULL);
    p.slow = 5;
    job_init(&j, 300, 0, 0, 1, 1); /* 128 tokens are loaded, and two chunks stored */
    fake_rig_submit(&g, &j);
    while (j.finish == ENG_RUNNING)
        fake_rig_step(&g);
    assert_int_equal(j.last.n_cached, 128);
    assert_int_equal(p.last_from, 128);
    assert_int_equal(fake_rig_stats(&g).pages_used, 19 - 8);
    fake_rig_run(&g);
    assert_int_equal(p.kept, 4);
    job_free(&j);
    fake_rig_close(&g);
    fake_port_free(&p);
}

/* A lookup that is not answered yet delays its request only. */
static void a_slow_lookup_delays_only_its_request(void **state)
{
    (void)state;
    struct eng_opts o = fake_rig_opts(64, 512, 8);
    struct fake_port p;
    struct fake_rig g;
    struct job a, b;
    struct km_err err;
    struct eng_events ev;
    fake_port_init(&p, 64);
    fake_rig_open(&g, &o, &p);
    fake_rig_run_job(&g, 300, 1, 1, NULL);
    reset(&g, false);
    job_init(&a, 300, 0, 0, 1, 1);
    job_init(&b, 16, 0, 0, 2, 3); /* too short for a lookup */
    p.not_yet = 5;
    fake_rig_submit(&g, &a);
    fake_rig_submit(&g, &b);
    fake_rig_step(&g);
    assert_int_equal(b.n_out, 1);
    assert_int_equal(fake_rig_stats(&g).waiting, 1);
    assert_int_equal(fake_rig_stats(&g).pages_used, 1);
    fake_rig_step(&g);
    fake_rig_step(&g);
    assert_int_equal(b.finish, ENG_LENGTH);
    assert_int_equal(eng_step(g.e, &ev, &err), 0);
    assert_true(ev.stalled); /* there is only the lookup to wait for */
    assert_int_equal(p.lookups, 1);
    fake_rig_run(&g);
    assert_int_equal(p.lookups, 2);
    assert_int_equal(a.last.n_cached, 256);
    fake_rig_verify(&g, &a);
    fake_rig_verify(&g, &b);
    job_free(&a);
    job_free(&b);
    fake_rig_close(&g);
    fake_port_free(&p);
}

/* If the pool has chunks that the lookup did not find, they are offered at the admission, before the prompt is
 * complete. */
static void holes_are_filled_from_the_pool(void **state)
{
    (void)state;
    struct eng_opts o = fake_rig_opts(64, 64, 8);
    struct fake_port p;
    struct fake_rig g;
    struct job j;
    fake_port_init(&p, 64);
    fake_rig_open(&g, &o, &p);
    p.keep_nothing = true;
    job_init(&j, 200, 200, 3, 1, 1);
    fake_rig_one(&g, &j);
    job_free(&j);
    p.keep_nothing = false;
    int stores = p.stores;
    job_init(&j, 400, 200, 3, 2, 1);
    fake_rig_submit(&g, &j);
    fake_rig_step(&g);
    assert_int_equal(p.kept, 4); /* three from the pool, one that was computed */
    assert_int_equal(p.stores - stores, 2);
    fake_rig_run(&g);
    fake_rig_verify(&g, &j);
    assert_int_equal(j.last.n_cached_pool, 192);
    assert_int_equal(p.kept, 6);
    job_free(&j);
    fake_rig_close(&g);
    fake_port_free(&p);
}

/* A chunk that cannot be loaded splits the load. The larger side is used, and the engine computes the other one. */
static void a_bad_chunk_splits_the_load(void **state)
{
    (void)state;
    for (int bad = 0; bad < 4; bad++)
        for (int slow = 0; slow < 5; slow += 4)
            for (int async = 0; async < 2; async++) {
                struct eng_opts o = fake_rig_opts(100, 48, 8);
                struct fake_port p;
                struct fake_rig g;
                fake_port_init(&p, 64);
                fake_rig_open_on(&g, &o, &p, async ? &be_fake_async : &be_fake);
                fake_rig_run_job(&g, 300, 1, 10, NULL);
                p.slow = slow;
                g.m.copy_polls = slow;
                p.bad_chunk = bad;
                int64_t rows = g.m.rows;
                /* loaded from the end, so with two chunks before the bad one and one behind it, the one is kept only if
                 * it is larger */
                static const int want[] = {192, 128, 128, 192};
                assert_int_equal(external_hit(&g, 300, 1, 10), want[bad]);
                assert_int_equal(g.m.rows - rows, 300 - want[bad] + 9);
                assert_int_equal(p.intervals, bad < 2);
                assert_int_equal(p.kept, 4);
                fake_rig_close(&g);
                fake_port_free(&p);
            }
}

/* Copies that fail, at the submission or later, lose time and nothing else. */
static void failed_copies_change_no_answer(void **state)
{
    (void)state;
    int hits = 0, misses = 0;
    for (uint64_t i = 0; i < 40; i++) {
        struct eng_opts o = fake_rig_opts(100, 100, 8);
        struct fake_port p;
        struct fake_rig g;
        fake_port_init(&p, 64);
        fake_rig_open_on(&g, &o, &p, i % 2 ? &be_fake_async : &be_fake);
        fake_rig_run_job(&g, 300, 1, 10, NULL);
        g.m.copy_fails = 30;
        g.m.copy_polls = (int)i % 3;
        g.m.rng = i;
        int got = external_hit(&g, 300, 1, 10);
        hits += got == 256;
        misses += got < 256;
        fake_rig_run_job(&g, 400, 2, 10, NULL); /* its stores fail */
        g.m.copy_fails = 0;
        fake_rig_run_job(&g, 400, 2, 10, NULL); /* what failed is stored now */
        assert_int_equal(p.kept, 4 + 6);
        fake_rig_close(&g);
        fake_port_free(&p);
    }
    assert_true(hits > 2 && misses > 2);
}

/* eng_close does not wait for a cache layer that is stuck longer than two seconds. */
static void closing_does_not_wait_forever(void **state)
{
    (void)state;
    struct eng_opts o = fake_rig_opts(64, 512, 8);
    struct fake_port p;
    struct fake_rig g;
    struct job j;
    fake_port_init(&p, 64);
    fake_rig_open(&g, &o, &p);
    fake_rig_run_job(&g, 300, 1, 1, NULL);
    reset(&g, false);
    p.stuck = true;
    job_init(&j, 300, 0, 0, 1, 1);
    fake_rig_submit(&g, &j);
    fake_rig_step(&g);
    assert_int_equal(fake_rig_stats(&g).loading, 1);
    int64_t from = km_now_ns();
    eng_close(g.e);
    int64_t took = km_now_ns() - from;
    assert_true(took > 1900000000 && took < 5000000000);
    assert_int_equal(p.n_tickets + p.seqs, 0);
    assert_string_equal(g.m.complaint, "");
    job_free(&j);
    fake_port_free(&p);
}

static void the_copier_is_that_of_the_backend(void **state)
{
    (void)state;
    struct eng_opts o = fake_rig_opts(64, 512, 8);
    for (int i = 0; i < 2; i++) {
        struct backend b = i ? be_fake : be_fake_clock;
        struct fake_port p;
        struct fake_rig g;
        b.threads = i;
        b.no_payload = !i;
        fake_port_init(&p, 64);
        fake_rig_open_on(&g, &o, &p, &b);
        g.m.clock = 77;
        assert_int_equal(p.copier.threads, i);
        assert_int_equal(p.copier.payload, i);
        assert_null(p.copier.host_register);
        int64_t at = p.copier.now(p.copier.self);
        assert_true(i ? at > 77 && at <= km_now_ns() : at == 77);
        fake_rig_close(&g);
        fake_port_free(&p);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(loaded_tokens_are_not_computed),
        cmocka_unit_test(cached_pages_are_not_loaded),
        cmocka_unit_test(a_failing_cache_layer_changes_no_answer),
        cmocka_unit_test(other_requests_run_while_one_loads),
        cmocka_unit_test(stores_outlive_requests),
        cmocka_unit_test(lookups_and_stores_are_not_repeated),
        cmocka_unit_test(a_lookup_without_a_load_is_released),
        cmocka_unit_test(a_store_holds_only_what_it_reads),
        cmocka_unit_test(a_slow_lookup_delays_only_its_request),
        cmocka_unit_test(holes_are_filled_from_the_pool),
        cmocka_unit_test(a_bad_chunk_splits_the_load),
        cmocka_unit_test(failed_copies_change_no_answer),
        cmocka_unit_test(closing_does_not_wait_forever),
        cmocka_unit_test(the_copier_is_that_of_the_backend),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
