/* Lays out, reads and packs the weights. */
#include "engine/cpu/weights.h"

#include "base/mem.h"

#include <stdatomic.h>
#include <string.h>

static void alloc_mat(struct arena *a, struct wts_mat *m, const struct wts *w, int panels, int k)
{
    m->n_panels = panels;
    m->k = k;
    m->panels = arena_alloc(a, (size_t)panels * (size_t)k * (size_t)w->kernels->nr, km_dtype_size(w->dtype));
}

static int panels_of(int rows, int nr)
{
    return (rows + nr - 1) / nr;
}

static void layout(struct wts *w, const struct mdl_config *c, struct arena *a)
{
    const int nr = w->kernels->nr, d = c->head_dim, D = c->hidden, q = c->n_heads * d, kv = c->n_kv_heads * d;
    struct wts_layer *layers = arena_alloc(a, (size_t)c->n_layers, sizeof *layers);
    w->norm_out = arena_alloc(a, (size_t)D, sizeof(float));
    arena_plan_row(a, PLAN_WEIGHTS, "norms");
    alloc_mat(a, &w->head, w, panels_of(c->vocab, nr), D);
    arena_plan_row(a, PLAN_WEIGHTS, c->tied ? "embedding and head" : "head");
    w->embed = w->head;
    if (!c->tied) {
        alloc_mat(a, &w->embed, w, panels_of(c->vocab, nr), D);
        arena_plan_row(a, PLAN_WEIGHTS, "embedding");
    }
    for (int l = 0; l < c->n_layers; l++) {
        struct wts_layer one;
        one.norm_attn = arena_alloc(a, (size_t)D, sizeof(float));
        one.norm_ffn = arena_alloc(a, (size_t)D, sizeof(float));
        one.q_norm = arena_alloc(a, (size_t)d, sizeof(float));
        one.k_norm = arena_alloc(a, (size_t)d, sizeof(float));
        arena_plan_row(a, PLAN_WEIGHTS, "norms");
        alloc_mat(a, &one.qkv, w, panels_of(q + 2 * kv, nr), D);
        alloc_mat(a, &one.o, w, panels_of(D, nr), q);
        arena_plan_row(a, PLAN_WEIGHTS, "attention of all layers");
        alloc_mat(a, &one.gate_up, w, 2 * panels_of(c->ffn, nr), D);
        alloc_mat(a, &one.down, w, panels_of(D, nr), c->ffn);
        arena_plan_row(a, PLAN_WEIGHTS, "feed-forward of all layers");
        if (layers)
            layers[l] = one;
    }
    w->layers = layers;
}

size_t wts_bytes(const struct mdl_config *c, enum km_dtype dtype, const struct kernels *kernels, struct plan *rows)
{
    struct wts w = {.dtype = dtype, .kernels = kernels};
    struct arena a = {.plan = rows};
    layout(&w, c, &a);
    return a.used;
}

/* The loading of one matrix, panel by panel. The rows of the matrix are those of one to three tensors, joined. */
struct load {
    const struct mdl *m;
    const struct wts *w;
    const struct wts_mat *mat;
    enum mdl_tensor tensors[3];
    int n_tensors, layer;
    bool interleave;    /* panels of the two tensors alternate */
    char *rows;         /* [threads][nr][k] rows of a panel before packing */
    atomic_bool failed; /* a panel could not be read */
    struct km_err *err; /* the error of the first such panel */
};

/* Reads rows [row0, row0 + n) of the joined tensors to dst. Rows after the last row become zero. */
static int read_joined(struct load *j, int row0, int n, char *dst, struct km_err *err)
{
    const size_t row_bytes = (size_t)j->mat->k * km_dtype_size(j->w->dtype);
    memset(dst, 0, (size_t)n * row_bytes);
    for (int p = 0; p < j->n_tensors && n > 0; p++) {
        int rows, cols;
        mdl_shape(mdl_config(j->m), j->tensors[p], &rows, &cols);
        int n_here = row0 < rows ? rows - row0 < n ? rows - row0 : n : 0; /* rows of this tensor */
        int rc = n_here ? mdl_read(j->m, j->tensors[p], j->layer, row0, n_here, j->w->dtype, dst, err) : 0;
        if (rc)
            return rc;
        dst += (size_t)n_here * row_bytes;
        n -= n_here;
        row0 = n_here ? 0 : row0 - rows;
    }
    return 0;
}

static void load_panel(void *ctx, int panel, int thread)
{
    struct load *j = ctx;
    const int nr = j->w->kernels->nr, k = j->mat->k;
    const size_t size = km_dtype_size(j->w->dtype), n = (size_t)nr * (size_t)k;
    char *rows = j->rows + (size_t)thread * n * size, *dst = (char *)j->mat->panels + (size_t)panel * n * size;
    struct km_err err = {0};
    if (atomic_load(&j->failed))
        return;
    struct load one = {
        .m = j->m, .w = j->w, .mat = j->mat, .tensors = {j->tensors[panel % 2]}, .n_tensors = 1, .layer = j->layer};
    int rc =
        j->interleave ? read_joined(&one, panel / 2 * nr, nr, rows, &err) : read_joined(j, panel * nr, nr, rows, &err);
    if (rc) {
        if (!atomic_exchange(&j->failed, true) && j->err)
            *j->err = err;
        return;
    }
    for (int t = 0; t < k; t++)
        for (int i = 0; i < nr; i++)
            if (size == 4)
                ((uint32_t *)dst)[(size_t)t * (size_t)nr + (size_t)i] =
                    ((uint32_t *)rows)[(size_t)i * (size_t)k + (size_t)t];
            else
                ((uint16_t *)dst)[(size_t)t * (size_t)nr + (size_t)i] =
                    ((uint16_t *)rows)[(size_t)i * (size_t)k + (size_t)t];
}

static int load_mat(struct load *j, struct thread_pool *pool, const struct wts_mat *mat, int layer, int n_tensors,
                    const enum mdl_tensor tensors[3], bool interleave)
{
    j->mat = mat;
    j->layer = layer;
    j->n_tensors = n_tensors;
    j->interleave = interleave;
    memcpy(j->tensors, tensors, sizeof j->tensors);
    thread_pool_run(pool, mat->n_panels, load_panel, j);
    return atomic_load(&j->failed) ? (j->err && j->err->code ? j->err->code : KM_EIO) : 0;
}

static int load_all(struct load *j, const struct wts *w, struct thread_pool *pool)
{
    const struct mdl_config *c = mdl_config(j->m);
    int rc = mdl_read(j->m, MDL_NORM_OUT, 0, 0, c->hidden, KM_F32, w->norm_out, j->err);
    if (!rc)
        rc = load_mat(j, pool, &w->head, 0, 1, (enum mdl_tensor[3]){MDL_LM_HEAD}, false);
    if (!rc && !c->tied)
        rc = load_mat(j, pool, &w->embed, 0, 1, (enum mdl_tensor[3]){MDL_EMBED}, false);
    for (int l = 0; l < c->n_layers && !rc; l++) {
        const struct wts_layer *layer = &w->layers[l];
        const struct {
            enum mdl_tensor t;
            float *dst;
        } norms[] = {{MDL_NORM_ATTN, layer->norm_attn},
                     {MDL_NORM_FFN, layer->norm_ffn},
                     {MDL_Q_NORM, layer->q_norm},
                     {MDL_K_NORM, layer->k_norm}};
        for (int i = 0; i < 4 && !rc; i++) {
            int rows, cols;
            mdl_shape(c, norms[i].t, &rows, &cols);
            rc = mdl_read(j->m, norms[i].t, l, 0, rows, KM_F32, norms[i].dst, j->err);
        }
        if (!rc)
            rc = load_mat(j, pool, &layer->qkv, l, 3, (enum mdl_tensor[3]){MDL_Q, MDL_K, MDL_V}, false);
        if (!rc)
            rc = load_mat(j, pool, &layer->o, l, 1, (enum mdl_tensor[3]){MDL_O}, false);
        if (!rc)
            rc = load_mat(j, pool, &layer->gate_up, l, 2, (enum mdl_tensor[3]){MDL_GATE, MDL_UP}, true);
        if (!rc)
            rc = load_mat(j, pool, &layer->down, l, 1, (enum mdl_tensor[3]){MDL_DOWN}, false);
    }
    return rc;
}

int wts_load(struct wts *w, const struct mdl *m, enum km_dtype dtype, const struct kernels *kernels,
             struct thread_pool *pool, struct km_err *err)
{
    const struct mdl_config *c = mdl_config(m);
    int widest = c->hidden > c->ffn ? c->hidden : c->ffn;
    if (c->n_heads * c->head_dim > widest)
        widest = c->n_heads * c->head_dim;
    *w = (struct wts){.dtype = dtype, .kernels = kernels, .bytes = wts_bytes(c, dtype, kernels, NULL)};
    w->block = arena_block(w->bytes);
    struct km_err first = {0};
    struct load j = {.m = m, .w = w, .err = &first};
    j.rows = km_reallocarray(NULL, (size_t)thread_pool_threads(pool) * (size_t)kernels->nr,
                             (size_t)widest * km_dtype_size(dtype));
    int rc;
    if (!w->block || !j.rows) {
        rc = km_fail(err, KM_ENOMEM, "out of memory for weights of %zu bytes; use a smaller model or --dtype bfloat16",
                     w->bytes);
    } else {
        struct arena a = {.base = w->block};
        layout(w, c, &a);
        rc = load_all(&j, w, pool);
        if (rc)
            rc = km_fail(err, rc, "%s", first.msg);
    }
    km_free(j.rows);
    if (rc)
        wts_free(w);
    return rc;
}

void wts_free(struct wts *w)
{
    km_free(w->block);
    w->block = NULL;
}

void wts_embed(const struct wts *w, int32_t token, float *x)
{
    const size_t nr = (size_t)w->kernels->nr, k = (size_t)w->embed.k;
    const size_t at = (size_t)token / nr * k * nr + (size_t)token % nr;
    for (size_t i = 0; i < k; i++)
        x[i] = w->dtype == KM_F32 ? ((const float *)w->embed.panels)[at + i * nr]
                                  : km_bf16_to_f32(((const uint16_t *)w->embed.panels)[at + i * nr]);
}
