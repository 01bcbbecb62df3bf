/* A sequence: the layer's record of one request (struct kv_seq of the engine's port).
 *
 * A sequence has the keys that were computed so far, so that each chunk is hashed once per request. It also has the
 * result of the last lookup: for each chunk the pinned slot in host memory, or the tier that has the chunk. A pin is a
 * reference to a chunk, which prevents its eviction. The tail is the partial last chunk of a prompt; there is one if
 * the configuration says save_unfull and the prompt is not a whole number of chunks.
 *
 * Keys and ids belong to the engine's thread. The cache's lock protects the other members. */
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
    int32_t slot; /* in host memory, pinned; -1: the chunk is not in host memory */
    int32_t tier; /* the tier that has it; -1: it is in host memory */
};

/* What a tier without `lookup` has said about a chunk. */
enum kvc_answer { KVC_NOT_ASKED, KVC_ASKED, KVC_HAS, KVC_LACKS };

struct kv_seq {
    struct kvc_view *view;
    struct kv_seq *prev, *next; /* list of all open sequences of the view */
    uint32_t epoch;             /* of the view when the sequence was opened; if they differ, it was detached since */
    struct km_digest root;      /* of the key chain (keys.h) */
    struct km_digest *key;      /* [cap] keys of whole chunks 0, 1, ...; the first n_keys are computed */
    struct km_digest tail_key;  /* key of the tail of the last lookup */
    struct kvc_found *found;    /* [cap + 1] chunks 0, 1, ..., and the tail; the first n_found are valid */
    int32_t *ids;               /* [found_tokens] token ids, valid if any chunk found comes from a tier */
    uint8_t *answer;            /* [cap][KVC_TIERS_MOST] enum kvc_answer, by whole chunk and tier */
    uint8_t tail_answer[KVC_TIERS_MOST]; /* enum kvc_answer about the tail */
    int64_t ask_deadline;       /* from this time on, KVC_ASKED counts as KVC_LACKS */
    int n_keys, n_found, cap;   /* cap: whole chunks that the arrays have room for */
    int found_tokens;           /* result of the last lookup */
    int n_offered;              /* leading whole chunks that need not be stored: they were offered since the last
                                   lookup or, with tiers, found by it */
    int tail_offered;           /* tokens of the prompt whose tail was offered; 0: none was */
    int tail_tokens;            /* tokens of the prompt whose tail tail_answer is about */
};

bool kvc_seq_detached(const struct kv_seq *s); /* the view was detached since the sequence was opened */
/* Grows the arrays to n chunks. False: no memory, and `cap` is as before. Not under the lock. */
bool kvc_seq_reserve(struct kv_seq *s, int n);
/* Computes those keys of chunks [0, n) that are not computed yet; n <= cap. tokens: from the start of the sequence. Not
 * under the lock. */
void kvc_seq_keys(struct kv_seq *s, int n, const int32_t *tokens);
/* The key of a tail of n_tokens tokens, behind n whole chunks. */
struct km_digest kvc_seq_tail_key(struct kv_seq *s, int n, const int32_t *tokens, int n_tokens);
/* Drops all pins and the result of the last lookup. Under the lock. */
void kvc_seq_unpin(struct kv_seq *s);

/* lookup.c: the port's functions open, close, lookup and load_ns. Not under the lock. */
struct kv_seq *kvc_seq_open(struct kvc_view *v, const char *salt, const int32_t *tokens, int n);
void kvc_seq_close(struct kv_seq *s);
int kvc_seq_lookup(struct kv_seq *s, const int32_t *tokens, int n, int have);
int64_t kvc_seq_load_ns(struct kv_seq *s, int from, int to);

#endif
