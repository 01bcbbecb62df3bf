/* What the tests of the disk tier share: chunks whose bytes follow from a number, one open tier with its operations,
 * and a folder in $TMPDIR or /tmp, which is emptied after every test and removed at the end. */
#ifndef KVC_DISK_RIG_H
#define KVC_DISK_RIG_H

#include "base/test/test.h"

#include "base/clock.h"
#include "base/mem.h"
#include "base/page_sum.h"
#include "base/random.h"
#include "kvcache/header.h"
#include "kvcache/tiers/disk.h"
#include "kvcache/tiers/disk_files.h"

#include <fcntl.h>
#include <ftw.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
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
static inline pid_t start_child(void)
{
    pid_t child = fork();
    is_child = !child;
    return child;
}

/* Shapes of chunks. A page has n_layers * 2 * heads * block * head_dim * 4 bytes. */
static inline void shape(struct kvc_geometry *g, int layers, int head_dim, int block, int pages)
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

static inline void slot_open(struct slot *s, const struct kvc_geometry *g, bool aligned)
{
    const size_t align = aligned && g->payload_bytes % 4096 == 0 ? 4096 : 64;
    *s = (struct slot){.header = km_aligned(4096, g->header_bytes),
                       .payload = km_aligned(4096, g->payload_bytes + 4096 + align)};
    assert_true(s->header && s->payload);
    if (align == 64)
        s->payload += 64; /* so that it is aligned to 64 bytes, but not to 4096 */
}

static inline void slot_close(struct slot *s)
{
    km_free(s->header);
    km_free((char *)((uintptr_t)s->payload / 4096 * 4096));
}

static inline struct km_digest key_of(int n)
{
    struct km_digest d;
    for (int i = 0; i < 4; i++) {
        uint64_t w = km_random_at((uint64_t)n, (uint64_t)i + 1);
        memcpy(d.b + 8 * i, &w, 8);
    }
    return d;
}

/* Fills the slot with chunk number n: its header and page sums, and a payload that depends on n. */
static inline void slot_fill(struct slot *s, const struct kvc_geometry *g, int n, int n_tokens)
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
static inline bool slot_holds(const struct slot *s, const struct kvc_geometry *g, int n, int n_tokens)
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

static inline struct kvc_tier *tier_open(const struct kvc_geometry *g, int64_t size, bool no_uring, bool no_direct)
{
    struct disk_config c = {.size = size, .no_uring = no_uring, .no_direct = no_direct};
    struct kvc_tier *t = NULL;
    struct km_err err;
    snprintf(c.dir, sizeof c.dir, "%s", root);
    if (ops->open(&t, &c, g, &fp, &err))
        DIE("%s", err.msg);
    return t;
}

static inline void tier_close(struct kvc_tier *t)
{
    const int64_t start = km_now_ns();
    if (!ops->close(t) || km_now_ns() - start > 1000000000)
        DIE("close took %lld ns", (long long)(km_now_ns() - start));
}

/* Waits for one operation; 10 seconds at most. */
static inline struct kvc_io *wait_one(struct kvc_tier *t)
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

static inline int run_io(struct kvc_tier *t, struct slot *s, enum kvc_io_kind kind)
{
    struct kvc_io *io = &s->io;
    io->kind = kind;
    ops->submit(t, &io, 1);
    if (wait_one(t) != io)
        DIE("another operation was returned");
    return io->rc;
}

static inline int put(struct kvc_tier *t, struct slot *s, const struct kvc_geometry *g, int n, int n_tokens)
{
    slot_fill(s, g, n, n_tokens);
    s->io.payload_bytes = s->header->payload_bytes;
    return run_io(t, s, KVC_PUT);
}

static inline int get(struct kvc_tier *t, struct slot *s, const struct kvc_geometry *g, int n)
{
    memset(s->header, 0xEE, g->header_bytes);
    memset(s->payload, 0xEE, g->payload_bytes);
    s->io = (struct kvc_io){.key = key_of(n), .header = s->header, .payload = s->payload,
                            .payload_bytes = g->payload_bytes};
    return run_io(t, s, KVC_GET);
}

static inline double row(struct kvc_tier *t, const char *name)
{
    struct kv_stat_row rows[KV_STAT_ROWS];
    int n = ops->stats(t, rows, KV_STAT_ROWS);
    for (int i = 0; i < n; i++)
        if (!strcmp(rows[i].name, name))
            return rows[i].value;
    DIE("there is no row %s", name);
}

static inline void check(struct kvc_tier *t)
{
    pthread_mutex_lock(&t->lock);
    const char *broken = disk_index_check(&t->index);
    pthread_mutex_unlock(&t->lock);
    if (broken)
        DIE("%s", broken);
}

/* Waits until the cleaner has nothing to do. */
static inline void settle(struct kvc_tier *t)
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

static inline char *path_of(const struct km_digest *fingerprint, int n)
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
static inline int count_file(const char *path, const struct stat *st, int type, struct FTW *f)
{
    (void)f;
    const char *dot = strrchr(path, '.');
    if (type == FTW_F && dot && !strcmp(dot, ".kv"))
        files_bytes += st->st_size;
    files_temporary += type == FTW_F && dot && !strcmp(dot, ".tmp");
    return 0;
}

/* Bytes of all chunk files below root; also counts the temporary files. */
static inline int64_t count_files(void)
{
    files_bytes = files_temporary = 0;
    nftw(root, count_file, 8, FTW_PHYS);
    return files_bytes;
}

static inline int remove_file(const char *path, const struct stat *st, int type, struct FTW *f)
{
    (void)st, (void)type;
    return f->level ? remove(path) : 0;
}

static inline int empty_root(void **state)
{
    (void)state;
    return nftw(root, remove_file, 8, FTW_DEPTH | FTW_PHYS);
}

static inline int64_t file_bytes(const struct kvc_geometry *g)
{
    return (int64_t)(g->header_bytes + (g->payload_bytes + 4095) / 4096 * 4096);
}

static inline void set_file(const char *path, const void *data, size_t n)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    assert_true(fd >= 0 && write(fd, data, n) == (ssize_t)n);
    close(fd);
}

/* Runs `body` in a child process; 77 stands for "not possible here". */
static inline void in_child(int (*body)(void))
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

static inline int make_root(void **state)
{
    (void)state;
    const char *tmp = getenv("TMPDIR");
    snprintf(root, sizeof root, "%s/kvm-disk-test.XXXXXX", tmp ? tmp : "/tmp");
    return mkdtemp(root) ? 0 : -1;
}

static inline int remove_root(void **state)
{
    empty_root(state);
    return rmdir(root);
}

#define TEST(name) cmocka_unit_test_teardown(name, empty_root)

#endif
