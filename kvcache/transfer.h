/* Transfers: the copies between the DRAM tier's slots and the pages of the KV pool.
 *
 * A `kvc_transfer` is one load or one store, and a ticket of the port names it while it is open. Copies and checksums
 * overlap, chunk by chunk: a load copies the chunks that it has verified, while later chunks are hashed; a store hashes
 * the chunks that were copied, while later chunks are copied. If the copier completes a copy within its call, the
 * transfer is synchronous: each chunk is hashed and copied while it is in the CPU's cache, and the transfer is finished
 * when kvc_transfer_start returns.
 *
 * A transfer has references to the chunks that it needs, so its sequence may close while the transfer is open. */
#ifndef KVC_TRANSFER_H
#define KVC_TRANSFER_H

#include "kvcache/internal.h"

/* A transfer of at most `chunks` chunks and `copies` pages; NULL without memory. The calls below allocate nothing. */
struct kvc_transfer *kvc_transfer_new(struct kv_seq *s, enum kv_dir dir, int chunks, int copies);

/* Adds the sequence's next chunk, whose first token is `start`. Pages [first, first + pages) of the chunk in `slot` are
 * copied from or to block_table[0, pages). A store also adds the chunks that are in the cache already, with pages 0.
 * Nothing of them is copied, but they become the newest of the order list together with the new chunks. */
void kvc_transfer_add(struct kvc_transfer *t, int slot, int start, int first, int pages, const int32_t *block_table);

/* Starts the transfer of tokens [from, to) and takes ownership of it. *ticket 0: the transfer is finished and freed,
 * and *good is set as kvc_transfer_poll sets it. Returns 0, or < 0 if the transfer has failed already. */
int kvc_transfer_start(struct kvc_transfer *t, int from, int to, uint64_t *ticket, int *good);

/* Advances the transfer; as `poll` of the port: 1 complete, 0 pending, < 0 failed. */
int kvc_transfer_poll(struct kvc *k, uint64_t ticket, int *good);

/* Separates the sequence from its open transfers, so that its loads do not drop its pins when they finish. */
void kvc_transfer_forget_seq(struct kv_seq *s);

/* Waits until every transfer is finished, for at most ten seconds. False if copies are still in flight after that. */
bool kvc_transfer_drain(struct kvc *k);

/* Adds the references that open transfers hold to refs[chunks.n]. */
void kvc_transfer_count_refs(const struct kvc *k, int32_t *refs);

#endif
