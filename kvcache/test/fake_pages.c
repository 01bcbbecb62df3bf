#include "kvcache/test/fake_pages.h"

#include "base/mem.h"
#include "base/random.h"

#include <stdlib.h>
#include <string.h>

static void copy_pages(struct fake *f, enum kv_dir dir, const struct kv_copy *c, int n)
{
    for (int i = 0; i < n; i++) {
        uint8_t *page = fake_page(f, c[i].page);
        memcpy(dir == KV_TO_HOST ? c[i].host : page, dir == KV_TO_HOST ? page : c[i].host, f->geom.page_bytes);
    }
}

static int copy(void *self, enum kv_dir dir, const struct kv_copy *c, int n, uint64_t *ticket, struct km_err *err)
{
    struct fake *f = self;
    f->n_copies++;
    f->n_pages += n;
    *ticket = 0;
    if (f->fail_copy && !--f->fail_copy)
        return km_fail(err, KM_EDEVICE, "the copy fails because the test asked for it");
    bool fails = f->fail_poll && !--f->fail_poll;
    int i = 0;
    while (i < FAKE_LATE && f->late[i].ticket)
        i++;
    if (i == FAKE_LATE)
        return km_fail(err, KM_ELIMIT, "more than %d copies in flight", FAKE_LATE);
    if (!f->delay && !fails) {
        copy_pages(f, dir, c, n);
        return 0;
    }
    *ticket = ++f->next_ticket;
    f->late[i].ticket = *ticket;
    f->late[i].left = f->delay;
    f->late[i].n = n;
    f->late[i].fail = fails;
    f->late[i].dir = dir;
    f->late[i].c = c;
    f->in_flight++;
    return 0;
}

static int poll(void *self, uint64_t ticket)
{
    struct fake *f = self;
    for (int i = 0; i < FAKE_LATE; i++) {
        if (f->late[i].ticket != ticket)
            continue;
        if (f->late[i].left-- > 0)
            return 0;
        if (!f->late[i].fail)
            copy_pages(f, f->late[i].dir, f->late[i].c, f->late[i].n);
        f->late[i].ticket = 0;
        f->in_flight--;
        return f->late[i].fail ? KM_EDEVICE : 1;
    }
    return KM_EINVAL;
}

static void *host_alloc(void *self, size_t size)
{
    struct fake *f = self;
    if (f->fail_alloc && !--f->fail_alloc)
        return NULL;
    void *p = km_malloc(size);
    if (p)
        f->held += (int64_t)size;
    return p;
}

static void host_free(void *self, void *p, size_t size)
{
    struct fake *f = self;
    f->held -= (int64_t)size;
    km_free(p);
}

void fake_open(struct fake *f)
{
    *f = (struct fake){.geom = {.n_layers = 2, .n_kv_heads = 1, .head_dim = 4, .block_size = FAKE_B,
                                .dtype = KM_BF16, .layout = 1, .page_bytes = 2 * 2 * 1 * FAKE_B * 4 * 2,
                                .n_pages = FAKE_PAGES, .rope_theta = 1e6, .model = {{7}}},
                       .copier = {.copy = copy, .poll = poll, .host_alloc = host_alloc, .host_free = host_free}};
    f->copier.self = f;
    f->pages = calloc(FAKE_PAGES, f->geom.page_bytes);
}

void fake_close(struct fake *f)
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

void fake_fill(struct fake *f, int page, const char *salt, const int32_t *tokens, int block)
{
    uint64_t h = seed_of(salt, tokens, block);
    for (size_t i = 0; i < f->geom.page_bytes; i += 8) {
        h = mix(h, i);
        memcpy(fake_page(f, page) + i, &h, 8);
    }
}

bool fake_holds(struct fake *f, int page, const char *salt, const int32_t *tokens, int block)
{
    uint64_t h = seed_of(salt, tokens, block);
    for (size_t i = 0; i < f->geom.page_bytes; i += 8) {
        h = mix(h, i);
        if (memcmp(fake_page(f, page) + i, &h, 8))
            return false;
    }
    return true;
}

void fake_wipe(struct fake *f, int page)
{
    memset(fake_page(f, page), 0xEE, f->geom.page_bytes);
}

bool fake_wiped(struct fake *f, int page)
{
    for (size_t i = 0; i < f->geom.page_bytes; i++)
        if (fake_page(f, page)[i] != 0xEE)
            return false;
    return true;
}
