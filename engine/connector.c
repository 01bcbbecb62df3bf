/* The open tickets are a linked list. Finished tickets are reused, so transfers allocate nothing once enough exist. */
#include "engine/connector.h"

#include "base/mem.h"

#include <string.h>

struct con_ticket {
    struct con_ticket *next;
    uint64_t ticket;        /* the ticket of the port */
    struct seq *loading;    /* the request that waits for this load; NULL for a store, or if the request ended */
    int from;               /* for a load: tokens whose KV was correct before it */
    int hold_from, hold_to; /* blocks whose pages this ticket holds */
    int32_t pages[];        /* [max_blocks] copy of the block table, of which the first hold_to entries are set */
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

/* Makes a ticket for the pages of q's tokens [from, to), which is not open yet; NULL without memory. */
static struct con_ticket *new_ticket(struct connector *c, const struct seq *q, int from, int to)
{
    struct con_ticket *t = c->spare;
    if (t)
        c->spare = t->next;
    else if (!(t = km_malloc(sizeof *t + (size_t)c->max_blocks * sizeof *t->pages)))
        return NULL;
    t->next = NULL;
    t->ticket = 0;
    t->loading = NULL;
    t->from = from;
    t->hold_from = from / c->sched->block_size;
    t->hold_to = to / c->sched->block_size;
    memcpy(t->pages, q->pages, (size_t)t->hold_to * sizeof *t->pages);
    return t;
}

static void recycle_ticket(struct connector *c, struct con_ticket *t)
{
    t->next = c->spare;
    c->spare = t;
}

/* Adds the ticket to the open ones, and holds its pages. */
static void open_ticket(struct connector *c, struct con_ticket *t)
{
    for (int i = t->hold_from; i < t->hold_to; i++)
        pg_hold(c->sched->pages, t->pages[i]);
    struct con_ticket **end = &c->open;
    while (*end)
        end = &(*end)->next;
    *end = t;
    c->n_open++;
}

/* n tokens, rounded down to whole chunks. */
static int full_chunks(const struct connector *c, int n)
{
    return n / c->port->chunk_size * c->port->chunk_size;
}

int con_lookup(struct connector *c, struct seq *q)
{
    const struct kv_port *p = c->port;
    int most = (q->n_tokens - 1) / c->sched->block_size * c->sched->block_size; /* the last token is computed */
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

/* The load of q ended with tokens [0, good) correct. The cache layer has these chunks, so they are not offered
 * again. */
static void finish_load(struct connector *c, struct seq *q, int good)
{
    sch_load_done(c->sched, q, good);
    q->n_offered = full_chunks(c, q->n_computed);
}

void con_load(struct connector *c, struct seq *q)
{
    q->n_offered = full_chunks(c, q->n_computed);
    int good = q->load_from;
    if (q->state != SEQ_LOADING) {
        uint64_t none;
        if (q->n_external > 0) /* the pool has as many tokens: an empty load releases what the lookup pinned */
            c->port->load(q->kv, 0, 0, NULL, &none, &good);
        return;
    }
    struct con_ticket *t = new_ticket(c, q, q->load_from, q->load_to);
    if (t && c->port->load(q->kv, q->load_from, q->load_to, t->pages, &t->ticket, &good) < 0)
        t->ticket = 0;
    if (t && t->ticket) {
        t->loading = q;
        open_ticket(c, t);
        return;
    }
    if (t)
        recycle_ticket(c, t);
    finish_load(c, q, good);
    sch_schedule_loaded(c->sched, q);
}

void con_store(struct connector *c, struct seq *q)
{
    int full = full_chunks(c, q->n_computed);
    if (!q->kv || full <= q->n_offered)
        return;
    struct con_ticket *t = new_ticket(c, q, 0, full);
    if (!t)
        return; /* the chunk is offered again together with the next one */
    q->n_offered = full;
    if (c->port->store(q->kv, q->tokens, full, q->n_prompt, t->pages, &t->ticket) < 0 || !t->ticket)
        recycle_ticket(c, t);
    else
        open_ticket(c, t);
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
        if (t->loading)
            finish_load(c, t->loading, good);
        recycle_ticket(c, t);
    }
}

void con_close_seq(struct connector *c, struct seq *q)
{
    if (q->state == SEQ_LOADING)
        for (struct con_ticket *t = c->open; t; t = t->next)
            if (t->loading == q)
                t->loading = NULL;
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
        if (t->loading && t->loading->state != SEQ_LOADING)
            rc = km_fail(err, KM_EINVAL, "a load is open for request %llu, which has state %d",
                         (unsigned long long)t->loading->id, t->loading->state);
        loads += t->loading != NULL;
    }
    for (int i = 0; i < n && !rc; i++)
        if (holds[i] != pg_holds(c->sched->pages, i))
            rc = km_fail(err, KM_EINVAL, "page %d records %d holds, but the open tickets have %d", i,
                         pg_holds(c->sched->pages, i), holds[i]);
    if (!rc && (n_open != c->n_open || loads != c->sched->loading.n))
        rc = km_fail(err, KM_EINVAL,
                     "%d tickets and %d loads are open, but %d tickets and %d loading requests are recorded", n_open,
                     loads, c->n_open, c->sched->loading.n);
    km_free(holds);
    return rc;
}
