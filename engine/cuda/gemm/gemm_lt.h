/* GEMMs by cuBLASLt, for any M: bf16 inputs, f32 accumulation. A cu_lt has a library handle, a workspace, and the
 * algorithms that it has chosen so far. */
#ifndef CU_GEMM_LT_H
#define CU_GEMM_LT_H

#include "engine/cuda/cu.h"

enum { CU_LT_WORKSPACE = 32 << 20 }; /* bytes of device memory, allocated from open to close */

struct cu_lt;
int cu_lt_open(struct cu_lt **out, struct km_err *err);
void cu_lt_close(struct cu_lt *g); /* g may be NULL */
/* The bucket of M: the largest number of rows for which the algorithm is the same as for M. */
int cu_lt_bucket(int M);
/* Enqueues y[M][N] = x[M][K] w[N][K]^T; with add, y += x w^T. y is f32 if y_f32, else bf16. The first call for a bucket
 * of M times the library's algorithms and blocks meanwhile, unless s is being captured. KM_EDEVICE. */
int cu_lt_gemm(struct cu_lt *g, const bf16 *x, const bf16 *w, int M, int N, int K, bool add, void *y, bool y_f32,
               cudaStream_t s, struct km_err *err);

#endif
