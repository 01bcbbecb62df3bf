/* Wrappers of PTX instructions that have no function in CUDA C, and small helpers built on them.
 *
 * The name of a wrapper is that of its instruction, shortened; its comment gives the full name, under which the PTX ISA
 * manual describes it. Addresses of shared memory are 32-bit numbers (smem_u32). All instructions here exist on every
 * GPU from sm_80 on. */
#ifndef CU_PTX_CUH
#define CU_PTX_CUH

#include <cuda_bf16.h>
#include <stdint.h>

__device__ __forceinline__ uint32_t smem_u32(const void *p)
{
    return (uint32_t)__cvta_generic_to_shared(p);
}

/* ---- copies from global to shared memory ---- */

/* cp.async.cg: starts a copy of 16 bytes. If valid is false, nothing is read, and the destination becomes zero. */
__device__ __forceinline__ void cp_async16(uint32_t dst, const void *src, bool valid)
{
    int n = valid ? 16 : 0;
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(dst), "l"(src), "r"(n) : "memory");
}
/* cp.async.commit_group: ends a group of copies. */
__device__ __forceinline__ void cp_async_commit()
{
    asm volatile("cp.async.commit_group;" ::: "memory");
}
/* cp.async.wait_group: waits until all groups of this thread except the last N have arrived. */
template <int N> __device__ __forceinline__ void cp_async_wait()
{
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

/* ---- matrix fragments of a warp ---- */

/* ldmatrix.x4: four 8x8 matrices of 16-bit elements; lane l gives the address of row l % 8 of matrix l / 8. */
__device__ __forceinline__ void ldmatrix_x4(uint32_t (&r)[4], uint32_t addr)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(addr));
}
/* ldmatrix.x4.trans: like ldmatrix.x4, with each matrix transposed. */
__device__ __forceinline__ void ldmatrix_x4_trans(uint32_t (&r)[4], uint32_t addr)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(addr));
}

/* movmatrix.trans: transposes an 8x8 matrix of 16-bit elements. Lane l has elements 2 (l % 4) and 2 (l % 4) + 1 of row
 * l / 4. */
__device__ __forceinline__ uint32_t movmatrix_trans(uint32_t v)
{
    uint32_t out;
    asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(out) : "r"(v));
    return out;
}

/* mma.m16n8k16: c[16x8] += a[16x16] b[16x8], bf16 inputs, f32 accumulation. */
__device__ __forceinline__ void mma_bf16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1)
{
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/* ---- arithmetic ---- */

/* Rounds both values to bf16 and packs them into one register. */
__device__ __forceinline__ uint32_t pack_bf16(float lo, float hi)
{
    __nv_bfloat162 v = __floats2bfloat162_rn(lo, hi);
    return *reinterpret_cast<uint32_t *>(&v);
}

/* ex2.approx.ftz: 2^x; denormals become zero. */
__device__ __forceinline__ float exp2_fast(float x)
{
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

/* x / (1 + e^-x), by ex2.approx.ftz and rcp.approx.ftz. */
__device__ __forceinline__ float silu(float x)
{
    float r, e = exp2_fast(-1.4426950408889634f * x);
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(1 + e));
    return x * r;
}

/* The sum over the warp, in every lane. */
__device__ __forceinline__ float warp_sum(float v)
{
#pragma unroll
    for (int o = 16; o; o >>= 1)
        v += __shfl_xor_sync(~0u, v, o);
    return v;
}
/* The maximum over the warp, in every lane. */
__device__ __forceinline__ float warp_max(float v)
{
#pragma unroll
    for (int o = 16; o; o >>= 1)
        v = fmaxf(v, __shfl_xor_sync(~0u, v, o));
    return v;
}

/* ---- global memory ---- */

/* atom.acq_rel.gpu.add: adds n to *p and returns the previous value. Threads that count with it synchronise: a thread
 * that reads a count sees all writes that the counted threads made before their calls. */
__device__ __forceinline__ int atom_add_acq_rel(int *p, int n)
{
    int before;
    asm volatile("atom.acq_rel.gpu.global.add.s32 %0, [%1], %2;" : "=r"(before) : "l"(p), "r"(n) : "memory");
    return before;
}

/* ld.global.nc.L1::no_allocate: loads 16 bytes that this kernel does not read again. L2 fetches 256 bytes at a time,
 * because neighbouring lanes and the next loads read the bytes that follow. */
__device__ __forceinline__ uint4 ld_nc_streaming(const void *p)
{
    uint4 v;
    asm volatile("ld.global.nc.L1::no_allocate.L2::256B.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(p));
    return v;
}

/* ---- programmatic dependent launch (cu_launch) ----
 * Before sm_90, and in a launch without the attribute, both functions do nothing. */

/* griddepcontrol.wait: waits until the previous kernels of the stream have ended and their writes are visible. */
__device__ __forceinline__ void griddep_wait()
{
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
/* griddepcontrol.launch_dependents: once every thread block has called it or ended, the next kernel may start. */
__device__ __forceinline__ void griddep_launch()
{
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

#endif
