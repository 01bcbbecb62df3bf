/* Small-M GEMMs on Hopper: y[M][N] = x[M][K] w[N][K]^T for M <= CU_SMALL_M_SM90_MAX, at the speed of reading w.
 *
 * The two nouns are the operands, each described once by tensor maps and borrowed: the weights, with the epilogue that
 * their GEMM has, and the rows of x. In a chain of such GEMMs no other kernel runs between two of them: the GEMM that
 * writes x also writes what the RMSNorm before the next GEMM needs. The order of a row's sums does not depend on M. */
#ifndef CU_SMALL_M_SM90_H
#define CU_SMALL_M_SM90_H

#include "engine/cuda/cu.h"

enum { CU_SMALL_M_SM90_MAX = 128 };  /* most rows */
enum { CU_SMALL_M_CLASSES = 4 }; /* kernels for up to 16, 32, 64 and 128 rows */

/* What becomes of the accumulators. */
enum cu_epilogue {
    CU_EPILOGUE_BF16,
    CU_EPILOGUE_F32,
    CU_EPILOGUE_ADD,    /* y += */
    CU_EPILOGUE_SWIGLU, /* y = silu(gate) * up; w is [2N][K], gate first */
    CU_EPILOGUE_HEADS   /* w is q, k and v, heads of 128: normalised and rotated; q goes to y, k and v to their pages */
};

struct cu_small_m_weights {
    char map[128]; /* tensor map */
    int rows, K;
    enum cu_epilogue epilogue;
};

struct cu_small_m_rows {
    char map[CU_SMALL_M_CLASSES][128]; /* tensor maps, with boxes of 16, 32, 64 and 128 rows */
};

struct cu_small_m_job {
    const struct cu_small_m_weights *w;
    const struct cu_small_m_rows *x;
    void *y; /* f32 with CU_EPILOGUE_F32, else bf16 */
    /* [N], or NULL: gamma of the RMSNorm that follows. The workspace's h and squares are then written from y. Only with
     * CU_EPILOGUE_ADD, and with N a multiple of 64. */
    const bf16 *norm;
    /* x is the workspace's h: the result is that of rmsnorm. Not with CU_EPILOGUE_ADD or CU_EPILOGUE_F32. */
    bool scaled;
};

/* Destination of CU_EPILOGUE_HEADS: as the arguments of cu_qk_rope_store (step/fused.h). */
struct cu_small_m_heads {
    const bf16 *q_norm, *k_norm; /* [128] */
    const float2 *angles;        /* [M][64] */
    const int32_t *slots;        /* [M] */
    bf16 *pool;
    size_t layer_at, page_elems; /* elements: offset of the layer within a page; of a page */
    int H, G, B_log2;
};

/* What all GEMMs of a chain share. */
struct cu_small_m_workspace {
    bf16 *h;        /* [M][D] y * norm, without the factor 1 / rms */
    float *squares; /* [D / 64][CU_SMALL_M_SM90_MAX] sums of the squares of y, over tiles of 64 columns */
    int blocks;     /* cu_small_m_sm90_blocks */
    float eps;
};

bool cu_small_m_sm90_usable(const cu_dims &m, int rows, int K); /* rows and K of the weights */
/* Thread blocks that the GPU holds at once, in whole clusters. KM_EDEVICE. */
int cu_small_m_sm90_blocks(const cu_dims &m, int *out, struct km_err *err);
/* CU_EPILOGUE_HEADS needs whole heads, and at most 64 rows for each of the blocks. KM_EDEVICE. */
int cu_small_m_sm90_weights(struct cu_small_m_weights *out, const bf16 *w, int rows, int K, enum cu_epilogue epilogue,
                            struct km_err *err);
int cu_small_m_sm90_rows(struct cu_small_m_rows *out, const bf16 *x, int max_rows, int K, struct km_err *err);
/* heads: used by CU_EPILOGUE_HEADS alone. */
void cu_small_m_sm90(const struct cu_small_m_workspace &ws, const struct cu_small_m_job &job, int M,
                     const struct cu_small_m_heads *heads, cudaStream_t s);

#endif
