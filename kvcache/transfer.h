/* Moves between slots and pages: what lies behind a ticket.
 *
 * A `kvc_op` is one load or one store; a part of it is one chunk. Copies and checksums of its parts overlap: a load
 * sends to the pages what was verified so far, a store hashes what has arrived. With a copier that answers at once
 * each chunk is hashed and copied while it is in the CPU's cache, and the whole move is over before `run` returns.
 * An op holds references of its own, so the sequence it came from may close at any time. */
#ifndef KVC_TRANSFER_H
#define KVC_TRANSFER_H

#include "kvcache/internal.h"

/* NULL without memory. Nothing can run out of memory after that. */
struct kvc_transfer *kvc_transfer_new(struct kv_seq *s, enum kv_dir dir, int parts, int copies);
/* The next chunk of the sequence, which starts at token tok. `pages` of the slot, from page `first` on, move
 * between it and block_table[0..pages); 0 pages: a chunk already stored that the others build on. */
void kvc_transfer_add(struct kvc_transfer *op, int slot, int tok, int first, int pages, const int32_t *block_table);
/* Takes op over. [from, to): the tokens asked for. *ticket 0: over, *good is set; returns what a poll would: < 0
 * when some of it failed, else 0. */
int kvc_transfer_start(struct kvc_transfer *op, int from, int to, uint64_t *ticket, int *good);
int kvc_transfer_poll(struct kvc *k, uint64_t ticket, int *good);

/* Loads of this sequence no longer drop its pins when they complete. */
void kvc_transfer_forget_seq(struct kv_seq *s);
/* Finishes what is open, for up to ten seconds; false when the copier would not. */
bool kvc_transfer_drain(struct kvc *k);
void kvc_transfer_count_refs(const struct kvc *k, int32_t *refs); /* refs: [chunks.n], added to */

#endif
