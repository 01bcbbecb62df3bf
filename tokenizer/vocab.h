/* The vocabulary: bytes of an id, id of bytes. */
#ifndef TOK_VOCAB_H
#define TOK_VOCAB_H

#include "base/err.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Ids 0..n-1 are the model's own and can be looked up; n..total-1 are added tokens. Immutable once filled. */
struct voc {
    int32_t n, total;
    char *bytes;    /* all tokens behind one another, in the order of ids */
    uint32_t *off;  /* [total + 1] */
    uint64_t *slot; /* [mask + 1] hash in the high half, id + 1 in the low; 0 is free */
    uint32_t mask;
    size_t longest; /* bytes of the longest of 0..n-1 */
};

/* Room for `total` tokens of `size` bytes together. */
int voc_open(struct voc *v, int32_t n, int32_t total, size_t size, struct km_err *err);
void voc_free(struct voc *v);
/* Gives the next id its bytes; calls come in the order of ids. false: id < n and the bytes have one already. */
bool voc_put(struct voc *v, int32_t id, const char *s, size_t n);
/* The id < v->n of s[0..n), or -1. */
int32_t voc_find(const struct voc *v, const char *s, size_t n);

static inline const char *voc_bytes(const struct voc *v, int32_t id, size_t *n)
{
    *n = v->off[id + 1] - v->off[id];
    return v->bytes + v->off[id];
}

#endif
