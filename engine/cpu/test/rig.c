#include "engine/cpu/test/rig.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void must(int rc, const struct km_err *err)
{
    if (rc) {
        fprintf(stderr, "rig: %s\n", err->msg);
        exit(1);
    }
}

struct be_opts rig_opts(enum km_dtype dtype)
{
    return (struct be_opts){.dtype = dtype, .block_size = 16, .n_pages = 512, .max_tokens = 2048, .max_reqs = 32,
                            .max_model_len = 8192, .n_threads = 2};
}

static void poison(struct rig *r)
{
    struct km_err err = {0};
    uint64_t ticket;
    void *nan = malloc(r->g.page_bytes);
    memset(nan, 0xFF, r->g.page_bytes);
    for (int p = 0; p < r->g.n_pages; p++)
        must(be_cpu.copy(r->b, KV_TO_PAGE, &(struct kv_copy){.page = p, .host = nan}, 1, &ticket, &err), &err);
    free(nan);
}

int rig_open(struct rig *r, const struct mdl *m, struct be_opts o, struct km_err *err)
{
    if (o.max_model_len > mdl_config(m)->max_pos)
        o.max_model_len = mdl_config(m)->max_pos;
    *r = (struct rig){.c = mdl_config(m), .stride = 1};
    int rc = be_cpu.open(&r->b, &o, m, &r->g, err);
    if (!rc)
        poison(r);
    return rc;
}

void rig_close(struct rig *r)
{
    be_cpu.close(r->b);
}

void seq_open(struct rig *r, struct seq *s, int max_len)
{
    s->blocks = (max_len + r->g.block_size - 1) / r->g.block_size;
    s->table = malloc(sizeof *s->table * (size_t)s->blocks);
    s->n_done = 0;
    for (int i = 0; i < s->blocks; i++) {
        s->table[i] = r->next_page % r->g.n_pages;
        r->next_page += r->stride;
    }
}

void seq_close(struct seq *s)
{
    free(s->table);
}

void rig_step(struct rig *r, const struct seq_rows *seqs, int n, struct smp_result *res)
{
    int T = 0, pages = 0, n_samples = 0;
    for (int i = 0; i < n; i++) {
        T += seqs[i].count;
        pages += seqs[i].s->blocks;
    }
    int32_t *tokens = malloc(sizeof(int32_t) * (size_t)T * 3), *pos = tokens + T, *slots = pos + T;
    int32_t *q_start = calloc((size_t)(3 * n + 2), sizeof(int32_t)), *kv_len = q_start + n + 1,
            *table_start = kv_len + n;
    int32_t *table = malloc(sizeof(int32_t) * (size_t)pages);
    struct smp_row rows[RIG_MAX] = {0};
    struct smp_result out[RIG_MAX];
    must(n <= RIG_MAX ? 0 : -1, &(struct km_err){.msg = "too many sequences in a step"});
    for (int i = 0, t = 0; i < n; i++) {
        struct seq *s = seqs[i].s;
        memcpy(table + table_start[i], s->table, (size_t)s->blocks * sizeof *table);
        table_start[i + 1] = table_start[i] + s->blocks;
        q_start[i] = t;
        for (int j = 0; j < seqs[i].count; j++, t++) {
            tokens[t] = seqs[i].tokens[j];
            pos[t] = s->n_done + j;
            slots[t] = s->table[pos[t] / r->g.block_size] * r->g.block_size + pos[t] % r->g.block_size;
        }
        s->n_done += seqs[i].count;
        kv_len[i] = s->n_done;
        q_start[i + 1] = t;
        if (seqs[i].sample) {
            rows[n_samples].p = smp_defaults();
            rows[n_samples].p.temperature = 0;
            rows[n_samples].p.n_logprobs = RIG_TOP;
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
    struct km_err err = {0};
    must(be_cpu.step(r->b, &b, &ticket, &err), &err);
    must(be_cpu.wait(r->b, ticket, out, &err), &err);
    for (int i = 0, s = 0; i < n; i++)
        if (seqs[i].sample)
            res[i] = out[s++];
    free(tokens);
    free(q_start);
    free(table);
}

struct smp_result rig_prefill(struct rig *r, struct seq *s, const int32_t *tokens, int n, int chunk)
{
    struct smp_result res = {0};
    for (int at = 0; at < n; at += chunk) {
        int count = n - at < chunk ? n - at : chunk;
        rig_step(r, &(struct seq_rows){s, tokens + at, count, at + count == n}, 1, &res);
    }
    return res;
}

bool rig_same(const struct smp_result *a, const struct smp_result *b)
{
    return a->id == b->id && a->n_top == b->n_top && !memcmp(&a->logprob, &b->logprob, sizeof a->logprob) &&
           !memcmp(a->top_id, b->top_id, sizeof *a->top_id * (size_t)a->n_top) &&
           !memcmp(a->top_logprob, b->top_logprob, sizeof *a->top_logprob * (size_t)a->n_top);
}
