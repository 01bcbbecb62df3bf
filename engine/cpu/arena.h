/* An arena: one block of memory, divided into arrays.
 *
 * A layout function allocates all its arrays from the arena in a fixed order. It runs twice. With base NULL it only
 * counts bytes, which gives the size of the block. With the block as base it returns pointers. So the memory plan and
 * the allocation cannot differ. The caller owns the block. */
#ifndef CPU_ARENA_H
#define CPU_ARENA_H

#include "engine/plan.h"

#include <stddef.h>

struct arena {
    char *base;        /* the block; NULL: only count bytes */
    size_t used;       /* bytes allocated so far */
    struct plan *plan; /* arena_plan_row adds rows to it; may be NULL */
    size_t planned;    /* bytes that have a row in the plan */
};

/* Allocates n * size bytes, aligned to 64 bytes. NULL while the arena only counts. n * size must fit a size_t. */
static inline void *arena_alloc(struct arena *a, size_t n, size_t size)
{
    size_t at = a->used;
    a->used += (n * size + 63) / 64 * 64;
    return a->base ? a->base + at : NULL;
}

/* Adds a row to the plan: the bytes allocated since the previous row. */
static inline void arena_plan_row(struct arena *a, enum plan_group group, const char *name)
{
    if (a->plan)
        plan_add(a->plan, group, name, KM_MEM_HOST, (int64_t)(a->used - a->planned));
    a->planned = a->used;
}

/* Allocates a block, in huge pages if the system has them. The caller frees it with km_free. NULL: out of memory. */
void *arena_block(size_t size);

#endif
