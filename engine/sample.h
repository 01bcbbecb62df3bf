/* Sampling parameters, and the reference sampler that every backend must agree with.
 *
 * A token is drawn with the Gumbel-max trick: the score of each id that passes the filters is its scaled logit plus
 * random noise, and the id with the highest score is drawn. A parallel backend therefore needs one arg-max and no
 * cumulative sum. The noise is a hash of (seed, step, id), so the draw is the same on every device and in any batch. */
#ifndef SMP_SAMPLE_H
#define SMP_SAMPLE_H

#include "base/err.h"
#include "base/random.h"

#include <stdbool.h>
#include <stdint.h>

enum { SMP_MAX_TOP = 20 };

/* Each parameter means what it means in vLLM. The defaults are greedy, with all filters and penalties off. */
struct smp_params {
    double temperature;         /* 0: greedy; among equal logits, the lowest id */
    double top_p;               /* (0, 1] */
    int top_k;                  /* 0 or -1: all ids */
    double min_p;               /* [0, 1] */
    double presence, frequency; /* penalties over generated tokens, [-2, 2] */
    double repetition;          /* penalty over prompt and generated tokens, > 0; 1: off */
    uint64_t seed;
    int n_logprobs;             /* number of top log-probabilities to return, 0 to SMP_MAX_TOP; -1: return none */
};

struct smp_params smp_defaults(void);
/* KM_EINVAL and the name of the first field that is out of range. */
int smp_check(const struct smp_params *p, struct km_err *err);

/* One row to sample. (seed, step) fixes the draw, whatever else is in the batch. */
struct smp_row {
    struct smp_params p;
    int row;                /* row of the step whose logits are sampled, 0 to T - 1 */
    uint64_t step;          /* tokens that this request has generated so far */
    const int32_t *history; /* [n_history] prompt and generated tokens, for penalties; NULL without penalties */
    int n_history, n_prompt; /* the first n_prompt tokens of history are the prompt */
    const int32_t *banned;  /* [n_banned] ids that must not be sampled, such as end tokens before min_tokens */
    int n_banned;
};

struct smp_result {
    int32_t id;
    float logprob;               /* of id, in the unmodified distribution (vLLM's raw_logprobs) */
    int rank;                    /* of id in the unmodified distribution, 1 is the most likely; 0: not requested */
    bool by_host;                /* the host sampled this row, because the device could not */
    int n_top;
    int32_t top_id[SMP_MAX_TOP]; /* [n_top] by falling probability */
    float top_logprob[SMP_MAX_TOP];
};

/* Samples one row of logits [V], which stay unchanged. scratch: [V] floats. Never fails: if no logit is a usable
 * number, the id is 0. */
void smp_sample(const struct smp_row *r, const float *logits, int vocab, float *scratch, struct smp_result *out);

/* The hash key of a row, computed once. */
KM_HOST_DEVICE uint64_t smp_key(uint64_t seed, uint64_t step)
{
    return km_mix64(km_mix64(seed) + step);
}

/* 32 random bits for one id. E = -log1p(-(bits + 0.5) / 2^32) is exponentially distributed, and the id's score is
 * logit / temperature - log(E). The highest score wins, the lowest id among equal scores. */
KM_HOST_DEVICE uint32_t smp_bits(uint64_t key, uint32_t id)
{
    return (uint32_t)(km_random_at(key, id) >> 32);
}

#endif
