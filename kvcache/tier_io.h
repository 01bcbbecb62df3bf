/* The tiers' operations (tier.h): GET, PUT, EXISTS and REMOVE, with deadlines and counters.
 *
 * A `kvc_tier_io` is one configured tier with its operations. A GET fills a FILLING slot; this is called a fetch. If
 * the tier returns the GET in time and the header is right, the chunk is published, and the loads that wait for it
 * compare the token ids and take references. Otherwise the chunk is dropped. A PUT has a reference to its slot.
 *
 * An operation is late if the tier has not returned it by its deadline. A late operation has failed, whatever the tier
 * returns afterwards. Its slot keeps a reference until the tier returns it, because the tier may still use the buffers.
 * A tier with KVC_LATE_MOST late operations is stuck: it gets no operation until it has returned some of them. A tier
 * that returns nothing therefore takes at most KVC_LATE_MOST + KVC_GETS + KVC_PUTS slots.
 *
 * Chunks that wait for a PUT, and those in one, have references, so they are not evicted. The quota limits them to half
 * of the slots, all tiers together, so that new chunks still find slots to evict. A tier that is slower than prefill
 * therefore stores a whole burst of chunks if half of host memory has room for it. Beyond the quota the PUTs of the
 * chunks with the highest positions are dropped. Such a chunk is queued again when it is used and the quota has room.
 *
 * All functions are called with the cache's lock held, except where the comment says otherwise. */
#ifndef KVC_TIER_IO_H
#define KVC_TIER_IO_H

#include "base/hash.h"
#include "engine/kv_port.h"
#include "kvcache/rate.h"
#include "kvcache/tier.h"

struct kvc;
struct kv_seq;

enum {
    KVC_GETS = 16,        /* most GETs of a tier in flight */
    KVC_PUTS = 8,         /* most PUTs of a tier in flight */
    KVC_PUT_QUEUE = 4096, /* most chunks that wait for a PUT of a tier; the queue is searched linearly */
    KVC_LATE_MOST = 4     /* late operations of a tier that is stuck */
};

#define KVC_IO_NS 5000000000LL     /* deadline of a GET, PUT or REMOVE: this, and the time of a chunk at KVC_IO_RATE */
#define KVC_IO_RATE 50e6           /* bytes per second */
#define KVC_EXISTS_NS 1000000000LL /* deadline of an EXISTS */

/* A GET, PUT or REMOVE. */
struct kvc_tio {
    struct kvc_io io;
    struct kvc_tio *prev, *next; /* list of the tier's operations that it has not returned */
    int32_t slot;                /* -1: none, of a REMOVE */
    int64_t deadline;
    bool late;
};

/* An ask: the EXISTS operations for the chunks [first, first + n) of a sequence. It counts as one operation. */
struct kvc_ask {
    struct kvc_ask *prev, *next; /* list of the tier's asks that it has not returned completely */
    struct kv_seq *seq;          /* NULL: it was closed */
    int tier, first, n;
    int n_left;                  /* operations that the tier has not returned */
    int64_t deadline;
    bool late;
    bool tail;                   /* the only chunk is the tail, the partial last chunk (sequence.h) */
    struct kvc_io io[];          /* [n] */
};

/* A chunk that waits for a PUT. */
struct kvc_put {
    int32_t slot, position;
};

struct kvc_tier_io {
    const struct kvc_tier_ops *ops;
    struct kvc_tier *tier;       /* NULL: not open */
    struct kvc_tio *tios;        /* GETs, PUTs and REMOVEs that the tier has not returned */
    struct kvc_ask *asks;
    struct kvc_io *pending, **pending_end; /* operations that are still to be submitted, in order */
    struct kvc_put queue[KVC_PUT_QUEUE];   /* [n_queue] each has a reference to its slot */
    int n_queue, quota;          /* quota: most chunks in the queue and in PUTs that are not late */
    int n_gets, n_puts;          /* GETs and PUTs in flight that are not late */
    int n_late;                  /* late GETs, PUTs, REMOVEs and asks */
    int32_t checking;            /* slot of a chunk that left the queue, during the tier's lookup of it; else -1 */
    enum { KVC_CLEAR_NONE, KVC_CLEAR_ASKED, KVC_CLEAR_RUNS, KVC_CLEAR_DONE, KVC_CLEAR_FAILED } clear; /* of a reset */
    struct kvc_rate get_rate;
    /* Counters of the statistics. */
    int64_t hit_tokens, gets, get_bytes, puts, put_bytes, failures, late, dropped_puts;
};

/* Opens all configured tiers; not under the lock. */
int kvc_tiers_open(struct kvc *k, struct km_err *err);
/* Closes the tiers. Slots that a tier may still use are quarantined (pool.h). Not under the lock; the transfer thread
 * has ended. */
void kvc_tiers_close(struct kvc *k);

bool kvc_tier_stuck(const struct kvc_tier_io *t);
enum kvc_get {
    KVC_GET_STARTED,
    KVC_GET_LATER,   /* KVC_GETS GETs are in flight */
    KVC_GET_NO_SLOT, /* no slot is free or evictable */
    KVC_GET_FAILED   /* the tier is stuck, or there is no memory */
};
/* Starts to fetch a chunk that is not in the index. */
enum kvc_get kvc_tier_get(struct kvc *k, int tier, const struct km_digest *key, int position);
/* A READY chunk was just stored: queues its PUT for every tier, as far as the quotas allow. */
void kvc_tier_put(struct kvc *k, int slot);
/* A READY chunk was used: queues its PUT for each tier that lacks it, if the tier's quota has room. */
void kvc_tier_put_again(struct kvc *k, int slot);
void kvc_tier_remove(struct kvc *k, int tier, const struct km_digest *key);
/* Starts EXISTS operations for keys[0, n): the chunks from `first` on of the sequence, or its tail (then n is 1).
 * False: no memory. */
bool kvc_tier_ask(struct kvc *k, int tier, struct kv_seq *s, int first, const struct km_digest *keys, int n, bool tail,
                  int64_t deadline);
/* The sequence is about to be freed: answers to its asks are ignored. */
void kvc_tier_forget(struct kvc *k, struct kv_seq *s);

/* Starts PUTs, submits and polls operations, and finds late ones. True if something changed. Called with the lock held;
 * the lock is released during calls of a tier. Calls must not overlap. */
bool kvc_tiers_drive(struct kvc *k);
int kvc_tiers_open_ios(const struct kvc *k); /* operations that are not late, queued chunks and resets of all tiers */
int kvc_tiers_late(const struct kvc *k);     /* late operations of all tiers */
/* Adds the references of all tiers to refs, by slot. */
void kvc_tiers_count_refs(const struct kvc *k, int32_t *refs);

#endif
