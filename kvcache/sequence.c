#include "kvcache/sequence.h"

#include "base/mem.h"
#include "kvcache/internal.h"

bool kvc_seq_reserve(struct kv_seq *s, int n)
{
    if (n <= s->cap)
        return true;
    struct km_digest *key = km_reallocarray(s->key, (size_t)n, sizeof *key);
    if (key)
        s->key = key;
    int32_t *pin = key ? km_reallocarray(s->pin, (size_t)n, sizeof *pin) : NULL;
    if (!pin)
        return false;
    s->pin = pin;
    s->cap = n;
    return true;
}

const struct km_digest *kvc_seq_key(struct kv_seq *s, int i, const int32_t *tokens)
{
    struct kvc *k = s->kvc;
    if (i == s->n_keys) {
        const struct km_digest *parent = i ? &s->key[i - 1] : &s->root;
        s->key[i] = kvc_keys_next(&k->keys, parent, tokens + (size_t)i * (size_t)k->geometry.chunk_size);
        s->n_keys++;
    }
    return &s->key[i];
}

void kvc_seq_unpin(struct kv_seq *s)
{
    while (s->n_pins)
        kvc_chunks_unref(&s->kvc->chunks, s->pin[--s->n_pins]);
}
