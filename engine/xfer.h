/* Transfers: the engine's side of the port to a cache layer.
 *
 * Owns the open tickets and the pages they hold. Every load ends in sch_loaded, whatever went wrong: a cache that
 * fails, lies short or has no memory only makes the request compute more. A ticket keeps its own copy of the block
 * table, so the request may be preempted or end while it is open.
 *
 * Invariant: a page is held once per open ticket that names it, and by nothing else. */
#ifndef XF_XFER_H
#define XF_XFER_H

#include "engine/kv_port.h"
#include "engine/sched.h"

struct xf_ticket;

struct xf {
    const struct kv_port *port;
    struct sch *sched;
    int max_blocks;
    struct xf_ticket *open, *spare; /* oldest first; finished ones kept for reuse */
    int n_open;
};

void xf_init(struct xf *x, const struct kv_port *port, struct sch *sched, int max_blocks);
void xf_free(struct xf *x); /* no ticket may be open */

/* Tokens the cache layer has for a request that sch_next gave; asked once per admission, and only where the
 * answer could beat the pool. */
int xf_lookup(struct xf *x, struct seq *q);
/* After sch_admit: notes what needs no storing, and starts the load if there is one. */
void xf_admitted(struct xf *x, struct seq *q);
/* After sch_computed: offers the cache whole chunks that were just completed. */
void xf_store(struct xf *x, struct seq *q);
/* Looks once at every open ticket. */
void xf_poll(struct xf *x);
/* q is about to be freed: its tickets go on without it. */
void xf_end(struct xf *x, struct seq *q);

int xf_check(const struct xf *x, struct km_err *err);

#endif
