/* Hopper's own instructions for the kernels that use them: barriers that count bytes, tensor copies (TMA), and
 * products by warpgroups of 128 threads (wgmma). Names follow the PTX ISA manual; addresses are 32-bit ones of shared
 * memory. Include from sources compiled for sm_90a alone. */
#ifndef CU_SM90_CUH
#define CU_SM90_CUH

#include <stdint.h>

/* ---- mbarriers: 8 bytes; a phase ends when `count` arrivals and all expected bytes are in ---- */

__device__ __forceinline__ void mbar_init(uint32_t bar, int count)
{
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(bar), "r"(count));
}
/* Makes initialised barriers known to the copy engine and to the cluster's other blocks, once they have synchronised.
 */
__device__ __forceinline__ void mbar_init_fence()
{
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
/* One arrival, and so many bytes more that this phase waits for. */
__device__ __forceinline__ void mbar_expect_tx(uint32_t bar, int bytes)
{
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(bar), "r"(bytes) : "memory");
}
__device__ __forceinline__ void mbar_arrive(uint32_t bar)
{
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(bar) : "memory");
}
/* The cluster's name for what lies where `here` does, in the block of that rank. */
__device__ __forceinline__ uint32_t mapa(uint32_t here, int rank)
{
    uint32_t there;
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(here), "r"(rank));
    return there;
}
/* An arrival there. It orders nothing of ours beyond this block: it gives room back whose reads are over. (Release at
 * cluster scope would put a fence of the whole card before it.) */
__device__ __forceinline__ void mbar_arrive_cluster(uint32_t there)
{
    asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];" ::"r"(there) : "memory");
}
/* Waits for the end of the phase of this parity. A fresh barrier is in phase 0; "phase 1" has ended before it. */
__device__ __forceinline__ void mbar_wait(uint32_t bar, int parity)
{
    asm volatile("{\n.reg .pred p;\nagain:\nmbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n@p bra "
                 "done;\nbra again;\ndone:\n}" ::"r"(bar),
                 "r"(parity)
                 : "memory");
}
/* All threads of all of the cluster's blocks, warps whole. */
__device__ __forceinline__ void cluster_sync()
{
    asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}

/* A place in a ring of stages, and the parity of the phase that its barriers are in there. */
struct pipe_state {
    int stage = 0, parity = 0;
    __device__ __forceinline__ void next(int stages)
    {
        if (++stage == stages)
            stage = 0, parity ^= 1;
    }
};

/* 16 or 4 bytes to a place in a block of the cluster, counted by a barrier there; both as mapa names them. */
__device__ __forceinline__ void st_async(uint32_t there, float a, float b, float c, float d, uint32_t bar_there)
{
    asm volatile("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 [%0], {%1,%2,%3,%4}, [%5];" ::"r"(
                     there),
                 "f"(a), "f"(b), "f"(c), "f"(d), "r"(bar_there)
                 : "memory");
}

__device__ __forceinline__ void st_async(uint32_t there, float a, uint32_t bar_there)
{
    asm volatile("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.f32 [%0], %1, [%2];" ::"r"(there), "f"(a),
                 "r"(bar_there)
                 : "memory");
}

/* ---- tensor copies: a box of a map made by cu_tensor_map, its bytes counted by a barrier ---- */

__device__ __forceinline__ void tma_load_box(uint32_t dst, const void *map, int col, int row, uint32_t bar)
{
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::
            "r"(dst),
        "l"(map), "r"(col), "r"(row), "r"(bar)
        : "memory");
}
/* Whole groups of a map of four dimensions, the inner three of which are a group. */
__device__ __forceinline__ void tma_load_groups(uint32_t dst, const void *map, int group, uint32_t bar)
{
    asm volatile("cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], "
                 "[%1, {%2, %2, %2, %3}], [%4];" ::"r"(dst),
                 "l"(map), "r"(0), "r"(group), "r"(bar)
                 : "memory");
}
/* Whole groups of a map of five dimensions: the inner three are a group, the outer one a stack of groups. */
__device__ __forceinline__ void tma_load_stack(uint32_t dst, const void *map, int col, int group, int stack, uint32_t bar)
{
    asm volatile("cp.async.bulk.tensor.5d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], "
                 "[%1, {%2, %3, %3, %4, %5}], [%6];" ::"r"(dst),
                 "l"(map), "r"(col), "r"(0), "r"(group), "r"(stack), "r"(bar)
                 : "memory");
}
/* The same as tma_load_box to every block whose rank is set in `ranks`: same place, and each block's own barrier counts. */
__device__ __forceinline__ void tma_load_box_multicast(uint32_t dst, const void *map, int col, int row, uint32_t bar,
                                                  uint16_t ranks)
{
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster "
                 "[%0], [%1, {%2, %3}], [%4], %5;" ::"r"(dst),
                 "l"(map), "r"(col), "r"(row), "r"(bar), "h"(ranks)
                 : "memory");
}

/* ---- products by a warpgroup ---- */

/* Shared-memory matrix descriptor, 128-byte swizzle; byte strides (PTX ISA, "matrix descriptor format"). An offset
 * within shared memory is added to it in units of 16 bytes. */
__device__ __forceinline__ uint64_t wgmma_desc(uint32_t addr, int lead, int stride)
{
    return (uint64_t)((addr & 0x3FFFF) >> 4) | (uint64_t)(lead >> 4) << 16 | (uint64_t)(stride >> 4) << 32 |
           (uint64_t)1 << 62;
}

__device__ __forceinline__ void wgmma_fence()
{
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
__device__ __forceinline__ void wgmma_commit()
{
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
/* Until all but the last N groups are done. */
template <int N> __device__ __forceinline__ void wgmma_wait()
{
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
}

/* Lists of accumulators, and of their operand numbers. */
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
