/* Parsing and validating the JSON body of a request.
 *
 * An `api_request` is a validated body: every number is within its bounds, every prompt is encoded to token ids, and
 * prompt and max_tokens fit the context. It owns all its memory and keeps no pointer into the body. An `api_env` holds
 * the model's limits and defaults, against which a request is checked.
 *
 * An unsupported field that would change the answer is an error that names the field. Other unsupported fields and
 * unknown fields are ignored. */
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
/* Limit of the JSON values in a body, in addition to one for each token of the context. Two bytes of a body ("1,") can
 * be a value, and a parsed value takes 64 bytes or more. */
enum { API_MAX_VALUES = 1 << 20 };

struct api_env {
    const char *model;         /* the served name */
    const struct tok *tok;     /* NULL: token ids only */
    int vocab, max_model_len;  /* tokens */
    double temperature, top_p; /* defaults from generation_config.json; below 0: it has none, and the default is 1 */
    int top_k;                 /* default from generation_config.json; 0 or below: no limit */
};

struct api_error {
    int status;       /* 400, 404, 413 or 503 */
    char param[64];   /* name of the bad field; "": none */
    const char *code; /* "model_not_found"; NULL: none */
    struct km_err err;
};

struct api_request {
    enum api_kind kind;
    struct tok_ids *prompts; /* [n_prompts] */
    int n_prompts;
    struct km_buf echo_text; /* with echo: the texts of all prompts, concatenated */
    size_t *echo_end;        /* [n_prompts] with echo: offset of the end of each text in echo_text */

    int64_t n; /* choices for each prompt */
    int64_t max_tokens, min_tokens, priority;
    bool seeded; /* sampling.seed is the request's own seed */
    struct smp_params sampling;
    char *stop[API_MAX_STOPS]; /* [n_stop] */
    int n_stop;
    int32_t stop_ids[API_MAX_STOP_IDS]; /* [n_stop_ids] */
    int n_stop_ids;
    char *cache_salt; /* NULL: none */
    bool stream, include_usage;
    bool continuous_usage; /* every event of the stream has the usage so far */
    bool ignore_eos, echo, skip_special;
    bool include_stop;  /* the stop string or stop token stays in the text */
    bool tokens_as_ids; /* tokens of logprobs are written as "token_id:5" */
    bool token_ids;     /* the answer has token ids besides its text */
    bool token_strs;    /* /tokenize: the answer has each token's text */
};

/* Parses and validates a body. Returns 0, and the caller frees *a with api_free; or -1, and *e is the error. */
int api_parse(struct api_request *a, enum api_kind kind, const char *body, size_t len, const struct api_env *env,
              struct api_error *e);
void api_free(struct api_request *a);

#endif
