#include "engine/server/test/fake_tokenizer.h"

#include "tokenizer/tokenizer.h"

#include <string.h>

struct tok {
    char bytes[256];
};

static struct tok the_one;
const struct tok *const fake_tok = &the_one;

static const char *const added[] = {"<|endoftext|>", "<|im_start|>", "<|im_end|>",   "<think>",
                                    "</think>",      "<tool_call>",  "</tool_call>", "<tool_response>"};

int32_t tok_added_id(const struct tok *t, const char *text)
{
    (void)t;
    for (int i = 0; i < 8; i++)
        if (!strcmp(added[i], text))
            return FAKE_SPECIAL + i;
    return -1;
}

int tok_encode(const struct tok *t, const char *text, size_t len, bool specials, struct tok_ids *out,
               struct km_err *err)
{
    (void)t;
    int rc = 0;
    for (size_t i = 0; i < len && !rc;) {
        int k = 0;
        while (specials && k < 8 && (len - i < strlen(added[k]) || memcmp(text + i, added[k], strlen(added[k]))))
            k++;
        if (specials && k < 8) {
            rc = tok_ids_push(out, FAKE_SPECIAL + k, err);
            i += strlen(added[k]);
        } else {
            rc = tok_ids_push(out, (unsigned char)text[i++], err);
        }
    }
    return rc;
}

const char *tok_bytes(const struct tok *t, int32_t id, size_t *len)
{
    (void)t;
    static char all[256];
    if (id < 0 || id >= FAKE_TOTAL)
        return NULL;
    if (id >= FAKE_SPECIAL) {
        *len = strlen(added[id - FAKE_SPECIAL]);
        return added[id - FAKE_SPECIAL];
    }
    all[id] = (char)id;
    *len = 1;
    return all + id;
}

bool tok_is_special(const struct tok *t, int32_t id)
{
    (void)t;
    return id >= FAKE_SPECIAL && id <= FAKE_EOS;
}

int tok_decode(const struct tok *t, const int32_t *ids, size_t n, bool skip_special, struct km_buf *out,
               struct km_err *err)
{
    for (size_t i = 0; i < n; i++) {
        size_t len;
        const char *s = tok_bytes(t, ids[i], &len);
        if (!s)
            return km_fail(err, KM_EINVAL, "token id %d has no text", ids[i]);
        if (!(skip_special && tok_is_special(t, ids[i])))
            km_buf_put(out, s, len);
    }
    return 0;
}
