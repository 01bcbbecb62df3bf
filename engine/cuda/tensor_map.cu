/* How Hopper's copy engine is told of a matrix. The encoder is the driver's: it is looked up at run time, so that the
 * program starts on machines without one. */
#include "engine/cuda/cu.h"

#include <cuda.h>
#include <string.h>

int cu_tensor_map(void *map128, const bf16 *base, int cols, size_t rows, int box_rows, struct km_err *err)
{
    void *fn = nullptr;
    cudaDriverEntryPointQueryResult found;
    CU_TRY(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &fn, 12000, cudaEnableDefault, &found));
    if (!fn || found != cudaDriverEntryPointSuccess)
        return km_fail(err, KM_EDEVICE,
                       "the driver has no cuTensorMapEncodeTiled; update it to one for CUDA 12 or newer");
    CUtensorMap map;
    cuuint64_t dims[2] = {(cuuint64_t)cols, rows}, strides[1] = {(cuuint64_t)cols * sizeof(bf16)};
    cuuint32_t box[2] = {64, (cuuint32_t)box_rows}, ones[2] = {1, 1};
    auto encode = reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(fn);
    CUresult rc = encode(&map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2, const_cast<bf16 *>(base), dims, strides, box, ones,
                         CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                         CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    if (rc != CUDA_SUCCESS)
        return km_fail(err, KM_EDEVICE,
                       "cannot describe %zu rows of %d to the copy engine (cuTensorMapEncodeTiled: %d)", rows, cols,
                       (int)rc);
    static_assert(sizeof map == 128, "tensor map");
    memcpy(map128, &map, sizeof map);
    return 0;
}
