/* Requests of the API: one table of fields, one struct they end up in.
 *
 * An `api` is a validated request: every number within its bounds, every prompt encoded, max_tokens settled
 * against the context. It owns the parsed JSON that its strings point into. A field that would change the answer
 * and is not supported is an error that names it; fields that cannot change it, and unknown ones, are ignored. */
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

enum { API_MAX_CHOICES = 1024, API_MAX_STOP_IDS = 128 };

/* What requests are checked against. */
struct api_env {
    const char *model;       /* the served name */
    const struct tok *tok;   /* NULL: token ids only */
    int vocab, max_model_len;
    double temperature, top_p; /* defaults; <0: 1 */
    int top_k;                 /* <0: all */
};

struct api_error {
    int status;         /* 400, 404 */
    char param[64];     /* "": none */
    const char *code;   /* "model_not_found"; NULL: none */
    struct km_err err;
};

struct api {
    enum api_kind kind;
    cJSON *root;
    struct tok_ids *prompts;      /* [n_prompts] */
    int n_prompts;
    struct km_buf echo_text;      /* prompts' texts, one after another, when echo asks for them */
    size_t *echo_end;             /* [n_prompts] where each ends */

    int64_t n, max_tokens, min_tokens, priority;
    bool seeded;
    struct smp_params sampling;   /* seed only when seeded */
    const char *stop[4];
    int n_stop;
    int32_t stop_ids[API_MAX_STOP_IDS];
    int n_stop_ids;
    const char *cache_salt;
    bool stream, include_usage, continuous_usage, ignore_eos, echo, include_stop, skip_special;
    bool tokens_as_ids, token_ids; /* "token_id:5" for token texts; ids beside the text */
    bool token_strs;               /* /tokenize */
};

/* body: the request's JSON. 0, or -1 with *e filled; on success a must be freed with api_free. */
int api_parse(struct api *a, enum api_kind kind, const char *body, size_t len, const struct api_env *env,
              struct api_error *e);
void api_free(struct api *a);

#endif
