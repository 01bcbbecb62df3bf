/* A view: what belongs to one engine that uses the cache. The engine's port leads to it.
 *
 * A view has the engine's copier, its sequences, its operations with their tickets, and two lanes. A piece is the pages
 * of one call of the copier. A lane is the queue of the pieces of one direction (loads or stores) that are in flight,
 * in the order of submission; its newest piece may still have to be submitted. Lookups, loads and stores are counted by
 * view. Chunks and tiers are counted by the cache, and the statistics of every view include these counters. */
#ifndef KVC_VIEW_H
#define KVC_VIEW_H

#include "engine/kv_port.h"
#include "kvcache/keys.h"
#include "kvcache/rate.h"

struct kvc;
struct kvc_op;
struct kv_seq;

/* Most pieces in flight in a lane. The checksums of a piece wait for the kernel that is running on the GPU. With three
 * pieces the bus therefore idled at times while steps ran; with five it did not. */
enum { KVC_PIECES = 5 };
#define KVC_PIECE_BYTES ((size_t)32 << 20) /* about 0.6 ms on PCIe 5 x16 */

struct kvc_piece {
    struct kvc_op *op;
    uint64_t ticket;               /* of the copier */
    bool submitted;                /* false: the copier has refused it so far, because too many copies are in flight */
    int n;                         /* pages */
    int32_t block[KV_COPY_MOST];   /* [n] the pages' blocks, counted from the start of the sequence */
    struct kv_copy copy[KV_COPY_MOST]; /* [n] */
};

struct kvc_lane {
    struct kvc_piece piece[KVC_PIECES]; /* a ring: n pieces from `head` on, the oldest first */
    int head, n;
    struct kvc_rate rate;
};

struct kvc_view {
    struct kvc *kvc;
    struct kvc_view *next;
    bool attached;
    bool detaching;           /* a detach waits for the pieces in flight; no piece is submitted */
    bool abandoned;           /* the pieces did not end in time. The copier is not called any more */
    bool calling;             /* a call of the copier is under way, and the lock is released meanwhile */
    uint32_t epoch;           /* number of attaches and detaches so far */
    struct kv_copier copier;  /* constant while attached */
    struct kvc_keys keys;     /* for the engine's thread only */
    struct kv_seq *seqs;
    struct kvc_lane *lane;    /* [2] by enum kv_dir. Not freed if its pieces were abandoned: a copier may use them */
    struct kvc_op *ops, **ops_end; /* operations that are not finished, the oldest first */
    struct kvc_op *done;      /* finished operations, until the engine polls them */
    uint64_t n_tickets;
    int64_t now;              /* time of the copier's clock after its last call, in ns */
    struct kv_port_stats stats; /* only the counters of lookups, loads and stores are used */
};

int64_t kvc_view_now(const struct kvc_view *v); /* the copier's clock, in ns; not under the lock */
void kvc_view_port(struct kvc_view *v, struct kv_port *out);
void kvc_view_detach(struct kvc_view *v);
void kvc_view_free(struct kvc_view *v);

/* driver.c: polls and submits the view's pieces, and finishes operations. True if something changed. Called with the
 * lock held; the lock is released during calls of the copier. */
bool kvc_view_drive(struct kvc_view *v);

/* kvcache.c: opens the cache for this geometry, or checks that the cache is open for it. */
int kvc_join(struct kvc *k, const struct kv_geom *geom, const struct kv_copier *copier, struct km_err *err);
void kvc_stats(struct kvc *k, struct kv_port_stats *out);
int kvc_reset(struct kvc_view *v);

#endif
