/* The prefix index: which page holds the KV of which beginning of a token sequence.
 *
 * A key stands for a whole beginning, not for a block: SHA-256 over the parent's key and the block's token ids,
 * the root over the cache salt. So equal keys mean equal tokens, positions and salt all the way from the start,
 * and finding the longest shared beginning is a walk that stops at the first key nobody has.
 *
 * Invariant: a key names at most one page and a page has at most one key; only full, computed pages are
 * published; a page's key is forgotten before the page is written again. */
#ifndef PX_PREFIX_H
#define PX_PREFIX_H

#include "base/err.h"
#include "base/hash.h"

#include <stdbool.h>
#include <stdint.h>

struct px;

int px_new(struct px **out, int n_pages, int block_size, struct km_err *err);
void px_free(struct px *x);

struct km_digest px_root_key(struct px *x, const char *salt); /* NULL and "" are different salts */
struct km_digest px_child_key(struct px *x, const struct km_digest *parent, const int32_t *tokens /* [block_size] */);

int32_t px_find(const struct px *x, const struct km_digest *key); /* -1: nobody */
/* False when the key is taken: the first page keeps it, the other one stays nameless. */
bool px_publish(struct px *x, const struct km_digest *key, int32_t page);
void px_forget(struct px *x, int32_t page); /* fine for a page without a key */
bool px_has(const struct px *x, int32_t page);

/* Walks the table: 0, or the first broken invariant. */
int px_check(const struct px *x, struct km_err *err);

#endif
