/* A view: what belongs to one engine that uses the store. It is behind the engine's port.
 *
 * A view has the engine's copier, its sequences, its operations with their tickets, and two lanes, one per direction of
 * copies. A lane has the copies in flight, in the order of submission. Counters of lookups, loads and stores count one
 * engine's; counters of chunks and tiers belong to the store, and every view shows them. */
#ifndef KVC_VIEW_H
#define KVC_VIEW_H

#include "engine/kv_port.h"
#include "kvcache/keys.h"
#include "kvcache/rate.h"

struct kvc;
struct kvc_op;
struct kv_seq;

/* Calls of the copier in flight per lane. A piece is the pages of one call. With three in flight the bus sometimes
 * idled beside steps, because the checksums of a piece wait for the kernel that is running; with five it did not. */
enum { KVC_PIECES = 5 };
#define KVC_PIECE_BYTES ((size_t)32 << 20) /* about 0.6 ms on PCIe 5 x16 */

struct kvc_piece {
    struct kvc_op *op;
    uint64_t ticket;               /* of the copier */
    bool submitted;                /* false: the copier had no room for it yet */
    int n;                         /* pages */
    int32_t block[KV_COPY_MOST];   /* [n] blocks of the operation's sequence */
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
    bool closing;             /* detach waits for the copies in flight; nothing new starts */
    bool lost;                /* detach waits no longer: the copier is not called any more */
    bool calling;             /* who drives the operations is in a call of the copier */
    uint32_t epoch;           /* counts attachments and detachments */
    struct kv_copier copier;  /* constant while attached */
    struct kvc_keys keys;     /* for the engine's thread only */
    struct kv_seq *seqs;
    struct kvc_lane *lane;    /* [2] by enum kv_dir; leaked if copies do not end before the view detaches */
    struct kvc_op *ops, **ops_end; /* operations that are not finished, the oldest first */
    struct kvc_op *done;      /* finished operations, until the engine polls them */
    uint64_t n_tickets;
    int64_t now;              /* the copier's clock when the driver last read it */
    struct kv_port_stats stats; /* the counters of this engine */
};

int64_t kvc_view_now(const struct kvc_view *v); /* the engine's clock; not under the lock */
void kvc_view_port(struct kvc_view *v, struct kv_port *out);
void kvc_view_detach(struct kvc_view *v);
void kvc_view_free(struct kvc_view *v);

/* driver.c: submits and polls the view's copies, and finishes operations; true if something changed. Called with the
 * lock, which is released around calls of the copier. */
bool kvc_view_drive(struct kvc_view *v);

/* kvcache.c: opens the store for this geometry, or checks that the store is open for it. */
int kvc_join(struct kvc *k, const struct kv_geom *geom, const struct kv_copier *copier, struct km_err *err);
void kvc_stats(struct kvc *k, struct kv_port_stats *out);
int kvc_reset(struct kvc_view *v);

#endif
