/* Building the arrays of a step, and waiting for it. */
#include "engine/test/backend_rig.h"

#include "base/mem.h"

#include <string.h>

struct smp_params rig_greedy(void)
{
    struct smp_params p = smp_defaults();
    p.n_logprobs = RIG_TOP;
    return p;
}

int rig_copy_pages(struct rig *r, enum kv_dir dir, struct kv_copy *c, int n, struct km_err *err)
{
    for (int i = 0; i < n; i += KV_COPY_MOST) {
        uint64_t ticket;
        int rc = r->backend->copy(r->b, dir, c + i, n - i < KV_COPY_MOST ? n - i : KV_COPY_MOST, 0, &ticket, err);
        if (rc)
            return rc;
        while (!(rc = r->backend->poll(r->b, ticket)))
            ;
        if (rc < 0)
            return km_fail(err, rc, "a copy between pages and host memory failed");
    }
    return 0;
}

static int fill_with_nan(struct rig *r, struct km_err *err)
{
    char *nan = km_malloc(r->g.page_bytes);
    struct kv_copy *all = km_calloc((size_t)r->g.n_pages, sizeof *all);
    int rc = nan && all ? 0 : km_fail(err, KM_ENOMEM, "out of memory");
    for (int i = 0; !rc && i < r->g.n_pages; i++)
        all[i] = (struct kv_copy){.page = i, .n_tokens = r->g.block_size, .host = nan};
    if (!rc) {
        memset(nan, 0xFF, r->g.page_bytes);
        rc = rig_copy_pages(r, KV_TO_PAGE, all, r->g.n_pages, err);
    }
    km_free(nan);
    km_free(all);
    return rc;
}

int rig_open(struct rig *r, const struct backend *backend, const struct be_opts *o, const struct mdl *m,
             struct km_err *err)
{
    struct be_opts cut = *o;
    if (cut.max_model_len > mdl_config(m)->max_pos)
        cut.max_model_len = mdl_config(m)->max_pos;
    *r = (struct rig){.backend = backend, .stride = 7};
    int rc = backend->open(&r->b, &cut, m, &r->g, err);
    return rc ? rc : fill_with_nan(r, err);
}

void rig_close(struct rig *r)
{
    if (r->b)
        r->backend->close(r->b);
    r->b = NULL;
}

int rig_seq_open(struct rig *r, struct rig_seq *s, int max_len, struct km_err *err)
{
    s->blocks = (max_len + r->g.block_size - 1) / r->g.block_size;
    s->n_done = 0;
    s->table = km_calloc((size_t)s->blocks, sizeof *s->table);
    if (!s->table)
        return km_fail(err, KM_ENOMEM, "out of memory");
    for (int i = 0; i < s->blocks; i++, r->next_page += r->stride)
        s->table[i] = r->next_page % r->g.n_pages;
    return 0;
}

void rig_seq_close(struct rig_seq *s)
{
    km_free(s->table);
    s->table = NULL;
}

int rig_step(struct rig *r, const struct rig_part *parts, int n, struct smp_result *out, struct km_err *err)
{
    int T = 0, pages = 0, n_samples = 0, B = r->g.block_size;
    for (int i = 0; i < n; i++) {
        T += parts[i].count;
        pages += parts[i].s->blocks;
    }
    int32_t *tokens = km_calloc((size_t)T * 3, sizeof *tokens), *pos = tokens + T, *slots = pos + T;
    int32_t *table = km_calloc((size_t)pages, sizeof *table);
    int32_t q_start[RIG_PARTS + 1] = {0}, table_start[RIG_PARTS + 1] = {0}, kv_len[RIG_PARTS];
    struct smp_row rows[RIG_PARTS] = {0};
    struct smp_result res[RIG_PARTS];
    int rc = n > RIG_PARTS || !tokens || !table ? km_fail(err, KM_ENOMEM, "out of memory") : 0;
    for (int i = 0, t = 0; !rc && i < n; i++) {
        struct rig_seq *s = parts[i].s;
        memcpy(table + table_start[i], s->table, (size_t)s->blocks * sizeof *table);
        table_start[i + 1] = table_start[i] + s->blocks;
        for (int j = 0; j < parts[i].count; j++, t++) {
            tokens[t] = parts[i].tokens[j];
            pos[t] = s->n_done + j;
            slots[t] = s->table[pos[t] / B] * B + pos[t] % B;
        }
        s->n_done += parts[i].count;
        kv_len[i] = s->n_done;
        q_start[i + 1] = t;
        if (parts[i].sample) {
            rows[n_samples].p = *parts[i].sample;
            rows[n_samples].step = (uint64_t)s->n_done;
            rows[n_samples++].row = t - 1;
        }
    }
    struct batch b = {.n_tokens = T,
                      .tokens = tokens,
                      .positions = pos,
                      .slots = slots,
                      .n_reqs = n,
                      .q_start = q_start,
                      .kv_len = kv_len,
                      .table_start = table_start,
                      .block_table = table,
                      .n_samples = n_samples,
                      .samples = rows};
    uint64_t ticket;
    if (!rc)
        rc = r->backend->step(r->b, &b, &ticket, err);
    if (!rc)
        rc = r->backend->wait(r->b, ticket, res, err);
    for (int i = 0, k = 0; !rc && i < n; i++)
        if (parts[i].sample)
            out[i] = res[k++];
    km_free(tokens);
    km_free(table);
    return rc;
}

int rig_prefill(struct rig *r, struct rig_seq *s, const int32_t *tokens, int n, int chunk, struct smp_result *out,
                struct km_err *err)
{
    struct smp_params p = rig_greedy();
    int rc = 0;
    for (int at = 0; !rc && at < n; at += chunk) {
        int count = n - at < chunk ? n - at : chunk;
        struct rig_part part = {s, tokens + at, count, at + count == n ? &p : NULL};
        rc = rig_step(r, &part, 1, out, err);
    }
    return rc;
}

int rig_copy(struct rig *r, const struct rig_seq *s, enum kv_dir dir, char *host, struct km_err *err)
{
    struct kv_copy *c = km_calloc((size_t)s->blocks, sizeof *c);
    if (!c)
        return km_fail(err, KM_ENOMEM, "out of memory");
    for (int i = 0; i < s->blocks; i++)
        c[i] = (struct kv_copy){
            .page = s->table[i], .n_tokens = r->g.block_size, .host = host + (size_t)i * r->g.page_bytes};
    int rc = rig_copy_pages(r, dir, c, s->blocks, err);
    km_free(c);
    return rc;
}

bool rig_same(const struct smp_result *a, const struct smp_result *b)
{
    return a->id == b->id && a->n_top == b->n_top && !memcmp(&a->logprob, &b->logprob, sizeof a->logprob) &&
           !memcmp(a->top_id, b->top_id, sizeof *a->top_id * (size_t)a->n_top) &&
           !memcmp(a->top_logprob, b->top_logprob, sizeof *a->top_logprob * (size_t)a->n_top);
}
