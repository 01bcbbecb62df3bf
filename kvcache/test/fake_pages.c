#include "kvcache/test/fake_pages.h"

#include "base/clock.h"
#include "base/mem.h"
#include "base/page_sum.h"
#include "base/random.h"

#include <stdlib.h>
#include <string.h>

static void flip(void *at)
{
    *(uint8_t *)at ^= 16;
}

static uint64_t page_sum(const struct fake_pages *f, const struct kv_copy *c)
{
    return km_page_sum((const uint64_t *)(f->pages + (size_t)c->page * f->geom.page_bytes), f->geom.page_bytes / 8,
                       (uint32_t)f->geom.head_dim * 2 / 8, FAKE_B, (uint32_t)c->n_tokens, c->seed);
}

static void move_page(struct fake_pages *f, enum kv_dir dir, struct kv_copy *c)
{
    uint8_t *page = fake_pages_at(f, c->page);
    void *from = dir == KV_TO_HOST ? page : c->host, *to = dir == KV_TO_HOST ? c->host : page;
    enum fake_flip now = f->flip_dir == dir && f->flip_at && !--f->flip_at ? f->flip : FAKE_NO_FLIP;
    if (dir == KV_TO_PAGE && !f->writable[c->page])
        f->violations++;
    if (!f->copier.payload) {
        c->sum = 0;
        return;
    }
    if (now == FAKE_FLIP_BEFORE)
        flip(from);
    if (dir == KV_TO_HOST)
        c->sum = page_sum(f, c);
    memcpy(to, from, f->geom.page_bytes);
    if (now == FAKE_FLIP_DURING || now == FAKE_FLIP_AFTER)
        flip(to);
    if (dir == KV_TO_PAGE)
        c->sum = page_sum(f, c);
}

static int64_t clock_now(const struct fake_pages *f)
{
    return f->copier.threads ? km_now_ns() : f->clock;
}

static int64_t fake_now(void *self)
{
    struct fake_pages *f = self;
    pthread_mutex_lock(&f->lock);
    int64_t t = clock_now(f);
    pthread_mutex_unlock(&f->lock);
    return t;
}

/* Starts the copies of one direction whose fence has passed, in order, and completes those that are due. */
static void run_lane(struct fake_pages *f, enum kv_dir dir)
{
    const int64_t now = clock_now(f);
    for (int i = 0; i < f->n[dir] && !f->hold; i++) {
        struct fake_copy *c = &f->copy[dir][(f->head[dir] + i) % (FAKE_COPIES + 1)];
        if (c->state)
            continue;
        if (c->after > f->step)
            return;
        if (!c->due) {
            int64_t start = f->free_at[dir] > now ? f->free_at[dir] : now;
            c->due = start + (f->rate ? (int64_t)((double)c->n * (double)f->geom.page_bytes * 1e9 / f->rate) : 0);
            f->free_at[dir] = c->due;
        }
        if (c->due > now)
            continue;
        for (int p = 0; p < c->n && !c->fail; p++)
            move_page(f, dir, &c->c[p]);
        c->state = c->fail ? -1 : 1;
    }
}

static int fake_copy(void *self, enum kv_dir dir, struct kv_copy *c, int n, uint64_t after, uint64_t *ticket,
                     struct km_err *err)
{
    struct fake_pages *f = self;
    pthread_mutex_lock(&f->lock);
    int rc = 0;
    if (f->in_flight >= f->limit) {
        f->n_refused++;
        rc = km_fail(err, KM_ELIMIT, "more than %d copies in flight", f->limit);
    } else if (f->fail_copy && !--f->fail_copy)
        rc = km_fail(err, KM_EDEVICE, "the copy fails because the test asked for it");
    else if (n < 1 || n > KV_COPY_MOST)
        rc = km_fail(err, KM_EINVAL, "%d pages", n);
    else {
        *ticket = ++f->next_ticket;
        f->copy[dir][(f->head[dir] + f->n[dir]++) % (FAKE_COPIES + 1)] =
            (struct fake_copy){.ticket = *ticket, .after = after, .c = c, .n = n,
                               .fail = f->fail_poll && !--f->fail_poll};
        f->n_copies++;
        f->n_pages += n;
        f->in_flight++;
        if (f->in_flight > f->most_in_flight)
            f->most_in_flight = f->in_flight;
    }
    pthread_mutex_unlock(&f->lock);
    return rc;
}

static int fake_poll(void *self, uint64_t ticket)
{
    struct fake_pages *f = self;
    int rc = KM_EINVAL;
    pthread_mutex_lock(&f->lock);
    f->clock += f->poll_ns;
    for (int dir = 0; dir < 2; dir++) {
        run_lane(f, dir);
        for (int i = 0; i < f->n[dir]; i++) {
            struct fake_copy *c = &f->copy[dir][(f->head[dir] + i) % (FAKE_COPIES + 1)];
            if (c->ticket != ticket)
                continue;
            rc = c->state < 0 ? KM_EDEVICE : c->state;
            if (rc) {
                c->ticket = 0;
                f->in_flight--;
            }
        }
        while (f->n[dir] && !f->copy[dir][f->head[dir]].ticket) {
            f->head[dir] = (f->head[dir] + 1) % (FAKE_COPIES + 1);
            f->n[dir]--;
        }
    }
    pthread_mutex_unlock(&f->lock);
    return rc;
}

static int fake_register(void *self, void *p, size_t size, struct km_err *err)
{
    struct fake_pages *f = self;
    (void)p;
    if (f->refuse_register)
        return km_fail(err, KM_EDEVICE, "the device registers nothing because the test asked for it");
    pthread_mutex_lock(&f->lock);
    f->registered += (int64_t)size;
    pthread_mutex_unlock(&f->lock);
    return 0;
}

static void fake_unregister(void *self, void *p, size_t size)
{
    struct fake_pages *f = self;
    (void)p;
    pthread_mutex_lock(&f->lock);
    f->registered -= (int64_t)size;
    pthread_mutex_unlock(&f->lock);
}

void fake_pages_open(struct fake_pages *f, bool threads, bool payload)
{
    *f = (struct fake_pages){.geom = {.n_layers = 2, .n_kv_heads = 1, .head_dim = 4, .block_size = FAKE_B,
                                .dtype = KM_BF16, .layout = 1, .page_bytes = 2 * 2 * 1 * FAKE_B * 4 * 2,
                                .n_pages = FAKE_PAGES, .rope_theta = 1e6, .model = {{7}}, .numerics = "fake"},
                       .copier = {.copy = fake_copy, .poll = fake_poll, .host_register = fake_register,
                                  .host_unregister = fake_unregister, .now = fake_now, .threads = threads,
                                  .payload = payload},
                       .limit = FAKE_COPIES, .poll_ns = 1000, .clock = 1};
    f->copier.self = f;
    pthread_mutex_init(&f->lock, NULL);
    f->pages = calloc(FAKE_PAGES, f->geom.page_bytes);
    f->writable = calloc(FAKE_PAGES, sizeof *f->writable);
}

void fake_pages_close(struct fake_pages *f)
{
    pthread_mutex_destroy(&f->lock);
    free(f->pages);
    free(f->writable);
}

/* The hash of the tokens before the block, and the salt. */
static uint64_t prefix_hash(const char *salt, const int32_t *tokens, int n)
{
    uint64_t h = 1;
    for (; salt && *salt; salt++)
        h = km_mix64(h ^ (uint8_t)*salt);
    for (int i = 0; i < n; i++)
        h = km_mix64(h ^ ((uint64_t)tokens[i] + 1000));
    return h;
}

/* Calls visit for each 64-bit word of the block's valid tokens, with the value that the word must have. */
static bool each_word(struct fake_pages *f, int page, const char *salt, const int32_t *tokens, int n, int block,
                      bool (*visit)(uint8_t *at, uint64_t want))
{
    const int words = f->geom.head_dim * 2 / 8, first = block * FAKE_B, valid = n - first < FAKE_B ? n - first : FAKE_B;
    uint64_t h[FAKE_B];
    h[0] = prefix_hash(salt, tokens, first + 1);
    for (int t = 1; t < valid; t++)
        h[t] = km_mix64(h[t - 1] ^ ((uint64_t)tokens[first + t] + 1000));
    for (int group = 0; group < f->geom.n_layers * 2; group++)
        for (int t = 0; t < valid; t++)
            for (int w = 0; w < words; w++) {
                const int i = (group * FAKE_B + t) * words + w;
                if (!visit(fake_pages_at(f, page) + 8 * i, km_mix64(h[t] ^ (uint64_t)i)))
                    return false;
            }
    return true;
}

static bool put_word(uint8_t *at, uint64_t want)
{
    memcpy(at, &want, sizeof want);
    return true;
}

static bool same_word(uint8_t *at, uint64_t want)
{
    return !memcmp(at, &want, sizeof want);
}

void fake_pages_fill(struct fake_pages *f, int page, const char *salt, const int32_t *tokens, int n, int block)
{
    each_word(f, page, salt, tokens, n, block, put_word);
}

bool fake_pages_holds(struct fake_pages *f, int page, const char *salt, const int32_t *tokens, int n, int block)
{
    return each_word(f, page, salt, tokens, n, block, same_word);
}

void fake_pages_wipe(struct fake_pages *f, int page)
{
    memset(fake_pages_at(f, page), 0xEE, f->geom.page_bytes);
}

bool fake_pages_wiped(struct fake_pages *f, int page)
{
    for (size_t i = 0; i < f->geom.page_bytes; i++)
        if (fake_pages_at(f, page)[i] != 0xEE)
            return false;
    return true;
}
