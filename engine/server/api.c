/* One table lists every field of a request: its name, the endpoints that have it, its type and its bounds. To add a
 * field, add a row here and a member to `struct raw`.
 *
 * Parsing has two passes. read_fields walks the body once and looks each key up in the table; it checks types and
 * bounds, and a field that occurs twice is an error. The read_* functions below it check what depends on several
 * fields. */
#include "engine/server/api.h"

#include "base/mem.h"
#include "engine/server/chat.h"

#include <math.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

enum row {
    R_INT,        /* int64_t */
    R_NUM,        /* double */
    R_BOOL,       /* bool */
    R_STR,        /* const char * */
    R_ITEM,       /* const cJSON *: checked in the second pass */
    R_UNSUPPORTED /* an error, unless the value is null, false, 0, "", an empty array or object, or `allowed` */
};

/* The values of the first pass. A field that the body lacks is NAN, INT64_MIN or NULL, or has its default. */
struct raw {
    const char *model, *cache_salt;
    int64_t max_tokens, max_completion_tokens, min_tokens, n, seed, top_k;
    int64_t logprobs, top_logprobs, priority, best_of;
    double temperature, top_p, min_p, presence, frequency, repetition;
    bool stream, ignore_eos, echo, include_stop, skip_special, tokens_as_ids, token_ids, chat_logprobs;
    bool generation_prompt, token_strs;
    const cJSON *prompt, *messages, *stop, *stop_ids, *stream_options, *template_kwargs, *response_format, *tokens;
};

#define AT(f) offsetof(struct raw, f)
enum { GEN = API_COMPLETION | API_CHAT, ALL = GEN | API_TOKENIZE | API_DETOKENIZE };
#define INT_ANY 9223372036854774784.0 /* the largest double below 2^63 */

static const struct field {
    const char *name;
    int kinds;
    enum row row;
    size_t at;           /* offset in struct raw */
    double lo, hi;       /* bounds of a number, inclusive */
    const char *allowed; /* R_UNSUPPORTED: strings that are accepted, separated by | */
} fields[] = {
    {"model", ALL, R_STR, AT(model), 0, 0, 0},
    {"prompt", API_COMPLETION | API_TOKENIZE, R_ITEM, AT(prompt), 0, 0, 0},
    {"messages", API_CHAT | API_TOKENIZE, R_ITEM, AT(messages), 0, 0, 0},
    {"tokens", API_DETOKENIZE, R_ITEM, AT(tokens), 0, 0, 0},
    {"max_tokens", API_COMPLETION, R_INT, AT(max_tokens), 0, INT32_MAX, 0},
    {"max_tokens", API_CHAT, R_INT, AT(max_tokens), 1, INT32_MAX, 0},
    {"max_completion_tokens", API_COMPLETION, R_INT, AT(max_completion_tokens), 0, INT32_MAX, 0},
    {"max_completion_tokens", API_CHAT, R_INT, AT(max_completion_tokens), 1, INT32_MAX, 0},
    {"min_tokens", GEN, R_INT, AT(min_tokens), 0, INT32_MAX, 0},
    {"n", GEN, R_INT, AT(n), 1, 128, 0},
    {"best_of", API_COMPLETION, R_INT, AT(best_of), 0, 20, 0},
    {"seed", GEN, R_INT, AT(seed), -INT_ANY, INT_ANY, 0},
    {"temperature", GEN, R_NUM, AT(temperature), 0, 2, 0},
    {"top_p", GEN, R_NUM, AT(top_p), 0, 1, 0},
    {"top_k", GEN, R_INT, AT(top_k), -1, INT32_MAX, 0},
    {"min_p", GEN, R_NUM, AT(min_p), 0, 1, 0},
    {"presence_penalty", GEN, R_NUM, AT(presence), -2, 2, 0},
    {"frequency_penalty", GEN, R_NUM, AT(frequency), -2, 2, 0},
    {"repetition_penalty", GEN, R_NUM, AT(repetition), 1e-3, 1e3, 0},
    {"logprobs", API_COMPLETION, R_INT, AT(logprobs), 0, SMP_MAX_TOP, 0},
    {"logprobs", API_CHAT, R_BOOL, AT(chat_logprobs), 0, 0, 0},
    {"top_logprobs", API_CHAT, R_INT, AT(top_logprobs), 0, SMP_MAX_TOP, 0},
    {"stop", GEN, R_ITEM, AT(stop), 0, 0, 0},
    {"stop_token_ids", GEN, R_ITEM, AT(stop_ids), 0, 0, 0},
    {"include_stop_str_in_output", GEN, R_BOOL, AT(include_stop), 0, 0, 0},
    {"ignore_eos", GEN, R_BOOL, AT(ignore_eos), 0, 0, 0},
    {"echo", API_COMPLETION, R_BOOL, AT(echo), 0, 0, 0},
    {"stream", GEN, R_BOOL, AT(stream), 0, 0, 0},
    {"stream_options", GEN, R_ITEM, AT(stream_options), 0, 0, 0},
    {"skip_special_tokens", GEN, R_BOOL, AT(skip_special), 0, 0, 0},
    {"return_tokens_as_token_ids", GEN, R_BOOL, AT(tokens_as_ids), 0, 0, 0},
    {"return_token_ids", GEN, R_BOOL, AT(token_ids), 0, 0, 0},
    {"return_token_strs", API_TOKENIZE, R_BOOL, AT(token_strs), 0, 0, 0},
    {"cache_salt", GEN, R_STR, AT(cache_salt), 0, 0, 0},
    {"priority", GEN, R_INT, AT(priority), INT32_MIN, INT32_MAX, 0},
    {"add_generation_prompt", API_CHAT | API_TOKENIZE, R_BOOL, AT(generation_prompt), 0, 0, 0},
    {"chat_template_kwargs", API_CHAT | API_TOKENIZE, R_ITEM, AT(template_kwargs), 0, 0, 0},
    {"response_format", GEN, R_ITEM, AT(response_format), 0, 0, 0},
    /* Unsupported fields that would change the answer. */
    {"tools", API_CHAT | API_TOKENIZE, R_UNSUPPORTED, 0, 0, 0, 0},
    {"tool_choice", API_CHAT, R_UNSUPPORTED, 0, 0, 0, "none|auto"},
    {"functions", API_CHAT, R_UNSUPPORTED, 0, 0, 0, 0},
    {"function_call", API_CHAT, R_UNSUPPORTED, 0, 0, 0, "none|auto"},
    {"audio", API_CHAT, R_UNSUPPORTED, 0, 0, 0, 0},
    {"web_search_options", API_CHAT, R_UNSUPPORTED, 0, 0, 0, 0},
    {"documents", API_CHAT, R_UNSUPPORTED, 0, 0, 0, 0},
    {"chat_template", API_CHAT | API_TOKENIZE, R_UNSUPPORTED, 0, 0, 0, 0},
    {"continue_final_message", API_CHAT | API_TOKENIZE, R_UNSUPPORTED, 0, 0, 0, 0},
    {"echo", API_CHAT, R_UNSUPPORTED, 0, 0, 0, 0},
    {"suffix", API_COMPLETION, R_UNSUPPORTED, 0, 0, 0, 0},
    {"prompt_embeds", API_COMPLETION, R_UNSUPPORTED, 0, 0, 0, 0},
    {"logit_bias", GEN, R_UNSUPPORTED, 0, 0, 0, 0},
    {"prompt_logprobs", GEN, R_UNSUPPORTED, 0, 0, 0, 0},
    {"truncate_prompt_tokens", GEN, R_UNSUPPORTED, 0, 0, 0, 0},
    {"allowed_token_ids", GEN, R_UNSUPPORTED, 0, 0, 0, 0},
    {"bad_words", GEN, R_UNSUPPORTED, 0, 0, 0, 0},
    {"use_beam_search", GEN, R_UNSUPPORTED, 0, 0, 0, 0},
    {"logits_processors", GEN, R_UNSUPPORTED, 0, 0, 0, 0},
    {"structured_outputs", GEN, R_UNSUPPORTED, 0, 0, 0, 0},
    {"guided_json", GEN, R_UNSUPPORTED, 0, 0, 0, 0},
    {"guided_regex", GEN, R_UNSUPPORTED, 0, 0, 0, 0},
    {"guided_choice", GEN, R_UNSUPPORTED, 0, 0, 0, 0},
    {"guided_grammar", GEN, R_UNSUPPORTED, 0, 0, 0, 0},
    {"structural_tag", GEN, R_UNSUPPORTED, 0, 0, 0, 0},
    {"kv_transfer_params", GEN, R_UNSUPPORTED, 0, 0, 0, 0},
};
enum { N_FIELDS = sizeof fields / sizeof *fields };

__attribute__((format(printf, 3, 4))) static int refuse(struct api_error *e, const char *param, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    km_vfail(&e->err, KM_EINVAL, fmt, ap);
    va_end(ap);
    e->status = 400;
    snprintf(e->param, sizeof e->param, "%s", param);
    return -1;
}

static int no_memory(struct api_error *e)
{
    refuse(e, "", "the server has no memory for the request; try again later");
    e->status = 503;
    return -1;
}

/* True for an integer that fits 64 bits. */
static bool is_whole(const cJSON *v)
{
    return cJSON_IsNumber(v) && fabs(v->valuedouble) <= INT_ANY && v->valuedouble == floor(v->valuedouble);
}

static int read_number(const struct field *f, const cJSON *v, struct raw *raw, struct api_error *e)
{
    if (!cJSON_IsNumber(v))
        return refuse(e, f->name, "\"%s\" must be a number, not %s", f->name, km_json_kind(v));
    double d = v->valuedouble;
    if (!(d >= f->lo && d <= f->hi)) {
        if (f->hi == INT_ANY)
            return refuse(e, f->name, "\"%s\" is %g; it must be an integer that fits 64 bits", f->name, d);
        return refuse(e, f->name, "\"%s\" is %.10g; it must be between %.10g and %.10g", f->name, d, f->lo, f->hi);
    }
    if (f->row == R_NUM) {
        memcpy((char *)raw + f->at, &d, sizeof d);
        return 0;
    }
    if (d != floor(d))
        return refuse(e, f->name, "\"%s\" is %.10g; it must be an integer", f->name, d);
    int64_t i = (int64_t)d;
    memcpy((char *)raw + f->at, &i, sizeof i);
    return 0;
}

/* True if the list, separated by |, has the word. */
static bool list_has_word(const char *list, const char *word)
{
    size_t n = strlen(word);
    while (list && *list) {
        size_t len = strcspn(list, "|");
        if (len == n && !memcmp(list, word, n))
            return true;
        list += len + (list[len] == '|');
    }
    return false;
}

static int read_field(const struct field *f, const cJSON *v, struct raw *raw, struct api_error *e)
{
    void *dst = (char *)raw + f->at;
    switch (f->row) {
    case R_INT:
    case R_NUM:
        return read_number(f, v, raw, e);
    case R_BOOL:
        if (!cJSON_IsBool(v))
            return refuse(e, f->name, "\"%s\" must be true or false, not %s", f->name, km_json_kind(v));
        *(bool *)dst = cJSON_IsTrue(v);
        return 0;
    case R_STR:
        if (!cJSON_IsString(v))
            return refuse(e, f->name, "\"%s\" must be a string, not %s", f->name, km_json_kind(v));
        memcpy(dst, &v->valuestring, sizeof v->valuestring);
        return 0;
    case R_ITEM:
        memcpy(dst, &v, sizeof v);
        return 0;
    case R_UNSUPPORTED:
        break;
    }
    bool empty = cJSON_IsFalse(v) || (cJSON_IsNumber(v) && v->valuedouble == 0) ||
                 (cJSON_IsString(v) && (!*v->valuestring || list_has_word(f->allowed, v->valuestring))) ||
                 ((cJSON_IsArray(v) || cJSON_IsObject(v)) && !v->child);
    return empty ? 0 : refuse(e, f->name, "\"%s\" is not supported; remove it from the request", f->name);
}

static int read_fields(const cJSON *root, enum api_kind kind, struct raw *raw, struct api_error *e)
{
    bool seen[N_FIELDS] = {false};
    const cJSON *v;
    cJSON_ArrayForEach(v, root)
    {
        for (int i = 0; i < N_FIELDS; i++) {
            if (!(fields[i].kinds & (int)kind) || strcmp(fields[i].name, v->string))
                continue;
            if (seen[i])
                return refuse(e, fields[i].name, "\"%s\" occurs twice; send it once", fields[i].name);
            seen[i] = true;
            if (!cJSON_IsNull(v) && read_field(&fields[i], v, raw, e))
                return -1;
            break;
        }
    }
    return 0;
}

static int read_stop(struct api_request *a, const cJSON *v, const struct api_env *env, struct api_error *e)
{
    if (!v)
        return 0;
    if (!cJSON_IsString(v) && !cJSON_IsArray(v))
        return refuse(e, "stop", "\"stop\" must be a string or an array of at most 4 strings, not %s", km_json_kind(v));
    const cJSON *s = cJSON_IsArray(v) ? v->child : v;
    for (; s; s = cJSON_IsArray(v) ? s->next : NULL) {
        if (!cJSON_IsString(s))
            return refuse(e, "stop", "\"stop\" has %s as an element; every element must be a string", km_json_kind(s));
        if (!*s->valuestring)
            return refuse(e, "stop", "\"stop\" has an empty string; remove it");
        if (strstr(s->valuestring, "\xC0\x80")) /* the bytes that km_json_parse keeps for a NUL */
            return refuse(e, "stop", "\"stop\" has a string with a NUL character, which is not supported; remove it");
        if (a->n_stop == API_MAX_STOPS)
            return refuse(e, "stop", "\"stop\" has more than %d strings, the most that are supported", API_MAX_STOPS);
        if (!(a->stop[a->n_stop] = km_strdup(s->valuestring)))
            return no_memory(e);
        a->n_stop++;
    }
    if (a->n_stop && !env->tok)
        return refuse(e, "stop",
                      "\"stop\" needs a tokenizer, and this model has no tokenizer.json; use "
                      "\"stop_token_ids\"");
    return 0;
}

static int read_ids(const cJSON *list, const char *param, int vocab, int32_t *out, struct api_error *e)
{
    const cJSON *v;
    int i = 0;
    cJSON_ArrayForEach(v, list)
    {
        if (!is_whole(v))
            return refuse(e, param, "\"%s\" has %s at index %d; every element must be a token id", param,
                          cJSON_IsNumber(v) ? "a number that is not an integer of 64 bits" : km_json_kind(v), i);
        if (v->valuedouble < 0 || v->valuedouble >= vocab)
            return refuse(e, param, "\"%s\" has token id %.0f at index %d; this model's ids are 0 to %d", param,
                          v->valuedouble, i, vocab - 1);
        out[i++] = (int32_t)v->valuedouble;
    }
    return 0;
}

static int read_stop_ids(struct api_request *a, const cJSON *v, const struct api_env *env, struct api_error *e)
{
    if (!v)
        return 0;
    if (!cJSON_IsArray(v))
        return refuse(e, "stop_token_ids", "\"stop_token_ids\" must be an array of token ids, not %s", km_json_kind(v));
    int n = cJSON_GetArraySize(v);
    if (n > API_MAX_STOP_IDS)
        return refuse(e, "stop_token_ids", "\"stop_token_ids\" has %d ids; at most %d are supported", n,
                      API_MAX_STOP_IDS);
    a->n_stop_ids = n;
    return read_ids(v, "stop_token_ids", env->vocab, a->stop_ids, e);
}

/* Reads stream_options, chat_template_kwargs and response_format. */
static int read_options(struct api_request *a, const struct raw *r, bool *thinking, struct api_error *e)
{
    const cJSON *o = r->stream_options;
    if (o) {
        if (!cJSON_IsObject(o))
            return refuse(e, "stream_options", "\"stream_options\" must be an object, not %s", km_json_kind(o));
        if (!r->stream)
            return refuse(e, "stream_options", "\"stream_options\" needs \"stream\": true; set it too");
        if (km_json_bool(o, "include_usage", false, &a->include_usage, &e->err) ||
            km_json_bool(o, "continuous_usage_stats", false, &a->continuous_usage, &e->err))
            return refuse(e, "stream_options",
                          "in \"stream_options\", include_usage and continuous_usage_stats "
                          "must be true or false");
        a->continuous_usage &= a->include_usage;
    }
    o = r->template_kwargs;
    if (o) {
        if (!cJSON_IsObject(o))
            return refuse(e, "chat_template_kwargs", "\"chat_template_kwargs\" must be an object, not %s",
                          km_json_kind(o));
        if (km_json_bool(o, "enable_thinking", false, thinking, &e->err))
            return refuse(e, "chat_template_kwargs",
                          "in \"chat_template_kwargs\", enable_thinking must be true "
                          "or false");
    }
    o = r->response_format;
    if (o) {
        const cJSON *type = cJSON_GetObjectItemCaseSensitive(o, "type");
        if (!cJSON_IsString(type) || strcmp(type->valuestring, "text"))
            return refuse(e, "response_format", "\"response_format\" must be {\"type\": \"text\"} or absent");
    }
    return 0;
}

/* The request's value (NAN: none), else the model's (below 0: none), else the fallback. */
static double first_set(double v, double model, double fallback)
{
    return !isnan(v) ? v : model >= 0 ? model : fallback;
}

static int read_sampling(struct api_request *a, const struct raw *r, const struct api_env *env, struct api_error *e)
{
    struct smp_params *s = &a->sampling;
    *s = (struct smp_params){.repetition = first_set(r->repetition, -1, 1), .n_logprobs = -1};
    s->temperature = first_set(r->temperature, env->temperature, 1);
    s->top_p = first_set(r->top_p, env->top_p, 1);
    if (s->top_p == 0)
        s->top_p = 1e-9; /* OpenAI allows 0, which keeps only the most likely token */
    s->top_k = r->top_k != INT64_MIN ? (int)r->top_k : env->top_k > 0 ? env->top_k : -1;
    s->min_p = first_set(r->min_p, -1, 0);
    s->presence = first_set(r->presence, -1, 0);
    s->frequency = first_set(r->frequency, -1, 0);
    a->seeded = r->seed != INT64_MIN;
    s->seed = a->seeded ? (uint64_t)r->seed : 0;
    if (a->kind == API_CHAT) {
        if (r->top_logprobs > 0 && !r->chat_logprobs)
            return refuse(e, "top_logprobs", "\"top_logprobs\" is %lld and needs \"logprobs\": true",
                          (long long)r->top_logprobs);
        if (r->chat_logprobs)
            s->n_logprobs = r->top_logprobs > 0 ? (int)r->top_logprobs : 0;
    } else if (r->logprobs != INT64_MIN) {
        s->n_logprobs = (int)r->logprobs;
    }
    return 0;
}

/* True for an array of token ids, false for an array of prompts. */
static bool is_id_list(const cJSON *list)
{
    return list->child && cJSON_IsNumber(list->child);
}

static int prompt_of_ids(struct tok_ids *out, const cJSON *list, const char *param, const struct api_env *env,
                         struct api_error *e)
{
    size_t n = (size_t)cJSON_GetArraySize(list);
    if (!n)
        return refuse(e, param, "\"%s\" is an empty array; it must have at least one token id", param);
    if (!(out->v = km_reallocarray(NULL, n, sizeof *out->v)))
        return no_memory(e);
    out->n = out->cap = n;
    return read_ids(list, param, env->vocab, out->v, e);
}

static int prompt_of_text(struct tok_ids *out, const char *text, const char *param, const struct api_env *env,
                          struct api_error *e)
{
    if (!env->tok)
        return refuse(e, param, "\"%s\" is text, and this model has no tokenizer.json; send token ids", param);
    /* In a prompt without a chat template the client writes the control tokens, so their text becomes their ids. */
    size_t len = strlen(text);
    struct km_buf tmp = {0};
    const char *whole = km_json_nuls(text, &len, &tmp);
    int rc = whole ? tok_encode(env->tok, whole, len, true, out, &e->err)
                   : km_fail(&e->err, KM_ENOMEM, "out of memory for the prompt");
    km_buf_free(&tmp);
    if (rc) {
        if (e->err.code == KM_ENOMEM)
            return no_memory(e);
        e->status = 400;
        snprintf(e->param, sizeof e->param, "%s", param);
        return -1;
    }
    return 0;
}

/* Sets a->max_tokens from max_tokens or max_completion_tokens; INT64_MIN if the body has neither. */
static int read_max_tokens(struct api_request *a, const struct raw *r, struct api_error *e)
{
    int64_t old = r->max_tokens, new = r->max_completion_tokens; /* OpenAI's deprecated name, and its successor */
    if (old != INT64_MIN && new != INT64_MIN && old != new)
        return refuse(e, "max_tokens",
                      "\"max_tokens\" is %lld and \"max_completion_tokens\" is %lld; send only "
                      "one of them",
                      (long long)old, (long long)new);
    a->max_tokens = new != INT64_MIN ? new : old;
    return 0;
}

/* Checks that a prompt of n tokens and max_tokens, or one token if the body has no max_tokens, fit the context. */
static int check_context(const struct api_request *a, size_t n, const struct api_env *env, struct api_error *e)
{
    int64_t answer = a->max_tokens == INT64_MIN ? 1 : a->max_tokens, total = (int64_t)n + answer;
    if (total <= env->max_model_len)
        return 0;
    const char *name = a->kind == API_CHAT ? "messages" : "prompt";
    refuse(e, name,
           "This model's maximum context length is %d tokens, and the request asks for %lld: %zu in the %s "
           "and %lld to generate; shorten the %s or ask for fewer tokens",
           env->max_model_len, (long long)total, n, name, (long long)answer, name);
    e->code = "context_length_exceeded";
    return -1;
}

/* Reads one element of "prompt": a string, or an array of token ids, whose length is checked first. */
static int read_prompt(struct api_request *a, int i, const cJSON *v, const struct api_env *env, struct api_error *e)
{
    if (cJSON_IsString(v))
        return prompt_of_text(&a->prompts[i], v->valuestring, "prompt", env, e);
    if (!cJSON_IsArray(v))
        return refuse(e, "prompt", "\"prompt\" has %s at index %d; every element must be a string or an array of ids",
                      km_json_kind(v), i);
    if (check_context(a, (size_t)cJSON_GetArraySize(v), env, e))
        return -1;
    return prompt_of_ids(&a->prompts[i], v, "prompt", env, e);
}

static int read_prompts(struct api_request *a, const cJSON *p, const struct api_env *env, struct api_error *e)
{
    if (!p)
        return refuse(e, "prompt", "\"prompt\" is missing; give a string or an array of token ids");
    if (!cJSON_IsString(p) && !cJSON_IsArray(p))
        return refuse(e, "prompt",
                      "\"prompt\" must be a string, an array of strings, an array of token ids or "
                      "an array of such arrays, not %s",
                      km_json_kind(p));
    bool one = cJSON_IsString(p) || is_id_list(p);
    int n = one ? 1 : cJSON_GetArraySize(p);
    if (!n)
        return refuse(e, "prompt", "\"prompt\" is an empty array; it must have at least one prompt");
    if (n > API_MAX_CHOICES || (a->n > 0 && n * a->n > API_MAX_CHOICES))
        return refuse(e, "prompt", "\"prompt\" has %d prompts and \"n\" is %lld; their product must not be above %d", n,
                      (long long)a->n, API_MAX_CHOICES);
    if (!(a->prompts = km_calloc((size_t)n, sizeof *a->prompts)))
        return no_memory(e);
    a->n_prompts = n;
    const cJSON *v = one ? p : p->child;
    for (int i = 0; i < n; i++, v = one ? NULL : v->next) {
        if (read_prompt(a, i, v, env, e))
            return -1;
        if (!a->prompts[i].n)
            return refuse(e, "prompt", "\"prompt\" has no tokens at index %d; give at least one character", i);
    }
    return 0;
}

static int read_messages(struct api_request *a, const struct raw *r, bool thinking, const struct api_env *env,
                         struct api_error *e)
{
    if (!r->messages)
        return refuse(e, "messages", "\"messages\" is missing; give an array of messages");
    if (!env->tok)
        return refuse(e, "messages",
                      "\"messages\" needs a tokenizer, and this model has no tokenizer.json; use "
                      "/v1/completions with token ids");
    if (!(a->prompts = km_calloc(1, sizeof *a->prompts)))
        return no_memory(e);
    a->n_prompts = 1;
    struct chat c;
    e->status = 400;
    int rc = chat_render(&c, r->messages, r->generation_prompt, thinking, e->param, &e->err);
    if (!rc) {
        rc = chat_encode(&c, env->tok, &a->prompts[0], &e->err);
        chat_free(&c);
    }
    if (rc == KM_ENOMEM)
        return no_memory(e);
    return rc ? -1 : 0;
}

/* Decodes the prompts, because with echo the answer repeats their texts. */
static int read_echo(struct api_request *a, const struct api_env *env, struct api_error *e)
{
    if (!env->tok)
        return refuse(e, "echo", "\"echo\" needs a tokenizer, and this model has no tokenizer.json; remove it");
    if (a->sampling.n_logprobs >= 0)
        return refuse(e, "echo", "\"echo\" together with \"logprobs\" is not supported; use one of them");
    if (!(a->echo_end = km_reallocarray(NULL, (size_t)a->n_prompts, sizeof *a->echo_end)))
        return no_memory(e);
    for (int i = 0; i < a->n_prompts; i++) {
        if (tok_decode(env->tok, a->prompts[i].v, a->prompts[i].n, false, &a->echo_text, &e->err))
            return refuse(e, "prompt",
                          "\"prompt\" has a token id without text, which \"echo\" cannot return; "
                          "remove one of them");
        a->echo_end[i] = a->echo_text.len;
    }
    return km_buf_ok(&a->echo_text) ? 0 : no_memory(e);
}

/* Checks every prompt against the context, and sets the final max_tokens and min_tokens. */
static int read_lengths(struct api_request *a, const struct raw *r, const struct api_env *env, struct api_error *e)
{
    size_t longest = 0;
    for (int i = 0; i < a->n_prompts; i++)
        longest = a->prompts[i].n > longest ? a->prompts[i].n : longest;
    if (check_context(a, longest, env, e))
        return -1;
    int64_t space = env->max_model_len - (int64_t)longest;
    if (a->max_tokens == INT64_MIN)
        a->max_tokens = a->kind == API_COMPLETION && space > 16 ? 16 : space;
    a->min_tokens = r->min_tokens;
    if (a->min_tokens > a->max_tokens)
        return refuse(e, "min_tokens", "\"min_tokens\" is %lld; it must not be above max_tokens, which is %lld",
                      (long long)a->min_tokens, (long long)a->max_tokens);
    return 0;
}

/* A missing or empty name means the served model, as in vLLM. */
static int read_model(const char *model, const struct api_env *env, struct api_error *e)
{
    if (!model || !*model || !strcmp(model, env->model))
        return 0;
    refuse(e, "model", "The model \"%.100s\" does not exist; this server serves \"%s\"", model, env->model);
    e->status = 404;
    e->code = "model_not_found";
    return -1;
}

static int read_generation(struct api_request *a, const struct raw *r, bool thinking, const struct api_env *env,
                           struct api_error *e)
{
    if (r->best_of > 1)
        return refuse(e, "best_of", "\"best_of\" is %lld; only 1 is supported, remove it", (long long)r->best_of);
    a->n = r->n;
    a->priority = r->priority;
    a->stream = r->stream;
    a->ignore_eos = r->ignore_eos;
    a->echo = r->echo;
    a->include_stop = r->include_stop;
    a->skip_special = r->skip_special;
    a->tokens_as_ids = r->tokens_as_ids;
    a->token_ids = r->token_ids;
    if (r->cache_salt && !*r->cache_salt)
        return refuse(e, "cache_salt", "\"cache_salt\" is empty; give it a value or remove it");
    if (r->cache_salt && !(a->cache_salt = km_strdup(r->cache_salt)))
        return no_memory(e);
    if (read_max_tokens(a, r, e))
        return -1;
    if (read_sampling(a, r, env, e) || read_stop(a, r->stop, env, e) || read_stop_ids(a, r->stop_ids, env, e))
        return -1;
    if (a->kind == API_CHAT ? read_messages(a, r, thinking, env, e) : read_prompts(a, r->prompt, env, e))
        return -1;
    if (!env->tok && !a->tokens_as_ids && !a->token_ids)
        return refuse(e, "return_tokens_as_token_ids",
                      "this model has no tokenizer.json, so its answers are token "
                      "ids; set \"return_tokens_as_token_ids\": true");
    if (a->echo && read_echo(a, env, e))
        return -1;
    return read_lengths(a, r, env, e);
}

static int read_tokenize(struct api_request *a, const struct raw *r, bool thinking, const struct api_env *env,
                         struct api_error *e)
{
    a->token_strs = r->token_strs;
    if (!env->tok)
        return refuse(e, "model", "this model has no tokenizer.json, which this endpoint needs");
    if (a->kind == API_DETOKENIZE) {
        if (!cJSON_IsArray(r->tokens))
            return refuse(e, "tokens", "\"tokens\" must be an array of token ids, not %s", km_json_kind(r->tokens));
        if (!(a->prompts = km_calloc(1, sizeof *a->prompts)))
            return no_memory(e);
        a->n_prompts = 1;
        if (!r->tokens->child)
            return 0;
        return prompt_of_ids(&a->prompts[0], r->tokens, "tokens", env, e);
    }
    if (r->messages)
        return read_messages(a, r, thinking, env, e);
    if (!cJSON_IsString(r->prompt))
        return refuse(e, "prompt", "\"prompt\" must be a string; or give \"messages\" instead");
    if (!(a->prompts = km_calloc(1, sizeof *a->prompts)))
        return no_memory(e);
    a->n_prompts = 1;
    return prompt_of_text(&a->prompts[0], r->prompt->valuestring, "prompt", env, e);
}

/* An upper bound of the number of JSON values in s[n], found without parsing: every value but the first follows a
 * comma, a bracket or a brace. */
static size_t count_values(const char *s, size_t n)
{
    size_t values = 1;
    bool in_string = false;
    for (size_t i = 0; i < n; i++) {
        if (in_string && s[i] == '\\')
            i++;
        else if (s[i] == '"')
            in_string = !in_string;
        else if (!in_string)
            values += s[i] == ',' || s[i] == '[' || s[i] == '{';
    }
    return values;
}

static int check_size(const char *body, size_t len, const struct api_env *env, struct api_error *e)
{
    size_t values = count_values(body, len), most = API_MAX_VALUES + (size_t)env->max_model_len;
    if (values <= most)
        return 0;
    refuse(e, "", "the body has about %zu JSON values, and at most %zu are supported; send fewer prompts in a request",
           values, most);
    e->status = 413;
    return -1;
}

static int read_body(struct api_request *a, const cJSON *root, const struct api_env *env, struct api_error *e)
{
    struct raw r = {.max_tokens = INT64_MIN,
                    .max_completion_tokens = INT64_MIN,
                    .n = 1,
                    .seed = INT64_MIN,
                    .top_k = INT64_MIN,
                    .logprobs = INT64_MIN,
                    .temperature = NAN,
                    .top_p = NAN,
                    .min_p = NAN,
                    .presence = NAN,
                    .frequency = NAN,
                    .repetition = NAN,
                    .skip_special = true,
                    .generation_prompt = true};
    bool thinking = true;
    if (!cJSON_IsObject(root))
        return refuse(e, "", "the body must be a JSON object, not %s", km_json_kind(root));
    if (read_fields(root, a->kind, &r, e) || read_model(r.model, env, e) || read_options(a, &r, &thinking, e))
        return -1;
    return a->kind & GEN ? read_generation(a, &r, thinking, env, e) : read_tokenize(a, &r, thinking, env, e);
}

int api_parse(struct api_request *a, enum api_kind kind, const char *body, size_t len, const struct api_env *env,
              struct api_error *e)
{
    memset(a, 0, sizeof *a);
    *e = (struct api_error){.status = 400};
    a->kind = kind;
    cJSON *root = NULL;
    if (check_size(body, len, env, e) || km_json_parse(body, len, &root, &e->err))
        return -1;
    int rc = read_body(a, root, env, e);
    cJSON_Delete(root);
    if (rc)
        api_free(a);
    return rc;
}

void api_free(struct api_request *a)
{
    for (int i = 0; i < a->n_prompts; i++)
        km_free(a->prompts[i].v);
    km_free(a->prompts);
    for (int i = 0; i < a->n_stop; i++)
        km_free(a->stop[i]);
    km_free(a->cache_salt);
    km_free(a->echo_end);
    km_buf_free(&a->echo_text);
    memset(a, 0, sizeof *a);
}
