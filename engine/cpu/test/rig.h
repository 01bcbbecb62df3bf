/* A backend and sequences on it, for tests: what the engine does, without the engine. */
#ifndef RIG_H
#define RIG_H

#include "engine/backend.h"

enum { RIG_TOP = 20, RIG_MAX = 32 };

struct rig {
    struct be *b;
    struct kv_geom g;
    const struct mdl_config *c;
    int next_page; /* pages are handed out from here, `stride` apart, modulo the pool */
    int stride;
};

/* One sequence: pages for max_len tokens, n_done of them computed. */
struct seq {
    int32_t *table; /* [blocks] */
    int blocks, n_done;
};

/* Every page of the pool is filled with NaN bytes first. */
int rig_open(struct rig *r, const struct mdl *m, struct be_opts o, struct km_err *err);
void rig_close(struct rig *r);
struct be_opts rig_opts(enum km_dtype dtype); /* 2 threads, blocks of 16, 512 pages, 2048 tokens a step */

void seq_open(struct rig *r, struct seq *s, int max_len);
void seq_close(struct seq *s);

/* One step: n sequences, each goes on by count[i] tokens from tokens[i]. sample[i]: take the last row's
 * result into res[i]. */
struct part {
    struct seq *s;
    const int32_t *tokens;
    int count;
    bool sample;
};
void rig_step(struct rig *r, const struct part *parts, int n, struct smp_result *res);
/* tokens[n] in chunks; the result is that of the last. */
struct smp_result rig_prefill(struct rig *r, struct seq *s, const int32_t *tokens, int n, int chunk);

/* Same id, and the same bits in all top log-probabilities. */
bool rig_same(const struct smp_result *a, const struct smp_result *b);

#endif
