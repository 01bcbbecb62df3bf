/* The cleaner: deletes files, so that the workers need not, and scans the folder. */
#include "base/clock.h"
#include "base/mem.h"
#include "kvcache/tiers/disk.h"
#include "kvcache/tiers/disk_files.h"

#include <errno.h>
#include <time.h>

enum { MERGE = 512 }; /* files that are added to the index while the lock is held once */

/* Files found by a scan that are not yet in the index. */
struct found {
    struct kvc_tier *t;
    int64_t now; /* ns since 1970 */
    int n;
    struct disk_file file[MERGE];
};

/* Adds the file to the index if it is not there. */
static int merge_file(struct kvc_tier *t, const struct disk_file *f, int64_t now)
{
    int folder = disk_index_folder(&t->index, &f->fingerprint);
    if (folder < 0)
        return KM_ENOMEM;
    int32_t i = disk_index_find(&t->index, folder, &f->key);
    if (i < 0)
        i = disk_index_add(&t->index, folder, &f->key, f->bytes, DISK_READY, f->mtime < now ? f->mtime : now);
    if (i < 0)
        return KM_ENOMEM;
    t->index.entry[i].seen = t->index.scan;
    return 0;
}

static int merge(struct found *m)
{
    int rc = 0;
    pthread_mutex_lock(&m->t->lock);
    for (int i = 0; i < m->n && !rc; i++)
        rc = merge_file(m->t, &m->file[i], m->now);
    if (m->t->stop)
        rc = KM_ECANCEL;
    pthread_mutex_unlock(&m->t->lock);
    m->n = 0;
    return rc;
}

static int note_file(void *arg, const struct disk_file *f)
{
    struct found *m = arg;
    m->file[m->n++] = *f;
    return m->n == MERGE ? merge(m) : 0;
}

int disk_scan_into(struct kvc_tier *t, struct km_err *err)
{
    struct found *m = km_calloc(1, sizeof *m);
    if (!m)
        return km_fail(err, KM_ENOMEM, "out of memory");
    m->t = t;
    m->now = km_wall_ns();
    pthread_mutex_lock(&t->lock);
    t->index.scan++; /* entries that are added from now on have this number */
    pthread_mutex_unlock(&t->lock);
    int rc = disk_scan(t->cfg.dir, true, note_file, m, err);
    if (!rc && (rc = merge(m)))
        rc = km_fail(err, rc, "the scan of %s stopped: %s", t->cfg.dir, km_err_name(rc));
    km_free(m);
    if (rc)
        return rc;
    pthread_mutex_lock(&t->lock);
    for (int i = 0; i < t->index.cap; i++)
        if (t->index.entry[i].state == DISK_READY && t->index.entry[i].seen < t->index.scan)
            disk_index_erase(&t->index, i); /* another process has deleted the file */
    if (t->index.bytes > t->cfg.size)
        disk_evict(t, t->cfg.size * DISK_LOW_PERCENT / 100);
    pthread_mutex_unlock(&t->lock);
    return 0;
}

/* Deletes the file of entry i, READY or DOOMED. Called with the lock, which is released meanwhile. */
static void delete_file(struct kvc_tier *t, int32_t i)
{
    struct disk_entry *e = &t->index.entry[i];
    const bool evict = e->state == DISK_READY;
    const struct km_digest key = e->key, fingerprint = t->index.folder[e->folder];
    disk_index_set(&t->index, i, DISK_UNLINKING, 0);
    pthread_mutex_unlock(&t->lock);
    int rc = disk_file_remove(t->cfg.dir, &fingerprint, &key);
    pthread_mutex_lock(&t->lock);
    disk_index_erase(&t->index, i);
    if (rc && rc != -ENOENT) { /* the file stays, but the index forgets it until the next start */
        t->errors++;
        t->evict_to = -1;
        disk_pause(t);
    } else if (evict) {
        t->evicted++;
    }
}

/* The entry to delete next, or -1. */
static int32_t next_victim(struct kvc_tier *t)
{
    int32_t i = disk_index_oldest(&t->index);
    if (i >= 0 && t->index.entry[i].state == DISK_DOOMED)
        return i;
    if (t->evict_to >= 0 && (i < 0 || t->index.bytes <= t->evict_to))
        t->evict_to = -1;
    return t->evict_to >= 0 && !t->stop ? i : -1;
}

/* Waits for work, at most until the next scan is due. */
static void wait_for_work(struct kvc_tier *t)
{
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec += DISK_RESCAN_NS / 1000000000;
    pthread_cond_timedwait(&t->clean, &t->lock, &until);
}

/* Scans the folder if another process has it open. Called without the lock. Returns when the next scan is due. */
static int64_t rescan(struct kvc_tier *t)
{
    const int64_t start = km_now_ns();
    if (t->lock_fd >= 0 && disk_lock_shared(t->lock_fd))
        disk_scan_into(t, NULL);
    const int64_t end = km_now_ns(), rest = 20 * (end - start); /* at most a twentieth of the time is spent in scans */
    return end + (rest > DISK_RESCAN_NS ? rest : DISK_RESCAN_NS);
}

void *disk_clean(void *tier)
{
    struct kvc_tier *t = tier;
    int64_t due = km_now_ns() + DISK_RESCAN_NS;
    pthread_mutex_lock(&t->lock);
    for (;;) {
        int32_t victim = next_victim(t);
        if (victim >= 0) {
            delete_file(t, victim);
            pthread_mutex_unlock(&t->lock);
            disk_worker_wake(t->writer); /* a PUT may wait for the space, or for this name */
            pthread_mutex_lock(&t->lock);
        } else if (t->stop) {
            break;
        } else if (km_now_ns() >= due) {
            pthread_mutex_unlock(&t->lock);
            due = rescan(t);
            pthread_mutex_lock(&t->lock);
        } else {
            wait_for_work(t);
        }
    }
    pthread_mutex_unlock(&t->lock);
    disk_release(t);
    return NULL;
}
