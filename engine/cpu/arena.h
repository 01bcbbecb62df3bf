/* Carves one block of memory into arrays. Run a layout once with base NULL to learn its size, then again
 * over the real block: the same code makes the plan and the pointers. */
#ifndef CPU_ARENA_H
#define CPU_ARENA_H

#include <stddef.h>

struct arena {
    char *base;
    size_t used;
};

/* n * size bytes, 64-byte aligned. The caller keeps the product in range. */
static inline void *arena_take(struct arena *a, size_t n, size_t size)
{
    size_t at = a->used;
    a->used += (n * size + 63) / 64 * 64;
    return a->base ? a->base + at : NULL;
}

/* A large block: huge pages where the system gives them. Freed by km_free; NULL without memory. */
void *arena_block(size_t size);

#endif
