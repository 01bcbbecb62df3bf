/* Checks every output of gemm/small_m_sm90.cu: for sizes that are not multiples of a tile, with and without split-K,
 * and with so few thread blocks that each processes many tiles. Times it at the GEMMs of Qwen3-8B and compares it with
 * small_m.cu and cuBLASLt. */
#include "engine/cuda/gemm/gemm_lt.h"
#include "engine/cuda/gemm/small_m.h"
#include "engine/cuda/gemm/small_m_sm90.h"
#include "engine/cuda/step/fused.h"
#include "engine/cuda/test/check.h"

#include <string.h>

/* Buffers of cu_small_m_workspace for D columns. */
struct workspace {
    mirrored<bf16> h;
    mirrored<float> squares;
    cu_small_m_workspace r;
    explicit workspace(int D) : h((size_t)CU_SMALL_M_SM90_MAX * D), squares((size_t)(D + 63) / 64 * CU_SMALL_M_SM90_MAX)
    {
        struct km_err err;
        r = {h.d, squares.d, 0, 1e-6f};
        if (cu_small_m_sm90_blocks(gpu_dims(), &r.blocks, &err))
            report_failure(err.msg);
    }
};

static const char *const names[] = {"bf16", "f32", "add", "swiglu"}; /* of enum cu_epilogue */

/* Random operands, and the reference in double. */
struct operands {
    int N, K;
    mirrored<bf16> x, w, y, y0;
    mirrored<float> yf;
    double *sum; /* x w^T [CU_SMALL_M_SM90_MAX][2N] */
    operands(int n, int k)
        : N(n), K(k), x((size_t)CU_SMALL_M_SM90_MAX * K), w((size_t)2 * N * K),
          y((size_t)(CU_SMALL_M_SM90_MAX + 1) * N), y0(y.n), yf(y.n)
    {
        randomize(x, 1);
        randomize(w, 0.05f);
        randomize(y0, 1);
        sum = static_cast<double *>(calloc((size_t)CU_SMALL_M_SM90_MAX * 2 * N, sizeof(double)));
        for (int r = 0; r < CU_SMALL_M_SM90_MAX; r++)
            for (int i = 0; i < 2 * N; i++)
                for (int e = 0; e < K; e++)
                    sum[(size_t)r * 2 * N + i] += to_double(x.h[(size_t)r * K + e]) * to_double(w.h[(size_t)i * K + e]);
    }
    ~operands()
    {
        free(sum);
    }
};

/* Compares M rows of y with the reference. The row after them must still have the bits of poison(). */
static void check_gemm(workspace &ws, operands &o, const cu_small_m_weights &w, const cu_small_m_rows &x, int M,
                       comparison &result)
{
    bool f32 = w.epilogue == CU_EPILOGUE_F32, add = w.epilogue == CU_EPILOGUE_ADD;
    cu_small_m_job job = {&w, &x, f32 ? (void *)o.yf.d : (void *)o.y.d, nullptr, false};
    o.yf.poison();
    o.y.poison();
    if (add)
        CUDA_OK(cudaMemcpy(o.y.d, o.y0.d, sizeof(bf16) * (size_t)M * o.N, cudaMemcpyDeviceToDevice));
    cu_small_m_sm90(ws.r, job, M, nullptr, 0);
    CUDA_OK(cudaGetLastError());
    o.y.download();
    o.yf.download();
    for (int n = 0; n < o.N; n++) {
        uint32_t bits = 0xFFFFFFFF;
        size_t after = (size_t)M * o.N + n;
        memcpy(&bits, f32 ? (void *)&o.yf.h[after] : (void *)&o.y.h[after], f32 ? 4 : 2);
        result.check(bits == 0xFFFFFFFF);
    }
    for (int i = 0; i < M * o.N; i++) {
        const double *s = o.sum + (size_t)(i / o.N) * 2 * o.N + i % o.N;
        double was = add ? to_double(o.y0.h[i]) : 0;
        if (w.epilogue == CU_EPILOGUE_SWIGLU)
            result.add(to_double(o.y.h[i]), s[0] / (1 + exp(-s[0])) * s[o.N]);
        else
            result.add(f32 ? (double)o.yf.h[i] : to_double(o.y.h[i]), *s + was, add ? fmax(fabs(*s), fabs(was)) : 0);
    }
}

/* Checks one shape with as many thread blocks as fit on the GPU, where small N uses split-K, and with so few that each
 * block processes many tiles. */
static void check_shape(int N, int K, bool small)
{
    static const int Ms[] = {1, 9, 16, 17, 33, 64, 65, 127, 128};
    operands o(N, K);
    workspace ws(64);
    int all = ws.r.blocks;
    cu_small_m_rows x;
    struct km_err err;
    int rc = cu_small_m_sm90_rows(&x, o.x.d, CU_SMALL_M_SM90_MAX, K, &err);
    for (int i = 0; i < 4 && !rc; i++) {
        enum cu_epilogue epilogue = static_cast<enum cu_epilogue>(i);
        char name[96];
        snprintf(name, sizeof name, "small-M sm90, %s, N %d K %d", names[i], N, K);
        comparison result(name);
        cu_small_m_weights w;
        rc = cu_small_m_sm90_weights(&w, o.w.d, epilogue == CU_EPILOGUE_SWIGLU ? 2 * N : N, K, epilogue, &err);
        for (int M : Ms)
            for (int blocks : {all, 4, 2}) {
                if (rc || (small && ((M != 17 && M != 127) || blocks == 4)))
                    continue;
                ws.r.blocks = small && blocks == all ? 8 : blocks;
                check_gemm(ws, o, w, x, M, result);
            }
    }
    if (rc)
        report_failure(err.msg);
}

/* ---- the chain of four GEMMs with folded norms, and the heads epilogue ---- */

enum { O, GATE_UP, DOWN, QKV, LAYERS = 2, BLOCK = 16, PAGES = 11, THE_LAYER = 1 };

/* Weights, inputs and outputs of the four GEMMs of a layer, as in the engine. */
struct layer {
    int D, A, F, N; /* columns of x, of the attention output, of act, and of qkv */
    int H, G;       /* heads of q and of k if N is a whole number of heads; else 0 */
    mirrored<bf16> o, x0, x, act, qkv, norms, head_norms, pool;
    mirrored<float2> angles;
    mirrored<int32_t> slots;
    mirrored<bf16> *w[4];
    cu_small_m_weights maps[4];
    cu_small_m_rows o_rows, h_rows, act_rows;
    cu_small_m_heads heads;
    workspace ws;
    int rc;
    struct km_err err;

    layer(int d, int a, int ffn, int n, bool timing)
        : D(d), A(a), F(ffn), N(n), H(n % 128 ? 0 : n / 128 * 4 / 6), G(n % 128 ? 0 : n / 128 / 6), o(rows(A)),
          x0(rows(D)), x(rows(D)), act(rows(F)), qkv(rows(N)), norms((size_t)2 * D), head_norms(256),
          pool(PAGES * page()), angles(rows(64)), slots(CU_SMALL_M_SM90_MAX), ws(D)
    {
        const int heights[] = {D, 2 * F, D, N}, widths[] = {A, D, F, D};
        const enum cu_epilogue epilogues[] = {CU_EPILOGUE_ADD, CU_EPILOGUE_SWIGLU, CU_EPILOGUE_ADD,
                                              H ? CU_EPILOGUE_HEADS : CU_EPILOGUE_BF16};
        rc = cu_small_m_sm90_rows(&o_rows, o.d, CU_SMALL_M_SM90_MAX, A, &err);
        rc = rc ? rc : cu_small_m_sm90_rows(&h_rows, ws.h.d, CU_SMALL_M_SM90_MAX, D, &err);
        rc = rc ? rc : cu_small_m_sm90_rows(&act_rows, act.d, CU_SMALL_M_SM90_MAX, F, &err);
        for (int i = 0; i < 4; i++) {
            w[i] = new mirrored<bf16>((size_t)heights[i] * widths[i]);
            if (timing) {
                bf16 *some = random_numbers(w[i]->n, 0.02f);
                CUDA_OK(cudaMemcpy(w[i]->d, some, sizeof(bf16) * w[i]->n, cudaMemcpyDeviceToDevice));
                cudaFree(some);
            } else {
                randomize(*w[i], 1 / sqrtf((float)widths[i]));
            }
            rc = rc ? rc : cu_small_m_sm90_weights(&maps[i], w[i]->d, heights[i], widths[i], epilogues[i], &err);
        }
        for (auto *p : {&o, &x0, &norms, &head_norms})
            randomize(*p, 1);
        for (int m = 0; m < CU_SMALL_M_SM90_MAX; m++) { /* a different slot for each row, not in order */
            slots.h[m] = m * 37 % (PAGES * BLOCK);
            for (int i = 0; i < 64; i++) {
                double angle = 1000 * uniform() / (i + 1);
                angles.h[m * 64 + i] = make_float2((float)cos(angle), (float)sin(angle));
            }
        }
        slots.upload();
        angles.upload();
        heads = {head_norms.d,
                 head_norms.d + 128,
                 angles.d,
                 slots.d,
                 pool.d,
                 (size_t)THE_LAYER * 2 * G * BLOCK * 128,
                 page(),
                 H,
                 G,
                 4};
        if (rc)
            report_failure(err.msg);
    }
    ~layer()
    {
        for (auto *p : w)
            delete p;
    }
    static size_t rows(int columns)
    {
        return (size_t)CU_SMALL_M_SM90_MAX * columns;
    }
    size_t page() const
    {
        return (size_t)LAYERS * 2 * G * BLOCK * 128;
    }
    void run(int M)
    {
        const cu_small_m_job jobs[4] = {{&maps[O], &o_rows, x.d, norms.d, false},
                                        {&maps[GATE_UP], &h_rows, act.d, nullptr, true},
                                        {&maps[DOWN], &act_rows, x.d, norms.d + D, false},
                                        {&maps[QKV], &h_rows, qkv.d, nullptr, true}};
        for (auto &job : jobs)
            cu_small_m_sm90(ws.r, job, M, &heads, 0);
    }
    /* Column n of row m of qkv: in qkv itself, or in the pool. */
    const bf16 &at(int m, int n) const
    {
        int kv = n / 128 - H, slot = slots.h[m];
        if (!H || kv < 0)
            return qkv.h[(size_t)m * N + n];
        return pool.h[slot / BLOCK * page() + heads.layer_at + ((size_t)kv * BLOCK + slot % BLOCK) * 128 + n % 128];
    }
};

static double rounded(double v)
{
    return to_double(__float2bfloat16((float)v));
}

/* out[n] = in[k] w[n][k]^T */
static void multiply(const mirrored<bf16> &w, const double *in, int K, int N, double *out)
{
    for (int n = 0; n < N; n++) {
        out[n] = 0;
        for (int k = 0; k < K; k++)
            out[n] += in[k] * to_double(w.h[(size_t)n * K + k]);
    }
}

/* Applies RMSNorm and RoPE to the heads of a row. */
static void norm_and_rotate(const layer &l, int row, double *qkv)
{
    for (int h = 0; h < l.H + 2 * l.G; h++) {
        double *v = qkv + h * 128, squares = 0;
        const bf16 *w = l.head_norms.h + (h < l.H ? 0 : 128);
        for (int i = 0; i < 128; i++)
            v[i] = rounded(v[i]), squares += v[i] * v[i];
        for (int i = 0; i < 64 && h < l.H + l.G; i++) {
            double s = 1 / sqrt(squares / 128 + 1e-6), a = v[i] * s * to_double(w[i]),
                   b = v[i + 64] * s * to_double(w[i + 64]);
            float2 turn = l.angles.h[row * 64 + i];
            v[i] = a * turn.x - b * turn.y;
            v[i + 64] = b * turn.x + a * turn.y;
        }
    }
}

/* Computes the chain for one row in double precision, rounded where the engine stores bf16. size: magnitude of the
 * terms whose sum is x. */
static void compute_chain(const layer &l, int row, double *x, double *size, double *qkv)
{
    double *in = new double[(size_t)(l.A + l.D + l.F)], *h = in + l.A, *act = h + l.D,
           *gu = new double[(size_t)2 * l.F], *add = new double[(size_t)l.D];
    auto norm = [&](const bf16 *w) {
        double squares = 0;
        for (int i = 0; i < l.D; i++)
            squares += x[i] * x[i];
        for (int i = 0; i < l.D; i++)
            h[i] = rounded(x[i] * to_double(w[i]));
        return 1 / sqrt(squares / l.D + 1e-6);
    };
    for (int i = 0; i < l.A; i++)
        in[i] = to_double(l.o.h[(size_t)row * l.A + i]);
    multiply(*l.w[O], in, l.A, l.D, add);
    for (int i = 0; i < l.D; i++)
        x[i] = rounded(add[i] + to_double(l.x0.h[(size_t)row * l.D + i]));
    double s = norm(l.norms.h);
    multiply(*l.w[GATE_UP], h, l.D, 2 * l.F, gu);
    for (int i = 0; i < l.F; i++)
        act[i] = rounded(s * gu[i] / (1 + exp(-s * gu[i])) * s * gu[l.F + i]);
    multiply(*l.w[DOWN], act, l.F, l.D, add);
    for (int i = 0; i < l.D; i++) {
        size[i] = fmax(1, fmax(fabs(add[i]), fabs(x[i]))); /* 1: a value of act may be rounded the other way */
        x[i] = rounded(add[i] + x[i]);
    }
    s = norm(l.norms.h + l.D);
    multiply(*l.w[QKV], h, l.D, l.N, qkv);
    for (int i = 0; i < l.N; i++)
        qkv[i] *= s;
    norm_and_rotate(l, row, qkv);
    delete[] in;
    delete[] gu;
    delete[] add;
}

static void check_chain(int D, int A, int F, int N, bool small)
{
    layer l(D, A, F, N, false);
    char name[96];
    snprintf(name, sizeof name, "small-M sm90, chain, D %d A %d F %d N %d%s", D, A, F, N, l.H ? ", heads" : "");
    comparison result(name);
    double *x = new double[layer::rows(D)], *size = new double[layer::rows(D)], *qkv = new double[layer::rows(N)];
    for (int r = 0; r < CU_SMALL_M_SM90_MAX; r++)
        compute_chain(l, r, x + (size_t)r * D, size + (size_t)r * D, qkv + (size_t)r * N);
    int all = l.ws.r.blocks;
    for (int M : {1, 8, 16, 17, 64, 100, 128})
        for (int blocks : {all, 6, 2}) {
            if ((small && ((M != 17 && M != 100) || blocks == 2)) || (l.H && blocks < N / 64))
                continue;
            l.ws.r.blocks = small && blocks == all ? 16 : blocks;
            CUDA_OK(cudaMemcpy(l.x.d, l.x0.d, sizeof(bf16) * l.x.n, cudaMemcpyDeviceToDevice));
            for (auto *p : {&l.qkv, &l.act, &l.ws.h, &l.pool})
                p->poison();
            l.ws.squares.poison();
            l.run(M);
            CUDA_OK(cudaGetLastError());
            l.x.download();
            l.qkv.download();
            l.pool.download();
            for (int i = 0; i < M * D; i++)
                result.add(to_double(l.x.h[i]), x[i], size[i]);
            for (int i = 0; i < M * N; i++)
                result.add(to_double(l.at(i / N, i % N)), qkv[i], 1);
        }
    delete[] x;
    delete[] size;
    delete[] qkv;
}

void check_small_m_sm90(bool small)
{
    if (!cu_small_m_sm90_usable(gpu_dims(), 64, 64))
        return;
    check_shape(208, small ? 128 : 512, small);
    check_chain(128, 192, 64, 80, small);
    check_chain(128, 64, 128, 768, small);
    if (small)
        return;
    check_shape(16, 64, false);
    check_shape(640, 1088, false);
    check_chain(512, 256, 320, 1040, false);
    check_chain(1024, 1024, 2048, 1536, false);
}

/* ---- speed ---- */

/* time_ms of a call, whose argument counts the calls from 0. */
template <typename F> static float back_to_back_ms(F call, int n)
{
    int turn = 0;
    return time_ms([&] { call(turn++); }, n);
}

struct gemm_shape {
    const char *name;
    int rows, K; /* of w */
    cu_epilogue epilogue;
};

/* Operands of all timed GEMMs. Each GEMM has up to COPIES copies of its weights in w, so that no cache holds the
 * weights of the next launch. */
struct small_m_timing {
    enum { COPIES = 8, MAX_K = 12288, MAX_ROWS = 151936 };
    size_t w_elems = (size_t)COPIES * 24576 * 4096;
    cu_dims m = gpu_dims();
    struct cu_lt *lt = nullptr;
    bf16 *w, *x, *act;
    float *y;
    workspace ws;
    int rc;
    struct km_err err;

    small_m_timing() : ws(4096)
    {
        rc = cu_lt_open(&lt, &err);
        w = random_numbers(w_elems, 0.02f), x = random_numbers((size_t)CU_SMALL_M_SM90_MAX * MAX_K, 1);
        CUDA_OK(cudaMalloc(&y, (size_t)CU_SMALL_M_SM90_MAX * MAX_ROWS * sizeof(float)));
        CUDA_OK(cudaMalloc(&act, (size_t)CU_SMALL_M_SM90_MAX * MAX_K * sizeof(bf16)));
    }
    ~small_m_timing()
    {
        for (void *p : {(void *)w, (void *)x, (void *)y, (void *)act})
            cudaFree(p);
        cu_lt_close(lt);
    }
    /* Runs a GEMM without small_m_sm90.cu: by small_m.cu for its values of M, else by cuBLASLt. */
    void run_other(const gemm_shape &s, const bf16 *weights, int M)
    {
        bool small_m = M <= CU_SMALL_M_MAX, swiglu = s.epilogue == CU_EPILOGUE_SWIGLU,
             f32 = s.epilogue == CU_EPILOGUE_F32, add = s.epilogue == CU_EPILOGUE_ADD;
        m.F = s.rows / 2;
        if (small_m && swiglu)
            cu_small_m_swiglu(x, x, 1e-6f, weights, M, m.F, s.K, act, 0);
        else if (small_m && f32)
            cu_small_m_logits(x, weights, M, s.rows, s.K, y, 0);
        else if (small_m)
            cu_small_m(x, weights, M, s.rows, s.K, add, act, 0);
        else
            rc = rc ? rc : cu_lt_gemm(lt, x, weights, M, s.rows, s.K, add, y, f32, 0, &err);
        if (!small_m && swiglu)
            cu_swiglu(m, reinterpret_cast<bf16 *>(y), M, act, 0);
    }
    /* Times a GEMM with and without small_m_sm90.cu, in n launches back to back, and prints the times. */
    void time_gemm(const gemm_shape &s, const int *Ms, int n_Ms, int n)
    {
        size_t one = (size_t)s.rows * s.K;
        int copies = w_elems / one < COPIES ? (int)(w_elems / one) : (int)COPIES;
        bool f32 = s.epilogue == CU_EPILOGUE_F32;
        cu_small_m_weights maps[COPIES];
        cu_small_m_rows rows;
        for (int i = 0; i < copies && !rc; i++)
            rc = cu_small_m_sm90_weights(&maps[i], w + (size_t)i * one, s.rows, s.K, s.epilogue, &err);
        rc = rc ? rc : cu_small_m_sm90_rows(&rows, x, CU_SMALL_M_SM90_MAX, s.K, &err);
        for (int k = 0; k < n_Ms && !rc; k++) {
            int M = Ms[k];
            const char *other = M <= CU_SMALL_M_MAX                ? "small_m"
                                : s.epilogue == CU_EPILOGUE_SWIGLU ? "cuBLASLt and SwiGLU"
                                                                   : "cuBLASLt";
            float other_ms = back_to_back_ms([&](int i) { run_other(s, w + (size_t)(i % copies) * one, M); }, n);
            float sm90_ms = back_to_back_ms(
                [&](int i) {
                    cu_small_m_job job = {&maps[i % copies], &rows, f32 ? (void *)y : (void *)act, nullptr, false};
                    cu_small_m_sm90(ws.r, job, M, nullptr, 0);
                },
                n);
            double bytes = 2.0 * (double)one;
            printf("%-11s M %3d: %-19s %7.1f us, %.2f TB/s; small_m_sm90 %7.1f us, %.2f TB/s, %.3f of the time\n",
                   s.name, M, other, other_ms * 1e3, bytes / other_ms / 1e9, sm90_ms * 1e3, bytes / sm90_ms / 1e9,
                   sm90_ms / other_ms);
        }
    }
};

/* Times each GEMM of Qwen3-8B alone, and the four GEMMs of a layer, in several launches back to back as in a decode
 * step. */
void time_small_m_sm90()
{
    enum { BACK_TO_BACK = 24, N_M = 6 };
    static const int Ms[N_M] = {1, 8, 16, 24, 64, CU_SMALL_M_SM90_MAX};
    static const gemm_shape shapes[] = {{"qkv", 6144, 4096, CU_EPILOGUE_BF16},
                                        {"o", 4096, 4096, CU_EPILOGUE_ADD},
                                        {"gate and up", 24576, 4096, CU_EPILOGUE_SWIGLU},
                                        {"down", 4096, small_m_timing::MAX_K, CU_EPILOGUE_ADD},
                                        {"head", small_m_timing::MAX_ROWS, 4096, CU_EPILOGUE_F32}};
    if (!cu_small_m_sm90_usable(gpu_dims(), 16, 64))
        return;
    {
        small_m_timing t;
        for (auto &s : shapes)
            t.time_gemm(s, Ms, N_M, s.epilogue == CU_EPILOGUE_F32 ? 4 : BACK_TO_BACK);
        if (t.rc)
            report_failure(t.err.msg);
    }
    layer l(4096, 4096, 12288, 6144, true);
    for (int M : Ms) {
        float ms = back_to_back_ms([&](int) { l.run(M); }, BACK_TO_BACK / 2);
        double bytes = 0;
        for (auto *p : l.w)
            bytes += 2.0 * (double)p->n;
        printf("four GEMMs of a layer with norms and heads, M %3d: small_m_sm90 %7.1f us, %.2f TB/s\n", M, ms * 1e3,
               bytes / ms / 1e9);
    }
}
