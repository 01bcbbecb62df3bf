/* Added tokens: texts that become one id before anything else is done to the text. */
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
    struct added_tok *v; /* [n] sorted by bytes once added_sort was called */
    int n;
    bool first[256]; /* does any begin with this byte? */
};

/* Room for n; fill v[] and count a->n up as the texts come, then sort. */
int added_open(struct added *a, int n, struct km_err *err);
void added_free(struct added *a);
/* The text that occurs twice, or NULL. */
const char *added_sort(struct added *a);

/* The first and there longest match in s[from..n): its start in *at; NULL when there is none. */
const struct added_tok *added_find(const struct added *a, const char *s, size_t n, size_t from, size_t *at);
const struct added_tok *added_get(const struct added *a, const char *text);

#endif
