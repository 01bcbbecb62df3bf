/* Carves one block of memory into arrays. Run a layout once with base NULL to learn its size, then again
 * over the real block: the same code makes the plan and the pointers. arena_plan_row names what was taken since the row
 * before it, for who wants to know where the bytes go. */
#ifndef CPU_ARENA_H
#define CPU_ARENA_H

#include "engine/plan.h"

#include <stddef.h>

struct arena {
    char *base;
    size_t used;
    struct plan *plan; /* gets the rows; NULL: nobody asks */
    size_t planned;     /* bytes in rows so far */
};

/* n * size bytes, 64-byte aligned. The caller keeps the product in range. */
static inline void *arena_alloc(struct arena *a, size_t n, size_t size)
{
    size_t at = a->used;
    a->used += (n * size + 63) / 64 * 64;
    return a->base ? a->base + at : NULL;
}

static inline void arena_plan_row(struct arena *a, enum plan_group group, const char *name)
{
    if (a->plan)
        plan_add(a->plan, group, name, KM_MEM_HOST, (int64_t)(a->used - a->planned));
    a->planned = a->used;
}

/* A large block: huge pages where the system gives them. Freed by km_free; NULL without memory. */
void *arena_block(size_t size);

#endif
