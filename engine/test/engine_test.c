/* The engine core on the fake backend: answers at every edge, hits, stops, failures, and the port to a cache layer. */
#include "base/test/test.h"

#include "base/mem.h"
#include "fake_rig.h"

#include <stdio.h>
#include <string.h>

static const int edges[] = {1, 2, 15, 16, 17, 31, 32, 33, 255, 256, 257};
enum { N_EDGES = sizeof edges / sizeof *edges };

static struct eng_stats stats(const struct fake_rig *g)
{
    struct eng_stats s;
    eng_stats(g->e, &s);
    return s;
}

static int whole_blocks_before_last(int n)
{
    return (n - 1) / 16 * 16;
}

static void answers_at_the_edges(void **state)
{
    (void)state;
    static const int budgets[] = {1, 7, 16, 255, 256, 257, 2048};
    for (size_t b = 0; b < sizeof budgets / sizeof *budgets; b++)
        for (int caching = 0; caching < 2; caching++) {
            struct eng_opts o = fake_rig_opts(200, budgets[b], 8);
            o.prefix_caching = caching;
            struct fake_rig g;
            fake_rig_open(&g, &o, NULL);
            for (int i = 0; i < N_EDGES; i++)
                for (int warm = 0; warm < 2; warm++) {
                    int64_t rows = g.m.rows, hits = stats(&g).prefix_hits;
                    int want = warm && caching ? whole_blocks_before_last(edges[i]) : 0;
                    struct job j;
                    job_init(&j, edges[i], 0, 0, (uint64_t)i, 5);
                    fake_rig_one(&g, &j);
                    assert_int_equal(j.last.n_cached, want);
                    assert_int_equal(j.last.n_cached_pool, want);
                    assert_int_equal(stats(&g).prefix_hits - hits, want);
                    assert_int_equal(g.m.rows - rows, edges[i] - want + 4); /* the last token is not computed */
                    job_free(&j);
                }
            assert_int_equal(stats(&g).preemptions, 0);
            assert_int_equal(stats(&g).computed_tokens, g.m.rows);
            fake_rig_close(&g);
        }
}

static void many_at_once(void **state)
{
    (void)state;
    static const int budgets[] = {1, 7, 16, 256, 2048};
    enum { N = 40 };
    for (size_t b = 0; b < sizeof budgets / sizeof *budgets; b++) {
        struct eng_opts o = fake_rig_opts(1000, budgets[b], 16);
        struct fake_rig g;
        struct job j[N];
        fake_rig_open(&g, &o, NULL);
        for (int i = 0; i < N; i++) {
            job_init(&j[i], edges[i % N_EDGES], 64, i % 3, (uint64_t)i, 1 + i % 20);
            j[i].r.sampling.seed = (uint64_t)i;
            fake_rig_submit(&g, &j[i]);
        }
        assert_int_equal(stats(&g).waiting, N);
        fake_rig_step(&g);
        assert_true(stats(&g).running <= (budgets[b] < 16 ? budgets[b] : 16));
        fake_rig_run(&g);
        for (int i = 0; i < N; i++) {
            fake_rig_verify(&g, &j[i]);
            job_free(&j[i]);
        }
        struct eng_stats s = stats(&g);
        assert_true(s.prefix_hits > 0);
        assert_int_equal(s.finished[ENG_LENGTH], N);
        assert_int_equal(s.generated_tokens, N / 20 * 210);
        int64_t prompt_tokens = 0;
        for (int i = 0; i < N; i++)
            prompt_tokens += edges[i % N_EDGES];
        assert_int_equal(s.prompt_tokens, prompt_tokens);
        fake_rig_close(&g);
    }
}

/* The pool holds about three of twenty: preemptions, recomputation, and every answer right. */
static void a_pool_far_too_small(void **state)
{
    (void)state;
    for (int caching = 0; caching < 2; caching++) {
        enum { N = 20 };
        struct eng_opts o = fake_rig_opts(24, 64, 16);
        o.prefix_caching = caching;
        struct fake_rig g;
        struct job j[N];
        fake_rig_open(&g, &o, NULL);
        assert_int_equal(eng_options(g.e)->max_model_len, 24 * 16);
        int preempted = 0;
        for (int i = 0; i < N; i++) {
            job_init(&j[i], 20 + 5 * i, 32, i % 2, (uint64_t)i, 60);
            j[i].r.priority = i % 3;
            fake_rig_submit(&g, &j[i]);
        }
        fake_rig_run(&g);
        for (int i = 0; i < N; i++) {
            fake_rig_verify(&g, &j[i]);
            preempted += j[i].last.n_preempted;
            job_free(&j[i]);
        }
        assert_true(preempted > 10);
        assert_int_equal(stats(&g).preemptions, preempted);
        assert_int_equal(stats(&g).prefix_queries, caching ? N * 20 + 5 * N * (N - 1) / 2 : 0); /* once a request */
        fake_rig_close(&g);
    }
}

/* Alone, the first in order is never preempted and the last is; the order of waiting is priority, then arrival. */
static void order_is_kept(void **state)
{
    (void)state;
    struct eng_opts o = fake_rig_opts(8, 256, 4);
    struct fake_rig g;
    struct job j[4];
    fake_rig_open(&g, &o, NULL);
    static const int priority[] = {1, 0, 1, 0};
    for (int i = 0; i < 4; i++) {
        job_init(&j[i], 30, 0, 0, (uint64_t)i, 60);
        j[i].r.priority = priority[i];
        fake_rig_submit(&g, &j[i]);
    }
    for (int i = 0; i < 4; i++)
        j[i].last.now_ns = 0;
    fake_rig_step(&g);
    for (int i = 0; i < 4; i++)
        assert_int_equal(j[i].n_out, 1); /* two blocks each: all fit */
    fake_rig_run(&g);
    assert_int_equal(j[1].last.n_preempted, 0);
    assert_true(j[2].last.n_preempted > 0);
    assert_int_equal(j[2].last.n_cached, 0); /* that of its first start */
    assert_true(j[1].last.now_ns < j[3].last.now_ns);
    assert_true(j[3].last.now_ns < j[0].last.now_ns);
    assert_true(j[0].last.now_ns < j[2].last.now_ns);
    fake_rig_finish(&g, j, 4);
}

static struct job run_job(struct fake_rig *g, int n, uint64_t own, int out, const char *salt)
{
    struct job j;
    job_init(&j, n, 0, 0, own, out);
    j.r.cache_salt = salt;
    fake_rig_one(g, &j);
    job_free(&j);
    return j;
}

static void hits_are_counted_and_forgotten(void **state)
{
    (void)state;
    struct eng_opts o = fake_rig_opts(100, 512, 8);
    struct fake_rig g;
    fake_rig_open(&g, &o, NULL);
    assert_int_equal(run_job(&g, 100, 1, 4, NULL).last.n_cached, 0);
    assert_int_equal(run_job(&g, 100, 1, 4, NULL).last.n_cached, 96);
    assert_int_equal(run_job(&g, 100, 2, 4, NULL).last.n_cached, 0);
    /* the salt isolates, also the empty one, and hits among its own */
    assert_int_equal(run_job(&g, 100, 1, 4, "a").last.n_cached, 0);
    assert_int_equal(run_job(&g, 100, 1, 4, "b").last.n_cached, 0);
    assert_int_equal(run_job(&g, 100, 1, 4, "").last.n_cached, 0);
    assert_int_equal(run_job(&g, 100, 1, 4, "a").last.n_cached, 96);
    assert_int_equal(stats(&g).prefix_hits, 192);
    assert_int_equal(stats(&g).prefix_queries, 700);
    /* not while a request holds pages */
    struct job j;
    struct km_err err;
    job_init(&j, 50, 0, 0, 9, 4);
    fake_rig_submit(&g, &j);
    fake_rig_step(&g);
    assert_int_equal(eng_reset_cache(g.e, false, &err), KM_ELIMIT);
    assert_non_null(strstr(err.msg, "1 requests"));
    fake_rig_run(&g);
    job_free(&j);
    assert_true(stats(&g).pages_cached > 0);
    assert_int_equal(eng_reset_cache(g.e, false, &err), 0);
    assert_int_equal(stats(&g).pages_cached, 0);
    assert_int_equal(eng_check(g.e, &err), 0);
    assert_int_equal(run_job(&g, 100, 1, 4, NULL).last.n_cached, 0);
    assert_int_equal(run_job(&g, 100, 1, 4, NULL).last.n_cached, 96);
    fake_rig_close(&g);
}

/* What was generated is findable too: a second turn hits the first one's answer. */
static void a_second_turn_hits_the_answer(void **state)
{
    (void)state;
    struct eng_opts o = fake_rig_opts(100, 512, 8);
    struct fake_rig g;
    struct job a, b;
    fake_rig_open(&g, &o, NULL);
    job_init(&a, 30, 30, 0, 0, 40);
    fake_rig_one(&g, &a);
    job_init(&b, 90, 30, 0, 0, 4);
    memcpy(b.prompt + 30, a.out, sizeof *a.out * 40);
    fake_rig_one(&g, &b);
    assert_int_equal(b.last.n_cached, 64); /* 69 computed: 30 + 39 */
    job_free(&a);
    job_free(&b);
    fake_rig_close(&g);
}

/* Eviction takes the oldest request's tail first, its head last, and an older request before a newer one. */
static void eviction_takes_tails_first(void **state)
{
    (void)state;
    struct eng_opts o = fake_rig_opts(20, 512, 8);
    struct fake_rig g;
    fake_rig_open(&g, &o, NULL);
    run_job(&g, 128, 1, 1, NULL); /* 8 pages */
    run_job(&g, 128, 2, 1, NULL); /* 8 pages, 4 unused left */
    run_job(&g, 97, 3, 1, NULL);  /* 7 pages, 6 of them full: 3 taken from the tail of the first */
    assert_int_equal(run_job(&g, 128, 2, 1, NULL).last.n_cached, 112);
    struct job j;
    job_init(&j, 128, 0, 0, 1, 1);
    fake_rig_submit(&g, &j);
    fake_rig_step(&g);
    assert_int_equal(j.last.n_cached, 80); /* its first 5 are left */
    fake_rig_verify(&g, &j);
    job_free(&j);
    fake_rig_close(&g);
}

static void a_vanished_client_frees_its_pages(void **state)
{
    (void)state;
    struct eng_opts o = fake_rig_opts(64, 64, 8);
    struct fake_rig g;
    struct job j[3];
    fake_rig_open(&g, &o, NULL);
    for (int i = 0; i < 3; i++) {
        job_init(&j[i], 200, 0, 0, (uint64_t)i, 20);
        fake_rig_submit(&g, &j[i]);
    }
    for (int i = 0; i < 6; i++)
        fake_rig_step(&g);
    assert_int_equal(stats(&g).running, 2);
    assert_int_equal(stats(&g).pages_used, 13 + 12);
    eng_cancel(g.e, j[0].id, ENG_ABORT); /* decoding */
    j[0].cancelled = true;
    assert_int_equal(stats(&g).pages_used, 12);
    assert_int_equal(stats(&g).pages_cached, 12); /* its full ones stay findable */
    eng_cancel(g.e, j[1].id, ENG_STOP); /* in prefill */
    eng_cancel(g.e, j[2].id, ENG_ABORT); /* waiting */
    eng_cancel(g.e, j[2].id, ENG_ABORT); /* twice is nothing */
    eng_cancel(g.e, 12345, ENG_ABORT);
    j[1].cancelled = j[2].cancelled = true;
    assert_int_equal(stats(&g).pages_used, 0);
    assert_true(eng_idle(g.e));
    assert_int_equal(stats(&g).finished[ENG_ABORT], 2);
    assert_int_equal(stats(&g).finished[ENG_STOP], 1);
    assert_int_equal(run_job(&g, 200, 0, 2, NULL).last.n_cached, 192);
    for (int i = 0; i < 3; i++)
        job_free(&j[i]);
    fake_rig_close(&g);
}

/* Two requests with the same prompt in one batch compute it twice, and only the first one's pages get the name. */
static void twins_do_not_collide(void **state)
{
    (void)state;
    struct eng_opts o = fake_rig_opts(64, 512, 8);
    struct fake_rig g;
    struct job j[2];
    fake_rig_open(&g, &o, NULL);
    for (int i = 0; i < 2; i++) {
        job_init(&j[i], 100, 0, 0, 5, 8);
        fake_rig_submit(&g, &j[i]);
    }
    fake_rig_run(&g);
    assert_int_equal(j[1].last.n_cached, 0);
    assert_int_equal(stats(&g).pages_cached, 6);
    fake_rig_finish(&g, j, 2);
}

static void stop_rules(void **state)
{
    (void)state;
    struct eng_opts o = fake_rig_opts(100, 512, 8);
    o.max_model_len = 60;
    struct fake_rig g;
    fake_rig_open(&g, &o, NULL);
    g.m.c.vocab = 40; /* small, so that every id comes soon */
    int stops = 0, lengths = 0;
    for (int i = 0; i < 60; i++) {
        struct job j;
        job_init(&j, 10 + i % 45, 0, 0, (uint64_t)i, 30);
        for (int t = 0; t < j.r.n_prompt; t++)
            j.prompt[t] %= 40;
        const int32_t own[] = {3, 5};
        j.r.ignore_eos = i % 2;
        j.r.stop_ids = own;
        j.r.n_stop = i % 3 == 0 ? 2 : 0;
        j.r.min_tokens = i % 4 == 0 ? 12 : 0;
        j.r.sampling.presence = i % 5 == 0; /* the history reaches the sampler whole */
        fake_rig_one(&g, &j); /* fake_answer knows all the rules */
        int room = 60 - j.r.n_prompt, most = room < 30 ? room : 30;
        if (j.finish == ENG_LENGTH) {
            assert_int_equal(j.n_out, most);
            assert_int_equal(j.last.stop_id, -1);
            lengths++;
        } else {
            assert_int_equal(j.last.stop_id, j.out[j.n_out - 1]);
            assert_true(j.n_out >= j.r.min_tokens || j.n_out == most);
            stops++;
        }
        job_free(&j);
    }
    assert_true(stops > 10 && lengths > 10);
    fake_rig_close(&g);
}

static void bad_requests_are_refused(void **state)
{
    (void)state;
    struct eng_opts o = fake_rig_opts(10, 512, 8);
    o.max_waiting = 2;
    struct fake_rig g;
    fake_rig_open(&g, &o, NULL);
    static int32_t prompt[200], wrong[] = {1, 997}, negative[] = {-1};
    struct eng_request good = {.prompt = prompt, .n_prompt = 5, .max_tokens = 5, .sampling = smp_defaults()};
    struct {
        struct eng_request r;
        int code;
        const char *says;
    } t[] = {{good, KM_EINVAL, "the prompt has 0 tokens"},   {good, KM_EINVAL, "the prompt has 5 tokens"},
             {good, KM_EINVAL, "max_tokens is 0"},           {good, KM_EINVAL, "min_tokens is 6"},
             {good, KM_EINVAL, "min_tokens is -1"},          {good, KM_EINVAL, "prompt token 1 is 997"},
             {good, KM_EINVAL, "prompt token 0 is -1"},      {good, KM_EINVAL, "stop token 1 is 997"},
             {good, KM_EINVAL, "stop_token_ids has 1"},      {good, KM_EINVAL, "temperature is -1"},
             {good, KM_ELIMIT, "the prompt has 160 tokens"}};
    t[0].r.n_prompt = 0;
    t[1].r.prompt = NULL;
    t[2].r.max_tokens = 0;
    t[3].r.min_tokens = 6;
    t[4].r.min_tokens = -1;
    t[5].r.prompt = wrong, t[5].r.n_prompt = 2;
    t[6].r.prompt = negative, t[6].r.n_prompt = 1;
    t[7].r.stop_ids = wrong, t[7].r.n_stop = 2;
    t[8].r.n_stop = 1;
    t[9].r.sampling.temperature = -1;
    t[10].r.n_prompt = 160; /* the pool's 160 tokens leave no room for an answer */
    struct km_err err;
    uint64_t id;
    for (size_t i = 0; i < sizeof t / sizeof *t; i++) {
        assert_int_equal(eng_submit(g.e, &t[i].r, &id, &err), t[i].code);
        if (!strstr(err.msg, t[i].says))
            fail_msg("\"%s\" does not say \"%s\"", err.msg, t[i].says);
    }
    assert_true(eng_idle(g.e));
    assert_int_equal(eng_submit(g.e, &good, &id, &err), 0);
    uint64_t other;
    assert_int_equal(eng_submit(g.e, &good, &other, &err), 0);
    assert_true(other != id);
    assert_int_equal(eng_submit(g.e, &good, &id, &err), KM_ELIMIT);
    assert_non_null(strstr(err.msg, "2 requests wait already"));
    eng_cancel(g.e, id, ENG_ABORT);
    eng_cancel(g.e, other, ENG_ABORT);
    assert_int_equal(run_job(&g, 159, 1, 50, NULL).n_out, 1); /* the longest that fits, cut to what is left */
    fake_rig_close(&g);
}

static void bad_options_are_refused(void **state)
{
    (void)state;
    struct fake_port port;
    fake_port_init(&port, 40);
    struct eng_opts good = fake_rig_opts(10, 512, 8);
    struct {
        struct eng_opts o;
        bool port;
        int code;
        const char *says;
    } t[] = {{good, false, KM_EINVAL, "--block-size is 0"},
             {good, false, KM_EINVAL, "--max-model-len is 5000"},
             {good, false, KM_ELIMIT, "--max-model-len is 161, but the KV pool holds 160"},
             {good, false, KM_EINVAL, "--max-num-seqs is 0"},
             {good, false, KM_EINVAL, "--max-num-batched-tokens is 0"},
             {good, false, KM_EINVAL, "--gpu-memory-utilization is 1.5"},
             {good, false, KM_EINVAL, "--gpu-memory-limit is -1"},
             {good, false, KM_EINVAL, "--num-gpu-blocks-override is -1"},
             {good, false, KM_EINVAL, "the queue length is 0"},
             {good, false, KM_ELIMIT, "the fake device has no room"},
             {good, false, KM_ELIMIT, "the context is 1 token"},
             {good, true, KM_EINVAL, "chunk of 40 tokens is not a multiple of the block of 16"}};
    t[0].o.block_size = 0;
    t[1].o.max_model_len = 5000;
    t[2].o.max_model_len = 161;
    t[3].o.max_num_seqs = 0;
    t[4].o.max_num_batched_tokens = 0;
    t[5].o.memory_utilization = 1.5;
    t[6].o.memory_limit = -1;
    t[7].o.num_blocks = -1;
    t[8].o.max_waiting = 0;
    t[9].o.memory_limit = 1;
    t[10].o.block_size = 1, t[10].o.num_blocks = 1;
    struct mdl m = fake_model(997, 4096);
    for (size_t i = 0; i < sizeof t / sizeof *t; i++) {
        struct eng *e;
        struct km_err err;
        assert_int_equal(eng_open(&e, &t[i].o, &m, &be_fake, t[i].port ? &port.port : NULL, &err), t[i].code);
        if (!strstr(err.msg, t[i].says))
            fail_msg("\"%s\" does not say \"%s\"", err.msg, t[i].says);
    }
    fake_port_free(&port);
}

static void a_failed_step_ends_its_requests_only(void **state)
{
    (void)state;
    for (int in_wait = 0; in_wait < 2; in_wait++) {
        struct eng_opts o = fake_rig_opts(64, 32, 2);
        struct fake_rig g;
        struct job j[4];
        fake_rig_open(&g, &o, NULL);
        for (int i = 0; i < 4; i++) {
            job_init(&j[i], 40, 0, 0, (uint64_t)i, 8);
            fake_rig_submit(&g, &j[i]);
        }
        g.m.fail_at = 3;
        g.m.fail_code = KM_ENOMEM;
        g.m.fail_in_wait = in_wait;
        assert_int_equal(fake_rig_step(&g), 0);
        assert_int_equal(fake_rig_step(&g), 0);
        assert_int_equal(fake_rig_step(&g), KM_ENOMEM);
        assert_int_equal(j[0].finish, ENG_ERROR);
        assert_false(j[0].last.has_token);
        assert_int_equal(j[2].finish, ENG_RUNNING);
        assert_int_equal(stats(&g).pages_used, 0);
        fake_rig_run(&g);
        assert_int_equal(stats(&g).finished[ENG_ERROR], 2);
        for (int i = 2; i < 4; i++)
            fake_rig_verify(&g, &j[i]);
        for (int i = 0; i < 4; i++)
            job_free(&j[i]);
        assert_int_equal(run_job(&g, 40, 0, 8, NULL).finish, ENG_LENGTH);
        fake_rig_close(&g);
    }
}

static void a_lost_device_ends_everything(void **state)
{
    (void)state;
    struct eng_opts o = fake_rig_opts(64, 32, 2);
    struct fake_rig g;
    struct job j[4];
    fake_rig_open(&g, &o, NULL);
    for (int i = 0; i < 4; i++) {
        job_init(&j[i], 40, 0, 0, (uint64_t)i, 8);
        fake_rig_submit(&g, &j[i]);
    }
    g.m.fail_at = 2;
    g.m.fail_code = KM_EDEVICE;
    fake_rig_step(&g);
    assert_int_equal(fake_rig_step(&g), KM_EDEVICE);
    for (int i = 0; i < 4; i++) {
        assert_int_equal(j[i].finish, ENG_ERROR);
        job_free(&j[i]);
    }
    assert_int_equal(j[3].last.scheduled_ns, -1);
    assert_true(eng_idle(g.e));
    assert_int_equal(fake_rig_step(&g), KM_EDEVICE);
    uint64_t id;
    struct km_err err;
    static const int32_t one[] = {1};
    struct eng_request r = {.prompt = one, .n_prompt = 1, .max_tokens = 1, .sampling = smp_defaults()};
    assert_int_equal(eng_submit(g.e, &r, &id, &err), KM_EDEVICE);
    fake_rig_close(&g);
}

static void times_are_the_backends(void **state)
{
    (void)state;
    struct eng_opts o = fake_rig_opts(64, 32, 1);
    struct fake_rig g = {.m = fake_model(997, 4096)};
    struct km_err err;
    assert_int_equal(eng_open(&g.e, &o, &g.m, &be_fake_clock, NULL, &err), 0);
    g.m.clock = 500;
    struct job j[2];
    for (int i = 0; i < 2; i++) {
        job_init(&j[i], 40, 0, 0, (uint64_t)i, 3);
        fake_rig_submit(&g, &j[i]);
    }
    fake_rig_run(&g);
    assert_int_equal(j[0].last.arrived_ns, 500);
    assert_int_equal(j[0].last.scheduled_ns, 500);
    assert_int_equal(j[0].last.now_ns, 4500); /* two chunks, two decodes */
    assert_int_equal(j[1].last.arrived_ns, 500);
    assert_int_equal(j[1].last.scheduled_ns, 4500);
    assert_int_equal(j[1].last.now_ns, 8500);
    for (int i = 0; i < 2; i++)
        job_free(&j[i]);
    fake_rig_close(&g);
}

/* Warm from the cache layer, the pool forgotten in between. */
static int external_hit(struct fake_rig *g, int n, uint64_t own, int out)
{
    struct km_err err;
    assert_int_equal(eng_reset_cache(g->e, false, &err), 0);
    struct job j = run_job(g, n, own, out, NULL);
    assert_int_equal(j.last.n_cached_pool, 0);
    return j.last.n_cached;
}

static void loads_replace_computing(void **state)
{
    (void)state;
    static const int lengths[] = {1, 15, 16, 63, 64, 65, 79, 80, 81, 127, 128, 129, 191, 192, 193, 255, 256, 257};
    for (int slow = 0; slow < 4; slow++)
        for (int caching = 0; caching < 2; caching++) {
            struct eng_opts o = fake_rig_opts(100, 48, 8);
            o.prefix_caching = caching;
            struct fake_port p;
            struct fake_rig g;
            fake_port_init(&p, 64);
            p.slow = slow;
            fake_rig_open(&g, &o, &p);
            g.m.copy_polls = slow / 2 * 2;
            for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
                int n = lengths[i], kept = p.kept;
                run_job(&g, n, i, 3, NULL);
                assert_int_equal(p.kept - kept, (n + 2) / 64); /* prompt and what was computed of the answer */
                int want = n / 64 * 64 < whole_blocks_before_last(n) ? n / 64 * 64 : whole_blocks_before_last(n);
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

/* The pool's part is not loaded again, and a cache that knows no more is not asked to load. */
static void the_pool_comes_first(void **state)
{
    (void)state;
    struct eng_opts o = fake_rig_opts(40, 512, 8);
    struct fake_port p;
    struct fake_rig g;
    fake_port_init(&p, 64);
    fake_rig_open(&g, &o, &p);
    run_job(&g, 300, 1, 1, NULL); /* 19 pages, 4 chunks */
    assert_int_equal(p.last_n, 256);
    assert_int_equal(p.last_n_prompt, 300);
    assert_int_equal(p.stores, 1); /* one step passed all four chunk ends */
    int lookups = p.lookups;
    struct job j = run_job(&g, 300, 1, 1, NULL); /* all in the pool: nothing asked */
    assert_int_equal(j.last.n_cached_pool, 288);
    assert_int_equal(p.lookups, lookups);
    assert_int_equal(p.loads, 0);
    run_job(&g, 420, 2, 1, NULL); /* 27 pages: evicts the tail of 1, leaving 13 */
    int64_t loaded = p.loaded_tokens;
    j = run_job(&g, 300, 1, 1, NULL);
    assert_int_equal(j.last.n_cached_pool, 208);
    assert_int_equal(j.last.n_cached, 256);
    assert_int_equal(p.loaded_tokens - loaded, 48);
    run_job(&g, 450, 3, 1, NULL); /* 29 pages */
    j = run_job(&g, 300, 2, 1, NULL); /* same family of tokens as 2's first 300 */
    assert_true(j.last.n_cached_pool < 256);
    assert_int_equal(j.last.n_cached, 256);
    fake_rig_close(&g);
    fake_port_free(&p);
}

static void every_vice_of_a_cache(void **state)
{
    (void)state;
    for (int vice = 0; vice < 7; vice++)
        for (int at = 0; at < 5; at++)
            for (int slow = 0; slow < 3; slow++) {
                struct eng_opts o = fake_rig_opts(100, 100, 8);
                struct fake_port p;
                struct fake_rig g;
                fake_port_init(&p, 64);
                fake_rig_open(&g, &o, &p);
                p.keep_nothing = vice == 0;
                p.no_open = vice == 1;
                run_job(&g, 300, 1, 10, NULL);
                p.slow = slow;
                g.m.copy_polls = slow;
                if (vice >= 2 && vice <= 3)
                    p.short_at = at;
                p.fail = vice == 3;
                p.fail_at_once = vice == 4;
                p.lossy = vice == 5 ? 50 : 0;
                p.rng = (uint64_t)(at * 3 + slow);
                int want = vice < 2 || vice == 4 ? 0 : vice < 4 && at < 4 ? at * 64 : 256;
                int got = external_hit(&g, 300, 1, 10);
                if (vice != 5)
                    assert_int_equal(got, want);
                assert_int_equal(p.loads, vice >= 2 && (vice != 5 || got || p.loads));
                fake_rig_close(&g);
                fake_port_free(&p);
            }
}

/* While a load is under way others run; its pages are taken; cancelled, they come back when the ticket ends. */
static void loading_waits_alone(void **state)
{
    (void)state;
    struct eng_opts o = fake_rig_opts(64, 100, 8);
    struct fake_port p;
    struct fake_rig g;
    struct job a, b;
    struct km_err err;
    fake_port_init(&p, 64);
    fake_rig_open(&g, &o, &p);
    run_job(&g, 300, 1, 1, NULL);
    assert_int_equal(eng_reset_cache(g.e, false, &err), 0);
    p.slow = 8;
    job_init(&a, 300, 0, 0, 1, 5);
    job_init(&b, 20, 0, 0, 2, 4);
    fake_rig_submit(&g, &a);
    fake_rig_submit(&g, &b);
    fake_rig_step(&g);
    assert_int_equal(stats(&g).loading, 1);
    assert_int_equal(stats(&g).running, 1);
    assert_int_equal(stats(&g).pages_used, 16 + 2);
    for (int i = 0; i < 3; i++)
        fake_rig_step(&g);
    assert_int_equal(b.finish, ENG_LENGTH);
    assert_int_equal(a.n_out, 0);
    struct eng_events ev;
    assert_int_equal(eng_step(g.e, &ev, &err), 0);
    assert_true(ev.stalled); /* nothing to run, something to wait for */
    fake_rig_run(&g);
    fake_rig_verify(&g, &a);
    fake_rig_verify(&g, &b);
    job_free(&a);

    assert_int_equal(eng_reset_cache(g.e, false, &err), 0);
    job_init(&a, 300, 0, 0, 1, 5);
    fake_rig_submit(&g, &a);
    fake_rig_step(&g);
    assert_int_equal(stats(&g).loading, 1);
    eng_cancel(g.e, a.id, ENG_ABORT);
    a.cancelled = true;
    assert_int_equal(stats(&g).loading, 0);
    assert_int_equal(stats(&g).pages_used, 16); /* the cache still writes there */
    assert_false(eng_idle(g.e));
    assert_int_equal(eng_check(g.e, &err), 0);
    fake_rig_run(&g);
    assert_int_equal(stats(&g).pages_used, 0);
    job_free(&a);
    job_free(&b);
    fake_rig_close(&g);
    fake_port_free(&p);
}

/* Stores outlive their request, and hold what they read; a reset waits for them. */
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
    assert_int_equal(stats(&g).pages_used, 16);
    assert_int_equal(stats(&g).pages_cached, 2); /* 18 full pages, 16 of them being read */
    assert_false(eng_idle(g.e));
    assert_int_equal(eng_reset_cache(g.e, true, &err), 0);
    assert_int_equal(stats(&g).pages_used, 0);
    assert_int_equal(p.kept, 0);
    job_free(&j);
    assert_int_equal(external_hit(&g, 300, 1, 1), 0);
    /* closing waits for them too */
    job_init(&j, 300, 0, 0, 2, 50);
    fake_rig_submit(&g, &j);
    fake_rig_step(&g);
    eng_close(g.e);
    assert_int_equal(p.n_tickets + p.seqs, 0);
    assert_string_equal(g.m.complaint, "");
    job_free(&j);
    fake_port_free(&p);
}

/* Stores are offered when a chunk's end was passed, not each step; a request that waits for pages is looked up once, and
 * again after a preemption. */
static void the_cache_is_asked_sparingly(void **state)
{
    (void)state;
    struct eng_opts o = fake_rig_opts(20, 48, 8);
    struct fake_port p;
    struct fake_rig g;
    struct job a, b;
    struct km_err err;
    fake_port_init(&p, 64);
    fake_rig_open(&g, &o, &p);
    run_job(&g, 130, 1, 60, NULL); /* 189 computed */
    assert_int_equal(p.stores, 2);
    run_job(&g, 130, 1, 64, NULL); /* 193: one chunk more, of its answer */
    assert_int_equal(p.stores, 3);
    assert_int_equal(p.last_n, 192);
    assert_int_equal(p.last_n_prompt, 130);
    assert_int_equal(eng_reset_cache(g.e, false, &err), 0);
    int lookups = p.lookups;
    job_init(&a, 200, 0, 0, 2, 64); /* 13 to 17 pages of 20 */
    job_init(&b, 130, 0, 0, 1, 10); /* wants 8 at once, for its load */
    fake_rig_submit(&g, &a);
    for (int i = 0; i < 6; i++)
        fake_rig_step(&g);
    fake_rig_submit(&g, &b);
    for (int i = 0; i < 20; i++)
        fake_rig_step(&g);
    assert_int_equal(stats(&g).waiting, 1);
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

/* Once warm, steps allocate nothing: with a failure armed, none is met. */
static void steady_steps_allocate_nothing(void **state)
{
    (void)state;
    enum { N = 6 };
    struct eng_opts o = fake_rig_opts(24, 64, 4);
    struct fake_port p;
    struct fake_rig g;
    static struct job j[2 * N];
    struct eng_events ev;
    struct km_err err;
    fake_port_init(&p, 32);
    p.slow = 2;
    fake_rig_open(&g, &o, &p);
    for (int i = 0; i < 2 * N; i++) {
        job_init(&j[i], 100 + 9 * (i % N), 50, i % 2, (uint64_t)(i % N), 60);
        fake_rig_submit(&g, &j[i]);
        if (i == N - 1)
            fake_rig_run(&g); /* warms up */
    }
    int preemptions = (int)stats(&g).preemptions;
    km_mem_fail_at(1);
    while (!eng_idle(g.e))
        assert_int_equal(eng_step(g.e, &ev, &err), 0);
    assert_null(km_malloc(1)); /* the failure is still there */
    assert_int_equal(stats(&g).finished[ENG_LENGTH], 2 * N);
    assert_true(stats(&g).preemptions > preemptions && p.loads > 0);
    for (int i = 0; i < 2 * N; i++)
        job_free(&j[i]);
    fake_rig_close(&g);
    fake_port_free(&p);
}

/* Every allocation of open, submit and step fails once: an error or an answer, never a leak or a crash. */
static void memory_runs_out(void **state)
{
    (void)state;
    int64_t before = km_mem_stats(KM_MEM_HOST).current;
    int refused = 0;
    for (long n = 1;; n++) {
        struct eng_opts o = fake_rig_opts(64, 64, 4);
        struct fake_port p;
        struct mdl m = fake_model(997, 4096);
        struct fake_rig g = {.m = m, .port = &p};
        struct km_err err = {0};
        struct job j[2];
        fake_port_init(&p, 64);
        p.slow = 2;
        km_mem_fail_at(n);
        int rc = eng_open(&g.e, &o, &g.m, &be_fake, &p.port, &err), open_rc = rc;
        for (int i = 0; i < 2 && !open_rc; i++) {
            job_init(&j[i], 200, 150, 1, (uint64_t)i, 5);
            rc = eng_submit(g.e, &j[i].r, &j[i].id, &err);
            if (rc)
                refused++;
            assert_true(!rc || rc == KM_ENOMEM);
        }
        struct eng_events ev;
        int n_out = 0;
        while (!open_rc && !eng_idle(g.e)) {
            assert_int_equal(eng_step(g.e, &ev, &err), 0);
            for (int i = 0; i < ev.n; i++)
                n_out += ev.v[i].has_token;
        }
        for (int i = 0; i < 2 && !open_rc; i++)
            job_free(&j[i]);
        void *probe = NULL; /* when the n-th was not reached, the walk is over; find out by spending what is left */
        bool reached = true;
        for (long left = 0; left < n && reached; left++) {
            probe = km_malloc(1);
            reached = probe != NULL;
            km_free(probe);
        }
        if (open_rc)
            assert_int_equal(open_rc, KM_ENOMEM);
        else {
            assert_int_equal(eng_check(g.e, &err), 0);
            fake_rig_close(&g);
        }
        fake_port_free(&p);
        assert_int_equal(km_mem_stats(KM_MEM_HOST).current, before);
        if (!reached) {
            assert_int_equal(n_out, 10);
            break;
        }
    }
    assert_true(refused >= 2);
}

/* The pool has as much as the cache: nothing is loaded, and the cache is told so that it can drop its pins. */
static void a_useless_lookup_is_given_back(void **state)
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

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(answers_at_the_edges),
        cmocka_unit_test(many_at_once),
        cmocka_unit_test(a_pool_far_too_small),
        cmocka_unit_test(order_is_kept),
        cmocka_unit_test(hits_are_counted_and_forgotten),
        cmocka_unit_test(a_second_turn_hits_the_answer),
        cmocka_unit_test(eviction_takes_tails_first),
        cmocka_unit_test(a_vanished_client_frees_its_pages),
        cmocka_unit_test(twins_do_not_collide),
        cmocka_unit_test(stop_rules),
        cmocka_unit_test(bad_requests_are_refused),
        cmocka_unit_test(bad_options_are_refused),
        cmocka_unit_test(a_failed_step_ends_its_requests_only),
        cmocka_unit_test(a_lost_device_ends_everything),
        cmocka_unit_test(times_are_the_backends),
        cmocka_unit_test(loads_replace_computing),
        cmocka_unit_test(the_pool_comes_first),
        cmocka_unit_test(every_vice_of_a_cache),
        cmocka_unit_test(loading_waits_alone),
        cmocka_unit_test(stores_outlive_requests),
        cmocka_unit_test(the_cache_is_asked_sparingly),
        cmocka_unit_test(steady_steps_allocate_nothing),
        cmocka_unit_test(memory_runs_out),
        cmocka_unit_test(a_useless_lookup_is_given_back),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
