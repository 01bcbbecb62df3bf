/* The step loop (poll transfers, schedule, submit, retire, report), and opening, closing and checking the engine.
 *
 * At most one step is in flight between calls. Within eng_step there can be two, because the next step is submitted
 * before the older one is retired.
 *
 * eng_open allocates all buffers, and eng_submit one block of memory per request, so a step allocates nothing. sched.c
 * assigns rows and pages, connector.c calls the cache layer, and the backend computes. */
#include "engine/engine.h"

#include "base/clock.h"
#include "base/mem.h"
#include "base/min.h"
#include "engine/connector.h"
#include "engine/engine_internal.h"
#include "engine/planner.h"
#include "engine/step.h"

#include <limits.h>
#include <stdatomic.h>
#include <string.h>
#include <time.h>

struct eng {
    struct eng_opts o;             /* resolved */
    const struct mdl *m;
    const struct backend *backend;
    struct be *be;
    const struct kv_port *port;    /* NULL: no cache layer */
    bool attached;                 /* port->attach has succeeded */
    struct kv_geom geom;
    struct sch sched;
    struct connector con;          /* unused without a port */
    struct pln planner;            /* unused without a port */

    _Atomic uint64_t last_id;
    struct seq **by_id;            /* [by_id_mask + 1] hash table of the requests, with chaining (seq.chain) */
    uint64_t by_id_mask;

    int max_blocks;                /* most blocks of one request */
    struct step steps[2];          /* the second one is used with async scheduling only */
    int oldest, n_in_flight;       /* steps[oldest] is in flight if n_in_flight is 1 or 2, the other one if it is 2 */
    struct seq *ended_in_flight;   /* requests that ended while a step's arrays pointed into them */
    struct step_times times;
    int64_t last_retired_ns;
    struct smp_result *results;    /* [max_num_seqs] of the step that is being retired */
    struct eng_events events;

    bool dead;                     /* the device failed */
    struct eng_stats counters;     /* eng_stats fills in the other members */
};

static int64_t now(const struct eng *e)
{
    return e->backend->now ? e->backend->now(e->be) : km_now_ns();
}

/* The backend's copy functions, in the form that the port expects. */
static int copier_copy(void *self, enum kv_dir dir, struct kv_copy *c, int n, uint64_t after, uint64_t *ticket,
                       struct km_err *err)
{
    struct eng *e = self;
    return e->backend->copy(e->be, dir, c, n, after, ticket, err);
}

static int copier_poll(void *self, uint64_t ticket)
{
    struct eng *e = self;
    return e->backend->poll(e->be, ticket);
}

static int copier_register(void *self, void *p, size_t size, struct km_err *err)
{
    struct eng *e = self;
    return e->backend->host_register(e->be, p, size, err);
}

static void copier_unregister(void *self, void *p, size_t size)
{
    struct eng *e = self;
    e->backend->host_unregister(e->be, p, size);
}

static int64_t copier_now(void *self)
{
    return now(self);
}

static struct kv_copier copier_of(struct eng *e)
{
    bool registers = e->backend->host_register != NULL;
    return (struct kv_copier){.self = e,
                              .copy = copier_copy,
                              .poll = copier_poll,
                              .host_register = registers ? copier_register : NULL,
                              .host_unregister = registers ? copier_unregister : NULL,
                              .now = copier_now,
                              .threads = e->backend->threads,
                              .payload = !e->backend->no_payload};
}

/* Resolves max_model_len and num_blocks against the KV pool that the backend has. */
static int resolve_lengths(struct eng_opts *o, const struct kv_geom *g, const struct mdl_config *c, struct km_err *err)
{
    int64_t capacity = (int64_t)g->n_pages * o->block_size;
    if (g->n_pages < 1 || capacity > INT_MAX)
        return km_fail(err, KM_ELIMIT, "the KV pool has %d blocks of %d tokens: raise the memory limit, or set "
                       "--num-gpu-blocks-override", g->n_pages, o->block_size);
    if (o->max_model_len > capacity)
        return km_fail(err, KM_ELIMIT,
                       "--max-model-len is %d, but the KV pool holds %lld tokens (%d blocks of %d): lower "
                       "--max-model-len, or raise the memory limit",
                       o->max_model_len, (long long)capacity, g->n_pages, o->block_size);
    if (!o->max_model_len)
        o->max_model_len = km_min(c->max_pos, (int)capacity);
    if (o->max_model_len < 2)
        return km_fail(err, KM_ELIMIT,
                       "max_model_len is %d, but the prompt and the output need at least one token each",
                       o->max_model_len);
    o->num_blocks = g->n_pages;
    return 0;
}

static int alloc_buffers(struct eng *e, struct km_err *err)
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
        return km_fail(err, KM_ENOMEM, "no memory for the records of %zu requests: lower --max-num-seqs", alive);
    for (int i = 0; i <= e->backend->async_sched; i++) {
        int rc = step_init(&e->steps[i], e->o.max_num_batched_tokens, e->o.max_num_seqs, e->max_blocks, e->o.block_size,
                         err);
        if (rc)
            return rc;
    }
    return 0;
}

/* The options for the backend. Also resolves the options in o that do not depend on the KV pool. */
static struct be_opts backend_options(struct eng_opts *o, const struct mdl_config *c)
{
    if (o->dtype == ENG_DTYPE_AUTO)
        o->dtype = c->dtype == KM_F32 ? KM_F32 : KM_BF16;
    /* More requests cannot run at once, because each one has at least one row per step. */
    o->max_num_seqs = km_min(o->max_num_seqs, o->max_num_batched_tokens);
    int longest = o->max_model_len ? o->max_model_len : c->max_pos;
    if (!o->max_model_len && o->num_blocks)
        longest = km_min(longest, o->num_blocks * o->block_size);
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
        return km_fail(err, KM_EINVAL, "the %s backend cannot plan its memory", backend->name);
    struct be_opts b = backend_options(o, c);
    rc = backend->plan(out, &b, m, err);
    return rc ? rc : resolve_lengths(o, &out->geom, c, err);
}

static int open_engine(struct eng *e, struct km_err *err)
{
    const struct mdl_config *c = mdl_config(e->m);
    int rc = eng_check_options(&e->o, c, e->port, err);
    if (rc)
        return rc;
    struct be_opts b = backend_options(&e->o, c);
    rc = e->backend->open(&e->be, &b, e->m, &e->geom, err);
    if (!rc)
        rc = resolve_lengths(&e->o, &e->geom, c, err);
    if (rc)
        return rc;
    e->max_blocks = (e->o.max_model_len + e->o.block_size - 1) / e->o.block_size;
    rc = alloc_buffers(e, err);
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
    pln_init(&e->planner, (enum pln_mode)e->o.kv_planner, e->o.block_size, e->port->chunk_size,
             e->o.max_num_batched_tokens);
    con_init(&e->con, e->port, &e->sched, &e->planner, e->max_blocks);
    rc = mdl_fingerprint(e->m, &e->geom.model, err);
    if (rc)
        return rc;
    struct kv_copier copier = copier_of(e);
    rc = e->port->attach(e->port->self, &e->geom, &copier, err);
    e->attached = !rc;
    return rc;
}

int eng_open(struct eng **out, const struct eng_opts *o, const struct mdl *m, const struct backend *backend,
             const struct kv_port *port, struct km_err *err)
{
    struct eng *e = km_calloc(1, sizeof *e);
    if (!e)
        return km_fail(err, KM_ENOMEM, "no memory for an engine object");
    e->o = *o;
    e->m = m;
    e->backend = backend;
    e->port = port;
    int rc = open_engine(e, err);
    if (rc) {
        eng_close(e);
        return rc;
    }
    *out = e;
    return 0;
}

/* The link in the hash table that points to the request. If there is no such request, the link is NULL and the last one
 * of its bucket. */
static struct seq **find_link(struct eng *e, uint64_t id)
{
    struct seq **at = &e->by_id[id & e->by_id_mask];
    while (*at && (*at)->id != id)
        at = &(*at)->chain;
    return at;
}

/* Ends a request. If a step in flight has rows of the request, the request is freed only when that step is retired. */
static void end_seq(struct eng *e, struct seq *q, enum eng_finish finish)
{
    e->counters.finished[finish]++;
    if (e->port)
        con_close_seq(&e->con, q);
    bool in_flight = q->n_rows && e->n_in_flight;
    sch_remove(&e->sched, q);
    *find_link(e, q->id) = q->chain;
    if (in_flight) {
        q->next = e->ended_in_flight;
        e->ended_in_flight = q;
    } else {
        seq_free(q);
    }
}

static void end_all(struct eng *e, struct seq_list *l)
{
    while (l->head)
        end_seq(e, l->head, ENG_ABORT);
}

/* Gives the open transfers two seconds to finish, so that the cache layer keeps what is being stored. After that the
 * cache layer ends them itself. */
static void detach(struct eng *e)
{
    for (int64_t until = km_now_ns() + 2 * (int64_t)1000000000; e->con.n_open && km_now_ns() < until;) {
        con_poll(&e->con);
        if (e->con.n_open)
            nanosleep(&(struct timespec){.tv_nsec = 50000}, NULL);
    }
    e->port->detach(e->port->self);
    con_deinit(&e->con);
}

/* Waits for the oldest step in flight. The step is then no longer in flight, and its results are in e->results. */
static int wait_oldest(struct eng *e, struct km_err *err)
{
    struct step *s = &e->steps[e->oldest];
    int rc = e->backend->wait(e->be, s->ticket, e->results, err);
    e->con.retired = s->ticket;
    e->oldest ^= e->backend->async_sched;
    e->n_in_flight--;
    /* A request in this list ended before a newer step was submitted, so only the step that just finished had its
     * rows. */
    for (struct seq *q; (q = e->ended_in_flight);) {
        e->ended_in_flight = q->next;
        seq_free(q);
    }
    return rc;
}

void eng_close(struct eng *e)
{
    if (!e)
        return;
    while (e->n_in_flight)
        wait_oldest(e, NULL);
    end_all(e, &e->sched.running);
    end_all(e, &e->sched.loading);
    end_all(e, &e->sched.waiting);
    if (e->attached)
        detach(e);
    if (e->be)
        e->backend->close(e->be);
    pg_free(e->sched.pages);
    px_free(e->sched.prefix);
    km_free(e->by_id);
    step_deinit(&e->steps[0]);
    step_deinit(&e->steps[1]);
    km_free(e->results);
    km_free(e->events.v);
    km_free(e);
}

int eng_prepare(struct eng *e, const struct eng_request *r, struct seq **out, struct km_err *err)
{
    int rc = seq_new(out, r, &e->o, mdl_config(e->m), err);
    if (rc)
        return rc;
    (*out)->id = atomic_fetch_add(&e->last_id, 1) + 1;
    if (!e->backend->now)
        (*out)->arrived_ns = km_now_ns();
    return 0;
}

void eng_enqueue(struct eng *e, struct seq *q)
{
    if (e->backend->now)
        q->arrived_ns = now(e);
    struct seq **at = &e->by_id[q->id & e->by_id_mask];
    q->chain = *at;
    *at = q;
    if (e->port)
        con_open_seq(&e->con, q);
    sch_add(&e->sched, q);
}

int eng_submit(struct eng *e, const struct eng_request *r, uint64_t *id, struct km_err *err)
{
    if (e->dead)
        return km_fail(err, KM_EDEVICE, "the %s device failed: restart the engine", e->backend->name);
    if (e->sched.waiting.n >= e->o.max_waiting)
        return km_fail(err, KM_ELIMIT, "%d requests are waiting and the queue holds at most %d: try again later",
                       e->sched.waiting.n, e->o.max_waiting);
    struct seq *q;
    int rc = eng_prepare(e, r, &q, err);
    if (rc)
        return rc;
    eng_enqueue(e, q);
    *id = q->id;
    return 0;
}

void eng_cancel(struct eng *e, uint64_t id, enum eng_finish finish)
{
    struct seq *q = *find_link(e, id);
    if (q)
        end_seq(e, q, finish);
}

/* Adds an event without a token. The array is long enough for one event of every request. */
static struct eng_event *add_event(struct eng *e, const struct seq *q, enum eng_finish finish, int64_t at)
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
    if (e->port)
        con_schedule_fronts(&e->con, at); /* before the requests that arrived later */
    for (struct seq *q; (q = sch_next_waiting(&e->sched));) {
        int from = 0, to = 0;
        if (e->port && con_plan(&e->con, q, &from, &to) == KV_NOT_YET) {
            sch_pass_over(&e->sched, q);
            continue;
        }
        if (sch_admit(&e->sched, q, from, to) == ADMIT_FULL)
            break;
        if (q->scheduled_ns < 0)
            q->scheduled_ns = at;
        if (e->port)
            con_load(&e->con, q, at);
    }
    /* again, for the loads that have just begun */
    if (e->port)
        con_schedule_fronts(&e->con, at);
}

/* Schedules a step and submits it to the backend, if it has rows. */
static int submit_step(struct eng *e, struct km_err *err)
{
    sch_begin_step(&e->sched);
    admit(e);
    struct step *s = &e->steps[(e->oldest + e->n_in_flight) % 2];
    step_fill(s, &e->sched);
    if (!s->batch.n_tokens)
        return 0;
    s->submitted_ns = now(e);
    int rc = e->backend->step(e->be, &s->batch, &s->ticket, err);
    if (rc)
        return rc;
    e->con.submitted = s->ticket;
    e->counters.async_steps += e->n_in_flight;
    e->n_in_flight++;
    return 0;
}

/* Returns whether and why q ends with `token`, its last one. An end token takes precedence over the length, as in vLLM.
 * Before min_tokens the sampler bans end tokens. */
static enum eng_finish finish_after(const struct seq *q, int32_t token)
{
    for (int i = 0; i < q->n_end_ids; i++)
        if (q->end_ids[i] == token)
            return ENG_STOP;
    return seq_output(q) >= q->max_tokens ? ENG_LENGTH : ENG_RUNNING;
}

/* The backend could not sample q's row. Discards the row, and also q's row in the next step if that step is in flight,
 * because it was computed from a wrong token. q's row is then scheduled again, in a step that no other step follows
 * early. */
static void discard_row(struct eng *e, struct seq *q)
{
    if (q->n_rows && e->n_in_flight)
        e->steps[e->oldest].req_ids[q->batch_index] = 0;
    q->by_host = true;
    sch_discard_rows(q);
}

/* Reports the token that was sampled for q, and ends q if it was the last one. */
static void report_token(struct eng *e, struct seq *q, const struct smp_result *result, int64_t at)
{
    enum eng_finish finish = finish_after(q, result->id);
    struct eng_event *v = add_event(e, q, finish, at);
    v->has_token = true;
    v->token = *result;
    v->stop_id = finish == ENG_STOP ? result->id : -1;
    e->counters.generated_tokens++;
    if (v->n_output == 1)
        e->counters.prompt_tokens += q->n_prompt;
    if (finish != ENG_RUNNING)
        end_seq(e, q, finish);
}

/* Records the progress of each request of the step that is still alive, and reports each sampled token. */
static void apply_results(struct eng *e, const struct step *s)
{
    const struct batch *b = &s->batch;
    int64_t at = now(e);
    for (int r = 0, sample = 0; r < b->n_reqs; r++) {
        int rows = b->q_start[r + 1] - b->q_start[r];
        bool sampled = sample < b->n_samples && b->samples[sample].row == b->q_start[r + 1] - 1;
        const struct smp_result *result = sampled ? &e->results[sample++] : NULL;
        struct seq *q = s->req_ids[r] ? *find_link(e, s->req_ids[r]) : NULL;
        if (!q || (result && result->id < 0)) {
            e->counters.wasted_rows += rows;
            if (q)
                discard_row(e, q);
            continue;
        }
        e->counters.computed_tokens += rows;
        if (result) {
            q->tokens[q->n_tokens++] = result->id;
            q->by_host = result->by_host;
        }
        sch_retire_rows(&e->sched, q);
        if (e->port)
            con_store(&e->con, q);
        if (result)
            report_token(e, q, result, at);
    }
}

/* The time when the device started s, the oldest step in flight: its submission, or the end of the step before it. */
static int64_t started_ns(const struct eng *e, const struct step *s)
{
    return s->submitted_ns > e->last_retired_ns ? s->submitted_ns : e->last_retired_ns;
}

/* Waits for the oldest step in flight, records how long it took, and applies its results. */
static int retire_step(struct eng *e, struct km_err *err)
{
    const struct step *s = &e->steps[e->oldest];
    int rc = wait_oldest(e, err);
    if (rc)
        return rc;
    int64_t at = now(e);
    int64_t took = at - started_ns(e, s);
    if (s->is_async_decode)
        step_times_add(&e->times, s, took);
    if (e->port)
        pln_add_step(&e->planner, s->batch.n_tokens, took);
    e->last_retired_ns = at;
    e->counters.steps++;
    apply_results(e, s);
    return 0;
}

/* A step failed. Ends the requests of all steps in flight with an error; if the device failed, ends all requests. */
static void fail_requests(struct eng *e, int rc)
{
    while (e->n_in_flight)
        wait_oldest(e, NULL);
    int64_t at = now(e);
    e->dead = rc == KM_EDEVICE;
    struct seq_list *const lists[] = {&e->sched.running, &e->sched.loading, &e->sched.waiting};
    for (int i = 0; i < 3; i++)
        for (struct seq *q = lists[i]->head, *next; q; q = next) {
            next = q->next;
            if (!q->n_rows && !q->n_rows_before && !e->dead)
                continue;
            add_event(e, q, ENG_ERROR, at);
            end_seq(e, q, ENG_ERROR);
        }
}

int eng_step(struct eng *e, struct eng_events *out, struct km_err *err)
{
    e->events.n = 0;
    e->events.stalled = false;
    e->events.busy_until_ns = 0;
    if (e->port && e->con.n_open)
        con_poll(&e->con);
    if (e->dead) {
        fail_requests(e, KM_EDEVICE);
        e->events.stalled = !eng_idle(e);
        *out = e->events;
        return km_fail(err, KM_EDEVICE, "the %s device failed: restart the engine", e->backend->name);
    }
    bool was_in_flight = e->n_in_flight;
    const struct step *s = &e->steps[e->oldest];
    int rc = 0;
    /* If a step is in flight, the next one is submitted before it is retired only if async scheduling allows that. */
    if (!was_in_flight || (s->is_async_decode && sch_can_schedule_async(&e->sched)))
        rc = submit_step(e, err);
    /* A step that this call submitted remains in flight if the next call may submit another step before retiring it. */
    if (!rc && !e->n_in_flight)
        e->events.stalled = !eng_idle(e);
    else if (!rc && (was_in_flight || !s->is_async_decode || !e->backend->async_sched))
        rc = retire_step(e, err);
    if (rc)
        fail_requests(e, rc);
    s = &e->steps[e->oldest];
    if (e->n_in_flight && s->is_async_decode && !e->backend->now) {
        int64_t ns = step_times_estimate(&e->times, s);
        e->events.busy_until_ns = ns ? started_ns(e, s) + ns : 0;
    }
    *out = e->events;
    return rc;
}

bool eng_idle(const struct eng *e)
{
    return !sch_n_requests(&e->sched) && !e->con.n_open && !e->n_in_flight;
}

int eng_reset_cache(struct eng *e, bool external, struct km_err *err)
{
    if (e->port && e->con.n_open)
        con_poll(&e->con);
    struct pg_counts c = pg_counts(e->sched.pages);
    int used = c.pages - c.free - c.lru, requests = sch_n_requests(&e->sched);
    if (e->con.n_open && !requests)
        return 1; /* the transfers of requests that ended finish by themselves */
    if (used)
        return km_fail(err, KM_ELIMIT,
                       "%d requests and %d transfers use %d blocks: reset the cache when they have ended", requests,
                       e->con.n_open, used);
    sch_evict_cached(&e->sched);
    int rc = external && e->port ? e->port->reset(e->port->self) : 0;
    return rc < 0 ? km_fail(err, KM_ELIMIT,
                            "the cache layer could not drop the chunks that are in use: reset the cache again later")
                  : rc;
}

void eng_step_stats(const struct eng *e, struct eng_stats *out)
{
    struct pg_counts c = pg_counts(e->sched.pages);
    memcpy(out, &e->counters, offsetof(struct eng_stats, kv));
    out->running = e->sched.running.n;
    out->waiting = e->sched.waiting.n;
    out->loading = e->sched.loading.n;
    out->pages = c.pages;
    out->pages_used = c.pages - c.free - c.lru;
    out->pages_cached = c.lru;
    out->prefix_queries = e->sched.prefix_queries;
    out->prefix_hits = e->sched.prefix_hits;
    out->preemptions = e->sched.preemptions;
    out->abandoned_loads = e->con.abandoned_loads;
    out->overlapped_rows = e->con.overlapped_rows;
    e->backend->stats(e->be, &out->be);
}

void eng_port_stats(const struct eng *e, struct kv_port_stats *out)
{
    if (e->port)
        e->port->stats(e->port->self, out);
    else
        *out = (struct kv_port_stats){0};
}

void eng_stats(const struct eng *e, struct eng_stats *out)
{
    eng_step_stats(e, out);
    eng_port_stats(e, &out->kv);
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

/* Checks that the rows recorded in the requests are those of the step in flight. */
static int check_in_flight(const struct eng *e, struct km_err *err)
{
    const struct step *s = &e->steps[e->oldest];
    if (e->n_in_flight > 1)
        return km_fail(err, KM_EINVAL, "%d steps are in flight between calls", e->n_in_flight);
    const struct seq_list *const lists[] = {&e->sched.running, &e->sched.loading};
    for (int i = 0; i < 2; i++)
        for (const struct seq *q = lists[i]->head; q; q = q->next) {
            bool in = e->n_in_flight && q->batch_index < s->batch.n_reqs && s->req_ids[q->batch_index] == q->id;
            int rows = in ? s->batch.q_start[q->batch_index + 1] - s->batch.q_start[q->batch_index] : 0;
            if (q->n_rows_before || q->n_rows != rows)
                return km_fail(err, KM_EINVAL, "request %llu records %d and %d rows in flight, but the step has %d",
                               (unsigned long long)q->id, q->n_rows_before, q->n_rows, rows);
        }
    return 0;
}

int eng_check(const struct eng *e, struct km_err *err)
{
    int rc = sch_check(&e->sched, err), n = 0;
    if (!rc)
        rc = check_in_flight(e, err);
    if (!rc && e->port)
        rc = con_check(&e->con, err);
    for (uint64_t b = 0; b <= e->by_id_mask && !rc; b++)
        for (const struct seq *q = e->by_id[b]; q && !rc; q = q->chain, n++)
            if ((q->id & e->by_id_mask) != b)
                rc = km_fail(err, KM_EINVAL, "request %llu is in the wrong bucket of the hash table of ids",
                             (unsigned long long)q->id);
    if (!rc && n != sch_n_requests(&e->sched))
        rc = km_fail(err, KM_EINVAL,
                     "%d requests are in the hash table of ids, but %d are on the lists of the scheduler", n,
                     sch_n_requests(&e->sched));
    return rc;
}
