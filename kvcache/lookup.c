/* Lookups: which chunks of a request the cache can load, and the time that a load of them would take.
 *
 * Each chunk is looked up in host memory first, and then in each tier in the order of the configuration. Tiers without
 * an index of their own (kvc_tier_ops.lookup is NULL) are asked by EXISTS operations, which start when the request
 * arrives. A lookup that needs an answer which has not come yet returns KV_NOT_YET. No answer after KVC_EXISTS_NS is a
 * miss. */
#include "base/clock.h"
#include "base/mem.h"
#include "kvcache/internal.h"
#include "kvcache/op.h"
#include "kvcache/sequence.h"
#include "kvcache/view.h"

#include <math.h>
#include <string.h>

/* True if a tier must be asked by EXISTS operations. */
static bool asks(const struct kvc *k)
{
    for (int t = 0; t < k->cfg.n_tiers; t++)
        if (!k->tier[t].ops->lookup)
            return true;
    return false;
}

/* Asks tier t for the chunks [0, n) of s, and with `tail` for the tail behind them, as far as it was not asked yet. */
static void ask(struct kv_seq *s, int t, int n, bool tail, int64_t deadline)
{
    struct kvc *k = s->view->kvc;
    int first = 0;
    while (first < n && s->answer[(size_t)first * KVC_TIERS_MOST + (size_t)t] != KVC_NOT_ASKED)
        first++;
    bool stuck = kvc_tier_stuck(&k->tier[t]);
    if (first < n) {
        bool ok = !stuck && kvc_tier_ask(k, t, s, first, s->key + first, n - first, false, deadline);
        for (int i = first; i < n; i++)
            s->answer[(size_t)i * KVC_TIERS_MOST + (size_t)t] = ok ? KVC_ASKED : KVC_LACKS;
    }
    if (tail && s->tail_answer[t] == KVC_NOT_ASKED)
        s->tail_answer[t] =
            !stuck && kvc_tier_ask(k, t, s, n, &s->tail_key, 1, true, deadline) ? KVC_ASKED : KVC_LACKS;
}

/* With tiers: computes the keys of the chunks of tokens [0, n), and asks the tiers that have no index. Sets *tail to
 * the tokens of the tail, 0: there is none. */
static void ask_all(struct kv_seq *s, const int32_t *tokens, int n, int *tail)
{
    struct kvc *k = s->view->kvc;
    const int C = k->geometry.chunk_size, whole = n / C;
    *tail = k->cfg.save_unfull ? n % C : 0;
    if (!k->cfg.n_tiers)
        return;
    kvc_seq_keys(s, whole, tokens);
    const struct km_digest tail_key = *tail ? kvc_seq_tail_key(s, whole, tokens, *tail) : (struct km_digest){{0}};
    if (!asks(k))
        return;
    const int64_t now = kvc_now(s->view);
    pthread_mutex_lock(&k->lock);
    if (*tail && (s->tail_tokens != n || memcmp(&s->tail_key, &tail_key, sizeof tail_key))) {
        s->tail_tokens = n;
        s->tail_key = tail_key;
        memset(s->tail_answer, KVC_NOT_ASKED, sizeof s->tail_answer);
    }
    bool fresh = false;
    for (int t = 0; t < k->cfg.n_tiers; t++)
        if (!k->tier[t].ops->lookup) {
            fresh |= whole && s->answer[(size_t)(whole - 1) * KVC_TIERS_MOST + (size_t)t] == KVC_NOT_ASKED;
            fresh |= *tail && s->tail_answer[t] == KVC_NOT_ASKED;
            ask(s, t, whole, *tail, now + KVC_EXISTS_NS);
        }
    if (fresh)
        s->ask_deadline = now + KVC_EXISTS_NS;
    kvc_driver_wake(k);
    pthread_mutex_unlock(&k->lock);
}

struct kv_seq *kvc_seq_open(struct kvc_view *v, const char *salt, const int32_t *tokens, int n)
{
    struct kvc *k = v->kvc;
    struct kv_seq *s = km_calloc(1, sizeof *s);
    if (!s)
        return NULL;
    s->view = v;
    pthread_mutex_lock(&k->lock);
    s->epoch = v->epoch;
    s->next = v->seqs;
    if (s->next)
        s->next->prev = s;
    v->seqs = s;
    pthread_mutex_unlock(&k->lock);
    if (kvc_seq_detached(s) || !k->active)
        return s;
    s->root = kvc_keys_root(&v->keys, salt);
    int tail;
    if (n > 0 && asks(k) && kvc_seq_reserve(s, n / k->geometry.chunk_size + 1))
        ask_all(s, tokens, n, &tail);
    return s;
}

void kvc_seq_close(struct kv_seq *s)
{
    if (!s)
        return;
    struct kvc_view *v = s->view;
    struct kvc *k = v->kvc;
    pthread_mutex_lock(&k->lock);
    kvc_seq_unpin(s);
    kvc_tier_forget(k, s);
    for (struct kvc_op *op = v->ops; op; op = op->next_op)
        if (op->seq == s)
            op->seq = NULL;
    *(s->prev ? &s->prev->next : &v->seqs) = s->next;
    if (s->next)
        s->next->prev = s->prev;
    kvc_driver_wake(k); /* a load may wait for the slots that were pinned */
    pthread_mutex_unlock(&k->lock);
    km_free(s->key);
    km_free(s->found);
    km_free(s->ids);
    km_free(s->answer);
    km_free(s);
}

/* Pins the chunk in this slot if it is READY and has these token ids. A chunk whose header is damaged is dropped, so
 * that it can be stored again. */
static bool pin(struct kv_seq *s, int chunk, int slot, const int32_t *ids, int n_ids)
{
    struct kvc *k = s->view->kvc;
    if (slot < 0 || k->chunks.chunk[slot].state != KVC_READY)
        return false;
    const struct kvc_header *h = kvc_pool_header(k->pool, slot);
    if (!kvc_header_match(h, ids, n_ids, chunk)) {
        if (kvc_header_check(h, &k->geometry, &k->keys.fingerprint, &k->chunks.chunk[slot].key, h->payload_bytes, NULL))
            kvc_drop_corrupt(k, slot, -1);
        return false;
    }
    kvc_chunks_ref(&k->chunks, slot);
    s->found[chunk].slot = slot;
    return true;
}

/* Pins the leading chunks of [0, whole) that are in host memory, and returns their number. Keys are computed in groups,
 * of which the first one has one key: if the first chunk is missing, no other key is computed. */
static int pin_leading(struct kv_seq *s, const int32_t *tokens, int whole)
{
    enum { GROUP = 16 };
    struct kvc *k = s->view->kvc;
    const int C = k->geometry.chunk_size;
    int n = 0, slots[GROUP];
    for (int group = 1; n < whole; group = GROUP) {
        const int end = n + group < whole ? n + group : whole, start = n;
        kvc_seq_keys(s, end, tokens);
        pthread_mutex_lock(&k->lock);
        int found = kvc_chunks_find_leading(&k->chunks, s->key + n, end - n, slots);
        s->n_found = start + found;
        for (int i = start; i < start + found; i++)
            s->found[i] = (struct kvc_found){-1, -1};
        while (n < start + found && pin(s, n, slots[n - start], tokens + (size_t)n * (size_t)C, C))
            n++;
        s->n_found = n;
        pthread_mutex_unlock(&k->lock);
        if (n < end)
            break;
    }
    return n;
}

/* Pins those chunks of [0, whole) that are in host memory. With tiers, a chunk that host memory lacks does not end the
 * prefix, so later chunks are of use, too. */
static void pin_all(struct kv_seq *s, const int32_t *tokens, int whole)
{
    struct kvc *k = s->view->kvc;
    const int C = k->geometry.chunk_size;
    pthread_mutex_lock(&k->lock);
    s->n_found = whole;
    for (int i = 0; i < whole; i++) {
        s->found[i] = (struct kvc_found){-1, -1};
        pin(s, i, kvc_chunks_find(&k->chunks, &s->key[i]), tokens + (size_t)i * (size_t)C, C);
    }
    pthread_mutex_unlock(&k->lock);
}

/* Notes the tier of the chunks from `chunk` on that tier t has, and returns their number. Sets *wait if the tier has
 * not answered yet. */
static int ask_tier(struct kv_seq *s, int t, int chunk, int whole, int64_t now, bool *wait)
{
    struct kvc *k = s->view->kvc;
    const struct kvc_tier_io *tier = &k->tier[t];
    const bool tail = chunk == whole;
    pthread_mutex_lock(&k->lock);
    const bool stuck = kvc_tier_stuck(tier);
    pthread_mutex_unlock(&k->lock);
    int n = 0;
    if (stuck)
        return 0;
    if (tier->ops->lookup)
        n = tail ? tier->ops->lookup(tier->tier, &s->tail_key, 1)
                 : tier->ops->lookup(tier->tier, s->key + chunk, whole - chunk);
    else {
        pthread_mutex_lock(&k->lock);
        const uint8_t *a = tail ? &s->tail_answer[t] : &s->answer[(size_t)chunk * KVC_TIERS_MOST + (size_t)t];
        *wait |= *a == KVC_ASKED && now < s->ask_deadline;
        n = *a == KVC_HAS;
        pthread_mutex_unlock(&k->lock);
    }
    const int most = tail ? 1 : whole - chunk;
    n = n < 0 ? 0 : n > most ? most : n;
    for (int i = chunk; i < chunk + n; i++)
        if (s->found[i].slot < 0)
            s->found[i].tier = t;
    return n;
}

/* The number of leading chunks of [0, end) that host memory or a tier has, or KV_NOT_YET. */
static int find(struct kv_seq *s, int whole, int end)
{
    struct kvc *k = s->view->kvc;
    const int64_t now = kvc_now(s->view);
    int i = 0;
    while (i < end) {
        int n = s->found[i].slot >= 0;
        bool wait = false;
        for (int t = 0; t < k->cfg.n_tiers && !n; t++) {
            n = ask_tier(s, t, i, whole, now, &wait);
            n = t && n ? 1 : n; /* for the next chunk, the tiers before t are asked again */
        }
        if (!n)
            return wait ? KV_NOT_YET : i;
        i += n;
    }
    return end;
}

/* If a chunk found must be fetched, keeps the token ids, with which a load compares the chunk's. False: no memory. */
static bool keep_ids(struct kv_seq *s, const int32_t *tokens, int n)
{
    bool needed = false;
    for (int i = 0; i < s->n_found; i++)
        needed |= s->found[i].slot < 0;
    if (!needed)
        return true;
    int32_t *ids = km_reallocarray(s->ids, (size_t)n, sizeof *ids);
    if (!ids)
        return false;
    memcpy(ids, tokens, (size_t)n * sizeof *ids);
    s->ids = ids;
    return true;
}

/* Ends a lookup that has found n chunks: drops the other pins, makes the chunks the newest, and counts the answer. */
static void finish_lookup(struct kv_seq *s, int n, int found_tokens, int total, int have)
{
    struct kvc *k = s->view->kvc;
    struct kv_port_stats *st = &s->view->stats;
    const int C = k->geometry.chunk_size;
    pthread_mutex_lock(&k->lock);
    for (int i = n; i < s->n_found; i++)
        if (s->found[i].slot >= 0)
            kvc_unref(k, s->found[i].slot);
    s->n_found = n;
    s->found_tokens = found_tokens;
    s->n_offered = k->cfg.n_tiers ? found_tokens / C : 0; /* a tier has them even if host memory evicts them */
    for (int i = n - 1; i >= 0; i--) { /* the first chunk becomes the newest and is evicted last */
        const int end = i == n - 1 ? found_tokens : (i + 1) * C, from = i * C > have ? i * C : have;
        int64_t *hits = &k->dram_hit_tokens;
        if (s->found[i].slot >= 0)
            kvc_chunks_touch(&k->chunks, s->found[i].slot);
        else
            hits = &k->tier[s->found[i].tier].hit_tokens;
        *hits += end > from ? end - from : 0;
    }
    st->lookups++;
    st->lookup_tokens += total > have ? total - have : 0;
    st->hit_tokens += found_tokens > have ? found_tokens - have : 0;
    pthread_mutex_unlock(&k->lock);
}

int kvc_seq_lookup(struct kv_seq *s, const int32_t *tokens, int n, int have)
{
    struct kvc *k = s->view->kvc;
    kvc_drive(k, s->view);
    pthread_mutex_lock(&k->lock);
    kvc_seq_unpin(s);
    s->n_offered = s->tail_offered = 0;
    const bool off = kvc_seq_detached(s) || !k->active;
    const bool empty = off || (!k->cfg.n_tiers && !k->chunks.n_ready);
    pthread_mutex_unlock(&k->lock);
    const int C = off ? 1 : k->geometry.chunk_size, whole = n / C;
    if (empty || n < 1 || !kvc_seq_reserve(s, whole + 1)) {
        finish_lookup(s, 0, 0, n, have);
        return 0;
    }
    int tail, chunks = 0;
    ask_all(s, tokens, n, &tail);
    if (k->cfg.n_tiers)
        pin_all(s, tokens, whole);
    else
        chunks = pin_leading(s, tokens, whole);
    if (tail && (k->cfg.n_tiers || chunks == whole)) { /* the keys of all whole chunks are known */
        s->tail_key = kvc_seq_tail_key(s, whole, tokens, tail);
        pthread_mutex_lock(&k->lock);
        s->found[whole] = (struct kvc_found){-1, -1};
        s->n_found = whole + 1;
        pin(s, whole, kvc_chunks_find(&k->chunks, &s->tail_key), tokens + (size_t)whole * (size_t)C, tail);
        pthread_mutex_unlock(&k->lock);
    }
    chunks = find(s, whole, s->n_found);
    if (chunks == KV_NOT_YET) {
        pthread_mutex_lock(&k->lock);
        kvc_seq_unpin(s);
        pthread_mutex_unlock(&k->lock);
        return KV_NOT_YET;
    }
    int found = chunks > whole ? n : chunks * C;
    finish_lookup(s, chunks, found, n, have);
    if (!keep_ids(s, tokens, found)) {
        pthread_mutex_lock(&k->lock);
        kvc_seq_unpin(s);
        found = 0;
        pthread_mutex_unlock(&k->lock);
    }
    return found;
}

/* Adds the bytes that open loads have still to copy, of this view, and to fetch from each tier, of all views. */
static void queued_bytes(const struct kvc_view *v, double *copies, double tier[KVC_TIERS_MOST])
{
    const struct kvc *k = v->kvc;
    const double page = (double)k->geometry.pool.page_bytes;
    for (const struct kvc_view *w = k->views; w; w = w->next)
        for (const struct kvc_op *op = w->ops; op; op = op->next_op) {
            if (op->kind != KVC_LOAD)
                continue;
            const int left = op->next - op->floor / k->geometry.pool.block_size;
            if (w == v && left > 0)
                *copies += left * page;
            for (int i = 0; i < op->n_parts; i++)
                if (op->part[i].state == KVC_WAIT && op->part[i].tier >= 0)
                    tier[op->part[i].tier] += k->geometry.chunk_pages * page;
        }
    for (int i = 0; i < v->lane[KV_TO_PAGE].n; i++)
        *copies += v->lane[KV_TO_PAGE].piece[(v->lane[KV_TO_PAGE].head + i) % KVC_PIECES].n * page;
}

int64_t kvc_seq_load_ns(struct kv_seq *s, int from, int to)
{
    const struct kvc_view *v = s->view;
    struct kvc *k = v->kvc;
    if (kvc_seq_detached(s) || !k->active || from >= to)
        return 0;
    const int B = k->geometry.pool.block_size, C = k->geometry.chunk_size;
    const double page = (double)k->geometry.pool.page_bytes;
    double tier[KVC_TIERS_MOST] = {0}, copies = 0;
    pthread_mutex_lock(&k->lock);
    queued_bytes(v, &copies, tier);
    copies += ((to + B - 1) / B - from / B) * page;
    for (int i = from / C; i < s->n_found && i * C < to; i++)
        if (s->found[i].tier >= 0)
            tier[s->found[i].tier] += k->geometry.chunk_pages * page;
    /* Before the first load, the rate of stores is the better guess. */
    const enum kv_dir known = kvc_rate_known(&v->lane[KV_TO_PAGE].rate) ? KV_TO_PAGE : KV_TO_HOST;
    double ns = kvc_rate_ns(&v->lane[known].rate, copies); /* copies and fetches overlap, so the slowest ones count */
    if (k->cfg.throttle)
        ns = fmax(ns, copies * 1e9 / (double)k->cfg.throttle);
    for (int t = 0; t < k->cfg.n_tiers; t++)
        ns = fmax(ns, kvc_rate_ns(&k->tier[t].get_rate, tier[t]));
    pthread_mutex_unlock(&k->lock);
    return (int64_t)ns;
}
