/* Checks every kernel against a plain loop in double precision, on random inputs and with outputs set to NaN before the
 * launch. Times the kernels at the shapes of Qwen3-8B, in TFLOP/s or TB/s, depending on what limits the kernel. This is
 * a program, not a unit test, because it needs a GPU.
 *
 *   kernels_check [MODE] [SEED]      exit status 1: a kernel is wrong; 2: wrong arguments
 *
 *   all          checks all kernels, then times them (the default)
 *   check        checks all kernels
 *   small        checks every path of every kernel of this backend on the smallest inputs, for compute-sanitizer
 *   time         times all kernels
 *   attention    times attention
 *   copies       checks copy.h
 *   tails        checks and times the attention of tails (attn/attn.h)
 *   small_tails  the part of `small` that is about tails
 *   gate_up      checks and times gemm/gate_up_sm90.cu
 *   small_m      checks and times gemm/small_m_sm90.cu */
#include "engine/cuda/gemm/gemm_lt.h"
#include "engine/cuda/gemm/small_m.h"
#include "engine/cuda/step/fused.h"
#include "engine/cuda/step/sample.h"
#include "engine/cuda/test/check.h"

extern "C" {
#include "engine/sample.h"
}

#include <string.h>

/* What a GEMM stores, and whether it includes an RMSNorm. cuBLASLt has no mode with a norm. */
enum gemm_mode { STORE, ADD, NORM_SWIGLU, LOGITS, NORM_STORE, GEMM_MODES };

/* Random operands of one shape. w has 2N rows: with NORM_SWIGLU they are gate and up. */
struct gemm_case {
    int M, N, K;
    mirrored<bf16> x, w, y, norm, y0; /* y0: y before ADD */
    mirrored<float> yf;               /* y of LOGITS */
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
    double a = 0, b = 0, squares = 0, old = to_double(c.y0.h[(size_t)m * c.N + n]);
    for (int k = 0; k < c.K; k++) {
        double v = to_double(c.x.h[(size_t)m * c.K + k]);
        squares += v * v;
        if (normed) /* x * gamma is rounded to bf16, as in the kernel */
            v = to_double(__float2bfloat16((float)(v * to_double(c.norm.h[k]))));
        a += v * to_double(c.w.h[(size_t)n * c.K + k]);
        if (mode == NORM_SWIGLU)
            b += v * to_double(c.w.h[(size_t)(c.N + n) * c.K + k]);
    }
    if (normed)
        a /= sqrt(squares / c.K + 1e-6), b /= sqrt(squares / c.K + 1e-6);
    *size = mode == ADD ? fmax(fabs(a), fabs(old)) : 0;
    return mode == NORM_SWIGLU ? a / (1 + exp(-a)) * b : mode == ADD ? a + old : a;
}

static void check_gemm(gemm_case &c, enum gemm_mode mode, struct cu_lt *lt)
{
    static const char *const what[] = {"bf16", "add", "norm and swiglu", "f32", "norm"};
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
        report_failure(err.msg);
    c.y.download();
    c.yf.download();
    snprintf(name, sizeof name, "%s, %s, M %d N %d K %d", small_m ? "small-M" : "cuBLASLt", what[mode], c.M, c.N, c.K);
    comparison result(name);
    for (int i = 0; i < c.M * c.N; i += 1 + c.M * c.N / 20000) {
        double size, want = gemm_reference(c, mode, i / c.N, i % c.N, &size);
        result.add(mode == LOGITS ? (double)c.yf.h[i] : to_double(c.y.h[i]), want, size);
    }
}

/* Checks small_m.cu and gemm_lt.cu. small: only the smallest shapes, all of them for small_m.cu. */
static void check_gemms(bool small)
{
    struct cu_lt *lt = nullptr;
    struct km_err err;
    if (cu_lt_open(&lt, &err)) {
        report_failure(err.msg);
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

/* Checks cu_fetch with sizes below, at and above `fixed`, some of them not multiples of 16. Bytes after the end must
 * not change. */
static void check_fetch()
{
    enum { FIXED = 3 * 4096 + 64, ALL = FIXED + 5 * 4096 }; /* bytes */
    int32_t *host;
    mirrored<int32_t> dev(ALL / 4 + 256);
    CUDA_OK(cudaHostAlloc(&host, ALL, cudaHostAllocDefault));
    comparison result("copy of a step's arrays from pinned memory");
    for (int bytes : {0, (int)FIXED, FIXED + 4, FIXED + 20, FIXED + 4096, (int)ALL}) {
        for (int i = 0; i < ALL / 4; i++)
            host[i] = (int32_t)(bytes + 7 * i);
        host[0] = bytes;
        CUDA_OK(cudaMemset(dev.d, 0x7F, dev.n * sizeof(int32_t)));
        cu_fetch(reinterpret_cast<char *>(host), FIXED, reinterpret_cast<char *>(dev.d), 0);
        dev.download();
        int n_copied = bytes > FIXED ? (bytes + 15) / 16 * 4 : FIXED / 4;
        for (int i = 0; i < (int)dev.n; i++)
            result.check(dev.h[i] == (i < n_copied ? host[i] : 0x7F7F7F7F));
    }
    CUDA_OK(cudaFreeHost(host));
}

static void check_embed(int D)
{
    enum { TOKENS = 4, HALF = 32 };
    cu_dims m = {};
    m.D = D;
    m.d = 2 * HALF;
    mirrored<bf16> table((size_t)5 * D), x((size_t)TOKENS * D);
    mirrored<int32_t> tokens(TOKENS), sampled_ids(2), positions(TOKENS);
    mirrored<float> inv_freq(HALF);
    mirrored<float2> angles(TOKENS * HALF);
    /* The ids to expect. Tokens 2 and 3 are samples 1 and 0 of the previous step; the host must still sample sample 0.
     */
    static const int expected[TOKENS] = {4, 0, 3, 0};
    tokens.h[0] = 4, tokens.h[1] = 0, tokens.h[2] = -2, tokens.h[3] = -1;
    sampled_ids.h[0] = -1, sampled_ids.h[1] = 3;
    for (int i = 0; i < HALF; i++)
        inv_freq.h[i] = (float)pow(1e6, -i / (double)HALF);
    for (int i = 0; i < TOKENS; i++)
        positions.h[i] = i * 13001;
    tokens.upload(), sampled_ids.upload(), positions.upload(), inv_freq.upload();
    randomize(table, 1);
    x.poison();
    angles.poison();
    cu_step_arrays arrays = {};
    arrays.tokens = tokens.d, arrays.positions = positions.d;
    cu_embed(m, table.d, inv_freq.d, arrays, sampled_ids.d, TOKENS, x.d, angles.d, 0);
    x.download();
    angles.download();
    {
        comparison result("rotary angles");
        for (int i = 0; i < TOKENS * HALF; i++) {
            double a = (double)((float)positions.h[i / HALF] * inv_freq.h[i % HALF]);
            result.add(angles.h[i].x, cos(a)), result.add(angles.h[i].y, sin(a));
        }
    }
    comparison result("embedding");
    for (size_t i = 0; i < x.n; i++)
        result.add(to_double(x.h[i]), to_double(table.h[(size_t)expected[i / (size_t)D] * (size_t)D + i % (size_t)D]));
}

/* gather: the rows of the result are computed from rows that an index array names. */
static void check_rmsnorm(int D, bool gather, const mirrored<bf16> &x, const mirrored<bf16> &w,
                          const mirrored<int32_t> &rows)
{
    cu_dims m = {};
    m.eps = 1e-6f;
    m.D = D;
    mirrored<bf16> y(rows.n * D);
    char name[64];
    y.poison();
    cu_rmsnorm(m, x.d, w.d, gather ? rows.d : nullptr, (int)rows.n, y.d, 0);
    y.download();
    snprintf(name, sizeof name, "RMSNorm, D %d%s", D, gather ? ", gathered rows" : "");
    comparison result(name);
    for (size_t r = 0; r < rows.n; r++) {
        const bf16 *row = x.h + (gather ? (size_t)rows.h[r] : r) * D;
        double squares = 0;
        for (int i = 0; i < D; i++)
            squares += to_double(row[i]) * to_double(row[i]);
        for (int i = 0; i < D; i++)
            result.add(to_double(y.h[r * D + i]), to_double(row[i]) / sqrt(squares / D + 1e-6) * to_double(w.h[i]));
    }
}

static void check_swiglu(int rows, int F)
{
    cu_dims m = {};
    m.F = F;
    mirrored<bf16> gu((size_t)rows * 2 * F), act((size_t)rows * F);
    randomize(gu, 2);
    act.poison();
    cu_swiglu(m, gu.d, rows, act.d, 0);
    act.download();
    comparison result("SwiGLU");
    for (int r = 0; r < rows; r++)
        for (int i = 0; i < F; i++) {
            double gate = to_double(gu.h[(size_t)r * 2 * F + i]), up = to_double(gu.h[(size_t)r * 2 * F + F + i]);
            result.add(to_double(act.h[(size_t)r * F + i]), gate / (1 + exp(-gate)) * up);
        }
}

static void check_fused()
{
    check_embed(1080); /* more 16-byte pieces than threads, and not a multiple of the number of threads */
    for (int D : {256, 1024, 2560, 4096, 5120}) {
        mirrored<bf16> x((size_t)7 * D), w((size_t)D);
        mirrored<int32_t> rows(3);
        rows.h[0] = 6, rows.h[1] = 0, rows.h[2] = 3;
        rows.upload();
        randomize(x, 3);
        randomize(w, 1);
        check_rmsnorm(D, true, x, w, rows);
        check_rmsnorm(D, false, x, w, rows);
    }
    check_swiglu(9, 768);
}

/* Numbers of kinds of sampling: flat logits only; one kind for each path of the kernels; all kinds. SORTED: the most
 * ids that the kernels can sort. */
enum { FLAT = 1, EVERY_PATH = 9, ALL_KINDS = 15, SORTED = 4096 };

struct sampling_kind {
    double temperature, top_p, min_p;
    int top_k, n_banned;
    float spread; /* standard deviation of the logits */
};
static const sampling_kind kinds[ALL_KINDS] = {
    {1, 0.9, 0, 40, 0, 0}, /* flat logits: the kernels leave rows of more than SORTED ids to the host */
    {0, 1, 0, 0, 2, 3},      {1, 1, 0, 0, 2, 3},      {0.6, 0.95, 0, 20, 0, 3},  {1.5, 0.9, 0, 0, 0, 3},
    {0.8, 1, 0.05, 0, 0, 3}, {1, 1, 0, 1, 0, 3},      {2, 0.3, 0.001, 50, 0, 3}, {1, 1, 0, 151936, 0, 3},
    {0, 1, 0, 0, 0, 3}, /* from here on, the same paths with other parameters */
    {1, 1, 0, 0, 0, 3},      {1, 0.5, 0, 1000, 1, 3}, {1, 0.01, 0, 0, 0, 3},     {0.01, 0.9, 0, 5, 0, 3},
    {1, 0.9, 0, 0, 0, 30}};

/* S rows to sample, for the kernels and for the reference sampler. Row i bans the ids of bans[S + 1 + 2i] on. */
struct sampling_case {
    int V, S;
    mirrored<float> logits;
    mirrored<cu_sampling> sampling;
    mirrored<int32_t> bans; /* [S + 1] starts, then two ids for each row */
    struct smp_row *rows;

    sampling_case(int vocab, int n)
        : V(vocab), S(n), logits((size_t)S * V), sampling((size_t)S), bans((size_t)S * 3 + 1),
          rows(static_cast<struct smp_row *>(calloc((size_t)S, sizeof *rows)))
    {
    }
    ~sampling_case()
    {
        free(rows);
    }
    void fill_row(int i, const sampling_kind &k)
    {
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
};

/* Samples rows_per_kind rows of each of the first n_kinds kinds, and compares the ids with those of the reference
 * sampler. The ids are equal, unless two scores differ only in the last bits of a logarithm, which is not expected
 * among so few rows. Only rows of more than SORTED ids may be left to the reference sampler. */
static void check_sampling(int V, int rows_per_kind, int n_kinds)
{
    const int S = n_kinds * rows_per_kind;
    sampling_case c(V, S);
    mirrored<int32_t> ids((size_t)S);
    mirrored<char> workspace(cu_sample_workspace(S));
    int32_t *ids_host, n_left = 0;
    workspace.upload();
    for (int i = 0; i < S; i++)
        c.fill_row(i, kinds[i / rows_per_kind]);
    c.logits.upload(), c.sampling.upload();
    CUDA_OK(cudaHostAlloc(&ids_host, (size_t)S * sizeof *ids_host, cudaHostAllocDefault));
    for (int i = 0; i < S; i++) { /* one launch per row, because the starts of neighbouring rows overlap */
        c.bans.h[i] = 2 * i, c.bans.h[i + 1] = 2 * i + c.rows[i].n_banned;
        c.bans.upload();
        cu_step_arrays in = {};
        in.ban_start = c.bans.d + i, in.ban = c.bans.d + S + 1, in.sampling = c.sampling.d + i;
        CUDA_OK(cudaMemset(ids.d + i, 0x7F, sizeof(int32_t)));
        ids_host[i] = 0x7F7F7F7F;
        cu_sample(c.logits.d + (size_t)i * V, 1, V, in, S, workspace.d, ids.d + i, ids_host + i, 0);
        CUDA_OK(cudaDeviceSynchronize());
    }
    ids.download();
    comparison result("sampled ids");
    float *scratch = static_cast<float *>(malloc(sizeof(float) * (size_t)V));
    for (int i = 0; i < S; i++) {
        struct smp_result want;
        smp_sample(&c.rows[i], c.logits.h + (size_t)i * V, V, scratch, &want);
        n_left += ids.h[i] < 0;
        result.check(ids_host[i] == ids.h[i]);
        result.check(ids.h[i] == want.id || (ids.h[i] < 0 && V > SORTED));
        if (ids.h[i] >= 0 && ids.h[i] != want.id)
            printf("     kind %d: the kernels sampled id %d, the reference sampler %d\n", i / rows_per_kind, ids.h[i],
                   want.id);
    }
    printf("     the kernels left %d of %d rows to the reference sampler\n", n_left, S);
    CUDA_OK(cudaFreeHost(ids_host));
    free(scratch);
}

/* ---- speed ---- */

static void time_gemms()
{
    struct cu_lt *lt = nullptr;
    struct km_err err;
    if (cu_lt_open(&lt, &err))
        return;
    static const int shapes[][2] = {{6144, 4096}, {4096, 4096}, {24576, 4096}, {4096, 12288}, {151936, 4096}};
    for (auto &sh : shapes) {
        int N = sh[0], K = sh[1], copies = 1 + (int)(600e6 / ((double)N * K * 2)); /* more than the L2 holds */
        mirrored<bf16> w((size_t)N * K * copies), x((size_t)4096 * K),
            y((size_t)4096 * (N > 30000 ? 1 : N) + 16 * (size_t)N);
        for (size_t i = 0, some = (size_t)N * K; i < w.n; i++)
            w.h[i] = i < some ? __float2bfloat16(0.02f * (uniform() - 0.5f)) : w.h[i - some];
        w.upload();
        randomize(x, 1);
        for (int M : {1, 4, 8, 16, 64, 256, 1024, 2048, 4096}) {
            if (N > 30000 && M > 16)
                continue;
            int turn = 0;
            auto next = [&] { return w.d + (size_t)(turn++ % copies) * N * K; };
            printf("GEMM, N %6d K %5d M %4d:", N, K, M);
            if (M <= CU_SMALL_M_MAX) {
                float ms = time_ms([&] { cu_small_m(x.d, next(), M, N, K, false, y.d, 0); }, 20);
                printf(" small-M %.1f us, %.2f TB/s;", ms * 1e3, 2.0 * N * K / ms / 1e9);
            }
            float ms =
                time_ms([&] { cu_lt_gemm(lt, x.d, next(), M, N, K, false, y.d, false, 0, &err); }, M > 256 ? 4 : 20);
            printf(" cuBLASLt %.1f us, %.2f TB/s, %.0f TFLOP/s\n", ms * 1e3, 2.0 * N * K / ms / 1e9,
                   2.0 * M * N * K / ms / 1e9);
        }
    }
    cu_lt_close(lt);
}

/* ---- modes ---- */

static void check_all(bool small)
{
    check_fetch();
    check_fused();
    check_sampling(small ? 1200 : 151936, small ? 1 : 6, small ? EVERY_PATH : ALL_KINDS);
    check_sampling(SORTED + 100, 1, FLAT);
    check_gemms(small);
    check_gate_up_sm90(small);
    check_small_m_sm90(small);
    check_attention(small);
    check_copies(small);
}

static void time_all()
{
    time_attention();
    time_gemms();
    time_gate_up_sm90();
    time_small_m_sm90();
}

static const struct {
    const char *name;
    void (*check)(bool small); /* NULL: the mode checks nothing */
    bool small;
    void (*time)(); /* NULL: the mode times nothing */
} modes[] = {{"all", check_all, false, time_all},
             {"check", check_all, false, nullptr},
             {"small", check_all, true, nullptr},
             {"time", nullptr, false, time_all},
             {"attention", nullptr, false, time_attention},
             {"copies", check_copies, false, nullptr},
             {"tails", check_tails, false, time_tails},
             {"small_tails", check_tails, true, nullptr},
             {"gate_up", check_gate_up_sm90, false, time_gate_up_sm90},
             {"small_m", check_small_m_sm90, false, time_small_m_sm90}};

int main(int argc, char **argv)
{
    setvbuf(stdout, nullptr, _IOLBF, 0);
    rng_state = argc > 2 ? strtoull(argv[2], nullptr, 10) : 1;
    for (auto &mode : modes) {
        if (strcmp(argc > 1 ? argv[1] : "all", mode.name))
            continue;
        if (mode.check) {
            mode.check(mode.small);
            printf("kernels_check: %s, %d failed checks\n", failures ? "FAILED" : "all kernels are correct", failures);
        }
        if (mode.time)
            mode.time();
        return failures != 0;
    }
    fprintf(stderr,
            "usage: kernels_check [all|check|small|time|attention|copies|tails|small_tails|gate_up|small_m] [SEED]\n");
    return 2;
}
