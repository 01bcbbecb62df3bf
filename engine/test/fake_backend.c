/* The pool is one word a token; everything else is bookkeeping that complains. */
#include "fake_backend.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct be {
    struct mdl *m;
    struct be_opts o;
    int n_pages;
    uint64_t *pool;  /* [n_pages][block_size] */
    long *written;   /* [n_pages * block_size], the step that wrote the slot last */
    struct smp_result *results;
    int n_results;
    uint64_t ticket, waited;
    struct fake_copy *copies; /* [n_copies] */
    int n_copies;
};

uint64_t fake_random(uint64_t *state)
{
    return smp_mix(*state += 0x9E3779B97F4A7C15u);
}

static uint64_t mix2(uint64_t a, uint64_t b)
{
    return smp_mix(smp_mix(a) ^ (b + 0x9E3779B97F4A7C15u));
}

static uint64_t kv_of(int32_t token, int pos, uint64_t before)
{
    return mix2(mix2((uint64_t)token + 1, (uint64_t)pos), before);
}

/* fold: over the KV of all tokens up to and with the sampled one. */
static int32_t pick(uint64_t fold, const struct smp_row *r, int vocab)
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
        struct smp_row row = {.p = r->sampling, .step = (uint64_t)n_out, .n_prompt = r->n_prompt, .history = seq,
                              .n_history = history ? n : 0, .banned = ends, .n_banned = n_out < r->min_tokens ? n_ends : 0};
        int32_t id = pick(fold, &row, m->c.vocab);
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

/* The engine asks the model for its config alone; this takes the place of engine/model.c in the test program. */
const struct mdl_config *mdl_config(const struct mdl *m)
{
    return &m->c;
}

static int fake_open(struct be **out, const struct be_opts *o, const struct mdl *m, struct kv_geom *geom,
                     struct km_err *err)
{
    if (o->memory_limit == 1)
        return km_fail(err, KM_ELIMIT, "the fake device has no room");
    struct be *b = calloc(1, sizeof *b);
    b->m = (struct mdl *)m;
    b->o = *o;
    b->n_pages = o->n_pages ? o->n_pages : 64;
    size_t n = (size_t)b->n_pages * (size_t)o->block_size;
    b->pool = malloc(n * sizeof *b->pool);
    for (size_t i = 0; i < n; i++)
        b->pool[i] = 0xDEADDEADDEADDEADu;
    b->written = calloc(n, sizeof *b->written);
    b->results = calloc((size_t)o->max_reqs, sizeof *b->results);
    *geom = (struct kv_geom){.n_layers = 1, .n_kv_heads = 1, .head_dim = 1, .block_size = o->block_size, .dtype = o->dtype,
                             .layout = 1, .page_bytes = (size_t)o->block_size * sizeof *b->pool, .n_pages = b->n_pages};
    *out = b;
    return 0;
}

static void fake_close(struct be *b)
{
    for (int i = 0; i < b->n_copies; i++)
        free(b->copies[i].c);
    if (b->n_copies)
        snprintf(b->m->complaint, sizeof b->m->complaint, "closed with %d copies open", b->n_copies);
    free(b->copies);
    free(b->pool);
    free(b->written);
    free(b->results);
    free(b);
}

static void complain(struct be *b, const char *what, int r, int i)
{
    if (!b->m->complaint[0])
        snprintf(b->m->complaint, sizeof b->m->complaint, "step %ld, request %d, row %d: %s", b->m->steps, r, i, what);
}

static void run_request(struct be *b, const struct batch *in, int r, int *sample)
{
    int B = b->o.block_size, from = in->q_start[r], to = in->q_start[r + 1], start = in->kv_len[r] - (to - from);
    const int32_t *table = in->block_table + (size_t)r * (size_t)in->max_blocks;
    if (to <= from || start < 0 || in->kv_len[r] > b->o.max_model_len || in->kv_len[r] > in->max_blocks * B) {
        complain(b, "a request of no rows or too many tokens", r, from);
        return;
    }
    bool last = false;
    for (int i = 0; i < in->max_blocks; i++) {
        last |= table[i] < 0;
        b->m->spare_pages += !last && i * B >= in->kv_len[r];
        if (table[i] >= b->n_pages || (last && table[i] != -1) || (last && i * B < in->kv_len[r])) {
            complain(b, "a broken block table", r, i);
            return;
        }
    }
    uint64_t fold = 0;
    for (int pos = 0; pos < start; pos++)
        fold = mix2(fold, b->pool[(size_t)table[pos / B] * (size_t)B + (size_t)(pos % B)]);
    for (int i = from; i < to; i++) {
        int pos = start + i - from, slot = table[pos / B] * B + pos % B;
        if (in->positions[i] != pos || in->slots[i] != slot)
            complain(b, "position or slot do not fit the block table", r, i);
        if (b->written[slot] == b->m->steps)
            complain(b, "a slot written twice in one step", r, i);
        b->written[slot] = b->m->steps;
        b->pool[slot] = kv_of(in->tokens[i], pos, fold);
        fold = mix2(fold, b->pool[slot]);
    }
    if (*sample < in->n_samples && in->samples[*sample].row == to - 1) {
        struct smp_result *out = &b->results[*sample];
        memset(out, 0, sizeof *out);
        out->id = pick(fold, &in->samples[*sample], b->m->c.vocab);
        (*sample)++;
    }
}

static int failure(const struct be *b, struct km_err *err)
{
    return km_fail(err, b->m->fail_code, "the fake device failed at step %ld", b->m->steps);
}

static int fake_step(struct be *b, const struct batch *in, uint64_t *ticket, struct km_err *err)
{
    b->m->steps++;
    if (b->m->step_us)
        usleep((useconds_t)b->m->step_us);
    b->m->clock += 1000;
    if (b->m->fail_at == b->m->steps && !b->m->fail_in_wait)
        return failure(b, err);
    int sample = 0;
    if (in->n_tokens < 1 || in->n_tokens > b->o.max_tokens || in->n_reqs < 1 || in->n_reqs > b->o.max_reqs ||
        in->q_start[0] != 0 || in->q_start[in->n_reqs] != in->n_tokens || b->ticket != b->waited)
        complain(b, "sizes out of bounds", in->n_reqs, in->n_tokens);
    else
        for (int r = 0; r < in->n_reqs; r++)
            run_request(b, in, r, &sample);
    if (sample != in->n_samples)
        complain(b, "sampled rows that end no request", 0, sample);
    b->m->rows += in->n_tokens;
    b->n_results = in->n_samples;
    *ticket = ++b->ticket;
    return 0;
}

static int fake_wait(struct be *b, uint64_t ticket, struct smp_result *out, struct km_err *err)
{
    if (ticket != b->ticket)
        complain(b, "waited for another ticket", 0, 0);
    b->waited = b->ticket;
    memcpy(out, b->results, (size_t)b->n_results * sizeof *out);
    return b->m->fail_at == b->m->steps && b->m->fail_in_wait ? failure(b, err) : 0;
}

static void move_bytes(struct be *b, enum kv_dir dir, const struct kv_copy *c, int n)
{
    size_t size = (size_t)b->o.block_size * sizeof *b->pool;
    for (int i = 0; i < n; i++) {
        uint64_t *page = b->pool + (size_t)c[i].page * (size_t)b->o.block_size;
        if (dir == KV_TO_HOST)
            memcpy(c[i].host, page, size);
        else
            memcpy(page, c[i].host, size);
    }
}

static int fake_copy(struct be *b, enum kv_dir dir, const struct kv_copy *c, int n, uint64_t *ticket, struct km_err *err)
{
    (void)err;
    *ticket = 0;
    if (!b->m->copy_polls) {
        move_bytes(b, dir, c, n);
        return 0;
    }
    if (dir == KV_TO_PAGE)
        for (int i = 0; i < n; i++)
            memset(b->pool + (size_t)c[i].page * (size_t)b->o.block_size, 0x5A, (size_t)b->o.block_size * sizeof *b->pool);
    *ticket = ++b->ticket;
    b->waited = b->ticket;
    b->copies = realloc(b->copies, (size_t)(b->n_copies + 1) * sizeof *b->copies);
    struct fake_copy *t = &b->copies[b->n_copies++];
    *t = (struct fake_copy){*ticket, dir, malloc((size_t)n * sizeof *c), n, b->m->copy_polls};
    memcpy(t->c, c, (size_t)n * sizeof *c);
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
        move_bytes(b, t->dir, t->c, t->n);
        free(t->c);
        *t = b->copies[--b->n_copies];
        return 1;
    }
    complain(b, "a poll of an unknown ticket", 0, 0);
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
const struct backend be_fake_clock = {.name = "fake", .open = fake_open, .close = fake_close, .step = fake_step,
                                      .wait = fake_wait, .copy = fake_copy, .poll = fake_poll, .now = fake_now,
                                      .stats = fake_stats};
