/* Checks the CUDA backend as a whole. It compares the backend with vectors from another implementation, with the CPU
 * backend, and with itself: in a batch and alone, after copies of the KV, with a cold and a warm prefix cache, with and
 * without async scheduling. This is a program, not a unit test, because it needs a GPU. KV pools are filled with NaN
 * first.
 *
 *   engine_check golden MODEL VECTORS.json [TOLERANCE]   compares top log-probabilities and greedy ids with the vectors
 *   engine_check self MODEL [TOLERANCE]                  checks of the backend and the engine
 *   engine_check cache MODEL [TOLERANCE]                 checks of the engine with the KV-cache layer
 *
 * Exit status 1: a check has failed; 2: wrong arguments. MODEL is a folder, or a preset with dummy weights of seed 7. A
 * log-probability may differ by TOLERANCE (default 0.2). If it is below -1, the tolerance is relative to its value:
 * bf16 has 8 significant bits, so the error grows with the logit. Two ids may be exchanged if the difference of their
 * log-probabilities is within the tolerance. Two results that are both computed in bf16 may differ by 1.5 TOLERANCE. */
#include "base/json.h"
#include "base/mem.h"
#include "base/page_sum.h"
#include "engine/cuda/test/cache_check.h"
#include "engine/cuda/test/judge.h"
#include "engine/engine.h"
#include "engine/rates.h"
#include "engine/test/backend_rig.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SEED = 7, MAX_PROMPT = 8192 }; /* of dummy weights; most tokens of a prompt */

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

/* ---- vectors from another implementation ---- */

/* Reads at most `max` numbers of a JSON array. Returns how many. */
static int read_ints(const cJSON *v, int32_t *out, int max)
{
    int n = 0;
    const cJSON *x;
    cJSON_ArrayForEach(x, v) if (n < max) out[n++] = (int32_t)x->valuedouble;
    return n;
}

struct score {
    double largest, squares; /* of the differences of log-probabilities: the largest, the sum of squares */
    int n;                   /* compared log-probabilities */
    int steps, ties, agreed; /* greedy steps; of these the near-ties; equal ids among the others */
    int in_top5;             /* steps whose expected id is among the top 5 */
};

/* Scores one vector: prefills its prompt, then decodes with its greedy ids as input. */
static void score_vector(struct rig *r, const cJSON *v, double tolerance, struct score *s)
{
    static int32_t prompt[MAX_PROMPT], want[JDG_MOST];
    struct km_err err;
    struct rig_seq q;
    struct smp_params greedy = rig_greedy();
    struct smp_result res = {0};
    int n = read_ints(cJSON_GetObjectItem(v, "prompt_ids"), prompt, MAX_PROMPT),
        n_want = read_ints(cJSON_GetObjectItem(v, "greedy_ids"), want, JDG_MOST);
    jdg_exit_on_error(rig_seq_open(r, &q, n + n_want, &err), &err);
    jdg_exit_on_error(rig_prefill(r, &q, prompt, n, 4096, &res, &err), &err);
    const cJSON *top, *gap = cJSON_GetObjectItem(v, "greedy_gap")->child;
    cJSON_ArrayForEach(top, cJSON_GetObjectItem(v, "last_top8"))
    {
        int id = cJSON_GetArrayItem(top, 0)->valueint, i = 0;
        while (i < res.n_top && res.top_id[i] != id)
            i++;
        double d = i < res.n_top ? jdg_difference(res.top_logprob[i], cJSON_GetArrayItem(top, 1)->valuedouble) : 99;
        s->largest = fmax(s->largest, d);
        s->squares += d * d;
        s->n++;
    }
    for (int i = 0; i < n_want && gap; i++, gap = gap->next) {
        bool top5 = false;
        for (int j = 0; j < 5; j++)
            top5 |= res.top_id[j] == want[i];
        s->steps++;
        s->in_top5 += top5;
        if (jdg_is_near_tie(gap->valuedouble, res.top_logprob[0], tolerance))
            s->ties++;
        else
            s->agreed += res.id == want[i];
        if (i + 1 < n_want)
            jdg_exit_on_error(rig_step(r, &(struct rig_part){&q, &want[i], 1, &greedy}, 1, &res, &err), &err);
    }
    rig_seq_close(&q);
}

static void check_golden(const struct mdl *m, const char *path, double tolerance)
{
    struct km_err err;
    struct rig r;
    struct score s = {0};
    cJSON *file;
    const cJSON *v;
    struct be_opts o = options(1021);
    jdg_exit_on_error(km_json_file(path, 0, &file, &err), &err);
    jdg_exit_on_error(rig_open(&r, &be_cuda, &o, m, &err), &err);
    cJSON_ArrayForEach(v, cJSON_GetObjectItem(file, "vectors")) score_vector(&r, v, tolerance, &s);
    jdg_report(
        s.steps && s.largest <= tolerance && s.agreed + s.ties == s.steps && s.in_top5 == s.steps,
        "%s, vectors of %s: log-probabilities of the top 8 ids differ by at most %.3f (tolerance %.2f), root mean "
        "square "
        "%.4f; %d of %d greedy ids are equal, %d more are near-ties; %d of %d expected ids are among the top 5",
        mdl_name(m), path, s.largest, tolerance, sqrt(s.squares / s.n), s.agreed, s.steps - s.ties, s.ties, s.in_top5,
        s.steps);
    rig_close(&r);
    cJSON_Delete(file);
}

/* ---- comparison with the CPU backend and with itself ---- */

enum { CHUNKED = 700, CHUNK_STEPS = 8 }; /* tokens of the prompt; results that are compared */

/* Prefills the prompt in chunks of `size` tokens, then decodes. The input of a decode is the id of the previous result
 * in `exact`, or in `got` if `exact` is NULL. */
static void prefill_and_decode(struct rig *r, const int32_t *ids, int size, const struct smp_result *exact,
                               struct smp_result *got)
{
    struct smp_params greedy = rig_greedy();
    struct km_err err;
    struct rig_seq q;
    jdg_exit_on_error(rig_seq_open(r, &q, CHUNKED + CHUNK_STEPS, &err), &err);
    jdg_exit_on_error(rig_prefill(r, &q, ids, CHUNKED, size, &got[0], &err), &err);
    for (int i = 1; i < CHUNK_STEPS; i++) {
        const int32_t *next = exact ? &exact[i - 1].id : &got[i - 1].id;
        jdg_exit_on_error(rig_step(r, &(struct rig_part){&q, next, 1, &greedy}, 1, &got[i], &err), &err);
    }
    rig_seq_close(&q);
}

static void prefill_and_decode_on_cpu(const struct mdl *m, enum km_dtype dtype, const int32_t *ids,
                                      const struct smp_result *exact, struct smp_result *got)
{
    struct be_opts o = options(509);
    struct km_err err;
    struct rig cpu;
    o.dtype = dtype;
    jdg_exit_on_error(rig_open(&cpu, &be_cpu, &o, m, &err), &err);
    prefill_and_decode(&cpu, ids, CHUNKED, exact, got);
    rig_close(&cpu);
}

/* The differences may be those of bfloat16 arithmetic. Their root mean square may be a third of TOLERANCE. Ids are not
 * compared: a different id implies a difference of log-probabilities. */
static void compare_with_exact(const char *what, int size, const struct smp_result *exact, const struct smp_result *got,
                               double tolerance)
{
    double largest = 0, squares = 0, mean2;
    for (int i = 0; i < CHUNK_STEPS; i++) {
        largest = fmax(largest, jdg_largest_difference(&exact[i], &got[i], &mean2));
        squares += mean2 / CHUNK_STEPS;
    }
    jdg_report(largest <= 1.5 * tolerance && sqrt(squares) <= tolerance / 3,
               "%s, prefill of %d tokens in chunks of %d and %d results: log-probabilities differ from the CPU's in "
               "float32 by "
               "at most %.4f, root mean square %.4f",
               what, CHUNKED, size, CHUNK_STEPS, largest, sqrt(squares));
}

/* Compares chunked prefill with the CPU in float32. The CPU in bfloat16 must meet the same tolerance as the GPU. */
static void check_chunks(struct rig *r, const struct mdl *m, const int32_t *ids, double tolerance)
{
    static const int sizes[] = {CHUNKED, 1, 7, 255, 256, 257};
    static struct smp_result exact[CHUNK_STEPS], got[CHUNK_STEPS];
    prefill_and_decode_on_cpu(m, KM_F32, ids, NULL, exact);
    prefill_and_decode_on_cpu(m, KM_BF16, ids, exact, got);
    compare_with_exact("CPU in bfloat16", CHUNKED, exact, got, tolerance);
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        prefill_and_decode(r, ids, sizes[i], exact, got);
        compare_with_exact("CUDA", sizes[i], exact, got, tolerance);
    }
}

enum { MAX_BATCH = 48, BATCH_STEPS = 4 };

static int batch_prompt_len(int i)
{
    return 1 + (i * 37) % 150;
}

/* Runs n sequences one by one: alone[i] has the results of sequence i. */
static void run_alone(struct rig *r, const int32_t *ids, int n, struct smp_result alone[][BATCH_STEPS])
{
    static struct rig_seq q[MAX_BATCH];
    struct smp_params greedy = rig_greedy();
    struct km_err err;
    for (int i = 0; i < n; i++) {
        int len = batch_prompt_len(i);
        jdg_exit_on_error(rig_seq_open(r, &q[i], len + BATCH_STEPS, &err), &err);
        jdg_exit_on_error(rig_prefill(r, &q[i], ids + i, len, len, &alone[i][0], &err), &err);
        for (int k = 1; k < BATCH_STEPS; k++)
            jdg_exit_on_error(
                rig_step(r, &(struct rig_part){&q[i], &alone[i][k - 1].id, 1, &greedy}, 1, &alone[i][k], &err), &err);
    }
    for (int i = 0; i < n; i++)
        rig_seq_close(&q[i]);
}

/* Runs n sequences of many lengths alone and in one batch, and compares the results. In the first step of the batch,
 * even sequences prefill, and odd ones, which were prefilled alone, decode. The decode steps after it are padded to the
 * size of a CUDA graph. */
static void check_batch(struct rig *r, const int32_t *ids, int n, double tolerance)
{
    static struct smp_result alone[MAX_BATCH][BATCH_STEPS], got[MAX_BATCH];
    static struct rig_seq q[MAX_BATCH];
    struct rig_part parts[MAX_BATCH];
    struct smp_params greedy = rig_greedy();
    struct km_err err;
    double largest = 0;
    bool same = true;
    memset(alone, 0, sizeof alone);
    run_alone(r, ids, n, alone);
    for (int i = 0; i < n; i++) {
        int len = batch_prompt_len(i);
        jdg_exit_on_error(rig_seq_open(r, &q[i], len + BATCH_STEPS, &err), &err);
        if (i % 2)
            jdg_exit_on_error(rig_prefill(r, &q[i], ids + i, len, len, &got[i], &err), &err);
        else
            parts[i] = (struct rig_part){&q[i], ids + i, len, &greedy};
    }
    for (int k = 0; k + 1 < BATCH_STEPS; k++) { /* odd sequences are one token further than even ones */
        for (int i = 0; i < n; i++)
            if (k || i % 2)
                parts[i] = (struct rig_part){&q[i], &alone[i][k - 1 + i % 2].id, 1, &greedy};
        jdg_exit_on_error(rig_step(r, parts, n, got, &err), &err);
        for (int i = 0; i < n; i++) {
            const struct smp_result *want = &alone[i][k + i % 2];
            largest = fmax(largest, jdg_largest_difference(want, &got[i], NULL));
            same &= jdg_agree(want, &got[i], tolerance);
        }
    }
    for (int i = 0; i < n; i++)
        rig_seq_close(&q[i]);
    jdg_report(
        same && largest <= 1.5 * tolerance,
        "%d requests in one batch, prefills and decodes in one step: log-probabilities differ from those of each "
        "request alone by at most %.4f",
        n, largest);
}

/* Number of copies whose checksum is that of their page in host memory. */
static int count_good_sums(const struct rig *r, const struct kv_copy *c, int n)
{
    int good = 0;
    for (int i = 0; i < n; i++)
        good += c[i].sum == km_page_sum(c[i].host, r->g.page_bytes / 8, (uint32_t)r->g.head_dim / 4,
                                        (uint32_t)r->g.block_size, (uint32_t)c[i].n_tokens, c[i].seed);
    return good;
}

/* Copies a sequence's KV to the host, overwrites its pages with NaN, and copies the KV back to other pages. The next
 * step must have the same bits, and the checksums of both copies must be those of the host. */
static void check_copies(struct rig *r, const int32_t *ids)
{
    enum { N = 333 };
    struct rig_seq a, b;
    struct smp_result first = {0}, second = {0}, third = {0};
    struct smp_params greedy = rig_greedy();
    struct km_err err;
    uint64_t ticket;
    jdg_exit_on_error(rig_seq_open(r, &a, N + 2, &err), &err);
    jdg_exit_on_error(rig_seq_open(r, &b, N + 2, &err), &err);
    int n = a.blocks, good[2];
    size_t page = r->g.page_bytes, size = ((size_t)n * page + 4095) / 4096 * 4096;
    char *host = aligned_alloc(4096, size), *nan = km_malloc((size_t)n * page);
    struct kv_copy *c = km_calloc((size_t)n, sizeof *c);
    jdg_exit_on_error(r->backend->host_register(r->b, host, size, &err), &err);
    jdg_exit_on_error(rig_prefill(r, &a, ids, N, N, &first, &err), &err);
    for (int i = 0; i < n; i++)
        c[i] = (struct kv_copy){.page = a.table[i],
                                .n_tokens = i + 1 < n ? r->g.block_size : (N - 1) % r->g.block_size + 1,
                                .host = host + (size_t)i * page,
                                .seed = km_page_sum_seed(SEED, (uint32_t)i)};
    jdg_exit_on_error(rig_copy_pages(r, KV_TO_HOST, c, n, &err), &err);
    good[0] = count_good_sums(r, c, n);
    jdg_exit_on_error(rig_step(r, &(struct rig_part){&a, &first.id, 1, &greedy}, 1, &second, &err), &err);
    memset(nan, 0xFF, (size_t)n * page);
    jdg_exit_on_error(rig_copy(r, &a, KV_TO_PAGE, nan, &err), &err);
    for (int i = 0; i < n; i++)
        c[i].page = b.table[i], c[i].sum = 0;
    jdg_exit_on_error(rig_copy_pages(r, KV_TO_PAGE, c, n, &err), &err);
    good[1] = count_good_sums(r, c, n);
    b.n_done = N;
    jdg_exit_on_error(rig_step(r, &(struct rig_part){&b, &first.id, 1, &greedy}, 1, &third, &err), &err);
    jdg_report(
        second.id == third.id && !memcmp(second.top_logprob, third.top_logprob, sizeof second.top_logprob) &&
            good[0] == n && good[1] == n,
        "%d pages copied to the host and back to other pages: the next step has the same bits, %d and %d checksums "
        "are right",
        n, good[0], good[1]);
    c[0].page = r->g.n_pages;
    jdg_report(r->backend->copy(r->b, KV_TO_HOST, c, 1, 0, &ticket, &err) == KM_EINVAL,
               "a copy of a page outside the pool is refused: \"%s\"", err.msg);
    r->backend->host_unregister(r->b, host, size);
    free(host);
    km_free(nan);
    km_free(c);
    rig_seq_close(&a);
    rig_seq_close(&b);
}

/* Compares prompts of several lengths with the CPU backend in bfloat16. */
static void check_against_cpu(struct rig *r, const struct mdl *m, const int32_t *ids, double tolerance)
{
    enum { STEPS = 8 };
    static const int lens[] = {1, 16, 17, 130, 700};
    struct be_opts o = options(509);
    struct smp_params greedy = rig_greedy();
    struct km_err err;
    struct rig cpu;
    double largest = 0;
    bool same = true;
    jdg_exit_on_error(rig_open(&cpu, &be_cpu, &o, m, &err), &err);
    for (int l = 0; l < 5; l++) {
        struct rig_seq a, b;
        struct smp_result x = {0}, y = {0};
        jdg_exit_on_error(rig_seq_open(r, &a, lens[l] + STEPS, &err), &err);
        jdg_exit_on_error(rig_seq_open(&cpu, &b, lens[l] + STEPS, &err), &err);
        jdg_exit_on_error(rig_prefill(r, &a, ids + l, lens[l], 4096, &x, &err), &err);
        jdg_exit_on_error(rig_prefill(&cpu, &b, ids + l, lens[l], 4096, &y, &err), &err);
        for (int i = 0; i < STEPS; i++) {
            int32_t next = y.id;
            largest = fmax(largest, jdg_largest_difference(&y, &x, NULL));
            same &= jdg_agree(&y, &x, tolerance);
            jdg_exit_on_error(rig_step(r, &(struct rig_part){&a, &next, 1, &greedy}, 1, &x, &err), &err);
            jdg_exit_on_error(rig_step(&cpu, &(struct rig_part){&b, &next, 1, &greedy}, 1, &y, &err), &err);
        }
        rig_seq_close(&a);
        rig_seq_close(&b);
    }
    jdg_report(
        same && largest <= 1.5 * tolerance,
        "prompts of 1 to 700 tokens and %d decodes each: log-probabilities differ from the CPU's in bfloat16 by at "
        "most %.4f",
        STEPS, largest);
    rig_close(&cpu);
}

/* Compares the sampling kernels with the reference sampler, which samples all rows that ask for log-probabilities. */
static void check_sampling(struct rig *r, const int32_t *ids)
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
        jdg_exit_on_error(rig_seq_open(r, &a, N + STEPS, &err), &err);
        jdg_exit_on_error(rig_seq_open(r, &b, N + STEPS, &err), &err);
        jdg_exit_on_error(rig_step(r, &(struct rig_part){&a, ids, N, &p}, 1, &x, &err), &err);
        jdg_exit_on_error(rig_step(r, &(struct rig_part){&b, ids, N, &with_logprobs}, 1, &y, &err), &err);
        for (int i = 1; i < STEPS; i++, all++) {
            same += x.id == y.id;
            int32_t next = y.id;
            jdg_exit_on_error(rig_step(r, &(struct rig_part){&a, &next, 1, &p}, 1, &x, &err), &err);
            jdg_exit_on_error(rig_step(r, &(struct rig_part){&b, &next, 1, &with_logprobs}, 1, &y, &err), &err);
        }
        rig_seq_close(&a);
        rig_seq_close(&b);
    }
    jdg_report(same == all, "%d kinds of sampling: %d of %d ids are equal to those of the reference sampler", KINDS,
               same, all);
}

/* ---- checks of the engine with this backend ---- */

/* Runs one prompt three times: with a cold prefix cache, with a warm one, and again cold after a reset. */
static void check_prefix_cache(const struct mdl *m, const int32_t *ids, double tolerance)
{
    enum { N = 515, OUT = 16, WARM = N / 16 * 16 };
    struct eng_opts o = eng_defaults();
    struct eng *e;
    struct km_err err;
    o.max_num_seqs = 32;
    o.dtype = KM_BF16;
    o.num_blocks = 509;
    jdg_exit_on_error(eng_open(&e, &o, m, &be_cuda, NULL, &err), &err);
    struct jdg_answer cold = jdg_ask(e, ids, N, OUT), warm = jdg_ask(e, ids, N, OUT);
    jdg_exit_on_error(eng_reset_cache(e, false, &err), &err);
    struct jdg_answer again = jdg_ask(e, ids, N, OUT);
    double largest = 0;
    int n_equal = 0;
    bool same = jdg_same_answer(&cold, &warm, tolerance, &n_equal, &largest);
    jdg_report(same && cold.n == OUT && cold.n_cached == 0 && warm.n_cached == WARM,
               "warm prefix cache, %d of %d tokens cached: the first %d of %d tokens are those with a cold cache, "
               "log-probabilities "
               "differ by at most %.4f",
               warm.n_cached, N, n_equal, OUT, largest);
    jdg_report(again.n_cached == 0 && !memcmp(again.ids, cold.ids, sizeof cold.ids),
               "prefix cache after a reset: the tokens are those with a cold cache");
    jdg_exit_on_error(eng_check(e, &err), &err);
    eng_close(e);
}

enum { CROWD = 24, CROWD_OUT = 48 };

/* CROWD requests and their answers. */
struct crowd {
    int32_t ids[CROWD][CROWD_OUT]; /* tokens of each answer */
    int n[CROWD];                  /* number of tokens of each answer */
    int32_t stop[CROWD];           /* stop id of each request; -1: none */
    int shortest;                  /* tokens of the shortest prompt */
};

/* Opens an engine that runs at most max_seqs requests at once, and submits CROWD prompts of different lengths to it.
 * Half of the requests are greedy. */
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
    jdg_exit_on_error(eng_open(&e, &o, m, backend, NULL, &err), &err);
    for (int i = 0; i < CROWD; i++) {
        struct eng_request q = {.prompt = ids + 64 * i,
                                .n_prompt = c->shortest + 5 * i,
                                .max_tokens = CROWD_OUT - i,
                                .ignore_eos = true,
                                .stop_ids = &c->stop[i],
                                .n_stop = c->stop[i] >= 0,
                                .sampling = smp_defaults(),
                                .user = &c->n[i]};
        q.sampling.temperature = i % 2;
        q.sampling.seed = (uint64_t)i;
        c->n[i] = 0;
        jdg_exit_on_error(eng_submit(e, &q, &id, &err), &err);
    }
    return e;
}

static void crowd_step(struct eng *e, struct crowd *c)
{
    struct eng_events v;
    struct km_err err;
    jdg_exit_on_error(eng_step(e, &v, &err), &err);
    jdg_exit_on_error(eng_check(e, &err), &err);
    for (int i = 0; i < v.n; i++) {
        int *n = v.v[i].user;
        c->ids[n - c->n][(*n)++] = v.v[i].token.id;
    }
}

/* Opens an engine, runs all requests to their end, and returns the engine's statistics. */
static struct eng_stats run_crowd(const struct mdl *m, const struct backend *backend, const int32_t *ids, int max_seqs,
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

/* Number of equal answers. */
static int count_equal_answers(const struct crowd *a, const struct crowd *b)
{
    int same = 0;
    for (int i = 0; i < CROWD; i++)
        same += a->n[i] == b->n[i] && !memcmp(a->ids[i], b->ids[i], sizeof *a->ids[i] * (size_t)a->n[i]);
    return same;
}

/* Two engines on one GPU, with steps of both in flight, must give the answers of an engine alone. */
static void check_two_engines(const struct mdl *m, const int32_t *ids)
{
    static struct crowd alone, c[2];
    struct eng *e[2];
    for (int i = 0; i < CROWD; i++)
        alone.stop[i] = c[0].stop[i] = c[1].stop[i] = -1;
    alone.shortest = c[0].shortest = c[1].shortest = 40;
    run_crowd(m, &be_cuda, ids, 32, &alone);
    for (int i = 0; i < 2; i++)
        e[i] = crowd_open(m, &be_cuda, ids, 32, &c[i]);
    while (!eng_idle(e[0]) || !eng_idle(e[1]))
        for (int i = 0; i < 2; i++)
            if (!eng_idle(e[i]))
                crowd_step(e[i], &c[i]);
    for (int i = 0; i < 2; i++)
        eng_close(e[i]);
    int same[] = {count_equal_answers(&alone, &c[0]), count_equal_answers(&alone, &c[1])};
    jdg_report(same[0] == CROWD && same[1] == CROWD,
               "two engines on one GPU: %d and %d of %d answers are those of an engine alone", same[0], same[1], CROWD);
}

/* With and without async scheduling the batches are the same, so every token must be equal. There are two cases: all
 * requests at once, each ended by its length; and one request at a time, where a stop id wastes the row in flight, and
 * the next request gets the pages of the stopped request. */
static void check_async_sched(const struct mdl *m, const int32_t *ids, bool one_at_a_time)
{
    static struct crowd without, with;
    struct backend be_without = be_cuda;
    const int max_seqs = one_at_a_time ? 1 : 32;
    be_without.async_sched = false;
    without.shortest = one_at_a_time ? 300 : 40;
    for (int i = 0; i < CROWD; i++)
        without.stop[i] = -1;
    if (one_at_a_time) { /* a first run gives the answers; then half of the requests stop at a token of their answer */
        run_crowd(m, &be_without, ids, max_seqs, &without);
        for (int i = 1; i < CROWD; i += 2)
            without.stop[i] = without.ids[i][without.n[i] / 2];
    }
    struct eng_stats a = run_crowd(m, &be_without, ids, max_seqs, &without);
    memcpy(with.stop, without.stop, sizeof with.stop);
    with.shortest = without.shortest;
    struct eng_stats b = run_crowd(m, &be_cuda, ids, max_seqs, &with);
    int n_equal = count_equal_answers(&without, &with);
    bool wasted = one_at_a_time ? b.wasted_rows > 0 : b.wasted_rows == 0;
    jdg_report(
        n_equal == CROWD && !a.async_steps && b.async_steps > b.steps / 2 && a.generated_tokens == b.generated_tokens &&
            wasted && b.finished[ENG_STOP] == a.finished[ENG_STOP],
        "async scheduling, requests %s: %d of %d answers are those without async scheduling; %lld of %lld steps were "
        "submitted while the previous step ran; %lld requests ended by a stop id, %lld rows were wasted",
        one_at_a_time ? "one at a time" : "together", n_equal, CROWD, (long long)b.async_steps, (long long)b.steps,
        (long long)b.finished[ENG_STOP], (long long)b.wasted_rows);
}

/* Compares a plan with what an open with the same options allocates, to the byte: memory by kind, the backend's
 * statistics, and the pool. The plan's reserve is not allocated. */
static void compare_plan(const struct mdl *m, const struct be_opts *o, const struct plan *p)
{
    struct kv_geom g;
    struct km_err err;
    struct be *b;
    struct be_stats st;
    int64_t device = km_mem_stats(KM_MEM_DEVICE).current, pinned = km_mem_stats(KM_MEM_PINNED).current;
    jdg_exit_on_error(be_cuda.open(&b, o, m, &g, &err), &err);
    be_cuda.stats(b, &st);
    device = km_mem_stats(KM_MEM_DEVICE).current - device;
    pinned = km_mem_stats(KM_MEM_PINNED).current - pinned;
    be_cuda.close(b);
    if (!o->n_pages && !o->memory_limit) { /* the driver reports free memory in steps of its allocation size */
        double mib = fabs((double)(p->geom.n_pages - g.n_pages)) * (double)g.page_bytes / (1 << 20);
        jdg_report(mib < 256, "plan without a memory limit: %d blocks planned, %d allocated, a difference of %.0f MiB",
                   p->geom.n_pages, g.n_pages, mib);
        return;
    }
    int64_t total = plan_total(p, KM_MEM_DEVICE), planned = total - plan_sum(p, PLAN_RESERVE, KM_MEM_DEVICE);
    jdg_report(device == planned && pinned == plan_total(p, KM_MEM_PINNED),
               "plan for %d tokens and %d requests: %lld bytes on the GPU and %lld pinned bytes planned, %lld and %lld "
               "allocated",
               o->max_tokens, o->max_reqs, (long long)planned, (long long)plan_total(p, KM_MEM_PINNED),
               (long long)device, (long long)pinned);
    jdg_report(
        st.weight_bytes == plan_sum(p, PLAN_WEIGHTS, KM_MEM_DEVICE) &&
            st.workspace_bytes == plan_sum(p, PLAN_WORKSPACE, KM_MEM_DEVICE) &&
            st.kv_bytes == plan_sum(p, PLAN_KV, KM_MEM_DEVICE) && g.n_pages == p->geom.n_pages &&
            g.page_bytes == p->geom.page_bytes && !memcmp(&g.model, &p->geom.model, sizeof g.model) &&
            !strcmp(st.device, p->device) && total <= p->limit &&
            (o->n_pages || total > p->limit - (int64_t)g.page_bytes),
        "the plan's sizes of weights, workspace and KV and its %d blocks are the backend's, and within the limit",
        g.n_pages);
}

/* Runs before any backend is opened: a plan queries the GPU in a child process, which works only while this process has
 * not initialised CUDA. */
static void check_plans(const struct mdl *m)
{
    static const struct {
        int n_pages, max_tokens, max_reqs;
        bool limit; /* 4 GiB more than the weights */
    } cases[] = {
        {509, 4096, 64, false}, {0, 2048, 256, true}, {0, 333, 300, true}, {7, 16, 1, false}, {0, 2048, 256, false}};
    enum { N = sizeof cases / sizeof *cases };
    static struct plan p[N];
    struct be_opts o[N];
    struct km_err err;
    for (int i = 0; i < N; i++) {
        o[i] = options(cases[i].n_pages);
        o[i].max_tokens = cases[i].max_tokens;
        o[i].max_reqs = cases[i].max_reqs;
        o[i].memory_limit = cases[i].limit ? 2 * mdl_params(m) + ((int64_t)4 << 30) : 0;
        jdg_exit_on_error(be_cuda.plan(&p[i], &o[i], m, &err), &err);
    }
    for (int i = 0; i < N; i++)
        compare_plan(m, &o[i], &p[i]);
}

/* Options that the backend must refuse. The messages are printed, so that a reader can check them. */
static void check_refusals(const struct mdl *m)
{
    struct be_opts o = options(509);
    struct kv_geom g;
    struct km_err err = {0};
    struct be *b;
    o.dtype = KM_F32;
    jdg_report(be_cuda.open(&b, &o, m, &g, &err) == KM_EINVAL, "float32 is refused: \"%s\"", err.msg);
    o = options(509);
    o.block_size = 12;
    jdg_report(be_cuda.open(&b, &o, m, &g, &err) == KM_EINVAL, "a block size of 12 is refused: \"%s\"", err.msg);
    o = options(1 << 26);
    jdg_report(be_cuda.open(&b, &o, m, &g, &err) == KM_ELIMIT, "a pool of 2^26 pages is refused: \"%s\"", err.msg);
    o = options(0);
    o.memory_limit = 1 << 20;
    jdg_report(be_cuda.open(&b, &o, m, &g, &err) == KM_ELIMIT, "a memory limit of 1 MiB is refused: \"%s\"", err.msg);
    o = options(509);
    o.max_tokens = 1 << 30;
    jdg_report(be_cuda.open(&b, &o, m, &g, &err) == KM_EDEVICE, "a workspace for 2^30 tokens is refused: \"%s\"",
               err.msg);
}

/* Checks the rates that `kvmark info` prints, which are measured in a child process. The bounds are loose. They find a
 * wrong unit or a wrong clock. */
static void check_rates(void)
{
    struct rates r;
    struct km_err err;
    jdg_exit_on_error(be_cuda.measure(&r, &err), &err);
    jdg_report(r.memory > 0 && r.copy_gbps > 100 && r.copy_gbps < 20000 && r.h2d_gbps > 1 && r.h2d_gbps < 1000 &&
                   r.d2h_gbps > 1 && r.d2h_gbps < 1000 && r.gemm_tflops > 20 && r.gemm_tflops < 5000,
               "rates of %s, %.0f GiB: device copies %.0f GB/s, H2D %.1f GB/s, D2H %.1f GB/s, GEMM %.0f TFLOP/s",
               r.device, (double)r.memory / (1 << 30), r.copy_gbps, r.h2d_gbps, r.d2h_gbps, r.gemm_tflops);
}

static void check_self(const struct mdl *m, double tolerance)
{
    static int32_t ids[MAX_PROMPT];
    struct be_opts o = options(1021);
    struct km_err err;
    struct rig r;
    check_rates();
    check_plans(m);
    jdg_random_tokens(ids, MAX_PROMPT, mdl_config(m)->vocab, 1);
    jdg_exit_on_error(rig_open(&r, &be_cuda, &o, m, &err), &err);
    check_chunks(&r, m, ids, tolerance);
    static const int sizes[] = {2, 3, 9, 17, 33, 48};
    for (int i = 0; i < 6; i++)
        check_batch(&r, ids, sizes[i], tolerance);
    check_copies(&r, ids);
    check_sampling(&r, ids);
    check_against_cpu(&r, m, ids, tolerance);
    rig_close(&r);
    check_prefix_cache(m, ids, tolerance);
    check_async_sched(m, ids, false);
    check_async_sched(m, ids, true);
    check_two_engines(m, ids);
    check_refusals(m);
    struct km_mem_stats left = km_mem_stats(KM_MEM_DEVICE);
    jdg_report(left.current == 0, "after all backends were closed, %lld bytes of device memory are allocated",
               (long long)left.current);
}

int main(int argc, char **argv)
{
    struct km_err err;
    struct mdl *m;
    const char *mode = argc > 2 ? argv[1] : "";
    bool vectors = !strcmp(mode, "golden") && argc > 3;
    if (!vectors && strcmp(mode, "self") && strcmp(mode, "cache")) {
        fprintf(stderr, "usage: engine_check golden MODEL VECTORS.json [TOLERANCE] | self MODEL [TOLERANCE] | "
                        "cache MODEL [TOLERANCE]\n");
        return 2;
    }
    setvbuf(stdout, NULL, _IOLBF, 0);
    const char *tolerance = argc > 3 + vectors ? argv[3 + vectors] : "0.2";
    jdg_exit_on_error(be_cuda.probe(&err), &err);
    jdg_exit_on_error(mdl_open(&m, argv[2], false, SEED, &err), &err);
    if (vectors)
        check_golden(m, argv[3], atof(tolerance));
    else if (!strcmp(mode, "self"))
        check_self(m, atof(tolerance));
    else
        cac_check(m, atof(tolerance));
    mdl_free(m);
    printf("engine_check: %s, %d failed checks\n", jdg_failures ? "FAILED" : "all checks passed", jdg_failures);
    return jdg_failures != 0;
}
