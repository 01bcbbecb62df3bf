/* Transfers between the DRAM tier's slots and the pages of the KV pool: the work behind a ticket.
 *
 * A `kvc_transfer` is one load or one store. It copies and checks chunk by chunk, and both overlap: a load submits the
 * copies of the chunks that are verified so far, a store hashes the chunks that have arrived. A copier that completes
 * within its call makes a transfer synchronous: each chunk is hashed and copied while it is in the CPU's cache, and the
 * transfer is finished when kvc_transfer_start returns.
 *
 * A transfer holds references on the chunks that it needs, so the sequence that asked for it may close at any time. */
#ifndef KVC_TRANSFER_H
#define KVC_TRANSFER_H

#include "kvcache/internal.h"

/* A transfer of at most `chunks` chunks and `copies` pages. NULL without memory; the calls below allocate nothing. */
struct kvc_transfer *kvc_transfer_new(struct kv_seq *s, enum kv_dir dir, int chunks, int copies);

/* Adds the sequence's next chunk, whose first token is `start`. Pages [first, first + pages) of the chunk in `slot` are
 * copied from or to block_table[0, pages). A store adds chunks that are stored already with pages = 0: nothing is
 * copied, but they become the newest together with the others. */
void kvc_transfer_add(struct kvc_transfer *t, int slot, int start, int first, int pages, const int32_t *block_table);

/* Starts the transfer of tokens [from, to) and takes ownership of it. *ticket 0: it is finished already, *good is set
 * as kvc_transfer_poll sets it, and the transfer is freed. Returns 0, or < 0 if it has failed already. */
int kvc_transfer_start(struct kvc_transfer *t, int from, int to, uint64_t *ticket, int *good);

/* The port's poll: 1 complete, 0 pending, < 0 failed. */
int kvc_transfer_poll(struct kvc *k, uint64_t ticket, int *good);

/* Loads of this sequence no longer drop its pins when they finish. */
void kvc_transfer_forget_seq(struct kv_seq *s);

/* Waits until every transfer is finished, for ten seconds at most. False if copies are still in flight after that. */
bool kvc_transfer_drain(struct kvc *k);

/* Adds the references that open transfers hold to refs[chunks.n]. */
void kvc_transfer_count_refs(const struct kvc *k, int32_t *refs);

#endif
