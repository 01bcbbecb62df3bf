/* Search in the sorted array: each byte of the text narrows the range of tokens that begin with the bytes so far. */
#include "tokenizer/added.h"

#include "base/mem.h"

#include <stdlib.h>
#include <string.h>

int added_open(struct added *a, int n, struct km_err *err)
{
    *a = (struct added){.v = km_calloc((size_t)n, sizeof *a->v)};
    return a->v ? 0 : km_fail(err, KM_ENOMEM, "out of memory for %d added tokens", n);
}

void added_free(struct added *a)
{
    for (int i = 0; i < a->n; i++)
        km_free(a->v[i].text);
    km_free(a->v);
    *a = (struct added){0};
}

/* Orders by unsigned bytes; a token comes before the tokens that it is a prefix of. */
static int by_text(const void *a, const void *b)
{
    return strcmp(((const struct added_tok *)a)->text, ((const struct added_tok *)b)->text);
}

const char *added_sort(struct added *a)
{
    qsort(a->v, (size_t)a->n, sizeof *a->v, by_text);
    for (int i = 0; i < a->n; i++) {
        a->first[(unsigned char)a->v[i].text[0]] = true;
        if (i && !strcmp(a->v[i - 1].text, a->v[i].text))
            return a->v[i].text;
    }
    return NULL;
}

/* The first index in [lo, hi) whose byte at `depth` is >= c. All tokens of the range are longer than depth. */
static int lower_bound(const struct added *a, int lo, int hi, size_t depth, int c)
{
    while (lo < hi) {
        int mid = lo + (hi - lo) / 2;
        if ((unsigned char)a->v[mid].text[depth] < c)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo;
}

static const struct added_tok *longest_at(const struct added *a, const char *s, size_t n)
{
    const struct added_tok *best = NULL;
    int lo = 0, hi = a->n;
    for (size_t depth = 0; depth < n && lo < hi; depth++) {
        int c = (unsigned char)s[depth];
        lo = lower_bound(a, lo, hi, depth, c);
        hi = lower_bound(a, lo, hi, depth, c + 1);
        if (lo < hi && a->v[lo].len == depth + 1)
            best = &a->v[lo++];
    }
    return best;
}

const struct added_tok *added_find(const struct added *a, const char *s, size_t n, size_t from, size_t *at)
{
    for (size_t i = from; i < n; i++) {
        if (!a->first[(unsigned char)s[i]])
            continue;
        const struct added_tok *t = longest_at(a, s + i, n - i);
        if (t) {
            *at = i;
            return t;
        }
    }
    return NULL;
}

const struct added_tok *added_get(const struct added *a, const char *text)
{
    const struct added_tok *t = longest_at(a, text, strlen(text));
    return t && !text[t->len] ? t : NULL;
}
