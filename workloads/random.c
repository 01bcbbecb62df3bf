/* The data set "random" of `vllm bench serve`, in the three versions that vLLM has had.
 *
 * A prompt is a run of consecutive token ids that starts at a random id, decoded to text. Text seldom encodes to the
 * same ids again. The versions differ in their generator and in how they handle that:
 * - v0.10 (numpy's legacy generator) and v0.11 (PCG64) encode the text, cut the ids to the requested length and decode
 *   them. A prompt whose text encodes to fewer tokens stays shorter than requested.
 * - "new" (PCG64, ordinary tokens only) appends random ids or cuts, and encodes again, until the length is right.
 * The write-up used v0.11: with its seed of 40 and prompts of 1024 tokens, v0.11 gives a mean of 1022.58 tokens, as the
 * write-up's tables imply, and v0.10 gives 1020.23. */
#include "workloads/random.h"

#include "base/args.h"
#include "base/mem.h"
#include "workloads/message.h"
#include "workloads/rng.h"
#include "workloads/spec.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

enum { MAX_ROUNDS = 10 }; /* of appending or cutting, as in vLLM */

/* Unknown keys are errors: no other program defines keys for this format, so an unknown key is a typing error. */
static int check_keys(const cJSON *obj, struct km_err *err)
{
    static const char *const known[] = {"filetype",    "comment",    "input_len", "output_len", "num_prompts",
                                        "range_ratio", "prefix_len", "generator", "repeat_one"};
    const int n = sizeof known / sizeof *known;
    const cJSON *v;
    cJSON_ArrayForEach(v, obj)
    {
        int k = 0;
        while (k < n && strcmp(v->string, known[k]))
            k++;
        if (k < n)
            continue;
        const char *near = km_nearest(v->string, known, n);
        return km_fail(err, KM_EINVAL, "unknown key \"%.60s\" in a file of type random; %s%s%s", v->string,
                       near ? "did you mean \"" : "remove it", near ? near : "", near ? "\"?" : "");
    }
    return 0;
}

static int read(struct wl_spec *s, struct km_err *err)
{
    const int64_t max_len = 10000000;                                /* tokens */
    static const char *const versions[] = {"v0.10", "v0.11", "new"}; /* by wl_random_version */
    const char *generator = "v0.11";
    int64_t n = 0;
    struct wl_random *p = s->params;
    int rc = check_keys(s->json, err), g = 0;
    if (!rc)
        rc = km_json_int(s->json, "num_prompts", true, 1, WL_MAX_CONVS, &n, err);
    if (!rc)
        rc = km_json_int(s->json, "input_len", true, 0, max_len, &p->input_len, err);
    if (!rc)
        rc = km_json_int(s->json, "output_len", true, 1, max_len, &p->output_len, err);
    if (!rc)
        rc = km_json_int(s->json, "prefix_len", false, 0, max_len, &p->prefix_len, err);
    if (!rc)
        rc = km_json_num(s->json, "range_ratio", false, 0, 1, &p->range_ratio, err);
    if (!rc)
        rc = km_json_bool(s->json, "repeat_one", false, &p->repeat_one, err);
    if (!rc)
        rc = km_json_str(s->json, "generator", false, &generator, err);
    if (rc)
        return rc;
    if (p->range_ratio >= 1)
        return km_fail(err, KM_EINVAL, "\"range_ratio\" is 1; it must be less than 1");
    while (g < 3 && strcmp(generator, versions[g]))
        g++;
    if (g == 3)
        return km_fail(err, KM_EINVAL, "\"generator\" is \"%.40s\"; it must be \"v0.10\", \"v0.11\" or \"new\"",
                       generator);
    if (p->prefix_len + (int64_t)((double)p->input_len * (1 - p->range_ratio)) < 1)
        return km_fail(err, KM_EINVAL,
                       "\"input_len\" is %lld; with this range_ratio and prefix_len some prompts would be "
                       "empty, so make input_len larger",
                       (long long)p->input_len);
    p->version = (enum wl_random_version)g;
    s->n = (int)n;
    if (p->version == WL_RANDOM_V010)
        s->seed_max = UINT32_MAX; /* numpy.random.seed takes no more */
    return 0;
}

/* The values that are sampled before the first prompt is made, and the generators. */
struct plan {
    int64_t *in;     /* [n] tokens of each prompt after the common prefix */
    int64_t *out;    /* [n] output tokens to request */
    int64_t *offset; /* [n] the id at which each prompt's run of ids starts, less the prompt's index */
    int n;
    int32_t *ordinary; /* [n_ordinary] ids below vocab that are not special tokens */
    int32_t n_ordinary, vocab;
    struct tok_ids prefix; /* common prefix of all prompts */
    struct wl_mt mt;
    struct wl_pcg pcg;
};

static void plan_free(struct plan *p)
{
    km_free(p->in);
    km_free(p->out);
    km_free(p->offset);
    km_free(p->ordinary);
    km_free(p->prefix.v);
}

/* Decodes ids to text, and replaces ids by what the text encodes to. */
static int round_trip(struct tok_ids *ids, struct km_buf *text, const struct tok *t, struct km_err *err)
{
    km_buf_clear(text);
    int rc = tok_decode(t, ids->v, ids->n, false, text, err);
    if (!rc && !km_buf_ok(text))
        rc = km_fail(err, KM_ENOMEM, "out of memory for the text of %zu tokens", ids->n);
    ids->n = 0;
    return rc ? rc : tok_encode(t, km_buf_str(text), text->len, false, ids, err);
}

static void truncate_ids(struct tok_ids *ids, int64_t len)
{
    if ((int64_t)ids->n > len)
        ids->n = (size_t)len;
}

/* v0.10 and v0.11: sets ids to at most len tokens, and text to what they decode to. */
static int cut_to_length(struct tok_ids *ids, int64_t len, struct km_buf *text, const struct tok *t, struct km_err *err)
{
    int rc = round_trip(ids, text, t, err);
    if (rc)
        return rc;
    truncate_ids(ids, len);
    km_buf_clear(text);
    return tok_decode(t, ids->v, ids->n, false, text, err);
}

/* "new": sets text to a text of len tokens, and ids to its tokens. After MAX_ROUNDS the length may still differ. */
static int fit_to_length(struct plan *p, struct tok_ids *ids, int64_t len, struct km_buf *text, const struct tok *t,
                         struct km_err *err)
{
    for (int round = 0;; round++) {
        int rc = round_trip(ids, text, t, err);
        if (rc || round == MAX_ROUNDS || (int64_t)ids->n == len)
            return rc;
        while ((int64_t)ids->n < len)
            if ((rc = tok_ids_push(ids, p->ordinary[wl_pcg_int(&p->pcg, 0, p->n_ordinary - 1)], err)))
                return rc;
        truncate_ids(ids, len);
    }
}

/* Order of draws: prefix, input lengths, output lengths, offsets. */
static int sample_v010(struct plan *p, const struct wl_random *s, struct km_err *err)
{
    struct wl_mt *r = &p->mt;
    double in = (double)s->input_len, out = (double)s->output_len, ratio = s->range_ratio;
    for (int64_t i = 0; i < s->prefix_len; i++) {
        int rc = tok_ids_push(&p->prefix, (int32_t)wl_mt_int(r, 0, p->vocab - 1), err);
        if (rc)
            return rc;
    }
    for (int i = 0; i < p->n; i++)
        p->in[i] = wl_mt_int(r, (int64_t)(in * (1 - ratio)), (int64_t)(in * (1 + ratio)));
    for (int i = 0; i < p->n; i++)
        p->out[i] = wl_mt_int(r, (int64_t)(out * (1 - ratio)), (int64_t)(out * (1 + ratio)));
    for (int i = 0; i < p->n; i++)
        p->offset[i] = wl_mt_int(r, 0, p->vocab - 1);
    return 0;
}

/* v0.11 and "new". Order of draws: input lengths, output lengths, offsets, prefix. */
static int sample_v011(struct plan *p, const struct wl_random *s, const struct tok *t, struct km_err *err)
{
    struct wl_pcg *r = &p->pcg;
    double in = (double)s->input_len, out = (double)s->output_len, ratio = s->range_ratio;
    int64_t out_lo = (int64_t)floor(out * (1 - ratio));
    for (int i = 0; i < p->n; i++)
        p->in[i] = wl_pcg_int(r, (int64_t)floor(in * (1 - ratio)), (int64_t)ceil(in * (1 + ratio)));
    for (int i = 0; i < p->n; i++)
        p->out[i] = wl_pcg_int(r, out_lo < 1 ? 1 : out_lo, (int64_t)ceil(out * (1 + ratio)));
    for (int i = 0; i < p->n; i++)
        p->offset[i] = wl_pcg_int(r, 0, p->vocab - 1);
    if (!s->prefix_len)
        return 0;
    int rc = 0;
    for (int64_t i = 0; i < s->prefix_len && !rc; i++)
        rc = tok_ids_push(&p->prefix,
                       s->version == WL_RANDOM_NEW ? p->ordinary[wl_pcg_int(r, 0, p->n_ordinary - 1)]
                                                   : (int32_t)wl_pcg_int(r, 0, p->vocab - 1),
                       err);
    struct km_buf text = {0};
    if (!rc && s->version == WL_RANDOM_NEW)
        rc = fit_to_length(p, &p->prefix, s->prefix_len, &text, t, err);
    km_buf_free(&text);
    return rc;
}

static int plan_init(struct plan *p, int n, const struct tok *t, struct km_err *err)
{
    p->n = n;
    p->vocab = tok_vocab_size(t);
    p->in = km_reallocarray(NULL, (size_t)n, sizeof *p->in);
    p->out = km_reallocarray(NULL, (size_t)n, sizeof *p->out);
    p->offset = km_reallocarray(NULL, (size_t)n, sizeof *p->offset);
    p->ordinary = km_reallocarray(NULL, (size_t)p->vocab, sizeof *p->ordinary);
    if (!p->in || !p->out || !p->offset || !p->ordinary)
        return km_fail(err, KM_ENOMEM, "out of memory for %d prompts", n);
    for (int32_t id = 0; id < p->vocab; id++)
        if (!tok_is_special(t, id))
            p->ordinary[p->n_ordinary++] = id;
    if (!p->n_ordinary)
        return km_fail(err, KM_EINVAL,
                       "the tokenizer has special tokens only, so random prompts cannot be made of it; "
                       "use another tokenizer");
    return 0;
}

/* Makes prompt i: the common prefix, then in[i] consecutive ids from the prompt's offset. */
static int make_prompt(struct wl_msg *m, struct plan *p, const struct wl_random *s, int i, const struct tok *t,
                       struct km_err *err)
{
    struct tok_ids ids = {0};
    struct km_buf text = {0};
    bool all = s->version != WL_RANDOM_NEW; /* the run goes through all ids, special tokens included */
    int rc = 0;
    for (size_t k = 0; k < p->prefix.n && !rc; k++)
        rc = tok_ids_push(&ids, p->prefix.v[k], err);
    for (int64_t k = 0; k < p->in[i] && !rc; k++) {
        int64_t at = p->offset[i] + i + k;
        rc = tok_ids_push(&ids, all ? (int32_t)(at % p->vocab) : p->ordinary[at % p->n_ordinary], err);
    }
    int64_t len = s->prefix_len + p->in[i];
    if (!rc)
        rc = all ? cut_to_length(&ids, len, &text, t, err) : fit_to_length(p, &ids, len, &text, t, err);
    if (!rc && !ids.n)
        rc = km_fail(err, KM_EINVAL, "prompt %d has no tokens after decoding and encoding; make input_len larger", i);
    if (!rc)
        rc = wl_msg_set_text(m, &text, err);
    if (!rc) {
        m->n_tokens = (int)ids.n;
        m->ids = ids.v;
        ids.v = NULL;
    }
    km_free(ids.v);
    km_buf_free(&text);
    return rc;
}

static int copy_prompt(struct wl_msg *m, const struct wl_msg *from, struct km_err *err)
{
    m->text = km_malloc(from->len + 1);
    m->ids = km_reallocarray(NULL, (size_t)from->n_tokens, sizeof *m->ids);
    if (!m->text || !m->ids)
        return km_fail(err, KM_ENOMEM, "out of memory for a prompt of %zu bytes", from->len);
    memcpy(m->text, from->text, from->len + 1);
    memcpy(m->ids, from->ids, (size_t)from->n_tokens * sizeof *m->ids);
    m->len = from->len;
    m->n_tokens = from->n_tokens;
    return 0;
}

/* Makes a placeholder of n tokens: a set that is written to a file and read back then requests the same output lengths.
 * a_is_token: " a" is one token of the tokenizer; if not, the placeholder is empty. */
static int make_answer(struct wl_msg *m, int64_t n, bool a_is_token, struct km_err *err)
{
    struct km_buf b = {0};
    for (int64_t i = 0; i < n && a_is_token; i++)
        km_buf_puts(&b, " a");
    m->n_tokens = (int)n;
    int rc = wl_msg_set_text(m, &b, err);
    km_buf_free(&b);
    return rc;
}

static int generate(struct wl_set *set, const struct wl_spec *spec, const struct wl_gen_opts *o, const struct tok *t,
                    struct km_err *err)
{
    const struct wl_random *s = spec->params;
    struct plan p = {0};
    wl_mt_seed(&p.mt, (uint32_t)o->seed);
    wl_pcg_seed(&p.pcg, o->seed);
    int64_t tokens = tok_count(t, " a", 2, err);
    int rc = tokens < 0 ? (int)tokens : plan_init(&p, set->n, t, err);
    if (!rc)
        rc = s->version == WL_RANDOM_V010 ? sample_v010(&p, s, err) : sample_v011(&p, s, t, err);
    for (int i = 0; i < set->n && !rc; i++) {
        struct wl_conv *c = &set->convs[i];
        char id[40];
        snprintf(id, sizeof id, "PROMPT_%d", i);
        rc = wl_conv_init(c, id, 2, err);
        if (!rc && i && s->repeat_one)
            rc = copy_prompt(&c->msgs[0], &set->convs[0].msgs[0], err);
        else if (!rc)
            rc = make_prompt(&c->msgs[0], &p, s, i, t, err);
        if (!rc)
            rc = make_answer(&c->msgs[1], p.out[i] < 1 ? 1 : p.out[i], tokens == 1, err);
    }
    plan_free(&p);
    return rc;
}

const struct wl_kind_ops wl_random_kind = {
    .name = "random",
    .filetype = "random",
    .open_loop = true,
    .single_prompts = true,
    .seed_rules = WL_RULES_BENCH_SERVE,
    .needs_tokenizer = true,
    .read = read,
    .params_size = sizeof(struct wl_random),
    .generate = generate,
};
