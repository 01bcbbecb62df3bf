/* Reading config files, and the table of presets. */
#include "engine/config.h"

#include "base/file.h"
#include "base/json.h"
#include "base/mem.h"

#include <math.h>
#include <string.h>

#define CONFIG_MAX (1 << 20)

/* The published dense Qwen3 models, and a small one for CPUs. EOS ids: <|im_end|>, <|endoftext|>. */
#define QWEN3(L_, D_, H_, G_, F_, TIED)                                                                               \
    {.n_layers = L_, .hidden = D_, .n_heads = H_, .n_kv_heads = G_, .head_dim = 128, .ffn = F_, .vocab = 151936,      \
     .max_pos = 40960, .rope_theta = 1e6f, .rms_eps = 1e-6f, .tied = TIED, .dtype = KM_BF16,                         \
     .eos = {151645, 151643}, .n_eos = 2, .temperature = 0.6, .top_p = 0.95, .top_k = 20}

static const struct {
    const char *name;
    struct mdl_config c;
} presets[] = {
    {"qwen3-0.6b", QWEN3(28, 1024, 16, 8, 3072, true)},
    {"qwen3-1.7b", QWEN3(28, 2048, 16, 8, 6144, true)},
    {"qwen3-4b", QWEN3(36, 2560, 32, 8, 9728, true)},
    {"qwen3-8b", QWEN3(36, 4096, 32, 8, 12288, false)},
    {"qwen3-14b", QWEN3(40, 5120, 40, 8, 17408, false)},
    {"qwen3-32b", QWEN3(64, 5120, 64, 8, 25600, false)},
    {"qwen3-tiny",
     {.n_layers = 6, .hidden = 256, .n_heads = 8, .n_kv_heads = 4, .head_dim = 64, .ffn = 768, .vocab = 4096,
      .max_pos = 40960, .rope_theta = 1e6f, .rms_eps = 1e-6f, .tied = true, .dtype = KM_BF16,
      .eos = {4095}, .n_eos = 1, .temperature = -1, .top_p = -1, .top_k = -1}},
};
enum { N_PRESETS = sizeof presets / sizeof *presets };

const struct mdl_config *mdl_preset(const char *name)
{
    for (int i = 0; i < N_PRESETS; i++)
        if (!strcmp(name, presets[i].name))
            return &presets[i].c;
    return NULL;
}

const char *const *mdl_presets(void)
{
    static const char *const names[N_PRESETS + 1] = {"qwen3-0.6b", "qwen3-1.7b", "qwen3-4b",   "qwen3-8b",
                                                     "qwen3-14b",  "qwen3-32b",  "qwen3-tiny", NULL};
    return names;
}

static int read_int(const cJSON *o, const char *key, int64_t lo, int64_t hi, int *out, struct km_err *err)
{
    int64_t v = 0;
    int rc = km_json_int(o, key, true, lo, hi, &v, err);
    *out = (int)v;
    return rc;
}

static int read_shape(struct mdl_config *c, const cJSON *o, struct km_err *err)
{
    const struct {
        const char *key;
        int64_t lo, hi;
        int *out;
    } fields[] = {
        {"num_hidden_layers", 1, 1024, &c->n_layers},   {"hidden_size", 2, 1 << 17, &c->hidden},
        {"num_attention_heads", 1, 4096, &c->n_heads},  {"num_key_value_heads", 1, 4096, &c->n_kv_heads},
        {"intermediate_size", 2, 1 << 20, &c->ffn},     {"vocab_size", 2, 1 << 22, &c->vocab},
        {"max_position_embeddings", 1, 1 << 24, &c->max_pos},
    };
    for (size_t i = 0; i < sizeof fields / sizeof *fields; i++) {
        int rc = read_int(o, fields[i].key, fields[i].lo, fields[i].hi, fields[i].out, err);
        if (rc)
            return rc;
    }
    int64_t d = 128; /* the architecture's default; it need not be hidden_size / num_attention_heads */
    int rc = km_json_int(o, "head_dim", false, 2, 1024, &d, err);
    c->head_dim = (int)d;
    if (!rc && d % 2)
        rc = km_fail(err, KM_EINVAL, "\"head_dim\" is %d; rotary embedding needs an even one", c->head_dim);
    if (!rc && c->n_heads % c->n_kv_heads)
        rc = km_fail(err, KM_EINVAL, "\"num_attention_heads\" (%d) is not a multiple of \"num_key_value_heads\" (%d)",
                     c->n_heads, c->n_kv_heads);
    return rc;
}

/* rope_theta is at the top level (transformers 4) or in rope_parameters (transformers 5). A rope type other than
 * "default" changes the angles, and is refused. */
static int read_rope(struct mdl_config *c, const cJSON *o, struct km_err *err)
{
    const char *const places[] = {"rope_parameters", "rope_scaling"};
    double top = -1, theta = -1;
    int rc = km_json_num(o, "rope_theta", false, 1e-3, 1e15, &top, err);
    for (int i = 0; i < 2 && !rc; i++) {
        const cJSON *p;
        const char *type = "default";
        rc = km_json_item(o, places[i], false, cJSON_Object, &p, err);
        if (rc || !p)
            continue;
        rc = km_json_str(p, "type", false, &type, err);
        if (!rc)
            rc = km_json_str(p, "rope_type", false, &type, err);
        if (!rc && strcmp(type, "default"))
            rc = km_fail(err, KM_EINVAL, "\"%s\" asks for rope type \"%.40s\"; only \"default\" is supported",
                         places[i], type);
        if (!rc)
            rc = km_json_num(p, "rope_theta", false, 1e-3, 1e15, &theta, err);
    }
    if (rc)
        return rc;
    if (top < 0 && theta < 0)
        return km_fail(err, KM_EINVAL, "\"rope_theta\" is missing, both at the top level and in \"rope_parameters\"");
    if (top > 0 && theta > 0 && top != theta)
        return km_fail(err, KM_EINVAL, "\"rope_theta\" is %g, but \"rope_parameters\" has %g", top, theta);
    c->rope_theta = (float)(theta > 0 ? theta : top);
    return 0;
}

/* A sliding window is in use if it is switched on, has a width, and some layer is above max_window_layers. */
static int refuse_window(const struct mdl_config *c, const cJSON *o, struct km_err *err)
{
    bool use = false;
    int64_t width = 0, from = 0;
    int rc = km_json_bool(o, "use_sliding_window", false, &use, err);
    if (!rc)
        rc = km_json_int(o, "sliding_window", false, 0, INT32_MAX, &width, err);
    if (!rc)
        rc = km_json_int(o, "max_window_layers", false, 0, INT32_MAX, &from, err);
    if (!rc && use && width && from < c->n_layers)
        rc = km_fail(err, KM_EINVAL, "\"use_sliding_window\" is true; sliding-window attention is not supported");
    const cJSON *types = NULL, *t;
    if (!rc)
        rc = km_json_item(o, "layer_types", false, cJSON_Array, &types, err);
    if (rc || !types)
        return rc;
    cJSON_ArrayForEach(t, types)
    {
        if (!cJSON_IsString(t) || strcmp(t->valuestring, "full_attention"))
            return km_fail(err, KM_EINVAL, "\"layer_types\" holds \"%.40s\"; only \"full_attention\" is supported",
                           cJSON_IsString(t) ? t->valuestring : "(not a string)");
    }
    if (cJSON_GetArraySize(types) != c->n_layers)
        return km_fail(err, KM_EINVAL, "\"layer_types\" has %d entries, but there are %d layers",
                       cJSON_GetArraySize(types), c->n_layers);
    return 0;
}

/* Refuses another architecture, activation, biases and quantised weights, which the engine does not compute. */
static int refuse_unsupported(const cJSON *o, struct km_err *err)
{
    const char *type = NULL, *act = "silu";
    bool bias = false;
    const cJSON *quant;
    int rc = km_json_str(o, "model_type", true, &type, err);
    if (!rc && strcmp(type, "qwen3"))
        rc = km_fail(err, KM_EINVAL, "\"model_type\" is \"%.40s\"; only \"qwen3\" is supported", type);
    if (!rc)
        rc = km_json_str(o, "hidden_act", false, &act, err);
    if (!rc && strcmp(act, "silu"))
        rc = km_fail(err, KM_EINVAL, "\"hidden_act\" is \"%.40s\"; only \"silu\" is supported", act);
    if (!rc)
        rc = km_json_bool(o, "attention_bias", false, &bias, err);
    if (!rc && bias)
        rc = km_fail(err, KM_EINVAL, "\"attention_bias\" is true; biased projections are not supported");
    if (!rc)
        rc = km_json_item(o, "quantization_config", false, cJSON_Object, &quant, err);
    if (!rc && quant)
        rc = km_fail(err, KM_EINVAL, "\"quantization_config\" is set; only bf16, f16 and f32 weights are supported");
    return rc;
}

static int read_dtype(struct mdl_config *c, const cJSON *o, struct km_err *err)
{
    const char *name = "bfloat16";
    int rc = km_json_str(o, "torch_dtype", false, &name, err);
    if (!rc)
        rc = km_json_str(o, "dtype", false, &name, err);
    if (rc)
        return rc;
    for (int t = KM_F32; t <= KM_F16; t++)
        if (!strcmp(name, km_dtype_name((enum km_dtype)t))) {
            c->dtype = (enum km_dtype)t;
            return 0;
        }
    return km_fail(err, KM_EINVAL, "\"dtype\" is \"%.40s\"; it must be float32, bfloat16 or float16", name);
}

/* eos_token_id is an id or a list of ids. If it is absent or null, *c does not change. */
static int read_eos(struct mdl_config *c, const cJSON *o, struct km_err *err)
{
    const int most = (int)(sizeof c->eos / sizeof *c->eos);
    const cJSON *v = cJSON_GetObjectItemCaseSensitive(o, "eos_token_id"), *id = v;
    if (!v || cJSON_IsNull(v))
        return 0;
    if (cJSON_IsArray(v))
        id = v->child;
    int n = 0;
    for (; id; id = cJSON_IsArray(v) ? id->next : NULL) {
        double x = cJSON_IsNumber(id) ? id->valuedouble : -1;
        if (!(x >= 0 && x < c->vocab) || x != floor(x))
            return km_fail(err, KM_EINVAL, "\"eos_token_id\" must be token ids from 0 to %d", c->vocab - 1);
        if (n == most)
            return km_fail(err, KM_EINVAL, "\"eos_token_id\" lists more than %d ids", most);
        c->eos[n++] = (int32_t)x;
    }
    c->n_eos = n;
    return 0;
}

static int read_generation(struct mdl_config *c, const cJSON *o, struct km_err *err)
{
    int64_t k = -1;
    int rc = read_eos(c, o, err);
    if (!rc)
        rc = km_json_num(o, "temperature", false, 0, 100, &c->temperature, err);
    if (!rc)
        rc = km_json_num(o, "top_p", false, 0, 1, &c->top_p, err);
    if (!rc)
        rc = km_json_int(o, "top_k", false, -1, 1 << 22, &k, err);
    c->top_k = (int)k;
    return rc;
}

static int read_config(struct mdl_config *c, const cJSON *o, struct km_err *err)
{
    double eps = 1e-6;
    if (!cJSON_IsObject(o))
        return km_fail(err, KM_EFORMAT, "the file is not a JSON object");
    int rc = refuse_unsupported(o, err);
    if (!rc)
        rc = read_shape(c, o, err);
    if (!rc)
        rc = read_dtype(c, o, err);
    if (!rc)
        rc = read_rope(c, o, err);
    if (!rc)
        rc = refuse_window(c, o, err);
    if (!rc)
        rc = km_json_num(o, "rms_norm_eps", false, 1e-12, 1, &eps, err);
    if (!rc)
        rc = km_json_bool(o, "tie_word_embeddings", false, &c->tied, err);
    if (!rc)
        rc = read_eos(c, o, err);
    c->rms_eps = (float)eps;
    return rc;
}

int mdl_config_read(struct mdl_config *c, const char *dir, struct km_err *err)
{
    *c = (struct mdl_config){.temperature = -1, .top_p = -1, .top_k = -1};
    char *path = km_path(dir, "config.json"), *gen = km_path(dir, "generation_config.json");
    cJSON *o = NULL, *g = NULL;
    int rc = path && gen ? km_json_file(path, CONFIG_MAX, &o, err)
                         : km_fail(err, KM_ENOMEM, "no memory to read the config of %s", dir);
    if (!rc && (rc = read_config(c, o, err)))
        km_context(err, "%s", path);
    if (!rc && km_file_exists(gen)) {
        rc = km_json_file(gen, CONFIG_MAX, &g, err);
        if (!rc && (rc = cJSON_IsObject(g) ? read_generation(c, g, err)
                                           : km_fail(err, KM_EFORMAT, "the file is not a JSON object")))
            km_context(err, "%s", gen);
    }
    cJSON_Delete(o);
    cJSON_Delete(g);
    km_free(path);
    km_free(gen);
    return rc;
}
