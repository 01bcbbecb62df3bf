/* A sequence: a request inside the engine, with its tokens and the pages that hold their KV.
 *
 * seq_new validates a request and allocates a `struct seq` for the longest that the request can become, in one block of
 * memory. Admission and steps therefore allocate nothing. engine/sched.c owns the lists and the scheduling fields,
 * engine/connector.c the fields of the cache layer.
 *
 * Invariant: between steps, tokens [0, n_computed) have their KV in the pages, and n_computed < n_tokens, because the
 * KV of the last token is always still to be computed. Rows in flight change neither number until their step is
 * retired. A preempted request keeps its generated tokens, and their KV is computed again like that of a prompt.
 *
 * The loaded interval [load_from, load_to) lies behind n_computed. While the request is loading, an open load owns the
 * pages of these tokens. While it is running, their KV has been loaded and verified; when the tokens before load_from
 * are computed, n_computed becomes load_to. The interval ends before the last token. */
#ifndef SEQ_SEQ_H
#define SEQ_SEQ_H

#include "engine/engine.h"

enum seq_state { SEQ_NEW, SEQ_WAITING, SEQ_LOADING, SEQ_RUNNING };

struct seq {
    uint64_t id;
    void *user;
    enum seq_state state;
    struct seq *prev, *next; /* on the scheduler's list for its state, or in the runner's queue */
    struct seq *chain;       /* next in the bucket of the engine's hash table of ids */

    int n_prompt, max_tokens, min_tokens; /* max_tokens is cut to max_model_len - n_prompt */
    int priority;
    uint64_t arrival;        /* serial number, decides between equal priorities */
    struct smp_params sampling;
    const char *salt;        /* NULL: none */
    int32_t *end_ids;        /* [n_end_ids] tokens that end the request */
    int n_end_ids;

    int32_t *tokens;         /* [n_prompt + max_tokens] prompt, then generated tokens */
    int n_tokens;
    int32_t *pages;          /* [cap_pages] block table: page i holds tokens [i * B, (i + 1) * B) */
    int n_pages, cap_pages;
    struct km_digest *keys;  /* [cap_pages] prefix key of each block, the first n_keys are set */
    int n_keys;
    int n_computed;          /* tokens whose KV is in the pages */
    int n_published;         /* leading pages that were offered to the prefix index */
    int n_rows;              /* rows in the step that was scheduled last */
    int n_rows_before;       /* rows in the step before it while both are in flight, 0 or 1 */
    int batch_index;         /* index among the requests of the step that was scheduled last */
    bool by_host;            /* the host sampled the last token, because the device could not */

    struct kv_seq *kv;       /* the cache layer's handle; NULL without a cache layer */
    int n_external;          /* tokens that the cache layer can load; -1: no answer yet for the next admission */
    int n_offered;           /* tokens that were offered to the cache layer, or need not be */
    int load_from, load_to;  /* the loaded interval; equal: there is none */

    int n_cached, n_cached_pool, n_preempted; /* as in struct eng_event */
    int64_t arrived_ns, scheduled_ns;
};

/* Validates r against the engine's resolved options and copies it. Fails with KM_EINVAL or KM_ELIMIT as eng_submit
 * does, or with KM_ENOMEM. */
int seq_new(struct seq **out, const struct eng_request *r, const struct eng_opts *o, const struct mdl_config *c,
            struct km_err *err);
void seq_free(struct seq *q);

/* The number of generated tokens. */
static inline int seq_output(const struct seq *q)
{
    return q->n_tokens - q->n_prompt;
}

/* The end of the tokens that can be computed next: the loaded interval, or the end of the sequence. */
static inline int seq_rows_end(const struct seq *q)
{
    return q->load_from < q->load_to ? q->load_from : q->n_tokens;
}

/* True if waiting request a is admitted before waiting request b. */
static inline bool seq_before(const struct seq *a, const struct seq *b)
{
    return a->priority != b->priority ? a->priority < b->priority : a->arrival < b->arrival;
}

#endif
