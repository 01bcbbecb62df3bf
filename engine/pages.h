/* The page pool: who holds which page of the backend's KV, and which page goes next.
 *
 * A page is in one of three places: in use (a sequence refers to it or a transfer holds it), on the free list
 * (nothing worth keeping), or on the LRU list (nobody uses it, but the prefix index can still find it). Taking
 * a page prefers the free list and then the LRU's oldest end. Sequences let go of their pages tail first, so
 * that among pages freed together the end of a sequence is evicted before its head.
 *
 * Invariant: refs + holds > 0 if and only if the page is on no list; `keyed` pages without users are on the LRU
 * list, all others without users on the free list. The pool knows nothing of tokens or keys. */
#ifndef PG_PAGES_H
#define PG_PAGES_H

#include "base/err.h"

#include <stdbool.h>
#include <stdint.h>

struct pg_pool;

struct pg_counts {
    int pages;     /* all */
    int free, lru; /* on the lists */
    int transfer_only; /* held by transfers alone: free as soon as those end */
};

int pg_new(struct pg_pool **out, int n_pages, struct km_err *err);
void pg_free(struct pg_pool *p);

/* A page with one reference, or -1. It may have been keyed: the caller makes the prefix index forget it. */
int32_t pg_alloc(struct pg_pool *p);
void pg_ref(struct pg_pool *p, int32_t page);     /* a sequence shares it */
void pg_unref(struct pg_pool *p, int32_t page);
void pg_hold(struct pg_pool *p, int32_t page);    /* a transfer reads or writes it */
void pg_release(struct pg_pool *p, int32_t page);

/* Whether the prefix index names the page. */
void pg_set_keyed(struct pg_pool *p, int32_t page, bool keyed);
bool pg_keyed(const struct pg_pool *p, int32_t page);

int pg_refs(const struct pg_pool *p, int32_t page);
int pg_holds(const struct pg_pool *p, int32_t page);
int pg_available(const struct pg_pool *p);       /* how often pg_alloc would succeed now */
int32_t pg_oldest(const struct pg_pool *p);      /* the keyed page that would be evicted first; -1 */
struct pg_counts pg_counts(const struct pg_pool *p);

/* Walks lists and pages: 0, or the first broken invariant. */
int pg_check(const struct pg_pool *p, struct km_err *err);

#endif
