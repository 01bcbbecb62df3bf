/* GEMMs by cuBLASLt, for any M: bf16 inputs, f32 accumulation. */
#ifndef CU_GEMM_LT_H
#define CU_GEMM_LT_H

#include "engine/cuda/cu.h"

enum { CU_LT_WORKSPACE = 32 << 20 }; /* bytes of device memory, held from open to close */

struct cu_lt;
int cu_lt_open(struct cu_lt **out, struct km_err *err);
void cu_lt_close(struct cu_lt *g); /* NULL: nothing */
/* The bucket of M: the largest number of rows that uses the same algorithm as M. */
int cu_lt_bucket(int M);
/* y[M][N] = x[M][K] w[N][K]^T, or y += ... with add. y is f32 with y_f32, else bf16. The first call for a bucket of M
 * times the library's candidates, unless s is being captured. KM_EDEVICE. */
int cu_lt_gemm(struct cu_lt *g, const bf16 *x, const bf16 *w, int M, int N, int K, bool add, void *y, bool y_f32,
               cudaStream_t s, struct km_err *err);

#endif
