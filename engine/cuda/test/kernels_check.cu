/* Checks every kernel against a plain loop in double precision, on random inputs and with outputs set to NaN before the
 * launch. Then times the kernels at the shapes of Qwen3-8B, in the units of the limit that applies to them. A program,
 * not a unit test: it needs a GPU.
 *
 *   kernels_check [check|small|time|attention|gate_up|small_m|all] [SEED]      exit 1 when a kernel is wrong
 *
 *   check      all kernels, no timing
 *   small      every path of every kernel but cuBLASLt's on the smallest inputs, for compute-sanitizer
 *   time       all timings, no checks
 *   attention  times attention alone
 *   gate_up    checks and times gemm/gate_up_sm90.cu alone
 *   small_m    checks and times gemm/small_m_sm90.cu alone
 *   all        checks, then timings (default) */
#include "engine/cuda/attn/attn.h"
#include "engine/cuda/gemm/gemm_lt.h"
#include "engine/cuda/gemm/small_m.h"
#include "engine/cuda/step/fused.h"
#include "engine/cuda/step/sample.h"
#include "engine/cuda/test/check.h"

extern "C" {
#include "engine/sample.h"
}

#include <string.h>

/* A step's requests, with random queries, and KV in pages scattered over a pool. */
struct scene {
    cu_dims m = {};
    int R, T = 0, n_pages, n_tiles = 0, n_splits = 0;
    both<bf16> *pool, *qkv, *o;
    both<int32_t> *arrays;
    cu_step_arrays host = {}, dev = {}; /* both point into `arrays` */

    /* sms: number of SMs to assume, which decides how decode attention splits KV; 0: the GPU's own. timing: random
     * numbers everywhere, of which only 65536 are different, since that is quick to make. */
    scene(int H, int G, int d, int B, int L, int n, const int *q_len, const int *kv_len, int sms = 0,
          bool timing = false)
        : R(n)
    {
        m = gpu_dims();
        m.L = L, m.H = H, m.G = G, m.d = d, m.B = B, m.B_log2 = __builtin_ctz((unsigned)B), m.max_reqs = n,
        m.eps = 1e-6f;
        m.page_elems = (size_t)L * 2 * G * B * d;
        m.n_sms = sms ? sms : m.n_sms;
        int blocks = 0;
        for (int r = 0; r < n; r++)
            T += q_len[r], blocks += (kv_len[r] + B - 1) / B;
        n_pages = blocks + 7;
        pool = new both<bf16>((size_t)n_pages * m.page_elems);
        qkv = new both<bf16>((size_t)T * (H + 2 * G) * d);
        o = new both<bf16>((size_t)T * H * d);
        arrays = new both<int32_t>((size_t)(T * 4 + n * 8 + blocks + 64 + 8 * cu_attn_splits_max(m, n) + 4));
        int32_t *at = arrays->h;
        auto next = [&](int32_t *&on_host, int32_t *&on_dev, size_t count) {
            on_host = at, on_dev = arrays->d + (at - arrays->h), at += count;
        };
        next(host.q_start, dev.q_start, (size_t)n + 1);
        next(host.kv_len, dev.kv_len, (size_t)n);
        next(host.table_start, dev.table_start, (size_t)n);
        next(host.table, dev.table, (size_t)blocks);
        int32_t *host_splits, *dev_splits, *decoding = static_cast<int32_t *>(malloc(sizeof(int32_t) * (size_t)n)),
                                           n_dec = 0;
        at += (arrays->h - at) & 3; /* splits are aligned to 16 bytes */
        next(host_splits, dev_splits, 8 * (size_t)cu_attn_splits_max(m, n));
        host.splits = reinterpret_cast<cu_split *>(host_splits), dev.splits = reinterpret_cast<cu_split *>(dev_splits);
        next(host.tile_req, dev.tile_req, (size_t)T);
        next(host.tile_row, dev.tile_row, (size_t)T);
        next(host.positions, dev.positions, (size_t)T);
        next(host.slots, dev.slots, (size_t)T);
        int *perm = static_cast<int *>(malloc(sizeof(int) * (size_t)n_pages));
        for (int i = 0; i < n_pages; i++)
            perm[i] = i;
        for (int i = n_pages - 1; i > 0; i--) {
            int k = (int)(uniform() * (float)(i + 1)), x = perm[i];
            perm[i] = perm[k % (i + 1)], perm[k % (i + 1)] = x;
        }
        int used = 0;
        for (int r = 0; r < n; r++) {
            host.q_start[r + 1] = host.q_start[r] + q_len[r];
            host.kv_len[r] = kv_len[r];
            host.table_start[r] = used;
            for (int i = 0; i < (kv_len[r] + B - 1) / B; i++, used++)
                host.table[used] = perm[used];
            for (int i = 0; i < q_len[r]; i++) {
                int pos = kv_len[r] - q_len[r] + i;
                host.positions[host.q_start[r] + i] = pos;
                host.slots[host.q_start[r] + i] = host.table[host.table_start[r] + pos / B] * B + pos % B;
            }
            if (q_len[r] == 1)
                decoding[n_dec++] = r;
            for (int i = 0; q_len[r] > 1 && i < q_len[r]; i += CU_TILE_Q)
                host.tile_req[n_tiles] = r, host.tile_row[n_tiles++] = i;
        }
        free(perm);
        n_splits = cu_attn_splits(m, host, decoding, n_dec, host.splits);
        free(decoding);
        arrays->up();
        randomize(*qkv, 1);
        if (timing) {
            size_t some = pool->n < 65536 ? pool->n : 65536;
            for (size_t i = 0; i < some; i++)
                pool->h[i] = __float2bfloat16(normal());
            for (size_t i = some; i < pool->n; i += some)
                memcpy(pool->h + i, pool->h, sizeof(bf16) * (pool->n - i < some ? pool->n - i : some));
            pool->up();
            return;
        }
        /* Pages hold random numbers where a request has tokens, and NaN everywhere else. */
        memset((void *)pool->h, 0xFF, pool->n * sizeof(bf16));
        for (int r = 0; r < n; r++)
            for (int k = 0; k < kv_len[r]; k++)
                for (int l = 0; l < L; l++)
                    for (int kv = 0; kv < 2; kv++)
                        for (int g = 0; g < G; g++)
                            for (int e = 0; e < d; e++)
                                *at_kv(r, k, l, kv, g, e) = __float2bfloat16(normal() * (kv ? 0.25f : 1));
        pool->up();
    }
    ~scene()
    {
        delete pool;
        delete qkv;
        delete o;
        delete arrays;
    }
    /* Key (kv 0) or value (kv 1) of token k of request r, element e of KV head g. */
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
                x += f(q[e]) * f(*at_kv(r, k, layer, 0, g, e));
            s[k] = x / sqrt((double)m.d);
            top = fmax(top, s[k]);
        }
        for (int e = 0; e < m.d; e++)
            out[e] = 0;
        for (int k = 0; k < seen; k++) {
            double p = exp(s[k] - top);
            sum += p;
            for (int e = 0; e < m.d; e++)
                out[e] += p * f(*at_kv(r, k, layer, 1, g, e));
        }
        for (int e = 0; e < m.d; e++)
            out[e] /= sum;
        free(s);
    }
    /* Compares every step-th row and head of o with the reference. */
    void judge_rows(const char *name, int layer, int step)
    {
        o->down();
        judge j(name);
        double ref[128];
        int turn = 0;
        for (int r = 0; r < R; r++)
            for (int row = 0; row < host.q_start[r + 1] - host.q_start[r]; row++)
                for (int h = 0; h < m.H; h++) {
                    if (turn++ % step)
                        continue;
                    reference(r, row, layer, h, ref);
                    for (int e = 0; e < m.d; e++)
                        j.add(f(o->h[((size_t)(host.q_start[r] + row) * m.H + h) * m.d + e]), ref[e]);
                }
    }
};

/* Prefill by wgmma, decode as in check_attention. small: on 3 SMs only. */
static void check_attention_sm90(scene &s, bool small)
{
    char name[96];
    struct km_err err;
    cu_prefill_plan plan;
    both<int32_t> job_counters(2);
    job_counters.up();
    if (cu_attn_prefill_sm90_plan(&plan, s.m, s.pool->d, s.n_pages, s.qkv->d, s.T, job_counters.d, &err)) {
        printf("BAD  %s\n", err.msg);
        failures++;
        return;
    }
    void *work;
    OK(cudaMalloc(&work, cu_attn_decode_workspace(s.m)));
    OK(cudaMemset(work, 0, cu_attn_decode_workspace(s.m)));
    for (int sms : {3, 1, s.m.n_sms}) { /* few SMs: each thread block takes many jobs, and the rings wrap around */
        if (small && sms != 3)
            continue;
        cu_dims m = s.m;
        m.n_sms = sms;
        s.o->poison();
        cu_attn_decode(s.m, s.qkv->d, s.dev, s.n_splits, 1, s.pool->d, s.o->d, work, 0);
        cu_attn_prefill_sm90(m, plan, s.dev, s.n_tiles, 1, s.o->d, 0);
        snprintf(name, sizeof name, "attention sm90 %d/%d heads, pages of %d, %d SMs", s.m.H, s.m.G, s.m.B, sms);
        s.judge_rows(name, 1, 7);
        job_counters.down();
        if (job_counters.h[0] || job_counters.h[1]) {
            printf("BAD  the job counters are %d and %d after the launch, not 0\n", job_counters.h[0],
                   job_counters.h[1]);
            failures++;
        }
    }
    cudaFree(work);
}

/* small: the first six requests, on 3 SMs, where the splits of 777 tokens are long enough to wrap the ring of tiles. */
static void check_attention(int H, int G, int d, int B, bool small)
{
    static const int q[] = {1, 1, 1, 2, 128, 129, 127, 257, 64, 1},
                     kv[] = {1, 17, 777, 2, 128, 300, 127, 257, 64, 2049};
    char name[96];
    for (int sms : {3, 1, 8, 132}) {
        if (small && sms != 3)
            continue;
        scene s(H, G, d, B, 2, small ? 6 : 10, q, kv, sms);
        void *work;
        OK(cudaMalloc(&work, cu_attn_decode_workspace(s.m)));
        OK(cudaMemset(work, 0, cu_attn_decode_workspace(s.m)));
        for (int again = 0; again < 2; again++) { /* twice: the first launch must leave the counters at zero */
            s.o->poison();
            cu_attn_decode(s.m, s.qkv->d, s.dev, s.n_splits, 1, s.pool->d, s.o->d, work, 0);
        }
        cu_attn_prefill(s.m, s.qkv->d, s.dev, s.n_tiles, 1, s.pool->d, s.o->d, 0);
        snprintf(name, sizeof name, "attention %d/%d heads of %d, pages of %d, %d splits", H, G, d, B, s.n_splits);
        s.judge_rows(name, 1, 7);
        if ((small || sms > 8) && cu_attn_prefill_sm90_usable(s.m))
            check_attention_sm90(s, small);
        cudaFree(work);
    }
}

/* rows: query rows of the third request. With few rows in the step a warp takes one head, with many several heads. */
static void check_qk_rope(int d, int rows)
{
    const int q[] = {5, 1, rows}, kv[] = {5, 40, rows + 44};
    scene s(8, 2, d, 16, 2, 3, q, kv);
    both<bf16> qn((size_t)d), kn((size_t)d);
    both<float2> angles((size_t)s.T * d / 2);
    randomize(qn, 1);
    randomize(kn, 1);
    for (size_t i = 0; i < angles.n; i++) {
        float freq = (float)(1.0 / pow(1e6, 2.0 * (double)(i % (d / 2)) / d));
        double a = (double)((float)s.host.positions[i / (d / 2)] * freq);
        angles.h[i] = make_float2((float)cos(a), (float)sin(a));
    }
    angles.up();
    both<bf16> before(s.qkv->n);
    memcpy(before.h, s.qkv->h, before.n * sizeof(bf16));
    cu_qk_rope_store(s.m, s.qkv->d, qn.d, kn.d, angles.d, s.dev, s.T, 1, s.pool->d, 0);
    s.qkv->down();
    s.pool->down();
    char name[64];
    snprintf(name, sizeof name, "qk-norm, rope, page write, %d x heads of %d", s.T, d);
    judge j(name);
    for (int r = 0; r < 3; r++)
        for (int i = 0; i < q[r]; i++)
            for (int h = 0; h < s.m.H + 2 * s.m.G; h++) {
                int tok = s.host.q_start[r] + i, pos = s.host.positions[tok];
                const bf16 *v = before.h + ((size_t)tok * (s.m.H + 2 * s.m.G) + h) * d,
                           *w = h < s.m.H ? qn.h : kn.h;
                double ss = 0, x[128];
                for (int e = 0; e < d; e++)
                    ss += f(v[e]) * f(v[e]);
                for (int e = 0; e < d; e++)
                    x[e] = h < s.m.H + s.m.G ? f(v[e]) / sqrt(ss / d + 1e-6) * f(w[e]) : f(v[e]);
                for (int e = 0; e < d; e++) {
                    double want = x[e];
                    if (h < s.m.H + s.m.G) {
                        float2 a = angles.h[(size_t)tok * (d / 2) + e % (d / 2)];
                        want = e < d / 2 ? x[e] * a.x - x[e + d / 2] * a.y : x[e] * a.x + x[e - d / 2] * a.y;
                    }
                    double got = h < s.m.H ? f(s.qkv->h[((size_t)tok * (s.m.H + 2 * s.m.G) + h) * d + e])
                                           : f(*s.at_kv(r, pos, 1, h >= s.m.H + s.m.G, (h - s.m.H) % s.m.G, e));
                    j.add(got, want);
                }
            }
}

/* What a GEMM stores, and whether RMSNorm comes before it. cuBLASLt has no mode with a norm. */
enum gemm_mode { STORE, ADD, NORM_SWIGLU, LOGITS, NORM_STORE, GEMM_MODES };

/* Random operands of one shape. w has 2N rows: gate and up of NORM_SWIGLU. */
struct gemm_case {
    int M, N, K;
    both<bf16> x, w, y, norm, y0; /* y0: y before ADD */
    both<float> yf;               /* y of LOGITS */
    gemm_case(int m, int n, int k)
        : M(m), N(n), K(k), x((size_t)M * K), w((size_t)2 * N * K), y((size_t)M * N), norm((size_t)K), y0(y.n), yf(y.n)
    {
        randomize(x, 1);
        randomize(w, 0.05f);
        randomize(norm, 1);
    }
};

static int run_gemm(gemm_case &c, enum gemm_mode mode, bool small_m, struct cu_lt *lt, struct km_err *err)
{
    int M = c.M, N = c.N, K = c.K;
    void *y = mode == LOGITS ? (void *)c.yf.d : (void *)c.y.d;
    if (!small_m)
        return cu_lt_gemm(lt, c.x.d, c.w.d, M, N, K, mode == ADD, y, mode == LOGITS, 0, err);
    if (mode == NORM_SWIGLU)
        cu_small_m_swiglu(c.x.d, c.norm.d, 1e-6f, c.w.d, M, N, K, c.y.d, 0);
    else if (mode == NORM_STORE)
        cu_small_m_norm(c.x.d, c.norm.d, 1e-6f, c.w.d, M, N, K, c.y.d, 0);
    else if (mode == LOGITS)
        cu_small_m_logits(c.x.d, c.w.d, M, N, K, c.yf.d, 0);
    else
        cu_small_m(c.x.d, c.w.d, M, N, K, mode == ADD, c.y.d, 0);
    return 0;
}

/* Output n of row m in double. *size: magnitude of the terms of ADD, else 0. */
static double gemm_reference(const gemm_case &c, enum gemm_mode mode, int m, int n, double *size)
{
    bool normed = mode == NORM_SWIGLU || mode == NORM_STORE;
    double a = 0, b = 0, squares = 0, old = f(c.y0.h[(size_t)m * c.N + n]);
    for (int k = 0; k < c.K; k++) {
        double v = f(c.x.h[(size_t)m * c.K + k]);
        squares += v * v;
        if (normed) /* x * gamma is rounded to bf16, as in the kernel */
            v = f(__float2bfloat16((float)(v * f(c.norm.h[k]))));
        a += v * f(c.w.h[(size_t)n * c.K + k]);
        if (mode == NORM_SWIGLU)
            b += v * f(c.w.h[(size_t)(c.N + n) * c.K + k]);
    }
    if (normed)
        a /= sqrt(squares / c.K + 1e-6), b /= sqrt(squares / c.K + 1e-6);
    *size = mode == ADD ? fmax(fabs(a), fabs(old)) : 0;
    return mode == NORM_SWIGLU ? a / (1 + exp(-a)) * b : mode == ADD ? a + old : a;
}

static void check_gemm(gemm_case &c, enum gemm_mode mode, struct cu_lt *lt)
{
    static const char *const what[] = {"store", "add", "norm, swiglu", "logits", "norm, store"};
    bool small_m = c.M <= CU_SMALL_M_MAX;
    struct km_err err;
    char name[96];
    if ((mode == NORM_SWIGLU || mode == NORM_STORE) && !small_m)
        return;
    if (mode == ADD) {
        randomize(c.y, 1);
        memcpy(c.y0.h, c.y.h, c.y.n * sizeof(bf16));
    } else {
        c.y.poison();
        c.yf.poison();
    }
    if (run_gemm(c, mode, small_m, lt, &err))
        printf("BAD  %s\n", err.msg), failures++;
    c.y.down();
    c.yf.down();
    snprintf(name, sizeof name, "%s %s M %d N %d K %d", small_m ? "small-M" : "cuBLASLt", what[mode], c.M, c.N, c.K);
    judge j(name);
    for (int i = 0; i < c.M * c.N; i += 1 + c.M * c.N / 20000) {
        double size, want = gemm_reference(c, mode, i / c.N, i % c.N, &size);
        j.add(mode == LOGITS ? (double)c.yf.h[i] : f(c.y.h[i]), want, size);
    }
}

/* GEMMs by small_m.cu and by cuBLASLt. small: the smallest shapes, none of which is cuBLASLt's. */
static void check_gemms(bool small)
{
    struct cu_lt *lt = nullptr;
    struct km_err err;
    if (cu_lt_open(&lt, &err)) {
        printf("BAD  %s\n", err.msg);
        failures++;
        return;
    }
    static const int shapes[][3] = {{3, 44, 1376},   {11, 44, 320},   {1, 4096, 4096}, {3, 6144, 4096}, {8, 256, 768},
                                    {9, 4096, 1024}, {16, 1000, 320}, {17, 512, 256},  {100, 768, 256}};
    for (auto &sh : shapes) {
        int M = sh[0], N = sh[1], K = sh[2];
        if (small && M * N * K > 1 << 18)
            continue;
        gemm_case c(M, N, K);
        for (int mode = 0; mode < GEMM_MODES; mode++)
            check_gemm(c, static_cast<enum gemm_mode>(mode), lt);
    }
    cu_lt_close(lt);
}

/* Sizes below, at and above `fixed`, some of them not multiples of 16; bytes after the end must not change. */
static void check_fetch()
{
    enum { FIXED = 3 * 4096 + 64, ALL = FIXED + 5 * 4096 }; /* bytes */
    int32_t *host;
    both<int32_t> dev(ALL / 4 + 256);
    OK(cudaHostAlloc(&host, ALL, cudaHostAllocDefault));
    judge j("fetch of a step's arrays");
    for (int bytes : {0, (int)FIXED, FIXED + 4, FIXED + 20, FIXED + 4096, (int)ALL}) {
        for (int i = 0; i < ALL / 4; i++)
            host[i] = (int32_t)(bytes + 7 * i);
        host[0] = bytes;
        OK(cudaMemset(dev.d, 0x7F, dev.n * sizeof(int32_t)));
        cu_fetch(reinterpret_cast<char *>(host), FIXED, reinterpret_cast<char *>(dev.d), 0);
        dev.down();
        int upto = bytes > FIXED ? (bytes + 15) / 16 * 4 : FIXED / 4;
        for (int i = 0; i < (int)dev.n; i++)
            j.add(dev.h[i] == (i < upto ? host[i] : 0x7F7F7F7F) ? 0 : 1, 0);
    }
    OK(cudaFreeHost(host));
}

static void check_fused()
{
    cu_dims m = {};
    m.eps = 1e-6f;
    m.D = 1080; /* more 16-byte pieces than threads, and not a multiple of the number of threads */
    {
        m.d = 64;
        both<bf16> table((size_t)5 * m.D), x((size_t)4 * m.D);
        both<int32_t> tokens(4), sampled_ids(2), positions(4);
        both<float> inv_freq(32);
        both<float2> angles(4 * 32);
        /* Expected ids. The third was sampled on the device; the fourth is still to be sampled by the host. */
        static const int rows[] = {4, 0, 3, 0};
        tokens.h[0] = 4, tokens.h[1] = 0, tokens.h[2] = -2, tokens.h[3] = -1;
        sampled_ids.h[0] = -1, sampled_ids.h[1] = 3;
        for (int i = 0; i < 32; i++)
            inv_freq.h[i] = (float)pow(1e6, -i / 32.0);
        for (int i = 0; i < 4; i++)
            positions.h[i] = i * 13001;
        tokens.up(), sampled_ids.up(), positions.up(), inv_freq.up();
        randomize(table, 1);
        x.poison();
        angles.poison();
        cu_step_arrays arrays = {};
        arrays.tokens = tokens.d, arrays.positions = positions.d;
        cu_embed(m, table.d, inv_freq.d, arrays, sampled_ids.d, 4, x.d, angles.d, 0);
        x.down();
        angles.down();
        {
            judge j("rotary angles");
            for (int i = 0; i < 4 * 32; i++) {
                double a = (double)((float)positions.h[i / 32] * inv_freq.h[i % 32]);
                j.add(angles.h[i].x, cos(a)), j.add(angles.h[i].y, sin(a));
            }
        }
        judge j("embed");
        for (size_t i = 0; i < x.n; i++)
            j.add(f(x.h[i]), f(table.h[(size_t)rows[i / (size_t)m.D] * (size_t)m.D + i % (size_t)m.D]));
    }
    for (int D : {256, 1024, 2560, 4096, 5120}) {
        m.D = D;
        both<bf16> x((size_t)7 * D), w((size_t)D), y((size_t)3 * D);
        both<int32_t> rows(3);
        rows.h[0] = 6, rows.h[1] = 0, rows.h[2] = 3;
        rows.up();
        randomize(x, 3);
        randomize(w, 1);
        for (bool gather : {true, false}) {
            y.poison();
            cu_rmsnorm(m, x.d, w.d, gather ? rows.d : nullptr, 3, y.d, 0);
            y.down();
            char name[64];
            snprintf(name, sizeof name, "rmsnorm of %d%s", D, gather ? ", gathered" : "");
            judge j(name);
            for (int r = 0; r < 3; r++) {
                const bf16 *row = x.h + (size_t)(gather ? rows.h[r] : r) * D;
                double ss = 0;
                for (int i = 0; i < D; i++)
                    ss += f(row[i]) * f(row[i]);
                for (int i = 0; i < D; i++)
                    j.add(f(y.h[(size_t)r * D + i]), f(row[i]) / sqrt(ss / D + 1e-6) * f(w.h[i]));
            }
        }
    }
    m.F = 768;
    both<bf16> gu((size_t)9 * 2 * m.F), act((size_t)9 * m.F);
    randomize(gu, 2);
    act.poison();
    cu_swiglu(m, gu.d, 9, act.d, 0);
    act.down();
    {
        judge j("swiglu");
        for (int r = 0; r < 9; r++)
            for (int i = 0; i < m.F; i++) {
                double g = f(gu.h[(size_t)r * 2 * m.F + i]), u = f(gu.h[(size_t)r * 2 * m.F + m.F + i]);
                j.add(f(act.h[(size_t)r * m.F + i]), g / (1 + exp(-g)) * u);
            }
    }
}

/* Numbers of kinds of sampling to check: flat logits alone, one for each path of the kernels, all. SORTED: the most ids
 * that the kernels can sort. */
enum { FLAT = 1, EVERY_PATH = 9, ALL_KINDS = 15, SORTED = 4096 };

/* Rows of several kinds of sampling against the reference sampler, rows_per_kind of each. The ids are equal, unless two
 * scores differ only in the last bits of a logarithm, which is not expected among so few rows. Only rows of more than
 * SORTED ids may be left to the reference sampler. */
static void check_sampling(int V, int rows_per_kind, int n_kinds)
{
    struct kind {
        double temperature, top_p, min_p;
        int top_k, n_banned;
        float spread;
    };
    static const kind kinds[ALL_KINDS] = {
        {1, 0.9, 0, 40, 0, 0}, /* flat logits: more than SORTED ids are left to the host */
        {0, 1, 0, 0, 2, 3},      {1, 1, 0, 0, 2, 3},      {0.6, 0.95, 0, 20, 0, 3},  {1.5, 0.9, 0, 0, 0, 3},
        {0.8, 1, 0.05, 0, 0, 3}, {1, 1, 0, 1, 0, 3},      {2, 0.3, 0.001, 50, 0, 3}, {1, 1, 0, 151936, 0, 3},
        {0, 1, 0, 0, 0, 3}, /* from here on other numbers for the same paths */
        {1, 1, 0, 0, 0, 3},      {1, 0.5, 0, 1000, 1, 3}, {1, 0.01, 0, 0, 0, 3},     {0.01, 0.9, 0, 5, 0, 3},
        {1, 0.9, 0, 0, 0, 30}};
    const int S = n_kinds * rows_per_kind;
    int left = 0;
    both<float> logits((size_t)S * V);
    both<cu_sampling> sampling((size_t)S);
    both<int32_t> bans((size_t)S * 3 + 1), ids((size_t)S);
    both<char> workspace(cu_sample_workspace(S));
    struct smp_row *rows = static_cast<struct smp_row *>(calloc((size_t)S, sizeof *rows));
    float *scratch = static_cast<float *>(malloc(sizeof(float) * (size_t)V));
    workspace.up();
    for (int i = 0; i < S; i++) {
        auto &k = kinds[i / rows_per_kind];
        float *x = logits.h + (size_t)i * V;
        int32_t *ban = bans.h + S + 1 + 2 * i, top = 0;
        for (int j = 0; j < V; j++) {
            x[j] = normal() * k.spread;
            top = x[j] > x[top] ? j : top;
        }
        if (i % 2) /* ties, at the maximum and elsewhere */
            for (int j = 0; j < V; j += 3)
                x[j] = x[j + 1 < V ? j + 1 : 0];
        ban[0] = top, ban[1] = (top + 77) % V;
        bans.h[i] = 2 * i, bans.h[i + 1] = 2 * i + k.n_banned;
        struct smp_row &r = rows[i];
        r.p = smp_defaults();
        r.p.temperature = k.temperature, r.p.top_p = k.top_p, r.p.min_p = k.min_p, r.p.top_k = k.top_k;
        r.p.seed = (uint64_t)i * 977 + 5;
        r.step = (uint64_t)(i % 5);
        r.banned = ban, r.n_banned = k.n_banned;
        sampling.h[i] = cu_sampling{smp_key(r.p.seed, r.step),
                                    k.temperature == 0 ? 1 : (float)k.temperature,
                                    (float)k.min_p,
                                    (float)k.top_p,
                                    k.top_k,
                                    k.temperature == 0,
                                    k.temperature > 0 && (k.min_p > 0 || k.top_k > 0 || k.top_p < 1)};
    }
    logits.up(), sampling.up();
    int32_t *ids_host;
    OK(cudaHostAlloc(&ids_host, (size_t)S * sizeof *ids_host, cudaHostAllocDefault));
    judge j("sampled ids");
    for (int i = 0; i < S; i++) { /* one launch per row, because rows overlap in ban_start; all use the same counter */
        bans.h[i] = 2 * i, bans.h[i + 1] = 2 * i + kinds[i / rows_per_kind].n_banned;
        bans.up();
        cu_step_arrays in = {};
        in.ban_start = bans.d + i, in.ban = bans.d + S + 1, in.sampling = sampling.d + i;
        OK(cudaMemset(ids.d + i, 0x7F, sizeof(int32_t)));
        ids_host[i] = 0x7F7F7F7F;
        cu_sample(logits.d + (size_t)i * V, 1, V, in, S, workspace.d, ids.d + i, ids_host + i, 0);
        OK(cudaDeviceSynchronize());
    }
    ids.down();
    for (int i = 0; i < S; i++) {
        struct smp_result want;
        smp_sample(&rows[i], logits.h + (size_t)i * V, V, scratch, &want);
        left += ids.h[i] < 0;
        j.add(ids_host[i] == ids.h[i] ? 0 : 1, 0);
        j.add(ids.h[i] == want.id || (ids.h[i] < 0 && V > SORTED) ? 0 : 1, 0);
        if (ids.h[i] >= 0 && ids.h[i] != want.id)
            printf("     kind %d: id %d, the reference sampler's is %d\n", i / rows_per_kind, ids.h[i], want.id);
    }
    printf("     %d of %d rows were left to the reference sampler\n", left, S);
    OK(cudaFreeHost(ids_host));
    free(rows);
    free(scratch);
}

/* ---- speed ---- */

static void time_prefill(int len)
{
    int q[] = {len}, kv[] = {len};
    scene s(32, 8, 128, 16, 1, 1, q, kv, 0, true);
    double flops = 2.0 * 32 * 128 * (double)len * len; /* 4 * H * d * len^2 / 2 */
    float ms = time_ms([&] { cu_attn_prefill(s.m, s.qkv->d, s.dev, s.n_tiles, 0, s.pool->d, s.o->d, 0); }, 2);
    printf("prefill attention %6d tokens  mma.sync %8.3f ms %6.0f TFLOP/s", len, ms, flops / ms / 1e9);
    if (cu_attn_prefill_sm90_usable(s.m)) {
        cu_prefill_plan plan;
        both<int32_t> job_counters(2);
        job_counters.up();
        cu_attn_prefill_sm90_plan(&plan, s.m, s.pool->d, s.n_pages, s.qkv->d, s.T, job_counters.d, nullptr);
        ms = time_ms([&] { cu_attn_prefill_sm90(s.m, plan, s.dev, s.n_tiles, 0, s.o->d, 0); }, 2);
        printf("   wgmma %8.3f ms %6.0f TFLOP/s", ms, flops / ms / 1e9);
    }
    printf("\n");
}

static void time_decode(int reqs, int len)
{
    int *q = new int[(size_t)reqs], *kv = new int[(size_t)reqs];
    for (int i = 0; i < reqs; i++)
        q[i] = 1, kv[i] = len;
    int L = reqs * len > 100000 ? 2 : 8; /* launches rotate over layers, so that no cache holds the KV */
    scene s(32, 8, 128, 16, L, reqs, q, kv, 0, true);
    void *work;
    OK(cudaMalloc(&work, cu_attn_decode_workspace(s.m)));
    OK(cudaMemset(work, 0, cu_attn_decode_workspace(s.m)));
    double bytes = (double)reqs * len * 2 * 8 * 128 * 2;
    int layer = 0;
    float ms =
        time_ms([&] { cu_attn_decode(s.m, s.qkv->d, s.dev, s.n_splits, layer++ % L, s.pool->d, s.o->d, work, 0); }, 8);
    printf("decode attention %4d x %6d  %8.1f us %6.2f TB/s\n", reqs, len, ms * 1e3, bytes / ms / 1e9);
    cudaFree(work);
    delete[] q;
    delete[] kv;
}

static void time_gemms()
{
    struct cu_lt *lt = nullptr;
    struct km_err err;
    if (cu_lt_open(&lt, &err))
        return;
    static const int shapes[][2] = {{6144, 4096}, {4096, 4096}, {24576, 4096}, {4096, 12288}, {151936, 4096}};
    for (auto &sh : shapes) {
        int N = sh[0], K = sh[1], copies = 1 + (int)(600e6 / ((double)N * K * 2)); /* more than the L2 holds */
        both<bf16> w((size_t)N * K * copies), x((size_t)4096 * K),
            y((size_t)4096 * (N > 30000 ? 1 : N) + 16 * (size_t)N);
        for (size_t i = 0, some = (size_t)N * K; i < w.n; i++)
            w.h[i] = i < some ? __float2bfloat16(0.02f * (uniform() - 0.5f)) : w.h[i - some];
        w.up();
        randomize(x, 1);
        for (int M : {1, 4, 8, 16, 64, 256, 1024, 2048, 4096}) {
            if (N > 30000 && M > 16)
                continue;
            int turn = 0;
            auto next = [&] { return w.d + (size_t)(turn++ % copies) * N * K; };
            printf("GEMM N %6d K %5d M %4d", N, K, M);
            if (M <= CU_SMALL_M_MAX) {
                float ms = time_ms([&] { cu_small_m(x.d, next(), M, N, K, false, y.d, 0); }, 20);
                printf("  small-M %8.1f us %.2f TB/s", ms * 1e3, 2.0 * N * K / ms / 1e9);
            }
            float ms =
                time_ms([&] { cu_lt_gemm(lt, x.d, next(), M, N, K, false, y.d, false, 0, &err); }, M > 256 ? 4 : 20);
            printf("  cuBLASLt %8.1f us %.2f TB/s %6.0f TFLOP/s\n", ms * 1e3, 2.0 * N * K / ms / 1e9,
                   2.0 * M * N * K / ms / 1e9);
        }
    }
    cu_lt_close(lt);
}

int main(int argc, char **argv)
{
    const char *what = argc > 1 ? argv[1] : "all";
    setvbuf(stdout, nullptr, _IOLBF, 0);
    rng = argc > 2 ? strtoull(argv[2], nullptr, 10) : 1;
    bool attention = !strcmp(what, "attention"), small = !strcmp(what, "small"), gate_up = !strcmp(what, "gate_up"),
         small_m = !strcmp(what, "small_m");
    if (gate_up) {
        check_gate_up_sm90(false);
    } else if (small_m) {
        check_small_m_sm90(false);
    } else if (strcmp(what, "time") && !attention) {
        check_fetch();
        check_fused();
        check_sampling(small ? 1200 : 151936, small ? 1 : 6, small ? EVERY_PATH : ALL_KINDS);
        check_sampling(SORTED + 100, 1, FLAT);
        check_gemms(small);
        check_gate_up_sm90(small);
        check_small_m_sm90(small);
        for (int d : {32, 64, 128})
            check_qk_rope(d, 33);
        check_qk_rope(128, 600);
        if (small) {
            check_attention(4, 2, 128, 16, true);
            check_attention(2, 1, 64, 8, true);
            check_attention(2, 1, 32, 16, true);
        } else {
            check_attention(8, 2, 128, 16, false);
            check_attention(8, 1, 32, 16, false);
            check_attention(8, 4, 64, 8, false);
            check_attention(4, 2, 128, 64, false);
            check_attention(4, 4, 128, 256, false);
        }
    }
    if (strcmp(what, "time") && !attention)
        printf("%s: %d failures\n", failures ? "FAILED" : "all kernels agree", failures);
    if (gate_up)
        time_gate_up_sm90();
    else if (small_m)
        time_small_m_sm90();
    else if (strcmp(what, "check") && !small) {
        for (int n : {2048, 5000, 8192, 20480})
            time_prefill(n);
        time_decode(1, 640);
        time_decode(1, 8192);
        time_decode(64, 640);
        time_decode(256, 640);
        time_decode(16, 8192);
        if (!attention) {
            time_gemms();
            time_gate_up_sm90();
            time_small_m_sm90();
        }
    }
    return failures != 0;
}
