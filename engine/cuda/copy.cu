/* Submission of copies, and the kernel that computes the checksums of pages.
 *
 * The kernel divides a page into tiles and has one block per tile, so it uses the whole GPU for a short time. A few
 * blocks that run longer would delay the steps more, because the steps' GEMM and attention kernels have one block per
 * SM and end with their last block. On an H100 with loads of qwen3-8b at full speed, in calls of 32 MiB, a decode step
 * of batch 64 takes 8.05 ms with the copies alone, 8.25 ms with the checksums too, and 8.59 ms if each page is one
 * tile. */
#include "engine/cuda/copy.h"

extern "C" {
#include "base/buf.h"
#include "base/page_sum.h"
}

#include <string.h>
#include <unistd.h>

/* ---- the kernel ---- */

enum { THREADS = 256, LOADS = 8, ROUNDS = 4 }; /* threads of a block; loads in flight per thread, done ROUNDS times */
enum { TILE = THREADS * LOADS * ROUNDS };      /* 16-byte pieces of a tile: 128 KiB */

/* The pages of one call. They are a parameter of the kernel, because a read of pinned memory would wait for the copies
 * that the bus is busy with. */
struct sum_pages {
    struct {
        int32_t page, n_tokens;
        uint64_t seed;
    } page[KV_COPY_MOST];
};

/* The shape of a page, in 16-byte pieces. */
struct sum_shape {
    uint32_t pieces, tiles; /* of a page */
    uint32_t token_shift;   /* piece >> token_shift is the token's row */
    uint32_t token_mask;    /* block size - 1: row & token_mask is the token's index in the block */
};

/* Sum of the terms of this thread's pieces of a tile that starts at piece `first`. As in km_page_sum_counts, words of
 * tokens from n_tokens on do not count, and are not read. The term of seed and word index i equals the term of
 * seed + k * KM_GOLDEN64 and index i - k. One seed per round, and constant indices, therefore suffice. */
__device__ static uint64_t sum_tile(const ulonglong2 *page, const sum_shape &shape, uint32_t n_tokens, uint64_t seed,
                                    uint32_t first)
{
    uint64_t sum = 0;
    for (uint32_t at = first + threadIdx.x, end = first + TILE; at < end && at < shape.pieces; at += THREADS * LOADS) {
        ulonglong2 v[LOADS];
        bool counts[LOADS];
#pragma unroll
        for (uint32_t k = 0; k < LOADS; k++) {
            uint32_t i = at + k * THREADS;
            counts[k] = i < shape.pieces && (i >> shape.token_shift & shape.token_mask) < n_tokens;
            v[k] = counts[k] ? __ldcs(page + i) : ulonglong2{};
        }
        uint64_t base = seed + 2 * (uint64_t)at * KM_GOLDEN64;
#pragma unroll
        for (uint32_t k = 0; k < LOADS; k++)
            if (counts[k])
                sum += km_page_sum_term(v[k].x, base, 2 * k * THREADS) +
                       km_page_sum_term(v[k].y, base, 2 * k * THREADS + 1);
    }
    return sum;
}

/* Adds `sum` over the block's threads; the result is valid in thread 0. */
__device__ static uint64_t sum_block(uint64_t sum)
{
    __shared__ uint64_t warp_sum[THREADS / 32];
    for (int step = 16; step; step /= 2)
        sum += __shfl_down_sync(0xFFFFFFFFu, sum, step);
    if (threadIdx.x % 32 == 0)
        warp_sum[threadIdx.x / 32] = sum;
    __syncthreads();
    if (threadIdx.x == 0)
        for (int w = 1; w < THREADS / 32; w++)
            sum += warp_sum[w];
    return sum;
}

/* Block (x, y) adds tile x of page y to partial[y]. The block that adds the last tile writes sums[y]. */
__global__ static void __launch_bounds__(THREADS) sum_kernel(const __grid_constant__ sum_pages pages, sum_shape shape,
                                                             const char *pool, cu_copy_sum *partial, uint64_t *sums)
{
    const auto &p = pages.page[blockIdx.y];
    const auto *page = reinterpret_cast<const ulonglong2 *>(pool) + (size_t)p.page * shape.pieces;
    uint64_t sum = sum_block(sum_tile(page, shape, (uint32_t)p.n_tokens, p.seed, blockIdx.x * TILE));
    if (threadIdx.x)
        return;
    cu_copy_sum *s = &partial[blockIdx.y];
    atomicAdd(&s->sum, sum);
    __threadfence(); /* the sum before the count */
    if (atomicAdd(&s->n_tiles, 1) + 1 < shape.tiles)
        return;
    __threadfence();
    sums[blockIdx.y] = km_page_sum_end(atomicExch(&s->sum, 0));
    s->n_tiles = 0;
}

/* Enqueues the checksums of a call's pages. */
static cudaError_t enqueue_sums(const cu_copier *c, enum kv_dir dir, const cu_copy_call *call)
{
    sum_pages pages;
    sum_shape shape;
    for (int i = 0; i < call->n; i++) {
        pages.page[i].page = call->pages[i].page;
        pages.page[i].n_tokens = call->pages[i].n_tokens;
        pages.page[i].seed = call->pages[i].seed;
    }
    shape.pieces = (uint32_t)(c->page_bytes / sizeof(ulonglong2));
    shape.tiles = (shape.pieces + TILE - 1) / TILE;
    shape.token_shift = (uint32_t)c->token_shift;
    shape.token_mask = (uint32_t)c->block_size - 1;
    size_t slot = (size_t)(call - c->lane[dir].call);
    sum_kernel<<<dim3(shape.tiles, (unsigned)call->n), THREADS, 0, c->lane[dir].sum_stream>>>(
        pages, shape, reinterpret_cast<const char *>(c->pool), c->mem.partial + dir * KV_COPY_MOST,
        c->mem.sums + (dir * CU_COPY_TICKETS + slot) * KV_COPY_MOST);
    return cudaGetLastError();
}

/* ---- registration ---- */

/* Host memory is registered in pieces that end at multiples of REGISTRATION bytes. While cudaHostRegister runs, which
 * takes about 1 ms per piece, no other thread can launch a kernel. The pause of PAUSE_US after each piece lets the
 * thread of the steps launch its kernels. */
enum { REGISTRATION = 32 << 20, PAUSE_US = 1000 };

/* Bytes from p to the next multiple of REGISTRATION, where a registration may end; at most `size`. */
static size_t until_boundary(const void *p, size_t size)
{
    size_t n = REGISTRATION - reinterpret_cast<uintptr_t>(p) % REGISTRATION;
    return n < size ? n : size;
}

int cu_host_register(void *p, size_t size, struct km_err *err)
{
    char *start = static_cast<char *>(p);
    for (size_t at = 0, n; at < size; at += n) {
        n = until_boundary(start + at, size - at);
        cudaError_t rc = cudaHostRegister(start + at, n, cudaHostRegisterPortable);
        if (rc != cudaSuccess)
            cudaGetLastError(); /* clears the error, because the caller continues without registration */
        if (rc != cudaSuccess && rc != cudaErrorHostMemoryAlreadyRegistered) {
            cu_host_unregister(p, at);
            return km_fail(err, KM_EDEVICE, "cannot register %s of host memory with the GPU: %s",
                           km_size_text((int64_t)size).s, cudaGetErrorString(rc));
        }
        usleep(PAUSE_US);
    }
    return 0;
}

void cu_host_unregister(void *p, size_t size)
{
    char *start = static_cast<char *>(p);
    for (size_t at = 0, n; at < size; at += n) {
        n = until_boundary(start + at, size - at);
        if (cudaHostUnregister(start + at) != cudaSuccess)
            cudaGetLastError();
    }
}

/* ---- copies ---- */

/* A batch of copies, each from src[i] to dst[i]. */
struct copy_batch {
    void *dst[2 * KV_COPY_MOST];
    const void *src[2 * KV_COPY_MOST];
    size_t size[2 * KV_COPY_MOST], n;
};

static cudaError_t enqueue_batch(copy_batch *b, enum kv_dir dir, cudaStream_t s)
{
    size_t first = 0; /* the attributes are for all copies from the first on */
    cudaMemcpyAttributes how = {};
    /* The source of a store is a page that kernels write: it must be read in stream order. The source of a load does
     * not change until the ticket is finished. */
    how.srcAccessOrder = dir == KV_TO_HOST ? cudaMemcpySrcAccessOrderStream : cudaMemcpySrcAccessOrderAny;
#if CUDART_VERSION >= 13000
    return cudaMemcpyBatchAsync(b->dst, b->src, b->size, b->n, &how, &first, 1, s);
#else
    size_t failed;
    return cudaMemcpyBatchAsync(b->dst, const_cast<void **>(b->src), b->size, b->n, &how, &first, 1, &failed, s);
#endif
}

/* Enqueues the copies of a call's pages. A copy must not cover two registrations of host memory. Pages are therefore
 * divided where a registration may end, and adjacent pages are not merged. One batch is enough unless pages are larger
 * than REGISTRATION. */
static cudaError_t enqueue_copies(const cu_copier *c, enum kv_dir dir, const cu_copy_call *call)
{
    copy_batch b;
    cudaError_t rc = cudaSuccess;
    b.n = 0;
    for (int i = 0; i < call->n && rc == cudaSuccess; i++) {
        char *host = static_cast<char *>(call->pages[i].host);
        char *page = reinterpret_cast<char *>(c->pool) + (size_t)call->pages[i].page * c->page_bytes;
        for (size_t at = 0; at < c->page_bytes && rc == cudaSuccess; at += b.size[b.n++]) {
            if (b.n == 2 * KV_COPY_MOST) {
                rc = enqueue_batch(&b, dir, c->lane[dir].copy_stream);
                b.n = 0;
            }
            b.dst[b.n] = dir == KV_TO_HOST ? host + at : page + at;
            b.src[b.n] = dir == KV_TO_HOST ? page + at : host + at;
            b.size[b.n] = until_boundary(host + at, c->page_bytes - at);
        }
    }
    return rc == cudaSuccess ? enqueue_batch(&b, dir, c->lane[dir].copy_stream) : rc;
}

static int check_pages(const cu_copier *c, const struct kv_copy *p, int n, struct km_err *err)
{
    if (n < 1 || n > KV_COPY_MOST)
        return km_fail(err, KM_EINVAL, "a copy has %d pages; a call takes 1 to %d", n, KV_COPY_MOST);
    for (int i = 0; i < n; i++) {
        if (p[i].page < 0 || p[i].page >= c->n_pages)
            return km_fail(err, KM_EINVAL, "page %d of a copy is outside the pool of %d pages", p[i].page, c->n_pages);
        if (p[i].n_tokens < 1 || p[i].n_tokens > c->block_size)
            return km_fail(err, KM_EINVAL, "page %d of a copy has %d valid tokens; a page has 1 to %d", p[i].page,
                           p[i].n_tokens, c->block_size);
    }
    return 0;
}

/* Enqueues the copies and the checksums of a call. A load's checksums wait for its copies, a store's copies for its
 * checksums. */
static int enqueue_call(cu_copier *c, enum kv_dir dir, cu_copy_call *call, cudaEvent_t fence, struct km_err *err)
{
    cu_copy_lane *l = &c->lane[dir];
    bool load = dir == KV_TO_PAGE;
    cudaStream_t first = load ? l->copy_stream : l->sum_stream, second = load ? l->sum_stream : l->copy_stream;
    if (fence)
        CU_TRY(cudaStreamWaitEvent(first, fence, 0));
    CU_TRY(load ? enqueue_copies(c, dir, call) : enqueue_sums(c, dir, call));
    CU_TRY(cudaEventRecord(call->half, first));
    CU_TRY(cudaStreamWaitEvent(second, call->half, 0));
    CU_TRY(load ? enqueue_sums(c, dir, call) : enqueue_copies(c, dir, call));
    CU_TRY(cudaEventRecord(call->done, second));
    return 0;
}

int cu_copy_submit(cu_copier *c, enum kv_dir dir, struct kv_copy *pages, int n, cudaEvent_t fence, uint64_t *ticket,
                   struct km_err *err)
{
    cu_copy_lane *l = &c->lane[dir];
    uint64_t seq = l->n_calls + 1;
    cu_copy_call *call = &l->call[seq % CU_COPY_TICKETS];
    int rc = check_pages(c, pages, n, err);
    if (rc)
        return rc;
    if (call->pages)
        return km_fail(err, KM_ELIMIT, "%d copies are in flight, as many as can be; poll them first", CU_COPY_TICKETS);
    call->pages = pages;
    call->n = n;
    rc = enqueue_call(c, dir, call, fence, err);
    if (rc) { /* what was enqueued must not be in flight when this returns */
        cudaStreamSynchronize(l->copy_stream);
        cudaStreamSynchronize(l->sum_stream);
        cudaGetLastError(); /* clears the error, so that a step does not report it */
        call->pages = nullptr;
        return rc;
    }
    l->n_calls = seq;
    *ticket = call->ticket = 2 * seq + dir;
    return 0;
}

int cu_copy_poll(cu_copier *c, uint64_t ticket)
{
    int dir = ticket % 2;
    cu_copy_call *call = &c->lane[dir].call[ticket / 2 % CU_COPY_TICKETS];
    if (!call->pages || call->ticket != ticket)
        return KM_EINVAL;
    cudaError_t rc = cudaEventQuery(call->done);
    if (rc != cudaSuccess)
        cudaGetLastError(); /* cudaErrorNotReady counts as an error, too */
    if (rc == cudaErrorNotReady)
        return 0;
    const uint64_t *sums = c->mem.sums + (dir * CU_COPY_TICKETS + ticket / 2 % CU_COPY_TICKETS) * KV_COPY_MOST;
    for (int i = 0; i < call->n && rc == cudaSuccess; i++)
        call->pages[i].sum = sums[i];
    call->pages = nullptr;
    return rc == cudaSuccess ? 1 : KM_EDEVICE;
}

/* ---- open and close ---- */

static int open_lane(cu_copy_lane *l, int priority, struct km_err *err)
{
    CU_TRY(cudaStreamCreateWithFlags(&l->copy_stream, cudaStreamNonBlocking));
    CU_TRY(cudaStreamCreateWithPriority(&l->sum_stream, cudaStreamNonBlocking, priority));
    for (cu_copy_call &call : l->call) {
        CU_TRY(cudaEventCreateWithFlags(&call.half, cudaEventDisableTiming));
        CU_TRY(cudaEventCreateWithFlags(&call.done, cudaEventDisableTiming));
    }
    return 0;
}

int cu_copier_open(cu_copier *c, const cu_dims &m, bf16 *pool, int n_pages, const cu_copy_memory &mem,
                   struct km_err *err)
{
    int lowest, highest, rc = 0;
    cudaFuncAttributes kernel;
    memset(c, 0, sizeof *c);
    c->pool = pool;
    c->n_pages = n_pages;
    c->block_size = m.B;
    c->page_bytes = m.page_elems * sizeof(bf16);
    c->token_shift = __builtin_ctz((unsigned)m.d * sizeof(bf16) / sizeof(ulonglong2));
    c->mem = mem;
    /* Loads the kernel now, because loading it at the first launch would wait for running steps. */
    CU_TRY(cudaFuncGetAttributes(&kernel, sum_kernel));
    /* The checksums have a higher priority than the steps. Otherwise they, and the copies behind them, would wait for
     * the blocks of a long step. */
    CU_TRY(cudaDeviceGetStreamPriorityRange(&lowest, &highest));
    for (int dir = 0; dir < 2 && !rc; dir++)
        rc = open_lane(&c->lane[dir], highest, err);
    return rc;
}

void cu_copier_close(cu_copier *c)
{
    for (cu_copy_lane &l : c->lane) {
        for (cu_copy_call &call : l.call) {
            if (call.half)
                cudaEventDestroy(call.half);
            if (call.done)
                cudaEventDestroy(call.done);
        }
        if (l.copy_stream)
            cudaStreamDestroy(l.copy_stream);
        if (l.sum_stream)
            cudaStreamDestroy(l.sum_stream);
    }
    memset(c, 0, sizeof *c);
}
