/* Encodes or decodes the lines of standard input. tokenizer_check.py compares the results with Hugging Face's.
 *
 *     tokenizer_check TOKENIZER encode        line: a JSON string; prints its token ids as a JSON array
 *     tokenizer_check TOKENIZER encode-plain  the same, with added tokens split like any other text
 *     tokenizer_check TOKENIZER decode        line: a JSON array of token ids; prints their text as a JSON string
 *
 * Prints the bytes encoded and the seconds spent in the library on standard error at the end. */
#include "base/clock.h"
#include "base/json.h"
#include "base/log.h"
#include "base/mem.h"
#include "tokenizer/tokenizer.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum mode { ENCODE, ENCODE_PLAIN, DECODE, N_MODES };
static const char *const mode_names[N_MODES] = {"encode", "encode-plain", "decode"};

struct check {
    const struct tok *t;
    enum mode mode;
    struct tok_ids ids; /* of the current line */
    struct km_buf out;  /* the line to print */
    int64_t ns, bytes;  /* totals: time in the library, bytes encoded */
};

static int encode_line(struct check *c, const cJSON *line, struct km_err *err)
{
    if (!cJSON_IsString(line))
        return km_fail(err, KM_EFORMAT, "a line is not a JSON string");
    size_t len = strlen(line->valuestring);
    int64_t start = km_now_ns();
    int rc = tok_encode(c->t, line->valuestring, len, c->mode == ENCODE, &c->ids, err);
    c->ns += km_now_ns() - start;
    c->bytes += (int64_t)len;
    for (size_t i = 0; i < c->ids.n; i++)
        km_buf_printf(&c->out, i ? ",%d" : "[%d", (int)c->ids.v[i]);
    km_buf_puts(&c->out, c->ids.n ? "]\n" : "[]\n");
    return rc;
}

static int read_ids(struct check *c, const cJSON *line, struct km_err *err)
{
    if (!cJSON_IsArray(line))
        return km_fail(err, KM_EFORMAT, "a line is not a JSON array of token ids");
    size_t n = (size_t)cJSON_GetArraySize(line);
    int32_t *v = n > c->ids.cap ? km_reallocarray(c->ids.v, n, sizeof *v) : c->ids.v;
    if (n && !v)
        return km_fail(err, KM_ENOMEM, "out of memory for a line of %zu token ids", n);
    c->ids.v = v;
    c->ids.cap = n > c->ids.cap ? n : c->ids.cap;
    const cJSON *id;
    cJSON_ArrayForEach(id, line)
    {
        v[c->ids.n++] = id->valueint;
    }
    return 0;
}

static int decode_line(struct check *c, const cJSON *line, struct km_err *err)
{
    struct km_buf text = {0};
    int rc = read_ids(c, line, err);
    int64_t start = km_now_ns();
    if (!rc)
        rc = tok_decode(c->t, c->ids.v, c->ids.n, false, &text, err);
    c->ns += km_now_ns() - start;
    km_buf_putc(&c->out, '"');
    km_buf_put_json(&c->out, km_buf_str(&text), text.len);
    km_buf_puts(&c->out, "\"\n");
    km_buf_free(&text);
    return rc;
}

static int check_lines(struct check *c, struct km_err *err)
{
    char *line = NULL;
    size_t cap = 0;
    ssize_t n;
    int rc = 0;
    while (!rc && (n = getline(&line, &cap, stdin)) > 0) {
        cJSON *v = NULL;
        c->ids.n = 0;
        km_buf_clear(&c->out);
        rc = km_json_parse(line, (size_t)n, &v, err);
        if (!rc)
            rc = c->mode == DECODE ? decode_line(c, v, err) : encode_line(c, v, err);
        if (!rc)
            fwrite(c->out.data, 1, c->out.len, stdout);
        cJSON_Delete(v);
    }
    if (!rc)
        fprintf(stderr, "%lld bytes in %.6f s\n", (long long)c->bytes, (double)c->ns / 1e9);
    free(line);
    km_free(c->ids.v);
    km_buf_free(&c->out);
    return rc;
}

int main(int argc, char **argv)
{
    struct km_err err = {0};
    struct tok *t = NULL;
    int mode = 0;
    while (argc == 3 && mode < N_MODES && strcmp(argv[2], mode_names[mode]))
        mode++;
    if (argc != 3 || mode == N_MODES) {
        fprintf(stderr, "usage: tokenizer_check TOKENIZER encode|encode-plain|decode < LINES\n");
        return 2;
    }
    int rc = tok_open(&t, argv[1], &err);
    if (!rc)
        rc = check_lines(&(struct check){.t = t, .mode = (enum mode)mode}, &err);
    if (rc)
        km_log(KM_LOG_ERROR, "%s", err.msg);
    tok_free(t);
    return rc ? 1 : 0;
}
