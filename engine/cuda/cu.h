/* Shared by the whole CUDA backend: the model's dimensions, the error rule, and the kernel launcher.
 *
 * The backend is C with templates: no containers, no exceptions. Functions that only launch kernels return void: CUDA
 * keeps the error of a failed launch, and the backend checks for it once per step (cudaGetLastError).
 *
 * Letters in shapes are those of engine/model.h, and T tokens, R requests and S sampled rows of a step. M, N and K are
 * the sizes of a GEMM y[M][N] = x[M][K] w[N][K]^T. Hopper is compute capability 9.0, sm_90a to the compiler. */
#ifndef CU_H
#define CU_H

extern "C" {
#include "base/err.h"
#include "engine/backend.h"
}

#include <cuda_bf16.h>
#include <cuda_runtime.h>
#include <stdint.h>

typedef __nv_bfloat16 bf16;

struct cu_dims {
    int L, D, H, G, d, F, V;
    int B, B_log2;            /* tokens of a page, a power of two; its logarithm */
    float eps;                /* epsilon of RMSNorm */
    int max_tokens, max_reqs; /* largest T and R of a step */
    int max_blocks;           /* most blocks of a request */
    int n_sms;                /* streaming multiprocessors of the GPU */
    int arch;                 /* compute capability times 10: 80, 86, 89, 90 */
    size_t page_elems;        /* elements of a page: [L][K and V][G][B][d], layout 1 of struct kv_geom */
};

/* Reports a CUDA failure by the library's error rule. */
static inline int cu_fail(struct km_err *err, cudaError_t rc, const char *what)
{
    return km_fail(err, KM_EDEVICE, "%.80s failed: %s", what, cudaGetErrorString(rc));
}
/* Makes the calling function return with KM_EDEVICE if the CUDA call fails. The function must have a variable `err`. */
#define CU_TRY(call)                                                                                                   \
    do {                                                                                                               \
        cudaError_t cu_rc_ = (call);                                                                                   \
        if (cu_rc_ != cudaSuccess)                                                                                     \
            return cu_fail(err, cu_rc_, #call);                                                                        \
    } while (0)

/* Launches a kernel with programmatic dependent launch (PDL): the kernel may start while the previous kernel of the
 * stream still runs. It must call griddep_wait (ptx.cuh) before it reads what an earlier kernel writes, and before it
 * writes what an earlier kernel reads. */
template <typename... P, typename... A>
static inline void cu_launch(void (*kernel)(P...), dim3 grid, unsigned block, size_t smem, cudaStream_t s, A... args)
{
    cudaLaunchAttribute pdl = {};
    pdl.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    pdl.val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t cfg = {};
    cfg.gridDim = grid;
    cfg.blockDim = dim3(block);
    cfg.dynamicSmemBytes = smem;
    cfg.stream = s;
    cfg.attrs = &pdl;
    cfg.numAttrs = 1;
    cudaLaunchKernelEx(&cfg, kernel, static_cast<P>(args)...);
}

#endif
