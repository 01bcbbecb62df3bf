/* The chunk store: which chunks are held, in which slot, and which one goes next.
 *
 * A chunk is a slot number: its key, token ids and place in the sequence, a checksum, a reference count. States:
 *   FREE     on the free list
 *   FILLING  in the index (so that nobody stores it twice), not on the order list, never found by lookups
 *   READY    in the index and on the order list; evictable while refs is 0
 *   DOOMED   found bad while referenced: out of the index and the list, FREE once refs is 0
 * Everything is allocated when the store opens, so no verb here can run out of memory.
 *
 * This is also the boundary at which further tiers join: they move payload by key into slots (take, fill,
 * publish) and out of READY ones (find, ref, read, unref), and the port's code does not change. One tier needs
 * no table of functions, so there is none yet. */
#ifndef KVC_CHUNKS_H
#define KVC_CHUNKS_H

#include "base/err.h"
#include "base/hash.h"
#include "kvcache/kvcache.h"

#include <stdbool.h>
#include <stdint.h>

enum kvc_state { KVC_FREE, KVC_FILLING, KVC_READY, KVC_DROPPED };

struct kvc_chunk {
    struct km_digest key;
    uint64_t sum;
    int32_t position;        /* chunks before it in its sequence */
    int32_t refs;          /* sequences and operations that need it to stay */
    int32_t newer, older;  /* order list while READY; older chains the free list */
    enum kvc_state state;
};

struct kvc_chunks {
    struct kvc_chunk *slot;  /* [n] */
    int32_t *ids;          /* [n][chunk_size] */
    int32_t *index;        /* [mask + 1]: slot or -1, open addressing by the key's first bytes */
    uint32_t mask;
    int n, chunk_size;
    enum kvc_policy policy;
    int32_t newest, oldest, free;
    int n_free, n_filling, n_ready, n_dropped;
    int n_evictable;       /* READY with refs 0 */
    int64_t evicted;
};

int kvc_chunks_open(struct kvc_chunks *s, int n, int chunk_size, enum kvc_policy policy, struct km_err *err);
void kvc_chunks_close(struct kvc_chunks *s);

/* The slot under this key, FILLING or READY, or -1. */
int kvc_chunks_find(const struct kvc_chunks *s, const struct km_digest *key);
/* An equal key is not trusted: the ids [chunk_size] and the place must be the same too. */
bool kvc_chunks_match(const struct kvc_chunks *s, int slot, const int32_t *ids, int place);

/* A FILLING slot under a key not in the store, evicting if it must; -1 when every chunk is needed. */
int kvc_chunks_insert(struct kvc_chunks *s, const struct km_digest *key, const int32_t *ids, int place);
void kvc_chunks_publish(struct kvc_chunks *s, int slot, uint64_t sum); /* FILLING -> READY, newest */
void kvc_chunks_drop(struct kvc_chunks *s, int slot); /* FILLING or READY -> FREE or DOOMED */
void kvc_chunks_ref(struct kvc_chunks *s, int slot);
void kvc_chunks_unref(struct kvc_chunks *s, int slot);
void kvc_chunks_touch(struct kvc_chunks *s, int slot); /* READY: newest under LRU, nothing under FIFO */
int kvc_chunks_clear(struct kvc_chunks *s);            /* drops what nobody needs; the number kept */

/* refs: [n], what the counts ought to be. 0, or the first broken invariant. */
int kvc_chunks_check(const struct kvc_chunks *s, const int32_t *refs, struct km_err *err);

#endif
