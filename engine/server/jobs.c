/* The life of a job: submit its choices, turn their tokens into text, answer, end.
 *
 * An event of the engine carries a slot and the engine's request id. The slot's choice gets the event only if it still
 * has this id. An event that was made before its request was cancelled is therefore dropped.
 *
 * The HTTP head of a stream is sent with the first token. Until then a failure has its own status, and a client's time
 * to first byte is its TTFT. */
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

#define NO_MEMORY "the server has no memory for the request; try again later"

struct choice {
    struct job *job;
    uint64_t id; /* of the engine's request; 0: not submitted */
    size_t slot; /* in jobs.slots */
    int index;   /* in the answer */
    int prompt;  /* index of its prompt */
    bool role_sent, done;
    int n_output, n_cached; /* tokens generated; prompt tokens found in the KV pool or the cache layer */
    enum eng_finish finish; /* valid once done */
    int32_t stop_id;        /* the entry of stop_token_ids that ended it; -1: none */
    struct txt txt;
    struct rsp_logprobs logprobs; /* of the tokens that were not sent yet */
    struct tok_ids ids;           /* with return_token_ids: generated ids that were not sent yet */
    int64_t first_ns, last_ns;    /* times of the first and the latest token, by the engine's clock; 0: none */
};

struct job {
    struct jobs *all;
    struct job *next, *prev; /* in jobs.list */
    struct http_conn *c;
    struct api_request a;
    struct txt_stops stops;
    struct rsp rsp;
    struct choice *choices; /* [n_choices] */
    int n_choices, n_open;  /* n_open: choices that have not ended */
    bool stream_begun;      /* the HTTP head of the stream was sent */
};

struct jobs {
    struct jobs_env env;
    struct job *list;
    int n_live;
    struct choice **slots; /* [n_slots]; NULL: free */
    size_t *free_slots;    /* [n_free] indices of free slots */
    size_t n_slots, n_free;
    uint64_t id_base, n_started; /* the ids of answers are derived from these */
    uint64_t n_seeds;            /* number of prompts whose seed was derived from env.seed */
    struct km_buf line;          /* scratch for events of streams */
};

int jobs_open(struct jobs **out, const struct jobs_env *env, struct km_err *err)
{
    struct jobs *j = km_calloc(1, sizeof *j);
    if (!j)
        return km_fail(err, KM_ENOMEM, "out of memory while opening the server");
    j->env = *env;
    j->id_base = (uint64_t)km_wall_ns();
    *out = j;
    return 0;
}

/* Frees the job and cancels those of its engine requests that have not ended. */
static void job_free(struct job *job)
{
    struct jobs *j = job->all;
    for (int i = 0; i < job->n_choices; i++) {
        struct choice *ch = &job->choices[i];
        if (ch->id) {
            if (!ch->done)
                runner_cancel(j->env.runner, ch->id, ENG_ABORT);
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

/* Ends the job with an error: an answer of this status, or an event if the stream has begun. */
static void job_fail(struct job *job, int status, const char *why)
{
    if (!job->stream_begun) {
        const char *retry = status == 429 ? HTTP_RETRY_SOON : status == 503 ? HTTP_RETRY_LATER : "";
        http_reply_error(job->c, status, retry, why, NULL, NULL);
    } else {
        struct km_buf *b = &job->all->line;
        km_buf_clear(b);
        km_buf_puts(b, "data: ");
        rsp_error(b, status, why, NULL, NULL);
        km_buf_puts(b, "\n\n");
        http_stream_put(job->c, km_buf_str(b), b->len);
        http_stream_end(job->c, false);
    }
    job_free(job);
}

void jobs_fail_all(struct jobs *j, int status, const char *why)
{
    while (j->list)
        job_fail(j->list, status, why);
}

/* The usage so far, of one choice or, if `only` is NULL, of the whole job. A prompt counts once for its n choices. */
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

/* The choice as a part of the answer, with text[from, from + n) as its text. */
static struct rsp_part make_part(const struct choice *ch, size_t from, size_t n)
{
    const struct job *job = ch->job;
    const struct api_request *a = &job->a;
    struct rsp_part p = {
        .index = ch->index,
        .text = km_buf_str(&ch->txt.text) + from,
        .n_text = n,
        .finish = finish_name(ch),
        .stop_string = ch->txt.stopped_by >= 0 ? a->stop[ch->txt.stopped_by] : NULL,
        .stop_id = ch->stop_id,
        .logprobs = a->sampling.n_logprobs >= 0 ? &ch->logprobs : NULL,
    };
    if (a->token_ids) {
        static const int32_t none[1];
        p.ids = ch->ids.v ? ch->ids.v : none;
        p.n_ids = ch->ids.n;
        if (!job->stream_begun || !ch->role_sent) {
            p.prompt_ids = a->prompts[ch->prompt].v;
            p.n_prompt_ids = a->prompts[ch->prompt].n;
        }
    }
    return p;
}

/* Answers a job that does not stream, and frees it. */
static void job_answer(struct job *job)
{
    struct km_buf b = {0};
    struct rsp_part first = make_part(&job->choices[0], 0, 0);
    rsp_begin(&b, &job->rsp, &first);
    for (int i = 0; i < job->n_choices; i++) {
        struct rsp_part p = make_part(&job->choices[i], 0, job->choices[i].txt.text.len);
        rsp_choice(&b, &job->rsp, &p);
    }
    struct rsp_usage u = job_usage(job, NULL);
    rsp_end(&b, &u);
    if (km_buf_ok(&b))
        http_reply(job->c, 200, "application/json", "", b.data, b.len);
    else
        http_reply_error(job->c, 503, HTTP_RETRY_LATER, NO_MEMORY, NULL, NULL);
    km_buf_free(&b);
    job_free(job);
}

/* Ends the stream of a job, and frees the job. */
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

/* Sends the text that the choice may show, as one event. A chat's choice first sends an event with its role. */
static void choice_send(struct choice *ch)
{
    struct job *job = ch->job;
    struct km_buf *b = &job->all->line;
    size_t from, n;
    txt_show(&ch->txt, &from, &n);
    struct rsp_part p = make_part(ch, from, n);
    km_buf_clear(b);
    if (!job->stream_begun)
        http_stream_begin(job->c, "text/event-stream; charset=utf-8");
    if (job->rsp.chat && !ch->role_sent)
        rsp_event_role(b, &job->rsp, &p);
    job->stream_begun = ch->role_sent = true;
    struct rsp_usage u = job_usage(job, ch);
    rsp_event(b, &job->rsp, &p, job->a.continuous_usage ? &u : NULL);
    http_stream_put(job->c, km_buf_str(b), b->len);
    ch->ids.n = 0;
    rsp_logprobs_clear(&ch->logprobs);
}

/* Ends the choice. If it was the last one, the job is answered and freed. */
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

/* Counts the latencies and sizes of a choice that has ended. */
static void observe_choice(struct met *m, const struct choice *ch, const struct eng_event *ev)
{
    met_observe(m, MET_E2E, (double)(ev->now_ns - ev->arrived_ns) / 1e9);
    met_observe(m, MET_QUEUE, (double)(ev->scheduled_ns - ev->arrived_ns) / 1e9);
    met_observe(m, MET_PREFILL, (double)(ch->first_ns - ev->scheduled_ns) / 1e9);
    met_observe(m, MET_DECODE, (double)(ev->now_ns - ch->first_ns) / 1e9);
    if (ch->n_output > 1)
        met_observe(m, MET_TPOT, (double)(ev->now_ns - ch->first_ns) / 1e9 / (ch->n_output - 1));
    met_observe(m, MET_PROMPT, ev->n_prompt);
    met_observe(m, MET_GENERATED, ch->n_output);
    met_observe(m, MET_CACHED, ev->n_cached);
}

/* Appends the token's bytes to the text; false if a stop string ended it. is_stop: the engine stopped at this token,
 * whose text belongs to the answer only with include_stop_str_in_output. */
static bool push_token(struct choice *ch, int32_t id, bool is_stop)
{
    const struct api_request *a = &ch->job->a;
    const struct tok *t = ch->job->all->env.tok;
    if (!t) {
        char s[32];
        int n = snprintf(s, sizeof s, "%stoken_id:%d", ch->n_output > 1 ? " " : "", id);
        return txt_push(&ch->txt, s, (size_t)n, false);
    }
    if ((is_stop && !a->include_stop) || (a->skip_special && tok_is_special(t, id)))
        return true;
    size_t n = 0;
    const char *s = tok_bytes(t, id, &n);
    return !s || txt_push(&ch->txt, s, n, ch->n_output > a->min_tokens);
}

/* True if the id is in the request's stop_token_ids. */
static bool is_own_stop(const struct api_request *a, int32_t id)
{
    for (int i = 0; i < a->n_stop_ids; i++)
        if (a->stop_ids[i] == id)
            return true;
    return false;
}

/* Ends the job of a choice whose request failed in the engine. */
static void choice_fail(struct choice *ch)
{
    struct km_err why = {0};
    runner_failed(ch->job->all->env.runner, &why);
    ch->done = true;
    job_fail(ch->job, 500, *why.msg ? why.msg : "the engine failed in a step of this request; send the request again");
}

/* Sets the times of the event's token, and counts its latency. */
static void observe_token(struct choice *ch, const struct eng_event *ev)
{
    struct met *m = ch->job->all->env.met;
    if (ch->first_ns) {
        met_observe(m, MET_ITL, (double)(ev->now_ns - ch->last_ns) / 1e9);
    } else {
        ch->first_ns = ev->now_ns;
        met_observe(m, MET_TTFT, (double)(ev->now_ns - ev->arrived_ns) / 1e9);
    }
    ch->last_ns = ev->now_ns;
}

static void choice_add_token(struct choice *ch, const struct eng_event *ev)
{
    struct job *job = ch->job;
    struct jobs *j = job->all;
    ch->n_output = ev->n_output;
    ch->n_cached = ev->n_cached;
    observe_token(ch, ev);
    bool is_stop = ev->finish == ENG_STOP;
    bool goes_on = push_token(ch, ev->token.id, is_stop);
    if (job->a.sampling.n_logprobs >= 0)
        rsp_logprobs_add(&ch->logprobs, job->rsp.chat, j->env.tok, job->a.tokens_as_ids, &ev->token);
    if ((job->a.token_ids && tok_ids_push(&ch->ids, ev->token.id, NULL)) || !km_buf_ok(&ch->txt.text) ||
        !km_buf_ok(&ch->logprobs.tokens)) {
        job_fail(job, 503, NO_MEMORY);
        return;
    }
    if (is_stop && is_own_stop(&job->a, ev->stop_id))
        ch->stop_id = ev->stop_id;
    if (goes_on && ev->finish == ENG_RUNNING) {
        if (job->a.stream)
            choice_send(ch);
        return;
    }
    if (ev->finish == ENG_RUNNING)
        /* A stop string ended the choice, which the engine cannot know. */
        runner_cancel(j->env.runner, ch->id, ENG_STOP);
    observe_choice(j->env.met, ch, ev);
    choice_end(ch, goes_on ? ev->finish : ENG_STOP);
}

void jobs_handle(struct jobs *j, const struct eng_event *ev)
{
    size_t slot = (size_t)(uintptr_t)ev->user;
    struct choice *ch = slot < j->n_slots ? j->slots[slot] : NULL;
    if (!ch || ch->id != ev->id || ch->done)
        return; /* the choice has ended, or its slot has another choice now */
    if (ev->finish == ENG_ABORT || ev->finish == ENG_ERROR)
        choice_fail(ch);
    else if (ev->has_token)
        choice_add_token(ch, ev);
    else if (ev->finish != ENG_RUNNING)
        choice_end(ch, ev->finish);
}

/* Sets ch->slot to a free slot, which stays free until the choice is submitted; false if there is no memory. */
static bool find_slot(struct jobs *j, struct choice *ch)
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

static int no_memory(struct km_err *err)
{
    return km_fail(err, KM_ENOMEM, NO_MEMORY);
}

static int choice_submit(struct jobs *j, struct choice *ch, uint64_t seed, struct km_err *err)
{
    const struct api_request *a = &ch->job->a;
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
    if (!find_slot(j, ch))
        return no_memory(err);
    q.user = (void *)(uintptr_t)ch->slot;
    int rc = runner_submit(j->env.runner, &q, &ch->id, err);
    if (rc) {
        ch->id = 0;
        return rc;
    }
    j->n_free--;
    j->slots[ch->slot] = ch;
    return 0;
}

/* Begins the text with the prompt, if the request has echo. */
static void put_echo(struct choice *ch)
{
    const struct api_request *a = &ch->job->a;
    if (!a->echo)
        return;
    size_t from = ch->prompt ? a->echo_end[ch->prompt - 1] : 0;
    km_buf_put(&ch->txt.text, km_buf_str(&a->echo_text) + from, a->echo_end[ch->prompt] - from);
}

/* Creates the choices, which have no tokens yet. */
static int job_init(struct job *job, struct km_err *err)
{
    struct jobs *j = job->all;
    struct api_request *a = &job->a;
    job->n_choices = a->n_prompts * (int)a->n;
    job->n_open = job->n_choices;
    char id[48];
    const char *prefix = a->kind == API_CHAT ? "chatcmpl" : "cmpl";
    snprintf(id, sizeof id, "%s-%016" PRIx64 "%08" PRIx64, prefix, km_random_at(j->id_base, 1), ++j->n_started);
    rsp_init(&job->rsp, a->kind == API_CHAT, a->stream, id, (int64_t)time(NULL), j->env.model);
    job->choices = km_calloc((size_t)job->n_choices, sizeof *job->choices);
    if (!job->choices || !km_buf_ok(&job->rsp.head)) {
        job->n_choices = 0;
        return no_memory(err);
    }
    int rc = txt_stops_init(&job->stops, (const char *const *)a->stop, a->n_stop, a->include_stop, err);
    for (int i = 0; i < job->n_choices; i++) {
        struct choice *ch = &job->choices[i];
        ch->job = job;
        ch->index = i;
        ch->prompt = i / (int)a->n;
        ch->stop_id = -1;
        txt_init(&ch->txt, &job->stops);
        put_echo(ch);
    }
    return rc;
}

/* Submits every choice. The n choices of a prompt have consecutive seeds. */
static int job_submit(struct job *job, struct km_err *err)
{
    struct jobs *j = job->all;
    uint64_t seed = 0;
    int rc = 0;
    for (int i = 0; !rc && i < job->n_choices; i++) {
        int k = i % (int)job->a.n;
        if (k == 0)
            seed = job->a.seeded ? job->a.sampling.seed
                                 : km_random_at((uint64_t)j->env.seed ^ km_random_at(j->n_seeds++, 1), 1);
        rc = choice_submit(j, &job->choices[i], seed + (uint64_t)k, err);
    }
    return rc;
}

static void client_gone(void *job)
{
    job_free(job);
}

void jobs_start(struct jobs *j, struct http_conn *c, struct api_request *a)
{
    struct job *job = km_calloc(1, sizeof *job);
    if (!job) {
        api_free(a);
        http_reply_error(c, 503, HTTP_RETRY_LATER, NO_MEMORY, NULL, NULL);
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
    http_hold(c, client_gone, job);

    struct km_err err = {0};
    int rc = job_init(job, &err);
    if (!rc && a->max_tokens)
        rc = job_submit(job, &err);
    if (rc) {
        /* KM_ELIMIT means a full queue, because api_parse has checked the context. */
        int status = rc == KM_EINVAL ? 400 : rc == KM_ELIMIT ? 429 : rc == KM_ENOMEM ? 503 : 500;
        job_fail(job, status, err.msg);
        return;
    }
    if (!a->max_tokens) /* allowed in completions: nothing is generated. The last choice_end frees the job. */
        for (int i = 0, n = job->n_choices; i < n; i++)
            choice_end(&job->choices[i], ENG_LENGTH);
}
