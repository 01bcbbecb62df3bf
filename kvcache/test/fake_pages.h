/* A KV pool and a copier for tests without an engine.
 *
 * A copy completes within its call, or after `delay` polls of its ticket. Tests can make a call or a ticket fail. A
 * delayed copy moves its bytes only in the poll that reports it complete, so code that reads too early reads wrong
 * bytes. */
#ifndef KVC_TEST_FAKE_PAGES_H
#define KVC_TEST_FAKE_PAGES_H

#include "kvcache/internal.h"

enum { FAKE_B = 16, FAKE_PAGES = 512, FAKE_COPIES = 64 };

struct fake_pages {
    struct kv_geom geom;
    struct kv_copier copier;
    uint8_t *pages;            /* [FAKE_PAGES][page_bytes] */
    int delay;                 /* polls until a copy is complete; 0: complete at once, ticket 0 */
    int fail_copy, fail_poll;  /* n: the n-th call of copy from now fails (1: the next), or its ticket; 0: none */
    int fail_alloc;            /* n: the n-th host_alloc from now fails; 0: none */
    int64_t held;              /* bytes that host_alloc returned and that are not freed */
    int n_copies, n_pages;     /* calls of copy, pages in them */
    int in_flight;             /* copies that are not complete */
    uint64_t next_ticket;
    struct {
        uint64_t ticket;         /* 0: the entry is free */
        int polls;               /* polls until the copy is complete */
        bool fail;
        enum kv_dir dir;
        const struct kv_copy *c; /* [n] */
        int n;
    } copies[FAKE_COPIES];
};

void fake_pages_open(struct fake_pages *f);
void fake_pages_close(struct fake_pages *f);
static inline uint8_t *fake_pages_at(struct fake_pages *f, int page)
{
    return f->pages + (size_t)page * f->geom.page_bytes;
}

/* Writes the KV of block `block` to a page. Like real KV, the bytes depend on the salt and on all tokens up to the
 * block's end. */
void fake_pages_fill(struct fake_pages *f, int page, const char *salt, const int32_t *tokens, int block);
/* True if the page holds what fake_pages_fill writes for the same arguments. */
bool fake_pages_holds(struct fake_pages *f, int page, const char *salt, const int32_t *tokens, int block);
/* Fills a page with bytes that no block has; true if a page still holds them. */
void fake_pages_wipe(struct fake_pages *f, int page);
bool fake_pages_wiped(struct fake_pages *f, int page);

#endif
