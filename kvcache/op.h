/* An operation: one load or one store, which a ticket of the port names until the engine has polled it.
 *
 * An operation has one part per chunk. A part's pages are copied in pieces (view.h). The states of a part:
 *   WAIT  load: the chunk is not in host memory; a tier is to deliver it, or another operation is filling it.
 *         store: another operation is filling the chunk; if that fails, this operation stores it.
 *   HOST  the chunk is READY, and the operation has a reference to its slot
 *   FILL  store: the operation fills the slot
 *   DONE  the operation needs the chunk no more
 *
 * A load wants the tokens [floor, good_to). Blocks are submitted from the last to the first; those before `next` are
 * not submitted yet. A cut raises floor. A chunk that cannot be loaded divides the interval; the larger side remains,
 * and the other is left to the engine. When all blocks of the interval were copied and verified, and nothing is in
 * flight any more, [floor, good_to) is the result.
 *
 * All functions are called with the store's lock held, except where the comment says otherwise. */
#ifndef KVC_OP_H
#define KVC_OP_H

#include "base/hash.h"
#include "engine/kv_port.h"

#include <stdbool.h>
#include <stdint.h>

struct kvc;
struct kvc_piece;
struct kvc_view;

enum kvc_op_kind { KVC_STORE, KVC_LOAD };
enum kvc_part_state { KVC_WAIT, KVC_HOST, KVC_FILL, KVC_DONE };

struct kvc_part {
    struct km_digest key;
    enum kvc_part_state state;
    int32_t slot;
    int32_t n_tokens;   /* valid tokens of the chunk */
    int32_t tier;       /* load: the tier that has the chunk, or -1 */
    int32_t n_flying;   /* pages in flight */
    int32_t n_submitted; /* store: pages submitted so far, from the last to the first */
    bool tried;         /* load: the chunk was asked of its tier */
    bool bad;           /* the chunk cannot be stored or loaded */
};

struct kvc_op {
    struct kvc_op *next_op;     /* on one of the view's lists */
    struct kvc_view *view;
    struct kv_seq *seq;         /* whose chunks are offered again if they fail; NULL: closed */
    enum kvc_op_kind kind;
    uint64_t ticket, after;
    int64_t start_ns;
    int from, to;               /* tokens to load or to store */
    int first_chunk, n_parts;
    int first_block, n_blocks;  /* blocks that `page` has */
    int floor, good_to, next;   /* load: above; floor and good_to in tokens, next in blocks */
    int n_flying;               /* pieces */
    bool failed;                /* bytes were missing, wrong or late */
    int32_t *page;              /* [n_blocks] the block table from first_block on */
    int32_t *ids;               /* the tokens from chunk ids_chunk on. Load: NULL if all chunks are in host memory */
    int ids_chunk;
    struct kvc_part part[];     /* [n_parts] */
};

/* A new operation of tokens [from, to), whose parts are the chunks that contain them, in state DONE. n_ids: space for
 * ids. NULL without memory. Not under the lock. */
struct kvc_op *kvc_op_new(struct kvc_view *v, enum kvc_op_kind kind, int from, int to, int n_ids);
void kvc_op_free(struct kvc_op *op);
uint64_t kvc_op_start(struct kvc_op *op); /* appends it to the view's list; returns its ticket */
struct kvc_op *kvc_op_find(const struct kvc_view *v, uint64_t ticket, bool *done);
void kvc_op_finish(struct kvc_op *op);    /* from the list of open operations to that of finished ones */
/* Ends an operation whose view detaches: what is not in flight is given up. */
void kvc_op_abandon(struct kvc_op *op);
/* Drops what the operation refers to, after its copies have ended or will never be awaited. */
void kvc_op_release(struct kvc_op *op);
struct kvc_part *kvc_op_part(struct kvc_op *op, int block);
/* The ids of a part's chunk. */
const int32_t *kvc_op_ids(const struct kvc_op *op, int part);
void kvc_op_count_refs(const struct kvc_op *op, int32_t *refs);
/* Time since the start of the operation, in ns. An operation may start after the driver last read the clock. */
int64_t kvc_op_ns(const struct kvc_op *op);
/* Adds a block to a piece: a copy between the page and the part's slot. */
void kvc_op_add(struct kvc_op *op, struct kvc_piece *p, int block);

/* load.c, store.c: what the port's functions of the same name do. Not under the lock. */
int kvc_load(struct kv_seq *s, int from, int to, const int32_t *block_table, uint64_t after, uint64_t *ticket);
int kvc_store(struct kv_seq *s, const int32_t *tokens, int n, int n_prompt, const int32_t *block_table, uint64_t after,
              uint64_t *ticket, int *from);
int kvc_load_cut(struct kvc_op *op, int upto);

/* Makes progress that needs no copy: chunks that have arrived, fetches, chunks that failed. True if any. */
bool kvc_load_advance(struct kvc_op *op);
bool kvc_store_advance(struct kvc_op *op);
/* Fills p with the pages that are to be copied next; false: none now. */
bool kvc_load_build(struct kvc_op *op, struct kvc_piece *p);
bool kvc_store_build(struct kvc_op *op, struct kvc_piece *p);
/* A piece has ended: rc 1, or < 0. */
void kvc_load_retire(struct kvc_op *op, struct kvc_piece *p, int rc);
void kvc_store_retire(struct kvc_op *op, struct kvc_piece *p, int rc);
/* True if nothing is left to do; the counters and references of the operation are settled then. */
bool kvc_load_done(struct kvc_op *op);
bool kvc_store_done(struct kvc_op *op);

/* A fetched chunk was published: loads that wait for it take a reference. */
void kvc_loads_wake(struct kvc *k, int slot);

#endif
