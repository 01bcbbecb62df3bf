/* Added tokens, such as <|im_start|>: encoding replaces their text by one token id each, before the text between them
 * is normalized and split. */
#ifndef TOK_ADDED_H
#define TOK_ADDED_H

#include "base/err.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct added_tok {
    char *text; /* owned */
    size_t len;
    int32_t id;
    bool special;
};

struct added {
    struct added_tok *v; /* [n] in the order of their bytes, after added_sort */
    int n;
    bool first[256]; /* true for a byte that a token begins with */
};

/* Allocates space for n tokens. The caller fills v[], increments a->n, and calls added_sort before a search. */
int added_open(struct added *a, int n, struct km_err *err);
void added_free(struct added *a);
/* Sorts the tokens. Returns the text of a token that occurs twice; NULL if there is none. */
const char *added_sort(struct added *a);

/* Finds the first token in s[from..n); if several start at the same byte, the longest of them. Sets *at to the offset
 * of its first byte. NULL if there is none. */
const struct added_tok *added_find(const struct added *a, const char *s, size_t n, size_t from, size_t *at);
/* The token with this text, or NULL. */
const struct added_tok *added_get(const struct added *a, const char *text);

#endif
