/* The CUDA backend (engine/backend.h): a stream for steps, CUDA graphs for decode steps, and the copier (copy.h).
 *
 * A step consists of kernels only. Its first kernel reads the step's arrays from pinned memory, and its last kernel
 * writes the sampled ids to pinned memory. A step in which every request has one query token and is sampled replays a
 * CUDA graph of at least its size (step/graph.h). The padding rows store their KV in a spare page that no request
 * reads. All memory is allocated at open. Of the calls for steps, only cuda_wait blocks.
 *
 * Two steps may be in flight. Pinned memory that the host fills or reads exists twice: step n uses buffer n % 2. Device
 * memory exists once, because the stream runs the steps in order. The logits on the device are therefore those of the
 * step that was submitted last. */
#include "engine/cuda/attn/attn.h"
#include "engine/cuda/copy.h"
#include "engine/cuda/gemm/gemm.h"
#include "engine/cuda/gemm/gemm_lt.h"
#include "engine/cuda/plan.h"
#include "engine/cuda/step/fused.h"
#include "engine/cuda/step/graph.h"
#include "engine/cuda/step/sample.h"

extern "C" {
#include "base/clock.h"
}

#include <stdio.h>
#include <string.h>

namespace
{

/* Events of steps. Two would do for the steps in flight. With more of them, a copy that another thread submits rarely
 * waits for a later step than its fence. */
enum { STEP_EVENTS = 8 };

/* A step in flight. */
struct step_slot {
    const struct batch *in; /* its batch; NULL: the slot is free */
    int64_t submitted_ns;   /* km_now_ns at its submission */
};

} // namespace

struct be {
    cu_dims m;
    const struct mdl *mdl;
    cu_weights weights;
    cu_workspace ws;
    struct cu_gemms *gemms;
    bool prefill_sm90;       /* prefill attention runs in attn/prefill_sm90.cu */
    cu_prefill_plan prefill; /* used if prefill_sm90 */
    cu_graphs graphs;

    cudaStream_t step_stream;
    uint64_t n_steps, n_ended;          /* steps submitted, and known to have ended. Written by the engine's thread,
                                           and read by the thread that copies: atomic. Tickets are numbered from 1 */
    step_slot in_flight[2];             /* step n uses [n % 2] */
    cudaEvent_t step_done[STEP_EVENTS]; /* step n uses [n % STEP_EVENTS]; completes when its kernels have ended */
    cu_copier copier;

    int64_t last_retired_ns; /* km_now_ns when the last step was retired */
    struct be_stats stats;
};

/* ---- the forward pass ---- */

static char *host_arrays(const struct be *b, int buf)
{
    return b->ws.host_arrays + (size_t)buf * b->ws.arrays_bytes;
}

/* Enqueues the attention of a layer. n: counts of the step. */
static void enqueue_attention(const struct be *b, const cu_step_arrays &in, const cu_step_counts &n, int layer)
{
    const cu_workspace &ws = b->ws;
    cudaStream_t s = b->step_stream;
    if (n.n_splits)
        cu_attn_decode(b->m, ws.qkv, in, n.n_splits, layer, ws.pool, ws.o, ws.attn_workspace, s);
    if (n.n_tiles && b->prefill_sm90)
        cu_attn_prefill_sm90(b->m, b->prefill, in, n.n_tiles, layer, ws.o, s);
    else if (n.n_tiles)
        cu_attn_prefill(b->m, ws.qkv, in, n.n_tiles, layer, ws.pool, ws.o, s);
    if (n.n_tail_splits)
        cu_attn_tails_sm90(b->m, b->prefill, in, n, layer, ws.tail_workspace, ws.o, s);
}

/* Enqueues the kernels of a step of T tokens of R requests. Its arrays are in pinned buffer buf. S rows are sampled. */
static int enqueue_step(struct be *b, int buf, int T, int R, const cu_step_counts &n, int S, struct km_err *err)
{
    const cu_dims &m = b->m;
    const cu_workspace &ws = b->ws;
    cu_step_arrays in;
    cudaStream_t s = b->step_stream;
    int rc = 0;
    cu_fetch(host_arrays(b, buf), cu_step_layout(m, T, R, ws.arrays, &in), ws.arrays, s);
    cu_embed(m, b->weights.embed, ws.inv_freq, in, ws.sampled_ids, T, ws.x, ws.angles, s);
    rc = cu_gemm_run(b->gemms, CU_GEMM_QKV, 0, T, in, s, err);
    for (int l = 0; l < m.L && !rc; l++) {
        enqueue_attention(b, in, n, l);
        rc = cu_gemm_chain(b->gemms, l, T, in, s, err);
    }
    if (!rc && S) {
        cu_rmsnorm(m, ws.x, b->weights.norm_out, in.sample_row, S, ws.h_out, s);
        rc = cu_gemm_run(b->gemms, CU_GEMM_HEAD, 0, S, in, s, err);
        cu_sample(ws.logits, S, m.V, in, m.max_reqs, ws.sample_workspace, ws.sampled_ids,
                  ws.sampled_host + buf * m.max_reqs, s);
    }
    if (rc)
        return rc;
    CU_TRY(cudaGetLastError());
    return 0;
}

/* Enqueues a decode step of padding rows only. CUDA graphs are captured from it (cu_graph_enqueue). */
static int enqueue_padding(void *self, int buf, int reqs, struct km_err *err)
{
    struct be *b = static_cast<struct be *>(self);
    cu_step_arrays host;
    cu_step_layout(b->m, reqs, reqs, host_arrays(b, buf), &host);
    cu_step_clear(host);
    cu_step_pad(b->m, host, 0, 0, reqs, b->ws.n_pages);
    cu_step_counts n = {};
    n.n_splits = cu_attn_splits_max(b->m, reqs);
    return enqueue_step(b, buf, reqs, reqs, n, reqs, err);
}

/* ---- steps ---- */

static int check_step(const struct be *b, const struct batch *in, struct km_err *err)
{
    const struct batch *running = b->in_flight[b->n_steps % 2].in; /* the step that was submitted last */
    if (b->in_flight[(b->n_steps + 1) % 2].in)
        return km_fail(err, KM_EINVAL, "step %llu is submitted while two steps are in flight: wait for step %llu first",
                       (unsigned long long)b->n_steps + 1, (unsigned long long)b->n_steps - 1);
    if (in->n_tokens < 1 || in->n_tokens > b->m.max_tokens || in->n_reqs > b->m.max_reqs || in->n_samples > in->n_reqs)
        return km_fail(err, KM_EINVAL,
                       "a step has %d tokens, %d requests and %d sampled rows; the backend was opened for %d tokens "
                       "and %d requests",
                       in->n_tokens, in->n_reqs, in->n_samples, b->m.max_tokens, b->m.max_reqs);
    for (int r = 0; r < in->n_reqs; r++)
        if ((in->kv_len[r] + b->m.B - 1) >> b->m.B_log2 > b->m.max_blocks)
            return km_fail(err, KM_EINVAL,
                           "request %d of a step has %d tokens; the backend was opened for %d blocks of %d tokens per "
                           "request",
                           r, in->kv_len[r], b->m.max_blocks, b->m.B);
    if (in->table_start[in->n_reqs] > in->n_reqs * b->m.max_blocks)
        return km_fail(err, KM_EINVAL,
                       "a step of %d requests has %d pages; the backend was opened for %d pages per request",
                       in->n_reqs, in->table_start[in->n_reqs], b->m.max_blocks);
    for (int i = 0; i < in->n_tokens; i++)
        if (in->tokens[i] < 0 && (!running || -(in->tokens[i] + 1) >= running->n_samples))
            return km_fail(err, KM_EINVAL,
                           "the token of row %d of a step is sample %d of the step in flight, which has no such sample",
                           i, -(in->tokens[i] + 1));
    return 0;
}

static int cuda_step(struct be *b, const struct batch *in, uint64_t *ticket, struct km_err *err)
{
    int64_t now = km_now_ns();
    int rc = check_step(b, in, err), buf = (b->n_steps + 1) % 2;
    if (rc)
        return rc;
    cu_step_counts n;
    const cu_graph *g = cu_graphs_find(&b->graphs, in);
    int T = g ? g->reqs : in->n_tokens, R = g ? g->reqs : in->n_reqs;
    cu_step_arrays host;
    cu_step_layout(b->m, T, R, host_arrays(b, buf), &host);
    cu_step_fill(b->m, in, host, b->ws.requests, &n);
    if (g) {
        cu_step_pad(b->m, host, n.n_decodes, n.n_splits, R, b->ws.n_pages);
        CU_TRY(cudaGraphLaunch(g->exec[buf], b->step_stream));
    } else if ((rc = enqueue_step(b, buf, T, R, n, in->n_samples, err)))
        return rc;
    step_slot *f = &b->in_flight[buf];
    *ticket = b->n_steps + 1;
    CU_TRY(cudaEventRecord(b->step_done[*ticket % STEP_EVENTS], b->step_stream));
    f->in = in;
    f->submitted_ns = now;
    __atomic_store_n(&b->n_steps, *ticket, __ATOMIC_RELEASE); /* after the event was recorded */
    return 0;
}

static void count_flops(struct be *b, const struct batch *in)
{
    const cu_dims &m = b->m;
    double per_token = 2.0 * m.D * ((m.H + 2.0 * m.G) * m.d + (double)m.H * m.d + 3.0 * m.F), attn = 0;
    for (int r = 0; r < in->n_reqs; r++) {
        double q = in->q_start[r + 1] - in->q_start[r], len = in->kv_len[r];
        attn += q * (len - (q - 1) / 2) * 4.0 * m.H * m.d;
    }
    b->stats.flops += m.L * (per_token * in->n_tokens + attn) + 2.0 * m.D * m.V * in->n_samples;
}

/* True if the kernels of step/sample.cu can sample the row. The reference sampler samples all other rows. */
static bool device_samples(const struct smp_row *r)
{
    return r->p.n_logprobs < 0 && !r->n_history && r->n_banned <= CU_MAX_BANNED;
}

/* Samples row i of the step that was submitted last with the reference sampler, from the logits on the device. */
static int sample_on_host(struct be *b, const struct smp_row *row, int i, struct smp_result *out, struct km_err *err)
{
    size_t V = (size_t)b->m.V;
    CU_TRY(cudaMemcpy(b->ws.logits_host, b->ws.logits + (size_t)i * V, sizeof(float) * V, cudaMemcpyDeviceToHost));
    smp_sample(row, b->ws.logits_host, b->m.V, b->ws.sample_scratch, out);
    out->by_host = true;
    return 0;
}

static int cuda_wait(struct be *b, uint64_t ticket, struct smp_result *out, struct km_err *err)
{
    int buf = ticket % 2;
    step_slot *f = &b->in_flight[buf];
    const struct batch *in = f->in;
    bool last_submitted = ticket == b->n_steps;
    if (!in || !ticket || (!last_submitted && ticket + 1 != b->n_steps))
        return km_fail(err, KM_EINVAL, "step %llu is not in flight", (unsigned long long)ticket);
    f->in = nullptr;
    CU_TRY(cudaEventSynchronize(b->step_done[ticket % STEP_EVENTS]));
    __atomic_store_n(&b->n_ended, ticket, __ATOMIC_RELEASE);
    const int32_t *ids = b->ws.sampled_host + buf * b->m.max_reqs;
    for (int i = 0; i < in->n_samples; i++) {
        bool sampled = device_samples(&in->samples[i]) && ids[i] >= 0;
        if (!sampled && last_submitted) {
            int rc = sample_on_host(b, &in->samples[i], i, &out[i], err);
            if (rc)
                return rc;
            continue;
        }
        /* An unsampled row of an earlier step gets the id -1: the next step overwrites the logits that the reference
         * sampler would need. */
        out[i].id = sampled ? ids[i] : -1;
        out[i].logprob = 0;
        out[i].rank = out[i].n_top = 0;
        out[i].by_host = false;
    }
    count_flops(b, in);
    int64_t now = km_now_ns();
    b->stats.busy_ns += now - (f->submitted_ns > b->last_retired_ns ? f->submitted_ns : b->last_retired_ns);
    b->last_retired_ns = now;
    return 0;
}

/* ---- copies, which one other thread may submit and poll ---- */

/* Sets *fence to the event that completes when step `after` has ended, or to NULL if it is known to have ended. Another
 * thread may submit steps meanwhile: if it uses the event again, the copy waits for a later step, which is correct. */
static int find_fence(const struct be *b, uint64_t after, cudaEvent_t *fence, struct km_err *err)
{
    uint64_t n_steps = __atomic_load_n(&b->n_steps, __ATOMIC_ACQUIRE);
    *fence = nullptr;
    if (after > n_steps)
        return km_fail(err, KM_EINVAL, "a copy waits for step %llu, but only %llu steps were submitted",
                       (unsigned long long)after, (unsigned long long)n_steps);
    if (after > __atomic_load_n(&b->n_ended, __ATOMIC_ACQUIRE))
        *fence = b->step_done[after % STEP_EVENTS];
    return 0;
}

static int cuda_copy(struct be *b, enum kv_dir dir, struct kv_copy *c, int n, uint64_t after, uint64_t *ticket,
                     struct km_err *err)
{
    cudaEvent_t fence;
    int rc = find_fence(b, after, &fence, err);
    return rc ? rc : cu_copy_submit(&b->copier, dir, c, n, fence, ticket, err);
}

static int cuda_poll(struct be *b, uint64_t ticket)
{
    return cu_copy_poll(&b->copier, ticket);
}

static int cuda_host_register(struct be *, void *p, size_t size, struct km_err *err)
{
    return cu_host_register(p, size, err);
}

static void cuda_host_unregister(struct be *, void *p, size_t size)
{
    cu_host_unregister(p, size);
}

/* ---- open and close ---- */

static void cuda_close(struct be *b)
{
    if (!b)
        return;
    cudaDeviceSynchronize();
    cu_graphs_free(&b->graphs);
    cu_copier_close(&b->copier);
    cu_workspace_free(&b->ws);
    cu_gemms_close(b->gemms);
    cu_weights_free(&b->weights);
    for (cudaEvent_t e : b->step_done)
        if (e)
            cudaEventDestroy(e);
    if (b->step_stream)
        cudaStreamDestroy(b->step_stream);
    km_free(b);
}

/* Allocates the workspace, and then the KV pool from the remaining memory. */
static int alloc_workspace(struct be *b, const struct be_opts *o, struct km_err *err)
{
    const cu_dims &m = b->m;
    cu_workspace *ws = &b->ws;
    cu_workspace_list(ws, m);
    int rc = cu_workspace_alloc(ws, err);
    if (rc)
        return rc;
    size_t without_pool = cu_workspace_bytes(ws, KM_MEM_DEVICE);
    cu_gpu gpu;
    CU_TRY(cudaMemGetInfo(&gpu.avail, &gpu.total));
    rc = cu_workspace_add_pool(ws, m, o, b->weights.bytes, &gpu, err);
    rc = rc ? rc : cu_workspace_alloc(ws, err);
    if (rc)
        return rc;
    b->stats.workspace_bytes = (int64_t)without_pool + CU_LT_WORKSPACE;
    b->stats.kv_bytes = (int64_t)(cu_workspace_bytes(ws, KM_MEM_DEVICE) - without_pool);

    float freq[64];
    mdl_inv_freq(mdl_config(b->mdl), freq);
    CU_TRY(cudaMemcpy(ws->inv_freq, freq, sizeof(float) * (size_t)m.d / 2, cudaMemcpyHostToDevice));
    return 0;
}

static int plan_prefill(struct be *b, struct km_err *err)
{
    const cu_workspace &ws = b->ws;
    b->prefill_sm90 = cu_attn_prefill_sm90_usable(b->m);
    if (!b->prefill_sm90)
        return 0;
    return cu_attn_prefill_sm90_plan(&b->prefill, b->m, ws.pool, ws.n_pages + 1, ws.qkv, b->m.max_tokens,
                                     ws.job_counters, err);
}

static int capture_graphs(struct be *b, struct km_err *err)
{
    int max_reqs = b->m.max_reqs < b->m.max_tokens ? b->m.max_reqs : b->m.max_tokens;
    return cu_graphs_capture(&b->graphs, max_reqs, enqueue_padding, b, b->step_stream, err);
}

static int open_parts(struct be *b, const struct be_opts *o, const struct mdl *m, struct km_err *err)
{
    cu_gpu gpu;
    CU_TRY(cudaSetDevice(0));
    int rc = cu_gpu_get(&gpu, err);
    rc = rc ? rc : cu_dims_make(&b->m, o, m, &gpu, err);
    if (rc)
        return rc;
    snprintf(b->stats.device, sizeof b->stats.device, "%.60s, %.0f GiB", gpu.name, (double)gpu.total / (1 << 30));
    b->mdl = m;
    CU_TRY(cudaStreamCreateWithFlags(&b->step_stream, cudaStreamNonBlocking));
    for (cudaEvent_t &e : b->step_done)
        CU_TRY(cudaEventCreateWithFlags(&e, cudaEventDisableTiming));
    rc = cu_weights_load(&b->weights, m, err);
    rc = rc ? rc : alloc_workspace(b, o, err);
    rc = rc ? rc : cu_copier_open(&b->copier, b->m, b->ws.pool, b->ws.n_pages, b->ws.copy, err);
    rc = rc ? rc : plan_prefill(b, err);
    rc = rc ? rc : cu_gemms_open(&b->gemms, b->m, &b->weights, &b->ws, b->step_stream, err);
    rc = rc ? rc : capture_graphs(b, err);
    b->stats.weight_bytes = (int64_t)b->weights.bytes;
    return rc;
}

static int cuda_open(struct be **out, const struct be_opts *o, const struct mdl *m, struct kv_geom *geom,
                     struct km_err *err)
{
    struct be *b = static_cast<be *>(km_calloc(1, sizeof *b));
    if (!b)
        return km_fail(err, KM_ENOMEM, "out of memory for the CUDA backend");
    int rc = open_parts(b, o, m, err);
    if (rc) {
        cuda_close(b);
        return rc;
    }
    *geom = cu_geom(b->m, m, b->ws.n_pages);
    *out = b;
    return 0;
}

static void cuda_stats(struct be *b, struct be_stats *out)
{
    *out = b->stats;
}

/* In the order of the members of struct backend: C++17 has no designated initialisers. */
extern "C" const struct backend be_cuda = {
    "cuda",    true, /* async_sched */
    true,            /* threads */
    false,           /* no_payload */
    cu_probe,  cu_measure, cu_plan,   cuda_open,          cuda_close,           cuda_step,
    cuda_wait, cuda_copy,  cuda_poll, cuda_host_register, cuda_host_unregister, nullptr, /* now */
    cuda_stats};
