/* The workspace: every buffer of the CUDA backend except the weights, as one list of names, kinds of memory and sizes.
 *
 * cu_workspace_list makes the list from the dimensions alone, without a GPU. cu_workspace_alloc allocates the buffers
 * on the list, and the memory plan adds up the same list, so a plan cannot differ from what is allocated. The KV pool
 * is the last buffer. cu_workspace_add_pool sizes it by the memory that the limit leaves. All buffers start zeroed. The
 * list points into the struct, so a workspace must not move. */
#ifndef CU_WORKSPACE_H
#define CU_WORKSPACE_H

#include "engine/cuda/copy.h"
#include "engine/cuda/gpu.h"

extern "C" {
#include "base/mem.h"
}

enum { CU_WORKSPACE_BUFFERS = 25 };
/* Bytes that neither weights nor workspace may use. They are for CUDA graphs, cuBLASLt's workspace, libraries and
 * the driver. */
enum { CU_RESERVE = 512 << 20 };

struct cu_workspace_buffer {
    const char *name; /* as the memory plan prints it */
    enum km_mem_kind kind;
    size_t bytes;
    void **pointer; /* the member of cu_workspace that points to the buffer; *pointer is NULL until allocated */
};

struct cu_workspace {
    bf16 *x;                             /* [max_tokens][D] residual stream */
    bf16 *h;                             /* [max_tokens][D] rows of x after RMSNorm */
    bf16 *qkv, *o, *act;                 /* [max_tokens] rows of (H + 2G) * d, H * d and F elements */
    bf16 *gu;                            /* [cu_gate_up_rows][2F] gate and up, before SwiGLU */
    bf16 *h_out;                         /* [max_reqs][D] rows to sample, after the last RMSNorm */
    float *logits;                       /* [max_reqs][V] */
    float *inv_freq;                     /* [d / 2] rotary frequencies */
    float2 *angles;                      /* [max_tokens][d / 2] cosine and sine of the rotary angles */
    char *attn_workspace;                /* cu_attn_decode_workspace bytes */
    char *tail_workspace;                /* cu_attn_tail_workspace bytes */
    char *sample_workspace;              /* cu_sample_workspace bytes */
    float *squares;                      /* as in cu_small_m_workspace */
    int32_t *job_counters;               /* [2] as in cu_prefill_plan */
    char *arrays;                        /* the arrays of the step that runs; cu_fetch waits for the previous step */
    char *host_arrays;                   /* pinned [2][arrays_bytes], one for each of the two steps in flight */
    size_t arrays_bytes;                 /* bytes of the largest step's arrays */
    int32_t *requests;                   /* [max_reqs] scratch memory of cu_step_fill */
    int32_t *sampled_ids;                /* [max_reqs] ids that the last step sampled */
    int32_t *sampled_host;               /* pinned [2][max_reqs], sampled ids of the two steps in flight */
    float *logits_host, *sample_scratch; /* [V] each, for a row that the reference sampler samples */
    struct cu_copy_memory copy;          /* the copier's */
    bf16 *pool;                          /* [n_pages + 1] pages; padding rows store their KV in the last page */
    int n_pages;
    cu_workspace_buffer buffers[CU_WORKSPACE_BUFFERS]; /* [n_buffers] */
    int n_buffers;
};

/* Rows of the buffer gu: the most rows of a step that stores gate and up. Steps whose gate and up GEMM runs in
 * gate_up_sm90.cu do not store them. */
int cu_gate_up_rows(const cu_dims &m);
/* Lists all buffers but the pool. */
void cu_workspace_list(struct cu_workspace *ws, const cu_dims &m);
/* Bytes that weights, workspace, pool and reserve may use together. */
int64_t cu_memory_limit(const struct be_opts *o, const cu_gpu *gpu);
/* Adds the KV pool to the list: o->n_pages pages, or as many as fit. gpu->avail must be the free memory once weights
 * and all other buffers are allocated. KM_ELIMIT. */
int cu_workspace_add_pool(struct cu_workspace *ws, const cu_dims &m, const struct be_opts *o, size_t weight_bytes,
                          const cu_gpu *gpu, struct km_err *err);
/* Allocates and zeroes the listed buffers that are not allocated yet. KM_EDEVICE, KM_ENOMEM. */
int cu_workspace_alloc(struct cu_workspace *ws, struct km_err *err);
void cu_workspace_free(struct cu_workspace *ws);
/* Bytes of all listed buffers in one kind of memory. */
size_t cu_workspace_bytes(const struct cu_workspace *ws, enum km_mem_kind kind);

#endif
