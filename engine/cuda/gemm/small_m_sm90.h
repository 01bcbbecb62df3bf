/* Hopper's products of few rows, at the speed of reading their weights: y[M][N] of x[M][K] w[N][K]^T for M <= CU_SMALL_M_SM90
 * (stream_sm90.cu). Nothing in the order of a row's sums depends on M.
 *
 * The operands are named once and borrowed: weights, with what becomes of their product, and x with the rows behind it.
 * Between two products of a chain nothing else runs: the one that makes x also leaves what the next one's norm needs. */
#ifndef CU_SMALL_M_SM90_H
#define CU_SMALL_M_SM90_H

#include "engine/cuda/cu.h"

enum { CU_SMALL_M_SM90 = 128, CU_SMALL_M_CLASSES = 4 };

enum cu_epilogue {
    CU_EPILOGUE_BF16,
    CU_EPILOGUE_F32,
    CU_EPILOGUE_ADD,    /* y += */
    CU_EPILOGUE_SWIGLU, /* y = silu(gate) * up; w is [2N][K], gate first */
    CU_EPILOGUE_HEADS   /* w is q, k and v of heads of 128: normalised and rotated, q in y, k and v in their pages */
};

struct cu_small_m_weights {
    char map[128];
    int rows, K;
    enum cu_epilogue to;
};

struct cu_small_m_rows {
    char map[CU_SMALL_M_CLASSES][128];
};

struct cu_small_m_job {
    const struct cu_small_m_weights *w;
    const struct cu_small_m_rows *x;
    void *y;          /* bf16, or f32 of F32 */
    const bf16 *norm; /* [N] of ADD, or NULL: the room's h and sums become those of y under this norm; N in whole 64s */
    bool scaled;      /* x is the room's h: the product is that of rmsnorm(x). Not of ADD and F32 */
};

/* Where HEADS go: as cu_qk_rope_store's arguments. */
struct cu_small_m_heads {
    const bf16 *q_norm, *k_norm; /* [128] */
    const float2 *angles;        /* [M][64] */
    const int32_t *slots;        /* [M] */
    bf16 *pool;
    size_t layer_at, page_elems;
    int H, G, B_log2;
};

/* What the products of a stream share. */
struct cu_small_m_workspace {
    bf16 *h;     /* [M][N of a job with a norm] y * norm, not yet scaled */
    float *sums; /* [N / 64][CU_SMALL_M_SM90] squares of y, by 64 columns */
    int blocks;  /* cu_small_m_sm90_blocks */
    float eps;
};

bool cu_small_m_sm90_usable(const cu_dims &m, int rows, int K); /* w's */
/* Blocks that fit on the card at once; KM_EDEVICE. */
int cu_small_m_sm90_blocks(const cu_dims &m, int *out, struct km_err *err);
/* HEADS: whole heads, and at most 64 rows for each of the blocks. KM_EDEVICE. */
int cu_small_m_sm90_weights(struct cu_small_m_weights *out, const bf16 *w, int rows, int K, enum cu_epilogue to,
                           struct km_err *err);
int cu_small_m_sm90_rows(struct cu_small_m_rows *out, const bf16 *x, int max_rows, int K, struct km_err *err);
/* heads: looked at by HEADS alone. */
void cu_small_m_sm90(const struct cu_small_m_workspace &r, const struct cu_small_m_job &job, int M,
                    const struct cu_small_m_heads *heads, cudaStream_t s);

#endif
