/* Drives a backend without the engine, for programs that compare backends: a rig (one open backend) and sequences, each
 * with pages of its own. */
#ifndef CUDA_RIG_H
#define CUDA_RIG_H

#include "engine/backend.h"

enum { RIG_TOP = SMP_MAX_TOP, RIG_PARTS = 64 };

struct rig {
    const struct backend *backend;
    struct be *b;
    struct kv_geom g;
    int next_page; /* the next page that a sequence gets; pages are 7 apart, modulo the pool */
};

/* One sequence: scattered pages for max_len tokens, n_done of them computed. */
struct rig_seq {
    int32_t *table; /* [blocks] */
    int blocks, n_done;
};

/* One sequence's part of a step. */
struct rig_part {
    struct rig_seq *s;
    const int32_t *tokens; /* [count] */
    int count;
    const struct smp_params *sample; /* NULL: none */
};

struct smp_params rig_greedy(void); /* greedy, with RIG_TOP log-probabilities */

/* Opens the backend and fills every page of the pool with NaN. The number of pages must not be a multiple of 7. */
int rig_open(struct rig *r, const struct backend *backend, const struct be_opts *o, const struct mdl *m,
             struct km_err *err);
void rig_close(struct rig *r);
int rig_seq_open(struct rig *r, struct rig_seq *s, int max_len, struct km_err *err);
void rig_seq_close(struct rig_seq *s);

/* Runs one step. out: [n] results; entries of parts without sampling stay as they are. */
int rig_step(struct rig *r, const struct rig_part *parts, int n, struct smp_result *out, struct km_err *err);
/* Prefills a prompt in chunks of `chunk` tokens, and samples its last token. */
int rig_prefill(struct rig *r, struct rig_seq *s, const int32_t *tokens, int n, int chunk, struct smp_result *out,
                struct km_err *err);
/* Copies all pages of a sequence to host[blocks] pages, or back. */
int rig_copy(struct rig *r, const struct rig_seq *s, enum kv_dir dir, char *host, struct km_err *err);

#endif
