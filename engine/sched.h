/* The scheduler: which requests get how many rows of the next step, and whose pages pay for it.
 *
 * Pure: it moves requests between lists and pages between owners, and calls no device and no cache. The engine
 * drives it through one step as
 *
 *     sch_begin_step                    running requests first, in the order they were admitted
 *     sch_next_waiting, sch_admit ...      then waiting ones, by priority and arrival, until one does not fit
 *     [the step runs rows n_rows of every running request]
 *     sch_retire_rows, sch_remove     progress, and the end of a request
 *
 * When that step is a decode, each request's one row sampled, the next may be scheduled while it runs, if
 * sch_can_schedule_async says so: sch_begin_step then counts its rows as done, and sch_retire_rows is for the older of the two.
 *
 * Rules are those of vLLM's V1 scheduler: a token budget a step shared by decodes and prefill chunks; when pages run
 * out, the running request last in (priority, arrival) is preempted: it gives up its pages, which stay findable
 * until reused, and computes again what it must; after a preemption nobody is admitted in that step. So the first in
 * order always moves, and as every request fits the pool alone, all end.
 *
 * One rule is ours: while transfers to a cache layer hold pages that nobody else uses, a request in need of pages
 * waits for those instead of preempting, for they come back by themselves.
 *
 * Invariant: a page below n_computed may be shared and is never written; all others of a request are its own. Rows in
 * flight write to those alone, so pages let go of may be given on at once: later steps and copies come later. */
#ifndef SCH_SCHED_H
#define SCH_SCHED_H

#include "engine/pages.h"
#include "engine/prefix.h"
#include "engine/seq.h"

struct seq_list {
    struct seq *head, *tail;
    int n;
};

struct sch {
    struct pg_pool *pages;
    struct px *prefix;      /* NULL: no prefix caching */
    int block_size, max_seqs, max_tokens;
    struct seq_list waiting, loading, running;
    int budget;             /* rows left in this step */
    bool closed;            /* no more admissions in this step */
    uint64_t arrivals;
    int64_t preemptions, prefix_queries, prefix_hits;
};

void sch_add(struct sch *s, struct seq *q);
/* Whether sch_begin_step may come while a decode is in flight: nobody would be preempted, and nobody waits for what the
 * requests that end with it by length hold. */
bool sch_can_schedule_async(const struct sch *s);
void sch_begin_step(struct sch *s);

/* The waiting request that may be admitted now, or NULL. Its longest beginning in the pool is already referenced:
 * n_computed says how long. sch_admit must follow. */
struct seq *sch_next_waiting(struct sch *s);
/* n_external: tokens a cache layer can give from the start, 0 for none. */
enum sch_admission {
    ADMIT_FULL,  /* does not fit now: back to the head of the queue; admission ends */
    ADMIT_RUN,   /* admitted with n_rows rows */
    ADMIT_LOAD   /* admitted with pages for tokens [load_from, load_to), which a load must fill */
};
enum sch_admission sch_admit(struct sch *s, struct seq *q, int n_external);
/* The load of q ended; tokens [0, good) are right. Rows come with the next sch_begin_step, or at once from sch_schedule_loaded. */
void sch_load_done(struct sch *s, struct seq *q, int good);
void sch_schedule_loaded(struct sch *s, struct seq *q);

/* The oldest step in flight has run q's rows: full pages become findable. */
void sch_retire_rows(struct sch *s, struct seq *q);
/* Nothing of q in flight counts: all of it is to be scheduled again. */
void sch_discard_rows(struct seq *q);
/* q ends: off its list, its pages let go. */
void sch_remove(struct sch *s, struct seq *q);
/* Makes the pool forget all findable pages that nobody uses. */
void sch_evict_cached(struct sch *s);

static inline int sch_n_requests(const struct sch *s)
{
    return s->waiting.n + s->loading.n + s->running.n;
}

/* Checks lists, pages and index against each other: 0, or the first broken invariant. */
int sch_check(const struct sch *s, struct km_err *err);

#endif
