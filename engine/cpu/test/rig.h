/* A CPU backend and sequences on it, for tests: makes the steps that the engine would make. */
#ifndef RIG_H
#define RIG_H

#include "engine/backend.h"

enum { RIG_TOP = 20, RIG_MAX = 32 };

struct rig {
    struct be *b;
    struct kv_geom g;
    const struct mdl_config *c;
    int next_page; /* the next sequence's first page; pages follow `stride` apart, modulo the pool */
    int stride;
};

/* A sequence: pages for max_len tokens, of which the first n_done are computed. */
struct seq {
    int32_t *table; /* [blocks] block table */
    int blocks, n_done;
};

/* Opens a backend and fills every page of its pool with NaN. */
int rig_open(struct rig *r, const struct mdl *m, struct be_opts o, struct km_err *err);
void rig_close(struct rig *r);
struct be_opts rig_opts(enum km_dtype dtype); /* 2 threads, blocks of 16, 512 pages, 2048 tokens a step */

void seq_open(struct rig *r, struct seq *s, int max_len);
void seq_close(struct seq *s);

/* The rows of one sequence in a step: `count` tokens more. sample: the last row is sampled, into res[] of rig_step at
 * the same index. */
struct seq_rows {
    struct seq *s;
    const int32_t *tokens;
    int count;
    bool sample;
};
/* One step of n sequences. */
void rig_step(struct rig *r, const struct seq_rows *seqs, int n, struct smp_result *res);
/* Computes tokens[n] in steps of `chunk` tokens; returns the result of the last token. */
struct smp_result rig_prefill(struct rig *r, struct seq *s, const int32_t *tokens, int n, int chunk);

/* Same id, and the same bits in all top log-probabilities. */
bool rig_same(const struct smp_result *a, const struct smp_result *b);

#endif
