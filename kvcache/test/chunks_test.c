/* The chunk index against a model of it: plain arrays that are searched from end to end. */
#include "base/test/test.h"

#include "base/mem.h"
#include "base/random.h"
#include "kvcache/chunks.h"

#include <string.h>

/* The key of chunk number `id`. Its first word, which the index hashes, has one of `spread` values, so that a small
 * spread makes long probes. */
static struct km_digest key_of(uint64_t id, uint32_t spread)
{
    struct km_digest d = {{0}};
    const uint32_t first = (uint32_t)(km_mix64(id) % spread) * 0x9E3779B9u;
    memcpy(d.b, &first, sizeof first);
    memcpy(d.b + 8, &id, sizeof id);
    return d;
}

static void check(const struct kvc_chunks *s, const int32_t *refs)
{
    struct km_err err;
    if (kvc_chunks_check(s, refs, &err))
        fail_msg("%s", err.msg);
}

enum { N = 24, IDS = 60 };

/* What the index should hold: ids by slot (-1: none), their states and references, and the order of READY chunks. */
struct model {
    int id[N], usable, n_order, order[N]; /* order: slots, the oldest first */
    enum kvc_state state[N];
    int32_t refs[N];
};

static int model_find(const struct model *m, int id)
{
    for (int i = 0; i < N; i++)
        if (m->id[i] == id && (m->state[i] == KVC_FILLING || m->state[i] == KVC_READY))
            return i;
    return -1;
}

static void model_unlist(struct model *m, int slot)
{
    int n = 0;
    for (int i = 0; i < m->n_order; i++)
        if (m->order[i] != slot)
            m->order[n++] = m->order[i];
    m->n_order = n;
}

static void model_drop(struct model *m, int slot)
{
    model_unlist(m, slot);
    m->state[slot] = m->refs[slot] ? KVC_DROPPED : KVC_FREE;
}

/* The slot of the chunk that has to be evicted when no slot is free, or -1. */
static int model_victim(const struct model *m)
{
    for (int i = 0; i < m->usable; i++)
        if (m->state[i] == KVC_FREE)
            return -1;
    for (int i = 0; i < m->n_order; i++)
        if (!m->refs[m->order[i]])
            return m->order[i];
    return -1;
}

static bool model_full(const struct model *m)
{
    for (int i = 0; i < m->usable; i++)
        if (m->state[i] == KVC_FREE || (m->state[i] == KVC_READY && !m->refs[i]))
            return false;
    return true;
}

static void insert_id(struct kvc_chunks *s, struct model *m, int id, const struct km_digest *key)
{
    const int victim = model_victim(m);
    const bool full = model_full(m);
    const int64_t evicted = s->evicted;
    const int slot = kvc_chunks_insert(s, key, id);
    if (full) {
        assert_int_equal(slot, -1);
        return;
    }
    assert_in_range(slot, 0, m->usable - 1);
    assert_int_equal(s->evicted - evicted, victim >= 0);
    if (victim >= 0) {
        assert_int_equal(slot, victim);
        model_drop(m, victim);
    }
    assert_int_equal(m->state[slot], KVC_FREE);
    assert_int_equal(s->chunk[slot].position, id);
    m->id[slot] = id;
    m->state[slot] = KVC_FILLING;
}

static void one_action(struct kvc_chunks *s, struct model *m, uint64_t *random, uint32_t spread)
{
    const int slot = (int)km_random_below(random, N), id = (int)km_random_below(random, IDS);
    const struct km_digest key = key_of((uint64_t)id, spread);
    switch (km_random_below(random, 8)) {
    case 0:
    case 1:
        if (model_find(m, id) < 0 && m->usable)
            insert_id(s, m, id, &key);
        break;
    case 2:
    case 3:
        if (m->state[slot] == KVC_FILLING) {
            kvc_chunks_publish(s, slot);
            m->state[slot] = KVC_READY;
            m->order[m->n_order++] = slot;
        }
        break;
    case 4:
        kvc_chunks_drop(s, slot);
        if (m->state[slot] == KVC_FILLING || m->state[slot] == KVC_READY)
            model_drop(m, slot);
        break;
    case 5:
        if (m->state[slot] == KVC_FILLING || m->state[slot] == KVC_READY) {
            kvc_chunks_ref(s, slot);
            m->refs[slot]++;
        }
        break;
    case 6:
        if (m->refs[slot]) {
            kvc_chunks_unref(s, slot);
            if (!--m->refs[slot] && m->state[slot] == KVC_DROPPED)
                m->state[slot] = KVC_FREE;
        }
        break;
    default:
        kvc_chunks_touch(s, slot);
        if (m->state[slot] == KVC_READY && s->policy == KVC_LRU) {
            model_unlist(m, slot);
            m->order[m->n_order++] = slot;
        }
    }
}

static void any_sequence_of_calls_matches_the_model(void **state)
{
    (void)state;
    for (uint32_t round = 0; round < 60; round++) {
        struct kvc_chunks s;
        struct model m = {.usable = 0};
        const uint32_t spread = round % 3 == 0 ? 1 : round % 3 == 1 ? 5 : 1000;
        uint64_t random = round;
        int64_t evicted = 0;
        assert_int_equal(kvc_chunks_open(&s, N, round % 2 ? KVC_FIFO : KVC_LRU, NULL), 0);
        for (int step = 0; step < 2000; step++) {
            if (step % 100 == 0 && m.usable < N) {
                m.usable += (int)km_random_below(&random, 8);
                m.usable = m.usable < N ? m.usable : N;
                kvc_chunks_grow(&s, m.usable);
                kvc_chunks_grow(&s, m.usable / 2); /* never shrinks */
            }
            one_action(&s, &m, &random, spread);
            check(&s, m.refs);
            for (int i = 0; i < N; i++)
                assert_int_equal(s.chunk[i].state, m.state[i]);
            for (int id = 0; id < IDS; id++) {
                const struct km_digest key = key_of((uint64_t)id, spread);
                assert_int_equal(kvc_chunks_find(&s, &key), model_find(&m, id));
            }
        }
        evicted = s.evicted;
        assert_true(evicted > 0);
        int in_use = 0;
        for (int i = 0; i < N; i++) {
            if (m.state[i] == KVC_READY && !m.refs[i])
                m.state[i] = KVC_FREE;
            in_use += m.state[i] != KVC_FREE;
        }
        assert_int_equal(kvc_chunks_clear(&s), in_use);
        assert_int_equal(s.evicted, evicted); /* clearing is not evicting */
        check(&s, m.refs);
        kvc_chunks_close(&s);
    }
}

/* find_leading gives what find gives for one key after the other, whatever the position of the first missing key. */
static void leading_chunks_are_found(void **state)
{
    (void)state;
    enum { MANY = 300 };
    static struct km_digest keys[MANY];
    static int32_t slots[MANY], refs[MANY];
    for (uint32_t spread = 1; spread <= 100000; spread = spread * 10 + 7) {
        for (int i = 0; i < MANY; i++)
            keys[i] = key_of((uint64_t)i, spread);
        for (int missing = 0; missing <= MANY; missing += missing < 40 || missing > MANY - 20 ? 1 : 17) {
            struct kvc_chunks s;
            assert_int_equal(kvc_chunks_open(&s, MANY, KVC_LRU, NULL), 0);
            kvc_chunks_grow(&s, MANY);
            for (int i = MANY - 1; i >= 0; i--)
                if (i != missing && i % 50 != 49)
                    kvc_chunks_publish(&s, kvc_chunks_insert(&s, &keys[i], i));
                else if (i != missing)
                    kvc_chunks_insert(&s, &keys[i], i); /* FILLING chunks are found, too */
            for (int n = missing < 3 ? 0 : missing - 3; n <= MANY; n += n < missing + 20 ? 1 : 61) {
                memset(slots, 0x55, sizeof slots);
                const int found = kvc_chunks_find_leading(&s, keys, n, slots);
                assert_int_equal(found, n < missing ? n : missing);
                for (int i = 0; i < found; i++)
                    assert_int_equal(slots[i], kvc_chunks_find(&s, &keys[i]));
                for (int i = found + 1; i < MANY; i++)
                    assert_int_equal(slots[i], 0x55555555); /* nothing behind is written */
            }
            check(&s, refs);
            kvc_chunks_close(&s);
        }
    }
}

static void slots_are_used_when_they_are_usable(void **state)
{
    (void)state;
    struct kvc_chunks s;
    struct km_digest key;
    int32_t refs[4] = {0};
    assert_int_equal(kvc_chunks_open(&s, 4, KVC_LRU, NULL), 0);
    key = key_of(0, 1000);
    assert_int_equal(kvc_chunks_insert(&s, &key, 0), -1);
    kvc_chunks_grow(&s, 2);
    for (int i = 0; i < 3; i++) {
        key = key_of((uint64_t)i, 1000);
        assert_int_equal(kvc_chunks_insert(&s, &key, 0), i < 2 ? i : -1); /* both are FILLING: none can be evicted */
    }
    assert_int_equal(kvc_chunks_clear(&s), 2); /* slots that are not usable are not in use */
    kvc_chunks_grow(&s, 4);
    assert_int_equal(kvc_chunks_insert(&s, &key, 0), 2);
    assert_int_equal(kvc_chunks_clear(&s), 3); /* FILLING chunks stay */
    check(&s, refs);
    kvc_chunks_close(&s);
    assert_int_equal(kvc_chunks_find(&s, &key), -1); /* a closed index is empty */
    assert_int_equal(kvc_chunks_find_leading(&s, &key, 1, refs), 0);
}

static void broken_invariants_are_found(void **state)
{
    (void)state;
    int32_t refs[4] = {0}, *const none = refs;
    for (int fault = 0; fault < 7; fault++) {
        struct kvc_chunks s;
        assert_int_equal(kvc_chunks_open(&s, 4, KVC_LRU, NULL), 0);
        kvc_chunks_grow(&s, 3);
        for (int i = 0; i < 2; i++) {
            const struct km_digest key = key_of((uint64_t)i, 1000);
            kvc_chunks_publish(&s, kvc_chunks_insert(&s, &key, i));
        }
        check(&s, none);
        switch (fault) {
        case 0: s.chunk[0].refs = 1; break;
        case 1: s.chunk[1].key.b[0] ^= 1; break;
        case 2: s.chunk[0].newer = -1; break;
        case 3: s.n_evictable--; break;
        case 4: s.free = -1; break;
        case 5: s.chunk[3].state = KVC_FILLING; break;
        default: s.chunk[2].state = KVC_DROPPED; break;
        }
        assert_int_equal(kvc_chunks_check(&s, none, NULL), KM_EINVAL);
        kvc_chunks_close(&s);
    }
}

static void failed_allocations_are_errors(void **state)
{
    (void)state;
    const int64_t before = km_mem_stats(KM_MEM_HOST).current;
    int failures = 0;
    for (;; failures++) {
        struct kvc_chunks s;
        km_mem_fail_at(failures + 1);
        const int rc = kvc_chunks_open(&s, 100, KVC_LRU, NULL);
        km_mem_fail_at(0);
        kvc_chunks_close(&s);
        assert_int_equal(km_mem_stats(KM_MEM_HOST).current, before);
        if (!rc)
            break;
        assert_int_equal(rc, KM_ENOMEM);
    }
    assert_int_equal(failures, 2);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(any_sequence_of_calls_matches_the_model),
        cmocka_unit_test(leading_chunks_are_found),
        cmocka_unit_test(slots_are_used_when_they_are_usable),
        cmocka_unit_test(broken_invariants_are_found),
        cmocka_unit_test(failed_allocations_are_errors),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
