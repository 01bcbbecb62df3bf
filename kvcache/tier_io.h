/* Operations of the layer's tiers: GETs, PUTs, questions (EXISTS) and removals, with deadlines and counters.
 *
 * A `kvc_tier_io` is one configured tier with its operations. A GET fills a FILLING slot. When the tier returns it in
 * time with the right header, the chunk is published and every load that waits for it compares the ids and takes a
 * reference; otherwise the slot is dropped. A PUT has a reference to its slot. What a tier returns after the deadline
 * counts as missing; the slot keeps a reference until then, so that nobody reuses a buffer that the tier may still
 * write.
 *
 * A tier with KVC_LATE_MOST operations beyond their deadline is stuck: it is neither asked nor given anything until it
 * has returned some of them. A tier that never answers thus costs at most KVC_LATE_MOST + KVC_GETS + KVC_PUTS slots.
 *
 * Chunks that wait for a PUT, and those in one, have references, so they are not evicted. At most half of the slots may
 * have such references, all tiers together: a tier that is slower than prefill gets a burst of chunks whole as long as
 * host memory holds it, and new chunks still find slots to evict. Beyond this quota the PUTs of the chunks with the
 * highest positions are dropped; such a chunk is queued again when it is used and the quota has room.
 *
 * All functions are called with the store's lock held, except where the comment says otherwise. */
#ifndef KVC_TIER_IO_H
#define KVC_TIER_IO_H

#include "base/hash.h"
#include "engine/kv_port.h"
#include "kvcache/rate.h"
#include "kvcache/tier.h"

struct kvc;
struct kv_seq;

enum { KVC_GETS = 16, KVC_PUTS = 8, KVC_PUT_QUEUE = 4096 /* it is searched from end to end */, KVC_LATE_MOST = 4 };

#define KVC_IO_NS 5000000000LL    /* deadline of a GET or PUT: this, and the time of its bytes at KVC_IO_RATE */
#define KVC_IO_RATE 50e6          /* bytes per second */
#define KVC_EXISTS_NS 1000000000LL

/* A GET, PUT or REMOVE. */
struct kvc_tio {
    struct kvc_io io;
    struct kvc_tio *prev, *next; /* list of the tier's operations that it has not returned */
    int32_t slot;                /* -1: none, of a REMOVE */
    int64_t deadline;
    bool late;
};

/* Questions for the chunks [first, first + n) of a sequence. */
struct kvc_ask {
    struct kvc_ask *prev, *next; /* list of the tier's questions that it has not returned */
    struct kv_seq *seq;          /* NULL: closed */
    int tier, first, n, n_left;
    int64_t deadline;
    bool late;
    bool tail;                   /* the last one asks for the partial last chunk */
    struct kvc_io io[];          /* [n] */
};

struct kvc_put {
    int32_t slot, position;
};

struct kvc_tier_io {
    const struct kvc_tier_ops *ops;
    struct kvc_tier *tier;       /* NULL: not open */
    struct kvc_tio *tios;
    struct kvc_ask *asks;
    struct kvc_io *pending, **pending_end; /* operations that the transfer thread is to submit, in order */
    struct kvc_put queue[KVC_PUT_QUEUE];   /* chunks to be PUT; each has a reference to its slot */
    int n_queue, quota;          /* most chunks queued and in PUTs */
    int n_gets, n_puts;          /* GETs and PUTs in flight that are not late */
    int n_late;                  /* operations and lists of questions that are late */
    int32_t checking;            /* slot of the chunk whose PUT starts unless the tier has it; -1: none */
    enum { KVC_CLEAR_NONE, KVC_CLEAR_ASKED, KVC_CLEAR_RUNS, KVC_CLEAR_DONE, KVC_CLEAR_FAILED } clear;
    struct kvc_rate get_rate;
    int64_t hit_tokens, gets, get_bytes, puts, put_bytes, failures, late, dropped_puts;
};

/* Opens all configured tiers; not under the lock. */
int kvc_tiers_open(struct kvc *k, struct km_err *err);
/* Closes the tiers; their slots that are in use are quarantined. Not under the lock; nobody drives operations. */
void kvc_tiers_close(struct kvc *k);

bool kvc_tier_stuck(const struct kvc_tier_io *t);
enum kvc_get { KVC_GET_STARTED, KVC_GET_LATER, KVC_GET_NO_SLOT, KVC_GET_FAILED };
/* Starts to fetch a chunk that is not in the index. LATER: too many GETs are in flight. */
enum kvc_get kvc_tier_get(struct kvc *k, int tier, const struct km_digest *key, int position, int n_tokens);
/* Queues the PUTs of a READY chunk that was just stored. */
void kvc_tier_put(struct kvc *k, int slot);
/* A READY chunk was used: queues its PUT for each tier that lacks it, if the tier's quota has room. */
void kvc_tier_put_again(struct kvc *k, int slot);
void kvc_tier_remove(struct kvc *k, int tier, const struct km_digest *key);
/* Asks for keys[0, n), chunks first, ... of the sequence; with `tail` the last key is that of a partial chunk. False
 * without memory. */
bool kvc_tier_ask(struct kvc *k, int tier, struct kv_seq *s, int first, const struct km_digest *keys, int n, bool tail,
                  int64_t deadline);
/* Separates the sequence from its questions. */
void kvc_tier_forget(struct kvc *k, struct kv_seq *s);

/* Submits and polls, finds what is late, starts PUTs; true if something changed. Called by who drives the operations,
 * with the lock, which it releases around calls of a tier. */
bool kvc_tiers_drive(struct kvc *k);
/* The number of operations, questions and queued chunks of all tiers, without those that are late. */
int kvc_tiers_open_ios(const struct kvc *k);
int kvc_tiers_late(const struct kvc *k);
/* Adds the references of all tiers to refs. */
void kvc_tiers_count_refs(const struct kvc *k, int32_t *refs);

#endif
