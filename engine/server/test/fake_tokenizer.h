/* A tokenizer of bytes: id 0..255 is the byte, the control tokens follow. FAKE_SPECIAL and above are special. */
#ifndef SRV_FAKE_TOKENIZER_H
#define SRV_FAKE_TOKENIZER_H

enum {
    FAKE_SPECIAL = 256,
    FAKE_EOS = 258, /* <|im_end|> */
    FAKE_TOTAL = 264,
    FAKE_VOCAB = 300 /* of the model: larger than the tokenizer's, as Qwen3's is */
};

struct tok;
extern const struct tok *const fake_tok;

#endif
