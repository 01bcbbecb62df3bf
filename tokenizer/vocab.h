/* The vocabulary: finds the bytes of a token id, and the id of the token with some bytes. */
#ifndef TOK_VOCAB_H
#define TOK_VOCAB_H

#include "base/err.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Ids 0 .. n - 1 are tokens of the BPE model, which voc_find finds; ids n .. total - 1 are added tokens. */
struct voc {
    int32_t n, total;
    char *bytes;    /* the bytes of all tokens, in the order of ids */
    uint32_t *off;  /* [total + 1] start of each token in bytes */
    uint64_t *slot; /* [mask + 1] hash table: upper half of the hash, then id + 1; 0: free */
    uint32_t mask;
    size_t longest; /* bytes of the longest of tokens 0 .. n - 1 */
};

/* Allocates space for `total` tokens with `size` bytes in all. */
int voc_open(struct voc *v, int32_t n, int32_t total, size_t size, struct km_err *err);
void voc_free(struct voc *v);
/* Adds a token, with ids in ascending order from 0. Returns false if id < n and another token has these bytes. */
bool voc_put(struct voc *v, int32_t id, const char *s, size_t n);
/* The id below v->n of the token with the bytes s[0..n), or -1. */
int32_t voc_find(const struct voc *v, const char *s, size_t n);

static inline const char *voc_bytes(const struct voc *v, int32_t id, size_t *n)
{
    *n = v->off[id + 1] - v->off[id];
    return v->bytes + v->off[id];
}

#endif
