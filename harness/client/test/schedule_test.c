/* The order and the times of requests, on a clock of the test. */
#include "base/test/test.h"

#include "base/buf.h"
#include "base/mem.h"
#include "harness/client/schedule.h"
#include "workloads/rng.h"

#include <math.h>
#include <string.h>

static struct wl_conv convs[64];

/* A set whose conversations have n[i] messages, and no texts. */
static struct wl_set make_set(const int *n, int count)
{
    for (int i = 0; i < count; i++)
        convs[i] = (struct wl_conv){.n = n[i]};
    return (struct wl_set){.convs = convs, .n = count};
}

struct play {
    struct km_buf log;        /* "client:conversation.turn " in order of sending */
    int sent, most_in_flight; /* requests sent, and the most in flight at once */
    int fail_conv, fail_turn;
    int sent_at_15; /* requests sent when the 15th conversation ended */
    int64_t now;
};

/* Plays a schedule against a server that answers each request after `service` ns. */
static void play(struct schedule *s, struct play *p, int64_t service)
{
    struct request {
        struct schedule_item it;
        int64_t end;
    } in_flight[256];
    int n = 0;
    schedule_begin(s, p->now);
    for (int guard = 0; guard < 100000; guard++) {
        struct schedule_item it;
        int64_t wake;
        enum schedule_answer a = schedule_next(s, p->now, &it, &wake);
        if (a == SCHEDULE_SEND) {
            assert_true(it.due_ns <= p->now && it.ready_ns >= it.due_ns);
            km_buf_printf(&p->log, "%d:%d.%d ", it.client, it.conv, it.turn);
            in_flight[n++] = (struct request){it, p->now + service};
            p->sent++;
            p->most_in_flight = n > p->most_in_flight ? n : p->most_in_flight;
            continue;
        }
        if (a == SCHEDULE_END) {
            assert_int_equal(n, 0);
            return;
        }
        if (n && (wake > in_flight[0].end)) {
            struct request f = in_flight[0];
            memmove(in_flight, in_flight + 1, (size_t)--n * sizeof *in_flight);
            p->now = f.end;
            schedule_done(s, &f.it, !(f.it.conv == p->fail_conv && f.it.turn == p->fail_turn), p->now);
            int finished;
            schedule_finished(s, &finished);
            p->sent_at_15 = finished == 15 && !p->sent_at_15 ? p->sent : p->sent_at_15;
        } else {
            assert_true(wake != INT64_MAX && wake > p->now);
            p->now = wake;
        }
    }
    fail_msg("the schedule does not end");
}

static struct schedule *new_closed(const struct wl_set *set, struct schedule_closed o)
{
    struct schedule *s;
    struct km_err err;
    o.n = o.n ? o.n : set->n;
    assert_int_equal(schedule_closed_new(&s, set, &o, &err), 0);
    return s;
}

static void expect_order(const struct wl_set *set, struct schedule_closed o, int fail_conv, int fail_turn,
                         const char *want)
{
    struct play p = {.fail_conv = fail_conv, .fail_turn = fail_turn, .now = 1000};
    struct schedule *s = new_closed(set, o);
    play(s, &p, 10);
    assert_string_equal(km_buf_str(&p.log), want);
    assert_true(schedule_planned(s) - p.sent - schedule_dropped(s) >= 0);
    km_buf_free(&p.log);
    schedule_free(s);
}

static void clients_share_one_queue(void **state)
{
    (void)state;
    struct wl_set set = make_set((int[]){4, 6, 2}, 3);
    /* Client 0 finishes conversation 0 and takes 2. When 2 ends, the queue is empty, and the run ends for both. */
    expect_order(&set, (struct schedule_closed){.clients = 2, .active = 1, .early_stop = true}, -1, -1,
                 "0:0.0 1:1.0 0:0.1 1:1.1 0:2.0 1:1.2 ");
    set = make_set((int[]){4, 8, 2}, 3);
    expect_order(&set, (struct schedule_closed){.clients = 2, .active = 1, .early_stop = true}, -1, -1,
                 "0:0.0 1:1.0 0:0.1 1:1.1 0:2.0 1:1.2 "); /* 1.2 is in flight at the end of the run and is
                                                             completed; 1.3 is not sent */
    expect_order(&set, (struct schedule_closed){.clients = 2, .active = 1}, -1, -1,
                 "0:0.0 1:1.0 0:0.1 1:1.1 0:2.0 1:1.2 1:1.3 ");
}

static void round_robin_starts_with_the_newest(void **state)
{
    (void)state;
    struct wl_set set = make_set((int[]){4, 4, 4}, 3);
    /* Conversations 0 and 1 alternate, the newer one first. 2 joins at the right end. Then the client needs another
     * conversation, finds the queue empty and exits, while 2 is unfinished. */
    expect_order(&set, (struct schedule_closed){.clients = 1, .active = 2, .early_stop = true}, -1, -1,
                 "0:1.0 0:0.0 0:1.1 0:2.0 0:0.1 ");
    set = make_set((int[]){6, 6, 6, 6}, 4);
    expect_order(&set, (struct schedule_closed){.clients = 1, .active = 4, .n = 4}, -1, -1,
                 "0:3.0 0:2.0 0:1.0 0:0.0 0:3.1 0:2.1 0:1.1 0:0.1 0:3.2 ");
}

static void turns_quotas_and_warm_history(void **state)
{
    (void)state;
    struct wl_set set = make_set((int[]){6, 6}, 2);
    expect_order(&set, (struct schedule_closed){.clients = 1, .active = 1, .max_turns = 3}, -1, -1,
                 "0:0.0 0:0.1 0:1.0 0:1.1 ");
    expect_order(&set, (struct schedule_closed){.clients = 1, .active = 1, .max_turns = 1}, -1, -1, "0:0.0 0:1.0 ");
    expect_order(&set, (struct schedule_closed){.clients = 1, .active = 1, .quota = 4}, -1, -1,
                 "0:0.0 0:0.1 0:0.2 0:1.0 ");
    set = make_set((int[]){6, 2, 4}, 3);
    /* After a warm-up: in its order, from the second turn. Conversations without a second turn are skipped. */
    expect_order(&set, (struct schedule_closed){.order = (int[]){2, 1, 0}, .clients = 1, .active = 1, .first_turn = 1},
                 -1, -1, "0:2.1 0:0.1 0:0.2 ");
}

static void a_failure_drops_its_conversation(void **state)
{
    (void)state;
    struct wl_set set = make_set((int[]){6, 4}, 2);
    struct play p = {.fail_conv = 0, .fail_turn = 0, .now = 5};
    struct schedule *s = new_closed(&set, (struct schedule_closed){.clients = 1, .active = 1, .early_stop = true});
    assert_int_equal(schedule_planned(s), 5);
    play(s, &p, 10);
    assert_string_equal(p.log.data, "0:0.0 0:1.0 0:1.1 ");
    assert_int_equal(schedule_dropped(s), 2);
    int n;
    assert_int_equal(schedule_finished(s, &n)[0], 1);
    assert_int_equal(n, 1);
    km_buf_free(&p.log);
    schedule_free(s);
}

static void the_write_up_run_is_cut_short(void **state)
{
    (void)state;
    static const int turns[] = {16, 18, 12, 16, 16, 16, 14, 16, 18, 14, 16, 18,
                                12, 12, 16, 14, 14, 18, 18, 12, 14, 18, 14, 18};
    struct wl_set set = make_set(turns, 24);
    struct play p = {.fail_conv = -1, .now = 1};
    struct schedule *s = new_closed(&set, (struct schedule_closed){.clients = 10, .active = 1, .early_stop = true});
    assert_int_equal(schedule_planned(s), 185);
    play(s, &p, 10);
    int n;
    schedule_finished(s, &n);
    /* The queue is empty when the 15th conversation ends: no request is sent after that, those in flight end. */
    assert_true(n >= 15 && p.sent_at_15 > 0);
    assert_int_equal(p.sent, p.sent_at_15);
    assert_in_range(p.sent, 140, 160);
    assert_int_equal(p.most_in_flight, 10);
    km_buf_free(&p.log);
    schedule_free(s);
}

static void pauses_are_each_clients_own(void **state)
{
    (void)state;
    struct wl_set set = make_set((int[]){4, 4}, 2);
    struct schedule *s = new_closed(&set, (struct schedule_closed){.clients = 2, .active = 1, .rate = 2, .seed = 40});
    struct schedule_item a, b, c;
    int64_t wake;
    schedule_begin(s, 0);
    assert_int_equal(schedule_next(s, 0, &a, &wake), SCHEDULE_SEND);
    assert_int_equal(schedule_next(s, 0, &b, &wake), SCHEDULE_SEND);
    assert_int_equal(schedule_next(s, 0, &c, &wake), SCHEDULE_WAIT);
    assert_true(wake == INT64_MAX);
    schedule_done(s, &a, true, 100);
    schedule_done(s, &b, true, 100);
    struct wl_mt r;
    int64_t due[2];
    for (int i = 0; i < 2; i++) {
        wl_mt_seed(&r, 40 + (uint32_t)i + 1);
        due[i] = 100 + llround(wl_mt_exponential(&r, 0.5) * 1e9);
    }
    assert_true(due[0] != due[1]);
    assert_int_equal(schedule_next(s, 101, &c, &wake), SCHEDULE_WAIT);
    assert_true(wake == (due[0] < due[1] ? due[0] : due[1]));
    schedule_stop(s); /* the end of the run ends the pauses */
    assert_int_equal(schedule_next(s, 101, &c, &wake), SCHEDULE_END);
    schedule_free(s);
}

static void prompts_arrive_as_planned(void **state)
{
    (void)state;
    struct km_err err;
    static int64_t due[4000];
    static const struct {
        double burstiness, cv; /* of the gaps: 1/sqrt(shape) */
    } t[] = {{1, 1}, {4, 0.5}, {0.25, 2}};
    for (size_t k = 0; k < 3; k++) {
        struct schedule *s;
        struct schedule_item it;
        int64_t wake = 0, now = 0;
        int n = 0;
        struct schedule_open o = {.n = 4000, .rate = 50, .burstiness = t[k].burstiness, .seed = 3};
        assert_int_equal(schedule_open_new(&s, &o, &err), 0);
        schedule_begin(s, 1000);
        while (n < o.n) {
            if (schedule_next(s, now, &it, &wake) == SCHEDULE_SEND)
                due[n++] = it.due_ns - 1000;
            else
                now = wake;
        }
        assert_int_equal(due[o.n - 1], 80000000000); /* the last prompt is sent at N/rate, to the nanosecond */
        double mean = 80.0 / o.n, sq = 0;
        for (int i = 0; i < o.n; i++) {
            double gap = (double)(due[i] - (i ? due[i - 1] : 0)) / 1e9;
            assert_true(gap >= 0);
            sq += (gap - mean) * (gap - mean);
        }
        double cv = sqrt(sq / o.n) / mean;
        assert_true(fabs(cv - t[k].cv) < 0.12 * t[k].cv);
        schedule_free(s);
    }
}

static void a_cap_holds_prompts_back(void **state)
{
    (void)state;
    struct km_err err;
    struct schedule *s;
    struct schedule_open o = {.n = 5, .rate = INFINITY, .burstiness = 1, .cap = 2};
    assert_int_equal(schedule_open_new(&s, &o, &err), 0);
    struct play p = {.fail_conv = -1, .now = 7};
    play(s, &p, 10);
    assert_string_equal(p.log.data, "0:0.0 0:1.0 0:2.0 0:3.0 0:4.0 ");
    assert_int_equal(p.most_in_flight, 2);
    assert_int_equal(p.now, 7 + 30);
    km_buf_free(&p.log);
    schedule_free(s);

    struct schedule_item a, b, c;
    int64_t wake;
    o.cap = 1;
    assert_int_equal(schedule_open_new(&s, &o, &err), 0);
    schedule_begin(s, 0);
    schedule_next(s, 0, &a, &wake);
    assert_int_equal(schedule_next(s, 5, &b, &wake), SCHEDULE_WAIT);
    schedule_done(s, &a, true, 40);
    assert_int_equal(schedule_next(s, 41, &c, &wake), SCHEDULE_SEND);
    assert_int_equal(c.due_ns, 0);    /* planned for the start ... */
    assert_int_equal(c.ready_ns, 40); /* ... and delayed by the concurrency limit, not by the client */
    schedule_free(s);
}

static void no_memory_at_any_point(void **state)
{
    (void)state;
    struct wl_set set = make_set((int[]){4, 4}, 2);
    int64_t before = km_mem_stats(KM_MEM_HOST).current;
    struct km_err err;
    struct schedule *s;
    for (long n = 1; n < 20; n++) {
        struct schedule_closed o = {.n = 2, .clients = 2, .active = 1};
        km_mem_fail_at(n);
        int rc = schedule_closed_new(&s, &set, &o, &err);
        km_mem_fail_at(0);
        schedule_free(s);
        assert_int_equal(km_mem_stats(KM_MEM_HOST).current, before);
        if (!rc)
            return;
        assert_int_equal(rc, KM_ENOMEM);
    }
    fail();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(clients_share_one_queue),       cmocka_unit_test(round_robin_starts_with_the_newest),
        cmocka_unit_test(turns_quotas_and_warm_history), cmocka_unit_test(a_failure_drops_its_conversation),
        cmocka_unit_test(the_write_up_run_is_cut_short), cmocka_unit_test(pauses_are_each_clients_own),
        cmocka_unit_test(prompts_arrive_as_planned),     cmocka_unit_test(a_cap_holds_prompts_back),
        cmocka_unit_test(no_memory_at_any_point),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
