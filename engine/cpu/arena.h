/* An arena: one block of memory, divided into arrays.
 *
 * A layout function allocates all its arrays from the arena in a fixed order. It runs twice: with base NULL it only
 * counts bytes, which gives the block's size; with the block it returns pointers. So the plan and the allocation cannot
 * differ. arena_plan_row gives a name to the bytes allocated since the row before it, for `--plan`. */
#ifndef CPU_ARENA_H
#define CPU_ARENA_H

#include "engine/plan.h"

#include <stddef.h>

struct arena {
    char *base;
    size_t used;
    struct plan *plan; /* gets the rows; NULL: none wanted */
    size_t planned;    /* bytes in rows so far */
};

/* n * size bytes, aligned to 64. The caller makes sure that n * size fits a size_t. */
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

/* Memory for an arena, in huge pages where the system grants them. Freed by km_free; NULL without memory. */
void *arena_block(size_t size);

#endif
