/* Multi-turn conversations as vLLM's benchmark_serving_multi_turn.py generates them, byte for byte.
 *
 * The first message of a conversation is: common prefix, tag, the conversation's own prefix, instruction, body. Later
 * messages are: tag, instruction, body. The prefixes and bodies are slices of the source text's tokens. Generation has
 * three steps:
 * 1. All lengths are sampled, in vLLM's order, before any text is read.
 * 2. Every slice is assigned its position in the source text. The furthest end is the length that the text must have. A
 *    text that is too short is an error before any message is built.
 * 3. The slices are decoded and joined to messages. */
#include "workloads/multi_turn.h"

#include "base/mem.h"
#include "workloads/message.h"
#include "workloads/spec.h"
#include "workloads/text.h"

#include <stddef.h>
#include <stdio.h>
#include <string.h>

static const char INSTRUCTION[] = "Please rewrite the following text and add more content: ";

static int check_text_files(const cJSON *json, struct km_err *err)
{
    const cJSON *files = NULL, *f;
    int rc = km_json_item(json, "text_files", true, cJSON_Array, &files, err);
    if (!rc && !cJSON_GetArraySize(files))
        rc = km_fail(err, KM_EINVAL, "\"text_files\" is empty; name at least one text file");
    cJSON_ArrayForEach(f, files)
    {
        if (!rc && (!cJSON_IsString(f) || !*f->valuestring))
            rc = km_fail(err, KM_EINVAL, "\"text_files\" must be a list of file names");
    }
    return rc;
}

static int read(struct wl_spec *s, struct km_err *err)
{
    struct wl_multi_turn *p = s->params;
    const struct {
        struct wl_distribution *out;
        const char *section, *key;
        bool need;
    } lengths[] = {{&p->turns, "prompt_input", "num_turns", true},
                   {&p->common, "prompt_input", "common_prefix_num_tokens", false},
                   {&p->prefix, "prompt_input", "prefix_num_tokens", true},
                   {&p->input, "prompt_input", "num_tokens", true},
                   {&p->output, "prompt_output", "num_tokens", true}};
    int64_t n = 0;
    bool ignored;
    int rc = km_json_int(s->json, "num_conversations", true, 1, WL_MAX_CONVS, &n, err);
    if (!rc)
        rc = check_text_files(s->json, err);
    if (!rc)
        rc = km_json_bool(s->json, "print_stats", false, &ignored, err);
    for (size_t i = 0; i < sizeof lengths / sizeof *lengths && !rc; i++) {
        const cJSON *section = NULL;
        rc = km_json_item(s->json, lengths[i].section, true, cJSON_Object, &section, err);
        if (!rc)
            rc =
                wl_distribution_read(lengths[i].out, section, lengths[i].section, lengths[i].key, lengths[i].need, err);
    }
    s->n = (int)n;
    s->seed_max = UINT32_MAX; /* numpy.random.seed takes no more */
    return rc;
}

/* Tokens [at, at + n) of the source text; empty if n <= 0. */
struct slice {
    int64_t at, n;
};

struct msg_plan {
    struct slice prefix, body; /* an answer has a body only */
};

struct conv_plan {
    int n;                 /* messages; even */
    int64_t prefix;        /* tokens of the conversation's own prefix */
    int64_t *size;         /* [n] tokens of each message: of user messages at even indices, of answers at odd ones */
    int64_t size_max;      /* largest of the n sampled input lengths, the unused ones at odd indices included */
    struct msg_plan *msgs; /* [n] */
};

struct plan {
    struct conv_plan *convs; /* [n] */
    int n;
    int64_t common;      /* tokens of the common prefix */
    int64_t instruction; /* tokens of INSTRUCTION */
};

static void plan_free(struct plan *p)
{
    for (int c = 0; c < p->n && p->convs; c++) {
        km_free(p->convs[c].size);
        km_free(p->convs[c].msgs);
    }
    km_free(p->convs);
}

/* Samples the lengths of one conversation: n input lengths, then n output lengths. vLLM samples both for every message
 * and uses every other one. least: the shortest input length in tokens. */
static int sample_sizes(struct conv_plan *c, const struct wl_multi_turn *s, int64_t least, struct wl_mt *r,
                        struct km_err *err)
{
    size_t n = (size_t)c->n;
    int64_t *out = km_reallocarray(NULL, n, sizeof *out);
    c->size = km_reallocarray(NULL, n, sizeof *c->size);
    c->msgs = km_calloc(n, sizeof *c->msgs);
    int rc = out && c->size && c->msgs ? 0 : km_fail(err, KM_ENOMEM, "out of memory for %d messages", c->n);
    if (!rc)
        rc = wl_distribution_sample(&s->input, r, c->n, c->size, err);
    if (!rc)
        rc = wl_distribution_sample(&s->output, r, c->n, out, err);
    for (int i = 0; i < c->n && !rc; i++) {
        if (c->size[i] < least)
            c->size[i] = least;
        if (c->size[i] > c->size_max)
            c->size_max = c->size[i];
    }
    for (int i = 1; i < c->n && !rc; i += 2)
        c->size[i] = out[i] < 1 ? 1 : out[i];
    km_free(out);
    return rc;
}

static int sample_lengths(struct plan *p, const struct wl_multi_turn *s, uint32_t seed, struct km_err *err)
{
    struct wl_mt r;
    wl_mt_seed(&r, seed);
    int64_t *turns = km_reallocarray(NULL, (size_t)p->n, sizeof *turns);
    int64_t *prefix = km_reallocarray(NULL, (size_t)p->n, sizeof *prefix);
    p->convs = km_calloc((size_t)p->n, sizeof *p->convs);
    int rc = turns && prefix && p->convs ? 0 : km_fail(err, KM_ENOMEM, "out of memory for %d conversations", p->n);
    if (!rc)
        rc = wl_distribution_sample(&s->turns, &r, p->n, turns, err);
    if (!rc)
        rc = wl_distribution_sample(&s->prefix, &r, p->n, prefix, err);
    if (!rc)
        rc = wl_distribution_sample(&s->common, &r, 1, &p->common, err);
    for (int c = 0; c < p->n && !rc; c++) {
        int64_t n = turns[c] < 2 ? 2 : turns[c] + turns[c] % 2;
        if (n > WL_MAX_MESSAGES) {
            rc = km_fail(err, KM_ELIMIT,
                         "conversation %d would have %lld messages; at most %d are accepted, so give "
                         "\"num_turns\" a \"max\"",
                         c, (long long)n, WL_MAX_MESSAGES);
            break;
        }
        p->convs[c].n = (int)n;
        p->convs[c].prefix = prefix[c];
        rc = sample_sizes(&p->convs[c], s, p->instruction, &r, err);
    }
    km_free(turns);
    km_free(prefix);
    return rc;
}

static void put_tag(struct km_buf *b, int c)
{
    km_buf_printf(b, "%d is a nice number... ", c);
}

/* Appends the common prefix of all first messages: the first common - 2 tokens of the text and a full stop. For a
 * common prefix of one token, Python's slice [:-1] takes all but the last token of the text, and so does this. */
static int put_common_prefix(struct km_buf *b, const struct plan *p, const struct wl_text *text, const struct tok *t,
                             struct km_err *err)
{
    if (p->common <= 0)
        return 0;
    int64_t all = (int64_t)text->ids.n, n = p->common >= 2 ? p->common - 2 : all - 1;
    n = n > all ? all : n < 0 ? 0 : n;
    int rc = tok_decode(t, text->ids.v, (size_t)n, false, b, err);
    km_buf_putc(b, '.');
    return rc;
}

/* Counts the tokens of message i before its own prefix: the common prefix if i is 0, and the tag. */
static int64_t count_opening(int c, int i, const struct km_buf *common, const struct tok *t, struct km_err *err)
{
    struct km_buf b = {0};
    if (i == 0)
        km_buf_put(&b, common->data, common->len);
    put_tag(&b, c);
    int64_t n = km_buf_ok(&b) ? tok_count(t, b.data, b.len, err)
                              : km_fail(err, KM_ENOMEM, "out of memory for the opening of a message");
    km_buf_free(&b);
    return n;
}

/* The larger of `end` and the end of the slice. */
static int64_t max_end(int64_t end, struct slice s)
{
    return s.n > 0 && s.at + s.n > end ? s.at + s.n : end;
}

/* Assigns positions to all slices, as vLLM does. `base` is where a conversation's slices start. The body of its message
 * i starts i * size_max tokens after the conversation's prefix, and the bodies of answers start at 0. The next
 * conversation starts n tokens after the prefix, so that bodies of different conversations overlap. *need: the tokens
 * that the text must have, one more than the furthest end, as in vLLM. */
static int place_slices(struct plan *p, const struct km_buf *common, const struct tok *t, int64_t *need,
                        struct km_err *err)
{
    int64_t base = p->common > 0 ? p->common : 0, end = 0;
    for (int c = 0; c < p->n; c++) {
        struct conv_plan *v = &p->convs[c];
        int64_t first = count_opening(c, 0, common, t, err), later = count_opening(c, 1, common, t, err);
        if (first < 0 || later < 0)
            return (int)(first < 0 ? first : later);
        for (int i = 0; i < v->n; i++) {
            struct msg_plan *m = &v->msgs[i];
            if (i % 2) {
                m->body = (struct slice){0, v->size[i]};
            } else {
                if (i == 0 && v->prefix > 0) {
                    m->prefix = (struct slice){base, v->prefix};
                    base += v->prefix;
                }
                int64_t body = v->size[i] - (i ? later : first) - p->instruction;
                m->body = (struct slice){base + i * v->size_max, body};
            }
            end = max_end(end, m->prefix);
            end = max_end(end, m->body);
        }
        base += v->n;
    }
    *need = end + 1;
    return 0;
}

static int put_slice(struct km_buf *b, struct slice s, const struct wl_text *text, const struct tok *t,
                     struct km_err *err)
{
    return s.n > 0 ? tok_decode(t, text->ids.v + s.at, (size_t)s.n, false, b, err) : 0;
}

static int write_message(struct wl_msg *out, const struct msg_plan *m, int c, int i, const struct km_buf *common,
                         const struct wl_text *text, const struct tok *t, struct km_err *err)
{
    struct km_buf b = {0};
    int rc = 0;
    if (!out->assistant) {
        if (i == 0)
            km_buf_put(&b, common->data, common->len);
        put_tag(&b, c);
        if (m->prefix.n > 0)
            km_buf_printf(&b, "%d, ", c);
        rc = put_slice(&b, m->prefix, text, t, err);
        km_buf_puts(&b, INSTRUCTION);
    }
    if (!rc)
        rc = put_slice(&b, m->body, text, t, err);
    if (!rc)
        rc = wl_msg_set_text(out, &b, err);
    if (!rc)
        rc = wl_msg_count_tokens(out, t, err);
    km_buf_free(&b);
    return rc;
}

static int write_messages(struct wl_set *set, const struct plan *p, const struct km_buf *common,
                          const struct wl_text *text, const struct tok *t, struct km_err *err)
{
    for (int c = 0; c < p->n; c++) {
        char id[40];
        snprintf(id, sizeof id, "CONV_ID_%d", c);
        int rc = wl_conv_init(&set->convs[c], id, p->convs[c].n, err);
        for (int i = 0; i < p->convs[c].n && !rc; i++)
            rc = write_message(&set->convs[c].msgs[i], &p->convs[c].msgs[i], c, i, common, text, t, err);
        if (rc)
            return rc;
    }
    return 0;
}

/* An upper bound of *need of place_slices, computed from the lengths alone. */
static int64_t bound_text_tokens(const struct plan *p)
{
    int64_t base = p->common, end = 0;
    for (int c = 0; c < p->n; c++) {
        const struct conv_plan *v = &p->convs[c];
        base += v->prefix;
        int64_t here = base + (v->n + 1) * v->size_max;
        for (int i = 1; i < v->n; i += 2)
            here = v->size[i] > here ? v->size[i] : here;
        end = here > end ? here : end;
        base += v->n;
    }
    return end + 1;
}

static int generate(struct wl_set *set, const struct wl_spec *s, const struct wl_gen_opts *o, const struct tok *t,
                    struct km_err *err)
{
    struct plan p = {.n = set->n};
    struct wl_text text = {0};
    struct km_buf common = {0};
    int64_t need = 0;
    p.instruction = tok_count(t, INSTRUCTION, sizeof INSTRUCTION - 1, err);
    int rc = p.instruction < 0 ? (int)p.instruction : sample_lengths(&p, s->params, (uint32_t)o->seed, err);
    if (!rc)
        rc = wl_text_read(&text, s, o, bound_text_tokens(&p), t, err);
    if (!rc)
        rc = put_common_prefix(&common, &p, &text, t, err);
    if (!rc)
        rc = place_slices(&p, &common, t, &need, err);
    if (!rc && need > (int64_t)text.ids.n)
        rc = km_fail(err, KM_EINVAL,
                     "the text (%s) has %zu tokens and the workload needs %lld; use a longer text, "
                     "shorter prefixes or fewer conversations",
                     text.label, text.ids.n, (long long)need);
    if (!rc)
        rc = write_messages(set, &p, &common, &text, t, err);
    memcpy(set->text, text.label, sizeof set->text);
    km_buf_free(&common);
    km_free(text.ids.v);
    plan_free(&p);
    return rc;
}

const struct wl_kind_ops wl_multi_turn_kind = {
    .name = "multi_turn",
    .filetype = "generate_conversations",
    .seed_rules = WL_RULES_MULTI_TURN,
    .needs_tokenizer = true,
    .read = read,
    .params_size = sizeof(struct wl_multi_turn),
    .generate = generate,
};
