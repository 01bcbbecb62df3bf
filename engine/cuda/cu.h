/* Inside the CUDA backend: shapes, device tables, and the launchers of each kernel family.
 *
 * C++ stops at templates over head_dim; no containers, no exceptions. Launchers enqueue on a stream and return
 * nothing: launch errors are sticky and are collected once per step. Letters as in engine/model.h. */
#ifndef CU_H
#define CU_H

extern "C" {
#include "base/err.h"
#include "engine/backend.h"
}

#include <cuda_bf16.h>
#include <cuda_runtime.h>
#include <stdint.h>

typedef __nv_bfloat16 bf16;

struct cu_dims {
    int L, D, H, G, d, F, V;
    int B, B_log2; /* tokens of a page, a power of two */
    float eps;
    int max_tokens, max_reqs; /* of a step */
    int max_blocks;           /* of a request */
    int n_sms, arch;          /* 80, 86, 89, 90 ... */
    size_t page_elems;        /* L * 2 * G * B * d */
};

/* What of a card the engine depends on. */
struct cu_gpu {
    char name[64];
    int arch, n_sms;
    size_t total, avail; /* bytes; avail: free for more than what is held already */
};

/* A stretch of one decoding request's KV, for one block a kv head, with what the block must know of the request. */
struct alignas(16) cu_split {
    int32_t req;          /* -1: none */
    int32_t row, len;     /* its query row, all of its tokens */
    int32_t table;        /* where its pages begin in the table */
    int32_t begin, end;   /* tokens */
    int32_t first, parts; /* the request's items are first .. first + parts */
};

/* How a row is sampled: smp_params as the kernels want it. */
struct cu_sampling {
    uint64_t key;
    float scale; /* logits are divided by it */
    float min_p, top_p;
    int32_t top_k;
    bool greedy, filtered;
};

/* The step's arrays, all inside one allocation, the same on the card and in pinned memory (cu_fetch). */
struct cu_step_arrays {
    int32_t *bytes;                      /* [1] of all of them, up to the end of table */
    int32_t *tokens, *positions, *slots; /* [T] */
    int32_t *q_start;                    /* [R + 1] */
    int32_t *kv_len;                     /* [R] */
    int32_t *table_start;                /* [R] first entry of the request in table */
    int32_t *table;                      /* ragged: page ids */
    int32_t *tile_req, *tile_row;        /* [n_tiles] prefill attention: request, and first query row within it */
    struct cu_split *items;               /* decode attention: the requests with one query token */
    int32_t *sample_row;                 /* [S] */
    struct cu_sampling *draws;               /* [S] */
    int32_t *ban_start;                  /* [S + 1] into ban */
    int32_t *ban;                        /* ids that may not come */
};

/* Converts a CUDA failure to the library's error rule. */
static inline int cu_fail(struct km_err *err, cudaError_t rc, const char *what)
{
    return km_fail(err, KM_EDEVICE, "%.80s failed: %s", what, cudaGetErrorString(rc));
}
#define CU_TRY(call)                                                                                               \
    do {                                                                                                           \
        cudaError_t cu_rc_ = (call);                                                                               \
        if (cu_rc_ != cudaSuccess)                                                                                 \
            return cu_fail(err, cu_rc_, #call);                                                                    \
    } while (0)

/* probe.cu: the first card, looked at in this process (avail stays 0: asking would make a context), or asked in a
 * child, which leaves this process free to fork. KM_EDEVICE: none that the engine can use. */
int cu_gpu_get(struct cu_gpu *out, struct km_err *err);
int cu_gpu_query(struct cu_gpu *out, struct km_err *err);

/* plan.cu: shapes from options and model; KM_EINVAL for what has no kernel. The pool's shape. The backend's verb. */
int cu_dims_make(cu_dims *out, const struct be_opts *o, const struct mdl *m, const cu_gpu *card, struct km_err *err);
struct kv_geom cu_geom(const cu_dims &m, const struct mdl *mdl, int n_pages);
int cu_plan(struct plan *out, const struct be_opts *o, const struct mdl *m, struct km_err *err);

/* Launches with programmatic dependent launch allowed: the kernel may start while the one before it drains, and
 * must call griddep_wait (ptx.cuh) before it touches anything another kernel writes. */
template <typename... P, typename... A>
static inline void cu_launch(void (*kernel)(P...), dim3 grid, unsigned block, size_t smem, cudaStream_t s,
                             A... args)
{
    cudaLaunchAttribute pdl = {};
    pdl.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    pdl.val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t cfg = {};
    cfg.gridDim = grid;
    cfg.blockDim = dim3(block);
    cfg.dynamicSmemBytes = smem;
    cfg.stream = s;
    cfg.attrs = &pdl;
    cfg.numAttrs = 1;
    cudaLaunchKernelEx(&cfg, kernel, static_cast<P>(args)...);
}

/* fused.cu: everything between the GEMMs. */
/* The step's arrays from pinned memory to the card: as many bytes as the first of them says, `fixed` at least. Waits
 * for whatever reads those of the step before; kernels behind cu_embed may read them without waiting. */
void cu_fetch(const char *host, size_t fixed, char *dev, cudaStream_t s);
/* x[T][D]; a token of -(k + 1) is chosen[k], or 0 where that is negative. angles[T][d / 2]: cosine and sine. */
void cu_embed(const cu_dims &m, const bf16 *embed, const float *inv_freq, const cu_step_arrays &meta, const int32_t *chosen,
              int T, bf16 *x, float2 *angles, cudaStream_t s);
/* out[T][D] = rmsnorm(x) * w; rows: NULL, or gather x[rows[i]] */
void cu_rmsnorm(const cu_dims &m, const bf16 *x, const bf16 *w, const int32_t *rows, int T, bf16 *out,
                cudaStream_t s);
/* In qkv[T][(H + 2G) * d]: q and k normalised per head and rotated; k and v written to their pages of `layer`. */
void cu_qk_rope_store(const cu_dims &m, bf16 *qkv, const bf16 *q_norm, const bf16 *k_norm, const float2 *angles,
                      const cu_step_arrays &meta, int T, int layer, bf16 *pool, cudaStream_t s);
/* act[T][F] = silu(gate) * up from gu[T][2F], gate first. */
void cu_swiglu(const cu_dims &m, const bf16 *gu, int T, bf16 *act, cudaStream_t s);

/* attn_prefill.cu (mma.sync, sm_80 and up) and attn_prefill_sm90.cu (wgmma, TMA): o[T][H * d] of the rows in tiles. */
enum { CU_TILE_Q = 128 };
void cu_attn_prefill(const cu_dims &m, const bf16 *qkv, const cu_step_arrays &meta, int n_tiles, int layer,
                     const bf16 *pool, bf16 *o, cudaStream_t s);
bool cu_attn_prefill_sm90_usable(const cu_dims &m);
/* What the Hopper kernel is told once: the KV pool and qkv [max_tokens][(H + 2G) * d] for the copy engine, and
 * handed [2] on the card, zero before the first launch. */
struct cu_prefill_plan {
    alignas(64) char pool[128], queries[128];
    int *handed;
};
int cu_attn_prefill_sm90_plan(cu_prefill_plan *p, const cu_dims &m, const bf16 *pool, int n_pages, const bf16 *qkv,
                              int max_tokens, int *handed, struct km_err *err);
void cu_attn_prefill_sm90(const cu_dims &m, const cu_prefill_plan &p, const cu_step_arrays &meta, int n_tiles, int layer,
                          bf16 *o, cudaStream_t s);

/* attn_decode.cu: requests with one query token, their KV cut into items. */
int cu_attn_splits_max(const cu_dims &m, int reqs); /* most items of so many requests */
/* Items of the n requests reqs[] of a step whose arrays h are filled, on the host; returns their number. */
int cu_attn_splits(const cu_dims &m, const cu_step_arrays &h, const int32_t *reqs, int n, struct cu_split *out);
size_t cu_attn_decode_work(const cu_dims &m); /* bytes, zeroed once by the caller */
void cu_attn_decode(const cu_dims &m, const bf16 *qkv, const cu_step_arrays &meta, int n_splits, int layer,
                    const bf16 *pool, bf16 *o, void *work, cudaStream_t s);

/* skinny.cu: y[M][N] (+)= h[M][K] w[N][K]^T for M <= CU_SMALL_M, at the speed of reading w. h is x, or rmsnorm(x)
 * * norm where a norm is given. */
enum { CU_SMALL_M = 16 };
void cu_small_m(const bf16 *x, const bf16 *w, int M, int N, int K, bool add, bf16 *y, cudaStream_t s);
void cu_small_m_norm(const bf16 *x, const bf16 *norm, float eps, const bf16 *w, int M, int N, int K, bf16 *y,
                    cudaStream_t s);
/* act[M][F] = silu(gate) * up of w_gate_up [2F][K], gate first. */
void cu_small_m_swiglu(const bf16 *x, const bf16 *norm, float eps, const bf16 *w_gate_up, int M, int F, int K,
                      bf16 *act, cudaStream_t s);
void cu_small_m_logits(const bf16 *x, const bf16 *w, int M, int N, int K, float *y, cudaStream_t s);

/* gemm.cu: the same for any M, by cuBLASLt, the algorithm timed once a shape bucket. */
struct cu_lt;
enum { CU_LT_WORKSPACE = 32 << 20 }; /* bytes on the card, from open to close */
int cu_lt_open(struct cu_lt **out, struct km_err *err);
void cu_lt_close(struct cu_lt *g);
int cu_lt_bucket(int M); /* the largest M whose algorithm is also M's */
/* y is bf16, or f32 when y_f32; add: y += */
int cu_lt_gemm(struct cu_lt *g, const bf16 *x, const bf16 *w, int M, int N, int K, bool add, void *y, bool y_f32,
            cudaStream_t s, struct km_err *err);

/* tensor_map.cu: a bf16 tensor of 1 to 5 dimensions, innermost first and contiguous, as Hopper's copy engine is told of
 * it: dims in elements, strides of the others in bytes (multiples of 16), boxes of at most 64 elements by at most 256 in
 * the 128-byte swizzle; what lies outside reads as zero. KM_EDEVICE. */
int cu_tensor_map(void *map128, const bf16 *base, int rank, const uint64_t *dims,
                  const uint64_t *strides_bytes /* [rank - 1] */, const uint32_t *box /* [rank] */, struct km_err *err);

/* ffn_sm90.cu: act[M][F] = silu(gate) * up of h[M][D] w_gate_up[2F][D]^T, gate first, in one kernel; from CU_GATE_UP_SM90_MIN rows
 * on faster than cu_lt_gemm and cu_swiglu. A plan names h[max_tokens] and a layer's weights and borrows both; made once. */
enum { CU_GATE_UP_SM90_MIN = 512 };
struct cu_gate_up_plan {
    char h_map[128], w_map[128];
};
bool cu_gate_up_sm90_usable(const cu_dims &m); /* of the shape and the card's generation alone */
int cu_gate_up_sm90_plan(struct cu_gate_up_plan *out, const cu_dims &m, const bf16 *h, const bf16 *w_gate_up,
                     struct km_err *err);
void cu_gate_up_sm90(const cu_dims &m, const struct cu_gate_up_plan &p, int M, bf16 *act, cudaStream_t s);

/* sample.cu: the id each row of logits [S][V] gives, in out[S] on the card and in told[S] in pinned memory; -1: the
 * reference sampler must choose. */
size_t cu_sample_work(int rows); /* bytes, zeroed once by the caller */
void cu_sample(const float *logits, int S, int V, const cu_step_arrays &meta, int max_rows, void *work, int32_t *out,
               int32_t *told, cudaStream_t s);

#endif
