/* The life of a request and the step loop: poll transfers, schedule, run the backend, report.
 *
 * At most one step is in flight between calls, and within eng_step two: the next is given before the older is waited
 * for.
 *
 * All memory is taken at eng_open, one block more for each request at submit: a step allocates nothing. The engine
 * itself decides little: sched.c owns pages and queues, xfer.c the cache layer, the backend the arithmetic. */
#include "engine/engine.h"

#include "base/clock.h"
#include "base/mem.h"
#include "engine/engine_internal.h"
#include "engine/flight.h"
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
    struct flight flights[2];      /* the second is for backends that run ahead */
    int oldest, n_flying;          /* those in flight: flights[oldest], and the other behind it */
    struct seq *ended;             /* requests that ended in flight: the step's arrays point into them */
    struct fl_pace pace;
    int64_t ended_ns;              /* when the last step was seen to end */
    struct smp_result *results;    /* [max_num_seqs] */
    struct eng_events events;

    bool dead;                     /* the device failed */
    struct eng_stats n;            /* the counters; the rest is filled in by eng_stats */
};

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
    size_t r = (size_t)e->o.max_num_seqs, alive = r + (size_t)e->o.max_waiting, ids = 16;
    while (ids < alive)
        ids *= 2;
    e->by_id_mask = ids - 1;
    e->by_id = km_calloc(ids, sizeof *e->by_id);
    e->results = km_calloc(r, sizeof *e->results);
    e->events.v = km_calloc(alive, sizeof *e->events.v);
    e->events.cap = (int)alive;
    if (!e->by_id || !e->results || !e->events.v)
        return km_fail(err, KM_ENOMEM, "no memory for %zu requests", alive);
    for (int i = 0; i <= e->backend->ahead; i++) {
        int rc = fl_take(&e->flights[i], e->o.max_num_batched_tokens, e->o.max_num_seqs, e->max_blocks, e->o.block_size,
                         err);
        if (rc)
            return rc;
    }
    return 0;
}

/* What the backend is asked for; settles what of o does not depend on the pool. */
static struct be_opts backend_options(struct eng_opts *o, const struct mdl_config *c)
{
    if (o->dtype == ENG_DTYPE_AUTO)
        o->dtype = c->dtype == KM_F32 ? KM_F32 : KM_BF16;
    o->max_num_seqs = min_int(o->max_num_seqs, o->max_num_batched_tokens); /* a decode is a row at least */
    int longest = o->max_model_len ? o->max_model_len : c->max_pos;
    if (!o->max_model_len && o->num_blocks)
        longest = min_int(longest, o->num_blocks * o->block_size);
    return (struct be_opts){.dtype = (enum km_dtype)o->dtype,
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
    int rc = eng_check_options(o, c, NULL, err);
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
    int rc = eng_check_options(&e->o, c, e->port, err);
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
    bool flies = q->n_now && e->n_flying;
    sch_remove(&e->sched, q);
    *place_of(e, q->id) = q->chain;
    if (flies) {
        q->next = e->ended;
        e->ended = q;
    } else {
        seq_free(q);
    }
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

/* Waits for the oldest step in flight, which then is in none. */
static int wait_oldest(struct eng *e, struct km_err *err)
{
    struct flight *f = &e->flights[e->oldest];
    int rc = e->backend->wait(e->be, f->ticket, e->results, err);
    e->oldest ^= e->backend->ahead;
    e->n_flying--;
    for (struct seq *q; (q = e->ended);) { /* nobody has ended since a step was given behind this one */
        e->ended = q->next;
        seq_free(q);
    }
    return rc;
}

void eng_close(struct eng *e)
{
    if (!e)
        return;
    while (e->n_flying)
        wait_oldest(e, NULL);
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
    fl_free(&e->flights[0]);
    fl_free(&e->flights[1]);
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

/* Schedules a step and gives it to the backend, if it has rows. */
static int give(struct eng *e, struct km_err *err)
{
    sch_begin(&e->sched);
    admit(e);
    struct flight *f = &e->flights[(e->oldest + e->n_flying) % 2];
    fl_fill(f, &e->sched);
    if (!f->in.n_tokens)
        return 0;
    f->began = now(e);
    int rc = e->backend->step(e->be, &f->in, &f->ticket, err);
    if (rc)
        return rc;
    e->n.ahead_steps += e->n_flying;
    e->n_flying++;
    return 0;
}

/* Whether the newest token ends q. An end token, which below min_tokens was banned, wins over the length, as in vLLM. */
static enum eng_finish verdict(const struct seq *q, int32_t token)
{
    for (int i = 0; i < q->n_ends; i++)
        if (q->ends[i] == token)
            return ENG_STOP;
    return seq_output(q) >= q->max_tokens ? ENG_LENGTH : ENG_RUNNING;
}

/* A row of q ran that nobody could sample: it counts for nothing, nor does what a step behind made of it. */
static void again(struct eng *e, struct seq *q)
{
    if (q->n_now && e->n_flying)
        e->flights[e->oldest].ids[q->at] = 0;
    q->by_host = true;
    sch_discard(q);
}

/* q was sampled: an event, and perhaps its end. */
static void take_token(struct eng *e, struct seq *q, const struct smp_result *result, int64_t at)
{
    enum eng_finish finish = verdict(q, result->id);
    struct eng_event *v = report(e, q, finish, at);
    v->has_token = true;
    v->token = *result;
    v->stop_id = finish == ENG_STOP ? result->id : -1;
    e->n.generated_tokens++;
    if (v->n_output == 1)
        e->n.prompt_tokens += q->n_prompt;
    if (finish != ENG_RUNNING)
        end(e, q, finish);
}

/* The step ran: progress for those of its requests that are still there, and an event for each that was sampled. */
static void collect(struct eng *e, const struct flight *f)
{
    const struct batch *b = &f->in;
    int64_t at = now(e);
    for (int r = 0, sample = 0; r < b->n_reqs; r++) {
        int rows = b->q_start[r + 1] - b->q_start[r];
        bool sampled = sample < b->n_samples && b->samples[sample].row == b->q_start[r + 1] - 1;
        const struct smp_result *result = sampled ? &e->results[sample++] : NULL;
        struct seq *q = f->ids[r] ? *place_of(e, f->ids[r]) : NULL;
        if (!q || (result && result->id < 0)) {
            e->n.wasted_rows += rows;
            if (q)
                again(e, q);
            continue;
        }
        e->n.computed_tokens += rows;
        if (result) {
            q->tokens[q->n_tokens++] = result->id;
            q->by_host = result->by_host;
        }
        sch_computed(&e->sched, q);
        if (e->port)
            xf_store(&e->xf, q);
        if (result)
            take_token(e, q, result, at);
    }
}

/* When the device came to f, the oldest step in flight: not before the one ahead of it had ended. */
static int64_t reached(const struct eng *e, const struct flight *f)
{
    return f->began > e->ended_ns ? f->began : e->ended_ns;
}

/* The oldest step in flight ends: how long it took, and what came of it. */
static int land(struct eng *e, struct km_err *err)
{
    const struct flight *f = &e->flights[e->oldest];
    int rc = wait_oldest(e, err);
    if (rc)
        return rc;
    int64_t at = now(e);
    if (f->plain)
        fl_note(&e->pace, f, at - reached(e, f));
    e->ended_ns = at;
    e->n.steps++;
    collect(e, f);
    return 0;
}

/* A step failed: the requests of all in flight end with an error, and with the device gone all others too. */
static void fail_steps(struct eng *e, int rc)
{
    while (e->n_flying)
        wait_oldest(e, NULL);
    int64_t at = now(e);
    e->dead = rc == KM_EDEVICE;
    struct seq_list *const lists[] = {&e->sched.running, &e->sched.loading, &e->sched.waiting};
    for (int i = 0; i < 3; i++)
        for (struct seq *q = lists[i]->head, *next; q; q = next) {
            next = q->next;
            if (!q->n_now && !q->n_before && !e->dead)
                continue;
            report(e, q, ENG_ERROR, at);
            end(e, q, ENG_ERROR);
        }
}

int eng_step(struct eng *e, struct eng_events *out, struct km_err *err)
{
    e->events.n = 0;
    e->events.stalled = false;
    e->events.busy_until_ns = 0;
    if (e->port && e->xf.n_open)
        xf_poll(&e->xf);
    if (e->dead) {
        fail_steps(e, KM_EDEVICE);
        e->events.stalled = !eng_idle(e);
        *out = e->events;
        return km_fail(err, KM_EDEVICE, "the %s device failed: start the engine again", e->backend->name);
    }
    bool flying = e->n_flying;
    const struct flight *f = &e->flights[e->oldest];
    int rc = 0;
    if (!flying || (f->plain && sch_can_follow(&e->sched)))
        rc = give(e, err);
    if (!rc && !e->n_flying)
        e->events.stalled = !eng_idle(e);
    else if (!rc && (flying || !f->plain || !e->backend->ahead))
        rc = land(e, err);
    if (rc)
        fail_steps(e, rc);
    f = &e->flights[e->oldest];
    if (e->n_flying && f->plain && !e->backend->now) {
        int64_t takes = fl_guess(&e->pace, f);
        e->events.busy_until_ns = takes ? reached(e, f) + takes : 0;
    }
    *out = e->events;
    return rc;
}

bool eng_idle(const struct eng *e)
{
    return !sch_alive(&e->sched) && !e->xf.n_open && !e->n_flying;
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

/* The rows that requests have in a step are those of the step in flight. */
static int check_flight(const struct eng *e, struct km_err *err)
{
    const struct flight *f = &e->flights[e->oldest];
    if (e->n_flying > 1)
        return km_fail(err, KM_EINVAL, "%d steps are in flight between calls", e->n_flying);
    for (const struct seq *q = e->sched.running.head; q; q = q->next) {
        bool in = e->n_flying && q->at < f->in.n_reqs && f->ids[q->at] == q->id;
        int rows = in ? f->in.q_start[q->at + 1] - f->in.q_start[q->at] : 0;
        if (q->n_before || q->n_now != rows)
            return km_fail(err, KM_EINVAL, "request %llu counts %d and %d rows in flight, the step has %d",
                           (unsigned long long)q->id, q->n_before, q->n_now, rows);
    }
    return 0;
}

int eng_check(const struct eng *e, struct km_err *err)
{
    int rc = sch_check(&e->sched, err), n = 0;
    if (!rc)
        rc = check_flight(e, err);
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
