/* The block of an arena. */
#include "engine/cpu/arena.h"

#include "base/mem.h"

#include <sys/mman.h>

void *arena_block(size_t size)
{
    const size_t huge = 2u << 20;
    size_t rounded = (size + huge - 1) / huge * huge;
    void *p =
        rounded < size ? NULL : km_aligned(size < huge ? 64 : huge, size < huge ? (size + 63) / 64 * 64 : rounded);
    if (p && size >= huge)
        madvise(p, rounded, MADV_HUGEPAGE); /* a hint: without huge pages the backend works, but slower */
    return p;
}
