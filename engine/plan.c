/* The rows of a memory plan, and their sums. */
#include "engine/plan.h"

#include <assert.h>
#include <string.h>

void plan_add(struct plan *p, enum plan_group group, const char *name, enum km_mem_kind where, int64_t bytes)
{
    struct plan_row *r = p->rows, *end = p->rows + p->n_rows;
    while (r < end && (r->group != group || r->where != where || strcmp(r->name, name)))
        r++;
    if (r == end) {
        assert(p->n_rows < PLAN_ROWS);
        *r = (struct plan_row){.name = name, .group = group, .where = where};
        p->n_rows++;
    }
    r->bytes += bytes;
}

int64_t plan_sum(const struct plan *p, enum plan_group group, enum km_mem_kind where)
{
    int64_t n = 0;
    for (int i = 0; i < p->n_rows; i++)
        n += p->rows[i].group == group && p->rows[i].where == where ? p->rows[i].bytes : 0;
    return n;
}

int64_t plan_total(const struct plan *p, enum km_mem_kind where)
{
    int64_t n = 0;
    for (int g = 0; g < PLAN_GROUPS; g++)
        n += plan_sum(p, (enum plan_group)g, where);
    return n;
}
