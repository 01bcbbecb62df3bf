/* tokenizer.json into a struct tok, or an error that names what is not Qwen's. */
#ifndef TOK_LOAD_H
#define TOK_LOAD_H

#include "tokenizer/added.h"
#include "tokenizer/bpe.h"
#include "tokenizer/vocab.h"

/* Immutable after tok_open, but for the memo inside bpe. */
struct tok {
    uint8_t *table; /* uni_table */
    struct voc voc;
    struct bpe bpe;
    struct added added;
    uint8_t *special; /* [voc.total] */
};

/* Fills t (zeroed) from the file; on failure the caller frees what is there. */
int load_file(struct tok *t, const char *path, struct km_err *err);

#endif
