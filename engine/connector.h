/* The connector: the engine's side of the port to a cache layer (engine/kv_port.h). vLLM calls it the KV connector.
 *
 * `struct connector` owns the open tickets and their holds on pages. A ticket has its own copy of the block table, so a
 * request may be preempted or end while its ticket is open. Every load ends in sch_load_done, even if the cache layer
 * fails, loads fewer tokens than its lookup found, or has no memory. The engine then computes the missing tokens.
 *
 * Invariant: a page has one hold for each open ticket that owns it, and no other holds. A load owns the pages that it
 * may still write to, a store the pages that it may still read. */
#ifndef CON_CONNECTOR_H
#define CON_CONNECTOR_H

#include "engine/kv_port.h"
#include "engine/planner.h"
#include "engine/sched.h"

struct con_ticket;

struct connector {
    const struct kv_port *port;
    struct sch *sched;
    const struct pln *planner;
    int max_blocks;               /* most blocks of one request */
    uint64_t submitted, retired;  /* tickets of the steps that were submitted and retired last, as fences; 0: none */
    struct con_ticket *open;      /* oldest first */
    struct con_ticket *spare;     /* finished tickets, kept for reuse */
    int n_open;
    int64_t abandoned_loads, overlapped_rows; /* as in struct eng_stats */
};

void con_init(struct connector *c, const struct kv_port *port, struct sch *sched, const struct pln *planner,
              int max_blocks);
void con_deinit(struct connector *c); /* the port is detached: the tickets that are still open are dropped */

/* q has arrived: opens its sequence in the cache layer, which may start to search for the prompt. */
void con_open_seq(struct connector *c, struct seq *q);
/* q is about to be freed. Its open tickets go on without it, and its load is cut. */
void con_close_seq(struct connector *c, struct seq *q);

/* Decides which tokens [*from, *to) of q, a request from sch_next_waiting, are to be loaded; equal: none. KV_NOT_YET:
 * the cache layer does not know yet what it has. Asks the cache layer once per admission, and only if it could have
 * more tokens than the pool. */
int con_plan(struct connector *c, struct seq *q, int *from, int *to);
/* After sch_admit: starts the load if q needs one, else drops what the lookup pinned. Offers the pool's chunks that the
 * lookup did not find. */
void con_load(struct connector *c, struct seq *q, int64_t now);
/* After sch_begin_step, and after admissions: schedules rows of the loading requests, for the tokens before those that
 * their loads fill, and abandons loads that take much longer than expected. */
void con_schedule_fronts(struct connector *c, int64_t now);
/* After sch_retire_rows: offers the chunks that were completed since the last call to the cache layer, and once the
 * whole prompt. */
void con_store(struct connector *c, struct seq *q);
/* Polls every open ticket once, and releases the pages of those that finished. */
void con_poll(struct connector *c);

/* Compares tickets, holds and the loading list: 0, or KM_EINVAL and the first broken invariant. */
int con_check(const struct connector *c, struct km_err *err);

#endif
