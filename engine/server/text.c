/* One automaton step per byte and stop string. The state of the automaton is the length of the longest end of
 * the text that begins a stop string, which is exactly what must be held back. */
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
        int *fall = km_reallocarray(NULL, (size_t)len, sizeof *fall);
        if (!fall) {
            txt_stops_free(s);
            return km_fail(err, KM_ENOMEM, "out of memory for the stop strings");
        }
        fall[0] = 0;
        for (int i = 1, k = 0; i < len; i++) {
            while (k && p[i] != p[k])
                k = fall[k - 1];
            k += p[i] == p[k];
            fall[i] = k;
        }
        s->v[s->n].s = p;
        s->v[s->n].len = len;
        s->v[s->n].fall = fall;
    }
    return 0;
}

void txt_stops_free(struct txt_stops *s)
{
    for (int i = 0; i < s->n; i++)
        km_free(s->v[i].fall);
    s->n = 0;
}

void txt_init(struct txt *t, const struct txt_stops *stops)
{
    memset(t, 0, sizeof *t);
    t->stops = stops;
    t->hit = -1;
}

void txt_free(struct txt *t)
{
    km_buf_free(&t->text);
}

/* Adds whole characters; true when a stop string is complete. */
static bool add(struct txt *t, const char *s, size_t n, bool armed)
{
    const struct txt_stops *st = t->stops;
    if (!st || !st->n || !armed) {
        km_buf_put(&t->text, s, n);
        return false;
    }
    for (size_t i = 0; i < n; i++) {
        int longest = 0;
        for (int k = 0; k < st->n; k++) {
            int at = t->at[k];
            while (at && st->v[k].s[at] != s[i])
                at = st->v[k].fall[at - 1];
            at += st->v[k].s[at] == s[i];
            t->at[k] = at;
            if (at == st->v[k].len && at > longest) {
                longest = at;
                t->hit = k;
            }
        }
        if (longest) {
            km_buf_put(&t->text, s, i + 1);
            if (!st->include && t->text.len >= (size_t)longest) {
                t->text.len -= (size_t)longest;
                t->text.data[t->text.len] = 0;
            }
            return true;
        }
    }
    km_buf_put(&t->text, s, n);
    return false;
}

bool txt_push(struct txt *t, const char *bytes, size_t n, bool armed)
{
    if (t->hit >= 0)
        return false;
    for (size_t i = 0; i < n;) {
        t->tail[t->n_tail++] = bytes[i++];
        int need, len = km_utf8_len(t->tail, (size_t)t->n_tail, &need);
        if (need)
            continue;
        /* Not a character: the beginning of one becomes U+FFFD and its last byte is looked at afresh, as
         * Rust's from_utf8_lossy does it; so does a byte that begins nothing. */
        if (!len && t->n_tail > 1)
            i--;
        t->n_tail = 0;
        if (len ? add(t, t->tail, (size_t)len, armed) : add(t, "\xef\xbf\xbd", 3, armed))
            return false;
    }
    return true;
}

void txt_end(struct txt *t)
{
    if (t->n_tail && t->hit < 0)
        add(t, "\xef\xbf\xbd", 3, false);
    t->n_tail = 0;
    memset(t->at, 0, sizeof t->at);
}

void txt_take(struct txt *t, size_t *from, size_t *n)
{
    int held = 0;
    if (t->hit < 0 && t->stops)
        for (int k = 0; k < t->stops->n; k++)
            held = t->at[k] > held ? t->at[k] : held;
    if (t->stops && t->stops->include)
        held = 0;
    size_t end = t->text.len - (size_t)held;
    *from = t->shown;
    *n = end > t->shown ? end - t->shown : 0;
    t->shown += *n;
}
