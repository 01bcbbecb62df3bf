/* A rig that drives one backend the way the engine does, for tests and checks that compare backends or batches.
 *
 * `struct rig` is one open backend; `struct rig_seq` is a token sequence with pages of its KV pool. The rig builds the
 * arrays of each step anew, so that a backend which keeps a pointer into them is found out. */
#ifndef RIG_BACKEND_RIG_H
#define RIG_BACKEND_RIG_H

#include "engine/backend.h"

enum { RIG_TOP = SMP_MAX_TOP, RIG_PARTS = 64 /* largest number of sequences in one step */ };

struct rig {
    const struct backend *backend;
    struct be *b;
    struct kv_geom g;
    int next_page; /* the page that rig_seq_open assigns next, modulo the number of pages */
    int stride;    /* distance between the pages that it assigns; must have no factor in common with their number */
};

/* A sequence: pages for max_len tokens, of which n_done are computed. */
struct rig_seq {
    int32_t *table; /* [blocks] */
    int blocks, n_done;
};

/* The rows of one sequence in a step. */
struct rig_part {
    struct rig_seq *s;
    const int32_t *tokens; /* [count] */
    int count;
    const struct smp_params *sample; /* for the last row; NULL: do not sample */
};

struct smp_params rig_greedy(void); /* temperature 0, with RIG_TOP log-probabilities */

/* Opens the backend, with max_model_len cut to the model's, and fills every page with NaN. The stride is 7. */
int rig_open(struct rig *r, const struct backend *backend, const struct be_opts *o, const struct mdl *m,
             struct km_err *err);
void rig_close(struct rig *r);
int rig_seq_open(struct rig *r, struct rig_seq *s, int max_len, struct km_err *err);
void rig_seq_close(struct rig_seq *s);

/* Runs one step and waits for it; out[n], where the entry of a part that is not sampled stays as it is. */
int rig_step(struct rig *r, const struct rig_part *parts, int n, struct smp_result *out, struct km_err *err);
/* Computes tokens[n] in steps of at most `chunk` tokens, and samples the last one greedily. */
int rig_prefill(struct rig *r, struct rig_seq *s, const int32_t *tokens, int n, int chunk, struct smp_result *out,
                struct km_err *err);
/* Copies c[n], any number of pages, and waits; sets c[].sum. */
int rig_copy_pages(struct rig *r, enum kv_dir dir, struct kv_copy *c, int n, struct km_err *err);
/* Copies all pages of the sequence to host[blocks * page_bytes], or back. */
int rig_copy(struct rig *r, const struct rig_seq *s, enum kv_dir dir, char *host, struct km_err *err);

/* True if id, log-probability and all top log-probabilities are equal bit for bit. */
bool rig_same(const struct smp_result *a, const struct smp_result *b);

#endif
