/* The list of what the CUDA backend holds, and the two things done with it: taking it and adding it up. */
#include "engine/cuda/workspace.h"
#include "engine/cuda/gemm/small_m_sm90.h"

#include <string.h>

/* n elements that *at will point to. */
template <typename T> static void add(struct cu_workspace *r, const char *name, enum km_mem_kind where, T **at, size_t n)
{
    r->rows[r->n_rows++] = cu_workspace_row{name, where, n * sizeof(T), reinterpret_cast<void **>(at)};
}

size_t cu_step_carve(const cu_dims &m, int T, int R, char *base, cu_step_arrays *out)
{
    size_t at = 0, t = (size_t)T, r = (size_t)R, tiles = t / 2 + 1; /* a tile has at least two rows */
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
    out->items = reinterpret_cast<cu_split *>(next((size_t)cu_attn_splits_max(m, R) * (sizeof(cu_split) / sizeof(int32_t))));
    out->sample_row = next(r);
    out->draws = reinterpret_cast<cu_sampling *>(next(r * (sizeof(cu_sampling) / sizeof(int32_t))));
    out->ban_start = next(r + 1);
    out->ban = next(r * CU_MAX_BANNED);
    out->table = next(0);
    return at;
}

/* Bytes of the largest step's. */
static size_t arrays_bytes(const cu_dims &m)
{
    cu_step_arrays none;
    size_t table = (size_t)m.max_reqs * (size_t)m.max_blocks * sizeof(int32_t);
    return cu_step_carve(m, m.max_tokens, m.max_reqs, nullptr, &none) + (table + 63) / 64 * 64;
}

int cu_gate_up_rows(const cu_dims &m)
{
    return cu_gate_up_sm90_usable(m) && m.max_tokens >= CU_GATE_UP_SM90_MIN ? CU_GATE_UP_SM90_MIN - 1 : m.max_tokens;
}

void cu_workspace_list(struct cu_workspace *r, const cu_dims &m)
{
    size_t T = (size_t)m.max_tokens, R = (size_t)m.max_reqs, D = (size_t)m.D, F = (size_t)m.F, V = (size_t)m.V;
    add(r, "residual stream", KM_MEM_DEVICE, &r->x, T * D);
    add(r, "normalised rows", KM_MEM_DEVICE, &r->h, T * D);
    add(r, "queries, keys, values", KM_MEM_DEVICE, &r->qkv, T * (size_t)(m.H + 2 * m.G) * m.d);
    add(r, "attention output", KM_MEM_DEVICE, &r->o, T * (size_t)m.H * m.d);
    add(r, "gate and up", KM_MEM_DEVICE, &r->gu, (size_t)cu_gate_up_rows(m) * 2 * F);
    add(r, "activation", KM_MEM_DEVICE, &r->act, T * F);
    add(r, "rows to sample", KM_MEM_DEVICE, &r->h_out, R * D);
    add(r, "logits", KM_MEM_DEVICE, &r->logits, R * V);
    add(r, "rotary frequencies", KM_MEM_DEVICE, &r->inv_freq, (size_t)m.d / 2);
    add(r, "rotary angles", KM_MEM_DEVICE, &r->angles, T * (size_t)m.d / 2);
    add(r, "attention scratch", KM_MEM_DEVICE, &r->attn_work, cu_attn_decode_work(m));
    add(r, "norm sums", KM_MEM_DEVICE, &r->sums, (D + 63) / 64 * CU_SMALL_M_SM90);
    add(r, "attention counters", KM_MEM_DEVICE, &r->handed, 2);
    add(r, "sampling scratch", KM_MEM_DEVICE, &r->pick_work, cu_sample_work(m.max_reqs));
    r->arrays_bytes = arrays_bytes(m);
    add(r, "step arrays", KM_MEM_DEVICE, &r->arrays, r->arrays_bytes);
    add(r, "step arrays", KM_MEM_PINNED, &r->host_arrays, 2 * r->arrays_bytes);
    add(r, "sampled tokens", KM_MEM_DEVICE, &r->chosen, R);
    add(r, "sampled tokens", KM_MEM_PINNED, &r->picks, 2 * R);
    add(r, "logits of one row", KM_MEM_PINNED, &r->logits_host, V);
    add(r, "sampler's scratch", KM_MEM_HOST, &r->scratch, V);
    add(r, "decoding requests", KM_MEM_HOST, &r->decoding, R);
}

int64_t cu_memory_limit(const struct be_opts *o, const cu_gpu *card)
{
    return o->memory_limit ? o->memory_limit : (int64_t)((double)card->total * o->memory_utilization);
}

int cu_workspace_add_pool(struct cu_workspace *r, const cu_dims &m, const struct be_opts *o, size_t weight_bytes,
                 const cu_gpu *card, struct km_err *err)
{
    size_t page = m.page_elems * sizeof(bf16), held = weight_bytes + cu_workspace_bytes(r, KM_MEM_DEVICE) + CU_RESERVE;
    double limit = (double)cu_memory_limit(o, card), room = limit - (double)held;
    if (room > (double)card->avail - (double)CU_RESERVE)
        room = (double)card->avail - (double)CU_RESERVE;
    long fit = room > 0 ? (long)(room / (double)page) - 1 : 0;
    r->n_pages = o->n_pages ? o->n_pages : (int)(fit < INT32_MAX / m.B ? fit : INT32_MAX / m.B);
    if (r->n_pages < 1 || r->n_pages > fit)
        return km_fail(err, KM_ELIMIT,
                       "no room for KV: %.2f GiB may be used, weights and work space hold %.2f, and %d pages of "
                       "%.2f MiB do not fit in the rest",
                       limit / (1 << 30), (double)held / (1 << 30), o->n_pages ? o->n_pages : 1,
                       (double)page / (1 << 20));
    add(r, "KV pool and a spare block", KM_MEM_DEVICE, &r->pool, (size_t)(r->n_pages + 1) * m.page_elems);
    return 0;
}

static int take(cu_workspace_row *row, struct km_err *err)
{
    void *p = nullptr;
    cudaError_t rc = cudaSuccess;
    if (row->where == KM_MEM_DEVICE) {
        if ((rc = cudaMalloc(&p, row->bytes)) != cudaSuccess)
            return km_fail(err, KM_EDEVICE,
                           "no %.2f GiB of work space on the card: %s; a smaller --max-num-batched-tokens or "
                           "--max-num-seqs needs less",
                           (double)row->bytes / (1 << 30), cudaGetErrorString(rc));
    } else if (row->where == KM_MEM_PINNED) {
        if ((rc = cudaHostAlloc(&p, row->bytes, cudaHostAllocDefault)) != cudaSuccess)
            return km_fail(err, KM_ENOMEM, "no %zu bytes of pinned memory: %s", row->bytes, cudaGetErrorString(rc));
        memset(p, 0, row->bytes);
    } else if (!(p = km_calloc(row->bytes, 1)))
        return km_fail(err, KM_ENOMEM, "out of memory");
    *row->at = p;
    if (row->where == KM_MEM_HOST)
        return 0; /* km_calloc has counted it */
    km_mem_note(row->where, (int64_t)row->bytes);
    if (row->where == KM_MEM_DEVICE)
        CU_TRY(cudaMemset(p, 0, row->bytes));
    return 0;
}

int cu_workspace_alloc(struct cu_workspace *r, struct km_err *err)
{
    for (int i = 0; i < r->n_rows; i++) {
        int rc = *r->rows[i].at ? 0 : take(&r->rows[i], err);
        if (rc)
            return rc;
    }
    return 0;
}

void cu_workspace_free(struct cu_workspace *r)
{
    for (int i = 0; i < r->n_rows; i++) {
        cu_workspace_row *row = &r->rows[i];
        void *p = *row->at;
        *row->at = nullptr;
        if (p && row->where == KM_MEM_HOST)
            km_free(p);
        else if (p) {
            row->where == KM_MEM_DEVICE ? cudaFree(p) : cudaFreeHost(p);
            km_mem_note(row->where, -(int64_t)row->bytes);
        }
    }
}

size_t cu_workspace_bytes(const struct cu_workspace *r, enum km_mem_kind where)
{
    size_t n = 0;
    for (int i = 0; i < r->n_rows; i++)
        n += r->rows[i].where == where ? r->rows[i].bytes : 0;
    return n;
}
