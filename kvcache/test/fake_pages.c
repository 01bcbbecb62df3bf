#include "kvcache/test/fake_pages.h"

#include "base/mem.h"
#include "base/random.h"

#include <stdlib.h>
#include <string.h>

static void copy_pages(struct fake_pages *f, enum kv_dir dir, const struct kv_copy *c, int n)
{
    for (int i = 0; i < n; i++) {
        uint8_t *page = fake_pages_at(f, c[i].page);
        memcpy(dir == KV_TO_HOST ? c[i].host : page, dir == KV_TO_HOST ? page : c[i].host, f->geom.page_bytes);
    }
}

static int copy(void *self, enum kv_dir dir, const struct kv_copy *c, int n, uint64_t *ticket, struct km_err *err)
{
    struct fake_pages *f = self;
    f->n_copies++;
    f->n_pages += n;
    *ticket = 0;
    if (f->fail_copy && !--f->fail_copy)
        return km_fail(err, KM_EDEVICE, "the copy fails because the test asked for it");
    bool fails = f->fail_poll && !--f->fail_poll;
    int i = 0;
    while (i < FAKE_COPIES && f->copies[i].ticket)
        i++;
    if (i == FAKE_COPIES)
        return km_fail(err, KM_ELIMIT, "more than %d copies in flight", FAKE_COPIES);
    if (!f->delay && !fails) {
        copy_pages(f, dir, c, n);
        return 0;
    }
    *ticket = ++f->next_ticket;
    f->copies[i].ticket = *ticket;
    f->copies[i].polls = f->delay;
    f->copies[i].n = n;
    f->copies[i].fail = fails;
    f->copies[i].dir = dir;
    f->copies[i].c = c;
    f->in_flight++;
    return 0;
}

static int poll(void *self, uint64_t ticket)
{
    struct fake_pages *f = self;
    for (int i = 0; i < FAKE_COPIES; i++) {
        if (f->copies[i].ticket != ticket)
            continue;
        if (f->copies[i].polls-- > 0)
            return 0;
        if (!f->copies[i].fail)
            copy_pages(f, f->copies[i].dir, f->copies[i].c, f->copies[i].n);
        f->copies[i].ticket = 0;
        f->in_flight--;
        return f->copies[i].fail ? KM_EDEVICE : 1;
    }
    return KM_EINVAL;
}

static void *host_alloc(void *self, size_t size)
{
    struct fake_pages *f = self;
    if (f->fail_alloc && !--f->fail_alloc)
        return NULL;
    void *p = km_malloc(size);
    if (p)
        f->held += (int64_t)size;
    return p;
}

static void host_free(void *self, void *p, size_t size)
{
    struct fake_pages *f = self;
    f->held -= (int64_t)size;
    km_free(p);
}

void fake_pages_open(struct fake_pages *f)
{
    *f = (struct fake_pages){.geom = {.n_layers = 2, .n_kv_heads = 1, .head_dim = 4, .block_size = FAKE_B,
                                .dtype = KM_BF16, .layout = 1, .page_bytes = 2 * 2 * 1 * FAKE_B * 4 * 2,
                                .n_pages = FAKE_PAGES, .rope_theta = 1e6, .model = {{7}}},
                       .copier = {.copy = copy, .poll = poll, .host_alloc = host_alloc, .host_free = host_free}};
    f->copier.self = f;
    f->pages = calloc(FAKE_PAGES, f->geom.page_bytes);
}

void fake_pages_close(struct fake_pages *f)
{
    free(f->pages);
}

static uint64_t mix(uint64_t h, uint64_t v)
{
    return km_mix64(h ^ v);
}

static uint64_t seed_of(const char *salt, const int32_t *tokens, int block)
{
    uint64_t h = 1;
    for (; salt && *salt; salt++)
        h = mix(h, (uint8_t)*salt);
    for (int i = 0; i < (block + 1) * FAKE_B; i++)
        h = mix(h, (uint64_t)tokens[i] + 1000);
    return h;
}

void fake_pages_fill(struct fake_pages *f, int page, const char *salt, const int32_t *tokens, int block)
{
    uint64_t h = seed_of(salt, tokens, block);
    for (size_t i = 0; i < f->geom.page_bytes; i += 8) {
        h = mix(h, i);
        memcpy(fake_pages_at(f, page) + i, &h, 8);
    }
}

bool fake_pages_holds(struct fake_pages *f, int page, const char *salt, const int32_t *tokens, int block)
{
    uint64_t h = seed_of(salt, tokens, block);
    for (size_t i = 0; i < f->geom.page_bytes; i += 8) {
        h = mix(h, i);
        if (memcmp(fake_pages_at(f, page) + i, &h, 8))
            return false;
    }
    return true;
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
