/* Normalization of text to valid UTF-8 in NFC. Text that is already normalized is not copied. */
#ifndef TOK_NORMALIZE_H
#define TOK_NORMALIZE_H

#include "base/buf.h"

#include <stddef.h>
#include <stdint.h>

/* Working memory of one encode call. Start with zeros and the table; free with nfc_free. */
struct nfc {
    const uint8_t *table; /* uni_table, borrowed */
    struct km_buf clean;  /* the text with U+FFFD for its ill-formed bytes */
    struct km_buf out;    /* the normalized text */
    int32_t *span;        /* [cap] code points of the current span */
    size_t cap;
};

/* Replaces the text s[n] by its normalized text, which is the same memory or a buffer of w that is valid until the next
 * call. The only error is KM_ENOMEM. */
int nfc_run(struct nfc *w, const char **s, size_t *n);
void nfc_free(struct nfc *w);

#endif
