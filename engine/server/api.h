/* Requests of the API: JSON in, validated values out.
 *
 * An `api_request` is the validated body of a request: every number is within its bounds, every prompt is encoded to
 * token ids, and max_tokens fits the context. It owns all it points to; neither the body nor the parsed JSON is needed
 * once api_parse has returned. An `api_env` is what requests are checked against.
 *
 * A field that this server does not support and that would change the answer is an error that names the field. Other
 * unsupported fields and unknown fields are ignored. */
#ifndef SRV_API_H
#define SRV_API_H

#include "base/err.h"
#include "base/json.h"
#include "engine/sample.h"
#include "tokenizer/tokenizer.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum api_kind { API_COMPLETION = 1, API_CHAT = 2, API_TOKENIZE = 4, API_DETOKENIZE = 8 };

enum { API_MAX_CHOICES = 1024, API_MAX_STOPS = 4, API_MAX_STOP_IDS = 128 };
/* JSON values in a body, besides one for each token of the context. A parsed value takes 64 bytes or more, a byte of the
 * body may be half a value ("1,"). */
enum { API_MAX_VALUES = 1 << 20 };

struct api_env {
    const char *model;         /* the served name */
    const struct tok *tok;     /* NULL: token ids only */
    int vocab, max_model_len;  /* tokens */
    double temperature, top_p; /* defaults from generation_config.json; below 0: 1 */
    int top_k;                 /* likewise; 0 or below: no limit */
};

struct api_error {
    int status;       /* 400, 404, 413 or 503 */
    char param[64];   /* the field at fault; "": none */
    const char *code; /* "model_not_found"; NULL: none */
    struct km_err err;
};

struct api_request {
    enum api_kind kind;
    struct tok_ids *prompts; /* [n_prompts] */
    int n_prompts;
    struct km_buf echo_text; /* with echo: the texts of all prompts, joined */
    size_t *echo_end;        /* [n_prompts] with echo: where each text ends in echo_text */

    int64_t n;               /* choices for each prompt */
    int64_t max_tokens, min_tokens, priority;
    bool seeded;             /* the request has a seed, in sampling.seed */
    struct smp_params sampling;
    char *stop[API_MAX_STOPS]; /* [n_stop] */
    int n_stop;
    int32_t stop_ids[API_MAX_STOP_IDS]; /* [n_stop_ids] */
    int n_stop_ids;
    char *cache_salt;        /* NULL: none */
    bool stream, include_usage;
    bool continuous_usage;   /* every event of the stream carries the usage so far */
    bool ignore_eos, echo, skip_special;
    bool include_stop;       /* the stop string or stop token stays in the text */
    bool tokens_as_ids;      /* tokens of logprobs are written as "token_id:5" */
    bool token_ids;          /* the answer carries token ids beside its text */
    bool token_strs;         /* /tokenize: the answer carries each token's text */
};

/* Parses and validates a body. Returns 0, and then a must be freed with api_free, or -1 with *e filled. */
int api_parse(struct api_request *a, enum api_kind kind, const char *body, size_t len, const struct api_env *env,
              struct api_error *e);
void api_free(struct api_request *a);

#endif
