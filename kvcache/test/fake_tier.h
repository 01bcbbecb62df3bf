/* A tier in memory for tests. It can delay, lose, shorten and damage chunks, fail, and never answer.
 *
 * A `fake_tier` is the tier's memory and its faults; it outlives the cache, as a disk would. There are two tables of
 * functions: one with `lookup`, one without. */
#ifndef KVC_TEST_FAKE_TIER_H
#define KVC_TEST_FAKE_TIER_H

#include "base/hash.h"
#include "kvcache/tier.h"

#include <pthread.h>

enum { FAKE_TIER_CHUNKS = 256, FAKE_TIER_IOS = 1024 };

struct fake_tier_chunk {
    struct km_digest key;
    char *bytes;                  /* header, then payload; NULL: the entry is free */
    size_t payload_bytes;
};

struct fake_tier {
    bool index;                   /* the tier has `lookup` */
    pthread_mutex_t lock;
    struct fake_tier_chunk chunk[FAKE_TIER_CHUNKS];
    const struct kvc_geometry *g;
    struct kvc_io *queue[FAKE_TIER_IOS]; /* operations that are not returned */
    int n_queue;

    /* Faults and delays, set by tests. */
    int polls;                    /* an operation is returned after so many calls of poll */
    bool silent;                  /* operations are not returned */
    int silent_kind;              /* only operations of this kind are not returned; -1: any */
    bool lose;                    /* lookups find chunks that GET then does not */
    bool truncate;                /* GETs are short */
    bool flip_payload, flip_header; /* in the bytes that GET returns */
    bool swap;                    /* GET returns another chunk */
    bool fail;                    /* every operation fails */
    bool clear_fails;

    int n_submits[4];             /* operations, by kind */
    int age;                      /* calls of poll */
};

void fake_tier_init(struct fake_tier *t, bool index);
void fake_tier_free(struct fake_tier *t);
void fake_tier_config(struct fake_tier *t, struct kvc_tier_config *out);
int fake_tier_count(struct fake_tier *t); /* chunks */

#endif
