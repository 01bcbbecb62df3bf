/* Bodies equal those of vLLM's clients byte for byte, except for stream_options, which asks for usage.
 *
 * A body consists of a head, the messages, and a tail. The head and the messages so far stay in the conversation's
 * buffer. The tail holds the parameters, of which only the token limits vary. It is appended for each turn, and the
 * next message overwrites it. */
#include "harness/client/request.h"

#include "base/json.h"
#include "base/mem.h"

#include <inttypes.h>
#include <string.h>

struct conv_body {
    struct km_buf text; /* the body: head, messages and, after req_build, the tail */
    size_t tail_at;     /* offset of the tail in text */
    int messages;       /* messages in text */
    size_t *part;       /* [n + 1] offset in req.parts of each of the workload's n messages, and the end of the last */
};

struct req {
    const struct load_opts *load;
    const struct wl_set *set;
    bool prompts;            /* single prompts, else conversations */
    const char *max_key;     /* this endpoint's key for max_tokens; NULL: extra_body sets it */
    bool send_min;           /* min_tokens is sent */
    struct km_buf head;      /* the opening brace, the model, and the key of the messages */
    struct km_buf tail;      /* the parameters before the token limits */
    struct km_buf end;       /* the parameters after the token limits, and the closing brace */
    struct km_buf parts;     /* the JSON of the workload's messages, one after the other */
    struct conv_body *convs; /* [set->n] */
};

/* Appends one parameter, unless extra_body sets it. */
static void param(struct km_buf *b, const cJSON *extra, const char *key, const char *json)
{
    if (!cJSON_GetObjectItemCaseSensitive(extra, key))
        km_buf_printf(b, ",\"%s\":%s", key, json);
}

/* Keys that the client must set itself are errors. */
static int check_extra(const cJSON *extra, struct km_err *err)
{
    static const char *const ours[] = {"messages", "prompt", "stream", "n"};
    for (size_t i = 0; i < sizeof ours / sizeof *ours; i++)
        if (cJSON_GetObjectItemCaseSensitive(extra, ours[i]))
            return km_fail(err, KM_EINVAL, "the extra body sets \"%s\", which the client itself must set; leave it out",
                           ours[i]);
    return 0;
}

/* Checks that every message of the set can be sent with these options. */
static int check_messages(const struct load_opts *l, const struct wl_set *set, bool prompts, struct km_err *err)
{
    if (l->endpoint == LOAD_COMPLETIONS && !prompts)
        return km_fail(err, KM_EINVAL,
                       "%s holds conversations, which go to the chat endpoint; use --endpoint-type chat", set->name);
    for (int c = 0; c < set->n; c++) {
        const struct wl_conv *v = &set->convs[c];
        if (v->n < 2 || v->n % 2)
            return km_fail(err, KM_EINVAL,
                           "conversation %s has %d messages; every user message needs an answer after it",
                           v->id ? v->id : "?", v->n);
        for (int m = 0; m < v->n; m++) {
            if (l->send_token_ids && m == 0 && !v->msgs[m].ids)
                return km_fail(err, KM_EINVAL,
                               "--send-token-ids needs a random workload; the prompts of %s are text only", set->name);
            if (v->msgs[m].assistant && v->msgs[m].n_tokens < 0 && l->limit_max_tokens == 0)
                return km_fail(err, KM_EINVAL,
                               "the answers of %s are not counted, so no max_tokens can be sent; give --tokenizer "
                               "or --limit-min-tokens and --limit-max-tokens",
                               set->name);
        }
    }
    return 0;
}

static void put_message(const struct req *r, struct km_buf *b, const struct wl_msg *m)
{
    if (r->load->endpoint == LOAD_COMPLETIONS && r->load->send_token_ids) {
        km_buf_putc(b, '[');
        for (int i = 0; i < m->n_tokens; i++)
            km_buf_printf(b, i ? ",%d" : "%d", (int)m->ids[i]);
        km_buf_putc(b, ']');
        return;
    }
    /* `vllm bench serve` sends the content of a chat message as a list of parts. */
    bool list = r->prompts && r->load->endpoint == LOAD_CHAT;
    km_buf_puts(b, r->load->endpoint == LOAD_COMPLETIONS ? "\""
                   : list         ? "{\"role\":\"user\",\"content\":[{\"type\":\"text\",\"text\":\""
                   : m->assistant ? "{\"role\":\"assistant\",\"content\":\""
                                  : "{\"role\":\"user\",\"content\":\"");
    km_buf_put_json(b, m->text, m->len);
    km_buf_puts(b, r->load->endpoint == LOAD_COMPLETIONS ? "\"" : list ? "\"}]}" : "\"}");
}

/* Writes head, tail and end with the keys in the order of vLLM's clients. */
static void put_parameters(struct req *r, const cJSON *extra, const char *model)
{
    const struct load_opts *l = r->load;
    bool chat = l->endpoint == LOAD_CHAT;
    km_buf_putc(&r->head, '{');
    if (!cJSON_GetObjectItemCaseSensitive(extra, "model")) {
        km_buf_puts(&r->head, "\"model\":\"");
        km_buf_put_json(&r->head, model, strlen(model));
        km_buf_puts(&r->head, "\",");
    }
    km_buf_puts(&r->head, chat ? "\"messages\":[" : "\"prompt\":");

    if (chat)
        km_buf_putc(&r->tail, ']');
    if (!r->prompts)
        param(&r->tail, extra, "seed", "0");
    param(&r->tail, extra, "temperature", "0.0");
    if (!chat) {
        param(&r->tail, extra, "repetition_penalty", "1.0");
        param(&r->tail, extra, "logprobs", "null");
    }
    if (l->stream) {
        km_buf_puts(&r->tail, ",\"stream\":true");
        param(&r->tail, extra, "stream_options", "{\"include_usage\":true}");
    }
    r->send_min = !cJSON_GetObjectItemCaseSensitive(extra, "min_tokens") &&
                  (r->prompts ? l->limit_min_tokens > 0 : l->limit_min_tokens >= 0);
    r->max_key = r->prompts && chat ? "max_completion_tokens" : "max_tokens";
    if (cJSON_GetObjectItemCaseSensitive(extra, "max_tokens") ||
        cJSON_GetObjectItemCaseSensitive(extra, "max_completion_tokens"))
        r->max_key = NULL;

    struct km_buf salt = {0};
    if (l->send_token_ids)
        param(&r->end, extra, "return_token_ids", "true"); /* a server without a tokenizer returns ids and no text */
    if (l->ignore_eos)
        param(&r->end, extra, "ignore_eos", "true");
    if (l->cache_salt) {
        km_buf_putc(&salt, '"');
        km_buf_put_json(&salt, l->cache_salt, strlen(l->cache_salt));
        km_buf_putc(&salt, '"');
        param(&r->end, extra, "cache_salt", km_buf_str(&salt));
    }
    if (l->thinking != LOAD_THINKING_AUTO && chat)
        param(&r->end, extra, "chat_template_kwargs",
              l->thinking == LOAD_THINKING_ON ? "{\"enable_thinking\":true}" : "{\"enable_thinking\":false}");
    for (const cJSON *v = extra ? extra->child : NULL; v; v = v->next) {
        char *json = cJSON_PrintUnformatted(v);
        r->end.oom = r->end.oom || !json || salt.oom;
        km_buf_puts(&r->end, ",\"");
        km_buf_put_json(&r->end, v->string, strlen(v->string));
        km_buf_printf(&r->end, "\":%s", json ? json : "null");
        cJSON_free(json);
    }
    km_buf_putc(&r->end, '}');
    km_buf_free(&salt);
}

int req_new(struct req **out, const struct load_opts *load, const char *extra_body, const char *model,
            const struct wl_set *set, struct km_err *err)
{
    *out = NULL;
    cJSON *extra = NULL;
    bool prompts = wl_kind_ops(set->kind)->single_prompts;
    int rc = check_messages(load, set, prompts, err);
    if (!rc && extra_body && (rc = km_json_parse(extra_body, strlen(extra_body), &extra, err)))
        km_context(err, "extra body");
    if (!rc && extra && !cJSON_IsObject(extra))
        rc = km_fail(err, KM_EINVAL, "the extra body must be a JSON object such as {\"top_k\": 1}, not %.60s",
                     extra_body);
    if (!rc)
        rc = check_extra(extra, err);
    struct req *r = rc ? NULL : km_calloc(1, sizeof *r);
    if (!rc && (!r || !(r->convs = km_calloc((size_t)set->n, sizeof *r->convs))))
        rc = km_fail(err, KM_ENOMEM, "no memory for the requests of %d conversations", set->n);
    if (!rc) {
        r->load = load;
        r->set = set;
        r->prompts = prompts;
        put_parameters(r, extra, model);
    }
    for (int c = 0; !rc && c < set->n; c++) {
        const struct wl_conv *v = &set->convs[c];
        struct conv_body *b = &r->convs[c];
        if (!(b->part = km_calloc((size_t)v->n + 1, sizeof *b->part))) {
            rc = km_fail(err, KM_ENOMEM, "no memory for the requests of %d conversations", set->n);
            break;
        }
        for (int m = 0; m < v->n; m++) {
            b->part[m] = r->parts.len;
            if (!v->msgs[m].assistant || (load->fixed_history && m + 1 < v->n))
                put_message(r, &r->parts, &v->msgs[m]);
        }
        b->part[v->n] = r->parts.len;
    }
    cJSON_Delete(extra);
    if (!rc && (!km_buf_ok(&r->head) || !km_buf_ok(&r->tail) || !km_buf_ok(&r->end) || !km_buf_ok(&r->parts)))
        rc = km_fail(err, KM_ENOMEM, "no memory for the request bodies of %s", set->name);
    if (rc) {
        req_free(r);
        return rc;
    }
    *out = r;
    return 0;
}

void req_free(struct req *r)
{
    if (!r)
        return;
    for (int c = 0; r->set && c < r->set->n; c++) {
        km_buf_free(&r->convs[c].text);
        km_free(r->convs[c].part);
    }
    km_free(r->convs);
    km_buf_free(&r->head);
    km_buf_free(&r->tail);
    km_buf_free(&r->end);
    km_buf_free(&r->parts);
    km_free(r);
}

const char *req_path(const struct req *r)
{
    return r->load->endpoint == LOAD_CHAT ? "/v1/chat/completions" : "/v1/completions";
}

void req_rewind(struct req *r)
{
    for (int c = 0; c < r->set->n; c++) {
        km_buf_clear(&r->convs[c].text);
        r->convs[c].tail_at = 0;
        r->convs[c].messages = 0;
    }
}

/* Removes the tail, and prepares the body for one more message. */
static void begin_message(struct req *r, struct conv_body *b)
{
    if (b->text.data)
        b->text.data[b->tail_at] = 0;
    b->text.len = b->tail_at;
    if (!b->messages)
        km_buf_put(&b->text, r->head.data, r->head.len);
    else
        km_buf_putc(&b->text, ',');
}

static void end_message(struct conv_body *b)
{
    b->messages++;
    b->tail_at = b->text.len;
}

/* Appends message m of the workload. */
static void append_message(struct req *r, struct conv_body *b, int m)
{
    begin_message(r, b);
    km_buf_put(&b->text, r->parts.data + b->part[m], b->part[m + 1] - b->part[m]);
    end_message(b);
}

/* Appends an answer that was received. */
static void append_answer(struct req *r, struct conv_body *b, const char *text, size_t len)
{
    begin_message(r, b);
    km_buf_puts(&b->text, "{\"role\":\"assistant\",\"content\":\"");
    km_buf_put_json(&b->text, text, len);
    km_buf_puts(&b->text, "\"}");
    end_message(b);
}

int req_build(struct req *r, int conv, int turn, struct req_body *out, struct km_err *err)
{
    const struct load_opts *l = r->load;
    const struct wl_conv *v = &r->set->convs[conv];
    struct conv_body *b = &r->convs[conv];
    int m = 2 * turn;
    int wanted = v->msgs[m + 1].n_tokens > 1 ? v->msgs[m + 1].n_tokens : 1;
    int64_t max = l->limit_max_tokens ? l->limit_max_tokens : wanted;
    int64_t min = l->limit_min_tokens ? l->limit_min_tokens : wanted;
    bool send_max = max > 0 && r->max_key;
    append_message(r, b, m);
    km_buf_put(&b->text, r->tail.data, r->tail.len);
    if (r->send_min)
        km_buf_printf(&b->text, ",\"min_tokens\":%" PRId64, min);
    if (send_max)
        km_buf_printf(&b->text, ",\"%s\":%" PRId64, r->max_key, max);
    km_buf_put(&b->text, r->end.data, r->end.len);
    if (!km_buf_ok(&b->text))
        return km_fail(err, KM_ENOMEM, "no memory for the body of conversation %d turn %d", conv, turn);
    *out = (struct req_body){b->text.data, b->text.len, send_max ? (int)max : -1, m + 1};
    return 0;
}

int req_answer(struct req *r, int conv, int turn, const char *text, size_t len, struct km_err *err)
{
    struct conv_body *b = &r->convs[conv];
    int m = 2 * turn + 1;
    if (m + 1 >= r->set->convs[conv].n)
        return 0; /* the last turn: no later body holds its answer */
    if (r->load->fixed_history)
        append_message(r, b, m);
    else
        append_answer(r, b, text, len);
    return km_buf_ok(&b->text) ? 0 : km_fail(err, KM_ENOMEM, "no memory for the history of conversation %d", conv);
}
