/* cpu_bench: the speed of the CPU backend, compared with the speed of this machine at the same time.
 *
 * Prefill alternates with OpenBLAS on GEMMs of the same shapes: the linear layers, and QK and PV of attention as dense
 * GEMMs over the average number of tokens that a query sees under the causal mask. Decode alternates with a plain read
 * of as many bytes as a step reads. Figures are medians over the repeats, with minimum and maximum. */
#include "base/args.h"
#include "base/clock.h"
#include "base/mem.h"
#include "base/sort.h"
#include "engine/backend.h"
#include "engine/cpu/thread_pool.h"

#include <cblas.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { CHUNK = 2048, MAX_REPEATS = 99 };

static void die(const struct km_err *err)
{
    fprintf(stderr, "cpu_bench: %s\n", err->msg);
    exit(1);
}

/* Returns p, or ends the program if p is NULL: out of memory. */
static void *not_null(void *p)
{
    if (!p)
        die(&(struct km_err){.msg = "out of memory; use a smaller model, batch or context"});
    return p;
}

/* Minimum, median and maximum. */
struct spread {
    double lo, mid, hi;
};

static struct spread spread_of(double *v, int n)
{
    km_sort_doubles(v, (size_t)n);
    return (struct spread){v[0], km_percentile(v, n, 0.5), v[n - 1]};
}

/* The open backend, the arrays of its batches, and the operands of OpenBLAS. */
struct bench {
    const struct mdl_config *c;
    struct be *be;
    struct kv_geom g;
    struct thread_pool *pool;
    int threads, repeats;
    int32_t *table, *table_start, *tokens, *positions, *slots, *q_start, *kv_len;
    float *a, *b, *o; /* operands and result of the OpenBLAS GEMMs */
    struct {
        /* heads 0: one GEMM, whose rows are divided among the threads; else a GEMM for each of `heads` heads. */
        int m, n, k, heads;
    } blas;
};

/* ---- prefill ---- */

static void blas_task(void *ctx, int task, int thread)
{
    struct bench *x = ctx;
    const int m = x->blas.m, n = x->blas.n, k = x->blas.k;
    (void)thread;
    if (x->blas.heads) {
        cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, m, n, k, 1, x->a, k, x->b, k, 0,
                    x->o + (size_t)task * (size_t)m * (size_t)n, n);
        return;
    }
    int from = m * task / x->threads, to = m * (task + 1) / x->threads;
    if (to > from)
        cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, to - from, n, k, 1, x->a + (size_t)from * (size_t)k,
                    k, x->b, k, 0, x->o + (size_t)from * (size_t)n, n);
}

static double blas_gemm(struct bench *x, int m, int n, int k, int heads)
{
    x->blas.m = m, x->blas.n = n, x->blas.k = k, x->blas.heads = heads;
    thread_pool_run(x->pool, heads ? heads : x->threads, blas_task, x);
    return 2.0 * m * n * k * (heads ? heads : 1);
}

/* Runs the GEMMs of all layers for tokens [from, from + m) in OpenBLAS. The GEMMs of attention are divided among the
 * threads by heads. Returns the floating-point operations that the backend would need for the same heads. */
static double blas_chunk(struct bench *x, int from, int m)
{
    const struct mdl_config *c = x->c;
    const int q = c->n_heads * c->head_dim, kv = c->n_kv_heads * c->head_dim, seen = from + (m + 1) / 2;
    double flops = 0;
    for (int l = 0; l < c->n_layers; l++) {
        flops += blas_gemm(x, m, q + 2 * kv, c->hidden, 0);
        flops += blas_gemm(x, m, seen, c->head_dim, x->threads) * c->n_heads / x->threads;
        for (int h = x->threads; h < c->n_heads; h += x->threads)
            blas_gemm(x, m, seen, c->head_dim, x->threads);
        flops += blas_gemm(x, m, c->head_dim, seen, x->threads) * c->n_heads / x->threads;
        for (int h = x->threads; h < c->n_heads; h += x->threads)
            blas_gemm(x, m, c->head_dim, seen, x->threads);
        flops += blas_gemm(x, m, c->hidden, q, 0);
        flops += blas_gemm(x, m, 2 * c->ffn, c->hidden, 0);
        flops += blas_gemm(x, m, c->hidden, c->ffn, 0);
    }
    return flops;
}

static void step(struct bench *x, struct batch *b)
{
    struct smp_result res[64];
    uint64_t ticket;
    struct km_err err = {0};
    if (be_cpu.step(x->be, b, &ticket, &err) || be_cpu.wait(x->be, ticket, res, &err))
        die(&err);
}

static void prefill_chunk(struct bench *x, int from, int m, bool last)
{
    for (int i = 0; i < m; i++) {
        x->tokens[i] = (from + i) * 7 % x->c->vocab;
        x->positions[i] = x->slots[i] = from + i;
    }
    x->q_start[0] = 0;
    x->q_start[1] = m;
    x->kv_len[0] = from + m;
    struct smp_row row = {.p = smp_defaults(), .row = m - 1};
    struct batch b = {.n_tokens = m,
                      .tokens = x->tokens,
                      .positions = x->positions,
                      .slots = x->slots,
                      .n_reqs = 1,
                      .q_start = x->q_start,
                      .kv_len = x->kv_len,
                      .table_start = (int32_t[]){0, x->g.n_pages},
                      .block_table = x->table,
                      .n_samples = last,
                      .samples = &row};
    row.p.temperature = 0;
    step(x, &b);
}

static void bench_prefill(struct bench *x, int n)
{
    double ours[MAX_REPEATS], blas[MAX_REPEATS], ratio[MAX_REPEATS], rate[MAX_REPEATS];
    for (int r = -1; r < x->repeats; r++) { /* repeat -1 is the warm-up */
        double time[2] = {0}, flops[2] = {0};
        for (int from = 0; from < n; from += CHUNK) {
            int m = n - from < CHUNK ? n - from : CHUNK;
            struct be_stats before, after;
            be_cpu.stats(x->be, &before);
            int64_t t0 = km_now_ns();
            prefill_chunk(x, from, m, from + m == n);
            int64_t t1 = km_now_ns();
            flops[1] += blas_chunk(x, from, m);
            time[1] += (double)(km_now_ns() - t1);
            time[0] += (double)(t1 - t0);
            be_cpu.stats(x->be, &after);
            flops[0] += after.flops - before.flops;
        }
        if (r >= 0) {
            ours[r] = flops[0] / time[0];
            blas[r] = flops[1] / time[1];
            ratio[r] = ours[r] / blas[r];
            rate[r] = n / time[0] * 1e9;
        }
    }
    struct spread o = spread_of(ours, x->repeats), t = spread_of(blas, x->repeats),
                  q = spread_of(ratio, x->repeats), s = spread_of(rate, x->repeats);
    printf("%6d  %7.0f (%6.0f-%6.0f)  %6.1f (%5.1f-%5.1f)  %6.1f (%5.1f-%5.1f)  %5.2f (%.2f-%.2f)\n", n, s.mid,
           s.lo, s.hi, o.mid, o.lo, o.hi, t.mid, t.lo, t.hi, q.mid, q.lo, q.hi);
    fflush(stdout);
}

/* ---- decode ---- */

/* A plain read of n words by all threads. sum: results, so that the compiler cannot omit the read. */
struct reading {
    const uint64_t *p; /* [n] */
    size_t n;
    int threads;
    uint64_t sum[256];
};

static void read_task(void *ctx, int task, int thread)
{
    struct reading *r = ctx;
    uint64_t s[8] = {0};
    (void)thread;
    const size_t pieces = (size_t)r->threads * 8, from = r->n * (size_t)task / pieces / 8 * 8,
                 to = r->n * (size_t)(task + 1) / pieces / 8 * 8;
    for (size_t i = from; i < to; i += 8)
        for (int j = 0; j < 8; j++)
            s[j] += r->p[i + (size_t)j];
    for (int j = 0; j < 8; j++)
        r->sum[task % 256] += s[j];
}

static void bench_decode(struct bench *x, int batch, int ctx)
{
    const int blocks = ctx / x->g.block_size + 1, B = x->g.block_size;
    if (batch * blocks > x->g.n_pages)
        return;
    struct smp_row rows[64];
    for (int r = 0; r < batch; r++) {
        x->tokens[r] = r + 1;
        x->positions[r] = ctx;
        x->slots[r] = x->table[r * blocks + ctx / B] * B + ctx % B;
        x->table_start[r] = r * blocks;
        x->q_start[r] = r;
        x->kv_len[r] = ctx + 1;
        rows[r] = (struct smp_row){.p = smp_defaults(), .row = r};
        rows[r].p.temperature = 0;
    }
    x->q_start[batch] = batch;
    x->table_start[batch] = batch * blocks;
    struct batch b = {.n_tokens = batch,
                      .tokens = x->tokens,
                      .positions = x->positions,
                      .slots = x->slots,
                      .n_reqs = batch,
                      .q_start = x->q_start,
                      .kv_len = x->kv_len,
                      .table_start = x->table_start,
                      .block_table = x->table,
                      .n_samples = batch,
                      .samples = rows};
    struct be_stats st;
    be_cpu.stats(x->be, &st);
    double bytes = (double)st.weight_bytes + (double)x->g.page_bytes / B * (double)(ctx + 1) * batch;
    struct reading rd = {.n = (size_t)bytes / 8, .threads = x->threads};
    uint64_t *buf = not_null(km_aligned(64, rd.n * 8));
    memset(buf, 1, rd.n * 8);
    rd.p = buf;
    double ms[MAX_REPEATS], gbs[MAX_REPEATS], read[MAX_REPEATS], ratio[MAX_REPEATS];
    for (int r = -1; r < x->repeats; r++) {
        int64_t t0 = km_now_ns();
        for (int i = 0; i < 3; i++)
            step(x, &b);
        int64_t t1 = km_now_ns();
        for (int i = 0; i < 3; i++)
            thread_pool_run(x->pool, x->threads * 8, read_task, &rd);
        int64_t t2 = km_now_ns();
        if (r >= 0) {
            ms[r] = (double)(t1 - t0) / 3e6;
            gbs[r] = 3 * bytes / (double)(t1 - t0);
            read[r] = 3 * bytes / (double)(t2 - t1);
            ratio[r] = gbs[r] / read[r];
        }
    }
    km_free(buf);
    struct spread m = spread_of(ms, x->repeats), g = spread_of(gbs, x->repeats), y = spread_of(read, x->repeats),
                  q = spread_of(ratio, x->repeats);
    printf("%6d  %7.2f (%6.2f-%6.2f)  %6.1f (%5.1f-%5.1f)  %6.1f (%5.1f-%5.1f)  %5.2f (%.2f-%.2f)\n", batch, m.mid,
           m.lo, m.hi, g.mid, g.lo, g.hi, y.mid, y.lo, y.hi, q.mid, q.lo, q.hi);
    fflush(stdout);
}

/* Fills all pages with small numbers, so that decode attends to finite values. */
static void fill_pages(struct bench *x)
{
    struct km_err err = {0};
    uint64_t ticket;
    const size_t n = x->g.page_bytes / km_dtype_size(x->g.dtype);
    void *page = not_null(km_malloc(x->g.page_bytes));
    for (size_t i = 0; i < n; i++) {
        float v = (float)((i * 2654435761u >> 8) % 1000) / 1000 - 0.5f;
        if (x->g.dtype == KM_F32)
            ((float *)page)[i] = v;
        else
            ((uint16_t *)page)[i] = km_f32_to_bf16(v);
    }
    for (int p = 0; p < x->g.n_pages; p++)
        if (be_cpu.copy(x->be, KV_TO_PAGE,
                        &(struct kv_copy){.page = p, .n_tokens = x->g.block_size, .host = page}, 1, 0, &ticket, &err))
            die(&err);
    km_free(page);
}

static void open_all(struct bench *x, const struct mdl *m, enum km_dtype dtype, int longest, int batch, int ctx)
{
    struct km_err err = {0};
    const struct mdl_config *c = x->c = mdl_config(m);
    const int most = longest > ctx + 1 ? longest : ctx + 1, blocks = batch * (ctx / 16 + 1);
    struct be_opts o = {.dtype = dtype,
                        .block_size = 16,
                        .max_tokens = CHUNK,
                        .max_reqs = 64,
                        .max_model_len = most,
                        .n_threads = x->threads};
    o.n_pages = blocks > (most + 15) / 16 ? blocks : (most + 15) / 16;
    if (be_cpu.open(&x->be, &o, m, &x->g, &err) || thread_pool_open(&x->pool, x->threads, &err))
        die(&err);
    x->threads = thread_pool_threads(x->pool);
    const size_t wide =
        (size_t)(c->ffn * 2 > c->n_heads * c->head_dim * 3 ? c->ffn * 2 : c->n_heads * c->head_dim * 3) +
        (size_t)most;
    x->table = not_null(km_calloc((size_t)x->g.n_pages, sizeof(int32_t)));
    x->tokens = not_null(km_calloc(CHUNK, sizeof(int32_t)));
    x->positions = not_null(km_calloc(CHUNK, sizeof(int32_t)));
    x->slots = not_null(km_calloc(CHUNK, sizeof(int32_t)));
    x->q_start = not_null(km_calloc(65, sizeof(int32_t)));
    x->kv_len = not_null(km_calloc(64, sizeof(int32_t)));
    x->table_start = not_null(km_calloc(65, sizeof(int32_t)));
    x->a = not_null(km_calloc(CHUNK * wide, sizeof(float)));
    x->b = not_null(km_calloc((size_t)(c->hidden > c->head_dim ? c->hidden : c->head_dim) * wide, sizeof(float)));
    x->o = not_null(km_calloc((size_t)x->threads * CHUNK * wide, sizeof(float)));
    for (int i = 0; i < x->g.n_pages; i++)
        x->table[i] = i;
    fill_pages(x);
}

static void close_all(struct bench *x)
{
    void *const all[] = {x->table,   x->table_start, x->tokens, x->positions, x->slots,
                         x->q_start, x->kv_len,      x->a,      x->b,         x->o};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        km_free(all[i]);
    thread_pool_close(x->pool);
    be_cpu.close(x->be);
}

struct bench_opts {
    const char *model;
    enum km_dtype dtype;
    int threads, repeats, context, batch;
};

static const struct km_option rows[] = {
    {.name = "model", .letter = 'm', KM_FIELD(struct bench_opts, model), .arg = "DIR-OR-PRESET",
     .fallback = "qwen3-tiny", .help = "the model"},
    {.name = "dtype", .letter = 'd', KM_FIELD_CHOICE(struct bench_opts, dtype), .values = "float32|bfloat16",
     .fallback = "float32", .help = "number format of weights and KV"},
    {.name = "threads", .letter = 't', KM_FIELD(struct bench_opts, threads), .arg = "N", .lo = 0, .hi = 1024,
     .help = "CPU threads (default: one per core)"},
    {.name = "repeats", .letter = 'r', KM_FIELD(struct bench_opts, repeats), .arg = "N", .fallback = "7", .lo = 1,
     .hi = MAX_REPEATS, .help = "repeats of each measurement"},
    {.name = "context", .letter = 'c', KM_FIELD(struct bench_opts, context), .arg = "N", .fallback = "5000", .lo = 1,
     .hi = 1 << 20, .help = "tokens that a decode step attends to"},
    {.name = "batch", .letter = 'b', KM_FIELD(struct bench_opts, batch), .arg = "N", .fallback = "16", .lo = 0,
     .hi = 64, .help = "largest decode batch, of 1, 4, 16, 64; 0: no decode"},
};

int main(int argc, char **argv)
{
    struct bench_opts o;
    struct km_option_group group = KM_OPTION_GROUP("Options", rows, &o);
    bool help = false;
    struct km_strs lengths = {0};
    km_options_default(&group, 1);
    struct km_err err = {0};
    struct mdl *m;
    if (km_args_parse(&group, 1, argc - 1, argv + 1, &lengths, &help, &err))
        die(&err);
    if (help) {
        struct km_buf b = {0};
        km_args_help(&group, 1, 80, &b);
        printf("usage: cpu_bench [OPTIONS] [PROMPT-LENGTH ...] (default: 512 1024 2048 5000)\n%s", km_buf_str(&b));
        km_buf_free(&b);
        return 0;
    }
    int lens[64] = {512, 1024, 2048, 5000}, n_lens = lengths.n ? 0 : 4, longest = 1;
    for (int i = 0; i < lengths.n && n_lens < 64; i++)
        lens[n_lens++] = atoi(lengths.v[i]);
    for (int i = 0; i < n_lens; i++) {
        if (lens[i] < 1) {
            km_fail(&err, KM_EINVAL, "the prompt length %s is not a positive number of tokens", lengths.v[i]);
            die(&err);
        }
        longest = lens[i] > longest ? lens[i] : longest;
    }
    if (mdl_open(&m, o.model, false, 1, &err))
        die(&err);
    struct bench x = {.threads = o.threads, .repeats = o.repeats};
    openblas_set_num_threads(1);
    open_all(&x, m, o.dtype, longest, o.batch ? o.batch : 1, o.context);
    struct be_stats st;
    be_cpu.stats(x.be, &st);
    printf("%s, %s; %s; compared with OpenBLAS %s on %d threads\n\n", mdl_name(m), km_dtype_name(x.g.dtype), st.device,
           openblas_get_corename(), x.threads);
    printf("prompt  tokens/s                 GFLOP/s                OpenBLAS GFLOP/s       ratio\n");
    for (int i = 0; i < n_lens; i++)
        bench_prefill(&x, lens[i]);
    if (o.batch) {
        printf("\n batch  ms a step                GB/s                   plain read GB/s        ratio   at %d "
               "tokens\n",
               o.context);
        for (int b = 1; b <= o.batch; b *= 4)
            bench_decode(&x, b, o.context);
    }
    close_all(&x);
    mdl_free(m);
    km_free(lengths.v);
    return 0;
}
