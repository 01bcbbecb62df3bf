/* Makes the list of buffers, allocates the buffers, and adds up their sizes. */
#include "engine/cuda/attn/attn.h"
#include "engine/cuda/gemm/gate_up_sm90.h"
#include "engine/cuda/gemm/small_m_sm90.h"
#include "engine/cuda/step/sample.h"
#include "engine/cuda/workspace.h"

extern "C" {
#include "base/buf.h"
}

#include <string.h>

/* Adds a buffer of n elements to the list. Once allocated, *pointer points to it. */
template <typename T>
static void add(struct cu_workspace *ws, const char *name, enum km_mem_kind kind, T **pointer, size_t n)
{
    ws->buffers[ws->n_buffers++] = cu_workspace_buffer{name, kind, n * sizeof(T), reinterpret_cast<void **>(pointer)};
}

int cu_gate_up_rows(const cu_dims &m)
{
    bool fused = cu_gate_up_sm90_usable(m) && m.max_tokens >= CU_GATE_UP_SM90_MIN;
    return fused ? CU_GATE_UP_SM90_MIN - 1 : m.max_tokens;
}

void cu_workspace_list(struct cu_workspace *ws, const cu_dims &m)
{
    size_t T = (size_t)m.max_tokens, R = (size_t)m.max_reqs, D = (size_t)m.D, F = (size_t)m.F, V = (size_t)m.V;
    add(ws, "residual stream", KM_MEM_DEVICE, &ws->x, T * D);
    add(ws, "normalised rows", KM_MEM_DEVICE, &ws->h, T * D);
    add(ws, "queries, keys, values", KM_MEM_DEVICE, &ws->qkv, T * (size_t)(m.H + 2 * m.G) * m.d);
    add(ws, "attention output", KM_MEM_DEVICE, &ws->o, T * (size_t)m.H * m.d);
    add(ws, "gate and up", KM_MEM_DEVICE, &ws->gu, (size_t)cu_gate_up_rows(m) * 2 * F);
    add(ws, "activation", KM_MEM_DEVICE, &ws->act, T * F);
    add(ws, "rows to sample", KM_MEM_DEVICE, &ws->h_out, R * D);
    add(ws, "logits", KM_MEM_DEVICE, &ws->logits, R * V);
    add(ws, "rotary frequencies", KM_MEM_DEVICE, &ws->inv_freq, (size_t)m.d / 2);
    add(ws, "rotary angles", KM_MEM_DEVICE, &ws->angles, T * (size_t)m.d / 2);
    add(ws, "attention workspace", KM_MEM_DEVICE, &ws->attn_workspace, cu_attn_decode_workspace(m));
    if (cu_attn_prefill_sm90_usable(m))
        add(ws, "partials of tails", KM_MEM_DEVICE, &ws->tail_workspace, cu_attn_tail_workspace(m));
    add(ws, "sums of squares for norms", KM_MEM_DEVICE, &ws->squares, (D + 63) / 64 * CU_SMALL_M_SM90_MAX);
    add(ws, "attention job counters", KM_MEM_DEVICE, &ws->job_counters, 2);
    add(ws, "sampling workspace", KM_MEM_DEVICE, &ws->sample_workspace, cu_sample_workspace(m.max_reqs));
    ws->arrays_bytes = cu_step_bytes(m);
    add(ws, "step arrays", KM_MEM_DEVICE, &ws->arrays, ws->arrays_bytes);
    add(ws, "step arrays, pinned", KM_MEM_PINNED, &ws->host_arrays, 2 * ws->arrays_bytes);
    add(ws, "sampled ids", KM_MEM_DEVICE, &ws->sampled_ids, R);
    add(ws, "sampled ids, pinned", KM_MEM_PINNED, &ws->sampled_host, 2 * R);
    add(ws, "logits of one row", KM_MEM_PINNED, &ws->logits_host, V);
    add(ws, "reference sampler's workspace", KM_MEM_HOST, &ws->sample_scratch, V);
    add(ws, "page checksums, partial", KM_MEM_DEVICE, &ws->copy.partial, 2 * KV_COPY_MOST);
    add(ws, "page checksums, pinned", KM_MEM_PINNED, &ws->copy.sums, 2 * CU_COPY_TICKETS * KV_COPY_MOST);
    add(ws, "indices of requests", KM_MEM_HOST, &ws->requests, R);
}

int64_t cu_memory_limit(const struct be_opts *o, const cu_gpu *gpu)
{
    return o->memory_limit ? o->memory_limit : (int64_t)((double)gpu->total * o->memory_utilization);
}

int cu_workspace_add_pool(struct cu_workspace *ws, const cu_dims &m, const struct be_opts *o, size_t weight_bytes,
                          const cu_gpu *gpu, struct km_err *err)
{
    size_t page = m.page_elems * sizeof(bf16), used = weight_bytes + cu_workspace_bytes(ws, KM_MEM_DEVICE) + CU_RESERVE;
    double limit = (double)cu_memory_limit(o, gpu), left = limit - (double)used;
    if (left > (double)gpu->avail - (double)CU_RESERVE)
        left = (double)gpu->avail - (double)CU_RESERVE;
    long fit = left > 0 ? (long)(left / (double)page) - 1 : 0;
    ws->n_pages = o->n_pages ? o->n_pages : (int)(fit < INT32_MAX / m.B ? fit : INT32_MAX / m.B);
    if (ws->n_pages < 1 || ws->n_pages > fit)
        return km_fail(err, KM_ELIMIT,
                       "no memory for the KV pool: the limit is %s, weights, workspace and reserve take %s, and the "
                       "rest does not hold %d page%s of %s; raise --gpu-memory-utilization or --gpu-memory-limit, or "
                       "lower --max-num-batched-tokens",
                       km_size_text((int64_t)limit).s, km_size_text((int64_t)used).s, o->n_pages ? o->n_pages : 1,
                       o->n_pages > 1 ? "s" : "", km_size_text((int64_t)page).s);
    add(ws, "KV pool and a spare page", KM_MEM_DEVICE, &ws->pool, (size_t)(ws->n_pages + 1) * m.page_elems);
    return 0;
}

static int alloc_buffer(cu_workspace_buffer *b, struct km_err *err)
{
    void *p = nullptr;
    cudaError_t rc = cudaSuccess;
    if (b->kind == KM_MEM_DEVICE) {
        if ((rc = cudaMalloc(&p, b->bytes)) != cudaSuccess)
            return km_fail(err, KM_EDEVICE,
                           "cannot allocate %.2f GiB on the GPU for the workspace (%s): %s; lower "
                           "--max-num-batched-tokens or --max-num-seqs",
                           (double)b->bytes / (1 << 30), b->name, cudaGetErrorString(rc));
    } else if (b->kind == KM_MEM_PINNED) {
        if ((rc = cudaHostAlloc(&p, b->bytes, cudaHostAllocDefault)) != cudaSuccess)
            return km_fail(err, KM_ENOMEM, "cannot allocate %zu bytes of pinned memory for the workspace (%s): %s",
                           b->bytes, b->name, cudaGetErrorString(rc));
        memset(p, 0, b->bytes);
    } else if (!(p = km_calloc(b->bytes, 1)))
        return km_fail(err, KM_ENOMEM, "cannot allocate %zu bytes of memory for the workspace (%s)", b->bytes, b->name);
    *b->pointer = p;
    if (b->kind == KM_MEM_HOST)
        return 0; /* km_calloc counts its memory itself */
    km_mem_note(b->kind, (int64_t)b->bytes);
    if (b->kind == KM_MEM_DEVICE)
        CU_TRY(cudaMemset(p, 0, b->bytes));
    return 0;
}

int cu_workspace_alloc(struct cu_workspace *ws, struct km_err *err)
{
    for (int i = 0; i < ws->n_buffers; i++) {
        int rc = *ws->buffers[i].pointer ? 0 : alloc_buffer(&ws->buffers[i], err);
        if (rc)
            return rc;
    }
    return 0;
}

void cu_workspace_free(struct cu_workspace *ws)
{
    for (int i = 0; i < ws->n_buffers; i++) {
        cu_workspace_buffer *b = &ws->buffers[i];
        void *p = *b->pointer;
        *b->pointer = nullptr;
        if (p && b->kind == KM_MEM_HOST)
            km_free(p);
        else if (p) {
            b->kind == KM_MEM_DEVICE ? cudaFree(p) : cudaFreeHost(p);
            km_mem_note(b->kind, -(int64_t)b->bytes);
        }
    }
}

size_t cu_workspace_bytes(const struct cu_workspace *ws, enum km_mem_kind kind)
{
    size_t n = 0;
    for (int i = 0; i < ws->n_buffers; i++)
        n += ws->buffers[i].kind == kind ? ws->buffers[i].bytes : 0;
    return n;
}
