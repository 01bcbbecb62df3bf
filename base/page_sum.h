/* The checksum of one page of KV: 64 bits, the same from C on the host and from a CUDA kernel.
 *
 * The checksum is km_mix64 of a sum over the page's 64-bit words. Each word is first xored with a value that depends on
 * the seed and on the word's index, and then passed through the bijection km_mix64. A change of one word therefore
 * always changes the checksum. Random changes of several words go unnoticed with a probability of 2^-64, and regular
 * ones, such as the same bit of many words, with less than 2^-40. The bijection must end with its shift: if it ended
 * with a multiplication, changes of the top bits of two words would cancel each other in half of the cases. Because the
 * terms are added, any number of threads can compute parts of the sum in any order. Words are read in the machine's
 * byte order (little-endian on all supported machines).
 *
 * A page has room for block_size tokens, of which only the first n_tokens are valid. The words of the other tokens do
 * not count, because the engine may write them while the checksum is computed. Consecutive groups of `token_words`
 * words belong to tokens 0, 1, ..., block_size - 1, then again to token 0, and so on (layout 1 of struct kv_geom). */
#ifndef KM_PAGE_SUM_H
#define KM_PAGE_SUM_H

#include "base/random.h"

#include <stddef.h>

/* The term of word i. */
KM_HOST_DEVICE uint64_t km_page_sum_term(uint64_t word, uint64_t seed, uint64_t i)
{
    return km_mix64(word ^ (seed + (i + 1) * KM_GOLDEN64));
}

/* True if word i belongs to one of the first n_tokens tokens of the page. */
KM_HOST_DEVICE int km_page_sum_counts(uint64_t i, uint32_t token_words, uint32_t block_size, uint32_t n_tokens)
{
    return i / token_words % block_size < n_tokens;
}

/* The checksum, from the sum of the terms. */
KM_HOST_DEVICE uint64_t km_page_sum_end(uint64_t sum)
{
    return km_mix64(sum);
}

/* The seed of page `index` of a chunk whose key starts with the 8 bytes key_word. Pages that are exchanged within a
 * chunk or between chunks therefore have wrong checksums. */
KM_HOST_DEVICE uint64_t km_page_sum_seed(uint64_t key_word, uint32_t index)
{
    return km_random_at(key_word, (uint64_t)index + 1);
}

/* The checksum of a page in host memory. page: [n_words] words, 8-byte aligned. n_tokens: 1 to block_size. */
uint64_t km_page_sum(const uint64_t *page, size_t n_words, uint32_t token_words, uint32_t block_size,
                     uint32_t n_tokens, uint64_t seed);

#endif
