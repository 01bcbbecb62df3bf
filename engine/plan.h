/* What memory an open would take: rows of names and bytes, and the KV pool that the limit leaves.
 *
 * A backend fills a plan from the lists it allocates by, without allocating and, for a card, without the card. A row
 * names one buffer, or several that are always sized together. */
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
    PLAN_RESERVE, /* left free for libraries and the driver: counted against the limit, not taken by the engine */
    PLAN_KV,
    PLAN_GROUPS
};

struct plan_row {
    const char *name; /* static */
    enum plan_group group;
    enum km_mem_kind where;
    int64_t bytes;
};

struct plan {
    struct plan_row rows[PLAN_ROWS];
    int n_rows;
    enum km_mem_kind limited; /* the rows in this memory share `limit` */
    int64_t limit;            /* bytes */
    bool limit_stated;        /* else what the device offers */
    struct kv_geom geom;      /* n_pages 0: nothing is left for KV */
    char device[96];          /* what was planned for */
};

/* Adds to the row of this group, name and memory, or makes it. name is static. */
void plan_add(struct plan *p, enum plan_group group, const char *name, enum km_mem_kind where, int64_t bytes);
/* Bytes of a group in one kind of memory. */
int64_t plan_sum(const struct plan *p, enum plan_group group, enum km_mem_kind where);
int64_t plan_total(const struct plan *p, enum km_mem_kind where);

#endif
