/* The arithmetic of the CPU backend, compiled once per instruction set.
 *
 * `struct kernels` is a table of functions for one vector width; kernels_best chooses one at run time. Weights are
 * stored as panels, [ceil(N / nr)][K][nr], so that a GEMM reads them front to back whatever the number of rows.
 *
 * Invariant: every element of a GEMM's result is one chain of fused multiply-adds over k in rising order, and attention
 * processes tiles of KV_TILE tokens at fixed positions. Neither depends on the other rows, requests or chunks of a
 * call. So a token's result has the same bits alone, in a batch, with chunked prefill and after a cache hit. */
#ifndef CPU_KERNELS_H
#define CPU_KERNELS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    KV_TILE = 64,        /* tokens of K and V that one call of attend processes */
    KERNELS_MAX_NR = 64, /* widest panel of all tables */
    KERNELS_MAX_VL = 16  /* most lanes of a vector */
};

/* n query rows and the state of their online softmax over the tiles so far. Scores are in base 2. */
struct attn_rows {
    int n, dp;          /* number of rows; head_dim rounded up to nr */
    const float *q;     /* [n][ldq] queries, scaled by log2(e) / sqrt(d) */
    size_t ldq;         /* row stride of q in floats */
    const int32_t *pos; /* [n] causal limit: a row attends to tokens 0..pos */
    float *m;           /* [n] running maximum */
    float *l;           /* [n][KERNELS_MAX_VL] running sum of probabilities, by vector lane */
    float *o;           /* [n][dp] running sum of probabilities times values, not yet divided by l */
};

/* The rows of K and V of a tile's tokens: head_dim elements each, f32 or bf16. */
struct kv_tile {
    const void *k[KV_TILE], *v[KV_TILE];
};

struct kernels {
    const char *name;
    const char *numerics; /* names the rounding, such as "avx2": tables that may round differently have different names,
                             and a change of the arithmetic needs a new one (kv_geom.numerics) */
    int nr, mr; /* columns of a panel; rows of a GEMM's register tile */

    /* c[m][nr] = a[m][k] * panel[k][nr]; with add, c += ... */
    void (*gemm_f32)(int m, int k, const float *a, size_t lda, const float *panel, float *c, size_t ldc, bool add);
    void (*gemm_bf16)(int m, int k, const float *a, size_t lda, const uint16_t *panel, float *c, size_t ldc, bool add);
    void (*widen)(float *dst, const uint16_t *src, size_t n); /* bf16 -> f32; n a multiple of nr */
    void (*narrow)(uint16_t *dst, const float *src, int n);   /* f32 -> bf16 */

    void (*rms_norm)(float *y, const float *x, const float *w, int n, float eps);
    /* RMSNorm with weight w[d], then RoPE, of one head x[d] in place. cs: d/2 cosines, then d/2 sines. RoPE combines
     * elements i and i + d/2. */
    void (*norm_rope)(float *x, const float *w, const float *cs, int d, float eps);
    /* h = silu(gate) * up */
    void (*silu_mul)(float *h, const float *gate, const float *up, int n); /* n a multiple of nr */

    /* Attention over one tile: adds the tile `now`, whose first token is `at`, to the rows' state. There are two ways,
     * whose results have the same bits. Both prefetch `next`, the tile that follows: the hardware prefetcher cannot, as
     * pages are scattered.
     * For n <= mr rows, which read K and V where they lie: */
    void (*attend_in_place)(struct attn_rows *r, int d, int at, const struct kv_tile *now, const struct kv_tile *next,
                            bool bf16);
    /* For any number of rows: K and V are packed into panels, once for all rows.
     * kt: [KV_TILE / nr][d][nr]; v: [dp / nr][KV_TILE][nr], zero beyond d. */
    void (*pack_k)(const struct kv_tile *now, const struct kv_tile *next, bool bf16, int d, float *kt);
    void (*pack_v)(const struct kv_tile *now, const struct kv_tile *next, bool bf16, int d, int dp, float *v);
    void (*attend)(struct attn_rows *r, int d, int at, const float *kt, const float *v);
};

const struct kernels *kernels_best(void); /* the widest table that this CPU can run */
/* All tables that this CPU can run, widest first, NULL after the last; for tests. */
const struct kernels *const *kernels_supported(void);

extern const struct kernels kernels_avx512, kernels_avx2, kernels_portable;

#endif
