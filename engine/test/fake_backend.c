/* The KV pool has one 64-bit word per token. Every batch is checked, and the first mistake is recorded. */
#include "fake_backend.h"

#include "base/clock.h"
#include "base/page_sum.h"
#include "base/random.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { LONG_BAN = 8, STEPS = 3 };

struct fake_step {
    const struct batch *in;
    int n_samples;            /* copied, because `in` belongs to the engine again after the wait */
    uint64_t ticket;
    long number;
    int64_t ends;             /* ns */
    bool in_flight, ran;
    struct smp_result *results; /* [max_reqs] the right result of each sampled row */
    bool *host_sampled;         /* [max_reqs] the device could not sample the row; the next step sees token 0 */
};

struct be {
    struct mdl *m;
    bool async_sched;
    struct be_opts o;
    int n_pages;
    uint64_t *pool;  /* [n_pages][block_size] */
    long *written;   /* [n_pages * block_size] number of the step that wrote the slot last */
    struct fake_step step[STEPS];  /* two in flight and the one before them; step n is at n % STEPS */
    uint64_t ticket;
    struct fake_copy *copies; /* [n_copies] */
    int n_copies;
    long *step_of;   /* [n_step_of] number of the step with this ticket; 0: the ticket is a copy's */
    uint64_t n_step_of;
};

uint64_t fake_random(uint64_t *state)
{
    return km_random_next(state);
}

static uint64_t mix2(uint64_t a, uint64_t b)
{
    return km_mix64(km_mix64(a) ^ (b + KM_GOLDEN64));
}

static uint64_t kv_of(int32_t token, int pos, uint64_t before)
{
    return mix2(mix2((uint64_t)token + 1, (uint64_t)pos), before);
}

/* The id for a row. fold: hash of the KV of all tokens up to the sampled row. */
static int32_t id_of(uint64_t fold, const struct smp_row *r, int vocab)
{
    uint64_t h = mix2(mix2(fold, r->p.seed), r->step);
    for (int i = 0; i < r->n_history; i++)
        h = mix2(h, (uint64_t)r->history[i] + (i < r->n_prompt ? 1000000 : 0));
    int32_t id = (int32_t)(h % (uint64_t)vocab);
    for (int i = 0; i < r->n_banned; i++)
        if (r->banned[i] == id) {
            id = (id + 1) % vocab;
            i = -1;
        }
    return id;
}

int fake_answer(const struct mdl *m, const struct eng_request *r, int max_model_len, int32_t *out, int cap,
                enum eng_finish *finish)
{
    int32_t *seq = malloc(sizeof *seq * (size_t)(r->n_prompt + cap)), ends[64];
    int n = r->n_prompt, done = 0, n_ends = 0, n_out = 0;
    memcpy(seq, r->prompt, sizeof *seq * (size_t)n);
    for (int i = 0; !r->ignore_eos && i < m->c.n_eos; i++)
        ends[n_ends++] = m->c.eos[i];
    for (int i = 0; i < r->n_stop; i++)
        ends[n_ends++] = r->stop_ids[i];
    uint64_t fold = 0;
    bool history = r->sampling.presence != 0 || r->sampling.frequency != 0 || r->sampling.repetition != 1;
    for (*finish = ENG_RUNNING; *finish == ENG_RUNNING && n_out < cap;) {
        for (; done < n; done++)
            fold = mix2(fold, kv_of(seq[done], done, fold));
        struct smp_row row = {.p = r->sampling,
                              .step = (uint64_t)n_out,
                              .n_prompt = r->n_prompt,
                              .history = seq,
                              .n_history = history ? n : 0,
                              .banned = ends,
                              .n_banned = n_out < r->min_tokens ? n_ends : 0};
        int32_t id = id_of(fold, &row, m->c.vocab);
        seq[n++] = out[n_out++] = id;
        if (n_out >= r->max_tokens || n >= max_model_len)
            *finish = ENG_LENGTH;
        for (int i = 0; i < n_ends && n_out >= r->min_tokens; i++)
            if (ends[i] == id)
                *finish = ENG_STOP;
    }
    free(seq);
    return n_out;
}

struct mdl fake_model(int vocab, int max_pos)
{
    struct mdl m = {.c = {.n_layers = 1, .hidden = 1, .n_heads = 1, .n_kv_heads = 1, .head_dim = 1, .ffn = 1,
                          .vocab = vocab, .max_pos = max_pos, .eos = {7, 11}, .n_eos = 2}};
    return m;
}

/* Replaces engine/model.c in the test program: the engine needs only the config. */
const struct mdl_config *mdl_config(const struct mdl *m)
{
    return &m->c;
}

int mdl_fingerprint(const struct mdl *m, struct km_digest *out, struct km_err *err)
{
    (void)m;
    (void)err;
    *out = (struct km_digest){{1}};
    return 0;
}

static int open_one(struct be **out, const struct be_opts *o, const struct mdl *m, struct kv_geom *geom,
                    bool async_sched, struct km_err *err)
{
    if (o->memory_limit == 1)
        return km_fail(err, KM_ELIMIT, "the fake device has no memory");
    struct be *b = calloc(1, sizeof *b);
    b->m = (struct mdl *)m;
    b->async_sched = async_sched;
    b->o = *o;
    b->n_pages = o->n_pages ? o->n_pages : 64;
    size_t n = (size_t)b->n_pages * (size_t)o->block_size;
    b->pool = malloc(n * sizeof *b->pool);
    for (size_t i = 0; i < n; i++)
        b->pool[i] = 0xDEADDEADDEADDEADu;
    b->written = calloc(n, sizeof *b->written);
    for (int i = 0; i < STEPS; i++) {
        b->step[i].results = calloc((size_t)o->max_reqs, sizeof *b->step[i].results);
        b->step[i].host_sampled = calloc((size_t)o->max_reqs, sizeof *b->step[i].host_sampled);
    }
    *geom = (struct kv_geom){.n_layers = 1,
                             .n_kv_heads = 1,
                             .head_dim = 1,
                             .block_size = o->block_size,
                             .dtype = o->dtype,
                             .layout = 1,
                             .page_bytes = (size_t)o->block_size * sizeof *b->pool,
                             .n_pages = b->n_pages};
    *out = b;
    return 0;
}

static int fake_open(struct be **out, const struct be_opts *o, const struct mdl *m, struct kv_geom *geom,
                     struct km_err *err)
{
    return open_one(out, o, m, geom, false, err);
}

static int async_open(struct be **out, const struct be_opts *o, const struct mdl *m, struct kv_geom *geom,
                      struct km_err *err)
{
    return open_one(out, o, m, geom, true, err);
}

static void fake_close(struct be *b)
{
    if (b->n_copies || b->m->in_flight)
        snprintf(b->m->complaint, sizeof b->m->complaint, "closed with %d copies and %ld steps open", b->n_copies,
                 b->m->in_flight);
    free(b->copies);
    free(b->step_of);
    free(b->pool);
    free(b->written);
    for (int i = 0; i < STEPS; i++) {
        free(b->step[i].results);
        free(b->step[i].host_sampled);
    }
    free(b);
}

static void complain(struct be *b, long step, const char *what, int r, int i)
{
    if (!b->m->complaint[0])
        snprintf(b->m->complaint, sizeof b->m->complaint, "step %ld, request %d, row %d: %s", step, r, i, what);
}

/* The token id of row i, which the step before may have sampled. */
static int32_t token_of(struct be *b, const struct fake_step *s, int r, int i)
{
    const struct fake_step *before = &b->step[(s->number - 1) % STEPS];
    int32_t id = s->in->tokens[i];
    if (id >= 0)
        return id;
    if (!before->ran || before->number != s->number - 1 || -(id + 1) >= before->n_samples) {
        complain(b, s->number, "a token that no step in flight samples", r, i);
        return 0;
    }
    return before->host_sampled[-(id + 1)] ? 0 : before->results[-(id + 1)].id;
}

static void sample(struct be *b, struct fake_step *s, int at, uint64_t fold)
{
    const struct smp_row *row = &s->in->samples[at];
    s->results[at] = (struct smp_result){.id = id_of(fold, row, b->m->c.vocab)};
    s->host_sampled[at] = b->async_sched && (row->p.n_logprobs >= 0 || row->n_history || row->n_banned > LONG_BAN ||
                                             mix2(fold, (uint64_t)s->number) % 100 < (uint64_t)b->m->host_sampled);
}

/* Copies whose fence is step `number` start. Nothing else may use the pages that they fill from now on. */
static void start_copies(struct be *b, long number)
{
    size_t size = (size_t)b->o.block_size * sizeof *b->pool;
    for (int k = 0; k < b->n_copies; k++) {
        struct fake_copy *t = &b->copies[k];
        if (t->started || t->after_step > number)
            continue;
        t->started = true;
        for (int i = 0; i < t->n && t->dir == KV_TO_PAGE; i++)
            memset(b->pool + (size_t)t->c[i].page * (size_t)b->o.block_size, 0x5A, size);
    }
}

/* Complains if a step behind the fence of an open copy writes to a page that the copy reads or fills. A step may write
 * tokens of a page that is being stored if they are not among its valid ones. */
static void check_open_copies(struct be *b, long step, int slot)
{
    int B = b->o.block_size;
    for (int k = 0; k < b->n_copies; k++) {
        const struct fake_copy *t = &b->copies[k];
        for (int i = 0; i < t->n && step > t->after_step; i++)
            if (t->c[i].page == slot / B && (t->dir == KV_TO_PAGE || slot % B < t->c[i].n_tokens))
                complain(b, step, "a write to a page of an open copy", t->dir, slot);
    }
}

static void run_request(struct be *b, struct fake_step *s, int r, int *sampled)
{
    const struct batch *in = s->in;
    int B = b->o.block_size, from = in->q_start[r], to = in->q_start[r + 1], start = in->kv_len[r] - (to - from);
    const int32_t *table = in->block_table + in->table_start[r];
    int pages = in->table_start[r + 1] - in->table_start[r];
    if (to <= from || start < 0 || in->kv_len[r] > b->o.max_model_len || in->kv_len[r] > pages * B) {
        complain(b, s->number, "a request without rows or with too many tokens", r, from);
        return;
    }
    for (int i = 0; i < pages; i++) {
        b->m->spare_pages += i * B >= in->kv_len[r];
        if (table[i] < 0 || table[i] >= b->n_pages) {
            complain(b, s->number, "a broken block table", r, i);
            return;
        }
    }
    uint64_t fold = 0;
    for (int pos = 0; pos < start; pos++)
        fold = mix2(fold, b->pool[(size_t)table[pos / B] * (size_t)B + (size_t)(pos % B)]);
    for (int i = from; i < to; i++) {
        int pos = start + i - from, slot = table[pos / B] * B + pos % B;
        if (in->positions[i] != pos || in->slots[i] != slot)
            complain(b, s->number, "position or slot does not fit the block table", r, i);
        if (b->written[slot] == s->number)
            complain(b, s->number, "a slot written twice in one step", r, i);
        b->written[slot] = s->number;
        check_open_copies(b, s->number, slot);
        b->pool[slot] = kv_of(token_of(b, s, r, i), pos, fold);
        fold = mix2(fold, b->pool[slot]);
    }
    if (*sampled < in->n_samples && in->samples[*sampled].row == to - 1)
        sample(b, s, (*sampled)++, fold);
}

/* Runs the submitted steps up to step `number`, in order. */
static void run_until(struct be *b, long number)
{
    for (long n = number > 1 ? number - 1 : 1; n <= number; n++) {
        struct fake_step *s = &b->step[n % STEPS];
        if (s->number != n || s->ran)
            continue;
        int sampled = 0;
        for (int r = 0; r < s->in->n_reqs; r++)
            run_request(b, s, r, &sampled);
        if (sampled != s->in->n_samples)
            complain(b, n, "a sampled row that is not the last of a request", 0, sampled);
        s->ran = true;
        start_copies(b, n);
    }
}

/* A ticket for a step, or for a copy (number 0). */
static uint64_t new_ticket(struct be *b, long number)
{
    uint64_t ticket = ++b->ticket;
    if (ticket >= b->n_step_of) {
        b->n_step_of = 2 * ticket + 64;
        b->step_of = realloc(b->step_of, b->n_step_of * sizeof *b->step_of);
    }
    b->step_of[ticket] = number;
    return ticket;
}

static int failure(const struct be *b, struct km_err *err)
{
    return km_fail(err, b->m->fail_code, "the fake device failed at step %ld", b->m->fail_at);
}

static int fake_step(struct be *b, const struct batch *in, uint64_t *ticket, struct km_err *err)
{
    long number = ++b->m->steps;
    int64_t took = b->m->row_ns || b->m->floor_ns ? (int64_t)(b->m->row_ns * in->n_tokens) : 1000;
    b->m->clock += took > b->m->floor_ns ? took : b->m->floor_ns;
    if (b->m->fail_at == number && !b->m->fail_in_wait)
        return failure(b, err);
    struct fake_step *s = &b->step[number % STEPS];
    if (in->n_tokens < 1 || in->n_tokens > b->o.max_tokens || in->n_reqs < 1 || in->n_reqs > b->o.max_reqs ||
        in->q_start[0] != 0 || in->q_start[in->n_reqs] != in->n_tokens || b->m->in_flight > b->async_sched) {
        complain(b, number, "sizes out of bounds, or too many steps in flight", in->n_reqs, in->n_tokens);
        return km_fail(err, KM_EINVAL, "the step is malformed");
    }
    int64_t began = km_now_ns(), before = b->m->in_flight ? b->step[(number - 1) % STEPS].ends : 0;
    s->in = in;
    s->n_samples = in->n_samples;
    s->number = number;
    s->ends = (before > began ? before : began) + b->m->step_us * (int64_t)1000;
    s->ran = false;
    s->in_flight = true;
    *ticket = s->ticket = new_ticket(b, number);
    b->m->in_flight++;
    b->m->rows += in->n_tokens;
    if (in->n_tokens > in->n_reqs)
        b->m->prefill_at = number;
    if (!b->async_sched || km_mix64((uint64_t)number) % 3 == 0)
        run_until(b, number);
    return 0;
}

static int fake_wait(struct be *b, uint64_t ticket, struct smp_result *out, struct km_err *err)
{
    struct fake_step *s = NULL;
    for (int i = 0; i < STEPS; i++)
        if (b->step[i].in_flight && (!s || b->step[i].number < s->number))
            s = &b->step[i];
    if (!s || s->ticket != ticket) {
        complain(b, b->m->steps, "a wait that is not for the oldest step", 0, 0);
        return km_fail(err, KM_EINVAL, "the wait is not for the oldest step");
    }
    for (int64_t left; b->m->step_us && (left = s->ends - km_now_ns()) > 0;)
        usleep((useconds_t)(left / 1000 + 1));
    run_until(b, s->number);
    bool next_in_flight = b->m->in_flight-- > 1;
    s->in_flight = false;
    memcpy(out, s->results, (size_t)s->in->n_samples * sizeof *out);
    for (int i = 0; i < s->in->n_samples; i++) {
        out[i].by_host = s->host_sampled[i];
        if (s->host_sampled[i] && next_in_flight)
            out[i].id = -1;
    }
    return b->m->fail_at == s->number && b->m->fail_in_wait ? failure(b, err) : 0;
}

static void move_bytes(struct be *b, struct fake_copy *t)
{
    uint32_t B = (uint32_t)b->o.block_size;
    for (int i = 0; i < t->n; i++) {
        struct kv_copy *c = &t->c[i];
        uint64_t *page = b->pool + (size_t)c->page * B;
        memcpy(t->dir == KV_TO_HOST ? c->host : page, t->dir == KV_TO_HOST ? page : c->host, B * sizeof *page);
        c->sum = km_page_sum(page, B, 1, B, (uint32_t)c->n_tokens, c->seed);
    }
}

static bool copy_fails(struct be *b)
{
    return b->m->copy_fails && km_random_next(&b->m->rng) % 200 < (uint64_t)b->m->copy_fails;
}

static int fake_copy(struct be *b, enum kv_dir dir, struct kv_copy *c, int n, uint64_t after, uint64_t *ticket,
                     struct km_err *err)
{
    if (b->m->copy_limit && b->n_copies >= b->m->copy_limit)
        return km_fail(err, KM_ELIMIT, "%d copies are in flight", b->n_copies);
    long step = after && after <= b->ticket ? b->step_of[after] : 0;
    if (n < 1 || n > KV_COPY_MOST || (after && !step))
        complain(b, b->m->steps, "a copy with a bad size or fence", n, (int)after);
    for (int i = 0; i < n; i++)
        if (c[i].page < 0 || c[i].page >= b->n_pages || c[i].n_tokens < 1 || c[i].n_tokens > b->o.block_size)
            complain(b, b->m->steps, "a copy with a bad page", dir, c[i].page);
    if (copy_fails(b)) {
        run_until(b, step);
        for (int i = 0; i < n / 2 && dir == KV_TO_PAGE; i++)
            memset(b->pool + (size_t)c[i].page * (size_t)b->o.block_size, 0x5A, sizeof *b->pool);
        return km_fail(err, KM_EIO, "the copy failed");
    }
    b->copies = realloc(b->copies, (size_t)(b->n_copies + 1) * sizeof *b->copies);
    *ticket = new_ticket(b, 0);
    b->copies[b->n_copies++] = (struct fake_copy){*ticket, dir, c, n, b->m->copy_polls, step, false};
    long ran = b->m->steps;
    while (ran > 0 && b->step[ran % STEPS].number == ran && !b->step[ran % STEPS].ran)
        ran--;
    start_copies(b, ran);
    return 0;
}

static int fake_poll(struct be *b, uint64_t ticket)
{
    for (int i = 0; i < b->n_copies; i++) {
        struct fake_copy *t = &b->copies[i];
        if (t->ticket != ticket)
            continue;
        if (--t->polls > 0)
            return 0;
        run_until(b, t->after_step);
        bool fails = copy_fails(b);
        if (!fails)
            move_bytes(b, t);
        *t = b->copies[--b->n_copies];
        return fails ? KM_EIO : 1;
    }
    complain(b, b->m->steps, "a poll of an unknown ticket", 0, 0);
    return KM_EINVAL;
}

static int64_t fake_now(struct be *b)
{
    return b->m->clock;
}

static void fake_stats(struct be *b, struct be_stats *out)
{
    *out = (struct be_stats){.kv_bytes = b->n_pages * b->o.block_size * 8};
    snprintf(out->device, sizeof out->device, "fake");
}

const struct backend be_fake = {.name = "fake", .open = fake_open, .close = fake_close, .step = fake_step,
                                .wait = fake_wait, .copy = fake_copy, .poll = fake_poll, .stats = fake_stats};
const struct backend be_fake_async = {.name = "fake", .async_sched = true, .open = async_open, .close = fake_close,
                                      .step = fake_step, .wait = fake_wait, .copy = fake_copy, .poll = fake_poll,
                                      .stats = fake_stats};
const struct backend be_fake_clock = {.name = "fake", .open = fake_open, .close = fake_close, .step = fake_step,
                                      .wait = fake_wait, .copy = fake_copy, .poll = fake_poll, .now = fake_now,
                                      .stats = fake_stats};
