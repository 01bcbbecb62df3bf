/* Checks attention (attn/) and the kernel that stores K and V (step/fused.cu) on requests whose KV is in pages
 * scattered over a pool. Times attention at the shapes of Qwen3-8B. */
#include "engine/cuda/attn/attn.h"
#include "engine/cuda/step/fused.h"
#include "engine/cuda/test/check.h"

#include <string.h>

/* Which kernel processes requests with several query tokens: the kernel that the engine would use, or the same for all
 * requests. */
enum route { BY_LENGTH, ALL_TAILS, NO_TAILS };

/* The requests of a step with random queries, and their KV in pages scattered over a pool. */
struct attention_case {
    cu_dims m = {};
    int R, T = 0, n_blocks = 0, n_pages;
    route how;
    cu_step_counts counts = {};
    mirrored<bf16> *pool, *qkv, *o;
    mirrored<int32_t> *arrays;
    cu_step_arrays host = {}, dev = {}; /* pointers into `arrays` */

    /* n requests with q_len query tokens and kv_len tokens of KV each. sms: number of SMs to assume, which determines
     * how decode attention and tails split the KV; 0: the GPU's own number. timing: the pool is only for timing, and is
     * filled with repeated random numbers. Otherwise all elements that no request uses are NaN. */
    attention_case(int H, int G, int d, int B, int L, int n, const int *q_len, const int *kv_len, int sms = 0,
                   bool timing = false, route how = NO_TAILS)
        : R(n), how(how)
    {
        m = gpu_dims();
        m.L = L, m.H = H, m.G = G, m.d = d, m.B = B, m.B_log2 = __builtin_ctz((unsigned)B), m.max_reqs = n,
        m.eps = 1e-6f;
        m.page_elems = (size_t)L * 2 * G * B * d;
        m.n_sms = sms ? sms : m.n_sms;
        for (int r = 0; r < n; r++)
            T += q_len[r], n_blocks += (kv_len[r] + B - 1) / B;
        n_pages = n_blocks + 7;
        pool = new mirrored<bf16>((size_t)n_pages * m.page_elems);
        qkv = new mirrored<bf16>((size_t)T * (H + 2 * G) * d);
        o = new mirrored<bf16>((size_t)T * H * d);
        lay_out_arrays();
        fill_arrays(q_len, kv_len);
        arrays->upload();
        randomize(*qkv, 1);
        if (timing)
            fill_pool_for_timing();
        else
            fill_pool();
        pool->upload();
    }
    /* Allocates `arrays` and sets the pointers of host and dev. */
    void lay_out_arrays()
    {
        size_t n = (size_t)R, t = (size_t)T, splits = 8 * (size_t)cu_attn_splits_max(m, R),
               tails = 8 * (size_t)cu_attn_tails_max(m, T, R);
        arrays = new mirrored<int32_t>(t * 4 + n * 8 + (size_t)n_blocks + 64 + splits + tails + 4);
        int32_t *at = arrays->h;
        auto next = [&](int32_t *&on_host, int32_t *&on_dev, size_t count) {
            on_host = at, on_dev = arrays->d + (at - arrays->h), at += count;
        };
        next(host.q_start, dev.q_start, n + 1);
        next(host.kv_len, dev.kv_len, n);
        next(host.table_start, dev.table_start, n);
        next(host.table, dev.table, (size_t)n_blocks);
        int32_t *host_splits, *dev_splits, *host_tails, *dev_tails;
        at += (arrays->h - at) & 3; /* splits are aligned to 16 bytes */
        next(host_splits, dev_splits, splits);
        host.splits = reinterpret_cast<cu_split *>(host_splits), dev.splits = reinterpret_cast<cu_split *>(dev_splits);
        next(host_tails, dev_tails, tails);
        host.tails = reinterpret_cast<cu_tail *>(host_tails), dev.tails = reinterpret_cast<cu_tail *>(dev_tails);
        next(host.tile_req, dev.tile_req, t);
        next(host.tile_row, dev.tile_row, t);
        next(host.positions, dev.positions, t);
        next(host.slots, dev.slots, t);
    }
    /* The page ids in random order. The caller frees them. */
    int *shuffled_pages() const
    {
        int *pages = static_cast<int *>(malloc(sizeof(int) * (size_t)n_pages));
        for (int i = 0; i < n_pages; i++)
            pages[i] = i;
        for (int i = n_pages - 1; i > 0; i--) {
            int k = (int)(uniform() * (float)(i + 1)), x = pages[i];
            pages[i] = pages[k % (i + 1)], pages[k % (i + 1)] = x;
        }
        return pages;
    }
    void fill_arrays(const int *q_len, const int *kv_len)
    {
        int32_t *decoding = static_cast<int32_t *>(malloc(sizeof(int32_t) * (size_t)R)),
                *tails = static_cast<int32_t *>(malloc(sizeof(int32_t) * (size_t)R));
        int *pages = shuffled_pages(), n_used = 0, n_decoding = 0, n_tails = 0;
        for (int r = 0; r < R; r++) {
            host.q_start[r + 1] = host.q_start[r] + q_len[r];
            host.kv_len[r] = kv_len[r];
            host.table_start[r] = n_used;
            for (int i = 0; i < (kv_len[r] + m.B - 1) / m.B; i++, n_used++)
                host.table[n_used] = pages[n_used];
            for (int i = 0; i < q_len[r]; i++) {
                int pos = kv_len[r] - q_len[r] + i;
                host.positions[host.q_start[r] + i] = pos;
                host.slots[host.q_start[r] + i] = host.table[host.table_start[r] + pos / m.B] * m.B + pos % m.B;
            }
            if (q_len[r] == 1)
                decoding[n_decoding++] = r;
            else if (how == ALL_TAILS || (how == BY_LENGTH && cu_attn_is_tail(m, q_len[r], kv_len[r])))
                tails[n_tails++] = r;
            else
                for (int i = 0; i < q_len[r]; i += CU_TILE_Q)
                    host.tile_req[counts.n_tiles] = r, host.tile_row[counts.n_tiles++] = i;
        }
        counts.n_splits = cu_attn_splits(m, host, decoding, n_decoding, host.splits);
        cu_attn_tails(m, host, tails, n_tails, &counts);
        free(pages);
        free(tails);
        free(decoding);
    }
    /* Repeats 65536 random numbers, which is quick. */
    void fill_pool_for_timing()
    {
        size_t period = pool->n < 65536 ? pool->n : 65536;
        for (size_t i = 0; i < period; i++)
            pool->h[i] = __float2bfloat16(normal());
        for (size_t i = period; i < pool->n; i += period)
            memcpy(pool->h + i, pool->h, sizeof(bf16) * (pool->n - i < period ? pool->n - i : period));
    }
    /* Random numbers for the requests' tokens, NaN everywhere else. */
    void fill_pool()
    {
        memset((void *)pool->h, 0xFF, pool->n * sizeof(bf16));
        for (int r = 0; r < R; r++)
            for (int k = 0; k < host.kv_len[r]; k++)
                for (int l = 0; l < m.L; l++)
                    for (int kv = 0; kv < 2; kv++)
                        for (int g = 0; g < m.G; g++)
                            for (int e = 0; e < m.d; e++)
                                *at_kv(r, k, l, kv, g, e) = __float2bfloat16(normal() * (kv ? 0.25f : 1));
    }
    ~attention_case()
    {
        delete pool;
        delete qkv;
        delete o;
        delete arrays;
    }
    /* Element e of the key (kv 0) or value (kv 1) of token k of request r, in KV head g and layer l. */
    bf16 *at_kv(int r, int k, int l, int kv, int g, int e)
    {
        size_t page = (size_t)host.table[host.table_start[r] + k / m.B];
        return pool->h + page * m.page_elems + ((((size_t)l * 2 + kv) * m.G + g) * m.B + k % m.B) * m.d + e;
    }
    /* Attention of one row of one head, in double. */
    void reference(int r, int row, int layer, int head, double *out)
    {
        int q0 = host.q_start[r], n = host.q_start[r + 1] - q0, seen = host.kv_len[r] - n + row + 1,
            g = head / (m.H / m.G);
        const bf16 *q = qkv->h + ((size_t)(q0 + row) * (m.H + 2 * m.G) + head) * m.d;
        double *s = static_cast<double *>(malloc(sizeof(double) * (size_t)seen)), top = -1e300, sum = 0;
        for (int k = 0; k < seen; k++) {
            double x = 0;
            for (int e = 0; e < m.d; e++)
                x += to_double(q[e]) * to_double(*at_kv(r, k, layer, 0, g, e));
            s[k] = x / sqrt((double)m.d);
            top = fmax(top, s[k]);
        }
        for (int e = 0; e < m.d; e++)
            out[e] = 0;
        for (int k = 0; k < seen; k++) {
            double p = exp(s[k] - top);
            sum += p;
            for (int e = 0; e < m.d; e++)
                out[e] += p * to_double(*at_kv(r, k, layer, 1, g, e));
        }
        for (int e = 0; e < m.d; e++)
            out[e] /= sum;
        free(s);
    }
    /* Compares every step-th pair of a row and a head of o with the reference. */
    void compare_rows(const char *name, int layer, int step)
    {
        comparison result(name);
        compare_rows(result, layer, step);
    }
    void compare_rows(comparison &result, int layer, int step)
    {
        o->download();
        double ref[128];
        int turn = 0;
        for (int r = 0; r < R; r++)
            for (int row = 0; row < host.q_start[r + 1] - host.q_start[r]; row++)
                for (int h = 0; h < m.H; h++) {
                    if (turn++ % step)
                        continue;
                    reference(r, row, layer, h, ref);
                    for (int e = 0; e < m.d; e++)
                        result.add(to_double(o->h[((size_t)(host.q_start[r] + row) * m.H + h) * m.d + e]), ref[e]);
                }
    }
};

/* Checks prefill_sm90.cu, with decode.cu for the requests with one query token. small: on 3 SMs only. */
static void check_prefill_sm90(attention_case &s, bool small)
{
    char name[96];
    struct km_err err;
    cu_prefill_plan plan;
    mirrored<int32_t> job_counters(2);
    job_counters.upload();
    if (cu_attn_prefill_sm90_plan(&plan, s.m, s.pool->d, s.n_pages, s.qkv->d, s.T, job_counters.d, &err)) {
        report_failure(err.msg);
        return;
    }
    void *work;
    CUDA_OK(cudaMalloc(&work, cu_attn_decode_workspace(s.m)));
    CUDA_OK(cudaMemset(work, 0, cu_attn_decode_workspace(s.m)));
    for (int sms : {3, 1, s.m.n_sms}) { /* few SMs: each thread block takes many jobs, and the rings wrap around */
        if (small && sms != 3)
            continue;
        cu_dims m = s.m;
        m.n_sms = sms;
        s.o->poison();
        cu_attn_decode(s.m, s.qkv->d, s.dev, s.counts.n_splits, 1, s.pool->d, s.o->d, work, 0);
        cu_attn_prefill_sm90(m, plan, s.dev, s.counts.n_tiles, 1, s.o->d, 0);
        snprintf(name, sizeof name, "attention sm90, H %d G %d B %d, %d SMs", s.m.H, s.m.G, s.m.B, sms);
        s.compare_rows(name, 1, 7);
        job_counters.download();
        if (job_counters.h[0] || job_counters.h[1]) {
            snprintf(name, sizeof name, "the job counters are %d and %d after the launch; both must be 0",
                     job_counters.h[0], job_counters.h[1]);
            report_failure(name);
        }
    }
    cudaFree(work);
}

/* What cu_attn_tails_sm90 needs beside a case. */
struct tail_rig {
    cu_prefill_plan plan;
    mirrored<int32_t> job_counters;
    mirrored<char> decode_work, work;
    int rc;

    explicit tail_rig(const attention_case &s)
        : job_counters(2), decode_work(cu_attn_decode_workspace(s.m)), work(cu_attn_tail_workspace(s.m))
    {
        struct km_err err;
        job_counters.upload();
        decode_work.upload();
        work.poison();
        rc = cu_attn_prefill_sm90_plan(&plan, s.m, s.pool->d, s.n_pages, s.qkv->d, s.T, job_counters.d, &err);
        if (rc)
            report_failure(err.msg);
    }
    /* The attention of all requests of a case, as in the engine. */
    void attend(const attention_case &s, int layer)
    {
        if (s.counts.n_splits)
            cu_attn_decode(s.m, s.qkv->d, s.dev, s.counts.n_splits, layer, s.pool->d, s.o->d, decode_work.d, 0);
        if (s.counts.n_tiles)
            cu_attn_prefill_sm90(s.m, plan, s.dev, s.counts.n_tiles, layer, s.o->d, 0);
        if (s.counts.n_tail_splits)
            cu_attn_tails_sm90(s.m, plan, s.dev, s.counts, layer, work.d, s.o->d, 0);
    }
};

/* Runs a case twice, and adds the comparison of its rows with the reference to `result`. Both runs must give the same
 * bits. */
static void check_tail_case(attention_case &s, comparison &result, int step)
{
    tail_rig rig(s);
    if (rig.rc)
        return;
    s.o->poison();
    rig.attend(s, 1);
    s.o->download();
    mirrored<bf16> first(s.o->n);
    memcpy((void *)first.h, s.o->h, s.o->n * sizeof(bf16));
    s.o->poison();
    rig.attend(s, 1);
    s.compare_rows(result, 1, step);
    result.check(!memcmp((const void *)first.h, s.o->h, s.o->n * sizeof(bf16)));
    rig.job_counters.download();
    result.check(!rig.job_counters.h[0] && !rig.job_counters.h[1]);
}

/* Tails of one shape: every number of rows from 1 to 64 and around the tiles of 128 and 256 rows, and lengths around
 * the limits of key tiles. Each tail is alone in its step, so that its keys are split. */
static void check_tail_lengths(int H, int G, int B)
{
    static const int more[] = {127, 128, 129, 255, 256, 257};
    char rows_name[96], length_name[96];
    snprintf(rows_name, sizeof rows_name, "tails, H %d G %d B %d, 1 to 257 rows", H, G, B);
    comparison by_rows(rows_name);
    for (int i = 1; i <= 64 + 6; i++) {
        int q = i <= 64 ? i : more[i - 65], kv = 1024 + q % 5 * 51 + q;
        attention_case s(H, G, 128, B, 2, 1, &q, &kv, 132, false, ALL_TAILS);
        by_rows.check(q == 1 || s.counts.n_tail_merges > 0);
        check_tail_case(s, by_rows, 11);
    }
    snprintf(length_name, sizeof length_name, "tails, H %d G %d B %d, 2 to 1,540 tokens", H, G, B);
    comparison by_length(length_name);
    for (int base : {0, 128, 256, 512, 1024, 1280, 1536})
        for (int over = -1; over <= 4; over++)
            for (int q : {2, 33}) {
                int kv = base + over;
                if (kv < q)
                    continue;
                attention_case s(H, G, 128, B, 2, 1, &q, &kv, 132, false, ALL_TAILS);
                check_tail_case(s, by_length, 3);
            }
}

/* Steps of several requests: decodes, prefills and tails. Few SMs: each thread block takes many jobs, and the rings
 * wrap around. */
static void check_tail_batches(int H, int G, int B)
{
    static const int q[] = {32, 1, 2, 700, 33, 255, 1, 16, 129},
                     kv[] = {2048, 1500, 1027, 700, 4000, 1300, 3, 16, 1999};
    char name[96];
    for (route how : {BY_LENGTH, ALL_TAILS})
        for (int sms : {132, 40, 9, 1}) {
            attention_case s(H, G, 128, B, 2, 9, q, kv, sms, false, how);
            snprintf(name, sizeof name, "tails, H %d G %d B %d, %d SMs, %d splits, %d merges", H, G, B, sms,
                     s.counts.n_tail_splits, s.counts.n_tail_merges);
            comparison result(name);
            check_tail_case(s, result, 23);
        }
}

static bool gpu_has_tails()
{
    cu_dims m = gpu_dims();
    m.d = 128, m.B = 16;
    return cu_attn_prefill_sm90_usable(m);
}

/* small: a step of three tails and a decode on 5 SMs. Two tails are split, and a thread block takes two jobs. */
void check_tails(bool small)
{
    if (!gpu_has_tails())
        return;
    if (small) {
        static const int q[] = {3, 40, 5, 1}, kv[] = {700, 900, 130, 20};
        attention_case s(4, 2, 128, 16, 2, 4, q, kv, 5, false, ALL_TAILS);
        comparison result("tails, small");
        check_tail_case(s, result, 1);
        result.check(s.counts.n_tail_merges == 2 && s.counts.n_tail_splits * s.m.G > s.m.n_sms);
        return;
    }
    check_tail_lengths(8, 2, 16);
    check_tail_lengths(5, 1, 8);
    check_tail_lengths(4, 4, 256);
    check_tail_batches(8, 2, 16);
    check_tail_batches(16, 1, 64);
    check_tail_batches(10, 2, 16);
    check_tail_batches(32, 8, 16);
}

/* Checks one shape on several numbers of SMs. small: only the first six requests, on 3 SMs, where the splits of the 777
 * tokens are long enough for the ring of tiles to wrap around. */
static void check_shape(int H, int G, int d, int B, bool small)
{
    static const int q[] = {1, 1, 1, 2, 128, 129, 127, 257, 64, 1},
                     kv[] = {1, 17, 777, 2, 128, 300, 127, 257, 64, 2049};
    char name[96];
    for (int sms : {3, 1, 8, 132}) {
        if (small && sms != 3)
            continue;
        attention_case s(H, G, d, B, 2, small ? 6 : 10, q, kv, sms);
        void *work;
        CUDA_OK(cudaMalloc(&work, cu_attn_decode_workspace(s.m)));
        CUDA_OK(cudaMemset(work, 0, cu_attn_decode_workspace(s.m)));
        for (int again = 0; again < 2; again++) { /* twice: the first launch must reset the counters to zero */
            s.o->poison();
            cu_attn_decode(s.m, s.qkv->d, s.dev, s.counts.n_splits, 1, s.pool->d, s.o->d, work, 0);
        }
        cu_attn_prefill(s.m, s.qkv->d, s.dev, s.counts.n_tiles, 1, s.pool->d, s.o->d, 0);
        snprintf(name, sizeof name, "attention, H %d G %d d %d B %d, %d splits", H, G, d, B, s.counts.n_splits);
        s.compare_rows(name, 1, 7);
        if ((small || sms > 8) && cu_attn_prefill_sm90_usable(s.m))
            check_prefill_sm90(s, small);
        cudaFree(work);
    }
}

/* Checks cu_qk_rope_store. rows: query rows of the third request. In a step of few rows a warp processes one head, in a
 * step of many rows several heads. */
static void check_qk_rope(int d, int rows)
{
    const int q[] = {5, 1, rows}, kv[] = {5, 40, rows + 44};
    attention_case s(8, 2, d, 16, 2, 3, q, kv);
    mirrored<bf16> qn((size_t)d), kn((size_t)d);
    mirrored<float2> angles((size_t)s.T * d / 2);
    randomize(qn, 1);
    randomize(kn, 1);
    for (size_t i = 0; i < angles.n; i++) {
        float freq = (float)(1.0 / pow(1e6, 2.0 * (double)(i % (d / 2)) / d));
        double a = (double)((float)s.host.positions[i / (d / 2)] * freq);
        angles.h[i] = make_float2((float)cos(a), (float)sin(a));
    }
    angles.upload();
    mirrored<bf16> before(s.qkv->n);
    memcpy(before.h, s.qkv->h, before.n * sizeof(bf16));
    cu_qk_rope_store(s.m, s.qkv->d, qn.d, kn.d, angles.d, s.dev, s.T, 1, s.pool->d, 0);
    s.qkv->download();
    s.pool->download();
    char name[64];
    snprintf(name, sizeof name, "RMSNorm, RoPE, store of K and V, %d tokens, d %d", s.T, d);
    comparison result(name);
    for (int r = 0; r < 3; r++)
        for (int i = 0; i < q[r]; i++)
            for (int h = 0; h < s.m.H + 2 * s.m.G; h++) {
                int tok = s.host.q_start[r] + i, pos = s.host.positions[tok];
                const bf16 *v = before.h + ((size_t)tok * (s.m.H + 2 * s.m.G) + h) * d, *w = h < s.m.H ? qn.h : kn.h;
                double ss = 0, x[128];
                for (int e = 0; e < d; e++)
                    ss += to_double(v[e]) * to_double(v[e]);
                for (int e = 0; e < d; e++)
                    x[e] =
                        h < s.m.H + s.m.G ? to_double(v[e]) / sqrt(ss / d + 1e-6) * to_double(w[e]) : to_double(v[e]);
                for (int e = 0; e < d; e++) {
                    double want = x[e];
                    if (h < s.m.H + s.m.G) {
                        float2 a = angles.h[(size_t)tok * (d / 2) + e % (d / 2)];
                        want = e < d / 2 ? x[e] * a.x - x[e + d / 2] * a.y : x[e] * a.x + x[e - d / 2] * a.y;
                    }
                    double got = h < s.m.H ? to_double(s.qkv->h[((size_t)tok * (s.m.H + 2 * s.m.G) + h) * d + e])
                                           : to_double(*s.at_kv(r, pos, 1, h >= s.m.H + s.m.G, (h - s.m.H) % s.m.G, e));
                    result.add(got, want);
                }
            }
}

void check_attention(bool small)
{
    for (int d : {32, 64, 128})
        check_qk_rope(d, 33);
    check_qk_rope(128, 600);
    check_tails(small);
    if (small) {
        check_shape(4, 2, 128, 16, true);
        check_shape(2, 1, 64, 8, true);
        check_shape(2, 1, 32, 16, true);
        return;
    }
    check_shape(8, 2, 128, 16, false);
    check_shape(8, 1, 32, 16, false);
    check_shape(8, 4, 64, 8, false);
    check_shape(4, 2, 128, 64, false);
    check_shape(4, 4, 128, 256, false);
}

/* ---- speed ---- */

static void time_prefill(int len)
{
    int q[] = {len}, kv[] = {len};
    attention_case s(32, 8, 128, 16, 1, 1, q, kv, 0, true);
    double flops = 2.0 * 32 * 128 * (double)len * len; /* 4 * H * d * len^2 / 2 */
    float ms = time_ms([&] { cu_attn_prefill(s.m, s.qkv->d, s.dev, s.counts.n_tiles, 0, s.pool->d, s.o->d, 0); }, 2);
    printf("prefill attention, %5d tokens: mma.sync %.3f ms, %.0f TFLOP/s", len, ms, flops / ms / 1e9);
    if (cu_attn_prefill_sm90_usable(s.m)) {
        cu_prefill_plan plan;
        mirrored<int32_t> job_counters(2);
        job_counters.upload();
        cu_attn_prefill_sm90_plan(&plan, s.m, s.pool->d, s.n_pages, s.qkv->d, s.T, job_counters.d, nullptr);
        ms = time_ms([&] { cu_attn_prefill_sm90(s.m, plan, s.dev, s.counts.n_tiles, 0, s.o->d, 0); }, 2);
        printf("; wgmma %.3f ms, %.0f TFLOP/s", ms, flops / ms / 1e9);
    }
    printf("\n");
}

static void time_decode(int reqs, int len)
{
    int *q = new int[(size_t)reqs], *kv = new int[(size_t)reqs];
    for (int i = 0; i < reqs; i++)
        q[i] = 1, kv[i] = len;
    int L = reqs * len > 100000 ? 2 : 8; /* launches rotate over layers, so that no cache holds the KV */
    attention_case s(32, 8, 128, 16, L, reqs, q, kv, 0, true);
    void *work;
    CUDA_OK(cudaMalloc(&work, cu_attn_decode_workspace(s.m)));
    CUDA_OK(cudaMemset(work, 0, cu_attn_decode_workspace(s.m)));
    double bytes = (double)reqs * len * 2 * 8 * 128 * 2;
    int layer = 0;
    float ms = time_ms(
        [&] { cu_attn_decode(s.m, s.qkv->d, s.dev, s.counts.n_splits, layer++ % L, s.pool->d, s.o->d, work, 0); }, 8);
    printf("decode attention, %3d requests of %4d tokens: %.1f us, %.2f TB/s of KV\n", reqs, len, ms * 1e3,
           bytes / ms / 1e9);
    cudaFree(work);
    delete[] q;
    delete[] kv;
}

/* Times tails of `rows` rows of n requests with `len` earlier tokens each, and prefill attention for the same rows. */
static void time_tail(int n, int rows, int len)
{
    enum { MOST = 8 };
    int q[MOST], kv[MOST], L = n * len > 100000 ? 2 : 4, layer = 0; /* as in time_decode */
    float ms[2];
    int splits = 0;
    for (int i = 0; i < n; i++)
        q[i] = rows, kv[i] = len + rows;
    for (route how : {ALL_TAILS, NO_TAILS}) {
        attention_case s(32, 8, 128, 16, L, n, q, kv, 0, true, how);
        tail_rig rig(s);
        ms[how == NO_TAILS] = time_ms([&] { rig.attend(s, layer++ % L); }, 4);
        splits = how == ALL_TAILS ? s.counts.n_tail_splits : splits;
    }
    double bytes = (double)n * (len + rows) * 2 * 8 * 128 * 2, flops = 4.0 * 32 * 128 * n * rows * (len + rows / 2.0);
    printf("tails, %d of %3d rows after %5d tokens: %6.1f us, %.2f TB/s of KV, %3.0f TFLOP/s, %d splits; as prefill "
           "%.1f us\n",
           n, rows, len, ms[0] * 1e3, bytes / ms[0] / 1e9, flops / ms[0] / 1e9, splits, ms[1] * 1e3);
}

void time_tails()
{
    if (!gpu_has_tails())
        return;
    for (int len : {4992, 20000})
        for (int rows : {2, 32, 64, 128, 255})
            time_tail(1, rows, len);
    time_tail(8, 32, 20000);
    time_tail(8, 128, 20000);
    time_decode(1, 20000);
}

void time_attention()
{
    for (int n : {2048, 5000, 8192, 20480})
        time_prefill(n);
    time_decode(1, 640);
    time_decode(1, 8192);
    time_decode(64, 640);
    time_decode(256, 640);
    time_decode(16, 8192);
    time_tails();
}
