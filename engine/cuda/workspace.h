/* What the CUDA backend holds beside the weights: one list of names, sizes and places.
 *
 * cu_workspace_list makes the list of the shapes alone, without a card; cu_workspace_alloc allocates what is on it and a plan
 * only adds it up, so that a plan cannot differ from what is taken. The KV pool is the last entry: cu_workspace_add_pool gives
 * it what the limit leaves. A room is zeroed before its first use, and does not move: the list points into it. */
#ifndef CU_WORKSPACE_H
#define CU_WORKSPACE_H

#include "engine/cuda/cu.h"

extern "C" {
#include "base/mem.h"
}

enum { CU_GRAPH_REQS = 256, CU_MAX_BANNED = 8, CU_WORKSPACE_ROWS = 25 };
enum { CU_RESERVE = 512 << 20 }; /* left free beside weights and list: graphs, cuBLAS and its workspace, the driver */

struct cu_workspace_row {
    const char *name;
    enum km_mem_kind where;
    size_t bytes;
    void **at; /* the member of cu_workspace that points to it; NULL until taken */
};

struct cu_workspace {
    bf16 *x, *h, *qkv, *o, *act; /* [T = max_tokens][...] */
    bf16 *gu;                    /* [cu_gate_up_rows][2F] */
    bf16 *h_out;                 /* [max_reqs][D] */
    float *logits;               /* [max_reqs][V] */
    float *inv_freq;             /* [d / 2] */
    float2 *angles;              /* [T][d / 2] */
    char *attn_work, *pick_work;
    float *sums;     /* [D / 64][CU_SMALL_M_SM90] squares of the residual stream's rows, by tiles */
    int32_t *handed; /* [2] jobs of prefill attention taken, blocks that found none: zero between launches */
    char *arrays;                 /* a step's, on the card: one place for two steps in flight, since cu_fetch waits */
    char *host_arrays;            /* [2][arrays_bytes], pinned: one is filled while the other may still be read */
    size_t arrays_bytes;          /* of the largest step */
    int32_t *decoding;            /* [max_reqs] requests of the step with one query token */
    int32_t *chosen;              /* [max_reqs] the ids that the last step chose */
    int32_t *picks;               /* [2][max_reqs], pinned: the same, for two steps in flight */
    float *logits_host, *scratch; /* one row each, for rows that the reference sampler takes */
    bf16 *pool;                   /* [n_pages + 1]: the last page takes the surplus rows of padded batches */
    int n_pages;
    cu_workspace_row rows[CU_WORKSPACE_ROWS];
    int n_rows;
};

/* Most rows whose gate and up are ever in memory: Hopper's feed-forward kernel (cu.h) leaves few. */
int cu_gate_up_rows(const cu_dims &m);
/* Everything but the pool. m needs max_tokens, max_reqs and max_blocks too. */
void cu_workspace_list(struct cu_workspace *r, const cu_dims &m);
/* Bytes that weights, list, pool and reserve may take together. */
int64_t cu_memory_limit(const struct be_opts *o, const cu_gpu *card);
/* Adds the pool: o->n_pages, or as many as the limit and the card, with the rest in place, leave. KM_ELIMIT. */
int cu_workspace_add_pool(struct cu_workspace *r, const cu_dims &m, const struct be_opts *o, size_t weight_bytes,
                 const cu_gpu *card, struct km_err *err);
/* Where the arrays of a step of T tokens of R requests lie from base on, back to back, so that few bytes travel; returns
 * where the table, the last of them, begins. */
size_t cu_step_carve(const cu_dims &m, int T, int R, char *base, cu_step_arrays *out);
/* Allocates, zeroed, what is listed and not yet there. KM_EDEVICE, KM_ENOMEM. */
int cu_workspace_alloc(struct cu_workspace *r, struct km_err *err);
void cu_workspace_free(struct cu_workspace *r);
/* Bytes on the list that lie in one kind of memory. */
size_t cu_workspace_bytes(const struct cu_workspace *r, enum km_mem_kind where);

#endif
