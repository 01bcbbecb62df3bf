/* The public functions. Encoding cuts the text at added tokens; the text between them is normalized, split and merged.
 * Each encode call has its own state, so concurrent calls share nothing but the vocabulary. */
#include "tokenizer/tokenizer.h"

#include "base/file.h"
#include "base/mem.h"
#include "tokenizer/load.h"
#include "tokenizer/normalize.h"
#include "tokenizer/split.h"
#include "tokenizer/unicode.h"

#include <string.h>

int tok_open(struct tok **out, const char *path, struct km_err *err)
{
    char *file = km_dir_exists(path) ? km_path(path, "tokenizer.json") : km_strdup(path);
    struct tok *t = km_calloc(1, sizeof *t);
    int rc;
    if (!file || !t)
        rc = km_fail(err, KM_ENOMEM, "out of memory opening %s", path);
    else if (!km_file_exists(file))
        rc = km_fail(err, KM_ENOENT, "there is no %s; give a tokenizer.json or the folder that holds one", file);
    else
        rc = tok_load_file(t, file, err);
    km_free(file);
    if (rc) {
        tok_free(t);
        return rc;
    }
    *out = t;
    return 0;
}

void tok_free(struct tok *t)
{
    if (!t)
        return;
    km_free(t->table);
    voc_free(&t->voc);
    bpe_free(&t->bpe);
    added_free(&t->added);
    km_free(t->special);
    km_free(t);
}

/* State of one encode call. */
struct encoding {
    const struct tok *t;
    struct nfc nfc;
    struct bpe_run run;
};

/* Encodes text that has no added tokens. */
static int encode_plain(struct encoding *e, const char *s, size_t n)
{
    int rc = nfc_run(&e->nfc, &s, &n);
    while (n && !rc) {
        size_t len = spl_next(e->t->table, s, n);
        rc = bpe_piece(&e->t->bpe, &e->run, s, len);
        s += len;
        n -= len;
    }
    return rc;
}

/* Appends to ids, or only counts if ids is NULL. Returns the number of token ids, or < 0. */
static int64_t encode(const struct tok *t, const char *s, size_t n, bool specials, struct tok_ids *ids,
                      struct km_err *err)
{
    struct encoding e = {.t = t, .nfc.table = t->table, .run.ids = ids};
    size_t old_n = ids ? ids->n : 0, from = 0, at;
    const struct added_tok *a;
    int rc = 0;
    while (!rc && specials && (a = added_find(&t->added, s, n, from, &at))) {
        rc = encode_plain(&e, s + from, at - from);
        if (!rc)
            rc = bpe_emit(&e.run, a->id);
        from = at + a->len;
    }
    if (!rc)
        rc = encode_plain(&e, s + from, n - from);
    nfc_free(&e.nfc);
    bpe_run_free(&e.run);
    if (!rc)
        return e.run.n;
    if (ids)
        ids->n = old_n;
    return rc == KM_ELIMIT ? km_fail(err, rc, "a word in the text of %zu bytes is over 2 GiB long; split the text", n)
                           : km_fail(err, rc, "out of memory encoding %zu bytes of text", n);
}

int tok_encode(const struct tok *t, const char *text, size_t len, bool specials, struct tok_ids *out,
               struct km_err *err)
{
    int64_t n = encode(t, text, len, specials, out, err);
    return n < 0 ? (int)n : 0;
}

int64_t tok_count(const struct tok *t, const char *text, size_t len, struct km_err *err)
{
    return encode(t, text, len, false, NULL, err);
}

int tok_decode(const struct tok *t, const int32_t *ids, size_t n, bool skip_special, struct km_buf *out,
               struct km_err *err)
{
    struct km_buf bytes = {0};
    for (size_t i = 0; i < n; i++) {
        size_t len;
        const char *p = tok_bytes(t, ids[i], &len);
        if (!p) {
            km_buf_free(&bytes);
            return km_fail(err, KM_EINVAL, "token id %d does not exist; ids are 0 to %d", (int)ids[i],
                           (int)t->voc.total - 1);
        }
        if (!skip_special || !t->special[ids[i]])
            km_buf_put(&bytes, p, len);
    }
    size_t old_len = out->len;
    if (km_buf_ok(&bytes))
        uni_lossy(out, km_buf_str(&bytes), bytes.len);
    bool ok = km_buf_ok(&bytes) && km_buf_ok(out);
    km_buf_free(&bytes);
    if (ok)
        return 0;
    out->len = old_len;
    if (out->data)
        out->data[old_len] = 0;
    return km_fail(err, KM_ENOMEM, "out of memory decoding %zu tokens", n);
}

const char *tok_bytes(const struct tok *t, int32_t id, size_t *len)
{
    return id < 0 || id >= t->voc.total ? NULL : voc_bytes(&t->voc, id, len);
}

bool tok_is_special(const struct tok *t, int32_t id)
{
    return id >= 0 && id < t->voc.total && t->special[id];
}

int32_t tok_added_id(const struct tok *t, const char *text)
{
    const struct added_tok *a = added_get(&t->added, text);
    return a ? a->id : -1;
}

int32_t tok_vocab_size(const struct tok *t)
{
    return t->voc.n;
}

int32_t tok_total(const struct tok *t)
{
    return t->voc.total;
}
