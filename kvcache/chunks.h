/* The chunk index: which chunks host memory holds, in which slot, and which chunk is evicted next.
 *
 * An entry describes one chunk: its key, its position in the sequence and a reference count. The chunk's header (with
 * its token ids and checksums) and its payload are in the pool's slot of the same number. A slot is in one of four
 * states:
 *   FREE     on the free list
 *   FILLING  reserved for a chunk whose bytes are still being copied. It is in the index, so that no other operation
 *            copies the same chunk, but a lookup treats it as a miss.
 *   READY    in the index and on the order list; evictable while it has no references
 *   DROPPED  removed while it had references. It is in neither the index nor the order list, and becomes FREE when it
 *            loses its last reference.
 *
 * Invariant: a slot with references is not reused. All memory is allocated when the index opens, so no later call can
 * run out of memory. The index has no lock of its own; the cache's lock (internal.h) protects it. */
#ifndef KVC_CHUNKS_H
#define KVC_CHUNKS_H

#include "base/err.h"
#include "base/hash.h"
#include "kvcache/kvcache.h"

#include <stdbool.h>
#include <stdint.h>

enum kvc_state { KVC_FREE, KVC_FILLING, KVC_READY, KVC_DROPPED };

struct kvc_chunk {
    _Alignas(64) struct km_digest key; /* an entry is one cache line */
    int32_t position;      /* number of chunks before this one in its sequence */
    int32_t refs;          /* references of sequences (pins), loads, stores and operations of tiers */
    int32_t newer, older;  /* READY: neighbours on the order list, -1 at its ends. FREE: older is the next free slot */
    enum kvc_state state;
    uint8_t lacking;       /* bit t: tier t lacks the chunk, because its PUT was dropped or has failed */
};

struct kvc_chunks {
    struct kvc_chunk *chunk; /* [n], by slot */
    int32_t *index;        /* [mask + 1] slot or -1: a hash table with linear probing by the key's first bytes */
    uint32_t mask;
    int n;                 /* slots when the pool has its full size */
    int n_usable;          /* slots that kvc_chunks_grow has added */
    enum kvc_policy policy;
    int32_t newest, oldest; /* ends of the order list, whose oldest chunk is evicted first; -1: the list is empty */
    int32_t free;           /* head of the free list; -1: the list is empty */
    int n_free, n_filling, n_ready, n_dropped; /* usable slots by state */
    int n_evictable;       /* READY slots without references */
    int64_t evicted;       /* chunks evicted so far */
    uint8_t tiers;         /* the bits of all tiers; set by tier_io.c, 0: there are none */
    int64_t lost;          /* chunks that kvc_chunks_leave has dropped although every tier lacked them */
};

/* n: number of slots of the pool. None is usable yet. */
int kvc_chunks_open(struct kvc_chunks *s, int n, enum kvc_policy policy, struct km_err *err);
void kvc_chunks_close(struct kvc_chunks *s);
int64_t kvc_chunks_bytes(int n); /* memory of an index for n slots, for plans */
/* Adds slots [n_usable, usable) to the free list. */
void kvc_chunks_grow(struct kvc_chunks *s, int usable);

/* The slot with this key, FILLING or READY, or -1. */
int kvc_chunks_find(const struct kvc_chunks *s, const struct km_digest *key);
/* Finds keys[0, n) until one is neither FILLING nor READY, and returns their number. slots[i] is the slot of key i. It
 * prefetches, so that the time per key depends little on the number of chunks. */
int kvc_chunks_find_leading(const struct kvc_chunks *s, const struct km_digest *keys, int n, int32_t *slots);

/* Reserves a slot (FILLING, without references) for a chunk whose key is not in the index. Evicts a chunk if no slot is
 * free. Returns -1 if every chunk is referenced or being filled. */
int kvc_chunks_insert(struct kvc_chunks *s, const struct km_digest *key, int position);
void kvc_chunks_publish(struct kvc_chunks *s, int slot); /* FILLING to READY, as the newest */
void kvc_chunks_drop(struct kvc_chunks *s, int slot); /* FILLING or READY to FREE, or to DROPPED while referenced */
/* Drops a READY chunk that is not damaged, to free its slot. Counts it in `lost` if every tier lacks it. */
void kvc_chunks_leave(struct kvc_chunks *s, int slot);
void kvc_chunks_ref(struct kvc_chunks *s, int slot);
void kvc_chunks_unref(struct kvc_chunks *s, int slot);
void kvc_chunks_touch(struct kvc_chunks *s, int slot); /* makes a READY chunk the newest, under LRU only */
/* Drops every READY chunk without references. Returns the number of usable slots that are not FREE then. */
int kvc_chunks_clear(struct kvc_chunks *s);

/* Compares the reference counts with refs [n], and checks index, lists and counts: 0, or KM_EINVAL and the first broken
 * invariant. */
int kvc_chunks_check(const struct kvc_chunks *s, const int32_t *refs, struct km_err *err);

#endif
