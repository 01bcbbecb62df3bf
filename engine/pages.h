/* The page pool: which pages of the backend's KV pool are in use, and which page is reused next.
 *
 * `struct pg_pool` counts two kinds of users of a page: references by sequences, and holds by transfers (loads and
 * stores of the cache layer). A page is in one of three states: in use; on the free list, if its content is of no use;
 * or on the LRU list, if it has no user but the prefix index can still find it. pg_alloc returns a page of the free
 * list, or else the oldest page of the LRU list. Sequences free their pages from the last to the first, so the end of a
 * sequence is evicted before its start. The pool knows no tokens or keys.
 *
 * Invariant: refs + holds > 0 if and only if the page is on no list. An unused page is on the LRU list if it is
 * `keyed`, else on the free list. */
#ifndef PG_PAGES_H
#define PG_PAGES_H

#include "base/err.h"

#include <stdbool.h>
#include <stdint.h>

struct pg_pool;

struct pg_counts {
    int pages;         /* all pages */
    int free, lru;     /* pages on the two lists */
    int transfer_only; /* pages with holds and no references: they become free when the transfers end */
};

int pg_new(struct pg_pool **out, int n_pages, struct km_err *err);
void pg_free(struct pg_pool *p);

/* Returns a page with one reference, or -1 if all are in use. If the page is keyed, the caller must remove it from the
 * prefix index. */
int32_t pg_alloc(struct pg_pool *p);
/* Add and drop a sequence's reference to the page. */
void pg_ref(struct pg_pool *p, int32_t page);
void pg_unref(struct pg_pool *p, int32_t page);
/* Add and drop a transfer's hold on the page. A page must have a reference when it gets a hold. */
void pg_hold(struct pg_pool *p, int32_t page);
void pg_release(struct pg_pool *p, int32_t page);

/* Records whether the page is keyed: the prefix index has a key for it. */
void pg_set_keyed(struct pg_pool *p, int32_t page, bool keyed);
bool pg_keyed(const struct pg_pool *p, int32_t page);

int pg_refs(const struct pg_pool *p, int32_t page);
int pg_holds(const struct pg_pool *p, int32_t page);
int pg_available(const struct pg_pool *p);  /* pages that pg_alloc could return now */
int32_t pg_oldest(const struct pg_pool *p); /* the keyed page that would be evicted first; -1: none */
struct pg_counts pg_counts(const struct pg_pool *p);

/* Walks lists and pages: 0, or KM_EINVAL and the first broken invariant. */
int pg_check(const struct pg_pool *p, struct km_err *err);

#endif
