/* The pages are an array, and the two lists link them by index. Every operation is O(1) and allocates nothing. */
#include "engine/pages.h"

#include "base/mem.h"

struct page {
    int32_t prev, next; /* on the page's list; -1 at the ends, and for a page in use */
    int32_t refs, holds;
    bool keyed;
};

struct list {
    int32_t head, tail, n;
};

struct pg_pool {
    struct page *v; /* [n] */
    int n, transfer_only;
    struct list free, lru; /* pg_alloc removes pages at the heads */
};

static void push_back(struct pg_pool *p, struct list *l, int32_t i)
{
    p->v[i].prev = l->tail;
    p->v[i].next = -1;
    *(l->tail < 0 ? &l->head : &p->v[l->tail].next) = i;
    l->tail = i;
    l->n++;
}

static void push_front(struct pg_pool *p, struct list *l, int32_t i)
{
    p->v[i].prev = -1;
    p->v[i].next = l->head;
    *(l->head < 0 ? &l->tail : &p->v[l->head].prev) = i;
    l->head = i;
    l->n++;
}

static void unlink_page(struct pg_pool *p, struct list *l, int32_t i)
{
    struct page *g = &p->v[i];
    *(g->prev < 0 ? &l->head : &p->v[g->prev].next) = g->next;
    *(g->next < 0 ? &l->tail : &p->v[g->next].prev) = g->prev;
    g->prev = g->next = -1;
    l->n--;
}

/* The list that page i is on while it has no user. */
static struct list *list_of(struct pg_pool *p, int32_t i)
{
    return p->v[i].keyed ? &p->lru : &p->free;
}

/* Puts page i, which has no user any more, on its list. A page without a key is put at the head and so reused first,
 * because a hardware cache may still hold its memory. */
static void put_on_list(struct pg_pool *p, int32_t i)
{
    if (p->v[i].keyed)
        push_back(p, &p->lru, i);
    else
        push_front(p, &p->free, i);
}

int pg_new(struct pg_pool **out, int n_pages, struct km_err *err)
{
    struct pg_pool *p = km_calloc(1, sizeof *p);
    if (p)
        p->v = km_calloc((size_t)n_pages, sizeof *p->v);
    if (!p || !p->v) {
        pg_free(p);
        return km_fail(err, KM_ENOMEM,
                       "no memory for the records of %d pages: lower --num-gpu-blocks-override or the memory limit",
                       n_pages);
    }
    p->n = n_pages;
    p->free = p->lru = (struct list){-1, -1, 0};
    for (int32_t i = 0; i < n_pages; i++)
        push_back(p, &p->free, i);
    *out = p;
    return 0;
}

void pg_free(struct pg_pool *p)
{
    if (!p)
        return;
    km_free(p->v);
    km_free(p);
}

int32_t pg_alloc(struct pg_pool *p)
{
    struct list *l = p->free.n ? &p->free : &p->lru;
    int32_t i = l->head;
    if (i < 0)
        return -1;
    unlink_page(p, l, i);
    p->v[i].refs = 1;
    return i;
}

void pg_ref(struct pg_pool *p, int32_t i)
{
    struct page *g = &p->v[i];
    if (!g->refs && g->holds)
        p->transfer_only--;
    else if (!g->refs)
        unlink_page(p, list_of(p, i), i);
    g->refs++;
}

void pg_unref(struct pg_pool *p, int32_t i)
{
    struct page *g = &p->v[i];
    if (--g->refs)
        return;
    if (g->holds)
        p->transfer_only++;
    else
        put_on_list(p, i);
}

void pg_hold(struct pg_pool *p, int32_t i)
{
    p->v[i].holds++; /* a sequence has a reference to the page, so it is on no list */
}

void pg_release(struct pg_pool *p, int32_t i)
{
    struct page *g = &p->v[i];
    if (--g->holds || g->refs)
        return;
    p->transfer_only--;
    put_on_list(p, i);
}

void pg_set_keyed(struct pg_pool *p, int32_t i, bool keyed)
{
    struct page *g = &p->v[i];
    if (g->keyed == keyed)
        return;
    bool used = g->refs || g->holds;
    if (!used)
        unlink_page(p, list_of(p, i), i);
    g->keyed = keyed;
    if (!used)
        put_on_list(p, i);
}

bool pg_keyed(const struct pg_pool *p, int32_t i)
{
    return p->v[i].keyed;
}

int pg_refs(const struct pg_pool *p, int32_t i)
{
    return p->v[i].refs;
}

int pg_holds(const struct pg_pool *p, int32_t i)
{
    return p->v[i].holds;
}

int pg_available(const struct pg_pool *p)
{
    return p->free.n + p->lru.n;
}

int32_t pg_oldest(const struct pg_pool *p)
{
    return p->lru.head;
}

struct pg_counts pg_counts(const struct pg_pool *p)
{
    return (struct pg_counts){.pages = p->n, .free = p->free.n, .lru = p->lru.n, .transfer_only = p->transfer_only};
}

/* Checks one list: the links agree in both directions, and every page is unused and of the right kind. */
static int check_list(const struct pg_pool *p, const struct list *l, bool keyed, struct km_err *err)
{
    const char *name = keyed ? "LRU" : "free";
    int32_t prev = -1, n = 0;
    for (int32_t i = l->head; i >= 0; prev = i, i = p->v[i].next, n++) {
        const struct page *g = &p->v[i];
        if (n >= p->n)
            return km_fail(err, KM_EINVAL, "the %s list has a loop", name);
        if (g->prev != prev)
            return km_fail(err, KM_EINVAL, "page %d on the %s list points back to %d, not %d", i, name, g->prev, prev);
        if (g->refs || g->holds)
            return km_fail(err, KM_EINVAL, "page %d is on the %s list with %d references and %d holds", i, name,
                           g->refs, g->holds);
        if (g->keyed != keyed)
            return km_fail(err, KM_EINVAL, "page %d is on the %s list, but keyed is %d", i, name, g->keyed);
    }
    if (l->tail != prev || l->n != n)
        return km_fail(err, KM_EINVAL, "the %s list ends at page %d after %d pages, but page %d after %d is recorded",
                       name, prev, n, l->tail, l->n);
    return 0;
}

int pg_check(const struct pg_pool *p, struct km_err *err)
{
    int rc = check_list(p, &p->free, false, err);
    if (!rc)
        rc = check_list(p, &p->lru, true, err);
    if (rc)
        return rc;
    int used = 0, transfer_only = 0;
    for (int32_t i = 0; i < p->n; i++) {
        const struct page *g = &p->v[i];
        if (g->refs < 0 || g->holds < 0)
            return km_fail(err, KM_EINVAL, "page %d has %d references and %d holds", i, g->refs, g->holds);
        used += g->refs || g->holds;
        transfer_only += !g->refs && g->holds;
    }
    if (used + p->free.n + p->lru.n != p->n)
        return km_fail(err, KM_EINVAL, "%d pages in use, %d free and %d cached do not add up to %d", used, p->free.n,
                       p->lru.n, p->n);
    if (transfer_only != p->transfer_only)
        return km_fail(err, KM_EINVAL, "%d pages are held by transfers alone, but %d are recorded", transfer_only,
                       p->transfer_only);
    return 0;
}
