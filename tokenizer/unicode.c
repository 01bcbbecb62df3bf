/* The table as one byte per code point: 1.1 MB, of which a text uses a few cache lines. */
#include "tokenizer/unicode.h"

#include "base/mem.h"
#include "tokenizer/unicode_table.h"

#include <string.h>

uint8_t *uni_table(void)
{
    uint8_t *t = km_calloc(UNI_MAX, 1);
    if (!t)
        return NULL;
    const size_t n = sizeof runs / sizeof *runs;
    for (size_t i = 0; i < n; i++) {
        uint32_t from = runs[i] >> 4, to = i + 1 < n ? runs[i + 1] >> 4 : UNI_MAX;
        memset(t + from, runs[i] & 15, to - from);
    }
    return t;
}

int uni_put(uint32_t c, char out[4])
{
    if (c < 0x80) {
        out[0] = (char)c;
        return 1;
    }
    int len = c < 0x800 ? 2 : c < 0x10000 ? 3 : 4;
    for (int i = len - 1; i > 0; i--, c >>= 6)
        out[i] = (char)(0x80 | (c & 0x3F));
    out[0] = (char)((0xF00 >> len) | c);
    return len;
}

size_t uni_valid(const char *s, size_t n)
{
    size_t i = 0;
    while (i < n) {
        uint64_t w;
        if (n - i >= 8 && (memcpy(&w, s + i, 8), !(w & 0x8080808080808080u))) {
            i += 8;
            continue;
        }
        int len = km_utf8_len(s + i, n - i, NULL);
        if (!len)
            return i;
        i += (size_t)len;
    }
    return n;
}

/* The length of the ill-formed part at s: the longest incomplete but valid start of a sequence, or one byte. */
static size_t ill_formed_len(const char *s, size_t n)
{
    size_t len = 1;
    for (size_t k = 1; k <= 3 && k <= n; k++) {
        int need;
        km_utf8_len(s, k, &need);
        if (!need)
            break;
        len = k;
    }
    return len;
}

void uni_lossy(struct km_buf *out, const char *s, size_t n)
{
    for (size_t i = 0; i < n;) {
        size_t good = uni_valid(s + i, n - i);
        km_buf_put(out, s + i, good);
        i += good;
        if (i < n) {
            km_buf_puts(out, "\xEF\xBF\xBD");
            i += ill_formed_len(s + i, n - i);
        }
    }
}
