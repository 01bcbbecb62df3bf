/* The writer and the reader of requests.csv use the same table of columns, so that they cannot differ.
 *
 * Files may be damaged: every count is checked against the number of bytes before memory is allocated for it. */
#include "harness/run/tracefile.h"

#include "base/mem.h"

#include <inttypes.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

enum column_type {
    ROW,   /* number of the row; not read back */
    ID,    /* id of the conversation; not read back */
    INT,   /* int */
    COUNT, /* int; an empty cell is -1 */
    TIME,  /* int64_t; an empty cell is 0, "never" */
    BOOL,
    SIZE,   /* size_t */
    HEX,    /* uint64_t */
    FINISH, /* char[16] */
    ERROR   /* char[160] */
};

static const struct {
    const char *name;
    enum column_type type;
    size_t at;
} columns[] = {{"request", ROW, 0},
               {"conversation", INT, offsetof(struct hz_rec, conv)},
               {"conversation_id", ID, 0},
               {"turn", INT, offsetof(struct hz_rec, turn)},
               {"client", INT, offsetof(struct hz_rec, client)},
               {"messages", INT, offsetof(struct hz_rec, messages)},
               {"ok", BOOL, offsetof(struct hz_rec, ok)},
               {"http_status", INT, offsetof(struct hz_rec, status)},
               {"finish_reason", FINISH, offsetof(struct hz_rec, finish)},
               {"asked_tokens", COUNT, offsetof(struct hz_rec, asked_tokens)},
               {"prompt_tokens", COUNT, offsetof(struct hz_rec, prompt_tokens)},
               {"cached_tokens", COUNT, offsetof(struct hz_rec, cached_tokens)},
               {"output_tokens", COUNT, offsetof(struct hz_rec, output_tokens)},
               {"local_prompt_tokens", COUNT, offsetof(struct hz_rec, local_prompt_tokens)},
               {"local_output_tokens", COUNT, offsetof(struct hz_rec, local_output_tokens)},
               {"local_first_tokens", COUNT, offsetof(struct hz_rec, local_first_tokens)},
               {"sched_ns", TIME, offsetof(struct hz_rec, sched_ns)},
               {"start_ns", TIME, offsetof(struct hz_rec, start_ns)},
               {"header_ns", TIME, offsetof(struct hz_rec, header_ns)},
               {"first_any_ns", TIME, offsetof(struct hz_rec, first_any_ns)},
               {"first_ns", TIME, offsetof(struct hz_rec, first_ns)},
               {"last_ns", TIME, offsetof(struct hz_rec, last_ns)},
               {"last_any_ns", TIME, offsetof(struct hz_rec, last_any_ns)},
               {"done_ns", TIME, offsetof(struct hz_rec, done_ns)},
               {"events", INT, offsetof(struct hz_rec, n_ticks)},
               {"first_bytes", SIZE, offsetof(struct hz_rec, first_len)},
               {"text_bytes", SIZE, offsetof(struct hz_rec, text_len)},
               {"text_xxh3", HEX, offsetof(struct hz_rec, text_xxh)},
               {"error", ERROR, offsetof(struct hz_rec, error)}};
enum { N_COLUMNS = sizeof columns / sizeof *columns };

static const char magic[8] = {'K', 'V', 'M', 'T', 'O', 'K', '1', '\n'};

/* ---- requests.csv ---- */

static void put_text(struct km_buf *out, const char *s)
{
    if (!strpbrk(s, "\",\r\n")) {
        km_buf_puts(out, s);
        return;
    }
    km_buf_putc(out, '"');
    for (; *s; s++)
        km_buf_printf(out, *s == '"' ? "\"\"" : "%c", *s);
    km_buf_putc(out, '"');
}

static void put_cell(struct km_buf *out, const struct hz_trace *t, const struct wl_set *set, int row, int col)
{
    const struct hz_rec *r = &t->recs[row];
    const void *p = (const char *)r + columns[col].at;
    switch (columns[col].type) {
    case ROW:
        km_buf_printf(out, "%d", row);
        break;
    case ID:
        if (set && r->conv >= 0 && r->conv < set->n && set->convs[r->conv].id)
            put_text(out, set->convs[r->conv].id);
        break;
    case INT:
        km_buf_printf(out, "%d", *(const int *)p);
        break;
    case COUNT:
        if (*(const int *)p >= 0)
            km_buf_printf(out, "%d", *(const int *)p);
        break;
    case TIME:
        if (*(const int64_t *)p)
            km_buf_printf(out, "%" PRId64, *(const int64_t *)p - t->begin_ns);
        break;
    case BOOL:
        km_buf_putc(out, *(const bool *)p ? '1' : '0');
        break;
    case SIZE:
        km_buf_printf(out, "%zu", *(const size_t *)p);
        break;
    case HEX:
        km_buf_printf(out, "%016" PRIx64, *(const uint64_t *)p);
        break;
    case FINISH:
    case ERROR:
        put_text(out, p);
        break;
    }
}

void tf_csv_write(const struct hz_trace *t, const struct wl_set *set, struct km_buf *out)
{
    for (int c = 0; c < N_COLUMNS; c++)
        km_buf_printf(out, "%s%c", columns[c].name, c + 1 < N_COLUMNS ? ',' : '\n');
    for (int i = 0; i < t->n; i++)
        for (int c = 0; c < N_COLUMNS; c++) {
            put_cell(out, t, set, i, c);
            km_buf_putc(out, c + 1 < N_COLUMNS ? ',' : '\n');
        }
}

struct csv {
    const char *p, *end;
    int line;
};

/* Reads one cell without its quotes. `last`: a line end must follow it, else a comma. False: it does not. */
static bool read_cell(struct csv *s, bool last, struct km_buf *out)
{
    km_buf_clear(out);
    bool quoted = s->p < s->end && *s->p == '"';
    s->p += quoted;
    for (; s->p < s->end; s->p++) {
        if (quoted && *s->p == '"') {
            if (s->p + 1 == s->end || s->p[1] != '"') {
                s->p++;
                break;
            }
            s->p++;
        } else if (!quoted && (*s->p == ',' || *s->p == '\n' || *s->p == '\r'))
            break;
        km_buf_putc(out, *s->p);
    }
    if (last && s->p < s->end && *s->p == '\r')
        s->p++;
    if (s->p == s->end || *s->p != (last ? '\n' : ','))
        return false;
    s->p++;
    return true;
}

/* Parses the cell as an integer in [lo, hi]. */
static bool parse_number(const struct km_buf *b, int64_t lo, int64_t hi, int64_t *out)
{
    char *end;
    const char *s = km_buf_str(b);
    *out = strtoll(s, &end, 10);
    return b->len && end == s + b->len && *out >= lo && *out <= hi;
}

/* Parses the cell into the field at p. False: it is not a value of this type. */
static bool parse_cell(const struct km_buf *b, enum column_type type, void *p)
{
    int64_t v = 0;
    bool empty = b->len == 0;
    switch (type) {
    case ROW:
    case ID:
        return true;
    case INT:
    case COUNT:
        if (!(empty && type == COUNT) && !parse_number(b, 0, INT32_MAX, &v))
            return false;
        *(int *)p = empty ? -1 : (int)v;
        return true;
    case TIME:
        if (!empty && !parse_number(b, -TF_BEGIN_NS + 1, INT64_MAX - TF_BEGIN_NS, &v))
            return false;
        *(int64_t *)p = empty ? 0 : v + TF_BEGIN_NS;
        return true;
    case BOOL:
        *(bool *)p = b->len == 1 && b->data[0] == '1';
        return b->len == 1 && (b->data[0] | 1) == '1';
    case SIZE:
        if (!parse_number(b, 0, INT64_MAX, &v))
            return false;
        *(size_t *)p = (size_t)v;
        return true;
    case HEX: {
        char *end;
        *(uint64_t *)p = strtoull(km_buf_str(b), &end, 16);
        return b->len == 16 && end == b->data + 16;
    }
    case FINISH:
    case ERROR: {
        size_t size = type == FINISH ? sizeof((struct hz_rec *)0)->finish : sizeof((struct hz_rec *)0)->error;
        if (b->len >= size)
            return false;
        memcpy(p, km_buf_str(b), b->len + 1);
        return true;
    }
    }
    return false;
}

int tf_csv_read(const char *text, size_t len, struct hz_trace *t, struct km_err *err)
{
    struct csv s = {text, text + len, 1};
    struct km_buf b = {0};
    int rc = 0, rows = 0;
    for (int c = 0; !rc && c < N_COLUMNS; c++)
        if (!read_cell(&s, c + 1 == N_COLUMNS, &b) || strcmp(km_buf_str(&b), columns[c].name))
            rc = !km_buf_ok(&b) ? km_fail(err, KM_ENOMEM, "no memory for a header")
                                : km_fail(err, KM_EFORMAT,
                                          "column %d is \"%.40s\" instead of \"%s\"; the file is from another version",
                                          c + 1, km_buf_str(&b), columns[c].name);
    for (const char *p = s.p; p < s.end; p++)
        rows += *p == '\n';
    rows++; /* the last row may have no line end */
    if (!rc && !(t->recs = km_calloc((size_t)rows, sizeof *t->recs)))
        rc = km_fail(err, KM_ENOMEM, "no memory for %d requests", rows);
    t->cap = rows;
    t->begin_ns = TF_BEGIN_NS;
    for (; !rc && s.p < s.end; t->n++) {
        struct hz_rec *r = &t->recs[t->n];
        s.line++;
        for (int c = 0; !rc && c < N_COLUMNS; c++) {
            if (!read_cell(&s, c + 1 == N_COLUMNS, &b))
                rc = km_fail(err, KM_EFORMAT, "line %d does not have %d cells", s.line, N_COLUMNS);
            else if (!km_buf_ok(&b))
                rc = km_fail(err, KM_ENOMEM, "no memory for line %d", s.line);
            else if (!parse_cell(&b, columns[c].type, (char *)r + columns[c].at))
                rc = km_fail(err, KM_EFORMAT, "line %d, column %s: \"%.40s\" is not a value of this column", s.line,
                             columns[c].name, km_buf_str(&b));
        }
        r->tick0 = t->n_ticks;
        t->n_ticks += (size_t)r->n_ticks;
    }
    km_buf_free(&b);
    return rc;
}

/* ---- tokens.bin ---- */

static void put_varint(struct km_buf *out, uint64_t v)
{
    for (; v >= 128; v >>= 7)
        km_buf_putc(out, (char)(v | 128));
    km_buf_putc(out, (char)v);
}

void tf_ticks_write(const struct hz_trace *t, struct km_buf *out)
{
    size_t start = out->len;
    km_buf_put(out, magic, sizeof magic);
    put_varint(out, (uint64_t)t->n);
    put_varint(out, t->n_ticks);
    for (int i = 0; i < t->n; i++) {
        const struct hz_rec *r = &t->recs[i];
        int64_t before = t->begin_ns;
        put_varint(out, (uint64_t)r->n_ticks);
        for (int k = 0; k < r->n_ticks; k++) {
            const struct hz_tick *e = &t->ticks[r->tick0 + (size_t)k];
            int64_t d = e->ns - before;
            put_varint(out, (uint64_t)d << 1 ^ (uint64_t)(d >> 63));
            put_varint(out, e->tokens > 0 ? (uint64_t)e->tokens : 0);
            put_varint(out, e->lag_ns >= 0 ? (uint64_t)e->lag_ns + 1 : 0);
            before = e->ns;
        }
    }
    if (!km_buf_ok(out))
        return;
    uint64_t checksum = XXH64(out->data + start, out->len - start, 0);
    for (int i = 0; i < 8; i++)
        km_buf_putc(out, (char)(checksum >> 8 * i));
}

struct bytes {
    const unsigned char *p, *end;
    bool bad;
};

/* Reads a varint. Sets bad, and returns 0, if it is cut off or more than max. */
static uint64_t read_varint(struct bytes *b, uint64_t max)
{
    uint64_t v = 0;
    for (int shift = 0; shift < 64; shift += 7) {
        if (b->p == b->end)
            break;
        unsigned char c = *b->p++;
        v |= (uint64_t)(c & 127) << shift;
        if (c < 128) {
            b->bad = b->bad || v > max;
            return b->bad ? 0 : v;
        }
    }
    b->bad = true;
    return 0;
}

int tf_ticks_read(const char *bytes, size_t len, struct hz_trace *t, struct km_err *err)
{
    uint64_t checksum = 0;
    if (len < sizeof magic + 10 || memcmp(bytes, magic, sizeof magic))
        return km_fail(err, KM_EFORMAT,
                       "the file of %zu bytes does not start with KVMTOK1; it is cut off or not a tokens.bin", len);
    for (int i = 0; i < 8; i++)
        checksum |= (uint64_t)(unsigned char)bytes[len - 8 + (size_t)i] << 8 * i;
    if (checksum != XXH64(bytes, len - 8, 0))
        return km_fail(err, KM_EFORMAT, "the checksum is wrong; the file is damaged or cut off");
    struct bytes b = {(const unsigned char *)bytes + sizeof magic, (const unsigned char *)bytes + len - 8, false};
    uint64_t n = read_varint(&b, INT32_MAX), total = read_varint(&b, len / 3);
    if (b.bad || n != (uint64_t)t->n || total != t->n_ticks)
        return km_fail(err, KM_EFORMAT,
                       "the file has %" PRIu64 " requests and %" PRIu64 " events, but requests.csv has %d and %zu", n,
                       total, t->n, t->n_ticks);
    if (!(t->ticks = km_calloc(t->n_ticks, sizeof *t->ticks)))
        return km_fail(err, KM_ENOMEM, "no memory for %zu events", t->n_ticks);
    t->cap_ticks = t->n_ticks;
    for (int i = 0; i < t->n && !b.bad; i++) {
        const struct hz_rec *r = &t->recs[i];
        uint64_t at = (uint64_t)t->begin_ns;
        if (read_varint(&b, INT32_MAX) != (uint64_t)r->n_ticks)
            b.bad = true;
        for (int k = 0; k < r->n_ticks && !b.bad; k++) {
            struct hz_tick *e = &t->ticks[r->tick0 + (size_t)k];
            uint64_t z = read_varint(&b, UINT64_MAX);
            at += z >> 1 ^ (0 - (z & 1));
            e->ns = (int64_t)at;
            e->tokens = (int32_t)read_varint(&b, INT32_MAX);
            e->lag_ns = (int32_t)((int64_t)read_varint(&b, (uint64_t)INT32_MAX + 1) - 1);
        }
    }
    return b.bad || b.p != b.end
               ? km_fail(err, KM_EFORMAT, "the requests' numbers of events differ from those in requests.csv")
               : 0;
}
