/* The tokenizer by hand, for comparison with others and for timing; not installed.
 *
 *     tok_tool TOKENIZER < lines        each line a JSON string; prints its ids as a JSON array
 *     tok_tool TOKENIZER --decode < lines   each line an array of ids; prints the text as a JSON string
 *     tok_tool TOKENIZER --bench FILE   MB/s over the file: median, least, most */
#include "base/args.h"
#include "base/clock.h"
#include "base/file.h"
#include "base/json.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/sort.h"
#include "tokenizer/tokenizer.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int bench(const struct tok *t, const char *path, struct km_err *err)
{
    enum { RUNS = 11 };
    double rate[RUNS];
    struct km_buf text = {0};
    struct tok_ids ids = {0};
    int rc = km_file_read(path, 0, &text, err);
    for (int i = 0; i < RUNS && !rc; i++) {
        ids.n = 0;
        int64_t from = km_now_ns();
        rc = tok_encode(t, text.data, text.len, false, &ids, err);
        rate[i] = (double)text.len / 1e6 / ((double)(km_now_ns() - from) / 1e9);
    }
    if (!rc) {
        double first = rate[0];
        km_sort_doubles(rate, RUNS);
        printf("%zu bytes, %zu tokens, MB/s: median %.1f, min %.1f, max %.1f of %d runs, the first %.1f\n",
               text.len, ids.n, rate[RUNS / 2], rate[0], rate[RUNS - 1], RUNS, first);
    }
    km_buf_free(&text);
    km_free(ids.v);
    return rc;
}

/* One line of input to one line in out; *ns grows by the time of the library's part. */
static int do_line(const struct tok *t, const cJSON *v, bool plain, bool decode, struct tok_ids *ids,
                   struct km_buf *out, int64_t *ns, struct km_err *err)
{
    if (decode ? !cJSON_IsArray(v) : !cJSON_IsString(v))
        return km_fail(err, KM_EFORMAT, "a line is not %s", decode ? "an array of ids" : "a JSON string");
    int rc;
    int64_t from = km_now_ns();
    if (decode) {
        struct km_buf text = {0};
        rc = tok_decode(t, ids->v, ids->n, false, &text, err);
        *ns += km_now_ns() - from;
        km_buf_putc(out, '"');
        km_buf_put_json(out, km_buf_str(&text), text.len);
        km_buf_puts(out, "\"\n");
        km_buf_free(&text);
        return rc;
    }
    rc = tok_encode(t, v->valuestring, strlen(v->valuestring), !plain, ids, err);
    *ns += km_now_ns() - from;
    for (size_t i = 0; i < ids->n; i++)
        km_buf_printf(out, i ? ",%d" : "[%d", (int)ids->v[i]);
    km_buf_puts(out, ids->n ? "]\n" : "[]\n");
    return rc;
}

static int do_lines(const struct tok *t, bool plain, bool decode, struct km_err *err)
{
    char *line = NULL;
    size_t cap = 0;
    ssize_t n;
    int64_t ns = 0, bytes = 0;
    int rc = 0;
    struct tok_ids ids = {0};
    struct km_buf out = {0};
    while (!rc && (n = getline(&line, &cap, stdin)) > 0) {
        cJSON *v = NULL;
        ids.n = 0;
        km_buf_clear(&out);
        if ((rc = km_json_parse(line, (size_t)n, &v, err)))
            break;
        const cJSON *id;
        cJSON_ArrayForEach(id, v)
        {
            int32_t *p = ids.n < ids.cap ? ids.v : km_reallocarray(ids.v, ids.cap = 2 * ids.n + 64, sizeof *p);
            if (!p) {
                rc = km_fail(err, KM_ENOMEM, "out of memory for a line of %zu ids", ids.n);
                break;
            }
            ids.v = p;
            ids.v[ids.n++] = id->valueint;
        }
        if (!rc)
            rc = do_line(t, v, plain, decode, &ids, &out, &ns, err);
        if (!rc)
            fwrite(out.data, 1, out.len, stdout);
        bytes += cJSON_IsString(v) ? (int64_t)strlen(v->valuestring) : 0;
        cJSON_Delete(v);
    }
    if (!rc)
        fprintf(stderr, "%lld bytes in %.6f s\n", (long long)bytes, (double)ns / 1e9);
    free(line);
    km_free(ids.v);
    km_buf_free(&out);
    return rc;
}

int main(int argc, char **argv)
{
    const char *file = NULL;
    bool plain = false, decode = false, help = false;
    const struct km_flag flags[] = {
        {"bench", 0, KM_STR, &file, "FILE", "time the encoding of FILE", 0, 0},
        {"plain", 0, KM_BOOL, &plain, NULL, "added tokens are split like any other text", 0, 0},
        {"decode", 0, KM_BOOL, &decode, NULL, "lines are arrays of ids, and become text", 0, 0},
    };
    const int n_flags = (int)(sizeof flags / sizeof *flags);
    struct km_strs pos = {0};
    struct km_err err = {0};
    struct km_buf text = {0};
    struct tok *t = NULL;
    int rc = km_args_parse(flags, n_flags, argc - 1, argv + 1, &pos, &help, &err);
    if (!rc && !help && pos.n != 1)
        rc = km_fail(&err, KM_EINVAL, "give one tokenizer.json or its folder, or --help");
    if (!rc && help) {
        km_args_help(flags, n_flags, &text);
        printf("tok_tool TOKENIZER [flags] < lines\n%s", km_buf_str(&text));
    } else if (!rc) {
        int64_t from = km_now_ns();
        rc = tok_open(&t, pos.v[0], &err);
        if (!rc && file)
            printf("opened in %.0f ms\n", (double)(km_now_ns() - from) / 1e6);
        if (!rc)
            rc = file ? bench(t, file, &err) : do_lines(t, plain, decode, &err);
    }
    if (rc)
        km_log(KM_LOG_ERROR, "%s", err.msg);
    tok_free(t);
    km_buf_free(&text);
    km_free(pos.v);
    return rc ? 1 : 0;
}
