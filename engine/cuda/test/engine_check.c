/* Checks the CUDA backend as a whole: against vectors from another implementation, against the CPU backend, and against
 * itself (batched and alone, after copies of its KV, with a cold and a warm prefix cache, with and without async
 * scheduling). A program, not a unit test: it needs a GPU. KV pools are filled with NaN first.
 *
 *   engine_check golden MODEL VECTORS.json [TIE]   the vectors' top log-probabilities and greedy ids
 *   engine_check self MODEL [TIE]                  everything else
 *
 * MODEL is a folder, or a preset with dummy weights of seed 7. A log-probability may differ by TIE (default 0.2), or by
 * that share of its value when it is below -1: bf16 has 8 significant bits, so that the error grows with the logit. Two
 * tokens may change places if the difference of their log-probabilities is within that tolerance. Two results that were
 * both computed in bf16 may be 1.5 TIE apart. Exit 1 when a check fails. */
#include "base/json.h"
#include "base/mem.h"
#include "engine/test/backend_rig.h"
#include "engine/engine.h"
#include "engine/rates.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SEED = 7, MAX_PROMPT = 8192, MAX_GREEDY = 64 };

static int failures;

static void say(bool good, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
static void say(bool good, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    printf("%-4s ", good ? "ok" : "BAD");
    vprintf(fmt, ap);
    printf("\n");
    fflush(stdout);
    va_end(ap);
    failures += !good;
}

static void must(int rc, const struct km_err *err)
{
    if (!rc)
        return;
    printf("BAD  %s\n", err->msg);
    exit(1);
}

static struct be_opts options(int n_pages)
{
    return (struct be_opts){.dtype = KM_BF16,
                            .block_size = 16,
                            .n_pages = n_pages,
                            .max_tokens = 4096,
                            .max_reqs = 64,
                            .max_model_len = 8192,
                            .memory_utilization = 0.9};
}

static void some_tokens(int32_t *t, int n, int vocab, uint32_t seed)
{
    uint32_t x = seed * 2654435761u + 12345;
    for (int i = 0; i < n; i++) {
        x = x * 1664525u + 1013904223u;
        t[i] = (int32_t)((x >> 8) % (uint32_t)vocab);
    }
}

/* The difference of two log-probabilities, relative where b is below -1. */
static double off(double a, double b)
{
    return fabs(a - b) / fmax(1, fabs(b));
}

/* The distance of two results: the largest difference among a's first eight ids that both results list. *mean2: the
 * mean of the squared differences. Both are 99 if the results have no id in common. */
static double distance(const struct smp_result *a, const struct smp_result *b, double *mean2)
{
    double worst = 0, sum = 0;
    int common = 0;
    for (int i = 0; i < 8 && i < a->n_top; i++)
        for (int j = 0; j < b->n_top; j++)
            if (a->top_id[i] == b->top_id[j]) {
                double d = off(b->top_logprob[j], a->top_logprob[i]);
                worst = fmax(worst, d);
                sum += d * d;
                common++;
            }
    if (mean2)
        *mean2 = common ? sum / common : 99;
    return common ? worst : 99;
}

/* True if two ids may change places: `gap` is the difference of their log-probabilities, `top` the larger one. */
static bool near_tie(double gap, double top, double tie)
{
    return gap <= tie * fmax(1, fabs(top));
}

/* True when both chose the same id, or a's choice is a near-tie with b's. */
static bool agree(const struct smp_result *a, const struct smp_result *b, double tie)
{
    if (a->id == b->id)
        return true;
    for (int i = 0; i < a->n_top; i++)
        if (a->top_id[i] == b->id)
            return near_tie(a->top_logprob[0] - a->top_logprob[i], a->top_logprob[0], tie);
    return false;
}

/* ---- vectors from another implementation ---- */

static int ints(const cJSON *v, int32_t *out, int max)
{
    int n = 0;
    const cJSON *x;
    cJSON_ArrayForEach(x, v) if (n < max) out[n++] = (int32_t)x->valuedouble;
    return n;
}

struct score {
    double worst, squares;
    int n, steps, ties, agreed, in_top5;
};

/* Runs one vector: prefill of its prompt, then decodes along its greedy ids. */
static void play(struct rig *r, const cJSON *v, double tie, struct score *s)
{
    static int32_t prompt[MAX_PROMPT], want[MAX_GREEDY];
    struct km_err err;
    struct rig_seq q;
    struct smp_params greedy = rig_greedy();
    struct smp_result res = {0};
    int n = ints(cJSON_GetObjectItem(v, "prompt_ids"), prompt, MAX_PROMPT),
        n_want = ints(cJSON_GetObjectItem(v, "greedy_ids"), want, MAX_GREEDY);
    must(rig_seq_open(r, &q, n + n_want, &err), &err);
    must(rig_prefill(r, &q, prompt, n, 4096, &res, &err), &err);
    const cJSON *top, *gap = cJSON_GetObjectItem(v, "greedy_gap")->child;
    cJSON_ArrayForEach(top, cJSON_GetObjectItem(v, "last_top8"))
    {
        int id = cJSON_GetArrayItem(top, 0)->valueint, i = 0;
        while (i < res.n_top && res.top_id[i] != id)
            i++;
        double d = i < res.n_top ? off(res.top_logprob[i], cJSON_GetArrayItem(top, 1)->valuedouble) : 99;
        s->worst = fmax(s->worst, d);
        s->squares += d * d;
        s->n++;
    }
    for (int i = 0; i < n_want && gap; i++, gap = gap->next) {
        bool top5 = false;
        for (int j = 0; j < 5; j++)
            top5 |= res.top_id[j] == want[i];
        s->steps++;
        s->in_top5 += top5;
        if (near_tie(gap->valuedouble, res.top_logprob[0], tie))
            s->ties++;
        else
            s->agreed += res.id == want[i];
        if (i + 1 < n_want)
            must(rig_step(r, &(struct rig_part){&q, &want[i], 1, &greedy}, 1, &res, &err), &err);
    }
    rig_seq_close(&q);
}

static void golden(const struct mdl *m, const char *path, double tie)
{
    struct km_err err;
    struct rig r;
    struct score s = {0};
    cJSON *file;
    const cJSON *v;
    struct be_opts o = options(1021);
    must(km_json_file(path, 0, &file, &err), &err);
    must(rig_open(&r, &be_cuda, &o, m, &err), &err);
    cJSON_ArrayForEach(v, cJSON_GetObjectItem(file, "vectors")) play(&r, v, tie, &s);
    say(s.steps && s.worst <= tie && s.agreed + s.ties == s.steps && s.in_top5 == s.steps,
        "%s against %s: log-probabilities of the top 8 within %.3f (root mean square %.4f); greedy ids %d of %d, %d "
        "near-ties (%.2f); in the top 5: %d of %d",
        mdl_name(m), path, s.worst, sqrt(s.squares / s.n), s.agreed, s.steps - s.ties, s.ties, tie, s.in_top5, s.steps);
    rig_close(&r);
    cJSON_Delete(file);
}

/* ---- against itself and the CPU ---- */

enum { CHUNKED = 700, CHUNK_STEPS = 8 };

/* Prefills the prompt in chunks of `size` tokens, then decodes along the ids of `exact` (NULL: along its own). */
static void follow(struct rig *r, const int32_t *ids, int size, const struct smp_result *exact, struct smp_result *got)
{
    struct smp_params greedy = rig_greedy();
    struct km_err err;
    struct rig_seq q;
    must(rig_seq_open(r, &q, CHUNKED + CHUNK_STEPS, &err), &err);
    must(rig_prefill(r, &q, ids, CHUNKED, size, &got[0], &err), &err);
    for (int i = 1; i < CHUNK_STEPS; i++) {
        const int32_t *next = exact ? &exact[i - 1].id : &got[i - 1].id;
        must(rig_step(r, &(struct rig_part){&q, next, 1, &greedy}, 1, &got[i], &err), &err);
    }
    rig_seq_close(&q);
}

/* Chunked prefill against the CPU in float32: whatever the chunk size, the difference must be that of bfloat16
 * arithmetic. The root mean square may be a third of TIE. Ids are not compared: two ids change places only if their
 * log-probabilities differ by as much. */
static void chunks(struct rig *r, const struct mdl *m, const int32_t *ids, double tie)
{
    static const int sizes[] = {CHUNKED, 1, 7, 255, 256, 257};
    static struct smp_result exact[CHUNK_STEPS], got[CHUNK_STEPS];
    struct be_opts o = options(509);
    struct km_err err;
    struct rig cpu;
    for (int c = -2; c < 6; c++) {
        if (c < 0) { /* the CPU in float32 is the reference; the CPU in bfloat16 is checked like the GPU */
            o.dtype = c == -2 ? KM_F32 : KM_BF16;
            must(rig_open(&cpu, &be_cpu, &o, m, &err), &err);
            follow(&cpu, ids, CHUNKED, c == -2 ? NULL : exact, c == -2 ? exact : got);
            rig_close(&cpu);
            if (c == -2)
                continue;
        } else
            follow(r, ids, sizes[c], exact, got);
        double worst = 0, squares = 0, mean2;
        for (int i = 0; i < CHUNK_STEPS; i++) {
            worst = fmax(worst, distance(&exact[i], &got[i], &mean2));
            squares += mean2 / CHUNK_STEPS;
        }
        say(worst <= 1.5 * tie && sqrt(squares) <= tie / 3,
            "%s, prefill of %d tokens in chunks of %d, %d decodes: within %.4f of the CPU in float32, root mean square "
            "%.4f", c < 0 ? "CPU in bfloat16" : "CUDA", CHUNKED, c < 0 ? CHUNKED : sizes[c], CHUNK_STEPS, worst,
            sqrt(squares));
    }
}

/* Sequences of many lengths: each alone, then all in one batch, first prefills and decodes in one step, then decode
 * steps padded to a CUDA graph's size. */
static void batches(struct rig *r, const int32_t *ids, int n, double tie)
{
    enum { MOST = 48, STEPS = 4 };
    static struct smp_result alone[MOST][STEPS], got[MOST];
    static struct rig_seq q[MOST];
    struct rig_part parts[MOST];
    struct smp_params greedy = rig_greedy();
    struct km_err err;
    double worst = 0;
    bool same = true;
    memset(alone, 0, sizeof alone);
    for (int pass = 0; pass < 2; pass++) {
        for (int i = 0; i < n; i++) {
            int len = 1 + (i * 37) % 150;
            must(rig_seq_open(r, &q[i], len + STEPS, &err), &err);
            if (!pass)
                must(rig_prefill(r, &q[i], ids + i, len, len, &alone[i][0], &err), &err);
            else if (i % 2) /* every other sequence is prefilled alone, and joins the batch as a decode */
                must(rig_prefill(r, &q[i], ids + i, len, len, &got[i], &err), &err);
            else
                parts[i] = (struct rig_part){&q[i], ids + i, len, &greedy};
            for (int k = 1; !pass && k < STEPS; k++)
                must(rig_step(r, &(struct rig_part){&q[i], &alone[i][k - 1].id, 1, &greedy}, 1, &alone[i][k], &err),
                     &err);
        }
        for (int k = 0; pass && k < STEPS; k++) {
            int mixed = k == 0; /* the first step: even sequences prefill, odd ones decode their first token */
            for (int i = 0; i < n; i++)
                if (!mixed || i % 2)
                    parts[i] = (struct rig_part){&q[i], &alone[i][mixed ? 0 : k - 1 + i % 2].id, 1, &greedy};
            if (k + 1 == STEPS)
                break;
            must(rig_step(r, parts, n, got, &err), &err);
            for (int i = 0; i < n; i++) {
                const struct smp_result *want = &alone[i][k + i % 2];
                worst = fmax(worst, distance(want, &got[i], NULL));
                same &= agree(want, &got[i], tie);
            }
        }
        for (int i = 0; i < n; i++)
            rig_seq_close(&q[i]);
    }
    say(same && worst <= 1.5 * tie,
        "%d requests in one batch, prefills and decodes in one step: within %.4f of each alone", n, worst);
}

/* Copies a sequence's KV to the host, overwrites its pages with NaN, and copies the KV back into other pages: the next
 * step must give the same bits. */
static void copies(struct rig *r, const int32_t *ids)
{
    enum { N = 333 };
    struct rig_seq a, b;
    struct smp_result first = {0}, second = {0}, third = {0};
    struct smp_params greedy = rig_greedy();
    struct km_err err;
    must(rig_seq_open(r, &a, N + 2, &err), &err);
    must(rig_seq_open(r, &b, N + 2, &err), &err);
    size_t size = (size_t)a.blocks * r->g.page_bytes;
    char *host = r->backend->host_alloc(r->b, size), *nan = km_malloc(size);
    must(rig_prefill(r, &a, ids, N, N, &first, &err), &err);
    must(rig_copy(r, &a, KV_TO_HOST, host, &err), &err);
    must(rig_step(r, &(struct rig_part){&a, &first.id, 1, &greedy}, 1, &second, &err), &err);
    memset(nan, 0xFF, size);
    must(rig_copy(r, &a, KV_TO_PAGE, nan, &err), &err);
    must(rig_copy(r, &b, KV_TO_PAGE, host, &err), &err);
    b.n_done = N;
    must(rig_step(r, &(struct rig_part){&b, &first.id, 1, &greedy}, 1, &third, &err), &err);
    say(second.id == third.id && !memcmp(second.top_logprob, third.top_logprob, sizeof second.top_logprob),
        "%d pages copied to the host and back into other pages: the next step gives the same bits", a.blocks);
    struct kv_copy wrong = {r->g.n_pages, host};
    uint64_t ticket;
    say(r->backend->copy(r->b, KV_TO_HOST, &wrong, 1, &ticket, &err) == KM_EINVAL,
        "a copy of a page outside the pool is refused: %s", err.msg);
    r->backend->host_free(r->b, host, size);
    km_free(nan);
    rig_seq_close(&a);
    rig_seq_close(&b);
}

static void against_cpu(struct rig *r, const struct mdl *m, const int32_t *ids, double tie)
{
    enum { STEPS = 8 };
    static const int lens[] = {1, 16, 17, 130, 700};
    struct be_opts o = options(509);
    struct smp_params greedy = rig_greedy();
    struct km_err err;
    struct rig cpu;
    double worst = 0;
    bool same = true;
    must(rig_open(&cpu, &be_cpu, &o, m, &err), &err);
    for (int l = 0; l < 5; l++) {
        struct rig_seq a, b;
        struct smp_result x = {0}, y = {0};
        must(rig_seq_open(r, &a, lens[l] + STEPS, &err), &err);
        must(rig_seq_open(&cpu, &b, lens[l] + STEPS, &err), &err);
        must(rig_prefill(r, &a, ids + l, lens[l], 4096, &x, &err), &err);
        must(rig_prefill(&cpu, &b, ids + l, lens[l], 4096, &y, &err), &err);
        for (int i = 0; i < STEPS; i++) {
            int32_t next = y.id;
            worst = fmax(worst, distance(&y, &x, NULL));
            same &= agree(&y, &x, tie);
            must(rig_step(r, &(struct rig_part){&a, &next, 1, &greedy}, 1, &x, &err), &err);
            must(rig_step(&cpu, &(struct rig_part){&b, &next, 1, &greedy}, 1, &y, &err), &err);
        }
        rig_seq_close(&a);
        rig_seq_close(&b);
    }
    say(same && worst <= 1.5 * tie,
        "prompts of 1 to 700 tokens and %d decodes each: within %.4f of the CPU backend in bf16", STEPS, worst);
    rig_close(&cpu);
}

/* The sampling kernels against the reference sampler, which samples the rows that ask for log-probabilities. */
static void sampling(struct rig *r, const int32_t *ids)
{
    enum { N = 40, STEPS = 12 };
    static const struct {
        double temperature, top_p, min_p;
        int top_k;
    } kinds[] = {{0, 1, 0, 0},      {1, 1, 0, 0}, {0.6, 0.95, 0, 20}, {1.5, 0.9, 0, 0},
                 {0.8, 1, 0.05, 0}, {1, 1, 0, 1}, {2, 0.3, 0.001, 50}};
    enum { KINDS = sizeof kinds / sizeof *kinds };
    struct km_err err;
    int same = 0, all = 0;
    for (int k = 0; k < KINDS; k++) {
        struct rig_seq a, b;
        struct smp_params p = smp_defaults();
        struct smp_result x = {0}, y = {0};
        p.temperature = kinds[k].temperature, p.top_p = kinds[k].top_p, p.min_p = kinds[k].min_p,
        p.top_k = kinds[k].top_k;
        p.seed = (uint64_t)k + 99;
        struct smp_params with_logprobs = p;
        with_logprobs.n_logprobs = 1;
        must(rig_seq_open(r, &a, N + STEPS, &err), &err);
        must(rig_seq_open(r, &b, N + STEPS, &err), &err);
        must(rig_step(r, &(struct rig_part){&a, ids, N, &p}, 1, &x, &err), &err);
        must(rig_step(r, &(struct rig_part){&b, ids, N, &with_logprobs}, 1, &y, &err), &err);
        for (int i = 1; i < STEPS; i++, all++) {
            same += x.id == y.id;
            int32_t next = y.id;
            must(rig_step(r, &(struct rig_part){&a, &next, 1, &p}, 1, &x, &err), &err);
            must(rig_step(r, &(struct rig_part){&b, &next, 1, &with_logprobs}, 1, &y, &err), &err);
        }
        rig_seq_close(&a);
        rig_seq_close(&b);
    }
    say(same == all, "%d tokens of %d kinds of sampling: %d equal to the reference sampler's", all, KINDS, same);
}

/* ---- through the engine ---- */

struct answer {
    int32_t ids[MAX_GREEDY];
    struct smp_result last[MAX_GREEDY];
    int n, n_cached;
};

static struct answer ask(struct eng *e, const int32_t *prompt, int n, int n_out)
{
    struct answer a = {0};
    struct smp_params greedy = rig_greedy();
    struct eng_request q = {
        .prompt = prompt, .n_prompt = n, .max_tokens = n_out, .ignore_eos = true, .sampling = greedy};
    struct eng_events v;
    struct km_err err;
    uint64_t id;
    must(eng_submit(e, &q, &id, &err), &err);
    while (!eng_idle(e)) {
        must(eng_step(e, &v, &err), &err);
        for (int i = 0; i < v.n; i++) {
            a.ids[a.n] = v.v[i].token.id;
            a.last[a.n++] = v.v[i].token;
            a.n_cached = v.v[i].n_cached;
        }
    }
    return a;
}

/* One prompt three times: with a cold prefix cache, with the prompt's pages still in the pool, and cold after a
 * reset. */
static void cold_and_warm(const struct mdl *m, const int32_t *ids, double tie)
{
    enum { N = 515, OUT = 16, WARM = N / 16 * 16 };
    struct eng_opts o = eng_defaults();
    struct eng *e;
    struct km_err err;
    o.max_num_seqs = 32;
    o.dtype = KM_BF16;
    o.num_blocks = 509;
    must(eng_open(&e, &o, m, &be_cuda, NULL, &err), &err);
    struct answer cold = ask(e, ids, N, OUT), warm = ask(e, ids, N, OUT);
    must(eng_reset_cache(e, false, &err), &err);
    struct answer again = ask(e, ids, N, OUT);
    double worst = 0;
    int until = 0; /* answers are compared up to the first near-tie that was decided differently */
    bool same = cold.n == OUT && warm.n == OUT;
    while (same && until < OUT) {
        worst = fmax(worst, distance(&cold.last[until], &warm.last[until], NULL));
        same = agree(&cold.last[until], &warm.last[until], tie);
        if (cold.ids[until] != warm.ids[until])
            break;
        until++;
    }
    say(same && worst <= 1.5 * tie && cold.n_cached == 0 && warm.n_cached == WARM,
        "cold and warm prefix cache (%d of %d tokens cached): %d of %d tokens are equal, within %.4f", warm.n_cached, N,
        until, OUT, worst);
    say(again.n_cached == 0 && !memcmp(again.ids, cold.ids, sizeof cold.ids),
        "cold prefix cache after a reset: the same tokens");
    must(eng_check(e, &err), &err);
    eng_close(e);
}

enum { CROWD = 24, CROWD_OUT = 48 };

/* CROWD requests and their answers. */
struct crowd {
    int32_t ids[CROWD][CROWD_OUT], stop[CROWD]; /* answers; stop id of each request, -1: none */
    int n[CROWD], prompt;                       /* tokens of each answer; of the shortest prompt */
};

/* Submits CROWD prompts of different lengths, half of them greedy, to an engine that runs at most max_seqs at once. */
static struct eng *crowd_open(const struct mdl *m, const struct backend *backend, const int32_t *ids, int max_seqs,
                              struct crowd *c)
{
    struct eng_opts o = eng_defaults();
    struct eng *e;
    struct km_err err;
    uint64_t id;
    o.max_num_seqs = max_seqs;
    o.dtype = KM_BF16;
    o.num_blocks = 509;
    must(eng_open(&e, &o, m, backend, NULL, &err), &err);
    for (int i = 0; i < CROWD; i++) {
        struct eng_request q = {.prompt = ids + 64 * i,
                                .n_prompt = c->prompt + 5 * i,
                                .max_tokens = CROWD_OUT - i,
                                .ignore_eos = true,
                                .stop_ids = &c->stop[i],
                                .n_stop = c->stop[i] >= 0,
                                .sampling = smp_defaults(),
                                .user = &c->n[i]};
        q.sampling.temperature = i % 2;
        q.sampling.seed = (uint64_t)i;
        c->n[i] = 0;
        must(eng_submit(e, &q, &id, &err), &err);
    }
    return e;
}

static void crowd_step(struct eng *e, struct crowd *c)
{
    struct eng_events v;
    struct km_err err;
    must(eng_step(e, &v, &err), &err);
    must(eng_check(e, &err), &err);
    for (int i = 0; i < v.n; i++) {
        int *n = v.v[i].user;
        c->ids[n - c->n][(*n)++] = v.v[i].token.id;
    }
}

/* Runs all requests to their end. */
static struct eng_stats serve(const struct mdl *m, const struct backend *backend, const int32_t *ids, int max_seqs,
                              struct crowd *c)
{
    struct eng *e = crowd_open(m, backend, ids, max_seqs, c);
    struct eng_stats st;
    while (!eng_idle(e))
        crowd_step(e, c);
    eng_stats(e, &st);
    eng_close(e);
    return st;
}

/* Number of answers that are equal. */
static int crowds_agree(const struct crowd *a, const struct crowd *b)
{
    int same = 0;
    for (int i = 0; i < CROWD; i++)
        same += a->n[i] == b->n[i] && !memcmp(a->ids[i], b->ids[i], sizeof *a->ids[i] * (size_t)a->n[i]);
    return same;
}

/* Two engines on one GPU, with steps of both in flight, must give the same answers as each engine alone. */
static void two_engines(const struct mdl *m, const int32_t *ids)
{
    static struct crowd alone, c[2];
    struct eng *e[2];
    for (int i = 0; i < CROWD; i++)
        alone.stop[i] = c[0].stop[i] = c[1].stop[i] = -1;
    alone.prompt = c[0].prompt = c[1].prompt = 40;
    serve(m, &be_cuda, ids, 32, &alone);
    for (int i = 0; i < 2; i++)
        e[i] = crowd_open(m, &be_cuda, ids, 32, &c[i]);
    while (!eng_idle(e[0]) || !eng_idle(e[1]))
        for (int i = 0; i < 2; i++)
            if (!eng_idle(e[i]))
                crowd_step(e[i], &c[i]);
    for (int i = 0; i < 2; i++)
        eng_close(e[i]);
    int same[] = {crowds_agree(&alone, &c[0]), crowds_agree(&alone, &c[1])};
    say(same[0] == CROWD && same[1] == CROWD, "two engines on one GPU: %d and %d of %d answers as alone", same[0],
        same[1], CROWD);
}

/* With and without async scheduling the batches are the same, and every token must be equal. Two cases: all requests at
 * once, each ended by its length; and one request at a time, where a stop token wastes the row in flight and the
 * request's pages go to the next request. */
static void async_or_not(const struct mdl *m, const int32_t *ids)
{
    static struct crowd one, two;
    struct backend waits = be_cuda;
    waits.async_sched = false;
    for (int alone = 0; alone < 2; alone++) {
        one.prompt = alone ? 300 : 40;
        for (int i = 0; i < CROWD; i++)
            one.stop[i] = -1;
        if (alone) { /* a first run gives the answers; half of the requests then stop at a token of their answer */
            serve(m, &waits, ids, 1, &one);
            for (int i = 1; i < CROWD; i += 2)
                one.stop[i] = one.ids[i][one.n[i] / 2];
        }
        struct eng_stats a = serve(m, &waits, ids, alone ? 1 : 32, &one);
        memcpy(two.stop, one.stop, sizeof two.stop);
        two.prompt = one.prompt;
        struct eng_stats b = serve(m, &be_cuda, ids, alone ? 1 : 32, &two);
        int same = crowds_agree(&one, &two);
        bool wasted = alone ? b.wasted_rows > 0 : b.wasted_rows == 0;
        say(same == CROWD && !a.async_steps && b.async_steps > b.steps / 2 &&
                a.generated_tokens == b.generated_tokens && wasted && b.finished[ENG_STOP] == a.finished[ENG_STOP],
            "async scheduling, requests %s: %lld of %lld steps submitted early, %d of %d answers as without, "
            "%lld stopped, %lld rows wasted",
            alone ? "one at a time" : "together", (long long)b.async_steps, (long long)b.steps, same, CROWD,
            (long long)b.finished[ENG_STOP], (long long)b.wasted_rows);
    }
}

/* A plan against an open with the same options, to the byte: memory allocated by kind, the backend's own statistics,
 * and the pool. The plan's reserve is not allocated. */
static void compare_plan(const struct mdl *m, const struct be_opts *o, const struct plan *p)
{
    struct kv_geom g;
    struct km_err err;
    struct be *b;
    struct be_stats st;
    int64_t device = km_mem_stats(KM_MEM_DEVICE).current, pinned = km_mem_stats(KM_MEM_PINNED).current;
    must(be_cuda.open(&b, o, m, &g, &err), &err);
    be_cuda.stats(b, &st);
    device = km_mem_stats(KM_MEM_DEVICE).current - device;
    pinned = km_mem_stats(KM_MEM_PINNED).current - pinned;
    be_cuda.close(b);
    if (!o->n_pages && !o->memory_limit) { /* the driver reports free memory in steps of its allocation size */
        double apart = fabs((double)(p->geom.n_pages - g.n_pages)) * (double)g.page_bytes / (1 << 20);
        say(apart < 256, "without a stated limit: %d blocks planned, %d allocated, %.0f MiB apart", p->geom.n_pages,
            g.n_pages, apart);
        return;
    }
    int64_t total = plan_total(p, KM_MEM_DEVICE), taken = total - plan_sum(p, PLAN_RESERVE, KM_MEM_DEVICE);
    say(device == taken && pinned == plan_total(p, KM_MEM_PINNED),
        "plan for %d tokens, %d requests: %lld bytes on the GPU, %lld pinned; allocated: %lld, %lld", o->max_tokens,
        o->max_reqs, (long long)taken, (long long)plan_total(p, KM_MEM_PINNED), (long long)device, (long long)pinned);
    say(st.weight_bytes == plan_sum(p, PLAN_WEIGHTS, KM_MEM_DEVICE) &&
            st.workspace_bytes == plan_sum(p, PLAN_WORKSPACE, KM_MEM_DEVICE) &&
            st.kv_bytes == plan_sum(p, PLAN_KV, KM_MEM_DEVICE) && g.n_pages == p->geom.n_pages &&
            g.page_bytes == p->geom.page_bytes && !memcmp(&g.model, &p->geom.model, sizeof g.model) &&
            !strcmp(st.device, p->device) && total <= p->limit &&
            (o->n_pages || total > p->limit - (int64_t)g.page_bytes),
        "the plan's weights, workspace, KV and %d blocks are those of the backend, within the limit", g.n_pages);
}

/* Runs before any backend is opened: a plan queries the GPU in a child process, which works only while this process has
 * not initialised CUDA. */
static void plans(const struct mdl *m)
{
    static const struct {
        int n_pages, max_tokens, max_reqs;
        bool limit; /* 4 GiB more than the weights */
    } asked[] = {{509, 4096, 64, false}, {0, 2048, 256, true}, {0, 333, 300, true}, {7, 16, 1, false},
                 {0, 2048, 256, false}};
    enum { N = sizeof asked / sizeof *asked };
    static struct plan p[N];
    struct be_opts o[N];
    struct km_err err;
    for (int i = 0; i < N; i++) {
        o[i] = options(asked[i].n_pages);
        o[i].max_tokens = asked[i].max_tokens;
        o[i].max_reqs = asked[i].max_reqs;
        o[i].memory_limit = asked[i].limit ? 2 * mdl_params(m) + ((int64_t)4 << 30) : 0;
        must(be_cuda.plan(&p[i], &o[i], m, &err), &err);
    }
    for (int i = 0; i < N; i++)
        compare_plan(m, &o[i], &p[i]);
}

/* Options that the backend must refuse; each message is printed for a reader to judge. */
static void refusals(const struct mdl *m)
{
    struct be_opts o = options(509);
    struct kv_geom g;
    struct km_err err = {0};
    struct be *b;
    o.dtype = KM_F32;
    say(be_cuda.open(&b, &o, m, &g, &err) == KM_EINVAL, "float32: %s", err.msg);
    o = options(509);
    o.block_size = 12;
    say(be_cuda.open(&b, &o, m, &g, &err) == KM_EINVAL, "block size: %s", err.msg);
    o = options(1 << 26);
    say(be_cuda.open(&b, &o, m, &g, &err) == KM_ELIMIT, "pool: %s", err.msg);
    o = options(0);
    o.memory_limit = 1 << 20;
    say(be_cuda.open(&b, &o, m, &g, &err) == KM_ELIMIT, "limit: %s", err.msg);
    o = options(509);
    o.max_tokens = 1 << 30;
    say(be_cuda.open(&b, &o, m, &g, &err) == KM_EDEVICE, "workspace: %s", err.msg);
}

/* The rates that `kvmark info` prints, also measured in a child process. The bounds are loose: they catch a wrong unit
 * or a wrong clock. */
static void rates(void)
{
    struct rates r;
    struct km_err err;
    must(be_cuda.measure(&r, &err), &err);
    say(r.memory > 0 && r.copy_gbps > 100 && r.copy_gbps < 20000 && r.h2d_gbps > 1 && r.h2d_gbps < 1000 &&
            r.d2h_gbps > 1 && r.d2h_gbps < 1000 && r.gemm_tflops > 20 && r.gemm_tflops < 5000,
        "%s, %.0f GiB: device copies %.0f GB/s, H2D %.1f GB/s, D2H %.1f GB/s, GEMM %.0f TFLOP/s", r.device,
        (double)r.memory / (1 << 30), r.copy_gbps, r.h2d_gbps, r.d2h_gbps, r.gemm_tflops);
}

static void self(const struct mdl *m, double tie)
{
    static int32_t ids[MAX_PROMPT];
    struct be_opts o = options(1021);
    struct km_err err;
    struct rig r;
    rates();
    plans(m);
    some_tokens(ids, MAX_PROMPT, mdl_config(m)->vocab, 1);
    must(rig_open(&r, &be_cuda, &o, m, &err), &err);
    chunks(&r, m, ids, tie);
    static const int sizes[] = {2, 3, 9, 17, 33, 48};
    for (int i = 0; i < 6; i++)
        batches(&r, ids, sizes[i], tie);
    copies(&r, ids);
    sampling(&r, ids);
    against_cpu(&r, m, ids, tie);
    rig_close(&r);
    cold_and_warm(m, ids, tie);
    async_or_not(m, ids);
    two_engines(m, ids);
    refusals(m);
    struct km_mem_stats left = km_mem_stats(KM_MEM_DEVICE);
    say(left.current == 0, "all device memory is freed: %lld bytes are left", (long long)left.current);
}

int main(int argc, char **argv)
{
    struct km_err err;
    struct mdl *m;
    bool vectors = argc > 3 && !strcmp(argv[1], "golden");
    if (!vectors && (argc < 3 || strcmp(argv[1], "self"))) {
        fprintf(stderr, "usage: engine_check golden MODEL VECTORS.json [TIE] | self MODEL [TIE]\n");
        return 2;
    }
    setvbuf(stdout, NULL, _IOLBF, 0);
    const char *tie = argc > 3 + vectors ? argv[3 + vectors] : "0.2";
    must(be_cuda.probe(&err), &err);
    must(mdl_open(&m, argv[2], false, SEED, &err), &err);
    if (vectors)
        golden(m, argv[3], atof(tie));
    else
        self(m, atof(tie));
    mdl_free(m);
    printf("%s: %d failures\n", failures ? "FAILED" : "all good", failures);
    return failures != 0;
}
