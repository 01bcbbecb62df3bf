/* A sequence: the cache's record of one admitted request (struct kv_seq of the engine's port).
 *
 * A sequence owns two arrays, indexed by chunk: the keys computed so far, so that each chunk is hashed once per
 * request, and the pins. A pin is a reference to a chunk that a lookup found; it prevents the chunk's eviction. */
#ifndef KVC_SEQUENCE_H
#define KVC_SEQUENCE_H

#include "base/hash.h"
#include "engine/kv_port.h"

#include <stdbool.h>
#include <stdint.h>

struct kvc;

struct kv_seq {
    struct kvc *kvc;
    struct kv_seq *prev, *next; /* list of all open sequences of the cache */
    struct km_digest root;      /* of the key chain: identity of the KV, and the request's salt */
    struct km_digest *key;      /* [cap] keys of chunks 0, 1, ...; the first n_keys are computed */
    int32_t *pin;               /* [cap] slots of chunks 0, 1, ...; the first n_pins are referenced */
    int n_keys, n_pins, cap;
    int n_offered;              /* leading chunks that were offered to store since the last lookup */
    bool detached;              /* opened under no or an earlier attachment, so its keys and slots are not valid */
};

/* Grows both arrays to n chunks. False without memory; the keys and pins do not change. */
bool kvc_seq_reserve(struct kv_seq *s, int n);
/* The key of chunk i, computed at most once; i <= n_keys < cap. tokens: the whole sequence. */
const struct km_digest *kvc_seq_key(struct kv_seq *s, int i, const int32_t *tokens);
void kvc_seq_unpin(struct kv_seq *s); /* drops all pins */

#endif
