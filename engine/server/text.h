/* Text out of tokens: bytes joined into characters, stop strings found, nothing shown too early.
 *
 * A `txt_stops` is a request's stop strings, shared by its choices; a `txt` is the text of one choice as it
 * grows. The result does not depend on how the bytes were cut into tokens: of all stop strings the one that is
 * complete first ends the text (the longest of them when several are), and the text shown so far is always a
 * prefix of the final text. */
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
        const char *s; /* borrowed, UTF-8, not empty */
        int len;
        int *fall; /* [len]: where matching goes on after a mismatch, as Knuth, Morris and Pratt do it */
    } v[TXT_MAX_STOPS];
    int n;
    bool include; /* the stop string stays in the text */
};

int txt_stops_init(struct txt_stops *s, const char *const *strings, int n, bool include, struct km_err *err);
void txt_stops_free(struct txt_stops *s);

struct txt {
    const struct txt_stops *stops; /* NULL: none */
    struct km_buf text;            /* all of it, the part held back included */
    size_t shown;                  /* text[0, shown) was handed out */
    char tail[4];                  /* [n_tail]: the beginning of a character whose rest has not come */
    int n_tail;
    int at[TXT_MAX_STOPS];         /* bytes of each stop string matched so far */
    int hit;                       /* the stop string that ended it; -1 */
};

void txt_init(struct txt *t, const struct txt_stops *stops);
void txt_free(struct txt *t);

/* Adds bytes. `armed`: stop strings count (they do not before min_tokens). False when one ended the text,
 * which is cut; what was pushed behind it is dropped. */
bool txt_push(struct txt *t, const char *bytes, size_t n, bool armed);
/* No more will come: a cut-off character becomes U+FFFD and nothing is held back any longer. */
void txt_end(struct txt *t);
/* What may be shown and was not yet: text.data + *from, *n bytes; counted as shown. */
void txt_take(struct txt *t, size_t *from, size_t *n);

#endif
