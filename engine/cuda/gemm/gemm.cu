/* Chooses and runs the implementation of each GEMM (gemm.h). At the limits in M, two implementations take the same time
 * at the shapes of Qwen3-8B on an H100. kernels_check small_m, gate_up and time measure it. */
#include "engine/cuda/gemm/gate_up_sm90.h"
#include "engine/cuda/gemm/gemm.h"
#include "engine/cuda/gemm/gemm_lt.h"
#include "engine/cuda/gemm/small_m.h"
#include "engine/cuda/gemm/small_m_sm90.h"
#include "engine/cuda/step/fused.h"

#include <string.h>

struct cu_gemms {
    cu_dims m;
    const cu_weights *w;
    const cu_workspace *ws;
    struct cu_lt *lt;
    bool small_m_sm90[CU_GEMMS];      /* small_m_sm90.cu can run the GEMM; layers, head, rows and small_m are for it */
    cu_small_m_weights *layers, head; /* layers: [L][CU_GEMM_HEAD] */
    cu_small_m_rows rows[CU_GEMMS];   /* x of each GEMM */
    cu_small_m_workspace small_m;
    cu_gate_up_plan *gate_up; /* [L]; NULL if gate_up_sm90.cu cannot be used */
};

struct operands {
    const bf16 *x, *norm, *w; /* norm: [K] gamma of the RMSNorm before the GEMM, or NULL */
    int rows, K;              /* sizes of w */
    enum cu_epilogue epilogue;
    void *y;
};

static operands get_operands(const struct cu_gemms *g, enum cu_gemm which, int layer)
{
    const cu_dims &m = g->m;
    const cu_workspace &ws = *g->ws;
    const cu_layer &w = g->w->layers[layer];
    switch (which) {
    case CU_GEMM_QKV:
        return {ws.x, w.norm_attn, w.qkv, (m.H + 2 * m.G) * m.d, m.D, CU_EPILOGUE_HEADS, ws.qkv};
    case CU_GEMM_O:
        return {ws.o, nullptr, w.o, m.D, m.H * m.d, CU_EPILOGUE_ADD, ws.x};
    case CU_GEMM_GATE_UP:
        return {ws.x, w.norm_ffn, w.gate_up, 2 * m.F, m.D, CU_EPILOGUE_SWIGLU, ws.act};
    case CU_GEMM_DOWN:
        return {ws.act, nullptr, w.down, m.D, m.F, CU_EPILOGUE_ADD, ws.x};
    default:
        return {ws.h_out, nullptr, g->w->lm_head, m.V, m.D, CU_EPILOGUE_F32, ws.logits};
    }
}

/* ---- opening ---- */

static int plan_small_m_sm90(struct cu_gemms *g, struct km_err *err)
{
    int rc = 0;
    g->layers = static_cast<cu_small_m_weights *>(km_calloc((size_t)g->m.L * CU_GEMM_HEAD, sizeof *g->layers));
    if (!g->layers)
        return km_fail(err, KM_ENOMEM, "out of memory for the plans of the GEMMs");
    g->small_m = {g->ws->h, g->ws->squares, 0, g->m.eps};
    if (g->m.arch == 90)
        rc = cu_small_m_sm90_blocks(g->m, &g->small_m.blocks, err);
    for (int i = 0; i < CU_GEMMS && !rc; i++) {
        enum cu_gemm which = static_cast<enum cu_gemm>(i);
        operands o = get_operands(g, which, 0);
        int max_rows = which == CU_GEMM_HEAD ? g->m.max_reqs : g->m.max_tokens;
        if (which == CU_GEMM_QKV && (g->m.d != 128 || o.rows > 64 * g->small_m.blocks)) /* CU_EPILOGUE_HEADS needs it */
            o.epilogue = CU_EPILOGUE_BF16;
        g->small_m_sm90[i] = cu_small_m_sm90_usable(g->m, o.rows, o.K);
        if (!g->small_m_sm90[i])
            continue;
        rc = cu_small_m_sm90_rows(&g->rows[i], o.norm ? g->ws->h : o.x, max_rows, o.K, err);
        for (int l = 0; l < (which == CU_GEMM_HEAD ? 1 : g->m.L) && !rc; l++)
            rc = cu_small_m_sm90_weights(which == CU_GEMM_HEAD ? &g->head : &g->layers[l * CU_GEMM_HEAD + i],
                                         get_operands(g, which, l).w, o.rows, o.K, o.epilogue, err);
    }
    return rc;
}

static int plan_gate_up_sm90(struct cu_gemms *g, struct km_err *err)
{
    int rc = 0;
    if (!cu_gate_up_sm90_usable(g->m))
        return 0;
    g->gate_up = static_cast<cu_gate_up_plan *>(km_calloc((size_t)g->m.L, sizeof *g->gate_up));
    if (!g->gate_up)
        return km_fail(err, KM_ENOMEM, "out of memory for the plans of the GEMMs");
    for (int l = 0; l < g->m.L && !rc; l++)
        rc = cu_gate_up_sm90_plan(&g->gate_up[l], g->m, g->ws->h, g->w->layers[l].gate_up, err);
    return rc;
}

/* Runs every GEMM once in each bucket of M for which cuBLASLt chooses an algorithm, so that no request waits for the
 * choice. cuBLASLt never runs gate and up of more rows than cu_gate_up_rows. */
static int choose_algorithms(struct cu_gemms *g, cudaStream_t s, struct km_err *err)
{
    int rc = 0;
    cu_step_arrays zeros; /* the workspace is still zeroed */
    cu_step_layout(g->m, g->m.max_tokens, g->m.max_reqs, g->ws->arrays, &zeros);
    for (int M = CU_SMALL_M_MAX + 1; M <= g->m.max_tokens && !rc; M = cu_lt_bucket(M) + 1)
        for (int i = 0; i < CU_GEMMS && !rc; i++) {
            int most = i == CU_GEMM_HEAD      ? g->m.max_reqs
                       : i == CU_GEMM_GATE_UP ? cu_gate_up_rows(g->m)
                                              : g->m.max_tokens;
            int T = cu_lt_bucket(M) < most ? cu_lt_bucket(M) : most;
            if (M <= most)
                rc = cu_gemm_run(g, static_cast<enum cu_gemm>(i), 0, T, zeros, s, err);
        }
    return rc;
}

int cu_gemms_open(struct cu_gemms **out, const cu_dims &m, const cu_weights *w, const cu_workspace *ws, cudaStream_t s,
                  struct km_err *err)
{
    struct cu_gemms *g = static_cast<cu_gemms *>(km_calloc(1, sizeof *g));
    if (!g)
        return km_fail(err, KM_ENOMEM, "out of memory for the plans of the GEMMs");
    g->m = m, g->w = w, g->ws = ws;
    int rc = cu_lt_open(&g->lt, err);
    rc = rc ? rc : plan_small_m_sm90(g, err);
    rc = rc ? rc : plan_gate_up_sm90(g, err);
    rc = rc ? rc : choose_algorithms(g, s, err);
    if (rc) {
        cu_gemms_close(g);
        g = nullptr;
    }
    *out = g;
    return rc;
}

void cu_gemms_close(struct cu_gemms *g)
{
    if (!g)
        return;
    cu_lt_close(g->lt);
    km_free(g->layers);
    km_free(g->gate_up);
    km_free(g);
}

/* ---- one GEMM ---- */

static void run_small_m(const struct cu_gemms *g, const operands &o, int T, cudaStream_t s)
{
    float eps = g->m.eps;
    bf16 *y = static_cast<bf16 *>(o.y);
    if (o.epilogue == CU_EPILOGUE_SWIGLU)
        cu_small_m_swiglu(o.x, o.norm, eps, o.w, T, o.rows / 2, o.K, y, s);
    else if (o.epilogue == CU_EPILOGUE_F32)
        cu_small_m_logits(o.x, o.w, T, o.rows, o.K, static_cast<float *>(o.y), s);
    else if (o.norm)
        cu_small_m_norm(o.x, o.norm, eps, o.w, T, o.rows, o.K, y, s);
    else
        cu_small_m(o.x, o.w, T, o.rows, o.K, o.epilogue == CU_EPILOGUE_ADD, y, s);
}

/* Applies RMSNorm and RoPE to the heads of qkv and stores k and v, for a GEMM whose epilogue does not do it. */
static void store_heads(const struct cu_gemms *g, int layer, int T, const cu_step_arrays &in, cudaStream_t s)
{
    const cu_workspace &ws = *g->ws;
    const cu_layer &w = g->w->layers[layer];
    cu_qk_rope_store(g->m, ws.qkv, w.q_norm, w.k_norm, ws.angles, in, T, layer, ws.pool, s);
}

/* next_norm: gamma of the RMSNorm after this GEMM, or NULL. scaled: the previous GEMM has written the workspace's h and
 * squares. */
static void run_small_m_sm90(const struct cu_gemms *g, enum cu_gemm which, int layer, const bf16 *next_norm,
                             bool scaled, int T, const cu_step_arrays &in, cudaStream_t s)
{
    const cu_dims &m = g->m;
    const cu_workspace &ws = *g->ws;
    const cu_layer &w = g->w->layers[layer];
    size_t layer_at = (size_t)layer * 2 * m.G * m.B * m.d;
    cu_small_m_heads heads = {w.q_norm, w.k_norm,     ws.angles, in.slots, ws.pool,
                              layer_at, m.page_elems, m.H,       m.G,      m.B_log2};
    cu_small_m_job job = {which == CU_GEMM_HEAD ? &g->head : &g->layers[layer * CU_GEMM_HEAD + which], &g->rows[which],
                          get_operands(g, which, layer).y, next_norm, scaled};
    cu_small_m_sm90(g->small_m, job, T, &heads, s);
    if (which == CU_GEMM_QKV && job.w->epilogue != CU_EPILOGUE_HEADS)
        store_heads(g, layer, T, in, s);
}

/* Runs a GEMM that small_m_sm90.cu cannot run. The caller must call store_heads after QKV. */
static int run_other(struct cu_gemms *g, enum cu_gemm which, int layer, int T, cudaStream_t s, struct km_err *err)
{
    operands o = get_operands(g, which, layer);
    if (T <= CU_SMALL_M_MAX) {
        run_small_m(g, o, T, s);
        return 0;
    }
    const bf16 *x = o.norm ? g->ws->h : o.x;
    if (o.norm)
        cu_rmsnorm(g->m, o.x, o.norm, nullptr, T, g->ws->h, s);
    if (which == CU_GEMM_GATE_UP && g->gate_up && T >= CU_GATE_UP_SM90_MIN) {
        cu_gate_up_sm90(g->m, g->gate_up[layer], T, g->ws->act, s);
        return 0;
    }
    bool f32 = o.epilogue == CU_EPILOGUE_F32, add = o.epilogue == CU_EPILOGUE_ADD;
    void *y = which == CU_GEMM_GATE_UP ? g->ws->gu : o.y;
    int rc = cu_lt_gemm(g->lt, x, o.w, T, o.rows, o.K, add, y, f32, s, err);
    if (!rc && which == CU_GEMM_GATE_UP)
        cu_swiglu(g->m, g->ws->gu, T, g->ws->act, s);
    return rc;
}

int cu_gemm_run(struct cu_gemms *g, enum cu_gemm which, int layer, int T, const cu_step_arrays &in, cudaStream_t s,
                struct km_err *err)
{
    if (g->small_m_sm90[which] && T <= CU_SMALL_M_SM90_MAX) {
        operands o = get_operands(g, which, layer);
        if (o.norm)
            cu_rmsnorm(g->m, o.x, o.norm, nullptr, T, g->ws->h, s);
        run_small_m_sm90(g, which, layer, nullptr, false, T, in, s);
        return 0;
    }
    int rc = run_other(g, which, layer, T, s, err);
    if (!rc && which == CU_GEMM_QKV)
        store_heads(g, layer, T, in, s);
    return rc;
}

int cu_gemm_chain(struct cu_gemms *g, int layer, int T, const cu_step_arrays &in, cudaStream_t s, struct km_err *err)
{
    bool last = layer + 1 == g->m.L, all_small_m_sm90 = T <= CU_SMALL_M_SM90_MAX;
    int rc = 0;
    for (int i = 0; i < CU_GEMM_HEAD; i++)
        all_small_m_sm90 = all_small_m_sm90 && g->small_m_sm90[i];
    if (all_small_m_sm90) { /* no kernel runs between the GEMMs: each writes h and squares for the next RMSNorm */
        const cu_layer *w = &g->w->layers[layer];
        run_small_m_sm90(g, CU_GEMM_O, layer, w->norm_ffn, false, T, in, s);
        run_small_m_sm90(g, CU_GEMM_GATE_UP, layer, nullptr, true, T, in, s);
        run_small_m_sm90(g, CU_GEMM_DOWN, layer, last ? nullptr : w[1].norm_attn, false, T, in, s);
        if (!last)
            run_small_m_sm90(g, CU_GEMM_QKV, layer + 1, nullptr, true, T, in, s);
        return 0;
    }
    for (enum cu_gemm which : {CU_GEMM_O, CU_GEMM_GATE_UP, CU_GEMM_DOWN})
        rc = rc ? rc : cu_gemm_run(g, which, layer, T, in, s, err);
    return rc || last ? rc : cu_gemm_run(g, CU_GEMM_QKV, layer + 1, T, in, s, err);
}
