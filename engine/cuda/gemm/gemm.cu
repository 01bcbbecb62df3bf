/* Which kernel makes which product (product.h). The limits between them are where their times cross on an H100 at the
 * shapes of Qwen3-8B (kernels_check stream, ffn and time). */
#include "engine/cuda/gemm/gemm.h"
#include "engine/cuda/gemm/small_m_sm90.h"

#include <string.h>

struct cu_gemms {
    cu_dims m;
    const cu_weights *w;
    const cu_workspace *room;
    struct cu_lt *lt;
    bool streams[CU_GEMMS];        /* Hopper's kernel for few rows can make it */
    cu_small_m_weights *layers, head;  /* layers: [L][CU_GEMM_HEAD] */
    cu_small_m_rows rows[CU_GEMMS]; /* what it multiplies */
    cu_small_m_workspace stream;
    cu_gate_up_plan *ffn; /* [L]; NULL where Hopper's kernel for many rows cannot be used */
};

struct operands {
    const bf16 *x, *norm, *w; /* norm: NULL, or x is normalised by it first, into the room's h */
    int rows, K;              /* of w */
    enum cu_epilogue to;
    void *y;
};

static operands of(const struct cu_gemms *p, enum cu_gemm which, int layer)
{
    const cu_dims &m = p->m;
    const cu_workspace &r = *p->room;
    const cu_layer &w = p->w->layers[layer];
    switch (which) {
    case CU_GEMM_QKV: /* heads: as far as a kernel can */
        return {r.x, w.norm_attn, w.qkv, (m.H + 2 * m.G) * m.d, m.D, CU_EPILOGUE_HEADS, r.qkv};
    case CU_GEMM_O:
        return {r.o, nullptr, w.o, m.D, m.H * m.d, CU_EPILOGUE_ADD, r.x};
    case CU_GEMM_GATE_UP:
        return {r.x, w.norm_ffn, w.gate_up, 2 * m.F, m.D, CU_EPILOGUE_SWIGLU, r.act};
    case CU_GEMM_DOWN:
        return {r.act, nullptr, w.down, m.D, m.F, CU_EPILOGUE_ADD, r.x};
    default:
        return {r.h_out, nullptr, p->w->lm_head, m.V, m.D, CU_EPILOGUE_F32, r.logits};
    }
}

/* ---- opening ---- */

static int plan_streams(struct cu_gemms *p, struct km_err *err)
{
    int rc = 0;
    p->layers = static_cast<cu_small_m_weights *>(km_calloc((size_t)p->m.L * CU_GEMM_HEAD, sizeof *p->layers));
    if (!p->layers)
        return km_fail(err, KM_ENOMEM, "out of memory");
    p->stream = {p->room->h, p->room->sums, 0, p->m.eps};
    if (p->m.arch == 90)
        rc = cu_small_m_sm90_blocks(p->m, &p->stream.blocks, err);
    for (int i = 0; i < CU_GEMMS && !rc; i++) {
        enum cu_gemm which = static_cast<enum cu_gemm>(i);
        operands o = of(p, which, 0);
        int max_rows = which == CU_GEMM_HEAD ? p->m.max_reqs : p->m.max_tokens;
        if (which == CU_GEMM_QKV && (p->m.d != 128 || o.rows > 64 * p->stream.blocks))
            o.to = CU_EPILOGUE_BF16;
        p->streams[i] = cu_small_m_sm90_usable(p->m, o.rows, o.K);
        if (!p->streams[i])
            continue;
        rc = cu_small_m_sm90_rows(&p->rows[i], o.norm ? p->room->h : o.x, max_rows, o.K, err);
        for (int l = 0; l < (which == CU_GEMM_HEAD ? 1 : p->m.L) && !rc; l++)
            rc = cu_small_m_sm90_weights(which == CU_GEMM_HEAD ? &p->head : &p->layers[l * CU_GEMM_HEAD + i], of(p, which, l).w,
                                        o.rows, o.K, o.to, err);
    }
    return rc;
}

static int plan_ffn(struct cu_gemms *p, struct km_err *err)
{
    int rc = 0;
    if (!cu_gate_up_sm90_usable(p->m))
        return 0;
    p->ffn = static_cast<cu_gate_up_plan *>(km_calloc((size_t)p->m.L, sizeof *p->ffn));
    if (!p->ffn)
        return km_fail(err, KM_ENOMEM, "out of memory");
    for (int l = 0; l < p->m.L && !rc; l++)
        rc = cu_gate_up_sm90_plan(&p->ffn[l], p->m, p->room->h, p->w->layers[l].gate_up, err);
    return rc;
}

/* Every product at every size at which cuBLASLt chooses anew: now rather than in somebody's first request. Gate and up
 * of more rows than cu_gate_up_rows are Hopper's own kernel's. */
static int warm(struct cu_gemms *p, cudaStream_t s, struct km_err *err)
{
    int rc = 0;
    cu_step_arrays zeros; /* as nothing has been filled in yet */
    cu_step_carve(p->m, p->m.max_tokens, p->m.max_reqs, p->room->arrays, &zeros);
    for (int M = CU_SMALL_M + 1; M <= p->m.max_tokens && !rc; M = cu_lt_bucket(M) + 1)
        for (int i = 0; i < CU_GEMMS && !rc; i++) {
            int most = i == CU_GEMM_HEAD ? p->m.max_reqs : i == CU_GEMM_GATE_UP ? cu_gate_up_rows(p->m) : p->m.max_tokens;
            int T = cu_lt_bucket(M) < most ? cu_lt_bucket(M) : most;
            if (M <= most)
                rc = cu_gemm_run(p, static_cast<enum cu_gemm>(i), 0, T, zeros, s, err);
        }
    return rc;
}

int cu_gemms_open(struct cu_gemms **out, const cu_dims &m, const cu_weights *w, const cu_workspace *r, cudaStream_t s,
                     struct km_err *err)
{
    struct cu_gemms *p = static_cast<cu_gemms *>(km_calloc(1, sizeof *p));
    if (!p)
        return km_fail(err, KM_ENOMEM, "out of memory");
    p->m = m, p->w = w, p->room = r;
    int rc = cu_lt_open(&p->lt, err);
    rc = rc ? rc : plan_streams(p, err);
    rc = rc ? rc : plan_ffn(p, err);
    rc = rc ? rc : warm(p, s, err);
    if (rc) {
        cu_gemms_close(p);
        p = nullptr;
    }
    *out = p;
    return rc;
}

void cu_gemms_close(struct cu_gemms *p)
{
    if (!p)
        return;
    cu_lt_close(p->lt);
    km_free(p->layers);
    km_free(p->ffn);
    km_free(p);
}

/* ---- one product ---- */

static void skinny(const struct cu_gemms *p, const operands &o, int T, cudaStream_t s)
{
    float eps = p->m.eps;
    bf16 *y = static_cast<bf16 *>(o.y);
    if (o.to == CU_EPILOGUE_SWIGLU)
        cu_small_m_swiglu(o.x, o.norm, eps, o.w, T, o.rows / 2, o.K, y, s);
    else if (o.to == CU_EPILOGUE_F32)
        cu_small_m_logits(o.x, o.w, T, o.rows, o.K, static_cast<float *>(o.y), s);
    else if (o.norm)
        cu_small_m_norm(o.x, o.norm, eps, o.w, T, o.rows, o.K, y, s);
    else
        cu_small_m(o.x, o.w, T, o.rows, o.K, o.to == CU_EPILOGUE_ADD, y, s);
}

/* By Hopper's kernel for few rows. after: the norm of the product behind, or NULL; scaled: h and sums are those of x.
 * Heads that it cannot put into their places are put there by another. */
static void stream(const struct cu_gemms *p, enum cu_gemm which, int layer, const bf16 *after, bool scaled, int T,
                   const cu_step_arrays &in, cudaStream_t s)
{
    const cu_dims &m = p->m;
    const cu_workspace &r = *p->room;
    const cu_layer &w = p->w->layers[layer];
    size_t layer_at = (size_t)layer * 2 * m.G * m.B * m.d;
    cu_small_m_heads heads = {w.q_norm, w.k_norm,     r.angles, in.slots, r.pool,
                             layer_at, m.page_elems, m.H,      m.G,      m.B_log2};
    cu_small_m_job job = {which == CU_GEMM_HEAD ? &p->head : &p->layers[layer * CU_GEMM_HEAD + which], &p->rows[which],
                         of(p, which, layer).y, after, scaled};
    cu_small_m_sm90(p->stream, job, T, &heads, s);
    if (which == CU_GEMM_QKV && job.w->to != CU_EPILOGUE_HEADS)
        cu_qk_rope_store(m, r.qkv, w.q_norm, w.k_norm, r.angles, in, T, layer, r.pool, s);
}

/* The products but for heads, by what any card has. */
static int plain(struct cu_gemms *p, enum cu_gemm which, int layer, int T, cudaStream_t s, struct km_err *err)
{
    operands o = of(p, which, layer);
    if (T <= CU_SMALL_M) {
        skinny(p, o, T, s);
        return 0;
    }
    const bf16 *x = o.norm ? p->room->h : o.x;
    if (o.norm)
        cu_rmsnorm(p->m, o.x, o.norm, nullptr, T, p->room->h, s);
    if (which == CU_GEMM_GATE_UP && p->ffn && T >= CU_GATE_UP_SM90_MIN) {
        cu_gate_up_sm90(p->m, p->ffn[layer], T, p->room->act, s);
        return 0;
    }
    bool f32 = o.to == CU_EPILOGUE_F32, add = o.to == CU_EPILOGUE_ADD;
    int rc = cu_lt_gemm(p->lt, x, o.w, T, o.rows, o.K, add, which == CU_GEMM_GATE_UP ? p->room->gu : o.y, f32, s, err);
    if (!rc && which == CU_GEMM_GATE_UP)
        cu_swiglu(p->m, p->room->gu, T, p->room->act, s);
    return rc;
}

int cu_gemm_run(struct cu_gemms *p, enum cu_gemm which, int layer, int T, const cu_step_arrays &in, cudaStream_t s,
               struct km_err *err)
{
    const cu_workspace &r = *p->room;
    const cu_layer &w = p->w->layers[layer];
    if (p->streams[which] && T <= CU_SMALL_M_SM90) {
        operands o = of(p, which, layer);
        if (o.norm)
            cu_rmsnorm(p->m, o.x, o.norm, nullptr, T, r.h, s);
        stream(p, which, layer, nullptr, false, T, in, s);
        return 0;
    }
    int rc = plain(p, which, layer, T, s, err);
    if (!rc && which == CU_GEMM_QKV)
        cu_qk_rope_store(p->m, r.qkv, w.q_norm, w.k_norm, r.angles, in, T, layer, r.pool, s);
    return rc;
}

int cu_gemm_chain(struct cu_gemms *p, int layer, int T, const cu_step_arrays &in, cudaStream_t s, struct km_err *err)
{
    bool last = layer + 1 == p->m.L, streams = T <= CU_SMALL_M_SM90;
    int rc = 0;
    for (int i = 0; i < CU_GEMM_HEAD; i++)
        streams = streams && p->streams[i];
    if (streams) { /* norms and heads go with the products */
        const cu_layer *w = &p->w->layers[layer];
        stream(p, CU_GEMM_O, layer, w->norm_ffn, false, T, in, s);
        stream(p, CU_GEMM_GATE_UP, layer, nullptr, true, T, in, s);
        stream(p, CU_GEMM_DOWN, layer, last ? nullptr : w[1].norm_attn, false, T, in, s);
        if (!last)
            stream(p, CU_GEMM_QKV, layer + 1, nullptr, true, T, in, s);
        return 0;
    }
    for (enum cu_gemm next : {CU_GEMM_O, CU_GEMM_GATE_UP, CU_GEMM_DOWN})
        rc = rc ? rc : cu_gemm_run(p, next, layer, T, in, s, err);
    return rc || last ? rc : cu_gemm_run(p, CU_GEMM_QKV, layer + 1, T, in, s, err);
}
