/* Answers have a fixed shape, so their JSON is written by hand. km_buf_put_json escapes the strings. */
#include "engine/server/respond.h"

#include <inttypes.h>
#include <string.h>

static void put_string(struct km_buf *b, const char *s, size_t n)
{
    km_buf_putc(b, '"');
    km_buf_put_json(b, s, n);
    km_buf_putc(b, '"');
}

static void put_or_null(struct km_buf *b, const char *s)
{
    if (s)
        put_string(b, s, strlen(s));
    else
        km_buf_puts(b, "null");
}

static void put_ids(struct km_buf *b, const char *key, const int32_t *ids, size_t n)
{
    km_buf_printf(b, ",\"%s\":[", key);
    for (size_t i = 0; i < n; i++)
        km_buf_printf(b, i ? ",%d" : "%d", ids[i]);
    km_buf_putc(b, ']');
}

void rsp_init(struct rsp *r, bool chat, bool stream, const char *id, int64_t created, const char *model)
{
    memset(r, 0, sizeof *r);
    r->chat = chat;
    r->stream = stream;
    km_buf_printf(&r->head, "{\"id\":\"%s\",\"object\":\"%s\",\"created\":%" PRId64 ",\"model\":", id,
                  !chat    ? "text_completion"
                  : stream ? "chat.completion.chunk"
                           : "chat.completion",
                  created);
    put_string(&r->head, model, strlen(model));
}

void rsp_free(struct rsp *r)
{
    km_buf_free(&r->head);
}

static void put_logprobs(struct km_buf *b, const struct rsp *r, const struct rsp_logprobs *l)
{
    km_buf_puts(b, ",\"logprobs\":");
    if (!l)
        km_buf_puts(b, "null");
    else if (r->chat)
        km_buf_printf(b, "{\"content\":[%s],\"refusal\":null}", km_buf_str(&l->tokens));
    else
        km_buf_printf(b, "{\"tokens\":[%s],\"token_logprobs\":[%s],\"top_logprobs\":[%s],\"text_offset\":[%s]}",
                      km_buf_str(&l->tokens), km_buf_str(&l->values), km_buf_str(&l->tops), km_buf_str(&l->offsets));
}

/* The members after the text of a choice, and its closing brace. */
static void put_choice_end(struct km_buf *b, const struct rsp *r, const struct rsp_part *p)
{
    put_logprobs(b, r, p->logprobs);
    km_buf_puts(b, ",\"finish_reason\":");
    put_or_null(b, p->finish);
    if (p->finish) {
        km_buf_puts(b, ",\"stop_reason\":");
        if (p->stop_id >= 0)
            km_buf_printf(b, "%d", p->stop_id);
        else
            put_or_null(b, p->stop_string);
    }
    if (p->ids)
        put_ids(b, "token_ids", p->ids, p->n_ids);
    if (p->prompt_ids && !r->chat)
        put_ids(b, "prompt_token_ids", p->prompt_ids, p->n_prompt_ids);
    km_buf_putc(b, '}');
}

static void put_usage(struct km_buf *b, const struct rsp_usage *u)
{
    km_buf_printf(b,
                  ",\"usage\":{\"prompt_tokens\":%" PRId64 ",\"total_tokens\":%" PRId64
                  ",\"completion_tokens\":%" PRId64 ",\"prompt_tokens_details\":{\"cached_tokens\":%" PRId64 "}}",
                  u->prompt, u->prompt + u->completion, u->completion, u->cached);
}

/* Everything before the first choice. A chat has the ids of its prompt here, a completion in the choice. */
static void put_head(struct km_buf *b, const struct rsp *r, const struct rsp_part *p)
{
    km_buf_put(b, km_buf_str(&r->head), r->head.len);
    if (p && p->prompt_ids && r->chat)
        put_ids(b, "prompt_token_ids", p->prompt_ids, p->n_prompt_ids);
    km_buf_puts(b, ",\"choices\":[");
}

void rsp_begin(struct km_buf *b, const struct rsp *r, const struct rsp_part *first)
{
    put_head(b, r, first);
}

void rsp_choice(struct km_buf *b, const struct rsp *r, const struct rsp_part *p)
{
    if (p->index)
        km_buf_putc(b, ',');
    km_buf_printf(b, "{\"index\":%d,%s:", p->index,
                  r->chat ? "\"message\":{\"role\":\"assistant\",\"content\"" : "\"text\"");
    put_string(b, p->text, p->n_text);
    if (r->chat)
        km_buf_puts(b, ",\"refusal\":null}");
    put_choice_end(b, r, p);
}

void rsp_end(struct km_buf *b, const struct rsp_usage *u)
{
    km_buf_putc(b, ']');
    put_usage(b, u);
    km_buf_putc(b, '}');
}

void rsp_event_role(struct km_buf *b, const struct rsp *r, const struct rsp_part *p)
{
    km_buf_puts(b, "data: ");
    put_head(b, r, p);
    km_buf_printf(b,
                  "{\"index\":%d,\"delta\":{\"role\":\"assistant\",\"content\":\"\"},\"logprobs\":null,"
                  "\"finish_reason\":null}]}\n\n",
                  p->index);
}

void rsp_event(struct km_buf *b, const struct rsp *r, const struct rsp_part *p, const struct rsp_usage *u)
{
    km_buf_puts(b, "data: ");
    put_head(b, r, r->chat ? NULL : p);
    km_buf_printf(b, "{\"index\":%d,%s:", p->index, r->chat ? "\"delta\":{\"content\"" : "\"text\"");
    put_string(b, p->text, p->n_text);
    if (r->chat)
        km_buf_putc(b, '}');
    put_choice_end(b, r, p);
    km_buf_putc(b, ']');
    if (u)
        put_usage(b, u);
    km_buf_puts(b, "}\n\n");
}

void rsp_event_usage(struct km_buf *b, const struct rsp *r, const struct rsp_usage *u)
{
    km_buf_puts(b, "data: ");
    put_head(b, r, NULL);
    km_buf_putc(b, ']');
    put_usage(b, u);
    km_buf_puts(b, "}\n\n");
}

static const char *error_type(int status)
{
    return status == 429 ? "rate_limit_error" : status >= 500 ? "server_error" : "invalid_request_error";
}

void rsp_error(struct km_buf *b, int status, const char *message, const char *param, const char *code)
{
    km_buf_puts(b, "{\"error\":{\"message\":");
    put_or_null(b, message);
    km_buf_puts(b, ",\"type\":");
    put_or_null(b, error_type(status));
    km_buf_puts(b, ",\"param\":");
    put_or_null(b, param);
    km_buf_puts(b, ",\"code\":");
    put_or_null(b, code);
    km_buf_puts(b, "}}");
}

void rsp_token(struct km_buf *b, const struct tok *t, int32_t id, bool as_id)
{
    size_t n = 0;
    const char *s = t && !as_id ? tok_bytes(t, id, &n) : NULL;
    if (!t || as_id)
        km_buf_printf(b, "token_id:%d", id);
    else if (s)
        km_buf_put_json(b, s, n);
}

/* JSON has no infinity; vLLM writes -9999 instead. */
static double finite_logprob(float lp)
{
    return lp > -9999.0f ? lp : -9999.0;
}

static void put_chat_entry(struct km_buf *b, const struct tok *t, bool as_id, int32_t id, float lp)
{
    km_buf_puts(b, "{\"token\":\"");
    rsp_token(b, t, id, as_id);
    km_buf_printf(b, "\",\"logprob\":%.8g,\"bytes\":", finite_logprob(lp));
    size_t n = 0;
    const char *s = t ? tok_bytes(t, id, &n) : NULL;
    if (!s) {
        km_buf_puts(b, "null");
        return;
    }
    for (size_t i = 0; i < n; i++)
        km_buf_printf(b, i ? ",%d" : "[%d", (unsigned char)s[i]);
    km_buf_puts(b, n ? "]" : "[]");
}

static void add_chat(struct rsp_logprobs *l, const struct tok *t, bool as_id, const struct smp_result *s)
{
    struct km_buf *b = &l->tokens;
    if (b->len)
        km_buf_putc(b, ',');
    put_chat_entry(b, t, as_id, s->id, s->logprob);
    km_buf_puts(b, ",\"top_logprobs\":[");
    for (int i = 0; i < s->n_top; i++) {
        if (i)
            km_buf_putc(b, ',');
        put_chat_entry(b, t, as_id, s->top_id[i], s->top_logprob[i]);
        km_buf_putc(b, '}');
    }
    km_buf_puts(b, "]}");
}

/* Adds a member to the top_logprobs object that starts at `start`, unless its key is already a member. Two tokens can
 * have the same text (incomplete characters), and the first one is the more likely. */
static void add_top(struct km_buf *b, size_t start, struct km_buf *key, double lp)
{
    struct km_buf member = {0};
    km_buf_printf(&member, "\"%s\":", km_buf_str(key));
    if (!member.oom && !strstr(b->data + start, member.data))
        km_buf_printf(b, "%s%s%.8g", b->len > start + 1 ? "," : "", member.data, lp);
    b->oom |= member.oom;
    km_buf_free(&member);
    km_buf_clear(key);
}

static int64_t count_characters(const char *s, size_t n)
{
    int64_t k = 0;
    for (size_t i = 0; i < n; i++)
        k += ((unsigned char)s[i] & 0xC0) != 0x80;
    return k;
}

static void add_completion(struct rsp_logprobs *l, const struct tok *t, bool as_id, const struct smp_result *s)
{
    const char *comma = l->tokens.len ? "," : "";
    struct km_buf key = {0};
    rsp_token(&key, t, s->id, as_id);
    km_buf_printf(&l->tokens, "%s\"%s\"", comma, km_buf_str(&key));
    km_buf_printf(&l->values, "%s%.8g", comma, finite_logprob(s->logprob));
    km_buf_printf(&l->offsets, "%s%" PRId64, comma, l->chars);
    size_t n = 0;
    const char *bytes = t && !as_id ? tok_bytes(t, s->id, &n) : NULL;
    l->chars += bytes ? count_characters(bytes, n) : count_characters(km_buf_str(&key), key.len);
    km_buf_puts(&l->tops, comma);
    size_t start = l->tops.len;
    km_buf_putc(&l->tops, '{');
    if (l->tops.data)
        add_top(&l->tops, start, &key, finite_logprob(s->logprob));
    for (int i = 0; l->tops.data && i < s->n_top; i++) {
        rsp_token(&key, t, s->top_id[i], as_id);
        add_top(&l->tops, start, &key, finite_logprob(s->top_logprob[i]));
    }
    km_buf_putc(&l->tops, '}');
    km_buf_free(&key);
}

void rsp_logprobs_add(struct rsp_logprobs *l, bool chat, const struct tok *t, bool as_id, const struct smp_result *s)
{
    if (chat)
        add_chat(l, t, as_id, s);
    else
        add_completion(l, t, as_id, s);
}

void rsp_logprobs_clear(struct rsp_logprobs *l)
{
    km_buf_clear(&l->tokens);
    km_buf_clear(&l->values);
    km_buf_clear(&l->tops);
    km_buf_clear(&l->offsets);
}

void rsp_logprobs_free(struct rsp_logprobs *l)
{
    km_buf_free(&l->tokens);
    km_buf_free(&l->values);
    km_buf_free(&l->tops);
    km_buf_free(&l->offsets);
}
