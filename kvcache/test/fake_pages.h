/* A KV pool and a copier for tests without an engine: a fake device with a DMA engine for each direction.
 *
 * Copies of one direction run in the order of submission, at a rate, behind their fence. Their bytes move in the call
 * of poll that finds them complete, and not before, so code that reads too early reads wrong bytes. With `threads` the
 * device has the machine's clock. Without, it has a clock of its own that advances with each poll, so that tests are
 * repeatable. Tests can make calls or tickets fail, flip bits, and hold copies back. The copier checks that copies
 * write only to pages that the test allows (`writable`). */
#ifndef KVC_TEST_FAKE_PAGES_H
#define KVC_TEST_FAKE_PAGES_H

#include "kvcache/internal.h"

enum { FAKE_B = 16, FAKE_PAGES = 1024, FAKE_COPIES = 64 };

/* When a bit is flipped: in the source before the copy, in the destination while it is copied, or in the destination
 * after the copy (but before the checksum of a copy to a page, which is computed after the copy). */
enum fake_flip { FAKE_NO_FLIP, FAKE_FLIP_BEFORE, FAKE_FLIP_DURING, FAKE_FLIP_AFTER };

struct fake_copy {
    uint64_t ticket;             /* 0: the entry is free */
    uint64_t after;
    struct kv_copy *c;           /* [n] */
    int n;
    bool fail;
    int64_t due;                 /* 0: not started */
    int state;                   /* 0: in flight, 1: complete, -1: failed */
};

struct fake_pages {
    struct kv_geom geom;
    struct kv_copier copier;
    uint8_t *pages;              /* [FAKE_PAGES][page_bytes] */
    bool *writable;              /* [FAKE_PAGES] */
    pthread_mutex_t lock;
    double rate;                 /* bytes per second of each direction; 0: without limit */
    int64_t clock, poll_ns;      /* the clock without threads; time of one poll */
    uint64_t step;               /* the steps up to this one have ended */
    bool hold;                   /* no copy completes */
    int limit;                   /* most copies in flight */
    int fail_copy, fail_poll;    /* n: the n-th call of copy from now fails (1: the next), or its ticket; 0: none */
    enum fake_flip flip;
    enum kv_dir flip_dir;
    int flip_at;                 /* the n-th page of this direction from now (1: the next) */
    int n_copies, n_pages;       /* calls of copy, pages in them */
    int n_refused;               /* calls that returned KM_ELIMIT */
    int in_flight, most_in_flight;
    int violations;              /* copies to pages that are not writable */
    int64_t registered;          /* bytes of host memory */
    bool refuse_register;
    uint64_t next_ticket;
    int64_t free_at[2];          /* by direction: when the copies started so far are complete */
    struct fake_copy copy[2][FAKE_COPIES + 1]; /* by direction: a ring */
    int head[2], n[2];
};

/* A device of FAKE_PAGES pages; `threads` and `payload` as in struct kv_copier. */
void fake_pages_open(struct fake_pages *f, bool threads, bool payload);
void fake_pages_close(struct fake_pages *f);
static inline uint8_t *fake_pages_at(struct fake_pages *f, int page)
{
    return f->pages + (size_t)page * f->geom.page_bytes;
}

/* Writes the KV of block `block` to a page. Like real KV, the bytes depend on the salt and on all tokens up to the
 * block's end; n: tokens of the sequence, of which the last block may have fewer than FAKE_B. */
void fake_pages_fill(struct fake_pages *f, int page, const char *salt, const int32_t *tokens, int n, int block);
/* True if the page holds what fake_pages_fill writes for the same arguments, as far as its tokens are concerned. */
bool fake_pages_holds(struct fake_pages *f, int page, const char *salt, const int32_t *tokens, int n, int block);
/* Fills a page with bytes that no block has; true if a page still holds them. */
void fake_pages_wipe(struct fake_pages *f, int page);
bool fake_pages_wiped(struct fake_pages *f, int page);

#endif
