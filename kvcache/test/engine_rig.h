/* The cache together with the engine on the CPU backend: what the tests of the two share.
 *
 * An `er_job` is one request with its answer. The CPU backend computes equal bits whatever the batch, so an answer with
 * the cache must equal the answer without it bit for bit: sampled ids, log-probabilities and the best two ids. */
#ifndef ER_ENGINE_RIG_H
#define ER_ENGINE_RIG_H

#include "base/test/test.h"

#include "engine/engine.h"
#include "kvcache/kvcache.h"

#include <stdbool.h>
#include <stdint.h>

enum { ER_BLOCK = 16, ER_OUT = 24 /* most output tokens */ };

/* Opens a model of 3 layers with dummy weights and head_dim 12, so that pages are no multiple of 4096 bytes. */
struct mdl *er_dummy_model(uint64_t seed);

struct er_opts {
    int blocks, batched, max_len, seqs; /* pages of the pool, budget of a step, longest request, most running ones */
    bool prefix;
    enum km_dtype dtype;
    int planner;                        /* enum pln_mode */
    int threads;
};
struct eng *er_engine(const struct mdl *m, const struct kv_port *port, struct er_opts o);
/* The size of host memory with which the cache has this many slots. */
int64_t er_host_bytes(const struct mdl *m, enum km_dtype dtype, int chunk, int slots);

struct er_job {
    const int32_t *prompt;       /* [n] */
    int n, n_out;
    const char *salt;            /* NULL: none */
    int submit_at, cancel_at;    /* steps after the run began; cancel_at 0: never */
    uint64_t id;
    struct smp_result out[ER_OUT];
    int got, cached, cached_pool, preempted;
};

/* Submits the jobs and runs the engine until all of them have ended. each (or NULL) is called before every step. */
void er_run(struct eng *e, struct er_job *const *a, int n, void (*each)(void *arg), void *arg);
void er_run_one(struct eng *e, struct er_job *a);
/* Fails unless a's output tokens equal the first ones of want. */
void er_check_same(const struct er_job *want, const struct er_job *a);

/* Checks the cache's invariants and returns the statistics. */
struct kv_port_stats er_stats(struct kvc *k, const struct kv_port *p);
double er_row(const struct kv_port_stats *st, const char *tier, const char *name);

/* Leading tokens of tokens[0, n) that a lookup must find, from the keys and the places that chunks can be in. With
 * `memory` false, only the tiers count. */
int er_held(struct kvc *k, const char *salt, const int32_t *tokens, int n, bool memory);
/* The key of the chunk that begins at token chunk * chunk_size and ends at chunk_size tokens more, or at n. */
struct km_digest er_key(struct kvc *k, const char *salt, const int32_t *tokens, int n, int chunk);

/* A new folder in $TMPDIR or /tmp; and its removal with all that it contains. */
void er_folder(char path[256]);
void er_remove(const char *path);

#endif
