/* Qwen3's chat template, written in C instead of Jinja.
 *
 * A `chat` is a rendered conversation: its text, and marks at the control tokens that the template itself has put into
 * the text. The caller owns it and frees it with chat_free.
 *
 * Invariant: only marked text is encoded as control tokens. A user who types `<|im_end|>` gets the ids of these ten
 * characters, so a message cannot end its turn or begin a turn of another role. For all other text the ids are those of
 * Hugging Face's apply_chat_template. In an assistant's turn <think>, </think>, <tool_call> and </tool_call> are
 * marked as well, because the model generated them as control tokens. */
#ifndef SRV_CHAT_H
#define SRV_CHAT_H

#include "base/buf.h"
#include "base/err.h"
#include "base/json.h"
#include "tokenizer/tokenizer.h"

#include <stdbool.h>
#include <stddef.h>

struct chat_mark {
    size_t at, len; /* text[at, at + len) is a control token */
};

struct chat {
    struct km_buf text;
    struct chat_mark *marks; /* [n_marks], in order of `at` */
    size_t n_marks, cap_marks;
};

/* Renders OpenAI's `messages` array. generation_prompt: the text ends with the start of an assistant's turn, to which
 * thinking = false adds an empty think block. On failure param is the path of the bad value ("messages[3].content"). */
int chat_render(struct chat *c, const cJSON *messages, bool generation_prompt, bool thinking, char param[64],
                struct km_err *err);
void chat_free(struct chat *c);
/* Appends the conversation's token ids to out. */
int chat_encode(const struct chat *c, const struct tok *t, struct tok_ids *out, struct km_err *err);

#endif
