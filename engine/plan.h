/* A memory plan: what an open backend would allocate, by name and size, and the KV pool that the memory limit leaves.
 *
 * A backend fills a `struct plan` from the same lists that it allocates from, without allocating. A plan for a GPU does
 * not need the GPU. Each row is one buffer, or several buffers that always have the same size. */
#ifndef ENG_PLAN_H
#define ENG_PLAN_H

#include "base/mem.h"
#include "engine/kv_port.h"

#include <stdbool.h>
#include <stdint.h>

enum { PLAN_ROWS = 48 };

enum plan_group {
    PLAN_WEIGHTS,
    PLAN_WORKSPACE,
    PLAN_RESERVE, /* free memory for libraries and the driver: counts against the limit, but is not allocated */
    PLAN_KV,
    PLAN_GROUPS
};

struct plan_row {
    const char *name; /* a string literal */
    enum plan_group group;
    enum km_mem_kind where;
    int64_t bytes;
};

struct plan {
    struct plan_row rows[PLAN_ROWS];
    int n_rows;
    enum km_mem_kind limited; /* the kind of memory that `limit` applies to */
    int64_t limit;            /* bytes for all rows in this kind of memory */
    bool limit_stated;        /* true: the user set the limit; false: it is the backend's default */
    struct kv_geom geom;      /* n_pages 0: no memory is left for KV */
    char device[96];          /* the device that the plan is for */
};

/* Adds bytes to the row with this group, name and kind of memory; creates the row if needed. name: a string literal. */
void plan_add(struct plan *p, enum plan_group group, const char *name, enum km_mem_kind where, int64_t bytes);
/* Bytes of a group in one kind of memory. */
int64_t plan_sum(const struct plan *p, enum plan_group group, enum km_mem_kind where);
int64_t plan_total(const struct plan *p, enum km_mem_kind where);

#endif
