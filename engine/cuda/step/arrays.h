/* The arrays of one step: everything that its kernels read besides weights and activations.
 *
 * The host fills the arrays in pinned memory. The step's first kernel (cu_fetch, step/fused.h) copies them to device
 * memory, where they have the same layout. The arrays are contiguous and sized for their step, so that few bytes cross
 * the bus. The block table is the last array, because its length varies between steps that replay one CUDA graph. */
#ifndef CU_STEP_ARRAYS_H
#define CU_STEP_ARRAYS_H

#include "engine/cuda/cu.h"

enum { CU_MAX_BANNED = 8 }; /* most banned ids of a row that the kernels can sample */

/* A KV split: a range of one decoding request's KV, read by one thread block per KV head. */
struct alignas(16) cu_split {
    int32_t req;             /* index of the request in the step; -1: the split is unused */
    int32_t row, len;        /* query row of the request; tokens of its KV, this step's token included */
    int32_t table_start;     /* of the request, as in cu_step_arrays */
    int32_t begin, end;      /* the split is tokens [begin, end) of the request's KV */
    int32_t first, n_splits; /* index of the request's first split; number of its splits */
};

/* A tail (attn/attn.h). A thread block finds the tail of its job by one load: the tail has an entry for each split of
 * each of its tiles. An entry for the merging kernel says in addition which tile it is for. */
struct alignas(16) cu_tail {
    int32_t row, rows;         /* first query row in the step; number of rows */
    int32_t old;               /* tokens of the request that earlier steps computed */
    int32_t table_start;       /* of the request, as in cu_step_arrays */
    int32_t n_tiles, n_splits; /* tiles of the rows; splits of the keys of each tile */
    int32_t first, tile;       /* index of the tail's first entry; tile to merge */
};

/* Sampling parameters of one row: smp_params in the form that the kernels use. */
struct cu_sampling {
    uint64_t key; /* smp_key of the row */
    float scale;  /* divisor of the logits: the temperature, or 1 for a greedy row */
    float min_p, top_p;
    int32_t top_k;
    bool greedy, filtered; /* filtered: top_k, top_p or min_p is in use */
};

/* Counts that the launches of a step need. */
struct cu_step_counts {
    int n_decodes, n_splits; /* requests with one query token; splits of their KV */
    int n_tiles;             /* tiles of query rows of prefill attention, tails not counted */
    int n_tail_splits;       /* splits of all tiles of all tails */
    int n_tail_merges;       /* tiles that have several splits */
};

/* Pointers to the arrays of a step, on the host or on the device. The counts are those of cu_step_counts. */
struct cu_step_arrays {
    int32_t *bytes;                      /* [1] bytes of all arrays, up to the end of the block table */
    int32_t *tokens, *positions, *slots; /* [T] */
    int32_t *q_start;                    /* [R + 1] */
    int32_t *kv_len;                     /* [R] */
    int32_t *table_start;                /* [R] first entry of the request in table */
    int32_t *table;                      /* block table: the page ids of the first request, then of the second, ... */
    int32_t *tile_req, *tile_row;        /* [n_tiles] prefill attention: request; first row among its query rows */
    struct cu_split *splits;             /* [n_splits] decode attention: splits of the requests with one query token */
    struct cu_tail *tails;               /* [n_tail_splits] entries for splits, [n_tail_merges] entries for merging */
    int32_t *sample_row;                 /* [S] index of the row whose logits are sampled */
    struct cu_sampling *sampling;        /* [S] */
    int32_t *ban_start;                  /* [S + 1] row i has ban[ban_start[i]] .. ban[ban_start[i + 1] - 1] */
    int32_t *ban;                        /* ids that may not be sampled */
};

/* Sets the pointers for a step of T tokens of R requests whose arrays start at `base`. Returns the offset of the block
 * table, which is the size of all other arrays, in bytes. */
size_t cu_step_layout(const cu_dims &m, int T, int R, char *base, cu_step_arrays *out);
size_t cu_step_bytes(const cu_dims &m); /* bytes of the largest step's arrays */

/* Fills the host arrays of a step. scratch: [max_reqs]. */
void cu_step_fill(const cu_dims &m, const struct batch *in, const cu_step_arrays &host, int32_t *scratch,
                  cu_step_counts *n);
/* Initialises the host arrays of a step without requests, for cu_step_pad. */
void cu_step_clear(const cu_step_arrays &host);
/* Pads a step of n_decodes requests and n_splits splits to the size of a CUDA graph of `reqs` requests. Padding rows
 * store their KV in spare_page, which no request reads. */
void cu_step_pad(const cu_dims &m, const cu_step_arrays &host, int n_decodes, int n_splits, int reqs, int spare_page);

#endif
