#include "base/page_sum.h"

uint64_t km_page_sum(const uint64_t *page, size_t n_words, uint32_t token_words, uint32_t block_size,
                     uint32_t n_tokens, uint64_t seed)
{
    const size_t group = (size_t)token_words * block_size, used = (size_t)token_words * n_tokens;
    uint64_t sum[4] = {0}; /* four sums, so that additions do not wait for each other */
    for (size_t start = 0; start < n_words; start += group) {
        const size_t end = start + used < n_words ? start + used : n_words;
        size_t i = start;
        for (; i + 4 <= end; i += 4)
            for (int k = 0; k < 4; k++)
                sum[k] += km_page_sum_term(page[i + (size_t)k], seed, i + (size_t)k);
        for (; i < end; i++)
            sum[0] += km_page_sum_term(page[i], seed, i);
    }
    return km_page_sum_end(sum[0] + sum[1] + sum[2] + sum[3]);
}
