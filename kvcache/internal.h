/* The definition of struct kvc, the store. Only the files of kvcache/ and its tests include this header.
 *
 * Threads. The thread of each engine calls the port of its view. One transfer thread drives the operations of all
 * views: it calls the copiers and the tiers (driver.c). If the copiers must not be called by another thread
 * (kv_copier.threads), there is no transfer thread, and calls of each engine's port drive its operations instead.
 *
 * The lock protects everything in struct kvc and in its views, sequences and operations, except where a member says
 * otherwise. It is never held across a call of a copier or of a tier, so that a slow device or server delays nobody who
 * needs the index. */
#ifndef KVC_INTERNAL_H
#define KVC_INTERNAL_H

#include "kvcache/chunks.h"
#include "kvcache/geometry.h"
#include "kvcache/keys.h"
#include "kvcache/kvcache.h"
#include "kvcache/pool.h"
#include "kvcache/tier_io.h"

#include <pthread.h>

struct kvc_view;

struct kvc {
    struct kvc_config cfg;         /* constant */
    pthread_mutex_t doors;         /* held by an attach and by a detach, from beginning to end; taken before `lock` */
    pthread_mutex_t lock;
    pthread_cond_t work;           /* signalled when the transfer thread has something new to do */
    pthread_cond_t passed;         /* broadcast when a call of a copier has returned, and when the thread has ended */
    struct kvc_view *views;        /* all views, newest first; a view is freed with the store only */

    /* Valid while `open`: from the first attach until kvc_free, or until an engine of another geometry attaches when
     * none is attached. The geometry and the pointers do not change in this time. */
    bool open;
    bool active;                   /* open, and chunks have a place to go: pool, chunks and tiers below exist */
    bool threaded;                 /* the transfer thread drives the operations */
    struct kvc_geometry geometry;  /* the parts below borrow it */
    struct kvc_keys keys;          /* for the fingerprint; each view has keys of its own */
    struct kvc_pool *pool;
    struct kvc_chunks chunks;
    struct kvc_tier_io tier[KVC_TIERS_MOST]; /* [cfg.n_tiers] */
    int32_t *lost;                 /* [chunks.n] references of copies that did not end before their engine detached */

    pthread_t thread;
    bool running, stop;            /* the transfer thread exists; it is to end */
    int64_t now;                   /* kvc_now when the current pass over views and tiers began; never falls */
    bool dirty;                    /* there is new work since the current pass began */
    bool driving;                  /* somebody is driving the tiers */
    bool resetting;                /* a reset has asked the tiers to drop their chunks */
    int64_t throttle_free, throttle_at; /* cfg.throttle: the link is free from this time on; the next piece may start at
                                           this time, 0: no piece is waiting */
    int64_t corrupt_chunks;
    int64_t dram_hit_tokens;

    size_t slab_bytes;             /* set by tests: KVC_SLAB, or less */
};

/* The store's clock in ns, for deadlines: the monotonic clock, or that of a view's simulated device. Not under the
 * lock. */
int64_t kvc_now(const struct kvc_view *v);
/* Makes slots usable whose memory the pool has allocated meanwhile. */
void kvc_grow(struct kvc *k);
/* Drops a reference to a chunk. Without local_cpu, a chunk without references leaves host memory. */
void kvc_unref(struct kvc *k, int slot);
/* Removes a chunk whose bytes are wrong from host memory, and from the tier that it came from (-1: none). */
void kvc_drop_corrupt(struct kvc *k, int slot, int tier);

/* driver.c */
int kvc_driver_start(struct kvc *k, struct km_err *err);
bool kvc_driver_stop(struct kvc *k); /* false: the thread is in a call that does not return */
void kvc_driver_wake(struct kvc *k);  /* there is new work; the lock is held */
/* Advances the operations of a view and the tiers, if no thread does: called by the view's engine. v NULL: the tiers.
 * Not under the lock. */
void kvc_drive(struct kvc *k, const struct kvc_view *v);

#endif
