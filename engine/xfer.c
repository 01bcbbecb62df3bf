/* Open tickets as a list. Tickets are reused, so a steady stream of transfers allocates nothing. */
#include "engine/xfer.h"

#include "base/mem.h"

#include <string.h>

struct xf_ticket {
    struct xf_ticket *next;
    uint64_t ticket;
    struct seq *loads;  /* the request that waits for it; NULL for a store and when that request ended */
    int from;           /* tokens that were right before, for a load */
    int hold_from, hold_to;
    int32_t pages[];    /* [max_blocks], the first hold_to are set, [hold_from, hold_to) are held */
};

void xf_init(struct xf *x, const struct kv_port *port, struct sch *sched, int max_blocks)
{
    *x = (struct xf){.port = port, .sched = sched, .max_blocks = max_blocks};
}

void xf_free(struct xf *x)
{
    for (struct xf_ticket *t = x->spare, *next; t; t = next) {
        next = t->next;
        km_free(t);
    }
    x->spare = NULL;
}

/* A ticket naming the pages of q's tokens [from, to); NULL without memory. */
static struct xf_ticket *prepare(struct xf *x, const struct seq *q, int from, int to)
{
    struct xf_ticket *t = x->spare;
    if (t)
        x->spare = t->next;
    else if (!(t = km_malloc(sizeof *t + (size_t)x->max_blocks * sizeof *t->pages)))
        return NULL;
    t->next = NULL;
    t->ticket = 0;
    t->loads = NULL;
    t->from = from;
    t->hold_from = from / x->sched->block_size;
    t->hold_to = to / x->sched->block_size;
    memcpy(t->pages, q->pages, (size_t)t->hold_to * sizeof *t->pages);
    return t;
}

static void put_back(struct xf *x, struct xf_ticket *t)
{
    t->next = x->spare;
    x->spare = t;
}

static void keep_open(struct xf *x, struct xf_ticket *t)
{
    for (int i = t->hold_from; i < t->hold_to; i++)
        pg_hold(x->sched->pages, t->pages[i]);
    struct xf_ticket **end = &x->open;
    while (*end)
        end = &(*end)->next;
    *end = t;
    x->n_open++;
}

int xf_lookup(struct xf *x, struct seq *q)
{
    const struct kv_port *p = x->port;
    int most = (q->n_tokens - 1) / x->sched->block_size * x->sched->block_size;
    if (!q->kv)
        q->kv = p->open(p->self, q->salt);
    if (!q->kv || q->n_computed >= most)
        return 0;
    if (q->n_external < 0) {
        int n = p->lookup(q->kv, q->tokens, q->n_tokens);
        q->n_external = n < 0 ? 0 : n;
    }
    return q->n_external;
}

static void loaded(struct xf *x, struct seq *q, int good)
{
    sch_loaded(x->sched, q, good);
    q->n_offered = q->n_computed / x->port->chunk_size * x->port->chunk_size;
}

void xf_admitted(struct xf *x, struct seq *q)
{
    q->n_offered = q->n_computed / x->port->chunk_size * x->port->chunk_size;
    int good = q->load_from;
    if (q->state != SEQ_LOADING) {
        uint64_t none;
        if (q->n_external > 0) /* the pool had as much: an empty load drops the pins */
            x->port->load(q->kv, 0, 0, NULL, &none, &good);
        return;
    }
    struct xf_ticket *t = prepare(x, q, q->load_from, q->load_to);
    if (t && x->port->load(q->kv, q->load_from, q->load_to, t->pages, &t->ticket, &good) < 0)
        t->ticket = 0;
    if (t && t->ticket) {
        t->loads = q;
        keep_open(x, t);
        return;
    }
    if (t)
        put_back(x, t);
    loaded(x, q, good);
    sch_give(x->sched, q);
}

void xf_store(struct xf *x, struct seq *q)
{
    int whole = q->n_computed / x->port->chunk_size * x->port->chunk_size;
    if (!q->kv || whole <= q->n_offered)
        return;
    struct xf_ticket *t = prepare(x, q, 0, whole);
    if (!t)
        return; /* offered again with the next chunk */
    q->n_offered = whole;
    if (x->port->store(q->kv, q->tokens, whole, q->n_prompt, t->pages, &t->ticket) < 0 || !t->ticket)
        put_back(x, t);
    else
        keep_open(x, t);
}

void xf_poll(struct xf *x)
{
    for (struct xf_ticket **at = &x->open, *t; (t = *at);) {
        int good = t->from;
        if (!x->port->poll(x->port->self, t->ticket, &good)) {
            at = &t->next;
            continue;
        }
        *at = t->next;
        x->n_open--;
        for (int i = t->hold_to; i-- > t->hold_from;)
            pg_release(x->sched->pages, t->pages[i]);
        if (t->loads)
            loaded(x, t->loads, good);
        put_back(x, t);
    }
}

void xf_end(struct xf *x, struct seq *q)
{
    if (q->state == SEQ_LOADING)
        for (struct xf_ticket *t = x->open; t; t = t->next)
            if (t->loads == q)
                t->loads = NULL;
    if (q->kv)
        x->port->close(q->kv);
    q->kv = NULL;
}

int xf_check(const struct xf *x, struct km_err *err)
{
    int n = pg_counts(x->sched->pages).pages, n_open = 0, loads = 0, rc = 0;
    int *holds = km_calloc((size_t)n, sizeof *holds);
    if (!holds)
        return km_fail(err, KM_ENOMEM, "no memory to check %d pages", n);
    for (const struct xf_ticket *t = x->open; t; t = t->next, n_open++) {
        for (int i = t->hold_from; i < t->hold_to; i++)
            holds[t->pages[i]]++;
        if (t->loads && t->loads->state != SEQ_LOADING)
            rc = km_fail(err, KM_EINVAL, "a load is open for request %llu, which is in state %d",
                         (unsigned long long)t->loads->id, t->loads->state);
        loads += t->loads != NULL;
    }
    for (int i = 0; i < n && !rc; i++)
        if (holds[i] != pg_holds(x->sched->pages, i))
            rc = km_fail(err, KM_EINVAL, "page %d counts %d holds, open tickets have %d", i,
                         pg_holds(x->sched->pages, i), holds[i]);
    if (!rc && (n_open != x->n_open || loads != x->sched->loading.n))
        rc = km_fail(err, KM_EINVAL, "%d tickets open and %d loads, the records say %d and %d", n_open, loads, x->n_open,
                     x->sched->loading.n);
    km_free(holds);
    return rc;
}
