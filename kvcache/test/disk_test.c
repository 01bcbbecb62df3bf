/* The disk tier: what is stored comes back whole or not at all, whatever happens to the files, the disk and the
 * process. The folder is made in $TMPDIR or /tmp, and removed at the end. */
#include "base/test/test.h"

#include "base/clock.h"
#include "base/file.h"
#include "base/mem.h"
#include "base/page_sum.h"
#include "base/random.h"
#include "kvcache/header.h"
#include "kvcache/tiers/disk.h"
#include "kvcache/tiers/disk_files.h"
#include "kvcache/tiers/disk_verify.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <linux/userfaultfd.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static const struct kvc_tier_ops *const ops = &kvc_tier_disk;
static char root[256];
static const struct km_digest fp = {{0xF0, 1}}, other_fp = {{0x0F, 2}};

/* Ends the test. In a child process cmocka must not go on with the next test. */
static bool is_child;
#define DIE(...)                                                                                                       \
    do {                                                                                                               \
        if (!is_child)                                                                                                 \
            fail_msg(__VA_ARGS__);                                                                                     \
        fprintf(stderr, __VA_ARGS__);                                                                                  \
        _exit(1);                                                                                                      \
    } while (0)

/* Starts a child process, as fork does. */
static pid_t start_child(void)
{
    pid_t child = fork();
    is_child = !child;
    return child;
}

/* Shapes of chunks. A page has n_layers * 2 * heads * block * head_dim * 4 bytes. */
static void shape(struct kvc_geometry *g, int layers, int head_dim, int block, int pages)
{
    struct kv_geom p = {.n_layers = layers, .n_kv_heads = 1, .head_dim = head_dim, .block_size = block,
                        .dtype = KM_F32, .layout = 1, .n_pages = 8, .rope_theta = 1e6, .numerics = "cpu-avx2"};
    p.page_bytes = (size_t)layers * 2 * (size_t)block * (size_t)head_dim * 4;
    struct km_err err;
    if (kvc_geometry_init(g, &p, block * pages, true, &err))
        DIE("%s", err.msg);
}

/* One chunk in memory, and an operation on it. */
struct slot {
    struct kvc_header *header;
    char *payload;
    struct kvc_io io;
};

static void slot_open(struct slot *s, const struct kvc_geometry *g, bool aligned)
{
    const size_t align = aligned && g->payload_bytes % 4096 == 0 ? 4096 : 64;
    *s = (struct slot){.header = km_aligned(4096, g->header_bytes),
                       .payload = km_aligned(4096, g->payload_bytes + 4096 + align)};
    assert_true(s->header && s->payload);
    if (align == 64)
        s->payload += 64; /* so that it is aligned to 64 bytes, but not to 4096 */
}

static void slot_close(struct slot *s)
{
    km_free(s->header);
    km_free((char *)((uintptr_t)s->payload / 4096 * 4096));
}

static struct km_digest key_of(int n)
{
    struct km_digest d;
    for (int i = 0; i < 4; i++) {
        uint64_t w = km_random_at((uint64_t)n, (uint64_t)i + 1);
        memcpy(d.b + 8 * i, &w, 8);
    }
    return d;
}

/* Fills the slot with chunk number n: its header and page sums, and a payload that depends on n. */
static void slot_fill(struct slot *s, const struct kvc_geometry *g, int n, int n_tokens)
{
    struct km_digest key = key_of(n);
    int32_t ids[4096];
    uint64_t word, rng = (uint64_t)n;
    for (int i = 0; i < n_tokens; i++)
        ids[i] = n + i;
    kvc_header_init(s->header, g, &fp, &key, n % 7, ids, n_tokens);
    memcpy(&word, key.b, 8);
    for (size_t i = 0; i < s->header->payload_bytes; i += 8) {
        uint64_t w = km_random_next(&rng);
        memcpy(s->payload + i, &w, 8);
    }
    for (uint32_t i = 0; i < s->header->n_pages; i++) {
        const int block = g->pool.block_size, rest = n_tokens - (int)i * block;
        kvc_header_sums(s->header)[i] =
            km_page_sum((const uint64_t *)(s->payload + i * g->pool.page_bytes), g->pool.page_bytes / 8, g->token_words,
                        (uint32_t)block, (uint32_t)(rest < block ? rest : block), km_page_sum_seed(word, i));
    }
    kvc_header_seal(s->header);
    s->io = (struct kvc_io){.key = key, .header = s->header, .payload = s->payload};
}

/* True if the slot holds chunk n of n_tokens, as slot_fill makes it. */
static bool slot_holds(const struct slot *s, const struct kvc_geometry *g, int n, int n_tokens)
{
    struct km_digest key = key_of(n);
    uint64_t rng = (uint64_t)n;
    if (kvc_header_check(s->header, g, &fp, &key, s->io.payload_bytes, NULL) ||
        s->header->n_tokens != (uint32_t)n_tokens)
        return false;
    for (size_t i = 0; i < s->io.payload_bytes; i += 8) {
        uint64_t w = km_random_next(&rng), got;
        memcpy(&got, s->payload + i, 8);
        if (got != w)
            return false;
    }
    return true;
}

static struct kvc_tier *tier_open(const struct kvc_geometry *g, int64_t size, bool no_uring, bool no_direct)
{
    struct disk_config c = {.size = size, .no_uring = no_uring, .no_direct = no_direct};
    struct kvc_tier *t = NULL;
    struct km_err err;
    snprintf(c.dir, sizeof c.dir, "%s", root);
    if (ops->open(&t, &c, g, &fp, &err))
        DIE("%s", err.msg);
    return t;
}

static void tier_close(struct kvc_tier *t)
{
    const int64_t start = km_now_ns();
    if (!ops->close(t) || km_now_ns() - start > 1000000000)
        DIE("close took %lld ns", (long long)(km_now_ns() - start));
}

/* Waits for one operation; 10 seconds at most. */
static struct kvc_io *wait_one(struct kvc_tier *t)
{
    static struct kvc_io *list;
    for (int i = 0; !list && i < 100000; i++)
        if (!(list = ops->poll(t)))
            usleep(100);
    struct kvc_io *io = list;
    if (!io)
        DIE("the tier did not answer");
    list = io->next;
    return io;
}

static int run_io(struct kvc_tier *t, struct slot *s, enum kvc_io_kind kind)
{
    struct kvc_io *io = &s->io;
    io->kind = kind;
    ops->submit(t, &io, 1);
    if (wait_one(t) != io)
        DIE("another operation was returned");
    return io->rc;
}

static int put(struct kvc_tier *t, struct slot *s, const struct kvc_geometry *g, int n, int n_tokens)
{
    slot_fill(s, g, n, n_tokens);
    s->io.payload_bytes = s->header->payload_bytes;
    return run_io(t, s, KVC_PUT);
}

static int get(struct kvc_tier *t, struct slot *s, const struct kvc_geometry *g, int n)
{
    memset(s->header, 0xEE, g->header_bytes);
    memset(s->payload, 0xEE, g->payload_bytes);
    s->io = (struct kvc_io){.key = key_of(n), .header = s->header, .payload = s->payload,
                            .payload_bytes = g->payload_bytes};
    return run_io(t, s, KVC_GET);
}

static double row(struct kvc_tier *t, const char *name)
{
    struct kv_stat_row rows[KV_STAT_ROWS];
    int n = ops->stats(t, rows, KV_STAT_ROWS);
    for (int i = 0; i < n; i++)
        if (!strcmp(rows[i].name, name))
            return rows[i].value;
    DIE("there is no row %s", name);
}

static void check(struct kvc_tier *t)
{
    pthread_mutex_lock(&t->lock);
    const char *broken = disk_index_check(&t->index);
    pthread_mutex_unlock(&t->lock);
    if (broken)
        DIE("%s", broken);
}

/* Waits until the cleaner has nothing to do. */
static void settle(struct kvc_tier *t)
{
    for (int i = 0; i < 100000; i++, usleep(100)) {
        pthread_mutex_lock(&t->lock);
        bool busy = t->evict_to >= 0;
        for (int k = 0; k < t->index.cap; k++)
            busy |= t->index.entry[k].state == DISK_DOOMED || t->index.entry[k].state == DISK_UNLINKING;
        pthread_mutex_unlock(&t->lock);
        if (!busy)
            return;
    }
    DIE("the cleaner does not end");
}

static char *path_of(const struct km_digest *fingerprint, int n)
{
    static char path[512];
    char hex[65], name[DISK_NAME];
    struct km_digest key = key_of(n);
    km_hex(fingerprint, hex);
    disk_name_final(&key, name);
    snprintf(path, sizeof path, "%s/%s/%.2s/%s", root, hex, name, name);
    return path;
}

static int64_t files_bytes, files_temporary;
static int count_file(const char *path, const struct stat *st, int type, struct FTW *f)
{
    (void)f;
    const char *dot = strrchr(path, '.');
    if (type == FTW_F && dot && !strcmp(dot, ".kv"))
        files_bytes += st->st_size;
    files_temporary += type == FTW_F && dot && !strcmp(dot, ".tmp");
    return 0;
}

/* Bytes of all chunk files below root; also counts the temporary files. */
static int64_t count_files(void)
{
    files_bytes = files_temporary = 0;
    nftw(root, count_file, 8, FTW_PHYS);
    return files_bytes;
}

static int remove_file(const char *path, const struct stat *st, int type, struct FTW *f)
{
    (void)st, (void)type;
    return f->level ? remove(path) : 0;
}

static int empty_root(void **state)
{
    (void)state;
    return nftw(root, remove_file, 8, FTW_DEPTH | FTW_PHYS);
}

static int64_t file_bytes(const struct kvc_geometry *g)
{
    return (int64_t)(g->header_bytes + (g->payload_bytes + 4095) / 4096 * 4096);
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

static void set_file(const char *path, const void *data, size_t n)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    assert_true(fd >= 0 && write(fd, data, n) == (ssize_t)n);
    close(fd);
}

static void bad_files_are_misses(void **state)
{
    (void)state;
    enum { KINDS = 10 };
    struct kvc_geometry g;
    struct slot s;
    struct km_buf whole = {0}, foreign = {0};
    shape(&g, 1, 64, 16, 4);
    slot_open(&s, &g, true);
    for (int mode = 0; mode < 2; mode++)
        for (int kind = 0; kind < KINDS; kind++) {
            struct kvc_tier *t = tier_open(&g, (int64_t)1 << 30, mode, false);
            assert_int_equal(put(t, &s, &g, 1, g.chunk_size), 0);
            assert_int_equal(put(t, &s, &g, 2, g.chunk_size), 0);
            char *path = path_of(&fp, 1);
            km_buf_clear(&whole);
            km_buf_clear(&foreign);
            assert_int_equal(km_file_read(path_of(&fp, 2), 0, &foreign, NULL), 0);
            path = path_of(&fp, 1);
            assert_int_equal(km_file_read(path, 0, &whole, NULL), 0);
            bool judged_by_header = false;
            switch (kind) {
            case 0: set_file(path, "", 0); break;
            case 1: set_file(path, whole.data, 4096); judged_by_header = true; break;
            case 2: set_file(path, whole.data, whole.len - 1); break;
            case 3: km_buf_puts(&whole, "x"); set_file(path, whole.data, whole.len); break;
            case 4:
                km_buf_put(&whole, foreign.data, 4096);
                set_file(path, whole.data, whole.len);
                break;
            case 5: set_file(path, foreign.data, foreign.len); judged_by_header = true; break;
            case 6: whole.data[40] ^= 1; set_file(path, whole.data, whole.len); judged_by_header = true; break;
            case 7: assert_int_equal(unlink(path), 0); assert_int_equal(symlink("/etc/passwd", path), 0); break;
            case 8: assert_int_equal(unlink(path), 0); break;
            case 9: assert_int_equal(unlink(path), 0); assert_int_equal(mkfifo(path, 0600), 0); break;
            }
            int rc = get(t, &s, &g, 1);
            if (kind == 8)
                assert_int_equal(rc, KM_ENOENT);
            else if (judged_by_header)
                assert_false(rc == 0 && slot_holds(&s, &g, 1, g.chunk_size));
            else
                assert_true(rc < 0);
            if (!judged_by_header) { /* the tier saw it itself, and deletes the file */
                settle(t);
                struct km_digest key = key_of(1);
                assert_int_equal(ops->lookup(t, &key, 1), 0);
                struct stat st;
                assert_int_equal(lstat(path, &st), -1);
                assert_int_equal(put(t, &s, &g, 1, g.chunk_size), 0);
                assert_int_equal(get(t, &s, &g, 1), 0);
                assert_true(slot_holds(&s, &g, 1, g.chunk_size));
            }
            assert_int_equal(get(t, &s, &g, 2), 0); /* its neighbour is well */
            assert_true(slot_holds(&s, &g, 2, g.chunk_size));
            check(t);
            tier_close(t);
            empty_root(NULL);
        }
    km_buf_free(&whole);
    km_buf_free(&foreign);
    slot_close(&s);
}

static void verify_finds_damage(void **state)
{
    (void)state;
    struct kvc_geometry g;
    struct slot s;
    struct km_err err;
    struct km_digest key = key_of(1);
    shape(&g, 1, 64, 16, 4);
    slot_open(&s, &g, true);
    struct kvc_tier *t = tier_open(&g, (int64_t)1 << 30, false, false);
    put(t, &s, &g, 1, g.chunk_size - 1);
    tier_close(t);
    int fd = open(path_of(&fp, 1), O_RDWR);
    static const struct {
        off_t at;
        int rc;
    } flips[] = {{0, KM_EFORMAT}, {50, KM_EFORMAT}, {200, KM_EFORMAT}, {4096, KM_EFORMAT}, {4096 + 3 * 8192, KM_EFORMAT},
                 {4096 + 4 * 8192 - 1, 0} /* the last token is not valid, so its bytes do not count */};
    assert_int_equal(disk_verify(root, &fp, &key, &g, &err), 0);
    for (size_t i = 0; i < sizeof flips / sizeof *flips; i++) {
        char c;
        assert_int_equal(pread(fd, &c, 1, flips[i].at), 1);
        c ^= 4;
        assert_int_equal(pwrite(fd, &c, 1, flips[i].at), 1);
        assert_int_equal(disk_verify(root, &fp, &key, &g, &err), flips[i].rc);
        c ^= 4;
        assert_int_equal(pwrite(fd, &c, 1, flips[i].at), 1);
    }
    assert_int_equal(ftruncate(fd, 8192), 0);
    assert_int_equal(disk_verify(root, &fp, &key, &g, &err), KM_EFORMAT);
    close(fd);
    key = key_of(2);
    assert_int_equal(disk_verify(root, &fp, &key, &g, &err), KM_ENOENT);
    slot_close(&s);
}

static void stale_temporaries_are_swept(void **state)
{
    (void)state;
    struct kvc_geometry g;
    struct slot s;
    struct km_digest key = key_of(1);
    char live[DISK_NAME], hex[65], dir[400], path[700];
    shape(&g, 1, 64, 16, 4);
    slot_open(&s, &g, true);
    struct kvc_tier *t = tier_open(&g, (int64_t)1 << 30, false, false);
    put(t, &s, &g, 1, g.chunk_size);
    tier_close(t);
    km_hex(&key, hex);
    snprintf(dir, sizeof dir, "%.*s", (int)(strrchr(path_of(&fp, 1), '/') - path_of(&fp, 1)), path_of(&fp, 1));
    disk_name_temporary(&key, 5, live);
    const struct {
        const char *name;
        bool stays;
    } files[] = {{live, true}, {".999999999-5-1.tmp", false}, {".1-99-1.tmp", false}, {".tmp", true},
                 {".1-1.tmp", true}, {".12-1-1.tmpx", true}, {".bak", true}};
    for (size_t i = 0; i < 7; i++) {
        snprintf(path, sizeof path, "%s/%s%s", dir, i ? hex : "", files[i].name);
        set_file(path, "x", 1);
    }
    t = tier_open(&g, (int64_t)1 << 30, false, false);
    for (size_t i = 0; i < 7; i++) {
        snprintf(path, sizeof path, "%s/%s%s", dir, i ? hex : "", files[i].name);
        if ((access(path, F_OK) == 0) != files[i].stays)
            fail_msg("%s", path);
    }
    assert_true(row(t, "chunks") == 1);
    tier_close(t);
    slot_close(&s);
}

static void foreign_files_and_links_are_left_alone(void **state)
{
    (void)state;
    struct kvc_geometry g;
    struct slot s;
    char path[400], hex[65], out[300];
    snprintf(out, sizeof out, "%s.out", root);
    shape(&g, 1, 64, 16, 4);
    slot_open(&s, &g, true);
    mkdir(out, 0700);
    snprintf(path, sizeof path, "%s/photo.jpg", root);
    set_file(path, "x", 1);
    struct kvc_tier *t = tier_open(&g, 3 * file_bytes(&g), false, false);
    km_hex(&fp, hex);
    struct km_digest key = key_of(1);
    snprintf(path, sizeof path, "%s/%s/%02x", root, hex, key.b[0]);
    assert_int_equal(symlink(out, path), 0); /* where chunk 1 would be stored */
    assert_true(put(t, &s, &g, 1, g.chunk_size) < 0);
    assert_int_equal(rmdir(out), 0); /* it is empty */
    tier_close(t);
    t = tier_open(&g, 3 * file_bytes(&g), false, false);
    for (int i = 2; i < 20; i++)
        assert_int_equal(put(t, &s, &g, i, g.chunk_size), 0);
    settle(t);
    ops->clear(t, NULL);
    tier_close(t);
    snprintf(path, sizeof path, "%s/photo.jpg", root);
    assert_int_equal(access(path, F_OK), 0);
    slot_close(&s);
}

/* A child stores chunks until it is killed. */
static void store_for_ever(const struct kvc_geometry *g, bool no_uring)
{
    enum { WINDOW = 8 };
    static struct slot s[WINDOW];
    struct kvc_tier *t = tier_open(g, (int64_t)1 << 30, no_uring, false);
    for (int i = 0; i < WINDOW; i++) {
        slot_open(&s[i], g, true);
        slot_fill(&s[i], g, i, g->chunk_size);
        s[i].io.kind = KVC_PUT;
        s[i].io.payload_bytes = g->payload_bytes;
        struct kvc_io *io = &s[i].io;
        ops->submit(t, &io, 1);
    }
    for (int n = WINDOW; n < 400; n++) {
        struct slot *one = (struct slot *)((char *)wait_one(t) - offsetof(struct slot, io));
        slot_fill(one, g, n, g->chunk_size);
        one->io.kind = KVC_PUT;
        one->io.payload_bytes = g->payload_bytes;
        struct kvc_io *io = &one->io;
        ops->submit(t, &io, 1);
    }
    pause();
}

static void kill_leaves_whole_chunks(void **state)
{
    (void)state;
    struct kvc_geometry g;
    struct slot s;
    int found = 0, swept = 0;
    shape(&g, 4, 128, 16, 4); /* 256 KiB */
    slot_open(&s, &g, true);
    for (int round = 0; round < 30; round++) {
        empty_root(NULL);
        pid_t child = start_child();
        if (!child) {
            store_for_ever(&g, round & 1);
            _exit(0);
        }
        usleep((useconds_t)(1000 + round * 1500));
        kill(child, SIGKILL);
        waitpid(child, NULL, 0);
        count_files();
        swept += files_temporary > 0;
        struct kvc_tier *t = tier_open(&g, (int64_t)1 << 30, round & 1, false);
        count_files();
        assert_int_equal(files_temporary, 0);
        assert_true(row(t, "bytes") == (double)files_bytes);
        for (int n = 0; n < 400; n++) {
            int rc = get(t, &s, &g, n);
            assert_true(rc == KM_ENOENT || (rc == 0 && slot_holds(&s, &g, n, g.chunk_size)));
            found += !rc;
        }
        assert_true(row(t, "errors") == 0);
        tier_close(t);
    }
    assert_true(found > 0 && swept > 0);
    slot_close(&s);
}

/* Runs `body` in a child process; 77 stands for "not possible here". */
static void in_child(int (*body)(void))
{
    pid_t child = start_child();
    int status;
    if (!child)
        _exit(body());
    waitpid(child, &status, 0);
    if (WIFEXITED(status) && WEXITSTATUS(status) == 77)
        skip();
    if (!WIFEXITED(status) || WEXITSTATUS(status))
        fail_msg("the child ended with status %#x", status);
}

#define CHECK(x)                                                                                                       \
    do                                                                                                                 \
        if (!(x))                                                                                                      \
            return fprintf(stderr, "line %d: %s\n", __LINE__, #x), 1;                                                  \
    while (0)

static int write_text(const char *path, const char *text)
{
    int fd = open(path, O_WRONLY);
    bool ok = fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text);
    close(fd);
    return !ok;
}

/* A file system of 4 MiB, in a mount namespace of this process. */
static int fill_a_small_disk(void)
{
    struct kvc_geometry g;
    struct slot s;
    char map[2][64];
    snprintf(map[0], sizeof map[0], "0 %d 1", (int)getuid());
    snprintf(map[1], sizeof map[1], "0 %d 1", (int)getgid());
    if (unshare(CLONE_NEWUSER | CLONE_NEWNS) || write_text("/proc/self/setgroups", "deny") ||
        write_text("/proc/self/uid_map", map[0]) || write_text("/proc/self/gid_map", map[1]) ||
        mount("none", root, "tmpfs", 0, "size=4m"))
        return 77;
    shape(&g, 1, 128, 16, 16); /* 256 KiB */
    slot_open(&s, &g, true);
    struct kvc_tier *t = tier_open(&g, (int64_t)1 << 30, false, false); /* the cap is larger than the disk */
    int rc = 0, n = 0;
    while (n < 100 && !(rc = put(t, &s, &g, n * 7, g.chunk_size)))
        n++;
    CHECK(rc == KM_ELIMIT && n > 8 && n < 17);
    CHECK(row(t, "errors") == 1);
    count_files();
    CHECK(files_temporary == 0);
    CHECK(put(t, &s, &g, 5000, g.chunk_size) == KM_ELIMIT); /* the pause: refused without a try */
    CHECK(row(t, "errors") == 1 && row(t, "refused_chunks") == 1);
    settle(t);
    CHECK(row(t, "evicted_chunks") >= 1 && row(t, "bytes") == (double)count_files());
    CHECK(get(t, &s, &g, (n - 1) * 7) == 0 && slot_holds(&s, &g, (n - 1) * 7, g.chunk_size)); /* reads go on */
    pthread_mutex_lock(&t->lock);
    t->paused_until = 0; /* as if the pause had passed */
    pthread_mutex_unlock(&t->lock);
    CHECK(put(t, &s, &g, 5000, g.chunk_size) == 0);
    CHECK(get(t, &s, &g, 5000) == 0 && slot_holds(&s, &g, 5000, g.chunk_size));
    check(t);
    tier_close(t);
    return 0;
}

static void a_full_disk_fails_cleanly(void **state)
{
    (void)state;
    in_child(fill_a_small_disk);
}

static int fail_writes(void)
{
    struct kvc_geometry g;
    struct slot s;
    shape(&g, 1, 128, 16, 16);
    slot_open(&s, &g, true);
    struct kvc_tier *t = tier_open(&g, (int64_t)1 << 30, false, false);
    CHECK(put(t, &s, &g, 1, g.chunk_size) == 0);
    struct rlimit limit = {65536, 65536};
    signal(SIGXFSZ, SIG_IGN);
    CHECK(!setrlimit(RLIMIT_FSIZE, &limit));
    CHECK(put(t, &s, &g, 2, g.chunk_size) == KM_EIO);
    for (int i = 3; i < 10; i++)
        CHECK(put(t, &s, &g, i, g.chunk_size) == KM_ELIMIT);
    CHECK(row(t, "errors") == 1 && row(t, "refused_chunks") == 7 && row(t, "chunks") == 1);
    count_files();
    CHECK(files_temporary == 0 && row(t, "bytes") == (double)files_bytes);
    CHECK(get(t, &s, &g, 1) == 0 && slot_holds(&s, &g, 1, g.chunk_size));
    CHECK(get(t, &s, &g, 2) == KM_ENOENT);
    tier_close(t);
    return 0;
}

static void failed_writes_pause_the_writing(void **state)
{
    (void)state;
    in_child(fail_writes);
}

/* Stores and reads random chunks of a few; the cap makes all processes evict. */
static int share(uint64_t rng, const struct kvc_geometry *g, int *hits)
{
    struct slot s;
    slot_open(&s, g, true);
    struct kvc_tier *t = tier_open(g, 12 * file_bytes(g), rng & 1, false);
    for (int i = 0; i < 600; i++) {
        int n = (int)km_random_below(&rng, 24), rc;
        if (km_random_below(&rng, 2)) {
            CHECK(put(t, &s, g, n, g->chunk_size) == 0);
        } else {
            rc = get(t, &s, g, n);
            CHECK(rc == KM_ENOENT || (rc == 0 && slot_holds(&s, g, n, g->chunk_size)));
            *hits += !rc;
        }
        if (i % 50 == 0)
            CHECK(!disk_scan_into(t, NULL));
    }
    CHECK(*hits > 0 && row(t, "errors") == 0);
    check(t);
    tier_close(t);
    return 0;
}

static void processes_share_a_folder(void **state)
{
    (void)state;
    enum { N = 3 };
    struct kvc_geometry g;
    pid_t child[N];
    shape(&g, 1, 64, 16, 4);
    for (int i = 0; i < N; i++) {
        int hits = 0;
        if (!(child[i] = start_child()))
            _exit(share((uint64_t)i + 1, &g, &hits));
    }
    for (int i = 0; i < N; i++) {
        int status;
        waitpid(child[i], &status, 0);
        assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    }
    struct kvc_tier *t = tier_open(&g, 12 * file_bytes(&g), false, false);
    settle(t);
    assert_true(count_files() <= 12 * file_bytes(&g) && files_temporary == 0);
    tier_close(t);
}

static void a_scan_finds_what_others_did(void **state)
{
    (void)state;
    struct kvc_geometry g;
    struct slot s;
    shape(&g, 1, 64, 16, 4);
    slot_open(&s, &g, true);
    struct kvc_tier *a = tier_open(&g, (int64_t)1 << 30, false, false);
    assert_false(disk_lock_shared(a->lock_fd));
    struct kvc_tier *b = tier_open(&g, (int64_t)1 << 30, false, false);
    assert_true(disk_lock_shared(a->lock_fd) && disk_lock_shared(b->lock_fd));
    assert_int_equal(put(a, &s, &g, 1, g.chunk_size), 0);
    assert_int_equal(get(b, &s, &g, 1), KM_ENOENT);
    assert_int_equal(disk_scan_into(b, NULL), 0);
    assert_int_equal(get(b, &s, &g, 1), 0);
    assert_true(slot_holds(&s, &g, 1, g.chunk_size));
    s.io.key = key_of(1);
    assert_int_equal(run_io(b, &s, KVC_REMOVE), 0);
    settle(b);
    assert_true(row(a, "chunks") == 1);
    assert_int_equal(disk_scan_into(a, NULL), 0);
    assert_true(row(a, "chunks") == 0 && row(a, "bytes") == 0);
    tier_close(b);
    assert_false(disk_lock_shared(a->lock_fd));
    tier_close(a);
    slot_close(&s);
}

static void close_is_quick(void **state)
{
    (void)state;
    enum { N = 64 };
    struct kvc_geometry g;
    static struct slot s[N];
    struct kvc_io *io[N];
    shape(&g, 16, 128, 16, 4); /* 1 MiB */
    for (int mode = 0; mode < 4; mode++) {
        struct kvc_tier *t = tier_open(&g, (int64_t)1 << 30, mode & 1, mode & 2);
        for (int i = 0; i < N; i++) {
            if (!mode)
                slot_open(&s[i], &g, true);
            slot_fill(&s[i], &g, i, g.chunk_size);
            s[i].io.kind = KVC_PUT;
            s[i].io.payload_bytes = g.payload_bytes;
            io[i] = &s[i].io;
        }
        ops->submit(t, io, N);
        usleep((useconds_t)mode * 2000);
        tier_close(t);
        count_files();
        assert_int_equal(files_temporary, 0);
        t = tier_open(&g, (int64_t)1 << 30, false, false);
        for (int n = 0; n < N; n++) {
            int rc = get(t, &s[0], &g, n);
            assert_true(rc == KM_ENOENT || (rc == 0 && slot_holds(&s[0], &g, n, g.chunk_size)));
        }
        tier_close(t);
    }
    for (int i = 0; i < N; i++)
        slot_close(&s[i]);
}

/* Makes io_uring_setup fail, as container runtimes do. */
static int forbid_uring(void)
{
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_io_uring_setup, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    const struct sock_fprog filter = {sizeof code / sizeof *code, code};
    struct kvc_geometry g;
    struct slot s;
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter))
        return 77;
    shape(&g, 1, 64, 16, 4);
    slot_open(&s, &g, true);
    struct kvc_tier *t = tier_open(&g, 1 << 20, false, false);
    CHECK(row(t, "io_uring") == 0);
    CHECK(put(t, &s, &g, 1, g.chunk_size) == 0);
    CHECK(get(t, &s, &g, 1) == 0 && slot_holds(&s, &g, 1, g.chunk_size));
    tier_close(t);
    return 0;
}

static void forbidden_io_uring_is_replaced_by_threads(void **state)
{
    (void)state;
    in_child(forbid_uring);
}

/* A read hangs in the kernel, as on a disk that does not answer: its buffer is memory whose page faults nobody
 * resolves. */
static void close_leaves_a_hanging_read(void **state)
{
    (void)state;
    struct kvc_geometry g;
    struct slot s;
    shape(&g, 1, 64, 16, 4);
    slot_open(&s, &g, true);
    int fault = (int)syscall(SYS_userfaultfd, O_CLOEXEC);
    struct uffdio_api api = {.api = UFFD_API};
    char *hole = mmap(NULL, g.payload_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    struct uffdio_register area = {.range = {(uintptr_t)hole, g.payload_bytes}, .mode = UFFDIO_REGISTER_MODE_MISSING};
    struct uffdio_zeropage fill = {.range = area.range};
    if (fault < 0 || ioctl(fault, UFFDIO_API, &api) || ioctl(fault, UFFDIO_REGISTER, &area))
        skip(); /* not allowed here */
    for (int mode = 0; mode < 2; mode++) {
        const int64_t before = km_mem_stats(KM_MEM_HOST).current;
        struct kvc_tier *t = tier_open(&g, 1 << 20, mode, false);
        assert_int_equal(put(t, &s, &g, 1, g.chunk_size), 0);
        struct kvc_io io = {.kind = KVC_GET, .key = key_of(1), .header = s.header, .payload = hole,
                            .payload_bytes = g.payload_bytes}, *list = &io;
        ops->submit(t, &list, 1);
        usleep(50000);
        const int64_t start = km_now_ns();
        assert_false(ops->close(t));
        assert_true(km_now_ns() - start < 1000000000);
        assert_int_equal(ioctl(fault, UFFDIO_ZEROPAGE, &fill), 0); /* the disk answers */
        for (int i = 0; i < 10000 && km_mem_stats(KM_MEM_HOST).current != before; i++)
            usleep(1000);
        assert_int_equal(km_mem_stats(KM_MEM_HOST).current, before); /* the thread has freed the tier */
        madvise(hole, g.payload_bytes, MADV_DONTNEED);
    }
    close(fault);
    munmap(hole, g.payload_bytes);
    slot_close(&s);
}

static void failed_allocations_are_errors(void **state)
{
    (void)state;
    struct kvc_geometry g;
    struct slot s;
    struct disk_config c = {.size = 1 << 30};
    snprintf(c.dir, sizeof c.dir, "%s", root);
    shape(&g, 1, 64, 16, 4);
    slot_open(&s, &g, true);
    const int64_t before = km_mem_stats(KM_MEM_HOST).current;
    bool opened = false;
    for (int n = 1; !opened; n++) {
        struct kvc_tier *t = NULL;
        km_mem_fail_at(n);
        int rc = ops->open(&t, &c, &g, &fp, NULL);
        km_mem_fail_at(0);
        if (!rc) {
            opened = n > 5 && n < 200;
            assert_int_equal(put(t, &s, &g, n, g.chunk_size), 0);
            assert_int_equal(get(t, &s, &g, n), 0);
            assert_true(slot_holds(&s, &g, n, g.chunk_size));
            tier_close(t);
        }
        assert_true(n < 200);
    }
    assert_int_equal(km_mem_stats(KM_MEM_HOST).current, before);
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
        assert_true(ops->config_bytes <= sizeof config);
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

static int make_root(void **state)
{
    (void)state;
    const char *tmp = getenv("TMPDIR");
    snprintf(root, sizeof root, "%s/kvm-disk-test.XXXXXX", tmp ? tmp : "/tmp");
    return mkdtemp(root) ? 0 : -1;
}

static int remove_root(void **state)
{
    empty_root(state);
    return rmdir(root);
}

#define TEST(name) cmocka_unit_test_teardown(name, empty_root)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(the_index_keeps_its_invariants),
        TEST(configurations_are_read),
        TEST(the_plan_states_memory_and_capacity),
        TEST(impossible_folders_are_errors),
        TEST(a_full_disk_fails_cleanly),
        TEST(forbidden_io_uring_is_replaced_by_threads),
        TEST(failed_writes_pause_the_writing),
        TEST(chunks_come_back),
        TEST(about_describes_the_geometry),
        TEST(many_in_flight),
        TEST(lookup_exists_remove_clear),
        TEST(the_oldest_are_evicted),
        TEST(a_tail_is_evicted_before_its_head),
        TEST(the_cap_covers_other_models_and_restarts),
        TEST(bad_files_are_misses),
        TEST(verify_finds_damage),
        TEST(stale_temporaries_are_swept),
        TEST(foreign_files_and_links_are_left_alone),
        TEST(kill_leaves_whole_chunks),
        TEST(processes_share_a_folder),
        TEST(a_scan_finds_what_others_did),
        TEST(close_is_quick),
        TEST(close_leaves_a_hanging_read),
        TEST(failed_allocations_are_errors),
    };
    return cmocka_run_group_tests(tests, make_root, remove_root);
}
