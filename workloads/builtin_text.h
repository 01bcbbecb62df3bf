/* English-looking text without a book: sentences from a seeded grammar, for machines that have no text file. */
#ifndef WL_BUILTIN_TEXT_H
#define WL_BUILTIN_TEXT_H

#include "base/buf.h"
#include "base/err.h"

#include <stddef.h>
#include <stdint.h>

/* Appends about `bytes` bytes of text. For one seed, a shorter text is a prefix of a longer one. */
int wl_builtin_text(uint64_t seed, size_t bytes, struct km_buf *out, struct km_err *err);

#endif
