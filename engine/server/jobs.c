/* Life of a request: submit its choices, turn tokens into text, write it out, end.
 *
 * Events find their choice through a slot table and the engine's id, so that an event made before a cancellation
 * and collected after it finds nobody. A stream's head is sent with its first token: until then an error still
 * has its own status, and a client's time to first byte is the time to first token. */
#include "engine/server/jobs.h"

#include "base/clock.h"
#include "base/mem.h"
#include "base/random.h"
#include "engine/server/respond.h"
#include "engine/server/text.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

struct choice {
    struct job *job;
    uint64_t id;       /* the engine's; 0: not submitted */
    size_t slot;
    int index, prompt; /* index of the answer; which prompt */
    bool said_role, done;
    int n_output, n_cached;
    enum eng_finish finish;
    int32_t stop_id;   /* a stop_token_ids entry that ended it; -1 */
    struct txt txt;
    struct rsp_logprobs logprobs;
    struct tok_ids ids; /* generated; of the piece when streaming */
    int64_t first_ns, last_ns;
};

struct job {
    struct jobs *all;
    struct job *next, *prev;
    struct http_conn *c;
    struct api a;
    struct txt_stops stops;
    struct rsp rsp;
    struct choice *choices; /* [n_choices] */
    int n_choices, n_open;
    bool begun; /* the stream's head is out */
};

struct jobs {
    struct jobs_env env;
    struct job *list;
    int n_live;
    struct choice **slots; /* [n_slots]; NULL: free */
    size_t n_slots, *free_slots, n_free;
    uint64_t id_base, n_started, n_seeds;
    struct km_buf line;
};

int jobs_open(struct jobs **out, const struct jobs_env *env, struct km_err *err)
{
    struct jobs *j = km_calloc(1, sizeof *j);
    if (!j)
        return km_fail(err, KM_ENOMEM, "out of memory opening the server");
    j->env = *env;
    j->id_base = (uint64_t)km_wall_ns();
    *out = j;
    return 0;
}

/* Frees the job; engine requests still alive are cancelled. */
static void job_free(struct job *job)
{
    struct jobs *j = job->all;
    for (int i = 0; i < job->n_choices; i++) {
        struct choice *ch = &job->choices[i];
        if (ch->id) {
            if (!ch->done)
                run_cancel(j->env.run, ch->id, ENG_ABORT);
            j->slots[ch->slot] = NULL;
            j->free_slots[j->n_free++] = ch->slot;
        }
        txt_free(&ch->txt);
        rsp_logprobs_free(&ch->logprobs);
        km_free(ch->ids.v);
    }
    km_free(job->choices);
    txt_stops_free(&job->stops);
    rsp_free(&job->rsp);
    api_free(&job->a);
    if (job->prev)
        job->prev->next = job->next;
    else
        j->list = job->next;
    if (job->next)
        job->next->prev = job->prev;
    j->n_live--;
    km_free(job);
}

void jobs_free(struct jobs *j)
{
    if (!j)
        return;
    while (j->list)
        job_free(j->list);
    km_free(j->slots);
    km_free(j->free_slots);
    km_buf_free(&j->line);
    km_free(j);
}

int jobs_live(const struct jobs *j)
{
    return j->n_live;
}

void jobs_gone(void *job)
{
    job_free(job);
}

void jobs_refuse(struct http_conn *c, int status, const char *headers, const char *message, const char *param,
                 const char *code)
{
    struct km_buf b = {0};
    rsp_error(&b, message, rsp_error_type(status), param && *param ? param : NULL, code);
    http_reply(c, status, "application/json", headers, km_buf_str(&b), b.len);
    km_buf_free(&b);
}

/* Ends the job with an error: its own status while nothing was sent, an event of the stream afterwards. */
static void job_fail(struct job *job, int status, const char *why, const char *param)
{
    if (!job->begun) {
        const char *wait = status == 429 ? "Retry-After: 1\r\n" : status == 503 ? "Retry-After: 5\r\n" : "";
        jobs_refuse(job->c, status, wait, why, param, NULL);
    } else {
        struct km_buf *b = &job->all->line;
        km_buf_clear(b);
        km_buf_puts(b, "data: ");
        rsp_error(b, why, rsp_error_type(status), param, NULL);
        km_buf_puts(b, "\n\n");
        http_stream_put(job->c, km_buf_str(b), b->len);
        http_stream_end(job->c, false);
    }
    job_free(job);
}

void jobs_fail_all(struct jobs *j, int status, const char *why)
{
    while (j->list)
        job_fail(j->list, status, why, NULL);
}

static struct rsp_usage job_usage(const struct job *job, const struct choice *only)
{
    struct rsp_usage u = {0};
    for (int i = 0; i < job->n_choices; i++) {
        const struct choice *ch = &job->choices[i];
        if (only && ch != only)
            continue;
        u.completion += ch->n_output;
        if (only || i % (int)job->a.n == 0) {
            u.prompt += (int64_t)job->a.prompts[ch->prompt].n;
            u.cached += ch->n_cached;
        }
    }
    return u;
}

static const char *finish_name(const struct choice *ch)
{
    return !ch->done ? NULL : ch->finish == ENG_STOP ? "stop" : "length";
}

static struct rsp_part part_of(const struct choice *ch, size_t from, size_t n)
{
    const struct job *job = ch->job;
    const struct api *a = &job->a;
    struct rsp_part p = {
        .index = ch->index,
        .text = km_buf_str(&ch->txt.text) + from,
        .n_text = n,
        .finish = finish_name(ch),
        .stop_string = ch->txt.hit >= 0 ? a->stop[ch->txt.hit] : NULL,
        .stop_id = ch->stop_id,
        .logprobs = a->sampling.n_logprobs >= 0 ? &ch->logprobs : NULL,
    };
    if (a->token_ids) {
        static const int32_t none[1];
        p.ids = ch->ids.v ? ch->ids.v : none;
        p.n_ids = ch->ids.n;
        if (!job->begun || !ch->said_role) {
            p.prompt_ids = a->prompts[ch->prompt].v;
            p.n_prompt_ids = a->prompts[ch->prompt].n;
        }
    }
    return p;
}

/* The whole answer. */
static void job_answer(struct job *job)
{
    struct km_buf b = {0};
    struct rsp_part first = part_of(&job->choices[0], 0, 0);
    rsp_open(&b, &job->rsp, &first);
    for (int i = 0; i < job->n_choices; i++) {
        struct rsp_part p = part_of(&job->choices[i], 0, job->choices[i].txt.text.len);
        rsp_choice(&b, &job->rsp, &p);
    }
    struct rsp_usage u = job_usage(job, NULL);
    rsp_close(&b, &u);
    if (km_buf_ok(&b))
        http_reply(job->c, 200, "application/json", "", b.data, b.len);
    else
        jobs_refuse(job->c, 503, "Retry-After: 5\r\n", "out of memory writing the answer", NULL, NULL);
    km_buf_free(&b);
    job_free(job);
}

static void job_stream_end(struct job *job)
{
    struct km_buf *b = &job->all->line;
    km_buf_clear(b);
    if (job->a.include_usage) {
        struct rsp_usage u = job_usage(job, NULL);
        rsp_event_usage(b, &job->rsp, &u);
    }
    km_buf_puts(b, "data: [DONE]\n\n");
    http_stream_put(job->c, km_buf_str(b), b->len);
    http_stream_end(job->c, true);
    job_free(job);
}

/* Sends what the choice has to show; one event, and before the first one a chat's role. */
static void choice_send(struct choice *ch)
{
    struct job *job = ch->job;
    struct km_buf *b = &job->all->line;
    size_t from, n;
    txt_take(&ch->txt, &from, &n);
    struct rsp_part p = part_of(ch, from, n);
    km_buf_clear(b);
    if (!job->begun)
        http_stream_begin(job->c, "text/event-stream; charset=utf-8");
    if (job->rsp.chat && !ch->said_role)
        rsp_event_role(b, &job->rsp, &p);
    job->begun = ch->said_role = true;
    struct rsp_usage u = job_usage(job, ch);
    rsp_event(b, &job->rsp, &p, job->a.continuous_usage ? &u : NULL);
    http_stream_put(job->c, km_buf_str(b), b->len);
    ch->ids.n = 0;
    rsp_logprobs_clear(&ch->logprobs);
}

/* The choice has ended; the job, too, when it was the last. */
static void choice_end(struct choice *ch, enum eng_finish finish)
{
    struct job *job = ch->job;
    ch->done = true;
    ch->finish = finish;
    txt_end(&ch->txt);
    if (job->a.stream)
        choice_send(ch);
    if (--job->n_open)
        return;
    if (job->a.stream)
        job_stream_end(job);
    else
        job_answer(job);
}

static void note_times(struct met *m, const struct choice *ch, const struct eng_event *ev)
{
    met_add(m, MET_E2E, (double)(ev->now_ns - ev->arrived_ns) / 1e9);
    met_add(m, MET_QUEUE, (double)(ev->scheduled_ns - ev->arrived_ns) / 1e9);
    met_add(m, MET_PREFILL, (double)(ch->first_ns - ev->scheduled_ns) / 1e9);
    met_add(m, MET_DECODE, (double)(ev->now_ns - ch->first_ns) / 1e9);
    if (ch->n_output > 1)
        met_add(m, MET_TPOT, (double)(ev->now_ns - ch->first_ns) / 1e9 / (ch->n_output - 1));
    met_add(m, MET_PROMPT, ev->n_prompt);
    met_add(m, MET_GENERATED, ch->n_output);
    met_add(m, MET_CACHED, ev->n_cached);
}

static bool keep_id(struct tok_ids *ids, int32_t id)
{
    if (ids->n == ids->cap) {
        size_t cap = ids->cap ? 2 * ids->cap : 8;
        int32_t *p = km_reallocarray(ids->v, cap, sizeof *p);
        if (!p)
            return false;
        ids->v = p;
        ids->cap = cap;
    }
    ids->v[ids->n++] = id;
    return true;
}

/* The token's bytes into the text; false when a stop string ended it. `last`: it is the token that stopped the
 * engine, whose text is shown only when asked for. */
static bool push_token(struct choice *ch, int32_t id, bool last)
{
    const struct api *a = &ch->job->a;
    const struct tok *t = ch->job->all->env.tok;
    if (!t) {
        char s[32];
        int n = snprintf(s, sizeof s, "%stoken_id:%d", ch->n_output > 1 ? " " : "", id);
        return txt_push(&ch->txt, s, (size_t)n, false);
    }
    if ((last && !a->include_stop) || (a->skip_special && tok_is_special(t, id)))
        return true;
    size_t n = 0;
    const char *s = tok_bytes(t, id, &n);
    return !s || txt_push(&ch->txt, s, n, ch->n_output > a->min_tokens);
}

/* True for a token that the request itself named as a stop. */
static bool own_stop(const struct api *a, int32_t id)
{
    for (int i = 0; i < a->n_stop_ids; i++)
        if (a->stop_ids[i] == id)
            return true;
    return false;
}

void jobs_event(struct jobs *j, const struct eng_event *ev)
{
    size_t slot = (size_t)(uintptr_t)ev->user;
    struct choice *ch = slot < j->n_slots ? j->slots[slot] : NULL;
    if (!ch || ch->id != ev->id || ch->done)
        return; /* its job has ended */
    struct job *job = ch->job;
    if (ev->finish == ENG_ABORT || ev->finish == ENG_ERROR) {
        struct km_err why = {0};
        run_failed(j->env.run, &why);
        ch->done = true;
        job_fail(job, 500, *why.msg ? why.msg : "the engine failed in the step that computed this request", NULL);
        return;
    }
    if (!ev->has_token) {
        if (ev->finish != ENG_RUNNING)
            choice_end(ch, ev->finish);
        return;
    }
    ch->n_output = ev->n_output;
    ch->n_cached = ev->n_cached;
    if (!ch->first_ns) {
        ch->first_ns = ev->now_ns;
        met_add(j->env.met, MET_TTFT, (double)(ev->now_ns - ev->arrived_ns) / 1e9);
    } else {
        met_add(j->env.met, MET_ITL, (double)(ev->now_ns - ch->last_ns) / 1e9);
    }
    ch->last_ns = ev->now_ns;

    bool last = ev->finish == ENG_STOP, go_on = push_token(ch, ev->token.id, last);
    if (job->a.sampling.n_logprobs >= 0)
        rsp_logprobs_add(&ch->logprobs, job->rsp.chat, j->env.tok, job->a.tokens_as_ids, &ev->token);
    if ((job->a.token_ids && !keep_id(&ch->ids, ev->token.id)) || !km_buf_ok(&ch->txt.text) ||
        !km_buf_ok(&ch->logprobs.tokens)) {
        job_fail(job, 503, "out of memory", NULL);
        return;
    }
    if (last && own_stop(&job->a, ev->stop_id))
        ch->stop_id = ev->stop_id;
    if (go_on && ev->finish == ENG_RUNNING) {
        if (job->a.stream)
            choice_send(ch);
        return;
    }
    if (ev->finish == ENG_RUNNING)
        run_cancel(j->env.run, ch->id, ENG_STOP);
    note_times(j->env.met, ch, ev);
    choice_end(ch, go_on ? ev->finish : ENG_STOP);
}

/* A place in the slot table; false without memory. */
static bool take_slot(struct jobs *j, struct choice *ch)
{
    if (!j->n_free) {
        size_t n = j->n_slots ? 2 * j->n_slots : 64;
        struct choice **slots = km_reallocarray(j->slots, n, sizeof *slots);
        if (!slots)
            return false;
        j->slots = slots;
        size_t *list = km_reallocarray(j->free_slots, n, sizeof *list);
        if (!list)
            return false;
        j->free_slots = list;
        for (size_t i = n; i-- > j->n_slots;) {
            j->slots[i] = NULL;
            j->free_slots[j->n_free++] = i;
        }
        j->n_slots = n;
    }
    ch->slot = j->free_slots[j->n_free - 1];
    return true;
}

static int choice_submit(struct jobs *j, struct choice *ch, uint64_t seed, struct km_err *err)
{
    const struct api *a = &ch->job->a;
    const struct tok_ids *prompt = &a->prompts[ch->prompt];
    struct eng_request q = {
        .prompt = prompt->v,
        .n_prompt = (int)prompt->n,
        .max_tokens = (int)a->max_tokens,
        .min_tokens = (int)a->min_tokens,
        .ignore_eos = a->ignore_eos,
        .stop_ids = a->stop_ids,
        .n_stop = a->n_stop_ids,
        .cache_salt = a->cache_salt,
        .sampling = a->sampling,
        .priority = (int)a->priority,
    };
    q.sampling.seed = seed;
    if (!take_slot(j, ch))
        return km_fail(err, KM_ENOMEM, "out of memory queueing the request");
    q.user = (void *)(uintptr_t)ch->slot;
    int rc = run_submit(j->env.run, &q, &ch->id, err);
    if (rc) {
        ch->id = 0;
        return rc;
    }
    j->n_free--;
    j->slots[ch->slot] = ch;
    return 0;
}

static void start_echo(struct choice *ch)
{
    const struct api *a = &ch->job->a;
    if (!a->echo)
        return;
    size_t from = ch->prompt ? a->echo_end[ch->prompt - 1] : 0;
    km_buf_put(&ch->txt.text, km_buf_str(&a->echo_text) + from, a->echo_end[ch->prompt] - from);
}

static int job_init(struct job *job, struct km_err *err)
{
    struct jobs *j = job->all;
    struct api *a = &job->a;
    job->n_choices = a->n_prompts * (int)a->n;
    job->n_open = job->n_choices;
    char id[48];
    const char *prefix = a->kind == API_CHAT ? "chatcmpl" : "cmpl";
    snprintf(id, sizeof id, "%s-%016" PRIx64 "%08" PRIx64, prefix, km_random_at(j->id_base, 1), ++j->n_started);
    rsp_init(&job->rsp, a->kind == API_CHAT, a->stream, id, (int64_t)time(NULL), j->env.model);
    job->choices = km_calloc((size_t)job->n_choices, sizeof *job->choices);
    if (!job->choices || !km_buf_ok(&job->rsp.head)) {
        job->n_choices = 0;
        return km_fail(err, KM_ENOMEM, "out of memory queueing the request");
    }
    int rc = txt_stops_init(&job->stops, a->stop, a->n_stop, a->include_stop, err);
    for (int i = 0; i < job->n_choices; i++) {
        struct choice *ch = &job->choices[i];
        ch->job = job;
        ch->index = i;
        ch->prompt = i / (int)a->n;
        ch->stop_id = -1;
        txt_init(&ch->txt, &job->stops);
        start_echo(ch);
    }
    return rc;
}

void jobs_start(struct jobs *j, struct http_conn *c, struct api *a)
{
    struct job *job = km_calloc(1, sizeof *job);
    if (!job) {
        api_free(a);
        jobs_refuse(c, 503, "Retry-After: 5\r\n", "out of memory queueing the request", NULL, NULL);
        return;
    }
    job->all = j;
    job->c = c;
    job->a = *a;
    job->next = j->list;
    if (j->list)
        j->list->prev = job;
    j->list = job;
    j->n_live++;
    http_hold(c, job);

    struct km_err err = {0};
    int rc = job_init(job, &err);
    uint64_t seed = 0;
    for (int i = 0; !rc && a->max_tokens && i < job->n_choices; i++) {
        int k = i % (int)job->a.n;
        if (k == 0)
            seed = job->a.seeded ? job->a.sampling.seed : km_random_at((uint64_t)j->env.seed ^ km_random_at(j->n_seeds++, 1), 1);
        rc = choice_submit(j, &job->choices[i], seed + (uint64_t)k, &err);
    }
    if (rc) {
        /* The context was checked before, so a limit that is met here is the queue's. */
        int status = rc == KM_EINVAL ? 400 : rc == KM_ELIMIT ? 429 : rc == KM_ENOMEM ? 503 : 500;
        job_fail(job, status, err.msg, NULL);
        return;
    }
    if (!a->max_tokens) /* legal for completions: nothing to generate. The last end answers and frees the job. */
        for (int i = 0, n = job->n_choices; i < n; i++)
            choice_end(&job->choices[i], ENG_LENGTH);
}
