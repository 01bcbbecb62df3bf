/* A fake of tokenizer/tokenizer.h that needs no vocabulary: ids 0 to 255 are bytes, and the control tokens follow. */
#ifndef SRV_FAKE_TOKENIZER_H
#define SRV_FAKE_TOKENIZER_H

enum {
    FAKE_SPECIAL = 256, /* the first control token */
    FAKE_EOS = 258,     /* <|im_end|> */
    FAKE_TOTAL = 264,
    FAKE_VOCAB = 300 /* of the model; as with Qwen3, larger than the tokenizer's */
};

struct tok;
extern const struct tok *const fake_tok;

#endif
