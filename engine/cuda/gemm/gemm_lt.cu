/* y = x w^T by cuBLASLt, with bf16 inputs and f32 accumulation.
 *
 * The algorithm that the library proposes first is not always its fastest. When a shape is used for the first time, the
 * algorithms that the library proposes are timed, and the fastest is used from then on. M is rounded up to a bucket (1,
 * 2, 3, 4, 6, 8, 12, 16 ...), because the choice depends only weakly on M. A model has few different N and K. */
#include "engine/cuda/gemm/gemm_lt.h"

extern "C" {
#include "base/mem.h"
}

#include <cublasLt.h>
#include <string.h>

namespace {
enum { CANDIDATES = 16, MAX_CHOICES = 256, TIMED_ROUNDS = 5 };
const size_t WORKSPACE = CU_LT_WORKSPACE, L2_FLUSH = 96u << 20; /* bytes; writing L2_FLUSH evicts the L2 cache */

/* The chosen algorithm of one shape. */
struct choice {
    int bucket, N, K;
    bool add, y_f32;
    cublasLtMatmulAlgo_t algo;
};
} // namespace

struct cu_lt {
    cublasLtHandle_t lt;
    cublasLtMatmulDesc_t op;
    cublasLtMatmulPreference_t pref;
    void *workspace;
    cudaEvent_t t0, t1;
    choice choices[MAX_CHOICES]; /* [n_choices]; once full, the last entry is chosen anew for each further shape */
    int n_choices;
};

static int lt_fail(struct km_err *err, cublasStatus_t rc, const char *what)
{
    return km_fail(err, KM_EDEVICE, "%s failed: %s", what, cublasLtGetStatusString(rc));
}
#define LT_TRY(call)                                                                                                   \
    do {                                                                                                               \
        cublasStatus_t lt_rc_ = (call);                                                                                \
        if (lt_rc_ != CUBLAS_STATUS_SUCCESS)                                                                           \
            return lt_fail(err, lt_rc_, #call);                                                                        \
    } while (0)

int cu_lt_open(struct cu_lt **out, struct km_err *err)
{
    struct cu_lt *g = static_cast<cu_lt *>(km_calloc(1, sizeof *g));
    if (!g)
        return km_fail(err, KM_ENOMEM, "out of memory for a cuBLASLt handle");
    *out = g;
    LT_TRY(cublasLtCreate(&g->lt));
    LT_TRY(cublasLtMatmulDescCreate(&g->op, CUBLAS_COMPUTE_32F, CUDA_R_32F));
    cublasOperation_t trans = CUBLAS_OP_T;
    LT_TRY(cublasLtMatmulDescSetAttribute(g->op, CUBLASLT_MATMUL_DESC_TRANSA, &trans, sizeof trans));
    LT_TRY(cublasLtMatmulPreferenceCreate(&g->pref));
    LT_TRY(cublasLtMatmulPreferenceSetAttribute(g->pref, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &WORKSPACE,
                                                sizeof WORKSPACE));
    /* Split-K algorithms must add their partial sums in f32, not in the output's bf16. */
    uint32_t reductions = CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE;
    LT_TRY(cublasLtMatmulPreferenceSetAttribute(g->pref, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &reductions,
                                                sizeof reductions));
    CU_TRY(cudaMalloc(&g->workspace, WORKSPACE));
    km_mem_note(KM_MEM_DEVICE, (int64_t)WORKSPACE);
    CU_TRY(cudaEventCreate(&g->t0));
    CU_TRY(cudaEventCreate(&g->t1));
    return 0;
}

void cu_lt_close(struct cu_lt *g)
{
    if (!g)
        return;
    if (g->workspace) {
        cudaFree(g->workspace);
        km_mem_note(KM_MEM_DEVICE, -(int64_t)WORKSPACE);
    }
    if (g->t0)
        cudaEventDestroy(g->t0);
    if (g->t1)
        cudaEventDestroy(g->t1);
    if (g->pref)
        cublasLtMatmulPreferenceDestroy(g->pref);
    if (g->op)
        cublasLtMatmulDescDestroy(g->op);
    if (g->lt)
        cublasLtDestroy(g->lt);
    km_free(g);
}

/* The smallest of 1, 2, 3, 4, 6, 8, 12, 16, 24 ... that is not below M. */
int cu_lt_bucket(int M)
{
    int b = 1;
    while (b < M)
        b += b >= 2 && (b & (b - 1)) == 0 ? b / 2 : b == 1 ? 1 : b / 3;
    return b;
}

/* cuBLAS is column-major, so each row-major matrix is passed as its transpose: y^T[N x M] = w^T[K x N]^T x^T[K x M]. */
struct layouts {
    cublasLtMatrixLayoutOpaque_t w, x, y;
};

static cublasStatus_t make_layouts(layouts *l, int M, int N, int K, bool y_f32)
{
    cublasStatus_t rc = cublasLtMatrixLayoutInit(&l->w, CUDA_R_16BF, (uint64_t)K, (uint64_t)N, K);
    if (rc == CUBLAS_STATUS_SUCCESS)
        rc = cublasLtMatrixLayoutInit(&l->x, CUDA_R_16BF, (uint64_t)K, (uint64_t)M, K);
    if (rc == CUBLAS_STATUS_SUCCESS)
        rc = cublasLtMatrixLayoutInit(&l->y, y_f32 ? CUDA_R_32F : CUDA_R_16BF, (uint64_t)N, (uint64_t)M, N);
    return rc;
}

static cublasStatus_t run_matmul(struct cu_lt *g, layouts *l, const cublasLtMatmulAlgo_t *algo, const bf16 *x,
                                 const bf16 *w, bool add, void *y, cudaStream_t s)
{
    float one = 1, beta = add ? 1.f : 0.f;
    return cublasLtMatmul(g->lt, g->op, &one, w, &l->w, x, &l->x, &beta, y, &l->y, y, &l->y, algo, g->workspace,
                          WORKSPACE, s);
}

/* Times n algorithms and returns the index of the fastest. y: temporary memory of y_bytes + L2_FLUSH bytes. Each run
 * starts with a cold L2 cache, as in a forward pass, where other weights are read between two uses of w. Rounds over
 * all algorithms, instead of repeats of each, because the GPU's clock drifts while it warms up. */
static int find_fastest(struct cu_lt *g, const cublasLtMatmulHeuristicResult_t *found, int n, layouts *l, const bf16 *x,
                        const bf16 *w, char *y, size_t y_bytes, cudaStream_t s)
{
    float best_ms[CANDIDATES];
    for (int i = 0; i < n; i++)
        best_ms[i] = 1e30f;
    for (int round = 0; round <= TIMED_ROUNDS; round++)
        for (int i = 0; i < n; i++) {
            float ms = 1e30f;
            cudaMemsetAsync(y + y_bytes, round, L2_FLUSH, s);
            cudaEventRecord(g->t0, s);
            if (run_matmul(g, l, &found[i].algo, x, w, false, y, s) != CUBLAS_STATUS_SUCCESS)
                continue;
            cudaEventRecord(g->t1, s);
            cudaEventSynchronize(g->t1);
            cudaEventElapsedTime(&ms, g->t0, g->t1);
            if (round && ms < best_ms[i]) /* round 0 loads kernels and does not count */
                best_ms[i] = ms;
        }
    int fastest = 0;
    for (int i = 1; i < n; i++)
        fastest = best_ms[i] < best_ms[fastest] ? i : fastest;
    return fastest;
}

/* Chooses the algorithm of a shape. A stream that is being captured cannot be timed and gets the library's first
 * proposal. */
static int choose_algorithm(struct cu_lt *g, choice *c, layouts *l, int M, const bf16 *x, const bf16 *w, cudaStream_t s,
                            struct km_err *err)
{
    cublasLtMatmulHeuristicResult_t found[CANDIDATES];
    int n = 0;
    LT_TRY(cublasLtMatmulAlgoGetHeuristic(g->lt, g->op, &l->w, &l->x, &l->y, &l->y, g->pref, CANDIDATES, found, &n));
    if (!n)
        return km_fail(err, KM_EDEVICE, "cuBLASLt has no algorithm for a GEMM of M %d, N %d, K %d", M, c->N, c->K);
    c->algo = found[0].algo;
    cudaStreamCaptureStatus capturing = cudaStreamCaptureStatusNone;
    CU_TRY(cudaStreamIsCapturing(s, &capturing));
    if (capturing != cudaStreamCaptureStatusNone || n == 1)
        return 0;
    size_t y_bytes = (size_t)M * c->N * (c->y_f32 ? 4 : 2);
    char *y;
    CU_TRY(cudaMalloc(reinterpret_cast<void **>(&y), y_bytes + L2_FLUSH));
    c->algo = found[find_fastest(g, found, n, l, x, w, y, y_bytes, s)].algo;
    cudaFree(y);
    return 0;
}

static choice *find_choice(struct cu_lt *g, int bucket, int N, int K, bool add, bool y_f32)
{
    for (int i = 0; i < g->n_choices; i++) {
        choice *c = &g->choices[i];
        if (c->bucket == bucket && c->N == N && c->K == K && c->add == add && c->y_f32 == y_f32)
            return c;
    }
    return nullptr;
}

int cu_lt_gemm(struct cu_lt *g, const bf16 *x, const bf16 *w, int M, int N, int K, bool add, void *y, bool y_f32,
               cudaStream_t s, struct km_err *err)
{
    int bucket = cu_lt_bucket(M);
    choice *c = find_choice(g, bucket, N, K, add, y_f32);
    layouts l;
    LT_TRY(make_layouts(&l, M, N, K, y_f32));
    if (!c) {
        c = &g->choices[g->n_choices < MAX_CHOICES ? g->n_choices : MAX_CHOICES - 1];
        *c = choice{bucket, N, K, add, y_f32, {}};
        int rc = choose_algorithm(g, c, &l, M, x, w, s, err);
        if (rc)
            return rc;
        if (g->n_choices < MAX_CHOICES)
            g->n_choices++;
    }
    cublasStatus_t rc = run_matmul(g, &l, &c->algo, x, w, add, y, s);
    return rc == CUBLAS_STATUS_SUCCESS ? 0 : lt_fail(err, rc, "cublasLtMatmul");
}
