/* Loads weights to the GPU. Dummy weights are computed on the GPU by the recipe of engine/dummy.h, which takes a
 * fraction of a second for an 8B model. Files are read and converted in blocks of rows, through two pinned buffers: one
 * is filled while the other is copied. */
#include "engine/cuda/weights.h"

extern "C" {
#include "base/mem.h"
#include "engine/dummy.h"
}

namespace {

const size_t ALIGN = 256, STAGE = 64u << 20; /* bytes: of an allocation's start; of a staging buffer */

__global__ void dummy_kernel(bf16 *dst, size_t n, uint64_t key, float scale)
{
    for (size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += (size_t)gridDim.x * blockDim.x)
        dst[i] = __float2bfloat16_rn(dmy_value(key, i, scale));
}

size_t elems(const struct mdl_config *c, mdl_tensor t)
{
    int rows, cols;
    mdl_shape(c, t, &rows, &cols);
    return (size_t)rows * (size_t)cols;
}

size_t aligned(size_t elements)
{
    return (elements * sizeof(bf16) + ALIGN - 1) / ALIGN * ALIGN;
}

/* Tensors of a layer in memory order. Some follow the tensor before without a gap, because one GEMM multiplies both. */
const mdl_tensor layer_order[] = {MDL_Q,    MDL_K,         MDL_V,        MDL_O,      MDL_GATE,  MDL_UP,
                                  MDL_DOWN, MDL_NORM_ATTN, MDL_NORM_FFN, MDL_Q_NORM, MDL_K_NORM};

bool joined_to_previous(mdl_tensor t)
{
    return t == MDL_K || t == MDL_V || t == MDL_UP;
}

size_t layer_size(const struct mdl_config *c)
{
    size_t n = 0, run = 0;
    for (mdl_tensor t : layer_order) {
        if (!joined_to_previous(t)) {
            n += aligned(run);
            run = 0;
        }
        run += elems(c, t);
    }
    return n + aligned(run);
}

struct loader {
    const mdl *m;
    void *stage[2];      /* pinned, [STAGE] bytes */
    cudaEvent_t free[2]; /* the copy from the buffer has ended */
    int turn;            /* buffer used last */
};

int put_tensor(loader *l, mdl_tensor t, int layer, bf16 *dst, km_err *err)
{
    const struct mdl_config *c = mdl_config(l->m);
    int rows, cols;
    mdl_shape(c, t, &rows, &cols);
    if (mdl_is_dummy(l->m)) {
        dummy_kernel<<<1024, 256>>>(dst, (size_t)rows * cols, dmy_key(mdl_seed(l->m), t, layer), mdl_dummy_scale(c, t));
        CU_TRY(cudaGetLastError());
        return 0;
    }
    int block = (int)(STAGE / (sizeof(bf16) * cols));
    for (int r = 0; r < rows; r += block) {
        int n = rows - r < block ? rows - r : block, i = l->turn ^= 1;
        CU_TRY(cudaEventSynchronize(l->free[i]));
        int rc = mdl_read(l->m, t, layer, r, n, KM_BF16, l->stage[i], err);
        if (rc)
            return rc;
        CU_TRY(cudaMemcpyAsync(dst + (size_t)r * cols, l->stage[i], (size_t)n * cols * sizeof(bf16),
                               cudaMemcpyHostToDevice, 0));
        CU_TRY(cudaEventRecord(l->free[i], 0));
    }
    return 0;
}

int fill(cu_weights *w, loader *l, km_err *err)
{
    const struct mdl_config *c = mdl_config(l->m);
    char *at = w->base;
    auto take = [&](size_t elements) {
        bf16 *p = reinterpret_cast<bf16 *>(at);
        at += aligned(elements);
        return p;
    };
    w->embed = take(elems(c, MDL_EMBED));
    w->norm_out = take(elems(c, MDL_NORM_OUT));
    w->lm_head = c->tied ? w->embed : take(elems(c, MDL_LM_HEAD));
    int rc = put_tensor(l, MDL_EMBED, 0, w->embed, err);
    if (!rc)
        rc = put_tensor(l, MDL_NORM_OUT, 0, w->norm_out, err);
    if (!rc && !c->tied)
        rc = put_tensor(l, MDL_LM_HEAD, 0, w->lm_head, err);
    for (int i = 0; !rc && i < c->n_layers; i++) {
        bf16 *where[MDL_TENSORS], *run = nullptr;
        size_t used = 0;
        for (mdl_tensor t : layer_order) {
            if (!joined_to_previous(t)) {
                at += aligned(used);
                run = reinterpret_cast<bf16 *>(at);
                used = 0;
            }
            where[t] = run + used;
            used += elems(c, t);
            if ((rc = put_tensor(l, t, i, where[t], err)))
                return rc;
        }
        at += aligned(used);
        w->layers[i] = cu_layer{where[MDL_Q],         where[MDL_O],        where[MDL_GATE],   where[MDL_DOWN],
                                where[MDL_NORM_ATTN], where[MDL_NORM_FFN], where[MDL_Q_NORM], where[MDL_K_NORM]};
    }
    if (!rc)
        CU_TRY(cudaDeviceSynchronize());
    return rc;
}

int loader_open(loader *l, km_err *err)
{
    for (int i = 0; i < 2; i++) {
        if (!mdl_is_dummy(l->m))
            CU_TRY(cudaHostAlloc(&l->stage[i], STAGE, cudaHostAllocDefault));
        CU_TRY(cudaEventCreateWithFlags(&l->free[i], cudaEventDisableTiming));
    }
    return 0;
}

void loader_close(loader *l)
{
    for (int i = 0; i < 2; i++) {
        if (l->stage[i])
            cudaFreeHost(l->stage[i]);
        if (l->free[i])
            cudaEventDestroy(l->free[i]);
    }
}

} // namespace

struct cu_weights_parts cu_weights_sizes(const struct mdl_config *c)
{
    return {aligned(elems(c, MDL_EMBED)), aligned(elems(c, MDL_NORM_OUT)), c->tied ? 0 : aligned(elems(c, MDL_LM_HEAD)),
            (size_t)c->n_layers * layer_size(c)};
}

size_t cu_weights_size(const struct mdl_config *c)
{
    cu_weights_parts p = cu_weights_sizes(c);
    return p.embed + p.norm_out + p.lm_head + p.layers;
}

int cu_weights_load(struct cu_weights *w, const struct mdl *m, struct km_err *err)
{
    const struct mdl_config *c = mdl_config(m);
    w->bytes = cu_weights_size(c);
    w->layers = static_cast<cu_layer *>(km_calloc((size_t)c->n_layers, sizeof *w->layers));
    if (!w->layers)
        return km_fail(err, KM_ENOMEM, "out of memory");
    void *p;
    cudaError_t rc = cudaMalloc(&p, w->bytes);
    if (rc != cudaSuccess)
        return km_fail(err, KM_EDEVICE,
                       "the weights of %s need %.1f GiB on the GPU, and less is free: %s; use a smaller model or free "
                       "GPU memory",
                       mdl_name(m), (double)w->bytes / (1 << 30), cudaGetErrorString(rc));
    w->base = static_cast<char *>(p);
    km_mem_note(KM_MEM_DEVICE, (int64_t)w->bytes);
    loader l = {};
    l.m = m;
    int failed = loader_open(&l, err);
    if (!failed)
        failed = fill(w, &l, err);
    loader_close(&l);
    return failed;
}

void cu_weights_free(struct cu_weights *w)
{
    if (w->base) {
        cudaFree(w->base);
        km_mem_note(KM_MEM_DEVICE, -(int64_t)w->bytes);
    }
    km_free(w->layers);
    *w = cu_weights{};
}
