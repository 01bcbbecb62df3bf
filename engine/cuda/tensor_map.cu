/* Encodes tensor maps. The encoder is a function of the NVIDIA driver. It is looked up at run time, so that the program
 * starts on machines without the driver. */
#include "engine/cuda/tensor_map.h"

#include <cuda.h>
#include <string.h>

enum { RANK_MAX = 5 }; /* most dimensions that the copy engine supports */

int cu_tensor_map(void *map128, const bf16 *base, int rank, const uint64_t *dims, const uint64_t *strides_bytes,
                  const uint32_t *box, struct km_err *err)
{
    void *fn = nullptr;
    cudaDriverEntryPointQueryResult found;
    CU_TRY(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &fn, 12000, cudaEnableDefault, &found));
    if (!fn || found != cudaDriverEntryPointSuccess)
        return km_fail(
            err, KM_EDEVICE,
            "the NVIDIA driver has no function cuTensorMapEncodeTiled; update it to a driver for CUDA 12 or newer");
    CUtensorMap map;
    cuuint32_t ones[RANK_MAX] = {1, 1, 1, 1, 1};
    auto encode = reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(fn);
    CUresult rc = encode(&map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, (cuuint32_t)rank, const_cast<bf16 *>(base), dims,
                         strides_bytes, box, ones, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                         CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    if (rc != CUDA_SUCCESS)
        return km_fail(err, KM_EDEVICE,
                       "cuTensorMapEncodeTiled failed with %d for a tensor of %d dimensions, the inner two of %llu and "
                       "%llu elements",
                       (int)rc, rank, (unsigned long long)dims[0], rank > 1 ? (unsigned long long)dims[1] : 1ULL);
    static_assert(sizeof map == 128, "tensor map");
    memcpy(map128, &map, sizeof map);
    return 0;
}
