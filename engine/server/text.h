/* The text of a choice, built from the bytes of its tokens, and its stop strings.
 *
 * A `txt` is the growing text of one choice. A `txt_stops` is the set of a request's stop strings. All choices of the
 * request share it, and it must outlive them.
 *
 * A token may end inside a character, so bytes are joined to whole characters first. Text that may be the prefix of a
 * stop string is held back until the match is decided. All other text may be shown to the client at once.
 *
 * Invariant: the shown text is a prefix of the final text. The final text does not depend on the boundaries of the
 * tokens. It ends at the stop string that is complete first; of several that are complete at the same byte, at the
 * longest. */
#ifndef SRV_TEXT_H
#define SRV_TEXT_H

#include "base/buf.h"
#include "base/err.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { TXT_MAX_STOPS = 4 };

struct txt_stops {
    struct {
        const char *s; /* borrowed; UTF-8, not empty */
        int len;       /* bytes */
        int *failure;  /* [len] failure function of Knuth, Morris and Pratt */
    } v[TXT_MAX_STOPS];
    int n;
    bool include; /* the stop string stays in the text */
};

int txt_stops_init(struct txt_stops *s, const char *const *strings, int n, bool include, struct km_err *err);
void txt_stops_free(struct txt_stops *s);

struct txt {
    const struct txt_stops *stops; /* NULL: none */
    struct km_buf text;            /* the whole text, including the part that is held back */
    size_t shown;                  /* text[0, shown) was returned by txt_show */
    char tail[4];                  /* [n_tail] the first bytes of a character that is not complete */
    int n_tail;
    int matched[TXT_MAX_STOPS]; /* for each stop string, the number of its first bytes with which the text ends */
    int stopped_by;             /* index of the stop string that ended the text; -1: none */
};

void txt_init(struct txt *t, const struct txt_stops *stops);
void txt_free(struct txt *t);

/* Appends the bytes of a token. match_stops false: stop strings are not searched for (before min_tokens).
 * Returns false if a stop string has ended the text; the bytes after it are dropped. */
bool txt_push(struct txt *t, const char *bytes, size_t n, bool match_stops);
/* Ends the text: an incomplete character becomes U+FFFD, and no text is held back any more. */
void txt_end(struct txt *t);
/* Sets *from and *n to the text that may be shown and was not shown before, text.data[*from, *from + *n). The next call
 * continues after it. */
void txt_show(struct txt *t, size_t *from, size_t *n);

#endif
