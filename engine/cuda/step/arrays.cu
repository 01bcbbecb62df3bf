/* Layout and contents of a step's arrays, on the host. */
#include "engine/cuda/attn/attn.h"
#include "engine/cuda/step/arrays.h"

#include <math.h>
#include <string.h>

size_t cu_step_layout(const cu_dims &m, int T, int R, char *base, cu_step_arrays *out)
{
    size_t at = 0, t = (size_t)T, r = (size_t)R, tiles = t / 2 + 1; /* a request with tiles has at least two rows */
    auto next = [&](size_t n) {
        int32_t *p = reinterpret_cast<int32_t *>(base + at);
        at += (n * sizeof(int32_t) + 63) / 64 * 64;
        return p;
    };
    out->bytes = next(1);
    out->tokens = next(t);
    out->positions = next(t);
    out->slots = next(t);
    out->q_start = next(r + 1);
    out->kv_len = next(r);
    out->table_start = next(r);
    out->tile_req = next(tiles);
    out->tile_row = next(tiles);
    out->splits =
        reinterpret_cast<cu_split *>(next((size_t)cu_attn_splits_max(m, R) * (sizeof(cu_split) / sizeof(int32_t))));
    out->tails =
        reinterpret_cast<cu_tail *>(next((size_t)cu_attn_tails_max(m, T, R) * (sizeof(cu_tail) / sizeof(int32_t))));
    out->sample_row = next(r);
    out->sampling = reinterpret_cast<cu_sampling *>(next(r * (sizeof(cu_sampling) / sizeof(int32_t))));
    out->ban_start = next(r + 1);
    out->ban = next(r * CU_MAX_BANNED);
    out->table = next(0);
    return at;
}

size_t cu_step_bytes(const cu_dims &m)
{
    cu_step_arrays none;
    size_t table = (size_t)m.max_reqs * (size_t)m.max_blocks * sizeof(int32_t);
    return cu_step_layout(m, m.max_tokens, m.max_reqs, nullptr, &none) + (table + 63) / 64 * 64;
}

/* Sets the first array: bytes of all arrays if the block table has n_pages entries. */
static void set_bytes(const cu_step_arrays &host, int n_pages)
{
    *host.bytes = (int32_t)((host.table - host.bytes) + n_pages) * (int32_t)sizeof(int32_t);
}

static cu_sampling make_sampling(const struct smp_row *r)
{
    const struct smp_params *p = &r->p;
    if (p->temperature == 0)
        return cu_sampling{0, 1, 0, 1, 0, true, false};
    float scale = (float)fmax(p->temperature, 0.01); /* as in smp_sample */
    return cu_sampling{smp_key(p->seed, r->step),
                       scale,
                       (float)p->min_p,
                       (float)p->top_p,
                       p->top_k,
                       false,
                       p->min_p > 0 || p->top_k > 0 || p->top_p < 1};
}

/* Adds the prefill tiles of request r. */
static void add_prefill_tiles(const cu_step_arrays &host, int r, cu_step_counts *n)
{
    for (int row = 0; row < host.q_start[r + 1] - host.q_start[r]; row += CU_TILE_Q) {
        host.tile_req[n->n_tiles] = r;
        host.tile_row[n->n_tiles++] = row;
    }
}

/* Divides the requests between the kernels of attention, and plans their work. scratch: decoding requests from the
 * front, tails from the end. */
static void plan_attention(const cu_dims &m, int n_reqs, const cu_step_arrays &host, int32_t *scratch,
                           cu_step_counts *n)
{
    int32_t *tails = scratch + m.max_reqs;
    for (int r = 0; r < n_reqs; r++) {
        int q_len = host.q_start[r + 1] - host.q_start[r];
        if (q_len == 1)
            scratch[n->n_decodes++] = r;
        else if (cu_attn_is_tail(m, q_len, host.kv_len[r]))
            *--tails = r;
        else
            add_prefill_tiles(host, r, n);
    }
    int n_tails = (int)(scratch + m.max_reqs - tails);
    if (!cu_attn_tails_pay(m, host, tails, n_tails))
        for (; n_tails > 0; n_tails--)
            add_prefill_tiles(host, *tails++, n);
    cu_attn_tails(m, host, tails, n_tails, n);
    n->n_splits = cu_attn_splits(m, host, scratch, n->n_decodes, host.splits);
}

void cu_step_fill(const cu_dims &m, const struct batch *in, const cu_step_arrays &host, int32_t *scratch,
                  cu_step_counts *n)
{
    *n = {};
    set_bytes(host, in->table_start[in->n_reqs]);
    memcpy(host.tokens, in->tokens, sizeof(int32_t) * (size_t)in->n_tokens);
    memcpy(host.positions, in->positions, sizeof(int32_t) * (size_t)in->n_tokens);
    memcpy(host.slots, in->slots, sizeof(int32_t) * (size_t)in->n_tokens);
    memcpy(host.q_start, in->q_start, sizeof(int32_t) * (size_t)(in->n_reqs + 1));
    memcpy(host.kv_len, in->kv_len, sizeof(int32_t) * (size_t)in->n_reqs);
    memcpy(host.table_start, in->table_start, sizeof(int32_t) * (size_t)in->n_reqs);
    memcpy(host.table, in->block_table, sizeof(int32_t) * (size_t)in->table_start[in->n_reqs]);
    plan_attention(m, in->n_reqs, host, scratch, n);
    int n_banned = 0;
    host.ban_start[0] = 0;
    for (int i = 0; i < in->n_samples; i++) {
        const struct smp_row *s = &in->samples[i];
        host.sample_row[i] = s->row;
        host.sampling[i] = make_sampling(s);
        for (int k = 0; k < s->n_banned && s->n_banned <= CU_MAX_BANNED; k++)
            host.ban[n_banned++] = s->banned[k];
        host.ban_start[i + 1] = n_banned;
    }
}

void cu_step_clear(const cu_step_arrays &host)
{
    set_bytes(host, 0);
    host.q_start[0] = host.ban_start[0] = 0;
}

/* Makes row i a padding row: token 0 at position 0, whose KV goes to `slot`. No attention runs for the row. */
static void pad_row(const cu_step_arrays &host, int i, int slot)
{
    host.tokens[i] = host.positions[i] = 0;
    host.slots[i] = slot;
    host.q_start[i + 1] = i + 1;
    host.kv_len[i] = 1;
    host.table_start[i] = 0;
    host.sample_row[i] = i;
    host.sampling[i] = cu_sampling{0, 1, 0, 1, 0, true, false};
    host.ban_start[i + 1] = host.ban_start[i];
}

void cu_step_pad(const cu_dims &m, const cu_step_arrays &host, int n_decodes, int n_splits, int reqs, int spare_page)
{
    for (int i = n_decodes; i < reqs; i++)
        pad_row(host, i, spare_page << m.B_log2);
    for (int i = n_splits; i < cu_attn_splits_max(m, reqs); i++)
        host.splits[i].req = -1;
}
