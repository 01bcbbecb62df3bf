/* The runner: answers, cancellations, resets, a failed device, and failed allocations. */
#include "base/test/test.h"

#include "base/clock.h"
#include "base/mem.h"
#include "engine/runner.h"
#include "fake_rig.h"

#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

/* The owner of a runner, as a server is: it has an eventfd that `wake` writes to. */
struct owner {
    struct fake_rig g;
    struct runner *runner;
    int fd;
    struct eng_events ev;
    struct km_err err; /* of the last runner_submit */
    int live;
};

static void write_eventfd(void *arg)
{
    uint64_t one = 1;
    if (write(*(int *)arg, &one, sizeof one) != sizeof one)
        abort();
}

static void owner_open_on(struct owner *d, int num_blocks, int budget, int max_seqs, struct fake_port *port,
                         const struct backend *backend)
{
    memset(d, 0, sizeof *d);
    struct eng_opts o = fake_rig_opts(num_blocks, budget, max_seqs);
    o.max_waiting = 100;
    fake_rig_open_on(&d->g, &o, port, backend);
    d->fd = eventfd(0, EFD_NONBLOCK);
    struct km_err err;
    assert_int_equal(runner_start(&d->runner, d->g.e, write_eventfd, &d->fd, &err), 0);
}

static void owner_open(struct owner *d, int num_blocks, int budget, int max_seqs, struct fake_port *port)
{
    owner_open_on(d, num_blocks, budget, max_seqs, port, &be_fake);
}

static void owner_close(struct owner *d)
{
    runner_free(d->runner);
    km_free(d->ev.v);
    close(d->fd);
    fake_rig_close(&d->g);
}

static int owner_submit(struct owner *d, struct job *j)
{
    int rc = runner_submit(d->runner, &j->r, &j->id, &d->err);
    for (int i = 0; i < j->r.n_prompt && !rc; i++)
        j->prompt[i] = ~j->prompt[i];
    d->live += !rc;
    return rc;
}

/* Waits at most ms for a wake, and records the collected events in their jobs. False: no wake. */
static bool owner_collect(struct owner *d, int ms)
{
    struct pollfd p = {.fd = d->fd, .events = POLLIN};
    struct km_err err;
    uint64_t n;
    if (poll(&p, 1, ms) != 1)
        return false;
    assert_int_equal(read(d->fd, &n, sizeof n), sizeof n);
    assert_int_equal(runner_collect(d->runner, &d->ev, &err), 0);
    for (int i = 0; i < d->ev.n; i++) {
        struct eng_event *v = &d->ev.v[i];
        struct job *j = v->user;
        assert_int_equal(v->id, j->id);
        assert_int_equal(j->finish, ENG_RUNNING);
        j->last = *v;
        j->finish = v->finish;
        if (v->has_token)
            j->out[j->n_out++] = v->token.id;
        if (v->finish != ENG_RUNNING && !j->cancelled)
            d->live--;
    }
    return true;
}

static void owner_run(struct owner *d)
{
    while (d->live)
        if (!owner_collect(d, 10000))
            fail_msg("no event for ten seconds, %d requests open", d->live);
}

static void answers_from(const struct backend *backend)
{
    enum { N = 60 };
    static struct job j[N];
    struct fake_port p;
    struct owner d;
    fake_port_init(&p, 32);
    p.slow = 3;
    owner_open_on(&d, 60, 64, 8, &p, backend);
    for (int i = 0; i < N; i++) {
        job_init(&j[i], 1 + i * 7 % 90, 48, i % 3, (uint64_t)i, 1 + i % 30);
        assert_int_equal(owner_submit(&d, &j[i]), 0);
        if (i % 10 == 9)
            owner_collect(&d, 1000);
    }
    owner_run(&d);
    for (int i = 0; i < N; i++) {
        fake_rig_verify(&d.g, &j[i]);
        job_free(&j[i]);
    }
    struct eng_stats s;
    for (int i = 0; i < 1000; i++) { /* stores may still be in flight */
        runner_stats(d.runner, &s);
        if (!s.pages_used)
            break;
        usleep(1000);
    }
    assert_int_equal(s.finished[ENG_LENGTH], N);
    assert_int_equal(s.pages_used, 0);
    assert_true(s.prefix_hits > 0);
    owner_close(&d);
    fake_port_free(&p);
}

static void answers_come_through_the_queues(void **state)
{
    (void)state;
    answers_from(&be_fake);
    answers_from(&be_fake_async);
}

/* Requests that arrive while a step is in flight are in the next one, because the thread schedules it as late as
 * possible. On a busy machine a single try may fail. */
static void a_new_request_is_in_the_next_step(void **state)
{
    (void)state;
    enum { TRIES = 8 };
    struct owner d;
    struct job j, k;
    int good = 0, good_cancels = 0;
    owner_open_on(&d, 200, 64, 8, NULL, &be_fake_async);
    d.g.m.step_us = 20000;
    for (int i = 0; i < TRIES; i++) {
        job_init(&j, 30, 0, 0, (uint64_t)i, 10);
        job_init(&k, 30, 0, 0, 100 + (uint64_t)i, 3);
        assert_int_equal(owner_submit(&d, &j), 0);
        while (j.n_out < 5) /* two decodes are enough for an estimate */
            owner_collect(&d, 10000);
        usleep(6000);
        long submitted = d.g.m.steps, in_flight = d.g.m.in_flight;
        assert_int_equal(owner_submit(&d, &k), 0);
        usleep(4000);
        bool waits = d.g.m.steps == submitted;
        owner_run(&d);
        good += in_flight == 1 && waits && d.g.m.prefill_at == submitted + 1;
        fake_rig_verify(&d.g, &j);
        fake_rig_verify(&d.g, &k);
        job_free(&j);
        job_free(&k);

        /* A cancellation takes effect at once: the request does not run any more when the step is still in flight. */
        job_init(&j, 30, 0, 0, 200 + (uint64_t)i, FAKE_RIG_OUT);
        assert_int_equal(owner_submit(&d, &j), 0);
        while (j.n_out < 5)
            owner_collect(&d, 10000);
        usleep(4000);
        runner_cancel(d.runner, j.id, ENG_ABORT);
        j.cancelled = true;
        d.live--;
        usleep(4000);
        struct eng_stats s;
        runner_stats(d.runner, &s);
        good_cancels += s.running == 0 && d.g.m.in_flight == 1;
        job_free(&j);
    }
    while (d.g.m.in_flight) /* of the last cancelled request */
        usleep(1000);
    assert_in_range(good, TRIES / 2, TRIES);
    assert_in_range(good_cancels, TRIES / 2, TRIES);
    owner_close(&d);
}

static void cancels_end_requests(void **state)
{
    (void)state;
    enum { N = 30 };
    static struct job j[N];
    struct owner d;
    owner_open(&d, 200, 64, 4, NULL);
    for (int i = 0; i < N; i++) {
        job_init(&j[i], 50, 0, 0, (uint64_t)i, FAKE_RIG_OUT);
        assert_int_equal(owner_submit(&d, &j[i]), 0);
        if (i % 2) {
            runner_cancel(d.runner, j[i].id, ENG_ABORT); /* perhaps before the engine has the request */
            runner_cancel(d.runner, j[i].id, ENG_ABORT);
            d.live--;
            j[i].cancelled = true;
        }
    }
    runner_cancel(d.runner, 999999, ENG_ABORT);
    owner_run(&d);
    for (int i = 0; i < N; i++) {
        fake_rig_verify(&d.g, &j[i]);
        job_free(&j[i]);
    }
    struct km_err err;
    runner_reset_begin(d.runner, true);
    int rc;
    while (!runner_reset_ended(d.runner, &rc, &err))
        usleep(100);
    assert_int_equal(rc, 0);
    struct eng_stats s;
    runner_stats(d.runner, &s);
    assert_int_equal(s.pages_cached + s.pages_used, 0);
    assert_int_equal(s.finished[ENG_LENGTH], N / 2);
    assert_true(s.finished[ENG_ABORT] > 0);
    /* Far more cancellations than there can be requests: none is lost, and none blocks forever. */
    for (uint64_t id = 1000; id < 3000; id++)
        runner_cancel(d.runner, id, ENG_ABORT);
    owner_close(&d);
}

/* A reset that needs time blocks nobody. It ends when the transfers do, or when a request arrives. */
static void a_slow_reset_blocks_nobody(void **state)
{
    (void)state;
    for (int busy = 0; busy < 2; busy++) {
        struct fake_port p;
        struct owner d;
        struct job j, k;
        struct km_err err;
        struct eng_stats s;
        int rc = 1;
        fake_port_init(&p, 32);
        owner_open(&d, 60, 64, 8, &p);
        p.stuck = true; /* the store does not finish */
        job_init(&j, 100, 0, 0, 1, 2);
        assert_int_equal(owner_submit(&d, &j), 0);
        owner_run(&d);
        runner_reset_begin(d.runner, true);
        usleep(20000);
        assert_false(runner_reset_ended(d.runner, &rc, &err));
        int64_t from = km_now_ns();
        runner_cancel(d.runner, 12345, ENG_ABORT);
        runner_stats(d.runner, &s);
        assert_true(km_now_ns() - from < 1000000000);
        assert_int_equal(s.kv.chunks, 3);
        job_init(&k, 10, 0, 0, 2, 2);
        if (busy) {
            assert_int_equal(owner_submit(&d, &k), 0);
            owner_run(&d);
            fake_rig_verify(&d.g, &k);
        }
        p.stuck = false;
        while (!runner_reset_ended(d.runner, &rc, &err))
            owner_collect(&d, 1000);
        assert_int_equal(rc, busy ? KM_ELIMIT : 0);
        runner_stats(d.runner, &s);
        assert_int_equal(s.kv.chunks, busy ? 3 : 0);
        while (s.pages_used) { /* until the store has ended */
            usleep(1000);
            runner_stats(d.runner, &s);
        }
        job_free(&j);
        job_free(&k);
        owner_close(&d);
        fake_port_free(&p);
    }
}

static void a_full_queue_is_an_error(void **state)
{
    (void)state;
    static struct job j[300];
    struct owner d;
    owner_open(&d, 200, 1, 1, NULL); /* one row per step, so that requests stay in the queue */
    int refused = 0, n = 0;
    struct km_err err;
    for (; n < 300 && !refused; n++) {
        job_init(&j[n], 150, 0, 0, (uint64_t)n, FAKE_RIG_OUT);
        int rc = owner_submit(&d, &j[n]);
        if (rc) {
            assert_int_equal(rc, KM_ELIMIT);
            assert_non_null(strstr(d.err.msg, "100 requests are waiting"));
            refused++;
        }
    }
    assert_int_equal(refused, 1);
    assert_true(n > 100);
    struct eng_request bad = {.n_prompt = 0};
    uint64_t id;
    assert_int_equal(runner_submit(d.runner, &bad, &id, &err), KM_EINVAL);
    runner_free(d.runner); /* with requests in the runner's queue, waiting and running */
    km_free(d.ev.v);
    close(d.fd);
    eng_close(d.g.e);
    for (int i = 0; i < n; i++)
        job_free(&j[i]);
}

static void a_failed_device_is_reported(void **state)
{
    (void)state;
    enum { N = 20 };
    static struct job j[N];
    struct owner d;
    owner_open(&d, 200, 64, 4, NULL);
    struct km_err why;
    assert_false(runner_failed(d.runner, &why));
    for (int i = 0; i < N; i++) /* the thread sleeps until the first runner_submit, so it does not read these yet */
        job_init(&j[i], 50, 0, 0, (uint64_t)i, FAKE_RIG_OUT);
    d.g.m.fail_code = KM_EDEVICE;
    d.g.m.fail_at = 3;
    d.g.m.step_us = 20000;
    for (int i = 0; i < N; i++) { /* most arrive while a step runs, possibly the one that fails */
        if (owner_submit(&d, &j[i])) {
            j[i].finish = ENG_ERROR;
            assert_true(runner_failed(d.runner, NULL));
        }
        usleep(2500);
    }
    owner_run(&d);
    assert_true(runner_failed(d.runner, &why));
    assert_int_equal(why.code, KM_EDEVICE);
    assert_non_null(strstr(why.msg, "failed at step 3"));
    for (int i = 0; i < N; i++) {
        assert_int_equal(j[i].finish, ENG_ERROR);
        job_free(&j[i]);
    }
    struct job k;
    job_init(&k, 5, 0, 0, 1, 5);
    assert_int_equal(owner_submit(&d, &k), KM_EDEVICE);
    runner_cancel(d.runner, 3, ENG_ABORT);
    job_free(&k);
    owner_close(&d);
}

/* Allocations fail at different places. runner_submit returns an error, events wait in the runner, and none is lost. */
static void failed_allocations_lose_nothing(void **state)
{
    (void)state;
    struct owner d;
    owner_open(&d, 200, 64, 4, NULL);
    for (long n = 1; n < 40; n++) {
        struct job j;
        struct km_err err;
        job_init(&j, 50, 0, 0, (uint64_t)n, 20);
        km_mem_fail_at(n % 4 + 1);
        int rc = owner_submit(&d, &j);
        assert_true(!rc || rc == KM_ENOMEM);
        while (!rc && d.live) {
            struct pollfd p = {.fd = d.fd, .events = POLLIN};
            uint64_t times;
            assert_int_equal(poll(&p, 1, 10000), 1);
            assert_int_equal(read(d.fd, &times, sizeof times), sizeof times);
            if (n % 3 == 0) {
                km_free(d.ev.v);
                d.ev = (struct eng_events){0};
            }
            while (runner_collect(d.runner, &d.ev, &err)) /* the events are there the next time */
                assert_int_equal(err.code, KM_ENOMEM);
            for (int i = 0; i < d.ev.n; i++) {
                j.out[j.n_out++] = d.ev.v[i].token.id;
                j.finish = d.ev.v[i].finish;
                d.live -= j.finish != ENG_RUNNING;
            }
        }
        km_mem_fail_at(0);
        if (!rc)
            fake_rig_verify(&d.g, &j);
        job_free(&j);
    }
    owner_close(&d);
    struct eng_opts o = fake_rig_opts(10, 16, 2);
    struct fake_rig g;
    struct runner *r;
    struct km_err err;
    fake_rig_open(&g, &o, NULL);
    for (long n = 1; n <= 2; n++) {
        km_mem_fail_at(n);
        assert_int_equal(runner_start(&r, g.e, write_eventfd, NULL, &err), KM_ENOMEM);
    }
    km_mem_fail_at(0);
    fake_rig_close(&g);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(answers_come_through_the_queues),
        cmocka_unit_test(a_new_request_is_in_the_next_step),
        cmocka_unit_test(cancels_end_requests),
        cmocka_unit_test(a_slow_reset_blocks_nobody),
        cmocka_unit_test(a_full_queue_is_an_error),
        cmocka_unit_test(a_failed_device_is_reported),
        cmocka_unit_test(failed_allocations_lose_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
