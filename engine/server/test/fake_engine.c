#include "engine/server/test/fake_engine.h"

#include "base/clock.h"
#include "base/mem.h"
#include "engine/runner.h"
#include "engine/server/test/fake_tokenizer.h"

#include <pthread.h>
#include <string.h>
#include <unistd.h>

struct fake fake;
static struct eng_opts opts;
static struct mdl_config config;

void fake_reset(void)
{
    memset(&fake, 0, sizeof fake);
    fake.step_us = 200;
    fake.max_live = 4096;
    fake.temperature = -1;
    fake.max_model_len = 4000;
}

struct eng *fake_eng(void)
{
    opts = (struct eng_opts){.max_model_len = fake.max_model_len, .block_size = 16, .prefix_caching = true};
    config = (struct mdl_config){.vocab = FAKE_VOCAB, .temperature = fake.temperature, .top_p = -1, .top_k = 7};
    return (struct eng *)&opts;
}

const struct eng_opts *eng_options(const struct eng *e)
{
    (void)e;
    return &opts;
}

const struct mdl *eng_model(const struct eng *e)
{
    return (const struct mdl *)e;
}

const struct mdl_config *mdl_config(const struct mdl *m)
{
    (void)m;
    return &config;
}

const char *mdl_dir(const struct mdl *m)
{
    (void)m;
    return NULL;
}

const char *mdl_name(const struct mdl *m)
{
    (void)m;
    return "fake-1";
}

bool mdl_is_dummy(const struct mdl *m)
{
    (void)m;
    return true;
}

bool mdl_fingerprint_known(const struct mdl *m)
{
    (void)m;
    return true;
}

int mdl_fingerprint(const struct mdl *m, struct km_digest *out, struct km_err *err)
{
    (void)m;
    (void)err;
    *out = (struct km_digest){{0xAB}};
    return 0;
}

struct req {
    uint64_t id;
    void *user;
    int32_t *prompt;
    int n_prompt, n_out, max, min, n_logprobs, stop_ids[8], n_stop;
    bool ignore_eos, fail, dead;
    int64_t arrived;
};

struct runner {
    pthread_t thread;
    pthread_mutex_t lock;
    bool stop;
    void (*wake)(void *);
    void *arg;
    struct req live[8192];
    int n;
    struct eng_event *ev;
    int n_ev, cap_ev;
    uint64_t next;
    int64_t generated;
    bool reset, reset_external, reset_done;
    int reset_rc;
};

static void push_event(struct runner *r, const struct eng_event *e)
{
    if (r->n_ev == r->cap_ev) {
        r->cap_ev = r->cap_ev ? 2 * r->cap_ev : 256;
        r->ev = km_reallocarray(r->ev, (size_t)r->cap_ev, sizeof *r->ev);
    }
    r->ev[r->n_ev++] = *e;
}

static void remove_request(struct runner *r, int i)
{
    km_free(r->live[i].prompt);
    r->live[i] = r->live[--r->n];
    fake.live = r->n;
}

/* Generates the next token of a request, or its end. Returns false if the request has ended. */
static bool step_request(struct runner *r, struct req *q)
{
    struct eng_event e = {.id = q->id,
                          .user = q->user,
                          .n_prompt = q->n_prompt,
                          .stop_id = -1,
                          .arrived_ns = q->arrived,
                          .scheduled_ns = q->arrived,
                          .now_ns = km_now_ns(),
                          .n_cached = q->n_prompt / 16 * 16,
                          .finish = ENG_RUNNING};
    if (fake.failed || q->dead || (q->fail && q->n_out == 3)) {
        e.finish = ENG_ERROR;
        e.n_output = q->n_out;
        push_event(r, &e);
        return false;
    }
    int32_t id = q->prompt[q->n_out % q->n_prompt];
    if (id == FAKE_EOS && (q->n_out < q->min))
        id = ' ';
    e.n_output = ++q->n_out;
    e.has_token = true;
    e.token.id = id;
    e.token.logprob = -0.5f;
    e.token.n_top = q->n_logprobs > 0 ? q->n_logprobs : 0;
    for (int i = 0; i < e.token.n_top; i++) {
        e.token.top_id[i] = (id + i) % FAKE_VOCAB;
        e.token.top_logprob[i] = i ? -1.0f - (float)i : -0.5f;
    }
    r->generated++;
    bool stop = id == FAKE_EOS && !q->ignore_eos;
    for (int i = 0; i < q->n_stop; i++)
        stop |= q->stop_ids[i] == id && q->n_out > q->min;
    if (stop) {
        e.finish = ENG_STOP;
        e.stop_id = id;
    } else if (q->n_out == q->max) {
        e.finish = ENG_LENGTH;
    }
    push_event(r, &e);
    return e.finish == ENG_RUNNING;
}

static void do_reset(struct runner *r)
{
    r->reset = false;
    r->reset_done = true;
    r->reset_rc = r->n ? KM_ELIMIT : 0;
    fake.resets += !r->n;
    fake.external_resets += !r->n && r->reset_external;
}

static void *run_steps(void *arg)
{
    struct runner *r = arg;
    for (;;) {
        usleep((useconds_t)fake.step_us);
        pthread_mutex_lock(&r->lock);
        if (r->stop)
            break;
        int before = r->n_ev;
        if (!fake.paused)
            for (int i = r->n - 1; i >= 0; i--)
                if (!step_request(r, &r->live[i]))
                    remove_request(r, i);
        bool news = r->n_ev > before || r->reset;
        if (r->reset)
            do_reset(r);
        pthread_mutex_unlock(&r->lock);
        if (news)
            r->wake(r->arg);
    }
    pthread_mutex_unlock(&r->lock);
    return NULL;
}

int runner_start(struct runner **out, struct eng *e, void (*wake)(void *arg), void *arg, struct km_err *err)
{
    (void)e, (void)err;
    struct runner *r = km_calloc(1, sizeof *r);
    if (!r)
        return km_fail(err, KM_ENOMEM, "out of memory");
    r->wake = wake;
    r->arg = arg;
    pthread_mutex_init(&r->lock, NULL);
    pthread_create(&r->thread, NULL, run_steps, r);
    *out = r;
    return 0;
}

void runner_free(struct runner *r)
{
    if (!r)
        return;
    pthread_mutex_lock(&r->lock);
    r->stop = true;
    pthread_mutex_unlock(&r->lock);
    pthread_join(r->thread, NULL);
    while (r->n)
        remove_request(r, 0);
    km_free(r->ev);
    km_free(r);
}

int runner_submit(struct runner *r, const struct eng_request *q, uint64_t *id, struct km_err *err)
{
    pthread_mutex_lock(&r->lock);
    int rc = 0;
    if (fake.failed) {
        rc = km_fail(err, KM_EDEVICE, "the device has failed");
    } else if (r->n >= fake.max_live) {
        rc = km_fail(err, KM_ELIMIT, "%d requests wait, and the queue is full; try again later", r->n);
    } else {
        struct req *n = &r->live[r->n++];
        *n = (struct req){.id = ++r->next,
                          .user = q->user,
                          .n_prompt = q->n_prompt,
                          .max = q->max_tokens,
                          .min = q->min_tokens,
                          .ignore_eos = q->ignore_eos,
                          .n_logprobs = q->sampling.n_logprobs,
                          .n_stop = q->n_stop,
                          .arrived = km_now_ns()};
        memcpy(n->stop_ids, q->stop_ids, (size_t)q->n_stop * sizeof *q->stop_ids);
        n->prompt = km_malloc((size_t)q->n_prompt * sizeof *n->prompt);
        memcpy(n->prompt, q->prompt, (size_t)q->n_prompt * sizeof *n->prompt);
        char head[5] = "";
        for (int i = 0; i < 4 && i < q->n_prompt; i++)
            head[i] = (char)q->prompt[i];
        n->fail = !strcmp(head, "FAIL");
        n->dead = !strcmp(head, "DEAD");
        *id = n->id;
        fake.live = r->n;
        fake.submitted++;
        fake.last_seed = (int)q->sampling.seed;
        fake.last_max_tokens = q->max_tokens;
        fake.last_top_k = q->sampling.top_k;
    }
    pthread_mutex_unlock(&r->lock);
    return rc;
}

void runner_cancel(struct runner *r, uint64_t id, enum eng_finish finish)
{
    pthread_mutex_lock(&r->lock);
    for (int i = 0; i < r->n; i++)
        if (r->live[i].id == id) {
            remove_request(r, i);
            break;
        }
    if (finish == ENG_STOP)
        fake.cancelled_stop++;
    else
        fake.cancelled_abort++;
    pthread_mutex_unlock(&r->lock);
}

void runner_reset_begin(struct runner *r, bool external)
{
    pthread_mutex_lock(&r->lock);
    r->reset = true;
    r->reset_external = external;
    pthread_mutex_unlock(&r->lock);
}

bool runner_reset_ended(struct runner *r, int *rc, struct km_err *err)
{
    pthread_mutex_lock(&r->lock);
    bool ended = r->reset_done;
    r->reset_done = false;
    *rc = r->reset_rc;
    if (r->reset_rc)
        km_fail(err, r->reset_rc, "requests hold pages");
    pthread_mutex_unlock(&r->lock);
    return ended;
}

int runner_collect(struct runner *r, struct eng_events *out, struct km_err *err)
{
    (void)err;
    pthread_mutex_lock(&r->lock);
    if (out->cap < r->n_ev) {
        out->v = km_reallocarray(out->v, (size_t)r->n_ev, sizeof *out->v);
        out->cap = r->n_ev;
    }
    if (r->n_ev)
        memcpy(out->v, r->ev, (size_t)r->n_ev * sizeof *out->v);
    out->n = r->n_ev;
    r->n_ev = 0;
    pthread_mutex_unlock(&r->lock);
    return 0;
}

void runner_stats(struct runner *r, struct eng_stats *out)
{
    pthread_mutex_lock(&r->lock);
    *out = (struct eng_stats){.running = r->n, .pages = 1000, .pages_used = 2 * r->n, .generated_tokens = r->generated};
    pthread_mutex_unlock(&r->lock);
}

bool runner_failed(struct runner *r, struct km_err *why)
{
    (void)r;
    if (fake.failed)
        km_fail(why, KM_EDEVICE, "the device has failed");
    return fake.failed;
}
