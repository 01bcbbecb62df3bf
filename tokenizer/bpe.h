/* Byte-pair encoding of one piece of text: merging neighbouring tokens by rank. */
#ifndef TOK_BPE_H
#define TOK_BPE_H

#include "tokenizer/tokenizer.h"
#include "tokenizer/vocab.h"

/* Immutable except for the memo `whole`. Several threads may write an entry of the memo at once, because all of them
 * compute the same value. */
struct bpe {
    const struct voc *voc;  /* borrowed */
    struct bpe_merge *slot; /* [mask + 1] hash table of merges by pair; rank < 0: free */
    uint32_t mask;
    int32_t n;              /* number of merges */
    int32_t *made;          /* [n] by rank: the token that the merge makes */
    int32_t byte_id[256];   /* token of each single byte */
    _Atomic uint8_t *whole; /* [voc->n] memo by token id: whether merging the token's bytes gives this token */
};

/* Working memory and output of one encode call. Start with zeros and ids; free with bpe_run_free. */
struct bpe_run {
    struct tok_ids *ids; /* token ids are appended here; NULL: they are only counted */
    int64_t n;           /* number of token ids so far */
    struct bpe_sym *sym; /* [cap] */
    uint64_t *heap;      /* [2 * cap] */
    size_t cap;
};

/* Allocates space for n merges. KM_EFORMAT if voc lacks a token for a single byte. */
int bpe_open(struct bpe *b, const struct voc *voc, int32_t n, struct km_err *err);
void bpe_free(struct bpe *b);
/* Adds a merge, with ranks in ascending order from 0. Returns false if the pair has a merge already. */
bool bpe_put(struct bpe *b, int32_t rank, int32_t left, int32_t right, int32_t made);

/* Appends the token ids of one piece, n > 0. KM_ENOMEM, or KM_ELIMIT for a piece of more than 2^31 - 2 bytes. */
int bpe_piece(const struct bpe *b, struct bpe_run *r, const char *s, size_t n);
/* Appends one token id. The only error is KM_ENOMEM. */
int bpe_emit(struct bpe_run *r, int32_t id);
void bpe_run_free(struct bpe_run *r);

#endif
