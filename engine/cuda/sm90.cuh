/* Wrappers of Hopper's PTX instructions: barriers that count bytes (mbarrier), tensor copies (TMA), and matrix
 * multiplication by warpgroups of 128 threads (wgmma).
 *
 * Names and addresses are as in ptx.cuh. Only sources that are compiled for sm_90a alone may include this file. */
#ifndef CU_SM90_CUH
#define CU_SM90_CUH

#include <stdint.h>

/* ---- mbarriers ----
 * An mbarrier is 8 bytes of shared memory. Its phase ends after `count` arrivals and all expected bytes. */

/* mbarrier.init */
__device__ __forceinline__ void mbar_init(uint32_t bar, int count)
{
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(bar), "r"(count));
}
/* fence.mbarrier_init: makes initialised barriers visible to the copy engine, and, after a cluster_sync, to the other
 * thread blocks of the cluster. */
__device__ __forceinline__ void mbar_init_fence()
{
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
/* mbarrier.arrive.expect_tx: one arrival, which also adds `bytes` to the bytes that the current phase expects. */
__device__ __forceinline__ void mbar_expect_tx(uint32_t bar, int bytes)
{
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(bar), "r"(bytes) : "memory");
}
/* mbarrier.arrive */
__device__ __forceinline__ void mbar_arrive(uint32_t bar)
{
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(bar) : "memory");
}
/* mapa: the cluster address of the shared-memory address `here` in the thread block with this rank. */
__device__ __forceinline__ uint32_t mapa(uint32_t here, int rank)
{
    uint32_t there;
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(here), "r"(rank));
    return there;
}
/* mbarrier.arrive.shared::cluster: an arrival at another block's barrier. It signals that this block has finished
 * reading a buffer, so it need not make this block's writes visible. (An arrival with release at cluster scope would,
 * but would need a GPU-wide fence each time.) */
__device__ __forceinline__ void mbar_arrive_cluster(uint32_t there)
{
    asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];" ::"r"(there) : "memory");
}
/* mbarrier.try_wait.parity, repeated until the phase of this parity has ended. A new barrier is in phase 0: a wait for
 * parity 1 returns at once. */
__device__ __forceinline__ void mbar_wait(uint32_t bar, int parity)
{
    asm volatile("{\n.reg .pred p;\nagain:\nmbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n@p bra "
                 "done;\nbra again;\ndone:\n}" ::"r"(bar),
                 "r"(parity)
                 : "memory");
}
/* barrier.cluster.arrive and .wait: a barrier of all threads of the cluster. Warps must be converged. */
__device__ __forceinline__ void cluster_sync()
{
    asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}

/* A position in a ring of pipeline stages, and the parity of the phase that the stage's barriers are in. */
struct pipe_state {
    int stage = 0, parity = 0;
    __device__ __forceinline__ void next(int stages)
    {
        if (++stage == stages)
            stage = 0, parity ^= 1;
    }
};

/* st.async: stores 16 or 4 bytes to the shared memory of a thread block of the cluster. A barrier of that block counts
 * the bytes. Both addresses are cluster addresses (mapa). */
__device__ __forceinline__ void st_async(uint32_t there, float a, float b, float c, float d, uint32_t bar_there)
{
    asm volatile(
        "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 [%0], {%1,%2,%3,%4}, [%5];" ::"r"(there),
        "f"(a), "f"(b), "f"(c), "f"(d), "r"(bar_there)
        : "memory");
}

__device__ __forceinline__ void st_async(uint32_t there, float a, uint32_t bar_there)
{
    asm volatile("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.f32 [%0], %1, [%2];" ::"r"(there), "f"(a),
                 "r"(bar_there)
                 : "memory");
}

/* ---- tensor copies: one box of a tensor map (tensor_map.h); `bar` counts the bytes that arrive ---- */

/* prefetch.tensormap: loads a tensor map into the cache of the copy engine. */
__device__ __forceinline__ void tma_prefetch_map(const void *map)
{
    asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}
/* cp.async.bulk.tensor.2d: copies the box at these coordinates. */
__device__ __forceinline__ void tma_load_box(uint32_t dst, const void *map, int col, int row, uint32_t bar)
{
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::"r"(
            dst),
        "l"(map), "r"(col), "r"(row), "r"(bar)
        : "memory");
}
/* cp.async.bulk.tensor.4d: copies a box of whole groups, from `group` on. The inner three dimensions of the map are a
 * group. */
__device__ __forceinline__ void tma_load_groups(uint32_t dst, const void *map, int group, uint32_t bar)
{
    asm volatile("cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], "
                 "[%1, {%2, %2, %2, %3}], [%4];" ::"r"(dst),
                 "l"(map), "r"(0), "r"(group), "r"(bar)
                 : "memory");
}
/* cp.async.bulk.tensor.5d: copies a box of groups of one stack, from column `col` on. The inner three dimensions of the
 * map are a group, the outermost is the stack. */
__device__ __forceinline__ void tma_load_stack(uint32_t dst, const void *map, int col, int group, int stack,
                                               uint32_t bar)
{
    asm volatile("cp.async.bulk.tensor.5d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], "
                 "[%1, {%2, %3, %3, %4, %5}], [%6];" ::"r"(dst),
                 "l"(map), "r"(col), "r"(0), "r"(group), "r"(stack), "r"(bar)
                 : "memory");
}
/* cp.async.bulk.tensor.2d.multicast::cluster: like tma_load_box, but copies the box to every thread block of the
 * cluster whose bit is set in `ranks`. It arrives at the same address in each block, and each block's own barrier
 * counts it. */
__device__ __forceinline__ void tma_load_box_multicast(uint32_t dst, const void *map, int col, int row, uint32_t bar,
                                                       uint16_t ranks)
{
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster "
                 "[%0], [%1, {%2, %3}], [%4], %5;" ::"r"(dst),
                 "l"(map), "r"(col), "r"(row), "r"(bar), "h"(ranks)
                 : "memory");
}

/* ---- matrix multiplication by a warpgroup ---- */

/* A matrix descriptor of wgmma for the 128-byte swizzle (PTX ISA, "Matrix descriptor format"). addr: a shared-memory
 * address. lead, stride: byte strides. An offset in shared memory can be added to a descriptor in units of 16 bytes. */
__device__ __forceinline__ uint64_t wgmma_desc(uint32_t addr, int lead, int stride)
{
    return (uint64_t)((addr & 0x3FFFF) >> 4) | (uint64_t)(lead >> 4) << 16 | (uint64_t)(stride >> 4) << 32 |
           (uint64_t)1 << 62;
}

/* wgmma.fence: orders this thread's register writes before the wgmma instructions that follow. */
__device__ __forceinline__ void wgmma_fence()
{
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
/* wgmma.commit_group: ends a group of wgmma instructions. */
__device__ __forceinline__ void wgmma_commit()
{
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
/* wgmma.wait_group: waits until all groups except the last N have ended. */
template <int N> __device__ __forceinline__ void wgmma_wait()
{
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
}

/* Operand lists of the wgmma instructions: WG_R names accumulator registers, WG_N their operand numbers. */
#define WG_R4(d, i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define WG_R8(d, i) WG_R4(d, i), WG_R4(d, i + 4)
#define WG_R16(d, i) WG_R8(d, i), WG_R8(d, i + 8)
#define WG_R32(d, i) WG_R16(d, i), WG_R16(d, i + 16)
#define WG_R64(d, i) WG_R32(d, i), WG_R32(d, i + 32)
#define WG_R128(d, i) WG_R64(d, i), WG_R64(d, i + 64)
#define WG_N8 "%0,%1,%2,%3,%4,%5,%6,%7"
#define WG_N16 WG_N8 ",%8,%9,%10,%11,%12,%13,%14,%15"
#define WG_N32 WG_N16 ",%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31"
#define WG_N64                                                                                                         \
    WG_N32 ",%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55,"         \
           "%56,%57,%58,%59,%60,%61,%62,%63"
#define WG_N128                                                                                                        \
    WG_N64 ",%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79,%80,%81,%82,%83,%84,%85,%86,%87,%88,"     \
           "%89,%90,%91,%92,%93,%94,%95,%96,%97,%98,%99,%100,%101,%102,%103,%104,%105,%106,%107,%108,%109,%110,"       \
           "%111,%112,%113,%114,%115,%116,%117,%118,%119,%120,%121,%122,%123,%124,%125,%126,%127"

#endif
