/* Validation of a request, and the layout of its arrays in one allocation. */
#include "engine/seq.h"

#include "base/mem.h"

#include <string.h>

static int check_tokens(const char *what, const int32_t *v, int n, int vocab, struct km_err *err)
{
    for (int i = 0; i < n; i++)
        if (v[i] < 0 || v[i] >= vocab)
            return km_fail(err, KM_EINVAL, "%s token %d is %d: the ids of this model are 0 to %d", what, i, v[i],
                           vocab - 1);
    return 0;
}

static int check(const struct eng_request *r, const struct eng_opts *o, const struct mdl_config *c, struct km_err *err)
{
    if (r->n_prompt < 1 || !r->prompt)
        return km_fail(err, KM_EINVAL, "the prompt has %d tokens: send at least one", r->n_prompt);
    if (r->max_tokens < 1)
        return km_fail(err, KM_EINVAL, "max_tokens is %d: ask for at least 1", r->max_tokens);
    if (r->min_tokens < 0 || r->min_tokens > r->max_tokens)
        return km_fail(err, KM_EINVAL, "min_tokens is %d: it must be from 0 to max_tokens, which is %d", r->min_tokens,
                       r->max_tokens);
    if (r->n_stop < 0 || (r->n_stop && !r->stop_ids))
        return km_fail(err, KM_EINVAL, "stop_token_ids has %d entries: send a list of token ids", r->n_stop);
    if (r->n_prompt >= o->max_model_len)
        return km_fail(
            err, KM_ELIMIT,
            "the prompt has %d tokens, but prompt and output together may have %d: shorten the prompt, or raise "
            "--max-model-len",
            r->n_prompt, o->max_model_len);
    int rc = check_tokens("prompt", r->prompt, r->n_prompt, c->vocab, err);
    if (!rc)
        rc = check_tokens("stop", r->stop_ids, r->n_stop, c->vocab, err);
    return rc ? rc : smp_check(&r->sampling, err);
}

static int blocks(int tokens, int block_size)
{
    return (tokens + block_size - 1) / block_size;
}

int seq_new(struct seq **out, const struct eng_request *r, const struct eng_opts *o, const struct mdl_config *c,
            struct km_err *err)
{
    int rc = check(r, o, c, err);
    if (rc)
        return rc;
    int most = o->max_model_len - r->n_prompt, max_tokens = r->max_tokens < most ? r->max_tokens : most;
    size_t n_tokens = (size_t)r->n_prompt + (size_t)max_tokens, n_pages = (size_t)blocks((int)n_tokens, o->block_size);
    size_t n_ends = (size_t)r->n_stop + (r->ignore_eos ? 0 : (size_t)c->n_eos);
    size_t n_salt = r->cache_salt ? strlen(r->cache_salt) + 1 : 0;
    /* The sum cannot overflow: max_model_len bounds all but n_stop and the salt, and the caller has these in memory. */
    struct seq *q = km_malloc(sizeof *q + n_pages * sizeof *q->keys + (n_tokens + n_pages + n_ends) * sizeof(int32_t) +
                              n_salt);
    if (!q)
        return km_fail(err, KM_ENOMEM, "no memory for a request of %zu tokens", n_tokens);
    memset(q, 0, sizeof *q);
    q->pages = (int32_t *)(q + 1); /* directly after the struct, because every step reads them */
    q->tokens = q->pages + n_pages;
    q->end_ids = q->tokens + n_tokens;
    q->keys = (struct km_digest *)(q->end_ids + n_ends);
    if (r->cache_salt)
        q->salt = memcpy(q->keys + n_pages, r->cache_salt, n_salt);
    memcpy(q->tokens, r->prompt, (size_t)r->n_prompt * sizeof *q->tokens);
    if (!r->ignore_eos)
        memcpy(q->end_ids, c->eos, (size_t)c->n_eos * sizeof *q->end_ids);
    q->n_end_ids = (int)n_ends;
    if (r->n_stop)
        memcpy(q->end_ids + n_ends - r->n_stop, r->stop_ids, (size_t)r->n_stop * sizeof *q->end_ids);
    q->user = r->user;
    q->n_prompt = q->n_tokens = r->n_prompt;
    q->cap_pages = (int)n_pages;
    q->max_tokens = max_tokens;
    q->min_tokens = r->min_tokens;
    q->priority = r->priority;
    q->sampling = r->sampling;
    q->n_external = -1;
    q->scheduled_ns = -1;
    *out = q;
    return 0;
}

void seq_free(struct seq *q)
{
    km_free(q);
}
