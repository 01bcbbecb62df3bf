/* Qwen's split pattern as a scanner. */
#ifndef TOK_SPLIT_H
#define TOK_SPLIT_H

#include <stddef.h>
#include <stdint.h>

/* The only pattern accepted, as tokenizer.json spells it. */
#define SPL_PATTERN                                                                                            \
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*"         \
    "|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"

/* Bytes of the first piece of s[0..n): valid UTF-8, n > 0. table: uni_table. */
size_t spl_next(const uint8_t *table, const char *s, size_t n);

#endif
