/* Byte-pair merges by rank, inside one piece of the split. */
#ifndef TOK_BPE_H
#define TOK_BPE_H

#include "tokenizer/tokenizer.h"
#include "tokenizer/vocab.h"

/* Immutable but for `whole`, a memo that any number of threads may fill: each entry has one true value, so
 * that a race writes the same byte twice. */
struct bpe {
    const struct voc *voc;  /* borrowed */
    struct bpe_merge *slot; /* [mask + 1] by pair; rank < 0 is free */
    uint32_t mask;
    int32_t n;     /* merges */
    int32_t *made; /* [n] id that the merge of a rank makes */
    int32_t byte_id[256];
    _Atomic uint8_t *whole; /* [voc->n] do the merges make this token of its own bytes? */
};

/* Scratch and output of one encode call; zero-initialise, set ids, end with bpe_run_free. */
struct bpe_run {
    struct tok_ids *ids; /* appended to; NULL: only counted */
    int64_t n;           /* ids given */
    struct bpe_sym *sym; /* [cap] */
    uint64_t *heap;      /* [2 * cap] */
    size_t cap;
};

/* voc must hold all 256 single bytes: KM_EFORMAT names one it lacks. Room for n merges. */
int bpe_open(struct bpe *b, const struct voc *voc, int32_t n, struct km_err *err);
void bpe_free(struct bpe *b);
/* Merges come in the order of ranks. false: the pair has a rank already. */
bool bpe_put(struct bpe *b, int32_t rank, int32_t left, int32_t right, int32_t made);

/* Appends the ids of one piece (n > 0). 0, KM_ENOMEM, or KM_ELIMIT for a piece over 2^31 - 2 bytes. */
int bpe_piece(const struct bpe *b, struct bpe_run *r, const char *s, size_t n);
/* Appends one id. 0 or KM_ENOMEM. */
int bpe_emit(struct bpe_run *r, int32_t id);
void bpe_run_free(struct bpe_run *r);

#endif
