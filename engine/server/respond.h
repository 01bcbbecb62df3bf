/* Answers as JSON text, built straight into a buffer: no tree per token.
 *
 * An `rsp` holds what all parts of one answer share (id, object, model); an `rsp_part` is one choice, whole or as
 * the piece of a stream; `rsp_logprobs` collects what is known of its tokens' probabilities. */
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

struct rsp_logprobs {
    struct km_buf tokens, values, tops, offsets; /* items of arrays, without brackets; chat uses tokens alone */
    int64_t chars;                               /* text_offset of the next token */
};

struct rsp_usage {
    int64_t prompt, completion, cached;
};

struct rsp_part {
    int index;
    const char *text; /* [n_text] */
    size_t n_text;
    const char *finish;               /* "stop", "length"; NULL: not yet */
    const char *stop_string;          /* what stopped it, NULL: none */
    int32_t stop_id;                  /* likewise; -1 */
    const struct rsp_logprobs *logprobs; /* NULL: null */
    const int32_t *ids;               /* [n_ids]; NULL: not asked for */
    size_t n_ids;
    const int32_t *prompt_ids;        /* [n_prompt_ids]; NULL: not asked for, or said before */
    size_t n_prompt_ids;
};

void rsp_init(struct rsp *r, bool chat, bool stream, const char *id, int64_t created, const char *model);
void rsp_free(struct rsp *r);

/* A whole answer: open, parts, close. */
void rsp_open(struct km_buf *b, const struct rsp *r, const struct rsp_part *first);
void rsp_choice(struct km_buf *b, const struct rsp *r, const struct rsp_part *p);
void rsp_close(struct km_buf *b, const struct rsp_usage *u);

/* Events of a stream, "data: ...\n\n" each. usage NULL: none in it. */
void rsp_event_role(struct km_buf *b, const struct rsp *r, const struct rsp_part *p);
void rsp_event(struct km_buf *b, const struct rsp *r, const struct rsp_part *p, const struct rsp_usage *u);
void rsp_event_usage(struct km_buf *b, const struct rsp *r, const struct rsp_usage *u);

/* The one error shape; param and code may be NULL. The event form is for streams that began. */
void rsp_error(struct km_buf *b, const char *message, const char *type, const char *param, const char *code);
const char *rsp_error_type(int status);

/* The text of a token as JSON string contents: "token_id:5" with as_id. */
void rsp_token(struct km_buf *b, const struct tok *t, int32_t id, bool as_id);
void rsp_logprobs_add(struct rsp_logprobs *l, bool chat, const struct tok *t, bool as_id, const struct smp_result *s);
void rsp_logprobs_clear(struct rsp_logprobs *l);
void rsp_logprobs_free(struct rsp_logprobs *l);

#endif
