/* kvmark info: what this machine is, and the limits that any result on it lives under, measured now; or, with --plan,
 * where an engine's memory would go. */
#include "base/clock.h"
#include "base/file.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/sort.h"
#include "engine/backend.h"
#include "engine/rates.h"
#include "harness/cli/cmd.h"
#include "harness/cli/host.h"
#include "harness/cli/plan.h"
#include "harness/run/env.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <netinet/in.h>
#include <pthread.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum { REPEATS = 5, MIB = 1 << 20 };

/* Median of a few runs of one probe; each returns a rate, or <0 when it cannot run here. */
static double median_rate(double (*probe)(void))
{
    double v[REPEATS];
    for (int i = 0; i < REPEATS; i++)
        if ((v[i] = probe()) < 0)
            return -1;
    km_sort_doubles(v, REPEATS);
    return km_percentile(v, REPEATS, 0.5);
}

static double seconds_since(int64_t t0)
{
    return (double)(km_now_ns() - t0) / 1e9;
}

/* GFLOP/s of the CPU engine itself: one prefill step of a small preset, by the model's arithmetic. */
static double probe_prefill(void)
{
    enum { T = 1024, BLOCK = 16 };
    struct be_opts o = {
        .dtype = KM_F32, .block_size = BLOCK, .n_pages = T / BLOCK, .max_tokens = T, .max_reqs = 1, .max_model_len = T};
    struct mdl *m = NULL;
    struct be *be = NULL;
    struct kv_geom geom;
    int32_t tokens[T], positions[T], slots[T], blocks[T / BLOCK], q_start[2] = {0, T}, len = T,
            table_start[2] = {0, T / BLOCK};
    for (int i = 0; i < T; i++) {
        tokens[i] = 1 + i * 7 % 4000;
        positions[i] = slots[i] = i;
        blocks[i / BLOCK] = i / BLOCK;
    }
    struct batch b = {.n_tokens = T,
                      .tokens = tokens,
                      .positions = positions,
                      .slots = slots,
                      .n_reqs = 1,
                      .q_start = q_start,
                      .kv_len = &len,
                      .table_start = table_start,
                      .block_table = blocks};
    double rate = -1;
    uint64_t ticket;
    if (!mdl_open(&m, "qwen3-tiny", true, 0, NULL) && !be_cpu.open(&be, &o, m, &geom, NULL)) {
        struct be_stats st;
        int64_t t0 = km_now_ns();
        if (!be_cpu.step(be, &b, &ticket, NULL) && !be_cpu.wait(be, ticket, NULL, NULL)) {
            double s = seconds_since(t0);
            be_cpu.stats(be, &st);
            rate = st.flops / s / 1e9;
        }
    }
    if (be)
        be_cpu.close(be);
    mdl_free(m);
    return rate;
}

/* GB/s of memcpy over a buffer far larger than the caches, one thread; bytes copied, not bytes moved. */
static double probe_memcpy(void)
{
    size_t size = 256 * (size_t)MIB;
    char *a = km_malloc(size), *b = km_malloc(size);
    double rate = -1;
    if (a && b) {
        memset(a, 1, size);
        memset(b, 2, size);
        int64_t t0 = km_now_ns();
        memcpy(b, a, size);
        rate = (double)size / seconds_since(t0) / 1e9;
    }
    km_free(a);
    km_free(b);
    return rate;
}

/* GB/s written to a new file in the working directory and synced. */
static double probe_disk(void)
{
    char name[] = "kvmark-info-XXXXXX";
    int fd = mkostemp(name, O_CLOEXEC);
    char *block = km_calloc(4, MIB);
    double rate = -1;
    if (fd >= 0 && block) {
        int64_t t0 = km_now_ns();
        int n = 0;
        while (n < 32 && write(fd, block, 4 * MIB) == 4 * MIB)
            n++;
        if (n == 32 && !fsync(fd))
            rate = 32.0 * 4 * MIB / seconds_since(t0) / 1e9;
    }
    if (fd >= 0) {
        unlink(name);
        close(fd);
    }
    km_free(block);
    return rate;
}

static void *drain(void *arg)
{
    int fd = *(int *)arg;
    char *block = km_malloc(MIB);
    while (block && read(fd, block, MIB) > 0)
        ;
    km_free(block);
    return NULL;
}

static int loopback_pair(int fd[2])
{
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof a;
    int l = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    fd[0] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    fd[1] = -1;
    if (l >= 0 && fd[0] >= 0 && !bind(l, (struct sockaddr *)&a, len) && !listen(l, 1) &&
        !getsockname(l, (struct sockaddr *)&a, &len) && !connect(fd[0], (struct sockaddr *)&a, len))
        fd[1] = accept(l, NULL, NULL);
    close(l);
    return fd[1] >= 0 ? 0 : -1;
}

/* GB/s through one TCP connection on loopback. */
static double probe_loopback(void)
{
    int fd[2];
    char *block = km_calloc(1, MIB);
    double rate = -1;
    pthread_t t;
    if (block && !loopback_pair(fd) && !pthread_create(&t, NULL, drain, &fd[1])) {
        int64_t t0 = km_now_ns();
        int n = 0;
        while (n < 256 && write(fd[0], block, MIB) == MIB)
            n++;
        shutdown(fd[0], SHUT_WR);
        pthread_join(t, NULL);
        rate = n == 256 ? 256.0 * MIB / seconds_since(t0) / 1e9 : -1;
        close(fd[0]);
        close(fd[1]);
    }
    km_free(block);
    return rate;
}

static const struct {
    const char *key, *what, *unit;
    double (*probe)(void);
} limits[] = {
    {"cpu_prefill_gflops", "the CPU engine, 1,024 tokens of qwen3-tiny, float32", "GFLOP/s", probe_prefill},
    {"memcpy_gbps", "memcpy, one thread", "GB/s", probe_memcpy},
    {"loopback_gbps", "TCP on loopback, one connection", "GB/s", probe_loopback},
    {"disk_write_gbps", "file write and fsync, this folder", "GB/s", probe_disk},
};

/* What the card gives, in the order of `struct rates`. */
static const struct {
    const char *key, *what, *unit;
    size_t at;
} card_limits[] = {
    {"card_copy_gbps", "the card's memory, read plus written", "GB/s", offsetof(struct rates, copy_gbps)},
    {"to_card_gbps", "pinned memory to the card", "GB/s", offsetof(struct rates, h2d_gbps)},
    {"to_host_gbps", "the card to pinned memory", "GB/s", offsetof(struct rates, d2h_gbps)},
    {"gemm_tflops", "cuBLASLt, bf16, 4096 x 4096 x 4096", "TFLOP/s", offsetof(struct rates, gemm_tflops)},
};
enum { CARD_LIMITS = sizeof card_limits / sizeof *card_limits };

struct info_opts {
    bool json, plan;
    struct host_opts engine; /* for the plan */
};

enum { OWN_FLAGS = 2, MAX_FLAGS = 64 };

static int info_flags(struct info_opts *o, struct km_flag *out, int max)
{
    const struct km_flag own[OWN_FLAGS] = {
        {"json", 0, KM_BOOL, &o->json, NULL, "one JSON object instead of lines", 0, 0},
        {"plan", 0, KM_BOOL, &o->plan, NULL, "where the memory of an engine with serve's flags would go", 0, 0}};
    o->engine = host_defaults();
    for (int i = 0; i < OWN_FLAGS && i < max; i++)
        out[i] = own[i];
    return max <= OWN_FLAGS ? max : OWN_FLAGS + host_flags(&o->engine, out + OWN_FLAGS, max - OWN_FLAGS);
}

static struct info_opts shown; /* for help only: the table needs somewhere to point */

static int flags(struct km_flag *out, int max)
{
    return info_flags(&shown, out, max);
}

/* Groups as headings, members as lines; arrays of words on one line. */
static void print_lines(const cJSON *group, int depth)
{
    const cJSON *item, *word;
    cJSON_ArrayForEach(item, group)
    {
        printf("%*s%s%*s", 2 * depth, "", item->string,
               cJSON_IsObject(item) ? 0 : 28 - 2 * depth - (int)strlen(item->string), "");
        if (cJSON_IsString(item))
            fputs(item->valuestring, stdout);
        else if (cJSON_IsNumber(item))
            printf(item->valuedouble == floor(item->valuedouble) ? "%.0f" : "%.4g", item->valuedouble);
        else if (cJSON_IsBool(item))
            fputs(cJSON_IsTrue(item) ? "yes" : "no", stdout);
        else if (cJSON_IsNull(item))
            fputs("-", stdout);
        const cJSON *words = cJSON_IsArray(item) ? item : NULL;
        cJSON_ArrayForEach(word, words)
        {
            printf("%s ", cJSON_IsString(word) ? word->valuestring : "");
        }
        putchar('\n');
        if (cJSON_IsObject(item))
            print_lines(item, depth + 1);
    }
}

static void print(const cJSON *v, bool json)
{
    char *text = json ? cJSON_Print(v) : NULL;
    if (text)
        puts(text);
    else
        print_lines(v, 0);
    cJSON_free(text);
}

static int run_plan(const struct info_opts *o)
{
    struct host_plan p;
    struct km_err err = {0};
    int rc = host_plan(&o->engine, &p, &err);
    if ((!rc || rc == KM_ELIMIT) && o->json) {
        cJSON *all = hz_plan_json(&p, &o->engine);
        print(all, true);
        cJSON_Delete(all);
    } else if (!rc || rc == KM_ELIMIT) {
        hz_plan_print(&p, &o->engine, stdout);
    }
    if (!rc)
        return CMD_OK;
    fflush(stdout);
    km_log(KM_LOG_ERROR, "%s", err.msg);
    return rc == KM_EINVAL ? CMD_USAGE : CMD_FAILED;
}

/* Adds the card and its rates, or why they could not be measured; true when they were. */
static bool add_card(cJSON *all, const struct backend *be)
{
    struct rates r = {0};
    struct km_err err;
    if (be->measure(&r, &err)) {
        cJSON_AddStringToObject(all, "card", err.msg);
        return false;
    }
    cJSON *card = cJSON_AddObjectToObject(all, "card");
    cJSON_AddStringToObject(card, "name", r.device);
    cJSON_AddNumberToObject(card, "memory_bytes", (double)r.memory);
    for (int i = 0; i < CARD_LIMITS; i++) {
        double v;
        memcpy(&v, (const char *)&r + card_limits[i].at, sizeof v);
        cJSON_AddNumberToObject(card, card_limits[i].key, v);
    }
    return true;
}

static int run_probes(bool json)
{
    cJSON *all = cJSON_CreateObject();
    cJSON_AddItemToObject(all, "machine", hz_environment());
    cJSON *devices = cJSON_AddObjectToObject(all, "devices");
    const struct backend *be, *measurable = NULL;
    for (int i = 0; (be = backend_at(i)); i++) {
        struct km_err err;
        bool here = !backend_pick(be->name, &be, &err);
        cJSON_AddStringToObject(devices, be->name, here ? "available" : err.msg);
        if (here && be->measure)
            measurable = be;
    }
    cJSON *measured = cJSON_AddObjectToObject(all, "limits");
    for (size_t i = 0; i < sizeof limits / sizeof *limits; i++) {
        double v = median_rate(limits[i].probe);
        if (v < 0)
            cJSON_AddNullToObject(measured, limits[i].key);
        else
            cJSON_AddNumberToObject(measured, limits[i].key, v);
    }
    bool card = measurable && add_card(all, measurable);
    print(all, json);
    for (size_t i = 0; !json && i < sizeof limits / sizeof *limits; i++)
        printf("  # %s: %s, in %s, median of %d\n", limits[i].key, limits[i].what, limits[i].unit, REPEATS);
    for (int i = 0; !json && card && i < CARD_LIMITS; i++)
        printf("  # %s: %s, in %s, median of %d\n", card_limits[i].key, card_limits[i].what, card_limits[i].unit,
               REPEATS);
    cJSON_Delete(all);
    return CMD_OK;
}

static int run(int argc, char **argv)
{
    struct info_opts o = {0};
    struct km_flag table[MAX_FLAGS];
    struct km_strs pos = {0};
    struct km_err err = {0};
    bool help;
    int rc = km_args_parse(table, info_flags(&o, table, MAX_FLAGS), argc, argv, &pos, &help, &err);
    if (!rc && o.plan && pos.n == 1 && !o.engine.model) /* as serve takes it */
        o.engine.model = pos.v[0];
    else if (!rc && pos.n)
        rc = km_fail(&err, KM_EINVAL,
                     o.plan ? "info --plan takes one model; \"%s\" is left over"
                            : "\"%s\" is left over: info takes a model only with --plan",
                     pos.v[pos.n - 1]);
    if (!rc && !o.plan && argc > o.json)
        rc = km_fail(&err, KM_EINVAL, "serve's flags belong to info --plan; without --plan, info takes only --json");
    km_free(pos.v);
    if (rc) {
        km_log(KM_LOG_ERROR, "%s", err.msg);
        return CMD_USAGE;
    }
    return o.plan ? run_plan(&o) : run_probes(o.json);
}

const struct cmd cmd_info = {
    .name = "info",
    .usage = "[--json] | --plan --model DIR|PRESET [--json] [FLAGS OF SERVE]",
    .summary = "This machine, its devices and limits, measured now; or where an engine's memory would go",
    .text = "--plan takes serve's flags and prints, without loading weights, what serve would allocate with them:\n"
            "weights, work space by buffer, what is left free for the driver, the KV pool, and what that pool holds:\n"
            "tokens, requests of some lengths, the longest context. --device cuda --gpu-memory-limit SIZE needs no\n"
            "card. Exit 1, with serve's message, when it does not fit.",
    .run = run,
    .flags = flags,
};
