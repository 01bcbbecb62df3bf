/* The cache with the engine on the CPU when something goes wrong: damaged chunks, files that others change, a full disk,
 * several users of one folder, killed writers, and a tier that never answers. Every answer equals that of an engine
 * without a cache bit for bit, and what was wrong is counted.
 *
 * The program starts itself as a child: `kvc_engine_fault_test child FOLDER SEED ROUNDS` uses the disk tier in FOLDER
 * and exits with 1 if an answer is wrong. ROUNDS 0: until it is killed. */
#include "kvcache/test/engine_rig.h"

#include "base/clock.h"
#include "base/random.h"
#include "engine/planner.h"
#include "kvcache/internal.h"
#include "kvcache/test/fake_tier.h"
#include "kvcache/tiers/disk_config.h"
#include "kvcache/tiers/disk_files.h"

#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

enum { TEXTS = 4, LONG = 700, CHUNK = 64, N_OUT = 4 };
static const int lengths[] = {64, 65, 130, 192, 300, 513, 640};
enum { N_LENGTHS = sizeof lengths / sizeof *lengths, LEN = 6 /* the usual one, of 640 tokens */ };

static struct mdl *model;
static int32_t text[TEXTS][LONG];
static struct er_job reference[TEXTS][N_LENGTHS];

/* A cache and an engine that uses it. */
struct bed {
    struct kvc_config cfg;
    struct kvc *k;
    struct kv_port port;
    struct eng *e;
};

static struct er_opts engine_opts(int planner)
{
    return (struct er_opts){.blocks = 128, .batched = 512, .max_len = LONG + 64, .seqs = 4, .dtype = KM_F32,
                            .planner = planner, .threads = 1};
}

/* slots 0: no DRAM, and host memory for staging of 8 chunks. dir NULL: no disk. */
static struct kvc_config config(int slots, const char *dir, int64_t disk_bytes)
{
    struct kvc_config c = kvc_defaults();
    c.chunk_size = CHUNK;
    c.local_cpu = slots > 0;
    c.max_local_cpu = er_host_bytes(model, KM_F32, CHUNK, slots ? slots : 8);
    if (dir) {
        struct disk_config disk = {.size = disk_bytes};
        snprintf(disk.dir, sizeof disk.dir, "%s", dir);
        c.tier[0].ops = &kvc_tier_disk;
        memcpy(c.tier[0].config, &disk, sizeof disk);
        c.n_tiers = 1;
    }
    return c;
}

static void bed_open(struct bed *b, struct kvc_config c, const struct mdl *m, int planner)
{
    struct km_err err = {0};
    b->cfg = c;
    if (kvc_open(&b->k, &c, &err) || kvc_port(b->k, &b->port, &err))
        fail_msg("%s", err.msg);
    b->e = er_engine(m, &b->port, engine_opts(planner));
    assert_true(kvc_settle(b->k, 60));
}

static void bed_close(struct bed *b)
{
    assert_true(kvc_settle(b->k, 60));
    er_stats(b->k, &b->port);
    eng_close(b->e);
    kvc_free(b->k);
}

static struct er_job job(int v, int len)
{
    return (struct er_job){.prompt = text[v], .n = lengths[len], .n_out = N_OUT};
}

/* Runs the prompt, and returns the tokens of it that were cached. */
static int ask(struct bed *b, int v, int len)
{
    struct er_job a = job(v, len);
    er_run_one(b->e, &a);
    er_check_same(&reference[v][len], &a);
    assert_true(kvc_settle(b->k, 60));
    return a.cached;
}

/* Stores text v; a small host memory stores some of its chunks each time. */
static void fill(struct bed *b, int v)
{
    int i = 0;
    while (ask(b, v, LEN) < 639)
        assert_true(++i < 12);
}

static struct kv_port_stats stats(struct bed *b)
{
    return er_stats(b->k, &b->port);
}

/* Chunk 3 of ten is damaged in host memory: in its payload, in a page's checksum, in a token id, and in the checksum of
 * the header. */
static void damage_in_memory_is_found(void **state)
{
    (void)state;
    enum { PAYLOAD, SUM, ID, KINDS };
    for (int kind = 0; kind < KINDS; kind++) {
        struct bed b;
        bed_open(&b, config(20, NULL, 0), model, PLN_LOAD);
        assert_int_equal(ask(&b, 0, LEN), 0);
        assert_int_equal(ask(&b, 0, LEN), 639);
        const struct km_digest key = er_key(b.k, NULL, text[0], 640, 3);
        pthread_mutex_lock(&b.k->lock);
        const int slot = kvc_chunks_find(&b.k->chunks, &key);
        struct kvc_header *h = kvc_pool_header(b.k->pool, slot);
        if (kind == PAYLOAD)
            kvc_pool_payload(b.k->pool, slot)[12345] ^= 4;
        else if (kind == SUM)
            kvc_header_sums(h)[2] ^= 4;
        else
            kvc_header_ids(h)[17] ^= 4;
        pthread_mutex_unlock(&b.k->lock);
        /* Of a load, the larger side remains; a lookup stops at the first chunk that it misses. */
        assert_int_equal(ask(&b, 0, LEN), kind == ID ? 3 * CHUNK : 639 - 4 * CHUNK);
        const struct kv_port_stats st = stats(&b);
        assert_int_equal(st.corrupt_chunks, 1);
        assert_int_equal(st.failed_loads, kind != ID);
        assert_int_equal(ask(&b, 0, LEN), 639); /* it was stored again */
        assert_int_equal(stats(&b).corrupt_chunks, 1);
        bed_close(&b);
    }
}

/* The path of the file of one chunk of text v. */
static void file_of(struct bed *b, const char *dir, int v, int chunk, char out[600])
{
    char hex[65], name[DISK_NAME];
    const struct km_digest key = er_key(b->k, NULL, text[v], 640, chunk);
    km_hex(&b->k->keys.fingerprint, hex);
    disk_name_final(&key, name);
    snprintf(out, 600, "%s/%s/%.2s/%s", dir, hex, name, name);
}

static void flip(const char *path, off_t at)
{
    int fd = open(path, O_RDWR);
    char c;
    assert_true(fd >= 0);
    assert_int_equal(pread(fd, &c, 1, at), 1);
    c ^= 16;
    assert_int_equal(pwrite(fd, &c, 1, at), 1);
    close(fd);
}

/* Chunk 3 of ten of the disk's files is damaged, gone, short, or another chunk's. */
static void bad_files_change_no_answer(void **state)
{
    (void)state;
    enum { HEADER, SUMS, PAYLOAD, SHORT, EMPTY, GONE, OTHER, KINDS };
    for (int kind = 0; kind < KINDS; kind++)
        for (int restart = 0; restart < 2; restart++) {
            struct bed b;
            char dir[256], path[600], other[600], command[1300];
            er_folder(dir);
            bed_open(&b, config(0, dir, 1 << 30), model, PLN_LOAD);
            fill(&b, 0);
            fill(&b, 1);
            file_of(&b, dir, 0, 3, path);
            file_of(&b, dir, 1, 3, other);
            if (restart)
                bed_close(&b);
            snprintf(command, sizeof command, "cp %s %s", other, path);
            switch (kind) {
            case HEADER: flip(path, 100); break;
            case SUMS: flip(path, sizeof(struct kvc_header) + 9); break;
            case PAYLOAD: flip(path, 4096 + 5000); break;
            case SHORT: assert_int_equal(truncate(path, 8192), 0); break;
            case EMPTY: assert_int_equal(truncate(path, 0), 0); break;
            case GONE: assert_int_equal(unlink(path), 0); break;
            default: assert_int_equal(system(command), 0);
            }
            if (restart)
                bed_open(&b, config(0, dir, 1 << 30), model, PLN_LOAD);
            const int got = ask(&b, 0, LEN);
            const struct kv_port_stats st = stats(&b);
            if (restart && got == 3 * CHUNK) { /* the scan of the folder left the file out */
                assert_true(kind == SHORT || kind == EMPTY || kind == GONE);
                assert_int_equal(st.failed_loads, 0);
            } else {
                assert_int_equal(got, 639 - 4 * CHUNK);
                assert_int_equal(st.failed_loads, 1);
                const bool judged = kind != EMPTY && kind != GONE; /* by the layer, not by the disk tier */
                assert_int_equal(st.corrupt_chunks, judged);
            }
            fill(&b, 0); /* it was stored again */
            assert_int_equal(stats(&b).failed_loads, st.failed_loads);
            bed_close(&b);
            er_remove(dir);
        }
}

/* All files vanish while the tier is open; then an engine of another model uses the folder. */
static void files_vanish_and_models_differ(void **state)
{
    (void)state;
    struct bed b;
    char dir[256], path[600];
    er_folder(dir);
    bed_open(&b, config(0, dir, 1 << 30), model, PLN_LOAD);
    fill(&b, 0);
    for (int c = 0; c < 10; c++) {
        file_of(&b, dir, 0, c, path);
        assert_int_equal(unlink(path), 0);
    }
    assert_int_equal(ask(&b, 0, LEN), 0);
    assert_int_equal(stats(&b).failed_loads, 1);
    fill(&b, 0);
    bed_close(&b);

    struct mdl *other = er_dummy_model(8);
    struct er_job want = job(0, LEN), a = want;
    struct eng *plain = er_engine(other, NULL, engine_opts(PLN_LOAD));
    er_run_one(plain, &want);
    eng_close(plain);
    bed_open(&b, config(0, dir, 1 << 30), other, PLN_LOAD);
    er_run_one(b.e, &a);
    er_check_same(&want, &a);
    assert_int_equal(a.cached, 0);
    assert_int_equal(stats(&b).hit_tokens, 0);
    bed_close(&b);
    mdl_free(other);
    er_remove(dir);
}

/* A disk without space: a file system of 256 KiB, or a cap of three chunks. */
static void a_full_disk_changes_no_answer(void **state)
{
    (void)state;
    for (int cap = 0; cap < 2; cap++) {
        char dir[256];
        er_folder(dir);
        if (!cap && mount("kvmark", dir, "tmpfs", 0, "size=256k")) {
            printf("no file system can be mounted; only the cap is tested\n");
            er_remove(dir);
            continue;
        }
        struct bed b;
        bed_open(&b, config(0, dir, cap ? 3 * 41000 : 1 << 30), model, PLN_LOAD);
        int64_t hits = 0;
        for (int turn = 0; turn < 4; turn++)
            for (int v = 0; v < TEXTS; v++)
                hits += ask(&b, v, turn + 2) + ask(&b, v, turn);
        const struct kv_port_stats st = stats(&b);
        assert_true(hits > 0);
        if (cap)
            assert_true(er_row(&st, "disk", "bytes") <= 3 * 41000 && er_row(&st, "disk", "evicted_chunks") > 0);
        else
            assert_true(er_row(&st, "disk", "failures") > 0);
        bed_close(&b);
        if (!cap)
            assert_int_equal(umount(dir), 0);
        er_remove(dir);
    }
}

/* Uses the disk tier in a folder for some rounds, with a mix of prompts; returns the tokens that were loaded. */
static int64_t use_folder(const char *dir, uint64_t seed, int rounds)
{
    int64_t loaded = 0;
    for (int r = 0; !rounds || r < rounds; r++) {
        struct bed b;
        bed_open(&b, config(r % 2 ? 6 : 0, dir, 30 * 41000), model, r % 3 ? PLN_LOAD : PLN_AUTO);
        for (int i = 0; i < 6; i++) {
            struct er_job a[3], *at[3];
            int v[3], len[3];
            for (int j = 0; j < 3; j++) {
                v[j] = (int)(km_random_next(&seed) % TEXTS);
                len[j] = (int)(km_random_next(&seed) % N_LENGTHS);
                a[j] = job(v[j], len[j]);
                at[j] = &a[j];
            }
            er_run(b.e, at, 3, NULL, NULL);
            for (int j = 0; j < 3; j++)
                er_check_same(&reference[v[j]][len[j]], &a[j]);
        }
        loaded += stats(&b).loaded_tokens;
        bed_close(&b);
    }
    return loaded;
}

struct user {
    pthread_t thread;
    const char *dir;
    uint64_t seed;
    int64_t loaded;
};

static void *use(void *arg)
{
    struct user *u = arg;
    u->loaded = use_folder(u->dir, u->seed, 4);
    return NULL;
}

static pid_t start_child(const char *dir, int seed, int rounds)
{
    char s[16], r[16], child[] = "child", self[] = "/proc/self/exe", folder[256];
    snprintf(folder, sizeof folder, "%s", dir);
    snprintf(s, sizeof s, "%d", seed);
    snprintf(r, sizeof r, "%d", rounds);
    char *argv[] = {self, child, folder, s, r, NULL};
    pid_t pid;
    posix_spawn_file_actions_t quiet;
    posix_spawn_file_actions_init(&quiet);
    posix_spawn_file_actions_addopen(&quiet, STDOUT_FILENO, "/dev/null", O_WRONLY, 0);
    assert_int_equal(posix_spawn(&pid, self, &quiet, NULL, argv, environ), 0);
    posix_spawn_file_actions_destroy(&quiet);
    return pid;
}

/* Two stores in this process and one in another one use a folder whose cap evicts all the time. */
static void stores_share_a_folder(void **state)
{
    (void)state;
    char dir[256];
    er_folder(dir);
    struct user u[2] = {{.dir = dir, .seed = 1}, {.dir = dir, .seed = 2}};
    const pid_t child = start_child(dir, 3, 4);
    for (int i = 0; i < 2; i++)
        assert_int_equal(pthread_create(&u[i].thread, NULL, use, &u[i]), 0);
    for (int i = 0; i < 2; i++)
        pthread_join(u[i].thread, NULL);
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status) && !WEXITSTATUS(status));
    assert_true(u[0].loaded > 0 && u[1].loaded > 0);
    er_remove(dir);
}

/* Writers are killed at any time; what they leave is used. */
static void killed_writers_leave_whole_chunks(void **state)
{
    (void)state;
    char dir[256];
    uint64_t rng = 99;
    int64_t loaded = 0;
    er_folder(dir);
    for (int i = 0; i < 12; i++) {
        const pid_t child = start_child(dir, 100 + i, 0);
        usleep(150000 + (useconds_t)(km_random_next(&rng) % 400000));
        int status;
        kill(child, SIGKILL);
        assert_int_equal(waitpid(child, &status, 0), child);
        assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
        struct bed b;
        bed_open(&b, config(0, dir, 30 * 41000), model, PLN_LOAD);
        for (int v = 0; v < TEXTS; v++)
            loaded += ask(&b, v, LEN - i % 3);
        assert_int_equal(stats(&b).corrupt_chunks, 0);
        assert_int_equal(stats(&b).failed_loads, 0);
        bed_close(&b);
    }
    assert_true(loaded > 0);
    er_remove(dir);
}

struct pair {
    struct er_job a, b;
    int64_t start, a_ns, b_ns; /* from the start to the end; 0: not ended yet */
};

static void watch(void *arg)
{
    struct pair *p = arg;
    if (!p->a_ns && p->a.got == p->a.n_out)
        p->a_ns = km_now_ns() - p->start;
    if (!p->b_ns && p->b.got == p->b.n_out)
        p->b_ns = km_now_ns() - p->start;
}

/* Text 0 is in a tier that does not answer any more. Text 1 is answered meanwhile. */
static void a_tier_that_never_answers(void **state)
{
    (void)state;
    for (int kind = 0; kind < 3; kind++) { /* an index and the planners load and auto; no index */
        static struct fake_tier tier;
        struct bed b;
        fake_tier_init(&tier, kind < 2);
        struct kvc_config c = config(0, NULL, 0);
        c.max_local_cpu = er_host_bytes(model, KM_F32, CHUNK, 40);
        fake_tier_config(&tier, &c.tier[c.n_tiers++]);
        bed_open(&b, c, model, kind == 1 ? PLN_AUTO : PLN_LOAD);
        assert_int_equal(ask(&b, 0, LEN), 0);
        for (int i = 0; i < 4 && fake_tier_count(&tier) < 10; i++)
            ask(&b, 0, LEN);
        assert_int_equal(fake_tier_count(&tier), 10);
        pthread_mutex_lock(&tier.lock);
        tier.silent = true;
        pthread_mutex_unlock(&tier.lock);
        struct pair p = {.a = job(0, LEN), .b = job(1, 4), .start = km_now_ns()};
        p.b.submit_at = 1;
        struct er_job *at[] = {&p.a, &p.b};
        er_run(b.e, at, 2, watch, &p);
        watch(&p);
        const double a_s = (double)p.a_ns / 1e9, b_s = (double)p.b_ns / 1e9;
        er_check_same(&reference[0][LEN], &p.a);
        er_check_same(&reference[1][4], &p.b);
        assert_int_equal(p.a.cached, 0);
        printf("a silent tier (%s): the request that it holds took %.2f s, another one %.2f s\n",
               kind == 0 ? "planner load" : kind == 1 ? "planner auto" : "without an index", a_s, b_s);
        assert_true(b_s < (kind < 2 ? 1 : 3) && a_s < (kind == 0 ? 9 : kind == 1 ? 1 : 3));
        /* Without an index every request asks the tier, and waits a second at most, until four have waited in vain. */
        for (int i = 0; kind == 2 && i < 3; i++)
            ask(&b, 2, i);
        struct er_job next = job(3, 0);
        const int64_t asked = km_now_ns();
        er_run_one(b.e, &next);
        assert_true(km_now_ns() - asked < 500000000);
        er_check_same(&reference[3][0], &next);
        /* Another one, which the engine leaves behind when it closes. */
        struct er_job left = job(0, LEN);
        struct eng_events ev;
        struct eng_request r = {.prompt = left.prompt, .n_prompt = left.n, .max_tokens = 1,
                                .sampling = smp_defaults(), .user = &left};
        uint64_t id;
        assert_int_equal(eng_submit(b.e, &r, &id, NULL), 0);
        for (int i = 0; i < 3; i++)
            assert_int_equal(eng_step(b.e, &ev, NULL), 0);
        const int64_t start = km_now_ns();
        eng_close(b.e);
        assert_true(km_now_ns() - start < 2000000000);
        pthread_mutex_lock(&tier.lock);
        tier.silent = false; /* so that the memory can be freed */
        pthread_mutex_unlock(&tier.lock);
        usleep(50000);
        assert_true(kvc_settle(b.k, 10));
        kvc_free(b.k);
        fake_tier_free(&tier);
    }
}

static void prepare(void)
{
    uint64_t rng = 5;
    model = er_dummy_model(7);
    for (int v = 0; v < TEXTS; v++)
        for (int i = 0; i < LONG; i++)
            text[v][i] = (int32_t)(km_random_next(&rng) % 500);
    struct eng *plain = er_engine(model, NULL, engine_opts(PLN_LOAD));
    for (int v = 0; v < TEXTS; v++)
        for (int i = 0; i < N_LENGTHS; i++) {
            reference[v][i] = job(v, i);
            er_run_one(plain, &reference[v][i]);
        }
    eng_close(plain);
}

/* Whether the answers of a child are right; cmocka runs it as a test, so that a failure ends it. */
static char **child_argv;
static void child(void **state)
{
    (void)state;
    use_folder(child_argv[2], (uint64_t)atoi(child_argv[3]), atoi(child_argv[4]));
}

int main(int argc, char **argv)
{
    prepare();
    const struct CMUnitTest as_child[] = {cmocka_unit_test(child)};
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(damage_in_memory_is_found),
        cmocka_unit_test(bad_files_change_no_answer),
        cmocka_unit_test(files_vanish_and_models_differ),
        cmocka_unit_test(a_full_disk_changes_no_answer),
        cmocka_unit_test(stores_share_a_folder),
        cmocka_unit_test(killed_writers_leave_whole_chunks),
        cmocka_unit_test(a_tier_that_never_answers),
    };
    child_argv = argv;
    int rc;
    if (argc == 5 && !strcmp(argv[1], "child")) {
        rc = cmocka_run_group_tests(as_child, NULL, NULL);
    } else
        rc = cmocka_run_group_tests(tests, NULL, NULL);
    mdl_free(model);
    return rc;
}
