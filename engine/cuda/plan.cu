/* Dimensions and memory plan. Nothing here initialises CUDA in this process: the GPU is queried in a child process
 * (gpu.h). Without a GPU, the plan is made for an H100. */
#include "engine/cuda/gemm/gemm_lt.h"
#include "engine/cuda/plan.h"
#include "engine/cuda/weights.h"
#include "engine/cuda/workspace.h"

#include <stdio.h>
#include <string.h>

static int check_shape(const struct be_opts *o, const struct mdl *m, struct km_err *err)
{
    const struct mdl_config *c = mdl_config(m);
    if (o->dtype != KM_BF16)
        return km_fail(err, KM_EINVAL,
                       "--dtype is float32, but the CUDA engine computes in bfloat16 only; use --dtype bfloat16 or "
                       "--device cpu");
    if (o->block_size < 8 || (o->block_size & (o->block_size - 1)))
        return km_fail(err, KM_EINVAL, "--block-size is %d; the CUDA engine needs a power of two, 8 or more",
                       o->block_size);
    if (c->head_dim != 32 && c->head_dim != 64 && c->head_dim != 128)
        return km_fail(err, KM_EINVAL, "head_dim of %s is %d; the CUDA engine has kernels for 32, 64 and 128",
                       mdl_name(m), c->head_dim);
    if (c->n_heads / c->n_kv_heads > 16)
        return km_fail(err, KM_EINVAL, "%s has %d query heads for each KV head; the CUDA engine supports up to 16",
                       mdl_name(m), c->n_heads / c->n_kv_heads);
    if (c->hidden % 32 || c->ffn % 32 || c->hidden > 8192)
        return km_fail(err, KM_EINVAL,
                       "%s has hidden size %d and FFN size %d; the CUDA engine needs multiples of 32, and a hidden "
                       "size of at most 8192",
                       mdl_name(m), c->hidden, c->ffn);
    return 0;
}

int cu_dims_make(cu_dims *d, const struct be_opts *o, const struct mdl *m, const cu_gpu *gpu, struct km_err *err)
{
    const struct mdl_config *c = mdl_config(m);
    *d = cu_dims{};
    int rc = check_shape(o, m, err);
    if (rc)
        return rc;
    d->L = c->n_layers, d->D = c->hidden, d->H = c->n_heads, d->G = c->n_kv_heads, d->d = c->head_dim, d->F = c->ffn,
    d->V = c->vocab;
    d->eps = c->rms_eps;
    d->B = o->block_size;
    d->B_log2 = __builtin_ctz((unsigned)o->block_size);
    d->max_tokens = o->max_tokens;
    d->max_reqs = o->max_reqs;
    d->max_blocks = (o->max_model_len + d->B - 1) / d->B;
    d->page_elems = (size_t)d->L * 2 * d->G * d->B * d->d;
    d->arch = gpu->arch;
    d->n_sms = gpu->n_sms;
    return 0;
}

struct kv_geom cu_geom(const cu_dims &d, const struct mdl *m, int n_pages)
{
    struct kv_geom g = {};
    g.n_layers = d.L;
    g.n_kv_heads = d.G;
    g.head_dim = d.d;
    g.block_size = d.B;
    g.dtype = KM_BF16;
    g.layout = 1;
    g.page_bytes = d.page_elems * sizeof(bf16);
    g.n_pages = n_pages;
    g.rope_theta = mdl_config(m)->rope_theta;
    snprintf(g.numerics, sizeof g.numerics, "cuda-sm%d", d.arch); /* each generation has kernels of its own */
    return g;
}

/* Finds the GPU to plan for: this machine's GPU, or without one, if the memory limit is stated, a GPU with the SMs of
 * an H100. Sets out->device to its description. */
static int find_gpu(cu_gpu *gpu, const struct be_opts *o, struct plan *out, struct km_err *err)
{
    struct km_err why = {};
    if (!cu_gpu_query(gpu, &why)) {
        snprintf(out->device, sizeof out->device, "%.60s, %.0f GiB", gpu->name, (double)gpu->total / (1 << 30));
        return 0;
    }
    if (!o->memory_limit)
        return km_fail(err, KM_EDEVICE,
                       "%s; to plan without a GPU, state the memory limit, for example --gpu-memory-limit 24GiB",
                       why.msg);
    *gpu = cu_gpu{"", 90, 132, SIZE_MAX, SIZE_MAX};
    snprintf(out->device, sizeof out->device,
             "no GPU on this machine; workspace as on an H100 (%d SMs), older GPUs need more", gpu->n_sms);
    return 0;
}

static void add_weights(struct plan *out, const struct mdl_config *c)
{
    cu_weights_parts w = cu_weights_sizes(c);
    plan_add(out, PLAN_WEIGHTS, c->tied ? "embedding and head" : "embedding", KM_MEM_DEVICE, (int64_t)w.embed);
    if (!c->tied)
        plan_add(out, PLAN_WEIGHTS, "head", KM_MEM_DEVICE, (int64_t)w.lm_head);
    plan_add(out, PLAN_WEIGHTS, "final norm", KM_MEM_DEVICE, (int64_t)w.norm_out);
    plan_add(out, PLAN_WEIGHTS, "layers", KM_MEM_DEVICE, (int64_t)w.layers);
}

/* Adds the buffers from index `first` on to the plan. */
static void add_buffers(struct plan *out, const struct cu_workspace *ws, int first, enum plan_group group)
{
    for (int i = first; i < ws->n_buffers; i++)
        plan_add(out, group, ws->buffers[i].name, ws->buffers[i].kind, (int64_t)ws->buffers[i].bytes);
}

int cu_plan(struct plan *out, const struct be_opts *o, const struct mdl *m, struct km_err *err)
{
    cu_gpu gpu;
    cu_dims d;
    struct cu_workspace ws = {};
    *out = {};
    int rc = find_gpu(&gpu, o, out, err);
    rc = rc ? rc : cu_dims_make(&d, o, m, &gpu, err);
    if (rc)
        return rc;
    out->limited = KM_MEM_DEVICE;
    out->limit_stated = o->memory_limit != 0;
    out->limit = cu_memory_limit(o, &gpu);
    out->geom = cu_geom(d, m, 0);
    add_weights(out, mdl_config(m));
    cu_workspace_list(&ws, d);
    add_buffers(out, &ws, 0, PLAN_WORKSPACE);
    plan_add(out, PLAN_WORKSPACE, "cuBLASLt workspace", KM_MEM_DEVICE, CU_LT_WORKSPACE);
    plan_add(out, PLAN_RESERVE, "CUDA graphs, libraries, driver", KM_MEM_DEVICE, CU_RESERVE - CU_LT_WORKSPACE);
    int n_listed = ws.n_buffers;
    size_t weights = cu_weights_size(mdl_config(m)),
           used = weights + cu_workspace_bytes(&ws, KM_MEM_DEVICE) + CU_LT_WORKSPACE;
    if (gpu.avail != SIZE_MAX) /* from here on, the memory that will be free when only the pool is missing */
        gpu.avail -= used < gpu.avail ? used : gpu.avail;
    rc = cu_workspace_add_pool(&ws, d, o, weights, &gpu, err);
    if (rc)
        return rc;
    add_buffers(out, &ws, n_listed, PLAN_KV);
    out->geom.n_pages = ws.n_pages;
    return 0;
}
