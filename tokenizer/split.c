/* The seven alternatives in the pattern's order, without backtracking: the first character and the one
 * behind it tell which applies. A regex engine gives the same pieces, but by the Unicode tables it was
 * built with, and rescans a run of spaces from each of its positions. Here a character is looked at
 * three times at most, so that any text is linear. */
#include "tokenizer/split.h"

#include "tokenizer/unicode.h"

#include <stdbool.h>

/* Kind of the character at s[i] and its length; UNI_KIND + 1 past the end. */
static int kind_at(const uint8_t *table, const char *s, size_t n, size_t i, int *len)
{
    if (i >= n)
        return *len = 0, UNI_KIND + 1;
    return table[uni_get(s + i, len)] & UNI_KIND;
}

/* End of the run of `kind` that starts at or before i. */
static size_t run_of(const uint8_t *table, const char *s, size_t n, size_t i, int kind)
{
    int len;
    while (kind_at(table, s, n, i, &len) == kind)
        i += (size_t)len;
    return i;
}

/* Length of 's 't 're 've 'm 'll 'd in either case at s (a quote), or 0. U+017F is an s in lower case too. */
static size_t contraction(const char *s, size_t n)
{
    if (n < 2)
        return 0;
    int a = s[1] | 0x20, b = n > 2 ? s[2] | 0x20 : 0;
    if (a == 's' || a == 't' || a == 'm' || a == 'd')
        return 2;
    if ((a == 'r' && b == 'e') || (a == 'v' && b == 'e') || (a == 'l' && b == 'l'))
        return 3;
    return n > 2 && s[1] == '\xC5' && s[2] == '\xBF' ? 3 : 0;
}

/* Spaces that no letter or symbol takes: up to the last newline, else all but the last, which goes with
 * the word behind, else all. */
static size_t spaces(const uint8_t *table, const char *s, size_t n)
{
    size_t i = 0, last = 0, newline = 0;
    int len;
    while (kind_at(table, s, n, i, &len) == UNI_SPACE) {
        last = i;
        i += (size_t)len;
        if (s[last] == '\r' || s[last] == '\n')
            newline = i;
    }
    return newline ? newline : i < n && last ? last : i;
}

size_t spl_next(const uint8_t *table, const char *s, size_t n)
{
    int len, len2;
    int kind = kind_at(table, s, n, 0, &len);
    size_t first = (size_t)len;
    if (kind == UNI_LETTER)
        return run_of(table, s, n, first, UNI_LETTER);
    if (kind == UNI_NUMBER)
        return first;
    size_t short_form = s[0] == '\'' ? contraction(s, n) : 0;
    if (short_form)
        return short_form;
    int next = kind_at(table, s, n, first, &len2);
    if (next == UNI_LETTER && s[0] != '\r' && s[0] != '\n')
        return run_of(table, s, n, first, UNI_LETTER);
    if (kind == UNI_OTHER || (s[0] == ' ' && next == UNI_OTHER)) {
        size_t i = run_of(table, s, n, first, UNI_OTHER);
        while (i < n && (s[i] == '\r' || s[i] == '\n'))
            i++;
        return i;
    }
    return spaces(table, s, n);
}
