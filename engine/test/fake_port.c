/* A lookup remembers the chunks that it found, and a load copies from them. */
#include "fake_port.h"

#include "base/random.h"
#include "engine/sample.h"

#include <stdlib.h>
#include <string.h>

enum { MOST = 512 };

struct kv_seq {
    struct fake_port *p;
    uint64_t root;
    struct fake_chunk *found[MOST];
    int n_found; /* tokens that may be loaded: the result of the last lookup, 0 after a load */
};

static uint64_t hash(uint64_t h, uint64_t v)
{
    return km_mix64(km_mix64(h) + v + 1);
}

static bool roll(struct fake_port *p)
{
    return p->lossy && km_random_next(&p->rng) % 100 < (uint64_t)p->lossy;
}

static struct fake_chunk *find(struct fake_port *p, uint64_t key)
{
    struct fake_chunk *c = p->bucket[key % 256];
    while (c && c->key != key)
        c = c->next;
    return c;
}

static uint64_t chain(const struct fake_port *p, uint64_t key, const int32_t *tokens, int chunk)
{
    for (int i = 0; i < p->port.chunk_size; i++)
        key = hash(key, (uint64_t)tokens[chunk * p->port.chunk_size + i]);
    return key;
}

static int p_attach(void *self, const struct kv_geom *geom, const struct kv_copier *copier, struct km_err *err)
{
    struct fake_port *p = self;
    (void)err;
    p->geom = *geom;
    p->copier = copier;
    p->attached = true;
    free(p->garbage);
    p->garbage = malloc(geom->page_bytes);
    memset(p->garbage, 0xA5, geom->page_bytes);
    return 0;
}

static void p_detach(void *self)
{
    struct fake_port *p = self;
    p->attached = false;
}

static struct kv_seq *p_open(void *self, const char *salt)
{
    struct fake_port *p = self;
    if (p->no_open)
        return NULL;
    struct kv_seq *s = calloc(1, sizeof *s);
    s->p = p;
    s->root = salt ? 17 : 0;
    for (; salt && *salt; salt++)
        s->root = hash(s->root, (uint64_t)*salt);
    p->seqs++;
    return s;
}

static void p_close(struct kv_seq *s)
{
    s->p->seqs--;
    free(s);
}

static int p_lookup(struct kv_seq *s, const int32_t *tokens, int n)
{
    struct fake_port *p = s->p;
    p->lookups++;
    p->looked_tokens += n;
    s->n_found = 0;
    if (roll(p))
        return 0;
    uint64_t key = s->root;
    int c = 0;
    for (; (c + 1) * p->port.chunk_size <= n && c < MOST; c++) {
        key = chain(p, key, tokens, c);
        s->found[c] = find(p, key);
        if (!s->found[c] || !s->found[c]->ready)
            break;
    }
    return s->n_found = c * p->port.chunk_size;
}

static struct fake_ticket *new_ticket(struct fake_port *p, const int32_t *table, int n_table)
{
    p->tickets = realloc(p->tickets, (size_t)(p->n_tickets + 1) * sizeof *p->tickets);
    struct fake_ticket *t = &p->tickets[p->n_tickets++];
    *t = (struct fake_ticket){.ticket = ++p->last_ticket, .polls = p->slow, .rc = 1, .table = table, .n_table = n_table,
                              .was = malloc(sizeof *table * (size_t)n_table)};
    memcpy(t->was, table, sizeof *table * (size_t)n_table);
    return t;
}

static void drop_ticket(struct fake_port *p, struct fake_ticket *t)
{
    p->changed |= memcmp(t->was, t->table, sizeof *t->was * (size_t)t->n_table) != 0;
    free(t->was);
    free(t->chunks);
    *t = p->tickets[--p->n_tickets];
}

static int p_load(struct kv_seq *s, int from, int to, const int32_t *table, uint64_t *ticket, int *good)
{
    struct fake_port *p = s->p;
    int B = p->geom.block_size, C = p->port.chunk_size, end = to;
    if (from == to) { /* nothing of the lookup is wanted */
        p->changed |= !s->n_found;
        s->n_found = 0;
        p->dropped++;
        *ticket = 0;
        return 0;
    }
    p->loads++;
    p->changed |= from > to || from % B || to % B || to > s->n_found;
    s->n_found = 0;
    if (p->fail_at_once)
        return KM_EIO;
    if (p->short_at >= 0 && p->short_at * C < end)
        end = p->short_at * C;
    if (roll(p))
        end = from + (to - from) / B / 2 * B;
    if (end < from)
        end = from;
    struct kv_copy *c = malloc(sizeof *c * (size_t)(to / B));
    int n = 0;
    for (int b = from / B; b < to / B; b++, n++)
        c[n] = (struct kv_copy){table[b], b < end / B
                                              ? s->found[b * B / C]->data + (size_t)(b % (C / B)) * p->geom.page_bytes
                                              : p->garbage};
    uint64_t copy;
    p->copier->copy(p->copier->self, KV_TO_PAGE, c, n, &copy, NULL);
    free(c);
    p->loaded_tokens += end - from;
    *good = end;
    *ticket = 0;
    if (!copy && !p->slow)
        return 0;
    struct fake_ticket *t = new_ticket(p, table, to / B);
    t->load = true;
    t->copy = copy;
    t->good = end;
    t->rc = p->fail && end < to ? KM_EIO : 1;
    *ticket = t->ticket;
    *good = from;
    return 0;
}

static int p_store(struct kv_seq *s, const int32_t *tokens, int n, int n_prompt, const int32_t *table, uint64_t *ticket)
{
    struct fake_port *p = s->p;
    int B = p->geom.block_size, C = p->port.chunk_size, per = C / B, n_copy = 0, n_chunks = 0;
    p->stores++;
    p->last_n = n;
    p->last_n_prompt = n_prompt;
    *ticket = 0;
    if (p->keep_nothing)
        return 0;
    struct kv_copy *c = malloc(sizeof *c * (size_t)(n / B + 1));
    struct fake_chunk **fresh = malloc(sizeof *fresh * (size_t)(n / C + 1));
    uint64_t key = s->root, copy = 0;
    for (int k = 0; (k + 1) * C <= n; k++) {
        key = chain(p, key, tokens, k);
        if (find(p, key))
            continue;
        struct fake_chunk *f = calloc(1, sizeof *f);
        f->key = key;
        f->data = malloc((size_t)per * p->geom.page_bytes);
        f->next = p->bucket[key % 256];
        p->bucket[key % 256] = f;
        fresh[n_chunks++] = f;
        p->kept++;
        for (int b = 0; b < per; b++)
            c[n_copy++] = (struct kv_copy){table[k * per + b], f->data + (size_t)b * p->geom.page_bytes};
    }
    if (n_copy)
        p->copier->copy(p->copier->self, KV_TO_HOST, c, n_copy, &copy, NULL);
    free(c);
    if (n_copy && (copy || p->slow)) {
        struct fake_ticket *t = new_ticket(p, table, n / B);
        t->copy = copy;
        t->chunks = fresh;
        t->n = n_chunks;
        *ticket = t->ticket;
        return 0;
    }
    for (int i = 0; i < n_chunks; i++)
        fresh[i]->ready = true;
    free(fresh);
    return 0;
}

static int p_poll(void *self, uint64_t ticket, int *good)
{
    struct fake_port *p = self;
    for (int i = 0; i < p->n_tickets; i++) {
        struct fake_ticket *t = &p->tickets[i];
        if (t->ticket != ticket)
            continue;
        if (t->copy && p->copier->poll(p->copier->self, t->copy) == 1)
            t->copy = 0;
        t->polls--;
        if (t->copy || t->polls > 0)
            return 0;
        for (int k = 0; k < t->n; k++)
            t->chunks[k]->ready = true;
        if (t->load && good)
            *good = t->good;
        int rc = t->rc;
        drop_ticket(p, t);
        return rc;
    }
    p->changed = true; /* unknown ticket */
    return KM_EINVAL;
}

static void forget(struct fake_port *p)
{
    for (int b = 0; b < 256; b++)
        for (struct fake_chunk *c; (c = p->bucket[b]);) {
            p->bucket[b] = c->next;
            free(c->data);
            free(c);
        }
    p->kept = 0;
}

static int p_reset(void *self)
{
    struct fake_port *p = self;
    if (p->n_tickets || p->seqs) /* a sequence pins what its lookup found */
        return -1;
    forget(p);
    return 0;
}

static void p_stats(void *self, struct kv_port_stats *out)
{
    const struct fake_port *p = self;
    *out = (struct kv_port_stats){.lookups = p->lookups, .loaded_tokens = p->loaded_tokens, .chunks = p->kept};
}

void fake_port_init(struct fake_port *p, int chunk_size)
{
    *p = (struct fake_port){.short_at = -1};
    p->port = (struct kv_port){.self = p,
                               .chunk_size = chunk_size,
                               .attach = p_attach,
                               .detach = p_detach,
                               .open = p_open,
                               .lookup = p_lookup,
                               .load = p_load,
                               .store = p_store,
                               .poll = p_poll,
                               .close = p_close,
                               .reset = p_reset,
                               .stats = p_stats};
}

void fake_port_free(struct fake_port *p)
{
    forget(p);
    for (int i = 0; i < p->n_tickets; i++) {
        free(p->tickets[i].was);
        free(p->tickets[i].chunks);
    }
    free(p->tickets);
    free(p->garbage);
}
