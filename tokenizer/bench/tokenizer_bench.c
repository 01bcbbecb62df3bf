/* Times the encoding of a file: tokenizer_bench TOKENIZER FILE
 *
 * TOKENIZER is a tokenizer.json or its folder. Prints the time to open it, then MB/s over RUNS encodings of the whole
 * file. The first run is also printed alone, because it fills the tokenizer's memo (bpe.h). */
#include "base/clock.h"
#include "base/file.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/sort.h"
#include "tokenizer/tokenizer.h"

#include <stdio.h>

enum { RUNS = 11 };

static int bench(const struct tok *t, const char *path, struct km_err *err)
{
    double rate[RUNS];
    struct km_buf text = {0};
    struct tok_ids ids = {0};
    int rc = km_file_read(path, 0, &text, err);
    for (int i = 0; i < RUNS && !rc; i++) {
        ids.n = 0;
        int64_t start = km_now_ns();
        rc = tok_encode(t, text.data, text.len, false, &ids, err);
        rate[i] = (double)text.len / 1e6 / ((double)(km_now_ns() - start) / 1e9);
    }
    if (!rc) {
        double first = rate[0];
        km_sort_doubles(rate, RUNS);
        printf("encoded %zu bytes to %zu tokens: median %.1f MB/s, min %.1f, max %.1f of %d runs, first run %.1f\n",
               text.len, ids.n, rate[RUNS / 2], rate[0], rate[RUNS - 1], RUNS, first);
    }
    km_buf_free(&text);
    km_free(ids.v);
    return rc;
}

int main(int argc, char **argv)
{
    struct km_err err = {0};
    struct tok *t = NULL;
    if (argc != 3) {
        fprintf(stderr, "usage: tokenizer_bench TOKENIZER FILE\n");
        return 2;
    }
    int64_t start = km_now_ns();
    int rc = tok_open(&t, argv[1], &err);
    if (!rc) {
        printf("opened %s in %.0f ms\n", argv[1], (double)(km_now_ns() - start) / 1e6);
        rc = bench(t, argv[2], &err);
    }
    if (rc)
        km_log(KM_LOG_ERROR, "%s", err.msg);
    tok_free(t);
    return rc ? 1 : 0;
}
