/* A KV pool and a copier for tests without an engine.
 *
 * A copy completes within its call, or after `delay` polls of its ticket; calls and tickets fail on demand. A delayed
 * copy moves its bytes only in the poll that reports it complete, so code that reads too early reads wrong bytes. */
#ifndef KVC_TEST_FAKE_PAGES_H
#define KVC_TEST_FAKE_PAGES_H

#include "kvcache/internal.h"

enum { FAKE_B = 16, FAKE_PAGES = 512, FAKE_LATE = 64 };

struct fake {
    struct kv_geom geom;
    struct kv_copier copier;
    uint8_t *pages;            /* [FAKE_PAGES][page_bytes] */
    int delay;                 /* polls until a copy is complete; 0: complete at once, ticket 0 */
    int fail_copy, fail_poll;  /* n: the n-th copy call from now fails (1: the next), or its ticket does; 0: none */
    int fail_alloc;            /* n: the n-th host_alloc from now fails; 0: none */
    int64_t held;              /* bytes of host_alloc that were not freed */
    int n_copies, n_pages;     /* calls of copy, pages in them */
    int in_flight;             /* copies that are not complete */
    uint64_t next_ticket;
    struct {
        uint64_t ticket;
        int left, n;
        bool fail;
        enum kv_dir dir;
        const struct kv_copy *c;
    } late[FAKE_LATE];
};

void fake_open(struct fake *f);
void fake_close(struct fake *f);
static inline uint8_t *fake_page(struct fake *f, int page)
{
    return f->pages + (size_t)page * f->geom.page_bytes;
}

/* Writes the KV of block `block` to a page. Like real KV, the bytes depend on the salt and on all tokens up to the
 * block's end. */
void fake_fill(struct fake *f, int page, const char *salt, const int32_t *tokens, int block);
/* True if the page holds what fake_fill writes for the same arguments. */
bool fake_holds(struct fake *f, int page, const char *salt, const int32_t *tokens, int block);
/* Fills a page with bytes that no block has; true if a page still holds them. */
void fake_wipe(struct fake *f, int page);
bool fake_wiped(struct fake *f, int page);

#endif
