/* Answers as JSON text in OpenAI's shapes, with vLLM's additions (stop_reason, token_ids, prompt_token_ids).
 *
 * An `rsp` holds what all parts of one answer share: id, object, model. An `rsp_part` is one choice: the whole choice,
 * or the piece of it in one event of a stream. JSON is written directly into a km_buf, without a cJSON tree per token.
 * Pointers in these structs are borrowed. */
#ifndef SRV_RESPOND_H
#define SRV_RESPOND_H

#include "base/buf.h"
#include "engine/sample.h"
#include "tokenizer/tokenizer.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct rsp {
    bool chat, stream;
    struct km_buf head; /* {"id":"...","object":"...","created":1,"model":"..." */
};

/* The log-probabilities of a choice's tokens, as elements of JSON arrays without the brackets. A chat uses only
 * `tokens`, whose elements are objects. */
struct rsp_logprobs {
    struct km_buf tokens, values, tops, offsets;
    int64_t chars; /* text_offset of the next token, in characters */
};

struct rsp_usage {
    int64_t prompt, completion, cached; /* tokens */
};

struct rsp_part {
    int index;
    const char *text; /* [n_text] */
    size_t n_text;
    const char *finish;                  /* "stop", "length"; NULL: not finished */
    const char *stop_string;             /* the stop string that ended the choice; NULL: none */
    int32_t stop_id;                     /* the entry of stop_token_ids that ended it; -1: none */
    const struct rsp_logprobs *logprobs; /* NULL: not requested */
    const int32_t *ids;                  /* [n_ids] generated ids; NULL: not requested */
    size_t n_ids;
    const int32_t *prompt_ids; /* [n_prompt_ids]; NULL: not requested, or already sent */
    size_t n_prompt_ids;
};

void rsp_init(struct rsp *r, bool chat, bool stream, const char *id, int64_t created, const char *model);
void rsp_free(struct rsp *r);

/* Append a whole answer: one begin, each choice in the order of their indices, one end. */
void rsp_begin(struct km_buf *b, const struct rsp *r, const struct rsp_part *first);
void rsp_choice(struct km_buf *b, const struct rsp *r, const struct rsp_part *p);
void rsp_end(struct km_buf *b, const struct rsp_usage *u);

/* Append one server-sent event of a stream, "data: ...\n\n". rsp_event_role is the first event of each choice of a
 * chat. rsp_event_usage is the event after the end of all choices. u NULL: the event has no usage. */
void rsp_event_role(struct km_buf *b, const struct rsp *r, const struct rsp_part *p);
void rsp_event(struct km_buf *b, const struct rsp *r, const struct rsp_part *p, const struct rsp_usage *u);
void rsp_event_usage(struct km_buf *b, const struct rsp *r, const struct rsp_usage *u);

/* Appends the body of an error, with OpenAI's error type for the HTTP status. param and code may be NULL. */
void rsp_error(struct km_buf *b, int status, const char *message, const char *param, const char *code);

/* Appends the text of a token as the content of a JSON string; "token_id:5" with as_id, or if t is NULL. */
void rsp_token(struct km_buf *b, const struct tok *t, int32_t id, bool as_id);
void rsp_logprobs_add(struct rsp_logprobs *l, bool chat, const struct tok *t, bool as_id, const struct smp_result *s);
void rsp_logprobs_clear(struct rsp_logprobs *l);
void rsp_logprobs_free(struct rsp_logprobs *l);

#endif
