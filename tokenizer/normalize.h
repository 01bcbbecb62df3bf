/* Text to valid UTF-8 in NFC, copied only when it is not that already. */
#ifndef TOK_NORMALIZE_H
#define TOK_NORMALIZE_H

#include "base/buf.h"

#include <stddef.h>
#include <stdint.h>

/* Scratch of one encode call; zero-initialise, set table, end with nfc_free. */
struct nfc {
    const uint8_t *table; /* uni_table, borrowed */
    struct km_buf clean;  /* the text with its ill-formed bytes replaced */
    struct km_buf out;
    int32_t *span; /* [cap] code points */
    size_t cap;
};

/* Replaces *s, *n by the normalized text: the same pointer, or memory of w that the next call reuses.
 * 0 or KM_ENOMEM. */
int nfc_run(struct nfc *w, const char **s, size_t *n);
void nfc_free(struct nfc *w);

#endif
