/* The disk tier's state, which its files share (disk.c, disk_lane.c, disk_cleaner.c).
 *
 * A `kvc_tier` (below: the tier) has three threads. Two lanes, one for GETs and one for PUTs, open files and keep
 * reads and writes in flight (disk_aio.h). The cleaner deletes files that are evicted or doomed. While another process
 * uses the folder, it also repeats the scan, so that the index follows what the other process does. One mutex protects
 * the index, the queues and the counters; no thread holds it during a system call that touches the disk. */
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
    DISK_DEPTH = 32,          /* pieces in flight of a lane */
    DISK_DEPTH_YIELD = 4,     /* of the writing lane while the other reads: loads come before stores */
    DISK_JOBS = 32,           /* chunks in progress of a lane */
    DISK_BLOCK = 4096,        /* unit of O_DIRECT, of headers and of file sizes */
    DISK_LOW_PERCENT = 95,    /* eviction goes on until the files have this share of the cap */
    DISK_START_PERCENT = 98   /* eviction starts above this share, so that writes seldom wait for it */
};
#define DISK_PAUSE_NS ((int64_t)10 * 1000000000)  /* no writes for so long after a write has failed */
#define DISK_RESCAN_NS ((int64_t)10 * 1000000000) /* at least, between scans while the folder is shared */
#define DISK_AGE_NS ((int64_t)100 * 1000000) /* a stored chunk counts as this much older per chunk before it in its
                                                sequence, so that of one prompt the tail is evicted before the head */

struct disk_lane;

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
    atomic_ulong temporaries;      /* temporary names used */
    atomic_int reading;            /* GETs in progress */

    pthread_mutex_t lock;
    struct disk_index index;
    struct kvc_io *done;           /* finished operations, for poll */
    int64_t last_stamp;            /* newest stamp of the index, so that stamps rise even if the clock does not */
    int64_t evict_to;              /* the cleaner evicts until the files have at most so many bytes; -1: it does not */
    int64_t paused_until;          /* km_now_ns until which writes are refused */
    bool stop;
    pthread_cond_t clean, ended;   /* for the cleaner: there is work; for close: a thread has ended */
    pthread_t cleaner;
    struct disk_lane *reader, *writer;
    int lanes_running;             /* lanes whose threads have not ended */
    int users;                     /* threads, and the owner until close; the last one frees the tier */

    /* Counters. */
    int64_t read_bytes, written_bytes, evicted, errors, refused;
};

/* These need the lock. */
int64_t disk_stamp(struct kvc_tier *t, int n);        /* reserves n stamps and returns the first, the time now */
void disk_finish(struct kvc_tier *t, struct kvc_io *io, int rc); /* hands an operation to poll */
void disk_doom(struct kvc_tier *t, int32_t entry);    /* the cleaner deletes a READY entry's file soon */
void disk_evict(struct kvc_tier *t, int64_t to);      /* asks the cleaner to evict down to this many bytes */
void disk_pause(struct kvc_tier *t);                  /* stops writing for DISK_PAUSE_NS */

/* Drops a reference to the tier, which must not be locked; the last one frees it. */
void disk_release(struct kvc_tier *t);

/* disk_lane.c. A lane is a thread with a queue. */
int disk_lane_open(struct disk_lane **out, struct kvc_tier *t, bool writes, struct km_err *err);
int disk_lane_start(struct disk_lane *l, struct km_err *err); /* starts its thread, which ends with the tier */
void disk_lane_put(struct disk_lane *l, struct kvc_io *io); /* needs the lock; then call disk_lane_wake without it */
void disk_lane_wake(struct disk_lane *l);
bool disk_lane_uring(const struct disk_lane *l);
void disk_lane_free(struct disk_lane *l); /* its thread has ended, or was never started */

/* disk_cleaner.c */
int disk_scan_into(struct kvc_tier *t, struct km_err *err); /* brings the index up to date with the folder */
void *disk_clean(void *tier); /* the cleaner's thread */

#endif
