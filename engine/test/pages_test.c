/* The page pool and the prefix index by themselves: order of reuse, users of a page, keys. */
#include "base/test/test.h"

#include "base/mem.h"
#include "engine/pages.h"
#include "engine/prefix.h"

#include <string.h>

static void check_pool(const struct pg_pool *p)
{
    struct km_err err;
    if (pg_check(p, &err))
        fail_msg("%s", err.msg);
}

static void free_pages_are_allocated_again(void **state)
{
    (void)state;
    struct pg_pool *p;
    assert_int_equal(pg_new(&p, 4, NULL), 0);
    int32_t page[4];
    for (int i = 0; i < 4; i++) {
        page[i] = pg_alloc(p);
        assert_int_equal(page[i], i);
    }
    assert_int_equal(pg_alloc(p), -1);
    pg_ref(p, page[1]);
    pg_unref(p, page[1]);
    assert_int_equal(pg_available(p), 0);
    pg_unref(p, page[1]);
    pg_unref(p, page[3]);
    check_pool(p);
    assert_int_equal(pg_alloc(p), page[3]); /* of the pages without a key, the one freed last is first */
    assert_int_equal(pg_alloc(p), page[1]);
    pg_free(p);
}

static void keyed_pages_are_evicted_in_lru_order(void **state)
{
    (void)state;
    struct pg_pool *p;
    assert_int_equal(pg_new(&p, 6, NULL), 0);
    int32_t page[6];
    for (int i = 0; i < 6; i++)
        page[i] = pg_alloc(p);
    for (int i = 0; i < 5; i++)
        pg_set_keyed(p, page[i], true);
    for (int i = 5; i >= 0; i--) /* a sequence frees its last page first */
        pg_unref(p, page[i]);
    check_pool(p);
    struct pg_counts c = pg_counts(p);
    assert_int_equal(c.free, 1);
    assert_int_equal(c.lru, 5);
    assert_int_equal(pg_oldest(p), page[4]);
    pg_ref(p, page[3]); /* a hit removes the page from the list */
    pg_unref(p, page[3]); /* the page is now the newest of the list */
    check_pool(p);
    static const int order[] = {5, 4, 2, 1, 0, 3};
    for (int i = 0; i < 6; i++)
        assert_int_equal(pg_alloc(p), page[order[i]]);
    pg_free(p);
}

static void transfers_hold_pages(void **state)
{
    (void)state;
    struct pg_pool *p;
    assert_int_equal(pg_new(&p, 2, NULL), 0);
    int32_t a = pg_alloc(p);
    pg_hold(p, a);
    pg_hold(p, a);
    pg_unref(p, a);
    check_pool(p);
    assert_int_equal(pg_counts(p).transfer_only, 1);
    assert_int_equal(pg_available(p), 1);
    pg_set_keyed(p, a, true);
    pg_ref(p, a); /* found by its key while only a transfer uses it */
    assert_int_equal(pg_counts(p).transfer_only, 0);
    pg_unref(p, a);
    pg_release(p, a);
    assert_int_equal(pg_counts(p).transfer_only, 1);
    pg_release(p, a);
    check_pool(p);
    assert_int_equal(pg_counts(p).lru, 1);
    pg_set_keyed(p, a, false);
    check_pool(p);
    assert_int_equal(pg_counts(p).free, 2);
    pg_free(p);
}

static void keys_chain(void **state)
{
    (void)state;
    struct px *x;
    assert_int_equal(px_new(&x, 8, 4, NULL), 0);
    struct km_digest none = px_root_key(x, NULL), empty = px_root_key(x, ""), a = px_root_key(x, "a");
    assert_memory_not_equal(&none, &empty, sizeof none);
    assert_memory_not_equal(&none, &a, sizeof none);
    static const int32_t t[8] = {1, 2, 3, 4, 1, 2, 3, 4};
    struct km_digest k0 = px_child_key(x, &none, t), k1 = px_child_key(x, &k0, t + 4), s0 = px_child_key(x, &a, t);
    assert_memory_not_equal(&k0, &k1, sizeof k0); /* equal tokens at another position */
    assert_memory_not_equal(&k0, &s0, sizeof k0); /* equal tokens under another salt */
    struct km_digest again = px_child_key(x, &none, t);
    assert_memory_equal(&k0, &again, sizeof k0);

    assert_int_equal(px_find(x, &k0), -1);
    assert_true(px_publish(x, &k0, 3));
    assert_false(px_publish(x, &k0, 5)); /* the first page keeps the key */
    assert_false(px_publish(x, &k1, 3)); /* one key per page */
    assert_true(px_publish(x, &k1, 5));
    assert_int_equal(px_find(x, &k0), 3);
    assert_int_equal(px_find(x, &k1), 5);
    assert_int_equal(px_check(x, NULL), 0);
    px_forget(x, 3);
    px_forget(x, 3);
    assert_int_equal(px_find(x, &k0), -1);
    assert_int_equal(px_find(x, &k1), 5);
    assert_false(px_has(x, 3));
    assert_int_equal(px_check(x, NULL), 0);
    px_free(x);
}

/* A thousand keys are published and forgotten in an index of 64 pages, so that buckets have chains. */
static void keys_are_published_and_forgotten(void **state)
{
    (void)state;
    struct px *x;
    enum { N = 64 };
    assert_int_equal(px_new(&x, N, 1, NULL), 0);
    struct km_digest root = px_root_key(x, NULL), key[N];
    for (int32_t i = 0; i < 1000; i++) {
        int page = i % N;
        px_forget(x, page);
        key[page] = px_child_key(x, &root, &i);
        assert_true(px_publish(x, &key[page], page));
        assert_int_equal(px_check(x, NULL), 0);
    }
    for (int page = 0; page < N; page++)
        assert_int_equal(px_find(x, &key[page]), page);
    px_free(x);
}

static void failed_allocations_are_errors(void **state)
{
    (void)state;
    int64_t before = km_mem_stats(KM_MEM_HOST).current;
    struct km_err err;
    struct pg_pool *p;
    struct px *x;
    for (long n = 1; n <= 2; n++) {
        km_mem_fail_at(n);
        assert_int_equal(pg_new(&p, 8, &err), KM_ENOMEM);
    }
    for (long n = 1; n <= 6; n++) {
        km_mem_fail_at(n);
        assert_int_equal(px_new(&x, 8, 16, &err), KM_ENOMEM);
    }
    km_mem_fail_at(0);
    assert_int_equal(km_mem_stats(KM_MEM_HOST).current, before);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(free_pages_are_allocated_again),      cmocka_unit_test(keyed_pages_are_evicted_in_lru_order),
        cmocka_unit_test(transfers_hold_pages), cmocka_unit_test(keys_chain),
        cmocka_unit_test(keys_are_published_and_forgotten),     cmocka_unit_test(failed_allocations_are_errors),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
