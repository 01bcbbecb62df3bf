/* Hopper's products of few rows, at the speed of reading their weights: y[M][N] of x[M][K] w[N][K]^T for M <= CU_STREAM_M
 * (stream_sm90.cu). Nothing in the order of a row's sums depends on M.
 *
 * The operands are named once and borrowed: weights, with what becomes of their product, and x with the rows behind it.
 * Between two products of a chain nothing else runs: the one that makes x also leaves what the next one's norm needs. */
#ifndef CU_STREAM_H
#define CU_STREAM_H

#include "engine/cuda/cu.h"

enum { CU_STREAM_M = 128, CU_STREAM_CLASSES = 4 };

enum cu_stream_to {
    CU_STREAM_BF16,
    CU_STREAM_F32,
    CU_STREAM_ADD,    /* y += */
    CU_STREAM_SWIGLU, /* y = silu(gate) * up; w is [2N][K], gate first */
    CU_STREAM_HEADS   /* w is q, k and v of heads of 128: normalised and rotated, q in y, k and v in their pages */
};

struct cu_stream_weights {
    char map[128];
    int rows, K;
    enum cu_stream_to to;
};

struct cu_stream_rows {
    char map[CU_STREAM_CLASSES][128];
};

struct cu_stream_job {
    const struct cu_stream_weights *w;
    const struct cu_stream_rows *x;
    void *y;          /* bf16, or f32 of F32 */
    const bf16 *norm; /* [N] of ADD, or NULL: the room's h and sums become those of y under this norm; N in whole 64s */
    bool scaled;      /* x is the room's h: the product is that of rmsnorm(x). Not of ADD and F32 */
};

/* Where HEADS go: as cu_qk_rope_store's arguments. */
struct cu_stream_heads {
    const bf16 *q_norm, *k_norm; /* [128] */
    const float2 *angles;        /* [M][64] */
    const int32_t *slots;        /* [M] */
    bf16 *pool;
    size_t layer_at, page_elems;
    int H, G, B_log2;
};

/* What the products of a stream share. */
struct cu_stream_room {
    bf16 *h;     /* [M][N of a job with a norm] y * norm, not yet scaled */
    float *sums; /* [N / 64][CU_STREAM_M] squares of y, by 64 columns */
    int blocks;  /* cu_stream_sm90_blocks */
    float eps;
};

bool cu_stream_sm90_usable(const cu_dims &m, int rows, int K); /* w's */
/* Blocks that fit on the card at once; KM_EDEVICE. */
int cu_stream_sm90_blocks(const cu_dims &m, int *out, struct km_err *err);
/* HEADS: whole heads, and at most 64 rows for each of the blocks. KM_EDEVICE. */
int cu_stream_sm90_weights(struct cu_stream_weights *out, const bf16 *w, int rows, int K, enum cu_stream_to to,
                           struct km_err *err);
int cu_stream_sm90_rows(struct cu_stream_rows *out, const bf16 *x, int max_rows, int K, struct km_err *err);
/* heads: looked at by HEADS alone. */
void cu_stream_sm90(const struct cu_stream_room &r, const struct cu_stream_job &job, int M,
                    const struct cu_stream_heads *heads, cudaStream_t s);

#endif
