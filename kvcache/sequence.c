#include "kvcache/sequence.h"

#include "base/mem.h"
#include "kvcache/internal.h"
#include "kvcache/view.h"

#include <string.h>

bool kvc_seq_detached(const struct kv_seq *s)
{
    return s->epoch != s->view->epoch || !s->view->attached;
}

/* Grows one array; false without memory. */
static bool grow(void *array, int n, size_t size)
{
    void **p = array, *q = km_reallocarray(*p, (size_t)n, size);
    if (q)
        *p = q;
    return q;
}

bool kvc_seq_reserve(struct kv_seq *s, int n)
{
    if (n <= s->cap)
        return true;
    struct kvc *k = s->view->kvc;
    pthread_mutex_lock(&k->lock);
    bool ok = grow(&s->key, n, sizeof *s->key) && grow(&s->found, n + 1, sizeof *s->found) &&
              grow(&s->answer, n, KVC_TIERS_MOST);
    if (ok) {
        memset(s->answer + (size_t)s->cap * KVC_TIERS_MOST, KVC_NOT_ASKED, (size_t)(n - s->cap) * KVC_TIERS_MOST);
        s->cap = n;
    }
    pthread_mutex_unlock(&k->lock);
    return ok;
}

void kvc_seq_keys(struct kv_seq *s, int n, const int32_t *tokens)
{
    struct kvc_view *v = s->view;
    const int C = v->kvc->geometry.chunk_size;
    for (; s->n_keys < n; s->n_keys++) {
        const struct km_digest *parent = s->n_keys ? &s->key[s->n_keys - 1] : &s->root;
        s->key[s->n_keys] = kvc_keys_next(&v->keys, parent, tokens + (size_t)s->n_keys * (size_t)C, C);
    }
}

struct km_digest kvc_seq_tail_key(struct kv_seq *s, int n, const int32_t *tokens, int n_tokens)
{
    struct kvc_view *v = s->view;
    return kvc_keys_next(&v->keys, n ? &s->key[n - 1] : &s->root,
                         tokens + (size_t)n * (size_t)v->kvc->geometry.chunk_size, n_tokens);
}

void kvc_seq_unpin(struct kv_seq *s)
{
    for (int i = 0; i < s->n_found; i++)
        if (s->found[i].slot >= 0)
            kvc_unref(s->view->kvc, s->found[i].slot);
    s->n_found = s->found_tokens = 0;
}
