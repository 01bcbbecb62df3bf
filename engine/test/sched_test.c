/* The scheduler without an engine: token budget, order, preemption, pages that only transfers use, and loads. */
#include "base/test/test.h"

#include "engine/sched.h"

#include <string.h>

enum { B = 4 };

static struct mdl_config config = {.vocab = 1000, .max_pos = 1000};

static void open_sched(struct sch *s, int pages, int max_seqs, int max_tokens)
{
    memset(s, 0, sizeof *s);
    s->block_size = B;
    s->max_seqs = max_seqs;
    s->max_tokens = s->budget = max_tokens;
    assert_int_equal(pg_new(&s->pages, pages, NULL), 0);
    assert_int_equal(px_new(&s->prefix, pages, B, NULL), 0);
}

static void close_sched(struct sch *s)
{
    struct seq_list *const l[] = {&s->waiting, &s->loading, &s->running};
    for (int i = 0; i < 3; i++)
        for (struct seq *q; (q = l[i]->head);) {
            sch_remove(s, q);
            seq_free(q);
        }
    assert_int_equal(pg_available(s->pages), pg_counts(s->pages).pages);
    pg_free(s->pages);
    px_free(s->prefix);
}

/* Tokens are first, first + 1, ... */
static struct seq *add(struct sch *s, int n, int first, int priority)
{
    int32_t prompt[500];
    for (int i = 0; i < n; i++)
        prompt[i] = (first + i) % 1000;
    struct eng_opts o = {.max_model_len = 500, .block_size = B};
    struct eng_request r = {.prompt = prompt, .n_prompt = n, .max_tokens = 100, .priority = priority,
                            .sampling = smp_defaults()};
    struct seq *q;
    assert_int_equal(seq_new(&q, &r, &o, &config, NULL), 0);
    sch_add(s, q);
    return q;
}

static void check_lists(const struct sch *s)
{
    struct km_err err;
    if (sch_check(s, &err))
        fail_msg("%s", err.msg);
}

/* Between scheduling and retiring a step. */
static void check(const struct sch *s)
{
    check_lists(s);
    int rows = 0;
    for (const struct seq *q = s->running.head; q; q = q->next)
        rows += q->n_rows;
    for (const struct seq *q = s->loading.head; q; q = q->next)
        rows += q->n_rows;
    assert_int_equal(rows, s->max_tokens - s->budget);
}

static void schedule_step(struct sch *s)
{
    sch_begin_step(s);
    for (struct seq *q; (q = sch_next_waiting(s));)
        if (sch_admit(s, q, 0, 0) == ADMIT_FULL)
            break;
    check(s);
}

/* Retires all rows. A request that has computed all its tokens gets a new one. */
static void retire_all(struct sch *s)
{
    for (struct seq *q = s->loading.head; q; q = q->next)
        sch_retire_rows(s, q);
    for (struct seq *q = s->running.head; q; q = q->next)
        if (q->n_rows) {
            if (q->n_computed + q->n_rows == q->n_tokens)
                q->tokens[q->n_tokens++] = 900;
            sch_retire_rows(s, q);
        }
}

static void run_step(struct sch *s)
{
    schedule_step(s);
    retire_all(s);
}

static void the_token_budget_is_shared(void **state)
{
    (void)state;
    struct sch s;
    open_sched(&s, 100, 3, 8);
    struct seq *a = add(&s, 20, 0, 0), *b = add(&s, 5, 100, 0), *c = add(&s, 30, 200, 0), *d = add(&s, 3, 300, 0);
    static const int rows[][4] = {{8, 0, 0, 0}, {8, 0, 0, 0}, {4, 4, 0, 0}, {1, 1, 6, 0}, {1, 1, 6, 0}, {1, 1, 6, 0},
                                  {1, 1, 6, 0}, {1, 1, 6, 0}, {1, 1, 1, 0}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        schedule_step(&s);
        assert_int_equal(a->n_rows, rows[i][0]);
        assert_int_equal(b->n_rows, rows[i][1]);
        assert_int_equal(c->n_rows, rows[i][2]);
        assert_int_equal(d->n_rows, rows[i][3]); /* at most three requests run */
        retire_all(&s);
    }
    assert_int_equal(d->state, SEQ_WAITING);
    sch_remove(&s, a);
    seq_free(a);
    schedule_step(&s);
    assert_int_equal(d->n_rows, 3);
    close_sched(&s);
}

static void waiting_is_by_priority_then_arrival(void **state)
{
    (void)state;
    struct sch s;
    open_sched(&s, 100, 8, 100);
    struct seq *q[] = {add(&s, 5, 0, 1), add(&s, 5, 10, 0), add(&s, 5, 20, 1), add(&s, 5, 30, -1), add(&s, 5, 40, 0)};
    static const int order[] = {3, 1, 4, 0, 2};
    const struct seq *at = s.waiting.head;
    for (int i = 0; i < 5; i++, at = at->next)
        assert_ptr_equal(at, q[order[i]]);
    check(&s);
    close_sched(&s);
}

/* Pages run out in a decode. The last request in order is preempted, its rows return to the budget, and no request is
 * admitted in this step. */
static void the_last_in_order_is_preempted(void **state)
{
    (void)state;
    struct sch s;
    open_sched(&s, 6, 8, 20);
    struct seq *late = add(&s, 7, 0, 5), *a = NULL, *b = NULL;
    run_step(&s); /* two pages; first in the running list */
    a = add(&s, 7, 100, 0);
    b = add(&s, 7, 200, 0);
    run_step(&s); /* two pages each: the pool is full, all have 7 or 8 computed */
    assert_int_equal(late->n_computed, 8);
    struct seq *w = add(&s, 1, 300, 0);
    schedule_step(&s); /* late needs a third page and is the last in order, so it is preempted itself */
    assert_int_equal(late->state, SEQ_WAITING);
    assert_int_equal(late->n_preempted, 1);
    assert_int_equal(late->n_computed, 0);
    assert_int_equal(a->n_rows, 1);
    assert_int_equal(b->n_rows, 1);
    assert_int_equal(s.budget, 18);
    assert_int_equal(w->state, SEQ_WAITING); /* although a page is free */
    assert_true(pg_available(s.pages) > 0);
    assert_ptr_equal(s.waiting.head, w);
    retire_all(&s);
    schedule_step(&s); /* a and b get the two pages, so there is none for w */
    assert_int_equal(w->state, SEQ_WAITING);
    close_sched(&s);
}

static void a_preempted_request_returns_its_rows(void **state)
{
    (void)state;
    struct sch s;
    open_sched(&s, 5, 8, 12);
    struct seq *late = add(&s, 5, 0, 5);
    run_step(&s); /* two pages, with space for three more tokens */
    struct seq *a = add(&s, 11, 100, 0);
    run_step(&s); /* three pages, with space for one more token */
    struct seq *b = add(&s, 3, 200, 0);
    run_step(&s);
    schedule_step(&s); /* late is scheduled first and gets a row; then a needs a page, and late is preempted */
    assert_int_equal(late->n_preempted, 1);
    assert_int_equal(late->n_rows, 0);
    assert_int_equal(late->n_tokens, 8); /* it keeps its generated tokens */
    assert_int_equal(a->n_preempted, 0);
    assert_int_equal(a->n_rows, 1);
    assert_int_equal(s.budget, 11);
    assert_int_equal(b->state, SEQ_WAITING); /* a page is free, but a preemption ends admission for this step */
    retire_all(&s);
    schedule_step(&s);
    assert_int_equal(b->n_rows, 3);
    close_sched(&s);
}

static void pages_that_only_transfers_use_are_waited_for(void **state)
{
    (void)state;
    struct sch s;
    open_sched(&s, 6, 8, 20);
    struct seq *a = add(&s, 4, 0, 0), *b = add(&s, 4, 100, 0), *c = add(&s, 12, 200, 0);
    run_step(&s);
    assert_int_equal(c->state, SEQ_RUNNING);
    assert_int_equal(pg_available(s.pages), 1);
    int32_t held[3];
    for (int i = 0; i < 3; i++)
        pg_hold(s.pages, held[i] = c->pages[i]); /* as a store of c's pages would */
    sch_remove(&s, c);
    seq_free(c);
    c = add(&s, 1, 300, 0);
    assert_int_equal(pg_counts(s.pages).transfer_only, 3);
    schedule_step(&s);
    assert_int_equal(a->n_rows, 1);
    assert_int_equal(b->n_rows, 0); /* it lacks a page, but no request is preempted for it */
    assert_int_equal(b->state, SEQ_RUNNING);
    assert_int_equal(c->state, SEQ_WAITING); /* and no request is admitted before it */
    assert_int_equal(s.preemptions, 0);
    retire_all(&s);
    for (int i = 0; i < 3; i++)
        pg_release(s.pages, held[i]);
    schedule_step(&s);
    assert_int_equal(b->n_rows, 1);
    assert_int_equal(c->n_rows, 1);
    close_sched(&s);
}

/* If a prefill chunk needs more pages than are available, and transfers hold others, the chunk shrinks. */
static void a_prefill_chunk_shrinks_to_the_available_pages(void **state)
{
    (void)state;
    struct sch s;
    open_sched(&s, 8, 8, 10);
    struct seq *a = add(&s, 30, 0, 0);
    run_step(&s); /* three pages, 10 tokens */
    struct seq *b = add(&s, 12, 100, 0);
    s.budget = 12;
    s.closed = false;
    assert_ptr_equal(sch_next_waiting(&s), b);
    assert_int_equal(sch_admit(&s, b, 0, 0), ADMIT_RUN);
    for (int i = 0; i < 3; i++)
        pg_hold(s.pages, b->pages[i]);
    int32_t held[3];
    memcpy(held, b->pages, sizeof held);
    sch_remove(&s, b);
    seq_free(b);
    run_step(&s); /* two free pages: up to 20 tokens, as wanted */
    assert_int_equal(a->n_computed, 20);
    schedule_step(&s);
    assert_int_equal(a->n_rows, 0);
    pg_release(s.pages, held[0]);
    schedule_step(&s); /* one page of the three that ten tokens need */
    assert_int_equal(a->n_rows, 4);
    retire_all(&s);
    pg_release(s.pages, held[1]);
    pg_release(s.pages, held[2]);
    run_step(&s);
    assert_int_equal(a->n_computed, 30);
    close_sched(&s);
}

/* Starts a step and returns the first waiting request that it could admit. */
static struct seq *next_waiting(struct sch *s)
{
    sch_begin_step(s);
    return sch_next_waiting(s);
}

static void a_load_gets_its_pages_at_admission(void **state)
{
    (void)state;
    struct sch s;
    open_sched(&s, 8, 8, 10);
    struct seq *a = add(&s, 17, 0, 0);
    assert_ptr_equal(next_waiting(&s), a);
    assert_int_equal(sch_admit(&s, a, 0, 16), ADMIT_LOAD);
    assert_int_equal(a->load_from, 0);
    assert_int_equal(a->load_to, 16);
    assert_int_equal(a->n_pages, 5); /* the fifth one for the token that is computed */
    assert_int_equal(s.budget, 10);
    check(&s);
    struct seq *b = add(&s, 40, 100, 0);
    assert_ptr_equal(sch_next_waiting(&s), b);
    assert_int_equal(sch_admit(&s, b, 0, 24), ADMIT_FULL); /* nine pages are not available */
    assert_int_equal(b->n_pages, 0);
    assert_null(sch_next_waiting(&s));
    sch_load_done(&s, a, 0, 11); /* a load may end within a page */
    assert_int_equal(a->n_computed, 11);
    assert_int_equal(a->n_cached, 11);
    assert_int_equal(a->n_cached_pool, 0);
    check(&s);
    sch_schedule_loaded(&s, a);
    assert_int_equal(a->n_rows, 6);
    check(&s);
    retire_all(&s);
    /* The next request finds the loaded and the computed pages. */
    struct seq *c = add(&s, 17, 0, -1);
    assert_ptr_equal(next_waiting(&s), c);
    assert_int_equal(c->n_computed, 16);
    /* the cache layer has no more than the pool, so nothing is loaded */
    assert_int_equal(sch_admit(&s, c, 16, 16), ADMIT_RUN);
    assert_int_equal(c->n_rows, 1);
    assert_int_equal(c->pages[3], a->pages[3]);
    check(&s);
    close_sched(&s);
}

/* With all other pages in use by a running request, a loaded request can still compute its tail. */
static void a_loaded_request_has_pages_for_its_tail(void **state)
{
    (void)state;
    struct sch s;
    open_sched(&s, 7, 8, 8);
    struct seq *a = add(&s, 4, 0, 0), *b = add(&s, 20, 100, 0);
    assert_ptr_equal(next_waiting(&s), a);
    assert_int_equal(sch_admit(&s, a, 0, 0), ADMIT_RUN);
    assert_ptr_equal(sch_next_waiting(&s), b);
    assert_int_equal(sch_admit(&s, b, 0, 16), ADMIT_LOAD); /* five pages of six */
    retire_all(&s);
    for (int i = 0; i < 3; i++) /* a takes the last page for its output */
        run_step(&s);
    assert_int_equal(pg_available(s.pages), 0);
    sch_load_done(&s, b, 0, 16);
    schedule_step(&s);
    assert_int_equal(b->n_rows, 4);
    assert_int_equal(s.preemptions, 0);
    close_sched(&s);
}

/* A load fills the end of a prefix while steps compute its front. Both together count as computed. */
static void a_loaded_interval_is_joined_when_its_front_is_computed(void **state)
{
    (void)state;
    static const int lost[] = {0, 4, 16, 20}; /* tokens at the front of the load that it does not fill; 20: all */
    for (size_t i = 0; i < sizeof lost / sizeof *lost; i++)
        for (int late = 0; late < 2; late++) { /* the load ends before or after its front is computed */
            struct sch s;
            open_sched(&s, 20, 8, 8);
            struct seq *a = add(&s, 30, 0, 0);
            assert_ptr_equal(next_waiting(&s), a);
            assert_int_equal(sch_admit(&s, a, 8, 26), ADMIT_LOAD);
            int from = 8 + lost[i], to = lost[i] == 20 ? 8 : 26;
            if (late) {
                sch_schedule_front(&s, a, 8);
                check(&s);
                retire_all(&s);
                assert_int_equal(a->n_computed, 8);
                check_lists(&s);
                sch_load_done(&s, a, from, to);
                assert_int_equal(a->n_computed, lost[i] ? 8 : 26);
            } else {
                sch_load_done(&s, a, from, to);
                assert_int_equal(a->n_computed, 0);
            }
            check_lists(&s);
            while (a->n_computed < 30) {
                int before = a->n_computed;
                schedule_step(&s);
                assert_true(a->n_rows > 0);
                assert_true(to <= from || before >= to || before + a->n_rows <= from);
                retire_all(&s);
                check_lists(&s);
            }
            assert_int_equal(a->n_cached, to > from ? to - from : 0);
            assert_int_equal(a->load_to, 0);
            assert_int_equal(a->n_published, 7);
            close_sched(&s);
        }
}

/* A preempted request drops its loaded interval. */
static void a_preempted_request_drops_its_interval(void **state)
{
    (void)state;
    struct sch s;
    open_sched(&s, 9, 8, 8);
    struct seq *a = add(&s, 8, 0, 0), *b = add(&s, 20, 100, 1);
    assert_ptr_equal(next_waiting(&s), a);
    assert_int_equal(sch_admit(&s, a, 0, 0), ADMIT_RUN);
    retire_all(&s);
    assert_ptr_equal(next_waiting(&s), b);
    assert_int_equal(sch_admit(&s, b, 8, 16), ADMIT_LOAD);
    for (int i = 0; i < 4; i++)
        run_step(&s);
    check(&s);
    assert_int_equal(s.preemptions, 0); /* a loading request is not preempted */
    sch_load_done(&s, b, 8, 16);
    check(&s);
    while (!s.preemptions && a->n_tokens < 60) {
        s.max_tokens = 1; /* b gets no rows, and a takes all pages */
        run_step(&s);
    }
    assert_int_equal(b->n_preempted, 1);
    assert_int_equal(b->load_from + b->load_to + b->n_computed, 0);
    check(&s);
    close_sched(&s);
}

/* An abandoned load keeps its pages, and the request gets others. */
static void an_abandoned_load_keeps_its_pages(void **state)
{
    (void)state;
    for (int pages = 9; pages < 13; pages++) {
        struct sch s;
        open_sched(&s, pages, 8, 8);
        struct seq *a = add(&s, 30, 0, 0);
        assert_ptr_equal(next_waiting(&s), a);
        assert_int_equal(sch_admit(&s, a, 8, 22), ADMIT_LOAD); /* eight pages, four of them for the load */
        int32_t held[4];
        for (int i = 0; i < 4; i++)
            pg_hold(s.pages, held[i] = a->pages[2 + i]);
        bool done = sch_abandon_load(&s, a);
        assert_int_equal(done, pages == 12);
        assert_int_equal(a->state, done ? SEQ_RUNNING : SEQ_LOADING);
        assert_int_equal(pg_counts(s.pages).transfer_only, done ? 4 : 0);
        check(&s);
        for (int i = 0; i < 4; i++)
            assert_true((a->pages[2 + i] == held[i]) == !done);
        if (done)
            schedule_step(&s);
        assert_int_equal(a->n_rows, done ? 8 : 0);
        for (int i = 0; i < 4; i++)
            pg_release(s.pages, held[i]);
        check(&s);
        close_sched(&s);
    }
}

/* A request that is passed over keeps its place and no pages, and the requests behind it are admitted. */
static void a_request_can_be_passed_over(void **state)
{
    (void)state;
    struct sch s;
    open_sched(&s, 20, 8, 20);
    struct seq *first = add(&s, 17, 0, 0);
    run_step(&s);
    sch_remove(&s, first);
    seq_free(first);
    struct seq *a = add(&s, 17, 0, 0), *b = add(&s, 4, 100, 0), *c = add(&s, 4, 200, 0), *d = add(&s, 4, 300, 0);
    assert_ptr_equal(next_waiting(&s), a);
    assert_int_equal(a->n_pages, 4); /* found in the pool */
    sch_pass_over(&s, a);
    assert_int_equal(a->n_pages + a->n_computed, 0);
    assert_ptr_equal(sch_next_waiting(&s), b);
    assert_int_equal(sch_admit(&s, b, 0, 0), ADMIT_RUN);
    assert_ptr_equal(sch_next_waiting(&s), c);
    sch_pass_over(&s, c);
    assert_ptr_equal(sch_next_waiting(&s), d);
    assert_int_equal(sch_admit(&s, d, 0, 0), ADMIT_RUN);
    assert_null(sch_next_waiting(&s));
    check(&s);
    assert_ptr_equal(s.waiting.head, a);
    assert_ptr_equal(s.waiting.tail, c);
    retire_all(&s);
    assert_ptr_equal(next_waiting(&s), a);
    assert_int_equal(sch_admit(&s, a, 0, 0), ADMIT_RUN);
    assert_int_equal(a->n_cached_pool, 16);
    check(&s);
    close_sched(&s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_token_budget_is_shared),
        cmocka_unit_test(waiting_is_by_priority_then_arrival),
        cmocka_unit_test(the_last_in_order_is_preempted),
        cmocka_unit_test(a_preempted_request_returns_its_rows),
        cmocka_unit_test(pages_that_only_transfers_use_are_waited_for),
        cmocka_unit_test(a_prefill_chunk_shrinks_to_the_available_pages),
        cmocka_unit_test(a_load_gets_its_pages_at_admission),
        cmocka_unit_test(a_loaded_request_has_pages_for_its_tail),
        cmocka_unit_test(a_loaded_interval_is_joined_when_its_front_is_computed),
        cmocka_unit_test(a_preempted_request_drops_its_interval),
        cmocka_unit_test(an_abandoned_load_keeps_its_pages),
        cmocka_unit_test(a_request_can_be_passed_over),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
