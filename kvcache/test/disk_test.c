/* The disk tier: chunks come back as they were stored, the index and the byte cap hold, and the configuration is
 * read. */
#include "kvcache/test/disk_rig.h"

#include "kvcache/tiers/disk_verify.h"

#include <errno.h>

/* Reads and writes that are cut short, fail, or need several system calls. */
static void pieces_are_whole_or_fail(void **state)
{
    (void)state;
    char path[300], a[3000], b[5000];
    snprintf(path, sizeof path, "%s/file", root);
    for (int mode = 0; mode < 2; mode++) {
        struct disk_aio *aio;
        assert_int_equal(disk_aio_open(&aio, 4, mode, NULL), 0);
        assert_int_equal(disk_aio_uring(aio) && mode, 0);
        int fd = open(path, O_RDWR | O_CREAT | O_TRUNC, 0600), readable = open(path, O_RDONLY);
        memset(a, 'a', sizeof a);
        memset(b, 'b', sizeof b);
        const struct {
            int fd;
            bool write;
            int64_t at;
            int rc;
        } t[] = {{fd, true, 0, 0},          {fd, false, 0, 0},        {fd, false, 1, -ENODATA},
                 {fd, false, 100000, -ENODATA}, {readable, true, 0, -EBADF}, {-1, false, 0, -EBADF}};
        for (size_t i = 0; i < sizeof t / sizeof *t; i++) {
            struct disk_piece p = {.iov = {{a, sizeof a}, {b, sizeof b}}, .n_iov = 2, .fd = t[i].fd,
                                   .write = t[i].write, .at = t[i].at};
            disk_aio_submit(aio, &p);
            assert_ptr_equal(disk_aio_wait(aio), &p);
            assert_int_equal(p.rc, t[i].rc);
        }
        disk_aio_wake(aio);
        assert_null(disk_aio_wait(aio));
        close(fd);
        close(readable);
        disk_aio_close(aio);
    }
}

/* Each way of I/O, each alignment, whole and partial chunks. */
static void chunks_come_back(void **state)
{
    (void)state;
    static const struct {
        int layers, head_dim, block, pages;
    } shapes[] = {{1, 64, 16, 4},    /* 8 KiB pages */
                  {2, 2, 3, 5},      /* 96-byte pages: payload not a multiple of 4096 */
                  {1, 32, 4, 8},     /* 1 KiB pages: whole chunks are aligned, partial ones are not */
                  {20, 128, 16, 20}}; /* 6.25 MiB: several pieces */
    for (int mode = 0; mode < 8; mode++)
        for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
            struct kvc_geometry g;
            struct slot s;
            empty_root(NULL);
            shape(&g, shapes[i].layers, shapes[i].head_dim, shapes[i].block, shapes[i].pages);
            slot_open(&s, &g, mode & 4);
            struct kvc_tier *t = tier_open(&g, (int64_t)1 << 30, mode & 1, mode & 2);
            assert_true(!(mode & 1) || row(t, "io_uring") == 0);
            assert_true(!(mode & 2) || row(t, "direct") == 0);
            const int tokens[] = {g.chunk_size, 1, g.chunk_size - 1, g.pool.block_size};
            for (int n = 0; n < 4; n++) {
                assert_int_equal(get(t, &s, &g, n), KM_ENOENT);
                assert_int_equal(put(t, &s, &g, n, tokens[n]), 0);
                assert_int_equal(get(t, &s, &g, n), 0);
                assert_true(slot_holds(&s, &g, n, tokens[n]));
                struct km_digest key = key_of(n);
                struct km_err err;
                if (disk_verify(root, &fp, &key, &g, &err))
                    fail_msg("%s", err.msg);
                assert_int_equal(put(t, &s, &g, n, tokens[n]), 0); /* exists already */
            }
            assert_int_equal((int)row(t, "chunks"), 4);
            assert_true(row(t, "bytes") == (double)count_files() && files_temporary == 0);
            assert_true(row(t, "errors") == 0);
            check(t);
            tier_close(t);
            slot_close(&s);
        }
}

static void about_describes_the_geometry(void **state)
{
    (void)state;
    struct kvc_geometry g, back;
    struct km_err err;
    shape(&g, 3, 8, 4, 2);
    tier_close(tier_open(&g, 1 << 20, false, false));
    if (disk_about_read(root, &fp, &back, &err))
        fail_msg("%s", err.msg);
    assert_true(back.payload_bytes == g.payload_bytes && back.header_bytes == g.header_bytes &&
                back.token_words == g.token_words && back.chunk_size == g.chunk_size);
    assert_int_equal(disk_about_read(root, &other_fp, &back, &err), KM_ENOENT);
}

static void many_in_flight(void **state)
{
    (void)state;
    enum { N = 100 };
    struct kvc_geometry g;
    static struct slot s[N];
    struct kvc_io *io[N];
    shape(&g, 5, 128, 16, 4); /* 320 KiB */
    for (int mode = 0; mode < 2; mode++) {
        empty_root(NULL);
        struct kvc_tier *t = tier_open(&g, (int64_t)1 << 30, mode, false);
        for (int i = 0; i < N; i++) {
            slot_open(&s[i], &g, true);
            slot_fill(&s[i], &g, i, g.chunk_size);
            s[i].io.kind = KVC_PUT;
            s[i].io.payload_bytes = g.payload_bytes;
            io[i] = &s[i].io;
        }
        ops->submit(t, io, N);
        for (int i = 0; i < N; i++)
            assert_int_equal(wait_one(t)->rc, 0);
        for (int i = 0; i < N; i++) {
            memset(s[i].payload, 0, g.payload_bytes);
            s[i].io.kind = KVC_GET;
        }
        ops->submit(t, io, N);
        for (int i = 0; i < N; i++)
            assert_int_equal(wait_one(t)->rc, 0);
        for (int i = 0; i < N; i++) {
            assert_true(slot_holds(&s[i], &g, i, g.chunk_size));
            slot_close(&s[i]);
        }
        assert_null(ops->poll(t));
        check(t);
        tier_close(t);
    }
}

static void lookup_exists_remove_clear(void **state)
{
    (void)state;
    struct kvc_geometry g;
    struct slot s;
    struct km_digest keys[4];
    shape(&g, 1, 64, 16, 4);
    slot_open(&s, &g, true);
    struct kvc_tier *t = tier_open(&g, (int64_t)1 << 30, false, false);
    for (int i = 0; i < 4; i++) {
        keys[i] = key_of(i);
        if (i != 2)
            assert_int_equal(put(t, &s, &g, i, g.chunk_size), 0);
    }
    assert_int_equal(ops->lookup(t, keys, 4), 2); /* chunk 3 is behind a hole */
    assert_int_equal(ops->lookup(t, keys + 2, 2), 0);
    assert_int_equal(ops->lookup(t, keys, 0), 0);
    s.io.key = keys[3];
    assert_int_equal(run_io(t, &s, KVC_EXISTS), 0);
    assert_int_equal(run_io(t, &s, KVC_REMOVE), 0);
    assert_int_equal(run_io(t, &s, KVC_EXISTS), KM_ENOENT);
    assert_int_equal(get(t, &s, &g, 3), KM_ENOENT);
    settle(t);
    assert_int_equal(access(path_of(&fp, 3), F_OK), -1);
    for (int round = 0; round < 20; round++) { /* a PUT right after clear must not fall to the cleaner */
        assert_int_equal(ops->clear(t, NULL), 0);
        assert_int_equal(ops->lookup(t, keys, 4), 0);
        for (int i = 0; i < 4; i++)
            assert_int_equal(put(t, &s, &g, i, g.chunk_size), 0);
        settle(t);
        assert_int_equal(ops->lookup(t, keys, 4), 4);
        for (int i = 0; i < 4; i++) {
            assert_int_equal(get(t, &s, &g, i), 0);
            assert_true(slot_holds(&s, &g, i, g.chunk_size));
        }
    }
    assert_true(row(t, "evicted_chunks") == 0);
    ops->clear(t, NULL);
    tier_close(t);
    assert_int_equal(count_files(), 0); /* close lets the cleaner finish */
    slot_close(&s);
}

static void the_oldest_are_evicted(void **state)
{
    (void)state;
    enum { CAP = 40, N = 200 };
    struct kvc_geometry g;
    struct slot s;
    shape(&g, 1, 64, 16, 4);
    slot_open(&s, &g, true);
    struct kvc_tier *t = tier_open(&g, CAP * file_bytes(&g), false, false);
    const struct km_digest first = key_of(0);
    for (int i = 0; i < N; i++) {
        assert_int_equal(put(t, &s, &g, i * 7, g.chunk_size), 0); /* numbers with position 0 */
        assert_int_equal(ops->lookup(t, &first, 1), 1);           /* chunk 0 stays the newest */
        assert_true(count_files() <= CAP * file_bytes(&g));
    }
    settle(t);
    check(t);
    assert_true(row(t, "evicted_chunks") >= N - CAP && row(t, "evicted_chunks") < N - CAP / 2);
    assert_true(row(t, "bytes") == (double)count_files());
    assert_int_equal(get(t, &s, &g, 0), 0);
    for (int i = 1; i < N; i++) { /* the last ones stored are there, those before them are not */
        struct km_digest key = key_of(i * 7);
        assert_int_equal(ops->lookup(t, &key, 1), i >= N - ((int)row(t, "chunks") - 1));
    }
    tier_close(t);
    slot_close(&s);
}

static void a_tail_is_evicted_before_its_head(void **state)
{
    (void)state;
    struct kvc_geometry g;
    struct slot s;
    struct km_digest keys[7];
    shape(&g, 1, 64, 16, 4);
    slot_open(&s, &g, true);
    for (int restart = 0; restart < 2; restart++) {
        empty_root(NULL);
        struct kvc_tier *t = tier_open(&g, 7 * file_bytes(&g), false, false);
        for (int i = 0; i < 7; i++) {
            keys[i] = key_of(i); /* position i */
            assert_int_equal(put(t, &s, &g, i, g.chunk_size), 0);
        }
        if (restart) {
            tier_close(t);
            t = tier_open(&g, 7 * file_bytes(&g), false, false);
        }
        assert_int_equal(put(t, &s, &g, 700, g.chunk_size), 0);
        settle(t);
        int left = ops->lookup(t, keys, 7);
        assert_true(left >= 4 && left < 7);
        assert_int_equal((int)row(t, "chunks"), left + 1);
        tier_close(t);
    }
    slot_close(&s);
}

static void the_cap_covers_other_models_and_restarts(void **state)
{
    (void)state;
    struct kvc_geometry g;
    struct slot s;
    struct kvc_tier *t;
    struct disk_config c = {.size = 100 * 1024 * 1024};
    shape(&g, 1, 64, 16, 4);
    slot_open(&s, &g, true);
    snprintf(c.dir, sizeof c.dir, "%s", root);
    assert_int_equal(ops->open(&t, &c, &g, &other_fp, NULL), 0);
    for (int i = 0; i < 30; i++)
        assert_int_equal(put(t, &s, &g, 7 * i, g.chunk_size), 0); /* their headers are of another model: never read */
    tier_close(t);
    const int64_t full = count_files();
    assert_int_equal(full, 30 * file_bytes(&g));
    t = tier_open(&g, full, false, false); /* the folder is full with files of another model */
    assert_true(row(t, "chunks") == 0 && row(t, "bytes") == (double)full);
    assert_int_equal(get(t, &s, &g, 3), KM_ENOENT);
    for (int i = 100; i < 110; i++) {
        assert_int_equal(put(t, &s, &g, 7 * i, g.chunk_size), 0);
        assert_true(count_files() <= full);
    }
    tier_close(t);
    t = tier_open(&g, 5 * file_bytes(&g), false, false); /* over its cap at the start */
    settle(t);
    assert_true(count_files() <= 5 * file_bytes(&g) && row(t, "chunks") == 4);
    for (int i = 106; i < 110; i++) {
        assert_int_equal(get(t, &s, &g, 7 * i), 0);
        assert_true(slot_holds(&s, &g, 7 * i, g.chunk_size));
    }
    check(t);
    tier_close(t);
    slot_close(&s);
}

static void the_index_keeps_its_invariants(void **state)
{
    (void)state;
    struct disk_index x;
    uint64_t rng = 7;
    assert_int_equal(disk_index_open(&x, &fp, NULL), 0);
    assert_int_equal(disk_index_folder(&x, &fp), DISK_OWN);
    assert_int_equal(disk_index_folder(&x, &other_fp), 1);
    for (int i = 0; i < 40000; i++) {
        int folder = (int)km_random_below(&rng, 2);
        struct km_digest key = key_of((int)km_random_below(&rng, 3000));
        int32_t e = disk_index_find(&x, folder, &key);
        int64_t stamp = km_random_below(&rng, 1000000);
        if (e < 0)
            disk_index_add(&x, folder, &key, 4096 * (1 + stamp % 5), stamp % 3 ? DISK_READY : DISK_WRITING, stamp);
        else if (stamp % 3 == 0)
            disk_index_erase(&x, e);
        else
            disk_index_set(&x, e, (enum disk_state)(DISK_READY + stamp % 4), stamp);
        if (i % 997 == 0 && disk_index_check(&x))
            fail_msg("%s", disk_index_check(&x));
    }
    disk_index_doom_folder(&x, 0);
    assert_null(disk_index_check(&x));
    assert_int_equal(x.own_ready, 0);
    int64_t last = INT64_MIN;
    for (int32_t e; (e = disk_index_oldest(&x)) >= 0; disk_index_erase(&x, e)) {
        assert_true(x.entry[e].stamp >= last);
        last = x.entry[e].stamp;
    }
    assert_null(disk_index_check(&x));
    disk_index_close(&x);
}

static int set(void *c, const char *key, const char *value, struct km_err *err)
{
    for (int i = 0; i < ops->n_keys; i++)
        if (!strcmp(ops->keys[i].key, key))
            return ops->keys[i].set(c, key, value, err);
    fail_msg("there is no key %s", key);
    return 0;
}

static void configurations_are_read(void **state)
{
    (void)state;
    static const struct {
        const char *spec, *dir, *size; /* spec: an element; else two values of YAML */
        const char *described, *error;
    } t[] = {{"/data/kv:200GiB", NULL, NULL, "disk=/data/kv:200GiB", NULL},
             {"kv:1536M", NULL, NULL, "disk=kv:1536MiB", NULL},
             {"/a:b/kv:2T", NULL, NULL, "disk=/a:b/kv:2TiB", NULL},
             {"/data/kv", NULL, NULL, NULL, "needs a folder and a size"},
             {"/data/kv:", NULL, NULL, NULL, "needs a folder and a size"},
             {":5G", NULL, NULL, NULL, "needs a folder and a size"},
             {"", NULL, NULL, NULL, "needs a folder and a size"},
             {"/a:b/kv", NULL, NULL, NULL, "needs a folder and a size"},
             {"/data/kv:much", NULL, NULL, NULL, "not a size"},
             {"/data/kv:0", NULL, NULL, NULL, "between 1 byte and"},
             {"/data/kv:5000T", NULL, NULL, NULL, "between 1 byte and"},
             {NULL, "/data/kv", "10", "disk=/data/kv:10GiB", NULL},
             {NULL, "file:///data/kv/", "0.5", "disk=/data/kv/:512MiB", NULL},
             {NULL, "FILE:///d", "1e2", "disk=/d:100GiB", NULL},
             {NULL, "file://data/kv", "1", NULL, "absolute path"},
             {NULL, "redis://h", "1", NULL, "must be a folder"},
             {NULL, "true", "1", NULL, "must name a folder"},
             {NULL, "/data/kv", "many", NULL, "must be a number"},
             {NULL, "/data/kv", "-1", NULL, "must be between"},
             {NULL, "/data/kv", "0x10", NULL, "must be a number"},
             {NULL, "/data/kv", "0", NULL, "max_local_disk_size is 0"},
             {NULL, "/data/kv", NULL, NULL, "max_local_disk_size is 0"},
             {NULL, "false", "10", "", NULL},
             {NULL, "null", "10", "", NULL},
             {NULL, NULL, "10", "", NULL},
             {NULL, NULL, NULL, "", NULL}};
    for (size_t i = 0; i < sizeof t / sizeof *t; i++) {
        _Alignas(16) char config[KVC_TIER_CONFIG];
        char text[KVC_TIER_CONFIG] = "";
        struct km_err err = {0};
        bool on = false;
        ops->defaults(config);
        int rc = t[i].spec ? ops->parse(config, t[i].spec, &err) : 0;
        if (!rc && t[i].dir)
            rc = set(config, "local_disk", t[i].dir, &err);
        if (!rc && t[i].size)
            rc = set(config, "max_local_disk_size", t[i].size, &err);
        if (!rc)
            rc = ops->enabled(config, &on, &err);
        if (t[i].error && (rc != KM_EINVAL || !strstr(err.msg, t[i].error)))
            fail_msg("row %zu: %d %s", i, rc, err.msg);
        if (!t[i].error && rc)
            fail_msg("row %zu: %s", i, err.msg);
        if (on)
            ops->describe(config, text, sizeof text);
        if (!rc)
            assert_string_equal(text, t[i].described);
    }
}

static void the_plan_states_memory_and_capacity(void **state)
{
    (void)state;
    struct kvc_geometry g;
    struct kvc_tier_plan p = {0};
    struct disk_config c = {.size = (int64_t)1 << 40};
    shape(&g, 36, 1024, 16, 16);
    ops->plan(&c, &g, &p);
    assert_true(p.capacity == c.size);
    assert_true(p.host_bytes > c.size / file_bytes(&g) * 64 && p.host_bytes < 4 << 20);
}

static void impossible_folders_are_errors(void **state)
{
    (void)state;
    struct kvc_geometry g;
    struct kvc_tier *t;
    struct km_err err;
    struct disk_config c = {.size = 1 << 20};
    shape(&g, 1, 64, 16, 4);
    snprintf(c.dir, sizeof c.dir, "/proc/nothing/kv");
    assert_int_equal(ops->open(&t, &c, &g, &fp, &err), KM_EIO);
    snprintf(c.dir, sizeof c.dir, "%s", root);
    c.size = 100;
    assert_int_equal(ops->open(&t, &c, &g, &fp, &err), KM_EINVAL);
    assert_non_null(strstr(err.msg, "less than a chunk of 36 KiB"));
    c.size = 1 << 20;
    g.payload = false;
    assert_int_equal(ops->open(&t, &c, &g, &fp, &err), KM_EINVAL);
    assert_non_null(strstr(err.msg, "simulated"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(the_index_keeps_its_invariants),
        TEST(configurations_are_read),
        TEST(the_plan_states_memory_and_capacity),
        TEST(impossible_folders_are_errors),
        TEST(pieces_are_whole_or_fail),
        TEST(chunks_come_back),
        TEST(about_describes_the_geometry),
        TEST(many_in_flight),
        TEST(lookup_exists_remove_clear),
        TEST(the_oldest_are_evicted),
        TEST(a_tail_is_evicted_before_its_head),
        TEST(the_cap_covers_other_models_and_restarts),
    };
    return cmocka_run_group_tests(tests, make_root, remove_root);
}
