/* The copier: copies of pages between the KV pool and host memory, with a checksum of each page computed on the GPU.
 *
 * Each direction has two streams: one for the copies and one for the checksums (base/page_sum.h). The checksums of one
 * call are therefore computed while the copy engine works on another call. A load (H2D) is checked after its copy, and
 * a store (D2H) before it. A call is one batch of copies and one kernel, and has a ticket. Up to CU_COPY_TICKETS
 * tickets of one direction can be open.
 *
 * Nothing here blocks, except after a CUDA call has failed. One thread may use the copier while another thread submits
 * steps: the copier shares only CUDA events with the steps. */
#ifndef CU_COPY_H
#define CU_COPY_H

#include "engine/cuda/cu.h"

enum { CU_COPY_TICKETS = 128 }; /* most open tickets of one direction */

/* The sum of one page, to which the blocks of the kernel add. All members are 0 between kernels. */
struct cu_copy_sum {
    unsigned long long sum; /* of the terms so far */
    unsigned n_tiles;       /* tiles of the page that were added */
};

/* Memory of the copier, allocated by the workspace. */
struct cu_copy_memory {
    cu_copy_sum *partial; /* device [2][KV_COPY_MOST], by direction; zeroed */
    uint64_t *sums;       /* pinned [2][CU_COPY_TICKETS][KV_COPY_MOST] checksums, by direction and ticket */
};

/* A call of cu_copy_submit. Its ticket t uses slot[t / 2 % CU_COPY_TICKETS] of direction t % 2. */
struct cu_copy_call {
    struct kv_copy *pages; /* [n], the caller's; NULL: the slot is free */
    int n;
    uint64_t ticket;
    cudaEvent_t half, done; /* half: the first of copies and checksums is complete; done: both are */
};

/* The copies of one direction. */
struct cu_copy_lane {
    cudaStream_t copy_stream, sum_stream;
    uint64_t n_calls; /* submitted so far */
    cu_copy_call call[CU_COPY_TICKETS];
};

struct cu_copier {
    bf16 *pool;
    int n_pages, block_size;
    size_t page_bytes;
    int token_shift; /* binary logarithm of the 16-byte pieces of a token's row of head_dim elements */
    cu_copy_memory mem;
    cu_copy_lane lane[2]; /* by enum kv_dir */
};

/* Opens the copier of a pool of n_pages pages. After a failure, cu_copier_close must be called, too. */
int cu_copier_open(cu_copier *c, const cu_dims &m, bf16 *pool, int n_pages, const cu_copy_memory &mem,
                   struct km_err *err);
void cu_copier_close(cu_copier *c); /* no copy is running */

/* `copy` and `poll` of struct kv_copier. fence: an event that the copies wait for, recorded after the step that the
 * fence of kv_copier.copy names; NULL: none. */
int cu_copy_submit(cu_copier *c, enum kv_dir dir, struct kv_copy *pages, int n, cudaEvent_t fence, uint64_t *ticket,
                   struct km_err *err);
int cu_copy_poll(cu_copier *c, uint64_t ticket);

/* `host_register` and `host_unregister` of struct kv_copier. Memory that is registered already is a success.
 * Registration takes about 60 ms per GiB, and delays steps of other threads by at most about 1 ms at a time. */
int cu_host_register(void *p, size_t size, struct km_err *err);
void cu_host_unregister(void *p, size_t size);

#endif
