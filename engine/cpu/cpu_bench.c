/* cpu_bench: how fast the CPU backend is, beside what this machine can do in the same minute.
 *
 * Prefill is timed in turns with OpenBLAS on the same products: the linear layers, and attention's two as
 * plain products at their causal average. Decode is timed in turns with a plain read of as many bytes. Medians
 * over the repeats, with the spread from smallest to largest. */
#include "base/args.h"
#include "base/clock.h"
#include "base/mem.h"
#include "base/sort.h"
#include "engine/backend.h"
#include "engine/cpu/pool.h"

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

static void *must(void *p)
{
    if (!p)
        die(&(struct km_err){.msg = "out of memory"});
    return p;
}

struct spread {
    double lo, mid, hi;
};

static struct spread spread_of(double *v, int n)
{
    km_sort_doubles(v, (size_t)n);
    return (struct spread){v[0], km_percentile(v, n, 0.5), v[n - 1]};
}

struct bench {
    const struct mdl_config *c;
    struct be *be;
    struct kv_geom g;
    struct pool *pool;
    int threads, repeats;
    int32_t *table, *table_start, *tokens, *positions, *slots, *q_start, *kv_len;
    float *a, *b, *o; /* operands of the OpenBLAS twin */
    struct {
        int m, n, k, heads; /* heads 0: the rows are shared out; else that many products */
    } twin;
};

/* ---- prefill ---- */

static void twin_task(void *ctx, int task, int thread)
{
    struct bench *x = ctx;
    const int m = x->twin.m, n = x->twin.n, k = x->twin.k;
    (void)thread;
    if (x->twin.heads) {
        cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, m, n, k, 1, x->a, k, x->b, k, 0,
                    x->o + (size_t)task * (size_t)m * (size_t)n, n);
        return;
    }
    int from = m * task / x->threads, to = m * (task + 1) / x->threads;
    if (to > from)
        cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, to - from, n, k, 1, x->a + (size_t)from * (size_t)k,
                    k, x->b, k, 0, x->o + (size_t)from * (size_t)n, n);
}

static double twin_product(struct bench *x, int m, int n, int k, int heads)
{
    x->twin.m = m, x->twin.n = n, x->twin.k = k, x->twin.heads = heads;
    pool_for(x->pool, heads ? heads : x->threads, twin_task, x);
    return 2.0 * m * n * k * (heads ? heads : 1);
}

/* One layer's products for tokens [from, from + m), and attention as H products for each thread's own heads. */
static double twin_chunk(struct bench *x, int from, int m)
{
    const struct mdl_config *c = x->c;
    const int q = c->n_heads * c->head_dim, kv = c->n_kv_heads * c->head_dim, seen = from + (m + 1) / 2;
    double flops = 0;
    for (int l = 0; l < c->n_layers; l++) {
        flops += twin_product(x, m, q + 2 * kv, c->hidden, 0);
        flops += twin_product(x, m, seen, c->head_dim, x->threads) * c->n_heads / x->threads;
        for (int h = x->threads; h < c->n_heads; h += x->threads)
            twin_product(x, m, seen, c->head_dim, x->threads);
        flops += twin_product(x, m, c->head_dim, seen, x->threads) * c->n_heads / x->threads;
        for (int h = x->threads; h < c->n_heads; h += x->threads)
            twin_product(x, m, c->head_dim, seen, x->threads);
        flops += twin_product(x, m, c->hidden, q, 0);
        flops += twin_product(x, m, 2 * c->ffn, c->hidden, 0);
        flops += twin_product(x, m, c->hidden, c->ffn, 0);
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
    double ours[MAX_REPEATS], twins[MAX_REPEATS], ratio[MAX_REPEATS], rate[MAX_REPEATS];
    for (int r = -1; r < x->repeats; r++) { /* the first turn warms up */
        double time[2] = {0}, flops[2] = {0};
        for (int from = 0; from < n; from += CHUNK) {
            int m = n - from < CHUNK ? n - from : CHUNK;
            struct be_stats before, after;
            be_cpu.stats(x->be, &before);
            int64_t t0 = km_now_ns();
            prefill_chunk(x, from, m, from + m == n);
            int64_t t1 = km_now_ns();
            flops[1] += twin_chunk(x, from, m);
            time[1] += (double)(km_now_ns() - t1);
            time[0] += (double)(t1 - t0);
            be_cpu.stats(x->be, &after);
            flops[0] += after.flops - before.flops;
        }
        if (r >= 0) {
            ours[r] = flops[0] / time[0];
            twins[r] = flops[1] / time[1];
            ratio[r] = ours[r] / twins[r];
            rate[r] = n / time[0] * 1e9;
        }
    }
    struct spread o = spread_of(ours, x->repeats), t = spread_of(twins, x->repeats),
                  q = spread_of(ratio, x->repeats), s = spread_of(rate, x->repeats);
    printf("%6d  %7.0f (%6.0f-%6.0f)  %6.1f (%5.1f-%5.1f)  %6.1f (%5.1f-%5.1f)  %5.2f (%.2f-%.2f)\n", n, s.mid,
           s.lo, s.hi, o.mid, o.lo, o.hi, t.mid, t.lo, t.hi, q.mid, q.lo, q.hi);
    fflush(stdout);
}

/* ---- decode ---- */

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
    uint64_t *buf = must(km_aligned(64, rd.n * 8));
    memset(buf, 1, rd.n * 8);
    rd.p = buf;
    double ms[MAX_REPEATS], gbs[MAX_REPEATS], read[MAX_REPEATS], ratio[MAX_REPEATS];
    for (int r = -1; r < x->repeats; r++) {
        int64_t t0 = km_now_ns();
        for (int i = 0; i < 3; i++)
            step(x, &b);
        int64_t t1 = km_now_ns();
        for (int i = 0; i < 3; i++)
            pool_for(x->pool, x->threads * 8, read_task, &rd);
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

/* Pages of small numbers, so that decode attends to something finite. */
static void fill_pages(struct bench *x)
{
    struct km_err err = {0};
    uint64_t ticket;
    const size_t n = x->g.page_bytes / km_dtype_size(x->g.dtype);
    void *page = must(km_malloc(x->g.page_bytes));
    for (size_t i = 0; i < n; i++) {
        float v = (float)((i * 2654435761u >> 8) % 1000) / 1000 - 0.5f;
        if (x->g.dtype == KM_F32)
            ((float *)page)[i] = v;
        else
            ((uint16_t *)page)[i] = km_f32_to_bf16(v);
    }
    for (int p = 0; p < x->g.n_pages; p++)
        if (be_cpu.copy(x->be, KV_TO_PAGE, &(struct kv_copy){p, page}, 1, &ticket, &err))
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
    if (be_cpu.open(&x->be, &o, m, &x->g, &err) || pool_open(&x->pool, x->threads, &err))
        die(&err);
    x->threads = pool_threads(x->pool);
    const size_t wide =
        (size_t)(c->ffn * 2 > c->n_heads * c->head_dim * 3 ? c->ffn * 2 : c->n_heads * c->head_dim * 3) +
        (size_t)most;
    x->table = must(km_calloc((size_t)x->g.n_pages, sizeof(int32_t)));
    x->tokens = must(km_calloc(CHUNK, sizeof(int32_t)));
    x->positions = must(km_calloc(CHUNK, sizeof(int32_t)));
    x->slots = must(km_calloc(CHUNK, sizeof(int32_t)));
    x->q_start = must(km_calloc(65, sizeof(int32_t)));
    x->kv_len = must(km_calloc(64, sizeof(int32_t)));
    x->table_start = must(km_calloc(65, sizeof(int32_t)));
    x->a = must(km_calloc(CHUNK * wide, sizeof(float)));
    x->b = must(km_calloc((size_t)(c->hidden > c->head_dim ? c->hidden : c->head_dim) * wide, sizeof(float)));
    x->o = must(km_calloc((size_t)x->threads * CHUNK * wide, sizeof(float)));
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
    pool_close(x->pool);
    be_cpu.close(x->be);
}

int main(int argc, char **argv)
{
    const char *model = "qwen3-tiny", *dtype = "float32";
    int64_t threads = 0, repeats = 7, ctx = 5000, batch = 16;
    bool help = false;
    struct km_strs lengths = {0};
    const struct km_flag flags[] = {
        {"model", 'm', KM_STR, &model, "DIR-OR-PRESET", "the model (default: qwen3-tiny)", 0, 0},
        {"dtype", 'd', KM_STR, &dtype, "float32|bfloat16", "of weights and KV (default: float32)", 0, 0},
        {"threads", 't', KM_INT, &threads, "N", "threads (default: one a core)", 0, 1024},
        {"repeats", 'r', KM_INT, &repeats, "N", "turns of each measurement (default: 7)", 1, MAX_REPEATS},
        {"context", 'c', KM_INT, &ctx, "N", "tokens that decode attends to (default: 5000)", 1, 1 << 20},
        {"batch", 'b', KM_INT, &batch, "N", "largest decode batch, of 1, 4, 16, 64 (default: 16; 0: no decode)", 0,
         64},
    };
    const int n_flags = (int)(sizeof flags / sizeof *flags);
    struct km_err err = {0};
    struct mdl *m;
    if (km_args_parse(flags, n_flags, argc - 1, argv + 1, &lengths, &help, &err))
        die(&err);
    if (help) {
        struct km_buf b = {0};
        km_args_help(flags, n_flags, &b);
        printf("usage: cpu_bench [flags] [PROMPT-LENGTH ...] (default: 512 1024 2048 5000)\n%s", km_buf_str(&b));
        km_buf_free(&b);
        return 0;
    }
    int lens[64] = {512, 1024, 2048, 5000}, n_lens = lengths.n ? 0 : 4, longest = 1;
    for (int i = 0; i < lengths.n && n_lens < 64; i++)
        lens[n_lens++] = atoi(lengths.v[i]);
    for (int i = 0; i < n_lens; i++) {
        if (lens[i] < 1)
            die(&(struct km_err){.msg = "a prompt length must be a number of tokens"});
        longest = lens[i] > longest ? lens[i] : longest;
    }
    if (mdl_open(&m, model, false, 1, &err))
        die(&err);
    struct bench x = {.threads = (int)threads, .repeats = (int)repeats};
    openblas_set_num_threads(1);
    open_all(&x, m, dtype[0] == 'b' ? KM_BF16 : KM_F32, longest, batch ? (int)batch : 1, (int)ctx);
    struct be_stats st;
    be_cpu.stats(x.be, &st);
    printf("%s, %s; %s; yardstick OpenBLAS %s on %d threads\n\n", mdl_name(m), km_dtype_name(x.g.dtype), st.device,
           openblas_get_corename(), x.threads);
    printf("prompt  tokens/s                 GFLOP/s                OpenBLAS GFLOP/s       ratio\n");
    for (int i = 0; i < n_lens; i++)
        bench_prefill(&x, lens[i]);
    if (batch) {
        printf("\n batch  ms a step                GB/s                   plain read GB/s        ratio   at %lld "
               "tokens\n",
               (long long)ctx);
        for (int b = 1; b <= batch; b *= 4)
            bench_decode(&x, b, (int)ctx);
    }
    close_all(&x);
    mdl_free(m);
    km_free(lengths.v);
    return 0;
}
