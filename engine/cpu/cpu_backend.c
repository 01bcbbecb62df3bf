/* The CPU backend: opens weights, workspace and KV pool within a memory limit, checks batches, and runs them. A step is
 * complete when `step` returns. `wait` only copies the step's results, which are stored for the last two steps. A copy
 * is complete when `copy` returns. */
#include "engine/backend.h"

#include "base/buf.h"
#include "base/clock.h"
#include "base/machine.h"
#include "base/mem.h"
#include "base/page_sum.h"
#include "engine/cpu/forward.h"

#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

#define LAYOUT 1 /* kv_geom.layout: pages are [layer][K, V][kv head][token][head_dim] */

struct be {
    const struct mdl_config *c;
    struct be_opts o;
    const struct kernels *kernels;
    struct thread_pool *threads;
    struct wts weights;
    struct kv_pool kv;
    struct fwd *fwd;
    struct smp_result *results[2]; /* [max_tokens] each; step i uses results[i % 2] */
    int n_results[2];
    uint64_t steps;
    _Atomic uint64_t copies; /* calls of be_copy so far; the ticket of the last one */
    uint8_t *marks; /* [max_tokens] scratch memory of check_batch: 1 for a row that is sampled */
    struct be_stats st;
};

static void be_close(struct be *b)
{
    if (!b)
        return;
    fwd_close(b->fwd);
    wts_free(&b->weights);
    thread_pool_close(b->threads);
    km_free(b->kv.pages);
    km_free(b->results[0]);
    km_free(b->results[1]);
    km_free(b->marks);
    km_free(b);
}

static int check_opts(const struct be_opts *o, const struct mdl_config *c, struct km_err *err)
{
    const struct {
        const char *name;
        int64_t v, lo, hi;
    } rows[] = {
        {"block size", o->block_size, 1, 4096},
        {"number of pages", o->n_pages, 0, INT32_MAX},
        {"number of tokens of a step", o->max_tokens, 1, 1 << 20},
        {"number of requests of a step", o->max_reqs, 1, 1 << 20},
        {"length of the longest request", o->max_model_len, 1, c->max_pos},
        {"number of threads", o->n_threads, 0, 1024},
        {"memory limit", o->memory_limit, 0, INT64_MAX},
    };
    if (o->dtype != KM_F32 && o->dtype != KM_BF16)
        return km_fail(err, KM_EINVAL, "the CPU backend computes with float32 or bfloat16 weights, not %s",
                       km_dtype_name(o->dtype));
    if ((size_t)c->head_dim * km_dtype_size(o->dtype) % sizeof(uint64_t)) /* struct kv_geom and base/page_sum.h */
        return km_fail(err, KM_EINVAL, "head_dim %d in %s is not a multiple of 8 bytes; use --dtype float32",
                       c->head_dim, km_dtype_name(o->dtype));
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        if (rows[i].v < rows[i].lo || rows[i].v > rows[i].hi)
            return km_fail(err, KM_EINVAL, "%s is %lld; it must be between %lld and %lld", rows[i].name,
                           (long long)rows[i].v, (long long)rows[i].lo, (long long)rows[i].hi);
    return 0;
}

/* Computes the number of pages of the KV pool. With a memory limit, the pool gets all memory up to the limit. Without a
 * limit, it gets eight requests of full length, but at most a quarter of the available memory, because other programs
 * need memory too. memory_utilization is for GPUs only. fixed: bytes of weights and workspace; page: bytes of a page.
 */
static int plan_pages(const struct be_opts *o, int64_t available, int64_t fixed, int64_t page, int *out,
                      struct km_err *err)
{
    const int64_t most = INT32_MAX / o->block_size;
    const int64_t limit = o->memory_limit ? o->memory_limit : available, rest = limit - fixed;
    int64_t n = o->n_pages;
    if (!n && o->memory_limit)
        n = rest / page;
    if (!n && !o->memory_limit) {
        n = ((int64_t)o->max_model_len + o->block_size - 1) / o->block_size * 8;
        n = n > available / 4 / page ? available / 4 / page : n;
    }
    n = n > most ? most : n;
    const int64_t pages = n > 0 ? n : 1, need = fixed + pages * page;
    if (n < 1 || n * page > rest)
        return km_fail(
            err, KM_ELIMIT,
            "weights and workspace take %s, and %lld page%s of KV %s more, but the %s is %s; ask for fewer pages, "
            "%slower --max-model-len, or use a smaller model",
            km_size_text(fixed).s, (long long)pages, pages > 1 ? "s" : "", km_size_text(pages * page).s,
            o->memory_limit ? "memory limit" : "available memory", km_size_text(limit).s,
            o->memory_limit ? "raise the limit, " : "");
    if (need > available)
        return km_fail(
            err, KM_ELIMIT,
            "weights, workspace and %lld pages of KV take %s, but only %s of memory are available to this process; "
            "lower the memory limit, or use a smaller model",
            (long long)pages, km_size_text(need).s, km_size_text(available).s);
    *out = (int)n;
    return 0;
}

static int be_plan(struct plan *out, const struct be_opts *o, const struct mdl *m, struct km_err *err)
{
    const struct mdl_config *c = mdl_config(m);
    const struct kernels *kernels = kernels_best();
    const struct fwd_limits lim = {o->max_tokens, o->max_reqs, o->max_model_len, o->block_size};
    const int threads = o->n_threads ? o->n_threads : km_usable_cores();
    struct kv_geom *g = &out->geom;
    char name[64];
    *out = (struct plan){.limited = KM_MEM_HOST, .limit_stated = o->memory_limit != 0};
    int rc = check_opts(o, c, err);
    if (rc)
        return rc;
    km_cpu_name(name, sizeof name);
    snprintf(out->device, sizeof out->device, "%.60s, %d thread%s, %s", name, threads, threads > 1 ? "s" : "",
             kernels->name);
    wts_bytes(c, o->dtype, kernels, out);
    fwd_bytes(c, kernels, threads, &lim, out);
    plan_add(out, PLAN_WORKSPACE, "results of two steps", KM_MEM_HOST,
             2 * (int64_t)o->max_tokens * (int64_t)sizeof(struct smp_result));
    plan_add(out, PLAN_WORKSPACE, "step arrays", KM_MEM_HOST, o->max_tokens); /* be.marks */
    *g = (struct kv_geom){.n_layers = c->n_layers,
                          .n_kv_heads = c->n_kv_heads,
                          .head_dim = c->head_dim,
                          .block_size = o->block_size,
                          .dtype = o->dtype,
                          .layout = LAYOUT,
                          .rope_theta = (double)c->rope_theta};
    snprintf(g->numerics, sizeof g->numerics, "cpu-%s", kernels->numerics);
    g->page_bytes = (size_t)g->n_layers * 2 * (size_t)g->n_kv_heads * (size_t)g->block_size * (size_t)g->head_dim *
                    km_dtype_size(g->dtype);
    const int64_t available = km_available_memory("");
    out->limit = o->memory_limit ? o->memory_limit : available;
    rc = plan_pages(o, available, plan_total(out, KM_MEM_HOST), (int64_t)g->page_bytes, &g->n_pages, err);
    if (!rc)
        plan_add(out, PLAN_KV, "KV pool", KM_MEM_HOST, (int64_t)g->n_pages * (int64_t)g->page_bytes);
    return rc;
}

static int open_parts(struct be *b, const struct mdl *m, struct km_err *err)
{
    const struct be_opts *o = &b->o;
    const struct fwd_limits lim = {o->max_tokens, o->max_reqs, o->max_model_len, o->block_size};
    struct plan plan;
    int rc = be_plan(&plan, o, m, err);
    if (rc)
        return rc;
    b->kv.g = plan.geom;
    b->st.weight_bytes = plan_sum(&plan, PLAN_WEIGHTS, KM_MEM_HOST);
    b->st.workspace_bytes = plan_sum(&plan, PLAN_WORKSPACE, KM_MEM_HOST);
    b->st.kv_bytes = plan_sum(&plan, PLAN_KV, KM_MEM_HOST);
    memcpy(b->st.device, plan.device, sizeof b->st.device);
    rc = thread_pool_open(&b->threads, o->n_threads, err);
    if (rc)
        return rc;
    b->kv.pages = arena_block((size_t)b->st.kv_bytes);
    b->results[0] = km_calloc((size_t)o->max_tokens, sizeof *b->results[0]);
    b->results[1] = km_calloc((size_t)o->max_tokens, sizeof *b->results[1]);
    b->marks = km_calloc((size_t)o->max_tokens, 1);
    if (!b->kv.pages || !b->results[0] || !b->results[1] || !b->marks)
        return km_fail(err, KM_ENOMEM, "out of memory for a KV pool of %lld bytes; ask for fewer pages",
                       (long long)b->st.kv_bytes);
    rc = wts_load(&b->weights, m, o->dtype, b->kernels, b->threads, err);
    if (!rc)
        rc = fwd_open(&b->fwd, b->c, &b->weights, b->threads, &b->kv, &lim, err);
    return rc;
}

static int be_open(struct be **out, const struct be_opts *o, const struct mdl *m, struct kv_geom *geom,
                   struct km_err *err)
{
    struct be *b = km_calloc(1, sizeof *b);
    if (!b)
        return km_fail(err, KM_ENOMEM, "out of memory for the CPU backend");
    b->c = mdl_config(m);
    b->o = *o;
    b->kernels = kernels_best();
    int rc = open_parts(b, m, err);
    if (rc) {
        be_close(b);
        return rc;
    }
    *geom = b->kv.g;
    *out = b;
    return 0;
}

/* Checks one request of a batch: its rows are consecutive positions, and it has pages for all tokens it attends to. */
static int check_request(const struct be *b, const struct batch *in, int r, struct km_err *err)
{
    const int B = b->kv.g.block_size, n_pages = b->kv.g.n_pages, first = in->q_start[r], end = in->q_start[r + 1];
    const int len = in->kv_len[r], blocks = len > 0 ? (len - 1) / B + 1 : 0, start = in->table_start[r];
    const int n_blocks = in->table_start[r + 1] - start;
    if (first >= end || end > in->n_tokens)
        return km_fail(err, KM_EINVAL, "request %d of the step has rows [%d, %d); the step has %d rows", r, first, end,
                       in->n_tokens);
    if (len < 1 || len > b->o.max_model_len || start < 0 || blocks > n_blocks)
        return km_fail(err, KM_EINVAL,
                       "request %d of the step has %d tokens and %d blocks; the blocks must hold all tokens, of which "
                       "there may be at most %d",
                       r, len, n_blocks, b->o.max_model_len);
    for (int i = 0; i < blocks; i++) {
        int32_t page = in->block_table[start + i];
        if (page < 0 || page >= n_pages)
            return km_fail(err, KM_EINVAL, "request %d of the step has page %d at block %d; the pool has %d pages", r,
                           page, i, n_pages);
    }
    for (int i = first; i < end; i++) {
        if (in->tokens[i] < 0 || in->tokens[i] >= b->c->vocab)
            return km_fail(err, KM_EINVAL, "row %d of the step is token %d; the vocabulary has %d tokens", i,
                           in->tokens[i], b->c->vocab);
        if (in->positions[i] != in->positions[first] + (i - first) || in->positions[i] < 0 || in->positions[i] >= len)
            return km_fail(err, KM_EINVAL,
                           "row %d of the step is at position %d of a request of %d tokens, or its request's rows are "
                           "not consecutive",
                           i, in->positions[i], len);
        if (in->slots[i] < 0 || in->slots[i] >= n_pages * B)
            return km_fail(err, KM_EINVAL, "row %d of the step writes to slot %d; the pool has %d slots", i,
                           in->slots[i], n_pages * B);
    }
    return 0;
}

static int check_batch(struct be *b, const struct batch *in, struct km_err *err)
{
    if (in->n_tokens < 1 || in->n_tokens > b->o.max_tokens || in->n_reqs < 1 || in->n_reqs > b->o.max_reqs ||
        in->n_samples < 0 || in->n_samples > in->n_tokens)
        return km_fail(err, KM_EINVAL,
                       "the step has %d tokens, %d requests and %d samples; it must have 1 to %d tokens, 1 to %d "
                       "requests and no more samples than tokens",
                       in->n_tokens, in->n_reqs, in->n_samples, b->o.max_tokens, b->o.max_reqs);
    if (in->q_start[0] || in->q_start[in->n_reqs] != in->n_tokens)
        return km_fail(err, KM_EINVAL, "the step's requests cover rows [%d, %d); the step has %d rows", in->q_start[0],
                       in->q_start[in->n_reqs], in->n_tokens);
    for (int r = 0; r < in->n_reqs; r++) {
        int rc = check_request(b, in, r, err);
        if (rc)
            return rc;
    }
    memset(b->marks, 0, (size_t)in->n_tokens);
    for (int s = 0; s < in->n_samples; s++) {
        int row = in->samples[s].row;
        if (row < 0 || row >= in->n_tokens || b->marks[row]++)
            return km_fail(err, KM_EINVAL,
                           "sample %d is of row %d, which is sampled twice or not one of the step's %d rows", s, row,
                           in->n_tokens);
    }
    return 0;
}

static int be_step(struct be *b, const struct batch *in, uint64_t *ticket, struct km_err *err)
{
    int rc = check_batch(b, in, err);
    if (rc)
        return rc;
    int64_t t0 = km_now_ns();
    int i = (int)(++b->steps % 2);
    fwd_step(b->fwd, in, b->results[i], &b->st.flops);
    b->n_results[i] = in->n_samples;
    b->st.busy_ns += km_now_ns() - t0;
    *ticket = b->steps;
    return 0;
}

static int be_wait(struct be *b, uint64_t ticket, struct smp_result *out, struct km_err *err)
{
    if (ticket == 0 || ticket > b->steps || ticket + 2 <= b->steps)
        return km_fail(err, KM_EINVAL, "step %llu is not one of the last two steps; the last step is %llu",
                       (unsigned long long)ticket, (unsigned long long)b->steps);
    if (b->n_results[ticket % 2])
        memcpy(out, b->results[ticket % 2], (size_t)b->n_results[ticket % 2] * sizeof *out);
    return 0;
}

static int check_copies(const struct be *b, const struct kv_copy *c, int n, struct km_err *err)
{
    const int n_pages = b->kv.g.n_pages, B = b->kv.g.block_size;
    if (n < 1 || n > KV_COPY_MOST)
        return km_fail(err, KM_EINVAL, "a copy of %d pages; one call copies 1 to %d", n, KV_COPY_MOST);
    for (int i = 0; i < n; i++)
        if (c[i].page < 0 || c[i].page >= n_pages || c[i].n_tokens < 1 || c[i].n_tokens > B || !c[i].host)
            return km_fail(err, KM_EINVAL,
                           "copy %d is of %d tokens of page %d; the pool has %d pages of %d tokens, and the copy needs "
                           "host memory",
                           i, c[i].n_tokens, c[i].page, n_pages, B);
    return 0;
}

/* Copies the rows of the first n_tokens tokens of a page, because a step may be writing the others at the same time.
 * Their place in host memory is set to 0, so that nothing of its old contents reaches a file. */
static void copy_to_host(const struct kv_geom *g, char *host, const char *page, int n_tokens)
{
    const size_t token = (size_t)g->head_dim * km_dtype_size(g->dtype), group = token * (size_t)g->block_size,
                 valid = token * (size_t)n_tokens;
    for (size_t at = 0; at < g->page_bytes; at += group) {
        memcpy(host + at, page + at, valid);
        memset(host + at + valid, 0, group - valid);
    }
}

/* Copies and computes the checksums on the calling thread, which may be another one than the engine's: the thread pool
 * belongs to the step that may be running. There is nothing to wait for, because the step with the ticket `after` ended
 * within be_step. */
static int be_copy(struct be *b, enum kv_dir dir, struct kv_copy *c, int n, uint64_t after, uint64_t *ticket,
                   struct km_err *err)
{
    const struct kv_geom *g = &b->kv.g;
    const uint32_t token_words = (uint32_t)((size_t)g->head_dim * km_dtype_size(g->dtype) / sizeof(uint64_t));
    (void)after;
    int rc = check_copies(b, c, n, err);
    if (rc)
        return rc;
    for (int i = 0; i < n; i++) {
        char *page = b->kv.pages + (size_t)c[i].page * g->page_bytes;
        if (dir == KV_TO_PAGE)
            memcpy(page, c[i].host, g->page_bytes);
        c[i].sum = km_page_sum((const uint64_t *)page, g->page_bytes / sizeof(uint64_t), token_words,
                               (uint32_t)g->block_size, (uint32_t)c[i].n_tokens, c[i].seed);
        if (dir == KV_TO_HOST)
            copy_to_host(g, c[i].host, page, c[i].n_tokens);
    }
    *ticket = atomic_fetch_add(&b->copies, 1) + 1;
    return 0;
}

/* Every copy is complete when be_copy returns. */
static int be_poll(struct be *b, uint64_t ticket)
{
    return ticket > 0 && ticket <= atomic_load(&b->copies) ? 1 : KM_EINVAL;
}

static void be_stats_get(struct be *b, struct be_stats *out)
{
    *out = b->st;
}

const struct backend be_cpu = {
    .name = "cpu",
    .threads = true,
    .plan = be_plan,
    .open = be_open,
    .close = be_close,
    .step = be_step,
    .wait = be_wait,
    .copy = be_copy,
    .poll = be_poll,
    .stats = be_stats_get,
};
