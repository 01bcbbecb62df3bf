/* A request inside the engine: what was asked, the tokens so far, the pages that hold their KV.
 *
 * A `seq` is one block of memory made by seq_new, sized for the longest it can become, so that neither admission
 * nor a step allocates. seq_new also is the one place where a request is validated. The lists and counters of the
 * scheduling part belong to engine/sched.c, the kv part to engine/connector.c.
 *
 * Invariant: tokens [0, n_computed) have their KV in pages [0, n_computed / B], and n_computed < n_tokens between
 * steps: the newest token is always still to be computed. Rows in flight change neither before their step was
 * waited for. Generated tokens are kept through a preemption and are recomputed like a prompt. */
#ifndef SEQ_SEQ_H
#define SEQ_SEQ_H

#include "engine/engine.h"

enum seq_state { SEQ_NEW, SEQ_WAITING, SEQ_LOADING, SEQ_RUNNING };

struct seq {
    uint64_t id;
    void *user;
    enum seq_state state;
    struct seq *prev, *next;  /* on the scheduler's list of its state, or in a mailbox */
    struct seq *chain;        /* in the engine's table of ids */

    int n_prompt, max_tokens, min_tokens; /* max_tokens: cut to what the context leaves */
    int priority;
    uint64_t arrival;         /* order of arrival, the tie-break of priority */
    struct smp_params sampling;
    const char *salt;         /* NULL: none */
    int32_t *end_ids;            /* [n_ends] the tokens that end it */
    int n_end_ids;

    int32_t *tokens;          /* [n_prompt + max_tokens], the prompt and what was generated */
    int n_tokens;
    int32_t *pages;           /* [cap_pages], page i holds tokens [i*B, (i+1)*B) */
    int n_pages, cap_pages;
    struct km_digest *keys;   /* [cap_pages], the prefix keys computed so far */
    int n_keys;
    int n_computed;           /* tokens whose KV is in the pages */
    int n_published;          /* leading pages already offered to the prefix index */
    int n_rows;                /* rows in the newest step */
    int n_rows_before;             /* rows in the step before it, while both are in flight: 1 or none */
    int batch_index; /* which request of the newest step it is */
    bool by_host;             /* the host had to choose its last token: the device could not */

    struct kv_seq *kv;        /* the cache layer's view; NULL without one */
    int n_external;           /* what the cache layer said it has; -1: not asked since the last admission */
    int n_offered;            /* tokens already offered to the cache layer, whole chunks */
    int load_from, load_to;   /* the load under way, tokens */

    int n_cached, n_cached_pool, n_preempted;
    int64_t arrived_ns, scheduled_ns;
};

/* Validates r against the engine's resolved options and copies it. KM_EINVAL and KM_ELIMIT as eng_submit says. */
int seq_new(struct seq **out, const struct eng_request *r, const struct eng_opts *o, const struct mdl_config *c,
            struct km_err *err);
void seq_free(struct seq *q);

static inline int seq_output(const struct seq *q)
{
    return q->n_tokens - q->n_prompt;
}

/* Whether a goes before b, both waiting. */
static inline bool seq_before(const struct seq *a, const struct seq *b)
{
    return a->priority != b->priority ? a->priority < b->priority : a->arrival < b->arrival;
}

#endif
