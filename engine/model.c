/* The tensors of a model: found in the files, checked against the config, read and converted; or made from a seed. */
#include "engine/model.h"

#include "base/file.h"
#include "base/machine.h"
#include "base/mem.h"
#include "engine/config.h"
#include "engine/dummy.h"
#include "engine/fingerprint.h"
#include "engine/safetensors.h"

#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>

/* The fingerprint, which the first call of mdl_fingerprint computes. */
struct identity {
    pthread_mutex_t lock;
    bool known;
    struct km_digest fingerprint;
};

struct mdl {
    struct mdl_config c;
    char *name, *dir;                 /* dir: NULL for a preset */
    bool dummy;
    uint64_t seed;
    struct st *files;                 /* NULL with dummy weights */
    const struct st_tensor **tensors; /* [n_layers][MDL_TENSORS]; those that are not per layer are in row 0 */
    struct identity *identity;
};

static const char *const names[MDL_TENSORS] = {
    [MDL_EMBED] = "model.embed_tokens.weight",
    [MDL_NORM_OUT] = "model.norm.weight",
    [MDL_LM_HEAD] = "lm_head.weight",
    [MDL_NORM_ATTN] = "input_layernorm.weight",
    [MDL_Q] = "self_attn.q_proj.weight",
    [MDL_K] = "self_attn.k_proj.weight",
    [MDL_V] = "self_attn.v_proj.weight",
    [MDL_O] = "self_attn.o_proj.weight",
    [MDL_Q_NORM] = "self_attn.q_norm.weight",
    [MDL_K_NORM] = "self_attn.k_norm.weight",
    [MDL_NORM_FFN] = "post_attention_layernorm.weight",
    [MDL_GATE] = "mlp.gate_proj.weight",
    [MDL_UP] = "mlp.up_proj.weight",
    [MDL_DOWN] = "mlp.down_proj.weight",
};

bool mdl_per_layer(enum mdl_tensor t)
{
    return t >= MDL_NORM_ATTN;
}

void mdl_tensor_name(char *buf, size_t size, enum mdl_tensor t, int layer)
{
    if (mdl_per_layer(t))
        snprintf(buf, size, "model.layers.%d.%s", layer, names[t]);
    else
        snprintf(buf, size, "%s", names[t]);
}

void mdl_shape(const struct mdl_config *c, enum mdl_tensor t, int *rows, int *cols)
{
    const int q = c->n_heads * c->head_dim, kv = c->n_kv_heads * c->head_dim, D = c->hidden;
    const int shape[MDL_TENSORS][2] = {
        [MDL_EMBED] = {c->vocab, D}, [MDL_NORM_OUT] = {D, 1},        [MDL_LM_HEAD] = {c->vocab, D},
        [MDL_NORM_ATTN] = {D, 1},    [MDL_Q] = {q, D},               [MDL_K] = {kv, D},
        [MDL_V] = {kv, D},           [MDL_O] = {D, q},               [MDL_Q_NORM] = {c->head_dim, 1},
        [MDL_K_NORM] = {c->head_dim, 1}, [MDL_NORM_FFN] = {D, 1},    [MDL_GATE] = {c->ffn, D},
        [MDL_UP] = {c->ffn, D},      [MDL_DOWN] = {D, c->ffn},
    };
    *rows = shape[t][0];
    *cols = shape[t][1];
}

int64_t mdl_params(const struct mdl *m)
{
    int64_t sum = 0;
    for (int t = 0; t < MDL_TENSORS; t++) {
        int rows, cols;
        mdl_shape(&m->c, (enum mdl_tensor)t, &rows, &cols);
        if (t != MDL_LM_HEAD || !m->c.tied)
            sum += (int64_t)rows * cols * (mdl_per_layer((enum mdl_tensor)t) ? m->c.n_layers : 1);
    }
    return sum;
}

void mdl_inv_freq(const struct mdl_config *c, float *out)
{
    for (int i = 0; i < c->head_dim / 2; i++)
        out[i] = 1.0f / powf(c->rope_theta, (float)(2 * i) / (float)c->head_dim);
}

static bool stored_dtype(const struct st_tensor *t, enum km_dtype *out)
{
    *out = !strcmp(t->dtype, "F32") ? KM_F32 : !strcmp(t->dtype, "F16") ? KM_F16 : KM_BF16;
    return *out != KM_BF16 || !strcmp(t->dtype, "BF16");
}

/* Finds tensor t of a layer in the files, and checks its shape and type. */
static int bind_one(struct mdl *m, enum mdl_tensor t, int layer, struct km_err *err)
{
    char name[128], have[128] = "";
    int rows, cols, n = 0;
    enum km_dtype dtype;
    mdl_tensor_name(name, sizeof name, t, layer);
    const struct st_tensor *s = st_find(m->files, name);
    if (!s)
        return km_fail(err, KM_EFORMAT, "%s: tensor %s is missing%s", m->dir, name,
                       t == MDL_LM_HEAD ? " although \"tie_word_embeddings\" is false" : "");
    mdl_shape(&m->c, t, &rows, &cols);
    bool fits = cols == 1 ? s->n_dims == 1 && s->dims[0] == rows
                          : s->n_dims == 2 && s->dims[0] == rows && s->dims[1] == cols;
    if (!fits) {
        for (int i = 0; i < s->n_dims && n < (int)sizeof have - 24; i++)
            n += snprintf(have + n, sizeof have - (size_t)n, "%s%lld", i ? ", " : "", (long long)s->dims[i]);
        char want[32];
        snprintf(want, sizeof want, cols == 1 ? "%d" : "%d, %d", rows, cols);
        return km_fail(err, KM_EFORMAT, "%s: tensor %s has shape [%s], but config.json asks for [%s]",
                       st_path(m->files, s), name, have, want);
    }
    if (!stored_dtype(s, &dtype))
        return km_fail(err, KM_EFORMAT, "%s: tensor %s has type %s; it must be BF16, F16 or F32", st_path(m->files, s),
                       name, s->dtype);
    m->tensors[(size_t)layer * MDL_TENSORS + t] = s;
    return 0;
}

/* Refuses a layer tensor that the config does not account for, such as a bias or a surplus layer: the config and the
 * files are then not of one model. The rotary tables of old exports are ignored, because the engine computes them. */
static int check_unknown(const struct mdl *m, struct km_err *err)
{
    for (int i = 0; i < st_count(m->files); i++) {
        const struct st_tensor *s = st_at(m->files, i);
        int layer = -1, at = 0, t = MDL_NORM_ATTN;
        if (sscanf(s->name, "model.layers.%d.%n", &layer, &at) != 1 || !at || strstr(s->name, "rotary_emb"))
            continue;
        while (t < MDL_TENSORS && strcmp(s->name + at, names[t]))
            t++;
        if (layer < 0 || layer >= m->c.n_layers || t == MDL_TENSORS)
            return km_fail(err, KM_EFORMAT, "%s: tensor %.100s does not belong to a Qwen3 model with %d layers",
                           st_path(m->files, s), s->name, m->c.n_layers);
    }
    return 0;
}

static int bind_all(struct mdl *m, struct km_err *err)
{
    m->tensors = km_calloc((size_t)m->c.n_layers * MDL_TENSORS, sizeof *m->tensors);
    if (!m->tensors)
        return km_fail(err, KM_ENOMEM, "no memory for the tensor table of %d layers", m->c.n_layers);
    int rc = 0;
    for (int t = 0; t < MDL_TENSORS && !rc; t++) {
        if (t == MDL_LM_HEAD && m->c.tied)
            continue;
        for (int l = 0; l < (mdl_per_layer((enum mdl_tensor)t) ? m->c.n_layers : 1) && !rc; l++)
            rc = bind_one(m, (enum mdl_tensor)t, l, err);
    }
    if (!rc)
        rc = check_unknown(m, err);
    if (!rc) {
        if (m->c.tied)
            m->tensors[MDL_LM_HEAD] = m->tensors[MDL_EMBED];
        stored_dtype(m->tensors[MDL_EMBED], &m->c.dtype);
    }
    return rc;
}

/* Computes the fingerprint: the config, then either the seed of dummy weights or all bytes of the files. */
static int make_fingerprint(const struct mdl *m, struct km_digest *out, struct km_err *err)
{
    const struct mdl_config *c = &m->c;
    const int32_t shape[] = {2 /* version */, c->n_layers, c->hidden, c->n_heads, c->n_kv_heads,
                             c->head_dim,     c->ffn,      c->vocab,  c->tied,    m->dummy};
    const float reals[] = {c->rope_theta, c->rms_eps};
    struct km_sha *h;
    int rc = km_sha_new(&h, err);
    if (rc)
        return rc;
    km_sha_begin(h);
    km_sha_add(h, shape, sizeof shape);
    km_sha_add(h, reals, sizeof reals);
    if (m->dummy)
        km_sha_add(h, &m->seed, sizeof m->seed);
    else
        rc = fpr_add_weights(h, m->files, km_usable_cores(), err);
    *out = km_sha_end(h);
    km_sha_free(h);
    if (rc)
        km_context(err, "the fingerprint of model %s", m->name);
    return rc;
}

int mdl_fingerprint(const struct mdl *m, struct km_digest *out, struct km_err *err)
{
    struct identity *id = m->identity;
    pthread_mutex_lock(&id->lock);
    int rc = id->known ? 0 : make_fingerprint(m, &id->fingerprint, err);
    id->known = !rc;
    if (!rc)
        *out = id->fingerprint;
    pthread_mutex_unlock(&id->lock);
    return rc;
}

bool mdl_fingerprint_known(const struct mdl *m)
{
    pthread_mutex_lock(&m->identity->lock);
    bool known = m->dummy || m->identity->known;
    pthread_mutex_unlock(&m->identity->lock);
    return known;
}

static int open_folder(struct mdl *m, const char *dir, struct km_err *err)
{
    m->dir = km_strdup(dir);
    if (!m->dir)
        return km_fail(err, KM_ENOMEM, "no memory for the path of model %s", dir);
    size_t n = strlen(m->dir);
    while (n > 1 && m->dir[n - 1] == '/')
        m->dir[--n] = 0;
    const char *last = strrchr(m->dir, '/');
    m->name = km_strdup(last && last[1] ? last + 1 : m->dir);
    if (!m->name)
        return km_fail(err, KM_ENOMEM, "no memory for the name of model %s", dir);
    int rc = mdl_config_read(&m->c, m->dir, err);
    if (!rc && !m->dummy) {
        rc = st_open(&m->files, m->dir, err);
        if (!rc)
            rc = bind_all(m, err);
    }
    return rc;
}

int mdl_open(struct mdl **out, const char *name, bool dummy, uint64_t seed, struct km_err *err)
{
    const struct mdl_config *preset = mdl_preset(name);
    struct mdl *m = km_calloc(1, sizeof *m);
    struct identity *identity = km_calloc(1, sizeof *identity);
    int rc = 0;
    if (!m || !identity) {
        km_free(m);
        km_free(identity);
        return km_fail(err, KM_ENOMEM, "no memory for model %s", name);
    }
    pthread_mutex_init(&identity->lock, NULL);
    m->identity = identity;
    m->dummy = dummy || preset;
    m->seed = seed;
    if (preset) {
        m->c = *preset;
        m->name = km_strdup(name);
        rc = m->name ? 0 : km_fail(err, KM_ENOMEM, "no memory for the name of model %s", name);
    } else if (km_dir_exists(name)) {
        rc = open_folder(m, name, err);
    } else {
        char list[160] = "";
        for (const char *const *p = mdl_presets(); *p; p++)
            snprintf(list + strlen(list), sizeof list - strlen(list), "%s%s", list[0] ? ", " : "", *p);
        rc = km_fail(err, KM_ENOENT, "there is no model \"%.200s\": give a folder with config.json, or one of %s", name,
                     list);
    }
    if (rc) {
        mdl_free(m);
        return rc;
    }
    *out = m;
    return 0;
}

void mdl_free(struct mdl *m)
{
    if (!m)
        return;
    st_close(m->files);
    km_free(m->tensors);
    km_free(m->name);
    km_free(m->dir);
    pthread_mutex_destroy(&m->identity->lock);
    km_free(m->identity);
    km_free(m);
}

const struct mdl_config *mdl_config(const struct mdl *m)
{
    return &m->c;
}

const char *mdl_name(const struct mdl *m)
{
    return m->name;
}

const char *mdl_dir(const struct mdl *m)
{
    return m->dir;
}

uint64_t mdl_seed(const struct mdl *m)
{
    return m->seed;
}

bool mdl_is_dummy(const struct mdl *m)
{
    return m->dummy;
}

float mdl_dummy_scale(const struct mdl_config *c, enum mdl_tensor t)
{
    const float base = 0.02f / 37837.2f;
    int rows, cols;
    mdl_shape(c, t, &rows, &cols);
    if (cols == 1)
        return 0;
    return t == MDL_O || t == MDL_DOWN ? base / sqrtf(2.0f * (float)c->n_layers) : base;
}

/* Makes n elements of tensor t, from element `first` on, as dst[n] of type `as`. A tied LM head equals the
 * embedding. */
static void make_dummy(const struct mdl *m, enum mdl_tensor t, int layer, uint64_t first, size_t n, enum km_dtype as,
                       void *dst)
{
    if (t == MDL_LM_HEAD && m->c.tied)
        t = MDL_EMBED;
    const uint64_t key = dmy_key(m->seed, t, layer);
    const float scale = mdl_dummy_scale(&m->c, t);
    float *f = dst;
    uint16_t *h = dst;
    for (size_t i = 0; i < n; i++) {
        uint16_t v = km_f32_to_bf16(dmy_value(key, first + i, scale));
        if (as == KM_BF16)
            h[i] = v;
        else
            f[i] = km_bf16_to_f32(v);
    }
}

static void convert(const void *src, enum km_dtype from, size_t n, enum km_dtype as, void *dst)
{
    const uint16_t *h = src;
    const float *s = src;
    for (size_t i = 0; i < n; i++) {
        float v = from == KM_F32 ? s[i] : from == KM_BF16 ? km_bf16_to_f32(h[i]) : km_f16_to_f32(h[i]);
        if (as == KM_F32)
            ((float *)dst)[i] = v;
        else
            ((uint16_t *)dst)[i] = km_f32_to_bf16(v);
    }
}

int mdl_read(const struct mdl *m, enum mdl_tensor t, int layer, int row0, int n, enum km_dtype as, void *dst,
             struct km_err *err)
{
    int rows, cols;
    mdl_shape(&m->c, t, &rows, &cols);
    if (layer < 0 || layer >= (mdl_per_layer(t) ? m->c.n_layers : 1) || row0 < 0 || n < 0 || row0 > rows - n ||
        as == KM_F16)
        return km_fail(err, KM_EINVAL, "rows [%d, %d + %d) of %s in layer %d cannot be read as %s", row0, row0, n,
                       names[t], layer, km_dtype_name(as));
    uint64_t first = (uint64_t)row0 * (uint64_t)cols;
    size_t n_left = (size_t)n * (size_t)cols; /* elements still to read */
    if (m->dummy) {
        make_dummy(m, t, layer, first, n_left, as, dst);
        return 0;
    }
    const struct st_tensor *s = m->tensors[(size_t)layer * MDL_TENSORS + t];
    enum km_dtype from;
    stored_dtype(s, &from);
    const size_t size = km_dtype_size(from);
    if (from == as)
        return st_read(m->files, s, first * size, n_left * size, dst, err);
    float block[2048]; /* conversion uses the stack, so that reading allocates nothing */
    while (n_left) {
        size_t k = n_left < sizeof block / size ? n_left : sizeof block / size;
        int rc = st_read(m->files, s, first * size, k * size, block, err);
        if (rc)
            return rc;
        convert(block, from, k, as, dst);
        dst = (char *)dst + k * km_dtype_size(as);
        first += k;
        n_left -= k;
    }
    return 0;
}
