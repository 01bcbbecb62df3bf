/* A worker: one thread that reads chunks (GETs), or one that writes them (PUTs).
 *
 * An operation waits in the worker's queue until it is planned. Planning finishes the operation at once, leaves it in
 * the queue until the cleaner has deleted a file, or makes it a job, depending on the index. A job is an open file,
 * whose bytes are moved in pieces (disk_aio.h). Pieces are submitted in the order of the operations, so that the first
 * chunk is complete first; pieces of several jobs are in flight together.
 *
 * A PUT writes a temporary file and renames it when all of its bytes are written. A file with a chunk's name is
 * therefore whole, unless the machine crashed before the kernel had written it to the disk. The checksums detect this
 * case. */
#include "base/clock.h"
#include "base/mem.h"
#include "kvcache/header.h"
#include "kvcache/tiers/disk.h"
#include "kvcache/tiers/disk_files.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

struct job {
    struct kvc_io *io;    /* not used once `stop` is set, because the layer may have freed it */
    struct km_digest key; /* copied from io, like the two buffers */
    void *header, *payload;
    struct job *next;     /* on the list of jobs, oldest first, or of free jobs */
    int dir, fd;          /* the open folder (PUT only, else -1), and the file */
    int32_t entry;        /* PUT: its entry in the index */
    char name[DISK_NAME]; /* PUT: of the temporary file */
    int64_t stamp;        /* the file's mtime, ns since 1970 */
    size_t bytes;         /* of the payload, to be moved */
    size_t issued;        /* bytes of header and payload submitted */
    int in_flight;        /* pieces in flight */
    bool direct;          /* with O_DIRECT */
    int rc;               /* 0, or -errno of the first failure */
};

struct disk_worker {
    struct kvc_tier *t;
    bool writes;
    struct disk_aio *aio;
    pthread_t thread;
    struct disk_queue queue; /* protected by the tier's lock */
    struct job job[DISK_JOBS], *jobs, **jobs_end, *free_jobs;
    struct disk_piece piece[DISK_DEPTH], *free_pieces;
    int in_flight;
};

enum outcome { PLAN_JOB, PLAN_FINISHED, PLAN_LATER };

/* Planning. These functions need the tier's lock. */

static enum outcome plan_get(struct kvc_tier *t, struct kvc_io *io, struct job *j)
{
    int32_t i = disk_index_find(&t->index, DISK_OWN, &io->key);
    if (i < 0 || t->index.entry[i].state != DISK_READY)
        return disk_finish(t, io, KM_ENOENT), PLAN_FINISHED;
    j->stamp = t->index.entry[i].stamp;
    return PLAN_JOB;
}

static enum outcome plan_put(struct kvc_tier *t, struct kvc_io *io, struct job *j)
{
    const int64_t size = (int64_t)(t->header_bytes + (io->payload_bytes + DISK_BLOCK - 1) / DISK_BLOCK * DISK_BLOCK);
    struct disk_index *x = &t->index;
    int32_t i = disk_index_find(x, DISK_OWN, &io->key);
    const int state = i < 0 ? DISK_UNUSED : x->entry[i].state;
    const int64_t age = DISK_AGE_NS * ((const struct kvc_header *)io->header)->position;
    if (state == DISK_READY)
        disk_index_set(x, i, DISK_READY, disk_stamp(t, 1) - age);
    if (state == DISK_READY || state == DISK_WRITING)
        return disk_finish(t, io, 0), PLAN_FINISHED;
    if (km_now_ns() < t->paused_until || size > t->cfg.size) {
        t->refused++;
        return disk_finish(t, io, KM_ELIMIT), PLAN_FINISHED;
    }
    if (state == DISK_DOOMED)
        disk_index_set(x, i, DISK_DOOMED, DISK_STAMP_URGENT);
    if (state != DISK_UNUSED)
        return pthread_cond_signal(&t->clean), PLAN_LATER;
    if (x->bytes + size > t->cfg.size / 100 * DISK_START_PERCENT) {
        const int64_t low = t->cfg.size / 100 * DISK_LOW_PERCENT, need = t->cfg.size - size;
        disk_evict(t, low < need ? low : need);
    }
    if (x->bytes + size > t->cfg.size)
        return PLAN_LATER; /* there are files to evict, or files that can be evicted when they are written */
    j->stamp = disk_stamp(t, 1) - age;
    j->entry = disk_index_add(x, DISK_OWN, &io->key, size, DISK_WRITING, 0);
    if (j->entry < 0)
        return disk_finish(t, io, KM_ENOMEM), PLAN_FINISHED;
    return PLAN_JOB;
}

static enum outcome plan(struct kvc_tier *t, struct kvc_io *io, struct job *j)
{
    return io->kind == KVC_PUT ? plan_put(t, io, j) : plan_get(t, io, j);
}

/* Opening files. These return 0 or -errno. */

static bool aligned(const void *p)
{
    return (uintptr_t)p % DISK_BLOCK == 0;
}

static void choose_direct(struct kvc_tier *t, struct job *j)
{
    j->direct = t->direct && aligned(j->header) && aligned(j->payload) && j->bytes % DISK_BLOCK == 0;
}

static int start_get(struct kvc_tier *t, struct job *j)
{
    int64_t bytes;
    choose_direct(t, j);
    j->fd = disk_file_open(t->cfg.dir, &t->fingerprint, &j->key, j->direct, &bytes);
    if (j->fd < 0)
        return j->fd;
    const int64_t stored = bytes - (int64_t)t->header_bytes; /* the payload with its padding */
    if (bytes % DISK_BLOCK || stored < 0 || stored >= (int64_t)j->bytes + DISK_BLOCK)
        return -EBADMSG;
    if ((size_t)stored < j->bytes)
        j->bytes = (size_t)stored;
    const struct timespec used[2] = {{0, UTIME_OMIT}, {j->stamp / 1000000000, j->stamp % 1000000000}};
    futimens(j->fd, used); /* the order of eviction after a restart; a failure does no harm */
    return 0;
}

static int start_put(struct kvc_tier *t, struct job *j)
{
    choose_direct(t, j);
    disk_name_temporary(&j->key, atomic_fetch_add(&t->temporaries, 1), j->name);
    j->dir = disk_dir_open(t->cfg.dir, &t->fingerprint, &j->key, true);
    if (j->dir < 0)
        return j->dir;
    j->fd = openat(j->dir, j->name, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC | (j->direct ? O_DIRECT : 0),
                   0666);
    if (j->fd < 0)
        return -errno;
    /* Reserving the blocks finds a full disk at once, and lets the writes run in parallel, because none of them then
     * makes the file longer. The bytes between the payload's end and the next block's become zeros. */
    const off_t size = (off_t)(t->header_bytes + (j->bytes + DISK_BLOCK - 1) / DISK_BLOCK * DISK_BLOCK);
    if (!fallocate(j->fd, 0, 0, size))
        return 0;
    return errno == EOPNOTSUPP && !ftruncate(j->fd, size) ? 0 : -errno;
}

/* Finishing jobs. */

/* True if the error says that the file is gone or bad. Others, such as a lack of file descriptors, do not. */
static bool blames_file(int rc)
{
    return rc == -ENOENT || rc == -EBADMSG || rc == -ENODATA || rc == -EIO || rc == -ELOOP || rc == -ENXIO;
}

/* The length of the payload without its padding. It is the header's, if that fits the file; else the file's, and the
 * check of the header will fail. */
static size_t true_length(const struct kvc_tier *t, const struct job *j)
{
    const struct kvc_header *h = j->header;
    return t->header_bytes >= sizeof *h && h->payload_bytes <= j->bytes &&
                   h->payload_bytes + DISK_BLOCK > j->bytes
               ? (size_t)h->payload_bytes
               : j->bytes;
}

/* Finishes the job's operation. Needs the tier's lock. */
static void finish(struct kvc_tier *t, struct job *j, int rc)
{
    if (!t->stop)
        disk_finish(t, j->io, rc);
}

static void end_get(struct kvc_tier *t, struct job *j)
{
    if (!j->rc && !j->direct)
        posix_fadvise(j->fd, 0, 0, POSIX_FADV_DONTNEED); /* host memory has the chunk now */
    atomic_fetch_sub(&t->reading, 1);
    pthread_mutex_lock(&t->lock);
    int32_t i = disk_index_find(&t->index, DISK_OWN, &j->key);
    if (!j->rc) {
        t->read_bytes += (int64_t)(t->header_bytes + j->bytes);
        if (!t->stop)
            j->io->payload_bytes = true_length(t, j);
    } else if (j->rc != -ECANCELED) {
        if (blames_file(j->rc) && i >= 0 && t->index.entry[i].state == DISK_READY)
            disk_doom(t, i);
        t->errors += j->rc != -ENOENT;
    }
    finish(t, j,
           !j->rc                                   ? 0
           : j->rc == -ENOENT                       ? KM_ENOENT
           : j->rc == -EBADMSG || j->rc == -ENODATA ? KM_EFORMAT
                                                    : KM_EIO);
    pthread_mutex_unlock(&t->lock);
}

/* Gives the written file the chunk's name: 0 or -errno. */
static int publish(struct kvc_tier *t, struct job *j)
{
    char name[DISK_NAME];
    pthread_mutex_lock(&t->lock);
    bool discard = t->index.entry[j->entry].discard;
    pthread_mutex_unlock(&t->lock);
    if (discard)
        return -ECANCELED;
    const struct timespec used[2] = {{0, UTIME_OMIT}, {j->stamp / 1000000000, j->stamp % 1000000000}};
    futimens(j->fd, used);
    if (!j->direct)
        sync_file_range(j->fd, 0, 0, SYNC_FILE_RANGE_WRITE); /* starts writing, so that little dirty memory gathers */
    disk_name_final(&j->key, name);
    return renameat(j->dir, j->name, j->dir, name) ? -errno : 0;
}

static void end_put(struct kvc_tier *t, struct job *j)
{
    if (!j->rc)
        j->rc = publish(t, j);
    if (j->rc && j->fd >= 0)
        unlinkat(j->dir, j->name, 0);
    pthread_mutex_lock(&t->lock);
    struct disk_entry *e = &t->index.entry[j->entry];
    const bool full = j->rc == -ENOSPC || j->rc == -EDQUOT;
    if (!j->rc) {
        t->written_bytes += disk_entry_bytes(e);
        e->seen = t->index.scan; /* a scan in progress may have missed the file */
        disk_index_set(&t->index, j->entry, DISK_READY, j->stamp);
        if (e->discard)
            disk_doom(t, j->entry);
        e->discard = false;
    } else {
        disk_index_erase(&t->index, j->entry);
    }
    if (j->rc && j->rc != -ECANCELED) {
        t->errors++;
        disk_pause(t);
        if (full) /* something else fills the disk: leave it some of the cache's space */
            disk_evict(t, t->index.bytes / 100 * DISK_LOW_PERCENT);
    }
    finish(t, j, !j->rc || j->rc == -ECANCELED ? 0 : full ? KM_ELIMIT : KM_EIO);
    pthread_mutex_unlock(&t->lock);
}

static void end_job(struct disk_worker *w, struct job *j)
{
    for (struct job **p = &w->jobs; *p; p = &(*p)->next)
        if (*p == j) {
            if (!(*p = j->next))
                w->jobs_end = p;
            break;
        }
    (w->writes ? end_put : end_get)(w->t, j);
    if (j->fd >= 0)
        close(j->fd);
    if (j->dir >= 0)
        close(j->dir);
    j->next = w->free_jobs;
    w->free_jobs = j;
}

/* The thread. */

/* Makes jobs of queued operations. Returns false if the tier is to be closed. */
static bool admit(struct disk_worker *w)
{
    struct kvc_tier *t = w->t;
    pthread_mutex_lock(&t->lock);
    while (!t->stop && w->free_jobs && w->queue.first) {
        struct job *j = w->free_jobs, *rest = j->next;
        struct kvc_io *io = w->queue.first, *after = io->next;
        *j = (struct job){.io = io,
                          .key = io->key,
                          .header = io->header,
                          .payload = io->payload,
                          .bytes = io->payload_bytes,
                          .dir = -1,
                          .fd = -1,
                          .entry = -1};
        enum outcome what = plan(t, io, j);
        j->next = rest;
        if (what == PLAN_LATER)
            break;
        if (!(w->queue.first = after))
            w->queue.end = &w->queue.first;
        if (what == PLAN_FINISHED)
            continue;
        w->free_jobs = rest;
        j->next = NULL;
        *w->jobs_end = j;
        w->jobs_end = &j->next;
        pthread_mutex_unlock(&t->lock);
        if (!w->writes)
            atomic_fetch_add(&t->reading, 1);
        j->rc = w->writes ? start_put(t, j) : start_get(t, j);
        if (j->rc)
            end_job(w, j);
        pthread_mutex_lock(&t->lock);
    }
    bool stop = t->stop;
    pthread_mutex_unlock(&t->lock);
    return !stop;
}

/* Fills a piece with the next bytes of the job: the header with what follows it, or a part of the payload. */
static void fill_piece(const struct kvc_tier *t, struct job *j, struct disk_piece *p)
{
    const size_t total = t->header_bytes + j->bytes;
    size_t n = total - j->issued < DISK_PIECE ? total - j->issued : DISK_PIECE;
    p->at = (int64_t)j->issued;
    p->n_iov = 0;
    if (!j->issued)
        p->iov[p->n_iov++] = (struct iovec){j->header, t->header_bytes};
    const size_t from = j->issued ? j->issued - t->header_bytes : 0; /* in the payload */
    if (!j->issued && n < t->header_bytes)
        n = t->header_bytes;
    const size_t bytes = j->issued ? n : n - t->header_bytes;
    if (bytes)
        p->iov[p->n_iov++] = (struct iovec){(char *)j->payload + from, bytes};
    j->issued += n;
}

static bool wholly_issued(const struct kvc_tier *t, const struct job *j)
{
    return j->rc || j->issued == t->header_bytes + j->bytes;
}

static void issue(struct disk_worker *w)
{
    struct kvc_tier *t = w->t;
    const int most = w->writes && atomic_load(&t->reading) ? DISK_DEPTH_YIELD : DISK_DEPTH;
    for (struct job *j = w->jobs; j; j = j->next)
        while (w->in_flight < most && !wholly_issued(t, j)) {
            struct disk_piece *p = w->free_pieces;
            w->free_pieces = p->next;
            p->fd = j->fd;
            p->write = w->writes;
            p->user = j;
            fill_piece(t, j, p);
            j->in_flight++;
            w->in_flight++;
            disk_aio_submit(w->aio, p);
        }
}

static void complete(struct disk_worker *w, struct disk_piece *p)
{
    struct job *j = p->user;
    if (p->rc && !j->rc)
        j->rc = p->rc;
    p->next = w->free_pieces;
    w->free_pieces = p;
    w->in_flight--;
    if (!--j->in_flight && wholly_issued(w->t, j))
        end_job(w, j);
}

static void *run(void *self)
{
    struct disk_worker *w = self;
    struct kvc_tier *t = w->t;
    bool go_on;
    while ((go_on = admit(w)) || w->in_flight) {
        if (go_on)
            issue(w);
        for (struct disk_piece *p = disk_aio_wait(w->aio), *next; p; p = next) {
            next = p->next;
            complete(w, p);
        }
    }
    while (w->jobs) {
        w->jobs->rc = -ECANCELED;
        end_job(w, w->jobs);
    }
    pthread_mutex_lock(&t->lock);
    t->workers_running--;
    pthread_mutex_unlock(&t->lock);
    disk_release(t);
    return NULL;
}

int disk_worker_open(struct disk_worker **out, struct kvc_tier *t, bool writes, struct km_err *err)
{
    struct disk_worker *w = km_calloc(1, sizeof *w);
    if (!w)
        return km_fail(err, KM_ENOMEM, "out of memory");
    w->t = t;
    w->writes = writes;
    w->queue.end = &w->queue.first;
    w->jobs_end = &w->jobs;
    for (int i = 0; i < DISK_JOBS; i++) {
        w->job[i].next = w->free_jobs;
        w->free_jobs = &w->job[i];
    }
    for (int i = 0; i < DISK_DEPTH; i++) {
        w->piece[i].next = w->free_pieces;
        w->free_pieces = &w->piece[i];
    }
    int rc = disk_aio_open(&w->aio, DISK_DEPTH, t->cfg.no_uring, err);
    if (rc) {
        km_free(w);
        return rc;
    }
    *out = w;
    return 0;
}

int disk_worker_start(struct disk_worker *w, struct km_err *err)
{
    if (pthread_create(&w->thread, NULL, run, w))
        return km_fail(err, KM_ENOMEM, "cannot start a thread for the disk tier");
    pthread_detach(w->thread);
    return 0;
}

void disk_worker_put(struct disk_worker *w, struct kvc_io *io)
{
    io->next = NULL;
    *w->queue.end = io;
    w->queue.end = &io->next;
}

void disk_worker_wake(struct disk_worker *w)
{
    disk_aio_wake(w->aio);
}

bool disk_worker_uring(const struct disk_worker *w)
{
    return disk_aio_uring(w->aio);
}

void disk_worker_free(struct disk_worker *w)
{
    if (!w)
        return;
    disk_aio_close(w->aio);
    km_free(w);
}
