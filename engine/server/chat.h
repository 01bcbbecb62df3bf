/* Qwen3's chat template, rendered by code instead of Jinja.
 *
 * A `chat` is a rendered conversation: the text the template makes, and where in it the template itself put
 * control tokens. Only those places become control tokens: `<|im_end|>` typed by a user is encoded as the ten
 * characters it is, so nobody can leave his role. For all other text the ids are those that Hugging Face's
 * apply_chat_template gives. In an assistant's own turns <think>, </think>, <tool_call> and </tool_call> count as
 * control tokens too, because the model wrote them as such. */
#ifndef SRV_CHAT_H
#define SRV_CHAT_H

#include "base/buf.h"
#include "base/err.h"
#include "base/json.h"
#include "tokenizer/tokenizer.h"

#include <stdbool.h>
#include <stddef.h>

struct chat_mark {
    size_t at, len; /* text[at, at + len) is the text of an added token */
};

struct chat {
    struct km_buf text;
    struct chat_mark *marks; /* [n_marks], by rising place */
    size_t n_marks, cap_marks;
};

/* messages: OpenAI's array. param (64 bytes) names the part an error is about: messages[3].content. */
int chat_render(struct chat *c, const cJSON *messages, bool generation_prompt, bool thinking, char param[64],
                struct km_err *err);
void chat_free(struct chat *c);
int chat_encode(const struct chat *c, const struct tok *t, struct tok_ids *out, struct km_err *err);

#endif
