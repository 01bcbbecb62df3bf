/* Tests the thread pool: every task runs once, and no task runs after its loop has ended, whether the threads sleep or
 * spin. */
#include "base/test/test.h"

#include "base/mem.h"
#include "engine/cpu/thread_pool.h"

#include <stdatomic.h>
#include <time.h>

struct count {
    atomic_int done[1000];   /* runs of each task */
    atomic_int open;         /* 1 while the loop is running */
    atomic_int stray;        /* tasks that ran outside of the loop */
    atomic_int wrong_thread; /* tasks with an invalid thread number */
    int threads;
};

static void count_task(void *ctx, int task, int thread)
{
    struct count *c = ctx;
    atomic_fetch_add(&c->done[task], 1);
    if (!atomic_load(&c->open))
        atomic_fetch_add(&c->stray, 1);
    if (thread < 0 || thread >= c->threads)
        atomic_fetch_add(&c->wrong_thread, 1);
}

static void every_task_runs_once(void **state)
{
    (void)state;
    static struct count c;
    for (int threads = 1; threads <= 7; threads += 2) {
        struct thread_pool *p;
        assert_int_equal(thread_pool_open(&p, threads, NULL), 0);
        assert_int_equal(thread_pool_threads(p), threads);
        c.threads = threads;
        for (int round = 0; round < 3000; round++) {
            int n = round * 37 % 1000;
            for (int i = 0; i < n; i++)
                atomic_store(&c.done[i], 0);
            atomic_store(&c.open, 1);
            thread_pool_run(p, n, count_task, &c);
            atomic_store(&c.open, 0);
            for (int i = 0; i < n; i++)
                assert_int_equal(atomic_load(&c.done[i]), 1);
            if (round % 500 == 0) /* long enough for the other threads to sleep */
                nanosleep(&(struct timespec){.tv_nsec = 2000000}, NULL);
        }
        assert_int_equal(atomic_load(&c.stray), 0);
        assert_int_equal(atomic_load(&c.wrong_thread), 0);
        thread_pool_close(p);
    }
}

static void a_pool_that_cannot_start_frees_everything(void **state)
{
    (void)state;
    int64_t before = km_mem_stats(KM_MEM_HOST).current;
    struct thread_pool *p = NULL;
    struct km_err err = {0};
    for (int n = 1; n <= 2; n++) {
        km_mem_fail_at(n);
        assert_int_equal(thread_pool_open(&p, 4, &err), KM_ENOMEM);
        km_mem_fail_at(0);
        assert_null(p);
        assert_int_equal(km_mem_stats(KM_MEM_HOST).current, before);
    }
    assert_int_equal(thread_pool_open(&p, 0, &err), 0);
    assert_true(thread_pool_threads(p) >= 1);
    thread_pool_close(p);
    thread_pool_close(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_task_runs_once),
        cmocka_unit_test(a_pool_that_cannot_start_frees_everything),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
