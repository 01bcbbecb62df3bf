/* Compares the CPU backend with vectors of another implementation, with a plain reference, and with itself: with
 * chunked prefill, in batches and with scattered pages. Every KV pool is filled with NaN before use. */
#include "base/test/test.h"

#include "base/file.h"
#include "base/json.h"
#include "base/mem.h"
#include "engine/cpu/forward.h"
#include "engine/cpu/test/cpu_rig.h"
#include "engine/cpu/test/reference.h"
#include "engine/test/fixture.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static struct smp_params greedy; /* set by main */

/* ---- vectors of another implementation ---- */

/* Reads the numbers of a JSON array. Returns how many. */
static int read_ints(const cJSON *v, int32_t *out)
{
    int n = 0;
    const cJSON *x;
    cJSON_ArrayForEach(x, v) out[n++] = (int32_t)x->valuedouble;
    return n;
}

struct score {
    double worst;            /* largest difference of a log-probability among the top 8 */
    int steps, ties, agreed; /* greedy steps; of these the near-ties; equal ids among the others */
    int in_top5;             /* steps whose expected id is among the top 5 */
};

/* Scores one vector: prefills its prompt, then decodes with its greedy ids as input. A step is a near-tie if the
 * vector's first two log-probabilities differ by at most `tie`. */
static void score_vector(struct rig *r, const cJSON *v, double tie, struct score *s)
{
    static int32_t prompt[8192], want[64];
    int n = read_ints(cJSON_GetObjectItem(v, "prompt_ids"), prompt),
        n_want = read_ints(cJSON_GetObjectItem(v, "greedy_ids"), want);
    struct rig_seq q;
    open_seq(r, &q, n + n_want);
    struct smp_result res = prefill(r, &q, prompt, n, 2048);
    const cJSON *top;
    cJSON_ArrayForEach(top, cJSON_GetObjectItem(v, "last_top8"))
    {
        int id = cJSON_GetArrayItem(top, 0)->valueint, i = 0;
        while (i < res.n_top && res.top_id[i] != id)
            i++;
        double err = i < res.n_top ? fabs((double)res.top_logprob[i] - cJSON_GetArrayItem(top, 1)->valuedouble) : 99;
        s->worst = err > s->worst ? err : s->worst;
    }
    const cJSON *gap = cJSON_GetObjectItem(v, "greedy_gap")->child;
    for (int i = 0; i < n_want; i++, gap = gap->next) {
        bool top5 = false;
        for (int j = 0; j < 5; j++)
            top5 |= res.top_id[j] == want[i];
        s->steps++;
        s->in_top5 += top5;
        if (gap->valuedouble <= tie)
            s->ties++;
        else
            s->agreed += res.id == want[i];
        if (i + 1 < n_want)
            run_step(r, &(struct rig_part){&q, &want[i], 1, &greedy}, 1, &res);
    }
    rig_seq_close(&q);
}

static struct score score_vectors(const struct mdl *m, enum km_dtype dtype, const cJSON *vectors, double tie)
{
    struct rig r;
    struct score s = {0};
    const cJSON *v;
    open_rig(&r, m, rig_opts(dtype));
    cJSON_ArrayForEach(v, vectors) score_vector(&r, v, tie, &s);
    rig_close(&r);
    return s;
}

static void golden_vectors_in_float32(void **state)
{
    (void)state;
    cJSON *g;
    struct mdl *m = open_model(TINY);
    assert_int_equal(km_json_file(KVM_SOURCE_DIR "/engine/test/golden-qwen3-tiny-lm.json", 0, &g, NULL), 0);
    struct score s = score_vectors(m, KM_F32, cJSON_GetObjectItem(g, "vectors"), 0.01);
    print_message("float32, qwen3-tiny-lm: log-probabilities of the top 8 differ by at most %.2e; %d of %d greedy ids "
                  "are equal, %d more are near-ties\n",
                  s.worst, s.agreed, s.steps - s.ties, s.ties);
    assert_int_equal(s.steps, 17 * 48);
    assert_true(s.worst < 1e-3);
    assert_int_equal(s.agreed + s.ties, s.steps);
    cJSON_Delete(g);
    mdl_free(m);
}

static void golden_vectors_in_bfloat16(void **state)
{
    (void)state;
    cJSON *g;
    struct mdl *m = open_model(TINY);
    assert_int_equal(km_json_file(KVM_SOURCE_DIR "/engine/test/golden-qwen3-tiny-lm.json", 0, &g, NULL), 0);
    /* KV is rounded to 8 bits of mantissa; everything else is as in float32. */
    struct score s = score_vectors(m, KM_BF16, cJSON_GetObjectItem(g, "vectors"), 0.1);
    print_message("bfloat16, qwen3-tiny-lm: log-probabilities of the top 8 differ by at most %.2e; %d of %d greedy ids "
                  "are equal, %d more are near-ties; %d of %d expected ids are among the top 5\n",
                  s.worst, s.agreed, s.steps - s.ties, s.ties, s.in_top5, s.steps);
    assert_true(s.worst < 0.3);
    assert_int_equal(s.agreed + s.ties, s.steps);
    assert_int_equal(s.in_top5, s.steps);
    cJSON_Delete(g);
    mdl_free(m);
}

static void golden_vectors_of_random_shapes(void **state)
{
    (void)state;
    const char *const names[] = {"rand-untied-gqa8", "rand-headdim128"};
    cJSON *g = NULL;
    const char *vectors = km_test_data("golden-random-shapes.json"), *models = km_test_data("models");
    if (!vectors || !models)
        skip();
    assert_int_equal(km_json_file(vectors, 0, &g, NULL), 0);
    for (int i = 0; i < 2; i++) {
        char dir[256];
        snprintf(dir, sizeof dir, "%s/%s", models, names[i]);
        struct mdl *m = open_model(dir);
        struct score s = score_vectors(m, KM_F32, cJSON_GetObjectItem(g, names[i]), 0.01);
        print_message(
            "float32, %s: log-probabilities of the top 8 differ by at most %.2e; %d of %d greedy ids are equal, %d "
            "more are near-ties\n",
            names[i], s.worst, s.agreed, s.steps - s.ties, s.ties);
        assert_int_equal(s.steps, 8 * 16);
        assert_true(s.worst < 1e-3);
        assert_int_equal(s.agreed + s.ties, s.steps);
        mdl_free(m);
    }
    cJSON_Delete(g);
}

/* ---- shapes that are not multiples of any vector or tile, beside the reference in double precision ---- */

static struct mdl_config shape(int n_layers, int hidden, int n_heads, int n_kv_heads, int head_dim, int ffn, int vocab,
                               bool tied)
{
    return (struct mdl_config){.n_layers = n_layers,
                               .hidden = hidden,
                               .n_heads = n_heads,
                               .n_kv_heads = n_kv_heads,
                               .head_dim = head_dim,
                               .ffn = ffn,
                               .vocab = vocab,
                               .max_pos = 512,
                               .tied = tied};
}

static void odd_shapes_match_a_plain_reference(void **state)
{
    (void)state;
    /* layers, hidden, heads, KV heads, head_dim, ffn, vocabulary, tied */
    const struct mdl_config shapes[] = {
        shape(2, 20, 6, 2, 10, 28, 37, false),  shape(1, 33, 5, 5, 34, 65, 100, true),
        shape(3, 64, 7, 1, 96, 130, 64, false), shape(1, 8, 128, 1, 2, 2, 9, true),
        shape(2, 2, 1, 1, 66, 200, 21, false),
    };
    char dir[64];
    int32_t tokens[150];
    double worst = 0;
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        for (int block = 1; block <= 24; block += 23) {
            struct mdl_config c = shapes[i];
            struct rig r;
            struct rig_seq s;
            c.rope_theta = 10000, c.rms_eps = 1e-6f;
            fx_dir(dir);
            fx_model(dir, &c, i % 2 ? KM_F32 : KM_BF16, 1 + (int)i % 3, i);
            struct mdl *m = open_model(dir);
            struct be_opts o = rig_opts(KM_F32);
            o.block_size = block;
            o.n_threads = 1 + (int)i % 3;
            open_rig(&r, m, o);
            r.stride = 7;
            open_seq(&r, &s, 150);
            random_tokens(tokens, 150, c.vocab);
            struct smp_result res = prefill(&r, &s, tokens, 150, 64);
            double *want = reference(m, tokens, 150);
            for (int j = 0; j < res.n_top; j++) {
                double err = fabs((double)res.top_logprob[j] - want[res.top_id[j]]);
                worst = err > worst ? err : worst;
            }
            free(want);
            rig_seq_close(&s);
            rig_close(&r);
            mdl_free(m);
            fx_remove(dir);
        }
    print_message("odd shapes: log-probabilities differ by at most %.2e\n", worst);
    assert_true(worst < 1e-4);
}

/* ---- the backend against itself: results are equal bit for bit ---- */

static void chunked_prefill_gives_the_same_bits(void **state)
{
    (void)state;
    enum { N = 1300, MORE = 8 };
    /* With two query heads for each KV head, chunks of up to 3 tokens read K and V in place. */
    const int chunks[] = {N, 1, 2, 3, 4, 7, 16, 255, 256, 257, 1024};
    int32_t tokens[N];
    struct mdl *m = open_model(TINY);
    for (int dtype = KM_F32; dtype <= KM_BF16; dtype++) {
        struct smp_result want[MORE];
        struct rig r;
        open_rig(&r, m, rig_opts((enum km_dtype)dtype));
        random_tokens(tokens, N, mdl_config(m)->vocab);
        for (size_t i = 0; i < sizeof chunks / sizeof *chunks; i++) {
            struct rig_seq s;
            open_seq(&r, &s, N + MORE);
            struct smp_result res = prefill(&r, &s, tokens, N, chunks[i]);
            for (int j = 0; j < MORE; j++) {
                if (i == 0)
                    want[j] = res;
                else if (!rig_same(&res, &want[j]))
                    fail_msg("chunks of %d, token %d: %d (%.9g) instead of %d (%.9g)", chunks[i], j, res.id,
                             (double)res.logprob, want[j].id, (double)want[j].logprob);
                run_step(&r, &(struct rig_part){&s, &want[j].id, 1, &greedy}, 1, &res);
            }
            rig_seq_close(&s);
        }
        rig_close(&r);
    }
    mdl_free(m);
}

/* Five sequences at different stages (prefill, decode), alone and in one batch, with 1 and 4 threads. */
static void batches_and_scattered_pages_give_the_same_bits(void **state)
{
    (void)state;
    enum { N = 5 };
    const int done[N] = {300, 100, 0, 1, 1023}, now[N] = {1, 5, 600, 1, 2};
    static int32_t tokens[2048];
    struct smp_result alone[N], together[N];
    struct mdl *m = open_model(TINY);
    random_tokens(tokens, 2048, 4096);
    for (int round = 0; round < 5; round++) {
        struct rig r;
        struct be_opts o = rig_opts(KM_F32);
        o.n_threads = round % 2 ? 4 : 1;
        if (round == 4)
            o.block_size = 1, o.n_pages = 8192;
        open_rig(&r, m, o);
        r.stride = round < 2 ? 1 : 37;
        struct rig_part parts[N];
        struct rig_seq s[N];
        for (int i = 0; i < N; i++) {
            open_seq(&r, &s[i], done[i] + now[i]);
            if (done[i])
                prefill(&r, &s[i], tokens + i, done[i], 2048);
            parts[i] = (struct rig_part){&s[i], tokens + i + done[i], now[i], &greedy};
            if (round == 0)
                run_step(&r, &parts[i], 1, &alone[i]);
        }
        if (round)
            run_step(&r, parts, N, together);
        for (int i = 0; i < N && round; i++)
            if (!rig_same(&alone[i], &together[i]))
                fail_msg("round %d, sequence %d: %d (%.9g) instead of %d (%.9g)", round, i, together[i].id,
                         (double)together[i].logprob, alone[i].id, (double)alone[i].logprob);
        for (int i = 0; i < N; i++)
            rig_seq_close(&s[i]);
        rig_close(&r);
    }
    mdl_free(m);
}

/* Many decode rows in one step: a task of attention then computes all heads of a request. */
static void a_large_decode_batch_gives_the_same_bits(void **state)
{
    (void)state;
    enum { N = 32 };
    static int32_t tokens[1024];
    struct mdl *m = open_model(TINY);
    random_tokens(tokens, 1024, mdl_config(m)->vocab);
    for (int dtype = KM_F32; dtype <= KM_BF16; dtype++) {
        struct rig r;
        struct rig_seq s[N];
        struct rig_part parts[N];
        struct smp_result alone[N], together[N];
        open_rig(&r, m, rig_opts((enum km_dtype)dtype));
        r.stride = 37;
        for (int i = 0; i < N; i++) {
            const int done = 1 + i * i % 200; /* 1 to 197 tokens: whole tiles, partial tiles and less than one */
            open_seq(&r, &s[i], done + 1);
            prefill(&r, &s[i], tokens + i, done, 2048);
            parts[i] = (struct rig_part){&s[i], tokens + i + done, 1, &greedy};
            run_step(&r, &parts[i], 1, &alone[i]);
            s[i].n_done = done;
        }
        run_step(&r, parts, N, together);
        for (int i = 0; i < N; i++) {
            assert_true(rig_same(&alone[i], &together[i]));
            rig_seq_close(&s[i]);
        }
        rig_close(&r);
    }
    mdl_free(m);
}

/* ---- copies between pages and host memory ---- */

static void all_instruction_sets_agree(void **state)
{
    (void)state;
    enum { N = 600 };
    static int32_t tokens[N], pos[N], slots[N], table[N / 16 + 1];
    struct mdl *m = open_model(TINY);
    const struct mdl_config *c = mdl_config(m);
    struct smp_result first = {0};
    random_tokens(tokens, N, c->vocab);
    for (int i = 0; i < N; i++)
        pos[i] = slots[i] = i;
    for (int i = 0; i <= N / 16; i++)
        table[i] = i;
    for (int i = 0; kernels_supported()[i]; i++) {
        struct thread_pool *pool;
        struct wts w;
        struct fwd *f;
        struct smp_result res;
        double flops = 0;
        struct kv_pool kv = {.g = {.n_layers = c->n_layers,
                                   .n_kv_heads = c->n_kv_heads,
                                   .head_dim = c->head_dim,
                                   .block_size = 16,
                                   .dtype = KM_F32,
                                   .n_pages = N / 16 + 1}};
        kv.g.page_bytes = (size_t)(c->n_layers * 2 * c->n_kv_heads * 16 * c->head_dim) * sizeof(float);
        kv.pages = malloc(kv.g.page_bytes * (size_t)kv.g.n_pages);
        const struct fwd_limits lim = {N, 4, 1024, 16};
        assert_int_equal(thread_pool_open(&pool, 2, NULL), 0);
        assert_int_equal(wts_load(&w, m, KM_F32, kernels_supported()[i], pool, NULL), 0);
        assert_int_equal(fwd_open(&f, c, &w, pool, &kv, &lim, NULL), 0);
        struct smp_row row = {.p = smp_defaults(), .row = N - 1};
        row.p.n_logprobs = 20;
        row.p.temperature = 0;
        struct batch b = {.n_tokens = N,
                          .tokens = tokens,
                          .positions = pos,
                          .slots = slots,
                          .n_reqs = 1,
                          .q_start = (int32_t[]){0, N},
                          .kv_len = (int32_t[]){N},
                          .block_table = table,
                          .table_start = (int32_t[]){0, N / 16 + 1},
                          .n_samples = 1,
                          .samples = &row};
        fwd_step(f, &b, &res, &flops);
        if (i == 0)
            first = res;
        double worst = 0;
        for (int j = 0; j < 10; j++)
            worst = fmax(worst, fabs((double)(res.top_logprob[j] - first.top_logprob[j])));
        print_message("%s: id %d, log-probabilities differ from the first instruction set by at most %.2e\n",
                      kernels_supported()[i]->name, res.id, worst);
        assert_int_equal(res.id, first.id);
        assert_true(worst < 1e-4 && flops > 2e9);
        fwd_close(f);
        wts_free(&w);
        thread_pool_close(pool);
        free(kv.pages);
    }
    mdl_free(m);
}

/* ---- refusals ---- */

static void the_pool_is_within_the_memory_limit(void **state)
{
    (void)state;
    struct mdl *m = open_model(TINY);
    struct rig r;
    struct km_err err = {0};
    struct be_opts o = rig_opts(KM_BF16);
    o.n_pages = 0;
    o.max_tokens = 256;
    o.memory_limit = 64 << 20;
    open_rig(&r, m, o);
    struct be_stats st;
    be_cpu.stats(r.b, &st);
    assert_int_equal(st.kv_bytes, (int64_t)r.g.n_pages * (int64_t)r.g.page_bytes);
    int64_t total = st.weight_bytes + st.workspace_bytes + st.kv_bytes;
    assert_true(total <= o.memory_limit && total > o.memory_limit - (int64_t)r.g.page_bytes);
    assert_int_equal(r.g.page_bytes, 6 * 2 * 4 * 16 * 64 * 2);
    assert_non_null(strstr(st.device, "2 threads"));
    rig_close(&r);
    o.memory_limit = 1 << 20;
    assert_int_equal(rig_open(&r, &be_cpu, &o, m, &err), KM_ELIMIT);
    assert_non_null(strstr(err.msg, "weights and workspace take"));
    o.memory_limit = 64 << 20;
    o.n_pages = 1 << 20;
    assert_int_equal(rig_open(&r, &be_cpu, &o, m, &err), KM_ELIMIT);
    assert_non_null(strstr(err.msg, "1048576 pages"));
    o.memory_limit = 0;
    o.n_pages = 1 << 26; /* 6 TB */
    assert_int_equal(rig_open(&r, &be_cpu, &o, m, &err), KM_ELIMIT);
    o = rig_opts(KM_F32);
    o.n_pages = 0;
    open_rig(&r, m, o);
    assert_int_equal(r.g.n_pages, 8 * 8192 / 16);
    rig_close(&r);
    o.dtype = KM_F16;
    assert_int_equal(rig_open(&r, &be_cpu, &o, m, &err), KM_EINVAL);
    o = rig_opts(KM_F32);
    o.block_size = 0;
    assert_int_equal(rig_open(&r, &be_cpu, &o, m, &err), KM_EINVAL);
    assert_non_null(strstr(err.msg, "block size"));
    mdl_free(m);
}

/* The plan's rows add up to the allocated blocks, to the byte. What the allocator counts for an open is the plan, plus
 * the rounding of its three blocks to huge pages, at most one huge page each for alignment, and a few small structs. */
static void a_plan_has_the_bytes_that_open_allocates(void **state)
{
    (void)state;
    enum { HUGE_PAGE = 2 << 20, SMALL = 64 << 10 };
    static const char *const names[] = {TINY, "qwen3-tiny"};
    for (int i = 0; i < 4; i++) {
        struct mdl *m = open_model(names[i / 2]);
        struct be_opts o = rig_opts(i % 2 ? KM_BF16 : KM_F32);
        o.max_tokens = 16384 - i; /* large rows, beside which the bounds below are small */
        o.n_pages = i < 2 ? 333 : 0;
        o.memory_limit = i < 2 ? 0 : (int64_t)700 << 20;
        const struct fwd_limits lim = {o.max_tokens, o.max_reqs, o.max_model_len, o.block_size};
        struct plan plan, weights = {0}, work = {0};
        struct km_err err;
        struct be *b;
        struct kv_geom g;
        struct be_stats st;
        size_t weight_block = wts_bytes(mdl_config(m), o.dtype, kernels_best(), &weights),
               work_block = fwd_bytes(mdl_config(m), kernels_best(), 2, &lim, &work);
        assert_int_equal(weight_block, plan_total(&weights, KM_MEM_HOST));
        assert_int_equal(work_block, plan_total(&work, KM_MEM_HOST));
        assert_int_equal(be_cpu.plan(&plan, &o, m, &err), 0);
        int64_t before = km_mem_stats(KM_MEM_HOST).current;
        assert_int_equal(be_cpu.open(&b, &o, m, &g, &err), 0);
        int64_t took = km_mem_stats(KM_MEM_HOST).current - before, rounded = 0;
        be_cpu.stats(b, &st);
        be_cpu.close(b);
        assert_int_equal(g.n_pages, plan.geom.n_pages);
        assert_int_equal(g.page_bytes, plan.geom.page_bytes);
        assert_memory_equal(&g.model, &plan.geom.model, sizeof g.model);
        assert_true(!strncmp(g.numerics, "cpu-", 4) && !strcmp(g.numerics, plan.geom.numerics));
        assert_string_equal(st.device, plan.device);
        int64_t blocks[3] = {plan_total(&weights, KM_MEM_HOST), plan_total(&work, KM_MEM_HOST),
                             (int64_t)g.n_pages * (int64_t)g.page_bytes};
        int64_t results = 2 * (int64_t)o.max_tokens * (int64_t)sizeof(struct smp_result) + o.max_tokens;
        assert_int_equal(plan_total(&plan, KM_MEM_HOST), blocks[0] + blocks[1] + blocks[2] + results);
        assert_int_equal(st.weight_bytes, blocks[0]);
        assert_int_equal(st.workspace_bytes, blocks[1] + results);
        assert_int_equal(st.kv_bytes, blocks[2]);
        for (int k = 0; k < 3; k++)
            rounded += (blocks[k] + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE;
        assert_in_range(took - rounded - results, 0, 3 * HUGE_PAGE + SMALL);
        assert_true(!o.memory_limit || (plan_total(&plan, KM_MEM_HOST) <= o.memory_limit &&
                                        plan_total(&plan, KM_MEM_HOST) > o.memory_limit - (int64_t)g.page_bytes));
        mdl_free(m);
    }
}

/* Without enough memory, plan fails with open's message and still fills in the rows. */
static void a_plan_fails_as_open_would(void **state)
{
    (void)state;
    struct mdl *m = open_model(TINY);
    struct be_opts o = rig_opts(KM_F32);
    struct km_err planned = {0}, opened = {0};
    struct plan plan;
    struct be *b;
    struct kv_geom g;
    o.n_pages = 0;
    o.memory_limit = 32 << 20;
    assert_int_equal(be_cpu.plan(&plan, &o, m, &planned), KM_ELIMIT);
    assert_int_equal(be_cpu.open(&b, &o, m, &g, &opened), KM_ELIMIT);
    assert_string_equal(planned.msg, opened.msg);
    assert_true(plan_total(&plan, KM_MEM_HOST) > o.memory_limit);
    assert_int_equal(plan_sum(&plan, PLAN_KV, KM_MEM_HOST), 0);
    assert_int_equal(plan.limit, o.memory_limit);
    o.block_size = 0;
    assert_int_equal(be_cpu.plan(&plan, &o, m, &planned), KM_EINVAL);
    mdl_free(m);
}

static void invalid_batches_are_refused(void **state)
{
    (void)state;
    struct mdl *m = open_model(TINY);
    struct rig r;
    open_rig(&r, m, rig_opts(KM_F32));
    int32_t tokens[2] = {5, 6}, pos[2] = {0, 1}, slots[2] = {0, 1}, q_start[2] = {0, 2}, kv_len[1] = {2},
            table[1] = {0}, table_start[2] = {0, 1};
    struct smp_row rows[2] = {{.p = smp_defaults(), .row = 1}, {.p = smp_defaults(), .row = 1}};
    struct batch b = {.n_tokens = 2,
                      .tokens = tokens,
                      .positions = pos,
                      .slots = slots,
                      .n_reqs = 1,
                      .q_start = q_start,
                      .kv_len = kv_len,
                      .table_start = table_start,
                      .block_table = table,
                      .n_samples = 1,
                      .samples = rows};
    struct smp_result res[2];
    uint64_t ticket = 0;
    struct km_err err = {0};
    assert_int_equal(be_cpu.step(r.b, &b, &ticket, &err), 0);
    assert_int_equal(be_cpu.wait(r.b, ticket, res, &err), 0);
    assert_int_equal(be_cpu.wait(r.b, ticket + 1, res, &err), KM_EINVAL);
    const struct {
        int32_t *at, value;
    } invalid[] = {{&tokens[1], 4096}, {&tokens[0], -1},      {&pos[1], 0},         {&pos[1], 2},
                   {&pos[0], -1},      {&slots[1], 512 * 16}, {&slots[0], -1},      {&q_start[1], 3},
                   {&q_start[0], 1},   {&kv_len[0], 0},       {&kv_len[0], 17},     {&table[0], 512},
                   {&table[0], -1},    {&table_start[0], -1}, {&table_start[1], 0}, {&rows[0].row, 2},
                   {&rows[0].row, -1}, {&b.n_tokens, 0},      {&b.n_tokens, 4096},  {&b.n_reqs, 0},
                   {&b.n_samples, 2}};
    for (size_t i = 0; i < sizeof invalid / sizeof *invalid; i++) {
        int32_t was = *invalid[i].at;
        *invalid[i].at = invalid[i].value;
        if (be_cpu.step(r.b, &b, &ticket, &err) != KM_EINVAL)
            fail_msg("case %zu, the value %d, was accepted", i, invalid[i].value);
        *invalid[i].at = was;
    }
    assert_int_equal(be_cpu.step(r.b, &b, &ticket, &err), 0);
    rig_close(&r);
    mdl_free(m);
}

static const struct mdl_config small_model = {.n_layers = 1,
                                              .hidden = 16,
                                              .n_heads = 2,
                                              .n_kv_heads = 1,
                                              .head_dim = 8,
                                              .ffn = 16,
                                              .vocab = 16,
                                              .max_pos = 512,
                                              .rope_theta = 1e4f,
                                              .rms_eps = 1e-6f};

/* The checksum of a page reads 64-bit words, each of which belongs to one token. */
static void a_head_of_no_whole_words_is_refused(void **state)
{
    (void)state;
    char dir[64];
    struct mdl_config c = small_model;
    struct rig r;
    struct km_err err = {0};
    struct be_opts o = rig_opts(KM_BF16);
    c.head_dim = 6;
    fx_dir(dir);
    fx_model(dir, &c, KM_BF16, 1, 1);
    struct mdl *m = open_model(dir);
    assert_int_equal(rig_open(&r, &be_cpu, &o, m, &err), KM_EINVAL);
    assert_non_null(strstr(err.msg, "head_dim 6 in bfloat16"));
    o.dtype = KM_F32;
    open_rig(&r, m, o);
    rig_close(&r);
    mdl_free(m);
    fx_remove(dir);
}

static void failed_allocations_are_reported_and_free_everything(void **state)
{
    (void)state;
    char dir[64];
    fx_dir(dir);
    fx_model(dir, &small_model, KM_BF16, 1, 1);
    struct mdl *m = open_model(dir);
    struct be_opts o = rig_opts(KM_F32);
    o.max_model_len = 512;
    int64_t before = km_mem_stats(KM_MEM_HOST).current;
    for (long n = 1;; n++) {
        struct be *b = NULL;
        struct kv_geom g;
        struct km_err err = {0};
        km_mem_fail_at(n);
        int rc = be_cpu.open(&b, &o, m, &g, &err);
        km_mem_fail_at(0);
        if (!rc) {
            be_cpu.close(b);
            if (n > 20)
                break;
        }
        assert_true(rc == 0 || rc == KM_ENOMEM);
        assert_int_equal(km_mem_stats(KM_MEM_HOST).current, before);
        assert_true(n < 1000);
    }
    mdl_free(m);
    fx_remove(dir);
}

/* Threads read the weights. The error of a thread must reach the caller. */
static void unreadable_weights_are_an_error_that_names_the_file(void **state)
{
    (void)state;
    char dir[64], path[96];
    fx_dir(dir);
    fx_model(dir, &small_model, KM_BF16, 1, 1);
    struct mdl *m = open_model(dir);
    struct be_opts o = rig_opts(KM_F32);
    o.max_model_len = 512;
    int64_t before = km_mem_stats(KM_MEM_HOST).current;
    snprintf(path, sizeof path, "%s/model.safetensors", dir);
    assert_int_equal(truncate(path, 3000), 0);
    struct be *b = NULL;
    struct kv_geom g;
    struct km_err err = {0};
    assert_int_equal(be_cpu.open(&b, &o, m, &g, &err), KM_EIO);
    assert_non_null(strstr(err.msg, "model.safetensors"));
    assert_int_equal(km_mem_stats(KM_MEM_HOST).current, before);
    mdl_free(m);
    fx_remove(dir);
}

int main(void)
{
    greedy = rig_greedy();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(golden_vectors_in_float32),
        cmocka_unit_test(golden_vectors_in_bfloat16),
        cmocka_unit_test(golden_vectors_of_random_shapes),
        cmocka_unit_test(odd_shapes_match_a_plain_reference),
        cmocka_unit_test(chunked_prefill_gives_the_same_bits),
        cmocka_unit_test(batches_and_scattered_pages_give_the_same_bits),
        cmocka_unit_test(a_large_decode_batch_gives_the_same_bits),
        cmocka_unit_test(all_instruction_sets_agree),
        cmocka_unit_test(the_pool_is_within_the_memory_limit),
        cmocka_unit_test(a_plan_has_the_bytes_that_open_allocates),
        cmocka_unit_test(a_plan_fails_as_open_would),
        cmocka_unit_test(invalid_batches_are_refused),
        cmocka_unit_test(a_head_of_no_whole_words_is_refused),
        cmocka_unit_test(failed_allocations_are_reported_and_free_everything),
        cmocka_unit_test(unreadable_weights_are_an_error_that_names_the_file),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
