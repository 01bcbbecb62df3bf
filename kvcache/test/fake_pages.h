/* Pages and a copier for tests without an engine: at once or late, failing on demand. A late copy moves its bytes
 * only when its ticket is polled complete, so that whoever reads too early reads the wrong ones. */
#ifndef KVC_TEST_FAKE_PAGES_H
#define KVC_TEST_FAKE_PAGES_H

#include "kvcache/internal.h"

enum { FAKE_B = 16, FAKE_PAGES = 512, FAKE_LATE = 64 };

struct fake {
    struct kv_geom geom;
    struct kv_copier copier;
    uint8_t *pages;            /* [FAKE_PAGES][page_bytes] */
    int delay;                 /* polls until a copy is done; 0: at once, ticket 0 */
    int fail_copy, fail_poll;  /* the n-th copy call from now fails (1 = the next), or its ticket does; 0: none */
    int fail_alloc;            /* likewise for host_alloc */
    int64_t held;              /* bytes given by host_alloc */
    int n_copies, n_pieces, in_flight;
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

/* What KV of tokens[0, (block + 1) * B) under this salt looks like: a function of everything before its end. */
void fake_fill(struct fake *f, int page, const char *salt, const int32_t *tokens, int block);
bool fake_holds(struct fake *f, int page, const char *salt, const int32_t *tokens, int block);
void fake_wipe(struct fake *f, int page);
bool fake_wiped(struct fake *f, int page);

#endif
