/* A state machine: it reads the head and the chunk sizes line by line, and the body by counting bytes.
 *
 * A line ends in CR LF; a bare CR or LF is an error. The head is kept in one buffer, in which NULs separate the parts.
 * The head is never longer than HP_MAX_HEAD, so a request uses little memory until the length of its body is accepted.
 *
 * libevent's own HTTP server is not used, because it accepts requests with a bare LF, with signed or repeated lengths,
 * and with a length beside the chunked coding. Its callback comes too late to refuse them. */
#include "engine/server/http_parse.h"

#include <stdio.h>
#include <string.h>
#include <strings.h>

enum { S_LINE, S_HEADERS, S_BODY, S_CHUNK_SIZE, S_CHUNK, S_CHUNK_END, S_TRAILERS, S_DONE, S_BAD };
enum { MAX_CHUNK_LINE = 256, MAX_BLANK_LINES = 4 };

void hp_init(struct hp *p, size_t max_body)
{
    memset(p, 0, sizeof *p);
    p->max_body = max_body;
}

void hp_reset(struct hp *p)
{
    struct km_buf head = p->head, line = p->line, body = p->body;
    size_t max_body = p->max_body;
    /* A large body is freed, so that thousands of idle connections do not keep the memory of their largest request. */
    if (body.cap > 65536)
        km_buf_free(&body);
    hp_init(p, max_body);
    p->head = head, p->line = line, p->body = body;
    km_buf_clear(&p->head);
    km_buf_clear(&p->line);
    km_buf_clear(&p->body);
}

void hp_free(struct hp *p)
{
    km_buf_free(&p->head);
    km_buf_free(&p->line);
    km_buf_free(&p->body);
}

bool hp_started(const struct hp *p)
{
    return p->state != S_LINE || p->head.len || p->blank_lines;
}

static enum hp_event bad(struct hp *p, int status, const char *why)
{
    p->state = S_BAD;
    p->status = status;
    p->why = why;
    return HP_BAD;
}

static enum hp_event bad_body_length(struct hp *p)
{
    snprintf(p->limit_message, sizeof p->limit_message,
             "the request body is longer than %zu bytes, the most that this server accepts; send a shorter prompt",
             p->max_body);
    return bad(p, 413, p->limit_message);
}

static bool is_token(unsigned char c)
{
    return c > 32 && c < 127 && !strchr("\"(),/:;<=>?@[\\]{}", c);
}

const char *hp_header(const struct hp *p, const char *name)
{
    for (int i = 0; i < p->n_headers; i++)
        if (!strcmp(p->head.data + p->headers[i].name, name))
            return p->head.data + p->headers[i].value;
    return NULL;
}

static int header_count(const struct hp *p, const char *name)
{
    int n = 0;
    for (int i = 0; i < p->n_headers; i++)
        n += !strcmp(p->head.data + p->headers[i].name, name);
    return n;
}

bool hp_query_flag(const struct hp *p, const char *key)
{
    size_t klen = strlen(key);
    for (const char *q = p->query; *q; q += *q == '&') {
        size_t n = strcspn(q, "&");
        if (n >= klen && !strncmp(q, key, klen) && (n == klen || q[klen] == '=')) {
            const char *v = q + klen + (n > klen);
            size_t vlen = n - (size_t)(v - q);
            return !(vlen == 1 && *v == '0') && !(vlen == 5 && !strncasecmp(v, "false", 5));
        }
        q += n;
    }
    return false;
}

/* METHOD SP target SP HTTP/1.x: puts a NUL after the method, the path and the query. */
static enum hp_event parse_request_line(struct hp *p, char *s)
{
    char *sp = s;
    while (is_token((unsigned char)*sp))
        sp++;
    if (sp == s || *sp != ' ' || sp - s > 32)
        return bad(p, 400, "the request line does not start with a method and one space");
    *sp = 0;
    char *target = sp + 1, *end = target;
    while ((unsigned char)*end > 32 && (unsigned char)*end < 127)
        end++;
    if (end == target || *end != ' ')
        return bad(p, 400, "the request target is empty or has a character that must be percent-encoded");
    *end = 0;
    const char *v = end + 1;
    if (strncmp(v, "HTTP/", 5) || v[5] < '0' || v[5] > '9' || v[6] != '.' || v[7] < '0' || v[7] > '9' || v[8])
        return bad(p, 400, "the request line does not end in HTTP/1.1 or HTTP/1.0");
    if (v[5] != '1')
        return bad(p, 505, "this server supports HTTP/1.0 and HTTP/1.1 only");
    p->minor = v[7] - '0';
    if (strchr(target, '#'))
        return bad(p, 400, "the request target has a fragment (#...), which clients must not send");
    if (!strncasecmp(target, "http://", 7) || !strncasecmp(target, "https://", 8)) {
        /* absolute-form, as clients send it to a proxy: this server ignores the authority */
        target = strstr(target, "://") + 3;
        size_t authority = strcspn(target, "/?");
        if (!authority)
            return bad(p, 400, "the request target is a URL without a host");
        target += authority;
        if (*target != '/')
            *--target = '/'; /* "http://h?q", "http://h": '/' overwrites the last letter of the host */
    } else if (*target != '/') {
        return bad(p, 400, "the request target must be a path that starts with '/'");
    }
    char *q = target + strcspn(target, "?");
    p->query_at = (uint32_t)(q - s) + (*q == '?');
    *q = 0;
    p->path_at = (uint32_t)(target - s);
    return HP_MORE;
}

/* name ":" OWS value OWS. store false: a trailer, which is checked and dropped. */
static enum hp_event parse_header(struct hp *p, char *s, bool store)
{
    if (*s == ' ' || *s == '\t')
        return bad(p, 400, "a header continues on a second line; send it on one line");
    char *c = s;
    for (; is_token((unsigned char)*c); c++)
        if (*c >= 'A' && *c <= 'Z')
            *c += 'a' - 'A';
    if (c == s || *c != ':')
        return bad(p, 400, "a header line has no name, or the name is not followed by a colon at once");
    *c = 0;
    char *v = c + 1;
    v += strspn(v, " \t");
    char *e = v + strlen(v);
    while (e > v && (e[-1] == ' ' || e[-1] == '\t'))
        e--;
    *e = 0;
    for (const unsigned char *u = (const unsigned char *)v; *u; u++)
        if ((*u < 32 && *u != '\t') || *u == 127)
            return bad(p, 400, "a header value has a control character");
    if (!store)
        return HP_MORE;
    if (p->n_headers == HP_MAX_HEADERS)
        return bad(p, 431, "the request has more than 100 headers");
    p->headers[p->n_headers].name = (uint32_t)(s - p->head.data);
    p->headers[p->n_headers++].value = (uint32_t)(v - p->head.data);
    return HP_MORE;
}

/* True if the comma-separated list has the item. */
static bool list_has(const char *value, const char *item)
{
    size_t n = strlen(item);
    while (value && *value) {
        value += strspn(value, " \t,");
        size_t len = strcspn(value, " \t,");
        if (len == n && !strncasecmp(value, item, n))
            return true;
        value += len;
    }
    return false;
}

static bool host_ok(const char *h)
{
    for (; *h; h++)
        if (!((*h >= '0' && *h <= '9') || (*h >= 'a' && *h <= 'z') || (*h >= 'A' && *h <= 'Z') ||
              strchr("-._~!$&'()*+,;=:[]%", *h)))
            return false;
    return true;
}

/* Content-Length: decimal digits, once, and not above max_body. */
static enum hp_event parse_length(struct hp *p, const char *cl)
{
    size_t n = strlen(cl);
    if (header_count(p, "content-length") > 1 || !n || strspn(cl, "0123456789") != n)
        return bad(p, 400, "Content-Length must be given once, as decimal digits");
    while (n > 1 && *cl == '0')
        cl++, n--;
    uint64_t len = 0;
    for (; *cl && len <= UINT64_MAX / 10 - 1; cl++)
        len = len * 10 + (uint64_t)(*cl - '0');
    if (*cl || len > p->max_body)
        return bad_body_length(p);
    p->has_length = true;
    p->length = len;
    return HP_MORE;
}

static void parse_connection(struct hp *p)
{
    bool has_close = false, has_keep_alive = false;
    for (int i = 0; i < p->n_headers; i++)
        if (!strcmp(p->head.data + p->headers[i].name, "connection")) {
            has_close |= list_has(p->head.data + p->headers[i].value, "close");
            has_keep_alive |= list_has(p->head.data + p->headers[i].value, "keep-alive");
        }
    p->keep_alive = !has_close && (p->minor >= 1 || has_keep_alive);
}

/* Decides from the complete head how the body is framed. The head buffer grows no more, so pointers into it stay
 * valid. */
static enum hp_event end_head(struct hp *p)
{
    p->method = p->head.data;
    p->path = p->head.data + p->path_at;
    p->query = p->head.data + p->query_at;
    const char *host = hp_header(p, "host"), *te = hp_header(p, "transfer-encoding");
    const char *cl = hp_header(p, "content-length"), *expect = hp_header(p, "expect");
    if (header_count(p, "host") > 1)
        return bad(p, 400, "the request has more than one Host header");
    if (!host && p->minor >= 1)
        return bad(p, 400, "the request has no Host header, which HTTP/1.1 requires");
    if (host && !host_ok(host))
        return bad(p, 400, "the Host header is not the name or address of a host");
    if (te) {
        if (p->minor == 0)
            return bad(p, 400, "Transfer-Encoding is not allowed in an HTTP/1.0 request");
        if (cl)
            return bad(p, 400, "the request has both Content-Length and Transfer-Encoding; send one of them");
        if (header_count(p, "transfer-encoding") > 1 || strcasecmp(te, "chunked"))
            return bad(p, 400, "the only Transfer-Encoding supported is \"chunked\", given once");
        p->chunked = true;
    }
    if (cl && parse_length(p, cl) == HP_BAD)
        return HP_BAD;
    parse_connection(p);
    if (expect) {
        if (strcasecmp(expect, "100-continue"))
            return bad(p, 417, "the only Expect supported is 100-continue");
        p->expect_continue = p->minor >= 1;
    }
    p->left = p->length;
    p->state = p->chunked ? S_CHUNK_SIZE : p->has_length && p->length ? S_BODY : S_DONE;
    return HP_HEAD;
}

/* The size in hexadecimal, then optional ";extensions", which are ignored. */
static enum hp_event parse_chunk_size(struct hp *p, const char *s)
{
    uint64_t v = 0;
    int digits = 0;
    for (;; s++, digits++) {
        int low = *s | 32, d = *s >= '0' && *s <= '9' ? *s - '0' : low >= 'a' && low <= 'f' ? low - 'a' + 10 : -1;
        if (d < 0)
            break;
        if (v >> 56)
            return bad_body_length(p);
        v = v << 4 | (uint64_t)d;
    }
    if (!digits || (*s && *s != ';'))
        return bad(p, 400, "a chunk does not start with its size in hexadecimal");
    for (const unsigned char *u = (const unsigned char *)s; *u; u++)
        if ((*u < 32 && *u != '\t') || *u == 127)
            return bad(p, 400, "a chunk extension has a control character");
    if (v > p->max_body - p->body.len)
        return bad_body_length(p);
    p->left = v;
    p->state = v ? S_CHUNK : S_TRAILERS;
    return HP_MORE;
}

/* Appends bytes up to the end of a line to b, in which the line starts at `start`. Returns 1 if the line is complete
 * (NULs replace its CR LF), 0 if more bytes are needed, and -1 if the request is bad: with this status if the line has
 * more than max bytes. */
static int read_line(struct hp *p, struct km_buf *b, size_t start, size_t max, int status, const char *data, size_t n,
                     size_t *used)
{
    const char *lf = memchr(data, '\n', n);
    size_t len = lf ? (size_t)(lf - data) + 1 : n;
    *used = len;
    if (b->len - start + len > max + 2) {
        bad(p, status,
            status == 414 ? "the request line is longer than 8192 bytes"
                          : "the headers, a chunk size or the trailers of the request are too long");
        return -1;
    }
    km_buf_put(b, data, len);
    if (b->oom) {
        bad(p, 503, "the server has no memory for the request; try again later");
        return -1;
    }
    if (!lf)
        return 0;
    char *line = b->data + start;
    size_t all = b->len - start;
    if (all < 2 || line[all - 2] != '\r') {
        bad(p, 400, "a line of the request does not end in CR LF");
        return -1;
    }
    if (memchr(line, '\r', all - 2) || memchr(line, 0, all - 2)) {
        bad(p, 400, "a line of the request has a bare CR or a NUL byte");
        return -1;
    }
    line[all - 2] = line[all - 1] = 0;
    return 1;
}

static enum hp_event feed_head(struct hp *p, const char *data, size_t n, size_t *used)
{
    bool first = p->state == S_LINE;
    if (first && !p->head.len && n && !is_token((unsigned char)*data) && *data != '\r')
        return bad(p, 400, "the connection does not begin with an HTTP request; this server does not use TLS");
    size_t max = first ? HP_MAX_LINE : p->line_start < HP_MAX_HEAD ? HP_MAX_HEAD - p->line_start : 0;
    int got = read_line(p, &p->head, p->line_start, max, first ? 414 : 431, data, n, used);
    if (got <= 0)
        return got ? HP_BAD : HP_MORE;
    size_t start = p->line_start;
    p->line_start = p->head.len;
    char *line = p->head.data + start;
    if (first && !*line) {
        if (++p->blank_lines > MAX_BLANK_LINES)
            return bad(p, 400, "the connection begins with empty lines instead of a request");
        p->head.len = p->line_start = start;
        return HP_MORE;
    }
    if (first) {
        p->state = S_HEADERS;
        return parse_request_line(p, line);
    }
    return *line ? parse_header(p, line, true) : end_head(p);
}

static enum hp_event feed_body(struct hp *p, const char *data, size_t n, size_t *used)
{
    size_t take = n < p->left ? n : (size_t)p->left;
    km_buf_put(&p->body, data, take);
    if (p->body.oom)
        return bad(p, 503, "the server has no memory for the request; try again later");
    *used = take;
    p->left -= take;
    if (!p->left)
        p->state = p->state == S_BODY ? S_DONE : S_CHUNK_END;
    return HP_MORE;
}

/* Reads a chunk size, the CR LF after a chunk, or a trailer. */
static enum hp_event feed_line(struct hp *p, const char *data, size_t n, size_t *used)
{
    bool trailer = p->state == S_TRAILERS;
    size_t max = trailer ? HP_MAX_HEAD - p->trailer_bytes : MAX_CHUNK_LINE;
    int got = read_line(p, &p->line, 0, max, trailer ? 431 : 400, data, n, used);
    if (got <= 0)
        return got ? HP_BAD : HP_MORE;
    enum hp_event ev = HP_MORE;
    size_t len = p->line.len;
    if (p->state == S_CHUNK_SIZE) {
        ev = parse_chunk_size(p, p->line.data);
    } else if (p->state == S_CHUNK_END) {
        if (*p->line.data)
            return bad(p, 400, "a chunk has more bytes than its size says");
        p->state = S_CHUNK_SIZE;
    } else if (!*p->line.data) {
        p->state = S_DONE;
    } else {
        ev = parse_header(p, p->line.data, false);
        p->trailer_bytes += len;
        if (p->trailer_bytes > HP_MAX_HEAD)
            return bad(p, 431, "the trailers of the request are longer than 32768 bytes");
    }
    km_buf_clear(&p->line);
    return ev;
}

enum hp_event hp_feed(struct hp *p, const char *data, size_t n, size_t *used)
{
    *used = 0;
    for (;;) {
        size_t took = 0;
        enum hp_event ev;
        if (p->state == S_DONE)
            return HP_DONE;
        if (p->state == S_BAD)
            return HP_BAD;
        if (*used == n)
            return HP_MORE;
        if (p->state == S_LINE || p->state == S_HEADERS)
            ev = feed_head(p, data + *used, n - *used, &took);
        else if (p->state == S_BODY || p->state == S_CHUNK)
            ev = feed_body(p, data + *used, n - *used, &took);
        else
            ev = feed_line(p, data + *used, n - *used, &took);
        *used += took;
        if (ev != HP_MORE)
            return ev;
    }
}
