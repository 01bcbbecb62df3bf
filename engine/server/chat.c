/* The template, message by message, as Qwen3's tokenizer_config.json states it (without tools). */
#include "engine/server/chat.h"

#include "base/mem.h"

#include <stdio.h>
#include <string.h>

enum role { SYSTEM, USER, ASSISTANT, TOOL, N_ROLES };
static const char *const role_names[] = {"system", "user", "assistant", "tool"};

struct message {
    enum role role;
    const char *content;   /* "" when absent */
    char *joined;          /* owned: content made of several parts */
    const char *reasoning; /* NULL: not given */
    const cJSON *tool_calls;
};

static void mark(struct chat *c, const char *s)
{
    if (c->n_marks == c->cap_marks) {
        size_t cap = c->cap_marks ? 2 * c->cap_marks : 16;
        struct chat_mark *p = km_reallocarray(c->marks, cap, sizeof *p);
        if (!p) {
            c->text.oom = true;
            return;
        }
        c->marks = p;
        c->cap_marks = cap;
    }
    c->marks[c->n_marks++] = (struct chat_mark){c->text.len, strlen(s)};
    km_buf_puts(&c->text, s);
}

static void open_turn(struct chat *c, const char *role)
{
    mark(c, "<|im_start|>");
    km_buf_printf(&c->text, "%s\n", role);
}

static void close_turn(struct chat *c)
{
    mark(c, "<|im_end|>");
    km_buf_putc(&c->text, '\n');
}

/* What a model wrote: its own control tokens are control tokens again. */
static void put_model_text(struct chat *c, const char *s, size_t n)
{
    static const char *const own[] = {"<think>", "</think>", "<tool_call>", "</tool_call>"};
    const char *end = s + n;
    while (s < end) {
        const char *p = memchr(s, '<', (size_t)(end - s));
        p = p ? p : end;
        km_buf_put(&c->text, s, (size_t)(p - s));
        s = p;
        size_t i = 0;
        for (; i < 4; i++) {
            size_t len = strlen(own[i]);
            if ((size_t)(end - s) >= len && !memcmp(s, own[i], len)) {
                mark(c, own[i]);
                s += len;
                break;
            }
        }
        if (i == 4 && s < end)
            km_buf_putc(&c->text, *s++);
    }
}

static bool starts(const char *s, const char *with)
{
    return !strncmp(s, with, strlen(with));
}

static bool ends(const char *s, const char *with)
{
    size_t n = strlen(s), w = strlen(with);
    return n >= w && !strcmp(s + n - w, with);
}

static const char *last_of(const char *s, size_t n, const char *what)
{
    size_t w = strlen(what);
    for (size_t i = n; i-- > 0;)
        if (n - i >= w && !memcmp(s + i, what, w))
            return s + i;
    return NULL;
}

/* An assistant's content with its reasoning inside, taken apart. */
static void split_reasoning(const char *content, const char **reasoning, size_t *n_reasoning, const char **rest)
{
    const char *first = strstr(content, "</think>"), *last = last_of(content, strlen(content), "</think>");
    *reasoning = "";
    *n_reasoning = 0;
    *rest = content;
    if (!first)
        return;
    size_t n = (size_t)(first - content);
    while (n && content[n - 1] == '\n')
        n--;
    const char *open = last_of(content, n, "<think>");
    const char *r = open ? open + strlen("<think>") : content;
    n -= (size_t)(r - content);
    while (n && *r == '\n')
        r++, n--;
    *reasoning = r;
    *n_reasoning = n;
    *rest = last + strlen("</think>");
    *rest += strspn(*rest, "\n");
}

static void put_assistant(struct chat *c, const struct message *m, bool after_query, bool last)
{
    const char *content = m->content, *reasoning = m->reasoning;
    size_t n = reasoning ? strlen(reasoning) : 0;
    if (!reasoning)
        split_reasoning(m->content, &reasoning, &n, &content);
    open_turn(c, "assistant");
    if (after_query && (last || n)) {
        while (n && *reasoning == '\n')
            reasoning++, n--;
        while (n && reasoning[n - 1] == '\n')
            n--;
        mark(c, "<think>");
        km_buf_putc(&c->text, '\n');
        put_model_text(c, reasoning, n);
        km_buf_putc(&c->text, '\n');
        mark(c, "</think>");
        km_buf_puts(&c->text, "\n\n");
        const char *body = content + strspn(content, "\n");
        put_model_text(c, body, strlen(body));
    } else {
        put_model_text(c, content, strlen(content));
    }
    const cJSON *call;
    bool first = true;
    cJSON_ArrayForEach(call, m->tool_calls)
    {
        const cJSON *f = cJSON_GetObjectItemCaseSensitive(call, "function");
        if (!first || *content)
            km_buf_putc(&c->text, '\n');
        first = false;
        mark(c, "<tool_call>");
        km_buf_printf(&c->text, "\n{\"name\": \"%s\", \"arguments\": %s}\n",
                      cJSON_GetObjectItemCaseSensitive(f, "name")->valuestring,
                      cJSON_GetObjectItemCaseSensitive(f, "arguments")->valuestring);
        mark(c, "</tool_call>");
    }
    close_turn(c);
}

static int fail_at(char param[64], int i, const char *field, struct km_err *err, const char *what)
{
    snprintf(param, 64, "messages[%d]%s%s", i, *field ? "." : "", field);
    return km_fail(err, KM_EINVAL, "%s %s", param, what);
}

/* A string, or an array of text parts, which are joined by newlines as vLLM joins them. */
static int read_content(struct message *m, const cJSON *v, int i, char param[64], struct km_err *err)
{
    m->content = "";
    if (cJSON_IsString(v)) {
        m->content = v->valuestring;
        return 0;
    }
    if (!v || cJSON_IsNull(v)) {
        if (m->role == ASSISTANT)
            return 0; /* a turn of tool calls alone */
        return fail_at(param, i, "content", err, "is missing");
    }
    if (!cJSON_IsArray(v))
        return fail_at(param, i, "content", err, "must be a string or an array of text parts");
    struct km_buf b = {0};
    const cJSON *part;
    int n = 0;
    cJSON_ArrayForEach(part, v)
    {
        const cJSON *type = cJSON_GetObjectItemCaseSensitive(part, "type");
        const cJSON *text = cJSON_GetObjectItemCaseSensitive(part, "text");
        if (!cJSON_IsString(type) || strcmp(type->valuestring, "text") || !cJSON_IsString(text)) {
            km_buf_free(&b);
            return fail_at(param, i, "content", err,
                           "has a part that is not {\"type\": \"text\", \"text\": ...}: this model reads text only");
        }
        if (n++)
            km_buf_putc(&b, '\n');
        km_buf_puts(&b, text->valuestring);
    }
    if (!n)
        return fail_at(param, i, "content", err, "is an empty array");
    m->joined = km_buf_take(&b);
    if (!m->joined)
        return km_fail(err, KM_ENOMEM, "out of memory reading the messages");
    m->content = m->joined;
    return 0;
}

static int read_tool_calls(struct message *m, const cJSON *v, int i, char param[64], struct km_err *err)
{
    if (!v || cJSON_IsNull(v))
        return 0;
    if (m->role != ASSISTANT || !cJSON_IsArray(v))
        return fail_at(param, i, "tool_calls", err, "must be an array in an assistant's message");
    const cJSON *call;
    cJSON_ArrayForEach(call, v)
    {
        const cJSON *f = cJSON_GetObjectItemCaseSensitive(call, "function");
        if (!cJSON_IsString(cJSON_GetObjectItemCaseSensitive(f, "name")) ||
            !cJSON_IsString(cJSON_GetObjectItemCaseSensitive(f, "arguments")))
            return fail_at(param, i, "tool_calls", err,
                           "needs {\"function\": {\"name\": a string, \"arguments\": a string of JSON}} in "
                           "each call");
    }
    m->tool_calls = v;
    return 0;
}

static int read_message(struct message *m, const cJSON *v, int i, char param[64], struct km_err *err)
{
    if (!cJSON_IsObject(v))
        return fail_at(param, i, "", err, "must be an object with role and content");
    const cJSON *role = cJSON_GetObjectItemCaseSensitive(v, "role");
    int r = 0;
    while (r < N_ROLES && !(cJSON_IsString(role) && !strcmp(role->valuestring, role_names[r])))
        r++;
    if (r == N_ROLES)
        return fail_at(param, i, "role", err, "must be \"system\", \"user\", \"assistant\" or \"tool\"");
    m->role = (enum role)r;
    const cJSON *reasoning = cJSON_GetObjectItemCaseSensitive(v, "reasoning_content");
    if (reasoning && !cJSON_IsNull(reasoning)) {
        if (!cJSON_IsString(reasoning))
            return fail_at(param, i, "reasoning_content", err, "must be a string");
        m->reasoning = reasoning->valuestring;
    }
    int rc = read_content(m, cJSON_GetObjectItemCaseSensitive(v, "content"), i, param, err);
    return rc ? rc : read_tool_calls(m, cJSON_GetObjectItemCaseSensitive(v, "tool_calls"), i, param, err);
}

/* The last message a user really asked with; a tool's answer dressed as the user does not count. */
static int last_query(const struct message *m, int n)
{
    for (int i = n; i-- > 0;) {
        bool dressed = starts(m[i].content, "<tool_response>") && ends(m[i].content, "</tool_response>");
        if (m[i].role == USER && !dressed)
            return i;
    }
    return n - 1;
}

static void put_messages(struct chat *c, const struct message *m, int n)
{
    int query = last_query(m, n);
    for (int i = 0; i < n; i++) {
        if (m[i].role == ASSISTANT) {
            put_assistant(c, &m[i], i > query, i == n - 1);
        } else if (m[i].role == TOOL) {
            if (i == 0 || m[i - 1].role != TOOL) {
                mark(c, "<|im_start|>");
                km_buf_puts(&c->text, "user");
            }
            km_buf_putc(&c->text, '\n');
            mark(c, "<tool_response>");
            km_buf_printf(&c->text, "\n%s\n", m[i].content);
            mark(c, "</tool_response>");
            if (i == n - 1 || m[i + 1].role != TOOL)
                close_turn(c);
        } else {
            open_turn(c, role_names[m[i].role]);
            km_buf_puts(&c->text, m[i].content);
            close_turn(c);
        }
    }
}

int chat_render(struct chat *c, const cJSON *messages, bool generation_prompt, bool thinking, char param[64],
                struct km_err *err)
{
    memset(c, 0, sizeof *c);
    snprintf(param, 64, "messages");
    if (!cJSON_IsArray(messages) || !messages->child)
        return km_fail(err, KM_EINVAL, "\"messages\" must be an array of at least one message");
    int n = cJSON_GetArraySize(messages), rc = 0, i = 0;
    struct message *m = km_calloc((size_t)n, sizeof *m);
    if (!m)
        return km_fail(err, KM_ENOMEM, "out of memory reading the messages");
    const cJSON *v;
    cJSON_ArrayForEach(v, messages)
    {
        if ((rc = read_message(&m[i], v, i, param, err)))
            break;
        i++;
    }
    if (!rc) {
        put_messages(c, m, n);
        if (generation_prompt) {
            open_turn(c, "assistant");
            if (!thinking) {
                mark(c, "<think>");
                km_buf_puts(&c->text, "\n\n");
                mark(c, "</think>");
                km_buf_puts(&c->text, "\n\n");
            }
        }
        if (!km_buf_ok(&c->text))
            rc = km_fail(err, KM_ENOMEM, "out of memory rendering the messages");
    }
    for (i = 0; i < n; i++)
        km_free(m[i].joined);
    km_free(m);
    if (rc)
        chat_free(c);
    return rc;
}

void chat_free(struct chat *c)
{
    km_buf_free(&c->text);
    km_free(c->marks);
    memset(c, 0, sizeof *c);
}

static int push_id(struct tok_ids *out, int32_t id, struct km_err *err)
{
    if (out->n == out->cap) {
        size_t cap = out->cap ? 2 * out->cap : 64;
        int32_t *p = km_reallocarray(out->v, cap, sizeof *p);
        if (!p)
            return km_fail(err, KM_ENOMEM, "out of memory encoding the messages");
        out->v = p;
        out->cap = cap;
    }
    out->v[out->n++] = id;
    return 0;
}

/* Text between control tokens; NULs, which km_json_parse keeps in code, become NULs again. */
static int encode_plain(const struct tok *t, const char *text, size_t len, struct tok_ids *out, struct km_err *err)
{
    struct km_buf tmp = {0};
    const char *whole = km_json_nuls(text, &len, &tmp);
    int rc = whole ? tok_encode(t, whole, len, false, out, err)
                   : km_fail(err, KM_ENOMEM, "out of memory encoding the messages");
    km_buf_free(&tmp);
    return rc;
}

int chat_encode(const struct chat *c, const struct tok *t, struct tok_ids *out, struct km_err *err)
{
    /* Text between control tokens is encoded in one piece, as the tokenizer would see it. A control token that
     * the vocabulary lacks is text like any other. */
    size_t from = 0;
    int rc = 0;
    char name[32];
    for (size_t i = 0; !rc && i <= c->n_marks; i++) {
        size_t at = i < c->n_marks ? c->marks[i].at : c->text.len;
        int32_t id = -1;
        if (i < c->n_marks) {
            snprintf(name, sizeof name, "%.*s", (int)c->marks[i].len, c->text.data + at);
            if ((id = tok_added_id(t, name)) < 0)
                continue;
        }
        if (at > from)
            rc = encode_plain(t, c->text.data + from, at - from, out, err);
        if (!rc && id >= 0)
            rc = push_id(out, id, err);
        from = i < c->n_marks ? at + c->marks[i].len : at;
    }
    return rc;
}
