/* The disk tier when something goes wrong: damaged files, a full or hanging disk, a killed process, several processes
 * in one folder. Every chunk comes back whole or not at all. */
#include "kvcache/test/disk_rig.h"

#include "base/file.h"
#include "kvcache/tiers/disk_verify.h"

#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <linux/userfaultfd.h>
#include <sched.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>

static void bad_files_are_misses(void **state)
{
    (void)state;
    enum { KINDS = 10 };
    struct kvc_geometry g;
    struct slot s;
    struct km_buf whole = {0}, foreign = {0};
    char moved[600];
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
            case 7: /* the chunk itself, but behind a symbolic link */
                snprintf(moved, sizeof moved, "%s.moved", path);
                assert_int_equal(rename(path, moved), 0);
                assert_int_equal(symlink(moved, path), 0);
                break;
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
    } flips[] = {{0, KM_EFORMAT}, {50, KM_EFORMAT}, {200, KM_EFORMAT}, {4096, KM_EFORMAT},
                 {4096 + 3 * 8192, KM_EFORMAT},
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
        struct kvc_io *io = km_malloc(sizeof *io);
        *io = (struct kvc_io){.kind = KVC_GET, .key = key_of(1), .header = s.header, .payload = hole,
                              .payload_bytes = g.payload_bytes};
        ops->submit(t, &io, 1);
        usleep(50000);
        const int64_t start = km_now_ns();
        assert_false(ops->close(t));
        assert_true(km_now_ns() - start < 1000000000);
        km_free(io); /* of what belongs to the operation, the tier uses only the buffers */
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

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(a_full_disk_fails_cleanly),
        TEST(forbidden_io_uring_is_replaced_by_threads),
        TEST(failed_writes_pause_the_writing),
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
