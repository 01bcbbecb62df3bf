/* Sampling parameters, and the reference sampler every backend must agree with. */
#ifndef SMP_SAMPLE_H
#define SMP_SAMPLE_H

#include <stdbool.h>
#include <stdint.h>

enum { SMP_MAX_TOP = 20, SMP_MAX_BIAS = 16 };

/* vLLM's meaning of each; the defaults are greedy-neutral. */
struct smp_params {
    double temperature;        /* 0: greedy, the lowest id among equals */
    double top_p;              /* (0, 1] */
    int top_k;                 /* 0 or -1: all */
    double min_p;              /* [0, 1] */
    double presence, frequency; /* [-2, 2], over generated tokens */
    double repetition;         /* > 0, over prompt and generated tokens; 1 = off */
    uint64_t seed;
    int n_logprobs;            /* alternatives to return, 0..SMP_MAX_TOP; -1: none and no logprob either */
};

struct smp_params smp_defaults(void);

/* One row to sample. `step` counts the tokens this request has generated; (seed, step) fixes the draw,
 * whatever else is in the batch. history is the prompt and the generated tokens, needed for penalties
 * only. banned: ids that may not come (end tokens while under min_tokens). */
struct smp_row {
    struct smp_params p;
    int row;                /* which of the step's tokens, 0..T-1; its logits are sampled */
    uint64_t step;
    const int32_t *history; /* [n_history], the first n_prompt are the prompt; NULL without penalties */
    int n_history, n_prompt;
    const int32_t *banned;  /* [n_banned] */
    int n_banned;
};

struct smp_result {
    int32_t id;
    float logprob;                    /* of id, of the unmodified distribution (vLLM's raw_logprobs) */
    int rank;                         /* of id among all, 1 = most likely; 0 when not asked for */
    int n_top;
    int32_t top_id[SMP_MAX_TOP];      /* by falling probability */
    float top_logprob[SMP_MAX_TOP];
};

/* Samples one row of logits [V] (modified in place when parameters ask for it); scratch: [V] floats. */
void smp_sample(const struct smp_row *r, float *logits, int vocab, float *scratch, struct smp_result *out);

#endif
