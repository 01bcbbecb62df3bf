/* The definition of struct kvc, the cache. Only the files of kvcache/ and its tests include this header.
 *
 * Threads. The thread of each engine calls the port of its view. One transfer thread drives the operations of all
 * views: it calls the copiers and the tiers (driver.c). If the copiers must not be called by another thread
 * (kv_copier.threads), there is no transfer thread: calls of an engine's port drive the operations of its view and
 * those of the tiers.
 *
 * The lock protects everything in struct kvc and in its views, sequences and operations, except where a member says
 * otherwise. It is never held across a call of a copier or of a tier, so that a slow device or server does not delay a
 * thread that needs the index. */
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
    pthread_mutex_t attach_lock;   /* held during a whole attach or detach; taken before `lock` */
    pthread_mutex_t lock;
    pthread_cond_t work;           /* signalled when there is new work for the transfer thread */
    pthread_cond_t returned;       /* broadcast when a call of a copier has returned */
    struct kvc_view *views;        /* all views, newest first; they are freed together with the cache */

    /* Valid while `open`: from the first attach until kvc_free, or until an engine of another geometry attaches when
     * none is attached. The geometry and the pointers do not change in this time. */
    bool open;
    bool active;                   /* open, and the configuration keeps chunks: pool, chunks and tiers exist */
    bool threaded;                 /* the transfer thread drives the operations */
    struct kvc_geometry geometry;  /* keys, pool, chunks and tiers borrow it */
    struct kvc_keys keys;          /* only its fingerprint is used; each view has keys of its own */
    struct kvc_pool *pool;
    struct kvc_chunks chunks;
    struct kvc_tier_io tier[KVC_TIERS_MOST]; /* [cfg.n_tiers] */
    int32_t *abandoned;            /* [chunks.n] 1: abandoned pieces of a detached engine refer to the slot, which is
                                      never reused; else 0 */

    pthread_t thread;
    bool running, stop;            /* the transfer thread exists; the transfer thread must end */
    int64_t now;                   /* kvc_now at the start of the current pass over views and tiers; never falls */
    bool new_work;                 /* there is new work since the start of the current pass */
    bool driving_tiers;            /* a thread is in kvc_tiers_drive, which releases the lock at times */
    bool resetting;                /* a reset has asked the tiers to drop their chunks */
    int64_t throttle_free;         /* cfg.throttle: time from which the simulated link is free */
    int64_t throttle_at;           /* cfg.throttle: time when the next piece may start; 0: no piece waits for it */
    int64_t corrupt_chunks, dram_hit_tokens; /* counters of the statistics */

    size_t slab_bytes;             /* KVC_SLAB; tests set less */
};

/* The clock for deadlines, in ns: the monotonic clock, or the clock of v's copier if there is no transfer thread. Not
 * under the lock. */
int64_t kvc_now(const struct kvc_view *v);
/* Adds slots to the index whose memory the pool has allocated since the last call. */
void kvc_grow(struct kvc *k);
/* Drops a reference to a chunk. Without local_cpu, a READY chunk is dropped with its last reference. */
void kvc_unref(struct kvc *k, int slot);
/* Removes a chunk whose bytes are wrong from host memory, and from the tier that it came from (-1: none). */
void kvc_drop_corrupt(struct kvc *k, int slot, int tier);

/* driver.c: starts and stops the transfer thread. Not under the lock. */
int kvc_driver_start(struct kvc *k, struct km_err *err);
bool kvc_driver_stop(struct kvc *k); /* false: the thread is in a call that does not return within a second */
void kvc_driver_wake(struct kvc *k); /* tells the thread that there is new work; the lock is held */
/* Without a transfer thread: drives the operations of view v (NULL: none) and of the tiers until nothing changes.
 * Called by the view's engine, not under the lock. */
void kvc_drive(struct kvc *k, const struct kvc_view *v);

#endif
