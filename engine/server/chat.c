/* Follows the template in Qwen3's tokenizer_config.json, message by message. Tool definitions are not supported. */
#include "engine/server/chat.h"

#include "base/mem.h"

#include <stdio.h>
#include <string.h>

enum role { SYSTEM, USER, ASSISTANT, TOOL, N_ROLES };
static const char *const role_names[] = {"system", "user", "assistant", "tool"};

struct message {
    enum role role;
    const char *content;   /* "" when absent */
    char *joined;          /* owned: the content, if it was an array of parts; else NULL */
    const char *reasoning; /* reasoning_content; NULL: absent */
    const cJSON *tool_calls;
};

/* Appends a control token. */
static void put_control(struct chat *c, const char *s)
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

static int no_memory(struct km_err *err)
{
    return km_fail(err, KM_ENOMEM, "the server has no memory for the messages; try again later");
}

static void open_turn(struct chat *c, const char *role)
{
    put_control(c, "<|im_start|>");
    km_buf_printf(&c->text, "%s\n", role);
}

static void close_turn(struct chat *c)
{
    put_control(c, "<|im_end|>");
    km_buf_putc(&c->text, '\n');
}

/* Appends text that a model generated, in which the model's own control tokens stay control tokens. */
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
                put_control(c, own[i]);
                s += len;
                break;
            }
        }
        if (i == 4 && s < end)
            km_buf_putc(&c->text, *s++);
    }
}

static bool has_prefix(const char *s, const char *with)
{
    return !strncmp(s, with, strlen(with));
}

static bool has_suffix(const char *s, const char *with)
{
    size_t n = strlen(s), w = strlen(with);
    return n >= w && !strcmp(s + n - w, with);
}

/* The last occurrence of `what` in s[0, n); NULL if there is none. */
static const char *find_last(const char *s, size_t n, const char *what)
{
    size_t w = strlen(what);
    for (size_t i = n; i-- > 0;)
        if (n - i >= w && !memcmp(s + i, what, w))
            return s + i;
    return NULL;
}

/* Splits an assistant's content at </think> into the reasoning, without newlines around it, and the rest. */
static void split_reasoning(const char *content, const char **reasoning, size_t *n_reasoning, const char **rest)
{
    const char *first = strstr(content, "</think>"), *last = find_last(content, strlen(content), "</think>");
    *reasoning = "";
    *n_reasoning = 0;
    *rest = content;
    if (!first)
        return;
    size_t n = (size_t)(first - content);
    while (n && content[n - 1] == '\n')
        n--;
    const char *open = find_last(content, n, "<think>");
    const char *r = open ? open + strlen("<think>") : content;
    n -= (size_t)(r - content);
    while (n && *r == '\n')
        r++, n--;
    *reasoning = r;
    *n_reasoning = n;
    *rest = last + strlen("</think>");
    *rest += strspn(*rest, "\n");
}

static void put_tool_calls(struct chat *c, const cJSON *calls, bool after_text)
{
    const cJSON *call;
    cJSON_ArrayForEach(call, calls)
    {
        const cJSON *f = cJSON_GetObjectItemCaseSensitive(call, "function");
        if (call != calls->child || after_text)
            km_buf_putc(&c->text, '\n');
        put_control(c, "<tool_call>");
        km_buf_printf(&c->text, "\n{\"name\": \"%s\", \"arguments\": %s}\n",
                      cJSON_GetObjectItemCaseSensitive(f, "name")->valuestring,
                      cJSON_GetObjectItemCaseSensitive(f, "arguments")->valuestring);
        put_control(c, "</tool_call>");
    }
}

/* Appends an assistant's turn. The template drops the reasoning of turns before the user's last question. After that
 * question, a turn has a think block if it has reasoning or is the last message. */
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
        put_control(c, "<think>");
        km_buf_putc(&c->text, '\n');
        put_model_text(c, reasoning, n);
        km_buf_putc(&c->text, '\n');
        put_control(c, "</think>");
        km_buf_puts(&c->text, "\n\n");
        const char *body = content + strspn(content, "\n");
        put_model_text(c, body, strlen(body));
    } else {
        put_model_text(c, content, strlen(content));
    }
    put_tool_calls(c, m->tool_calls, *content != 0);
    close_turn(c);
}

/* Fails for a field of message i. Sets param to the field's path; the error is the path and `what`. */
static int fail_at(char param[64], int i, const char *field, struct km_err *err, const char *what)
{
    snprintf(param, 64, "messages[%d]%s%s", i, *field ? "." : "", field);
    return km_fail(err, KM_EINVAL, "%s %s", param, what);
}

/* Joins an array of text parts by newlines, as vLLM does. */
static int join_parts(struct message *m, const cJSON *v, int i, char param[64], struct km_err *err)
{
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
                           "has a part that is not {\"type\": \"text\", \"text\": a string}; send text only");
        }
        if (n++)
            km_buf_putc(&b, '\n');
        km_buf_puts(&b, text->valuestring);
    }
    if (!n)
        return fail_at(param, i, "content", err, "is an empty array; send a string or at least one text part");
    m->joined = km_buf_take(&b);
    if (!m->joined)
        return no_memory(err);
    m->content = m->joined;
    return 0;
}

/* Reads the content: a string, or an array of text parts. */
static int read_content(struct message *m, const cJSON *v, int i, char param[64], struct km_err *err)
{
    m->content = "";
    if (cJSON_IsString(v)) {
        m->content = v->valuestring;
        return 0;
    }
    if (!v || cJSON_IsNull(v)) {
        if (m->role == ASSISTANT)
            return 0; /* a turn with tool calls only */
        return fail_at(param, i, "content", err, "is missing");
    }
    return join_parts(m, v, i, param, err);
}

static int read_tool_calls(struct message *m, const cJSON *v, int i, char param[64], struct km_err *err)
{
    if (!v || cJSON_IsNull(v))
        return 0;
    if (m->role != ASSISTANT || !cJSON_IsArray(v))
        return fail_at(param, i, "tool_calls", err, "is allowed in an assistant's message only, as an array");
    const cJSON *call;
    cJSON_ArrayForEach(call, v)
    {
        const cJSON *f = cJSON_GetObjectItemCaseSensitive(call, "function");
        if (!cJSON_IsString(cJSON_GetObjectItemCaseSensitive(f, "name")) ||
            !cJSON_IsString(cJSON_GetObjectItemCaseSensitive(f, "arguments")))
            return fail_at(param, i, "tool_calls", err,
                           "has a call without {\"function\": {\"name\": a string, \"arguments\": a string of JSON}}");
    }
    m->tool_calls = v;
    return 0;
}

static int read_message(struct message *m, const cJSON *v, int i, char param[64], struct km_err *err)
{
    if (!cJSON_IsObject(v))
        return fail_at(param, i, "", err, "must be an object with \"role\" and \"content\"");
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

/* The index of the last question: a user's message that is not a tool's response. n - 1 if there is none. */
static int last_query(const struct message *m, int n)
{
    for (int i = n; i-- > 0;) {
        bool response = has_prefix(m[i].content, "<tool_response>") && has_suffix(m[i].content, "</tool_response>");
        if (m[i].role == USER && !response)
            return i;
    }
    return n - 1;
}

/* Appends a tool's response. The template joins consecutive responses into one turn of the user. */
static void put_tool_response(struct chat *c, const struct message *m, int n, int i)
{
    if (i == 0 || m[i - 1].role != TOOL) {
        put_control(c, "<|im_start|>");
        km_buf_puts(&c->text, "user");
    }
    km_buf_putc(&c->text, '\n');
    put_control(c, "<tool_response>");
    km_buf_printf(&c->text, "\n%s\n", m[i].content);
    put_control(c, "</tool_response>");
    if (i == n - 1 || m[i + 1].role != TOOL)
        close_turn(c);
}

static void put_messages(struct chat *c, const struct message *m, int n)
{
    int query = last_query(m, n);
    for (int i = 0; i < n; i++) {
        if (m[i].role == ASSISTANT) {
            put_assistant(c, &m[i], i > query, i == n - 1);
        } else if (m[i].role == TOOL) {
            put_tool_response(c, m, n, i);
        } else {
            open_turn(c, role_names[m[i].role]);
            km_buf_puts(&c->text, m[i].content);
            close_turn(c);
        }
    }
}

static void put_generation_prompt(struct chat *c, bool thinking)
{
    open_turn(c, "assistant");
    if (thinking)
        return;
    put_control(c, "<think>");
    km_buf_puts(&c->text, "\n\n");
    put_control(c, "</think>");
    km_buf_puts(&c->text, "\n\n");
}

int chat_render(struct chat *c, const cJSON *messages, bool generation_prompt, bool thinking, char param[64],
                struct km_err *err)
{
    memset(c, 0, sizeof *c);
    snprintf(param, 64, "messages");
    if (!cJSON_IsArray(messages) || !messages->child)
        return km_fail(err, KM_EINVAL, "\"messages\" must be an array of one or more messages");
    int n = cJSON_GetArraySize(messages), rc = 0, i = 0;
    struct message *m = km_calloc((size_t)n, sizeof *m);
    if (!m)
        return no_memory(err);
    const cJSON *v;
    cJSON_ArrayForEach(v, messages)
    {
        if ((rc = read_message(&m[i], v, i, param, err)))
            break;
        i++;
    }
    if (!rc) {
        put_messages(c, m, n);
        if (generation_prompt)
            put_generation_prompt(c, thinking);
        if (!km_buf_ok(&c->text))
            rc = no_memory(err);
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

/* Encodes text between control tokens. km_json_parse keeps a NUL as the bytes C0 80; here it becomes a NUL again. */
static int encode_plain(const struct tok *t, const char *text, size_t len, struct tok_ids *out, struct km_err *err)
{
    struct km_buf tmp = {0};
    const char *whole = km_json_nuls(text, &len, &tmp);
    int rc = whole ? tok_encode(t, whole, len, false, out, err) : no_memory(err);
    km_buf_free(&tmp);
    return rc;
}

int chat_encode(const struct chat *c, const struct tok *t, struct tok_ids *out, struct km_err *err)
{
    /* Text between two control tokens is encoded in one piece, as the tokenizer does for a whole string. A control
     * token that is not in the vocabulary is encoded as text. */
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
            rc = tok_ids_push(out, id, err);
        from = i < c->n_marks ? at + c->marks[i].len : at;
    }
    return rc;
}
