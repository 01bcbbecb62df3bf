/* What the tokenizer knows of a code point, and UTF-8 in and out.
 *
 * Token ids are facts that every machine must agree on, and the Unicode version of PCRE2 or utf8proc is
 * whatever the distribution ships. So the kinds come from a table asked out of the outside tokenizer
 * (unicode_table.py), whose split is Unicode 16 and whose NFC is Unicode 9. */
#ifndef TOK_UNICODE_H
#define TOK_UNICODE_H

#include "base/buf.h"

#include <stddef.h>
#include <stdint.h>

enum {
    UNI_OTHER = 0,
    UNI_LETTER = 1, /* \p{L} */
    UNI_NUMBER = 2, /* \p{N} */
    UNI_SPACE = 3,  /* \s    */
    UNI_KIND = 3,   /* mask of the four above */
    UNI_NFC = 4,    /* may change, or change what stands before it, in NFC: anything else is inert */
    UNI_BASE = 8    /* past U+FFFF: joins with a UNI_NFC character behind it */
};
#define UNI_MAX 0x110000

/* A new table of the flags above, [UNI_MAX] (km_free); NULL without memory. */
uint8_t *uni_table(void);

/* The code point at s, which must be valid UTF-8; *len is its bytes. */
static inline uint32_t uni_get(const char *s, int *len)
{
    const unsigned char *u = (const unsigned char *)s;
    if (u[0] < 0x80)
        return *len = 1, u[0];
    if (u[0] < 0xE0)
        return *len = 2, (u[0] & 0x1Fu) << 6 | (u[1] & 0x3Fu);
    if (u[0] < 0xF0)
        return *len = 3, (u[0] & 0x0Fu) << 12 | (u[1] & 0x3Fu) << 6 | (u[2] & 0x3Fu);
    return *len = 4, (u[0] & 0x07u) << 18 | (u[1] & 0x3Fu) << 12 | (u[2] & 0x3Fu) << 6 | (u[3] & 0x3Fu);
}

/* c as UTF-8; returns its length. */
int uni_put(uint32_t c, char out[4]);

/* Bytes before the first that is not UTF-8; n when all is. */
size_t uni_valid(const char *s, size_t n);

/* Appends s with every maximal ill-formed part as one U+FFFD, as Rust's from_utf8_lossy does. */
void uni_lossy(struct km_buf *out, const char *s, size_t n);

#endif
