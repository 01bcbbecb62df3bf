/* The disk tier's state, which its files share (disk.c, disk_worker.c, disk_cleaner.c).
 *
 * A `kvc_tier` (below: the tier) has three threads. Two workers, one for GETs and one for PUTs, open files and keep
 * reads and writes in flight (disk_aio.h). The cleaner deletes files that are evicted or DOOMED (disk_index.h). While
 * another process uses the folder, the cleaner also scans it from time to time, so that the index has the files that
 * the other process has written and lacks those that it has deleted. One mutex protects the index, the queues and the
 * counters; no thread holds it during a system call that touches the disk. */
#ifndef DISK_H
#define DISK_H

#include "kvcache/tier.h"
#include "kvcache/tiers/disk_aio.h"
#include "kvcache/tiers/disk_config.h"
#include "kvcache/tiers/disk_index.h"

#include <pthread.h>
#include <stdatomic.h>

enum {
    DISK_PIECE = 2 << 20,     /* bytes of a read or write */
    DISK_DEPTH = 32,          /* most reads or writes in flight of a worker */
    DISK_DEPTH_YIELD = 4,     /* the same for the writer while the reader has GETs: loads come before stores */
    DISK_JOBS = 32,           /* most chunks in progress of a worker */
    DISK_BLOCK = 4096,        /* unit of O_DIRECT, of headers and of file sizes */
    DISK_LOW_PERCENT = 95,    /* eviction goes on until the files have this share of the cap */
    DISK_START_PERCENT = 98   /* eviction starts above this share, so that writes seldom wait for it */
};
#define DISK_PAUSE_NS ((int64_t)10 * 1000000000)  /* time without writes after a write has failed */
#define DISK_RESCAN_NS ((int64_t)10 * 1000000000) /* least time between scans while the folder is shared */
/* A stored chunk counts as this much older for each chunk before it in its sequence. The last chunks of a prompt are
 * therefore evicted before the first ones. */
#define DISK_AGE_NS ((int64_t)100 * 1000000)

struct disk_worker;

/* A singly linked queue of operations. */
struct disk_queue {
    struct kvc_io *first, **end;
};

struct kvc_tier {
    struct disk_config cfg;
    size_t header_bytes;
    struct km_digest fingerprint;
    bool direct, uring;
    int lock_fd;
    atomic_ulong temporaries;      /* number of temporary names used so far */
    atomic_int reading;            /* GETs in progress */

    pthread_mutex_t lock;
    struct disk_index index;
    struct kvc_io *done;           /* finished operations, for poll */
    int64_t last_stamp;            /* newest stamp of the index, so that stamps rise even if the clock does not */
    int64_t evict_to;              /* the cleaner evicts down to this many bytes; -1: it does not evict */
    int64_t paused_until;          /* PUTs are refused until this time of km_now_ns */
    bool stop;
    pthread_cond_t clean, ended;   /* there is work for the cleaner; a thread has ended */
    pthread_t cleaner;
    struct disk_worker *reader, *writer;
    int workers_running;           /* workers whose threads have not ended */
    int users;                     /* threads that run, and 1 until close; the last user frees the tier */

    /* Counters. */
    int64_t read_bytes, written_bytes, evicted, errors, refused;
};

/* These need the lock. */
int64_t disk_stamp(struct kvc_tier *t, int n);        /* reserves n stamps and returns the first, the time now */
void disk_finish(struct kvc_tier *t, struct kvc_io *io, int rc); /* the next poll returns the operation */
void disk_doom(struct kvc_tier *t, int32_t entry);    /* from READY to DOOMED: the cleaner deletes the file */
void disk_evict(struct kvc_tier *t, int64_t to);      /* asks the cleaner to evict down to this many bytes */
void disk_pause(struct kvc_tier *t);                  /* stops writing for DISK_PAUSE_NS */

/* Drops a reference to the tier, which must not be locked; the last one frees it. */
void disk_release(struct kvc_tier *t);

/* disk_worker.c. A worker is a thread with a queue of operations. */
int disk_worker_open(struct disk_worker **out, struct kvc_tier *t, bool writes, struct km_err *err);
int disk_worker_start(struct disk_worker *w, struct km_err *err); /* starts its thread, which ends with the tier */
/* Needs the lock. Then call disk_worker_wake without the lock. */
void disk_worker_put(struct disk_worker *w, struct kvc_io *io);
void disk_worker_wake(struct disk_worker *w);
bool disk_worker_uring(const struct disk_worker *w);
void disk_worker_free(struct disk_worker *w); /* its thread has ended, or was never started */

/* disk_cleaner.c */
int disk_scan_into(struct kvc_tier *t, struct km_err *err); /* brings the index up to date with the folder */
void *disk_clean(void *tier); /* the cleaner's thread */

#endif
