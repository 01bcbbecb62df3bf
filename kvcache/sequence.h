/* A sequence: the layer's record of one request (struct kv_seq of the engine's port).
 *
 * A sequence has the keys computed so far, so that each chunk is hashed once per request, and what the last lookup
 * found: for each chunk the pinned slot in host memory, or the tier that has it. A pin is a reference to a chunk, which
 * prevents its eviction. Keys, ids and n_offered belong to the engine's thread; the store's lock protects the rest. */
#ifndef KVC_SEQUENCE_H
#define KVC_SEQUENCE_H

#include "base/hash.h"
#include "engine/kv_port.h"
#include "kvcache/tier.h"

#include <stdbool.h>
#include <stdint.h>

struct kvc_view;

/* Where the last lookup found a chunk. */
struct kvc_found {
    int32_t slot; /* in host memory, pinned; -1: not there */
    int32_t tier; /* the tier that has it, -1: none was needed */
};

enum kvc_answer { KVC_NOT_ASKED, KVC_ASKED, KVC_HAS, KVC_LACKS };

struct kv_seq {
    struct kvc_view *view;
    struct kv_seq *prev, *next; /* list of all open sequences of the view */
    uint32_t epoch;             /* of the view when the sequence was opened; another one means that it is detached */
    struct km_digest root;      /* of the key chain: identity of the KV, and the request's salt */
    struct km_digest *key;      /* [cap] keys of whole chunks 0, 1, ...; the first n_keys are computed */
    struct km_digest tail_key;  /* key of the partial last chunk of the last lookup */
    struct kvc_found *found;    /* [cap + 1] of chunks 0, 1, ...; n_found are valid, the last one may be partial */
    int32_t *ids;               /* [found_tokens] the tokens, if any chunk comes from a tier; else NULL */
    uint8_t *answer;            /* [cap][KVC_TIERS_MOST] enum kvc_answer of tiers without lookup, by chunk */
    uint8_t tail_answer[KVC_TIERS_MOST];
    int64_t ask_deadline;       /* then unanswered questions count as LACKS */
    int n_keys, n_found, cap;
    int found_tokens;           /* result of the last lookup */
    int n_offered;              /* leading whole chunks that need not be stored: they were offered since the last
                                   lookup or, with tiers, found by it */
    int tail_offered;           /* tokens of the prompt whose partial last chunk was offered; 0: none */
    int tail_tokens;            /* tokens of the chunk that tail_key and tail_answer are about */
};

bool kvc_seq_detached(const struct kv_seq *s);
/* Grows the arrays to n chunks. False without memory; nothing changes then. Takes the lock. */
bool kvc_seq_reserve(struct kv_seq *s, int n);
/* Computes the keys of chunks [0, n), each at most once; n <= cap. tokens: the whole sequence. Not under the lock. */
void kvc_seq_keys(struct kv_seq *s, int n, const int32_t *tokens);
/* The key of a partial chunk behind n whole ones, which has n_tokens tokens. */
struct km_digest kvc_seq_tail_key(struct kv_seq *s, int n, const int32_t *tokens, int n_tokens);
/* Drops all pins and forgets what the last lookup found; the lock is held. */
void kvc_seq_unpin(struct kv_seq *s);

/* lookup.c: what the port's functions of the same name do. */
struct kv_seq *kvc_seq_open(struct kvc_view *v, const char *salt, const int32_t *tokens, int n);
void kvc_seq_close(struct kv_seq *s);
int kvc_seq_lookup(struct kv_seq *s, const int32_t *tokens, int n, int have);
int64_t kvc_seq_load_ns(struct kv_seq *s, int from, int to);

#endif
