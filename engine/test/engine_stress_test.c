/* Random requests, cancellations and resets, with random options, priorities and salts, with preemption, with and
 * without async scheduling, and with a cache layer that is slow, loses chunks and loads too few tokens, in the middle,
 * at the front or at the end, and whose copies fail. All
 * invariants hold after every step, and every answer equals that of fake_answer. The seed is printed, and the program
 * takes it as its argument to repeat a run. */
#include "base/test/test.h"

#include "engine/planner.h"
#include "fake_rig.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { JOBS = 48 };

static uint64_t seed, rng;

static int below(int n)
{
    return (int)(fake_random(&rng) % (uint64_t)n);
}

static void new_job(struct fake_rig *g, struct job *j, int longest)
{
    static const int edges[] = {1, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129};
    static const char *const salts[] = {NULL, NULL, NULL, "", "x"};
    static int32_t stops[24]; /* enough for some to be sampled */
    for (int i = 0; i < 24; i++)
        stops[i] = 40 * i;
    int n = below(2) ? edges[below(13)] : 1 + below(longest), out = 1 + below(below(4) ? 12 : FAKE_RIG_OUT);
    if (n >= longest)
        n = longest - 1;
    job_init(j, n, below(3) ? below(n + 1) : n, below(4), (uint64_t)below(1000), out);
    j->r.cache_salt = salts[below(5)];
    j->r.priority = below(6) ? 0 : below(3) - 1;
    j->r.ignore_eos = below(2);
    j->r.stop_ids = stops;
    j->r.n_stop = below(4) ? 0 : below(25);
    j->r.min_tokens = below(4) ? 0 : below(out + 1);
    j->r.sampling.seed = (uint64_t)below(3);
    j->r.sampling.repetition = below(5) ? 1 : 1.1;
    fake_rig_submit(g, j);
}

static struct {
    int64_t loads, intervals, cuts, overlapped, abandoned, resets;
} seen;

static void one_run(int round, long steps)
{
    struct eng_opts o = fake_rig_opts(10 + below(60), 1 + below(150), 1 + below(16));
    o.block_size = below(3) ? 16 : below(2) ? 1 : 7;
    o.num_blocks = o.num_blocks * 16 / o.block_size;
    o.prefix_caching = below(5) > 0;
    o.kv_planner = below(6) ? PLN_AUTO : below(3) ? PLN_LOAD : PLN_COMPUTE;
    struct fake_port p;
    struct fake_rig g;
    bool port = below(4) > 0;
    fake_port_init(&p, o.block_size * (1 + below(6)));
    p.slow = below(3) * below(5);
    p.lossy = below(3) * 20;
    p.short_at = below(3) ? -1 : below(4);
    p.bad_chunk = below(2) ? -1 : below(6);
    p.keep_nothing = below(8) == 0;
    p.keep_partial = below(2);
    p.not_yet = below(3) ? 0 : below(4);
    p.vague = below(2) * 30;
    p.depth = 1 + below(FAKE_DEPTH);
    p.rng = fake_random(&rng);
    struct backend backend = below(2) ? be_fake_async : be_fake;
    if (below(4)) { /* with a simulated clock, on which a row takes 1 us, and loads a similar time or much more */
        static const double rates[] = {0, 1e4, 1e5, 1e6, 4e6, 8e6, 2e7, 1e8};
        backend.now = be_fake_clock.now;
        p.rate = rates[below(8)];
        p.told_rate = below(2) ? below(2) ? 1e9 : 4e7 : p.rate * (1 + below(20)) / 10;
    }
    fake_rig_open_on(&g, &o, port ? &p : NULL, &backend);
    g.m.row_ns = 1000;
    g.m.floor_ns = 3000;
    g.m.host_sampled = below(3) ? 0 : below(30);
    g.m.copy_polls = below(2) * below(5);
    g.m.copy_fails = below(3) ? 0 : 20;
    g.m.copy_limit = below(3) ? 0 : 1 + below(3);
    g.m.rng = fake_random(&rng);
    int longest = eng_options(g.e)->max_model_len, live = 0, done = 0, cancelled = 0, resets = 0;
    if (longest > 300)
        longest = 300;
    static struct job jobs[JOBS];
    memset(jobs, 0, sizeof jobs);
    bool gets_stuck = below(3) == 0;
    for (long s = 0; s < steps || live; s++) {
        if (s >= steps)
            p.stuck = false;
        else if (gets_stuck && below(30) == 0)
            p.stuck = !p.stuck;
        g.stall_ns = p.stuck ? 5000000 : p.rate > 0 && p.rate < 1e6 ? 200000 : 3000;
        for (int i = 0; s < steps && i < JOBS; i++)
            if (!jobs[i].prompt && below(JOBS) < 2) {
                new_job(&g, &jobs[i], longest);
                live++;
            }
        if (live && below(12) == 0) {
            struct job *j = &jobs[below(JOBS)];
            if (j->prompt) {
                eng_cancel(g.e, j->id, ENG_ABORT);
                j->cancelled = true;
                cancelled++;
            }
        }
        struct km_err err;
        if (below(40) == 0 && eng_reset_cache(g.e, below(2), &err) == 0)
            resets++;
        assert_int_equal(fake_rig_step(&g), 0);
        for (int i = 0; i < JOBS; i++)
            if (jobs[i].prompt && (jobs[i].finish != ENG_RUNNING || jobs[i].cancelled)) {
                fake_rig_verify(&g, &jobs[i]);
                job_free(&jobs[i]);
                live--;
                done++;
            }
        if (s > 400 * steps)
            fail_msg("round %d still has open requests after 400 times its steps", round);
    }
    fake_rig_run(&g);
    struct eng_stats st;
    eng_stats(g.e, &st);
    print_message("round %2d: %3d requests, %2d cancelled, %4lld of %4lld async steps, %4lld preemptions, "
                  "%5lld pool hits, %3d loads, %2d intervals, %3d cuts, %4lld overlapped, %2lld given up, %d resets\n",
                  round, done, cancelled, (long long)st.async_steps, (long long)st.steps, (long long)st.preemptions,
                  (long long)st.prefix_hits, p.loads, p.intervals, p.cuts, (long long)st.overlapped_rows,
                  (long long)st.abandoned_loads, resets);
    seen.loads += p.loads;
    seen.intervals += p.intervals;
    seen.cuts += p.cuts;
    seen.overlapped += st.overlapped_rows;
    seen.abandoned += st.abandoned_loads;
    seen.resets += resets;
    fake_rig_close(&g);
    fake_port_free(&p);
}

static void answers_do_not_depend_on_the_traffic(void **state)
{
    (void)state;
    print_message("seed %llu\n", (unsigned long long)seed);
    rng = seed;
    for (int round = 0; round < 100; round++)
        one_run(round, 250);
    print_message("%lld loads, %lld intervals, %lld cuts, %lld overlapped, %lld given up, %lld resets\n",
                  (long long)seen.loads, (long long)seen.intervals, (long long)seen.cuts, (long long)seen.overlapped,
                  (long long)seen.abandoned, (long long)seen.resets);
    assert_true(seen.loads > 200 && seen.intervals > 20 && seen.cuts > 50);
    assert_true(seen.overlapped > 500);
}

int main(int argc, char **argv)
{
    seed = argc > 1 ? strtoull(argv[1], NULL, 0) : (uint64_t)time(NULL);
    const struct CMUnitTest tests[] = {cmocka_unit_test(answers_do_not_depend_on_the_traffic)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
