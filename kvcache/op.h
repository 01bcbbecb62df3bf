/* An operation: one load or one store. The engine knows it by its ticket until a poll has returned 1.
 *
 * An operation has a part for each chunk of its tokens. The pages of the parts are copied in pieces (view.h). The
 * states of a part:
 *   WAIT  load: the chunk is not in host memory; it must be fetched from a tier, or another operation is filling it.
 *         store: another operation is filling the chunk; if that fails, this operation stores it.
 *   HOST  the chunk is READY, and the operation has a reference to its slot
 *   FILL  store: the operation fills the part's slot
 *   DONE  the operation does not need the chunk, or does not need it any more
 *
 * A load is to fill the tokens [floor, good_to). Its blocks are submitted from the last to the first; blocks before
 * `next` are not submitted yet. A cut raises floor. A chunk that cannot be loaded divides the interval: the larger side
 * remains, and the engine computes the other one. The load ends when all blocks of the interval are copied and verified
 * and no piece is in flight. Its result is [floor, good_to).
 *
 * All functions are called with the cache's lock held, except where the comment says otherwise. */
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
    int32_t slot;        /* HOST, FILL */
    int32_t n_tokens;    /* valid tokens of the chunk */
    int32_t tier;        /* load: the tier that has the chunk, or -1 */
    int32_t n_in_flight; /* pages in flight */
    int32_t n_submitted; /* store: pages submitted so far, from the last to the first */
    bool fetched;        /* load: a GET of the chunk was started */
    bool bad;            /* the chunk cannot be stored or loaded */
};

struct kvc_op {
    struct kvc_op *next_op;     /* on one of the view's lists */
    struct kvc_view *view;
    struct kv_seq *seq;         /* NULL: it was closed. Its n_offered falls if a chunk cannot be loaded or stored */
    enum kvc_op_kind kind;
    uint64_t ticket, after;     /* after: the fence of all copies */
    int64_t start_ns;           /* on the copier's clock */
    int from, to;               /* tokens to load or to store */
    int first_chunk, n_parts;
    int first_block, n_blocks;  /* blocks that `page` has */
    int floor, good_to, next;   /* load: see above; floor and good_to in tokens, next in blocks */
    int n_in_flight;            /* pieces in flight */
    bool failed;                /* load: a chunk could not be loaded */
    int32_t *page;              /* [n_blocks] the block table from first_block on */
    int32_t *ids;               /* token ids from chunk ids_chunk on. Load: NULL if all chunks were in host memory */
    int ids_chunk;
    struct kvc_part part[];     /* [n_parts] */
};

/* A new operation of tokens [from, to). Its parts are the chunks that contain these tokens, in state DONE. n_ids:
 * tokens that `ids` has room for. NULL: no memory. Not under the lock. */
struct kvc_op *kvc_op_new(struct kvc_view *v, enum kvc_op_kind kind, int from, int to, int n_ids);
void kvc_op_free(struct kvc_op *op);
uint64_t kvc_op_start(struct kvc_op *op); /* appends it to the view's open operations; returns its ticket */
/* The operation with this ticket; NULL: there is none. *done: it is finished. */
struct kvc_op *kvc_op_find(const struct kvc_view *v, uint64_t ticket, bool *done);
void kvc_op_finish(struct kvc_op *op);    /* moves it from the view's open operations to the finished ones */
/* The view is detaching: gives up the parts in state WAIT, and the tokens of a load whose copies were not submitted. */
void kvc_op_cancel(struct kvc_op *op);
/* Drops the operation's references, and the chunks that it has not filled. No piece is in flight, or the pieces were
 * abandoned. */
void kvc_op_release(struct kvc_op *op);
struct kvc_part *kvc_op_part(struct kvc_op *op, int block); /* the part of the block's chunk */
const int32_t *kvc_op_ids(const struct kvc_op *op, int part); /* token ids of the part's chunk */
void kvc_op_count_refs(const struct kvc_op *op, int32_t *refs); /* adds the operation's references to refs, by slot */
int64_t kvc_op_ns(const struct kvc_op *op); /* time since the start of the operation, in ns */
/* Adds a block to a piece: a copy between the page and the part's slot. */
void kvc_op_add(struct kvc_op *op, struct kvc_piece *p, int block);

/* load.c, store.c: the port's functions load and store. Not under the lock. */
int kvc_load(struct kv_seq *s, int from, int to, const int32_t *block_table, uint64_t after, uint64_t *ticket);
int kvc_store(struct kv_seq *s, const int32_t *tokens, int n, int n_prompt, const int32_t *block_table, uint64_t after,
              uint64_t *ticket, int *from);
int kvc_load_cut(struct kvc_op *op, int upto); /* the port's function cut, for an open load; under the lock */

/* Changes the states of parts, and starts fetches. True if something changed. */
bool kvc_load_advance(struct kvc_op *op);
bool kvc_store_advance(struct kvc_op *op);
/* Fills p with the pages that are to be copied next. False: there are none now. */
bool kvc_load_build(struct kvc_op *op, struct kvc_piece *p);
bool kvc_store_build(struct kvc_op *op, struct kvc_piece *p);
/* A piece has ended; rc: 1, or < 0 if its copies failed. */
void kvc_load_retire(struct kvc_op *op, struct kvc_piece *p, int rc);
void kvc_store_retire(struct kvc_op *op, struct kvc_piece *p, int rc);
/* True if the operation has ended. Its time and result are then counted, and its references are dropped. */
bool kvc_load_done(struct kvc_op *op);
bool kvc_store_done(struct kvc_op *op);

/* The chunk in this slot was published: the parts of loads that wait for it take a reference. */
void kvc_loads_take(struct kvc *k, int slot);

#endif
