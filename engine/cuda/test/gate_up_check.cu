/* Checks every output of gemm/gate_up_sm90.cu, for sizes that are not multiples of a tile. Times it at the shapes of
 * Qwen3-8B and compares it with cuBLASLt followed by cu_swiglu, which compute the same, and with cuBLASLt's GEMM alone.
 */
#include "engine/cuda/gemm/gate_up_sm90.h"
#include "engine/cuda/gemm/gemm_lt.h"
#include "engine/cuda/step/fused.h"
#include "engine/cuda/test/check.h"

#include <string.h>

static cu_dims dims_of(int D, int F)
{
    cu_dims m = gpu_dims();
    m.D = D, m.F = F;
    return m;
}

/* h w^T in double precision: gate and up of every row, [rows][2F]. The caller frees the result. */
static double *compute_gate_and_up(const mirrored<bf16> &h, const mirrored<bf16> &w, int rows, int D, int F)
{
    double *sum = static_cast<double *>(malloc(sizeof(double) * (size_t)rows * 2 * F));
    for (int r = 0; r < rows; r++)
        for (int n = 0; n < 2 * F; n++) {
            double a = 0;
            for (int k = 0; k < D; k++)
                a += to_double(h.h[(size_t)r * D + k]) * to_double(w.h[(size_t)n * D + k]);
            sum[(size_t)r * 2 * F + n] = a;
        }
    return sum;
}

/* Compares M rows of act with the reference. The rows after them must still have the bits of poison(). */
static void compare_rows(comparison &result, const mirrored<bf16> &act, const double *sum, int M, int F)
{
    for (size_t i = 0; i < act.n; i++) {
        size_t row = i / F, col = i % F;
        if (row < (size_t)M) {
            double gate = sum[row * 2 * F + col], up = sum[row * 2 * F + F + col];
            result.add(to_double(act.h[i]), gate / (1 + exp(-gate)) * up);
        } else {
            uint16_t bits;
            memcpy(&bits, &act.h[i], sizeof bits);
            result.check(bits == 0xFFFF);
        }
    }
}

/* Checks one shape with each number of rows in rows[n], of which the last is the largest, and each number of SMs in
 * sms[n_sms]. 0 stands for all SMs of the GPU. */
static void check_shape(int F, int D, const int *rows, int n, const int *sms, int n_sms)
{
    cu_dims m = dims_of(D, F);
    int max_rows = rows[n - 1], n_all_sms = m.n_sms;
    if (!cu_gate_up_sm90_usable(m))
        return;
    mirrored<bf16> h((size_t)max_rows * D), w((size_t)2 * F * D), act((size_t)(max_rows + 1) * F);
    randomize(h, 1);
    randomize(w, 0.05f);
    double *sum = compute_gate_and_up(h, w, max_rows, D, F);
    for (int s = 0; s < n_sms; s++) {
        m.n_sms = sms[s] ? sms[s] : n_all_sms;
        char name[96];
        snprintf(name, sizeof name, "gate and up sm90, F %d D %d, %d SMs", F, D, m.n_sms);
        comparison result(name);
        for (int i = 0; i < n; i++) {
            int M = rows[i];
            cu_gate_up_plan p;
            struct km_err err;
            m.max_tokens =
                m.n_sms == 4 ? M : max_rows; /* with 4 SMs h ends at row M, and copies of later rows are zeros */
            if (cu_gate_up_sm90_plan(&p, m, h.d, w.d, &err)) {
                report_failure(err.msg);
                continue;
            }
            act.poison();
            cu_gate_up_sm90(m, p, M, act.d, 0);
            CUDA_OK(cudaGetLastError());
            act.download();
            compare_rows(result, act, sum, M, F);
        }
    }
    free(sum);
}

/* Checks on all SMs of the GPU, and on so few SMs that a thread block processes many tiles and its barriers go through
 * many phases. 2100 rows are two groups of tiles, of which the second is smaller, and leave one thread block without
 * rows. small: on two clusters, once with two tiles of columns and once with two groups of rows. Both shapes have a
 * partial last tile and a warpgroup without rows. */
void check_gate_up_sm90(bool small)
{
    static const int rows[] = {1, 63, 64, 65, 127, 129, 300, 2100}, sms[] = {0, 4, 2};
    if (small) {
        check_shape(192, 256, &rows[6], 1, &sms[1], 1);
        check_shape(32, 128, &rows[7], 1, &sms[1], 1);
        return;
    }
    for (int F : {32, 64, 192, 320})
        for (int D : {128, 256, 1024})
            check_shape(F, D, rows, D > 256 ? 7 : 8, sms, 3);
}

/* ---- speed ---- */

enum { FUSED, GEMM_AND_SWIGLU, GEMM, IMPLEMENTATIONS };
static const char *const names[IMPLEMENTATIONS] = {"gate_up_sm90", "cuBLASLt and SwiGLU", "cuBLASLt GEMM alone"};

/* Operands of the implementations at the shapes of Qwen3-8B. There are COPIES of the weights, so that no cache holds
 * the weights of the next launch. */
struct gate_up_timing {
    enum { COPIES = 3, MAX_M = 8192 };
    cu_dims m = dims_of(4096, 12288);
    struct cu_lt *lt = nullptr;
    bf16 *w, *h, *gu, *act;
    size_t w_elems = (size_t)2 * m.F * m.D; /* of one copy */
    cu_gate_up_plan plans[COPIES];
    cudaEvent_t t0, t1;
    int n_launches = 0, rc;
    struct km_err err;

    gate_up_timing()
    {
        m.max_tokens = MAX_M;
        rc = cu_lt_open(&lt, &err);
        w = random_numbers(COPIES * w_elems, 0.02f), h = random_numbers((size_t)MAX_M * m.D, 1);
        CUDA_OK(cudaMalloc(&gu, (size_t)MAX_M * 2 * m.F * sizeof(bf16)));
        CUDA_OK(cudaMalloc(&act, (size_t)MAX_M * m.F * sizeof(bf16)));
        for (int i = 0; i < COPIES && !rc; i++)
            rc = cu_gate_up_sm90_plan(&plans[i], m, h, w + i * w_elems, &err);
        CUDA_OK(cudaEventCreate(&t0));
        CUDA_OK(cudaEventCreate(&t1));
    }
    ~gate_up_timing()
    {
        cudaEventDestroy(t0);
        cudaEventDestroy(t1);
        for (bf16 *p : {w, h, gu, act})
            cudaFree(p);
        cu_lt_close(lt);
    }
    /* Milliseconds of one of n launches back to back. */
    float launch_ms(int which, int M, int n)
    {
        float ms;
        CUDA_OK(cudaEventRecord(t0));
        for (int i = 0; i < n && !rc; i++) {
            int copy = n_launches++ % COPIES;
            if (which == FUSED)
                cu_gate_up_sm90(m, plans[copy], M, act, 0);
            else
                rc = cu_lt_gemm(lt, h, w + copy * w_elems, M, 2 * m.F, m.D, false, gu, false, 0, &err);
            if (which == GEMM_AND_SWIGLU)
                cu_swiglu(m, gu, M, act, 0);
        }
        CUDA_OK(cudaEventRecord(t1));
        CUDA_OK(cudaEventSynchronize(t1));
        CUDA_OK(cudaGetLastError());
        CUDA_OK(cudaEventElapsedTime(&ms, t0, t1));
        return ms / (float)n;
    }
    /* The median of `rounds` measurements of each implementation, which take turns. */
    void medians(int M, int n, int rounds, float (&out)[IMPLEMENTATIONS])
    {
        enum { MAX_ROUNDS = 11 };
        float ms[IMPLEMENTATIONS][MAX_ROUNDS];
        for (int r = 0; r < rounds; r++)
            for (int which = 0; which < IMPLEMENTATIONS; which++)
                ms[which][r] = launch_ms(which, M, n);
        for (int which = 0; which < IMPLEMENTATIONS; which++) {
            qsort(ms[which], (size_t)rounds, sizeof(float), by_value);
            out[which] = ms[which][rounds / 2];
        }
    }
};

/* Times each implementation in single launches, and in as many launches back to back as three prefills have, which is
 * long enough for the GPU's power limit to matter. */
void time_gate_up_sm90()
{
    enum { BACK_TO_BACK = 36 * 3 };
    if (!cu_gate_up_sm90_usable(dims_of(4096, 12288)))
        return;
    gate_up_timing t;
    for (int M : {(int)CU_GATE_UP_SM90_MIN, 1024, 2048, 4096, 5000, (int)gate_up_timing::MAX_M}) {
        float single[IMPLEMENTATIONS], many[IMPLEMENTATIONS];
        double flops = 2.0 * M * 2 * t.m.F * t.m.D;
        t.medians(M, 1, 1, single); /* the warm-up: kernels are loaded, algorithms chosen */
        t.medians(M, 1, 11, single);
        t.medians(M, BACK_TO_BACK, 3, many);
        for (int i = 0; i < IMPLEMENTATIONS && !t.rc; i++)
            printf("gate and up, M %4d, %-19s single launch %8.1f us, %4.0f TFLOP/s; back to back %8.1f us, %4.0f "
                   "TFLOP/s; gate_up_sm90 takes %.3f of this time\n",
                   M, names[i], single[i] * 1e3, flops / single[i] / 1e9, many[i] * 1e3, flops / many[i] / 1e9,
                   many[FUSED] / many[i]);
    }
    if (t.rc)
        report_failure(t.err.msg);
}
