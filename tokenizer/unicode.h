/* Classes of code points, and UTF-8.
 *
 * Token ids must be the same on every machine, but the Unicode version of PCRE2 or utf8proc is whatever the system has.
 * So the classes come from a table that unicode_table.py made by querying Hugging Face's tokenizers. Its split follows
 * Unicode 16 and its NFC Unicode 9. */
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
    UNI_CLASS = 3,  /* mask of the four classes above */
    UNI_NFC = 4,    /* flag: NFC may change this character, or the one before it */
    UNI_BASE = 8    /* flag, above U+FFFF only: may compose with a UNI_NFC character after it */
};
#define UNI_MAX 0x110000

/* A new table [UNI_MAX] with the class and the flags of each code point (km_free); NULL if there is no memory. */
uint8_t *uni_table(void);

/* The code point at s, which must be valid UTF-8. *len: its length in bytes. */
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

/* Writes c as UTF-8 and returns its length in bytes. */
int uni_put(uint32_t c, char out[4]);

/* The bytes before the first one that is not valid UTF-8; n if all are valid. */
size_t uni_valid(const char *s, size_t n);

/* Appends s with one U+FFFD for every maximal ill-formed part, as Rust's from_utf8_lossy does. */
void uni_lossy(struct km_buf *out, const char *s, size_t n);

#endif
