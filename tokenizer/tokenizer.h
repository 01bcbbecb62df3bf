/* The tokenizer of Qwen2 and Qwen3: byte-level BPE, read from a Hugging Face tokenizer.json.
 *
 * A `tok` is a vocabulary with its merges and added tokens. The caller owns it. It is immutable after tok_open, so any
 * number of threads may use it at once. `tok_ids` is a list of token ids that the caller owns too.
 *
 * Encoding normalizes the text (NFC), splits it into pieces and merges each piece's bytes by rank. It takes time linear
 * in the text, and n log n in a piece of n bytes. The token ids equal those of Hugging Face tokenizers with the same
 * file. A file with any other normalizer, split pattern or model is an error. */
#ifndef TOK_TOKENIZER_H
#define TOK_TOKENIZER_H

#include "base/buf.h"
#include "base/err.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct tok;

/* A growable list of token ids. Start with zeros; free with km_free(v). */
struct tok_ids {
    int32_t *v; /* [n] */
    size_t n, cap;
};
/* Appends an id. The only error is KM_ENOMEM, and then the list is unchanged. */
int tok_ids_push(struct tok_ids *l, int32_t id, struct km_err *err);

/* path: a tokenizer.json, or the folder that holds one; KM_ENOENT if there is none. */
int tok_open(struct tok **out, const char *path, struct km_err *err);
void tok_free(struct tok *t);

/* Appends the token ids of text to out; on failure out is unchanged. Bytes that are not UTF-8 become U+FFFD first.
 * specials true: the text of an added token (<|im_start|>, <think>, ...) becomes the token's id, as in Hugging Face's
 * encode. specials false: this text is split like any other, so that a user's message cannot contain a role marker. */
int tok_encode(const struct tok *t, const char *text, size_t len, bool specials, struct tok_ids *out,
               struct km_err *err);
/* The number of token ids that tok_encode with specials = false would append; < 0 on failure. */
int64_t tok_count(const struct tok *t, const char *text, size_t len, struct km_err *err);

/* Appends the text of the token ids to out; on failure out is unchanged. The ids' bytes are joined first; then bytes
 * that are not UTF-8 become U+FFFD, as in Rust's from_utf8_lossy. skip_special leaves out tokens that the file marks as
 * special. KM_EINVAL for an id that is not in the vocabulary. */
int tok_decode(const struct tok *t, const int32_t *ids, size_t n, bool skip_special, struct km_buf *out,
               struct km_err *err);

/* The bytes of one token, which may be part of a character; NULL if there is no such id. */
const char *tok_bytes(const struct tok *t, int32_t id, size_t *len);
/* True if the file marks the token as special. */
bool tok_is_special(const struct tok *t, int32_t id);

/* The id of an added token by its text; -1 if there is none. */
int32_t tok_added_id(const struct tok *t, const char *text);
/* The number of tokens without added ones (Qwen3: 151643). vLLM's random data set draws its ids from these. */
int32_t tok_vocab_size(const struct tok *t);
/* The number of tokens with added ones; ids are 0 .. total - 1. */
int32_t tok_total(const struct tok *t);

#endif
