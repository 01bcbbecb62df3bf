/* A model that was written as a folder and read again has the same bits in every tensor. */
#include "base/test/test.h"

#include "base/file.h"
#include "base/mem.h"
#include "engine/weights_write.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char root[64], dir[96];

static int make_root(void **state)
{
    (void)state;
    snprintf(root, sizeof root, "/tmp/kvm-weights-XXXXXX");
    if (!mkdtemp(root))
        return -1;
    snprintf(dir, sizeof dir, "%s/model", root);
    return 0;
}

static int remove_root(void **state)
{
    (void)state;
    char cmd[160];
    snprintf(cmd, sizeof cmd, "rm -rf '%s'", root);
    return system(cmd);
}

static void same_tensors(const struct mdl *a, const struct mdl *b)
{
    const struct mdl_config *c = mdl_config(a);
    for (int layer = 0; layer < c->n_layers; layer++)
        for (int t = 0; t < MDL_TENSORS; t++) {
            int rows, cols;
            if (layer && !mdl_per_layer((enum mdl_tensor)t))
                continue;
            mdl_shape(c, (enum mdl_tensor)t, &rows, &cols);
            size_t size = (size_t)rows * (size_t)cols * 2;
            char *x = km_malloc(size), *y = km_malloc(size);
            assert_int_equal(mdl_read(a, (enum mdl_tensor)t, layer, 0, rows, KM_BF16, x, NULL), 0);
            assert_int_equal(mdl_read(b, (enum mdl_tensor)t, layer, 0, rows, KM_BF16, y, NULL), 0);
            assert_memory_equal(x, y, size);
            km_free(x);
            km_free(y);
        }
}

static void round_trip(int64_t shard_bytes, const char *expected)
{
    struct mdl *a, *b;
    struct km_err err = {0};
    assert_int_equal(mdl_open(&a, "qwen3-tiny", false, 5, &err), 0);
    if (wts_write(a, dir, shard_bytes, 3, &err))
        fail_msg("%s", err.msg);
    char *path = km_path(dir, expected);
    assert_true(km_file_exists(path));
    km_free(path);
    if (mdl_open(&b, dir, false, 0, &err))
        fail_msg("%s", err.msg);
    const struct mdl_config *x = mdl_config(a), *y = mdl_config(b);
    assert_memory_equal(&x->n_layers, &y->n_layers, offsetof(struct mdl_config, tied));
    assert_true(x->tied == y->tied && x->n_eos == y->n_eos && x->eos[0] == y->eos[0] && x->top_k == y->top_k);
    assert_int_equal(mdl_params(a), mdl_params(b));
    same_tensors(a, b);
    mdl_free(a);
    mdl_free(b);
}

static void one_file(void **state)
{
    (void)state;
    round_trip(0, "model.safetensors");
}

static void shards(void **state)
{
    (void)state;
    round_trip(1 << 20, "model.safetensors.index.json");
}

/* An existing folder does not change, and after a failure anywhere no file is left. */
static void all_or_nothing(void **state)
{
    (void)state;
    struct mdl *m;
    struct km_err err = {0};
    assert_int_equal(mdl_open(&m, "qwen3-tiny", false, 5, &err), 0);
    assert_int_equal(wts_write(m, root, 0, 1, &err), KM_EINVAL);
    assert_non_null(strstr(err.msg, "exists already"));
    assert_int_equal(wts_write(m, "/proc/nowhere/model", 0, 1, &err), KM_EIO);
    for (int n = 1;; n++) {
        km_mem_fail_at(n);
        int rc = wts_write(m, dir, 0, 1, &err);
        km_mem_fail_at(0);
        if (!rc)
            break;
        assert_true(n < 200);
        assert_false(km_dir_exists(dir));
        assert_int_equal(rmdir(root), 0); /* empty */
        assert_int_equal(km_mkdirs(root, &err), 0);
    }
    mdl_free(m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(one_file, make_root, remove_root),
        cmocka_unit_test_setup_teardown(shards, make_root, remove_root),
        cmocka_unit_test_setup_teardown(all_or_nothing, make_root, remove_root),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
