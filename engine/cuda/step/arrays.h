/* The arrays of one step: what its kernels read besides weights and activations, all in one allocation.
 *
 * The host fills the arrays in pinned memory. The step's first kernel (cu_fetch, step/fused.h) copies them to the
 * device, where they lie in the same order from another base address. The arrays lie back to back, sized for their
 * step, so that few bytes cross the bus. The block table comes last because its length varies within a CUDA graph. */
#ifndef CU_STEP_ARRAYS_H
#define CU_STEP_ARRAYS_H

#include "engine/cuda/cu.h"

enum { CU_MAX_BANNED = 8 }; /* most banned ids of a row that the device samples */

/* A KV split: a range of one decoding request's KV, read by one thread block per KV head. */
struct alignas(16) cu_split {
    int32_t req;             /* index of the request in the step; -1: unused */
    int32_t row, len;        /* the request's query row; tokens of its KV, this step's token included */
    int32_t table_start;     /* as in cu_step_arrays */
    int32_t begin, end;      /* tokens of this split */
    int32_t first, n_splits; /* the request's splits have the indices first .. first + n_splits */
};

/* Sampling parameters of one row: smp_params in the form that the kernels use. */
struct cu_sampling {
    uint64_t key; /* smp_key of the row */
    float scale;  /* logits are divided by it: the temperature, or 1 for a greedy row */
    float min_p, top_p;
    int32_t top_k;
    bool greedy, filtered; /* filtered: top_k, top_p or min_p excludes some ids */
};

struct cu_step_arrays {
    int32_t *bytes;                      /* [1] bytes of all arrays, up to the end of table */
    int32_t *tokens, *positions, *slots; /* [T] */
    int32_t *q_start;                    /* [R + 1] */
    int32_t *kv_len;                     /* [R] */
    int32_t *table_start;                /* [R] first entry of the request in table */
    int32_t *table;                      /* block table, ragged: page ids of one request after another */
    int32_t *tile_req, *tile_row;        /* [n_tiles] prefill attention: request, and first query row within it */
    struct cu_split *splits;             /* [n_splits] decode attention: the requests with one query token */
    int32_t *sample_row;                 /* [S] the step's row whose logits are sampled */
    struct cu_sampling *sampling;        /* [S] */
    int32_t *ban_start;                  /* [S + 1] into ban */
    int32_t *ban;                        /* ids that may not be sampled */
};

/* Sets the pointers for a step of T tokens of R requests whose arrays begin at base. Returns the offset of the block
 * table in bytes, which is the size of all other arrays. */
size_t cu_step_carve(const cu_dims &m, int T, int R, char *base, cu_step_arrays *out);
size_t cu_step_bytes(const cu_dims &m); /* of the largest step's arrays */

/* Numbers of a step, counted while its arrays are filled. */
struct cu_step_counts {
    int n_decodes, n_splits, n_tiles; /* requests with one query token; splits of their KV; tiles of all others */
};
/* Fills host arrays that cu_step_carve has placed. decoding: scratch memory for [max_reqs] indices. */
void cu_step_fill(const cu_dims &m, const struct batch *in, const cu_step_arrays &host, int32_t *decoding,
                  cu_step_counts *n);
/* Fills host arrays for a step without requests. */
void cu_step_clear(const cu_step_arrays &host);
/* Pads a step of n decoding requests and n_splits splits up to `reqs` requests, as a CUDA graph has them. Padding rows
 * store their KV into spare_page, which no request reads. */
void cu_step_pad(const cu_dims &m, const cu_step_arrays &host, int n, int n_splits, int reqs, int spare_page);

#endif
