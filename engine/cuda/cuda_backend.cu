/* The CUDA backend: one stream of steps, one of copies, and a graph per padded batch size for decode.
 *
 * A step is kernels only, of which the first reads its arrays from pinned memory and the last writes the picks there.
 * Steps in which every request has one query token replay a captured graph of the next larger batch size; the surplus
 * rows belong to a page of their own that nobody reads. Everything is allocated at open. The host waits in `wait` only.
 *
 * Two steps may be in flight: what the host fills or reads is there twice, step n's in [n % 2]; what the card uses is
 * there once, and the stream keeps the order. The logits are the newest step's. */
#include "engine/cuda/product.h"

extern "C" {
#include "base/clock.h"
}

#include <math.h>
#include <stdio.h>
#include <string.h>

namespace {

enum { MAX_GRAPHS = 64, COPY_EVENTS = 64, COPY_BATCH = 256 };

struct graph {
    int reqs;
    cudaGraphExec_t exec[2]; /* step n's is [n % 2]: each has its side of pinned memory */
};

struct flying {
    const struct batch *in; /* NULL: none */
    int64_t began;
    cudaEvent_t done;
};

} // namespace

struct be {
    cu_dims m;
    const struct mdl *mdl;
    cu_weights w;
    struct cu_products *products;
    cudaStream_t steps, copies;
    cudaEvent_t copy_done[COPY_EVENTS];
    uint64_t n_steps, n_copies;
    flying flight[2]; /* step n in [n % 2] */

    cu_room room; /* work space, step arrays, KV pool */
    cu_prefill_plan prefill;
    bool sm90; /* prefill is made, and the Hopper kernel used */

    graph graphs[MAX_GRAPHS];
    int n_graphs;

    int64_t ended; /* when the last step was seen to end */
    struct be_stats st;
};

/* ---- the forward pass ---- */

/* One of the two places in pinned memory for a step's arrays. */
static char *side_of(const struct be *b, int side)
{
    return b->room.host_arrays + (size_t)side * b->room.arrays_bytes;
}

/* Enqueues a step of T tokens of R requests whose arrays lie on one side; S rows are sampled. */
static int forward(struct be *b, int side, int T, int R, int n_items, int n_tiles, int S, struct km_err *err)
{
    const cu_dims &m = b->m;
    cu_meta in;
    cudaStream_t s = b->steps;
    int rc = 0;
    cu_fetch(side_of(b, side), cu_carve(m, T, R, b->room.arrays, &in), b->room.arrays, s);
    cu_embed(m, b->w.embed, b->room.inv_freq, in, b->room.chosen, T, b->room.x, b->room.angles, s);
    rc = cu_product(b->products, CU_QKV, 0, T, in, s, err);
    for (int l = 0; l < m.L && !rc; l++) {
        if (n_items)
            cu_attn_decode(m, b->room.qkv, in, n_items, l, b->room.pool, b->room.o, b->room.attn_work, s);
        if (n_tiles && b->sm90)
            cu_attn_prefill_sm90(m, b->prefill, in, n_tiles, l, b->room.o, s);
        else if (n_tiles)
            cu_attn_prefill(m, b->room.qkv, in, n_tiles, l, b->room.pool, b->room.o, s);
        rc = cu_product_chain(b->products, l, T, in, s, err);
    }
    if (!rc && S) {
        cu_rmsnorm(m, b->room.x, b->w.norm_out, in.sample_row, S, b->room.h_out, s);
        rc = cu_product(b->products, CU_HEAD, 0, S, in, s, err);
        cu_sample(b->room.logits, S, m.V, in, m.max_reqs, b->room.pick_work, b->room.chosen,
                  b->room.picks + side * m.max_reqs, s);
    }
    if (rc)
        return rc;
    CU_TRY(cudaGetLastError());
    return 0;
}

/* ---- graphs ---- */

/* Surplus row i of a padded batch: token 0 at position 0 of the spare page. No attention runs for it. */
static void pad_row(const struct be *b, const cu_meta &h, int i)
{
    h.tokens[i] = h.positions[i] = 0;
    h.slots[i] = b->room.n_pages << b->m.B_log2;
    h.q_start[i + 1] = i + 1;
    h.kv_len[i] = 1;
    h.table_start[i] = 0;
    h.sample_row[i] = i;
    h.draws[i] = cu_draw{0, 1, 0, 1, 0, true, false};
    h.ban_start[i + 1] = h.ban_start[i];
}

/* Makes a step of `n` decoding requests one of g's: rows and items up to what was captured. */
static void pad(const struct be *b, const cu_meta &h, int n, int n_items, int reqs)
{
    for (int i = n; i < reqs; i++)
        pad_row(b, h, i);
    for (int i = n_items; i < cu_items_max(b->m, reqs); i++)
        h.items[i].req = -1;
}

static int capture(struct be *b, int reqs, struct km_err *err)
{
    cu_meta h;
    size_t fixed = cu_carve(b->m, reqs, reqs, side_of(b, 0), &h);
    *h.bytes = (int32_t)fixed;
    h.q_start[0] = h.ban_start[0] = 0;
    pad(b, h, 0, 0, reqs);
    int items = cu_items_max(b->m, reqs);
    int rc = forward(b, 0, reqs, reqs, items, 0, reqs, err); /* chooses GEMM algorithms, loads modules */
    if (rc)
        return rc;
    CU_TRY(cudaStreamSynchronize(b->steps));
    graph *out = &b->graphs[b->n_graphs++];
    out->reqs = reqs;
    for (int side = 0; side < 2; side++) {
        cudaGraph_t g;
        CU_TRY(cudaStreamBeginCapture(b->steps, cudaStreamCaptureModeThreadLocal));
        rc = forward(b, side, reqs, reqs, items, 0, reqs, err);
        cudaError_t ended = cudaStreamEndCapture(b->steps, &g);
        if (rc)
            return rc;
        CU_TRY(ended);
        cudaError_t made = cudaGraphInstantiate(&out->exec[side], g, 0);
        cudaGraphDestroy(g);
        CU_TRY(made);
        CU_TRY(cudaGraphUpload(out->exec[side], b->steps));
    }
    return 0;
}

static int capture_all(struct be *b, struct km_err *err)
{
    int most = b->m.max_reqs < b->m.max_tokens ? b->m.max_reqs : b->m.max_tokens;
    if (most > CU_GRAPH_REQS)
        most = CU_GRAPH_REQS;
    for (int n = 1; b->n_graphs < MAX_GRAPHS; n = n < 8 ? 2 * n : n + 8) {
        int rc = capture(b, n < most ? n : most, err);
        if (rc || n >= most)
            return rc;
    }
    return 0;
}

/* ---- a step ---- */

/* True when the kernels of sample.cu give what the row asks for; else its logits go to the reference sampler. */
static bool on_card(const struct smp_row *r)
{
    return r->p.n_logprobs < 0 && !r->n_history && r->n_banned <= CU_MAX_BANNED;
}

static cu_draw draw_of(const struct smp_row *r)
{
    const struct smp_params *p = &r->p;
    if (p->temperature == 0)
        return cu_draw{0, 1, 0, 1, 0, true, false};
    float scale = (float)fmax(p->temperature, 0.01); /* as in smp_sample */
    return cu_draw{smp_key(p->seed, r->step),
                   scale,
                   (float)p->min_p,
                   (float)p->top_p,
                   p->top_k,
                   false,
                   p->min_p > 0 || p->top_k > 0 || p->top_p < 1};
}

/* What of a step is what: counted while its arrays are filled. */
struct parts {
    int n_dec, n_items, n_tiles;
};

static void fill(struct be *b, const struct batch *in, const cu_meta &h, parts *n)
{
    memcpy(h.tokens, in->tokens, sizeof(int32_t) * (size_t)in->n_tokens);
    memcpy(h.positions, in->positions, sizeof(int32_t) * (size_t)in->n_tokens);
    memcpy(h.slots, in->slots, sizeof(int32_t) * (size_t)in->n_tokens);
    memcpy(h.q_start, in->q_start, sizeof(int32_t) * (size_t)(in->n_reqs + 1));
    memcpy(h.kv_len, in->kv_len, sizeof(int32_t) * (size_t)in->n_reqs);
    memcpy(h.table_start, in->table_start, sizeof(int32_t) * (size_t)in->n_reqs);
    memcpy(h.table, in->block_table, sizeof(int32_t) * (size_t)in->table_start[in->n_reqs]);
    for (int r = 0; r < in->n_reqs; r++) {
        int q_len = in->q_start[r + 1] - in->q_start[r];
        if (q_len == 1)
            b->room.decoding[n->n_dec++] = r;
        for (int row = 0; q_len > 1 && row < q_len; row += CU_TILE_Q) {
            h.tile_req[n->n_tiles] = r;
            h.tile_row[n->n_tiles++] = row;
        }
    }
    n->n_items = cu_items(b->m, h, b->room.decoding, n->n_dec, h.items);
    int banned = 0;
    h.ban_start[0] = 0;
    for (int i = 0; i < in->n_samples; i++) {
        const struct smp_row *s = &in->samples[i];
        h.sample_row[i] = s->row;
        h.draws[i] = draw_of(s);
        for (int k = 0; k < s->n_banned && s->n_banned <= CU_MAX_BANNED; k++)
            h.ban[banned++] = s->banned[k];
        h.ban_start[i + 1] = banned;
    }
}

/* The graph that a step can replay: one query token a request, each of them sampled. */
static const graph *graph_for(const struct be *b, const struct batch *in)
{
    if (in->n_tokens != in->n_reqs || in->n_samples != in->n_reqs)
        return nullptr;
    for (int i = 0; i < b->n_graphs; i++)
        if (b->graphs[i].reqs >= in->n_reqs)
            return &b->graphs[i];
    return nullptr;
}

static int check_step(const struct be *b, const struct batch *in, struct km_err *err)
{
    const struct batch *before = b->flight[b->n_steps % 2].in;
    if (b->flight[(b->n_steps + 1) % 2].in)
        return km_fail(err, KM_EINVAL, "step %llu was not waited for", (unsigned long long)b->n_steps - 1);
    if (in->n_tokens < 1 || in->n_tokens > b->m.max_tokens || in->n_reqs > b->m.max_reqs || in->n_samples > in->n_reqs)
        return km_fail(err, KM_EINVAL,
                       "a step of %d tokens of %d requests, %d sampled, is over the backend's %d and %d",
                       in->n_tokens, in->n_reqs, in->n_samples, b->m.max_tokens, b->m.max_reqs);
    for (int r = 0; r < in->n_reqs; r++)
        if ((in->kv_len[r] + b->m.B - 1) >> b->m.B_log2 > b->m.max_blocks)
            return km_fail(err, KM_EINVAL, "request %d of a step has %d tokens, over the backend's %d blocks of %d",
                           r, in->kv_len[r], b->m.max_blocks, b->m.B);
    if (in->table_start[in->n_reqs] > in->n_reqs * b->m.max_blocks)
        return km_fail(err, KM_EINVAL, "a step of %d requests has %d pages, over the backend's %d each", in->n_reqs,
                       in->table_start[in->n_reqs], b->m.max_blocks);
    for (int i = 0; i < in->n_tokens; i++)
        if (in->tokens[i] < 0 && (!before || -(in->tokens[i] + 1) >= before->n_samples))
            return km_fail(err, KM_EINVAL, "row %d of a step is token %d: the step before does not choose that", i,
                           in->tokens[i]);
    return 0;
}

static int cuda_step(struct be *b, const struct batch *in, uint64_t *ticket, struct km_err *err)
{
    int64_t began = km_now_ns();
    int rc = check_step(b, in, err), side = (b->n_steps + 1) % 2;
    if (rc)
        return rc;
    parts n = {};
    const graph *g = graph_for(b, in);
    int T = g ? g->reqs : in->n_tokens, R = g ? g->reqs : in->n_reqs;
    cu_meta h;
    size_t fixed = cu_carve(b->m, T, R, side_of(b, side), &h);
    fill(b, in, h, &n);
    *h.bytes = (int32_t)(fixed + (size_t)in->table_start[in->n_reqs] * sizeof(int32_t));
    if (g) {
        pad(b, h, n.n_dec, n.n_items, R);
        CU_TRY(cudaGraphLaunch(g->exec[side], b->steps));
    } else if ((rc = forward(b, side, T, R, n.n_items, n.n_tiles, in->n_samples, err)))
        return rc;
    flying *f = &b->flight[side];
    CU_TRY(cudaEventRecord(f->done, b->steps));
    f->in = in;
    f->began = began;
    *ticket = ++b->n_steps;
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
    b->st.flops += m.L * (per_token * in->n_tokens + attn) + 2.0 * m.D * m.V * in->n_samples;
}

static int cuda_wait(struct be *b, uint64_t ticket, struct smp_result *out, struct km_err *err)
{
    int side = ticket % 2;
    flying *f = &b->flight[side];
    const struct batch *in = f->in;
    bool newest = ticket == b->n_steps;
    if (!in || !ticket || (!newest && ticket + 1 != b->n_steps))
        return km_fail(err, KM_EINVAL, "step %llu is not in flight", (unsigned long long)ticket);
    f->in = nullptr;
    CU_TRY(cudaEventSynchronize(f->done));
    const int32_t *picks = b->room.picks + side * b->m.max_reqs;
    for (int i = 0; i < in->n_samples; i++) {
        const struct smp_row *r = &in->samples[i];
        bool chosen = on_card(r) && picks[i] >= 0;
        if (chosen || !newest) {
            /* -1: the step behind has other logits there by now; nobody looks at the top of none */
            out[i].id = chosen ? picks[i] : -1;
            out[i].logprob = 0;
            out[i].rank = out[i].n_top = 0;
            out[i].by_host = false;
            continue;
        }
        CU_TRY(cudaMemcpy(b->room.logits_host, b->room.logits + (size_t)i * b->m.V, sizeof(float) * (size_t)b->m.V,
                          cudaMemcpyDeviceToHost));
        smp_sample(r, b->room.logits_host, b->m.V, b->room.scratch, &out[i]);
        out[i].by_host = true;
    }
    count_flops(b, in);
    int64_t now = km_now_ns();
    b->st.busy_ns += now - (f->began > b->ended ? f->began : b->ended);
    b->ended = now;
    return 0;
}

/* ---- copies ---- */

/* Enqueues n copies, given as parallel arrays. */
static cudaError_t copy_batch(struct be *b, enum kv_dir dir, void *const *dst, const void *const *src,
                              const size_t *size, size_t n)
{
    cudaMemcpyAttributes how = {};
    /* A store must come after the kernels that write the page; a load's source lies still from the call on. */
    how.srcAccessOrder = dir == KV_TO_HOST ? cudaMemcpySrcAccessOrderStream : cudaMemcpySrcAccessOrderAny;
    size_t from = 0;
#if CUDART_VERSION >= 13000
    return cudaMemcpyBatchAsync(const_cast<const void **>(reinterpret_cast<const void *const *>(dst)),
                                const_cast<const void **>(src), const_cast<size_t *>(size), n, &how, &from, 1,
                                b->copies);
#else
    size_t failed;
    return cudaMemcpyBatchAsync(const_cast<void **>(dst), const_cast<void **>(src), const_cast<size_t *>(size), n,
                                &how, &from, 1, &failed, b->copies);
#endif
}

static int cuda_copy(struct be *b, enum kv_dir dir, const struct kv_copy *c, int n, uint64_t *ticket,
                     struct km_err *err)
{
    size_t page = b->m.page_elems * sizeof(bf16);
    for (int i = 0; i < n; i++)
        if (c[i].page < 0 || c[i].page >= b->room.n_pages)
            return km_fail(err, KM_EINVAL, "page %d to copy is not in [0, %d)", c[i].page, b->room.n_pages);
    if (b->n_steps) /* behind the steps given so far, which may still be writing or reading these pages */
        CU_TRY(cudaStreamWaitEvent(b->copies, b->flight[b->n_steps % 2].done, 0));
    for (int at = 0; at < n;) {
        void *dst[COPY_BATCH];
        const void *src[COPY_BATCH];
        size_t size[COPY_BATCH], k = 0;
        while (at < n && k < COPY_BATCH) { /* neighbours on both sides travel as one */
            int run = 1;
            while (at + run < n && c[at + run].page == c[at].page + run &&
                   static_cast<char *>(c[at + run].host) == static_cast<char *>(c[at].host) + (size_t)run * page)
                run++;
            void *on_card = b->room.pool + (size_t)c[at].page * b->m.page_elems;
            dst[k] = dir == KV_TO_HOST ? c[at].host : on_card;
            src[k] = dir == KV_TO_HOST ? on_card : c[at].host;
            size[k++] = (size_t)run * page;
            at += run;
        }
        CU_TRY(copy_batch(b, dir, dst, src, size, k));
    }
    cudaEvent_t e = b->copy_done[b->n_copies % COPY_EVENTS];
    if (b->n_copies >= COPY_EVENTS) /* the event's last user must be over before it is used again */
        CU_TRY(cudaEventSynchronize(e));
    CU_TRY(cudaEventRecord(e, b->copies));
    *ticket = ++b->n_copies;
    return 0;
}

static int cuda_poll(struct be *b, uint64_t ticket)
{
    if (!ticket || ticket + COPY_EVENTS <= b->n_copies)
        return 1;
    cudaError_t rc = cudaEventQuery(b->copy_done[(ticket - 1) % COPY_EVENTS]);
    return rc == cudaSuccess ? 1 : rc == cudaErrorNotReady ? 0 : KM_EDEVICE;
}

static void *cuda_host_alloc(struct be *, size_t size)
{
    void *p;
    if (cudaHostAlloc(&p, size, cudaHostAllocDefault) != cudaSuccess) {
        cudaGetLastError(); /* not sticky: the caller goes on without */
        return nullptr;
    }
    km_mem_note(KM_MEM_PINNED, (int64_t)size);
    return p;
}

static void cuda_host_free(struct be *, void *p, size_t size)
{
    if (p && cudaFreeHost(p) == cudaSuccess)
        km_mem_note(KM_MEM_PINNED, -(int64_t)size);
}

/* ---- open and close ---- */

static void cuda_close(struct be *b)
{
    if (!b)
        return;
    cudaDeviceSynchronize();
    for (int i = 0; i < b->n_graphs; i++)
        for (cudaGraphExec_t e : b->graphs[i].exec)
            if (e)
                cudaGraphExecDestroy(e);
    cu_room_free(&b->room);
    cu_products_close(b->products);
    cu_weights_free(&b->w);
    for (cudaEvent_t e : b->copy_done)
        if (e)
            cudaEventDestroy(e);
    for (const flying &f : b->flight)
        if (f.done)
            cudaEventDestroy(f.done);
    if (b->steps)
        cudaStreamDestroy(b->steps);
    if (b->copies)
        cudaStreamDestroy(b->copies);
    km_free(b);
}

static int make_room(struct be *b, const struct be_opts *o, struct km_err *err)
{
    const cu_dims &m = b->m;
    cu_room *r = &b->room;
    cu_room_list(r, m);
    int rc = cu_room_take(r, err);
    if (rc)
        return rc;
    size_t listed = cu_room_bytes(r, KM_MEM_DEVICE);
    cu_card card;
    CU_TRY(cudaMemGetInfo(&card.avail, &card.total));
    rc = cu_room_pool(r, m, o, b->w.bytes, &card, err);
    rc = rc ? rc : cu_room_take(r, err);
    if (rc)
        return rc;
    b->st.workspace_bytes = (int64_t)listed + CU_GEMM_WORKSPACE;
    b->st.kv_bytes = (int64_t)(cu_room_bytes(r, KM_MEM_DEVICE) - listed);

    float freq[64];
    mdl_inv_freq(mdl_config(b->mdl), freq);
    CU_TRY(cudaMemcpy(r->inv_freq, freq, sizeof(float) * (size_t)m.d / 2, cudaMemcpyHostToDevice));
    return 0;
}

static int plan_prefill(struct be *b, struct km_err *err)
{
    const cu_room &r = b->room;
    b->sm90 = cu_attn_prefill_sm90_usable(b->m);
    if (!b->sm90)
        return 0;
    return cu_attn_prefill_sm90_plan(&b->prefill, b->m, r.pool, r.n_pages + 1, r.qkv, b->m.max_tokens, r.handed, err);
}

static int open_all(struct be *b, const struct be_opts *o, const struct mdl *m, struct km_err *err)
{
    cu_card card;
    CU_TRY(cudaSetDevice(0));
    int rc = cu_card_look(&card, err);
    rc = rc ? rc : cu_dims_make(&b->m, o, m, &card, err);
    if (rc)
        return rc;
    snprintf(b->st.device, sizeof b->st.device, "%.60s, %.0f GiB", card.name, (double)card.total / (1 << 30));
    b->mdl = m;
    CU_TRY(cudaStreamCreateWithFlags(&b->steps, cudaStreamNonBlocking));
    CU_TRY(cudaStreamCreateWithFlags(&b->copies, cudaStreamNonBlocking));
    for (flying &f : b->flight)
        CU_TRY(cudaEventCreateWithFlags(&f.done, cudaEventDisableTiming));
    for (cudaEvent_t &e : b->copy_done)
        CU_TRY(cudaEventCreateWithFlags(&e, cudaEventDisableTiming));
    rc = cu_weights_load(&b->w, m, err);
    rc = rc ? rc : make_room(b, o, err);
    rc = rc ? rc : plan_prefill(b, err);
    rc = rc ? rc : cu_products_open(&b->products, b->m, &b->w, &b->room, b->steps, err);
    rc = rc ? rc : capture_all(b, err);
    b->st.weight_bytes = (int64_t)b->w.bytes;
    return rc;
}

static int cuda_open(struct be **out, const struct be_opts *o, const struct mdl *m, struct kv_geom *geom,
                     struct km_err *err)
{
    struct be *b = static_cast<be *>(km_calloc(1, sizeof *b));
    if (!b)
        return km_fail(err, KM_ENOMEM, "out of memory");
    int rc = open_all(b, o, m, err);
    if (rc) {
        cuda_close(b);
        return rc;
    }
    *geom = cu_geom(b->m, m, b->room.n_pages);
    *out = b;
    return 0;
}

static void cuda_stats(struct be *b, struct be_stats *out)
{
    *out = b->st;
}

int cu_probe(struct km_err *err); /* both in probe.cu */
int cu_measure(struct rates *out, struct km_err *err);

extern "C" const struct backend be_cuda = {"cuda",    true,      cu_probe,  cu_measure, cu_plan,         cuda_open,
                                           cuda_close, cuda_step, cuda_wait, cuda_copy,  cuda_poll,       cuda_host_alloc,
                                           cuda_host_free, nullptr, cuda_stats};
