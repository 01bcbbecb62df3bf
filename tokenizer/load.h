/* Reading a tokenizer.json into a `tok`. A file of another model family is an error that names the difference. */
#ifndef TOK_LOAD_H
#define TOK_LOAD_H

#include "tokenizer/added.h"
#include "tokenizer/bpe.h"
#include "tokenizer/vocab.h"

/* Immutable after tok_open, except for the memo in bpe. */
struct tok {
    uint8_t *table; /* [UNI_MAX] classes of code points (unicode.h) */
    struct voc voc;
    struct bpe bpe;
    struct added added;
    uint8_t *special; /* [voc.total] 1 for a token that the file marks as special */
};

/* Fills t, whose members must be zero. On failure, the caller frees t with tok_free. */
int tok_load_file(struct tok *t, const char *path, struct km_err *err);

#endif
