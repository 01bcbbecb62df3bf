/* The arithmetic of the CPU backend, once per instruction set.
 *
 * `struct kernels` is a table of kernels compiled for one width; kernels_best chooses at run time. Weights come
 * as panels: [ceil(N / nr)][K][nr], so that a product reads them front to back whatever the number of rows.
 *
 * Invariant: an element of a product is one chain of fused multiply-adds over k in rising order, and
 * attention works on tiles of KV_TILE tokens at fixed positions. Neither depends on which rows, requests
 * or chunks share the call, so a token's result has the same bits alone, batched, chunked or after a
 * cache hit. */
#ifndef CPU_KERNELS_H
#define CPU_KERNELS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    KV_TILE = 64,    /* tokens of K and V that one attention step handles */
    KERNELS_MAX_NR = 64 /* no table has wider panels */
};

/* State of attention rows: softmax(QK)V so far, in base 2 and not yet divided by l. */
struct attn_rows {
    int n, dp;         /* dp: head_dim rounded up to nr */
    const float *q;    /* [n][ldq], scaled by log2(e) / sqrt(d) */
    size_t ldq;
    const int32_t *pos; /* [n] a row sees tokens 0..pos */
    float *m;          /* [n] running maximum */
    float *l;          /* [n][KERNELS_MAX_VL] running sums, by lane */
    float *o;          /* [n][dp] */
};
enum { KERNELS_MAX_VL = 16 };

struct kernels {
    const char *name;
    int nr, mr; /* panel width; rows that one pass over a panel serves */

    /* c[m][nr] = a[m][k] * panel[k][nr], plus c when add. */
    void (*gemm_f32)(int m, int k, const float *a, size_t lda, const float *panel, float *c, size_t ldc, bool add);
    void (*gemm_bf16)(int m, int k, const float *a, size_t lda, const uint16_t *panel, float *c, size_t ldc, bool add);
    void (*widen)(float *dst, const uint16_t *src, size_t n); /* bf16 -> f32; n a multiple of nr */
    void (*narrow)(uint16_t *dst, const float *src, int n);   /* f32 -> bf16 */

    void (*rms_norm)(float *y, const float *x, const float *w, int n, float eps);
    /* x[d] of one head: normalised by w, then rotated by cos[d/2], sin[d/2] (halves are pairs). */
    void (*norm_rope)(float *x, const float *w, const float *cs, int d, float eps);
    void (*silu_mul)(float *h, const float *gate, const float *up, int n); /* n a multiple of nr */

    /* rows[KV_TILE] point at head_dim elements each, of type f32 or bf16.
     * kt: K as panels [KV_TILE / nr][d][nr]; v: panels [dp / nr][KV_TILE][nr], zero beyond d.
     * next: the rows after these, fetched on the way; pages lie apart and the hardware cannot guess. */
    void (*pack_k)(const void *const *rows, const void *const *next, bool bf16, int d, float *kt);
    void (*pack_v)(const void *const *rows, const void *const *next, bool bf16, int d, int dp, float *v);
    /* The tile that begins at token `at`. */
    void (*attend)(struct attn_rows *r, int d, int at, const float *kt, const float *v);
};

const struct kernels *kernels_best(void);
/* Tables this machine can run, widest first, NULL-terminated: for tests. */
const struct kernels *const *kernels_supported(void);

extern const struct kernels kernels_avx512, kernels_avx2, kernels_portable;

#endif
