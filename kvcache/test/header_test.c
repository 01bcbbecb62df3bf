/* Headers of chunks: a header that was not written for exactly this chunk is refused, whatever its bytes are. */
#include "base/test/test.h"

#include "base/random.h"
#include "kvcache/header.h"

#include <string.h>

/* A geometry of chunks of 64 tokens in blocks of 16, whose pages have 256 bytes. */
static struct kvc_geometry shape(int chunk_size, bool payload)
{
    const struct kv_geom pool = {.n_layers = 1, .n_kv_heads = 1, .head_dim = 4, .block_size = 16, .dtype = KM_BF16,
                                 .layout = 1, .page_bytes = 256, .n_pages = 8, .rope_theta = 1e6};
    struct kvc_geometry g;
    assert_int_equal(kvc_geometry_init(&g, &pool, chunk_size, payload, NULL), 0);
    return g;
}

/* One valid header and what it was made from. */
struct sample {
    struct kvc_geometry g;
    struct km_digest fingerprint, key;
    int32_t ids[64];
    int n;
    union {
        struct kvc_header h;
        uint8_t bytes[KVC_HEADER_BLOCK];
    } u;
};

static void make(struct sample *s, int n, bool payload)
{
    *s = (struct sample){.g = shape(64, payload), .n = n};
    assert_int_equal(s->g.header_bytes, sizeof s->u.bytes);
    memset(s->u.bytes, 0xA5, sizeof s->u.bytes); /* what a slot held before */
    for (int i = 0; i < 64; i++)
        s->ids[i] = 1000 + i;
    for (int i = 0; i < 32; i++) {
        s->fingerprint.b[i] = (uint8_t)i;
        s->key.b[i] = (uint8_t)(100 + i);
    }
    kvc_header_init(&s->u.h, &s->g, &s->fingerprint, &s->key, 7, s->ids, n);
    for (uint32_t i = 0; i < s->u.h.n_pages; i++)
        kvc_header_sums(&s->u.h)[i] = km_random_at(n, i + 1);
    kvc_header_seal(&s->u.h);
}

static int check(const struct sample *s, size_t payload_bytes)
{
    struct km_err err = {0};
    const int rc = kvc_header_check(&s->u.h, &s->g, &s->fingerprint, &s->key, payload_bytes, &err);
    assert_int_equal(rc, err.code);
    assert_true(!rc || (rc == KM_EFORMAT && strlen(err.msg) > 20));
    return rc;
}

static size_t payload_of(const struct sample *s)
{
    return (size_t)s->u.h.payload_bytes;
}

static void sizes_are_whole_blocks(void **state)
{
    (void)state;
    assert_int_equal(kvc_header_bytes(16, 1), 4096);
    assert_int_equal(kvc_header_bytes(64, 4), 4096);
    assert_int_equal(kvc_header_bytes(256, 16), 4096);
    assert_int_equal(kvc_header_bytes(1024, 1), 8192);
    assert_int_equal(kvc_header_bytes(994, 1), 4096);  /* 112 + 8 + 4 * 994 = 4096 */
    assert_int_equal(kvc_header_bytes(995, 1), 8192);
    assert_int_equal(kvc_header_bytes(KVC_CHUNK_MOST, KVC_CHUNK_MOST) % 4096, 0);
}

static void a_header_states_its_chunk(void **state)
{
    (void)state;
    for (int n = 1; n <= 64; n++) {
        struct sample s;
        make(&s, n, true);
        const uint32_t pages = (uint32_t)(n + 15) / 16;
        assert_int_equal(s.u.h.n_tokens, n);
        assert_int_equal(s.u.h.n_pages, pages);
        assert_int_equal(s.u.h.payload_bytes, pages * 256);
        assert_memory_equal(s.u.bytes, "KVRCHUNK", 8);
        assert_memory_equal(kvc_header_ids(&s.u.h), s.ids, (size_t)n * 4);
        for (size_t i = 112 + 8 * pages + 4 * (size_t)n; i < sizeof s.u.bytes; i++)
            assert_int_equal(s.u.bytes[i], 0); /* nothing of the slot's former bytes reaches a tier */
        assert_int_equal(check(&s, payload_of(&s)), 0);
        assert_true(kvc_header_match(&s.u.h, s.ids, n, 7));
        assert_false(kvc_header_match(&s.u.h, s.ids, n, 6));
        assert_false(kvc_header_match(&s.u.h, s.ids, n - 1, 7));
        if (n < 64)
            assert_false(kvc_header_match(&s.u.h, s.ids, n + 1, 7));
        s.ids[n - 1]++;
        assert_false(kvc_header_match(&s.u.h, s.ids, n, 7));
        make(&s, n, false);
        assert_int_equal(s.u.h.payload_bytes, 0);
        assert_int_equal(check(&s, 0), 0);
        assert_int_equal(check(&s, 256), KM_EFORMAT);
    }
}

/* The checksum is XXH3-64, seed 0, of the bytes with the field 0. The expected value is from Python's xxhash. */
static void the_checksum_has_the_defined_value(void **state)
{
    (void)state;
    struct sample s;
    make(&s, 40, true);
    assert_int_equal(s.u.h.checksum, 0xE6AEDD06A6F475CAu);
}

static void every_changed_byte_is_refused(void **state)
{
    (void)state;
    static const int lengths[] = {1, 16, 17, 63, 64};
    for (int k = 0; k < 5; k++) {
        struct sample s;
        make(&s, lengths[k], true);
        for (size_t i = 0; i < sizeof s.u.bytes; i++)
            for (int bit = -1; bit < 8; bit++) {
                const uint8_t flip = bit < 0 ? 0xFF : (uint8_t)(1 << bit);
                s.u.bytes[i] ^= flip;
                assert_int_equal(check(&s, payload_of(&s)), KM_EFORMAT);
                s.u.bytes[i] ^= flip;
            }
        assert_int_equal(check(&s, payload_of(&s)), 0);
    }
}

/* A correct checksum does not make a header right: whoever can write to a tier can compute it. */
static void sealed_lies_are_refused(void **state)
{
    (void)state;
    static const uint64_t edges[] = {0, 1, 3, 5, 15, 16, 65, 256, 768, 1280, 4096, 0x7FFFFFFF, 0x80000000u, 0xFFFFFFFFu,
                                     1ull << 32, (1ull << 32) + 1024, 1ull << 63, UINT64_MAX};
    for (size_t k = 0; k < sizeof edges / sizeof *edges; k++)
        for (int field = 0; field < 6; field++) {
            struct sample s;
            make(&s, 64, true);
            struct kvc_header *h = &s.u.h;
            switch (field) {
            case 0: h->n_tokens = (uint32_t)edges[k]; break;
            case 1: h->n_pages = (uint32_t)edges[k]; break;
            case 2: h->payload_bytes = edges[k]; break;
            case 3: h->version = (uint32_t)edges[k]; break;
            case 4: h->codec = (uint32_t)edges[k] ? (uint32_t)edges[k] : 9; break;
            default: h->magic = edges[k]; break;
            }
            kvc_header_seal(h);
            assert_int_equal(check(&s, 1024), KM_EFORMAT);
            assert_int_equal(check(&s, payload_of(&s)), KM_EFORMAT);
            h->header_bytes = (uint32_t)edges[k] == 4096 ? 8192 : (uint32_t)edges[k];
            assert_int_equal(check(&s, payload_of(&s)), KM_EFORMAT);
        }
}

static void another_chunk_is_refused(void **state)
{
    (void)state;
    struct sample s;
    for (int b = 0; b < 32; b++) {
        make(&s, 64, true);
        s.fingerprint.b[b] ^= 1;
        assert_int_equal(check(&s, 1024), KM_EFORMAT);
        make(&s, 64, true);
        s.key.b[b] ^= 0x80;
        assert_int_equal(check(&s, 1024), KM_EFORMAT);
    }
    make(&s, 64, true);
    s.g = shape(2048, true); /* a cache with larger chunks has larger headers */
    assert_int_equal(check(&s, 1024), KM_EFORMAT);
    make(&s, 64, true);
    s.g = shape(32, true); /* a cache with smaller chunks cannot hold 64 tokens */
    assert_int_equal(check(&s, 1024), KM_EFORMAT);
    make(&s, 64, true);
    s.g = shape(64, false);
    assert_int_equal(check(&s, 0), KM_EFORMAT);
}

static void payloads_of_another_length_are_refused(void **state)
{
    (void)state;
    static const size_t sizes[] = {0, 1, 256, 768, 1023, 1025, 1280, 4096, 0x80000000u, 0x100000400u, SIZE_MAX};
    struct sample s;
    make(&s, 64, true);
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        assert_int_equal(check(&s, sizes[i]), KM_EFORMAT);
    assert_int_equal(check(&s, 1024), 0);
}

static void random_bytes_are_refused(void **state)
{
    (void)state;
    struct sample s;
    uint64_t random = 3;
    for (int round = 0; round < 20000; round++) {
        make(&s, 1 + round % 64, true);
        /* Random from a random place on: the fixed part may be right in front of it. */
        const size_t from = round % 4 ? km_random_below(&random, sizeof s.u.bytes - 8) : 0;
        for (size_t i = from; i < sizeof s.u.bytes; i++)
            s.u.bytes[i] = (uint8_t)km_random_next(&random);
        assert_int_equal(check(&s, 1024), KM_EFORMAT);
        assert_int_equal(check(&s, payload_of(&s)), KM_EFORMAT);
    }
    memset(s.u.bytes, 0, sizeof s.u.bytes); /* a file with a hole */
    assert_int_equal(check(&s, 0), KM_EFORMAT);
    memset(s.u.bytes, 0xFF, sizeof s.u.bytes);
    assert_int_equal(check(&s, SIZE_MAX), KM_EFORMAT);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sizes_are_whole_blocks),
        cmocka_unit_test(a_header_states_its_chunk),
        cmocka_unit_test(the_checksum_has_the_defined_value),
        cmocka_unit_test(every_changed_byte_is_refused),
        cmocka_unit_test(sealed_lies_are_refused),
        cmocka_unit_test(another_chunk_is_refused),
        cmocka_unit_test(payloads_of_another_length_are_refused),
        cmocka_unit_test(random_bytes_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
