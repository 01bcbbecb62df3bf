/* Small-M GEMMs on Hopper: y[M][N] = x[M][K] w[N][K]^T for M <= CU_SMALL_M_SM90_MAX, in the time that reading w takes.
 *
 * The operands are described once, by tensor maps: struct cu_small_m_weights for w and the epilogue of its GEMM, and
 * struct cu_small_m_rows for x. Both borrow their memory. A chain of these GEMMs needs no kernels for RMSNorm: the GEMM
 * that writes x also writes h and the sums of squares, and the next GEMM reads both (struct cu_small_m_workspace). The
 * order of the additions of a row does not depend on M. */
#ifndef CU_SMALL_M_SM90_H
#define CU_SMALL_M_SM90_H

#include "engine/cuda/cu.h"

enum { CU_SMALL_M_SM90_MAX = 128 }; /* most rows of x */
enum { CU_SMALL_M_CLASSES = 4 };    /* there are kernels for up to 16, 32, 64 and 128 rows */

/* What a GEMM does with its accumulators. */
enum cu_epilogue {
    CU_EPILOGUE_BF16,   /* y = x w^T in bf16 */
    CU_EPILOGUE_F32,    /* y = x w^T in f32 */
    CU_EPILOGUE_ADD,    /* y += x w^T in bf16 */
    CU_EPILOGUE_SWIGLU, /* y = silu(gate) * up in bf16; w is [2N][K], gate first */
    CU_EPILOGUE_HEADS /* w is q, k and v with head_dim 128: RMSNorm and RoPE by head, q to y, k and v to their pages */
};

struct cu_small_m_weights {
    char map[128]; /* tensor map */
    int rows, K;   /* sizes of w */
    enum cu_epilogue epilogue;
};

struct cu_small_m_rows {
    char map[CU_SMALL_M_CLASSES][128]; /* tensor maps, with boxes of 16, 32, 64 and 128 rows */
};

/* One GEMM. */
struct cu_small_m_job {
    const struct cu_small_m_weights *w;
    const struct cu_small_m_rows *x;
    void *y; /* [M][N], f32 with CU_EPILOGUE_F32, else bf16 */
    /* Gamma of the RMSNorm that follows, [N], or NULL. If set, the GEMM also writes the workspace's h and squares from
     * y. Only with CU_EPILOGUE_ADD, and with N a multiple of 64. */
    const bf16 *norm;
    /* True if x is the workspace's h. The GEMM then scales its output rows by 1 / rms, which completes the RMSNorm
     * before it. Not with CU_EPILOGUE_ADD or CU_EPILOGUE_F32. */
    bool scaled;
};

/* What CU_EPILOGUE_HEADS needs: the arguments of cu_qk_rope_store (step/fused.h). */
struct cu_small_m_heads {
    const bf16 *q_norm, *k_norm; /* [128] */
    const float2 *angles;        /* [M][64] cosine and sine */
    const int32_t *slots;        /* [M] page * B + offset in the page */
    bf16 *pool;                  /* the KV pool */
    size_t layer_at, page_elems; /* elements from the start of a page to the layer; elements of a page */
    int H, G, B_log2;
};

/* What all GEMMs of a chain share. Borrows h and squares. */
struct cu_small_m_workspace {
    bf16 *h;        /* [M][D] y * gamma: RMSNorm without the factor 1 / rms */
    float *squares; /* [D / 64][CU_SMALL_M_SM90_MAX] sums of the squares of y, over tiles of 64 columns */
    int blocks;     /* result of cu_small_m_sm90_blocks */
    float eps;      /* epsilon of RMSNorm */
};

bool cu_small_m_sm90_usable(const cu_dims &m, int rows, int K); /* rows, K: sizes of w */
/* *out: number of thread blocks that the GPU runs at the same time, in whole clusters. KM_EDEVICE. */
int cu_small_m_sm90_blocks(const cu_dims &m, int *out, struct km_err *err);
/* Describes w[rows][K]. CU_EPILOGUE_HEADS needs whole heads, and at most 64 rows of w for each thread block that the
 * GPU runs at the same time. KM_EDEVICE. */
int cu_small_m_sm90_weights(struct cu_small_m_weights *out, const bf16 *w, int rows, int K, enum cu_epilogue epilogue,
                            struct km_err *err);
/* Describes x[max_rows][K]. KM_EDEVICE. */
int cu_small_m_sm90_rows(struct cu_small_m_rows *out, const bf16 *x, int max_rows, int K, struct km_err *err);
/* Enqueues a GEMM of M rows. Only CU_EPILOGUE_HEADS uses `heads`. */
void cu_small_m_sm90(const struct cu_small_m_workspace &ws, const struct cu_small_m_job &job, int M,
                     const struct cu_small_m_heads *heads, cudaStream_t s);

#endif
