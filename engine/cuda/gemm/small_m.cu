/* Small-M GEMMs (decode with small batches) by mma.sync. Reading the weights limits the speed. Each weight is therefore
 * read once, with loads of 16 bytes, of which a lane has UNROLL pairs in flight.
 *
 * A warp processes 16 rows of w and a part of K. Each lane loads 16 bytes of row g and of row g + 8 (g = lane / 4)
 * directly into the registers of mma A fragments, without shared memory. Lane t = lane % 4 of a row loads elements 8t
 * to 8t + 7 of every 32. This permutes the contraction index, which is correct because x, the B fragment of up to 8
 * rows, is read with the same permutation. The warps of a thread block divide K among them and add their accumulators
 * in shared memory.
 *
 * RMSNorm can be folded in: the kernel multiplies x by gamma as it loads x, adds up the squares of x, and scales the
 * outputs of a row by 1 / rms at the end. */
#include "engine/cuda/gemm/small_m.h"
#include "engine/cuda/ptx.cuh"

namespace {

enum { WARPS = 8, UNROLL = 4 };
/* What is stored: y = bf16, y += bf16, SwiGLU of gate and up, y = f32. */
enum mode { STORE, ADD, SWIGLU, LOGITS };

/* Row g of one half of the 16 rows of w that a thread block multiplies. The halves are neighbours, or, with SWIGLU, 8
 * rows of gate and the same 8 rows of up. */
template <mode MODE> __device__ __forceinline__ int w_row(int tile, int g, int half, int N)
{
    return MODE == SWIGLU ? tile * 8 + g + half * N : tile * 16 + g + half * 8;
}

/* Multiplies 8 elements of x by 8 of gamma. Adds the squares of x to `squares`. */
__device__ __forceinline__ uint4 multiply_by_gamma(uint4 x, uint4 gamma, float &squares)
{
    uint4 out;
    const __nv_bfloat162 *a = reinterpret_cast<const __nv_bfloat162 *>(&x),
                         *b = reinterpret_cast<const __nv_bfloat162 *>(&gamma);
    __nv_bfloat162 *o = reinterpret_cast<__nv_bfloat162 *>(&out);
#pragma unroll
    for (int i = 0; i < 4; i++) {
        float2 f = __bfloat1622float2(a[i]);
        squares += f.x * f.x + f.y * f.y;
        o[i] = __hmul2(a[i], b[i]);
    }
    return out;
}

struct params {
    const bf16 *x, *w, *norm; /* norm: [K] gamma, used if NORM */
    int M, N, K;
    float eps;
    void *y;
};

/* Multiplies steps [s0, s1) of K, 32 elements each. w0, w1: the lane's two rows of w, from its first element on.
 * Weights do not depend on earlier kernels, so their first loads start before griddep_wait. */
template <int COLS, bool NORM>
__device__ __forceinline__ void multiply(const params &P, const bf16 *__restrict__ x, const bf16 *w0, const bf16 *w1,
                                         int s0, int s1, int g, int t, float (&acc)[COLS][4], float (&squares)[COLS])
{
    const int M = P.M, K = P.K;
    uint4 a0[UNROLL], a1[UNROLL];
#pragma unroll
    for (int u = 0; u < UNROLL; u++)
        if (s0 + u < s1) {
            a0[u] = ld_nc_streaming(w0 + (s0 + u) * 32);
            a1[u] = ld_nc_streaming(w1 + (s0 + u) * 32);
        }
    griddep_wait();
    for (int s = s0; s < s1; s += UNROLL) {
        uint4 b[UNROLL][COLS], n[UNROLL];
#pragma unroll
        for (int u = 0; u < UNROLL; u++) {
            if (NORM)
                n[u] = s + u < s1 ? *reinterpret_cast<const uint4 *>(P.norm + (s + u) * 32 + 8 * t)
                                  : make_uint4(0, 0, 0, 0);
#pragma unroll
            for (int c = 0; c < COLS; c++) {
                bool ok = s + u < s1 && c * 8 + g < M;
                b[u][c] = ok ? *reinterpret_cast<const uint4 *>(x + (size_t)(c * 8 + g) * K + (s + u) * 32 + 8 * t)
                             : make_uint4(0, 0, 0, 0);
            }
        }
#pragma unroll
        for (int u = 0; u < UNROLL; u++) {
            if (s + u >= s1)
                break;
            uint32_t lo[4] = {a0[u].x, a1[u].x, a0[u].y, a1[u].y}, hi[4] = {a0[u].z, a1[u].z, a0[u].w, a1[u].w};
#pragma unroll
            for (int c = 0; c < COLS; c++) {
                if (NORM)
                    b[u][c] = multiply_by_gamma(b[u][c], n[u], squares[c]);
                mma_bf16(acc[c], lo, b[u][c].x, b[u][c].y);
                mma_bf16(acc[c], hi, b[u][c].z, b[u][c].w);
            }
            if (s + u + UNROLL < s1) {
                a0[u] = ld_nc_streaming(w0 + (s + u + UNROLL) * 32);
                a1[u] = ld_nc_streaming(w1 + (s + u + UNROLL) * 32);
            }
        }
    }
}

/* Stores a lane's outputs in row m of y. v[0] belongs to row g of w, v[2] to row g + 8, or to the row of up. */
template <mode MODE> __device__ __forceinline__ void store(const params &P, int tile, int g, int m, const float *v)
{
    enum { OUT_ROWS = MODE == SWIGLU ? 8 : 16 };
    const int N = P.N;
    if (MODE == SWIGLU) {
        int n = tile * OUT_ROWS + g;
        float gate = v[0];
        if (n < N)
            static_cast<bf16 *>(P.y)[(size_t)m * N + n] = __float2bfloat16(gate / (1 + __expf(-gate)) * v[2]);
    }
    for (int h = 0; h < (MODE == SWIGLU ? 0 : 2); h++) {
        int n = tile * OUT_ROWS + g + 8 * h;
        if (n >= N)
            continue;
        size_t at = (size_t)m * N + n;
        if (MODE == LOGITS)
            static_cast<float *>(P.y)[at] = v[2 * h];
        else {
            bf16 *p = static_cast<bf16 *>(P.y) + at;
            *p = __float2bfloat16(v[2 * h] + (MODE == ADD ? __bfloat162float(*p) : 0.f));
        }
    }
}

/* A thread block for each 16 rows of w, or 8 of gate and 8 of up. COLS: tiles of 8 rows of x, 1 or 2. */
template <mode MODE, int COLS, bool NORM> __global__ void __launch_bounds__(WARPS * 32) small_m_kernel(const params P)
{
    const bf16 *__restrict__ x = P.x, *__restrict__ w = P.w;
    const int M = P.M, N = P.N, K = P.K;
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
    int tile = blockIdx.x;
    int r0 = w_row<MODE>(tile, g, 0, N), r1 = w_row<MODE>(tile, g, 1, N);
    int limit = MODE == SWIGLU ? 2 * N : N;
    bool ok0 = r0 < limit && (MODE != SWIGLU || tile * 8 + g < N),
         ok1 = r1 < limit && (MODE != SWIGLU || tile * 8 + g < N);
    const bf16 *w0 = w + (size_t)(ok0 ? r0 : 0) * K + 8 * t, *w1 = w + (size_t)(ok1 ? r1 : 0) * K + 8 * t;
    int steps = K / 32, per_warp = (steps + WARPS - 1) / WARPS;
    int s0 = warp * per_warp, s1 = min(steps, s0 + per_warp);

    float acc[COLS][4] = {}, squares[COLS] = {};
    multiply<COLS, NORM>(P, x, w0, w1, s0, s1, g, t, acc, squares);
    griddep_launch();

    __shared__ float part[WARPS][COLS][4][32], part_squares[WARPS][COLS][8];
#pragma unroll
    for (int c = 0; c < COLS; c++)
#pragma unroll
        for (int i = 0; i < 4; i++)
            part[warp][c][i][lane] = acc[c][i];
#pragma unroll
    for (int c = 0; NORM && c < COLS; c++) {
        squares[c] += __shfl_xor_sync(~0u, squares[c], 1);
        squares[c] += __shfl_xor_sync(~0u, squares[c], 2);
        if (t == 0)
            part_squares[warp][c][g] = squares[c];
    }
    __syncthreads();
    if (warp >= COLS) /* one warp for each tile of x adds up the accumulators and stores y */
        return;
    int c = warp;
    float v[4] = {};
    for (int k = 0; k < WARPS; k++)
#pragma unroll
        for (int i = 0; i < 4; i++)
            v[i] += part[k][c][i][lane];
#pragma unroll
    for (int j = 0; j < 2; j++) {
        int m = c * 8 + 2 * t + j;
        if (m >= M)
            continue;
        if (NORM) { /* 1 / rms is a factor of the whole row, so it can be applied last */
            float sum = 0;
            for (int k = 0; k < WARPS; k++)
                sum += part_squares[k][c][2 * t + j];
            float scale = rsqrtf(sum / K + P.eps);
            v[j] *= scale;
            v[2 + j] *= scale;
        }
        store<MODE>(P, tile, g, m, v + j);
    }
}

template <mode MODE, bool NORM> void launch(const params &p, cudaStream_t s)
{
    int rows = MODE == SWIGLU ? 8 : 16;
    dim3 grid((unsigned)((p.N + rows - 1) / rows));
    cu_launch(p.M <= 8 ? small_m_kernel<MODE, 1, NORM> : small_m_kernel<MODE, 2, NORM>, grid, WARPS * 32, 0, s, p);
}

} // namespace

void cu_small_m(const bf16 *x, const bf16 *w, int M, int N, int K, bool add, bf16 *y, cudaStream_t s)
{
    params p = {x, w, nullptr, M, N, K, 0, y};
    if (add)
        launch<ADD, false>(p, s);
    else
        launch<STORE, false>(p, s);
}

void cu_small_m_norm(const bf16 *x, const bf16 *norm, float eps, const bf16 *w, int M, int N, int K, bf16 *y,
                     cudaStream_t s)
{
    launch<STORE, true>(params{x, w, norm, M, N, K, eps, y}, s);
}

void cu_small_m_swiglu(const bf16 *x, const bf16 *norm, float eps, const bf16 *w_gate_up, int M, int F, int K,
                       bf16 *act, cudaStream_t s)
{
    launch<SWIGLU, true>(params{x, w_gate_up, norm, M, F, K, eps, act}, s);
}

void cu_small_m_logits(const bf16 *x, const bf16 *w, int M, int N, int K, float *y, cudaStream_t s)
{
    launch<LOGITS, false>(params{x, w, nullptr, M, N, K, 0, y}, s);
}
