/* The workspace: every buffer of the CUDA backend besides the weights, as one list of names, sizes and places.
 *
 * cu_workspace_list makes the list from the dimensions alone, without a GPU. cu_workspace_alloc allocates the buffers
 * on the list, and the memory plan adds up the same list: a plan cannot differ from what is allocated. The KV pool is
 * the last buffer: cu_workspace_add_pool gives it the memory that the limit leaves. Buffers start zeroed. The list
 * points into the struct, so a workspace must not move. */
#ifndef CU_WORKSPACE_H
#define CU_WORKSPACE_H

#include "engine/cuda/gpu.h"

extern "C" {
#include "base/mem.h"
}

enum { CU_WORKSPACE_ROWS = 25 };
/* Bytes left free beside weights and workspace, for CUDA graphs, cuBLASLt's own workspace, libraries and the driver. */
enum { CU_RESERVE = 512 << 20 };

struct cu_workspace_row {
    const char *name;
    enum km_mem_kind where;
    size_t bytes;
    void **at; /* the pointer in cu_workspace; NULL until allocated */
};

struct cu_workspace {
    bf16 *x;                             /* [max_tokens][D] residual stream */
    bf16 *h;                             /* [max_tokens][D] normalised rows of x */
    bf16 *qkv, *o, *act;                 /* [max_tokens][(H + 2G) * d], [max_tokens][H * d], [max_tokens][F] */
    bf16 *gu;                            /* [cu_gate_up_rows][2F] */
    bf16 *h_out;                         /* [max_reqs][D] normalised rows to sample */
    float *logits;                       /* [max_reqs][V] */
    float *inv_freq;                     /* [d / 2] */
    float2 *angles;                      /* [max_tokens][d / 2] */
    char *attn_workspace;                /* cu_attn_decode_workspace */
    char *sample_workspace;              /* cu_sample_workspace */
    float *squares;                      /* as in cu_small_m_workspace */
    int32_t *job_counters;               /* as in cu_prefill_plan */
    char *arrays;                        /* the step's arrays; one copy suffices, because cu_fetch waits */
    char *host_arrays;                   /* [2][arrays_bytes], pinned: one for each of the two steps in flight */
    size_t arrays_bytes;                 /* of the largest step */
    int32_t *decoding;                   /* [max_reqs] requests of the step with one query token */
    int32_t *sampled_ids;                /* [max_reqs] ids that the newest step sampled */
    int32_t *sampled_host;               /* [2][max_reqs], pinned: sampled ids of the two steps in flight */
    float *logits_host, *sample_scratch; /* [V] each: a row that the reference sampler samples */
    bf16 *pool;                          /* [n_pages + 1] pages; the last takes the KV of padding rows */
    int n_pages;
    cu_workspace_row rows[CU_WORKSPACE_ROWS];
    int n_rows;
};

/* Most rows whose gate and up are ever in memory: none of those that gate_up_sm90.cu processes. */
int cu_gate_up_rows(const cu_dims &m);
/* Lists all buffers but the pool. */
void cu_workspace_list(struct cu_workspace *ws, const cu_dims &m);
/* Bytes that weights, workspace, pool and reserve may use together. */
int64_t cu_memory_limit(const struct be_opts *o, const cu_gpu *gpu);
/* Adds the pool: o->n_pages, or as many pages as fit. gpu->avail is the free memory with weights and the rest of the
 * workspace allocated. KM_ELIMIT. */
int cu_workspace_add_pool(struct cu_workspace *ws, const cu_dims &m, const struct be_opts *o, size_t weight_bytes,
                          const cu_gpu *gpu, struct km_err *err);
/* Allocates and zeroes the listed buffers that are not allocated yet. KM_EDEVICE, KM_ENOMEM. */
int cu_workspace_alloc(struct cu_workspace *ws, struct km_err *err);
void cu_workspace_free(struct cu_workspace *ws);
/* Bytes on the list in one kind of memory. */
size_t cu_workspace_bytes(const struct cu_workspace *ws, enum km_mem_kind where);

#endif
