/* The kernels of kernels.h, written with the vector operations of vec.h. Compiled once per instruction set;
 * KERNELS_TABLE, KERNELS_NAME and KERNELS_NUMERICS name the table. */
#include "engine/cpu/kernels.h"

#include "base/dtype.h"
#include "engine/cpu/vec.h"

#include <math.h>

_Static_assert((int)NR <= (int)KERNELS_MAX_NR && (int)VL <= (int)KERNELS_MAX_VL && (int)KV_TILE % (int)NR == 0,
               "panel width");

/* Multiplies m rows, a constant in each instance, by one panel. The accumulators fill the registers. Each iteration
 * loads NV vectors of weights and m scalars for m * NV multiply-adds. */
V_INLINE void gemm_rows(const int m, int k, const float *a, size_t lda, const void *panel, const bool bf16, float *c,
                    size_t ldc, bool add)
{
    vf acc[MR][NV];
#pragma GCC unroll 6
    for (int i = 0; i < m; i++)
#pragma GCC unroll 4
        for (int j = 0; j < NV; j++)
            acc[i][j] = add ? v_load(c + (size_t)i * ldc + j * VL) : v_set(0);
    for (int t = 0; t < k; t++) {
        vf b[NV];
#pragma GCC unroll 4
        for (int j = 0; j < NV; j++)
            b[j] = bf16 ? v_load_bf16((const uint16_t *)panel + (size_t)t * NR + j * VL)
                        : v_load((const float *)panel + (size_t)t * NR + j * VL);
#pragma GCC unroll 6
        for (int i = 0; i < m; i++) {
            vf x = v_set(a[(size_t)i * lda + (size_t)t]);
#pragma GCC unroll 4
            for (int j = 0; j < NV; j++)
                acc[i][j] = v_fma(x, b[j], acc[i][j]);
        }
    }
#pragma GCC unroll 6
    for (int i = 0; i < m; i++)
#pragma GCC unroll 4
        for (int j = 0; j < NV; j++)
            v_store(c + (size_t)i * ldc + j * VL, acc[i][j]);
}

V_INLINE void gemm(int m, int k, const float *a, size_t lda, const void *panel, const bool bf16, float *c, size_t ldc,
                   bool add)
{
    for (; m >= MR; m -= MR, a += MR * lda, c += MR * ldc)
        gemm_rows(MR, k, a, lda, panel, bf16, c, ldc, add);
    switch (m) {
    case 5: gemm_rows(5, k, a, lda, panel, bf16, c, ldc, add); break;
    case 4: gemm_rows(4, k, a, lda, panel, bf16, c, ldc, add); break;
    case 3: gemm_rows(3, k, a, lda, panel, bf16, c, ldc, add); break;
    case 2: gemm_rows(2, k, a, lda, panel, bf16, c, ldc, add); break;
    case 1: gemm_rows(1, k, a, lda, panel, bf16, c, ldc, add); break;
    }
}

static void gemm_f32(int m, int k, const float *a, size_t lda, const float *panel, float *c, size_t ldc, bool add)
{
    gemm(m, k, a, lda, panel, false, c, ldc, add);
}

static void gemm_bf16(int m, int k, const float *a, size_t lda, const uint16_t *panel, float *c, size_t ldc, bool add)
{
    gemm(m, k, a, lda, panel, true, c, ldc, add);
}

static void widen(float *dst, const uint16_t *src, size_t n)
{
    for (size_t i = 0; i < n; i += VL)
        v_store(dst + i, v_load_bf16(src + i));
}

static void narrow(uint16_t *dst, const float *src, int n)
{
    for (int i = 0; i < n; i++)
        dst[i] = km_f32_to_bf16(src[i]);
}

/* 1 / sqrt(mean of squares + eps) */
static float inv_rms(const float *x, int n, float eps)
{
    vf s[4] = {v_set(0), v_set(0), v_set(0), v_set(0)};
    int i = 0;
    for (; i + 4 * VL <= n; i += 4 * VL)
        for (int j = 0; j < 4; j++) {
            vf a = v_load(x + i + j * VL);
            s[j] = v_fma(a, a, s[j]);
        }
    float sum = v_hsum((s[0] + s[1]) + (s[2] + s[3]));
    for (; i < n; i++)
        sum += x[i] * x[i];
    return 1.0f / sqrtf(sum / (float)n + eps);
}

static void rms_norm(float *y, const float *x, const float *w, int n, float eps)
{
    float r = inv_rms(x, n, eps);
    for (int i = 0; i < n; i++)
        y[i] = w[i] * (x[i] * r);
}

static void norm_rope(float *x, const float *w, const float *cs, int d, float eps)
{
    const int half = d / 2;
    const float r = inv_rms(x, d, eps), *sn = cs + half;
    for (int i = 0; i < half; i++) {
        float lo = w[i] * (x[i] * r), hi = w[i + half] * (x[i + half] * r);
        x[i] = lo * cs[i] - hi * sn[i];
        x[i + half] = hi * cs[i] + lo * sn[i];
    }
}

/* h = gate / (1 + e^-gate) * up. The clamp keeps the exponential finite. Outside it, the sigmoid is 0 or 1 in f32. */
static void silu_mul(float *h, const float *gate, const float *up, int n)
{
    const vf neg_log2e = v_set(-1.44269504f), one = v_set(1), low = v_set(-87), high = v_set(87);
    for (int i = 0; i < n; i += VL) {
        vf g = v_load(gate + i), clamped = v_max(g, low);
        clamped = -v_max(-clamped, -high);
        v_store(h + i, g / (one + v_exp2(clamped * neg_log2e)) * v_load(up + i));
    }
}

V_INLINE vf load_as(const void *p, int i, const bool bf16)
{
    return bf16 ? v_load_bf16((const uint16_t *)p + i) : v_load((const float *)p + i);
}

V_INLINE float load_one(const void *p, int i, const bool bf16)
{
    return bf16 ? km_bf16_to_f32(((const uint16_t *)p)[i]) : ((const float *)p)[i];
}

/* Elements [i, n) of a row, fewer than VL, then zeros. */
V_INLINE vf load_last(const void *p, int i, int n, const bool bf16)
{
    float lane[VL] = {0};
    for (int j = 0; i + j < n; j++)
        lane[j] = load_one(p, i + j, bf16);
    return v_load(lane);
}

/* Prefetches element i of a row into L2. */
V_INLINE void prefetch(const void *row, int i, const bool bf16)
{
    __builtin_prefetch((const char *)row + (size_t)i * (bf16 ? 2 : 4), 0, 2);
}

/* A block of VL rows (tokens), transposed in registers: column i holds element i of every row. A block has BLOCK_WIDTH
 * columns, because a bf16 block is transposed as pairs of elements. */
#define BLOCK_WIDTH(bf16) ((bf16) ? 2 * VL : VL)

V_INLINE void load_block(vf block[VL], const void *const *rows, const void *const *next, int c, const bool bf16)
{
#pragma GCC unroll 16
    for (int i = 0; i < VL; i++) {
        block[i] = v_load((const float *)((const char *)rows[i] + (size_t)c * (bf16 ? 2 : 4)));
        prefetch(next[i], c, bf16);
    }
    v_transpose(block);
}

V_INLINE vf block_column(const vf block[VL], int i, const bool bf16)
{
    return !bf16 ? block[i] : i % 2 ? v_high_bf16(block[i / 2]) : v_low_bf16(block[i / 2]);
}

/* Element c of VL rows. */
V_INLINE vf load_column(const void *const *rows, int c, const bool bf16)
{
    float lane[VL];
    for (int i = 0; i < VL; i++)
        lane[i] = load_one(rows[i], c, bf16);
    return v_load(lane);
}

V_INLINE void pack_k_as(const void *const *rows, const void *const *next, const bool bf16, int d, float *kt)
{
    const int width = BLOCK_WIDTH(bf16);
    for (int t = 0; t < KV_TILE; t += VL) {
        float *dst = kt + (size_t)(t / NR) * (size_t)d * NR + t % NR;
        int c = 0;
        for (; c + width <= d; c += width) {
            vf block[VL];
            load_block(block, rows + t, next + t, c, bf16);
#pragma GCC unroll 32
            for (int i = 0; i < width; i++)
                v_store(dst + (size_t)(c + i) * NR, block_column(block, i, bf16));
        }
        for (; c < d; c++)
            v_store(dst + (size_t)c * NR, load_column(rows + t, c, bf16));
    }
}

static void pack_k(const struct kv_tile *now, const struct kv_tile *next, bool bf16, int d, float *kt)
{
    if (bf16)
        pack_k_as(now->k, next->k, true, d, kt);
    else
        pack_k_as(now->k, next->k, false, d, kt);
}

V_INLINE void pack_v_as(const void *const *rows, const void *const *next, const bool bf16, int d, int dp, float *v)
{
    for (int t = 0; t < KV_TILE; t++) {
        int c = 0;
        for (; c + VL <= d; c += VL) {
            v_store(v + (size_t)(c / NR * KV_TILE + t) * NR + c % NR, load_as(rows[t], c, bf16));
            prefetch(next[t], c, bf16);
        }
        for (; c < dp; c++)
            v[(size_t)(c / NR * KV_TILE + t) * NR + c % NR] = c < d ? load_one(rows[t], c, bf16) : 0;
    }
}

static void pack_v(const struct kv_tile *now, const struct kv_tile *next, bool bf16, int d, int dp, float *v)
{
    if (bf16)
        pack_v_as(now->v, next->v, true, d, dp, v);
    else
        pack_v_as(now->v, next->v, false, d, dp, v);
}

/* Online softmax of one row of scores s[KV_TILE], of which the first `seen` count. Updates the running maximum m and
 * sum l, replaces the scores by probabilities, and rescales o to the new maximum. */
V_INLINE void softmax_row(float *s, int seen, float *m, float *l, float *o, int dp)
{
    vf x[KV_TILE / VL], top = v_set(*m), sum = v_load(l);
#pragma GCC unroll 16
    for (int j = 0; j < KV_TILE / VL; j++) {
        x[j] = v_load(s + j * VL);
        if (seen < (j + 1) * VL)
            x[j] = v_first(seen > j * VL ? seen - j * VL : 0, x[j], v_set(-INFINITY));
        top = v_max(top, x[j]);
    }
    float now = v_hmax(top);
    if (now != *m) {
        float lane[VL];
        v_store(lane, v_exp2(v_set(*m - now)));
        vf scale = v_set(lane[0]);
        sum = sum * scale;
        for (int c = 0; c < dp; c += VL)
            v_store(o + c, v_load(o + c) * scale);
        *m = now;
    }
    vf shift = v_set(now);
#pragma GCC unroll 16
    for (int j = 0; j < KV_TILE / VL; j++) {
        vf p = v_exp2(x[j] - shift);
        sum = sum + p;
        v_store(s + j * VL, p);
    }
    v_store(l, sum);
}

/* The softmax of m rows from row i on. s: [m][KV_TILE] scores, replaced by probabilities. noinline: attend and
 * attend_in_place run the same machine code, so that a compiler cannot contract the arithmetic of only one of them. */
static __attribute__((noinline)) void softmax_rows(const struct attn_rows *r, int i, int m, int at, float *s)
{
    for (int j = 0; j < m; j++) {
        int seen = r->pos[i + j] - at + 1;
        softmax_row(s + j * KV_TILE, seen > KV_TILE ? KV_TILE : seen, &r->m[i + j],
                    r->l + (size_t)(i + j) * KERNELS_MAX_VL, r->o + (size_t)(i + j) * (size_t)r->dp, r->dp);
    }
}

/* Number of tokens of the tile at `at` that the m rows from row i on attend to; <= 0: none. */
V_INLINE int most_seen(const struct attn_rows *r, int i, int m, int at)
{
    int most = 0;
    for (int j = 0; j < m; j++)
        most = r->pos[i + j] - at + 1 > most ? r->pos[i + j] - at + 1 : most;
    return most > KV_TILE ? KV_TILE : most;
}

/* QK, softmax and PV for MR rows at a time, so that the scores stay in L1. */
static void attend(struct attn_rows *r, int d, int at, const float *kt, const float *v)
{
    float s[MR * KV_TILE] __attribute__((aligned(64)));
    for (int i = 0; i < r->n; i += MR) {
        const int m = r->n - i < MR ? r->n - i : MR, most = most_seen(r, i, m, at);
        if (most <= 0)
            continue;
        for (int t = 0; t < most; t += NR)
            gemm(m, d, r->q + (size_t)i * r->ldq, r->ldq, kt + (size_t)t * (size_t)d, false, s + t, KV_TILE, false);
        softmax_rows(r, i, m, at, s);
        for (int c = 0; c < r->dp; c += NR)
            gemm(m, most, s, KV_TILE, v + (size_t)c * KV_TILE, false, r->o + (size_t)i * (size_t)r->dp + c,
                 (size_t)r->dp, true);
    }
}

/* ---- attention of few rows: K and V are read where they lie ----
 * The chains of multiply-adds are those of `attend`: over head_dim for a score, over tokens for an output. */

/* Adds the products of m rows of q with the columns of a block of VL tokens to s[m][KV_TILE]. */
V_INLINE void add_block(const int m, const float *q, size_t ldq, const vf *block, const bool bf16, float *s)
{
    const int width = BLOCK_WIDTH(bf16);
    vf acc[MR];
#pragma GCC unroll 6
    for (int j = 0; j < m; j++)
        acc[j] = v_load(s + j * KV_TILE);
#pragma GCC unroll 32
    for (int i = 0; i < width; i++) {
        vf column = block_column(block, i, bf16);
#pragma GCC unroll 6
        for (int j = 0; j < m; j++)
            acc[j] = v_fma(v_set(q[(size_t)j * ldq + (size_t)i]), column, acc[j]);
    }
#pragma GCC unroll 6
    for (int j = 0; j < m; j++)
        v_store(s + j * KV_TILE, acc[j]);
}

/* s[m][KV_TILE] = scores of m rows, a constant in each instance, for the first `most` tokens, rounded up to VL. The
 * blocks of successive tokens are independent, and so hide the latency of each other's multiply-adds. */
V_INLINE void scores(const int m, const struct attn_rows *r, int d, int most, const struct kv_tile *now,
                     const struct kv_tile *next, const bool bf16, float *s)
{
    const int width = BLOCK_WIDTH(bf16);
    int c = 0;
    for (int j = 0; j < m; j++)
        for (int t = 0; t < KV_TILE; t += VL)
            v_store(s + j * KV_TILE + t, v_set(0));
    for (; c + width <= d; c += width)
#pragma GCC unroll 1
        for (int t = 0; t < most; t += VL) {
            vf block[VL];
            load_block(block, now->k + t, next->k + t, c, bf16);
            add_block(m, r->q + c, r->ldq, block, bf16, s + t);
        }
    for (; c < d; c++)
        for (int t = 0; t < most; t += VL) {
            vf column = load_column(now->k + t, c, bf16);
            for (int j = 0; j < m; j++)
                v_store(s + j * KV_TILE + t, v_fma(v_set(r->q[(size_t)j * r->ldq + (size_t)c]), column,
                                                   v_load(s + j * KV_TILE + t)));
        }
}

/* Adds probabilities s[m][KV_TILE] times values to `vectors` vectors of the rows' outputs, from column c on. last: only
 * the first d - c columns of the one vector exist. */
V_INLINE void values(const int m, const int vectors, const bool last, const struct attn_rows *r, int d, int c, int most,
                     const float *s, const struct kv_tile *now, const struct kv_tile *next, const bool bf16)
{
    vf acc[MR][NV];
    float *o = r->o + c;
#pragma GCC unroll 6
    for (int j = 0; j < m; j++)
#pragma GCC unroll 4
        for (int i = 0; i < vectors; i++)
            acc[j][i] = v_load(o + (size_t)j * (size_t)r->dp + i * VL);
    for (int t = 0; t < most; t++) {
        vf v[NV];
#pragma GCC unroll 4
        for (int i = 0; i < vectors; i++) {
            v[i] = last ? load_last(now->v[t], c, d, bf16) : load_as(now->v[t], c + i * VL, bf16);
            prefetch(next->v[t], c + i * VL, bf16);
        }
#pragma GCC unroll 6
        for (int j = 0; j < m; j++) {
            vf p = v_set(s[j * KV_TILE + t]);
#pragma GCC unroll 4
            for (int i = 0; i < vectors; i++)
                acc[j][i] = v_fma(p, v[i], acc[j][i]);
        }
    }
#pragma GCC unroll 6
    for (int j = 0; j < m; j++)
#pragma GCC unroll 4
        for (int i = 0; i < vectors; i++)
            v_store(o + (size_t)j * (size_t)r->dp + i * VL, acc[j][i]);
}

V_INLINE void attend_few(const int m, struct attn_rows *r, int d, int at, const struct kv_tile *now,
                         const struct kv_tile *next, const bool bf16)
{
    float s[MR * KV_TILE] __attribute__((aligned(64)));
    const int most = most_seen(r, 0, m, at);
    int c = 0;
    if (most <= 0)
        return;
    scores(m, r, d, most, now, next, bf16, s);
    softmax_rows(r, 0, m, at, s);
    for (; c + NR <= d; c += NR)
        values(m, NV, false, r, d, c, most, s, now, next, bf16);
    for (; c + VL <= d; c += VL)
        values(m, 1, false, r, d, c, most, s, now, next, bf16);
    if (c < d)
        values(m, 1, true, r, d, c, most, s, now, next, bf16);
}

V_INLINE void attend_few_as(struct attn_rows *r, int d, int at, const struct kv_tile *now, const struct kv_tile *next,
                            const bool bf16)
{
    switch (r->n) {
    case 6: attend_few(6, r, d, at, now, next, bf16); break;
    case 5: attend_few(5, r, d, at, now, next, bf16); break;
    case 4: attend_few(4, r, d, at, now, next, bf16); break;
    case 3: attend_few(3, r, d, at, now, next, bf16); break;
    case 2: attend_few(2, r, d, at, now, next, bf16); break;
    case 1: attend_few(1, r, d, at, now, next, bf16); break;
    }
}

static void attend_in_place(struct attn_rows *r, int d, int at, const struct kv_tile *now, const struct kv_tile *next,
                            bool bf16)
{
    if (bf16)
        attend_few_as(r, d, at, now, next, true);
    else
        attend_few_as(r, d, at, now, next, false);
}

const struct kernels KERNELS_TABLE = {
    .name = KERNELS_NAME,
    .numerics = KERNELS_NUMERICS,
    .nr = NR,
    .mr = MR,
    .gemm_f32 = gemm_f32,
    .gemm_bf16 = gemm_bf16,
    .widen = widen,
    .narrow = narrow,
    .rms_norm = rms_norm,
    .norm_rope = norm_rope,
    .silu_mul = silu_mul,
    .pack_k = pack_k,
    .pack_v = pack_v,
    .attend = attend,
    .attend_in_place = attend_in_place,
};
