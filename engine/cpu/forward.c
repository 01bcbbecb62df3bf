/* Runs the layers in order. Each phase of a layer is one loop over tasks in the thread pool. A phase starts when the
 * previous phase has ended. Within a phase, no task writes what another task reads or writes. */
#include "engine/cpu/forward.h"

#include "base/mem.h"

#include <math.h>
#include <string.h>

enum {
    ROW_BLOCK = 96,         /* rows of a GEMM task: they stay in L2 while the panels are read */
    TASK_COLS = 64,         /* columns of a GEMM task */
    BLOCK_FLOATS = 8192,    /* weights that all rows use before further weights are read: half of an L1 cache */
    LOGIT_FLOATS = 4 << 20, /* floats of the buffer of logits */
    ROWS_PER_TASK = 16      /* rows of an elementwise task */
};

struct fwd {
    const struct mdl_config *c;
    const struct wts *w;
    const struct kernels *k;
    struct thread_pool *pool;
    const struct kv_pool *kv;
    struct attn *attn;
    void *block;
    int logit_rows;                          /* rows of logits that fit in LOGIT_FLOATS */
    size_t ld_d, ld_qkv, ld_att, ld_f, ld_v; /* row strides in floats */
    float *x, *xn;                           /* [T][ld_d] residual stream, and the residual stream after RMSNorm */
    float *qkv;                              /* [T][ld_qkv] n_heads query, n_kv_heads key, n_kv_heads value heads */
    float *att;                              /* [T][ld_att] output of attention */
    float *h;                                /* [T][ld_f] silu(gate) * up */
    float *cs;                               /* [T][d] d/2 cosines, then d/2 sines, of each token's position */
    float *logits;                           /* [logit_rows][ld_v] */
    float *tile;                          /* [threads][BLOCK_FLOATS + ROW_BLOCK * 2 * KERNELS_MAX_NR] see gemm_task */
    float *sampler;                       /* [threads][V] scratch of smp_sample */
    float *inv_freq;                      /* [d / 2] rotary frequencies */
    int32_t *sampled;                     /* [T] indices of the rows that are sampled, in order */
    int32_t *sampled_pos, *sampled_start; /* [T], [max_reqs + 1] positions and q_start of a batch of these rows */
    int32_t *sampled_index;               /* [T] a row's index in sampled[]; -1: not sampled */
};

static size_t stride(int n, int nr)
{
    return (size_t)((n + nr - 1) / nr * nr) + 16;
}

static void layout(struct fwd *f, struct arena *a, int threads, const struct fwd_limits *lim)
{
    const struct mdl_config *c = f->c;
    const int nr = f->k->nr;
    const size_t T = (size_t)lim->max_tokens, d = (size_t)c->head_dim;
    f->ld_d = stride(c->hidden, nr);
    f->ld_qkv = stride((c->n_heads + 2 * c->n_kv_heads) * c->head_dim, nr);
    f->ld_att = stride(c->n_heads * c->head_dim, nr);
    f->ld_f = stride(c->ffn, nr);
    f->ld_v = stride(c->vocab, nr);
    f->logit_rows = (int)(LOGIT_FLOATS / f->ld_v);
    f->logit_rows = f->logit_rows < 1 ? 1 : f->logit_rows > lim->max_tokens ? lim->max_tokens : f->logit_rows;
    f->x = arena_alloc(a, T * f->ld_d, sizeof(float));
    f->xn = arena_alloc(a, T * f->ld_d, sizeof(float));
    arena_plan_row(a, PLAN_WORKSPACE, "residual stream, and after RMSNorm");
    f->qkv = arena_alloc(a, T * f->ld_qkv, sizeof(float));
    arena_plan_row(a, PLAN_WORKSPACE, "queries, keys, values");
    f->att = arena_alloc(a, T * f->ld_att, sizeof(float));
    arena_plan_row(a, PLAN_WORKSPACE, "attention output");
    f->h = arena_alloc(a, T * f->ld_f, sizeof(float));
    arena_plan_row(a, PLAN_WORKSPACE, "feed-forward activation");
    f->cs = arena_alloc(a, T * d, sizeof(float));
    arena_plan_row(a, PLAN_WORKSPACE, "rotary angles");
    f->logits = arena_alloc(a, (size_t)f->logit_rows * f->ld_v, sizeof(float));
    arena_plan_row(a, PLAN_WORKSPACE, "logits");
    f->tile = arena_alloc(a, (size_t)threads * (BLOCK_FLOATS + ROW_BLOCK * 2 * KERNELS_MAX_NR), sizeof(float));
    arena_plan_row(a, PLAN_WORKSPACE, "GEMM tiles");
    f->sampler = arena_alloc(a, (size_t)threads * (size_t)c->vocab, sizeof(float));
    arena_plan_row(a, PLAN_WORKSPACE, "sampling scratch");
    f->inv_freq = arena_alloc(a, d / 2, sizeof(float));
    f->sampled = arena_alloc(a, T, sizeof(int32_t));
    f->sampled_pos = arena_alloc(a, T, sizeof(int32_t));
    f->sampled_start = arena_alloc(a, (size_t)lim->max_reqs + 1, sizeof(int32_t));
    f->sampled_index = arena_alloc(a, T, sizeof(int32_t));
    arena_plan_row(a, PLAN_WORKSPACE, "step arrays");
    f->attn = attn_layout(a, c, f->k, threads, lim->max_tokens, lim->max_reqs, lim->max_model_len);
    arena_plan_row(a, PLAN_WORKSPACE, "attention scratch");
}

size_t fwd_bytes(const struct mdl_config *c, const struct kernels *k, int threads, const struct fwd_limits *lim,
                 struct plan *rows)
{
    struct fwd f = {.c = c, .k = k};
    struct arena a = {.plan = rows};
    layout(&f, &a, threads, lim);
    return a.used;
}

int fwd_open(struct fwd **out, const struct mdl_config *c, const struct wts *w, struct thread_pool *pool,
             const struct kv_pool *kv, const struct fwd_limits *lim, struct km_err *err)
{
    const int threads = thread_pool_threads(pool);
    struct fwd *f = km_calloc(1, sizeof *f);
    size_t bytes = fwd_bytes(c, w->kernels, threads, lim, NULL);
    struct arena a = {.base = f ? arena_block(bytes) : NULL};
    if (!a.base) {
        km_free(f);
        return km_fail(err, KM_ENOMEM,
                       "out of memory for a workspace of %zu bytes; lower --max-num-batched-tokens or --max-model-len",
                       bytes);
    }
    *f = (struct fwd){.c = c, .w = w, .k = w->kernels, .pool = pool, .kv = kv, .block = a.base};
    layout(f, &a, threads, lim);
    attn_open(f->attn, c, w->kernels, pool, kv);
    mdl_inv_freq(c, f->inv_freq);
    *out = f;
    return 0;
}

void fwd_close(struct fwd *f)
{
    if (f)
        km_free(f->block);
    km_free(f);
}

/* ---- GEMMs ---- */

/* A phase that multiplies m rows by a matrix. */
struct gemm {
    struct fwd *f;
    const struct wts_mat *w;
    const float *a; /* [m][lda] */
    float *c;       /* [m][ldc] */
    size_t lda, ldc;
    int m, groups, panels; /* rows; groups of panels; panels of a group */
    bool add, swiglu;
};

/* Multiplies m rows by one panel, in blocks of k that stay in L1 for all rows. bf16 weights are widened to f32 once for
 * all rows, or in the kernel if m is at most one register tile. wide: [BLOCK_FLOATS] scratch memory. */
static void gemm_panel(const struct gemm *p, int m, const float *a, int panel, float *c, size_t ldc, float *wide)
{
    const struct kernels *k = p->f->k;
    const int K = p->w->k, step = BLOCK_FLOATS / k->nr;
    const size_t at = (size_t)panel * (size_t)K * (size_t)k->nr;
    for (int k0 = 0; k0 < K; k0 += step) {
        const int kn = K - k0 < step ? K - k0 : step;
        const size_t from = at + (size_t)k0 * (size_t)k->nr;
        const bool add = p->add || k0;
        if (p->f->w->dtype == KM_F32) {
            k->gemm_f32(m, kn, a + k0, p->lda, (const float *)p->w->panels + from, c, ldc, add);
        } else if (m <= k->mr) {
            k->gemm_bf16(m, kn, a + k0, p->lda, (const uint16_t *)p->w->panels + from, c, ldc, add);
        } else {
            k->widen(wide, (const uint16_t *)p->w->panels + from, (size_t)kn * (size_t)k->nr);
            k->gemm_f32(m, kn, a + k0, p->lda, wide, c, ldc, add);
        }
    }
}

static void gemm_task(void *ctx, int task, int thread)
{
    const struct gemm *p = ctx;
    struct fwd *f = p->f;
    const int nr = f->k->nr, row0 = task / p->groups * ROW_BLOCK, first = task % p->groups * p->panels;
    const int m = p->m - row0 < ROW_BLOCK ? p->m - row0 : ROW_BLOCK;
    const float *a = p->a + (size_t)row0 * p->lda;
    float *c = p->c + (size_t)row0 * p->ldc;
    float *wide = f->tile + (size_t)thread * (BLOCK_FLOATS + ROW_BLOCK * 2 * KERNELS_MAX_NR),
          *pair = wide + BLOCK_FLOATS;
    for (int i = first; i < first + p->panels && i < p->w->n_panels; i += p->swiglu ? 2 : 1) {
        if (!p->swiglu) {
            gemm_panel(p, m, a, i, c + (size_t)i * (size_t)nr, p->ldc, wide);
            continue;
        }
        gemm_panel(p, m, a, i, pair, (size_t)nr, wide);
        gemm_panel(p, m, a, i + 1, pair + m * nr, (size_t)nr, wide);
        for (int r = 0; r < m; r++)
            f->k->silu_mul(c + (size_t)r * p->ldc + (size_t)(i / 2) * (size_t)nr, pair + r * nr, pair + (m + r) * nr,
                           nr);
    }
}

/* c = a W^T for m rows; with add, c += a W^T. With swiglu, W is gate and up, and c = silu(gate) * up. */
static void gemm(struct fwd *f, const struct wts_mat *w, int m, const float *a, size_t lda, float *c, size_t ldc,
                 bool add, bool swiglu)
{
    struct gemm p = {.f = f, .w = w, .a = a, .lda = lda, .c = c, .ldc = ldc, .m = m, .add = add, .swiglu = swiglu};
    p.panels = TASK_COLS / f->k->nr * (swiglu ? 2 : 1);
    p.groups = (w->n_panels + p.panels - 1) / p.panels;
    thread_pool_run(f->pool, (m + ROW_BLOCK - 1) / ROW_BLOCK * p.groups, gemm_task, &p);
}

/* ---- elementwise work on rows ---- */

/* An elementwise phase over n rows. */
struct rows {
    struct fwd *f;
    const struct batch *b;
    const float *weight; /* of RMSNorm, for norm_rows */
    int n, layer;
};

static void run_rows(struct rows *r, thread_pool_fn *fn)
{
    thread_pool_run(r->f->pool, (r->n + ROWS_PER_TASK - 1) / ROWS_PER_TASK, fn, r);
}

/* A loop over the rows of an elementwise task. */
#define FOR_ROWS(i, r, task)                                                                                           \
    for (int i = (task) * ROWS_PER_TASK, end_ = i + ROWS_PER_TASK < (r)->n ? i + ROWS_PER_TASK : (r)->n; i < end_; i++)

static void embed_rows(void *ctx, int task, int thread)
{
    struct rows *r = ctx;
    struct fwd *f = r->f;
    const int half = f->c->head_dim / 2;
    (void)thread;
    FOR_ROWS (i, r, task) {
        wts_embed(f->w, r->b->tokens[i], f->x + (size_t)i * f->ld_d);
        float *cs = f->cs + (size_t)i * 2 * (size_t)half, pos = (float)r->b->positions[i];
        for (int j = 0; j < half; j++) {
            cs[j] = cosf(pos * f->inv_freq[j]);
            cs[half + j] = sinf(pos * f->inv_freq[j]);
        }
    }
}

static void norm_rows(void *ctx, int task, int thread)
{
    struct rows *r = ctx;
    struct fwd *f = r->f;
    (void)thread;
    FOR_ROWS (i, r, task)
        f->k->rms_norm(f->xn + (size_t)i * f->ld_d, f->x + (size_t)i * f->ld_d, r->weight, f->c->hidden, f->c->rms_eps);
}

/* xn = rmsnorm(x) for n rows. */
static void norm(struct fwd *f, int n, const float *weight)
{
    struct rows r = {.f = f, .n = n, .weight = weight};
    run_rows(&r, norm_rows);
}

/* RMSNorm and RoPE of query and key heads, in place; then keys and values are written to their pages. */
static void rope_and_store_rows(void *ctx, int task, int thread)
{
    struct rows *r = ctx;
    struct fwd *f = r->f;
    const struct mdl_config *c = f->c;
    const struct wts_layer *w = &f->w->layers[r->layer];
    const int H = c->n_heads, G = c->n_kv_heads, d = c->head_dim, B = f->kv->g.block_size;
    (void)thread;
    FOR_ROWS (i, r, task) {
        float *q = f->qkv + (size_t)i * f->ld_qkv;
        const float *cs = f->cs + (size_t)i * (size_t)d;
        for (int h = 0; h < H + G; h++)
            f->k->norm_rope(q + (size_t)h * (size_t)d, h < H ? w->q_norm : w->k_norm, cs, d, c->rms_eps);
        for (int g = 0; g < 2 * G; g++) {
            const float *src = q + (size_t)(H + g) * (size_t)d;
            void *dst = kv_row(f->kv, r->b->slots[i] / B, r->layer, g / G, g % G, r->b->slots[i] % B);
            if (f->kv->g.dtype == KM_F32)
                memcpy(dst, src, (size_t)d * sizeof(float));
            else
                f->k->narrow(dst, src, d);
        }
    }
}

/* Finds the rows that are sampled, and makes a batch of them. Returns their number. */
static int select_sampled(struct fwd *f, const struct batch *b, struct batch *out)
{
    for (int i = 0; i < b->n_tokens; i++)
        f->sampled_index[i] = -1;
    for (int s = 0; s < b->n_samples; s++)
        f->sampled_index[b->samples[s].row] = 0;
    int n = 0;
    for (int r = 0; r < b->n_reqs; r++) {
        f->sampled_start[r] = n;
        for (int i = b->q_start[r]; i < b->q_start[r + 1]; i++)
            if (f->sampled_index[i] == 0) {
                f->sampled_index[i] = n;
                f->sampled_pos[n] = b->positions[i];
                f->sampled[n++] = i;
            }
    }
    f->sampled_start[b->n_reqs] = n;
    *out = *b;
    out->n_tokens = n;
    out->positions = f->sampled_pos;
    out->q_start = f->sampled_start;
    return n;
}

/* Moves the residual stream and the queries of the n sampled rows to rows [0, n). */
static void gather_sampled(struct fwd *f, int n)
{
    const size_t x = (size_t)f->c->hidden * sizeof(float), q = (size_t)(f->c->n_heads * f->c->head_dim) * sizeof(float);
    for (int i = 0; i < n; i++)
        if (f->sampled[i] != i) {
            memcpy(f->x + (size_t)i * f->ld_d, f->x + (size_t)f->sampled[i] * f->ld_d, x);
            memcpy(f->qkv + (size_t)i * f->ld_qkv, f->qkv + (size_t)f->sampled[i] * f->ld_qkv, q);
        }
}

/* A phase that samples all rows whose logits are in the buffer. */
struct sampling {
    struct fwd *f;
    const struct batch *b;
    int first, n; /* the buffer has the logits of sampled rows [first, first + n) */
    struct smp_result *out;
};

static void sample_task(void *ctx, int task, int thread)
{
    struct sampling *s = ctx;
    struct fwd *f = s->f;
    const struct smp_row *row = &s->b->samples[task];
    int at = f->sampled_index[row->row] - s->first;
    if (at >= 0 && at < s->n)
        smp_sample(row, f->logits + (size_t)at * f->ld_v, f->c->vocab,
                   f->sampler + (size_t)thread * (size_t)f->c->vocab, &s->out[task]);
}

/* Computes the logits of the n sampled rows and samples them, as many rows at a time as the buffer of logits holds. */
static void sample_rows(struct fwd *f, const struct batch *b, int n, struct smp_result *out)
{
    for (int first = 0; first < n; first += f->logit_rows) {
        int m = n - first < f->logit_rows ? n - first : f->logit_rows;
        gemm(f, &f->w->head, m, f->xn + (size_t)first * f->ld_d, f->ld_d, f->logits, f->ld_v, false, false);
        struct sampling s = {.f = f, .b = b, .first = first, .n = m, .out = out};
        thread_pool_run(f->pool, b->n_samples, sample_task, &s);
    }
}

void fwd_step(struct fwd *f, const struct batch *b, struct smp_result *out, double *flops)
{
    const struct mdl_config *c = f->c;
    const double q = (double)c->n_heads * c->head_dim, kv = (double)c->n_kv_heads * c->head_dim, D = c->hidden;
    struct batch last;
    struct rows r = {.f = f, .b = b, .n = b->n_tokens};
    int n = b->n_tokens, n_sampled = select_sampled(f, b, &last);
    run_rows(&r, embed_rows);
    double pair_flops = attn_plan(f->attn, b);
    for (r.layer = 0; r.layer < c->n_layers; r.layer++) {
        const struct wts_layer *w = &f->w->layers[r.layer];
        norm(f, n, w->norm_attn);
        gemm(f, &w->qkv, n, f->xn, f->ld_d, f->qkv, f->ld_qkv, false, false);
        *flops += 2.0 * n * D * (q + 2 * kv);
        run_rows(&r, rope_and_store_rows);
        if (r.layer == c->n_layers - 1 && n_sampled < n) {
            if (!n_sampled)
                return;
            gather_sampled(f, n_sampled);
            n = n_sampled;
            pair_flops = attn_plan(f->attn, &last);
        }
        attn_run(f->attn, r.layer, f->qkv, f->ld_qkv, f->att, f->ld_att);
        gemm(f, &w->o, n, f->att, f->ld_att, f->x, f->ld_d, true, false);
        norm(f, n, w->norm_ffn);
        gemm(f, &w->gate_up, n, f->xn, f->ld_d, f->h, f->ld_f, false, true);
        gemm(f, &w->down, n, f->h, f->ld_f, f->x, f->ld_d, true, false);
        *flops += pair_flops + 2.0 * n * D * (q + 3.0 * c->ffn);
    }
    if (!n_sampled)
        return;
    norm(f, n, f->w->norm_out);
    sample_rows(f, b, n, out);
    *flops += 2.0 * n * D * c->vocab;
}
