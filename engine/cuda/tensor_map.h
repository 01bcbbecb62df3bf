/* Tensor maps: descriptions of tensors in global memory for Hopper's copy engine (TMA). */
#ifndef CU_TENSOR_MAP_H
#define CU_TENSOR_MAP_H

#include "engine/cuda/cu.h"

/* Makes the tensor map of a bf16 tensor of 1 to 5 dimensions, innermost first. Errors: KM_EDEVICE.
 *   map128         128 bytes, later passed to a kernel as a CUtensorMap
 *   dims           size of each dimension in elements
 *   strides_bytes  stride of each dimension except the innermost, which is contiguous; multiples of 16
 *   box            part of the tensor that one copy moves: at most 64 elements of the innermost dimension, and 256 of
 *                  each other dimension
 * A box arrives in shared memory in the 128-byte swizzle. Elements outside the tensor read as zero. */
int cu_tensor_map(void *map128, const bf16 *base, int rank, const uint64_t *dims,
                  const uint64_t *strides_bytes /* [rank - 1] */, const uint32_t *box /* [rank] */, struct km_err *err);

#endif
