/* Keys and geometry: what determines KV determines the key, and impossible shapes are refused. */
#include "base/test/test.h"

#include "kvcache/header.h"
#include "kvcache/keys.h"

#include <math.h>
#include <string.h>

static struct kv_geom pool_of(int block_size)
{
    return (struct kv_geom){.n_layers = 2, .n_kv_heads = 1, .head_dim = 4, .block_size = block_size, .dtype = KM_BF16,
                            .layout = 1, .page_bytes = (size_t)block_size * 32, .n_pages = 512, .rope_theta = 1e6,
                            .model = {{1, 2, 3}}, .numerics = "cpu-test"};
}

/* Every field of the identity changes the root key; equal identities give equal roots. */
static void each_field_of_the_identity_changes_the_keys(void **state)
{
    (void)state;
    enum { FIELDS = 12 };
    struct kv_geom g[FIELDS];
    int chunk[FIELDS];
    for (int i = 0; i < FIELDS; i++) {
        g[i] = pool_of(16);
        chunk[i] = 256;
    }
    g[1].model.b[31] ^= 1;
    g[2].dtype = KM_F16;
    g[3].layout = 2;
    g[4].n_layers++;
    g[5].n_kv_heads++;
    g[6].head_dim++;
    g[7].rope_theta = nextafter(g[7].rope_theta, 0);
    chunk[8] = 512;
    g[9].block_size = 32;
    memcpy(g[10].numerics, "cpu-tess", 8);
    memset(g[11].numerics, 'x', sizeof g[11].numerics); /* not terminated */
    struct km_digest root[FIELDS];
    for (int i = 0; i < FIELDS; i++) {
        struct kvc_keys k;
        const struct kvc_geometry shape = {.pool = g[i], .chunk_size = chunk[i]};
        assert_int_equal(kvc_keys_open(&k, &shape, NULL), 0);
        root[i] = kvc_keys_root(&k, "s");
        struct km_digest again = kvc_keys_root(&k, "s");
        assert_memory_equal(&root[i], &again, sizeof again);
        for (int j = 0; j < i; j++)
            assert_memory_not_equal(&root[i], &root[j], sizeof root[i]);
        kvc_keys_close(&k);
    }
}

static void the_pool_of_pages_is_not_part_of_the_identity(void **state)
{
    (void)state;
    struct kvc_keys k;
    struct kvc_geometry shape = {.pool = pool_of(16), .chunk_size = 64};
    assert_int_equal(kvc_keys_open(&k, &shape, NULL), 0);
    const struct km_digest root = kvc_keys_root(&k, NULL), fingerprint = k.fingerprint;
    kvc_keys_close(&k);
    shape.pool.n_pages++;
    memset(shape.pool.numerics + 12, 'z', 8); /* what follows the name's end does not count */
    assert_int_equal(kvc_keys_open(&k, &shape, NULL), 0);
    const struct km_digest again = kvc_keys_root(&k, NULL), salted = kvc_keys_root(&k, "");
    assert_memory_equal(&root, &again, sizeof root);
    assert_memory_equal(&fingerprint, &k.fingerprint, sizeof fingerprint);
    assert_memory_not_equal(&root, &salted, sizeof root);
    kvc_keys_close(&k);
}

/* Tiers and machines share keys, so their definition is fixed. The expected keys were computed by another
 * implementation: Python's hashlib over the bytes that keys.c states. */
static void keys_have_the_defined_bytes(void **state)
{
    (void)state;
    struct kvc_keys k;
    int32_t ids[128];
    char hex[65];
    for (int i = 0; i < 128; i++)
        ids[i] = i;
    const struct kvc_geometry shape = {.pool = pool_of(16), .chunk_size = 64};
    assert_int_equal(kvc_keys_open(&k, &shape, NULL), 0);
    struct km_digest d = kvc_keys_root(&k, "salt");
    d = kvc_keys_next(&k, &d, ids, 64);
    const struct km_digest partial = kvc_keys_next(&k, &d, ids + 64, 10);
    d = kvc_keys_next(&k, &d, ids + 64, 64);
    km_hex(&d, hex);
    assert_string_equal(hex, "66fae0301abf157f0fcac41431e2545070ea859ea62652dcae8037fa0243c0db");
    km_hex(&partial, hex);
    assert_string_equal(hex, "55bb53c545e2e21f0b8244020e3b8eeca95d402a04d4d54b2f43346c93a4a03d");
    kvc_keys_close(&k);
}

static void every_length_has_its_own_key(void **state)
{
    (void)state;
    struct kvc_keys k;
    int32_t ids[64] = {0};
    struct km_digest key[65];
    const struct kvc_geometry shape = {.pool = pool_of(16), .chunk_size = 64};
    assert_int_equal(kvc_keys_open(&k, &shape, NULL), 0);
    const struct km_digest root = kvc_keys_root(&k, NULL);
    for (int n = 1; n <= 64; n++) {
        key[n] = kvc_keys_next(&k, &root, ids, n);
        for (int m = 1; m < n; m++)
            assert_memory_not_equal(&key[n], &key[m], sizeof key[n]);
    }
    k.key_bytes = 3;
    const struct km_digest cut = kvc_keys_next(&k, &root, ids, 64);
    assert_memory_equal(cut.b, key[64].b, 3);
    for (int i = 3; i < 32; i++)
        assert_int_equal(cut.b[i], 0);
    kvc_keys_close(&k);
}

static void a_geometry_is_computed_from_the_shape(void **state)
{
    (void)state;
    struct kv_geom pool = {.n_layers = 36, .n_kv_heads = 8, .head_dim = 128, .block_size = 16, .dtype = KM_BF16,
                           .layout = 1, .page_bytes = 2359296, .n_pages = 100, .rope_theta = 1e6};
    struct kvc_geometry g;
    assert_int_equal(kvc_geometry_init(&g, &pool, 256, true, NULL), 0);
    assert_int_equal(g.chunk_size, 256);
    assert_int_equal(g.chunk_pages, 16);
    assert_int_equal(g.payload_bytes, 16 * 2359296);
    assert_int_equal(g.header_bytes, 4096);
    assert_int_equal(g.token_words, 32); /* 128 elements of 2 bytes */
    assert_true(g.payload);
    pool.dtype = KM_F32;
    pool.page_bytes *= 2;
    assert_int_equal(kvc_geometry_init(&g, &pool, 2048, false, NULL), 0);
    assert_int_equal(g.token_words, 64);
    assert_int_equal(g.header_bytes, kvc_header_bytes(2048, 128));
    assert_false(g.payload);
}

static void impossible_geometries_are_refused(void **state)
{
    (void)state;
    enum { CASES = 16 };
    struct kv_geom g[CASES];
    int chunk[CASES];
    for (int i = 0; i < CASES; i++) {
        g[i] = pool_of(16);
        chunk[i] = 64;
    }
    g[1].n_layers = 0;
    g[2].n_kv_heads = -1;
    g[3].head_dim = 0;
    g[4].block_size = 0;
    g[5].rope_theta = NAN;
    g[6].page_bytes++;
    g[7].page_bytes *= 2;
    g[8].head_dim = 6; /* rows of 12 bytes */
    g[8].page_bytes = g[8].page_bytes / 4 * 6;
    g[9].n_layers = g[9].n_kv_heads = g[9].head_dim = INT32_MAX / 8 * 8;
    g[10].n_layers = g[10].n_kv_heads = g[10].head_dim = 1 << 20; /* 2^66 bytes */
    g[10].page_bytes = 0;
    chunk[11] = 0;
    chunk[12] = -16;
    chunk[13] = 24;
    chunk[14] = KVC_CHUNK_MOST + 16;
    chunk[15] = INT32_MIN;
    for (int i = 0; i < CASES; i++) {
        struct kvc_geometry out;
        struct km_err err = {0};
        const int rc = kvc_geometry_init(&out, &g[i], chunk[i], true, &err);
        assert_int_equal(rc, i ? KM_EINVAL : 0);
        assert_int_equal(err.code, rc);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(each_field_of_the_identity_changes_the_keys),
        cmocka_unit_test(the_pool_of_pages_is_not_part_of_the_identity),
        cmocka_unit_test(keys_have_the_defined_bytes),
        cmocka_unit_test(every_length_has_its_own_key),
        cmocka_unit_test(a_geometry_is_computed_from_the_shape),
        cmocka_unit_test(impossible_geometries_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
