/* The life of a request and the step loop: poll transfers, schedule, run the backend, report.
 *
 * All memory is taken at eng_open, one block more for each request at submit: a step allocates nothing. The engine
 * itself decides little: sched.c owns pages and queues, xfer.c the cache layer, the backend the arithmetic. */
#include "engine/engine.h"

#include "base/clock.h"
#include "base/mem.h"
#include "engine/engine_internal.h"
#include "engine/sched.h"
#include "engine/xfer.h"

#include <limits.h>
#include <stdatomic.h>
#include <string.h>
#include <time.h>

struct eng {
    struct eng_opts o;             /* as resolved */
    const struct mdl *m;
    const struct backend *backend;
    struct be *be;
    const struct kv_port *port;    /* NULL: none */
    bool attached;
    struct kv_geom geom;
    struct kv_copier copier;
    struct sch sched;
    struct xf xf;                  /* unused without a port */

    _Atomic uint64_t last_id;
    struct seq **by_id;            /* [by_id_mask + 1], chained */
    uint64_t by_id_mask;

    int max_blocks;                /* of one request */
    int32_t *tokens, *positions, *slots; /* [max_num_batched_tokens] */
    int32_t *q_start;              /* [max_num_seqs + 1] */
    int32_t *kv_len, *filled;      /* [max_num_seqs]; filled: entries of the table's row that are not -1 */
    int32_t *table;                /* [max_num_seqs][max_blocks] */
    struct smp_row *rows;          /* [max_num_seqs] */
    struct smp_result *results;    /* [max_num_seqs] */
    struct eng_events events;

    bool dead;                     /* the device failed */
    struct eng_stats n;            /* the counters; the rest is filled in by eng_stats */
};

struct eng_opts eng_defaults(void)
{
    return (struct eng_opts){.max_num_seqs = 256,
                             .max_num_batched_tokens = 2048,
                             .block_size = 16,
                             .memory_utilization = 0.9,
                             .prefix_caching = true,
                             .dtype = KM_BF16,
                             .max_waiting = 4096};
}

static int64_t now(const struct eng *e)
{
    return e->backend->now ? e->backend->now(e->be) : km_now_ns();
}

/* The backend's copy verbs under the names the port knows. */
static int copier_copy(void *self, enum kv_dir dir, const struct kv_copy *c, int n, uint64_t *ticket, struct km_err *err)
{
    struct eng *e = self;
    return e->backend->copy(e->be, dir, c, n, ticket, err);
}

static int copier_poll(void *self, uint64_t ticket)
{
    struct eng *e = self;
    return e->backend->poll(e->be, ticket);
}

static void *copier_alloc(void *self, size_t size)
{
    struct eng *e = self;
    return e->backend->host_alloc(e->be, size);
}

static void copier_free(void *self, void *p, size_t size)
{
    struct eng *e = self;
    if (e->backend->host_free)
        e->backend->host_free(e->be, p, size);
}

static int check_range(const char *flag, int v, int lo, int hi, struct km_err *err)
{
    return v >= lo && v <= hi ? 0 : km_fail(err, KM_EINVAL, "%s is %d: it must be from %d to %d", flag, v, lo, hi);
}

static int check_options(const struct eng_opts *o, const struct mdl_config *c, const struct kv_port *port,
                         struct km_err *err)
{
    if (check_range("--block-size", o->block_size, 1, 1024, err))
        return KM_EINVAL;
    const struct {
        const char *flag;
        int v, lo, hi;
    } t[] = {{"--max-model-len", o->max_model_len, 0, c->max_pos},
             {"--max-num-seqs", o->max_num_seqs, 1, 1 << 16},
             {"--max-num-batched-tokens", o->max_num_batched_tokens, 1, 1 << 20},
             {"--num-gpu-blocks-override", o->num_blocks, 0, INT_MAX / o->block_size},
             {"the number of threads", o->n_threads, 0, 4096},
             {"the queue length", o->max_waiting, 1, 1 << 20}};
    for (size_t i = 0; i < sizeof t / sizeof *t; i++)
        if (check_range(t[i].flag, t[i].v, t[i].lo, t[i].hi, err))
            return KM_EINVAL;
    if (!(o->memory_utilization > 0 && o->memory_utilization <= 1))
        return km_fail(err, KM_EINVAL, "--gpu-memory-utilization is %g: it must be above 0 and at most 1",
                       o->memory_utilization);
    if (o->memory_limit < 0)
        return km_fail(err, KM_EINVAL, "--gpu-memory-limit is %lld bytes: it cannot be negative",
                       (long long)o->memory_limit);
    if (port && (port->chunk_size < 1 || port->chunk_size % o->block_size))
        return km_fail(err, KM_EINVAL, "the cache's chunk of %d tokens is not a multiple of the block of %d: change "
                       "--chunk-size or --block-size", port->chunk_size, o->block_size);
    return 0;
}

static int min_int(int a, int b)
{
    return a < b ? a : b;
}

/* The context against the pool that the backend could make. */
static int settle_lengths(struct eng_opts *o, const struct kv_geom *g, const struct mdl_config *c, struct km_err *err)
{
    int64_t room = (int64_t)g->n_pages * o->block_size;
    if (g->n_pages < 1 || room > INT_MAX)
        return km_fail(err, KM_ELIMIT, "the KV pool has %d blocks of %d tokens: allow it more memory, or set "
                       "--num-gpu-blocks-override", g->n_pages, o->block_size);
    if (o->max_model_len > room)
        return km_fail(err, KM_ELIMIT, "--max-model-len is %d, but the KV pool holds %lld tokens (%d blocks of %d): lower "
                       "it, or allow the pool more memory", o->max_model_len, (long long)room, g->n_pages,
                       o->block_size);
    if (!o->max_model_len)
        o->max_model_len = min_int(c->max_pos, (int)room);
    if (o->max_model_len < 2)
        return km_fail(err, KM_ELIMIT, "the context is %d token: one for the prompt and one for the answer are the least",
                       o->max_model_len);
    o->num_blocks = g->n_pages;
    return 0;
}

static int take_memory(struct eng *e, struct km_err *err)
{
    size_t t = (size_t)e->o.max_num_batched_tokens, r = (size_t)e->o.max_num_seqs;
    size_t alive = r + (size_t)e->o.max_waiting, ids = 16;
    while (ids < alive)
        ids *= 2;
    e->by_id_mask = ids - 1;
    e->by_id = km_calloc(ids, sizeof *e->by_id);
    e->tokens = km_calloc(t, sizeof *e->tokens);
    e->positions = km_calloc(t, sizeof *e->positions);
    e->slots = km_calloc(t, sizeof *e->slots);
    e->q_start = km_calloc(r + 1, sizeof *e->q_start);
    e->kv_len = km_calloc(r, sizeof *e->kv_len);
    e->filled = km_calloc(r, sizeof *e->filled);
    e->table = km_calloc(r, (size_t)e->max_blocks * sizeof *e->table);
    e->rows = km_calloc(r, sizeof *e->rows);
    e->results = km_calloc(r, sizeof *e->results);
    e->events.v = km_calloc(alive, sizeof *e->events.v);
    e->events.cap = (int)alive;
    if (!e->by_id || !e->tokens || !e->positions || !e->slots || !e->q_start || !e->kv_len || !e->filled || !e->table ||
        !e->rows || !e->results || !e->events.v)
        return km_fail(err, KM_ENOMEM, "no memory for steps of %zu tokens and %zu requests", t, r);
    memset(e->table, 0xff, r * (size_t)e->max_blocks * sizeof *e->table);
    return 0;
}

/* What the backend is asked for; settles what of o does not depend on the pool. */
static struct be_opts backend_options(struct eng_opts *o, const struct mdl_config *c)
{
    o->max_num_seqs = min_int(o->max_num_seqs, o->max_num_batched_tokens); /* a decode is a row at least */
    int longest = o->max_model_len ? o->max_model_len : c->max_pos;
    if (!o->max_model_len && o->num_blocks)
        longest = min_int(longest, o->num_blocks * o->block_size);
    return (struct be_opts){.dtype = o->dtype,
                            .block_size = o->block_size,
                            .n_pages = o->num_blocks,
                            .memory_limit = o->memory_limit,
                            .memory_utilization = o->memory_utilization,
                            .max_tokens = o->max_num_batched_tokens,
                            .max_reqs = o->max_num_seqs,
                            .max_model_len = longest,
                            .n_threads = o->n_threads};
}

int eng_plan(struct plan *out, struct eng_opts *o, const struct mdl *m, const struct backend *backend,
             struct km_err *err)
{
    const struct mdl_config *c = mdl_config(m);
    *out = (struct plan){0};
    int rc = check_options(o, c, NULL, err);
    if (rc)
        return rc;
    if (!backend->plan)
        return km_fail(err, KM_EINVAL, "the %s backend does not plan", backend->name);
    struct be_opts b = backend_options(o, c);
    rc = backend->plan(out, &b, m, err);
    return rc ? rc : settle_lengths(o, &out->geom, c, err);
}

static int open_parts(struct eng *e, struct km_err *err)
{
    const struct mdl_config *c = mdl_config(e->m);
    int rc = check_options(&e->o, c, e->port, err);
    if (rc)
        return rc;
    struct be_opts b = backend_options(&e->o, c);
    rc = e->backend->open(&e->be, &b, e->m, &e->geom, err);
    if (!rc)
        rc = settle_lengths(&e->o, &e->geom, c, err);
    if (rc)
        return rc;
    e->max_blocks = (e->o.max_model_len + e->o.block_size - 1) / e->o.block_size;
    rc = take_memory(e, err);
    if (!rc)
        rc = pg_new(&e->sched.pages, e->geom.n_pages, err);
    if (!rc && e->o.prefix_caching)
        rc = px_new(&e->sched.prefix, e->geom.n_pages, e->o.block_size, err);
    if (rc)
        return rc;
    e->sched.block_size = e->o.block_size;
    e->sched.max_seqs = e->o.max_num_seqs;
    e->sched.max_tokens = e->o.max_num_batched_tokens;
    if (!e->port)
        return 0;
    xf_init(&e->xf, e->port, &e->sched, e->max_blocks);
    e->copier = (struct kv_copier){e, copier_copy, copier_poll, e->backend->host_alloc ? copier_alloc : NULL, copier_free};
    rc = e->port->attach(e->port->self, &e->geom, &e->copier, err);
    e->attached = !rc;
    return rc;
}

int eng_open(struct eng **out, const struct eng_opts *o, const struct mdl *m, const struct backend *backend,
             const struct kv_port *port, struct km_err *err)
{
    struct eng *e = km_calloc(1, sizeof *e);
    if (!e)
        return km_fail(err, KM_ENOMEM, "no memory for an engine");
    e->o = *o;
    e->m = m;
    e->backend = backend;
    e->port = port;
    int rc = open_parts(e, err);
    if (rc) {
        eng_close(e);
        return rc;
    }
    *out = e;
    return 0;
}

static struct seq **place_of(struct eng *e, uint64_t id)
{
    struct seq **at = &e->by_id[id & e->by_id_mask];
    while (*at && (*at)->id != id)
        at = &(*at)->chain;
    return at;
}

static void end(struct eng *e, struct seq *q, enum eng_finish finish)
{
    e->n.finished[finish]++;
    if (e->port)
        xf_end(&e->xf, q);
    sch_remove(&e->sched, q);
    *place_of(e, q->id) = q->chain;
    seq_free(q);
}

static void end_list(struct eng *e, struct seq_list *l)
{
    while (l->head)
        end(e, l->head, ENG_ABORT);
}

static void nap(void)
{
    nanosleep(&(struct timespec){.tv_nsec = 50000}, NULL);
}

void eng_close(struct eng *e)
{
    if (!e)
        return;
    end_list(e, &e->sched.running);
    end_list(e, &e->sched.loading);
    end_list(e, &e->sched.waiting);
    if (e->attached) {
        for (; e->xf.n_open; nap()) /* the port promises that every ticket ends */
            xf_poll(&e->xf);
        e->port->detach(e->port->self);
        xf_free(&e->xf);
    }
    if (e->be)
        e->backend->close(e->be);
    pg_free(e->sched.pages);
    px_free(e->sched.prefix);
    km_free(e->by_id);
    km_free(e->tokens);
    km_free(e->positions);
    km_free(e->slots);
    km_free(e->q_start);
    km_free(e->kv_len);
    km_free(e->filled);
    km_free(e->table);
    km_free(e->rows);
    km_free(e->results);
    km_free(e->events.v);
    km_free(e);
}

int eng_make(struct eng *e, const struct eng_request *r, struct seq **out, struct km_err *err)
{
    int rc = seq_new(out, r, &e->o, mdl_config(e->m), err);
    if (rc)
        return rc;
    (*out)->id = atomic_fetch_add(&e->last_id, 1) + 1;
    if (!e->backend->now)
        (*out)->arrived_ns = km_now_ns();
    return 0;
}

void eng_add(struct eng *e, struct seq *q)
{
    if (e->backend->now)
        q->arrived_ns = now(e);
    struct seq **at = &e->by_id[q->id & e->by_id_mask];
    q->chain = *at;
    *at = q;
    sch_add(&e->sched, q);
}

int eng_submit(struct eng *e, const struct eng_request *r, uint64_t *id, struct km_err *err)
{
    if (e->dead)
        return km_fail(err, KM_EDEVICE, "the %s device failed: start the engine again", e->backend->name);
    if (e->sched.waiting.n >= e->o.max_waiting)
        return km_fail(err, KM_ELIMIT, "%d requests wait already, and the queue holds %d: try again later",
                       e->sched.waiting.n, e->o.max_waiting);
    struct seq *q;
    int rc = eng_make(e, r, &q, err);
    if (rc)
        return rc;
    eng_add(e, q);
    *id = q->id;
    return 0;
}

void eng_cancel(struct eng *e, uint64_t id, enum eng_finish finish)
{
    struct seq *q = *place_of(e, id);
    if (q)
        end(e, q, finish);
}

static struct eng_event *report(struct eng *e, const struct seq *q, enum eng_finish finish, int64_t at)
{
    struct eng_event *v = &e->events.v[e->events.n++];
    v->id = q->id;
    v->user = q->user;
    v->has_token = false;
    v->finish = finish;
    v->stop_id = -1;
    v->n_prompt = q->n_prompt;
    v->n_output = seq_output(q);
    v->n_cached = q->n_cached;
    v->n_cached_pool = q->n_cached_pool;
    v->n_preempted = q->n_preempted;
    v->arrived_ns = q->arrived_ns;
    v->scheduled_ns = q->scheduled_ns;
    v->now_ns = at;
    return v;
}

static void admit(struct eng *e)
{
    int64_t at = now(e);
    for (struct seq *q; (q = sch_next(&e->sched));) {
        int external = e->port ? xf_lookup(&e->xf, q) : 0;
        if (sch_admit(&e->sched, q, external) == SCH_FULL)
            return;
        if (q->scheduled_ns < 0)
            q->scheduled_ns = at;
        if (e->port)
            xf_admitted(&e->xf, q);
    }
}

/* The scheduled rows of q as row r of the batch. */
static void lay_out(struct eng *e, const struct seq *q, struct batch *b)
{
    int block = e->o.block_size, r = b->n_reqs++, upto = q->n_computed + q->n_now;
    memcpy(e->tokens + b->n_tokens, q->tokens + q->n_computed, (size_t)q->n_now * sizeof *e->tokens);
    for (int pos = q->n_computed; pos < upto; pos++, b->n_tokens++) {
        e->positions[b->n_tokens] = pos;
        e->slots[b->n_tokens] = q->pages[pos / block] * block + pos % block;
    }
    e->q_start[b->n_reqs] = b->n_tokens;
    e->kv_len[r] = upto;
    int32_t *row = e->table + (size_t)r * (size_t)e->max_blocks;
    memcpy(row, q->pages, (size_t)q->n_pages * sizeof *row);
    for (int i = q->n_pages; i < e->filled[r]; i++)
        row[i] = -1;
    e->filled[r] = q->n_pages;
    if (upto < q->n_tokens)
        return;
    const struct smp_params *p = &q->sampling;
    bool history = p->presence != 0 || p->frequency != 0 || p->repetition != 1;
    e->rows[b->n_samples++] = (struct smp_row){.p = *p,
                                               .row = b->n_tokens - 1,
                                               .step = (uint64_t)seq_output(q),
                                               .history = history ? q->tokens : NULL,
                                               .n_history = history ? q->n_tokens : 0,
                                               .n_prompt = q->n_prompt,
                                               .banned = q->ends,
                                               .n_banned = seq_output(q) < q->min_tokens ? q->n_ends : 0};
}

static struct batch build(struct eng *e)
{
    struct batch b = {.tokens = e->tokens,
                      .positions = e->positions,
                      .slots = e->slots,
                      .q_start = e->q_start,
                      .kv_len = e->kv_len,
                      .block_table = e->table,
                      .max_blocks = e->max_blocks,
                      .samples = e->rows};
    for (const struct seq *q = e->sched.running.head; q; q = q->next)
        if (q->n_now)
            lay_out(e, q, &b);
    return b;
}

/* Whether the newest token ends q. An end token, which below min_tokens was banned, wins over the length, as in vLLM. */
static enum eng_finish verdict(const struct seq *q, int32_t token)
{
    for (int i = 0; i < q->n_ends; i++)
        if (q->ends[i] == token)
            return ENG_STOP;
    return seq_output(q) >= q->max_tokens ? ENG_LENGTH : ENG_RUNNING;
}

/* The step ran: progress for all of its requests, and an event for each that was sampled. */
static void collect(struct eng *e)
{
    const struct smp_result *result = e->results;
    int64_t at = now(e);
    for (struct seq *q = e->sched.running.head, *next; q; q = next) {
        next = q->next;
        if (!q->n_now)
            continue;
        bool sampled = q->n_computed + q->n_now == q->n_tokens;
        if (sampled)
            q->tokens[q->n_tokens++] = result->id;
        sch_computed(&e->sched, q);
        if (e->port)
            xf_store(&e->xf, q);
        if (!sampled)
            continue;
        enum eng_finish finish = verdict(q, result->id);
        struct eng_event *v = report(e, q, finish, at);
        v->has_token = true;
        v->token = *result++;
        v->stop_id = finish == ENG_STOP ? v->token.id : -1;
        e->n.generated_tokens++;
        if (v->n_output == 1)
            e->n.prompt_tokens += q->n_prompt;
        if (finish != ENG_RUNNING)
            end(e, q, finish);
    }
}

/* The step failed: its requests end with an error, and with the device gone all others too. */
static void fail_step(struct eng *e, int rc)
{
    int64_t at = now(e);
    e->dead = rc == KM_EDEVICE;
    struct seq_list *const lists[] = {&e->sched.running, &e->sched.loading, &e->sched.waiting};
    for (int i = 0; i < 3; i++)
        for (struct seq *q = lists[i]->head, *next; q; q = next) {
            next = q->next;
            if (!q->n_now && !e->dead)
                continue;
            report(e, q, ENG_ERROR, at);
            end(e, q, ENG_ERROR);
        }
}

int eng_step(struct eng *e, struct eng_events *out, struct km_err *err)
{
    e->events.n = 0;
    e->events.stalled = false;
    if (e->port && e->xf.n_open)
        xf_poll(&e->xf);
    if (e->dead) {
        fail_step(e, KM_EDEVICE);
        e->events.stalled = !eng_idle(e);
        *out = e->events;
        return km_fail(err, KM_EDEVICE, "the %s device failed: start the engine again", e->backend->name);
    }
    sch_begin(&e->sched);
    admit(e);
    struct batch b = build(e);
    if (!b.n_tokens) {
        e->events.stalled = !eng_idle(e);
        *out = e->events;
        return 0;
    }
    uint64_t ticket;
    int rc = e->backend->step(e->be, &b, &ticket, err);
    if (!rc)
        rc = e->backend->wait(e->be, ticket, e->results, err);
    if (rc)
        fail_step(e, rc);
    else {
        e->n.steps++;
        e->n.computed_tokens += b.n_tokens;
        collect(e);
    }
    *out = e->events;
    return rc;
}

bool eng_idle(const struct eng *e)
{
    return !sch_alive(&e->sched) && !e->xf.n_open;
}

int eng_reset_cache(struct eng *e, bool external, struct km_err *err)
{
    /* Without requests only stores can hold pages, and they end by themselves. */
    for (int64_t until = km_now_ns() + 10 * (int64_t)1000000000; e->xf.n_open; nap()) {
        xf_poll(&e->xf);
        if (sch_alive(&e->sched) || km_now_ns() > until)
            break;
    }
    struct pg_counts c = pg_counts(e->sched.pages);
    int used = c.pages - c.free - c.lru;
    if (used)
        return km_fail(err, KM_ELIMIT, "%d requests and %d transfers hold %d blocks: reset when they have ended",
                       sch_alive(&e->sched), e->xf.n_open, used);
    sch_forget(&e->sched);
    if (external && e->port && e->port->reset(e->port->self) < 0)
        return km_fail(err, KM_ELIMIT, "the cache layer kept chunks that are still in use: reset again later");
    return 0;
}

void eng_stats(const struct eng *e, struct eng_stats *out)
{
    struct pg_counts c = pg_counts(e->sched.pages);
    *out = e->n;
    out->running = e->sched.running.n;
    out->waiting = e->sched.waiting.n;
    out->loading = e->sched.loading.n;
    out->pages = c.pages;
    out->pages_used = c.pages - c.free - c.lru;
    out->pages_cached = c.lru;
    out->prefix_queries = e->sched.prefix_queries;
    out->prefix_hits = e->sched.prefix_hits;
    out->preemptions = e->sched.preemptions;
    if (e->port)
        e->port->stats(e->port->self, &out->kv);
    e->backend->stats(e->be, &out->be);
}

const struct eng_opts *eng_options(const struct eng *e)
{
    return &e->o;
}

const struct kv_geom *eng_geom(const struct eng *e)
{
    return &e->geom;
}

const struct mdl *eng_model(const struct eng *e)
{
    return e->m;
}

int eng_check(const struct eng *e, struct km_err *err)
{
    int rc = sch_check(&e->sched, err), n = 0;
    if (!rc && e->port)
        rc = xf_check(&e->xf, err);
    for (uint64_t b = 0; b <= e->by_id_mask && !rc; b++)
        for (const struct seq *q = e->by_id[b]; q && !rc; q = q->chain, n++)
            if ((q->id & e->by_id_mask) != b)
                rc = km_fail(err, KM_EINVAL, "request %llu is in the wrong place of the table of ids",
                             (unsigned long long)q->id);
    if (!rc && n != sch_alive(&e->sched))
        rc = km_fail(err, KM_EINVAL, "%d requests have ids, %d are on lists", n, sch_alive(&e->sched));
    return rc;
}
