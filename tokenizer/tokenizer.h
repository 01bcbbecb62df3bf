/* Qwen's tokenizer: byte-level BPE read from a Hugging Face tokenizer.json.
 *
 * A `struct tok` is an immutable vocabulary; any number of threads may use one at once. Encoding is
 * NFC, then Qwen's split, then merges by rank, in time linear in the text (n log n inside one split
 * piece). Only the normalizer, split pattern and model that Qwen2/Qwen3 use are accepted: another file
 * is an error, not a guess.
 *
 * Equal, id for id, to Hugging Face tokenizers on the same file. */
#ifndef TOK_TOKENIZER_H
#define TOK_TOKENIZER_H

#include "base/buf.h"
#include "base/err.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct tok;

/* Growable list of ids; zero-initialise, free v with km_free. */
struct tok_ids {
    int32_t *v; /* [n] */
    size_t n, cap;
};

/* path: a tokenizer.json, or the folder that holds one. KM_ENOENT when there is none. */
int tok_open(struct tok **out, const char *path, struct km_err *err);
void tok_free(struct tok *t);

/* Appends the ids of text (UTF-8; bytes that are not become U+FFFD first) to out. With `specials`, the
 * text of an added token (<|im_start|>, <think> ...) becomes its id, as Hugging Face does by default; without,
 * it is split like any other text, so that a user cannot type a role marker. */
int tok_encode(const struct tok *t, const char *text, size_t len, bool specials, struct tok_ids *out,
               struct km_err *err);
/* The number of ids tok_encode(specials = false) would give; <0 on failure. */
int64_t tok_count(const struct tok *t, const char *text, size_t len, struct km_err *err);

/* Appends the text of ids: bytes joined, then invalid UTF-8 replaced by U+FFFD as Rust's from_utf8_lossy does.
 * skip_special drops tokens marked special. An id outside the vocabulary is KM_EINVAL. */
int tok_decode(const struct tok *t, const int32_t *ids, size_t n, bool skip_special, struct km_buf *out,
               struct km_err *err);

/* The raw bytes of one id (may be part of a character); NULL when there is no such id. */
const char *tok_bytes(const struct tok *t, int32_t id, size_t *len);
bool tok_is_special(const struct tok *t, int32_t id);

/* Id of an added token by its text, -1 when there is none. */
int32_t tok_added_id(const struct tok *t, const char *text);
/* vocab_size: entries of the base vocabulary (Qwen3: 151643; what vLLM's random data set draws from);
 * total: one more than the largest id, added tokens included. */
int32_t tok_vocab_size(const struct tok *t);
int32_t tok_total(const struct tok *t);

#endif
