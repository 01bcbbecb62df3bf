/* The files are written without engine/safetensors.c, so that a mistake in it cannot hide. A failure ends the test
 * program. */
#include "engine/test/fixture.h"

#include "base/file.h"
#include "base/mem.h"
#include "engine/dummy.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void must(int ok, const char *what)
{
    if (!ok) {
        fprintf(stderr, "fixture: %s failed\n", what);
        exit(1);
    }
}

void fx_dir(char path[64])
{
    snprintf(path, 64, "/tmp/kvmark-model-XXXXXX");
    must(mkdtemp(path) != NULL, "mkdtemp");
}

void fx_remove(const char *path)
{
    DIR *d = opendir(path);
    for (struct dirent *e; d && (e = readdir(d));) {
        char *p = km_path(path, e->d_name);
        unlink(p);
        km_free(p);
    }
    if (d)
        closedir(d);
    rmdir(path);
}

void fx_write(const char *dir, const char *name, const void *data, size_t n)
{
    char *p = km_path(dir, name);
    FILE *f = fopen(p, "wb");
    must(f && fwrite(data, 1, n, f) == n && !fclose(f), p);
    km_free(p);
}

void fx_read(const char *dir, const char *name, struct km_buf *out)
{
    char *p = km_path(dir, name);
    must(!km_file_read(p, 0, out, NULL), p);
    km_free(p);
}

uint16_t fx_f32_to_f16(float f)
{
    uint32_t u;
    memcpy(&u, &f, 4);
    int exp = (int)(u >> 23 & 255) - 112;
    uint32_t man = u >> 13 & 1023;
    if (exp <= 0) { /* subnormal in f16 */
        man = exp < -10 ? 0 : (man | 1024) >> (1 - exp);
        exp = 0;
    }
    return (uint16_t)(u >> 16 & 0x8000) | (uint16_t)exp << 10 | (uint16_t)man;
}

static const char *const tensor_names[MDL_TENSORS] = {
    "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight",
    "input_layernorm.weight", "self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight",
    "self_attn.o_proj.weight", "self_attn.q_norm.weight", "self_attn.k_norm.weight", "post_attention_layernorm.weight",
    "mlp.gate_proj.weight", "mlp.up_proj.weight", "mlp.down_proj.weight"};

struct file {
    struct km_buf header, data;
};

static void put_tensor(struct file *f, const struct mdl_config *c, enum mdl_tensor t, int layer, const char *name,
                       enum km_dtype dtype, uint64_t seed)
{
    int rows, cols;
    mdl_shape(c, t, &rows, &cols);
    size_t begin = f->data.len;
    float scale = mdl_dummy_scale(c, t);
    for (uint64_t i = 0; i < (uint64_t)rows * (uint64_t)cols; i++) {
        float v = km_bf16_to_f32(km_f32_to_bf16(dmy_value(dmy_key(seed, t, layer), i, scale)));
        uint16_t h = dtype == KM_F16 ? fx_f32_to_f16(v) : km_f32_to_bf16(v);
        km_buf_put(&f->data, dtype == KM_F32 ? (void *)&v : (void *)&h, km_dtype_size(dtype));
    }
    char dims[32];
    snprintf(dims, sizeof dims, cols == 1 ? "%d" : "%d,%d", rows, cols);
    km_buf_printf(&f->header, "%s\"%s\":{\"dtype\":\"%s\",\"shape\":[%s],\"data_offsets\":[%zu,%zu]}",
                  f->header.len ? "," : "{\"__metadata__\":{\"format\":\"pt\"},", name,
                  dtype == KM_F32 ? "F32" : dtype == KM_F16 ? "F16" : "BF16", dims, begin, f->data.len);
}

static void write_file(struct file *f, const char *dir, const char *name)
{
    struct km_buf all = {0};
    km_buf_putc(&f->header, '}');
    while (f->header.len % 8)
        km_buf_putc(&f->header, ' ');
    uint64_t len = f->header.len;
    km_buf_put(&all, &len, 8); /* little-endian, as all machines that the tests run on */
    km_buf_put(&all, f->header.data, f->header.len);
    km_buf_put(&all, f->data.data, f->data.len);
    fx_write(dir, name, all.data, all.len);
    km_buf_free(&all);
    km_buf_free(&f->header);
    km_buf_free(&f->data);
}

static void write_config(const char *dir, const struct mdl_config *c, enum km_dtype dtype)
{
    struct km_buf b = {0};
    km_buf_printf(&b,
                  "{\"architectures\":[\"Qwen3ForCausalLM\"],\"model_type\":\"qwen3\",\"hidden_act\":\"silu\","
                  "\"num_hidden_layers\":%d,\"hidden_size\":%d,\"num_attention_heads\":%d,\"num_key_value_heads\":%d,"
                  "\"head_dim\":%d,\"intermediate_size\":%d,\"vocab_size\":%d,\"max_position_embeddings\":%d,"
                  "\"rope_theta\":%.1f,\"rms_norm_eps\":1e-06,\"tie_word_embeddings\":%s,\"attention_bias\":false,"
                  "\"use_sliding_window\":false,\"sliding_window\":null,\"max_window_layers\":28,"
                  "\"eos_token_id\":1,\"torch_dtype\":\"%s\"}\n",
                  c->n_layers, c->hidden, c->n_heads, c->n_kv_heads, c->head_dim, c->ffn, c->vocab, c->max_pos,
                  (double)c->rope_theta, c->tied ? "true" : "false", km_dtype_name(dtype));
    fx_write(dir, "config.json", b.data, b.len);
    km_buf_free(&b);
}

void fx_model(const char *dir, const struct mdl_config *c, enum km_dtype dtype, int shards, uint64_t seed)
{
    struct file files[8] = {0};
    struct km_buf index = {0};
    char name[128], file[64];
    int n = 0;
    must(shards <= 8, "shards");
    write_config(dir, c, dtype);
    for (int t = 0; t < MDL_TENSORS; t++) {
        if (t == MDL_LM_HEAD && c->tied)
            continue;
        for (int l = 0; l < (t < MDL_NORM_ATTN ? 1 : c->n_layers); l++, n++) {
            if (t < MDL_NORM_ATTN)
                snprintf(name, sizeof name, "%s", tensor_names[t]);
            else
                snprintf(name, sizeof name, "model.layers.%d.%s", l, tensor_names[t]);
            put_tensor(&files[n % shards], c, (enum mdl_tensor)t, l, name, dtype, seed);
            km_buf_printf(&index, "%s\"%s\":\"part-%d.safetensors\"", index.len ? "," : "{\"weight_map\":{", name,
                          n % shards);
        }
    }
    km_buf_puts(&index, "}}\n");
    for (int i = 0; i < shards; i++) {
        snprintf(file, sizeof file, shards > 1 ? "part-%d.safetensors" : "model.safetensors", i);
        write_file(&files[i], dir, file);
    }
    if (shards > 1)
        fx_write(dir, "model.safetensors.index.json", index.data, index.len);
    km_buf_free(&index);
}
