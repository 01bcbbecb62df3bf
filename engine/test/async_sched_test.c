/* Async scheduling: the answers are those of synchronous scheduling, whatever ends, fails, arrives or cannot be sampled
 * on the device while a step is in flight. The seed of the random part is printed, and the program takes it as its
 * argument to repeat a run. */
#include "base/test/test.h"

#include "base/clock.h"
#include "base/mem.h"
#include "engine/step.h"
#include "fake_rig.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

static uint64_t seed, rng;

static int below(int n)
{
    return (int)(fake_random(&rng) % (uint64_t)n);
}

static void open_async(struct fake_rig *g, int num_blocks, int budget, int max_seqs)
{
    struct eng_opts o = fake_rig_opts(num_blocks, budget, max_seqs);
    fake_rig_open_on(g, &o, NULL, &be_fake_async);
}

/* ---- single cases ---- */

static void decodes_are_scheduled_async(void **state)
{
    (void)state;
    struct fake_rig g;
    struct job j[3];
    open_async(&g, 64, 64, 8);
    job_init(&j[0], 20, 0, 0, 1, 10);
    fake_rig_one(&g, &j[0]);
    assert_int_equal(fake_rig_stats(&g).steps, 10);
    assert_int_equal(fake_rig_stats(&g).async_steps, 8); /* all decodes but the first, which follows the prefill */
    for (int i = 1; i < 3; i++) {
        job_init(&j[i], 20, 0, 0, (uint64_t)i + 1, 10 * i);
        fake_rig_submit(&g, &j[i]);
    }
    fake_rig_run(&g);
    /* the scheduler knows from max_tokens which token is the last one, and schedules no row after it */
    assert_int_equal(fake_rig_stats(&g).steps, 30);
    assert_int_equal(fake_rig_stats(&g).async_steps, 8 + 18);
    assert_int_equal(fake_rig_stats(&g).wasted_rows, 0);
    assert_int_equal(fake_rig_stats(&g).generated_tokens, 40);
    fake_rig_finish(&g, j, 3);
}

/* When an end token is retired, the request's next row is already in flight. That row is wasted. */
static void an_end_token_wastes_one_row(void **state)
{
    (void)state;
    struct fake_rig g;
    struct job j, stopped;
    struct eng_events ev;
    struct km_err err;
    open_async(&g, 64, 64, 8);
    job_init(&j, 31, 0, 0, 1, 20);
    fake_rig_one(&g, &j);
    for (int n = 1; n < 20; n++) { /* also across a block boundary */
        int32_t end = j.out[n - 1];
        int first = 0;
        while (j.out[first] != end)
            first++;
        int64_t wasted = fake_rig_stats(&g).wasted_rows, computed = fake_rig_stats(&g).computed_tokens;
        assert_int_equal(eng_reset_cache(g.e, false, &err), 0);
        job_init(&stopped, 31, 0, 0, 1, 20);
        stopped.r.stop_ids = &end;
        stopped.r.n_stop = 1;
        stopped.r.min_tokens = n % 2 ? first : 0; /* end tokens are allowed from there on */
        fake_rig_submit(&g, &stopped);
        while (stopped.finish == ENG_RUNNING)
            fake_rig_step(&g);
        assert_int_equal(fake_rig_stats(&g).pages_used, 0);
        assert_int_equal(eng_idle(g.e), first == 0); /* no step is submitted early after its prefill */
        fake_rig_run(&g);
        fake_rig_verify(&g, &stopped);
        assert_int_equal(stopped.n_out, first + 1);
        assert_int_equal(fake_rig_stats(&g).wasted_rows - wasted, first > 0);
        assert_int_equal(fake_rig_stats(&g).computed_tokens - computed, 31 + first);
        assert_int_equal(eng_step(g.e, &ev, &err), 0);
        assert_int_equal(ev.n, 0);
        job_free(&stopped);
    }
    job_free(&j);
    fake_rig_close(&g);
}

/* The pages of a cancelled request are assigned to the next one at once, even if a step that writes them is still to
 * run. */
static void pages_of_a_request_cancelled_in_flight_are_free(void **state)
{
    (void)state;
    /* both kinds of steps: those that run when submitted, and those that run later */
    for (int again = 0; again < 12; again++) {
        struct fake_rig g;
        struct job j, k;
        struct km_err err;
        open_async(&g, 4, 64, 8);
        job_init(&j, 40, 0, 0, 1, 20);
        job_init(&k, 50, 0, 0, 2, 14);
        fake_rig_submit(&g, &j);
        for (int i = 0; i < 3 + again; i++)
            fake_rig_step(&g);
        assert_int_equal(g.m.in_flight, 1);
        eng_cancel(g.e, j.id, ENG_ABORT);
        j.cancelled = true;
        assert_int_equal(eng_check(g.e, &err), 0);
        assert_int_equal(fake_rig_stats(&g).pages_used, 0);
        assert_false(eng_idle(g.e));
        if (again % 2)
            assert_int_equal(eng_reset_cache(g.e, true, &err), 0);
        fake_rig_one(&g, &k);
        assert_int_equal(fake_rig_stats(&g).wasted_rows, 1);
        fake_rig_verify(&g, &j);
        job_free(&j);
        job_free(&k);
        fake_rig_close(&g);
    }
}

static void closing_waits_for_the_step_in_flight(void **state)
{
    (void)state;
    struct fake_rig g;
    struct job j;
    open_async(&g, 64, 64, 8);
    job_init(&j, 40, 0, 0, 1, 20);
    fake_rig_submit(&g, &j);
    for (int i = 0; i < 4; i++)
        fake_rig_step(&g);
    assert_int_equal(g.m.in_flight, 1);
    eng_close(g.e);
    assert_int_equal(g.m.in_flight, 0);
    assert_string_equal(g.m.complaint, "");
    job_free(&j);
}

/* No step is submitted early after a step with a row that only the host can sample. */
static void rows_sampled_by_the_host_are_waited_for(void **state)
{
    (void)state;
    static const int32_t ends[12] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12};
    for (int kind = 0; kind < 5; kind++) {
        struct fake_rig g;
        struct job j[2];
        open_async(&g, 64, 64, 8);
        for (int i = 0; i < 2; i++)
            job_init(&j[i], 20, 0, 0, (uint64_t)i, 30);
        if (kind == 0)
            j[0].r.sampling.n_logprobs = 0;
        else if (kind == 1)
            j[0].r.sampling.frequency = 0.5;
        else if (kind == 2)
            /* more banned ids than the device supports */
            j[0].r.stop_ids = ends, j[0].r.n_stop = 12, j[0].r.min_tokens = 20;
        else
            g.m.host_sampled = kind == 3 ? 10 : 100;
        for (int i = 0; i < 2; i++)
            fake_rig_submit(&g, &j[i]);
        fake_rig_run(&g);
        struct eng_stats s = fake_rig_stats(&g);
        if (kind < 2) {
            assert_int_equal(s.async_steps + s.wasted_rows, 0);
            assert_int_equal(s.steps, 30);
        } else if (kind == 2) {
            /* when its first token was sampled, no other step was in flight, and the result was by_host */
            assert_int_equal(s.wasted_rows, 0);
            assert_in_range(s.async_steps, 1, 10);
        } else if (kind == 3) {
            assert_in_range(s.wasted_rows, 2, 20);
            assert_in_range(s.async_steps, 10, s.steps - 5);
        } else {
            assert_int_equal(s.wasted_rows + s.async_steps, 0);
        }
        fake_rig_finish(&g, j, 2);
    }
}

/* A request that arrives before the next step is scheduled is part of it. */
static void a_new_request_is_in_the_next_step(void **state)
{
    (void)state;
    struct fake_rig g;
    struct job j, k;
    struct eng_events ev;
    struct km_err err;
    open_async(&g, 64, 64, 8);
    g.m.step_us = 20000;
    job_init(&j, 20, 0, 0, 1, 12);
    job_init(&k, 30, 0, 0, 2, 2);
    fake_rig_submit(&g, &j);
    for (int i = 0; i < 6; i++)
        fake_rig_step(&g);
    assert_int_equal(g.m.in_flight, 1);
    int64_t before = km_now_ns();
    assert_int_equal(eng_step(g.e, &ev, &err), 0);
    int64_t after = km_now_ns();
    j.out[j.n_out++] = ev.v[0].token.id;
    assert_in_range(ev.busy_until_ns, before + 20000000, after + 30000000);
    long submitted = g.m.steps;
    fake_rig_submit(&g, &k);
    fake_rig_step(&g);
    assert_int_equal(g.m.prefill_at, submitted + 1);
    fake_rig_step(&g);
    assert_int_equal(k.n_out, 1);
    fake_rig_run(&g);
    fake_rig_verify(&g, &j);
    fake_rig_verify(&g, &k);
    job_free(&j);
    job_free(&k);
    fake_rig_close(&g);
}

/* If a request waits for pages, or for one of the max_num_seqs requests to end, and the step in flight will end one,
 * then the next step is scheduled only after that, and the waiting request is in it. */
static void a_waiting_request_gets_freed_pages_at_once(void **state)
{
    (void)state;
    for (int pages = 0; pages < 2; pages++) {
        struct fake_rig g;
        struct job j[3];
        /* 9 pages: five for the long request, four for another one */
        open_async(&g, pages ? 9 : 64, 128, pages ? 8 : 2);
        for (int i = 0; i < 3; i++) {
            job_init(&j[i], i ? 50 : 20, 0, 0, (uint64_t)i, i ? 10 : 50);
            fake_rig_submit(&g, &j[i]);
        }
        while (j[1].finish == ENG_RUNNING)
            fake_rig_step(&g);
        assert_int_equal(g.m.in_flight, 0);
        assert_int_equal(j[0].n_out, 10);
        fake_rig_step(&g);
        assert_int_equal(j[2].n_out, 1);
        assert_int_equal(fake_rig_stats(&g).steps, 11);
        fake_rig_run(&g);
        assert_int_equal(fake_rig_stats(&g).steps, 50);
        assert_int_equal(fake_rig_stats(&g).preemptions, 0);
        assert_int_equal(fake_rig_stats(&g).wasted_rows, 0);
        assert_in_range(fake_rig_stats(&g).async_steps, 40, 46);
        fake_rig_finish(&g, j, 3);
    }
}

static void a_failure_ends_the_requests_of_both_steps(void **state)
{
    (void)state;
    for (int in_wait = 0; in_wait < 2; in_wait++)
        for (int at = 1; at < 12; at++)
            for (int lost = 0; lost < 4; lost++) {
                int n = 2 + lost / 2; /* the third request waits until the first one ends */
                struct fake_rig g;
                struct job j[3];
                struct km_err err;
                open_async(&g, 64, 64, 2);
                for (int i = 0; i < n; i++) { /* the first request ends with step 8 */
                    job_init(&j[i], 20, 0, 0, (uint64_t)i, i == 1 ? 20 : 8);
                    fake_rig_submit(&g, &j[i]);
                }
                g.m.fail_at = at;
                g.m.fail_code = lost % 2 ? KM_EDEVICE : KM_ENOMEM;
                g.m.fail_in_wait = in_wait;
                int rc = 0;
                for (int i = 0; !rc && !eng_idle(g.e) && i < 100; i++)
                    rc = fake_rig_step(&g);
                assert_int_equal(rc, g.m.fail_code);
                assert_int_equal(g.m.in_flight, 0);
                assert_int_equal(j[1].finish, ENG_ERROR);
                assert_int_equal(fake_rig_stats(&g).pages_used, 0);
                if (lost % 2) {
                    assert_true(eng_idle(g.e));
                    assert_int_equal(fake_rig_step(&g), KM_EDEVICE);
                } else {
                    fake_rig_run(&g);
                    int64_t errors = fake_rig_stats(&g).finished[ENG_ERROR];
                    for (int i = 0; i < n; i++)
                        if (j[i].finish == ENG_LENGTH) {
                            fake_rig_verify(&g, &j[i]);
                            errors++;
                        }
                    assert_int_equal(errors, n);
                }
                assert_int_equal(eng_check(g.e, &err), 0);
                for (int i = 0; i < n; i++)
                    job_free(&j[i]);
                fake_rig_close(&g);
            }
}

/* With a clock of the backend's own, there is no wall-clock time to sleep until. */
static void a_simulated_clock_has_no_busy_until(void **state)
{
    (void)state;
    struct backend clocked = be_fake_async;
    struct fake_rig g;
    struct job j;
    struct eng_events ev;
    struct km_err err;
    struct eng_opts o = fake_rig_opts(64, 64, 8);
    clocked.now = be_fake_clock.now;
    fake_rig_open_on(&g, &o, NULL, &clocked);
    job_init(&j, 20, 0, 0, 1, 12);
    fake_rig_submit(&g, &j);
    while (!eng_idle(g.e)) {
        assert_int_equal(eng_step(g.e, &ev, &err), 0);
        assert_int_equal(ev.busy_until_ns, 0);
        assert_false(ev.stalled);
        for (int i = 0; i < ev.n; i++) {
            j.out[j.n_out++] = ev.v[i].token.id;
            j.finish = ev.v[i].finish;
        }
    }
    assert_int_equal(fake_rig_stats(&g).async_steps, 10);
    fake_rig_verify(&g, &j);
    job_free(&j);
    fake_rig_close(&g);
}

static void estimates_are_lower_bounds(void **state)
{
    (void)state;
    struct step_times t = {0};
    struct step s = {.batch.n_reqs = 8, .kv_tokens = 1000};
    assert_int_equal(step_times_estimate(&t, &s), 0);
    step_times_add(&t, &s, 9000);
    assert_int_equal(step_times_estimate(&t, &s), 0); /* one step alone may be an outlier */
    step_times_add(&t, &s, 500000);
    assert_int_equal(step_times_estimate(&t, &s), 9000);
    step_times_add(&t, &s, 8000);
    assert_int_equal(step_times_estimate(&t, &s), 8000);
    s.batch.n_reqs = 9;
    s.kv_tokens = 1100;
    assert_int_equal(step_times_estimate(&t, &s), 8000);
    s.batch.n_reqs = 4;
    assert_int_equal(step_times_estimate(&t, &s), 4000);
    s.kv_tokens = 250;
    assert_int_equal(step_times_estimate(&t, &s), 2000);
}

static void steady_steps_allocate_nothing(void **state)
{
    (void)state;
    enum { N = 6 };
    struct eng_opts o = fake_rig_opts(40, 64, 4);
    struct fake_port p;
    struct fake_rig g;
    static struct job j[2 * N];
    struct eng_events ev;
    struct km_err err;
    fake_port_init(&p, 32);
    p.slow = 2;
    fake_rig_open_on(&g, &o, &p, &be_fake_async);
    g.m.host_sampled = 5;
    for (int i = 0; i < 2 * N; i++) {
        job_init(&j[i], 100 + 9 * (i % N), 50, i % 2, (uint64_t)(i % N), 60);
        fake_rig_submit(&g, &j[i]);
        if (i == N - 1)
            fake_rig_run(&g); /* warm-up */
    }
    int64_t async = fake_rig_stats(&g).async_steps;
    km_mem_fail_at(1);
    while (!eng_idle(g.e))
        assert_int_equal(eng_step(g.e, &ev, &err), 0);
    assert_null(km_malloc(1)); /* the first allocation since then fails, so the steps made none */
    assert_int_equal(fake_rig_stats(&g).finished[ENG_LENGTH], 2 * N);
    assert_true(fake_rig_stats(&g).async_steps > async + 50);
    for (int i = 0; i < 2 * N; i++)
        job_free(&j[i]);
    fake_rig_close(&g);
    fake_port_free(&p);
}

static void failed_allocations_of_the_second_step_are_errors(void **state)
{
    (void)state;
    int64_t before = km_mem_stats(KM_MEM_HOST).current;
    struct mdl m = fake_model(997, 4096);
    struct eng_opts o = fake_rig_opts(64, 64, 4);
    struct eng *e;
    struct km_err err;
    int rc = KM_ENOMEM;
    for (long n = 1; rc; n++) {
        km_mem_fail_at(n);
        rc = eng_open(&e, &o, &m, &be_fake_async, NULL, &err);
        assert_true(!rc || rc == KM_ENOMEM);
    }
    km_mem_fail_at(0);
    eng_close(e);
    assert_int_equal(km_mem_stats(KM_MEM_HOST).current, before);
}

/* ---- random traffic ---- */

enum { JOBS = 60 };

/* Random traffic, the same for both engines: options, requests, and the steps at which they are submitted and
 * cancelled. */
struct traffic {
    struct eng_opts o;
    bool port;
    int chunk, slow, lossy, short_at, copy_polls, host_sampled;
    uint64_t port_rng;
    struct job jobs[JOBS]; /* before they are submitted */
    int submit_at[JOBS], cancel_at[JOBS]; /* step numbers; cancel_at 0: never */
};

static void make_traffic(struct traffic *s)
{
    static int32_t stops[24]; /* enough for some to be sampled */
    static const char *const salts[] = {NULL, NULL, NULL, "", "x"};
    for (int i = 0; i < 24; i++)
        stops[i] = 40 * i;
    s->o = fake_rig_opts(14 + below(90), 1 + below(150), 1 + below(16));
    s->o.block_size = below(3) ? 16 : below(2) ? 1 : 7;
    s->o.num_blocks = s->o.num_blocks * 16 / s->o.block_size;
    s->o.prefix_caching = below(5) > 0;
    s->port = below(4) > 0;
    s->chunk = s->o.block_size * (1 + below(6));
    s->slow = below(3) * below(5);
    s->lossy = below(3) * 20;
    s->short_at = below(3) ? -1 : below(4);
    s->copy_polls = below(2) * below(5);
    s->host_sampled = below(3) ? 0 : below(2) ? 3 : 40;
    s->port_rng = fake_random(&rng);
    int longest = s->o.num_blocks * s->o.block_size, strange = below(3);
    longest = longest > 250 ? 250 : longest - 1;
    for (int i = 0; i < JOBS; i++) {
        struct job *j = &s->jobs[i];
        int n = 1 + below(longest), out = 1 + below(FAKE_RIG_OUT);
        job_init(j, n, below(3) ? below(n + 1) : n, below(4), (uint64_t)below(1000), out);
        j->r.cache_salt = salts[below(5)];
        j->r.priority = below(6) ? 0 : below(3) - 1;
        j->r.ignore_eos = below(2);
        j->r.stop_ids = stops;
        j->r.n_stop = below(3) ? 0 : below(25);
        j->r.min_tokens = below(4) ? 0 : below(out + 1);
        j->r.sampling.seed = (uint64_t)below(3);
        if (strange && !below(10))
            j->r.sampling.repetition = 1.1;
        if (strange && !below(10))
            j->r.sampling.n_logprobs = 1;
        s->submit_at[i] = below(250);
        s->cancel_at[i] = below(5) ? 0 : s->submit_at[i] + below(40);
    }
}

/* Runs the traffic on an engine; the results are in jobs. */
static struct eng_stats run_traffic(const struct traffic *s, const struct backend *backend, struct job *jobs)
{
    struct fake_port p;
    struct fake_rig g;
    fake_port_init(&p, s->chunk);
    p.slow = s->slow;
    p.lossy = s->lossy;
    p.short_at = s->short_at;
    p.rng = s->port_rng;
    fake_rig_open_on(&g, &s->o, s->port ? &p : NULL, backend);
    g.m.copy_polls = s->copy_polls;
    g.m.host_sampled = s->host_sampled;
    for (int i = 0; i < JOBS; i++) {
        jobs[i] = s->jobs[i];
        jobs[i].r.user = &jobs[i];
        jobs[i].prompt = malloc(sizeof *jobs[i].prompt * (size_t)jobs[i].r.n_prompt);
        memcpy(jobs[i].prompt, s->jobs[i].prompt, sizeof *jobs[i].prompt * (size_t)jobs[i].r.n_prompt);
        jobs[i].r.prompt = jobs[i].prompt;
    }
    for (int step = 0; step < 300 || !eng_idle(g.e); step++) {
        for (int i = 0; i < JOBS; i++) {
            if (s->submit_at[i] == step)
                fake_rig_submit(&g, &jobs[i]);
            if (s->cancel_at[i] && s->cancel_at[i] == step && jobs[i].finish == ENG_RUNNING) {
                eng_cancel(g.e, jobs[i].id, ENG_ABORT);
                jobs[i].cancelled = true;
            }
        }
        assert_int_equal(fake_rig_step(&g), 0);
        if (step > 100000)
            fail_msg("no end");
    }
    for (int i = 0; i < JOBS; i++)
        fake_rig_verify(&g, &jobs[i]);
    struct eng_stats st = fake_rig_stats(&g);
    fake_rig_close(&g);
    fake_port_free(&p);
    return st;
}

static void answers_equal_those_of_synchronous_scheduling(void **state)
{
    (void)state;
    static struct traffic s;
    static struct job one[JOBS], async[JOBS];
    int64_t steps = 0, n_async = 0, wasted = 0, computed = 0, preempted = 0;
    print_message("seed %llu\n", (unsigned long long)seed);
    rng = seed;
    for (int round = 0; round < 40; round++) {
        make_traffic(&s);
        struct eng_stats a = run_traffic(&s, &be_fake, one), b = run_traffic(&s, &be_fake_async, async);
        assert_int_equal(a.async_steps + a.wasted_rows, 0);
        steps += b.steps;
        n_async += b.async_steps;
        wasted += b.wasted_rows;
        computed += b.computed_tokens;
        preempted += b.preemptions;
        for (int i = 0; i < JOBS; i++) {
            int n = one[i].n_out < async[i].n_out ? one[i].n_out : async[i].n_out;
            if (!one[i].cancelled && !async[i].cancelled) {
                assert_int_equal(one[i].n_out, async[i].n_out);
                assert_int_equal(one[i].finish, async[i].finish);
                assert_int_equal(one[i].last.stop_id, async[i].last.stop_id);
            }
            assert_memory_equal(one[i].out, async[i].out, sizeof *one[i].out * (size_t)n);
            job_free(&one[i]);
            job_free(&async[i]);
            job_free(&s.jobs[i]);
        }
    }
    print_message("%lld of %lld steps were submitted early; %lld rows wasted, %lld computed; %lld preemptions\n",
                  (long long)n_async, (long long)steps, (long long)wasted, (long long)computed, (long long)preempted);
    assert_true(n_async > steps / 10);
    assert_true(wasted > 100 && wasted < computed / 10);
    assert_true(preempted > 50);
}

int main(int argc, char **argv)
{
    seed = argc > 1 ? strtoull(argv[1], NULL, 0) : (uint64_t)time(NULL);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(decodes_are_scheduled_async),
        cmocka_unit_test(an_end_token_wastes_one_row),
        cmocka_unit_test(pages_of_a_request_cancelled_in_flight_are_free),
        cmocka_unit_test(closing_waits_for_the_step_in_flight),
        cmocka_unit_test(rows_sampled_by_the_host_are_waited_for),
        cmocka_unit_test(a_new_request_is_in_the_next_step),
        cmocka_unit_test(a_waiting_request_gets_freed_pages_at_once),
        cmocka_unit_test(a_failure_ends_the_requests_of_both_steps),
        cmocka_unit_test(a_simulated_clock_has_no_busy_until),
        cmocka_unit_test(estimates_are_lower_bounds),
        cmocka_unit_test(steady_steps_allocate_nothing),
        cmocka_unit_test(failed_allocations_of_the_second_step_are_errors),
        cmocka_unit_test(answers_equal_those_of_synchronous_scheduling),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
