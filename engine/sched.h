/* The scheduler decides which requests run in the next step, with how many rows and in which pages.
 *
 * `struct sch` owns the three lists of requests (waiting, loading, running) and all page assignments. It calls neither
 * the device nor the cache layer. The engine calls it in each step like this:
 *
 *     sch_begin_step                   schedules running requests, in the order of admission
 *     sch_schedule_front               schedules tokens of loading requests that the load does not fill
 *     sch_next_waiting, sch_admit ...  admits waiting requests by priority and arrival, until one does not fit
 *     [the step runs n_rows rows of every running and loading request]
 *     sch_retire_rows, sch_remove      records progress, and removes requests that ended
 *
 * Async scheduling: if the step in flight is a decode in which every row is sampled, and sch_can_schedule_async agrees,
 * the next step may be scheduled while it runs. sch_begin_step then treats the rows in flight as computed, and
 * sch_retire_rows refers to the older of the two steps.
 *
 * The rules are those of vLLM's V1 scheduler. Decodes and prefill chunks share one token budget per step. If pages run
 * out, the running request that is last in (priority, arrival) is preempted: it loses its pages and waits again. Its
 * full pages can be found by their prefix until they are reused; the KV of the other tokens is computed again. After a
 * preemption no request is admitted in the same step. The first request in order therefore always makes progress, and
 * every request ends, because every request fits into an empty pool.
 *
 * One rule differs from vLLM. While pages are held by transfers to the cache layer alone, a request that needs pages
 * waits for them instead of preempting another one, because these pages become free without any scheduling. Loading
 * requests are never preempted.
 *
 * Invariant: a page with tokens below n_computed may be shared and is never written; a request's other pages belong to
 * this request alone. Rows in flight write only to the latter. A page can therefore be assigned again as soon as it is
 * freed, even with a step in flight: later steps and copies run after it. */
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
    struct px *prefix;   /* NULL: no prefix caching */
    int block_size;      /* tokens of a block */
    int max_seqs;        /* most requests that run or load at once */
    int max_tokens;      /* token budget of a step */
    struct seq_list waiting, loading, running;
    int budget;          /* rows that this step may still schedule */
    bool closed;         /* no more admissions in this step */
    struct seq *passed;  /* the last waiting request that this step passed over; NULL: none. Valid from sch_begin_step
                            to the end of the admissions */
    uint64_t n_arrivals;
    int64_t preemptions;
    int64_t prefix_queries, prefix_hits; /* tokens looked up and found in the pool, at first admissions */
};

/* Appends q, a new request, to the waiting list. */
void sch_add(struct sch *s, struct seq *q);
/* True if the next step can be scheduled while a decode step is still running. Scheduling early must not preempt a
 * request. Nor must it delay the admission of a waiting request, if a request that ends with the running step is about
 * to free the pages or the share of max_seqs that the waiting request needs. */
bool sch_can_schedule_async(const struct sch *s);
/* Starts a step: renews the budget and schedules the running requests, preempting the last ones if pages run out. */
void sch_begin_step(struct sch *s);

/* The waiting request to admit next; NULL if none can be admitted in this step. The longest prefix of its tokens that
 * the pool holds is already assigned to it, n_computed tokens long. sch_admit must follow. */
struct seq *sch_next_waiting(struct sch *s);
/* Instead of sch_admit: q is not admitted in this step, and keeps its place. The pages that sch_next_waiting assigned
 * are freed. The next sch_next_waiting returns the request behind q. */
void sch_pass_over(struct sch *s, struct seq *q);
enum sch_admission {
    ADMIT_FULL, /* the pages do not suffice: the request remains in its place, and admission ends */
    ADMIT_RUN,  /* running, with n_rows rows in this step */
    ADMIT_LOAD  /* loading: it has pages for tokens [load_from, load_to), which the cache layer must fill, and for the
                   rows of the step after the load */
};
/* Admits q. The cache layer is to load tokens [from, to); equal: none. from is a multiple of the block size and at
 * least n_computed, and to is less than n_tokens. */
enum sch_admission sch_admit(struct sch *s, struct seq *q, int from, int to);
/* Schedules n_rows rows of the loading request q, at most the budget, which end at or before load_from. */
void sch_schedule_front(struct sch *s, struct seq *q, int n_rows);
/* The load of q has ended, and has filled tokens [from, to) of the loaded interval; equal: none. q becomes running, and
 * gets rows in the next step. */
void sch_load_done(struct sch *s, struct seq *q, int from, int to);
/* After sch_load_done within an admission: schedules rows of q in this step. */
void sch_schedule_loaded(struct sch *s, struct seq *q);
/* Abandons q's load: the engine will compute its tokens. The load goes on in its pages, which its holds keep, and q
 * gets other pages for these tokens. q must have no rows in flight. False: the pool has too few pages, and nothing
 * changed. */
bool sch_abandon_load(struct sch *s, struct seq *q);

/* q's rows in the oldest step in flight are computed. Pages that they filled can be found by their prefix. */
void sch_retire_rows(struct sch *s, struct seq *q);
/* Drops q's rows in all steps in flight; they are scheduled again. */
void sch_discard_rows(struct seq *q);
/* Removes q, which ended, from its list and frees its pages. The caller frees q. */
void sch_remove(struct sch *s, struct seq *q);
/* Evicts all cached pages that no request uses. */
void sch_evict_cached(struct sch *s);

static inline int sch_n_requests(const struct sch *s)
{
    return s->waiting.n + s->loading.n + s->running.n;
}

/* Compares lists, pages and prefix index: 0, or KM_EINVAL and the first broken invariant. */
int sch_check(const struct sch *s, struct km_err *err);

#endif
