/* Filling the arrays of a step from the scheduled requests, and guessing how long it takes. */
#include "engine/flight.h"

#include "base/mem.h"

#include <string.h>

int fl_take(struct flight *f, int max_tokens, int max_reqs, int max_blocks, int block_size, struct km_err *err)
{
    size_t t = (size_t)max_tokens, r = (size_t)max_reqs, table = r * (size_t)max_blocks;
    f->block_size = block_size;
    f->in.tokens = f->tokens = km_calloc(t, sizeof *f->tokens);
    f->in.positions = f->positions = km_calloc(t, sizeof *f->positions);
    f->in.slots = f->slots = km_calloc(t, sizeof *f->slots);
    f->in.q_start = f->q_start = km_calloc(r + 1, sizeof *f->q_start);
    f->in.kv_len = f->kv_len = km_calloc(r, sizeof *f->kv_len);
    f->in.table_start = f->table_start = km_calloc(r + 1, sizeof *f->table_start);
    f->in.block_table = f->table = km_calloc(table, sizeof *f->table);
    f->in.samples = f->rows = km_calloc(r, sizeof *f->rows);
    f->ids = km_calloc(r, sizeof *f->ids);
    if (!f->tokens || !f->positions || !f->slots || !f->q_start || !f->kv_len || !f->table_start || !f->table ||
        !f->rows || !f->ids)
        return km_fail(err, KM_ENOMEM, "no memory for steps of %zu tokens and %zu requests", t, r);
    return 0;
}

void fl_free(struct flight *f)
{
    km_free(f->tokens);
    km_free(f->positions);
    km_free(f->slots);
    km_free(f->q_start);
    km_free(f->kv_len);
    km_free(f->table_start);
    km_free(f->table);
    km_free(f->rows);
    km_free(f->ids);
}

static bool wants_history(const struct smp_params *p)
{
    return p->presence != 0 || p->frequency != 0 || p->repetition != 1;
}

/* A row for the logits of q's last token. ahead: tokens that the step before will have added. */
static void add_sample(struct flight *f, const struct seq *q, int ahead)
{
    bool history = wants_history(&q->sampling);
    int output = seq_output(q) + ahead;
    f->rows[f->in.n_samples++] = (struct smp_row){.p = q->sampling,
                                                  .row = f->in.n_tokens - 1,
                                                  .step = (uint64_t)output,
                                                  .history = history ? q->tokens : NULL,
                                                  .n_history = history ? q->n_tokens : 0,
                                                  .n_prompt = q->n_prompt,
                                                  .banned = q->ends,
                                                  .n_banned = output < q->min_tokens ? q->n_ends : 0};
}

/* The scheduled rows of q as one more request. */
static void lay_out(struct flight *f, struct seq *q)
{
    struct batch *b = &f->in;
    int block = f->block_size, r = b->n_reqs++, from = q->n_computed + q->n_before, upto = from + q->n_now;
    for (int pos = from; pos < upto; pos++, b->n_tokens++) {
        f->tokens[b->n_tokens] = pos < q->n_tokens ? q->tokens[pos] : -(q->at + 1);
        f->positions[b->n_tokens] = pos;
        f->slots[b->n_tokens] = q->pages[pos / block] * block + pos % block;
    }
    f->q_start[b->n_reqs] = b->n_tokens;
    f->kv_len[r] = upto;
    f->kv += upto;
    memcpy(f->table + f->table_start[r], q->pages, (size_t)q->n_pages * sizeof *f->table);
    f->table_start[r + 1] = f->table_start[r] + q->n_pages;
    f->ids[r] = q->id;
    q->at = r;
    bool last = upto == q->n_tokens + q->n_before;
    if (last)
        add_sample(f, q, q->n_before);
    f->plain &= last && q->n_now == 1 && !q->by_host && q->sampling.n_logprobs < 0 && !wants_history(&q->sampling);
}

void fl_fill(struct flight *f, const struct sch *s)
{
    f->in.n_tokens = f->in.n_reqs = f->in.n_samples = 0;
    f->kv = 0;
    f->plain = true;
    for (struct seq *q = s->running.head; q; q = q->next)
        if (q->n_now)
            lay_out(f, q);
}

void fl_note(struct fl_pace *p, const struct flight *f, int64_t ns)
{
    p->last[1] = p->last[0];
    p->last[0] = (struct fl_took){.ns = ns, .kv = f->kv, .reqs = f->in.n_reqs};
}

/* A step never takes less than its share of a larger one, and hardly more than an equal one; the shorter of two tells,
 * for what holds the host up makes a step seem long. */
int64_t fl_guess(const struct fl_pace *p, const struct flight *f)
{
    int64_t least = 0;
    for (int i = 0; i < 2; i++) {
        const struct fl_took *t = &p->last[i];
        if (!t->ns)
            return 0;
        double share = 1;
        if (f->in.n_reqs < t->reqs)
            share = (double)f->in.n_reqs / t->reqs;
        if ((double)f->kv < share * (double)t->kv)
            share = (double)f->kv / (double)t->kv;
        int64_t ns = (int64_t)(share * (double)t->ns);
        least = i && least < ns ? least : ns;
    }
    return least;
}
