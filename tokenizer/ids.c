/* Lists of token ids. */
#include "tokenizer/tokenizer.h"

#include "base/mem.h"

int tok_ids_push(struct tok_ids *l, int32_t id, struct km_err *err)
{
    if (l->n == l->cap) {
        size_t cap = l->cap + l->cap / 2 + 64;
        int32_t *v = km_reallocarray(l->v, cap, sizeof *v);
        if (!v)
            return km_fail(err, KM_ENOMEM, "out of memory for a list of %zu token ids", cap);
        l->v = v;
        l->cap = cap;
    }
    l->v[l->n++] = id;
    return 0;
}
