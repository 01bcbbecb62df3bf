/* Normalization: text becomes valid UTF-8 in NFC. Text that is so already is not copied. */
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

/* Sets *s and *n to the normalized text: the same text, or memory of w that is valid until the next call. The only
 * error is KM_ENOMEM. */
int nfc_run(struct nfc *w, const char **s, size_t *n);
void nfc_free(struct nfc *w);

#endif
