/* Filling the arrays of a step from the scheduled requests, and estimating how long a decode step takes. */
#include "engine/step.h"

#include "base/mem.h"

#include <string.h>

int step_init(struct step *s, int max_tokens, int max_reqs, int max_blocks, int block_size, struct km_err *err)
{
    size_t t = (size_t)max_tokens, r = (size_t)max_reqs, blocks = r * (size_t)max_blocks;
    s->block_size = block_size;
    s->batch.tokens = s->tokens = km_calloc(t, sizeof *s->tokens);
    s->batch.positions = s->positions = km_calloc(t, sizeof *s->positions);
    s->batch.slots = s->slots = km_calloc(t, sizeof *s->slots);
    s->batch.q_start = s->q_start = km_calloc(r + 1, sizeof *s->q_start);
    s->batch.kv_len = s->kv_len = km_calloc(r, sizeof *s->kv_len);
    s->batch.table_start = s->table_start = km_calloc(r + 1, sizeof *s->table_start);
    s->batch.block_table = s->block_table = km_calloc(blocks, sizeof *s->block_table);
    s->batch.samples = s->samples = km_calloc(r, sizeof *s->samples);
    s->req_ids = km_calloc(r, sizeof *s->req_ids);
    if (!s->tokens || !s->positions || !s->slots || !s->q_start || !s->kv_len || !s->table_start || !s->block_table ||
        !s->samples || !s->req_ids)
        return km_fail(err, KM_ENOMEM,
                       "no memory for the arrays of a step of %zu tokens and %zu requests: lower "
                       "--max-num-batched-tokens or --max-num-seqs",
                       t, r);
    return 0;
}

void step_deinit(struct step *s)
{
    km_free(s->tokens);
    km_free(s->positions);
    km_free(s->slots);
    km_free(s->q_start);
    km_free(s->kv_len);
    km_free(s->table_start);
    km_free(s->block_table);
    km_free(s->samples);
    km_free(s->req_ids);
}

static bool needs_history(const struct smp_params *p)
{
    return p->presence != 0 || p->frequency != 0 || p->repetition != 1;
}

/* Adds a sample for the row that was added last, which is q's last token. n_unseen: tokens that the step in flight will
 * append to q, 0 or 1. */
static void add_sample(struct step *s, const struct seq *q, int n_unseen)
{
    bool history = needs_history(&q->sampling);
    int n_output = seq_output(q) + n_unseen;
    s->samples[s->batch.n_samples++] = (struct smp_row){.p = q->sampling,
                                                        .row = s->batch.n_tokens - 1,
                                                        .step = (uint64_t)n_output,
                                                        .history = history ? q->tokens : NULL,
                                                        .n_history = history ? q->n_tokens : 0,
                                                        .n_prompt = q->n_prompt,
                                                        .banned = q->end_ids,
                                                        .n_banned = n_output < q->min_tokens ? q->n_end_ids : 0};
}

/* Adds q with its scheduled rows to the batch. */
static void add_request(struct step *s, struct seq *q)
{
    struct batch *b = &s->batch;
    int block = s->block_size, r = b->n_reqs++, from = q->n_computed + q->n_rows_before, to = from + q->n_rows;
    for (int pos = from; pos < to; pos++, b->n_tokens++) {
        s->tokens[b->n_tokens] = pos < q->n_tokens ? q->tokens[pos] : -(q->batch_index + 1);
        s->positions[b->n_tokens] = pos;
        s->slots[b->n_tokens] = q->pages[pos / block] * block + pos % block;
    }
    s->q_start[b->n_reqs] = b->n_tokens;
    s->kv_len[r] = to;
    s->kv_tokens += to;
    memcpy(s->block_table + s->table_start[r], q->pages, (size_t)q->n_pages * sizeof *s->block_table);
    s->table_start[r + 1] = s->table_start[r] + q->n_pages;
    s->req_ids[r] = q->id;
    q->batch_index = r;
    bool ends_with_last_token = to == q->n_tokens + q->n_rows_before;
    if (ends_with_last_token)
        add_sample(s, q, q->n_rows_before);
    s->is_async_decode &= ends_with_last_token && q->n_rows == 1 && !q->by_host && q->sampling.n_logprobs < 0 &&
                          !needs_history(&q->sampling);
}

void step_fill(struct step *s, const struct sch *sched)
{
    s->batch.n_tokens = s->batch.n_reqs = s->batch.n_samples = 0;
    s->kv_tokens = 0;
    s->is_async_decode = true;
    const struct seq_list *const lists[] = {&sched->running, &sched->loading};
    for (int i = 0; i < 2; i++)
        for (struct seq *q = lists[i]->head; q; q = q->next)
            if (q->n_rows)
                add_request(s, q);
}

void step_times_add(struct step_times *t, const struct step *s, int64_t ns)
{
    t->last[1] = t->last[0];
    t->last[0] = (struct step_time){.ns = ns, .kv_tokens = s->kv_tokens, .n_reqs = s->batch.n_reqs};
}

/* The estimate scales each of the two recorded steps down to the size of step s, but never up. It is the smaller of the
 * two, because a delay of the host makes a step seem longer, never shorter. */
int64_t step_times_estimate(const struct step_times *t, const struct step *s)
{
    int64_t least = 0;
    for (int i = 0; i < 2; i++) {
        const struct step_time *past = &t->last[i];
        if (!past->ns)
            return 0;
        double share = 1;
        if (s->batch.n_reqs < past->n_reqs)
            share = (double)s->batch.n_reqs / past->n_reqs;
        if ((double)s->kv_tokens < share * (double)past->kv_tokens)
            share = (double)s->kv_tokens / (double)past->kv_tokens;
        int64_t ns = (int64_t)(share * (double)past->ns);
        least = i && least < ns ? least : ns;
    }
    return least;
}
