/* Loads weights to the GPU. Dummy weights are computed on the GPU by the recipe of engine/dummy.h, in a fraction of a
 * second for an 8B model. Weights in files are read and converted in blocks of rows, through two pinned buffers: one is
 * filled while the other is copied to the GPU. */
#include "engine/cuda/weights.h"

extern "C" {
#include "base/mem.h"
#include "engine/dummy.h"
}

namespace {

const size_t ALIGN = 256, STAGE = 64u << 20; /* bytes: alignment of a tensor's start; size of a staging buffer */

__global__ void dummy_kernel(bf16 *dst, size_t n, uint64_t key, float scale)
{
    for (size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += (size_t)gridDim.x * blockDim.x)
        dst[i] = __float2bfloat16_rn(dmy_value(key, i, scale));
}

size_t n_elems(const struct mdl_config *c, mdl_tensor t)
{
    int rows, cols;
    mdl_shape(c, t, &rows, &cols);
    return (size_t)rows * (size_t)cols;
}

/* Bytes of n elements, rounded up to ALIGN. */
size_t aligned_bytes(size_t n)
{
    return (n * sizeof(bf16) + ALIGN - 1) / ALIGN * ALIGN;
}

/* Tensors of a layer in memory order. */
const mdl_tensor layer_order[] = {MDL_Q,    MDL_K,         MDL_V,        MDL_O,      MDL_GATE,  MDL_UP,
                                  MDL_DOWN, MDL_NORM_ATTN, MDL_NORM_FFN, MDL_Q_NORM, MDL_K_NORM};

/* True if no gap may precede the tensor, because one GEMM multiplies it together with the previous tensor. */
bool joined_to_previous(mdl_tensor t)
{
    return t == MDL_K || t == MDL_V || t == MDL_UP;
}

size_t layer_size(const struct mdl_config *c)
{
    size_t bytes = 0, joined = 0; /* joined: elements of the joined tensors so far */
    for (mdl_tensor t : layer_order) {
        if (!joined_to_previous(t)) {
            bytes += aligned_bytes(joined);
            joined = 0;
        }
        joined += n_elems(c, t);
    }
    return bytes + aligned_bytes(joined);
}

struct loader {
    const mdl *m;
    void *stage[2];        /* two staging buffers, pinned, STAGE bytes each */
    cudaEvent_t copied[2]; /* completes when the copy from the buffer has ended */
    int last_used;         /* index of the buffer that was filled last */
};

/* Loads one tensor to dst. The last copies may still be in progress at the return. */
int load_tensor(loader *l, mdl_tensor t, int layer, bf16 *dst, km_err *err)
{
    const struct mdl_config *c = mdl_config(l->m);
    int rows, cols;
    mdl_shape(c, t, &rows, &cols);
    if (mdl_is_dummy(l->m)) {
        dummy_kernel<<<1024, 256>>>(dst, (size_t)rows * cols, dmy_key(mdl_seed(l->m), t, layer), mdl_dummy_scale(c, t));
        CU_TRY(cudaGetLastError());
        return 0;
    }
    int block = (int)(STAGE / (sizeof(bf16) * cols)); /* rows that fit in a staging buffer */
    for (int r = 0; r < rows; r += block) {
        int n = rows - r < block ? rows - r : block, i = l->last_used ^= 1;
        CU_TRY(cudaEventSynchronize(l->copied[i]));
        int rc = mdl_read(l->m, t, layer, r, n, KM_BF16, l->stage[i], err);
        if (rc)
            return rc;
        CU_TRY(cudaMemcpyAsync(dst + (size_t)r * cols, l->stage[i], (size_t)n * cols * sizeof(bf16),
                               cudaMemcpyHostToDevice, 0));
        CU_TRY(cudaEventRecord(l->copied[i], 0));
    }
    return 0;
}

/* Loads one layer to *at and moves *at to the end of the layer. */
int load_layer(loader *l, int layer, char **at, cu_layer *out, km_err *err)
{
    bf16 *tensor[MDL_TENSORS], *first = nullptr; /* first: of the joined tensors */
    size_t joined = 0;
    for (mdl_tensor t : layer_order) {
        if (!joined_to_previous(t)) {
            *at += aligned_bytes(joined);
            first = reinterpret_cast<bf16 *>(*at);
            joined = 0;
        }
        tensor[t] = first + joined;
        joined += n_elems(mdl_config(l->m), t);
        int rc = load_tensor(l, t, layer, tensor[t], err);
        if (rc)
            return rc;
    }
    *at += aligned_bytes(joined);
    *out = cu_layer{tensor[MDL_Q],         tensor[MDL_O],        tensor[MDL_GATE],   tensor[MDL_DOWN],
                    tensor[MDL_NORM_ATTN], tensor[MDL_NORM_FFN], tensor[MDL_Q_NORM], tensor[MDL_K_NORM]};
    return 0;
}

int load_all(cu_weights *w, loader *l, km_err *err)
{
    const struct mdl_config *c = mdl_config(l->m);
    char *at = w->base;
    auto reserve = [&](size_t n) {
        bf16 *p = reinterpret_cast<bf16 *>(at);
        at += aligned_bytes(n);
        return p;
    };
    w->embed = reserve(n_elems(c, MDL_EMBED));
    w->norm_out = reserve(n_elems(c, MDL_NORM_OUT));
    w->lm_head = c->tied ? w->embed : reserve(n_elems(c, MDL_LM_HEAD));
    int rc = load_tensor(l, MDL_EMBED, 0, w->embed, err);
    rc = rc ? rc : load_tensor(l, MDL_NORM_OUT, 0, w->norm_out, err);
    if (!c->tied)
        rc = rc ? rc : load_tensor(l, MDL_LM_HEAD, 0, w->lm_head, err);
    for (int i = 0; !rc && i < c->n_layers; i++)
        rc = load_layer(l, i, &at, &w->layers[i], err);
    if (!rc)
        CU_TRY(cudaDeviceSynchronize());
    return rc;
}

int loader_open(loader *l, km_err *err)
{
    for (int i = 0; i < 2; i++) {
        if (!mdl_is_dummy(l->m))
            CU_TRY(cudaHostAlloc(&l->stage[i], STAGE, cudaHostAllocDefault));
        CU_TRY(cudaEventCreateWithFlags(&l->copied[i], cudaEventDisableTiming));
    }
    return 0;
}

void loader_close(loader *l)
{
    for (int i = 0; i < 2; i++) {
        if (l->stage[i])
            cudaFreeHost(l->stage[i]);
        if (l->copied[i])
            cudaEventDestroy(l->copied[i]);
    }
}

} // namespace

struct cu_weights_parts cu_weights_sizes(const struct mdl_config *c)
{
    return {aligned_bytes(n_elems(c, MDL_EMBED)), aligned_bytes(n_elems(c, MDL_NORM_OUT)),
            c->tied ? 0 : aligned_bytes(n_elems(c, MDL_LM_HEAD)), (size_t)c->n_layers * layer_size(c)};
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
        return km_fail(err, KM_ENOMEM, "out of memory for the table of %d layers", c->n_layers);
    void *p;
    cudaError_t rc = cudaMalloc(&p, w->bytes);
    if (rc != cudaSuccess)
        return km_fail(
            err, KM_EDEVICE,
            "cannot allocate %.1f GiB on the GPU for the weights of %s: %s; use a smaller model, or end other "
            "programs that use the GPU",
            (double)w->bytes / (1 << 30), mdl_name(m), cudaGetErrorString(rc));
    w->base = static_cast<char *>(p);
    km_mem_note(KM_MEM_DEVICE, (int64_t)w->bytes);
    loader l = {};
    l.m = m;
    int failed = loader_open(&l, err);
    if (!failed)
        failed = load_all(w, &l, err);
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
