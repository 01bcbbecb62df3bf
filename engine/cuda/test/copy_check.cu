/* Checks the copier (copy.h): bytes and checksums in both directions, fences, and the limit of open tickets. The
 * reference is km_page_sum on the host. */
#include "engine/cuda/copy.h"
#include "engine/cuda/test/check.h"

extern "C" {
#include "base/clock.h"
#include "base/page_sum.h"
}

#include <string.h>
#include <thread>

/* A pool of random pages, a copier, and host memory for all pages. */
struct copy_case {
    cu_dims m = {};
    cu_copier c;
    cu_copy_memory mem = {};
    int n_pages;
    size_t page_bytes, page_words;
    uint64_t *pool, *host, *expected; /* [n_pages * page_words]: device, pinned, and the pool's content */
    struct kv_copy pages[KV_COPY_MOST];

    copy_case(int L, int G, int B, int d, int n) : n_pages(n)
    {
        struct km_err err;
        m.L = L, m.G = G, m.B = B, m.d = d, m.page_elems = (size_t)L * 2 * G * B * d;
        page_bytes = m.page_elems * sizeof(bf16), page_words = page_bytes / 8;
        size_t partial = sizeof(cu_copy_sum) * 2 * KV_COPY_MOST;
        CUDA_OK(cudaMalloc(&pool, bytes()));
        CUDA_OK(cudaHostAlloc(&host, bytes(), cudaHostAllocDefault));
        CUDA_OK(cudaMalloc(&mem.partial, partial));
        CUDA_OK(cudaMemset(mem.partial, 0, partial));
        CUDA_OK(cudaHostAlloc(&mem.sums, sizeof(uint64_t) * 2 * CU_COPY_TICKETS * KV_COPY_MOST, cudaHostAllocDefault));
        expected = static_cast<uint64_t *>(malloc(bytes()));
        for (size_t i = 0; i < page_words * (size_t)n_pages; i++)
            expected[i] = km_random_next(&rng_state);
        reset_pool();
        if (cu_copier_open(&c, m, reinterpret_cast<bf16 *>(pool), n_pages, mem, &err))
            report_failure(err.msg);
    }
    ~copy_case()
    {
        CUDA_OK(cudaDeviceSynchronize());
        cu_copier_close(&c);
        cudaFree(pool), cudaFree(mem.partial);
        cudaFreeHost(host), cudaFreeHost(mem.sums);
        free(expected);
    }
    size_t bytes() const
    {
        return page_bytes * (size_t)n_pages;
    }
    void reset_pool()
    {
        CUDA_OK(cudaMemcpy(pool, expected, bytes(), cudaMemcpyHostToDevice));
        CUDA_OK(cudaDeviceSynchronize());
    }
    const uint64_t *page(int p) const
    {
        return expected + (size_t)p * page_words;
    }
    uint64_t *host_page(int p) const
    {
        return host + (size_t)p * page_words;
    }
    uint64_t expected_sum(const struct kv_copy &p, const uint64_t *words) const
    {
        return km_page_sum(words, page_words, (uint32_t)m.d / 4, (uint32_t)m.B, (uint32_t)p.n_tokens, p.seed);
    }
    /* Copy i of n is of a page of its own, in an order that jumps, with contiguous pages among them. */
    void choose_pages(int n)
    {
        for (int i = 0; i < n; i++) {
            int p = (i / 3 * 3 * 7 + i % 3) % n_pages;
            pages[i] = kv_copy{p, 1 + (int)km_random_below(&rng_state, (uint32_t)m.B), host_page(p),
                               km_random_next(&rng_state), 0};
        }
    }
};

static int wait_for(cu_copier *c, uint64_t ticket)
{
    int rc;
    while (!(rc = cu_copy_poll(c, ticket)))
        ;
    return rc;
}

/* Copies n pages to the host, and from there to other pages, which follow them in the pool. */
static void check_round(copy_case &k, int n, comparison *result)
{
    struct km_err err;
    uint64_t ticket;
    k.choose_pages(n);
    memset(k.host, 0x55, k.bytes());
    if (cu_copy_submit(&k.c, KV_TO_HOST, k.pages, n, nullptr, &ticket, &err) || wait_for(&k.c, ticket) != 1)
        report_failure("a copy to the host failed");
    for (int i = 0; i < n; i++) {
        const struct kv_copy &p = k.pages[i];
        result->check(!memcmp(p.host, k.page(p.page), k.page_bytes));
        result->check(p.sum == k.expected_sum(p, k.page(p.page)));
    }
    CUDA_OK(cudaMemset(k.pool, 0xAA, k.bytes()));
    CUDA_OK(cudaDeviceSynchronize());
    uint64_t before[KV_COPY_MOST];
    for (int i = 0; i < n; i++) {
        before[i] = k.pages[i].sum;
        k.pages[i].page = (k.pages[i].page + 1) % k.n_pages;
        k.pages[i].sum = 0;
    }
    if (cu_copy_submit(&k.c, KV_TO_PAGE, k.pages, n, nullptr, &ticket, &err) || wait_for(&k.c, ticket) != 1)
        report_failure("a copy to pages failed");
    uint64_t *back = static_cast<uint64_t *>(malloc(k.page_bytes));
    for (int i = 0; i < n; i++) {
        const struct kv_copy &p = k.pages[i];
        CUDA_OK(cudaMemcpy(back, k.pool + (size_t)p.page * k.page_words, k.page_bytes, cudaMemcpyDeviceToHost));
        result->check(!memcmp(back, p.host, k.page_bytes));
        result->check(p.sum == before[i]);
    }
    free(back);
    k.reset_pool();
}

static void check_shape(int L, int G, int B, int d, int n_pages)
{
    char name[96];
    copy_case k(L, G, B, d, n_pages);
    snprintf(name, sizeof name, "copies, page of %zu bytes, block %d, head_dim %d", k.page_bytes, B, d);
    comparison result(name);
    for (int n : {1, 2, 3, 14, 64, (int)KV_COPY_MOST})
        if (n <= n_pages)
            check_round(k, n, &result);
    /* Words of tokens that are not valid do not count; one bit of a valid word does. */
    k.choose_pages(1);
    struct kv_copy &p = k.pages[0];
    p.n_tokens = B - 1;
    uint64_t *words = k.host_page(p.page), sums[3], ticket;
    struct km_err err;
    size_t invalid = (size_t)(B - 1) * d / 4, valid = k.page_words - 1 - (size_t)d / 4;
    for (int i = 0; i < 3; i++) {
        memcpy(words, k.page(p.page), k.page_bytes);
        words[i == 1 ? invalid : valid] ^= i ? 1u << 7 : 0;
        if (cu_copy_submit(&k.c, KV_TO_PAGE, &p, 1, nullptr, &ticket, &err) || wait_for(&k.c, ticket) != 1)
            report_failure("a copy of one page failed");
        sums[i] = p.sum;
    }
    result.check(sums[0] == sums[1] && sums[0] != sums[2]);
}

/* Runs for some time, then writes to a page. */
static __global__ void slow_write(uint64_t *page, size_t words, long long ns)
{
    long long start, now;
    asm volatile("mov.u64 %0, %globaltimer;" : "=l"(start));
    do
        asm volatile("mov.u64 %0, %globaltimer;" : "=l"(now));
    while (now - start < ns);
    for (size_t i = threadIdx.x; i < words; i += blockDim.x)
        page[i] = ~page[i];
}

/* A kernel that stands for a step writes to page 0 after 30 ms. Copies with its event as fence wait for it, and see
 * what it wrote. Copies without a fence are complete before. No call blocks. */
static void check_fences()
{
    comparison result("copies, fences");
    struct km_err err;
    copy_case k(4, 4, 16, 128, 64);
    cudaStream_t step;
    cudaEvent_t ended;
    CUDA_OK(cudaStreamCreateWithFlags(&step, cudaStreamNonBlocking));
    CUDA_OK(cudaEventCreateWithFlags(&ended, cudaEventDisableTiming));
    for (enum kv_dir dir : {KV_TO_HOST, KV_TO_PAGE}) {
        enum kv_dir other = dir == KV_TO_HOST ? KV_TO_PAGE : KV_TO_HOST;
        struct kv_copy fenced = {0, k.m.B, k.host_page(0), 3, 0}, free_one = {1, k.m.B, k.host_page(1), 5, 0};
        uint64_t a, b;
        memcpy(k.host_page(0), k.page(2), k.page_bytes);
        memcpy(k.host_page(1), k.page(1), k.page_bytes);
        slow_write<<<1, 256, 0, step>>>(k.pool, k.page_words, 30000000);
        CUDA_OK(cudaEventRecord(ended, step));
        int64_t t0 = km_now_ns();
        result.check(!cu_copy_submit(&k.c, dir, &fenced, 1, ended, &a, &err));
        result.check(!cu_copy_submit(&k.c, other, &free_one, 1, nullptr, &b, &err));
        result.check(wait_for(&k.c, b) == 1);
        result.check(cudaEventQuery(ended) == cudaErrorNotReady && cu_copy_poll(&k.c, a) == 0);
        result.check(km_now_ns() - t0 < 25000000);
        result.check(wait_for(&k.c, a) == 1 && cudaEventQuery(ended) == cudaSuccess);
        CUDA_OK(cudaStreamSynchronize(step));
        uint64_t *got = k.host_page(0);
        if (dir == KV_TO_PAGE) /* the copy's bytes, not the kernel's */
            CUDA_OK(cudaMemcpy(got, k.pool, k.page_bytes, cudaMemcpyDeviceToHost));
        const uint64_t *want = k.page(dir == KV_TO_HOST ? 0 : 2), flip = dir == KV_TO_HOST ? ~(uint64_t)0 : 0;
        bool same = true;
        for (size_t i = 0; i < k.page_words; i++)
            same = same && got[i] == (want[i] ^ flip);
        result.check(same && fenced.sum == k.expected_sum(fenced, got));
        k.reset_pool();
    }
    cudaEventDestroy(ended);
    cudaStreamDestroy(step);
}

/* Fills all tickets of one direction behind a fence, in a thread of its own, and polls them in another order. */
static void check_tickets()
{
    comparison result("copies, tickets");
    copy_case k(2, 2, 16, 64, 64);
    static struct kv_copy p[CU_COPY_TICKETS + 1];
    static uint64_t ticket[CU_COPY_TICKETS + 1];
    cudaStream_t step;
    cudaEvent_t ended;
    CUDA_OK(cudaStreamCreateWithFlags(&step, cudaStreamNonBlocking));
    CUDA_OK(cudaEventCreateWithFlags(&ended, cudaEventDisableTiming));
    slow_write<<<1, 32, 0, step>>>(k.pool, 0, 20000000);
    CUDA_OK(cudaEventRecord(ended, step));
    std::thread([&] {
        struct km_err err;
        for (int i = 0; i <= CU_COPY_TICKETS; i++) {
            p[i] = kv_copy{i % k.n_pages, k.m.B, k.host_page(i % k.n_pages), (uint64_t)i, 0};
            int rc = cu_copy_submit(&k.c, KV_TO_HOST, &p[i], 1, ended, &ticket[i], &err);
            result.check(rc == (i < CU_COPY_TICKETS ? 0 : KM_ELIMIT));
        }
        for (int i = 0, at = 0; i < CU_COPY_TICKETS; i++, at = (at + 37) % CU_COPY_TICKETS) {
            result.check(wait_for(&k.c, ticket[at]) == 1);
            result.check(p[at].sum == k.expected_sum(p[at], k.page(p[at].page)));
            result.check(cu_copy_poll(&k.c, ticket[at]) < 0); /* the ticket is finished */
        }
        result.check(!cu_copy_submit(&k.c, KV_TO_HOST, &p[0], 1, nullptr, &ticket[0], &err) &&
                     wait_for(&k.c, ticket[0]) == 1);
    }).join();
    CUDA_OK(cudaStreamSynchronize(step));
    cudaEventDestroy(ended);
    cudaStreamDestroy(step);
}

static void check_refusals()
{
    comparison result("copies, refusals");
    copy_case k(2, 2, 16, 64, 8);
    struct km_err err;
    uint64_t ticket;
    const struct kv_copy wrong[] = {
        {-1, 1, k.host, 0, 0}, {8, 1, k.host, 0, 0}, {0, 0, k.host, 0, 0}, {0, 17, k.host, 0, 0}};
    for (struct kv_copy p : wrong)
        result.check(cu_copy_submit(&k.c, KV_TO_HOST, &p, 1, nullptr, &ticket, &err) == KM_EINVAL);
    k.choose_pages(8);
    for (int n : {0, KV_COPY_MOST + 1})
        result.check(cu_copy_submit(&k.c, KV_TO_HOST, k.pages, n, nullptr, &ticket, &err) == KM_EINVAL);
    result.check(cu_host_register(nullptr, 4096, &err) < 0);
    result.check(cudaGetLastError() == cudaSuccess);
}

/* Copies pages that lie across the boundaries of registrations, and next to them. */
static void check_registration()
{
    comparison result("copies, registration");
    copy_case k(3, 8, 16, 128, 200);
    struct km_err err;
    size_t size = (k.bytes() + 4095) / 4096 * 4096;
    uint64_t *own = k.host;
    k.host = static_cast<uint64_t *>(aligned_alloc(4096, size)); /* 37.5 MiB: at least one boundary */
    for (int i = 0; i < 2; i++)
        result.check(!cu_host_register(k.host, size, &err));
    check_round(k, 200, &result);
    cu_host_unregister(k.host, size);
    check_round(k, 200, &result); /* works without registration, too */
    free(k.host);
    k.host = own;
}

void check_copies(bool small)
{
    check_shape(1, 1, 8, 32, 8);
    check_shape(3, 5, 32, 64, 16);
    check_tickets();
    if (small) /* compute-sanitizer is too slow for the fences, and would report the refusals */
        return;
    check_shape(2, 2, 16, 32, 300);
    check_shape(36, 8, 16, 128, 64);
    check_shape(28, 8, 16, 128, 256);
    check_fences();
    check_registration();
    check_refusals();
}
