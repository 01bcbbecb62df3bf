/* NFC by spans. Only a run of UNI_NFC characters and the character before it can change. utf8proc normalizes such a
 * span; all other text is copied.
 *
 * utf8proc_map would normalize everything, but it sorts marks by insertion, which takes quadratic time for a megabyte
 * of marks. Its Unicode version may also be newer than the one of Hugging Face's tokenizers (unicode.h). */
#include "tokenizer/normalize.h"

#include "base/err.h"
#include "base/mem.h"
#include "tokenizer/unicode.h"

#include <string.h>
#include <utf8proc.h>

enum { MAX_PARTS = 8 }; /* code points reserved per character; a canonical decomposition has at most 4 */

static int reserve(struct nfc *w, size_t want)
{
    if (want <= w->cap)
        return 0;
    size_t cap = want + want / 2 + 64;
    int32_t *p = km_reallocarray(w->span, cap, sizeof *p);
    if (!p)
        return KM_ENOMEM;
    w->span = p;
    w->cap = cap;
    return 0;
}

/* The bytes before the first UNI_NFC character in s[0..n), which is valid UTF-8; n if there is none. */
static size_t skip_inert(const uint8_t *table, const char *s, size_t n)
{
    size_t i = 0;
    while (i < n) {
        uint64_t w;
        if (n - i >= 8 && (memcpy(&w, s + i, 8), !(w & 0x8080808080808080u))) {
            i += 8;
            continue;
        }
        int len;
        if (table[uni_get(s + i, &len)] & UNI_NFC)
            return i;
        i += (size_t)len;
    }
    return n;
}

/* Canonical combining class; 0 for a character that is not sorted. */
static unsigned combining_class(const uint8_t *table, int32_t c)
{
    return table[c] & UNI_NFC ? (unsigned)utf8proc_get_property(c)->combining_class : 0;
}

/* Puts each run of marks in w->span[0..n) in canonical order: by combining class, equal classes in their old order. It
 * is a counting sort, so that a run of any length takes linear time. Most runs are in order already. */
static int sort_marks(struct nfc *w, size_t n)
{
    for (size_t i = 0; i < n;) {
        unsigned last = combining_class(w->table, w->span[i]);
        if (!last) {
            i++;
            continue;
        }
        size_t from = i, at[257] = {0};
        bool sorted = true;
        for (unsigned c; i < n && (c = combining_class(w->table, w->span[i])); i++) {
            sorted = sorted && last <= c;
            last = c;
            at[c + 1]++;
        }
        if (sorted)
            continue;
        if (reserve(w, n + (i - from)))
            return KM_ENOMEM;
        for (int c = 1; c < 257; c++)
            at[c] += at[c - 1];
        for (size_t k = from; k < i; k++)
            w->span[n + at[combining_class(w->table, w->span[k])]++] = w->span[k];
        memcpy(w->span + from, w->span + n, (i - from) * sizeof *w->span);
    }
    return 0;
}

/* Appends the NFC of the span s[0..n), a base character and the marks after it, to w->out. */
static int put_span(struct nfc *w, const char *s, size_t n)
{
    size_t len = 0;
    int step;
    for (size_t i = 0; i < n; i += (size_t)step) {
        if (reserve(w, len + MAX_PARTS))
            return KM_ENOMEM;
        int32_t c = (int32_t)uni_get(s + i, &step);
        len += (size_t)utf8proc_decompose_char(c, w->span + len, MAX_PARTS, UTF8PROC_DECOMPOSE | UTF8PROC_STABLE, NULL);
    }
    if (sort_marks(w, len))
        return KM_ENOMEM;
    utf8proc_ssize_t m = utf8proc_normalize_utf32(w->span, (utf8proc_ssize_t)len, UTF8PROC_COMPOSE | UTF8PROC_STABLE);
    for (utf8proc_ssize_t i = 0; i < m; i++) {
        char u[4];
        km_buf_put(&w->out, u, (size_t)uni_put((uint32_t)w->span[i], u));
    }
    return 0;
}

/* The start of the character before s[at], or `at` if that character cannot compose with what follows it. */
static size_t span_start(const struct nfc *w, const char *s, size_t from, size_t at)
{
    if (at == from)
        return at;
    size_t i = at - 1;
    while (((unsigned char)s[i] & 0xC0) == 0x80)
        i--;
    int len;
    uint32_t c = uni_get(s + i, &len);
    return c < 0x10000 || w->table[c] & UNI_BASE ? i : at;
}

int nfc_run(struct nfc *w, const char **text, size_t *size)
{
    const char *s = *text;
    size_t n = *size;
    if (uni_valid(s, n) != n) {
        km_buf_clear(&w->clean);
        uni_lossy(&w->clean, s, n);
        if (!km_buf_ok(&w->clean))
            return KM_ENOMEM;
        s = w->clean.data;
        n = w->clean.len;
    }
    size_t at = skip_inert(w->table, s, n), done = 0; /* w->out holds s[0..done) */
    if (at < n) {
        km_buf_clear(&w->out);
        while (at < n) {
            size_t start = span_start(w, s, done, at);
            int len;
            while (at < n && w->table[uni_get(s + at, &len)] & UNI_NFC)
                at += (size_t)len;
            km_buf_put(&w->out, s + done, start - done);
            if (put_span(w, s + start, at - start))
                return KM_ENOMEM;
            done = at;
            at += skip_inert(w->table, s + at, n - at);
        }
        km_buf_put(&w->out, s + done, n - done);
        if (!km_buf_ok(&w->out))
            return KM_ENOMEM;
        s = w->out.data;
        n = w->out.len;
    }
    *text = s;
    *size = n;
    return 0;
}

void nfc_free(struct nfc *w)
{
    km_buf_free(&w->clean);
    km_buf_free(&w->out);
    km_free(w->span);
}
