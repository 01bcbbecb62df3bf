/* Sampling parameters, and the reference sampler every backend must agree with.
 *
 * The draw is a race: every id that the filters leave has an exponential clock, and the one whose clock rings first
 * relative to its probability wins, so a parallel backend needs one arg-max and no sorted sum. Each clock is a hash of
 * (seed, step, id): the same draw on every device and in any batch. */
#ifndef SMP_SAMPLE_H
#define SMP_SAMPLE_H

#include "base/err.h"
#include "base/random.h"

#include <stdbool.h>
#include <stdint.h>

enum { SMP_MAX_TOP = 20 };

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
/* KM_EINVAL naming the field that is out of range. */
int smp_check(const struct smp_params *p, struct km_err *err);

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
    bool by_host;                     /* the reference sampler chose on the host, for a device that could not */
    int n_top;
    int32_t top_id[SMP_MAX_TOP];      /* by falling probability */
    float top_logprob[SMP_MAX_TOP];
};

/* Samples one row of logits [V], which stay as they are; scratch: [V] floats. Never fails: without one usable logit
 * the id is 0. */
void smp_sample(const struct smp_row *r, const float *logits, int vocab, float *scratch, struct smp_result *out);

/* The random 32 bits of one id; key: smp_key once a row. The clock is E = -log1p(-(bits + 0.5) / 2^32), the id's
 * score logit / temperature - log(E), and the highest score wins, the lowest id among equals. */
KM_HOST_DEVICE uint64_t smp_key(uint64_t seed, uint64_t step)
{
    return km_mix64(km_mix64(seed) + step);
}

KM_HOST_DEVICE uint32_t smp_bits(uint64_t key, uint32_t id)
{
    return (uint32_t)(km_random_at(key, id) >> 32);
}

#endif
