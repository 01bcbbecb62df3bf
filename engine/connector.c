/* The open tickets are a linked list. Finished tickets are reused, so transfers allocate nothing once enough exist. */
#include "engine/connector.h"

#include "base/mem.h"
#include "base/min.h"

#include <limits.h>
#include <math.h>
#include <string.h>

struct con_ticket {
    struct con_ticket *next;
    uint64_t ticket;        /* the ticket of the port */
    bool load;              /* else it is a store */
    struct pln_load plan;   /* of a load */
    struct seq *loading;    /* the request that waits for this load; NULL for a store, or if the request ended */
    int hold_from, hold_to; /* blocks whose pages this ticket holds */
    int32_t pages[];        /* [max_blocks] copy of the block table, of which the first hold_to entries are set */
};

void con_init(struct connector *c, const struct kv_port *port, struct sch *sched, const struct pln *planner,
              int max_blocks)
{
    *c = (struct connector){.port = port, .sched = sched, .planner = planner, .max_blocks = max_blocks};
}

static void free_tickets(struct con_ticket *t)
{
    for (struct con_ticket *next; t; t = next) {
        next = t->next;
        km_free(t);
    }
}

void con_deinit(struct connector *c)
{
    free_tickets(c->spare);
    free_tickets(c->open);
    c->spare = c->open = NULL;
    c->n_open = 0;
}

/* Makes a ticket, which is not open yet, with the pages of q's tokens [from, to); NULL without memory. */
static struct con_ticket *new_ticket(struct connector *c, const struct seq *q, int from, int to)
{
    int block = c->sched->block_size;
    struct con_ticket *t = c->spare;
    if (t)
        c->spare = t->next;
    else if (!(t = km_malloc(sizeof *t + (size_t)c->max_blocks * sizeof *t->pages)))
        return NULL;
    *t = (struct con_ticket){.hold_from = from / block, .hold_to = (to + block - 1) / block};
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

/* Tells an open load to copy no token before `upto`, and releases the pages that it no longer owns. Returns the first
 * token that it owns. */
static int cut_load(struct connector *c, struct con_ticket *t, int upto)
{
    int owned = c->port->cut(c->port->self, t->ticket, upto), block = km_min(owned / c->sched->block_size, t->hold_to);
    for (; t->hold_from < block; t->hold_from++)
        pg_release(c->sched->pages, t->pages[t->hold_from]);
    return t->hold_from * c->sched->block_size;
}

/* n tokens, rounded down to whole chunks. */
static int full_chunks(const struct connector *c, int n)
{
    return n / c->port->chunk_size * c->port->chunk_size;
}

void con_open_seq(struct connector *c, struct seq *q)
{
    q->kv = c->port->open(c->port->self, q->salt, q->tokens, q->n_prompt);
}

void con_close_seq(struct connector *c, struct seq *q)
{
    if (q->state == SEQ_LOADING)
        for (struct con_ticket *t = c->open; t; t = t->next)
            if (t->loading == q) {
                t->loading = NULL;
                cut_load(c, t, INT_MAX);
            }
    if (q->kv)
        c->port->close(q->kv);
    q->kv = NULL;
}

int con_plan(struct connector *c, struct seq *q, int *from, int *to)
{
    const struct kv_port *p = c->port;
    int block = c->sched->block_size, most = q->n_tokens - 1; /* the last token is computed, for its logits */
    *from = *to = q->n_computed;
    if (!q->kv || q->n_computed >= most / block * block || c->planner->mode == PLN_COMPUTE)
        return 0;
    if (q->n_external < 0) {
        int n = p->lookup(q->kv, q->tokens, q->n_tokens, q->n_computed);
        if (n == KV_NOT_YET)
            return n;
        q->n_external = km_max(n, 0);
    }
    /* Less than a block is not worth a load, because the step that computes the last token computes it as fast. */
    most = km_min(q->n_external, most);
    if (most - q->n_computed >= block) {
        *to = most;
        *from = pln_load_from(c->planner, p, q->kv, q->n_computed, most, q->n_tokens);
    }
    return 0;
}

/* Offers q's first n tokens, whose KV is computed. */
static void offer(struct connector *c, struct seq *q, int n)
{
    struct con_ticket *t = new_ticket(c, q, 0, n);
    if (!t)
        return; /* the tokens are offered again together with the next ones */
    q->n_offered = n;
    int from = 0;
    int rc = c->port->store(q->kv, q->tokens, n, q->n_prompt, t->pages, c->retired, &t->ticket, &from);
    if (rc < 0 || !t->ticket) {
        recycle_ticket(c, t);
        return;
    }
    t->hold_from = km_min(from / c->sched->block_size, t->hold_to);
    open_ticket(c, t);
}

/* The load of q ended with tokens [from, to) verified. The cache layer has the chunks before `to`, so they are not
 * offered again before the prompt is complete. */
static void finish_load(struct connector *c, struct seq *q, int from, int to)
{
    sch_load_done(c->sched, q, from, to);
    if (from < to)
        q->n_offered = km_max(q->n_offered, full_chunks(c, to));
}

/* q was admitted without a load. */
static void skip_load(struct connector *c, struct seq *q)
{
    uint64_t none;
    if (q->n_external > 0) /* an empty load drops what the lookup pinned */
        c->port->load(q->kv, q->n_computed, q->n_computed, NULL, 0, &none);
    if (q->n_external >= 0 && q->n_external < q->n_offered)
        offer(c, q, q->n_offered);
}

void con_load(struct connector *c, struct seq *q, int64_t now)
{
    if (!q->kv)
        return;
    q->n_offered = full_chunks(c, q->n_computed);
    if (q->state != SEQ_LOADING) {
        skip_load(c, q);
        return;
    }
    struct con_ticket *t = new_ticket(c, q, q->load_from, q->load_to);
    if (t) {
        t->plan = pln_load_begin(c->planner, c->port, q->kv, q->load_from, q->load_to, now);
        if (c->port->load(q->kv, q->load_from, q->load_to, t->pages, c->submitted, &t->ticket) < 0)
            t->ticket = 0;
    }
    if (t && t->ticket) {
        t->load = true;
        t->loading = q;
        open_ticket(c, t);
        return;
    }
    if (t)
        recycle_ticket(c, t);
    finish_load(c, q, 0, 0);
    sch_schedule_loaded(c->sched, q);
}

/* The engine will compute the tokens that the load still owns. The load keeps its pages until it ends, and the request
 * gets others. */
static void abandon_load(struct connector *c, struct con_ticket *t)
{
    struct seq *q = t->loading;
    if (!sch_abandon_load(c->sched, q))
        return;
    t->loading = NULL;
    cut_load(c, t, INT_MAX);
    c->abandoned_loads++;
    sch_schedule_loaded(c->sched, q);
}

/* Schedules rows of the front for one loading request, and cuts or abandons its load. */
static void schedule_front(struct connector *c, struct con_ticket *t, const struct pln_step *step, int64_t now)
{
    struct seq *q = t->loading;
    int x = q->n_computed;
    struct pln_front front = pln_front(c->planner, &t->plan, x, q->load_from, step, now);
    if (front.cut > q->load_from) {
        q->load_from = cut_load(c, t, front.cut);
        if (q->load_from >= q->load_to) { /* the load owns no tokens any more */
            t->loading = NULL;
            finish_load(c, q, 0, 0);
            sch_schedule_loaded(c->sched, q);
            return;
        }
    }
    int rows = km_min(front.n_rows, q->load_from - x);
    if (rows > 0) {
        sch_schedule_front(c->sched, q, rows);
        c->overlapped_rows += rows;
    } else if (x == q->load_from && pln_abandons(c->planner, &t->plan, x, now)) {
        abandon_load(c, t);
    }
}

/* The expected time until the earliest load ends, in ns, among the loads other than `except` whose requests wait for
 * nothing else. */
static double first_end_ns(const struct connector *c, const struct con_ticket *except, int64_t now)
{
    double first = INFINITY;
    for (const struct con_ticket *t = c->open; t; t = t->next) {
        const struct seq *q = t->loading;
        if (q && t != except && q->n_computed + q->n_rows >= q->load_from)
            first = fmin(first, pln_left_ns(&t->plan, q->load_from, now));
    }
    return first;
}

void con_schedule_fronts(struct connector *c, int64_t now)
{
    if (c->planner->mode != PLN_AUTO || !c->sched->loading.n)
        return;
    bool urgent = false; /* a request gets its first output token from this step */
    for (const struct seq *q = c->sched->running.head; q && !urgent; q = q->next)
        urgent = q->n_rows && !seq_output(q) && q->n_computed + q->n_rows == q->n_tokens;
    for (struct con_ticket *t = c->open; t && c->sched->budget; t = t->next)
        if (t->loading && !t->loading->n_rows) {
            struct pln_step step = {c->sched->max_tokens - c->sched->budget, c->sched->budget,
                                    urgent ? 0 : first_end_ns(c, t, now)};
            schedule_front(c, t, &step, now);
        }
}

void con_store(struct connector *c, struct seq *q)
{
    if (!q->kv || q->load_from < q->load_to) /* the cache layer has the tokens before a loaded interval */
        return;
    int n = full_chunks(c, q->n_computed);
    if (q->n_computed >= q->n_prompt)
        n = km_max(n, q->n_prompt); /* the cache layer may keep the prompt's partial last chunk */
    if (n > q->n_offered)
        offer(c, q, n);
}

void con_poll(struct connector *c)
{
    for (struct con_ticket **at = &c->open, *t; (t = *at);) {
        struct kv_result r = {0};
        if (!c->port->poll(c->port->self, t->ticket, t->load ? &r : NULL)) {
            at = &t->next;
            continue;
        }
        *at = t->next;
        c->n_open--;
        for (int i = t->hold_to; i-- > t->hold_from;)
            pg_release(c->sched->pages, t->pages[i]);
        if (t->loading)
            finish_load(c, t->loading, r.good_from, r.good_to);
        recycle_ticket(c, t);
    }
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
        const struct seq *q = t->loading;
        if (q && (q->state != SEQ_LOADING || q->load_from / c->sched->block_size != t->hold_from))
            rc = km_fail(err, KM_EINVAL,
                         "a load that owns pages from block %d is open for request %llu, which has state %d and a "
                         "loaded interval from token %d",
                         t->hold_from, (unsigned long long)q->id, q->state, q->load_from);
        loads += q != NULL;
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
