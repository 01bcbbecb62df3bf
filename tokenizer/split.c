/* The seven alternatives of the pattern, tried in its order without backtracking: the first two characters decide which
 * one matches. A character is read at most three times, so that any text takes linear time.
 *
 * A regex engine would use the Unicode version that it was built with, and would scan a run of spaces again from each
 * position in it. */
#include "tokenizer/split.h"

#include "tokenizer/unicode.h"

#include <stdbool.h>

/* The class of the character at s[i] and its length in bytes; UNI_CLASS + 1 past the end. */
static int class_at(const uint8_t *table, const char *s, size_t n, size_t i, int *len)
{
    if (i >= n)
        return *len = 0, UNI_CLASS + 1;
    return table[uni_get(s + i, len)] & UNI_CLASS;
}

/* The end of the run of characters of the class that continues at i. */
static size_t end_of_run(const uint8_t *table, const char *s, size_t n, size_t i, int class)
{
    int len;
    while (class_at(table, s, n, i, &len) == class)
        i += (size_t)len;
    return i;
}

/* The length of 's 't 're 've 'm 'll or 'd at s, which starts with a quote; 0 if there is none. Letters may be of
 * either case, and U+017F (long s) is an s. */
static size_t match_contraction(const char *s, size_t n)
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

/* The length of the piece that a run of spaces starts with: up to its last newline; without one, all but the last
 * space, which belongs to the following word; at the end of the text, all. */
static size_t match_spaces(const uint8_t *table, const char *s, size_t n)
{
    size_t i = 0, last = 0, newline = 0;
    int len;
    while (class_at(table, s, n, i, &len) == UNI_SPACE) {
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
    int class = class_at(table, s, n, 0, &len);
    size_t first = (size_t)len;
    if (class == UNI_LETTER)
        return end_of_run(table, s, n, first, UNI_LETTER);
    if (class == UNI_NUMBER)
        return first;
    size_t contraction = s[0] == '\'' ? match_contraction(s, n) : 0;
    if (contraction)
        return contraction;
    int next = class_at(table, s, n, first, &len2);
    if (next == UNI_LETTER && s[0] != '\r' && s[0] != '\n')
        return end_of_run(table, s, n, first, UNI_LETTER);
    if (class == UNI_OTHER || (s[0] == ' ' && next == UNI_OTHER)) {
        size_t i = end_of_run(table, s, n, first, UNI_OTHER);
        while (i < n && (s[i] == '\r' || s[i] == '\n'))
            i++;
        return i;
    }
    return match_spaces(table, s, n);
}
