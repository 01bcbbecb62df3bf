/* Tensor maps: descriptions of tensors for Hopper's copy engine (TMA). */
#ifndef CU_TENSOR_MAP_H
#define CU_TENSOR_MAP_H

#include "engine/cuda/cu.h"

/* Describes a bf16 tensor of 1 to 5 dimensions, innermost first, to the copy engine. dims: elements. strides_bytes: of
 * all dimensions but the innermost, which is contiguous; multiples of 16. box: what one copy moves, at most 64 elements
 * of the innermost dimension and 256 of each other one; it arrives in the 128-byte swizzle. Elements outside the tensor
 * read as zero. map128: 128 bytes, later passed to a kernel as a CUtensorMap. KM_EDEVICE. */
int cu_tensor_map(void *map128, const bf16 *base, int rank, const uint64_t *dims,
                  const uint64_t *strides_bytes /* [rank - 1] */, const uint32_t *box /* [rank] */, struct km_err *err);

#endif
