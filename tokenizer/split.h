/* The split pattern of Qwen2 and Qwen3, as a scanner: text to pieces, which are merged one by one. */
#ifndef TOK_SPLIT_H
#define TOK_SPLIT_H

#include <stddef.h>
#include <stdint.h>

/* The only accepted pattern, as tokenizer.json spells it. */
#define SPL_PATTERN                                                                                                    \
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*"                 \
    "|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"

/* The bytes of the first piece of s[0..n), which is valid UTF-8 and not empty. table: uni_table. */
size_t spl_next(const uint8_t *table, const char *s, size_t n);

#endif
