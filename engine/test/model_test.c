/* Valid and broken model folders, and dummy weights. */
#include "base/test/test.h"

#include "base/mem.h"
#include "engine/dummy.h"
#include "engine/safetensors.h"
#include "engine/test/fixture.h"

#include <fcntl.h>
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static const struct mdl_config small = {.n_layers = 2,
                                        .hidden = 12,
                                        .n_heads = 2,
                                        .n_kv_heads = 1,
                                        .head_dim = 8,
                                        .ffn = 20,
                                        .vocab = 24,
                                        .max_pos = 64,
                                        .rope_theta = 10000,
                                        .rms_eps = 1e-6f,
                                        .tied = false};

static struct km_digest fingerprint(const struct mdl *m)
{
    struct km_digest d;
    struct km_err err = {0};
    if (mdl_fingerprint(m, &d, &err))
        fail_msg("%s", err.msg);
    return d;
}

/* Asserts that every tensor of both models, read as `as`, has the same bytes. */
static void assert_same_weights(const struct mdl *a, const struct mdl *b, enum km_dtype as)
{
    for (int t = 0; t < MDL_TENSORS; t++)
        for (int l = 0; l < (t < MDL_NORM_ATTN ? 1 : mdl_config(a)->n_layers); l++) {
            int rows, cols;
            mdl_shape(mdl_config(a), (enum mdl_tensor)t, &rows, &cols);
            size_t n = (size_t)rows * (size_t)cols * km_dtype_size(as);
            void *x = malloc(n), *y = malloc(n);
            assert_int_equal(mdl_read(a, (enum mdl_tensor)t, l, 0, rows, as, x, NULL), 0);
            assert_int_equal(mdl_read(b, (enum mdl_tensor)t, l, 0, rows, as, y, NULL), 0);
            assert_memory_equal(x, y, n);
            free(x);
            free(y);
        }
}

static void stored_types_and_shards_read_alike(void **state)
{
    (void)state;
    char ref_dir[64], dir[64];
    struct mdl *ref, *m;
    for (int tied = 0; tied < 2; tied++) {
        struct mdl_config c = small;
        c.tied = tied;
        fx_dir(ref_dir);
        fx_model(ref_dir, &c, KM_BF16, 1, 7);
        assert_int_equal(mdl_open(&ref, ref_dir, false, 0, NULL), 0);
        assert_false(mdl_is_dummy(ref));
        for (int type = KM_F32; type <= KM_F16; type++)
            for (int shards = 1; shards <= 5; shards += 2) {
                fx_dir(dir);
                fx_model(dir, &c, (enum km_dtype)type, shards, 7);
                struct km_err err = {0};
                assert_int_equal(mdl_open(&m, dir, false, 0, &err), 0);
                assert_int_equal(mdl_config(m)->dtype, type);
                if (type != KM_F16) { /* f16 loses the smallest values */
                    assert_same_weights(ref, m, KM_F32);
                    assert_same_weights(ref, m, KM_BF16);
                }
                struct km_digest a = fingerprint(ref), b = fingerprint(m);
                /* neither the folder's name nor sharding changes the fingerprint */
                assert_int_equal(memcmp(&a, &b, sizeof a) == 0, type == KM_BF16);
                mdl_free(m);
                fx_remove(dir);
            }
        mdl_free(ref);
        fx_remove(ref_dir);
    }
}

static void f16_is_exact(void **state)
{
    (void)state;
    char dir[64];
    struct mdl *m;
    float got[20 * 12];
    fx_dir(dir);
    fx_model(dir, &small, KM_F16, 1, 3);
    assert_int_equal(mdl_open(&m, dir, false, 0, NULL), 0);
    assert_int_equal(mdl_read(m, MDL_GATE, 1, 0, 20, KM_F32, got, NULL), 0);
    for (int i = 0; i < 20 * 12; i++) {
        float want = km_bf16_to_f32(
            km_f32_to_bf16(dmy_value(dmy_key(3, MDL_GATE, 1), (uint64_t)i, mdl_dummy_scale(&small, MDL_GATE))));
        assert_true(fabsf(got[i] - want) <= 0x1p-24f);
    }
    mdl_free(m);
    fx_remove(dir);
}

static void the_committed_checkpoint_opens(void **state)
{
    (void)state;
    struct mdl *m;
    struct km_err err = {0};
    assert_int_equal(mdl_open(&m, KVM_SOURCE_DIR "/models/qwen3-tiny-lm/", false, 0, &err), 0);
    const struct mdl_config *c = mdl_config(m);
    assert_string_equal(mdl_name(m), "qwen3-tiny-lm");
    assert_int_equal(c->n_layers, 6);
    assert_int_equal(c->n_kv_heads, 4);
    assert_int_equal(c->vocab, 4096);
    assert_true(c->tied && c->rope_theta == 1e6f && c->dtype == KM_BF16);
    assert_int_equal(c->n_eos, 1);
    assert_int_equal(c->eos[0], 4095);
    assert_true(c->temperature < 0 && c->top_k < 0);
    assert_int_equal(mdl_params(m), 6950912);
    mdl_free(m);
}

static void replace(struct km_buf *b, const char *from, const char *to)
{
    char *at = memmem(b->data, b->len, from, strlen(from));
    if (!at)
        fail_msg("fixture has no %s", from);
    size_t head = (size_t)(at - b->data);
    struct km_buf out = {0};
    km_buf_put(&out, b->data, head);
    km_buf_puts(&out, to);
    km_buf_put(&out, at + strlen(from), b->len - head - strlen(from));
    km_buf_free(b);
    *b = out;
}

/* transformers 4 writes rope_theta at the top level, transformers 5 into rope_parameters. The frequencies are the same,
 * in f32, whatever the weights' dtype: a config of either form gives what transformers computes from it. */
static void rotary_frequencies_of_both_forms(void **state)
{
    (void)state;
    const char *const old_form = "\"rope_theta\":10000.0", *const new_form = "\"rope_parameters\":{\"rope_theta\":1e4}";
    const struct {
        const char *rope;
        enum km_dtype dtype;
    } rows[] = {{old_form, KM_BF16}, {new_form, KM_BF16}, {new_form, KM_F32}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        char dir[64];
        struct km_buf b = {0};
        struct mdl *m;
        struct mdl_config c = small;
        float f[4];
        c.tied = true;
        fx_dir(dir);
        fx_model(dir, &c, rows[i].dtype, 1, 1);
        fx_read(dir, "config.json", &b);
        replace(&b, old_form, rows[i].rope);
        fx_write(dir, "config.json", b.data, b.len);
        assert_int_equal(mdl_open(&m, dir, false, 0, NULL), 0);
        mdl_inv_freq(mdl_config(m), f);
        assert_true(f[0] == 1.0f && f[1] == 0.1f && f[2] == 0.01f);
        mdl_free(m);
        km_buf_free(&b);
        fx_remove(dir);
    }
}

/* ---- broken files, with one change each ---- */

static void assert_open_fails(const char *dir, const char *const words[2], const char *what)
{
    struct mdl *m = NULL;
    struct km_err err = {0};
    int rc = mdl_open(&m, dir, false, 0, &err);
    if (!rc)
        fail_msg("opened in spite of: %s", what);
    assert_null(m);
    for (int i = 0; i < 2; i++)
        if (words[i] && !strstr(err.msg, words[i]))
            fail_msg("%s: message lacks \"%s\": %s", what, words[i], err.msg);
}

static void broken_configs_are_named(void **state)
{
    (void)state;
    const struct {
        const char *from, *to, *word;
    } rows[] = {
        {"\"model_type\":\"qwen3\"", "\"model_type\":\"qwen2\"", "qwen2"},
        {"\"model_type\":\"qwen3\",", "", "model_type"},
        {"\"silu\"", "\"gelu\"", "gelu"},
        {"\"attention_bias\":false", "\"attention_bias\":true", "attention_bias"},
        {"\"use_sliding_window\":false,\"sliding_window\":null,\"max_window_layers\":28",
         "\"use_sliding_window\":true,\"sliding_window\":32,\"max_window_layers\":1", "sliding"},
        {"\"rope_theta\":10000.0", "\"rope_theta\":10000.0,\"rope_scaling\":{\"type\":\"yarn\",\"factor\":4.0}",
         "yarn"},
        {"\"rope_theta\":10000.0", "\"rope_parameters\":{\"rope_theta\":1e4,\"rope_type\":\"llama3\"}", "llama3"},
        {"\"rope_theta\":10000.0", "\"rope_theta\":1.0,\"rope_parameters\":{\"rope_theta\":2.0}", "rope_parameters"},
        {"\"rope_theta\":10000.0,", "", "rope_theta"},
        {"\"rope_theta\":10000.0", "\"rope_theta\":\"big\"", "rope_theta"},
        {"\"num_hidden_layers\":2", "\"num_hidden_layers\":0", "num_hidden_layers"},
        {"\"num_hidden_layers\":2", "\"num_hidden_layers\":1", "model.layers.1"},
        {"\"num_hidden_layers\":2", "\"num_hidden_layers\":3", "model.layers.2"},
        {"\"num_hidden_layers\":2", "\"num_hidden_layers\":1e300", "num_hidden_layers"},
        {"\"hidden_size\":12", "\"hidden_size\":-12", "hidden_size"},
        {"\"hidden_size\":12", "\"hidden_size\":12.5", "hidden_size"},
        {"\"num_attention_heads\":2", "\"num_attention_heads\":3", "q_proj"},
        {"\"num_key_value_heads\":1", "\"num_key_value_heads\":3", "num_key_value_heads"},
        {"\"head_dim\":8", "\"head_dim\":7", "head_dim"},
        {"\"head_dim\":8,", "", "q_proj"},
        {"\"vocab_size\":24", "\"vocab_size\":25", "embed_tokens"},
        {"\"intermediate_size\":20", "\"intermediate_size\":4294967316", "intermediate_size"},
        {"\"eos_token_id\":1", "\"eos_token_id\":24", "eos_token_id"},
        {"\"eos_token_id\":1", "\"eos_token_id\":[1,2,3,4,5,6,7,8,9]", "eos_token_id"},
        {"\"torch_dtype\":\"bfloat16\"", "\"torch_dtype\":\"int4\"", "int4"},
        {"\"torch_dtype\"", "\"quantization_config\":{\"bits\":8},\"torch_dtype\"", "quantization_config"},
        {"\"torch_dtype\"", "\"layer_types\":[\"full_attention\",\"sliding_attention\"],\"torch_dtype\"",
         "sliding_attention"},
        {"\"rms_norm_eps\":1e-06", "\"rms_norm_eps\":0", "rms_norm_eps"},
        {"{\"architectures\"", "[{\"architectures\"", "config.json"},
    };
    char dir[64];
    struct km_buf good = {0}, b = {0};
    fx_dir(dir);
    fx_model(dir, &small, KM_BF16, 1, 1);
    fx_read(dir, "config.json", &good);
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        km_buf_clear(&b);
        km_buf_put(&b, good.data, good.len);
        replace(&b, rows[i].from, rows[i].to);
        fx_write(dir, "config.json", b.data, b.len);
        assert_open_fails(dir, (const char *const[]){rows[i].word, dir}, rows[i].to);
    }
    fx_write(dir, "config.json", good.data, good.len);
    const char *generation = "{\"eos_token_id\":[3,5],\"temperature\":0.6,\"top_p\":0.95,\"top_k\":20}";
    fx_write(dir, "generation_config.json", generation, strlen(generation));
    struct mdl *m;
    assert_int_equal(mdl_open(&m, dir, false, 0, NULL), 0);
    assert_int_equal(mdl_config(m)->n_eos, 2);
    assert_int_equal(mdl_config(m)->eos[1], 5);
    assert_int_equal(mdl_config(m)->top_k, 20);
    mdl_free(m);
    km_buf_free(&good);
    km_buf_free(&b);
    fx_remove(dir);
    assert_open_fails("/nonexistent/model", (const char *const[]){"qwen3-0.6b", "/nonexistent"}, "no folder");
}

/* Replaces one string in the header of a valid file, and corrects the length field. */
static void edit_header(const struct km_buf *good, const char *from, const char *to, struct km_buf *out)
{
    uint64_t len;
    struct km_buf h = {0};
    memcpy(&len, good->data, 8);
    km_buf_put(&h, good->data + 8, (size_t)len);
    replace(&h, from, to);
    uint64_t now = h.len;
    km_buf_clear(out);
    km_buf_put(out, &now, 8);
    km_buf_put(out, h.data, h.len);
    km_buf_put(out, good->data + 8 + len, good->len - 8 - (size_t)len);
    km_buf_free(&h);
}

static void broken_headers_are_named(void **state)
{
    (void)state;
    const char *const norm = "\"model.norm.weight\":{\"dtype\":\"BF16\",\"shape\":[12],\"data_offsets\":[576,600]}";
    const struct {
        const char *from, *to, *word;
    } rows[] = {
        {"{\"__metadata__\"", " {\"__metadata__\"", "begin with '{'"},
        {"{\"format\":\"pt\"}", "{\"format\":1}", "__metadata__"},
        {"{\"format\":\"pt\"}", "[]", "__metadata__"},
        {"\"format\":\"pt\"", "\"format\":\"\xff\xfe\"", "UTF-8"},
        {"\"format\"", "\"format\":[[[[", "header"},
        {norm, "\"model.norm.weight\":{\"dtype\":\"BF16\",\"shape\":[13],\"data_offsets\":[576,600]}",
         "model.norm.weight"},
        {norm, "\"model.norm.weight\":{\"dtype\":\"F32\",\"shape\":[12],\"data_offsets\":[576,600]}",
         "model.norm.weight"},
        {norm, "\"model.norm.weight\":{\"dtype\":\"Q4\",\"shape\":[12],\"data_offsets\":[576,600]}", "Q4"},
        {norm, "\"model.norm.weight\":{\"dtype\":\"I16\",\"shape\":[12],\"data_offsets\":[576,600]}", "I16"},
        {norm, "\"model.norm.weight\":{\"dtype\":\"BF16\",\"shape\":[3,4],\"data_offsets\":[576,600]}", "[3, 4]"},
        {norm, "\"model.norm.weight\":{\"dtype\":\"BF16\",\"shape\":[-12],\"data_offsets\":[576,600]}", "dimension 0"},
        {norm, "\"model.norm.weight\":{\"dtype\":\"BF16\",\"shape\":[1.5,8],\"data_offsets\":[576,600]}",
         "dimension 0"},
        {norm,
         "\"model.norm.weight\":{\"dtype\":\"BF16\",\"shape\":[4294967296,4294967296],\"data_offsets\":[576,600]}",
         "64 bits"},
        {norm, "\"model.norm.weight\":{\"dtype\":\"BF16\",\"shape\":[1e300],\"data_offsets\":[576,600]}",
         "dimension 0"},
        {norm, "\"model.norm.weight\":{\"dtype\":\"BF16\",\"shape\":[1,1,1,1,1,1,1,1,12],\"data_offsets\":[576,600]}",
         "dimensions"},
        {norm, "\"model.norm.weight\":{\"dtype\":\"BF16\",\"shape\":12,\"data_offsets\":[576,600]}", "not an array"},
        {norm, "\"model.norm.weight\":{\"dtype\":\"BF16\",\"shape\":[12],\"data_offsets\":[600,576]}",
         "model.norm.weight"},
        {norm, "\"model.norm.weight\":{\"dtype\":\"BF16\",\"shape\":[12],\"data_offsets\":[576]}", "data_offsets"},
        {norm, "\"model.norm.weight\":{\"dtype\":\"BF16\",\"shape\":[12],\"data_offsets\":[576,9007199254740992]}",
         "data bytes"},
        {norm, "\"model.norm.weight\":{\"dtype\":\"BF16\",\"shape\":[12],\"data_offsets\":[574,598]}", "overlapping"},
        {norm, "\"model.norm.weight\":{\"dtype\":\"BF16\",\"shape\":[11],\"data_offsets\":[578,600]}", "hole"},
        {norm, "\"model.norm.weight\":{\"dtype\":\"BF16\",\"shape\":[12]}", "lacks"},
        {norm,
         "\"model.norm.weight\":{\"dtype\":\"BF16\",\"dtype\":\"BF16\",\"shape\":[12],\"data_offsets\":[576,600]}",
         "twice"},
        {norm, "\"model.norm.weight\":{\"dtype\":\"BF16\",\"shape\":[12],\"data_offsets\":[576,600],\"x\":1}",
         "unknown key"},
        {norm, "\"model.norm.weight\":[]", "not an object"},
        {norm, "\"lm_head.weight\":{\"dtype\":\"BF16\",\"shape\":[12],\"data_offsets\":[576,600]}", "lm_head.weight"},
        {"model.norm.weight", "model.normal.weight", "model.norm.weight is missing"},
        {"model.layers.1.self_attn.k_norm.weight", "model.layers.1.self_attn.k_norm.bias", "k_norm.weight is missing"},
    };
    char dir[64];
    struct km_buf good = {0}, b = {0};
    fx_dir(dir);
    fx_model(dir, &small, KM_BF16, 1, 1);
    fx_read(dir, "model.safetensors", &good);
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        edit_header(&good, rows[i].from, rows[i].to, &b);
        fx_write(dir, "model.safetensors", b.data, b.len);
        assert_open_fails(dir, (const char *const[]){rows[i].word, dir}, rows[i].to);
    }
    edit_header(&good, "\"model.norm",
                "\"model.layers.0.self_attn.q_proj.bias\":{\"dtype\":\"BF16\",\"shape\":[0],"
                "\"data_offsets\":[576,576]},\"model.norm",
                &b);
    fx_write(dir, "model.safetensors", b.data, b.len);
    assert_open_fails(dir, (const char *const[]){"q_proj.bias", dir}, "a bias");
    edit_header(&good, "\"model.norm",
                "\"extra\":{\"dtype\":\"I64\",\"shape\":[],\"data_offsets\":[576,584]},\"model.norm", &b);
    fx_write(dir, "model.safetensors", b.data, b.len);
    assert_open_fails(dir, (const char *const[]){"overlapping", dir}, "rank 0 over another");
    edit_header(&good, "\"model.norm",
                "\"extra\":{\"dtype\":\"I64\",\"shape\":[0,3],\"data_offsets\":[576,576]},\"model.norm", &b);
    fx_write(dir, "model.safetensors", b.data, b.len);
    struct mdl *m;
    assert_int_equal(mdl_open(&m, dir, false, 0, NULL), 0); /* an empty tensor is legal */
    mdl_free(m);
    km_buf_free(&good);
    km_buf_free(&b);
    fx_remove(dir);
}

static void broken_sizes_are_named(void **state)
{
    (void)state;
    char dir[64];
    struct km_buf good = {0}, b = {0};
    fx_dir(dir);
    fx_model(dir, &small, KM_BF16, 1, 1);
    fx_read(dir, "model.safetensors", &good);
    const uint64_t lengths[] = {0, 1, good.len - 7, 100000001, (uint64_t)1 << 63, UINT64_MAX};
    for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
        km_buf_clear(&b);
        km_buf_put(&b, good.data, good.len);
        memcpy(b.data, &lengths[i], 8);
        fx_write(dir, "model.safetensors", b.data, b.len);
        assert_open_fails(dir, (const char *const[]){"header length", "model.safetensors"}, "header length");
    }
    const size_t cuts[] = {0, 7, 8, 100, good.len - 1};
    for (size_t i = 0; i < sizeof cuts / sizeof *cuts; i++) {
        fx_write(dir, "model.safetensors", good.data, cuts[i]);
        assert_open_fails(dir, (const char *const[]){"model.safetensors", NULL}, "cut short");
    }
    km_buf_clear(&b);
    km_buf_put(&b, good.data, good.len);
    km_buf_putc(&b, 'x');
    fx_write(dir, "model.safetensors", b.data, b.len);
    assert_open_fails(dir, (const char *const[]){"1 bytes follow", NULL}, "a byte too many");

    /* A file that is truncated while open gives an error at the read, not a signal. */
    struct mdl *m;
    struct km_err err = {0};
    float row[12];
    fx_write(dir, "model.safetensors", good.data, good.len);
    assert_int_equal(mdl_open(&m, dir, false, 0, NULL), 0);
    char path[96];
    snprintf(path, sizeof path, "%s/model.safetensors", dir);
    assert_int_equal(truncate(path, 4096), 0);
    assert_int_equal(mdl_read(m, MDL_DOWN, 1, 11, 1, KM_F32, row, &err), KM_EIO);
    assert_non_null(strstr(err.msg, "down_proj"));
    mdl_free(m);
    unlink(path);
    assert_open_fails(dir, (const char *const[]){"no model.safetensors", dir}, "no weights");
    assert_int_equal(mkfifo(path, 0600), 0);
    assert_open_fails(dir, (const char *const[]){"not a regular file", path}, "a FIFO");
    km_buf_free(&good);
    km_buf_free(&b);
    fx_remove(dir);
}

static void broken_indexes_are_named(void **state)
{
    (void)state;
    const struct {
        const char *from, *to, *word;
    } rows[] = {
        {"part-1.safetensors", "../part-1.safetensors", "same folder"},
        {"part-1.safetensors", "/etc/part-1.safetensors", "same folder"},
        {"part-1.safetensors", "part-1.bin", "same folder"},
        {"part-1.safetensors", "part-9.safetensors", "part-9.safetensors"},
        {"\"part-1.safetensors\"", "3", "same folder"},
        {"model.norm.weight\":\"part-1", "model.norm.weight\":\"part-0", "model.norm.weight"},
        {"model.norm.weight", "model.norm.heavy", "model.norm.heavy"},
        {"weight_map", "weights", "weight_map"},
    };
    char dir[64];
    struct km_buf good = {0}, b = {0}, part = {0};
    fx_dir(dir);
    fx_model(dir, &small, KM_BF16, 3, 1);
    fx_read(dir, "model.safetensors.index.json", &good);
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        km_buf_clear(&b);
        km_buf_put(&b, good.data, good.len);
        replace(&b, rows[i].from, rows[i].to);
        fx_write(dir, "model.safetensors.index.json", b.data, b.len);
        assert_open_fails(dir, (const char *const[]){rows[i].word, dir}, rows[i].to);
    }
    fx_write(dir, "model.safetensors.index.json", "{\"weight_map\":{}}", 17);
    assert_open_fails(dir, (const char *const[]){"empty", dir}, "empty map");
    /* A tensor in two shards. */
    fx_write(dir, "model.safetensors.index.json", good.data, good.len);
    fx_read(dir, "part-1.safetensors", &part);
    fx_write(dir, "part-2.safetensors", part.data, part.len);
    assert_open_fails(dir, (const char *const[]){"appears in both", "part-2"}, "tensor twice");
    km_buf_free(&good);
    km_buf_free(&b);
    km_buf_free(&part);
    fx_remove(dir);
}

/* ---- dummy weights ---- */

static void presets_are_qwen3(void **state)
{
    (void)state;
    const struct {
        const char *name;
        double billions;
    } want[] = {{"qwen3-0.6b", 0.596}, {"qwen3-1.7b", 1.721}, {"qwen3-4b", 4.022},    {"qwen3-8b", 8.191},
                {"qwen3-14b", 14.768}, {"qwen3-32b", 32.762}, {"qwen3-tiny", 0.00695}};
    const char *const *p = mdl_presets();
    for (size_t i = 0; i < sizeof want / sizeof *want; i++) {
        struct mdl *m;
        assert_string_equal(p[i], want[i].name);
        assert_int_equal(mdl_open(&m, want[i].name, false, 0, NULL), 0);
        assert_true(mdl_is_dummy(m) && !mdl_dir(m));
        assert_true(fabs((double)mdl_params(m) / 1e9 / want[i].billions - 1) < 1e-3);
        mdl_free(m);
    }
    assert_null(p[sizeof want / sizeof *want]);
}

static void dummies_depend_on_seed_and_place_alone(void **state)
{
    (void)state;
    struct mdl *a, *b, *other;
    assert_int_equal(mdl_open(&a, "qwen3-tiny", true, 5, NULL), 0);
    assert_int_equal(mdl_open(&b, "qwen3-tiny", false, 5, NULL), 0);
    assert_int_equal(mdl_open(&other, "qwen3-tiny", true, 6, NULL), 0);
    assert_same_weights(a, b, KM_F32);
    enum { N = 768, D = 256 };
    float *whole = malloc(sizeof(float) * N * D), *part = malloc(sizeof(float) * N * D);
    assert_int_equal(mdl_read(a, MDL_UP, 3, 0, N, KM_F32, whole, NULL), 0);
    for (int row = 0, n = 1; row < N; row += n, n = n * 2 + 1) {
        n = row + n > N ? N - row : n;
        assert_int_equal(mdl_read(b, MDL_UP, 3, row, n, KM_F32, part + row * D, NULL), 0);
    }
    assert_memory_equal(whole, part, sizeof(float) * N * D);
    double sum = 0, squares = 0;
    for (int i = 0; i < N * D; i++) {
        sum += whole[i];
        squares += (double)whole[i] * whole[i];
    }
    assert_true(fabs(sum / (N * D)) < 2e-4);
    assert_true(fabs(sqrt(squares / (N * D)) / 0.02 - 1) < 0.01);
    assert_int_equal(mdl_read(other, MDL_UP, 3, 0, N, KM_F32, part, NULL), 0);
    assert_memory_not_equal(whole, part, 4096);
    assert_int_equal(mdl_read(a, MDL_UP, 2, 0, N, KM_F32, part, NULL), 0);
    assert_memory_not_equal(whole, part, 4096);
    assert_int_equal(mdl_read(a, MDL_NORM_FFN, 2, 0, D, KM_F32, part, NULL), 0);
    for (int i = 0; i < D; i++)
        assert_true(part[i] >= 0.875f && part[i] <= 1.125f);
    /* A value that every other implementation must reproduce. */
    assert_int_equal(mdl_read(a, MDL_Q, 1, 17, 1, KM_F32, part, NULL), 0);
    assert_true(part[5] ==
                km_bf16_to_f32(km_f32_to_bf16(dmy_value(dmy_key(5, MDL_Q, 1), 17 * D + 5, 0.02f / 37837.2f))));
    struct km_digest x = fingerprint(a), y = fingerprint(b), z = fingerprint(other);
    assert_true(mdl_fingerprint_known(a)); /* nothing needs to be read */
    assert_memory_equal(&x, &y, sizeof x);
    assert_memory_not_equal(&x, &z, sizeof x);
    struct km_err err = {0};
    assert_int_equal(mdl_read(a, MDL_UP, 6, 0, 1, KM_F32, part, &err), KM_EINVAL);
    assert_int_equal(mdl_read(a, MDL_UP, 0, N, 1, KM_F32, part, &err), KM_EINVAL);
    assert_int_equal(mdl_read(a, MDL_UP, 0, 0, 1, KM_F16, part, &err), KM_EINVAL);
    mdl_free(a);
    mdl_free(b);
    mdl_free(other);
    free(whole);
    free(part);
}

static void *read_rows(void *arg)
{
    const struct mdl *m = arg;
    float *buf = malloc(sizeof(float) * 4096 * 256);
    double *sum = calloc(1, sizeof *sum);
    mdl_read(m, MDL_EMBED, 0, 0, 4096, KM_F32, buf, NULL);
    for (int i = 0; i < 4096 * 256; i++)
        *sum += fabs((double)buf[i]);
    free(buf);
    return sum;
}

static void reading_is_thread_safe(void **state)
{
    (void)state;
    struct mdl *m;
    assert_int_equal(mdl_open(&m, KVM_SOURCE_DIR "/models/qwen3-tiny-lm", false, 0, NULL), 0);
    pthread_t t[4];
    double *sum[4];
    for (int i = 0; i < 4; i++)
        assert_int_equal(pthread_create(&t[i], NULL, read_rows, m), 0);
    for (int i = 0; i < 4; i++)
        pthread_join(t[i], (void **)&sum[i]);
    assert_true(*sum[0] > 0);
    for (int i = 0; i < 4; i++) {
        assert_true(*sum[i] == *sum[0]);
        if (i)
            free(sum[i]);
    }
    free(sum[0]);
    mdl_free(m);
}

/* Opens the folder, and frees the model again. */
static struct km_digest fingerprint_of(const char *dir, bool dummy)
{
    struct mdl *m;
    struct km_err err = {0};
    if (mdl_open(&m, dir, dummy, 0, &err))
        fail_msg("%s", err.msg);
    struct km_digest d = fingerprint(m);
    mdl_free(m);
    return d;
}

static bool same_digest(struct km_digest a, struct km_digest b)
{
    return !memcmp(&a, &b, sizeof a);
}

/* Adds `by` to the byte at offset `at` of a file. */
static void change_byte(const char *path, uint64_t at, uint8_t by)
{
    uint8_t byte;
    int fd = open(path, O_RDWR);
    assert_int_equal(pread(fd, &byte, 1, (off_t)at), 1);
    byte = (uint8_t)(byte + by);
    assert_int_equal(pwrite(fd, &byte, 1, (off_t)at), 1);
    close(fd);
}

/* Each byte of a small checkpoint, and bytes at the edges of pieces and tensors of one with several pieces. */
static void every_byte_of_the_weights_enters_the_fingerprint(void **state)
{
    (void)state;
    char dir[64], path[96];
    for (int large = 0; large < 2; large++) {
        struct mdl_config c = small;
        c.hidden = large ? 1000 : c.hidden;
        c.vocab = large ? 4001 : c.vocab;
        fx_dir(dir);
        fx_model(dir, &c, KM_BF16, 1, 1);
        snprintf(path, sizeof path, "%s/model.safetensors", dir);
        const struct km_digest want = fingerprint_of(dir, false);
        struct stat sb;
        uint64_t header;
        int fd = open(path, O_RDONLY);
        assert_int_equal(fstat(fd, &sb), 0);
        assert_int_equal(pread(fd, &header, 8, 0), 8);
        close(fd);
        const uint64_t data = 8 + header, size = (uint64_t)sb.st_size - data;
        for (uint64_t i = 0; i < (large ? 256 : size); i++) {
            /* In the large checkpoint: around 16 multiples of 1 MiB, and at offsets spread over the file. */
            uint64_t at = !large ? i : i < 128 ? ((i / 8 + 1) << 20) + i % 8 - 4 : size / 128 * (i - 128);
            change_byte(path, data + at % size, 1);
            if (same_digest(fingerprint_of(dir, false), want))
                fail_msg("byte %llu of %llu does not enter the fingerprint", (unsigned long long)at,
                         (unsigned long long)size);
            change_byte(path, data + at % size, 255);
        }
        assert_true(same_digest(fingerprint_of(dir, false), want));
        assert_false(same_digest(fingerprint_of(dir, true), want)); /* dummy weights need no files */
        fx_remove(dir);
    }
}

static void *take_fingerprint(void *arg)
{
    struct km_digest *d = malloc(sizeof *d);
    *d = fingerprint(arg);
    return d;
}

static void the_fingerprint_is_taken_once_and_when_needed(void **state)
{
    (void)state;
    char dir[64], path[96];
    struct mdl *m;
    struct km_err err = {0};
    struct km_digest d, *got;
    pthread_t t[4];
    fx_dir(dir);
    fx_model(dir, &small, KM_BF16, 1, 1);
    snprintf(path, sizeof path, "%s/model.safetensors", dir);
    const struct km_digest want = fingerprint_of(dir, false);
    assert_int_equal(mdl_open(&m, dir, false, 0, NULL), 0);
    assert_false(mdl_fingerprint_known(m));
    for (int i = 0; i < 4; i++)
        assert_int_equal(pthread_create(&t[i], NULL, take_fingerprint, m), 0);
    for (int i = 0; i < 4; i++) {
        pthread_join(t[i], (void **)&got);
        assert_true(same_digest(*got, want));
        free(got);
    }
    assert_true(mdl_fingerprint_known(m));
    assert_int_equal(truncate(path, 4000), 0);
    assert_true(same_digest(fingerprint(m), want)); /* the files are not read again */
    mdl_free(m);

    fx_model(dir, &small, KM_BF16, 1, 1);
    assert_int_equal(mdl_open(&m, dir, false, 0, NULL), 0);
    assert_int_equal(truncate(path, 4000), 0);
    assert_int_equal(mdl_fingerprint(m, &d, &err), KM_EIO);
    assert_non_null(strstr(err.msg, path));
    assert_false(mdl_fingerprint_known(m));
    mdl_free(m);
    fx_remove(dir);
}

static void every_failed_allocation_is_survived(void **state)
{
    (void)state;
    char dir[64];
    fx_dir(dir);
    fx_model(dir, &small, KM_BF16, 3, 1);
    int64_t before = km_mem_stats(KM_MEM_HOST).current;
    for (long n = 1;; n++) {
        struct mdl *m = NULL;
        struct km_err err = {0};
        assert_true(n < 5000);
        km_mem_fail_at(n);
        struct km_digest d;
        int rc = mdl_open(&m, dir, false, 0, &err);
        if (!rc)
            rc = mdl_fingerprint(m, &d, &err);
        km_mem_fail_at(0);
        mdl_free(m);
        if (!rc)
            break;
        assert_int_equal(rc, KM_ENOMEM);
        assert_int_equal(km_mem_stats(KM_MEM_HOST).current, before);
    }
    fx_remove(dir);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(stored_types_and_shards_read_alike),
        cmocka_unit_test(f16_is_exact),
        cmocka_unit_test(the_committed_checkpoint_opens),
        cmocka_unit_test(rotary_frequencies_of_both_forms),
        cmocka_unit_test(broken_configs_are_named),
        cmocka_unit_test(broken_headers_are_named),
        cmocka_unit_test(broken_sizes_are_named),
        cmocka_unit_test(broken_indexes_are_named),
        cmocka_unit_test(presets_are_qwen3),
        cmocka_unit_test(dummies_depend_on_seed_and_place_alone),
        cmocka_unit_test(reading_is_thread_safe),
        cmocka_unit_test(every_byte_of_the_weights_enters_the_fingerprint),
        cmocka_unit_test(the_fingerprint_is_taken_once_and_when_needed),
        cmocka_unit_test(every_failed_allocation_is_survived),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
