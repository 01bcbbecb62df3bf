/* The disk tier: a file per chunk, in a folder that survives the process. disk.h has the design, disk_files.h the
 * layout of the folder. */
#include "kvcache/tiers/disk.h"

#include "base/buf.h"
#include "base/clock.h"
#include "base/mem.h"
#include "engine/kv_port.h"
#include "kvcache/tiers/disk_files.h"

#include <string.h>
#include <time.h>
#include <unistd.h>

#define CLOSE_NS 900000000 /* close waits for the threads so long */

int64_t disk_stamp(struct kvc_tier *t, int n)
{
    int64_t now = km_wall_ns(), first = now > t->last_stamp ? now : t->last_stamp + 1;
    t->last_stamp = first + n - 1;
    return first;
}

void disk_finish(struct kvc_tier *t, struct kvc_io *io, int rc)
{
    io->rc = rc;
    io->next = t->done;
    t->done = io;
}

void disk_doom(struct kvc_tier *t, int32_t entry)
{
    disk_index_set(&t->index, entry, DISK_DOOMED, DISK_STAMP_DOOMED);
    pthread_cond_signal(&t->clean);
}

void disk_evict(struct kvc_tier *t, int64_t to)
{
    if (t->evict_to < 0 || to < t->evict_to)
        t->evict_to = to;
    pthread_cond_signal(&t->clean);
}

void disk_pause(struct kvc_tier *t)
{
    t->paused_until = km_now_ns() + DISK_PAUSE_NS;
}

static void free_tier(struct kvc_tier *t)
{
    disk_worker_free(t->reader);
    disk_worker_free(t->writer);
    disk_index_close(&t->index);
    if (t->lock_fd >= 0)
        close(t->lock_fd);
    pthread_cond_destroy(&t->clean);
    pthread_cond_destroy(&t->ended);
    pthread_mutex_destroy(&t->lock);
    km_free(t);
}

void disk_release(struct kvc_tier *t)
{
    pthread_mutex_lock(&t->lock);
    bool last = !--t->users;
    pthread_cond_broadcast(&t->ended);
    pthread_mutex_unlock(&t->lock);
    if (last)
        free_tier(t);
}

static bool disk_close(struct kvc_tier *t)
{
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_nsec += CLOSE_NS;
    until.tv_sec += until.tv_nsec / 1000000000;
    until.tv_nsec %= 1000000000;
    pthread_mutex_lock(&t->lock);
    t->stop = true;
    pthread_cond_broadcast(&t->clean);
    pthread_mutex_unlock(&t->lock);
    disk_worker_wake(t->reader);
    disk_worker_wake(t->writer);
    pthread_mutex_lock(&t->lock);
    while (t->users > 1 && !pthread_cond_timedwait(&t->ended, &t->lock, &until))
        ;
    bool ended = !t->workers_running;
    pthread_mutex_unlock(&t->lock);
    disk_release(t); /* a thread that is blocked in the kernel frees the tier when it continues */
    return ended;
}

/* Starts the threads. After a failure, those that were started end by themselves once `stop` is set. */
static int start(struct kvc_tier *t, struct km_err *err)
{
    struct disk_worker *const workers[] = {t->reader, t->writer};
    for (int i = 0; i < 2; i++) {
        pthread_mutex_lock(&t->lock);
        t->users++;
        t->workers_running++;
        pthread_mutex_unlock(&t->lock);
        int rc = disk_worker_start(workers[i], err);
        if (rc) {
            pthread_mutex_lock(&t->lock);
            t->users--;
            t->workers_running--;
            pthread_mutex_unlock(&t->lock);
            return rc;
        }
    }
    pthread_mutex_lock(&t->lock);
    int rc = pthread_create(&t->cleaner, NULL, disk_clean, t);
    t->users += !rc;
    pthread_mutex_unlock(&t->lock);
    if (rc)
        return km_fail(err, KM_ENOMEM, "cannot start a thread for the disk tier");
    pthread_detach(t->cleaner);
    return 0;
}

/* Bytes of a whole chunk's file. */
static int64_t chunk_bytes(const struct kvc_geometry *g)
{
    return (int64_t)(g->header_bytes + (g->payload_bytes + DISK_BLOCK - 1) / DISK_BLOCK * DISK_BLOCK);
}

static void disk_plan(const void *config, const struct kvc_geometry *g, struct kvc_tier_plan *out)
{
    const struct disk_config *c = config;
    out->capacity = c->size;
    out->host_bytes = disk_index_memory(c->size / chunk_bytes(g));
}

/* Prepares everything but the threads. */
static int prepare(struct kvc_tier *t, const struct kvc_geometry *g, struct km_err *err)
{
    const char *dir = t->cfg.dir;
    const int64_t chunk = chunk_bytes(g);
    if (!g->payload)
        return km_fail(err, KM_EINVAL, "disk=%.200s: a simulated device has no KV to store; use dram= only", dir);
    if (t->cfg.size < chunk)
        return km_fail(err, KM_EINVAL, "disk=%.200s: its size of %s is less than a chunk of %s; give more", dir,
                       km_size_text(t->cfg.size).s, km_size_text(chunk).s);
    int rc = disk_about_write(dir, &t->fingerprint, g, err);
    if (!rc)
        rc = disk_index_open(&t->index, &t->fingerprint, err);
    if (!rc)
        rc = disk_worker_open(&t->reader, t, false, err);
    if (!rc)
        rc = disk_worker_open(&t->writer, t, true, err);
    if (rc)
        return rc;
    t->lock_fd = disk_lock(dir);
    t->direct = !t->cfg.no_direct && g->header_bytes % DISK_BLOCK == 0 && disk_probe_direct(dir);
    t->uring = disk_worker_uring(t->reader) && disk_worker_uring(t->writer);
    return disk_scan_into(t, err);
}

static int disk_open(struct kvc_tier **out, const void *config, const struct kvc_geometry *g,
                     const struct km_digest *fingerprint, struct km_err *err)
{
    struct kvc_tier *t = km_calloc(1, sizeof *t);
    if (!t)
        return km_fail(err, KM_ENOMEM, "out of memory");
    memcpy(&t->cfg, config, sizeof t->cfg);
    t->header_bytes = g->header_bytes;
    t->fingerprint = *fingerprint;
    t->lock_fd = -1;
    t->evict_to = -1;
    t->users = 1;
    t->index.free = -1;
    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_mutex_init(&t->lock, NULL);
    pthread_cond_init(&t->clean, &monotonic);
    pthread_cond_init(&t->ended, &monotonic);
    pthread_condattr_destroy(&monotonic);
    int rc = prepare(t, g, err);
    if (rc) {
        disk_release(t);
        return rc;
    }
    rc = start(t, err);
    if (rc)
        disk_close(t);
    else
        *out = t;
    return rc;
}

static int disk_lookup(struct kvc_tier *t, const struct km_digest *keys, int n)
{
    int found = 0;
    pthread_mutex_lock(&t->lock);
    const int64_t first = disk_stamp(t, n > 0 ? n : 1);
    for (; found < n; found++) {
        int32_t i = disk_index_find(&t->index, DISK_OWN, &keys[found]);
        if (i < 0 || t->index.entry[i].state != DISK_READY)
            break;
        disk_index_set(&t->index, i, DISK_READY, first + (n - 1 - found)); /* the first key becomes the newest */
    }
    pthread_mutex_unlock(&t->lock);
    return found;
}

/* REMOVE and EXISTS need only the index. A REMOVE does not affect a PUT that is still queued. */
static void remove_or_exists(struct kvc_tier *t, struct kvc_io *io)
{
    int32_t i = disk_index_find(&t->index, DISK_OWN, &io->key);
    const bool ready = i >= 0 && t->index.entry[i].state == DISK_READY;
    if (io->kind == KVC_REMOVE && ready)
        disk_doom(t, i);
    else if (io->kind == KVC_REMOVE && i >= 0 && t->index.entry[i].state == DISK_WRITING)
        t->index.entry[i].discard = true;
    disk_finish(t, io, io->kind == KVC_REMOVE || ready ? 0 : KM_ENOENT);
}

static void disk_submit(struct kvc_tier *t, struct kvc_io *const *io, int n)
{
    bool reads = false, writes = false;
    pthread_mutex_lock(&t->lock);
    for (int i = 0; i < n; i++) {
        if (io[i]->kind == KVC_GET)
            disk_worker_put(t->reader, io[i]), reads = true;
        else if (io[i]->kind == KVC_PUT)
            disk_worker_put(t->writer, io[i]), writes = true;
        else
            remove_or_exists(t, io[i]);
    }
    pthread_mutex_unlock(&t->lock);
    if (reads)
        disk_worker_wake(t->reader);
    if (writes)
        disk_worker_wake(t->writer);
}

static struct kvc_io *disk_poll(struct kvc_tier *t)
{
    pthread_mutex_lock(&t->lock);
    struct kvc_io *list = t->done;
    t->done = NULL;
    pthread_mutex_unlock(&t->lock);
    return list;
}

static int disk_clear(struct kvc_tier *t, struct km_err *err)
{
    (void)err;
    pthread_mutex_lock(&t->lock);
    disk_index_doom_folder(&t->index, DISK_OWN);
    pthread_cond_signal(&t->clean);
    pthread_mutex_unlock(&t->lock);
    return 0;
}

static int disk_stats(struct kvc_tier *t, struct kv_stat_row *rows, int most)
{
    pthread_mutex_lock(&t->lock);
    const struct kv_stat_row all[] = {
        {"disk", "chunks", "Chunks of this model in the folder.", true, t->index.own_ready},
        {"disk", "bytes", "Bytes of all chunk files in the folder, of every model.", true, (double)t->index.bytes},
        {"disk", "capacity_bytes", "Most bytes that the files may have.", true, (double)t->cfg.size},
        {"disk", "read_bytes", "Bytes read from chunk files.", false, (double)t->read_bytes},
        {"disk", "written_bytes", "Bytes of chunk files written.", false, (double)t->written_bytes},
        {"disk", "evicted_chunks", "Chunk files deleted to make room.", false, (double)t->evicted},
        {"disk", "errors", "Reads, writes and deletions that failed.", false, (double)t->errors},
        {"disk", "refused_chunks", "Chunks not written, because a write had failed shortly before.", false,
         (double)t->refused},
        {"disk", "direct", "1: O_DIRECT is used. 0: the page cache.", true, t->direct},
        {"disk", "io_uring", "1: io_uring is used. 0: threads.", true, t->uring},
    };
    pthread_mutex_unlock(&t->lock);
    int n = (int)(sizeof all / sizeof *all);
    n = n < most ? n : most;
    memcpy(rows, all, (size_t)n * sizeof *rows);
    return n;
}

const struct kvc_tier_ops kvc_tier_disk = {
    .name = "disk",
    .scheme = "disk=",
    .usage = "disk=DIR:SIZE",
    .defaults = disk_config_defaults,
    .keys = disk_keys,
    .n_keys = DISK_N_KEYS,
    .parse = disk_config_parse,
    .enabled = disk_config_enabled,
    .describe = disk_config_describe,
    .plan = disk_plan,
    .open = disk_open,
    .close = disk_close,
    .lookup = disk_lookup,
    .submit = disk_submit,
    .poll = disk_poll,
    .clear = disk_clear,
    .stats = disk_stats,
};
