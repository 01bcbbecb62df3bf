/* The connector: the engine's side of the port to a cache layer (engine/kv_port.h). vLLM calls it the KV connector.
 *
 * `struct connector` owns the open tickets and their holds on pages. A ticket has its own copy of the block table, so a
 * request may be preempted or end while its ticket is open. Every load ends in sch_load_done, even if the cache layer
 * fails, loads fewer tokens than its lookup found, or has no memory. The engine then computes the missing tokens.
 *
 * Invariant: a page has one hold for each open ticket that names it, and no other holds. */
#ifndef CON_CONNECTOR_H
#define CON_CONNECTOR_H

#include "engine/kv_port.h"
#include "engine/sched.h"

struct con_ticket;

struct connector {
    const struct kv_port *port;
    struct sch *sched;
    int max_blocks;           /* most blocks of one request */
    struct con_ticket *open;  /* oldest first */
    struct con_ticket *spare; /* finished tickets, kept for reuse */
    int n_open;
};

void con_init(struct connector *c, const struct kv_port *port, struct sch *sched, int max_blocks);
void con_deinit(struct connector *c); /* no ticket may be open */

/* The number of tokens, from the first, that the cache layer can load for q, a request from sch_next_waiting. Looks up
 * once per admission, and only if the cache layer could have more tokens than the pool. */
int con_lookup(struct connector *c, struct seq *q);
/* After sch_admit: starts the load if q needs one, else drops what the lookup pinned. */
void con_load(struct connector *c, struct seq *q);
/* After sch_retire_rows: offers the chunks that were completed since the last call to the cache layer. */
void con_store(struct connector *c, struct seq *q);
/* Polls every open ticket once, and releases the pages of those that finished. */
void con_poll(struct connector *c);
/* q is about to be freed. Its open tickets go on without it. */
void con_close_seq(struct connector *c, struct seq *q);

/* Compares tickets, holds and the loading list: 0, or KM_EINVAL and the first broken invariant. */
int con_check(const struct connector *c, struct km_err *err);

#endif
