/* The engine on the fake backend, without a cache layer: answers at block and budget boundaries, prefix hits,
 * preemption, ends of requests, refused requests and options, and failures. */
#include "base/test/test.h"

#include "base/mem.h"
#include "fake_rig.h"

#include <stdio.h>
#include <string.h>

static const int edges[] = {1, 2, 15, 16, 17, 31, 32, 33, 255, 256, 257};
enum { N_EDGES = sizeof edges / sizeof *edges };

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
                    int64_t rows = g.m.rows, hits = fake_rig_stats(&g).prefix_hits;
                    int want = warm && caching ? whole_blocks_before_last(edges[i]) : 0;
                    struct job j;
                    job_init(&j, edges[i], 0, 0, (uint64_t)i, 5);
                    fake_rig_one(&g, &j);
                    assert_int_equal(j.last.n_cached, want);
                    assert_int_equal(j.last.n_cached_pool, want);
                    assert_int_equal(fake_rig_stats(&g).prefix_hits - hits, want);
                    assert_int_equal(g.m.rows - rows, edges[i] - want + 4); /* the last token is not computed */
                    job_free(&j);
                }
            assert_int_equal(fake_rig_stats(&g).preemptions, 0);
            assert_int_equal(fake_rig_stats(&g).computed_tokens, g.m.rows);
            fake_rig_close(&g);
        }
}

static void many_requests_at_once(void **state)
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
        assert_int_equal(fake_rig_stats(&g).waiting, N);
        fake_rig_step(&g);
        assert_true(fake_rig_stats(&g).running <= (budgets[b] < 16 ? budgets[b] : 16));
        fake_rig_run(&g);
        for (int i = 0; i < N; i++) {
            fake_rig_verify(&g, &j[i]);
            job_free(&j[i]);
        }
        struct eng_stats s = fake_rig_stats(&g);
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

/* The pool holds about three of twenty requests. They are preempted and recomputed, and every answer is right. */
static void a_small_pool_preempts_and_changes_no_answer(void **state)
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
        assert_int_equal(fake_rig_stats(&g).preemptions, preempted);
        /* counted once per request */
        assert_int_equal(fake_rig_stats(&g).prefix_queries, caching ? N * 20 + 5 * N * (N - 1) / 2 : 0);
        fake_rig_close(&g);
    }
}

/* The first request in order is never preempted, the last one is. Requests wait by priority, then by arrival. */
static void requests_run_by_priority_then_arrival(void **state)
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
        assert_int_equal(j[i].n_out, 1); /* two blocks each, so all fit */
    fake_rig_run(&g);
    assert_int_equal(j[1].last.n_preempted, 0);
    assert_true(j[2].last.n_preempted > 0);
    assert_int_equal(j[2].last.n_cached, 0); /* of its first admission */
    assert_true(j[1].last.now_ns < j[3].last.now_ns);
    assert_true(j[3].last.now_ns < j[0].last.now_ns);
    assert_true(j[0].last.now_ns < j[2].last.now_ns);
    fake_rig_finish(&g, j, 4);
}

static void hits_are_counted_until_the_cache_is_reset(void **state)
{
    (void)state;
    struct eng_opts o = fake_rig_opts(100, 512, 8);
    struct fake_rig g;
    fake_rig_open(&g, &o, NULL);
    assert_int_equal(fake_rig_run_job(&g, 100, 1, 4, NULL).last.n_cached, 0);
    assert_int_equal(fake_rig_run_job(&g, 100, 1, 4, NULL).last.n_cached, 96);
    assert_int_equal(fake_rig_run_job(&g, 100, 2, 4, NULL).last.n_cached, 0);
    /* A request hits only pages of requests with the same salt; the empty salt is different from none. */
    assert_int_equal(fake_rig_run_job(&g, 100, 1, 4, "a").last.n_cached, 0);
    assert_int_equal(fake_rig_run_job(&g, 100, 1, 4, "b").last.n_cached, 0);
    assert_int_equal(fake_rig_run_job(&g, 100, 1, 4, "").last.n_cached, 0);
    assert_int_equal(fake_rig_run_job(&g, 100, 1, 4, "a").last.n_cached, 96);
    assert_int_equal(fake_rig_stats(&g).prefix_hits, 192);
    assert_int_equal(fake_rig_stats(&g).prefix_queries, 700);
    /* The cache cannot be reset while a request uses pages. */
    struct job j;
    struct km_err err;
    job_init(&j, 50, 0, 0, 9, 4);
    fake_rig_submit(&g, &j);
    fake_rig_step(&g);
    assert_int_equal(eng_reset_cache(g.e, false, &err), KM_ELIMIT);
    assert_non_null(strstr(err.msg, "1 requests"));
    fake_rig_run(&g);
    job_free(&j);
    assert_true(fake_rig_stats(&g).pages_cached > 0);
    assert_int_equal(eng_reset_cache(g.e, false, &err), 0);
    assert_int_equal(fake_rig_stats(&g).pages_cached, 0);
    assert_int_equal(eng_check(g.e, &err), 0);
    assert_int_equal(fake_rig_run_job(&g, 100, 1, 4, NULL).last.n_cached, 0);
    assert_int_equal(fake_rig_run_job(&g, 100, 1, 4, NULL).last.n_cached, 96);
    fake_rig_close(&g);
}

/* Pages with generated tokens are cached too. A second turn hits the answer of the first one. */
static void a_second_turn_hits_the_generated_tokens(void **state)
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

/* Pages of older requests are evicted before those of newer ones, and within a request from the end to the start. */
static void the_end_of_a_sequence_is_evicted_first(void **state)
{
    (void)state;
    struct eng_opts o = fake_rig_opts(20, 512, 8);
    struct fake_rig g;
    fake_rig_open(&g, &o, NULL);
    fake_rig_run_job(&g, 128, 1, 1, NULL); /* 8 pages */
    fake_rig_run_job(&g, 128, 2, 1, NULL); /* 8 pages; 4 are still unused */
    fake_rig_run_job(&g, 97, 3, 1, NULL);  /* 7 pages, of which 3 are evicted from the end of the first request */
    assert_int_equal(fake_rig_run_job(&g, 128, 2, 1, NULL).last.n_cached, 112);
    struct job j;
    job_init(&j, 128, 0, 0, 1, 1);
    fake_rig_submit(&g, &j);
    fake_rig_step(&g);
    assert_int_equal(j.last.n_cached, 80); /* its first 5 pages remain */
    fake_rig_verify(&g, &j);
    job_free(&j);
    fake_rig_close(&g);
}

static void a_cancelled_request_frees_its_pages(void **state)
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
    assert_int_equal(fake_rig_stats(&g).running, 2);
    assert_int_equal(fake_rig_stats(&g).pages_used, 13 + 12);
    eng_cancel(g.e, j[0].id, ENG_ABORT); /* decoding */
    j[0].cancelled = true;
    assert_int_equal(fake_rig_stats(&g).pages_used, 12);
    assert_int_equal(fake_rig_stats(&g).pages_cached, 12); /* its full pages stay in the prefix index */
    eng_cancel(g.e, j[1].id, ENG_STOP); /* in prefill */
    eng_cancel(g.e, j[2].id, ENG_ABORT); /* waiting */
    eng_cancel(g.e, j[2].id, ENG_ABORT); /* a second cancellation has no effect */
    eng_cancel(g.e, 12345, ENG_ABORT);
    j[1].cancelled = j[2].cancelled = true;
    assert_int_equal(fake_rig_stats(&g).pages_used, 0);
    assert_true(eng_idle(g.e));
    assert_int_equal(fake_rig_stats(&g).finished[ENG_ABORT], 2);
    assert_int_equal(fake_rig_stats(&g).finished[ENG_STOP], 1);
    assert_int_equal(fake_rig_run_job(&g, 200, 0, 2, NULL).last.n_cached, 192);
    for (int i = 0; i < 3; i++)
        job_free(&j[i]);
    fake_rig_close(&g);
}

/* Two requests with the same prompt in one batch both compute it, and only the pages of the first one get the keys. */
static void equal_prompts_in_one_batch_do_not_collide(void **state)
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
    assert_int_equal(fake_rig_stats(&g).pages_cached, 6);
    fake_rig_finish(&g, j, 2);
}

static void requests_end_by_the_stop_rules(void **state)
{
    (void)state;
    struct eng_opts o = fake_rig_opts(100, 512, 8);
    o.max_model_len = 60;
    struct fake_rig g;
    fake_rig_open(&g, &o, NULL);
    g.m.c.vocab = 40; /* small, so that end tokens are sampled early */
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
        j.r.sampling.presence = i % 5 == 0; /* the sampler must see the whole history */
        fake_rig_one(&g, &j); /* fake_answer applies the same rules */
        int context = 60 - j.r.n_prompt, most = context < 30 ? context : 30;
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
    t[10].r.n_prompt = 160; /* as long as the context, so no output token is possible */
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
    assert_non_null(strstr(err.msg, "2 requests are waiting"));
    eng_cancel(g.e, id, ENG_ABORT);
    eng_cancel(g.e, other, ENG_ABORT);
    /* the longest prompt; max_tokens is cut to 1 */
    assert_int_equal(fake_rig_run_job(&g, 159, 1, 50, NULL).n_out, 1);
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
             {good, false, KM_EINVAL, "max-waiting is 0"},
             {good, false, KM_EINVAL, "--kv-planner"},
             {good, false, KM_ELIMIT, "the fake device has no memory"},
             {good, false, KM_ELIMIT, "max_model_len is 1"},
             {good, true, KM_EINVAL, "chunk size of the cache layer is 40 tokens"}};
    t[0].o.block_size = 0;
    t[1].o.max_model_len = 5000;
    t[2].o.max_model_len = 161;
    t[3].o.max_num_seqs = 0;
    t[4].o.max_num_batched_tokens = 0;
    t[5].o.memory_utilization = 1.5;
    t[6].o.memory_limit = -1;
    t[7].o.num_blocks = -1;
    t[8].o.max_waiting = 0;
    t[9].o.kv_planner = 3;
    t[10].o.memory_limit = 1;
    t[11].o.block_size = 1, t[11].o.num_blocks = 1;
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
        assert_int_equal(fake_rig_stats(&g).pages_used, 0);
        fake_rig_run(&g);
        assert_int_equal(fake_rig_stats(&g).finished[ENG_ERROR], 2);
        for (int i = 2; i < 4; i++)
            fake_rig_verify(&g, &j[i]);
        for (int i = 0; i < 4; i++)
            job_free(&j[i]);
        assert_int_equal(fake_rig_run_job(&g, 40, 0, 8, NULL).finish, ENG_LENGTH);
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

static void times_are_of_the_backends_clock(void **state)
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

/* After a warm-up, steps allocate nothing: with the next allocation set to fail, none fails. */
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
            fake_rig_run(&g); /* warm-up */
    }
    int preemptions = (int)fake_rig_stats(&g).preemptions;
    km_mem_fail_at(1);
    while (!eng_idle(g.e))
        assert_int_equal(eng_step(g.e, &ev, &err), 0);
    assert_null(km_malloc(1)); /* the first allocation since then fails, so the steps made none */
    assert_int_equal(fake_rig_stats(&g).finished[ENG_LENGTH], 2 * N);
    assert_true(fake_rig_stats(&g).preemptions > preemptions && p.loads > 0);
    for (int i = 0; i < 2 * N; i++)
        job_free(&j[i]);
    fake_rig_close(&g);
    fake_port_free(&p);
}

/* Every allocation of open, submit and step fails once. The result is an error or an answer, never a leak or a
 * crash. */
static void every_failed_allocation_is_survived(void **state)
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
        void *probe = NULL; /* if allocation n was not reached, the test is done; the remaining ones show that */
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

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(answers_at_the_edges),
        cmocka_unit_test(many_requests_at_once),
        cmocka_unit_test(a_small_pool_preempts_and_changes_no_answer),
        cmocka_unit_test(requests_run_by_priority_then_arrival),
        cmocka_unit_test(hits_are_counted_until_the_cache_is_reset),
        cmocka_unit_test(a_second_turn_hits_the_generated_tokens),
        cmocka_unit_test(the_end_of_a_sequence_is_evicted_first),
        cmocka_unit_test(a_cancelled_request_frees_its_pages),
        cmocka_unit_test(equal_prompts_in_one_batch_do_not_collide),
        cmocka_unit_test(requests_end_by_the_stop_rules),
        cmocka_unit_test(bad_requests_are_refused),
        cmocka_unit_test(bad_options_are_refused),
        cmocka_unit_test(a_failed_step_ends_its_requests_only),
        cmocka_unit_test(a_lost_device_ends_everything),
        cmocka_unit_test(times_are_of_the_backends_clock),
        cmocka_unit_test(steady_steps_allocate_nothing),
        cmocka_unit_test(every_failed_allocation_is_survived),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
