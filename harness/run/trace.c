#include "harness/run/trace.h"

#include "base/mem.h"

#include <string.h>

int hz_trace_append(struct hz_trace *t, const struct hz_rec *rec, const struct hz_tick *ticks, int n,
                    struct km_err *err)
{
    if (t->n == t->cap) {
        int cap = t->cap ? 2 * t->cap : 256;
        struct hz_rec *p = km_reallocarray(t->recs, (size_t)cap, sizeof *p);
        if (!p)
            return km_fail(err, KM_ENOMEM, "no memory for %d request records", cap);
        t->recs = p;
        t->cap = cap;
    }
    if (t->n_ticks + (size_t)n > t->cap_ticks) {
        size_t cap = 2 * t->cap_ticks + (size_t)n + 4096;
        struct hz_tick *p = km_reallocarray(t->ticks, cap, sizeof *p);
        if (!p)
            return km_fail(err, KM_ENOMEM, "no memory for %zu event records", cap);
        t->ticks = p;
        t->cap_ticks = cap;
    }
    struct hz_rec *r = &t->recs[t->n++];
    *r = *rec;
    r->tick0 = t->n_ticks;
    r->n_ticks = n;
    if (n)
        memcpy(t->ticks + t->n_ticks, ticks, (size_t)n * sizeof *ticks);
    t->n_ticks += (size_t)n;
    return 0;
}

static void free_recs(struct hz_rec *recs, int n)
{
    for (int i = 0; i < n; i++)
        km_free(recs[i].text);
    km_free(recs);
}

void hz_trace_free(struct hz_trace *t)
{
    if (!t)
        return;
    free_recs(t->recs, t->n);
    free_recs(t->warm, t->n_warm);
    km_free(t->ticks);
    *t = (struct hz_trace){0};
}
