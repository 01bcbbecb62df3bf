/* Transfers: the engine's side of the port to a cache layer.
 *
 * Owns the open tickets and the pages they hold. Every load ends in sch_load_done, whatever went wrong: a cache that
 * fails, lies short or has no memory only makes the request compute more. A ticket keeps its own copy of the block
 * table, so the request may be preempted or end while it is open.
 *
 * Invariant: a page is held once per open ticket that names it, and by nothing else. */
#ifndef CON_CONNECTOR_H
#define CON_CONNECTOR_H

#include "engine/kv_port.h"
#include "engine/sched.h"

struct con_ticket;

struct connector {
    const struct kv_port *port;
    struct sch *sched;
    int max_blocks;
    struct con_ticket *open, *spare; /* oldest first; finished ones kept for reuse */
    int n_open;
};

void con_init(struct connector *c, const struct kv_port *port, struct sch *sched, int max_blocks);
void con_deinit(struct connector *c); /* no ticket may be open */

/* Tokens the cache layer has for a request that sch_next_waiting gave; asked once per admission, and only where the
 * answer could beat the pool. */
int con_lookup(struct connector *c, struct seq *q);
/* After sch_admit: notes what needs no storing, and starts the load if there is one. */
void con_load(struct connector *c, struct seq *q);
/* After sch_retire_rows: offers the cache whole chunks that were just completed. */
void con_store(struct connector *c, struct seq *q);
/* Looks once at every open ticket. */
void con_poll(struct connector *c);
/* q is about to be freed: its tickets go on without it. */
void con_close_seq(struct connector *c, struct seq *q);

int con_check(const struct connector *c, struct km_err *err);

#endif
