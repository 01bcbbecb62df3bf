/* The closed loop of benchmark_serving_multi_turn.py and the arrivals of `vllm bench serve`.
 *
 * vLLM's simulated clients are processes that race for conversations in one queue. Here they are state machines, which
 * schedule_next visits in the order of their indices, so that the assignment of conversations is deterministic.
 *
 * One rule differs on purpose. In vLLM, a client whose request times out or loses its connection exits silently. With
 * early stop that ends the run for all clients, so that a slow server gets less load. Here every failure is handled as
 * vLLM handles a status other than 200: the conversation is dropped and the client continues. */
#include "harness/client/schedule.h"

#include "base/mem.h"
#include "workloads/rng.h"

#include <math.h>
#include <string.h>

enum client_state { IDLE, BUSY /* it has a request in flight */, EXITED };

struct closed_client {
    enum client_state state;
    int64_t due_ns; /* planned send time of its next request */
    int64_t sent;   /* requests sent */
    int *active;    /* [c.active] ring buffer: a deque of its open conversations, whose left end is at `head` */
    int head, n_active;
    struct wl_mt rng; /* of its pauses and its random picks */
};

struct schedule {
    bool closed; /* closed loop, else open loop */
    bool stop;   /* no further requests are sent */
    int in_flight, planned, dropped;
    int64_t begin_ns;
    int next; /* index of the next conversation in the queue; open loop: of the next prompt */

    /* Closed loop. */
    struct schedule_closed c;
    const struct wl_set *set;
    int *queue;    /* [c.n] conversations in the order in which clients take them */
    int *used;     /* [set->n] messages used of each conversation */
    int *finished; /* [n_finished] conversations, in order of completion; room for c.n */
    int n_finished;
    struct closed_client *clients; /* [c.clients] */

    /* Open loop. */
    struct schedule_open o;
    int64_t *offset; /* [o.n] send times relative to begin_ns */
    int64_t free_ns; /* when a request last ended while the concurrency limit was reached */
};

/* The number of messages of conversation v that the run uses. */
static int64_t messages_to_use(const struct schedule *s, int v)
{
    int64_t n = s->set->convs[v].n;
    return s->c.max_turns > 0 && s->c.max_turns < n ? s->c.max_turns : n;
}

/* Requests left in a conversation of which `used` messages are used. At least one, because max_turns is checked only
 * after a request. */
static int requests_left(const struct schedule *s, int v, int64_t used)
{
    if (used >= s->set->convs[v].n)
        return 0;
    int64_t n = (messages_to_use(s, v) - used + 1) / 2;
    return n > 1 ? (int)n : 1;
}

int schedule_closed_new(struct schedule **out, const struct wl_set *set, const struct schedule_closed *o,
                        struct km_err *err)
{
    *out = NULL;
    struct schedule *s = km_calloc(1, sizeof *s);
    if (!s)
        return km_fail(err, KM_ENOMEM, "no memory for a schedule");
    *s = (struct schedule){.closed = true, .set = set, .c = *o};
    s->queue = km_calloc((size_t)o->n, sizeof *s->queue);
    s->finished = km_calloc((size_t)o->n, sizeof *s->finished);
    s->used = km_calloc((size_t)set->n, sizeof *s->used);
    s->clients = km_calloc((size_t)o->clients, sizeof *s->clients);
    bool ok = s->queue && s->finished && s->used && s->clients;
    for (int i = 0; ok && i < o->clients; i++) {
        s->clients[i].active = km_calloc((size_t)o->active, sizeof(int));
        ok = s->clients[i].active != NULL;
        /* A seed per client, as in later versions of vLLM. With the same seed, all clients would pause for the same
         * times. */
        wl_mt_seed(&s->clients[i].rng, (uint32_t)(o->seed + (uint64_t)i + 1));
    }
    if (!ok) {
        schedule_free(s);
        return km_fail(err, KM_ENOMEM, "no memory for a schedule of %d conversations and %d clients", o->n, o->clients);
    }
    for (int i = 0; i < o->n; i++) {
        s->queue[i] = o->order ? o->order[i] : i;
        s->planned += requests_left(s, s->queue[i], 2 * o->first_turn);
    }
    s->c.order = NULL;
    if (o->quota > 0 && o->quota * o->clients < s->planned)
        s->planned = (int)(o->quota * o->clients);
    *out = s;
    return 0;
}

/* A gamma(shape, 1) variate, bit for bit as numpy's legacy generator: Ahrens-Dieter for shape < 1, else
 * Marsaglia-Tsang. */
static double gamma_draw(struct wl_mt *r, double shape)
{
    if (shape == 1)
        return wl_mt_exponential(r, 1);
    if (shape < 1) {
        for (;;) {
            double u = wl_mt_double(r), v = wl_mt_exponential(r, 1);
            double y = u <= 1 - shape ? 0 : -log((1 - u) / shape);
            double x = u <= 1 - shape ? pow(u, 1 / shape) : pow(1 - shape + shape * y, 1 / shape);
            if (x <= v + y)
                return x;
        }
    }
    double b = shape - 1.0 / 3, c = 1 / sqrt(9 * b);
    for (;;) {
        double x, v;
        do {
            x = wl_mt_normal(r);
            v = 1 + c * x;
        } while (v <= 0);
        v = v * v * v;
        double u = wl_mt_double(r);
        if (u < 1 - 0.0331 * x * x * x * x || log(u) < 0.5 * x * x + b * (1 - v + log(v)))
            return b * v;
    }
}

int schedule_open_new(struct schedule **out, const struct schedule_open *o, struct km_err *err)
{
    *out = NULL;
    struct schedule *s = km_calloc(1, sizeof *s);
    if (!s)
        return km_fail(err, KM_ENOMEM, "no memory for a schedule");
    *s = (struct schedule){.o = *o, .planned = o->n};
    s->offset = km_calloc((size_t)o->n, sizeof *s->offset);
    if (!s->offset) {
        schedule_free(s);
        return km_fail(err, KM_ENOMEM, "no memory for a schedule of %d prompts", o->n);
    }
    *out = s;
    if (!(o->rate > 0) || isinf(o->rate) || o->n == 0)
        return 0;
    double *sum = km_calloc((size_t)o->n, sizeof *sum), total = 0;
    if (!sum) {
        schedule_free(s);
        *out = NULL;
        return km_fail(err, KM_ENOMEM, "no memory for a schedule of %d prompts", o->n);
    }
    struct wl_mt r;
    wl_mt_seed(&r, (uint32_t)o->seed);
    for (int i = 0; i < o->n; i++)
        sum[i] = total += gamma_draw(&r, o->burstiness) / (o->rate * o->burstiness);
    /* As in `vllm bench serve`, the last prompt is sent at exactly n/rate. */
    double scale = total > 0 ? o->n / o->rate / total : 0;
    for (int i = 0; i < o->n; i++)
        s->offset[i] = llround(sum[i] * scale * 1e9);
    km_free(sum);
    return 0;
}

void schedule_free(struct schedule *s)
{
    if (!s)
        return;
    for (int i = 0; s->clients && i < s->c.clients; i++)
        km_free(s->clients[i].active);
    km_free(s->clients);
    km_free(s->queue);
    km_free(s->used);
    km_free(s->finished);
    km_free(s->offset);
    km_free(s);
}

void schedule_begin(struct schedule *s, int64_t now_ns)
{
    s->begin_ns = s->free_ns = now_ns;
    for (int i = 0; s->closed && i < s->c.clients; i++)
        s->clients[i].due_ns = now_ns;
}

void schedule_stop(struct schedule *s)
{
    s->stop = true;
}

static void push_right(struct schedule *s, struct closed_client *k, int v)
{
    k->active[(k->head + k->n_active++) % s->c.active] = v;
}

static void push_left(struct schedule *s, struct closed_client *k, int v)
{
    k->head = (k->head + s->c.active - 1) % s->c.active;
    k->active[k->head] = v;
    k->n_active++;
}

/* Removes the client's next conversation from its deque. Round robin takes the right end, where new conversations are
 * pushed; after its answer, an unfinished conversation is pushed at the left end. So the newest conversation is first,
 * and then they rotate. */
static int pick_conversation(struct schedule *s, struct closed_client *k)
{
    int at = s->c.random ? (int)wl_mt_int(&k->rng, 0, k->n_active - 1) : k->n_active - 1;
    int v = k->active[(k->head + at) % s->c.active];
    for (; at < k->n_active - 1; at++)
        k->active[(k->head + at) % s->c.active] = k->active[(k->head + at + 1) % s->c.active];
    k->n_active--;
    return v;
}

/* Chooses the next request of an idle client. False: the client exits. As in vLLM, a client that finds the queue empty
 * when it needs a conversation exits at once, even if it has unfinished ones. */
static bool next_of_client(struct schedule *s, struct closed_client *k, struct schedule_item *out)
{
    bool exits = s->stop || (s->c.quota > 0 && k->sent >= s->c.quota);
    while (!exits && k->n_active < s->c.active) {
        if (s->next == s->c.n) {
            exits = true;
            break;
        }
        int v = s->queue[s->next++];
        s->used[v] = 2 * s->c.first_turn;
        if (s->used[v] < s->set->convs[v].n)
            push_right(s, k, v);
    }
    if (exits || !k->n_active) {
        k->state = EXITED;
        s->stop = s->stop || s->c.early_stop;
        return false;
    }
    int v = pick_conversation(s, k);
    *out = (struct schedule_item){
        .conv = v, .turn = s->used[v] / 2, .client = (int)(k - s->clients), .due_ns = k->due_ns, .ready_ns = k->due_ns};
    s->used[v]++;
    k->sent++;
    k->state = BUSY;
    s->in_flight++;
    return true;
}

static enum schedule_answer closed_next(struct schedule *s, int64_t now, struct schedule_item *out, int64_t *wake)
{
    bool waiting = false;
    for (int i = 0; i < s->c.clients; i++) {
        struct closed_client *k = &s->clients[i];
        if (k->state == IDLE && !s->stop && k->due_ns > now) {
            waiting = true;
            *wake = k->due_ns < *wake ? k->due_ns : *wake;
        } else if (k->state == IDLE && next_of_client(s, k, out))
            return SCHEDULE_SEND;
    }
    if (s->stop &&
        waiting) /* a client later in the loop has just stopped the run, which ends the pauses of the others */
        return closed_next(s, now, out, wake);
    return s->in_flight || waiting ? SCHEDULE_WAIT : SCHEDULE_END;
}

static enum schedule_answer open_next(struct schedule *s, int64_t now, struct schedule_item *out, int64_t *wake)
{
    bool more = s->next < s->o.n && !s->stop;
    if (!more)
        return s->in_flight ? SCHEDULE_WAIT : SCHEDULE_END;
    if (s->o.cap > 0 && s->in_flight >= s->o.cap)
        return SCHEDULE_WAIT;
    int64_t due = s->begin_ns + s->offset[s->next];
    if (due > now) {
        *wake = due;
        return SCHEDULE_WAIT;
    }
    *out = (struct schedule_item){.conv = s->next, .due_ns = due, .ready_ns = due > s->free_ns ? due : s->free_ns};
    s->next++;
    s->in_flight++;
    return SCHEDULE_SEND;
}

enum schedule_answer schedule_next(struct schedule *s, int64_t now_ns, struct schedule_item *out, int64_t *wake_ns)
{
    *wake_ns = INT64_MAX;
    return s->closed ? closed_next(s, now_ns, out, wake_ns) : open_next(s, now_ns, out, wake_ns);
}

void schedule_done(struct schedule *s, const struct schedule_item *it, bool ok, int64_t now_ns)
{
    bool was_full = s->o.cap > 0 && s->in_flight == s->o.cap;
    s->in_flight--;
    if (!s->closed) {
        if (was_full)
            s->free_ns = now_ns;
        return;
    }
    struct closed_client *k = &s->clients[it->client];
    int v = it->conv;
    k->state = IDLE;
    k->due_ns = now_ns;
    if (s->c.rate > 0 && !isinf(s->c.rate))
        k->due_ns += llround(wl_mt_exponential(&k->rng, 1 / s->c.rate) * 1e9);
    s->used[v]++;
    if (!ok)
        s->dropped += s->used[v] < messages_to_use(s, v) ? requests_left(s, v, s->used[v]) : 0;
    else if (s->used[v] >= messages_to_use(s, v))
        s->finished[s->n_finished++] = v;
    else
        push_left(s, k, v);
}

int schedule_planned(const struct schedule *s)
{
    return s->planned;
}

int schedule_dropped(const struct schedule *s)
{
    return s->dropped;
}

const int *schedule_finished(const struct schedule *s, int *n)
{
    *n = s->n_finished;
    return s->finished;
}
