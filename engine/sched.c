/* The lists of requests, and the assignment of rows and pages to requests. */
#include "engine/sched.h"

#include "base/mem.h"
#include "base/min.h"

static void insert_after(struct seq_list *l, struct seq *at, struct seq *q)
{
    q->prev = at;
    q->next = at ? at->next : l->head;
    *(q->prev ? &q->prev->next : &l->head) = q;
    *(q->next ? &q->next->prev : &l->tail) = q;
    l->n++;
}

static void unlink_seq(struct seq_list *l, struct seq *q)
{
    *(q->prev ? &q->prev->next : &l->head) = q->next;
    *(q->next ? &q->next->prev : &l->tail) = q->prev;
    q->prev = q->next = NULL;
    l->n--;
}

static struct seq_list *list_of(struct sch *s, const struct seq *q)
{
    return q->state == SEQ_WAITING ? &s->waiting : q->state == SEQ_LOADING ? &s->loading : &s->running;
}

/* Inserts q into the waiting list in the order of seq_before. A new request belongs near the tail and a preempted one
 * near the head, so the search starts at that end. */
static void enqueue(struct sch *s, struct seq *q)
{
    struct seq *at = s->waiting.tail;
    if (q->n_preempted) {
        struct seq *next = s->waiting.head;
        while (next && seq_before(next, q))
            next = next->next;
        at = next ? next->prev : s->waiting.tail;
    } else
        while (at && seq_before(q, at))
            at = at->prev;
    insert_after(&s->waiting, at, q);
    q->state = SEQ_WAITING;
}

void sch_add(struct sch *s, struct seq *q)
{
    q->arrival = s->n_arrivals++;
    enqueue(s, q);
}

static int32_t allocate_page(struct sch *s)
{
    int32_t page = pg_alloc(s->pages);
    if (s->prefix)
        px_forget(s->prefix, page);
    pg_set_keyed(s->pages, page, false);
    return page;
}

/* Allocates all pages that q still needs for n tokens. False: the pool has too few, and none was allocated. */
static bool allocate_pages(struct sch *s, struct seq *q, int n)
{
    int need = (n + s->block_size - 1) / s->block_size - q->n_pages;
    if (need > pg_available(s->pages))
        return false;
    for (; need > 0; need--)
        q->pages[q->n_pages++] = allocate_page(s);
    return true;
}

/* Frees q's pages from the last to the first, so that the end of the sequence is evicted first. */
static void free_pages(struct sch *s, struct seq *q)
{
    while (q->n_pages)
        pg_unref(s->pages, q->pages[--q->n_pages]);
    q->n_computed = q->n_published = 0;
    q->load_from = q->load_to = 0;
}

static void preempt(struct sch *s, struct seq *q)
{
    unlink_seq(&s->running, q);
    s->budget += q->n_rows;
    q->n_rows = 0;
    free_pages(s, q);
    q->n_external = -1;
    q->n_preempted++;
    s->preemptions++;
    s->closed = true;
    enqueue(s, q);
}

static struct seq *last_in_order(const struct sch *s)
{
    struct seq *last = s->running.head;
    for (struct seq *q = last; q; q = q->next)
        if (seq_before(last, q))
            last = q;
    return last;
}

/* True if the decode in flight, in which q has n_rows rows, samples q's last token. */
static bool samples_last_token(const struct seq *q, int n_rows)
{
    return n_rows && seq_output(q) + 1 >= q->max_tokens;
}

bool sch_can_schedule_async(const struct sch *s)
{
    int need = 0;
    for (const struct seq *q = s->running.head; q; q = q->next) {
        if (samples_last_token(q, q->n_rows)) {
            if (s->waiting.n)
                return false;
            continue;
        }
        int upto = q->n_computed + q->n_rows + km_min(seq_rows_end(q) - q->n_computed, s->max_tokens);
        int more = (upto + s->block_size - 1) / s->block_size - q->n_pages;
        need += more > 0 ? more : 0;
    }
    return need <= pg_available(s->pages);
}

/* Schedules rows for the running request q. If pages are short, requests that come later in (priority, arrival) are
 * preempted. False: q itself is the last in order, and must be preempted. */
static bool schedule_running(struct sch *s, struct seq *q)
{
    if (samples_last_token(q, q->n_rows_before))
        return true;
    /* If a row is in flight, n_tokens and n_computed will both be one higher when this step runs, so their difference
     * is the same. */
    int from = q->n_computed + q->n_rows_before, want = km_min(seq_rows_end(q) - q->n_computed, s->budget);
    while (!allocate_pages(s, q, from + want)) {
        struct seq *last = last_in_order(s);
        if (pg_counts(s->pages).transfer_only || (last == q && s->loading.n)) {
            /* Use all available pages. The transfers will free more pages, so no request is preempted. */
            int n_fit = (q->n_pages + pg_available(s->pages)) * s->block_size - from;
            want = km_min(want, n_fit);
        } else if (last == q) {
            return false;
        } else {
            preempt(s, last);
        }
    }
    q->n_rows = want;
    s->budget -= want;
    return true;
}

void sch_begin_step(struct sch *s)
{
    s->budget = s->max_tokens;
    s->closed = false;
    s->passed = NULL;
    for (struct seq *q = s->running.head; q; q = q->next) {
        q->n_rows_before = q->n_rows; /* 0 if no step is in flight */
        q->n_rows = 0;
    }
    for (struct seq *q = s->running.head, *next; q && s->budget; q = next) {
        bool scheduled = schedule_running(s, q);
        next = q->next; /* read only now, because the next request may have been preempted */
        if (!scheduled)
            preempt(s, q);
    }
}

/* Computes the prefix keys of q's first n blocks. */
static void compute_keys(struct sch *s, struct seq *q, int n)
{
    for (; q->n_keys < n; q->n_keys++) {
        struct km_digest root;
        const struct km_digest *parent = &root;
        if (q->n_keys)
            parent = &q->keys[q->n_keys - 1];
        else
            root = px_root_key(s->prefix, q->salt);
        q->keys[q->n_keys] = px_child_key(s->prefix, parent, q->tokens + (size_t)q->n_keys * (size_t)s->block_size);
    }
}

struct seq *sch_next_waiting(struct sch *s)
{
    struct seq *q = s->passed ? s->passed->next : s->waiting.head;
    if (!q || s->closed || !s->budget || s->running.n + s->loading.n >= s->max_seqs || !pg_available(s->pages))
        return NULL;
    if (!s->prefix)
        return q;
    int most = (q->n_tokens - 1) / s->block_size; /* at least one token must be computed, for its logits */
    compute_keys(s, q, most);
    for (int32_t page; q->n_pages < most && (page = px_find(s->prefix, &q->keys[q->n_pages])) >= 0;) {
        pg_ref(s->pages, page);
        q->pages[q->n_pages++] = page;
    }
    q->n_published = q->n_pages;
    q->n_computed = q->n_pages * s->block_size;
    return q;
}

void sch_pass_over(struct sch *s, struct seq *q)
{
    free_pages(s, q);
    s->passed = q;
}

enum sch_admission sch_admit(struct sch *s, struct seq *q, int from, int to)
{
    bool load = from < to;
    int hit = q->n_computed, now = km_min(q->n_tokens - hit, s->budget);
    /* A loading request has pages for the step after the load, too. Otherwise it might preempt itself as soon as its
     * load has ended. */
    if (!allocate_pages(s, q, load ? km_min(q->n_tokens, to + s->max_tokens) : hit + now)) {
        free_pages(s, q);
        s->closed = true;
        return ADMIT_FULL;
    }
    if (s->prefix && !q->n_preempted) {
        s->prefix_queries += q->n_tokens;
        s->prefix_hits += hit;
    }
    if (!q->n_preempted)
        q->n_cached = q->n_cached_pool = hit;
    unlink_seq(&s->waiting, q);
    q->state = load ? SEQ_LOADING : SEQ_RUNNING;
    insert_after(list_of(s, q), list_of(s, q)->tail, q);
    if (load) {
        q->load_from = from;
        q->load_to = to;
        return ADMIT_LOAD;
    }
    q->n_rows = now;
    s->budget -= now;
    return ADMIT_RUN;
}

void sch_schedule_front(struct sch *s, struct seq *q, int n_rows)
{
    q->n_rows = n_rows; /* their pages were allocated at the admission */
    s->budget -= n_rows;
}

/* Adds q's full, computed pages to the prefix index. */
static void publish_full_pages(struct sch *s, struct seq *q)
{
    if (!s->prefix)
        return;
    int full = q->n_computed / s->block_size;
    compute_keys(s, q, full);
    for (; q->n_published < full; q->n_published++)
        if (px_publish(s->prefix, &q->keys[q->n_published], q->pages[q->n_published]))
            pg_set_keyed(s->pages, q->pages[q->n_published], true);
}

/* If all tokens before q's loaded interval are computed, its tokens count as computed, too. */
static void join_loaded(struct seq *q)
{
    if (q->state != SEQ_RUNNING || q->load_from >= q->load_to || q->n_computed < q->load_from)
        return;
    if (!q->n_preempted)
        q->n_cached += q->load_to - q->load_from;
    q->n_computed = q->load_to;
    q->load_from = q->load_to = 0;
}

void sch_load_done(struct sch *s, struct seq *q, int from, int to)
{
    q->load_from = km_max(from, q->load_from);
    q->load_to = km_min(to, q->load_to);
    if (q->load_from >= q->load_to)
        q->load_from = q->load_to = 0;
    /* The request was admitted when its load began. Requests that came later must not use up the token budget before
     * it. */
    struct seq *at = s->running.tail;
    while (at && seq_before(q, at))
        at = at->prev;
    unlink_seq(&s->loading, q);
    q->state = SEQ_RUNNING;
    insert_after(&s->running, at, q);
    join_loaded(q);
    publish_full_pages(s, q);
}

void sch_schedule_loaded(struct sch *s, struct seq *q)
{
    int now = km_min(seq_rows_end(q) - q->n_computed, s->budget);
    if (!allocate_pages(s, q, q->n_computed + now))
        return;
    q->n_rows = now;
    s->budget -= now;
}

bool sch_abandon_load(struct sch *s, struct seq *q)
{
    int from = q->load_from / s->block_size, to = (q->load_to + s->block_size - 1) / s->block_size;
    if (to - from > pg_available(s->pages))
        return false;
    for (int i = from; i < to; i++) {
        int32_t held = q->pages[i];
        q->pages[i] = allocate_page(s);
        pg_unref(s->pages, held);
    }
    sch_load_done(s, q, 0, 0);
    return true;
}

void sch_retire_rows(struct sch *s, struct seq *q)
{
    int *rows = q->n_rows_before ? &q->n_rows_before : &q->n_rows;
    q->n_computed += *rows;
    *rows = 0;
    join_loaded(q);
    publish_full_pages(s, q);
}

void sch_discard_rows(struct seq *q)
{
    q->n_rows = q->n_rows_before = 0;
}

void sch_remove(struct sch *s, struct seq *q)
{
    unlink_seq(list_of(s, q), q);
    sch_discard_rows(q);
    free_pages(s, q);
}

void sch_evict_cached(struct sch *s)
{
    for (int32_t page; (page = pg_oldest(s->pages)) >= 0;) {
        px_forget(s->prefix, page);
        pg_set_keyed(s->pages, page, false);
    }
}

/* Checks the loaded interval: it lies between the tokens that are computed or in flight and the last token, only a
 * loading request must have one, and a running request has tokens to compute before it. */
static int check_loaded(const struct sch *s, const struct seq *q, struct km_err *err)
{
    bool loading = q->state == SEQ_LOADING, good;
    int upto = q->n_computed + q->n_rows + q->n_rows_before;
    if (q->load_from < q->load_to) {
        bool in_place = upto <= q->load_from && q->load_to < q->n_tokens && q->load_to <= q->n_pages * s->block_size;
        bool needed = loading ? q->load_from % s->block_size == 0 : q->n_computed < q->load_from;
        good = q->state != SEQ_WAITING && in_place && needed;
    } else {
        good = !loading && !q->load_from && !q->load_to;
    }
    if (!good)
        return km_fail(err, KM_EINVAL,
                       "request %llu of state %d has the loaded interval [%d, %d), with %d of %d tokens computed or in "
                       "flight, in %d pages of %d tokens",
                       (unsigned long long)q->id, q->state, q->load_from, q->load_to, upto, q->n_tokens, q->n_pages,
                       s->block_size);
    return 0;
}

/* Checks each request of one list. Adds to refs[page] the references of the list's requests, and to own[page] those of
 * them whose content is not fully computed. */
static int check_list(const struct sch *s, const struct seq_list *l, enum seq_state state, int *refs, int *own,
                      struct km_err *err)
{
    const struct seq *prev = NULL;
    int n = 0, block = s->block_size;
    for (const struct seq *q = l->head; q; prev = q, q = q->next, n++) {
        unsigned long long id = q->id;
        if (q->state != state || q->prev != prev)
            return km_fail(err, KM_EINVAL,
                           "request %llu is on the list of state %d, but has state %d or a wrong back link", id, state,
                           q->state);
        if (state == SEQ_WAITING && prev && seq_before(q, prev))
            return km_fail(err, KM_EINVAL, "request %llu waits after a request of a later position in the order", id);
        if (state == SEQ_WAITING && q->n_rows + q->n_rows_before)
            return km_fail(err, KM_EINVAL, "request %llu waits but has rows in a step", id);
        if (state == SEQ_WAITING && (q->n_pages || q->n_computed))
            return km_fail(err, KM_EINVAL, "request %llu waits but has %d pages", id, q->n_pages);
        if (q->n_computed >= q->n_tokens || q->n_computed > q->n_pages * block || q->n_pages > q->cap_pages)
            return km_fail(err, KM_EINVAL, "request %llu has %d of %d tokens computed in %d pages of %d tokens", id,
                           q->n_computed, q->n_tokens, q->n_pages, block);
        if (check_loaded(s, q, err))
            return KM_EINVAL;
        for (int i = 0; i < q->n_pages; i++) {
            int32_t page = q->pages[i];
            if (page < 0 || page >= pg_counts(s->pages).pages)
                return km_fail(err, KM_EINVAL, "request %llu has page %d, which does not exist, as block %d", id, page,
                               i);
            refs[page]++;
            if (i >= q->n_computed / block)
                own[page]++;
            else if (s->prefix && px_has(s->prefix, page) && px_find(s->prefix, &q->keys[i]) != page)
                return km_fail(err, KM_EINVAL,
                               "page %d, block %d of request %llu, is in the prefix index under another key", page, i,
                               id);
        }
    }
    if (l->tail != prev || l->n != n)
        return km_fail(err, KM_EINVAL, "the list of state %d records %d requests but has %d", state, l->n, n);
    return 0;
}

int sch_check(const struct sch *s, struct km_err *err)
{
    int n = pg_counts(s->pages).pages, rc = pg_check(s->pages, err);
    if (!rc && s->prefix)
        rc = px_check(s->prefix, err);
    if (rc)
        return rc;
    int *refs = km_calloc((size_t)n, sizeof *refs), *own = km_calloc((size_t)n, sizeof *own);
    if (!refs || !own)
        rc = km_fail(err, KM_ENOMEM, "no memory to check %d pages", n);
    if (!rc)
        rc = check_list(s, &s->waiting, SEQ_WAITING, refs, own, err);
    if (!rc)
        rc = check_list(s, &s->loading, SEQ_LOADING, refs, own, err);
    if (!rc)
        rc = check_list(s, &s->running, SEQ_RUNNING, refs, own, err);
    for (int i = 0; i < n && !rc; i++) {
        if (refs[i] != pg_refs(s->pages, i))
            rc = km_fail(err, KM_EINVAL, "page %d records %d references, but requests have %d", i, pg_refs(s->pages, i),
                         refs[i]);
        else if (own[i] && (refs[i] > 1 || pg_keyed(s->pages, i)))
            rc = km_fail(err, KM_EINVAL, "page %d is being written but has %d users and keyed is %d", i, refs[i],
                         pg_keyed(s->pages, i));
        else if (s->prefix && px_has(s->prefix, i) != pg_keyed(s->pages, i))
            rc = km_fail(err, KM_EINVAL, "page %d has a key in the page pool or in the prefix index, but not in both",
                         i);
    }
    km_free(refs);
    km_free(own);
    return rc;
}
