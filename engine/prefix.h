/* The prefix index finds the page that holds the KV of a block of tokens, given all tokens before it.
 *
 * A key identifies a whole prefix, not one block: it is the SHA-256 of the parent's key and the block's token ids. The
 * root key is the SHA-256 of the cache salt. Equal keys therefore mean equal salts and equal prefixes. The longest
 * cached prefix is found by looking up the keys block by block until one is missing.
 *
 * Invariant: a key has at most one page, and a page at most one key. Only full, computed pages are published. The key
 * of a page is removed before the page is written again. */
#ifndef PX_PREFIX_H
#define PX_PREFIX_H

#include "base/err.h"
#include "base/hash.h"

#include <stdbool.h>
#include <stdint.h>

struct px;

int px_new(struct px **out, int n_pages, int block_size, struct km_err *err);
void px_free(struct px *x);

struct km_digest px_root_key(struct px *x, const char *salt); /* NULL and "" differ */
struct km_digest px_child_key(struct px *x, const struct km_digest *parent, const int32_t *tokens /* [block_size] */);

int32_t px_find(const struct px *x, const struct km_digest *key); /* the page with this key; -1: none */
/* Adds the page under the key. False if the key has a page or the page has a key already; nothing changes then. */
bool px_publish(struct px *x, const struct km_digest *key, int32_t page);
void px_forget(struct px *x, int32_t page); /* removes the page's key, if it has one */
bool px_has(const struct px *x, int32_t page); /* the page has a key */

/* Walks the hash table: 0, or KM_EINVAL and the first broken invariant. */
int px_check(const struct px *x, struct km_err *err);

#endif
