/* disk_bench measures the disk tier without an engine: it writes chunks to a folder, reads them back, and prints GB/s
 * (10^9 bytes per second) of headers and payloads. It also times the opening of a folder that has chunks.
 *
 * For comparison, fio with the same block size and depth:
 *     fio --name=t --directory=DIR --size=4g --rw=write --bs=2m --iodepth=32 --ioengine=io_uring --direct=1
 *
 * The program removes what it has written. */
#include "base/args.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/random.h"
#include "kvcache/header.h"
#include "kvcache/tiers/disk.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { WINDOW_MOST = 1024 };

struct bench_opts {
    const char *dir;
    int chunks, mib, kib, window;
    bool no_uring, no_direct;
};

static const struct km_option rows[] = {
    {.name = "dir", KM_FIELD(struct bench_opts, dir), .arg = "DIR", .help = "the folder, which should be empty"},
    {.name = "chunks", KM_FIELD(struct bench_opts, chunks), .arg = "N", .fallback = "64", .lo = 1, .hi = 10000000,
     .help = "number of chunks"},
    {.name = "mib", KM_FIELD(struct bench_opts, mib), .arg = "N", .fallback = "36", .lo = 1, .hi = 1024,
     .help = "MiB of a chunk's payload"},
    {.name = "kib", KM_FIELD(struct bench_opts, kib), .arg = "N", .fallback = "0", .lo = 0, .hi = 1024,
     .help = "KiB of a chunk's payload, a multiple of 4, instead of --mib; 0: --mib"},
    {.name = "window", KM_FIELD(struct bench_opts, window), .arg = "N", .fallback = "8", .lo = 1, .hi = WINDOW_MOST,
     .help = "chunks in progress"},
    {.name = "no-io-uring", KM_FIELD(struct bench_opts, no_uring), .help = "use threads"},
    {.name = "no-o-direct", KM_FIELD(struct bench_opts, no_direct), .help = "use the page cache"},
};

static struct kvc_io io[WINDOW_MOST];

static struct km_digest key_of(int n)
{
    struct km_digest d;
    for (int i = 0; i < 4; i++) {
        uint64_t w = km_random_at((uint64_t)n, (uint64_t)i + 1);
        memcpy(d.b + 8 * i, &w, 8);
    }
    return d;
}

/* Makes the buffers of the window; the payloads are random, so that no disk can compress them. */
static int make_buffers(const struct bench_opts *o, const struct kvc_geometry *g, struct km_err *err)
{
    for (int i = 0; i < o->window; i++) {
        io[i].header = km_aligned(4096, g->header_bytes);
        io[i].payload = km_aligned(4096, g->payload_bytes);
        if (!io[i].header || !io[i].payload)
            return km_fail(err, KM_ENOMEM, "out of memory");
        memset(io[i].header, 0, g->header_bytes);
        uint64_t rng = (uint64_t)i, *w = io[i].payload;
        for (size_t k = 0; k < g->payload_bytes / 8; k++)
            w[k] = km_random_next(&rng);
    }
    return 0;
}

static void begin(struct kvc_tier *t, struct kvc_io *one, enum kvc_io_kind kind, const struct kvc_geometry *g, int n)
{
    one->kind = kind;
    one->key = key_of(n);
    one->payload_bytes = g->payload_bytes;
    kvc_tier_disk.submit(t, &one, 1);
}

/* Moves all chunks, `window` at a time. Returns the number of failures. */
static int move(struct kvc_tier *t, const struct bench_opts *o, enum kvc_io_kind kind, const struct kvc_geometry *g)
{
    int begun = 0, ended = 0, failed = 0;
    for (; begun < o->chunks && begun < o->window; begun++)
        begin(t, &io[begun], kind, g, begun);
    while (ended < o->chunks) {
        struct kvc_io *list = kvc_tier_disk.poll(t);
        if (!list)
            usleep(20);
        for (struct kvc_io *one = list, *next; one; one = next) {
            next = one->next;
            failed += one->rc != 0;
            ended++;
            if (begun < o->chunks)
                begin(t, one, kind, g, begun++);
        }
    }
    return failed;
}

/* Opens the tier and prints how long that took. */
static int open_tier(struct kvc_tier **t, const struct disk_config *c, const struct kvc_geometry *g,
                     struct km_err *err)
{
    const struct km_digest fp = {{0xBE}};
    const int64_t start = km_now_ns();
    int rc = kvc_tier_disk.open(t, c, g, &fp, err);
    if (!rc)
        printf("open  %8.3f s with %d chunks\n", (double)(km_now_ns() - start) * 1e-9, (*t)->index.used);
    return rc;
}

static int measure(const struct bench_opts *o, const struct kvc_geometry *g, struct km_err *err)
{
    struct disk_config c = {
        .size = (int64_t)(o->chunks + 100) * 2 * (int64_t)(g->payload_bytes + g->header_bytes),
        .no_uring = o->no_uring,
        .no_direct = o->no_direct,
    };
    snprintf(c.dir, sizeof c.dir, "%s", o->dir);
    struct kvc_tier *t;
    int rc = open_tier(&t, &c, g, err);
    if (rc)
        return rc;
    printf("%s, %s; %d chunks of %s, %d in progress\n", t->uring ? "io_uring" : "threads",
           t->direct ? "O_DIRECT" : "page cache", o->chunks, km_size_text((int64_t)g->payload_bytes).s, o->window);
    const double bytes = (double)o->chunks * (double)(g->payload_bytes + g->header_bytes);
    static const struct {
        const char *name;
        enum kvc_io_kind kind;
    } steps[] = {{"write", KVC_PUT}, {"read", KVC_GET}};
    for (int i = 0; i < 2; i++) {
        int64_t start = km_now_ns();
        int failed = move(t, o, steps[i].kind, g);
        double s = (double)(km_now_ns() - start) * 1e-9;
        printf("%-5s %8.3f GB/s  %8.0f chunks/s  %d failed\n", steps[i].name, bytes / s * 1e-9, o->chunks / s, failed);
    }
    kvc_tier_disk.close(t);
    rc = open_tier(&t, &c, g, err);
    if (rc)
        return rc;
    const int64_t start = km_now_ns();
    const int removed = t->index.used;
    kvc_tier_disk.clear(t, err);
    for (int left = 1; left;) { /* close waits less than a second for the deletions */
        usleep(10000);
        pthread_mutex_lock(&t->lock);
        left = t->index.used;
        pthread_mutex_unlock(&t->lock);
    }
    printf("clear %8.3f s with %d chunks\n", (double)(km_now_ns() - start) * 1e-9, removed);
    kvc_tier_disk.close(t);
    return rc;
}

int main(int argc, char **argv)
{
    struct bench_opts o;
    struct km_option_group group = KM_OPTION_GROUP("disk_bench", rows, &o);
    struct km_strs words = {0};
    struct km_err err = {0};
    bool help = false;
    km_options_default(&group, 1);
    int rc = km_args_parse(&group, 1, argc - 1, argv + 1, &words, &help, &err);
    if (!rc && !help && !o.dir)
        rc = km_fail(&err, KM_EINVAL, "--dir is missing: name the folder to measure");
    if (help) {
        struct km_buf text = {0};
        km_args_help(&group, 1, 100, &text);
        fputs(km_buf_str(&text), stdout);
        return 0;
    }
    struct kvc_geometry g = {.chunk_size = 256, .chunk_pages = 16, .payload = true};
    g.header_bytes = kvc_header_bytes(g.chunk_size, g.chunk_pages);
    g.payload_bytes = o.kib ? (size_t)o.kib << 10 : (size_t)o.mib << 20;
    if (!rc)
        rc = make_buffers(&o, &g, &err);
    if (!rc)
        rc = measure(&o, &g, &err);
    if (rc)
        km_log(KM_LOG_ERROR, "%s", err.msg);
    return rc != 0;
}
