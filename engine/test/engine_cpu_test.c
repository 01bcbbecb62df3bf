/* The engine on the CPU backend with a real small model. Answers equal those of the reference implementation. Cached
 * and uncached prompts give the same tokens. Neither a small pool nor other requests change an answer. */
#include "base/test/test.h"

#include "base/json.h"
#include "base/mem.h"
#include "engine/engine.h"

#include <stdlib.h>
#include <string.h>

enum { OUT = 16 };

static struct mdl *model;
static cJSON *golden;
static int32_t text[2049]; /* the longest golden prompt; in real text there are few near-ties */

/* One request and its answer. */
struct job {
    uint64_t id;
    int32_t out[48];
    int n_out;
    struct eng_event last;
};

static struct eng *engine(int num_blocks, int budget, int max_seqs, enum km_dtype dtype)
{
    struct eng_opts o = eng_defaults();
    o.num_blocks = num_blocks;
    o.max_num_batched_tokens = budget;
    o.max_num_seqs = max_seqs;
    o.dtype = dtype;
    struct eng *e;
    struct km_err err;
    const struct backend *backend;
    assert_int_equal(backend_pick("cpu", &backend, &err), 0);
    if (eng_open(&e, &o, model, backend, NULL, &err))
        fail_msg("%s", err.msg);
    return e;
}

static void submit(struct eng *e, struct job *a, const int32_t *prompt, int n, int max_tokens)
{
    *a = (struct job){0};
    struct eng_request r = {.prompt = prompt, .n_prompt = n, .max_tokens = max_tokens, .ignore_eos = true,
                            .sampling = smp_defaults(), .user = a};
    struct km_err err;
    if (eng_submit(e, &r, &a->id, &err))
        fail_msg("%s", err.msg);
}

static void run(struct eng *e)
{
    struct eng_events ev;
    struct km_err err;
    while (!eng_idle(e)) {
        if (eng_step(e, &ev, &err) || eng_check(e, &err))
            fail_msg("%s", err.msg);
        for (int i = 0; i < ev.n; i++) {
            struct job *a = ev.v[i].user;
            a->last = ev.v[i];
            a->out[a->n_out++] = ev.v[i].token.id;
        }
    }
}

static struct job run_alone(struct eng *e, const int32_t *prompt, int n, int max_tokens)
{
    struct job a;
    submit(e, &a, prompt, n, max_tokens);
    run(e);
    return a;
}

static void check_same_answer(const struct job *a, const struct job *b, int n)
{
    assert_int_equal(a->n_out, b->n_out);
    for (int i = 0; i < a->n_out; i++)
        if (a->out[i] != b->out[i])
            fail_msg("a prompt of %d tokens: token %d is %d here and %d there", n, i, a->out[i], b->out[i]);
}

static int ids(const cJSON *list, int32_t *out)
{
    int n = 0;
    const cJSON *v;
    cJSON_ArrayForEach(v, list) out[n++] = v->valueint;
    return n;
}

/* The reference's greedy continuations, with prompts in chunks of 100 tokens. At a near-tie of the two best ids either
 * may be sampled; the rest of that continuation is then not compared. */
static void answers_equal_the_reference(void **state)
{
    (void)state;
    struct eng *e = engine(256, 100, 8, KM_F32);
    const cJSON *v;
    int compared = 0;
    cJSON_ArrayForEach(v, cJSON_GetObjectItem(golden, "vectors")) {
        static int32_t prompt[2049];
        int32_t want[48];
        int n = ids(cJSON_GetObjectItem(v, "prompt_ids"), prompt),
            n_want = ids(cJSON_GetObjectItem(v, "greedy_ids"), want);
        const cJSON *gap = cJSON_GetObjectItem(v, "greedy_gap");
        if (n > 1024)
            continue;
        struct job a = run_alone(e, prompt, n, n_want);
        for (int i = 0; i < n_want && cJSON_GetArrayItem(gap, i)->valuedouble > 1e-3; i++, compared++)
            if (a.out[i] != want[i])
                fail_msg("a prompt of %d tokens: token %d is %d, the reference has %d", n, i, a.out[i], want[i]);
    }
    assert_true(compared > 600);
    eng_close(e);
}

static const int lengths[] = {1, 2, 15, 16, 17, 31, 32, 33, 255, 256, 257, 511, 512, 513, 767, 768, 769, 1024};
enum { N_LENGTHS = sizeof lengths / sizeof *lengths };

static void cached_and_uncached_prompts_have_the_same_answer(void **state)
{
    (void)state;
    struct eng *e = engine(128, 512, 8, KM_BF16);
    for (int i = 0; i < N_LENGTHS; i++) {
        struct km_err err;
        struct eng_stats before, after;
        int n = lengths[i], hit = (n - 1) / 16 * 16;
        assert_int_equal(eng_reset_cache(e, true, &err), 0);
        struct job cold = run_alone(e, text, n, OUT);
        assert_int_equal(cold.last.n_cached, 0);
        assert_int_equal(cold.n_out, OUT);
        eng_stats(e, &before);
        struct job warm = run_alone(e, text, n, OUT);
        eng_stats(e, &after);
        assert_int_equal(warm.last.n_cached, hit);
        assert_int_equal(warm.last.n_cached_pool, hit);
        assert_int_equal(after.prefix_hits - before.prefix_hits, hit);
        assert_int_equal(after.computed_tokens - before.computed_tokens, n - hit + OUT - 1);
        check_same_answer(&cold, &warm, n);
    }
    eng_close(e);
}

/* eng_plan agrees with eng_open for the same options, and fails with the same message. */
static void a_plan_is_what_the_engine_allocates(void **state)
{
    (void)state;
    static const struct {
        int64_t limit;
        int num_blocks, max_model_len, budget;
    } asked[] = {{0, 64, 0, 256},     {0, 0, 0, 256},       {200 << 20, 0, 2000, 300},
                 {0, 64, 1024, 16},   {0, 64, 1025, 256},   {30 << 20, 0, 0, 4096}};
    for (int i = 0; i < 6; i++) {
        struct eng_opts o = eng_defaults(), planned;
        struct km_err why = {0}, err = {0};
        struct plan p;
        struct eng *e;
        o.memory_limit = asked[i].limit;
        o.num_blocks = asked[i].num_blocks;
        o.max_model_len = asked[i].max_model_len;
        o.max_num_batched_tokens = asked[i].budget;
        planned = o;
        int rc = eng_plan(&p, &planned, model, &be_cpu, &why);
        assert_int_equal(eng_open(&e, &o, model, &be_cpu, NULL, &err), rc);
        assert_int_equal(rc, i < 4 ? 0 : KM_ELIMIT);
        assert_string_equal(why.msg, err.msg);
        if (rc)
            continue;
        const struct eng_opts *real = eng_options(e);
        assert_int_equal(planned.num_blocks, real->num_blocks);
        assert_int_equal(planned.max_model_len, real->max_model_len);
        assert_int_equal(planned.max_num_seqs, real->max_num_seqs);
        eng_close(e);
    }
}

/* Ten requests, each alone on an engine, then all at once with a pool for all of them, and with a pool for two. */
static void other_requests_change_no_answer(void **state)
{
    (void)state;
    enum { N = 10 };
    static struct job single[N], together[N];
    struct eng *e = engine(128, 256, 8, KM_F32);
    for (int i = 0; i < N; i++)
        single[i] = run_alone(e, text + 37 * i, 20 + 23 * i, 40);
    eng_close(e);
    for (int small = 0; small < 2; small++) {
        struct eng_stats s;
        e = engine(small ? 32 : 256, small ? 64 : 512, 8, KM_F32);
        for (int i = 0; i < N; i++)
            submit(e, &together[i], text + 37 * i, 20 + 23 * i, 40);
        run(e);
        for (int i = 0; i < N; i++)
            check_same_answer(&together[i], &single[i], 20 + 23 * i);
        eng_stats(e, &s);
        assert_int_equal(s.pages_used, 0);
        assert_true(small ? s.preemptions > 0 : s.preemptions == 0);
        eng_close(e);
    }
}

static void backends_have_names(void **state)
{
    (void)state;
    const struct backend *b = NULL;
    struct km_err err;
    assert_int_equal(backend_pick("auto", &b, &err), 0);
    assert_non_null(b);
    assert_int_equal(backend_pick("tpu", &b, &err), KM_EINVAL);
    assert_non_null(strstr(err.msg, "\"tpu\""));
}

int main(void)
{
    struct km_err err;
    if (km_json_file(KVM_SOURCE_DIR "/engine/test/golden-qwen3-tiny-lm.json", 1 << 24, &golden, &err) ||
        mdl_open(&model, KVM_SOURCE_DIR "/models/qwen3-tiny-lm", false, 0, &err)) {
        print_error("%s\n", err.msg);
        return 1;
    }
    const cJSON *v;
    cJSON_ArrayForEach(v, cJSON_GetObjectItem(golden, "vectors")) ids(cJSON_GetObjectItem(v, "prompt_ids"), text);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(answers_equal_the_reference),
        cmocka_unit_test(cached_and_uncached_prompts_have_the_same_answer),
        cmocka_unit_test(a_plan_is_what_the_engine_allocates),
        cmocka_unit_test(other_requests_change_no_answer),
        cmocka_unit_test(backends_have_names),
    };
    int rc = cmocka_run_group_tests(tests, NULL, NULL);
    mdl_free(model);
    cJSON_Delete(golden);
    return rc;
}
