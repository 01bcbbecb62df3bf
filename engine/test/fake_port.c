/* A lookup remembers the chunks that it found, and a load copies from them. */
#include "fake_port.h"

#include "base/min.h"
#include "base/random.h"
#include "engine/sample.h"

#include <limits.h>
#include <stdlib.h>
#include <string.h>

enum { MOST = 512 };

struct kv_seq {
    struct fake_port *p;
    uint64_t root;
    int asked;  /* lookups */
    struct fake_chunk *found[MOST];
    int n_found; /* tokens that may be loaded: the result of the last lookup, 0 after a load */
};

static int64_t later(int64_t a, int64_t b)
{
    return a > b ? a : b;
}

static uint64_t hash(uint64_t h, uint64_t v)
{
    return km_mix64(km_mix64(h) + v + 1);
}

static bool roll(struct fake_port *p, int percent)
{
    return percent && km_random_next(&p->rng) % 100 < (uint64_t)percent;
}

static struct fake_chunk *find(struct fake_port *p, uint64_t key)
{
    struct fake_chunk *c = p->bucket[key % 256];
    while (c && c->key != key)
        c = c->next;
    return c;
}

/* The key of a chunk of n tokens behind the chunk whose key is given. */
static uint64_t chain(uint64_t key, const int32_t *tokens, int n)
{
    for (int i = 0; i < n; i++)
        key = hash(key, (uint64_t)tokens[i]);
    return hash(key, (uint64_t)n);
}

static int p_attach(void *self, const struct kv_geom *geom, const struct kv_copier *copier, struct km_err *err)
{
    struct fake_port *p = self;
    (void)err;
    p->geom = *geom;
    p->copier = *copier;
    p->attached = true;
    return 0;
}

static void free_ticket(struct fake_ticket *t)
{
    for (int i = 0; i < t->n_pieces; i++)
        free(t->piece[i].c);
    free(t->table);
    free(t->chunks);
    free(t);
}

/* Finishes the copies in flight and drops all tickets, as the port promises. */
static void p_detach(void *self)
{
    struct fake_port *p = self;
    for (int i = 0; i < p->n_tickets; i++) {
        struct fake_ticket *t = p->tickets[i];
        for (int k = 0; k < t->n_pieces; k++)
            while (t->piece[k].copy && !p->copier.poll(p->copier.self, t->piece[k].copy))
                ;
        free_ticket(t);
    }
    p->n_tickets = 0;
    p->changed |= p->seqs != 0;
    p->attached = false;
}

static struct kv_seq *p_open(void *self, const char *salt, const int32_t *tokens, int n)
{
    struct fake_port *p = self;
    p->changed |= !tokens || n < 1;
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

static int p_lookup(struct kv_seq *s, const int32_t *tokens, int n, int have)
{
    struct fake_port *p = s->p;
    int C = p->port.chunk_size;
    s->n_found = 0;
    if (s->asked++ < p->not_yet || roll(p, p->vague))
        return KV_NOT_YET;
    s->asked = 0;
    p->lookups++;
    p->looked_tokens += n;
    p->had_tokens += have;
    p->changed |= have % p->geom.block_size || have >= n;
    if (roll(p, p->lossy))
        return 0;
    uint64_t key = s->root;
    for (int c = 0; c * C < n && c < MOST; c++) {
        int len = km_min(C, n - c * C);
        key = chain(key, tokens + c * C, len);
        s->found[c] = find(p, key);
        if (!s->found[c] || !s->found[c]->ready)
            break;
        s->n_found += len;
    }
    if (s->n_found && roll(p, p->vague))
        s->n_found -= (int)(km_random_next(&p->rng) % (uint64_t)C);
    return s->n_found = km_max(s->n_found, 0);
}

static int64_t p_load_ns(struct kv_seq *s, int from, int to)
{
    struct fake_port *p = s->p;
    double rate = p->told_rate > 0 ? p->told_rate : p->rate;
    int tokens = to - from;
    for (int i = 0; i < p->n_tickets; i++)
        if (p->tickets[i]->load && !p->tickets[i]->stopped)
            tokens += km_max(p->tickets[i]->next - km_max(p->tickets[i]->from, p->tickets[i]->floor), 0);
    int64_t wait = rate > 0 ? later(p->link_free - p->copier.now(p->copier.self), 0) : 0;
    double token = (double)p->geom.page_bytes / p->geom.block_size;
    return rate > 0 ? wait + (int64_t)(tokens * token * 1e9 / rate) : 0;
}

static struct fake_ticket *new_ticket(struct fake_port *p, const int32_t *table, int n_tokens, uint64_t after)
{
    size_t n = (size_t)(n_tokens + p->geom.block_size - 1) / (size_t)p->geom.block_size;
    struct fake_ticket *t = calloc(1, sizeof *t);
    t->ticket = ++p->last_ticket;
    t->polls = p->slow;
    t->after = after;
    t->table = malloc(n * sizeof *t->table);
    memcpy(t->table, table, n * sizeof *t->table);
    t->chunks = calloc(MOST, sizeof(struct fake_chunk *));
    p->tickets = realloc(p->tickets, (size_t)(p->n_tickets + 1) * sizeof(struct fake_ticket *));
    return p->tickets[p->n_tickets++] = t;
}

/* Submits the copy of a piece, if the copier accepts it. */
static void submit(struct fake_port *p, struct fake_ticket *t, struct fake_piece *e)
{
    int rc = p->copier.copy(p->copier.self, t->load ? KV_TO_PAGE : KV_TO_HOST, e->c, e->n, t->after, &e->copy, NULL);
    if (rc < 0)
        e->copy = 0;
    e->failed = rc < 0 && rc != KM_ELIMIT;
}

/* Adds the piece [from, to), tokens of one chunk. */
static struct fake_piece *add_piece(struct fake_port *p, struct fake_ticket *t, struct fake_chunk *chunk, int from,
                                    int to)
{
    int B = p->geom.block_size, C = p->port.chunk_size, first = from / C * C;
    struct fake_piece *e = &t->piece[t->n_pieces++];
    *e = (struct fake_piece){.from = from, .to = to, .chunk = chunk, .n = (to - from + B - 1) / B};
    e->c = calloc((size_t)e->n, sizeof *e->c);
    for (int i = 0; i < e->n; i++) {
        int token = from + i * B, page = (token - first) / B;
        e->c[i] = (struct kv_copy){.page = t->table[token / B],
                                   .n_tokens = km_min(B, first + chunk->n_tokens - token),
                                   .host = chunk->data + (size_t)page * p->geom.page_bytes,
                                   .seed = chunk->key + (uint64_t)page};
    }
    submit(p, t, e);
    return e;
}

/* The first token that the load may still submit a copy for, rounded up to a block. */
static int load_bound(const struct fake_port *p, const struct fake_ticket *t)
{
    int B = p->geom.block_size, most = (t->to + B - 1) / B * B;
    int floor = t->floor >= most ? most : (t->floor + B - 1) / B * B;
    return km_max(t->from, floor);
}

/* Whether the loaded piece's bytes are right. Bytes that should be right and are not are the engine's fault. */
static bool verify(struct fake_port *p, const struct fake_piece *e, int rc)
{
    int c = e->from / p->port.chunk_size, first = c * p->port.chunk_size;
    for (int i = 0; i < e->n && rc > 0; i++) {
        int page = (e->from - first) / p->geom.block_size + i;
        if (e->c[i].sum != e->chunk->sums[page]) {
            p->changed = true;
            return false;
        }
    }
    return rc > 0 && c != p->bad_chunk && (p->short_at < 0 || c < p->short_at) && !roll(p, p->lossy);
}

static void finish_loaded(struct fake_port *p, struct fake_ticket *t, const struct fake_piece *e, int rc)
{
    bool good = verify(p, e, rc);
    if (t->stopped)
        return;
    if (good)
        t->good_from = e->from;
    else if (t->good_to - t->good_from >= e->from - load_bound(p, t))
        t->stopped = true;
    else
        t->good_from = t->good_to = e->from;
}

static void finish_stored(struct fake_port *p, const struct fake_piece *e, int rc)
{
    if (rc <= 0) { /* nobody may wait for the chunk */
        struct fake_chunk **at = &p->bucket[e->chunk->key % 256];
        while (*at != e->chunk)
            at = &(*at)->next;
        *at = e->chunk->next;
        free(e->chunk->data);
        free(e->chunk->sums);
        free(e->chunk);
        p->kept--;
        return;
    }
    for (int i = 0; i < e->n; i++)
        e->chunk->sums[i] = e->c[i].sum;
    e->chunk->ready = true;
}

/* Finishes the ticket's oldest piece. False: it is still in flight. */
static bool collect(struct fake_port *p, struct fake_ticket *t, int64_t now)
{
    struct fake_piece e = t->piece[0];
    int rc = KM_EIO;
    if (!e.copy && !e.failed) {
        submit(p, t, &t->piece[0]);
        return false;
    }
    if (t->load && p->rate > 0 && now < e.ends)
        return false;
    if (e.copy && !(rc = p->copier.poll(p->copier.self, e.copy)))
        return false;
    t->n_pieces--;
    memmove(t->piece, t->piece + 1, (size_t)t->n_pieces * sizeof *t->piece);
    if (t->load)
        finish_loaded(p, t, &e, rc);
    else
        finish_stored(p, &e, rc);
    free(e.c);
    return true;
}

/* Submits the ticket's next piece. False: there is none, or enough are in flight. */
static bool start(struct fake_port *p, struct fake_ticket *t)
{
    int C = p->port.chunk_size;
    const struct fake_piece *last = t->n_pieces ? &t->piece[t->n_pieces - 1] : NULL;
    if (t->n_pieces >= p->depth || (last && !last->copy && !last->failed))
        return false; /* enough are in flight, or the copier has no room */
    if (!t->load) {
        if (t->next_chunk == t->n_chunks)
            return false;
        while (!t->chunks[t->next_chunk])
            t->next_chunk++;
        struct fake_chunk *c = t->chunks[t->next_chunk];
        int from = t->from + t->next_chunk++ * C;
        add_piece(p, t, c, from, from + c->n_tokens);
        return true;
    }
    int bound = load_bound(p, t);
    if (t->stopped || t->next <= bound)
        return false;
    int from = km_max((t->next - 1) / C * C, bound);
    struct fake_piece *e = add_piece(p, t, t->chunks[from / C], from, t->next);
    double bytes = (double)e->n * (double)p->geom.page_bytes;
    if (p->rate > 0)
        e->ends = p->link_free = p->link_free + (int64_t)(bytes * 1e9 / p->rate);
    t->next = from;
    return true;
}

static bool unfinished(const struct fake_port *p, const struct fake_ticket *t)
{
    return t->n_pieces || (t->load ? !t->stopped && t->next > load_bound(p, t) : t->next_chunk < t->n_chunks);
}

/* Lets all tickets make progress, loads one after the other. */
static void advance(struct fake_port *p)
{
    int64_t now = p->copier.now(p->copier.self);
    bool link = true;
    for (int i = 0; i < p->n_tickets; i++) {
        struct fake_ticket *t = p->tickets[i];
        if (p->rate > 0 && t->load && !link)
            continue;
        while ((t->n_pieces && collect(p, t, now)) || start(p, t))
            ;
        link &= !(t->load && unfinished(p, t));
    }
}

static int p_load(struct kv_seq *s, int from, int to, const int32_t *table, uint64_t after, uint64_t *ticket)
{
    struct fake_port *p = s->p;
    *ticket = 0;
    if (from == to) { /* nothing of the lookup is wanted */
        p->changed |= !s->n_found;
        s->n_found = 0;
        p->dropped++;
        return 0;
    }
    p->loads++;
    p->last_load_from = from;
    p->last_load_to = to;
    p->changed |= from > to || from % p->geom.block_size || to > s->n_found;
    s->n_found = 0;
    if (p->fail_at_once)
        return KM_EIO;
    advance(p);
    struct fake_ticket *t = new_ticket(p, table, to, after);
    memcpy(t->chunks, s->found, sizeof s->found);
    t->load = true;
    t->from = from;
    t->to = t->next = t->good_from = t->good_to = to;
    *ticket = t->ticket;
    int64_t now = p->copier.now(p->copier.self);
    p->link_free = later(p->link_free, now);
    advance(p);
    return 0;
}

static struct fake_ticket *ticket_of(struct fake_port *p, uint64_t ticket, int *at)
{
    for (*at = 0; *at < p->n_tickets; ++*at)
        if (p->tickets[*at]->ticket == ticket)
            return p->tickets[*at];
    p->changed = true;
    return NULL;
}

static int p_cut(void *self, uint64_t ticket, int upto)
{
    struct fake_port *p = self;
    int i;
    struct fake_ticket *t = ticket_of(p, ticket, &i);
    p->cuts++;
    if (!t || !t->load) {
        p->changed = true;
        return INT_MAX;
    }
    if (p->rate > 0)
        advance(p);
    t->floor = km_max(t->floor, upto);
    return t->stopped ? t->next : km_min(t->next, load_bound(p, t));
}

static int p_store(struct kv_seq *s, const int32_t *tokens, int n, int n_prompt, const int32_t *table, uint64_t after,
                   uint64_t *ticket, int *from)
{
    struct fake_port *p = s->p;
    int C = p->port.chunk_size;
    size_t per = (size_t)(C / p->geom.block_size);
    p->stores++;
    p->last_n = n;
    p->last_n_prompt = n_prompt;
    *ticket = 0;
    struct fake_ticket *t = NULL;
    uint64_t key = s->root;
    for (int at = 0; at < n && !p->keep_nothing; at += C) {
        int len = km_min(C, n - at);
        if (len < C && (!p->keep_partial || n != n_prompt))
            break;
        key = chain(key, tokens + at, len);
        if (find(p, key))
            continue;
        if (!t) {
            t = new_ticket(p, table, n, after);
            t->from = at;
        }
        struct fake_chunk *f = calloc(1, sizeof *f);
        *f = (struct fake_chunk){p->bucket[key % 256], key, len, malloc(per * p->geom.page_bytes),
                                 calloc(per, sizeof *f->sums), false};
        p->bucket[key % 256] = f;
        t->chunks[(at - t->from) / C] = f;
        t->n_chunks = (at - t->from) / C + 1;
        p->kept++;
    }
    if (t) {
        *from = p->last_from = t->from;
        *ticket = t->ticket;
        advance(p);
    }
    return 0;
}

static int p_poll(void *self, uint64_t ticket, struct kv_result *out)
{
    struct fake_port *p = self;
    int at;
    struct fake_ticket *t = ticket_of(p, ticket, &at);
    if (!t)
        return 1;
    advance(p);
    if (--t->polls > 0 || unfinished(p, t) || p->stuck)
        return 0;
    p->changed |= t->load != (out != NULL);
    if (t->load) {
        *out = (struct kv_result){t->good_from, t->good_to};
        p->loaded_tokens += t->good_to - t->good_from;
        p->intervals += t->good_from < t->good_to && t->good_from > t->from;
    }
    free_ticket(t);
    memmove(p->tickets + at, p->tickets + at + 1, (size_t)(--p->n_tickets - at) * sizeof(struct fake_ticket *));
    return 1;
}

static void forget(struct fake_port *p)
{
    for (int b = 0; b < 256; b++)
        for (struct fake_chunk *c; (c = p->bucket[b]);) {
            p->bucket[b] = c->next;
            free(c->data);
            free(c->sums);
            free(c);
        }
    p->kept = 0;
}

static int p_reset(void *self)
{
    struct fake_port *p = self;
    if (p->stuck)
        return 1;
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
    *p = (struct fake_port){.short_at = -1, .bad_chunk = -1, .depth = 2};
    p->port = (struct kv_port){.self = p,
                               .chunk_size = chunk_size,
                               .attach = p_attach,
                               .detach = p_detach,
                               .open = p_open,
                               .lookup = p_lookup,
                               .load_ns = p_load_ns,
                               .load = p_load,
                               .cut = p_cut,
                               .store = p_store,
                               .poll = p_poll,
                               .close = p_close,
                               .reset = p_reset,
                               .stats = p_stats};
}

void fake_port_free(struct fake_port *p)
{
    forget(p);
    for (int i = 0; i < p->n_tickets; i++)
        free_ticket(p->tickets[i]);
    free(p->tickets);
}
