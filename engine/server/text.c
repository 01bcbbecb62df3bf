/* Stop strings are matched by the Knuth-Morris-Pratt algorithm, one step for each byte and stop string. The state of a
 * match is the number of bytes that the end of the text shares with the start of the stop string. Exactly these bytes
 * must be held back. */
#include "engine/server/text.h"

#include "base/mem.h"

#include <string.h>

int txt_stops_init(struct txt_stops *s, const char *const *strings, int n, bool include, struct km_err *err)
{
    memset(s, 0, sizeof *s);
    s->include = include;
    for (; s->n < n; s->n++) {
        const char *p = strings[s->n];
        int len = (int)strlen(p);
        int *failure = km_reallocarray(NULL, (size_t)len, sizeof *failure);
        if (!failure) {
            txt_stops_free(s);
            return km_fail(err, KM_ENOMEM, "the server has no memory for the stop strings; try again later");
        }
        failure[0] = 0;
        for (int i = 1, k = 0; i < len; i++) {
            while (k && p[i] != p[k])
                k = failure[k - 1];
            k += p[i] == p[k];
            failure[i] = k;
        }
        s->v[s->n].s = p;
        s->v[s->n].len = len;
        s->v[s->n].failure = failure;
    }
    return 0;
}

void txt_stops_free(struct txt_stops *s)
{
    for (int i = 0; i < s->n; i++)
        km_free(s->v[i].failure);
    s->n = 0;
}

void txt_init(struct txt *t, const struct txt_stops *stops)
{
    memset(t, 0, sizeof *t);
    t->stops = stops;
    t->stopped_by = -1;
}

void txt_free(struct txt *t)
{
    km_buf_free(&t->text);
}

/* Drops the stop string from the end of the text. */
static void cut_stop(struct txt *t, size_t len)
{
    if (t->text.len < len)
        return; /* out of memory: the text lacks bytes */
    t->text.len -= len;
    t->text.data[t->text.len] = 0;
}

/* Appends one or more whole characters. Returns true if a stop string is complete. */
static bool append(struct txt *t, const char *s, size_t n, bool match_stops)
{
    const struct txt_stops *st = t->stops;
    if (!st || !st->n || !match_stops) {
        km_buf_put(&t->text, s, n);
        return false;
    }
    for (size_t i = 0; i < n; i++) {
        int longest = 0;
        for (int k = 0; k < st->n; k++) {
            int at = t->matched[k];
            while (at && st->v[k].s[at] != s[i])
                at = st->v[k].failure[at - 1];
            at += st->v[k].s[at] == s[i];
            t->matched[k] = at;
            if (at == st->v[k].len && at > longest) {
                longest = at;
                t->stopped_by = k;
            }
        }
        if (longest) {
            km_buf_put(&t->text, s, i + 1);
            if (!st->include)
                cut_stop(t, (size_t)longest);
            return true;
        }
    }
    km_buf_put(&t->text, s, n);
    return false;
}

bool txt_push(struct txt *t, const char *bytes, size_t n, bool match_stops)
{
    if (t->stopped_by >= 0)
        return false;
    for (size_t i = 0; i < n;) {
        t->tail[t->n_tail++] = bytes[i++];
        int need, len = km_utf8_len(t->tail, (size_t)t->n_tail, &need);
        if (need)
            continue;
        /* Not a character. As in Rust's from_utf8_lossy, the bytes that could have begun one become one U+FFFD, and
         * the byte that did not fit is read again. A byte that cannot begin a character becomes U+FFFD alone. */
        if (!len && t->n_tail > 1)
            i--;
        t->n_tail = 0;
        if (len ? append(t, t->tail, (size_t)len, match_stops) : append(t, "\xef\xbf\xbd", 3, match_stops))
            return false;
    }
    return true;
}

void txt_end(struct txt *t)
{
    if (t->n_tail && t->stopped_by < 0)
        append(t, "\xef\xbf\xbd", 3, false);
    t->n_tail = 0;
    memset(t->matched, 0, sizeof t->matched);
}

void txt_show(struct txt *t, size_t *from, size_t *n)
{
    int held = 0;
    if (t->stopped_by < 0 && t->stops)
        for (int k = 0; k < t->stops->n; k++)
            held = t->matched[k] > held ? t->matched[k] : held;
    if (t->stops && t->stops->include)
        held = 0;
    size_t end = t->text.len - (size_t)held;
    *from = t->shown;
    *n = end > t->shown ? end - t->shown : 0;
    t->shown += *n;
}
