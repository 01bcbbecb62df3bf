/* Products with few rows (decode with small batches): limited by reading the weights, so built around the loads.
 *
 * A warp owns 16 rows of w and a slice of K. Each lane loads 16 bytes of row g and of row g + 8 (g = lane / 4)
 * straight into the registers of an mma A fragment: the contraction index may be permuted freely as long as x is
 * permuted the same way, so lane t = lane % 4 takes elements 8t .. 8t+7 of every 32 and no shared memory is needed
 * for w. The warps of a block split K and meet once, in shared memory. x (B fragment, up to 8 columns a tile) is
 * read with the same permutation.
 *
 * Every weight byte is read once, with 16-byte loads, UNROLL of them in flight a lane. */
#include "engine/cuda/cu.h"
#include "engine/cuda/ptx.cuh"

namespace {

enum { WARPS = 8, UNROLL = 4 };
enum mode { STORE, ADD, SWIGLU, LOGITS };

/* Weight rows of a block: 16 consecutive, or 8 of gate and the same 8 of up. */
template <mode MODE> __device__ __forceinline__ int w_row(int tile, int g, int half, int N)
{
    return MODE == SWIGLU ? tile * 8 + g + half * N : tile * 16 + g + half * 8;
}

/* 16 bytes of x times 16 of the norm's weight; their squares are added up on the way. */
__device__ __forceinline__ uint4 normed(uint4 x, uint4 weight, float &squares)
{
    uint4 out;
    const __nv_bfloat162 *a = reinterpret_cast<const __nv_bfloat162 *>(&x),
                         *b = reinterpret_cast<const __nv_bfloat162 *>(&weight);
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
    const bf16 *x, *w, *norm; /* norm: [K], used by NORM kernels */
    int M, N, K;
    float eps;
    void *y;
};

template <mode MODE, int COLS, bool NORM> /* COLS: 8-column tiles of x rows, 1 or 2 */
__global__ void __launch_bounds__(WARPS * 32) small_m_kernel(const params P)
{
    const bf16 *__restrict__ x = P.x, *__restrict__ w = P.w;
    const int M = P.M, N = P.N, K = P.K;
    void *y = P.y;
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
    int tile = blockIdx.x;
    int out_rows = MODE == SWIGLU ? 8 : 16;
    int r0 = w_row<MODE>(tile, g, 0, N), r1 = w_row<MODE>(tile, g, 1, N);
    int limit = MODE == SWIGLU ? 2 * N : N;
    bool ok0 = r0 < limit && (MODE != SWIGLU || tile * 8 + g < N),
         ok1 = r1 < limit && (MODE != SWIGLU || tile * 8 + g < N);
    const bf16 *w0 = w + (size_t)(ok0 ? r0 : 0) * K + 8 * t, *w1 = w + (size_t)(ok1 ? r1 : 0) * K + 8 * t;

    float acc[COLS][4] = {};
    int steps = K / 32; /* 32 elements of K a step */
    int per_warp = (steps + WARPS - 1) / WARPS;
    int s0 = warp * per_warp, s1 = min(steps, s0 + per_warp);

    /* The first weights may be fetched before the kernel that makes x has ended. */
    uint4 a0[UNROLL], a1[UNROLL];
#pragma unroll
    for (int u = 0; u < UNROLL; u++)
        if (s0 + u < s1) {
            a0[u] = ld_nc_streaming(w0 + (s0 + u) * 32);
            a1[u] = ld_nc_streaming(w1 + (s0 + u) * 32);
        }
    griddep_wait();
    float squares[COLS] = {};
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
                    b[u][c] = normed(b[u][c], n[u], squares[c]);
                mma_bf16(acc[c], lo, b[u][c].x, b[u][c].y);
                mma_bf16(acc[c], hi, b[u][c].z, b[u][c].w);
            }
            if (s + u + UNROLL < s1) {
                a0[u] = ld_nc_streaming(w0 + (s + u + UNROLL) * 32);
                a1[u] = ld_nc_streaming(w1 + (s + u + UNROLL) * 32);
            }
        }
    }
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
    if (warp >= COLS)
        return;
    int c = warp;
    float v[4] = {};
    for (int k = 0; k < WARPS; k++)
#pragma unroll
        for (int i = 0; i < 4; i++)
            v[i] += part[k][c][i][lane];
    /* v[0], v[1]: weight row g, x rows 2t and 2t+1; v[2], v[3]: weight row g + 8 (or up's row). */
#pragma unroll
    for (int j = 0; j < 2; j++) {
        int m = c * 8 + 2 * t + j;
        if (m >= M)
            continue;
        if (NORM) { /* the norm's scale is the row's: it may come last */
            float sum = 0;
            for (int k = 0; k < WARPS; k++)
                sum += part_squares[k][c][2 * t + j];
            float scale = rsqrtf(sum / K + P.eps);
            v[j] *= scale;
            v[2 + j] *= scale;
        }
        if (MODE == SWIGLU) {
            int n = tile * out_rows + g;
            float gate = v[j];
            if (n < N)
                static_cast<bf16 *>(y)[(size_t)m * N + n] = __float2bfloat16(gate / (1 + __expf(-gate)) * v[2 + j]);
        }
        for (int h = 0; h < (MODE == SWIGLU ? 0 : 2); h++) {
            int n = tile * out_rows + g + 8 * h;
            if (n >= N)
                continue;
            size_t at = (size_t)m * N + n;
            if (MODE == LOGITS)
                static_cast<float *>(y)[at] = v[2 * h + j];
            else {
                bf16 *p = static_cast<bf16 *>(y) + at;
                *p = __float2bfloat16(v[2 * h + j] + (MODE == ADD ? __bfloat162float(*p) : 0.f));
            }
        }
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
