/* Open tickets as a list. Tickets are reused, so a steady stream of transfers allocates nothing. */
#include "engine/connector.h"

#include "base/mem.h"

#include <string.h>

struct con_ticket {
    struct con_ticket *next;
    uint64_t ticket;
    struct seq *loads;  /* the request that waits for it; NULL for a store and when that request ended */
    int from;           /* tokens that were right before, for a load */
    int hold_from, hold_to;
    int32_t pages[];    /* [max_blocks], the first hold_to are set, [hold_from, hold_to) are held */
};

void con_init(struct connector *c, const struct kv_port *port, struct sch *sched, int max_blocks)
{
    *c = (struct connector){.port = port, .sched = sched, .max_blocks = max_blocks};
}

void con_deinit(struct connector *c)
{
    for (struct con_ticket *t = c->spare, *next; t; t = next) {
        next = t->next;
        km_free(t);
    }
    c->spare = NULL;
}

/* A ticket naming the pages of q's tokens [from, to); NULL without memory. */
static struct con_ticket *prepare(struct connector *c, const struct seq *q, int from, int to)
{
    struct con_ticket *t = c->spare;
    if (t)
        c->spare = t->next;
    else if (!(t = km_malloc(sizeof *t + (size_t)c->max_blocks * sizeof *t->pages)))
        return NULL;
    t->next = NULL;
    t->ticket = 0;
    t->loads = NULL;
    t->from = from;
    t->hold_from = from / c->sched->block_size;
    t->hold_to = to / c->sched->block_size;
    memcpy(t->pages, q->pages, (size_t)t->hold_to * sizeof *t->pages);
    return t;
}

static void put_back(struct connector *c, struct con_ticket *t)
{
    t->next = c->spare;
    c->spare = t;
}

static void keep_open(struct connector *c, struct con_ticket *t)
{
    for (int i = t->hold_from; i < t->hold_to; i++)
        pg_hold(c->sched->pages, t->pages[i]);
    struct con_ticket **end = &c->open;
    while (*end)
        end = &(*end)->next;
    *end = t;
    c->n_open++;
}

int con_lookup(struct connector *c, struct seq *q)
{
    const struct kv_port *p = c->port;
    int most = (q->n_tokens - 1) / c->sched->block_size * c->sched->block_size;
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

static void loaded(struct connector *c, struct seq *q, int good)
{
    sch_load_done(c->sched, q, good);
    q->n_offered = q->n_computed / c->port->chunk_size * c->port->chunk_size;
}

void con_load(struct connector *c, struct seq *q)
{
    q->n_offered = q->n_computed / c->port->chunk_size * c->port->chunk_size;
    int good = q->load_from;
    if (q->state != SEQ_LOADING) {
        uint64_t none;
        if (q->n_external > 0) /* the pool had as much: an empty load drops the pins */
            c->port->load(q->kv, 0, 0, NULL, &none, &good);
        return;
    }
    struct con_ticket *t = prepare(c, q, q->load_from, q->load_to);
    if (t && c->port->load(q->kv, q->load_from, q->load_to, t->pages, &t->ticket, &good) < 0)
        t->ticket = 0;
    if (t && t->ticket) {
        t->loads = q;
        keep_open(c, t);
        return;
    }
    if (t)
        put_back(c, t);
    loaded(c, q, good);
    sch_schedule_loaded(c->sched, q);
}

void con_store(struct connector *c, struct seq *q)
{
    int whole = q->n_computed / c->port->chunk_size * c->port->chunk_size;
    if (!q->kv || whole <= q->n_offered)
        return;
    struct con_ticket *t = prepare(c, q, 0, whole);
    if (!t)
        return; /* offered again with the next chunk */
    q->n_offered = whole;
    if (c->port->store(q->kv, q->tokens, whole, q->n_prompt, t->pages, &t->ticket) < 0 || !t->ticket)
        put_back(c, t);
    else
        keep_open(c, t);
}

void con_poll(struct connector *c)
{
    for (struct con_ticket **at = &c->open, *t; (t = *at);) {
        int good = t->from;
        if (!c->port->poll(c->port->self, t->ticket, &good)) {
            at = &t->next;
            continue;
        }
        *at = t->next;
        c->n_open--;
        for (int i = t->hold_to; i-- > t->hold_from;)
            pg_release(c->sched->pages, t->pages[i]);
        if (t->loads)
            loaded(c, t->loads, good);
        put_back(c, t);
    }
}

void con_close_seq(struct connector *c, struct seq *q)
{
    if (q->state == SEQ_LOADING)
        for (struct con_ticket *t = c->open; t; t = t->next)
            if (t->loads == q)
                t->loads = NULL;
    if (q->kv)
        c->port->close(q->kv);
    q->kv = NULL;
}

int con_check(const struct connector *c, struct km_err *err)
{
    int n = pg_counts(c->sched->pages).pages, n_open = 0, loads = 0, rc = 0;
    int *holds = km_calloc((size_t)n, sizeof *holds);
    if (!holds)
        return km_fail(err, KM_ENOMEM, "no memory to check %d pages", n);
    for (const struct con_ticket *t = c->open; t; t = t->next, n_open++) {
        for (int i = t->hold_from; i < t->hold_to; i++)
            holds[t->pages[i]]++;
        if (t->loads && t->loads->state != SEQ_LOADING)
            rc = km_fail(err, KM_EINVAL, "a load is open for request %llu, which is in state %d",
                         (unsigned long long)t->loads->id, t->loads->state);
        loads += t->loads != NULL;
    }
    for (int i = 0; i < n && !rc; i++)
        if (holds[i] != pg_holds(c->sched->pages, i))
            rc = km_fail(err, KM_EINVAL, "page %d counts %d holds, open tickets have %d", i,
                         pg_holds(c->sched->pages, i), holds[i]);
    if (!rc && (n_open != c->n_open || loads != c->sched->loading.n))
        rc = km_fail(err, KM_EINVAL, "%d tickets open and %d loads, the records say %d and %d", n_open, loads, c->n_open,
                     c->sched->loading.n);
    km_free(holds);
    return rc;
}
