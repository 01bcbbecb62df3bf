/* A recursive-descent JSON scanner that stores the few keys of an event that the client needs.
 *
 * It makes one pass over the event's bytes, without allocations or copies. It checks the whole text, so that a damaged
 * event is an error and not an empty event. The first error sets `bad`; from then on every function does nothing, and
 * ev_scan checks `bad` at the end. */
#include "harness/client/event.h"

#include <limits.h>
#include <string.h>

enum { MAX_DEPTH = 64 };

struct scan {
    const char *p, *end;
    int depth;
    bool bad;
};

static void skip_space(struct scan *s)
{
    while (s->p < s->end && (*s->p == ' ' || *s->p == '\n' || *s->p == '\r' || *s->p == '\t'))
        s->p++;
}

/* Consumes c if it is the next character after white space. */
static bool accept_char(struct scan *s, char c)
{
    skip_space(s);
    if (s->bad || s->p == s->end || *s->p != c)
        return false;
    s->p++;
    return true;
}

static bool is_hex4(const char *p)
{
    for (int i = 0; i < 4; i++)
        if (!((p[i] >= '0' && p[i] <= '9') || (p[i] >= 'a' && p[i] <= 'f') || (p[i] >= 'A' && p[i] <= 'F')))
            return false;
    return true;
}

/* Reads a string and returns what is between its quotes. */
static struct ev_slice read_string(struct scan *s)
{
    struct ev_slice out = {NULL, 0};
    if (!accept_char(s, '"')) {
        s->bad = true;
        return out;
    }
    const char *start = s->p;
    while (s->p < s->end && *s->p != '"') {
        unsigned char c = (unsigned char)*s->p++;
        if (c < 0x20) {
            s->bad = true;
            return out;
        }
        if (c != '\\')
            continue;
        bool u = s->end - s->p >= 5 && *s->p == 'u' && is_hex4(s->p + 1);
        if (!u && (s->p == s->end || !*s->p || !strchr("\"\\/bfnrt", *s->p))) {
            s->bad = true;
            return out;
        }
        s->p += u ? 5 : 1;
    }
    if (s->p == s->end) {
        s->bad = true;
        return out;
    }
    out = (struct ev_slice){start, (size_t)(s->p - start)};
    s->p++;
    return out;
}

/* Inside an object: reads the next key and its colon. False: the object has ended. *any: false before the first key. */
static bool next_member(struct scan *s, bool *any, struct ev_slice *key)
{
    if (s->bad || accept_char(s, '}'))
        return false;
    if (*any && !accept_char(s, ',')) {
        s->bad = true;
        return false;
    }
    *any = true;
    *key = read_string(s);
    if (!accept_char(s, ':'))
        s->bad = true;
    return !s->bad;
}

/* Inside an array: true if there is a next element, which the caller must read. *any: false before the first one. */
static bool next_element(struct scan *s, bool *any)
{
    if (s->bad || accept_char(s, ']'))
        return false;
    if (*any && !accept_char(s, ','))
        s->bad = true;
    *any = true;
    return !s->bad;
}

/* Skips a number, true, false or null. */
static void skip_literal(struct scan *s)
{
    static const char *const names[] = {"true", "false", "null"};
    size_t left = (size_t)(s->end - s->p);
    for (int i = 0; i < 3; i++) {
        size_t n = strlen(names[i]);
        if (left >= n && !memcmp(s->p, names[i], n)) {
            s->p += n;
            return;
        }
    }
    const char *start = s->p;
    while (s->p < s->end && *s->p && strchr("+-.0123456789eE", *s->p))
        s->p++;
    s->bad = s->bad || s->p == start;
}

/* Skips a value of any type. */
static void skip_value(struct scan *s)
{
    bool any = false;
    struct ev_slice key;
    skip_space(s);
    if (s->bad || s->p == s->end || s->depth >= MAX_DEPTH) {
        s->bad = true;
        return;
    }
    if (*s->p == '"') {
        read_string(s);
        return;
    }
    s->depth++;
    if (accept_char(s, '{'))
        while (next_member(s, &any, &key))
            skip_value(s);
    else if (accept_char(s, '['))
        while (next_element(s, &any))
            skip_value(s);
    else
        skip_literal(s);
    s->depth--;
}

/* Enters an object. Any other value is skipped, and the result is false. */
static bool enter_object(struct scan *s)
{
    if (accept_char(s, '{'))
        return true;
    skip_value(s);
    return false;
}

static bool key_is(struct ev_slice key, const char *name)
{
    return key.n == strlen(name) && !memcmp(key.p, name, key.n);
}

/* Reads a string into *out. Any other value is skipped, and *out stays as it is. */
static void read_string_or_skip(struct scan *s, struct ev_slice *out)
{
    skip_space(s);
    if (!s->bad && s->p < s->end && *s->p == '"')
        *out = read_string(s);
    else
        skip_value(s);
}

/* Reads a non-negative number into *out. Any other value is skipped, and *out stays as it is. */
static void read_count_or_skip(struct scan *s, int *out)
{
    skip_space(s);
    const char *start = s->p;
    skip_value(s);
    if (s->bad || start == s->p || *start < '0' || *start > '9')
        return;
    long v = 0;
    for (const char *p = start; p < s->p && *p >= '0' && *p <= '9' && v <= INT_MAX; p++)
        v = v * 10 + (*p - '0');
    *out = v > INT_MAX ? INT_MAX : (int)v;
}

/* The number of elements of an array; -1 for any other value, which is skipped. */
static int count_elements(struct scan *s)
{
    bool any = false;
    int n = 0;
    if (!accept_char(s, '[')) {
        skip_value(s);
        return -1;
    }
    for (; next_element(s, &any); n++)
        skip_value(s);
    return n;
}

static void read_delta(struct scan *s, struct ev *e)
{
    bool any = false;
    struct ev_slice key;
    if (!enter_object(s))
        return;
    while (next_member(s, &any, &key)) {
        if (key_is(key, "content"))
            read_string_or_skip(s, &e->content);
        else if (key_is(key, "reasoning_content") || key_is(key, "reasoning"))
            read_string_or_skip(s, &e->reasoning);
        else if (key_is(key, "tool_calls"))
            e->tool_calls = count_elements(s) > 0;
        else
            skip_value(s);
    }
}

/* Counts the tokens that logprobs list: chat has an object per token in "content", completions a string in "tokens". */
static void read_logprobs(struct scan *s, struct ev *e)
{
    bool any = false;
    struct ev_slice key;
    if (!enter_object(s))
        return;
    while (next_member(s, &any, &key)) {
        int n = -1;
        if (key_is(key, "content") || key_is(key, "tokens"))
            n = count_elements(s);
        else
            skip_value(s);
        if (n > e->listed)
            e->listed = n;
    }
}

static void read_choice(struct scan *s, struct ev *e)
{
    bool any = false;
    struct ev_slice key;
    if (!enter_object(s))
        return;
    while (next_member(s, &any, &key)) {
        if (key_is(key, "delta") || key_is(key, "message"))
            read_delta(s, e);
        else if (key_is(key, "text"))
            read_string_or_skip(s, &e->content);
        else if (key_is(key, "finish_reason"))
            read_string_or_skip(s, &e->finish);
        else if (key_is(key, "logprobs"))
            read_logprobs(s, e);
        else if (key_is(key, "token_ids")) {
            skip_space(s);
            const char *start = s->p;
            int n = count_elements(s);
            e->listed = n > e->listed ? n : e->listed;
            if (n > 0 && !s->bad)
                e->ids = (struct ev_slice){start + 1, (size_t)(s->p - start) - 2};
        } else
            skip_value(s);
    }
}

static void read_usage(struct scan *s, struct ev *e)
{
    bool any = false, inner = false;
    struct ev_slice key;
    if (!enter_object(s))
        return;
    while (next_member(s, &any, &key)) {
        if (key_is(key, "prompt_tokens"))
            read_count_or_skip(s, &e->prompt_tokens);
        else if (key_is(key, "completion_tokens"))
            read_count_or_skip(s, &e->output_tokens);
        else if (key_is(key, "prompt_tokens_details") && accept_char(s, '{'))
            while (next_member(s, &inner, &key)) {
                if (key_is(key, "cached_tokens"))
                    read_count_or_skip(s, &e->cached_tokens);
                else
                    skip_value(s);
            }
        else
            skip_value(s);
    }
}

static void read_error(struct scan *s, struct ev *e)
{
    bool any = false;
    struct ev_slice key;
    skip_space(s);
    const char *start = s->p;
    if (accept_char(s, '{')) {
        e->failed = true;
        while (next_member(s, &any, &key)) {
            if (key_is(key, "message"))
                read_string_or_skip(s, &e->message);
            else
                skip_value(s);
        }
    } else {
        read_string_or_skip(s, &e->message);
        e->failed = s->p == start || *start != 'n'; /* some servers send "error": null when there is none */
    }
}

int ev_scan(const char *text, size_t len, struct ev *out)
{
    struct scan s = {.p = text, .end = text + len};
    struct ev_slice key, kind = {NULL, 0}, note = {NULL, 0};
    bool any = false, inner = false;
    *out = (struct ev){.listed = -1, .prompt_tokens = -1, .output_tokens = -1, .cached_tokens = -1};
    if (!accept_char(&s, '{'))
        return -1;
    while (next_member(&s, &any, &key)) {
        if (key_is(key, "choices") && accept_char(&s, '[')) {
            for (int i = 0; next_element(&s, &inner); i++) {
                out->choices = true;
                if (i == 0)
                    read_choice(&s, out);
                else
                    skip_value(&s);
            }
        } else if (key_is(key, "usage"))
            read_usage(&s, out);
        else if (key_is(key, "error"))
            read_error(&s, out);
        else if (key_is(key, "object"))
            read_string_or_skip(&s, &kind);
        else if (key_is(key, "message") || key_is(key, "detail"))
            read_string_or_skip(&s, &note);
        else
            skip_value(&s);
    }
    skip_space(&s);
    if (kind.p && key_is(kind, "error"))
        out->failed = true;
    if (!out->message.p)
        out->message = note;
    return s.bad || s.p != s.end ? -1 : 0;
}

static unsigned hex_value(const char *p)
{
    unsigned v = 0;
    for (int i = 0; i < 4; i++)
        v = v << 4 | (unsigned)(p[i] <= '9' ? p[i] - '0' : (p[i] | 32) - 'a' + 10);
    return v;
}

static void put_code_point(struct km_buf *out, unsigned c)
{
    char u[4];
    size_t n;
    if (c < 0x80)
        u[0] = (char)c, n = 1;
    else if (c < 0x800)
        u[0] = (char)(0xC0 | c >> 6), u[1] = (char)(0x80 | (c & 63)), n = 2;
    else if (c < 0x10000)
        u[0] = (char)(0xE0 | c >> 12), u[1] = (char)(0x80 | (c >> 6 & 63)), u[2] = (char)(0x80 | (c & 63)), n = 3;
    else
        u[0] = (char)(0xF0 | c >> 18), u[1] = (char)(0x80 | (c >> 12 & 63)), u[2] = (char)(0x80 | (c >> 6 & 63)),
        u[3] = (char)(0x80 | (c & 63)), n = 4;
    km_buf_put(out, u, n);
}

void ev_text(struct ev_slice s, struct km_buf *out)
{
    const char *p = s.p, *end = s.p + s.n;
    while (p && p < end) {
        const char *esc = memchr(p, '\\', (size_t)(end - p));
        km_buf_put(out, p, (size_t)((esc ? esc : end) - p));
        if (!esc)
            return;
        static const char names[] = "bfnrt", values[] = "\b\f\n\r\t";
        const char *at = strchr(names, esc[1]);
        p = esc + 2;
        if (esc[1] != 'u') {
            km_buf_putc(out, at ? values[at - names] : esc[1]);
            continue;
        }
        unsigned c = hex_value(p);
        p += 4;
        if (c >= 0xD800 && c < 0xDC00 && end - p >= 6 && p[0] == '\\' && p[1] == 'u') {
            unsigned low = hex_value(p + 2);
            if (low >= 0xDC00 && low < 0xE000) {
                c = 0x10000 + ((c - 0xD800) << 10) + (low - 0xDC00);
                p += 6;
            }
        }
        put_code_point(out, c >= 0xD800 && c < 0xE000 ? 0xFFFD : c);
    }
}
