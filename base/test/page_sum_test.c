/* Page checksums: the defined value, the words that count, and the changes that are noticed. */
#include "base/test/test.h"

#include "base/page_sum.h"

#include <stdbool.h>
#include <string.h>

enum { MOST = 4096 };
static uint64_t page[MOST];

static void fill(size_t n, uint64_t seed)
{
    for (size_t i = 0; i < n; i++)
        page[i] = km_random_at(seed, i + 1);
}

/* The definition: terms of the words that count, one after the other and the last one first, as threads may. */
static uint64_t by_definition(size_t n_words, uint32_t token_words, uint32_t block_size, uint32_t n_tokens,
                              uint64_t seed)
{
    uint64_t sum = 0;
    for (size_t i = n_words; i-- > 0;)
        if (km_page_sum_counts(i, token_words, block_size, n_tokens))
            sum += km_page_sum_term(page[i], seed, i);
    return km_page_sum_end(sum);
}

/* Chunks in a tier keep their checksums, so that the definition is fixed. The expected values were computed by another
 * implementation, in Python. */
static void checksums_have_the_defined_values(void **state)
{
    (void)state;
    fill(1024, 5);
    assert_int_equal(km_page_sum(page, 1024, 32, 16, 16, 77), 0x78DEBC612FFC5626u);
    assert_int_equal(km_page_sum(page, 1024, 32, 16, 9, 77), 0xB19D1F85C2BEFDE3u);
    assert_int_equal(km_page_sum_seed(0x0123456789ABCDEFu, 3), 0xA2D419334C4667ECu);
}

static void every_shape_matches_the_definition(void **state)
{
    (void)state;
    static const uint32_t words[] = {1, 2, 3, 4, 5, 7, 8, 16, 32, 64}, blocks[] = {1, 2, 3, 8, 16, 32};
    fill(MOST, 1);
    for (int w = 0; w < 10; w++)
        for (int b = 0; b < 6; b++)
            for (uint32_t n = 1; n <= blocks[b]; n++)
                for (uint32_t groups = 1; groups <= 2; groups++) { /* K and V of one head */
                    const size_t n_words = (size_t)words[w] * blocks[b] * groups;
                    assert_int_equal(km_page_sum(page, n_words, words[w], blocks[b], n, n),
                                     by_definition(n_words, words[w], blocks[b], n, n));
                }
}

/* Every change of one word is noticed, wherever it is; a word of a token that is not valid does not count. */
static void each_bit_of_valid_tokens_counts(void **state)
{
    (void)state;
    const size_t n_words = 4 * 16 * 2;
    fill(n_words, 2);
    for (uint32_t n = 1; n <= 16; n += 5) {
        const uint64_t sum = km_page_sum(page, n_words, 4, 16, n, 9);
        for (size_t i = 0; i < n_words; i++)
            for (int bit = 0; bit < 64; bit++) {
                page[i] ^= 1ull << bit;
                const bool same = km_page_sum(page, n_words, 4, 16, n, 9) == sum;
                assert_int_equal(same, i / 4 % 16 >= n);
                page[i] ^= 1ull << bit;
            }
    }
}

static void moved_and_equal_words_are_noticed(void **state)
{
    (void)state;
    const size_t n_words = 512;
    fill(n_words, 3);
    const uint64_t sum = km_page_sum(page, n_words, 32, 16, 16, 1);
    for (size_t i = 0; i < n_words; i++) { /* words that change places */
        const size_t j = (i + 1 + i % 100) % n_words;
        const uint64_t word = page[i];
        page[i] = page[j];
        page[j] = word;
        assert_int_not_equal(km_page_sum(page, n_words, 32, 16, 16, 1), sum);
        page[j] = page[i];
        page[i] = word;
    }
    /* The same change of two words. Of their top bits, a sum of products would miss half. */
    for (size_t i = 0; i + 1 < n_words; i++) {
        page[i] ^= 1ull << 63;
        page[i + 1] ^= 1ull << 63;
        assert_int_not_equal(km_page_sum(page, n_words, 32, 16, 16, 1), sum);
        page[i] ^= 1ull << 63;
        page[i + 1] ^= 1ull << 63;
    }
    memset(page, 0, sizeof page); /* zeros of another number or under another seed */
    assert_int_not_equal(km_page_sum(page, 512, 32, 16, 16, 1), km_page_sum(page, 1024, 32, 16, 16, 1));
    assert_int_not_equal(km_page_sum(page, 512, 32, 16, 16, 1), km_page_sum(page, 512, 32, 16, 15, 1));
    for (uint64_t seed = 2; seed < 1000; seed++)
        assert_int_not_equal(km_page_sum(page, 512, 32, 16, 16, 1), km_page_sum(page, 512, 32, 16, 16, seed));
}

/* Pages of one chunk, and the same page of chunks whose keys differ little, have different seeds. */
static void seeds_differ(void **state)
{
    (void)state;
    uint64_t seed[64];
    for (int i = 0; i < 64; i++) {
        seed[i] = km_page_sum_seed(1000 + (uint64_t)i / 16, (uint32_t)i % 16);
        for (int j = 0; j < i; j++)
            assert_int_not_equal(seed[i], seed[j]);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(checksums_have_the_defined_values),
        cmocka_unit_test(every_shape_matches_the_definition),
        cmocka_unit_test(each_bit_of_valid_tokens_counts),
        cmocka_unit_test(moved_and_equal_words_are_noticed),
        cmocka_unit_test(seeds_differ),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
